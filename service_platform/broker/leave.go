package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/policy"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// end closes the connection from outside its goroutine, and says why where the client can hear it.
func (c *conn) end(why message.Reason, err error) {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	c.ended, c.endWhy, c.endErr, c.parting = true, why, err, make(chan struct{})
	c.cutOff()
	joined := c.joined
	c.free.Broadcast()
	c.mu.Unlock()
	defer close(c.parting)
	if joined && c.version == packet.V5 {
		d := packet.Disconnect{Code: disconnectCode(why)}
		_ = c.send(d.Append(nil, c.version)) // it may be gone already
	}
	_ = c.sock.CloseWrite()
	_ = c.sock.SetReadDeadline(time.Now()) // wakes the reader
}

func disconnectCode(why message.Reason) packet.ReasonCode {
	switch why {
	case message.TakenOver:
		return packet.SessionTakenOver
	case message.ServerStopping:
		return packet.ServerShuttingDown
	case message.KeepAliveTimeout:
		return packet.KeepAliveTimeout
	case message.StorageLow:
		return packet.QuotaExceeded
	case message.BusUnavailable, message.Fenced:
		return packet.ServerBusy
	case message.MessageTooLarge:
		return packet.PacketTooLarge
	case message.ReceiveMaximum:
		return packet.ReceiveMaximumExceeded
	case message.SlowConsumer:
		return packet.ImplementationSpecific
	}
	return packet.NotAuthorized
}

// leave is the end of the connection, for whatever reason.
func (c *conn) leave(err error) {
	c.mu.Lock()
	byOthers, why, detail := c.ended, c.endWhy, c.endErr
	c.ended = true
	c.free.Broadcast()
	parting := c.parting
	c.mu.Unlock()
	if byOthers {
		<-parting // the reader may see the end before the client is told of it, and nothing can be said once this is closed
	} else {
		why, detail = c.judge(err)
	}
	c.b.metrics.left(why)
	c.b.env.Log.Debug("left", "device", c.device, "address", c.addr, "reason", why, "error", err)
	_ = c.sock.Close()
	last := c.b.leave(c)
	for _, x := range []*allowance{c.allowed, c.buried} {
		if x != nil {
			x.giveBack(time.Now())
		}
	}
	if !c.joined {
		if c.kept != nil { // CONNACK could not be sent
			c.leaveSession(why)
			c.gone(why) // of the one that it took over from, too
		}
		if why != 0 && why != message.ServerStopping {
			c.b.refusals.add(refusal{reason: why, detail: detail, device: c.device, client: c.clientID, address: c.addr})
		}
		return
	}
	c.leaveSession(why)
	if last {
		c.gone(why)
	}
	c.mu.Lock()
	told := c.counted != nil && errors.Is(detail, c.counted)
	c.mu.Unlock()
	if told {
		return
	}
	if why != 0 && why != message.ConnectionLost && why != message.ServerStopping {
		c.b.refusals.add(refusal{reason: why, detail: detail, device: c.device, client: c.clientID, address: c.addr})
	}
}

// leaveSession ends the connection's hold on its session, and has its will said, unless it said good-bye. When the broker
// stops, the client is expected to come back: its session waits, and so does its will, for as long as it delays.
func (c *conn) leaveSession(why message.Reason) {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	ends, err := c.kept.Disconnect(ctx, c.epoch, c.final)
	c.passOn()
	if err != nil && !c.b.stop.Load() {
		c.b.env.Log.Warn("write down that a client has gone", "client_id", c.clientID, "error", err)
	}
	if c.will == nil {
		return
	}
	if err := c.denial(c.rights.Load(), policy.Publish, message.Pattern(c.willView)); err != nil { // since CONNECT
		c.b.refusals.add(refusal{reason: message.ACLDenied, detail: fmt.Errorf("its will is not said: %w", err), device: c.device, client: c.clientID, address: c.addr})
		c.b.dropWill(c.willID)
		return
	}
	w := session.Will{ID: c.willID, Session: c.session, Delay: c.willDelay, Life: c.willLife, Message: c.will}
	switch e := time.Duration(c.kept.Expiry()) * time.Second; {
	case ends || c.kept.Ended():
		w.Delay = 0
	case w.Delay > e:
		w.Delay = e
	}
	if w.Delay > 0 && c.kept.Resumed(c.epoch) {
		c.b.dropWill(w.ID) // the same session goes on (MQTT-3.1.3-9); its new connection has its own will, or none
		return
	}
	c.b.sayWill(w)
}

// judge finds the reason in what ended the reading, and tells an MQTT 5 client.
func (c *conn) judge(err error) (message.Reason, error) {
	if err == nil || errors.Is(err, io.EOF) {
		if !c.joined {
			return message.ConnectionLost, errors.New("the connection ended before CONNECT")
		}
		return 0, nil
	}
	var pe *packet.Error
	why := message.ReasonOf(err, message.ConnectionLost)
	if errors.As(err, &pe) {
		switch pe.Code {
		case packet.MalformedPacket:
			why = message.MalformedPacket
		case packet.PacketTooLarge:
			why = message.MessageTooLarge
		case packet.TopicNameInvalid, packet.TopicFilterInvalid:
			why = message.TopicInvalid
		case packet.ReceiveMaximumExceeded:
			why = message.ReceiveMaximum
		case packet.UnsupportedProtocolVersion, packet.QoSNotSupported, packet.RetainNotSupported:
			why = message.Unsupported
		case packet.ClientIDNotValid:
			why = message.ClientIDMismatch
		case packet.NotAuthorized:
			why = message.ACLDenied
		default:
			why = message.ProtocolError
		}
	}
	if c.joined && c.version == packet.V5 {
		d := packet.Disconnect{Code: disconnectCode(why)}
		if pe != nil {
			d.Code = pe.Code
			d.Properties.SetString(packet.ReasonString, pe.Detail)
			if d.Size(c.version) > int(c.packetMax) {
				d.Properties.Reset() // MQTT-3.14.2-3
			}
		}
		_ = c.send(d.Append(nil, c.version)) // it may be gone already
	}
	return why, err
}

// gone tells that the device has gone, unless it is there by another connection by now.
func (c *conn) gone(why message.Reason) {
	version := c.b.store.Version() // before what is told of a connection that comes from now on
	if c.kept.Succeeded(c.epoch) || c.device != "" && c.b.hasAnother(c) {
		return
	}
	if why == 0 && !c.bye {
		why = message.ConnectionLost
	}
	c.presence(false, why, version)
}

// presence tells whether the device is there.
func (c *conn) presence(online bool, why message.Reason, version uint64) {
	if c.device == "" {
		return // no device of the fleet
	}
	c.b.online.mark(c.device, online)
	m := c.b.presence(c.device, device.Presence{Online: online, Reason: why, Session: c.session, Client: c.clientID, Version: version})
	c.append(m)
}

package sdk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

const (
	backoffFirst = 200 * time.Millisecond
	backoffMost  = 30 * time.Second
	steady       = 10 * time.Second // a connection that lasted this long was a good one
)

// run keeps the client connected until it is closed. first is told how the first connection went.
func (c *Client) run(first chan<- error) {
	wait := backoffFirst
	for c.ctx.Err() == nil {
		up := time.Time{}
		err := c.once(func() {
			up = time.Now()
			if first != nil {
				first <- nil
				first = nil
			}
		})
		c.drop(err)
		if c.ctx.Err() != nil {
			return
		}
		c.failed.Store(&err)
		if first != nil && errors.As(err, new(*RefusedError)) {
			first <- err
			return
		}
		if !up.IsZero() && time.Since(up) >= steady {
			wait = backoffFirst
		}
		// Half of the wait is chance, so that a fleet that was cut off together does not come back together.
		pause := wait/2 + rand.N(wait/2)
		c.o.Log.Info("away from the platform", "device", c.o.Device, "error", err, "again_in", pause)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-c.ctx.Done():
			t.Stop()
		}
		wait = min(2*wait, backoffMost)
	}
}

// once connects and reads until the connection ends.
func (c *Client) once(up func()) error {
	ctx, cancel := context.WithTimeout(c.ctx, dialPatience)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.conn, c.ready, c.flying = conn, false, 0
	c.era++
	c.inbox = slices.DeleteFunc(c.inbox, func(m incoming) bool { return m.id != 0 }) // the platform sends them again
	connect := packet.Connect{Version: packet.V5, KeepAlive: uint16(c.o.KeepAlive / time.Second), ClientID: c.o.Device}
	connect.Properties.Set(packet.SessionExpiry, uint32(c.o.SessionExpiry/time.Second))
	connect.Properties.Set(packet.ReceiveMaximum, receiveMax)
	connect.Properties.Set(packet.MaximumPacketSize, packetMax)
	err = c.write(connect.Append(c.buf[:0]))
	c.mu.Unlock()
	if c.ctx.Err() != nil { // closed meanwhile, perhaps before the connection was there to be closed
		return ErrClosed
	}
	if err != nil {
		return err
	}
	return c.read(conn, up)
}

// read takes packets until the connection ends. The connection is silent for at most one keep alive from this side and,
// since it asks then, for two from the other.
func (c *Client) read(conn net.Conn, up func()) error {
	buf, n, asked := make([]byte, 512), 0, false
	for {
		h, start, total, need, err := packet.Frame(buf[:n], packetMax)
		if err != nil {
			return err
		}
		if total > 0 {
			if err := c.take(h, buf[start:total], up); err != nil {
				return err
			}
			n = copy(buf, buf[total:n])
			continue
		}
		if need > len(buf) {
			buf = append(buf, make([]byte, need-len(buf))...)
		}
		if err := conn.SetReadDeadline(time.Now().Add(c.o.KeepAlive)); err != nil {
			return err
		}
		k, err := conn.Read(buf[n:])
		n += k
		switch {
		case k > 0:
			asked = false
		case errors.Is(err, os.ErrDeadlineExceeded) && !asked && c.ping():
			asked = true
		case err != nil:
			return err
		}
	}
}

// ping asks whether the platform is there. It is false before CONNACK, when nothing is to be asked yet.
func (c *Client) ping() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready && c.write(packet.AppendPingreq(c.buf[:0])) == nil
}

func (c *Client) take(h packet.Header, body []byte, up func()) error {
	if h.Type == packet.CONNACK {
		return c.connected(h, body, up)
	}
	switch h.Type {
	case packet.PUBACK:
		var a packet.Ack
		if err := a.Decode(h, body, packet.V5); err != nil {
			return err
		}
		c.answered(a.ID, a.Code, strings.Clone(a.Properties.ReasonString))
	case packet.PUBLISH:
		return c.arrived(h, body)
	case packet.SUBACK:
		var a packet.SubAnswer
		if err := a.Decode(h, body, packet.V5); err != nil {
			return err
		}
		c.subscribed(&a)
	case packet.PINGRESP:
		return packet.DecodePing(h, body)
	case packet.DISCONNECT:
		var d packet.Disconnect
		if err := d.Decode(h, body, packet.V5); err != nil {
			return err
		}
		return fmt.Errorf("the platform ended the connection: %s %s", d.Code, d.Properties.ReasonString)
	default:
		return fmt.Errorf("the platform sent a %s, which no client expects", h.Type)
	}
	return nil
}

func (c *Client) connected(h packet.Header, body []byte, up func()) error {
	var a packet.Connack
	if err := a.Decode(h, body, packet.V5); err != nil {
		return err
	}
	if a.Code.Failed() {
		if transient(a.Code) {
			return fmt.Errorf("the platform does not take connections: %s %s", a.Code, a.Properties.ReasonString)
		}
		return &RefusedError{"connect", a.Code, strings.Clone(a.Properties.ReasonString)}
	}
	c.mu.Lock()
	c.ready = true
	c.max = int(a.Properties.Num(packet.ReceiveMaximum, 65535))
	if s := a.Properties.Num(packet.ServerKeepAlive, 0); s > 0 { // §3.2.2.3.14: the server's word counts
		c.o.KeepAlive = time.Duration(s) * time.Second
	}
	c.connects.Add(1)
	for _, s := range c.subs {
		c.sendSubscribe(s)
	}
	c.pump()
	if !a.SessionPresent {
		for _, t := range c.twins {
			t.look() // what was said while nothing was kept for the device is lost
		}
	}
	c.mu.Unlock()
	up()
	c.o.Log.Info("connected", "device", c.o.Device, "session_present", a.SessionPresent)
	return nil
}

// drop forgets the connection: all that was under way waits for the next one.
func (c *Client) drop(error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.conn, c.ready, c.flying = nil, false, 0
	for _, m := range c.queue {
		m.flying = false
	}
}

// write sends one packet; c.mu is held. After an error the connection is closed, which its reader notices.
func (c *Client) write(b []byte) error {
	c.buf = b[:0]
	if c.conn == nil {
		return net.ErrClosed
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(writePatience))
	_, err := c.conn.Write(b)
	if err != nil {
		_ = c.conn.Close()
	}
	return err
}

// nextID gives a packet id that is not in use (§2.2.1); c.mu is held. The window is far smaller than 65535.
func (c *Client) nextID() uint16 {
	for {
		c.lastID++
		if c.lastID != 0 && c.ids[c.lastID] == nil && !slices.ContainsFunc(c.subs, func(s *subscription) bool { return s.id == c.lastID }) {
			return c.lastID
		}
	}
}

// transient says which refusals pass by themselves.
func transient(code packet.ReasonCode) bool {
	switch code {
	case packet.ServerUnavailable, packet.ServerBusy, packet.QuotaExceeded, packet.ConnectionRateExceeded, packet.MessageRateTooHigh,
		packet.UnspecifiedError, packet.ImplementationSpecific, packet.ServerShuttingDown, packet.UseAnotherServer:
		return true
	}
	return false
}

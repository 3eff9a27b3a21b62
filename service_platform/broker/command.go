package broker

import (
	"fmt"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// carried is a command on its way to the device of a connection.
type carried struct {
	mark   uint64 // as session.Options has it
	m      *message.Message
	answer message.Subject // where the device answers it
}

// carriedMax is how many commands a connection remembers, to know what an answer answers. Its device has one in hand at a
// time, so a few are enough for one that is slow.
const carriedMax = 8

// carry notes that a command has gone out, or tells that it cannot; nil of another message. c.mu is held.
func (c *conn) carry(m *message.Message, o session.Options, out bool) *carried {
	if o.Command == 0 {
		return nil
	}
	if !out {
		if c.mayHear(m.Subject, o.AWS) && !m.Expired(c.b.env.Now()) {
			r := session.Receipt(m, serviceplatform.ReceiptWithheld)
			r.Reason, r.Detail = message.MessageTooLarge, fmt.Sprintf("the client takes packets of up to %d bytes, and the command has %d bytes of data", c.packetMax, len(m.Data))
			c.tells(&r, m)
		}
		return nil
	}
	light := *m
	light.Data, light.Properties, light.Correlation, light.ReplyTo = nil, nil, nil, ""
	k := &carried{mark: o.Command, m: light.Clone(), answer: device.ReplySubject(m.Subject.Token(1), m.Subject.Token(3), m.Subject.Token(4))}
	k.m.QoS = o.QoS
	if len(c.carried) == carriedMax {
		c.carried = append(c.carried[:0], c.carried[1:]...)
	}
	c.carried = append(c.carried, k)
	if o.QoS == 0 {
		r := session.Receipt(k.m, serviceplatform.ReceiptSent)
		c.tells(&r, k.m)
	}
	return k
}

// carries says whether a command is on its way already, of a session that keeps none, or was acknowledged just now, which
// is told again. c.mu is held.
func (c *conn) carries(m *message.Message, mark uint64) bool {
	if c.commanded == mark {
		r := session.Receipt(m, serviceplatform.ReceiptDelivered)
		c.tells(&r, m)
		return true
	}
	for _, f := range c.inflight {
		if f.command != nil && f.command.mark == mark {
			return true
		}
	}
	for _, w := range c.waiting {
		if w.o.Command == mark {
			return true
		}
	}
	return false
}

// took tells that the device has acknowledged a command, or will not have it: of a session that is kept in the commit that notes
// the acknowledgement, so that neither is known without the other. c.mu is held, and the store's mutex is free.
func (c *conn) took(f *flight, code packet.ReasonCode) {
	k := f.command
	if k == nil {
		return
	}
	f.command = nil
	r := session.Receipt(k.m, serviceplatform.ReceiptDelivered)
	if code.Failed() {
		r.Result, r.Reason, r.Detail = serviceplatform.ReceiptRefused, message.Unsupported, "the device has refused it: "+code.String()
	}
	if f.number == 0 {
		c.commanded = k.mark
		c.tells(&r, k.m)
	} else if out := c.receipt(&r, k.m); out != nil {
		c.command, c.proofs = k.mark, append(c.proofs, out)
	}
}

// tells has a receipt told, soon. c.mu is held.
func (c *conn) tells(r *serviceplatform.Receipt, m *message.Message) {
	if out := c.receipt(r, m); out != nil {
		c.b.env.Mint(out)
		c.receipts = append(c.receipts, out)
		c.settleSoon()
	}
}

// receipt is the message that tells it; nil where there is none.
func (c *conn) receipt(r *serviceplatform.Receipt, m *message.Message) *message.Message {
	r.Client, r.Node, r.Version = c.clientID, c.b.env.Node, c.b.store.Version()
	out, err := session.ReceiptMessage(r, m)
	if err != nil {
		return nil // plain values
	}
	return out
}

// listens tells that the device has subscribed to something, where its commands wait for that.
func (c *conn) listens() {
	if c.device == "" || !c.b.store.Deaf(c.device) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tells(&serviceplatform.Receipt{Device: c.device, Result: serviceplatform.ReceiptSubscribed}, new(message.Message))
}

// follow makes an answer a consequence of its command, also where the client passes no trace on: a client of MQTT 3.1.1
// cannot.
func (c *conn) follow(m *message.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.carried {
		if k.answer != m.Subject {
			continue
		}
		if m.Trace.ID.IsZero() {
			m.Trace = message.Trace{ID: k.m.Trace.ID, Span: message.NewSpan(), Flags: k.m.Trace.Flags}
		}
		m.Cause, m.Depth = k.m.ID, min(k.m.Depth+1, message.DepthMax)
		return
	}
}

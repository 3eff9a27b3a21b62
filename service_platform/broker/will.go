package broker

import (
	"context"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// readWill takes a will, under the same policy as a PUBLISH.
func (c *conn) readWill(w *packet.Will) error {
	if len(w.Payload) > c.b.conf.MaxMessageBytes {
		return message.Rejectf(message.MessageTooLarge, "will of %d bytes; the limit is %d", len(w.Payload), c.b.conf.MaxMessageBytes)
	}
	p := packet.Publish{QoS: w.QoS, Retain: w.Retain, Topic: w.Topic, Payload: w.Payload, Properties: w.Properties}
	t := c.look(w.Topic)
	if t.invalid != nil {
		return message.Reject(message.TopicInvalid, t.invalid)
	}
	if t.denied != nil {
		return t.denied
	}
	var m message.Message
	if err := c.fill(&m, &p, t); err != nil {
		return err
	}
	if err := c.b.env.Check(&m); err != nil {
		return err
	}
	m.Will = true
	c.will = m.Clone()
	c.willDelay = time.Duration(w.Properties.Num(packet.WillDelay, 0)) * time.Second
	c.willView = t.view
	c.willLife = time.Duration(w.Properties.Num(packet.MessageExpiry, 0)) * time.Second
	c.will.Expires = time.Time{} // its life begins when it is said
	return nil
}

// sayWill has a will said when its delay is over, or its session is, whichever is first (MQTT-3.1.3-9). Until it is in
// the log it is kept in the store.
func (b *Broker) sayWill(w session.Will) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wills == nil { // the broker stops; the next start finds it
		return
	}
	b.wills[w.ID] = pending{w.Session, time.AfterFunc(w.Delay, func() {
		b.mu.Lock()
		_, still := b.wills[w.ID]
		if still {
			delete(b.wills, w.ID)
			b.group.Add(1)
		}
		b.mu.Unlock()
		if !still {
			return
		}
		defer b.group.Done()
		m := w.Message
		m.ID = message.ID{} // minted now that it is said
		b.env.Mint(m)
		if w.Life > 0 {
			m.Expires = b.env.Now().Add(w.Life)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		a, err := b.door(ctx, m.Subject.Namespace())
		if err == nil {
			_, err = bus.AppendSync(ctx, a, m)
		}
		if err != nil {
			b.refusals.add(refusal{reason: message.ReasonOf(err, message.BusUnavailable), detail: err, device: m.Device, topic: m.Subject.Topic()})
			if message.ReasonOf(err, message.BusUnavailable) == message.BusUnavailable {
				return // the next start says it
			}
		}
		if err := b.store.DropWill(ctx, w.ID); err != nil && !b.stop.Load() {
			b.env.Log.Warn("forget a will that was said", "error", err)
		}
	})}
}

// pending is a will that waits for its delay.
type pending struct {
	session message.ID
	timer   *time.Timer
}

// keepQuiet takes back a session's will that waits for its delay; the client is there again.
func (b *Broker) keepQuiet(session message.ID) {
	b.mu.Lock()
	var ids []message.ID
	for id, p := range b.wills {
		if p.session == session && p.timer.Stop() {
			delete(b.wills, id)
			ids = append(ids, id)
		}
	}
	b.mu.Unlock()
	for _, id := range ids {
		b.dropWill(id)
	}
}

func (b *Broker) dropWill(id message.ID) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := b.store.DropWill(ctx, id); err != nil && !b.stop.Load() {
		b.env.Log.Warn("forget a will", "error", err)
	}
}

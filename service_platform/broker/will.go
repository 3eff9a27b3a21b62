package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

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

// wills are those that wait until they are said: for their delay, or for the log to take them.
type wills struct {
	mu sync.Mutex
	of map[message.ID]map[message.ID]*time.Timer // by session and will; nil where none is said any more

	again time.Duration // how long one waits that the log could not take
}

func newWills() *wills {
	return &wills{of: map[message.ID]map[message.ID]*time.Timer{}, again: 10 * time.Second}
}

// wait has a will said after a while, unless its session's wills are taken back before. say runs in the broker's group.
func (l *wills) wait(of, id message.ID, d time.Duration, group *sync.WaitGroup, say func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil { // the broker stops; the next start finds it
		return
	}
	if l.of[of] == nil {
		l.of[of] = map[message.ID]*time.Timer{}
	}
	l.of[of][id] = time.AfterFunc(d, func() {
		l.mu.Lock()
		_, still := l.of[of][id]
		if still {
			l.forget(of, id)
			group.Add(1)
		}
		l.mu.Unlock()
		if still {
			defer group.Done()
			say()
		}
	})
}

// forget forgets one. mu is held.
func (l *wills) forget(of, id message.ID) {
	if delete(l.of[of], id); len(l.of[of]) == 0 {
		delete(l.of, of)
	}
}

// takeBack forgets a session's, and gives their ids.
func (l *wills) takeBack(of message.ID) (ids []message.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, t := range l.of[of] {
		if t.Stop() {
			l.forget(of, id)
			ids = append(ids, id)
		}
	}
	return ids
}

// close has no will said any more; the next start says those that wait.
func (l *wills) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, all := range l.of {
		for _, t := range all {
			t.Stop()
		}
	}
	l.of = nil
}

// sayWill has a will said when its delay is over, or its session is, whichever is first (MQTT-3.1.3-9). Until it is in
// the log it is kept in the store.
func (b *Broker) sayWill(w session.Will) { b.sayWillIn(w, w.Session, w.Delay) }

func (b *Broker) sayWillIn(w session.Will, of message.ID, d time.Duration) {
	b.wills.wait(of, w.ID, d, &b.group, func() {
		switch err := b.putWill(w); {
		case errors.Is(err, errHalted): // nobody knows whether it is in the log
		case err != nil && passes(message.ReasonOf(err, message.BusUnavailable)):
			b.sayWillIn(w, message.ID{}, b.wills.again) // who comes back now does not take it back
		default:
			b.dropWill(w.ID)
		}
	})
}

// passes says whether what was refused for a reason may be taken a little later.
func passes(r message.Reason) bool {
	return r == message.BusUnavailable || r == message.StorageLow || r == message.Fenced
}

// putWill says a will and waits for its fate, however long the log is away: given up on and said again, it might be there twice.
func (b *Broker) putWill(w session.Will) error {
	m := w.Message.Clone()
	m.ID = message.ID{} // minted now that it is said
	b.env.Mint(m)
	if w.Life > 0 {
		m.Expires = b.env.Now().Add(w.Life)
	}
	ctx, cancel := context.WithTimeout(context.Background(), sayPatience)
	defer cancel()
	fate := make(settled, 1)
	a, err := b.door(ctx, m.Subject.Namespace())
	if err == nil {
		err = a.Append(ctx, m, fate, 0)
	}
	if err == nil {
		select {
		case err = <-fate:
		case <-b.halting:
			select {
			case err = <-fate:
			case <-time.After(stopPatience):
				return errHalted
			}
		}
	}
	if err != nil {
		b.refusals.add(refusal{reason: message.ReasonOf(err, message.BusUnavailable), detail: fmt.Errorf("a will is not said: %w", err), device: m.Device, topic: m.Subject.Topic()})
	}
	return err
}

// keepQuiet takes back a session's will that waits for its delay; the client is there again.
func (b *Broker) keepQuiet(session message.ID) {
	for _, id := range b.wills.takeBack(session) {
		b.dropWill(id)
	}
}

func (b *Broker) dropWill(id message.ID) {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	if err := b.store.DropWill(ctx, id); err != nil && !b.stop.Load() {
		b.env.Log.Warn("forget a will", "error", err)
	}
}

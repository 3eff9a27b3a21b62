package session

import (
	"context"
	"slices"
	"strings"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// heard is what one session hears of a message, from all of its subscriptions that select it.
type heard struct {
	x       *Session
	o       Options
	publish bool // a subscription keeps the retain flag
}

// delivery is for a client, now.
type delivery struct {
	to Client
	m  message.Message
	o  Options
}

// Hear takes a batch of a log: what sessions keep is queued, what they don't is delivered, what is to be retained is.
// It is the component's HandleBatch.
func (s *Store) Hear(_ context.Context, tx component.Tx, log string, b bus.Stored) error {
	if err := s.load(tx); err != nil {
		return err
	}
	if b.Err != nil || b.Batch.Count == 0 {
		return nil // what cannot be read is counted by the runner
	}
	var now []delivery
	var m message.Message
	queued := map[*Session]bool{}
	s.mu.Lock()
	cursor := b.Batch.Cursor()
	for i := uint32(0); cursor.Next(&m); i++ {
		if m.QoS == 2 && m.Client != "" {
			s.arrived(tx, &m)
		}
		if m.Retain {
			if err := s.retain(tx, &m); err != nil {
				s.mu.Unlock()
				return err
			}
		}
		for _, h := range s.matches(&m) {
			h.o.Retain = m.Retain && h.publish
			if h.o.QoS == 0 || !h.x.Kept() {
				if h.x.client != nil {
					now = append(now, delivery{h.x.client, m, h.o})
				}
				continue
			}
			at := b.Position
			at.Index = i
			h.x.enqueue(tx, item{kind: itemRef, o: h.o, log: log, at: at, size: uint32(len(m.Data)), expires: m.Expires})
			queued[h.x] = true
		}
	}
	s.mu.Unlock()
	if len(queued) > 0 {
		s.cache.put(log, b)
		tx.After(func() {
			for x := range queued {
				x.wake()
			}
		})
	}
	for i := range now {
		now[i].to.Deliver(&now[i].m, now[i].o)
	}
	return cursor.Err()
}

// matches lists the sessions that hear a message. The store's mutex is held.
func (s *Store) matches(m *message.Message) (list []heard) {
	s.subs.match(m.Subject, func(sub *Subscription) {
		if sub.Share != "" {
			if sub = s.choose(sub); sub == nil {
				return
			}
		}
		if sub.NoLocal && m.Client != "" && m.Client == sub.of.rec.Who.Key() || !sub.sees(m.Subject) {
			return
		}
		qos := min(sub.QoS, m.QoS)
		for i := range list {
			h := &list[i]
			if h.x == sub.of && sub.Share == "" {
				// Overlapping subscriptions give one message, at the highest QoS, with all identifiers (MQTT-3.3.4-2, -3).
				h.o.QoS = max(h.o.QoS, qos)
				h.o.IDs = append(h.o.IDs, sub.ids()...)
				slices.Sort(h.o.IDs)
				h.publish = h.publish || sub.AsPublished
				return
			}
		}
		list = append(list, heard{sub.of, Options{QoS: qos, IDs: sub.ids()}, sub.AsPublished})
	})
	return list
}

// arrived notes that a QoS 2 message of a session is in the log: until its PUBREL comes, its packet identifier is its.
func (s *Store) arrived(tx component.Tx, m *message.Message) {
	x := s.sessions[m.Client]
	if x == nil || !x.Kept() {
		return
	}
	if x.released[m.Packet] == m.ID {
		delete(x.released, m.Packet)
		tx.Delete(packetKey(kindReleased, x.rec.ID, m.Packet))
		return
	}
	x.received[m.Packet] = m.ID
	tx.Set(packetKey(kindReceived, x.rec.ID, m.Packet), m.ID[:])
}

// Received is the message that a session sent with a packet identifier, and whose PUBREL has not come.
func (x *Session) Received(packet uint16) (message.ID, bool) {
	x.store.mu.RLock()
	defer x.store.mu.RUnlock()
	id, ok := x.received[packet]
	return id, ok
}

// Receive notes that a message is on its way into the log, or in it.
func (x *Session) Receive(packet uint16, id message.ID) {
	x.store.mu.Lock()
	defer x.store.mu.Unlock()
	x.received[packet] = id
}

// Forget takes Receive back, since the message did not get into the log.
func (x *Session) Forget(packet uint16, id message.ID) {
	x.store.mu.Lock()
	defer x.store.mu.Unlock()
	if x.received[packet] == id {
		delete(x.received, packet)
	}
}

// Release ends a packet identifier: PUBREL came. It returns when that is on disk, where the session is kept; PUBCOMP may
// be sent then. known is false where nothing was received with it.
func (x *Session) Release(ctx context.Context, packet uint16) (known bool, err error) {
	s := x.store
	if !x.Kept() {
		s.mu.Lock()
		defer s.mu.Unlock()
		_, known = x.received[packet]
		delete(x.received, packet)
		return known, nil
	}
	if _, known = x.Received(packet); !known {
		return false, nil
	}
	return true, s.change(ctx, func(tx component.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		id, ok := x.received[packet]
		if !ok {
			return nil
		}
		delete(x.received, packet)
		k := packetKey(kindReceived, x.rec.ID, packet)
		v, err := tx.Get(k)
		if err != nil {
			return err
		}
		if v != nil {
			tx.Delete(k)
			return nil
		}
		// The log has not been heard so far: when it is, the message must not be noted again.
		x.released[packet] = id
		tx.Set(packetKey(kindReleased, x.rec.ID, packet), id[:])
		return nil
	})
}

// retain keeps a message for later subscribers, or forgets the one there is where it is empty (MQTT-3.3.1-5 to -8).
func (s *Store) retain(tx component.Tx, m *message.Message) error {
	k := retainedKey(m.Subject)
	old, err := tx.Get(k)
	if err != nil {
		return err
	}
	switch {
	case len(m.Data) == 0 && old != nil:
		tx.Delete(k)
		s.retained--
	case len(m.Data) == 0:
	case old == nil && s.retained >= s.limits.Retained:
		s.tell(Who{Identity: strings.Clone(m.Device)}, message.SessionLimit, message.Rejectf(message.SessionLimit,
			"%d messages are retained, which is the limit; the one on %s is not", s.retained, m.Subject))
	default:
		if old == nil {
			s.retained++
		}
		kept := *m
		kept.Client, kept.Packet = "", 0
		tx.Set(k, message.AppendRecord(nil, &kept))
	}
	return nil
}

func retainedKey(subject message.Subject) []byte {
	return append([]byte{kindRetained}, subject...)
}

// scan walks the keys with a prefix.
type scan = func(prefix []byte, f func(key, value []byte) bool) error

func scanView(v component.View) scan {
	return func(prefix []byte, f func(key, value []byte) bool) error {
		end := append([]byte{}, prefix...)
		end[len(end)-1]++ // no key of ours ends in 0xFF: subjects are UTF-8
		return v.Range(prefix, end, false, f)
	}
}

// matchRetained calls f for the retained messages that a subscription selects. They are found by what the pattern has
// before its first wildcard.
func (s *Store) matchRetained(walk scan, sub *Subscription, f func(record []byte, m *message.Message)) error {
	now := s.env.Now()
	for _, p := range sub.Select {
		prefix := string(p)
		if i := strings.IndexAny(prefix, "*>"); i >= 0 {
			prefix = prefix[:i]
		}
		var bad error
		err := walk(append([]byte{kindRetained}, prefix...), func(k, v []byte) bool {
			subject := message.Subject(k[1:])
			if !p.Matches(subject) || !sub.sees(subject) {
				return true
			}
			var m message.Message
			if _, bad = message.DecodeRecord(v, &m); bad != nil {
				return false
			}
			if !m.Expired(now) {
				f(v, &m)
			}
			return true
		})
		if err == nil {
			err = bad
		}
		if err != nil {
			return err
		}
	}
	return nil
}

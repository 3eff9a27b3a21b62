package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/trie"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// taken is a session that becomes this node's.
type taken struct {
	id       message.ID
	heard    []serviceplatform.Place // how far the logs were heard for it
	received map[uint16]message.ID   // as Yield says
}

// revive makes a session of what is stored of it; nil where nothing is.
func (s *Store) revive(tx component.Tx, id message.ID) (*Session, error) {
	v, err := tx.Get(key(kindSession, id))
	if v == nil || err != nil {
		return nil, err
	}
	x := &Session{store: s, head: 1, next: 1}
	if err := json.Unmarshal(v, &x.rec); err != nil {
		return nil, fmt.Errorf("read session %s: %w", id, err)
	}
	x.named()
	x.kept.Store(true)
	err = tx.Scan(key(kindQueue, id), func(k, v []byte) bool { x.readQueue(k, v); return true })
	v, gerr := tx.Get(key(kindSent, id))
	x.readSent(v)
	err = errors.Join(err, gerr, tx.Scan(key(kindReceived, id), func(k, v []byte) bool { readPacket(&x.received, k, v); return true }),
		tx.Scan(key(kindReleased, id), func(k, v []byte) bool { readPacket(&x.released, k, v); return true }))
	if err != nil {
		return nil, fmt.Errorf("read session %s: %w", id, err)
	}
	for _, sub := range x.rec.Subs {
		sub.of = x
	}
	return x, nil
}

func (x *Session) readQueue(k, v []byte) {
	if len(k) != 25 {
		return
	}
	n := binary.BigEndian.Uint64(k[17:])
	if x.count == 0 {
		x.head = n
	}
	x.next = n + 1
	x.count++
	x.bytes += int64(itemSize(v))
	if c := itemCommand(v); c != 0 {
		note(&x.commands, c, n)
	}
}

func (x *Session) readSent(v []byte) {
	if len(v) >= 8 {
		x.sent = binary.BigEndian.Uint64(v)
		x.noted = x.sent
	}
	if len(v) == 16 {
		x.commanded = binary.BigEndian.Uint64(v[8:])
	}
}

func readPacket(to *map[uint16]message.ID, k, v []byte) {
	if len(k) == 19 && len(v) == 16 {
		note(to, binary.BigEndian.Uint16(k[17:]), message.ID(v))
	}
}

// rest has a session that was read wait for its client. Where it was connected when its process ended, any of what was
// queued may have been sent.
func (x *Session) rest(tx component.Tx) error {
	x.next = max(x.next, x.sent+1)
	if x.count == 0 {
		x.head = x.next
	}
	x.shipped = x.next - 1
	if !x.rec.Gone.IsZero() {
		return nil
	}
	x.rec.Gone, x.sent = x.store.env.Now(), x.next-1
	x.keepSent(tx)
	return x.save(tx)
}

// take makes sessions of other nodes this node's. What lies between how far was heard for them and how far was heard here
// is looked through for them now; where less was heard here, they sit out what comes until then.
func (s *Store) take(ctx context.Context, tx component.Tx, list []taken) error {
	var all []*Session
	behind := map[part]uint64{} // where to look from
	from := map[*Session]map[part]uint64{}
	for _, t := range list {
		x, err := s.revive(tx, t.id)
		if err != nil {
			return err
		}
		if x == nil {
			continue
		}
		for packet, id := range t.received {
			if done, ok := x.released[packet]; !ok || bytes.Compare(id[:], done[:]) > 0 {
				note(&x.received, packet, id)
			}
		}
		places := map[part]uint64{}
		for _, p := range slices.Concat(t.heard, x.rec.Skip) { // that node may have skipped, too
			places[partOf(p)] = max(places[partOf(p)], p.Sequence)
		}
		skipped := len(x.rec.Skip)
		x.rec.Skip = nil
		for k, p := range places {
			if p > s.heard[k] {
				x.rec.Skip = append(x.rec.Skip, serviceplatform.Place{Log: k.log, Generation: k.gen, Partition: k.part, Sequence: p})
			}
		}
		for k, upto := range s.heard {
			if p := places[k]; p < upto {
				if low, ok := behind[k]; !ok || p < low {
					behind[k] = p
				}
			}
		}
		all, from[x] = append(all, x), places
		if len(x.rec.Skip)+skipped > 0 {
			if err := x.save(tx); err != nil {
				return err
			}
		}
		if err := x.rest(tx); err != nil {
			return err
		}
	}
	var t trie.Trie[*Subscription]
	s.mu.Lock()
	for _, x := range all {
		if old := s.sessions[x.rec.Who.Key()]; old != nil { // of before there were neighbours
			if err := s.erase(tx, old); err != nil {
				s.mu.Unlock()
				return err
			}
			s.forget(old)
		}
		s.sessions[x.rec.Who.Key()] = x
		s.count(x, 1)
		for _, sub := range x.rec.Subs {
			s.insert(sub)
			if sub.Share != "" && !x.group() {
				continue // what its group hears is drawn where the group is
			}
			for _, p := range sub.Select {
				t.Add(p, sub)
			}
		}
	}
	s.mu.Unlock()
	for k, low := range behind {
		err := s.batches(ctx, k, low, s.heard[k], func(b *bus.Stored) error {
			return s.hearFor(tx, &t, b, func(x *Session) bool {
				p := from[x]
				return p != nil && b.Position.Sequence > p[k]
			})
		})
		if err != nil {
			return fmt.Errorf("look for what sessions of another node missed: %w", err)
		}
	}
	return nil
}

// hearFor takes a batch once more, for sessions that have come since.
func (s *Store) hearFor(tx component.Tx, t *trie.Trie[*Subscription], b *bus.Stored, wants func(*Session) bool) error {
	log := s.cluster.logs[b.Position.Log]
	s.mu.Lock()
	defer s.mu.Unlock()
	var m message.Message
	cursor := b.Batch.Cursor()
	for i := uint32(0); cursor.Next(&m); i++ {
		if m.QoS == 2 && m.Client != "" {
			if x := s.sender(&m); x != nil && wants(x) {
				x.arrived(tx, &m)
			}
		}
		if log == message.ServicePlatform && deletions.Matches(m.Subject) {
			if d, ok := deletion(&m); ok {
				if err := s.deletedSessions(tx, d.Device, wants); err != nil {
					return err
				}
			}
		}
		at := b.Position
		at.Index = i
		node, ok := toSubscribers(&m)
		if !ok {
			continue
		}
		for _, h := range s.matches(t, &m) {
			if h.x.group() {
				if wants(h.x) && !h.x.ended {
					s.draw(tx.(*writing), h.x, &m, log, at)
				}
				continue
			}
			if node != "" && h.x.device(m.Subject.Token(1)) {
				if h.o.Command = commandOf(m.Subject); h.x.commands[h.o.Command] != 0 {
					continue
				}
			}
			if h.o.QoS > 0 && wants(h.x) && !h.x.ended && h.x.mayHear(m.Subject, h.o.AWS) {
				h.o.Retain = m.Retain && h.publish
				h.x.enqueueRef(tx, &m, log, at, h.o)
			}
		}
	}
	s.cache.put(log, *b)
	return cursor.Err()
}

// batches gives the batches of a partition behind from, up to and including upto.
func (s *Store) batches(ctx context.Context, k part, from, upto uint64, f func(*bus.Stored) error) error {
	c := s.cluster
	if r := c.recent[k]; r != nil && len(r.list) > 0 && r.list[0].Position.Sequence <= from+1 {
		for i := range r.list {
			if n := r.list[i].Position.Sequence; n > from && n <= upto && r.list[i].Err == nil {
				if err := f(&r.list[i]); err != nil {
					return err
				}
			}
		}
		return nil
	}
	log, err := s.env.Bus.Log(ctx, c.logs[k.log], bus.LogOptions{})
	if err != nil {
		return err
	}
	reader, err := log.Reader(ctx, bus.Position{Log: k.log, Generation: k.gen, Partition: k.part, Sequence: from})
	if errors.Is(err, bus.ErrPurged) { // what is owed of it died with it
		reader, err = log.Reader(ctx, bus.Position{Log: k.log, Generation: k.gen, Partition: k.part})
	}
	if err != nil {
		return err
	}
	defer reader.Close()
	for {
		b, err := reader.Next(ctx)
		switch {
		case errors.Is(err, bus.ErrSealed), err == nil && b.Position.Sequence > upto:
			return nil
		case err != nil:
			return err
		case b.Err == nil:
			if err := f(&b); err != nil {
				return err
			}
		}
		if b.Position.Sequence == upto {
			return nil
		}
	}
}

func (x *Session) skipsAt(p bus.Position) bool {
	return len(x.rec.Skip) > 0 && x.skips(part{p.Log, p.Generation, p.Partition}, p.Sequence)
}

// skips says whether a place was heard for the session by the node that it comes from.
func (x *Session) skips(k part, sequence uint64) bool {
	for _, p := range x.rec.Skip {
		if partOf(p) == k && sequence <= p.Sequence {
			return true
		}
	}
	return false
}

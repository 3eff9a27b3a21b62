package session

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/trie"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// heard is what one session hears of a message, from all of its subscriptions that select it.
type heard struct {
	x       *Session
	o       Options
	publish bool   // a subscription keeps the retain flag
	group   string // of the shared subscription; the session's own ones give a copy of their own (MQTT 5 §4.8.2). Empty for these
}

// delivery is for a client, now.
type delivery struct {
	to Client
	m  message.Message
	o  Options
}

// Hear takes a batch of a log: what sessions keep is queued, what they don't is delivered, what is to be retained is.
// It is the component's HandleBatch.
func (s *Store) Hear(ctx context.Context, tx component.Tx, log string, b bus.Stored) error {
	if err := s.load(tx); err != nil {
		return err
	}
	return s.told(tx, func(tx component.Tx) error { return s.hear(ctx, tx, log, b) })
}

func (s *Store) hear(ctx context.Context, tx component.Tx, log string, b bus.Stored) error {
	if c := s.cluster; c != nil {
		c.remember(log, &b)
		more := true
		if log == message.ServicePlatform && b.Err == nil {
			var err error
			if more, err = s.hearStates(ctx, tx, &b); err != nil {
				return err
			}
		}
		if more {
			c.moved.Store(true)
		}
		if !more {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.heardUpTo(b.Position)
			return nil
		}
	}
	var out outcome
	if err := s.locked(func() error { return s.hearMessages(tx, log, &b, &out) }); err != nil {
		return err
	}
	if len(out.queued) > 0 || out.drawn {
		s.cache.put(log, b)
		if s.cluster == nil { // else when the neighbours have it
			tx.After(func() {
				for x := range out.queued {
					x.wake()
				}
			})
		}
	}
	for i := range out.now {
		out.now[i].to.Deliver(&out.now[i].m, out.now[i].o)
	}
	return out.cut
}

// outcome is what is to be done with a batch that was heard, once the store's mutex is free.
type outcome struct {
	now    []delivery
	queued map[*Session]bool
	drawn  bool
	cut    error // why not all of the batch can be read
}

// hearMessages takes the messages of a batch one by one. The store's mutex is held.
func (s *Store) hearMessages(tx component.Tx, log string, b *bus.Stored, out *outcome) error {
	unheard := b.Err != nil || b.Batch.Count == 0 || // what cannot be read is counted by the runner
		log != message.ServicePlatform && (s.cluster == nil || log != message.Device) && s.subs.Empty() && !special(b)
	if unheard {
		s.heardUpTo(b.Position)
		return nil
	}
	var m message.Message
	cursor := b.Batch.Cursor()
	for i := uint32(0); cursor.Next(&m); i++ {
		if m.QoS == 2 && m.Client != "" {
			if x := s.sender(&m); x != nil && !x.skipsAt(b.Position) {
				x.arrived(tx, &m)
			}
		}
		if log == message.ServicePlatform && states.Matches(m.Subject) {
			continue // it is the nodes' alone
		}
		if log == message.Device && presences.Matches(m.Subject) {
			if err := s.hearPresence(tx, &m); err != nil {
				return err
			}
		}
		if log == message.ServicePlatform && deletions.Matches(m.Subject) {
			if err := s.deleted(tx, &m); err != nil {
				return err
			}
		}
		node, ok := toSubscribers(&m)
		if !ok {
			continue
		}
		if m.Retain {
			if s.cluster != nil {
				s.cluster.touch(retainedKey(m.Subject), b.Position)
			}
			if err := s.retain(tx, &m); err != nil {
				return err
			}
		}
		list := s.matches(&s.subs, &m)
		if node != "" {
			var err error
			if list, err = s.offer(tx, &m, list, node); err != nil {
				return err
			}
		}
		at := b.Position
		at.Index = i
		for _, h := range list {
			if !h.x.skipsAt(b.Position) { // else it comes from a node that has heard this
				s.hears(tx, &h, &m, log, at, out)
			}
		}
	}
	out.cut = cursor.Err()
	s.heardUpTo(b.Position)
	return nil
}

// hears gives a message to one that hears it: into its queue, or at once where none keeps it. The store's mutex is held.
func (s *Store) hears(tx component.Tx, h *heard, m *message.Message, log string, at bus.Position, out *outcome) {
	if h.x.group() {
		s.draw(tx.(*writing), h.x, m, log, at)
		out.drawn = true
		return
	}
	h.o.Retain = m.Retain && h.publish
	if h.o.QoS == 0 || !h.x.Kept() {
		if h.x.client != nil {
			if h.group != "" && h.o.QoS == 1 {
				h.o.Drawn = &Drawn{h.group, log, at}
				s.inHand(tx, h.o.Drawn)
			}
			out.now = append(out.now, delivery{h.x.client, *m, h.o})
		}
		return
	}
	if h.x.mayHear(m.Subject, h.o.AWS) {
		h.x.enqueueRef(tx, m, log, at, h.o)
		note(&out.queued, h.x, true)
	}
}

// deletions are where a device's end is told.
const deletions = message.Pattern("service_platform.x509.device.*")

// deletion is what is told of a device that was deleted.
func deletion(m *message.Message) (c serviceplatform.DeviceChanged, ok bool) {
	err := json.Unmarshal(m.Data, &c) // it is kept to its contract where it is said
	return c, err == nil && c.Change == serviceplatform.Deleted && c.Device != ""
}

// deleted forgets what is kept of and for a device that was deleted. The store's mutex is held.
func (s *Store) deleted(tx component.Tx, m *message.Message) error {
	c, ok := deletion(m)
	if !ok {
		return nil
	}
	if err := s.deletedSessions(tx, c.Device, func(*Session) bool { return true }); err != nil {
		return err
	}
	if s.cluster != nil {
		tx.Delete(append([]byte{kindPresence}, c.Device...))
	}
	var gone [][]byte
	prefix := retainedKey(message.NewSubject(message.Device, c.Device) + ".")
	err := tx.Scan(prefix, func(k, _ []byte) bool { gone = append(gone, slices.Clone(k)); return true })
	for _, k := range gone {
		tx.Delete(k)
		s.retained--
	}
	return err
}

// deletedSessions ends the sessions of a device that was deleted, of those that are wanted.
func (s *Store) deletedSessions(tx component.Tx, device string, wants func(*Session) bool) error {
	for _, x := range slices.Collect(maps.Values(s.sessions)) {
		if x.rec.Who.Mount != "" || x.rec.Who.Identity != device || !wants(x) {
			continue
		}
		if client := x.client; client != nil {
			tx.After(func() { go client.Deleted() })
		}
		if err := s.erase(tx, x); err != nil {
			return err
		}
		s.forget(x)
	}
	return nil
}

// special says whether something in a batch concerns a broker that nobody has subscribed at.
func special(b *bus.Stored) bool {
	cursor := b.Batch.Cursor()
	for {
		qos, retain, ok := cursor.NextFlags()
		if !ok {
			return cursor.Err() != nil
		}
		if retain || qos == 2 {
			return true
		}
	}
}

// catchUpMost is how long a subscription waits at most: it is answered then, and may find a retained message late.
const catchUpMost = 5 * time.Second

// part is a partition.
type part struct {
	log       message.ID
	gen, part uint32
}

// heardUpTo notes how far a partition was heard. The store's mutex is held.
func (s *Store) heardUpTo(p bus.Position) {
	k := part{p.Log, p.Generation, p.Partition}
	s.heard[k] = p.Sequence
	if n, ok := s.awaited[k]; ok && p.Sequence >= n {
		delete(s.awaited, k)
		if len(s.awaited) == 0 {
			close(s.caughtUp)
			s.caughtUp = nil
		}
	}
}

// Stored says that a message that is to be retained is in the log: who subscribes from now on must find it.
func (s *Store) Stored(p bus.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := part{p.Log, p.Generation, p.Partition}
	if s.heard[k] >= p.Sequence {
		return
	}
	s.awaited[k] = max(s.awaited[k], p.Sequence)
	if s.caughtUp == nil {
		s.caughtUp = make(chan struct{})
	}
}

// catchUp waits until what was said to be stored has been heard.
func (s *Store) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpMost)
	defer cancel()
	for {
		s.mu.RLock()
		wait := s.caughtUp
		s.mu.RUnlock()
		if wait == nil {
			return nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil
			}
			return ctx.Err()
		}
	}
}

// matches lists the sessions that hear a message, by their subscriptions in a trie. The store's mutex is held.
func (s *Store) matches(t *trie.Trie[*Subscription], m *message.Message) (list []heard) {
	t.Match(m.Subject, func(sub *Subscription) {
		if sub.of.group() {
			if sub.sees(m.Subject) {
				list = append(list, heard{x: sub.of, group: sub.of.rec.Who.Key()})
			}
			return
		}
		group := ""
		if sub.Share != "" {
			group = sub.groupKey()
			if sub = s.fit(group, m, memberAway); sub == nil {
				return
			}
		}
		if sub.NoLocal && m.Client != "" && m.Client == sub.of.name || !sub.sees(m.Subject) {
			return
		}
		qos := min(sub.QoS, m.QoS)
		for i := range list {
			h := &list[i]
			if h.x == sub.of && sub.Share == "" && h.group == "" && h.o.AWS == sub.AWS {
				// Overlapping subscriptions of one spelling give one message, at the highest QoS, with all identifiers (MQTT-3.3.4-2, -3).
				h.o.QoS = max(h.o.QoS, qos)
				h.o.IDs = append(h.o.IDs, sub.ids()...)
				slices.Sort(h.o.IDs)
				h.publish = h.publish || sub.AsPublished
				return
			}
		}
		list = append(list, heard{sub.of, Options{QoS: qos, IDs: sub.ids(), AWS: sub.AWS}, sub.AsPublished, group})
	})
	return list
}

// sender is the session that a message of QoS 2 comes from, if it is kept here; else nil.
func (s *Store) sender(m *message.Message) *Session {
	x := s.sessions[m.Client[:max(0, strings.LastIndexByte(m.Client, 0))]]
	if x == nil || !x.Kept() || x.name != m.Client {
		return nil
	}
	return x
}

// arrived notes that a QoS 2 message of the session is in the log: until its PUBREL comes, its packet identifier is its.
func (x *Session) arrived(tx component.Tx, m *message.Message) {
	// What is older than the one that was released was released with it: ids sort by time, and a client uses an
	// identifier again only after PUBCOMP. Taken for one that waits for its PUBREL, it would swallow a later message.
	if done, ok := x.released[m.Packet]; ok && bytes.Compare(m.ID[:], done[:]) <= 0 {
		if m.ID == done {
			delete(x.released, m.Packet)
			tx.Delete(packetKey(kindReleased, x.rec.ID, m.Packet))
		}
		return
	}
	note(&x.received, m.Packet, m.ID)
	delete(x.pending, m.Packet)
	x.stir()
	tx.Set(packetKey(kindReceived, x.rec.ID, m.Packet), m.ID[:])
}

// Arrival is what is known of an inbound packet identifier of QoS 2.
type Arrival int

const (
	// Unknown was not received, or released since.
	Unknown Arrival = iota
	// Pending is on its way into the log, which may refuse it.
	Pending
	// Known is in the log, and its PUBREL has not come.
	Known
)

// Received says what came with a packet identifier.
func (x *Session) Received(packet uint16) Arrival {
	x.store.mu.RLock()
	defer x.store.mu.RUnlock()
	switch _, ok := x.received[packet]; {
	case !ok:
		return Unknown
	case x.pending[packet]:
		return Pending
	}
	return Known
}

// Receive notes that a message is on its way into the log. It gives false where the session has another connection than the
// one of the epoch: what this one still has in hand, the other one is sent again.
func (x *Session) Receive(epoch uint64, packet uint16, id message.ID) bool {
	x.store.mu.Lock()
	defer x.store.mu.Unlock()
	if x.epoch != epoch || x.ended {
		return false
	}
	note(&x.received, packet, id)
	note(&x.pending, packet, true)
	return true
}

// Stored says that it is there.
func (x *Session) Stored(packet uint16, id message.ID) {
	x.store.mu.Lock()
	defer x.store.mu.Unlock()
	if x.received[packet] == id {
		delete(x.pending, packet)
		x.stir()
	}
}

// Forget takes Receive back, since the message did not get into the log.
func (x *Session) Forget(packet uint16, id message.ID) {
	x.store.mu.Lock()
	defer x.store.mu.Unlock()
	if x.received[packet] == id {
		x.unreceive(packet)
	}
}

// unreceive forgets a packet identifier, also of a message that is still on its way: a client may send PUBREL before it has
// its PUBREC. The store's mutex is held.
func (x *Session) unreceive(packet uint16) {
	delete(x.received, packet)
	delete(x.pending, packet)
	x.stir()
}

var errFormer = message.Rejectf(message.TakenOver, "the session has another connection")

// Release ends packet identifiers: PUBREL came. It returns when that is on disk, where the session is kept; PUBCOMP may
// be sent then. known is false for those with which nothing was received. From a former connection of a kept session it is
// refused as taken_over: a late PUBREL would end the identifier of a message that the one that followed is sending.
func (x *Session) Release(ctx context.Context, epoch uint64, packets []uint16) (known []bool, err error) {
	s := x.store
	known = make([]bool, len(packets))
	if !x.Kept() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, p := range packets {
			_, known[i] = x.received[p]
			x.unreceive(p)
		}
		return known, nil
	}
	return known, s.change(ctx, func(tx component.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if x.epoch != epoch || x.ended {
			return errFormer
		}
		for i, p := range packets {
			id, ok := x.received[p]
			known[i] = ok
			if !ok {
				continue
			}
			x.unreceive(p)
			k := packetKey(kindReceived, x.rec.ID, p)
			v, err := tx.Get(k)
			if err != nil {
				return err
			}
			if v != nil {
				tx.Delete(k)
			}
			if string(v) == string(id[:]) {
				continue
			}
			// The log has not been heard so far: when it is, the message must not be noted again.
			note(&x.released, p, id)
			tx.Set(packetKey(kindReleased, x.rec.ID, p), id[:])
		}
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
	case old == nil && s.retained >= s.limits.Retained && s.sweep(tx) == 0 && s.retained >= s.limits.Retained:
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

// sweepEvery is how long retained messages that have expired may keep their places.
const sweepEvery = 10 * time.Second

// sweep forgets retained messages that have expired, and says how many there were. The store's mutex is held.
func (s *Store) sweep(tx component.Tx) (n int) {
	now := s.env.Now()
	if now.Sub(s.swept) < sweepEvery {
		return 0
	}
	s.swept = now
	var gone [][]byte
	var m message.Message
	if err := tx.Scan([]byte{kindRetained}, func(k, v []byte) bool {
		if _, err := message.DecodeRecord(v, &m); err == nil && m.Expired(now) {
			gone = append(gone, slices.Clone(k))
		}
		return true
	}); err != nil {
		return 0 // the next attempt meets it
	}
	for _, k := range gone {
		tx.Delete(k)
	}
	s.retained -= len(gone)
	return len(gone)
}

func retainedKey(subject message.Subject) []byte {
	return append([]byte{kindRetained}, subject...)
}

// scan walks the keys with a prefix.
type scan = func(prefix []byte, f func(key, value []byte) bool) error

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

package session

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// item is a message in a session's queue, as the store keeps it. All integers are big-endian.
//
//	 0  1 byte   kind: 0 a reference, 1 the record itself, 2 QoS 2 whose PUBREC came: only the identifier is owed
//	 1  1 byte   QoS, and flags
//	 2  8 bytes  when it loses its worth, Unix milliseconds; 0 for never
//	10  4 bytes  size of the data
//	14  1 byte   count of subscription identifiers, 4 bytes each
//	 …           of a command its mark (8 bytes)
//	 …           a reference: generation (4), partition (4), sequence (8), index (4), name of the log; or the record
type item struct {
	kind    byte
	o       Options
	expires time.Time
	size    uint32
	log     string
	at      bus.Position
	record  []byte
}

const (
	itemRef = iota
	itemInline
	itemReleased
)

const (
	itemFixed = 15

	qosBits     = 3
	flagRetain  = 4
	flagAWS     = 8 // AWS IoT's spelling
	flagCommand = 16
)

func (i *item) encode() []byte {
	be := binary.BigEndian
	flags := i.o.QoS
	if i.o.Retain {
		flags |= flagRetain
	}
	if i.o.AWS {
		flags |= flagAWS
	}
	if i.o.Command != 0 {
		flags |= flagCommand
	}
	b := append(make([]byte, 0, itemFixed+32+len(i.record)), i.kind, flags)
	var at uint64
	if !i.expires.IsZero() {
		at = uint64(i.expires.UnixMilli())
	}
	size := i.size
	if i.kind == itemInline {
		size = uint32(len(i.record))
	}
	b = be.AppendUint32(be.AppendUint64(b, at), size)
	ids := i.o.IDs[:min(len(i.o.IDs), 255)]
	b = append(b, byte(len(ids)))
	for _, id := range ids {
		b = be.AppendUint32(b, id)
	}
	if i.o.Command != 0 {
		b = be.AppendUint64(b, i.o.Command)
	}
	switch i.kind {
	case itemRef:
		b = be.AppendUint32(be.AppendUint32(b, i.at.Generation), i.at.Partition)
		b = be.AppendUint32(be.AppendUint64(b, i.at.Sequence), i.at.Index)
		b = append(b, i.log...)
	case itemInline:
		b = append(b, i.record...)
	}
	return b
}

func itemSize(v []byte) uint32 {
	if len(v) < itemFixed {
		return 0
	}
	return binary.BigEndian.Uint32(v[10:])
}

// itemCommand is the mark of the command that an item is; zero of another one.
func itemCommand(v []byte) uint64 {
	if len(v) < itemFixed || v[1]&flagCommand == 0 || len(v) < itemFixed+4*int(v[14])+8 {
		return 0
	}
	return binary.BigEndian.Uint64(v[itemFixed+4*int(v[14]):])
}

func parseItem(v []byte) (i item, err error) {
	be := binary.BigEndian
	short := errors.New("a queued message in the store is cut short")
	if len(v) < itemFixed || len(v) < itemFixed+4*int(v[14]) || v[0] > itemReleased {
		return i, short
	}
	i.kind, i.o.QoS, i.o.Retain, i.o.AWS = v[0], v[1]&qosBits, v[1]&flagRetain != 0, v[1]&flagAWS != 0
	if at := be.Uint64(v[2:]); at > 0 && at < math.MaxInt64 {
		i.expires = time.UnixMilli(int64(at))
	}
	i.size = be.Uint32(v[10:])
	n := int(v[14])
	rest := v[itemFixed:]
	for ; n > 0; n-- {
		i.o.IDs = append(i.o.IDs, be.Uint32(rest))
		rest = rest[4:]
	}
	if v[1]&flagCommand != 0 {
		if i.o.Command = itemCommand(v); i.o.Command == 0 {
			return i, short
		}
		rest = rest[8:]
	}
	switch i.kind {
	case itemRef:
		if len(rest) < 20 {
			return i, short
		}
		i.at = bus.Position{Generation: be.Uint32(rest), Partition: be.Uint32(rest[4:]), Sequence: be.Uint64(rest[8:]), Index: be.Uint32(rest[16:])}
		i.log = string(rest[20:])
	case itemInline:
		i.record = slices.Clone(rest)
	}
	return i, nil
}

// enqueue puts a message at the end of the queue. Beyond the session's limits the oldest go. The store's mutex is held.
func (x *Session) enqueue(tx component.Tx, i item) {
	messages, bytes := cmp.Or(x.rec.Caps.Messages, x.store.limits.Messages), cmp.Or(x.rec.Caps.Bytes, x.store.limits.Bytes)
	v := i.encode()
	tx.Set(queueKey(x.rec.ID, x.next), v)
	enqueued(tx, x, x.next)
	if i.o.Command != 0 {
		note(&x.commands, i.o.Command, x.next)
	}
	x.next++
	x.count++
	x.bytes += int64(itemSize(v))
	for x.count > messages || x.bytes > bytes && x.count > 1 {
		if !x.drop(tx) {
			return
		}
	}
}

// enqueueRef does so with a reference to a message in a log.
func (x *Session) enqueueRef(tx component.Tx, m *message.Message, log string, at bus.Position, o Options) {
	x.enqueue(tx, item{kind: itemRef, o: o, log: log, at: at, size: uint32(len(m.Data)), expires: m.Expires})
}

// drop gives the oldest message up. One whose handshake has begun, as far as is known, is not given up while its client
// is there.
func (x *Session) drop(tx component.Tx) bool {
	for n := max(x.head, x.dropped+1); n < x.next; n++ {
		x.dropped = n
		k := queueKey(x.rec.ID, n)
		v, err := tx.Get(k)
		if err != nil {
			return false
		}
		if v == nil || v[0] == itemReleased || n <= x.sent && x.client != nil {
			continue
		}
		tx.Delete(k)
		delete(x.commands, itemCommand(v))
		if n == x.head {
			x.head++
		}
		x.count--
		x.bytes -= int64(itemSize(v))
		x.store.tell(x.rec.Who, message.SessionLimit, fmt.Errorf("its session holds %d messages of %d bytes, which is its limit; the oldest are given up", x.count, x.bytes))
		return true
	}
	return false
}

// Owed is a message that a session's client is owed.
type Owed struct {
	Number   uint64
	Packet   uint16
	Again    bool // it may have been sent before
	Released bool // QoS 2, and PUBREC came: only PUBREL is owed
	Options
	Message *message.Message // nil where Released
}

// PacketOf is the identifier of a queue's number.
func PacketOf(n uint64) uint16 { return uint16(n%65535) + 1 }

// Behind gives up to most messages that are owed behind a number, the oldest first, and the number of the last one it
// has seen. What is queued and not committed yet is not seen: Wake follows when it is. What lost its worth, or is no longer in the log, is struck off on the way.
func (x *Session) Behind(ctx context.Context, n uint64, most int) (list []Owed, upto uint64, err error) {
	type found struct {
		n uint64
		i item
	}
	s := x.store
	s.mu.RLock()
	next, head, sent := x.next, x.head, x.sent
	if s.cluster != nil {
		next = min(next, x.shipped+1) // what is sent, the neighbours know by its number
	}
	s.mu.RUnlock()
	// Identifiers come round: what has the same one as something that is still owed waits.
	end := min(next, head+65535)
	from := max(n+1, head)
	if from >= end {
		return nil, n, nil
	}
	var items []found
	err = s.env.View(func(v component.View) error {
		var bad error
		err := v.Range(queueKey(x.rec.ID, from), queueKey(x.rec.ID, end), false, func(k, val []byte) bool {
			f := found{n: binary.BigEndian.Uint64(k[17:])}
			if f.i, bad = parseItem(val); bad != nil {
				return false
			}
			items = append(items, f)
			return len(items) < most
		})
		return errors.Join(err, bad)
	})
	if err != nil {
		return nil, n, err
	}
	now := s.env.Now()
	upto = n
	var gone []uint64
	for _, f := range items {
		o := Owed{Number: f.n, Packet: PacketOf(f.n), Again: f.n <= sent, Options: f.i.o, Released: f.i.kind == itemReleased}
		if !o.Released {
			if !f.i.expires.IsZero() && !now.Before(f.i.expires) && !o.Again {
				gone = append(gone, f.n)
				upto = f.n
				continue
			}
			if o.Message, err = s.fetch(ctx, &f.i); errors.Is(err, bus.ErrNotFound) {
				s.tell(x.rec.Who, message.RetentionExceeded, fmt.Errorf("a message that waited for it is no longer in log %s", f.i.log))
				gone = append(gone, f.n)
				upto, err = f.n, nil
				continue
			} else if err != nil {
				break // it is asked for again
			}
		}
		list = append(list, o)
		upto = f.n
	}
	if len(gone) > 0 {
		err = errors.Join(err, x.Settle(ctx, Settled{Sent: upto, Done: gone}))
	}
	return list, upto, err
}

// fetch reads what an item refers to.
func (s *Store) fetch(ctx context.Context, i *item) (*message.Message, error) {
	if i.kind == itemInline {
		m := new(message.Message)
		_, err := message.DecodeRecord(i.record, m)
		return m, err
	}
	b, err := s.batch(ctx, i.log, i.at)
	if err != nil {
		return nil, err
	}
	var m message.Message
	cursor := b.Batch.Cursor()
	for n := uint32(0); cursor.Next(&m); n++ {
		if n == i.at.Index {
			toSubscribers(&m)
			return &m, nil
		}
	}
	return nil, fmt.Errorf("record %d of batch %d of log %s: %w", i.at.Index, i.at.Sequence, i.log, bus.ErrNotFound)
}

// batch reads a batch, from the cache where it is there.
func (s *Store) batch(ctx context.Context, name string, at bus.Position) (bus.Stored, error) {
	if b, ok := s.cache.get(name, at); ok {
		return b, nil
	}
	log, err := s.env.Bus.Log(ctx, name, bus.LogOptions{})
	if err != nil {
		return bus.Stored{}, err
	}
	b, err := log.Fetch(ctx, at)
	if err == nil && b.Err != nil {
		return b, fmt.Errorf("%w: %w", bus.ErrNotFound, b.Err)
	}
	if err == nil {
		s.cache.put(name, b)
	}
	return b, err
}

// Settled is what a client has acknowledged, or cannot have.
type Settled struct {
	Sent     uint64   // all up to this number may have been sent
	Released []uint64 // the first part of their QoS 2 handshake is over
	Done     []uint64 // are struck off
	// Command is the mark of the last command among them that the client has acknowledged; zero for none. It is remembered,
	// so that it is not delivered once more when it is released once more.
	Command uint64
	// Say is what is told of that, in the same commit.
	Say []*message.Message
}

// Settle notes what was acknowledged. It returns when that is on disk.
func (x *Session) Settle(ctx context.Context, now Settled) error {
	s := x.store
	return s.change(ctx, func(tx component.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, m := range now.Say {
			if err := tx.Say(m); err != nil {
				return err
			}
		}
		if x.ended {
			return nil
		}
		for _, n := range now.Released {
			k := queueKey(x.rec.ID, n)
			v, err := tx.Get(k)
			if err != nil {
				return err
			}
			if v == nil || v[0] == itemReleased {
				continue
			}
			x.bytes -= int64(itemSize(v))
			tx.Set(k, (&item{kind: itemReleased, o: Options{QoS: 2, Command: itemCommand(v)}}).encode())
		}
		for _, n := range now.Done {
			k := queueKey(x.rec.ID, n)
			v, err := tx.Get(k)
			if err != nil {
				return err
			}
			if v == nil {
				continue
			}
			tx.Delete(k)
			delete(x.commands, itemCommand(v))
			x.count--
			x.bytes -= int64(itemSize(v))
		}
		for x.head < x.next { // the oldest that is still owed
			v, err := tx.Get(queueKey(x.rec.ID, x.head))
			if err != nil {
				return err
			}
			if v != nil {
				break
			}
			x.head++
		}
		x.sent = max(x.sent, now.Sent)
		if now.Command != 0 {
			x.commanded = now.Command
			x.writeSent(tx)
		}
		x.keepSent(tx)
		return nil
	})
}

// Sent notes that all up to a number may have been sent by the connection of the epoch: sent again, it is a duplicate
// (MQTT-3.3.1-1). After a crash all is taken for sent that was queued while the client was there.
func (x *Session) Sent(epoch, n uint64) {
	x.store.mu.Lock()
	defer x.store.mu.Unlock()
	if x.epoch == epoch {
		x.sent = max(x.sent, n)
	}
}

// keepSent writes it down. The store's mutex is held.
func (x *Session) keepSent(tx component.Tx) {
	if x.sent > x.noted {
		x.writeSent(tx)
	}
}

func (x *Session) writeSent(tx component.Tx) {
	x.noted = x.sent
	v := binary.BigEndian.AppendUint64(nil, x.sent)
	if x.commanded != 0 {
		v = binary.BigEndian.AppendUint64(v, x.commanded)
	}
	tx.Set(key(kindSent, x.rec.ID), v)
}

// cache holds batches that sessions are about to read.
type cache struct {
	mu   sync.Mutex
	most int
	size int
	all  map[cacheKey]bus.Stored
	row  []cacheKey // the oldest first
}

type cacheKey struct {
	log       string
	gen, part uint32
	seq       uint64
}

func newCache(most int) *cache { return &cache{most: most, all: map[cacheKey]bus.Stored{}} }

func keyOf(log string, p bus.Position) cacheKey {
	return cacheKey{log, p.Generation, p.Partition, p.Sequence}
}

func (c *cache) get(log string, p bus.Position) (bus.Stored, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.all[keyOf(log, p)]
	return b, ok
}

func (c *cache) put(log string, b bus.Stored) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := keyOf(log, b.Position)
	if _, ok := c.all[k]; ok {
		return
	}
	c.all[k] = b
	c.row = append(c.row, k)
	c.size += len(b.Batch.Bytes())
	for c.size > c.most && len(c.row) > 1 {
		old := c.row[0]
		c.row = c.row[1:]
		b := c.all[old]
		c.size -= len(b.Batch.Bytes())
		delete(c.all, old)
	}
}

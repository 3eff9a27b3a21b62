package component

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/naru-platform/naru/message"
)

// The kinds of keys in a component's store. User keys have a kind of their own, so that nothing a handler does touches
// what the runner keeps.
const (
	kindUser       = 'u'
	kindCheckpoint = 'c' // place
	kindParked     = 'p' // place, sequence, index
	kindOutbox     = 'o' // number of the first: a chunk
	kindOutcome    = 'i' // message id: when a queued message's outcome was recorded
	kindBirth      = 's' // the store's own id
)

// store keeps effects, positions, what is parked and what is to be said, and commits them together.
type store struct {
	disk  *disk
	db    *pebble.DB
	batch *pebble.Batch // what the next commit holds, but for what is to be said
	whole *pebble.Batch // all of a commit; between two of them it only keeps its memory
	most  int           // bytes of the largest commit that it was for
	birth message.ID    // tells this store from one that was here before and was lost
	crash crash
}

// crash is called at each boundary that a crash may fall on; where it gives an error, nothing more is done. It is for
// tests, and nil otherwise.
type crash func(boundary string) error

func (c crash) at(boundary string) error {
	if c == nil {
		return nil
	}
	return c(boundary)
}

// memtableBytes is how much of what was written last is kept in memory, twice that while it is written to a table: what is written and
// taken back in the meantime, as an outbox does all the time, never becomes one. The log on disk takes as much, in each store.
const memtableBytes = 16 << 20

// levels have filters in their tables: a key is read from the one that has it, and one that is nowhere from none.
func levels() (l [7]pebble.LevelOptions) {
	for i := range l {
		l[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return l
}

// openStore opens a component's store on a file system; nil is the machine's. waits is told of waiting for space. Where
// the disk is full it waits for space too, until ctx is done.
func openStore(ctx context.Context, fs vfs.FS, dir string, log *slog.Logger, waits func(string)) (*store, error) {
	s := &store{disk: newDisk(fs, waits)}
	err := s.disk.do(ctx, func() error {
		l := storeLog{log, s.disk}
		db, err := pebble.Open(filepath.Join(dir, "state"), &pebble.Options{
			Logger: l, MemTableSize: memtableBytes, L0CompactionThreshold: 4, Levels: levels(),
			FormatMajorVersion: pebble.FormatNewest, FS: s.disk, EventListener: &pebble.EventListener{DataCorruption: l.corrupt, BackgroundError: l.background},
		})
		if err != nil {
			return err
		}
		s.disk.ready()
		s.db, s.batch = db, db.NewIndexedBatch()
		return s.name()
	})
	if pebble.IsCorruptionError(err) || errors.Is(err, record.ErrInvalidChunk) {
		return nil, fmt.Errorf("open the store in %s: its files are damaged: %w; stop naru and put a copy of that directory back, or move it away: then the component begins anew with what the logs still hold", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the store in %s: %w", dir, err)
	}
	return s, nil
}

// name reads the store's id, and mints it in a new store.
func (s *store) name() error {
	v, err := get(s.db, []byte{kindBirth})
	if err != nil {
		return err
	}
	if len(v) == len(s.birth) {
		s.birth = message.ID(v)
		return nil
	}
	s.birth = message.NewID(time.Now())
	return s.db.Set([]byte{kindBirth}, s.birth[:], pebble.Sync)
}

// close closes the store once unused has returned. One that is broken is left as it lies: it was let go of.
func (s *store) close(unused func()) error {
	if s.disk.err() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	err := s.disk.do(ctx, func() error {
		unused()
		return errors.Join(s.batch.Close(), s.wholeBatch().Close(), s.db.Close())
	})
	s.disk.fail(errClosed)
	return err
}

// intact waits until ctx is done, or the store cannot go on, and says why.
func (s *store) intact(ctx context.Context) error {
	select {
	case <-s.disk.broken:
		return fmt.Errorf("its store cannot go on: %w", s.disk.err())
	case <-ctx.Done():
		return nil
	}
}

// errClosed is what a disk is broken by when all is well.
var errClosed = errors.New("the store is closed")

// storeBatch is about how many bytes a commit holds. One of more than half a memtable would become a table as it is, with all that is to be
// said in it.
const storeBatch = 3 << 20

// wholeMax is how large the memory of a commit may be to be kept for the next one; it grows by doubling.
const wholeMax = 8 << 20

// commit makes all that was set since the last one durable, or none of it.
func (s *store) commit(ctx context.Context) error {
	if s.batch.Empty() && (s.whole == nil || s.whole.Empty()) {
		return nil
	}
	if err := s.crash.at("before the commit"); err != nil {
		return err
	}
	whole := s.wholeBatch()
	if err := whole.Apply(s.batch, nil); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if err := s.disk.do(ctx, func() error { return whole.Commit(pebble.Sync) }); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	s.batch.Reset()
	s.most = max(s.most, whole.Len())
	var err error
	if whole.Len() < s.most/16 { // a rush is over
		err, s.whole, s.most = whole.Close(), nil, 0
	} else {
		whole.Reset()
	}
	return errors.Join(err, s.crash.at("after the commit"))
}

// wholeBatch is what a commit is gathered in. An indexed batch would not keep its memory for the next commit.
func (s *store) wholeBatch() *pebble.Batch {
	if s.whole == nil {
		s.whole = s.db.NewBatch(pebble.WithMaxRetainedSizeBytes(wholeMax))
	}
	return s.whole
}

func (s *store) set(key, value []byte) error { return s.batch.Set(key, value, nil) }
func (s *store) delete(key []byte) error     { return s.batch.Delete(key, nil) }

func get(r pebble.Reader, key []byte) ([]byte, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v = slices.Clone(v)
	if v == nil {
		v = []byte{}
	}
	return v, closer.Close()
}

// walk calls f for the keys between, until it gives false. Keys and values are the iterator's.
func walk(r pebble.Reader, from, to []byte, backwards bool, f func(k, v []byte) bool) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return err
	}
	if backwards {
		for ok := it.Last(); ok && f(it.Key(), it.Value()); ok = it.Prev() {
		}
	} else {
		for ok := it.First(); ok && f(it.Key(), it.Value()); ok = it.Next() {
		}
	}
	return errors.Join(it.Error(), it.Close())
}

// prefixEnd is the first key behind all keys with the prefix; nil where there is none.
func prefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// view is a component's own keys at a moment.
type view struct{ r pebble.Reader }

func userKey(k []byte) []byte { return append([]byte{kindUser}, k...) }

func (v view) Get(key []byte) ([]byte, error) { return get(v.r, userKey(key)) }

func (v view) Range(from, to []byte, backwards bool, f func(k, v []byte) bool) error {
	end := []byte{kindUser + 1}
	if to != nil {
		end = userKey(to)
	}
	return walk(v.r, userKey(from), end, backwards, func(k, val []byte) bool { return f(k[1:], val) })
}

// place is a partition of a log.
type place struct {
	log       string
	gen, part uint32
}

func (p place) key(kind byte) []byte {
	k := append([]byte{kind}, p.log...)
	k = append(k, 0)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(k, p.gen), p.part)
}

func (s *store) checkpoints() (map[place]*Checkpoint, error) {
	all := map[place]*Checkpoint{}
	var bad error
	err := walk(s.db, []byte{kindCheckpoint}, []byte{kindCheckpoint + 1}, false, func(_, v []byte) bool {
		c := new(Checkpoint)
		if bad = json.Unmarshal(v, c); bad != nil {
			return false
		}
		all[place{c.Log, c.Position.Generation, c.Position.Partition}] = c
		return true
	})
	return all, errors.Join(err, bad)
}

func (s *store) setCheckpoint(c *Checkpoint) error {
	v, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return s.set(place{c.Log, c.Position.Generation, c.Position.Partition}.key(kindCheckpoint), v)
}

// said is an entry of the outbox.
type said struct {
	number uint64
	m      *message.Message
	record []byte // which m aliases
	told   []func(error)
	chunk  *chunk // where it lies in a local store
	to     string // its destination
}

// chunk is entries of an outbox that lie in its store under one key.
type chunk struct {
	number uint64 // of the first
	left   int    // how many have not arrived; of the goroutine that appends
}

// chunkBytes is how many bytes of entries lie under one key: a key for each would cost more than what it says.
const chunkBytes = 64 << 10

// tell says what became of it.
func (s *said) tell(err error) {
	for _, f := range s.told {
		f(err)
	}
}

// newSaid writes a message down as it will be stored.
func newSaid(m *message.Message) said { return new(slab).said(m) }

// slab is where messages that are said one after the other are written down: what needs a piece of memory each would keep the collector busy.
// What lies in one is let go of together, so it is as large as what was said lately, within bounds.
type slab struct {
	records  []byte
	messages []message.Message
	size     int // of records
}

const slabMax = 64 << 10

func (l *slab) said(m *message.Message) said {
	if room := message.RecordRoom(m); cap(l.records)-len(l.records) < room {
		l.size = min(2*l.size, slabMax)
		l.records = make([]byte, 0, max(l.size, room))
		l.size = max(l.size, room)
	}
	if len(l.messages) == cap(l.messages) {
		l.messages = make([]message.Message, 0, min(2*cap(l.messages)+1, slabMax>>10))
	}
	at, n := len(l.records), len(l.messages)
	l.records, l.messages = message.AppendRecord(l.records, m), l.messages[:n+1]
	s := said{m: &l.messages[n], record: l.records[at:len(l.records):len(l.records)]}
	if _, err := message.DecodeRecord(s.record, s.m); err != nil {
		panic(fmt.Sprintf("a record that was just written cannot be read: %v", err)) // a bug in the codec
	}
	return s
}

func outboxKey(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{kindOutbox}, n) }

// setOutbox puts what was said into the next commit, which must follow at once. What goes to the queue has a key to itself.
func (s *store) setOutbox(list []said) error {
	whole := s.wholeBatch()
	for len(list) > 0 {
		n, bytes := 0, 0
		for n < len(list) && (n == 0 || bytes+len(list[n].record) <= chunkBytes && list[0].to != toQueue && list[n].to != toQueue) {
			bytes += len(list[n].record)
			n++
		}
		c := &chunk{list[0].number, n}
		op := whole.SetDeferred(len(outboxKey(0)), bytes)
		copy(op.Key, outboxKey(c.number))
		v := op.Value[:0]
		for i := range n {
			v, list[i].chunk = append(v, list[i].record...), c
		}
		if err := op.Finish(); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

func (s *store) outbox() (list []said, err error) {
	var bad error
	err = walk(s.db, []byte{kindOutbox}, []byte{kindOutbox + 1}, false, func(k, v []byte) bool {
		if len(k) != len(outboxKey(0)) {
			bad = errors.New("what is still to be said is damaged in the store")
			return false
		}
		c := &chunk{number: binary.BigEndian.Uint64(k[1:])}
		for rest := slices.Clone(v); len(rest) > 0; c.left++ {
			e := said{number: c.number + uint64(c.left), m: new(message.Message), chunk: c}
			n, err := message.DecodeRecord(rest, e.m)
			if err != nil {
				bad = err
				return false
			}
			e.record, rest = rest[:n:n], rest[n:]
			list = append(list, e)
		}
		return true
	})
	return list, errors.Join(err, bad)
}

// outcomeKept is for how long the outcome of a queued message is remembered, so that a redelivery does nothing.
const outcomeKept = 24 * time.Hour

// sweepEvery is how often those that are older are forgotten.
const sweepEvery = time.Hour

func outcomeKey(id message.ID) []byte { return append([]byte{kindOutcome}, id[:]...) }

// storeLog passes the store's errors on, and nothing of its routine.
type storeLog struct {
	log *slog.Logger
	d   *disk
}

// Infof is routine.
func (storeLog) Infof(string, ...any) {}

// Errorf is not.
func (l storeLog) Errorf(f string, v ...any) { l.log.Error("store: " + fmt.Sprintf(f, v...)) }

// Fatalf is what the store calls when it cannot go on, in whatever goroutine, and from which it expects not to come back:
// the component fails, and only this one.
func (l storeLog) Fatalf(f string, v ...any) {
	l.d.fail(fmt.Errorf(f, v...))
	l.d.end()
}

func (l storeLog) corrupt(info pebble.DataCorruptionInfo) { l.d.fail(errors.New(info.String())) }

func (l storeLog) background(err error) {
	if l.d.err() == nil {
		l.log.Error("store: in the background", "error", err)
	}
}

func beAppend(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
func beUint64(v []byte) uint64 { return binary.BigEndian.Uint64(v) }

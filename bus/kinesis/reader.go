package kinesis

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	aheadBytes = 4 << 20          // a reader that has so much at hand leaves its lane, which others wait for
	lookEvery  = 5 * time.Second  // how often a reader that waits asks whether more will come
	fetchMost  = 20 * time.Second // for one that looks something up
	warnEvery  = 30 * time.Second // how often the same trouble is told aloud; readers have it all at once
)

// Reader reads one partition of the Kinesis log.
type Reader struct {
	l         *Log
	gen, part uint32
	hash      *big.Int
	looking   bool // it looks something up: what is missing before it does not matter
	ctx       context.Context
	close     context.CancelFunc
	woken     chan struct{} // holds one

	// For the goroutine that reads.
	last     uint64 // sequence of the last record that was given
	purged   error
	pieces   place // of what is in partial
	partial  []byte
	anchored time.Time // when an anchor was left last
	anchorAt spot      // and where
	ready    []bus.Stored
	doubts   []doubt // in the order of their sequences

	// Guarded by the log's mutex.
	at       spot // where it goes on
	lane     *lane
	began    bool   // it has had a place
	tip      bool   // it has been at the end of a shard
	ended    string // the shard that it has read to its end
	settling bool
	queue    []got
	bytes    int
}

// doubt is a record that cannot be read, and says in its partition key alone that it is ours and where it belongs. Anybody who may write into
// the stream can say so. It is given where a later record says that it was before it, or where it is what was copied last.
type doubt struct {
	seq uint64
	err error
	at  spot
}

// doubtsMax is how many wait for that; ours that are broken are few.
const doubtsMax = 1024

// got is a record that was read.
type got struct {
	place
	data []byte
	at   spot
}

func (l *Log) newReader(from bus.Position) *Reader {
	r := &Reader{l: l, gen: from.Generation, part: from.Partition, hash: l.hash(from.Partition), woken: make(chan struct{}, 1), last: from.Sequence, anchored: l.o.Now()}
	r.ctx, r.close = context.WithCancel(l.ctx)
	return r
}

// Reader begins behind a position. Whether that is still in the stream is found out by reading: Next says so.
func (l *Log) Reader(ctx context.Context, from bus.Position) (bus.Reader, error) {
	wrap := func(err error) error {
		return fmt.Errorf("read %s/%d/%d from %d: %w", l.name, from.Generation, from.Partition, from.Sequence, err)
	}
	if l.ctx.Err() != nil {
		return nil, wrap(bus.ErrClosed)
	}
	if from.Sequence > 0 && !from.Log.IsZero() && from.Log != l.ID() {
		return nil, wrap(fmt.Errorf("%w: the stream %s is another one than was read", bus.ErrTruncated, l.o.Stream))
	}
	info, err := l.Info(ctx)
	if err != nil {
		return nil, wrap(err)
	}
	newest := info.Generations[len(info.Generations)-1]
	if from.Generation > newest.Number {
		return nil, wrap(fmt.Errorf("%w; its newest generation is %d", bus.ErrTruncated, newest.Number))
	}
	for _, g := range info.Generations {
		if g.Number == from.Generation && int(from.Partition) >= len(g.Partitions) {
			return nil, wrap(fmt.Errorf("the log has no such partition: %w", bus.ErrNotFound))
		}
	}
	return l.newReader(from), nil
}

// Close ends a waiting Next.
func (r *Reader) Close() {
	r.close()
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	r.leave()
	r.queue = nil
}

// push takes what a record of the stream has for it, and goes on behind that. Of several ones the reader has come to the record's own place
// with the last only: until then it is at the one before. l.mu is held.
func (r *Reader) push(units []unit, before, at spot) {
	r.at = at
	for i, u := range units {
		if u.gen != r.gen || u.part != r.part {
			continue
		}
		r.queue = append(r.queue, got{u.place, u.data, before})
		if !slices.ContainsFunc(units[i+1:], func(u unit) bool { return u.gen == r.gen && u.part == r.part }) {
			r.queue[len(r.queue)-1].at = at
		}
		r.bytes += len(u.data)
		r.ring()
	}
	if r.bytes > aheadBytes {
		r.leave() // it comes back here when it has caught up
	}
}

func (r *Reader) ring() {
	select {
	case r.woken <- struct{}{}:
	default:
	}
}

// pop gives the next record at hand, and sees to it that there will be more; end says that there are none now.
func (r *Reader) pop() (g got, ok, end bool) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	end = r.tip && len(r.queue) == 0
	if len(r.queue) > 0 {
		g, ok = r.queue[0], true
		r.queue[0] = got{}
		r.queue = r.queue[1:]
		r.bytes -= len(g.data)
	}
	if r.lane == nil && !r.settling && r.bytes < aheadBytes/2 && r.ctx.Err() == nil {
		r.settling = true
		r.l.work.Go(r.settle)
	}
	return g, ok, end
}

// settle finds the reader's place, however long that takes.
func (r *Reader) settle() {
	wait := backOffMin
	for {
		err := r.l.settle(r.ctx, r)
		if err == nil || r.ctx.Err() != nil {
			break
		}
		r.l.o.Log.Log(r.ctx, r.l.levelOf(err), "find a place in the stream", "log", r.l.name, "partition", r.part, "error", err, "again_in", wait)
		if pause(r.ctx, wait) != nil {
			break
		}
		wait = min(2*wait, backOffMax)
	}
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	r.settling = false
	if r.ctx.Err() != nil {
		r.leave()
	}
	r.ring()
}

// levelOf is how loudly a fault is told: throttling is the usual way of things, and of the rest one speaks for all.
func (l *Log) levelOf(err error) slog.Level {
	if hasCode(err, "ProvisionedThroughputExceededException") || hasCode(err, "LimitExceededException") {
		return slog.LevelDebug
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.warned.IsZero() && l.o.Now().Sub(l.warned) < warnEvery {
		return slog.LevelDebug
	}
	l.warned = l.o.Now()
	return slog.LevelWarn
}

// Next waits for the next batch.
func (r *Reader) Next(ctx context.Context) (bus.Stored, error) {
	s, err := r.read(ctx)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("read on %s/%d/%d at %d: %w", r.l.name, r.gen, r.part, r.last, err)
	}
	return s, err
}

func (r *Reader) read(ctx context.Context) (bus.Stored, error) {
	for {
		switch {
		case r.ctx.Err() != nil:
			return bus.Stored{}, bus.ErrClosed
		case ctx.Err() != nil:
			return bus.Stored{}, ctx.Err()
		case r.purged != nil && len(r.ready) == 0:
			return bus.Stored{}, r.purged
		}
		if len(r.ready) > 0 {
			s := r.ready[0]
			r.ready = r.ready[1:]
			r.leaveAnchor(ctx, false)
			return s, nil
		}
		g, ok, end := r.pop()
		if ok {
			r.take(ctx, g)
			continue
		}
		if len(r.doubts) > 0 && r.settleLast() {
			continue
		}
		if end && r.looking {
			return bus.Stored{}, bus.ErrNotFound
		}
		r.leaveAnchor(ctx, true)
		t := time.NewTimer(lookEvery)
		select {
		case <-r.woken:
			t.Stop()
			continue
		case <-t.C:
		case <-ctx.Done():
		case <-r.ctx.Done():
		}
		t.Stop()
		if r.ctx.Err() == nil && ctx.Err() == nil {
			if err := r.finished(ctx); err != nil {
				return bus.Stored{}, err
			}
		}
	}
}

// finished says whether nothing will come any more: the generation is sealed, all of it was copied, and the last record
// was given.
func (r *Reader) finished(ctx context.Context) error {
	info, err := r.l.lately(ctx)
	if err != nil {
		return nil // it is asked again
	}
	for _, g := range info.Generations {
		if g.Number != r.gen {
			continue
		}
		if g.Sealed && r.last >= g.Partitions[r.part].Last {
			return bus.ErrSealed
		}
		return nil
	}
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	if c := r.l.copied[sourcePart{r.gen, r.part / uint32(r.l.tokens)}]; c == nil || r.last >= c.Rows[r.part].Last {
		return bus.ErrSealed // the source has it no more
	}
	return nil // the stream may still have it
}

// take makes a batch of a record, for ready: not of a repeat, nor of a piece, nor of what is doubtful yet.
func (r *Reader) take(ctx context.Context, g got) {
	if g.seq <= r.last {
		return
	}
	data := g.data
	if g.pieces > 1 {
		if g.piece == 0 {
			r.pieces, r.partial = g.place, nil
		} else if g.seq != r.pieces.seq || g.piece != r.pieces.piece+1 {
			return // a repeat, or its beginning is gone
		}
		r.pieces = g.place
		if r.partial = append(r.partial, data...); g.piece+1 < g.pieces {
			return
		}
		data, r.partial = r.partial, nil
	}
	var s bus.Stored
	if g.pieces == 1 && isAggregated(data) {
		raw, err := reimport(data)
		if err != nil {
			s.Err = &message.CorruptError{Record: -1, What: fmt.Sprintf("aggregated record %s of stream %s, shard %s, sequence %s: %v", g.place, r.l.o.Stream, g.at.Shard, g.at.After, err)}
		}
		data = raw
	}
	if s.Err == nil {
		s.Batch, s.Err = message.ParseBatch(data)
	}
	if s.Err == nil {
		if h := &s.Batch.Header; len(h.Mark) < 8 || h.Source.Log != g.source || h.Source.Sequence != origin(g.seq) {
			s.Err = &message.CorruptError{Record: -1, What: fmt.Sprintf("record %s of stream %s says that it is another one", g.place, r.l.o.Stream)}
		}
	}
	if s.Err != nil {
		r.doubt(doubt{g.seq, s.Err, g.at})
		return
	}
	before := binary.LittleEndian.Uint64(s.Batch.Header.Mark)
	r.settleUpto(before, g.seq)
	switch {
	case before <= r.last || r.looking:
	case r.last > 0:
		r.purged = fmt.Errorf("%w, at %d", bus.ErrPurged, g.seq)
		return
	default:
		r.tellFirst(ctx, g.seq)
	}
	s.Appender = string(bytes.Clone(s.Batch.Header.Mark[8:]))
	r.give(g.seq, max(s.Batch.Header.Count, 1)-1, s, g.at)
}

// give makes a batch ready.
func (r *Reader) give(seq uint64, index uint32, s bus.Stored, at spot) {
	s.Position = bus.Position{Log: r.l.ID(), Generation: r.gen, Partition: r.part, Sequence: seq, Index: index}
	r.ready = append(r.ready, s)
	r.last, r.anchorAt = seq, at
}

// doubt remembers a record that cannot be read.
func (r *Reader) doubt(d doubt) {
	i, known := slices.BinarySearchFunc(r.doubts, d.seq, func(d doubt, seq uint64) int { return cmp.Compare(d.seq, seq) })
	if known {
		return // a repeat
	}
	r.doubts = slices.Insert(r.doubts, i, d)
	if len(r.doubts) > doubtsMax { // the last one is the least likely
		r.passOver(r.doubts[doubtsMax])
		r.doubts = r.doubts[:doubtsMax]
	}
}

// settleUpto gives the doubtful records up to one that is known to be there, and passes over those behind it: where seq is what follows, they
// are none of ours, or it is they that can be read after all.
func (r *Reader) settleUpto(there, seq uint64) {
	for _, d := range r.doubts {
		switch {
		case d.seq <= there:
			r.give(d.seq, 0, bus.Stored{Err: d.err}, d.at)
		case d.seq != seq:
			r.passOver(d)
		}
	}
	r.doubts = nil
}

// settleLast gives the doubtful records once all of the stream was read that there is, up to what was copied: nothing comes behind these any
// more that could say so. It says whether there were any.
func (r *Reader) settleLast() bool {
	r.l.mu.Lock()
	last := uint64(0)
	if c := r.l.copied[sourcePart{r.gen, r.part / uint32(r.l.tokens)}]; c != nil && r.tip && r.lane != nil && r.ended == "" {
		last = c.Rows[r.part].Last
	}
	r.l.mu.Unlock()
	n := 0
	for ; n < len(r.doubts) && r.doubts[n].seq <= last; n++ {
		r.give(r.doubts[n].seq, 0, bus.Stored{Err: r.doubts[n].err}, r.doubts[n].at)
	}
	r.doubts = r.doubts[n:]
	return n > 0
}

func (r *Reader) passOver(d doubt) {
	r.l.o.Log.Warn("a record says that it is naru's, and cannot be read; no other one says that it was there, so it is passed over", "stream", r.l.o.Stream, "shard", d.at.Shard,
		"sequence", d.at.After, "error", d.err)
}

// tellFirst lets others know that what was before a record is gone from the stream.
func (r *Reader) tellFirst(ctx context.Context, seq uint64) {
	key := fmt.Sprintf("first/%d/%d", r.gen, r.part)
	r.l.mu.Lock()
	known := r.l.first(r.gen, r.part) >= seq
	r.l.mu.Unlock()
	if known {
		return
	}
	if err := r.l.remember(ctx, key, seq); err != nil {
		r.l.o.Log.Debug("tell where a partition begins", "log", r.l.name, "partition", r.part, "error", err)
	}
}

// remember puts something into the table.
func (l *Log) remember(ctx context.Context, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	rev, err := l.table.Put(ctx, l.key(key), raw)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if old, ok := l.entries[key]; !ok || old.Revision < rev {
		l.entries[key] = bus.Entry{Key: l.key(key), Value: raw, Revision: rev}
	}
	return nil
}

package nats

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	ringBytes = 32 << 20             // of batches handed over in memory, per partition: some tenths of a second at full speed
	readAhead = 64                   // batches fetched at once by a reader that is behind
	readBytes = 4 << 20              // and their bytes
	pollEvery = time.Second          // how long a reader trusts that nothing came; wake-ups are the rule
	retryWait = 3 * time.Millisecond // for a replica that has not yet what the leader confirmed
	awayWait  = 500 * time.Millisecond
)

// feed hands the batches that this process has written over to the readers in it, without a way through the store.
// It is a ring by sequence; who is not exactly at it reads the log.
type feed struct {
	mu    sync.Mutex
	ring  map[uint64]bus.Stored
	first uint64 // of the ring
	last  uint64 // known to be stored, by whomever
	bytes int
	woken chan struct{}
	sub   *natsgo.Subscription
}

func (l *Log) feed(gen, part uint32) *feed {
	name := streamName(l.name, gen, part)
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	f := l.b.feeds[name]
	if f == nil {
		f = &feed{ring: map[uint64]bus.Stored{}, woken: make(chan struct{})}
		l.b.feeds[name] = f
	}
	return f
}

// put hands a batch over. Rows of one process may come in any order; only neighbours make the ring.
func (f *feed) put(s bus.Stored) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seq := s.Position.Sequence
	if len(f.ring) == 0 || seq < f.first {
		f.first = seq
	}
	f.ring[seq] = s
	f.bytes += len(s.Batch.Bytes())
	for f.bytes > ringBytes && len(f.ring) > 1 {
		if old, ok := f.ring[f.first]; ok {
			f.bytes -= len(old.Batch.Bytes())
			delete(f.ring, f.first)
		}
		f.first++
	}
	f.reach(seq)
}

// reach notes that the log has come to a sequence, and wakes who waits. f.mu is held.
func (f *feed) reach(seq uint64) {
	if seq > f.last {
		f.last = seq
		close(f.woken)
		f.woken = make(chan struct{})
	}
}

func (f *feed) get(seq uint64) (bus.Stored, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.ring[seq]
	return s, ok
}

// state says whether the log is known to have come to seq, and what is closed when it comes further.
func (f *feed) state() (last uint64, woken <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last, f.woken
}

// listen hears of batches that other processes write, as the server tells of each.
func (f *feed) listen(nc *natsgo.Conn, subject string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sub != nil {
		return nil
	}
	sub, err := nc.Subscribe(subject, func(m *natsgo.Msg) {
		if seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64); err == nil {
			f.mu.Lock()
			f.reach(seq)
			f.mu.Unlock()
		}
	})
	f.sub = sub
	return err
}

// reader reads one partition.
type reader struct {
	l         *Log
	f         *feed
	gen, part uint32
	next      uint64
	ahead     []bus.Stored
	closed    chan struct{}
	once      sync.Once
}

// Reader begins behind a position.
func (l *Log) Reader(ctx context.Context, from bus.Position) (bus.Reader, error) {
	r := &reader{l: l, f: l.feed(from.Generation, from.Partition), gen: from.Generation, part: from.Partition, next: from.Sequence + 1, closed: make(chan struct{})}
	wrap := func(err error) error {
		return fmt.Errorf("read %s/%d/%d from %d: %w", l.name, from.Generation, from.Partition, from.Sequence, l.b.closed(err))
	}
	var si *jetstream.StreamInfo
	err := l.b.patiently(ctx, patienceDefault, func(ctx context.Context) (err error) {
		if err = l.reload(ctx); err != nil {
			return err
		}
		m := l.snapshot()
		if g := m.find(from.Generation); g == nil || int(from.Partition) >= len(g.Trimmed) {
			si = nil
			return nil
		}
		si, err = l.streamInfo(ctx, from.Generation, from.Partition)
		return err
	})
	if err != nil {
		return nil, wrap(err)
	}
	if si == nil {
		return nil, wrap(bus.ErrPurged)
	}
	m := l.snapshot()
	trimmed := m.find(from.Generation).Trimmed[from.Partition]
	switch {
	case from.Sequence > si.State.LastSeq:
		return nil, wrap(bus.ErrTruncated)
	case from.Sequence == 0:
		r.next = trimmed + 1
	case from.Sequence < trimmed:
		return nil, wrap(bus.ErrPurged)
	}
	if err := r.f.listen(l.b.nc, tailSubject(l.name, r.gen, r.part)); err != nil {
		return nil, wrap(err)
	}
	r.f.mu.Lock()
	r.f.reach(si.State.LastSeq)
	r.f.mu.Unlock()
	return r, nil
}

// Close ends a waiting Next.
func (r *reader) Close() { r.once.Do(func() { close(r.closed) }) }

// Next waits for the next batch.
func (r *reader) Next(ctx context.Context) (bus.Stored, error) {
	for {
		if err := r.over(ctx); err != nil {
			return bus.Stored{}, err
		}
		if len(r.ahead) > 0 {
			s := r.ahead[0]
			r.ahead = r.ahead[1:]
			r.next = s.Position.Sequence + 1
			return s, nil
		}
		if s, ok := r.f.get(r.next); ok {
			r.next++
			return s, nil
		}
		last, woken := r.f.state()
		if last < r.next {
			if err := r.wait(ctx, woken, pollEvery); err == nil {
				continue
			} else if !errors.Is(err, errIdle) {
				return bus.Stored{}, err
			}
			if err := r.look(ctx); err != nil {
				return bus.Stored{}, err
			}
			continue
		}
		if err := r.fetch(ctx); err != nil {
			return bus.Stored{}, err
		}
	}
}

func (r *reader) over(ctx context.Context) error {
	select {
	case <-r.closed:
		return bus.ErrClosed
	case <-r.l.b.ctx.Done():
		return bus.ErrClosed
	default:
		return ctx.Err()
	}
}

// errIdle says that nothing came for a while.
var errIdle = errors.New("idle")

func (r *reader) wait(ctx context.Context, woken <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-woken:
		return nil
	case <-t.C:
		return errIdle
	case <-ctx.Done():
		return ctx.Err()
	case <-r.closed:
		return bus.ErrClosed
	case <-r.l.b.ctx.Done():
		return bus.ErrClosed
	}
}

// look asks the engine how far the partition has come, in case nobody told, and whether it is sealed.
func (r *reader) look(ctx context.Context) error {
	si, err := r.l.streamInfo(ctx, r.gen, r.part)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("%s/%d/%d: %w", r.l.name, r.gen, r.part, bus.ErrPurged)
	case err != nil:
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := r.wait(ctx, nil, awayWait); !errors.Is(err, errIdle) {
			return err
		}
		return nil // the engine is away: waited for
	case si.State.LastSeq >= r.next:
		r.f.mu.Lock()
		r.f.reach(si.State.LastSeq)
		r.f.mu.Unlock()
	case si.State.LastSeq+1 < r.next:
		return fmt.Errorf("%s/%d/%d ends at %d, and %d was read: %w", r.l.name, r.gen, r.part, si.State.LastSeq, r.next-1, bus.ErrTruncated)
	case si.Config.Sealed:
		return bus.ErrSealed
	}
	return nil
}

// fetch reads ahead from the store.
func (r *reader) fetch(ctx context.Context) error {
	try, cancel := context.WithTimeout(ctx, requestWait)
	defer cancel()
	messages, err := jetstreamext.GetBatch(try, r.l.b.js, streamName(r.l.name, r.gen, r.part), readAhead,
		jetstreamext.GetBatchSeq(r.next), jetstreamext.GetBatchMaxBytes(readBytes))
	if err == nil {
		expect := r.next
		for m, merr := range messages {
			if merr != nil {
				err = merr
				break
			}
			if m.Sequence > expect {
				s, ok, gerr := r.gap(ctx, expect, m.Sequence)
				if gerr != nil {
					return gerr
				}
				if ok {
					r.ahead = append(r.ahead, s)
				}
			}
			r.ahead = append(r.ahead, r.l.stored(r.gen, r.part, raw{m.Sequence, m.Subject, m.Data}))
			expect = m.Sequence + 1
		}
	}
	if len(r.ahead) > 0 {
		return nil // a fault behind it is met again
	}
	if err := r.over(ctx); err != nil {
		return err
	}
	pause := retryWait // not there yet at the replica that was asked
	if err != nil && !errors.Is(err, jetstreamext.ErrNoMessages) {
		pause = awayWait
	} else if err := r.look(ctx); err != nil {
		return err
	}
	if last, _ := r.f.state(); err != nil && last >= r.next {
		if lost, lerr := r.lost(ctx, last); lerr != nil || lost {
			return lerr
		}
	}
	if err := r.wait(ctx, nil, pause); !errors.Is(err, errIdle) {
		return err
	}
	return nil
}

// lost notices batches at the end of the log that the engine counts and does not have: it says that there is nothing
// from next on, and yet that its last sequence is beyond.
func (r *reader) lost(ctx context.Context, last uint64) (bool, error) {
	si, err := r.l.streamInfo(ctx, r.gen, r.part)
	if err != nil || si.State.LastSeq < r.next || si.State.Msgs > 0 && lastPresent(si) >= r.next {
		return false, nil // not known: the engine is asked again
	}
	s, ok, err := r.gap(ctx, r.next, si.State.LastSeq+1)
	if err != nil {
		return false, err
	}
	if ok {
		r.ahead = append(r.ahead, s)
	} else {
		r.next = si.State.LastSeq + 1
	}
	return true, nil
}

// lastPresent is the last sequence that a stream can still have; it is LastSeq unless messages at the end were removed.
func lastPresent(si *jetstream.StreamInfo) uint64 {
	if si.State.FirstSeq > si.State.LastSeq || si.State.Msgs == 0 {
		return 0
	}
	return si.State.LastSeq
}

// gap explains why the batches from..to-1 are missing: trimmed, and then nothing is said; or lost.
func (r *reader) gap(ctx context.Context, from, to uint64) (bus.Stored, bool, error) {
	if err := r.l.reload(ctx); err != nil && ctx.Err() != nil {
		return bus.Stored{}, false, ctx.Err()
	}
	m := r.l.snapshot()
	var trimmed uint64
	if g := m.find(r.gen); g != nil && int(r.part) < len(g.Trimmed) {
		trimmed = g.Trimmed[r.part]
	}
	if to-1 <= trimmed {
		return bus.Stored{}, false, nil
	}
	return bus.Stored{
		Position: bus.Position{Log: m.ID, Generation: r.gen, Partition: r.part, Sequence: to - 1},
		Err: &message.CorruptError{Record: -1, What: fmt.Sprintf("the store has lost batches %d to %d of %s/%d/%d",
			max(from, trimmed+1), to-1, r.l.name, r.gen, r.part)},
	}, true, nil
}

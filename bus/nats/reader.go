package nats

import (
	"context"
	"errors"
	"fmt"

	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	readAhead = 64                     // batches fetched at once by a reader that is behind
	readBytes = 4 << 20                // and their bytes
	pollEvery = time.Second            // how long a reader trusts that nothing came; being woken is the rule
	againWait = 3 * time.Millisecond   // for a replica that has not yet what the leader confirmed
	awayWait  = 250 * time.Millisecond // before an engine that is away is asked again
	refusals  = 5                      // after so many of the engine's refusals a batch is given as unreadable
)

// reader reads one partition.
type reader struct {
	l         *Log
	f         *feed
	gen, part uint32
	next      uint64
	ahead     []bus.Stored
	refused   int  // times that the engine refused to give the next batch
	gone      bool // the generation has disappeared, and all of it was read
	ctx       context.Context
	close     context.CancelFunc
}

// Reader begins behind a position.
func (l *Log) Reader(ctx context.Context, from bus.Position) (bus.Reader, error) {
	r := &reader{l: l, f: l.feed(from.Generation, from.Partition), gen: from.Generation, part: from.Partition, next: from.Sequence + 1}
	err := l.b.patiently(ctx, patienceDefault, func(ctx context.Context) error { return r.begin(ctx, from.Sequence) })
	if err != nil {
		return nil, fmt.Errorf("read %s/%d/%d from %d: %w", l.name, from.Generation, from.Partition, from.Sequence, l.b.closed(err))
	}
	r.ctx, r.close = context.WithCancel(l.b.ctx)
	return r, nil
}

// begin checks the place; what is wrong with it is marked as lasting.
func (r *reader) begin(ctx context.Context, from uint64) error {
	if err := r.l.reload(ctx); err != nil {
		return err
	}
	m := r.l.snapshot()
	g := m.find(r.gen, r.part)
	switch {
	case g == nil && r.gen > m.open().Number:
		return lasting{fmt.Errorf("%w; its newest generation is %d", bus.ErrTruncated, m.open().Number)}
	case g == nil:
		return lasting{fmt.Errorf("the log has no such partition: %w", bus.ErrNotFound)}
	}
	trimmed := g.Trimmed[r.part]
	last := trimmed
	if !g.Gone {
		si, err := r.l.streamInfo(ctx, r.gen, r.part)
		if err != nil {
			return err
		}
		last = si.State.LastSeq
		if si.Config.Sealed {
			r.f.seal()
		}
	}
	switch {
	case from > last:
		return lasting{fmt.Errorf("%w, at %d", bus.ErrTruncated, last)}
	case from == 0:
		r.next = trimmed + 1
	case from < trimmed:
		return lasting{fmt.Errorf("%w, at %d", bus.ErrPurged, trimmed+1)}
	}
	if r.gone = g.Gone; r.gone {
		return nil
	}
	if r.l.b.shared() {
		if err := r.f.listen(r.l.b.nc(), tailSubject(r.l.name, r.gen, r.part)); err != nil {
			return err
		}
	}
	r.f.heard(last)
	return nil
}

// Close ends a waiting Next.
func (r *reader) Close() { r.close() }

// Next waits for the next batch.
func (r *reader) Next(ctx context.Context) (bus.Stored, error) {
	s, err := r.read(ctx)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("read on %s/%d/%d at %d: %w", r.l.name, r.gen, r.part, r.next, err)
	}
	return s, err
}

func (r *reader) read(ctx context.Context) (bus.Stored, error) {
	for {
		if err := r.over(ctx); err != nil {
			return bus.Stored{}, err
		}
		if len(r.ahead) > 0 {
			s := r.ahead[0]
			r.ahead[0] = bus.Stored{}
			r.ahead = r.ahead[1:]
			r.next = s.Position.Sequence + 1
			return s, nil
		}
		if s, ok := r.f.get(r.next); ok {
			r.next++
			return s, nil
		}
		if r.gone {
			return bus.Stored{}, bus.ErrSealed
		}
		last, woken := r.f.state()
		if last >= r.next {
			if err := r.fetch(ctx); err != nil {
				return bus.Stored{}, err
			}
			continue
		}
		if !r.f.sealed() {
			r.wait(ctx, woken, pollEvery)
		}
		if last, _ = r.f.state(); last >= r.next || r.over(ctx) != nil {
			continue
		}
		si, err := r.look(ctx)
		if err != nil {
			return bus.Stored{}, err
		}
		if si != nil && si.State.LastSeq < r.next && r.f.sealed() {
			r.wait(ctx, nil, awayWait) // it was asked of a server that has not heard of the seal
		}
	}
}

func (r *reader) over(ctx context.Context) error {
	if r.ctx.Err() != nil {
		return bus.ErrClosed
	}
	return ctx.Err()
}

// wait waits for news, for a while, or until the reader or ctx ends.
func (r *reader) wait(ctx context.Context, woken <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-woken:
	case <-t.C:
	case <-ctx.Done():
	case <-r.ctx.Done():
	}
}

// look asks the engine how far the partition has come, in case nobody told, and whether there will be more. An engine
// that is away is waited for.
func (r *reader) look(ctx context.Context) (*jetstream.StreamInfo, error) {
	known, _ := r.f.state()
	si, err := r.l.streamInfo(ctx, r.gen, r.part)
	if err == nil && si.State.LastSeq < known {
		r.f.retreat(si.State.LastSeq) // the log was cut off behind our back
	}
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, r.lookGone(ctx)
	case err != nil:
		r.wait(ctx, nil, awayWait)
		return nil, r.over(ctx)
	case si.State.LastSeq >= r.next:
		r.f.heard(si.State.LastSeq)
	case si.State.LastSeq+1 < r.next:
		return nil, fmt.Errorf("%w, at %d", bus.ErrTruncated, si.State.LastSeq)
	case si.Config.Sealed:
		return nil, bus.ErrSealed
	}
	return si, nil
}

// lookGone finds out whether the generation has disappeared, or the engine is starting.
func (r *reader) lookGone(ctx context.Context) error {
	if err := r.l.reload(ctx); err == nil {
		m := r.l.snapshot()
		if g := m.find(r.gen, r.part); g != nil && g.Gone {
			if r.next > g.Trimmed[r.part] {
				return bus.ErrSealed
			}
			return bus.ErrPurged
		}
	}
	r.wait(ctx, nil, awayWait)
	return r.over(ctx)
}

// fetch reads ahead from the store, as far as there is no gap.
func (r *reader) fetch(ctx context.Context) error {
	try, cancel := context.WithTimeout(ctx, requestWait)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	defer context.AfterFunc(*r.l.b.connected.Load(), cancel)()
	messages, err := jetstreamext.GetBatch(try, r.l.b.js(), streamName(r.l.name, r.gen, r.part), readAhead,
		jetstreamext.GetBatchSeq(r.next), jetstreamext.GetBatchMaxBytes(readBytes))
	found := uint64(0)
	if err == nil {
		expect := r.next
		for m, merr := range messages {
			if err = merr; merr != nil {
				break
			}
			if found = m.Sequence; found != expect {
				break
			}
			r.ahead = append(r.ahead, r.l.stored(r.gen, r.part, raw{m.Sequence, m.Subject, m.Data}))
			expect++
		}
	}
	if len(r.ahead) > 0 {
		r.refused = 0
		return nil // a fault or a gap behind them is met again
	}
	if err := r.over(ctx); err != nil {
		return err
	}
	if found > r.next || errors.Is(err, jetstreamext.ErrNoMessages) {
		return r.fetchOne(ctx)
	}
	// The engine is away, or there is something it does not answer for.
	si, err := r.look(ctx)
	if err != nil || si == nil {
		return err
	}
	return r.fetchOne(ctx)
}

// fetchOne asks the leader for the next batch alone, and finds out why it is not there: not yet at a replica, trimmed,
// or lost. A batch that is lost, or that the engine refuses to give, is given with its fault, so that nothing ends there.
func (r *reader) fetchOne(ctx context.Context) error {
	si, err := r.look(ctx)
	if err != nil || si == nil || si.State.LastSeq < r.next {
		return err
	}
	m, err := r.l.at(ctx, r.gen, r.part, r.next)
	var refusal *apiError
	switch {
	case err == nil:
		r.ahead = append(r.ahead, r.l.stored(r.gen, r.part, m))
		r.refused = 0
		return nil
	case errors.Is(err, bus.ErrNotFound):
		if err := r.l.reload(ctx); err != nil {
			r.wait(ctx, nil, awayWait)
			return r.over(ctx)
		}
		meta := r.l.snapshot()
		if g := meta.find(r.gen, r.part); g != nil && r.next <= g.Trimmed[r.part] {
			return fmt.Errorf("%w, at %d", bus.ErrPurged, g.Trimmed[r.part]+1)
		}
		r.giveLost("the store has lost it")
		return nil
	case errors.As(err, &refusal):
		if r.refused++; r.refused >= refusals {
			r.refused = 0
			r.giveLost("the engine cannot give it: " + refusal.Error())
			return nil
		}
	}
	r.wait(ctx, nil, max(againWait, awayWait*time.Duration(min(r.refused, 1))))
	return r.over(ctx)
}

func (r *reader) giveLost(why string) {
	r.ahead = append(r.ahead, bus.Stored{
		Position: bus.Position{Log: r.l.ID(), Generation: r.gen, Partition: r.part, Sequence: r.next},
		Err:      &message.CorruptError{Record: -1, What: fmt.Sprintf("batch %s/%d/%d/%d: %s", r.l.name, r.gen, r.part, r.next, why)},
	})
}

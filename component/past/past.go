// Package past reads what is recorded in a log: from a time on, up to what was there when it was asked for.
package past

import (
	"context"
	"errors"
	"time"

	"github.com/naru-platform/naru/bus"
)

// Late is by how much a message may stand behind others in a log that were accepted after it: an appender offers a batch
// again for a minute.
const Late = 2 * time.Minute

// Seek gives the sequence behind which the messages of a partition stand that were accepted at a time or later, by asking
// for a few batches. Some older ones may be there too.
func Seek(ctx context.Context, l bus.Log, generation uint32, p bus.Partition, at time.Time) (uint64, error) {
	at = at.Add(-Late)
	from, to := p.First, p.Last+1 // the first batch that is not older lies between, to included
	for from < to {
		mid := from + (to-from)/2
		last, seq, err := timed(ctx, l, generation, p.Number, mid, to)
		if err != nil {
			return 0, err
		}
		if seq < to && last.Before(at) {
			from = seq + 1
		} else {
			to = mid
		}
	}
	if from == 0 {
		return 0, nil
	}
	return from - 1, nil
}

// timed gives the latest time of the first batch from a sequence on that has one: marks, what was trimmed and what cannot be
// read have none. Where there is none before the end, seq is the end.
func timed(ctx context.Context, l bus.Log, generation, partition uint32, seq, end uint64) (last time.Time, at uint64, err error) {
	for ; seq < end; seq++ {
		s, err := l.Fetch(ctx, bus.Position{Log: l.ID(), Generation: generation, Partition: partition, Sequence: seq})
		switch {
		case errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrPurged):
			continue
		case err != nil:
			return last, 0, err
		case s.Err == nil && s.Batch.Count > 0:
			return s.Batch.Last, seq, nil
		}
	}
	return last, end, nil
}

// Scan gives the batches of a partition behind a sequence, up to the last there was when it was asked for, until f gives
// false. Batches that are trimmed while it reads are left out.
func Scan(ctx context.Context, l bus.Log, generation uint32, p bus.Partition, from uint64, f func(*bus.Stored) bool) error {
	from = max(from, p.First-min(p.First, 1)) // what was trimmed is not asked for
	for from < p.Last {
		r, err := l.Reader(ctx, bus.Position{Log: l.ID(), Generation: generation, Partition: p.Number, Sequence: from})
		if err == nil {
			from, err = read(ctx, r, from, p.Last, f)
			r.Close()
		}
		switch {
		case errors.Is(err, bus.ErrSealed):
			return nil
		case errors.Is(err, bus.ErrPurged):
			now, err := first(ctx, l, generation, p.Number)
			if err != nil || now <= from+1 {
				return err
			}
			from = now - 1
		case err != nil:
			return err
		}
	}
	return nil
}

// read gives batches until the last one or until f gives false; from is then the last one.
func read(ctx context.Context, r bus.Reader, from, last uint64, f func(*bus.Stored) bool) (uint64, error) {
	for from < last {
		s, err := r.Next(ctx)
		if err != nil {
			return from, err
		}
		if s.Position.Sequence > last {
			return last, nil
		}
		if from = s.Position.Sequence; !f(&s) {
			return last, nil
		}
	}
	return from, nil
}

// first is the sequence of a partition's oldest batch; 0 where the partition is gone.
func first(ctx context.Context, l bus.Log, generation, partition uint32) (uint64, error) {
	info, err := l.Info(ctx)
	if err != nil {
		return 0, err
	}
	for _, g := range info.Generations {
		for _, p := range g.Partitions {
			if g.Number == generation && p.Number == partition {
				return p.First, nil
			}
		}
	}
	return 0, nil
}

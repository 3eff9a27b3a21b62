package rule

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// late is by how much a message may stand behind others in a log that were accepted after it: an appender offers a batch
// again for a minute.
const late = 2 * time.Minute

// seek gives the sequence behind which the messages of a partition stand that were accepted at a time or later, by asking
// for a few batches. Some older ones may be there too.
func seek(ctx context.Context, l bus.Log, generation uint32, p bus.Partition, at time.Time) (uint64, error) {
	at = at.Add(-late)
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

// find gives a message from its place in a log.
func find(ctx context.Context, l bus.Log, at bus.Position, id message.ID) (*message.Message, error) {
	s, err := l.Fetch(ctx, at)
	if err != nil {
		return nil, err
	}
	if s.Err != nil {
		return nil, s.Err
	}
	var m message.Message
	for cursor := s.Batch.Cursor(); cursor.Next(&m); {
		if m.ID == id {
			return m.Clone(), nil
		}
	}
	return nil, fmt.Errorf("message %s is not in batch %d: %w", id, at.Sequence, bus.ErrNotFound)
}

// searchMax is how many batches of a partition are read for a message of which only the id is known.
const searchMax = 20_000

// search looks for a message by its id, which says when it was accepted: from there on through the batches of each log.
func search(ctx context.Context, b bus.Bus, id message.ID) (*message.Message, string, error) {
	for _, name := range message.Namespaces() {
		l, err := b.Log(ctx, name, bus.LogOptions{})
		if err != nil {
			return nil, "", err
		}
		info, err := l.Info(ctx)
		if err != nil {
			return nil, "", err
		}
		for _, g := range info.Generations {
			for _, p := range g.Partitions {
				m, err := searchPartition(ctx, l, g.Number, p, id)
				if m != nil || err != nil {
					return m, name, err
				}
			}
		}
	}
	return nil, "", bus.ErrNotFound
}

func searchPartition(ctx context.Context, l bus.Log, generation uint32, p bus.Partition, id message.ID) (found *message.Message, err error) {
	from, err := seek(ctx, l, generation, p, id.Time())
	if err != nil {
		return nil, err
	}
	err = scan(ctx, l, generation, p, from, func(s *bus.Stored) bool {
		if s.Batch.Count > 0 && s.Batch.First.After(id.Time().Add(late)) || s.Position.Sequence > from+searchMax {
			return false
		}
		if s.Batch.First.After(id.Time()) || s.Batch.Last.Before(id.Time().Truncate(time.Millisecond)) {
			return true
		}
		var m message.Message
		for cursor := s.Batch.Cursor(); cursor.Next(&m); {
			if m.ID == id {
				found = m.Clone()
				return false
			}
		}
		return true
	})
	return found, err
}

// scan gives the batches of a partition behind a sequence, up to the last there was when it was asked for, until f gives
// false. Batches that are trimmed while it reads are left out.
func scan(ctx context.Context, l bus.Log, generation uint32, p bus.Partition, from uint64, f func(*bus.Stored) bool) error {
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

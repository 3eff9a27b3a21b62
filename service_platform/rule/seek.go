package rule

import (
	"context"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/past"
	"github.com/naru-platform/naru/message"
)

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
	from, err := past.Seek(ctx, l, generation, p, id.Time())
	if err != nil {
		return nil, err
	}
	err = past.Scan(ctx, l, generation, p, from, func(s *bus.Stored) bool {
		if s.Batch.Count > 0 && s.Batch.First.After(id.Time().Add(past.Late)) || s.Position.Sequence > from+searchMax {
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

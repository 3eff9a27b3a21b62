package nats

import (
	"context"
	"errors"
	"fmt"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Fence ends a row for whoever has lost his standing.
func (l *Log) Fence(ctx context.Context, name string, owner message.ID) (list []bus.Position, err error) {
	wrap := func(err error) error {
		return fmt.Errorf("fence row %s of log %s: %w", name, l.name, l.b.closed(err))
	}
	if err := checkRow(name, owner); err != nil {
		return nil, wrap(err)
	}
	for {
		if err := l.b.patiently(ctx, patienceDefault, l.reload); err != nil {
			return nil, wrap(err)
		}
		m := l.snapshot()
		g := m.open()
		fenced, err := l.fenceAll(ctx, g, name, owner)
		list = append(list, fenced...)
		if errors.Is(err, errSealed) {
			err = l.b.patiently(ctx, patienceDefault, func(ctx context.Context) error { _, err := l.after(ctx, g.Number); return err })
			if err != nil {
				return nil, wrap(err)
			}
			continue
		}
		if err != nil {
			return nil, wrap(err)
		}
		// The row goes on in the next generation, if there is one by now; who crosses over looks back for a fence.
		if over, err := l.passed(ctx, g.Number); err == nil && !over {
			return list, nil
		} else if err != nil {
			return nil, wrap(err)
		}
	}
}

// fenceAll fences the row in each partition of a generation.
func (l *Log) fenceAll(ctx context.Context, g *genMeta, name string, owner message.ID) (list []bus.Position, err error) {
	for part := range g.Trimmed {
		p, err := l.fencePart(ctx, g, uint32(part), name, owner)
		if err != nil {
			return list, err
		}
		list = append(list, p)
	}
	return list, nil
}

func (l *Log) fencePart(ctx context.Context, g *genMeta, part uint32, name string, owner message.ID) (bus.Position, error) {
	w := writer{l: l, row: row{l: l, name: name, owner: owner, standing: func() bool { return false }, patience: patienceDefault}}
	for {
		var h message.Header
		var err error
		if part == bus.PartitionOf(name, len(g.Trimmed)) { // where a writer of that name keeps its mark
			if h, _, err = w.Last(ctx); err == nil && w.row.gen != g.Number {
				return bus.Position{}, errSealed
			}
		} else {
			w.row.enter(g.Number, part)
			err = l.b.patiently(ctx, patienceDefault, func(ctx context.Context) (err error) { h, _, err = w.row.begin(ctx); return err })
		}
		if err != nil {
			return bus.Position{}, err
		}
		var b message.Builder
		b.Reset(message.Header{Derived: h.Derived, Source: h.Source, Mark: h.Mark}, 0)
		seq, data, err := w.row.write(ctx, &b)
		if message.ReasonOf(err, 0) == message.Fenced {
			continue // it was written to since: its new end is fenced
		}
		if err != nil {
			return bus.Position{}, err
		}
		s := l.stored(w.row.gen, w.row.part, raw{seq, w.row.subject(), data})
		l.feed(w.row.gen, w.row.part).put(s)
		return s.Position, nil
	}
}

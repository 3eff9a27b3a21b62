package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// writer writes derived batches. Its row is in the partition of its name, whatever the keys of the messages: a row is
// one chain, and a chain has one end.
type writer struct {
	l   *Log
	row row
}

// Writer opens a consumer's row.
func (l *Log) Writer(ctx context.Context, o bus.WriterOptions) (bus.Writer, error) {
	if err := checkRow(o.Name, o.Owner); err != nil {
		return nil, fmt.Errorf("open writer of log %s: %w", l.name, err)
	}
	if o.Patience <= 0 {
		o.Patience = patienceDefault
	}
	if o.Standing == nil {
		o.Standing = func() bool { return false }
	}
	w := &writer{l: l, row: row{l: l, name: o.Name, owner: o.Owner, standing: o.Standing, patience: o.Patience}}
	if _, _, err := w.Last(ctx); err != nil {
		return nil, err
	}
	return w, nil
}

// Last gives the row's newest header, in whatever generation it is. Writing goes on behind what it saw.
func (w *writer) Last(ctx context.Context) (h message.Header, ok bool, err error) {
	err = w.l.b.patiently(ctx, w.row.patience, func(ctx context.Context) error {
		if err := w.l.reload(ctx); err != nil {
			return err
		}
		m := w.l.snapshot()
		open := m.open()
		w.row.enter(open.Number, bus.PartitionOf(w.row.name, len(open.Trimmed)))
		if h, ok, err = w.row.begin(ctx); ok || err != nil {
			return err
		}
		for _, g := range slices.Backward(m.Generations[:len(m.Generations)-1]) {
			if g.Gone {
				continue
			}
			old := w.row
			old.enter(g.Number, bus.PartitionOf(w.row.name, len(g.Trimmed)))
			if h, ok, err = old.begin(ctx); ok || err != nil {
				return err
			}
		}
		h, ok, err = w.l.keptMark(ctx, w.row.name)
		return err
	})
	if err != nil {
		return message.Header{}, false, fmt.Errorf("last batch of row %s of log %s: %w", w.row.name, w.l.name, w.l.b.closed(err))
	}
	h.Mark = slices.Clone(h.Mark)
	return h, ok, nil
}

// Write writes one batch.
func (w *writer) Write(ctx context.Context, source bus.Position, mark []byte, messages []*message.Message) (bus.Position, error) {
	var b message.Builder
	b.Reset(message.Header{Derived: true, Source: source.Origin(), Mark: mark}, message.Room(mark, messages))
	for _, m := range messages {
		b.Add(m)
	}
	if b.Len() > w.MaxBatch() {
		return bus.Position{}, message.Rejectf(message.MessageTooLarge, "a batch of %d messages takes %d bytes, and log %s takes up to %d",
			len(messages), b.Len(), w.l.name, w.MaxBatch())
	}
	for {
		seq, data, err := w.row.write(ctx, &b)
		if errors.Is(err, errSealed) {
			if err = w.move(ctx); err == nil {
				continue
			}
		}
		if err != nil {
			return bus.Position{}, err
		}
		s := w.l.stored(w.row.gen, w.row.part, raw{seq, w.row.subject(), data})
		w.l.feed(w.row.gen, w.row.part).put(s)
		return s.Position, nil
	}
}

// move goes over to the next generation, unless another owner continued the row before the seal.
func (w *writer) move(ctx context.Context) error {
	var fenced error
	err := w.l.b.patiently(ctx, w.row.patience, func(ctx context.Context) error {
		g, err := w.l.after(ctx, w.row.gen)
		if err != nil {
			return err
		}
		if err := w.row.checkLeft(ctx); final(err) {
			fenced = err
			return nil
		} else if err != nil {
			return err
		}
		w.row.enter(g.Number, bus.PartitionOf(w.row.name, len(g.Trimmed)))
		return nil
	})
	switch {
	case fenced != nil:
		return fenced
	case w.l.b.ctx.Err() != nil:
		return bus.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return message.Reject(message.BusUnavailable, err)
	}
	return nil
}

// MaxBatch is the largest batch the server takes; subject and headers come on top of it.
func (w *writer) MaxBatch() int { return w.l.b.maxBatch() - 4096 }

// Close lets go; nothing is pending.
func (w *writer) Close() error { return nil }

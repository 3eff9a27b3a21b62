package mem

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Writer as in [bus.Log]. Its row is in the partition of its name, whatever the keys of the messages: a row is one
// chain, and a chain has one end.
func (l *logHandle) Writer(ctx context.Context, o bus.WriterOptions) (bus.Writer, error) {
	if o.Standing == nil {
		o.Standing = func() bool { return false }
	}
	r, err := newRow(l, o.Name, o.Owner, o.Standing, o.Patience)
	if err != nil {
		return nil, err
	}
	w := &writer{row: r}
	if _, _, err := w.Last(ctx); err != nil {
		return nil, fmt.Errorf("open writer %s of log %s: %w", o.Name, l.d.name, err)
	}
	return w, nil
}

// writer writes one batch at a time.
type writer struct {
	row
	place place
}

// Last as in [bus.Writer]. Writing goes on behind what it saw.
func (w *writer) Last(ctx context.Context) (message.Header, bool, error) {
	if err := w.b.enter(ctx); err != nil {
		return message.Header{}, false, fmt.Errorf("last batch of row %s of log %s: %w", w.name, w.d.name, err)
	}
	defer w.b.e.mu.Unlock()
	g := w.d.newest()
	w.place = placeOf(w.name, g, bus.PartitionOf(w.name, len(g.parts)))
	h, ok := w.d.lastOf(w.name, g, w.place.partition)
	h.Mark = bytes.Clone(h.Mark)
	return h, ok, nil
}

func (w *writer) Write(ctx context.Context, source bus.Position, mark []byte, messages []*message.Message) (bus.Position, error) {
	var b message.Builder
	b.Reset(message.Header{Derived: true, Source: source.Origin(), Mark: mark}, message.Room(mark, messages))
	for _, m := range messages {
		b.Add(m)
	}
	if b.Len() > w.MaxBatch() {
		return bus.Position{}, message.Rejectf(message.MessageTooLarge, "a batch of %d messages takes %d bytes, and the log %s takes up to %d",
			len(messages), b.Len(), w.d.name, w.MaxBatch())
	}
	for {
		at, err := w.write(ctx, &w.place, &b)
		if errors.Is(err, errSealed) {
			g := w.next(w.place.gen)
			w.place = place{gen: g, partition: bus.PartitionOf(w.name, len(g.parts)), number: 1}
			continue
		}
		return at, err
	}
}

func (w *writer) MaxBatch() int { return w.b.e.maxBatch }

func (w *writer) Close() error { return nil }

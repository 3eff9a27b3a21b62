package mem

import (
	"bytes"
	"context"
	"fmt"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Fence as in [bus.Log].
func (l *logHandle) Fence(ctx context.Context, name string, owner message.ID) (list []bus.Position, err error) {
	if !word(name) || owner.IsZero() {
		return nil, fmt.Errorf("fence row %q of log %s: want one word of letters, digits, - and _, and an owner", name, l.d.name)
	}
	if err := l.b.enter(ctx); err != nil {
		return nil, fmt.Errorf("fence row %s of log %s: %w", name, l.d.name, err)
	}
	defer l.b.e.mu.Unlock()
	g := l.d.newest()
	for i := range g.parts {
		h, _ := l.d.lastOf(name, g, uint32(i))
		pl := placeOf(name, g, uint32(i))
		var b message.Builder
		b.Reset(message.Header{Derived: h.Derived, Source: h.Source, Mark: h.Mark}, 0)
		list = append(list, l.d.store(g, uint32(i), name, bytes.Clone(b.Seal(pl.number, pl.running, pl.sum, owner))))
	}
	return list, nil
}

// lastOf is the row's newest header in a partition; in that of a writer's row also from earlier generations.
func (d *logData) lastOf(name string, g *generation, partition uint32) (message.Header, bool) {
	if h, ok := g.parts[partition].rows[name]; ok || partition != bus.PartitionOf(name, len(g.parts)) {
		return h.header, ok
	}
	for i := len(d.gens) - 1; i >= 0; i-- {
		parts := d.gens[i].parts
		if h, ok := parts[bus.PartitionOf(name, len(parts))].rows[name]; ok {
			return h.header, true
		}
	}
	return message.Header{}, false
}

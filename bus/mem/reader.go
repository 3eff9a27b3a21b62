package mem

import (
	"context"
	"fmt"
	"sync"

	"github.com/naru-platform/naru/bus"
)

// Reader as in [bus.Log].
func (l *logHandle) Reader(ctx context.Context, from bus.Position) (bus.Reader, error) {
	if err := l.b.enter(ctx); err != nil {
		return nil, fmt.Errorf("read %s: %w", l.place(from), err)
	}
	defer l.b.e.mu.Unlock()
	if int(from.Generation) > len(l.d.gens) {
		return nil, fmt.Errorf("read %s: %w; its newest generation is %d", l.place(from), bus.ErrTruncated, len(l.d.gens))
	}
	g, p, err := l.d.find(from)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", l.place(from), err)
	case from.Sequence == 0:
		from.Sequence = p.first - 1
	case from.Sequence > p.last:
		return nil, fmt.Errorf("read %s: %w, at %d", l.place(from), bus.ErrTruncated, p.last)
	case from.Sequence+1 < p.first:
		return nil, fmt.Errorf("read %s: %w, at %d", l.place(from), bus.ErrPurged, p.first)
	}
	return &reader{l: l, at: from, gen: g, part: p, closed: make(chan struct{})}, nil
}

// reader walks along one partition.
type reader struct {
	l      *logHandle
	at     bus.Position // what was given last
	gen    *generation
	part   *partition
	closed chan struct{}
	once   sync.Once
}

func (r *reader) Close() { r.once.Do(func() { close(r.closed) }) }

func (r *reader) Next(ctx context.Context) (bus.Stored, error) {
	for {
		if err := ctx.Err(); err != nil {
			return bus.Stored{}, err
		}
		s, bell, err := r.look()
		if bell == nil {
			return s, err
		}
		select {
		case <-bell:
		case <-ctx.Done():
			return bus.Stored{}, ctx.Err()
		case <-r.closed:
		case <-r.l.b.closed:
		}
	}
}

// look gives what comes next, or the bell to wait for.
func (r *reader) look() (bus.Stored, <-chan struct{}, error) {
	select {
	case <-r.closed:
		return bus.Stored{}, nil, r.fail(bus.ErrClosed)
	case <-r.l.b.closed:
		return bus.Stored{}, nil, r.fail(bus.ErrClosed)
	default:
	}
	e := r.l.b.e
	e.mu.Lock()
	defer e.mu.Unlock()
	p, next := r.part, r.at.Sequence+1
	switch {
	case e.down:
		return bus.Stored{}, e.up.heard(), nil
	case next < p.first:
		return bus.Stored{}, nil, r.fail(fmt.Errorf("%w, at %d", bus.ErrPurged, p.first))
	case next <= p.last:
		r.at.Sequence = next
		return p.batches[next].stored, nil, nil
	case r.gen.sealed:
		return bus.Stored{}, nil, r.fail(bus.ErrSealed)
	}
	return bus.Stored{}, r.l.d.changed.heard(), nil
}

func (r *reader) fail(err error) error {
	return fmt.Errorf("read on behind %s: %w", r.l.place(r.at), err)
}

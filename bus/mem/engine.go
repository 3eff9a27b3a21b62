package mem

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
)

// engine is the data and its faults; it outlives the handles.
type engine struct {
	now      func() time.Time
	log      *slog.Logger
	maxBatch int

	mu       sync.Mutex // guards everything below and everything reachable from it
	handles  int
	down     bool
	since    time.Time
	up       bell // rung when the engine comes back
	space    bus.Space
	loseAcks int
	latency  time.Duration
	logs     map[string]*logData
	queues   map[string]*queueData
	tables   map[string]*tableData
	leases   map[string]leaseData
	answers  map[string][]*answerer
}

func (e *engine) open() *Bus {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handles++
	return &Bus{e: e, closed: make(chan struct{})}
}

// let notes that a handle was closed; with the last one the engine has stopped.
func (e *engine) let() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.handles--; e.handles > 0 {
		return
	}
	for _, t := range e.tables {
		if t.volatile {
			t.clear()
		}
	}
}

// enter gives the engine's lock, once the engine is up. The caller unlocks it, unless there is an error.
func (b *Bus) enter(ctx context.Context) error {
	e := b.e
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if b.isClosed() {
			return bus.ErrClosed
		}
		e.mu.Lock()
		if !e.down {
			return nil
		}
		back := e.up.heard()
		e.mu.Unlock()
		if err := b.wait(ctx, back); err != nil {
			return err
		}
	}
}

// wait returns at the bell, or with the reason why there is nothing to wait for any more.
func (b *Bus) wait(ctx context.Context, bell <-chan struct{}) error {
	select {
	case <-bell:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-b.closed:
		return bus.ErrClosed
	}
}

// timer fires at a time of the injected clock, or before.
func (b *Bus) timer(at time.Time) *time.Timer {
	// A clock that a test has stopped would make the timer fire again and again: never faster than this.
	const pace = time.Millisecond
	return time.NewTimer(max(pace, at.Sub(b.e.now())))
}

func (b *Bus) isClosed() bool {
	select {
	case <-b.closed:
		return true
	default:
		return false
	}
}

// bell wakes all who wait. The engine's lock guards it.
type bell struct{ c chan struct{} }

// heard is closed at the next ring.
func (b *bell) heard() <-chan struct{} {
	if b.c == nil {
		b.c = make(chan struct{})
	}
	return b.c
}

func (b *bell) ring() {
	if b.c != nil {
		close(b.c)
		b.c = nil
	}
}

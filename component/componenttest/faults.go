package componenttest

import (
	"context"
	"sync"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// faults are ordered by a test and met by the writers of outboxes.
type faults struct {
	mu    sync.Mutex
	left  int
	after bool
	met   int
}

func (f *faults) order(n int, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.after = n, after
}

func (f *faults) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.met
}

// next takes one of the ordered faults.
func (f *faults) next() (fails, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left == 0 {
		return false, false
	}
	f.left--
	f.met++
	return true, f.after
}

// faulty is a bus whose writers fail when they are told to. The error is one that ends the component, so what it had in
// memory is gone and it begins with what it committed, as after the death of its process.
type faulty struct {
	bus.Bus
	f *faults
}

// Log opens a log whose writers fail.
func (b faulty) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	l, err := b.Bus.Log(ctx, name, o)
	return faultyLog{l, b.f}, err
}

type faultyLog struct {
	bus.Log
	f *faults
}

// Writer opens a writer that fails.
func (l faultyLog) Writer(ctx context.Context, o bus.WriterOptions) (bus.Writer, error) {
	w, err := l.Log.Writer(ctx, o)
	return faultyWriter{w, l.f}, err
}

type faultyWriter struct {
	bus.Writer
	f *faults
}

// Write writes, or fails before or after it has.
func (w faultyWriter) Write(ctx context.Context, source bus.Position, mark []byte, messages []*message.Message) (bus.Position, error) {
	fails, after := w.f.next()
	if fails && !after {
		return bus.Position{}, bus.ErrClosed
	}
	p, err := w.Writer.Write(ctx, source, mark, messages)
	if fails && err == nil {
		return bus.Position{}, bus.ErrClosed
	}
	return p, err
}

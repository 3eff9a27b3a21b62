package mem

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/naru-platform/naru/bus"
)

// answerer is one who answers on a name.
type answerer struct {
	ctx   context.Context
	f     func(context.Context, []byte) []byte
	group sync.WaitGroup
}

// Answer as in [bus.Bus].
func (b *Bus) Answer(ctx context.Context, name string, f func(context.Context, []byte) []byte, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := &answerer{ctx: ctx, f: f}
	if err := b.enter(ctx); err != nil {
		return fmt.Errorf("answer on %s: %w", name, err)
	}
	b.e.answers[name] = append(b.e.answers[name], a)
	b.e.mu.Unlock()
	ready()
	var err error
	select {
	case <-ctx.Done():
	case <-b.closed:
		err = bus.ErrClosed
	}
	b.e.mu.Lock()
	b.e.answers[name] = slices.DeleteFunc(b.e.answers[name], func(x *answerer) bool { return x == a })
	b.e.mu.Unlock()
	cancel()
	a.group.Wait()
	return err
}

// Ask as in [bus.Bus]. Those who answer on a name have their turns.
func (b *Bus) Ask(ctx context.Context, name string, question []byte) ([]byte, error) {
	if err := b.enter(ctx); err != nil {
		return nil, fmt.Errorf("ask %s: %w", name, err)
	}
	list := b.e.answers[name]
	if len(list) == 0 {
		b.e.mu.Unlock()
		return nil, fmt.Errorf("ask %s: %w", name, bus.ErrNobody)
	}
	a := list[0]
	b.e.answers[name] = append(slices.Clone(list[1:]), a)
	answer := make(chan []byte, 1)
	a.group.Add(1)
	b.e.mu.Unlock()
	go func() {
		defer a.group.Done()
		answer <- slices.Clone(a.f(a.ctx, slices.Clone(question)))
	}()
	select {
	case got := <-answer:
		return got, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("ask %s: %w", name, ctx.Err())
	case <-b.closed:
		return nil, bus.ErrClosed
	}
}

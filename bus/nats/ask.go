package nats

import (
	"context"
	"fmt"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/nats/ask"
)

const answersMax = 1024 // at once of one name; beyond it questions wait in the connection

// Ask as in [bus.Bus].
func (b *Bus) Ask(ctx context.Context, name string, question []byte) ([]byte, error) {
	a, err := ask.Over(ctx, *b.connected.Load(), b.request, name, question)
	if err != nil {
		return nil, b.closed(err)
	}
	return a, nil
}

// Answer as in [bus.Bus].
func (b *Bus) Answer(ctx context.Context, name string, f func(ctx context.Context, question []byte) []byte, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	var group sync.WaitGroup
	defer group.Wait()
	room := make(chan struct{}, answersMax)
	s, err := b.nc.QueueSubscribe(ask.Subject(name), "naru", func(m *natsgo.Msg) {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return
		}
		group.Go(func() {
			defer func() { <-room }()
			if err := m.Respond(f(ctx, m.Data)); err != nil && ctx.Err() == nil {
				b.log.Warn("answer a question", "name", name, "error", err)
			}
		})
	})
	if err != nil {
		return fmt.Errorf("answer on %s: %w", name, b.closed(err))
	}
	ended := make(chan struct{})
	s.SetClosedHandler(func(string) { close(ended) })
	for ctx.Err() == nil {
		try, done := context.WithTimeout(ctx, requestWait)
		err := b.nc.FlushWithContext(try)
		done()
		if err == nil { // the server knows of it
			ready()
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(jitter(100 * time.Millisecond)): // it is away; the connection subscribes again by itself
		}
	}
	<-ctx.Done()
	if s.Unsubscribe() == nil {
		<-ended // so that no more is begun
	}
	if b.ctx.Err() != nil {
		return bus.ErrClosed
	}
	return nil
}

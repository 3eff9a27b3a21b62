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
	take := func(m *natsgo.Msg) {
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
	}
	for first := true; ctx.Err() == nil; first = false { // once for each connection
		l := b.link.Load()
		s, err := l.nc.QueueSubscribe(ask.Subject(name), "naru", take)
		if err != nil && first && !l.nc.IsClosed() {
			return fmt.Errorf("answer on %s: %w", name, b.closed(err))
		}
		if err != nil {
			pause(ctx, answerAgain) // until there is another
			continue
		}
		ended := make(chan struct{})
		s.SetClosedHandler(func(string) { close(ended) })
		if b.heard(ctx, l) && ready != nil {
			ready()
			ready = nil
		}
		select {
		case <-ctx.Done():
			if s.Unsubscribe() == nil {
				<-ended // so that no more is begun
			}
		case <-l.over:
		}
	}
	if b.ctx.Err() != nil {
		return bus.ErrClosed
	}
	return nil
}

// heard waits until the server knows what was subscribed to; false where ctx or the connection ends before. A connection that
// breaks subscribes again by itself.
func (b *Bus) heard(ctx context.Context, l *link) bool {
	for ctx.Err() == nil && !l.nc.IsClosed() {
		try, done := context.WithTimeout(ctx, requestWait)
		err := l.nc.FlushWithContext(try)
		done()
		if err == nil {
			return true
		}
		pause(ctx, answerAgain)
	}
	return false
}

const answerAgain = 100 * time.Millisecond

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(jitter(d)):
	}
}

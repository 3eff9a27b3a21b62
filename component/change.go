// Changes from outside the handlers.

package component

import (
	"context"

	"github.com/naru-platform/naru/internal/answer"
)

// change is one from outside the handlers.
type change struct {
	f    func(Tx) error
	ran  chan struct{} // closed when f has returned
	done chan error    // holds one
}

// makeChange makes a change, and says so when it is committed.
func (w *worker) makeChange(ctx context.Context, c change) error {
	w.begun()
	w.tx.reset(nil)
	err := w.guard(func() error { return c.f(w.tx) })
	close(c.ran)
	if err != nil {
		c.done <- err
		return nil
	}
	if err := w.keepEffects(ctx, w.tx, nil); err != nil {
		return err
	}
	w.pendingMessages++
	w.after = append(w.after, func(context.Context) { c.done <- nil })
	return nil
}

// change has a change made, and waits until it is committed.
func (w *worker) change(ctx context.Context, f func(Tx) error) error {
	c := change{f, make(chan struct{}), make(chan error, 1)}
	gone := answer.Unavailable("%s is stopping", w.env.Spec.Name)
	select {
	case w.changes <- c:
	case <-w.over:
		return gone
	case <-ctx.Done():
		return ctx.Err()
	}
	<-c.ran // it is at work from here on, with what its caller has given it
	select {
	case err := <-c.done:
		return err
	case <-w.over:
		select {
		case err := <-c.done:
			return err
		default:
			return gone
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Messages of the queue.

package component

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// take decides the fate of a queued message. Its outcome is recorded under its id in the commit that carries its
// effects, and only then is the queue answered; so a redelivery does nothing.
func (w *worker) take(ctx context.Context, d bus.Delivery) error {
	if w.store == nil {
		return w.retake(ctx, d)
	}
	m := d.Message()
	w.pendingMessages++
	seen, err := get(w.store.batch, outcomeKey(m.ID))
	if err != nil {
		return err
	}
	answer := func(f func(context.Context) error) {
		w.after = append(w.after, func(ctx context.Context) {
			if err := f(ctx); err != nil {
				w.env.Log.Debug("answer the queue; the message comes again and is then only answered", "id", m.ID, "error", err)
			}
		})
	}
	if seen != nil {
		answer(d.Ack)
		return nil
	}
	if w.env.Spec.takesBack() && m.Subject == operator.RetrySubject(w.env.Spec.Name) {
		if err := w.takeBack(ctx, m); err != nil {
			return err
		}
		answer(d.Ack)
		return w.store.set(outcomeKey(m.ID), beAppend(uint64(w.env.Now().UnixNano())))
	}
	w.tx.reset(m)
	var result error
	if m.Expired(w.env.Now()) {
		result = message.Rejectf(message.Expired, "it lost its worth at %s, attempt %d", m.Expires.UTC().Format(time.RFC3339Nano), d.Attempt())
	} else {
		began := time.Now()
		result = w.guard(func() error { return w.part.Take(ctx, w.tx, m, d.Attempt()) })
		w.metrics.handled(time.Since(began))
	}
	finish := d.Ack
	switch {
	case result == nil, errors.Is(result, ErrNotMatched):
		if err := w.tx.apply(); err != nil {
			return err
		}
		w.metrics.messages(CommandQueue, map[bool]string{true: Handled, false: NotMatched}[result == nil], 1)
	case ctx.Err() != nil:
		return ctx.Err()
	case !retryable(result), d.Attempt() >= w.retry.Attempts:
		reason := message.ReasonOf(result, message.RetriesExhausted)
		if err := w.die(ctx, nil, place{log: "queue"}, bus.Position{}, m, d.Attempt(), reason, result, m.Recorded(), letter{}); err != nil {
			return err
		}
		w.metrics.messages(CommandQueue, Dead, 1)
		finish = d.Drop
	default:
		w.metrics.retried(message.ReasonOf(result, message.HandlerError))
		delay := w.retry.delay(d.Attempt())
		answer(func(ctx context.Context) error { return d.Retry(ctx, delay) })
		return nil
	}
	answer(finish)
	return w.store.set(outcomeKey(m.ID), beAppend(uint64(w.env.Now().UnixNano())))
}

// untilSweep is how long until outcomes of queued messages are to be forgotten; with State Derived there are none.
func (w *worker) untilSweep() time.Duration {
	if w.store == nil {
		return sweepEvery
	}
	return max(sweepEvery-w.env.Now().Sub(w.swept), 0)
}

// sweep forgets the outcomes of queued messages that cannot come again any more.
func (w *worker) sweep() error {
	w.swept = w.env.Now()
	before := uint64(w.env.Now().Add(-outcomeKept).UnixNano())
	var old [][]byte
	err := walk(w.store.db, []byte{kindOutcome}, []byte{kindOutcome + 1}, false, func(k, v []byte) bool {
		if len(v) == 8 && beUint64(v) < before {
			old = append(old, slices.Clone(k))
		}
		return true
	})
	for _, k := range old {
		err = errors.Join(err, w.store.delete(k))
	}
	return err
}

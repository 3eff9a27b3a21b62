package component

import (
	"context"
	"fmt"
	"time"
)

// hold keeps a partition back that cannot go on, so that the others do: a batch of it fails, or too many of its messages
// are parked. What its reader has handed over waits in order; the reader itself waits at the gate.
type hold struct {
	queue   []event
	gate    chan struct{} // closed when the partition goes on
	attempt int           // of the first in the queue, where it is a batch that fails
	next    time.Time     // when it is tried again; zero where it waits until less is parked
}

// hold begins or prolongs a hold with the event that cannot be dealt with, which is the first in the queue.
func (w *worker) hold(e event, attempt int, next time.Time) {
	h := w.holds[e.at]
	if h == nil {
		h = &hold{queue: []event{e}, gate: make(chan struct{})}
		w.holds[e.at] = h
		w.mu.Lock()
		w.gates[e.at] = h.gate
		w.mu.Unlock()
	}
	h.attempt, h.next = attempt, next
}

// free waits until a partition is not held back, for its reader; false where ctx ends first.
func (w *worker) free(ctx context.Context, at place) bool {
	w.mu.Lock()
	gate := w.gates[at]
	w.mu.Unlock()
	if gate == nil {
		return true
	}
	select {
	case <-gate:
		return true
	case <-ctx.Done():
		return false
	}
}

// untilHeld is how long until a batch that failed is tried again.
func (w *worker) untilHeld() time.Duration {
	d := sweepEvery
	for _, h := range w.holds {
		if !h.next.IsZero() {
			d = min(d, max(time.Until(h.next), 0))
		}
	}
	return d
}

// goOn has partitions go on that can.
func (w *worker) goOn(ctx context.Context) error {
	for at, h := range w.holds {
		if h.next.IsZero() && w.overfull(at) || time.Now().Before(h.next) {
			continue
		}
		if h.next.IsZero() {
			w.stand(at, "")
		}
		for len(h.queue) > 0 {
			if w.part.HandleAll != nil {
				h.queue = w.regroup(h.queue)
			}
			done, err := w.deal(ctx, h.queue[0], h.attempt)
			if err != nil {
				return err
			}
			if !done {
				break
			}
			h.queue, h.attempt, h.next = h.queue[1:], 0, time.Time{}
		}
		if len(h.queue) > 0 {
			continue
		}
		delete(w.holds, at)
		w.mu.Lock()
		delete(w.gates, at)
		w.mu.Unlock()
		close(h.gate)
	}
	return nil
}

// overfull says whether so many messages of a partition are parked that no more of it are taken. The limit may be passed
// by what is in one batch, since a batch and its position are one.
func (w *worker) overfull(at place) bool {
	return w.caller == nil && w.parked.sum(at).Count >= uint64(w.retry.ParkedMax)
}

// ready says whether a batch may be dealt with now, and else holds its partition back.
func (w *worker) ready(e event) bool {
	if !w.overfull(e.at) {
		return true
	}
	w.stand(e.at, fmt.Sprintf("%d messages are parked and the limit is %d; `naru messages --outcome dead` and the exceptions below tell why", w.parked.sum(e.at).Count, w.retry.ParkedMax))
	w.hold(e, 0, time.Time{})
	return false
}

// failed notes that HandleBatch or HandleAll failed, holds the partition back, and says when it is tried again.
func (w *worker) failed(e event, sequence uint64, attempt int, cause error) {
	at := e.at
	w.stand(at, fmt.Sprintf("batch %d, attempt %d: %v", sequence, attempt, cause))
	if attempt == 1 || attempt%10 == 0 {
		w.env.Log.Warn("handle a batch", "log", at.log, "sequence", sequence, "attempt", attempt, "error", cause)
	}
	w.hold(e, attempt, time.Now().Add(w.retry.delay(attempt)))
}

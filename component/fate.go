// A message's fate: its handler's result, tried again, or its death.

package component

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// message decides one fate: by its result where it was handled beside others, else by handling it.
func (w *worker) message(ctx context.Context, c *Checkpoint, at place, p bus.Position, m *message.Message, r *result) error {
	switch {
	case !hears(w.env.Spec.Hears, m.Subject):
		w.count(c, NotHeard, m.ID)
		w.metrics.messages(at.log, NotHeard, 1)
		return nil
	case w.caller != nil:
		w.caller.take(at, p, m)
		return nil
	case w.parked.blocks(at.log, m.Key()):
		return w.park(at, p, m, nil)
	case r != nil && r.tx != nil:
		return w.decide(ctx, c, at, p, m, w.keepEffects(ctx, r.tx, r.err))
	}
	err := w.invoke(ctx, m)
	return w.decide(ctx, c, at, p, m, err)
}

// invoke runs the handler and keeps its effects if it succeeds.
func (w *worker) invoke(ctx context.Context, m *message.Message) error {
	w.tx.reset(m)
	began := time.Now()
	err := w.guard(func() error { return w.part.Handle(ctx, w.tx, m) })
	w.metrics.handled(time.Since(began))
	return w.keepEffects(ctx, w.tx, err)
}

// keepEffects takes what a handler did over into the next commit, if it succeeded.
func (w *worker) keepEffects(ctx context.Context, t *tx, err error) error {
	if t.effective(err) {
		if full := w.makeRoom(ctx, t.bytes); full != nil {
			return full
		}
		if kept := t.apply(); errors.Is(kept, errStateless) {
			return kept
		} else if kept != nil {
			return &broken{kept}
		}
	}
	return err
}

// broken is a failure of the worker's own, no message's.
type broken struct{ err error }

// Error is the failure's own.
func (b *broken) Error() string { return b.err.Error() }

// Unwrap gives the failure.
func (b *broken) Unwrap() error { return b.err }

// retryable says whether a message with this result is to be tried again.
func retryable(err error) bool {
	var reject *message.Rejection
	return err != nil && !errors.Is(err, ErrNotMatched) && (!errors.As(err, &reject) || reject.Reason == message.HandlerPanic)
}

// decide makes a handler's result a fate.
func (w *worker) decide(ctx context.Context, c *Checkpoint, at place, p bus.Position, m *message.Message, err error) error {
	var own *broken
	switch {
	case errors.As(err, &own):
		return own.err
	case err == nil, errors.Is(err, ErrNotMatched):
		outcome := Handled
		if err != nil {
			outcome = NotMatched
		}
		w.count(c, outcome, m.ID)
		w.metrics.messages(at.log, outcome, 1)
		return nil
	case ctx.Err() != nil:
		return ctx.Err() // stopping: it has no fate yet, and the position does not move
	case !retryable(err):
		return w.die(ctx, c, at, p, m, 1, message.ReasonOf(err, message.HandlerError), err, w.env.Now(), letter{})
	}
	return w.park(at, p, m, err)
}

// die writes a dead letter; before is the one that its message was taken back from.
func (w *worker) die(ctx context.Context, c *Checkpoint, at place, p bus.Position, m *message.Message, attempts int, reason message.Reason, cause error, first time.Time, before letter) error {
	d := operator.Dead{Reason: reason, Detail: cut(cause.Error()), Component: w.env.Spec.Name, Attempts: attempts, First: first,
		Last: w.env.Now(), Log: at.log, Position: fmt.Sprintf("%d/%d/%d/%d", p.Generation, p.Partition, p.Sequence, p.Index),
		Original: message.AppendRecord(nil, m), Again: before.id, Job: before.job}
	if strings.HasPrefix(string(m.Subject), "operator.dead.") && m.Depth >= message.DepthMax {
		// Dead letters of dead letters end here, or a component that cannot handle its own would write them for ever.
		w.env.Log.Error("a dead letter died of dead letters; no more is written", "id", m.ID, "reason", reason, "error", cause)
	} else if err := w.sayDead(ctx, m, d); err != nil {
		return err
	}
	if c != nil {
		w.count(c, Dead, m.ID)
		w.metrics.messages(at.log, Dead, 1)
	}
	w.metrics.died(reason, 1)
	w.env.Log.Warn("dead letter", "id", m.ID, "trace", m.Trace.ID, "subject", m.Subject, "reason", reason, "error", cause)
	return nil
}

func (w *worker) sayDead(ctx context.Context, m *message.Message, d operator.Dead) error {
	for {
		data, err := json.Marshal(d)
		if err != nil {
			return err
		}
		dead := &message.Message{Subject: operator.DeadSubject(w.env.Spec.Name), ContentType: "application/json", Data: data}
		w.env.Mint(dead)
		if err := dead.Follow(m); err != nil {
			dead.Depth = message.DepthMax // a dead letter is told of, however deep its message was
		}
		s := newSaid(dead)
		if len(s.record) <= w.keep.largest() || m.Data == nil {
			if err := w.makeRoom(ctx, len(s.record)); err != nil {
				return err
			}
			return w.keep.say(s)
		}
		// In JSON the original takes a third more, which may be too much for the bus: the letter says where it is.
		bare := *m
		bare.Data, bare.Properties, bare.Correlation = nil, nil, nil
		d.Detail = fmt.Sprintf("its %d bytes of data are too large for a dead letter, and are in the log at its position only; %s", len(m.Data), d.Detail)
		d.Original, d.Bare, m = message.AppendRecord(nil, &bare), true, &bare
	}
}

// alarm raises an alarm that an operator should look at.
func (w *worker) alarm(reason message.Reason, detail string) error {
	w.env.Log.Error("alarm", "reason", reason, "detail", detail)
	data, err := json.Marshal(operator.Alarm{Name: reason.String(), Since: w.env.Now(), Detail: cut(detail), Look: reason.Info().Look})
	if err != nil {
		return err
	}
	m := &message.Message{Subject: operator.AlarmSubject(reason.String()), ContentType: "application/json", Data: data}
	w.env.Mint(m)
	return w.keep.say(newSaid(m))
}

// guard makes a panic an error.
func (w *worker) guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = message.Rejectf(message.HandlerPanic, "%v\n%s", r, debug.Stack())
		}
	}()
	return f()
}

func maySay(s *Spec, m *message.Message) error {
	if err := m.Valid(); err != nil {
		return message.Reject(message.Undeclared, err)
	}
	if !hears(s.Says, m.Subject) {
		return message.Rejectf(message.Undeclared, "%s does not declare that it says %s", s.Name, m.Subject)
	}
	return nil
}

func (r Retry) withDefaults(s State) Retry {
	if r.First == 0 {
		r.First = 100 * time.Millisecond
	}
	if r.Most == 0 {
		r.Most = time.Minute
	}
	if r.Attempts == 0 {
		r.Attempts = 8
	}
	if r.ParkedMax == 0 {
		r.ParkedMax = 10_000
		if s == Derived {
			r.ParkedMax = 2_000
		}
	}
	return r
}

// delay is how long to wait after so many attempts, with a fifth of jitter.
func (r Retry) delay(attempts int) time.Duration {
	d := r.First
	for range attempts - 1 {
		if d = 2 * d; d >= r.Most {
			d = r.Most
			break
		}
	}
	return d - d/10 + rand.N(d/5+1)
}

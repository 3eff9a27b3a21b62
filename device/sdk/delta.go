package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// watch is what OnDelta has set up. A delta says all that differs, so that only the newest one waits.
type watch struct {
	handle func(context.Context, Delta) (any, error)
	wake   chan struct{}

	// c.mu guards what follows.
	newest  *Delta
	version uint64 // of the newest delta there was
	at      time.Time
	stop    context.CancelFunc // ends the asking that is under way
}

// OnDelta calls f with all that is desired and not reported: now, when that changes, and when the platform has forgotten
// the session. What f gives, if it is not nil, is reported under the delta's trace: what the device has taken over, and
// has become. f is called for one delta at a time, the newest; those that came meanwhile are left out, since each says all.
// If f fails, nothing is reported, the difference stays, and f hears of it with the next delta.
//
// It returns when the platform has agreed. There is one f for a twin; a second call is refused.
func (t *Twin) OnDelta(ctx context.Context, f func(ctx context.Context, d Delta) (reported any, err error)) error {
	failed := func(err error) error { return fmt.Errorf("watch %s: %w", t.called(), err) }
	c := t.c
	w := &watch{handle: f, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	there := t.watch != nil
	if !there {
		t.watch = w
	}
	c.mu.Unlock()
	if there {
		return failed(errors.New("it is watched already"))
	}
	giveUp := func(err error) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		t.watch = nil
		return failed(err)
	}
	if err := t.hear(ctx); err != nil {
		return giveUp(err)
	}
	if err := c.subscribe(ctx, &subscription{filter: t.prefix + "update/delta", now: true, handle: t.delta}); err != nil {
		return giveUp(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return failed(ErrClosed)
	}
	c.all.Go(func() { t.follow(w) })
	t.look()
	return nil
}

// delta hears one.
func (t *Twin) delta(_ context.Context, m Message) {
	var d struct {
		Version   uint64
		Timestamp int64
		State     json.RawMessage
	}
	if err := json.Unmarshal(m.Data, &d); err != nil {
		t.c.o.Log.Warn("a delta cannot be read", "device", t.c.o.Device, "topic", m.Topic, "error", err)
		return
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.note(Delta{d.Version, time.Unix(d.Timestamp, 0), d.State, m.Trace})
}

// note keeps a delta that is newer than what there was; c.mu is held. Of the same version it may come twice. A twin that
// was deleted begins again at 1 after two days: then it is later.
func (t *Twin) note(d Delta) {
	w := t.watch
	if w == nil || d.Version <= w.version && !d.At.After(w.at) {
		return
	}
	w.version, w.at, w.newest = d.Version, d.At, &d
	w.rouse()
}

func (w *watch) rouse() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// look asks for what differs by now, in place of asking that is under way; c.mu is held.
func (t *Twin) look() {
	w, c := t.watch, t.c
	if w == nil || c.closed {
		return
	}
	if w.stop != nil {
		w.stop()
	}
	ctx, stop := context.WithCancel(c.ctx)
	w.stop = stop
	c.all.Go(func() {
		defer stop()
		for patience := lookPatience; ctx.Err() == nil; patience = min(2*patience, time.Hour) {
			d, err := t.getWithin(ctx, patience)
			switch no := (*TwinError)(nil); {
			case ctx.Err() != nil:
				return
			case err == nil && len(d.Delta) > 0:
				c.mu.Lock()
				t.note(Delta{Version: d.Version, At: d.At, State: d.Delta})
				c.mu.Unlock()
				return
			case err == nil, errors.As(err, &no) && no.Code == 404: // there is none yet
				return
			}
			c.o.Log.Warn("what the device should be is not known; asking again", "device", c.o.Device, "twin", t.name, "error", err)
			if !errors.Is(err, context.DeadlineExceeded) {
				return // a refusal, which asking does not change
			}
		}
	})
}

// lookPatience is how long an answer may take before it is asked for again; twice as long after each time.
const lookPatience = time.Minute

func (t *Twin) getWithin(ctx context.Context, patience time.Duration) (TwinDocument, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return t.Get(ctx)
}

// follow hands deltas to the handler until the client is closed.
func (t *Twin) follow(w *watch) {
	c := t.c
	for {
		select {
		case <-w.wake:
		case <-c.ctx.Done():
			return
		}
		c.mu.Lock()
		d := w.newest
		w.newest = nil
		c.mu.Unlock()
		if d == nil {
			continue
		}
		reported, err := guard(c.ctx, w.handle, *d)
		if err == nil && reported != nil {
			_, err = t.update(c.ctx, TwinUpdate{Reported: reported}, d.Trace)
		}
		if err != nil && c.ctx.Err() == nil {
			c.o.Log.Error("what the device should be was not taken over", "device", c.o.Device, "twin", t.name, "version", d.Version, "error", err)
		}
	}
}

func guard(ctx context.Context, f func(context.Context, Delta) (any, error), d Delta) (reported any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f(ctx, d)
}

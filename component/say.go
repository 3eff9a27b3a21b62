package component

import (
	"context"
	"sync"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// mint completes a message.
func (r *run) mint(m *message.Message) {
	now := r.h.Now()
	if m.ID.IsZero() {
		m.ID = message.NewID(now)
	}
	if m.Trace.ID.IsZero() {
		m.Trace = message.NewTrace(now)
	} else {
		m.Trace.Span = message.NewSpan()
	}
	r.describe(m)
}

// describe fills in source and type.
func (r *run) describe(m *message.Message) {
	if m.Source == "" {
		m.Source = r.source
	}
	if m.Type == "" {
		if k := r.h.Catalog.Find(m.Subject); k != nil {
			m.Type = k.Type
		}
	}
}

// say appends one message and waits for it.
func (r *run) say(ctx context.Context, m *message.Message) error {
	r.mint(m)
	if err := maySay(&r.spec, m); err != nil {
		return err
	}
	if err := r.h.checker.Check(m); err != nil {
		return err
	}
	if k := r.h.Catalog.Find(m.Subject); k != nil && k.Route == message.ByQueue {
		q, err := r.h.Bus.Queue(ctx, CommandQueue)
		if err != nil {
			return err
		}
		return q.Put(ctx, m, false)
	}
	a, err := r.appender(ctx, m.Subject.Namespace(), false)
	if err != nil {
		return err
	}
	_, err = bus.AppendSync(ctx, a, m)
	return err
}

// door opens an appender for what comes from outside.
func (r *run) door(ctx context.Context, log string) (bus.Appender, error) {
	a, err := r.appender(ctx, log, true)
	if err != nil {
		return nil, err
	}
	return declared{a, r}, nil
}

// appender opens one appender per log, for the door and for what the component says itself.
func (r *run) appender(ctx context.Context, log string, door bool) (bus.Appender, error) {
	kind, row := "say ", rowName(append(r.spec.rows(), r.h.Node, "say")...)
	if door {
		kind, row = "door ", rowName(append(r.spec.rows(), r.h.Node)...)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.doors[kind+log]; a != nil {
		return a, nil
	}
	l, err := r.h.Bus.Log(ctx, log, bus.LogOptions{})
	if err != nil {
		return nil, err
	}
	a, err := l.Appender(ctx, bus.AppenderOptions{Name: row, Owner: r.h.owner, Door: door, Standing: r.held})
	if err != nil {
		return nil, err
	}
	r.doors[kind+log] = a
	return a, nil
}

// closeDoors waits for what is pending.
func (r *run) closeDoors() {
	r.mu.Lock()
	doors := r.doors
	r.doors = map[string]bus.Appender{}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), stopWait/2)
	defer cancel()
	var group sync.WaitGroup
	for name, a := range doors {
		group.Go(func() {
			if err := a.Close(ctx); err != nil {
				r.env.Log.Warn("close a door", "door", name, "error", err)
			}
		})
	}
	group.Wait()
}

// declared refuses what the component does not declare to say, and what breaks its contract.
type declared struct {
	bus.Appender
	r *run
}

// Append checks, fills in source and type where they are missing, then appends.
func (d declared) Append(ctx context.Context, m *message.Message, to bus.Completion, token uint64) error {
	if !hears(d.r.spec.Says, m.Subject) {
		return message.Rejectf(message.Undeclared, "%s does not declare that it says %s", d.r.spec.Name, m.Subject)
	}
	if err := d.r.h.checker.Check(m); err != nil {
		return err
	}
	d.r.describe(m)
	return d.Appender.Append(ctx, m, to, token)
}

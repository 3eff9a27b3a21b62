package component

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/answer"
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
	if err := maySay(r.spec, m); err != nil {
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

// router joins the routes of the components that run; they come and go.
type router struct {
	allowed func(*http.Request) bool

	mu  sync.RWMutex
	all map[string][]Route
	mux *http.ServeMux
}

func newRouter() *router { return &router{all: map[string][]Route{}, mux: http.NewServeMux()} }

// mount adds a component's routes. Those that are malformed, or already another's, are an error, and change nothing.
func (t *router) mount(name string, routes []Route, log *slog.Logger) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	caught := slices.Clone(routes)
	for i := range caught {
		caught[i].Handler = recovering(caught[i].Handler, log)
	}
	t.all[name] = caught
	if err := t.rebuild(); err != nil {
		delete(t.all, name)
		return fmt.Errorf("routes of %s: %w", name, err)
	}
	return nil
}

// recovering answers for a handler that panics.
func recovering(h http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p)
			default:
				log.Error("answer a request", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				answer.Error(w, fmt.Errorf("a bug, told in the log of %s", r.Pattern))
			}
		}()
		h.ServeHTTP(w, r)
	})
}

func (t *router) unmount(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, name)
	_ = t.rebuild() // what remains was there before
}

func (t *router) rebuild() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p) // how ServeMux says that a pattern is malformed, or taken
		}
	}()
	mux := http.NewServeMux()
	for _, routes := range t.all {
		for _, r := range routes {
			h := r.Handler
			if !r.Public {
				h = t.guarded(h)
			}
			mux.Handle(r.Pattern, h)
		}
	}
	t.mux = mux
	return nil
}

func (t *router) guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if t.allowed != nil && !t.allowed(r) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="naru"`)
			answer.Error(w, &answer.Problem{Status: http.StatusUnauthorized, Title: "Unauthorized",
				Detail: "a token is wanted: Authorization: Bearer …; `naru up` writes it to naru.json in its data directory",
				Reason: message.TokenInvalid.String(), Code: message.TokenInvalid.Code()})
			return
		}
		h.ServeHTTP(w, r)
	})
}

// ServeHTTP answers with the component that has the route.
func (t *router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t.mu.RLock()
	mux := t.mux
	t.mu.RUnlock()
	mux.ServeHTTP(w, r)
}

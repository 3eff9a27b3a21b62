package component

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
)

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

package rule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/internal/answer"
)

func (e *Engine) routes() []component.Route {
	return []component.Route{
		{Pattern: "GET /api/v1/rules", Handler: answer.Func(e.serveList)},
		{Pattern: "GET /api/v1/rules/{name}", Handler: answer.Func(e.serveRule)},
		{Pattern: "PUT /api/v1/rules/{name}", Handler: answer.Func(e.servePut)},
		{Pattern: "DELETE /api/v1/rules/{name}", Handler: e.serveChange(func(*http.Request) (changing, error) { return remove, nil })},
		{Pattern: "POST /api/v1/rules/{name}/enable", Handler: e.serveChange(func(*http.Request) (changing, error) { return turn(true), nil })},
		{Pattern: "POST /api/v1/rules/{name}/disable", Handler: e.serveChange(func(*http.Request) (changing, error) { return turn(false), nil })},
		{Pattern: "POST /api/v1/rules/{name}/rollback", Handler: e.serveChange(func(r *http.Request) (changing, error) {
			n, err := versionOf(r)
			return rollBack(n), err
		})},
		{Pattern: "GET /api/v1/rules/{name}/history", Handler: answer.Func(e.serveHistory)},
		{Pattern: "GET /api/v1/rules/{name}/explain", Handler: answer.Func(e.serveExplain)},
		{Pattern: "POST /api/v1/rules/{name}/backtest", Handler: answer.Func(e.serveBacktest)},
		{Pattern: "PUT /api/v1/rules/{name}/shadow", Handler: answer.Func(e.serveTry)},
		{Pattern: "DELETE /api/v1/rules/{name}/shadow", Handler: e.serveBeside(stopTrial)},
		{Pattern: "POST /api/v1/rules/{name}/shadow/promote", Handler: e.serveChange(func(*http.Request) (changing, error) { return promote, nil })},
	}
}

type changing = func(h *Head, v *Version) (string, error)

// Shown is a rule as it is listed.
type Shown struct {
	Name     string `json:"name"`
	Version  int    `json:"version"`
	Revision uint64 `json:"revision"` // for If-Match
	Enabled  bool   `json:"enabled"`
	Deleted  bool   `json:"deleted,omitempty"`
	File     string `json:"file,omitempty"`
	Fault    string `json:"fault,omitempty"` // why the version does not run; the one before goes on
	// Document is the rule as it was given. In lists it is there too: there is no other place that says what a rule does.
	Document *Document `json:"document,omitempty"`
	Warnings []string  `json:"warnings,omitempty"`
	// Extensions are what the SQL has that AWS IoT has not.
	Extensions []string `json:"extensions,omitempty"`
	// Counts are of the process that answers, since it started.
	Counts Counts `json:"counts"`
	// Trial is the version in shadow mode, with how it does beside the one that runs.
	Trial *ShownTrial `json:"shadow_mode,omitempty"`
}

// list gives the rules by name, as they are now.
func (b *book) list() []*kept {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]*kept, 0, len(b.heads))
	for _, k := range b.heads {
		now := *k // its faults change
		list = append(list, &now)
	}
	slices.SortFunc(list, func(x, y *kept) int { return strings.Compare(x.Name, y.Name) })
	return list
}

// show gives a version of a rule, 0 is the current one; whole with what there is to say of it.
func (e *Engine) show(k *kept, number int, whole bool) (Shown, error) {
	s := Shown{Name: k.Name, Version: k.Current, Revision: k.revision, Enabled: k.Enabled, Deleted: k.Deleted, File: k.File, Fault: k.fault, Counts: e.counts.of(k.Name).shown()}
	if number > 0 {
		s.Version = number
	}
	if whole {
		s.Trial = e.book.showTrial(k)
	}
	v := k.version(s.Version)
	if v == nil {
		return s, answer.Missing("version %d of rule %s is not kept; `naru rule history %s` shows those that are", s.Version, k.Name, k.Name)
	}
	e.book.mu.Lock()
	raw := e.book.parts[partKey(k.Name, v)]
	e.book.mu.Unlock()
	if raw == nil {
		return s, nil // on its way
	}
	d, err := Parse(raw)
	if err != nil {
		return s, err
	}
	if s.Document = d; !whole {
		return s, nil
	}
	if r, err := Compile(d, s.Version, e.env.Node); err == nil {
		s.Warnings, s.Extensions = slices.Concat(r.Warnings(), e.cycles(r), e.nowhere(d)), r.Extensions()
	}
	return s, nil
}

// nowhere warns of destinations and workers that nobody has: what is sent to the one is dead, until there is one, and what is
// given to the other nobody does.
func (e *Engine) nowhere(d *Document) (list []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	check := func(known *names.Known, kind, where, name, until string) {
		if strings.Contains(name, "${") {
			return // known with each message
		}
		err := known.Check(ctx, name)
		var unknown *names.Unknown
		switch {
		case errors.Is(err, names.ErrNobody):
			list = append(list, fmt.Sprintf("%s: there is no %s yet; %s", where, kind, until))
		case errors.As(err, &unknown):
			list = append(list, fmt.Sprintf("%s: %v; %s", where, err, until))
		}
	}
	look := func(where string, a *Action) {
		switch {
		case a == nil:
		case a.HTTP != nil:
			check(e.places, "destination", where+".http", a.HTTP.Destination, fmt.Sprintf("what goes to %s dies until `naru destination add %s`", a.HTTP.Destination, a.HTTP.Destination))
		case a.Worker != nil:
			check(e.workers, "worker", where+".worker", a.Worker.Name, fmt.Sprintf("nobody does what is given to %s until `naru worker add %s`", a.Worker.Name, a.Worker.Name))
		}
	}
	for i := range d.Actions {
		look(fmt.Sprintf("actions[%d]", i), &d.Actions[i])
	}
	look("error_action", d.ErrorAction)
	return list
}

func (e *Engine) serveList(_ http.ResponseWriter, _ *http.Request) (any, error) {
	out := struct {
		Rules []Shown `json:"rules"`
	}{[]Shown{}}
	if err := e.known(); err != nil {
		return nil, err
	}
	for _, k := range e.book.list() {
		if k.Deleted {
			continue
		}
		s, err := e.show(k, 0, false)
		if err != nil {
			s.Fault = err.Error()
		}
		out.Rules = append(out.Rules, s)
	}
	return out, nil
}

// known says that the table was read: before that no rule would seem to be there.
func (e *Engine) known() error {
	if e.now.Load() == nil {
		return answer.Unavailable("%s is starting", Name)
	}
	return nil
}

// head gives a rule that is there, or was.
func (e *Engine) head(r *http.Request, deleted bool) (*kept, error) {
	if err := e.known(); err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	e.book.mu.Lock()
	defer e.book.mu.Unlock()
	k := e.book.heads[name]
	if k == nil || k.Deleted && !deleted {
		return nil, missing(name)
	}
	now := *k // its faults change
	return &now, nil
}

func versionOf(r *http.Request) (int, error) {
	s := r.URL.Query().Get("version")
	if s == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, answer.Bad(fmt.Errorf("version=%s: want a number", s))
	}
	return n, nil
}

func (e *Engine) serveRule(w http.ResponseWriter, r *http.Request) (any, error) {
	number, err := versionOf(r)
	if err != nil {
		return nil, err
	}
	k, err := e.head(r, number > 0) // a version of a deleted rule can be looked at
	if err != nil {
		return nil, err
	}
	s, err := e.show(k, number, true)
	if err != nil {
		return nil, err
	}
	w.Header().Set("ETag", strconv.Quote(strconv.FormatUint(k.revision, 10)))
	return s, nil
}

// wants reads who wants a change, why, and of which revision.
func wants(r *http.Request) (a act, err error) {
	q := r.URL.Query()
	if a.by, a.why = q.Get("by"), q.Get("why"); a.by == "" {
		a.by = "operator"
	}
	if len(a.by)+len(a.why) > 1024 {
		return a, answer.Bad(fmt.Errorf("by and why have %d bytes; they may have 1024", len(a.by)+len(a.why)))
	}
	if m := r.Header.Get("If-Match"); m != "" && m != "*" {
		if a.revision, err = strconv.ParseUint(strings.Trim(m, `"`), 10, 64); err != nil || a.revision == 0 {
			return a, answer.Bad(fmt.Errorf("If-Match %s: want the revision that the rule was shown with", m))
		}
	}
	return a, nil
}

// serveTry puts a version into shadow mode: the one in the request, or the one that is named.
func (e *Engine) serveTry(w http.ResponseWriter, r *http.Request) (any, error) {
	number, err := versionOf(r)
	if err != nil {
		return nil, err
	}
	a, err := wants(r)
	if err != nil {
		return nil, err
	}
	var k *kept
	if a.beside = true; number > 0 {
		a.do = startTrial(number, "", false)
		k, err = e.book.change(r.Context(), r.PathValue("name"), a)
	} else {
		var d *Document
		if d, err = given(w, r); err == nil {
			k, err = e.book.tryDocument(r.Context(), d, a)
		}
	}
	if err != nil {
		return nil, err
	}
	return e.show(k, 0, true)
}

// serveBeside answers a change that does not concern what runs.
func (e *Engine) serveBeside(do changing) http.Handler {
	return answer.Func(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		a, err := wants(r)
		if err != nil {
			return nil, err
		}
		a.do, a.beside = do, true
		k, err := e.book.change(r.Context(), r.PathValue("name"), a)
		if err != nil {
			return nil, err
		}
		return e.show(k, 0, true)
	})
}

// given reads the rule in a request.
func given(w http.ResponseWriter, r *http.Request) (*Document, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, documentMax))
	if err != nil {
		return nil, answer.Bad(fmt.Errorf("read the rule: %w; it may have %d bytes", err, documentMax))
	}
	d, err := Parse(raw)
	if err != nil {
		return nil, answer.Bad(err)
	}
	name := r.PathValue("name")
	if d.Name == "" {
		d.Name = name
	}
	if d.Name != name {
		return nil, answer.Bad(fmt.Errorf("the rule calls itself %q, and was put as %q", d.Name, name))
	}
	return d, nil
}

func (e *Engine) servePut(w http.ResponseWriter, r *http.Request) (any, error) {
	d, err := given(w, r)
	if err != nil {
		return nil, err
	}
	a, err := wants(r)
	if err != nil {
		return nil, err
	}
	k, _, err := e.book.put(r.Context(), d, a)
	if err != nil {
		return nil, err
	}
	w.Header().Set("ETag", strconv.Quote(strconv.FormatUint(k.revision, 10)))
	return e.show(k, 0, true)
}

// serveChange answers a change that needs no document.
func (e *Engine) serveChange(of func(*http.Request) (changing, error)) http.Handler {
	return answer.Func(func(_ http.ResponseWriter, r *http.Request) (any, error) {
		a, err := wants(r)
		if err == nil {
			a.do, err = of(r)
		}
		if err != nil {
			return nil, err
		}
		k, err := e.book.change(r.Context(), r.PathValue("name"), a)
		if err != nil {
			return nil, err
		}
		return e.show(k, 0, true)
	})
}

func (e *Engine) serveHistory(_ http.ResponseWriter, r *http.Request) (any, error) {
	k, err := e.head(r, true)
	if err != nil {
		return nil, err
	}
	return k.Head, nil
}

package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

const (
	bodyMax   = 8 << 20 // of results: what they say, in JSON
	recordMax = 64 << 10
)

func (w *Workers) routes() []component.Route {
	const one = "/api/v1/workers/{name}"
	return []component.Route{
		{Pattern: "GET /api/v1/workers", Handler: answer.Func(w.serveList)},
		{Pattern: "GET " + one, Handler: answer.Func(w.serveOne)},
		{Pattern: "PUT " + one, Handler: answer.Func(w.servePut)},
		{Pattern: "DELETE " + one, Handler: answer.Func(w.serveRemove)},
		{Pattern: "POST " + one + "/pause", Handler: w.serveChange(pause(true))},
		{Pattern: "POST " + one + "/resume", Handler: w.serveChange(pause(false))},
		{Pattern: "POST " + one + "/move", Handler: answer.Func(w.serveMove)},
		{Pattern: "POST " + one + "/call", Handler: answer.Func(w.serveCall)},
		{Pattern: "POST " + one + "/instances", Handler: answer.Func(w.serveJoin)},
		{Pattern: "POST " + one + "/instances/{id}/calls", Handler: answer.Func(w.servePoll)},
		{Pattern: "POST " + one + "/instances/{id}/results", Handler: answer.Func(w.serveResults)},
		{Pattern: "DELETE " + one + "/instances/{id}", Handler: answer.Func(w.serveLeave)},
	}
}

func (w *Workers) serveList(http.ResponseWriter, *http.Request) (any, error) {
	list, _, ok := w.book.List()
	if !ok {
		return nil, answer.Unavailable("%s is starting", Name)
	}
	out := struct {
		Workers []Shown `json:"workers"`
	}{[]Shown{}}
	for _, k := range list {
		if !k.Value.Removed {
			out.Workers = append(out.Workers, w.show(k, false))
		}
	}
	return out, nil
}

func (w *Workers) serveOne(_ http.ResponseWriter, r *http.Request) (any, error) {
	k, err := w.book.get(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return w.show(k, true), nil
}

// read decodes a body strictly.
func read(r *http.Request, most int64, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, most))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return answer.Bad(fmt.Errorf("the body: %w", err))
	}
	return nil
}

// by is who asks, for the record.
func by(r *http.Request) (who, why string) {
	who = r.URL.Query().Get("by")
	if who == "" {
		who = "operator"
	}
	return who, r.URL.Query().Get("why")
}

func (w *Workers) servePut(_ http.ResponseWriter, r *http.Request) (any, error) {
	var rec Record
	if err := read(r, recordMax, &rec); err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	if rec.Name != "" && rec.Name != name {
		return nil, answer.Bad(fmt.Errorf("name: it is %q in the record, and %q in the path", rec.Name, name))
	}
	rec.Name = name
	if err := rec.complete(); err != nil {
		return nil, answer.Bad(err)
	}
	who, why := by(r)
	k, err := w.book.change(r.Context(), name, who, why, own(put(rec)))
	if err != nil {
		return nil, err
	}
	w.begins(r.Context(), &k.Value.Record) // what is said from now on it hears
	return w.show(k, false), nil
}

func (w *Workers) serveChange(do func(h *Head) (string, error)) answer.Func {
	return func(_ http.ResponseWriter, r *http.Request) (any, error) {
		who, why := by(r)
		k, err := w.book.change(r.Context(), r.PathValue("name"), who, why, own(do))
		if err != nil {
			return nil, err
		}
		return w.show(k, false), nil
	}
}

// Moved is what came of moving a worker.
type Moved struct {
	Name string `json:"name"`
	// Left is how many messages were in its hands where it was, and are left behind; Exceptions are the oldest of them.
	Left uint64 `json:"left_behind"`
	// Unknown says that nobody knew how many that were.
	Unknown    bool                  `json:"unknown,omitempty"`
	Exceptions []component.Exception `json:"exceptions,omitempty"`
}

// serveMove has a worker go on elsewhere whose node is gone for good. One with messages in its hands there is moved only where
// that is said, since they are not given again; and so is one of which nobody knows, which told of itself last more than a minute ago.
func (w *Workers) serveMove(_ http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("name")
	k, err := w.book.get(name)
	if err != nil {
		return nil, err
	}
	force, _ := strconv.ParseBool(r.URL.Query().Get("force"))
	s := w.show(k, true)
	unknown := !slices.ContainsFunc(w.env.Peers.Reports(), func(r component.Report) bool { return r.Consumer == Name+"/"+name })
	switch {
	case force:
	case unknown:
		return nil, answer.Conflict("what worker %s had in its hands where it was is not known any more, and would be lost with that: wait for the node, or move it with force", name)
	case s.Parked > 0:
		return nil, answer.Conflict("%d messages were in the hands of worker %s where it was, and are lost with that: wait for the node, or force it", s.Parked, name)
	}
	if err := w.env.Move(r.Context(), name); err != nil {
		return nil, err
	}
	who, why := by(r)
	if _, err := w.book.change(r.Context(), name, who, why, own(move)); err != nil {
		return nil, err
	}
	return Moved{name, s.Parked, unknown, s.Exceptions}, nil
}

// serveRemove removes a worker. One with messages before it is removed only where that is said, since they are owed to
// nobody then.
func (w *Workers) serveRemove(_ http.ResponseWriter, r *http.Request) (any, error) {
	name := r.PathValue("name")
	k, err := w.book.get(name)
	if err != nil {
		return nil, err
	}
	force, _ := strconv.ParseBool(r.URL.Query().Get("force"))
	if s := w.show(k, false); s.Behind > 0 && !force {
		return nil, answer.Conflict("%d messages wait for worker %s, and would be nobody's: wait, or force it", s.Behind, name)
	}
	who, why := by(r)
	if k, err = w.book.change(r.Context(), name, who, why, own(remove)); err != nil {
		return nil, err
	}
	s := w.show(k, false)
	s.State, s.Detail = "removed", ""
	return s, nil
}

// serveCall has work done by a worker, wherever it runs, and gives its answer.
func (w *Workers) serveCall(out http.ResponseWriter, r *http.Request) (any, error) {
	q := &wire.Question{Do: wire.DoWork, Worker: r.PathValue("name"), Work: &wire.Work{Timeout: callDefault, Trace: r.Header.Get("Traceparent"), Device: r.URL.Query().Get("device"), ContentType: r.Header.Get("Content-Type")}}
	if _, err := w.alive(q.Worker); err != nil {
		return nil, err
	}
	var err error
	if s := r.URL.Query().Get("timeout"); s != "" {
		if q.Work.Timeout, err = time.ParseDuration(s); err != nil || q.Work.Timeout <= 0 || q.Work.Timeout > callMost {
			return nil, answer.Bad(fmt.Errorf("timeout %q: want a duration such as 5s, %s at most", s, callMost))
		}
	}
	if q.Work.Data, err = io.ReadAll(http.MaxBytesReader(nil, r.Body, int64(w.env.Bus.MaxMessage()))); err != nil {
		return nil, answer.Bad(fmt.Errorf("the body: %w", err))
	}
	a, err := w.ask(r.Context(), q)
	if a != nil && a.Worked != nil {
		out.Header().Set("Naru-Message", a.Worked.Message)
		out.Header().Set("Traceparent", a.Worked.Trace)
	}
	switch {
	case err != nil:
		return nil, err
	case a.Worked == nil:
		return nil, fmt.Errorf("the process that runs worker %s answers without saying what came of it", q.Worker)
	case len(a.Worked.Data) == 0:
		out.WriteHeader(http.StatusNoContent)
		return nil, nil
	}
	if a.Worked.ContentType != "" {
		out.Header().Set("Content-Type", a.Worked.ContentType)
	}
	_, _ = out.Write(a.Worked.Data) // the client went; there is nobody to tell
	return nil, nil
}

func (w *Workers) serveJoin(_ http.ResponseWriter, r *http.Request) (any, error) {
	var j wire.Join
	if err := read(r, recordMax, &j); err != nil {
		return nil, err
	}
	a, err := w.ask(r.Context(), &wire.Question{Do: wire.DoJoin, Worker: r.PathValue("name"), Join: &j})
	if err != nil {
		return nil, err
	}
	return a.Joined, nil
}

func (w *Workers) servePoll(_ http.ResponseWriter, r *http.Request) (any, error) {
	var p wire.Poll
	if err := read(r, recordMax, &p); err != nil {
		return nil, err
	}
	a, err := w.ask(r.Context(), &wire.Question{Do: wire.DoPoll, Worker: r.PathValue("name"), ID: r.PathValue("id"), Has: p.Has})
	if err != nil {
		return nil, err
	}
	return wire.Calls{Calls: append([]wire.Call{}, a.Calls...)}, nil
}

func (w *Workers) serveResults(out http.ResponseWriter, r *http.Request) (any, error) {
	var list wire.Results
	if err := read(r, bodyMax, &list); err != nil {
		return nil, err
	}
	if _, err := w.ask(r.Context(), &wire.Question{Do: wire.DoResults, Worker: r.PathValue("name"), ID: r.PathValue("id"), Results: list.Results}); err != nil {
		return nil, err
	}
	out.WriteHeader(http.StatusNoContent)
	return nil, nil
}

func (w *Workers) serveLeave(out http.ResponseWriter, r *http.Request) (any, error) {
	_, err := w.ask(r.Context(), &wire.Question{Do: wire.DoLeave, Worker: r.PathValue("name"), ID: r.PathValue("id")})
	var p *answer.Problem
	if err != nil && (!errors.As(err, &p) || p.Status != http.StatusServiceUnavailable) {
		return nil, err
	}
	out.WriteHeader(http.StatusNoContent)
	return nil, nil
}

package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

const (
	bodyMax     = 8 << 20 // of results: what they say, in JSON
	recordMax   = 64 << 10
	callDefault = 10 * time.Second
	callMost    = 2 * time.Minute
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
		return nil, answer.Conflict("%d messages wait for worker %s, and would be nobody's: wait, or remove it with force", s.Behind, name)
	}
	who, why := by(r)
	if k, err = w.book.change(r.Context(), name, who, why, own(remove)); err != nil {
		return nil, err
	}
	s := w.show(k, false)
	s.State, s.Detail = "removed", ""
	return s, nil
}

// serveCall says work for a worker and waits for its answer. Where none comes in time the message keeps its way: it is
// handled, or has another fate.
func (w *Workers) serveCall(out http.ResponseWriter, r *http.Request) (any, error) {
	l, err := w.alive(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if err := w.here(l); err != nil {
		return nil, err
	}
	wait := callDefault
	if s := r.URL.Query().Get("timeout"); s != "" {
		if wait, err = time.ParseDuration(s); err != nil || wait <= 0 || wait > callMost {
			return nil, answer.Bad(fmt.Errorf("timeout %q: want a duration such as 5s, %s at most", s, callMost))
		}
	}
	data, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, int64(w.env.Bus.MaxMessage())))
	if err != nil {
		return nil, answer.Bad(fmt.Errorf("the body: %w", err))
	}
	now := w.env.Now()
	m := &message.Message{ID: message.NewID(now), Subject: serviceplatform.WorkSubject(l.name), Device: r.URL.Query().Get("device"), ContentType: r.Header.Get("Content-Type"), Data: data, QoS: 1, Expires: now.Add(wait)}
	if t, err := message.ParseTraceparent(r.Header.Get("Traceparent")); err == nil {
		m.Trace = t
	}
	end, stop := l.wait(m.ID)
	defer stop()
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	if err := w.env.Say(ctx, m); err != nil {
		return nil, err
	}
	out.Header().Set("Naru-Message", m.ID.String())
	out.Header().Set("Traceparent", m.Trace.Traceparent())
	select {
	case a := <-end:
		if a.err != nil {
			return nil, &answer.Problem{Status: http.StatusBadGateway, Title: "Bad Gateway", Detail: a.err.Error(), Reason: message.ReasonOf(a.err, message.RetriesExhausted).String()}
		}
		if a.contentType != "" {
			out.Header().Set("Content-Type", a.contentType)
		}
		if len(a.data) == 0 {
			out.WriteHeader(http.StatusNoContent)
			return nil, nil
		}
		_, _ = out.Write(a.data) // the client went; there is nobody to tell
		return nil, nil
	case <-ctx.Done():
		return nil, &answer.Problem{Status: http.StatusGatewayTimeout, Title: "Gateway Timeout",
			Detail: fmt.Sprintf("worker %s did not answer within %s; what becomes of message %s tells `naru trace %s`", l.name, wait, m.ID, m.Trace.ID)}
	}
}

// here says whether a worker runs in this process, and where else.
func (w *Workers) here(l *live) error {
	l.mu.Lock()
	here := l.open != nil
	l.mu.Unlock()
	if here {
		return nil
	}
	if s := w.stats.of(l.name, w.env.Now()); s != nil && s.Node != w.env.Node {
		at := ""
		for _, h := range w.env.Peers.Components() {
			if h.Node == s.Node && h.HTTP != "" {
				at = ", at " + h.HTTP
			}
		}
		return answer.Unavailable("worker %s runs on node %s%s: ask there", l.name, s.Node, at)
	}
	return answer.Unavailable("worker %s is starting", l.name)
}

// hubOf is the hub of the worker that a request is for.
func (w *Workers) hubOf(r *http.Request) (*hub, error) {
	l, err := w.alive(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	h, err := l.joined()
	if err != nil {
		return nil, answer.Bad(err)
	}
	if h == nil {
		return nil, w.here(l)
	}
	return h, nil
}

func (w *Workers) serveJoin(_ http.ResponseWriter, r *http.Request) (any, error) {
	var j wire.Join
	if err := read(r, recordMax, &j); err != nil {
		return nil, err
	}
	h, err := w.hubOf(r)
	if err != nil {
		return nil, err
	}
	i, err := h.join(j.Name, j.Concurrency)
	if err != nil {
		return nil, err
	}
	return wire.Joined{ID: i.id, LeaseSeconds: leaseTime.Seconds()}, nil
}

func (w *Workers) servePoll(_ http.ResponseWriter, r *http.Request) (any, error) {
	var p wire.Poll
	if err := read(r, recordMax, &p); err != nil {
		return nil, err
	}
	h, err := w.hubOf(r)
	if err != nil {
		return nil, err
	}
	calls, err := h.poll(r.Context(), r.PathValue("id"), p.Has)
	if err != nil {
		return nil, err
	}
	return wire.Calls{Calls: calls}, nil
}

func (w *Workers) serveResults(out http.ResponseWriter, r *http.Request) (any, error) {
	var list wire.Results
	if err := read(r, bodyMax, &list); err != nil {
		return nil, err
	}
	h, err := w.hubOf(r)
	if err != nil {
		return nil, err
	}
	if err := h.results(r.PathValue("id"), list.Results); err != nil {
		return nil, err
	}
	out.WriteHeader(http.StatusNoContent)
	return nil, nil
}

func (w *Workers) serveLeave(out http.ResponseWriter, r *http.Request) (any, error) {
	h, err := w.hubOf(r)
	if err != nil {
		var p *answer.Problem
		if !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable {
			return nil, err
		}
	} else {
		h.leave(r.PathValue("id"))
	}
	out.WriteHeader(http.StatusNoContent)
	return nil, nil
}

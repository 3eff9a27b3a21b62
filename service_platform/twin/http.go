package twin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/service_platform/twin/shadow"
)

const (
	listMost = 1000
	// patience is how long an answer to a request over HTTP is waited for.
	patience = 10 * time.Second
)

func (t *Twins) routes() []component.Route {
	return append([]component.Route{
		{Pattern: "GET /api/v1/twins", Handler: answer.Func(t.serveList)},
		{Pattern: "GET /api/v1/twins/{device}", Handler: answer.Func(t.serveTwin)},
		{Pattern: "POST /api/v1/twins/{device}", Handler: answer.Func(t.serveUpdate)},
		{Pattern: "DELETE /api/v1/twins/{device}", Handler: answer.Func(t.serveDelete)},
		{Pattern: "GET /api/v1/twins/{device}/blame", Handler: answer.Func(t.serveBlame)},
		{Pattern: "GET /api/v1/twins/{device}/history", Handler: answer.Func(t.serveHistory)},
		{Pattern: "GET /api/v1/twins/{device}/conflicts", Handler: answer.Func(t.serveConflicts)},
		{Pattern: "GET /api/v1/twins/{device}/watch", Handler: answer.Func(t.serveWatch)},
		{Pattern: "GET /api/v1/drift", Handler: answer.Func(t.serveDrift)},
	}, t.awsRoutes()...)
}

// refOf reads which twin a request is about.
func refOf(r *http.Request) (ref, error) {
	x := ref{r.PathValue("device"), r.URL.Query().Get("shadow")}
	if x.shadow != "" && !shadow.CheckName(x.shadow) {
		return x, answer.Bad(fmt.Errorf("shadow=%s is no name of a shadow: want 1 to %d letters, digits, and : _ - $", x.shadow, shadow.NameMax))
	}
	return x, nil
}

// limitOf reads how many things are asked for.
func limitOf(r *http.Request, otherwise int) (int, error) {
	s := r.URL.Query().Get("limit")
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > listMost {
		return 0, answer.Bad(fmt.Errorf("limit=%s: want 1 to %d", s, listMost))
	}
	return n, nil
}

func absent(r ref) error {
	if r.shadow == "" {
		return answer.Missing("device %s has no twin; it has one with the first update, and `naru twin list` shows those there are", r.device)
	}
	return answer.Missing("device %s has no twin of the name %s; `naru twin list` shows those there are", r.device, r.shadow)
}

// known gives an error where there never was such a twin, as far as is remembered.
func known(v component.View, x ref) error {
	d, err := load(v, x)
	if err == nil && d.Version == 0 && d.Changes == 0 {
		return absent(x)
	}
	return err
}

// Shown is a twin. Of one in the past only the state is known.
type Shown struct {
	Device  string    `json:"device"`
	Shadow  string    `json:"shadow,omitempty"`
	Version uint64    `json:"version,omitempty"` // nothing where history has forgotten it
	Updated time.Time `json:"updated,omitzero"`  // when the last update was accepted; of one in the past, the last that changed it
	Message string    `json:"message,omitempty"` // that update
	Source  string    `json:"source,omitempty"`
	// Document is what a device gets: state with its delta, metadata, version and timestamp; of one in the past only state.
	Document json.RawMessage `json:"document"`
	// Drift is what is desired and not reported.
	Drift []shadow.Drifted `json:"drift,omitempty"`
	// Shadows are the names of the device's other twins; the unnamed one is not among them.
	Shadows []string `json:"shadows,omitempty"`
}

func (t *Twins) serveTwin(_ http.ResponseWriter, r *http.Request) (any, error) {
	x, err := refOf(r)
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	if q.Has("at") || q.Has("version") {
		return t.past(x, q)
	}
	s := Shown{Device: x.device, Shadow: x.shadow}
	return &s, t.env.View(func(v component.View) error {
		d, err := load(v, x)
		if err != nil {
			return err
		}
		if s.Shadows, err = shadows(v, x); err != nil {
			return err
		}
		payload, refused := d.Get(nil, x.called(), t.env.Now())
		if refused != nil {
			return absent(x)
		}
		last := d.Last()
		s.Version, s.Updated, s.Message, s.Source, s.Document, s.Drift = d.Version, last.At().UTC(), last.ID.String(), last.Source, payload, d.Drifts()
		return nil
	})
}

// shadows gives the names of a device's other twins.
func shadows(v component.View, x ref) (names []string, err error) {
	var bad error
	from := devicePrefix(x.device)
	err = v.Range(from, append(from[:len(from)-1:len(from)-1], 1), false, func(k, val []byte) bool {
		d, err := shadow.Decode(val)
		if bad = err; err != nil {
			return false
		}
		if r := parseTwinKey(k); d.Exists() && r.shadow != x.shadow && r.shadow != "" {
			names = append(names, r.shadow)
		}
		return true
	})
	return names, errors.Join(err, bad)
}

func (t *Twins) serveUpdate(_ http.ResponseWriter, r *http.Request) (any, error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, int64(t.limits.Request)))
	if err != nil {
		return nil, answer.Bad(fmt.Errorf("read the request: %w; it may have %d bytes", err, t.limits.Request))
	}
	x, err := refOf(r)
	if err != nil {
		return nil, err
	}
	v, err := t.ask(r, x, "update", body)
	return v, explained(x, err)
}

func (t *Twins) serveDelete(_ http.ResponseWriter, r *http.Request) (any, error) {
	x, err := refOf(r)
	if err != nil {
		return nil, err
	}
	v, err := t.ask(r, x, "delete", nil)
	return v, explained(x, err)
}

// ask says a request as a device does, and waits for its answer: so what is asked over HTTP has its place in the log, its
// trace and its fate.
func (t *Twins) ask(r *http.Request, x ref, request string, body []byte) (any, error) {
	m := &message.Message{Subject: device.TwinSubject(x.device, x.shadow, request), Device: x.device, ContentType: "application/json", Data: body, QoS: 1}
	if err := m.Subject.Valid(); err != nil {
		return nil, answer.Bad(err)
	}
	t.env.Mint(m)
	if by := r.URL.Query().Get("by"); by != "" {
		m.Source += "?by=" + url.QueryEscape(by)
	}
	c := t.hub.await(m.ID)
	defer t.hub.forget(m.ID)
	if err := t.env.Say(r.Context(), m); err != nil {
		return nil, err
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case a := <-c:
		if a.refused != nil {
			return nil, a.refused
		}
		return json.RawMessage(a.payload), nil
	case <-late.C:
		return nil, answer.Unavailable("the request is stored as message %s, and was not handled within %s; `naru messages %s` tells its fate", m.ID, patience, m.ID)
	case <-r.Context().Done():
		return nil, answer.Unavailable("gave up waiting for the answer to message %s", m.ID)
	}
}

// explained gives a refusal the words that an operator needs beside the protocol's own.
func explained(x ref, err error) error {
	var e *shadow.Error
	if !errors.As(err, &e) {
		return err
	}
	switch detail := e.Message; e.Code {
	case http.StatusNotFound:
		return absent(x)
	case http.StatusConflict:
		detail += fmt.Sprintf(": it has not version %d; `naru twin get %s` shows what it has, and `naru twin conflicts %s` who changed it", e.Stated, x.device, x.device)
		fallthrough
	default:
		return &answer.Problem{Status: e.Code, Title: http.StatusText(e.Code), Detail: detail}
	}
}

// Blame is who made a twin what it is.
type Blame struct {
	Device  string        `json:"device"`
	Shadow  string        `json:"shadow,omitempty"`
	Version uint64        `json:"version"`
	Fields  []BlamedField `json:"fields"`
}

// BlamedField is a field, the messages behind it, and the trace of the one that changed it.
type BlamedField struct {
	shadow.Field
	// Trace is missing where the history has forgotten the change; the message's id leads to it, too.
	Trace message.TraceID `json:"trace,omitzero"`
}

func (t *Twins) serveBlame(_ http.ResponseWriter, r *http.Request) (any, error) {
	x, err := refOf(r)
	if err != nil {
		return nil, err
	}
	b := Blame{Device: x.device, Shadow: x.shadow, Fields: []BlamedField{}}
	path := r.URL.Query().Get("path")
	return &b, t.env.View(func(v component.View) error {
		d, err := load(v, x)
		if err != nil {
			return err
		}
		if !d.Exists() {
			return absent(x)
		}
		traces := map[message.ID]message.TraceID{}
		if err := t.records(v, x, 0, func(rec *shadow.Record) (bool, error) {
			traces[rec.By.ID] = rec.Trace
			return true, nil
		}); err != nil {
			return err
		}
		b.Version = d.Version
		for _, f := range d.Blame() {
			if path == "" || under(f.Path, path) {
				f.ChangedAt, f.WroteAt = f.ChangedAt.UTC(), f.WroteAt.UTC()
				b.Fields = append(b.Fields, BlamedField{f, traces[f.Changed.ID]})
			}
		}
		if path != "" && len(b.Fields) == 0 {
			return answer.Missing("%s has no field %s; `naru twin blame %s` shows those there are", x.called(), path, x.device)
		}
		return nil
	})
}

// under says whether a JSON pointer is another one or below it.
func under(path, top string) bool {
	return len(path) >= len(top) && path[:len(top)] == top && (len(path) == len(top) || path[len(top)] == '/' || top[len(top)-1] == '/')
}

func (t *Twins) serveConflicts(_ http.ResponseWriter, r *http.Request) (any, error) {
	x, err := refOf(r)
	if err != nil {
		return nil, err
	}
	out := struct {
		Device    string     `json:"device"`
		Shadow    string     `json:"shadow,omitempty"`
		Conflicts []Conflict `json:"conflicts"` // newest last
	}{x.device, x.shadow, []Conflict{}}
	oldest := t.env.Now().Add(-t.age)
	return &out, t.env.View(func(v component.View) error {
		list, err := conflicts(v, x)
		for _, c := range list {
			if c.At.After(oldest) {
				out.Conflicts = append(out.Conflicts, c)
			}
		}
		if err == nil && len(list) == 0 {
			return known(v, x)
		}
		return err
	})
}

// serveWatch streams the changes of a device's twins as lines of JSON, from now on. Without a name it is of all of them.
func (t *Twins) serveWatch(w http.ResponseWriter, r *http.Request) (any, error) {
	x, err := refOf(r)
	if err != nil {
		return nil, err
	}
	var only *string
	if r.URL.Query().Has("shadow") {
		only = &x.shadow
	}
	watch := t.hub.watch(x.device, only)
	if watch == nil {
		return nil, answer.Unavailable("%d watch already, or the component is stopping; try again in a while", watchersMax)
	}
	defer t.hub.leave(watch)
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	_ = out.Flush()
	for {
		select {
		case <-r.Context().Done():
			return nil, nil
		case line, ok := <-watch.lines:
			if !ok {
				return nil, nil
			}
			if _, err := w.Write(append(line[:len(line):len(line)], '\n')); err != nil {
				return nil, nil
			}
			if n := watch.missed.Swap(0); n > 0 {
				if _, err := fmt.Fprintf(w, "{\"missed\":%d}\n", n); err != nil {
					return nil, nil
				}
			}
			if len(watch.lines) == 0 && out.Flush() != nil {
				return nil, nil
			}
		}
	}
}

package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
)

const settingsMax = 64 << 10 // bytes

func (w *Webhook) routes() []component.Route {
	return []component.Route{
		{Pattern: "GET /api/v1/destinations", Handler: answer.Func(w.serveList)},
		{Pattern: "GET /api/v1/destinations/{name}", Handler: answer.Func(w.serveOne)},
		{Pattern: "PUT /api/v1/destinations/{name}", Handler: answer.Func(w.servePut)},
		{Pattern: "DELETE /api/v1/destinations/{name}", Handler: answer.Func(w.serveDelete)},
		{Pattern: "POST /api/v1/destinations/{name}/pause", Handler: w.serveChange(turn(true))},
		{Pattern: "POST /api/v1/destinations/{name}/resume", Handler: w.serveChange(turn(false))},
	}
}

// Shown is a destination as it is listed. No header is shown with what it is taken from a file or the environment.
type Shown struct {
	Destination
	Revision uint64 `json:"revision"` // for If-Match
	// Sent is how many messages it took since the process started or the destination changed.
	Sent    uint64    `json:"sent"`
	Waiting uint64    `json:"waiting"` // messages that were heard for it, and have no fate yet
	Dead    uint64    `json:"dead"`
	Breaker string    `json:"breaker"` // closed, open or half_open
	Since   time.Time `json:"breaker_since,omitzero"`
	Fault   string    `json:"fault,omitempty"` // of the last call
	FaultAt time.Time `json:"fault_at,omitzero"`
}

// show shows a destination, and how it is doing.
func (w *Webhook) show(d *Destination) Shown {
	s := Shown{Destination: *d, Revision: d.revision, Breaker: "closed"}
	if x := w.sender(d.Name); x != nil {
		s.Breaker, s.Since = x.breaker.State(w.env.Now())
		x.mu.Lock()
		s.Sent, s.Fault = x.sent, x.fault
		if x.fault != "" {
			s.FaultAt = x.at
		}
		x.mu.Unlock()
	}
	for _, r := range w.env.Peers.Reports() {
		if r.Consumer == Name+"/"+d.Name {
			s.Waiting += r.Waiting.Count
			s.Dead += r.Outcomes[component.Dead].Count
		}
	}
	return s
}

func (w *Webhook) serveList(http.ResponseWriter, *http.Request) (any, error) {
	list, _, known := w.book.list()
	if !known {
		return nil, answer.Unavailable("%s is starting", Name)
	}
	out := struct {
		Destinations []Shown `json:"destinations"`
	}{[]Shown{}}
	for _, d := range list {
		if !d.Deleted {
			out.Destinations = append(out.Destinations, w.show(d))
		}
	}
	return out, nil
}

func (w *Webhook) serveOne(rw http.ResponseWriter, r *http.Request) (any, error) {
	d, err := w.book.find(r.Context(), r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	if d == nil {
		return nil, missing(r.PathValue("name"))
	}
	return w.shown(rw, d), nil
}

func (w *Webhook) shown(rw http.ResponseWriter, d *Destination) Shown {
	rw.Header().Set("ETag", strconv.Quote(strconv.FormatUint(d.revision, 10)))
	return w.show(d)
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
			return a, answer.Bad(fmt.Errorf("If-Match %s: want the revision that the destination was shown with", m))
		}
	}
	return a, nil
}

func (w *Webhook) servePut(rw http.ResponseWriter, r *http.Request) (any, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, settingsMax))
	if err != nil {
		return nil, answer.Bad(fmt.Errorf("read the destination: %w; it may have %d bytes", err, settingsMax))
	}
	var s Settings
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return nil, answer.Bad(fmt.Errorf("the destination: %w; it has description, url, headers, mode, timeout, calls, attempts and give_up_after", err))
	}
	if err := s.Valid(); err != nil {
		return nil, answer.Bad(err)
	}
	for i := range s.Headers {
		if _, err := w.secrets.of(&s.Headers[i]); err != nil {
			return nil, answer.Bad(fmt.Errorf("headers[%d]: %w", i, err))
		}
	}
	name := r.PathValue("name")
	if err := checkName(name); err != nil {
		return nil, answer.Bad(err)
	}
	a, err := wants(r)
	if err != nil {
		return nil, err
	}
	a.do = func(d *Destination) (string, error) {
		if d.Name != "" && reflect.DeepEqual(d.Settings, s) {
			return "", errSame
		}
		fresh := d.Name == ""
		d.Settings = s
		if fresh {
			return "registered", nil
		}
		return "updated", nil
	}
	d, err := w.book.change(r.Context(), name, a)
	if err != nil {
		return nil, err
	}
	return w.shown(rw, d), nil
}

// turn pauses or resumes.
func turn(paused bool) func(d *Destination) (string, error) {
	return func(d *Destination) (string, error) {
		switch {
		case d.Paused == paused:
			return "", errSame
		case paused:
			d.Paused = true
			return "paused", nil
		}
		d.Paused = false
		return "resumed", nil
	}
}

// serveChange answers a change of a destination that is there.
func (w *Webhook) serveChange(do func(d *Destination) (string, error)) http.Handler {
	return answer.Func(func(rw http.ResponseWriter, r *http.Request) (any, error) {
		a, err := wants(r)
		if err != nil {
			return nil, err
		}
		a.do = func(d *Destination) (string, error) {
			if d.Name == "" {
				return "", missing(r.PathValue("name"))
			}
			return do(d)
		}
		d, err := w.book.change(r.Context(), r.PathValue("name"), a)
		if err != nil {
			return nil, err
		}
		return w.shown(rw, d), nil
	})
}

// serveDelete forgets a destination; with what waits for it only where force=true says so.
func (w *Webhook) serveDelete(rw http.ResponseWriter, r *http.Request) (any, error) {
	force := r.URL.Query().Get("force") == "true"
	return w.serveChange(func(d *Destination) (string, error) {
		if n := w.show(d).Waiting; n > 0 && !force {
			return "", answer.Conflict("%d messages wait for destination %s, and would go with it: let it take them, pause it instead, or say --force", n, d.Name)
		}
		d.Deleted = true
		return "deleted", nil
	}).(answer.Func)(rw, r)
}

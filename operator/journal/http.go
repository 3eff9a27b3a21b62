package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/internal/when"
	"github.com/naru-platform/naru/message"
)

// Line is a message as people and tools are shown it.
type Line struct {
	ID          message.ID      `json:"id"`
	Trace       message.TraceID `json:"trace"`
	Span        message.SpanID  `json:"span"`
	Cause       message.ID      `json:"cause,omitzero"`
	Log         string          `json:"log"`
	Position    bus.Position    `json:"position"`
	Subject     message.Subject `json:"subject"`
	Topic       string          `json:"topic"`
	Type        string          `json:"type,omitempty"`
	Source      string          `json:"source,omitempty"`
	Device      string          `json:"device,omitempty"`
	Recorded    time.Time       `json:"recorded"`
	Time        time.Time       `json:"time,omitzero"`
	ContentType string          `json:"content_type,omitempty"`
	QoS         uint8           `json:"qos"`
	Depth       uint8           `json:"depth,omitempty"`
	Size        int             `json:"size"`
	Data        string          `json:"data,omitempty"`
	DataBase64  []byte          `json:"data_base64,omitempty"`
	Truncated   bool            `json:"truncated,omitempty"` // Data was cut; ask for the message by its id
	Properties  [][2]string     `json:"properties,omitempty"`
	Outcome     string          `json:"outcome"`
	Fates       []Fate          `json:"fates"`
	Reason      message.Reason  `json:"reason,omitempty"` // of a dead letter or refusal
}

// List answers a search.
type List struct {
	Messages []Line    `json:"messages"`
	Read     int       `json:"batches_read"`
	Passed   int       `json:"batches_passed"`
	Stopped  time.Time `json:"stopped_at,omitzero"`
}

// TraceView answers a question for a trace.
type TraceView struct {
	Trace    message.TraceID `json:"trace"`
	Messages []Line          `json:"messages"` // in the order they were recorded
	Began    time.Time       `json:"began"`
	Took     time.Duration   `json:"took_ns"`
	Stopped  time.Time       `json:"stopped_at,omitzero"`
}

// dataShown is how much of a payload a list shows.
const dataShown = 512

func (j *Journal) routes() []component.Route {
	return []component.Route{
		{Pattern: "GET /api/v1/messages", Handler: answer.Func(j.serveList)},
		{Pattern: "GET /api/v1/messages/{id}", Handler: answer.Func(j.serveMessage)},
		{Pattern: "GET /api/v1/traces/{trace}", Handler: answer.Func(j.serveTrace)},
	}
}

func (j *Journal) serveList(_ http.ResponseWriter, r *http.Request) (any, error) {
	q, outcome, err := parseQuery(r, j.env.Now())
	if err != nil {
		return nil, err
	}
	w := j.witness()
	var lines []Line
	j.fresh(r.Context())
	if outcome != "" {
		if err := j.learnDead(r.Context(), w, q.Since); err != nil {
			return nil, err
		}
		q.Match = func(f *Found) bool { return j.outcomeIs(w, f, outcome) }
	}
	res, err := j.Find(r.Context(), q)
	if err != nil {
		return nil, err
	}
	if outcome == "" {
		if err := j.learnDead(r.Context(), w, oldest(res.Found)); err != nil {
			return nil, err
		}
	}
	for i := range res.Found {
		lines = append(lines, w.line(&res.Found[i], dataShown))
	}
	return List{Messages: nonNil(lines), Read: res.Read, Passed: res.Passed, Stopped: res.Stopped}, nil
}

// learnDead reads the dead letters since then, since they tell fates of messages found.
func (j *Journal) learnDead(ctx context.Context, w *witness, since time.Time) error {
	_, err := j.Find(ctx, Query{Subjects: []message.Pattern{"operator.dead.*.*", "operator.retried.*"}, Since: since, Limit: 1, Match: func(f *Found) bool {
		w.learn(f.Message)
		return false
	}})
	return err
}

func (j *Journal) outcomeIs(w *witness, f *Found, outcome string) bool {
	switch {
	case outcome == OutcomeRefused:
		return message.Pattern("operator.refused.*.*").Matches(f.Message.Subject)
	case outcome == OutcomeWaiting:
		o := worst(w.fates(f))
		return o == OutcomeWaiting || o == OutcomeParked
	}
	return worst(w.fates(f)) == outcome
}

func (j *Journal) serveMessage(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := message.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, answer.Bad(err)
	}
	j.fresh(r.Context())
	res, err := j.Find(r.Context(), Query{ID: id, Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(res.Found) == 0 {
		return nil, answer.Missing("no message %s in the journal; it may never have been accepted, or be older than what is kept", id)
	}
	w := j.witness()
	if err := j.learnTrace(r.Context(), w, res.Found[0].Message.Trace.ID); err != nil {
		return nil, err
	}
	return w.line(&res.Found[0], -1), nil
}

// learnTrace reads the dead letters of a trace, which they share.
func (j *Journal) learnTrace(ctx context.Context, w *witness, t message.TraceID) error {
	_, err := j.Find(ctx, Query{Trace: t, Limit: 1, Match: func(f *Found) bool { w.learn(f.Message); return false }})
	return err
}

func (j *Journal) serveTrace(_ http.ResponseWriter, r *http.Request) (any, error) {
	id, err := message.ParseTraceID(r.PathValue("trace"))
	if err != nil {
		return nil, answer.Bad(err)
	}
	j.fresh(r.Context())
	res, err := j.Find(r.Context(), Query{Trace: id, Limit: 10_000, OldestFirst: true})
	if err != nil {
		return nil, err
	}
	if len(res.Found) == 0 {
		return nil, answer.Missing("no message of trace %s in the journal; it may never have been accepted, or be older than what is kept", id)
	}
	w := j.witness()
	for i := range res.Found {
		w.learn(res.Found[i].Message)
	}
	view := TraceView{Trace: id, Stopped: res.Stopped, Began: res.Found[0].Message.Recorded()}
	for i := range res.Found {
		view.Messages = append(view.Messages, w.line(&res.Found[i], dataShown))
		view.Took = max(view.Took, res.Found[i].Message.Recorded().Sub(view.Began))
	}
	return view, nil
}

// line shows a message; shown is how many bytes of its data, -1 for all.
func (w *witness) line(f *Found, shown int) Line {
	m := f.Message
	l := Line{
		ID: m.ID, Trace: m.Trace.ID, Span: m.Trace.Span, Cause: m.Cause, Log: f.Log, Position: f.Position, Subject: m.Subject,
		Topic: m.Subject.Topic(), Type: m.Type, Source: m.Source, Device: m.Device, Recorded: m.Recorded(), Time: m.Time,
		ContentType: m.ContentType, QoS: m.QoS, Depth: m.Depth, Size: len(m.Data), Fates: nonNil(w.fates(f)),
	}
	l.Outcome = worst(l.Fates)
	if d := w.learn(m); d != nil {
		l.Reason = d.Reason
	} else if message.Pattern("operator.refused.*.*").Matches(m.Subject) {
		var refusal struct{ Reason message.Reason }
		if json.Unmarshal(m.Data, &refusal) == nil {
			l.Reason = refusal.Reason
			l.Outcome = OutcomeRefused // of what it tells of; it was heard itself
		}
	}
	data := m.Data
	if shown >= 0 && len(data) > shown {
		data, l.Truncated = data[:shown], true
		for i := 0; i < utf8.UTFMax && len(data) > 0 && !utf8.Valid(data); i++ {
			data = data[:len(data)-1]
		}
	}
	if utf8.Valid(data) {
		l.Data = string(data)
	} else {
		l.DataBase64 = data
	}
	for k, v := range m.Properties.All() {
		l.Properties = append(l.Properties, [2]string{k, v})
	}
	return l
}

// parseQuery reads device, subject, topic, since, until, outcome, limit and order from the URL. since and until are
// RFC 3339 times, or durations back from now.
func parseQuery(r *http.Request, now time.Time) (q Query, outcome string, err error) {
	v := r.URL.Query()
	bad := func(name string, err error) (Query, string, error) {
		return q, "", answer.Bad(fmt.Errorf("%s=%s: %w", name, v.Get(name), err))
	}
	q.Device = v.Get("device")
	for _, s := range v["subject"] {
		p := message.Pattern(s)
		if err := p.Valid(); err != nil {
			return bad("subject", err)
		}
		q.Subjects = append(q.Subjects, p)
	}
	if s := v.Get("trace"); s != "" {
		if q.Trace, err = message.ParseTraceID(s); err != nil {
			return bad("trace", err)
		}
	}
	if q.Since, err = when.Parse(v.Get("since"), now); err != nil {
		return bad("since", err)
	}
	if q.Until, err = when.Parse(v.Get("until"), now); err != nil {
		return bad("until", err)
	}
	q.Limit = 100
	if s := v.Get("limit"); s != "" {
		if q.Limit, err = strconv.Atoi(s); err != nil || q.Limit < 1 || q.Limit > 10_000 {
			return bad("limit", errors.New("want a number from 1 to 10000"))
		}
	}
	q.OldestFirst = v.Get("order") == "oldest"
	outcome = v.Get("outcome")
	all := []string{"", OutcomeHandled, OutcomeNotHeard, OutcomeWaiting, OutcomeParked, OutcomeDead, OutcomeRefused}
	if !slices.Contains(all, outcome) {
		return bad("outcome", errors.New("want one of "+strings.Join(all[1:], ", ")))
	}
	return q, outcome, nil
}

func oldest(found []Found) (t time.Time) {
	for _, f := range found {
		if r := f.Message.Recorded(); t.IsZero() || r.Before(t) {
			t = r
		}
	}
	return t
}

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

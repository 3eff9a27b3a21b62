package rule

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

// Explained is what a version of a rule makes of a message that is in a log, and why.
type Explained struct {
	Rule    string `json:"rule"`
	Version int    `json:"version"`
	// InForce says what is known of the rule when the message was accepted.
	InForce InForce `json:"in_force"`

	Message  message.ID      `json:"message"`
	Trace    message.TraceID `json:"trace"`
	Log      string          `json:"log"`
	Topic    string          `json:"topic"` // as the rule spells it
	Recorded time.Time       `json:"recorded"`

	Heard   bool   `json:"heard"`
	Matched bool   `json:"matched"`
	Reason  string `json:"reason,omitempty"` // why it is not taken
	Error   string `json:"error,omitempty"`  // why SQL could not be applied
	// Says is what the actions say, or why they cannot.
	Says []Saying `json:"says,omitempty"`
	// Explain has each clause with whether it holds, and each expression with its value.
	Explain sql.Explanation `json:"explain"`
}

// InForce is the state of a rule at a time, by its history.
type InForce struct {
	Version int       `json:"version"` // 0 where there was none
	Enabled bool      `json:"enabled"`
	Since   time.Time `json:"since,omitzero"`
	By      string    `json:"by,omitempty"`
	// Forgotten says that the history does not reach back so far: it is the oldest state that is known.
	Forgotten bool `json:"forgotten,omitempty"`
}

// then is what was in force at a time.
func (h *Head) then(at time.Time) (f InForce) {
	f.Enabled = true // unless the history says otherwise; it may begin behind the rule's beginning
	known := false
	for _, c := range h.Changes {
		if c.trial() {
			continue
		}
		if c.At.After(at) {
			if known || c.Change == "created" {
				break
			}
			// What was before the oldest change that is remembered is not known; that change's state is the nearest.
			return InForce{Version: c.Version, Enabled: true, Since: c.At, By: c.By, Forgotten: true}
		}
		known = true
		f.Version, f.Since, f.By = c.Version, c.At, c.By
		switch c.Change {
		case "disabled":
			f.Enabled = false
		case "enabled", "created":
			f.Enabled = true
		case "deleted":
			f.Version = 0
		}
	}
	if !known || f.Version == 0 {
		return InForce{Since: f.Since, By: f.By}
	}
	return f
}

// serveExplain explains one message. Where the place of the message in a log is not given, as /api/v1/messages/<id> tells it,
// it is looked for by the time that its id holds.
func (e *Engine) serveExplain(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := r.URL.Query()
	id, err := message.ParseID(q.Get("message"))
	if err != nil {
		return nil, answer.Bad(fmt.Errorf("message=%s: %w", q.Get("message"), err))
	}
	number, err := versionOf(r)
	if err != nil {
		return nil, err
	}
	k, err := e.head(r, true)
	if err != nil {
		return nil, err
	}
	m, log, err := e.recorded(r, q, id)
	if err != nil {
		return nil, err
	}
	x := Explained{Rule: k.Name, InForce: k.then(m.Recorded()), Message: m.ID, Trace: m.Trace.ID, Log: log, Recorded: m.Recorded().UTC()}
	x.Version = cmp.Or(number, x.InForce.Version, k.Current)
	rule, err := e.book.compiledVersion(k, x.Version)
	if err != nil {
		return nil, err
	}
	with := trying{look: patientShadows{r.Context(), e.twins}, check: e.env.Check}
	v := rule.verdict(m, with)
	x.Heard, x.Matched, x.Error, x.Says = v.Heard, v.Matched, v.Error, v.Says
	x.Explain = rule.explain(m, with.look)
	for i := range x.Explain.Clauses {
		if x.Explain.Clauses[i].Name == "FROM" {
			x.Explain.Clauses[i].Holds = v.Heard
		}
	}
	if x.Topic = rule.topicOf(m); !v.Heard {
		x.Reason = fmt.Sprintf("FROM '%s' does not hear topic %q", rule.statement.Filter(), x.Topic)
		if rule.statement.Filter() == "" {
			x.Reason = fmt.Sprintf("it has no FROM, and hears %s%s/… only", basicIngest, k.Name)
		}
	} else if !v.Matched && v.Error == "" {
		x.Reason = x.Explain.Reason
	}
	return x, nil
}

// Says tells what the actions say of a message that is in no log, or why they cannot; nothing where it is not taken. Contracts
// are not looked at.
func (r *Rule) Says(in *sql.Input) (list []Saying) {
	out, matched, err := r.eval(in)
	if err != nil || !matched {
		return nil
	}
	m := &message.Message{ID: message.NewID(in.Time)}
	for _, a := range r.actions {
		s, _ := a.would(in, out, m, nil)
		list = append(list, s)
	}
	return list
}

// topicOf is the topic of a message as the rule spells it, or as it is where that spelling has none.
func (r *Rule) topicOf(m *message.Message) string {
	e := evaluate(m)
	defer e.release()
	if in, ok := e.of(r, m); ok {
		return in.Topic
	}
	return m.Subject.Topic()
}

// recorded gives a message of a log.
func (e *Engine) recorded(r *http.Request, q url.Values, id message.ID) (*message.Message, string, error) {
	if q.Get("log") == "" {
		m, log, err := search(r.Context(), e.env.Bus, id)
		if errors.Is(err, bus.ErrNotFound) {
			err = answer.Missing("no message %s is in the logs near the time that its id says; it may never have been accepted, or be older than what is kept", id)
		}
		return m, log, err
	}
	if !slices.Contains(message.Namespaces(), q.Get("log")) {
		return nil, "", answer.Bad(fmt.Errorf("log=%s: want one of %s", q.Get("log"), strings.Join(message.Namespaces(), ", ")))
	}
	var n [3]uint64
	for i, name := range []string{"generation", "partition", "sequence"} {
		var err error
		if n[i], err = strconv.ParseUint(q.Get(name), 10, 64); err != nil {
			return nil, "", answer.Bad(fmt.Errorf("%s=%s: want a number", name, q.Get(name)))
		}
	}
	l, err := e.env.Bus.Log(r.Context(), q.Get("log"), bus.LogOptions{})
	if err != nil {
		return nil, "", err
	}
	m, err := find(r.Context(), l, bus.Position{Log: l.ID(), Generation: uint32(n[0]), Partition: uint32(n[1]), Sequence: n[2]}, id)
	if errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrPurged) {
		err = answer.Missing("message %s is no longer in the log %s", id, q.Get("log"))
	}
	return m, q.Get("log"), err
}

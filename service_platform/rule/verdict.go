package rule

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/component/twins"
	"github.com/naru-platform/naru/internal/same"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

// Verdict is what a version of a rule makes of a message, as far as that can be known without saying anything.
type Verdict struct {
	Heard   bool   `json:"heard"`            // by FROM
	Matched bool   `json:"matched"`          // and WHERE holds
	Reason  string `json:"reason,omitempty"` // why it does not
	Error   string `json:"error,omitempty"`  // why SQL could not be applied
	// Output is what SELECT gives, cut where it is long; what is no text is told by its length.
	Output string   `json:"output,omitempty"`
	Says   []Saying `json:"says,omitempty"`

	payload []byte
	pending bool // the twin that it asks for is not known yet
}

// Saying is what one action says, or why it cannot.
type Saying struct {
	Action int    `json:"action"`
	Kind   string `json:"kind"`
	Topic  string `json:"topic,omitempty"`
	Error  string `json:"error,omitempty"`

	m *message.Message
}

// trying is what a rule is tried with.
type trying struct {
	look  sql.Lookup                   // nil: there are no twins
	check func(*message.Message) error // the contracts; nil: there are none
}

// hearsSubject says whether the rule hears a subject, as the set in force does.
func (r *Rule) hearsSubject(s message.Subject) bool {
	if name, ok := ingested(s); ok {
		return name == r.Name
	}
	if strings.HasPrefix(string(s), message.Operator+".") && r.wild() {
		return false
	}
	return slices.ContainsFunc(r.from, func(p message.Pattern) bool { return p.Matches(s) })
}

// verdict tries the rule on a message. Time is when the message was accepted, and what is random comes from the message, so
// that it is the same whenever it is asked for; but for the ids of commands. A nil rule hears nothing.
func (r *Rule) verdict(m *message.Message, with trying) *Verdict {
	v := &Verdict{}
	if r == nil || !r.hearsSubject(m.Subject) {
		return v
	}
	e := evaluate(m)
	defer e.release()
	e.in.Lookup = with.look
	in, ok := e.of(r, m)
	if !ok {
		return v
	}
	v.Heard = true
	out, matched, err := r.eval(in)
	var unknown *twins.Unknown
	if v.pending = errors.As(err, &unknown); err != nil {
		v.Error = shown(err)
		return v
	}
	if v.Matched = matched; !matched {
		return v
	}
	v.payload = bytes.Clone(out.Payload)
	v.Says = make([]Saying, 0, len(r.actions))
	for _, a := range r.actions {
		s, pending := a.would(in, out, m, with.check)
		v.Says, v.pending = append(v.Says, s), v.pending || pending
	}
	return v
}

// would is what an action would say. pending says that a twin that it asks for is not known yet.
func (a *action) would(in *sql.Input, out sql.Output, m *message.Message, check func(*message.Message) error) (s Saying, pending bool) {
	s = Saying{Action: a.index, Kind: a.kind}
	defer func() {
		if p := recover(); p != nil {
			s.Error = fmt.Sprintf("a bug in naru: %v", p)
		}
	}()
	said, err := a.say(in, out, m.Recorded())
	var unknown *twins.Unknown
	if pending = errors.As(err, &unknown); err == nil {
		id := said.ID // of a command, which is in its subject too
		s.Topic = said.Subject.Topic()
		if !id.IsZero() {
			s.Topic = strings.ReplaceAll(s.Topic, id.String(), "<id>")
		}
		if err = said.Follow(m); err == nil && check != nil {
			err = check(said)
		}
		s.m = said.Clone()
	}
	if err != nil {
		s.Error = shown(err)
	}
	return s, pending
}

// fails says whether something of it cannot be done.
func (v *Verdict) fails() bool {
	return v.Error != "" || slices.ContainsFunc(v.Says, func(s Saying) bool { return s.Error != "" })
}

// The ways in which two versions of a rule differ on a message.
const (
	NewlyMatched    = "newly_matched"
	NoLongerMatched = "no_longer_matched"
	NewlyFailing    = "newly_failing"
	NoLongerFailing = "no_longer_failing"
	OutputChanged   = "output_changed"
	ActionsChanged  = "actions_changed" // where, or how, it is said
)

// differences lists them in the order in which they are shown.
var differences = []string{NewlyFailing, NewlyMatched, NoLongerMatched, OutputChanged, ActionsChanged, NoLongerFailing}

// Differences gives their names, in the order in which they are shown.
func Differences() []string { return slices.Clone(differences) }

// difference names the first difference; empty where there is none.
func difference(before, after *Verdict) string {
	switch failed, fails := before.fails(), after.fails(); {
	case fails && !failed:
		return NewlyFailing
	case failed && !fails:
		return NoLongerFailing
	case after.Matched && !before.Matched:
		return NewlyMatched
	case before.Matched && !after.Matched:
		return NoLongerMatched
	case before.Error != after.Error:
		return NewlyFailing // in another way
	case !before.Matched:
		return ""
	case !bytes.Equal(before.payload, after.payload) && !same.JSON(before.payload, after.payload):
		return OutputChanged
	case !slices.EqualFunc(before.Says, after.Says, Saying.equal):
		return ActionsChanged
	}
	return ""
}

// equal compares what is said but for its data, which is the output.
func (s Saying) equal(o Saying) bool {
	if s.Kind != o.Kind || s.Topic != o.Topic || s.Error != o.Error {
		return false
	}
	x, y := s.m, o.m
	if x == nil || y == nil {
		return x == y
	}
	if x.QoS != y.QoS || x.Retain != y.Retain || x.ContentType != y.ContentType || x.ReplyTo != y.ReplyTo || !bytes.Equal(x.Correlation, y.Correlation) ||
		x.Expires.Sub(y.Expires).Abs() > time.Second {
		return false
	}
	// Of other actions the properties name the rule and its version.
	return s.Kind != "republish" || bytes.Equal(x.Properties, y.Properties)
}

const (
	outputShown = 256 // bytes of an output in an example
	dataShown   = 512 // and of a message
)

// brief makes a verdict fit to be shown as one of many.
func (v *Verdict) brief(r *Rule, m *message.Message, look sql.Lookup) *Verdict {
	c := *v
	c.Output, c.payload = brief(v.payload, outputShown), nil
	if r != nil && v.Heard && !v.Matched && v.Error == "" {
		c.Reason = cutText(r.explain(m, look).Reason, outputShown)
	}
	c.Says = slices.Clone(v.Says)
	for i := range c.Says {
		c.Says[i].Topic, c.Says[i].m = cutText(c.Says[i].Topic, outputShown), nil
	}
	return &c
}

// brief shows bytes as a text of at most so many.
func brief(b []byte, most int) string {
	if !utf8.Valid(b) {
		return fmt.Sprintf("(%d bytes)", len(b))
	}
	return cutText(string(b), most)
}

// cutText is the beginning of a text that is longer than so many bytes.
func cutText(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// Difference is a message on which two versions differ.
type Difference struct {
	Difference string          `json:"difference"`
	Message    message.ID      `json:"message"`
	Trace      message.TraceID `json:"trace"`
	Topic      string          `json:"topic"`
	Recorded   time.Time       `json:"recorded"`
	Data       string          `json:"data"` // cut where it is long
	Before     *Verdict        `json:"before"`
	After      *Verdict        `json:"after"`
}

// showDifference makes an example of a difference.
func showDifference(what string, m *message.Message, old, now *Rule, before, after *Verdict, look sql.Lookup) Difference {
	return Difference{Difference: what, Message: m.ID, Trace: m.Trace.ID, Topic: strings.Clone(cutText(m.Subject.Topic(), outputShown)), Recorded: m.Recorded().UTC(),
		Data: brief(m.Data, dataShown), Before: before.brief(old, m, look), After: after.brief(now, m, look)}
}

// explain tells, step by step, what the rule makes of a message.
func (r *Rule) explain(m *message.Message, look sql.Lookup) sql.Explanation {
	e := evaluate(m)
	defer e.release()
	e.in.Lookup = look
	in, _ := e.of(r, m)
	return r.statement.Explain(in)
}

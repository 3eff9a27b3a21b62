package sql

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Explanation tells what a statement does with one message and why.
type Explanation struct {
	Statement string `json:"statement"`
	// Matched says whether the message is taken, as Eval says it. FROM does not count there.
	Matched bool `json:"matched"`
	// Reason says why WHERE does not hold, in words; empty where it holds.
	Reason  string   `json:"reason,omitempty"`
	Clauses []Clause `json:"clauses"`
	// Output is what comes out if it is JSON, Bytes if it is not.
	Output json.RawMessage `json:"output,omitempty"`
	Bytes  []byte          `json:"bytes,omitempty"`
	Error  string          `json:"error,omitempty"`
	// Cut says that there were more steps than are shown.
	Cut bool `json:"cut,omitempty"`
}

// Clause is FROM, WHERE or SELECT.
type Clause struct {
	Name  string  `json:"name"`
	Text  string  `json:"text"`
	Holds bool    `json:"holds"` // FROM: the topic matches. WHERE: it is true. SELECT: something comes out
	Steps []*Step `json:"steps,omitempty"`
}

// Step is an expression that was evaluated.
type Step struct {
	Text   string          `json:"text"` // as it stands in the statement
	Line   int             `json:"line"`
	Column int             `json:"column"`
	Type   string          `json:"type"`
	Value  json.RawMessage `json:"value,omitempty"` // absent where it is Undefined, or long
	Note   string          `json:"note,omitempty"`  // why it is Undefined; how long it is
	Steps  []*Step         `json:"steps,omitempty"` // what it was made of
	of     expr
	v      Kind
	yes    bool
}

// The limits of an explanation: it is read by people.
const (
	explainSteps = 1000
	explainValue = 1024 // bytes of one value
)

// Explain evaluates the statement as Eval does, but goes through all of WHERE, and tells what it saw.
func (s *Statement) Explain(in *Input) Explanation {
	x := Explanation{Statement: s.text}
	if s.filter != "" {
		x.Clauses = append(x.Clauses, Clause{Name: "FROM", Text: s.filter, Holds: topicMatches(s.filter, in.Topic)})
	}
	e := newEnv(&s.program, in)
	defer e.release()
	e.trace = &tracer{text: s.text}
	x.Matched = true
	if s.where != nil {
		x.Matched = e.holds(s.where)
		at := s.where.where()
		x.Clauses = append(x.Clauses, Clause{Name: "WHERE", Text: s.text[at.from:at.to], Holds: x.Matched, Steps: e.trace.take()})
		if !x.Matched && e.err == nil {
			x.Reason = e.trace.why(s.where)
		}
	}
	if x.Matched {
		out := s.put(e)
		x.Matched = e.err == nil
		x.Clauses = append(x.Clauses, Clause{Name: "SELECT", Text: s.text[s.at.from:s.at.to], Holds: x.Matched && len(out) > 0, Steps: e.trace.take()})
		if c := (checker{b: out}); x.Matched && c.check() {
			x.Output = json.RawMessage(bytes.Clone(out))
		} else if x.Matched {
			x.Bytes = bytes.Clone(out)
		}
	}
	if e.err != nil {
		x.Error = e.err.Error()
	}
	x.Cut = e.trace.cut
	return x
}

// tracer writes down each expression that is evaluated.
type tracer struct {
	text  string
	roots []*Step
	open  []*Step
	last  map[expr]*Step // the latest step of each expression
	count int
	cut   bool
}

func (t *tracer) take() []*Step {
	taken := t.roots
	t.roots = nil
	return taken
}

func (t *tracer) eval(e *env, x expr) value {
	if _, ok := x.(*literal); ok {
		return x.eval(e)
	}
	if t.count++; t.count > explainSteps {
		t.cut = true
		return x.eval(e)
	}
	at := x.where()
	s := &Step{Text: t.text[at.from:at.to], of: x}
	s.Line, s.Column = lineColumn(t.text, at.from)
	if n := len(t.open); n > 0 {
		t.open[n-1].Steps = append(t.open[n-1].Steps, s)
	} else {
		t.roots = append(t.roots, s)
	}
	t.open = append(t.open, s)
	v := x.eval(e)
	t.open = t.open[:len(t.open)-1]
	s.Type, s.v = v.kind.String(), v.kind
	s.yes, _ = v.toBoolean()
	s.Value, s.Note = e.show(v)
	if v.kind == Undefined {
		s.Note = e.whyUndefined(x)
	}
	if t.last == nil {
		t.last = map[expr]*Step{}
	}
	t.last[x] = s
	return v
}

// show gives a value for an explanation, unless it is long. It spends nothing of what the evaluation may spend.
func (e *env) show(v value) (json.RawMessage, string) {
	switch {
	case v.kind == Undefined:
		return nil, ""
	case v.kind == binary:
		return nil, fmt.Sprintf("%d bytes that are no JSON", len(v.b))
	case len(v.b) > explainValue:
		return nil, fmt.Sprintf("%d bytes", len(v.b))
	}
	steps, err := e.steps, e.err
	e.steps, e.err = explainValue, nil
	out := e.appendJSON(nil, v)
	failed := e.err != nil
	e.steps, e.err = steps, err
	if failed || len(out) > explainValue {
		return nil, "too long to be shown"
	}
	return out, ""
}

// whyUndefined says what made an expression Undefined, where it is not one of its parts.
func (e *env) whyUndefined(x expr) string {
	switch x := x.(type) {
	case *path:
		if !x.nested && !e.index() {
			if len(e.in.Payload) == 0 {
				return "the payload is empty"
			}
			return fmt.Sprintf("the payload is no JSON from byte %d on", e.bad)
		}
		v, of := e.scope, "the element"
		if !x.nested {
			v, of = e.payload(), "the payload"
		}
		for i, name := range x.names {
			if v.kind != Object {
				return fmt.Sprintf("%s is no Object but %s", of, v.kind)
			}
			if v = v.member(name); v.kind == Undefined {
				return fmt.Sprintf("%s has no member %q", of, name)
			}
			of = string(bytes.Join(x.names[:i+1], []byte(".")))
		}
	case *call:
		if len(x.args) < x.fn.min || len(x.args) > x.fn.max {
			return fmt.Sprintf("%s takes %s, here are %d", x.fn.name, x.fn.arity(), len(x.args))
		}
	}
	return ""
}

// why says in words why a condition is not true.
func (t *tracer) why(x expr) string {
	s := t.last[x]
	if s == nil {
		return ""
	}
	if o, ok := x.(*operation); ok && (o.op == opAnd || o.op == opOr) {
		var reasons []string
		for _, side := range [...]expr{o.a, o.b} {
			if step := t.last[side]; step != nil && (!step.yes || o.op == opOr && s.v == Undefined && step.v == Undefined) {
				if r := t.why(side); r != "" {
					reasons = append(reasons, r)
				}
			} else if l, ok := side.(*literal); ok {
				reasons = append(reasons, t.text[l.from:l.to]+" is no condition that holds")
			}
		}
		return strings.Join(reasons, "; ")
	}
	if s.v == Undefined {
		if cause := s.cause(); cause != "" {
			return fmt.Sprintf("%s is Undefined: %s", s.Text, cause)
		}
		return s.Text + " is Undefined"
	}
	if s.v != Boolean {
		return fmt.Sprintf("%s is %s, not true", s.Text, s.shown())
	}
	parts := make([]string, 0, len(s.Steps))
	for _, part := range s.Steps {
		parts = append(parts, fmt.Sprintf("%s is %s", part.Text, part.shown()))
	}
	if len(parts) == 0 {
		return s.Text + " is false"
	}
	return fmt.Sprintf("%s is false: %s", s.Text, strings.Join(parts, " and "))
}

func (s *Step) shown() string {
	if len(s.Value) == 0 {
		return s.Type
	}
	return cut(string(s.Value))
}

// cause finds the innermost step that is Undefined of itself, and says what is known of it.
func (s *Step) cause() string {
	for _, part := range s.Steps {
		if part.v == Undefined {
			if c := part.cause(); c != "" {
				return c
			}
			return part.Text + " is Undefined"
		}
	}
	if s.Note != "" {
		return s.Note
	}
	var kinds []string
	for _, part := range s.Steps {
		kinds = append(kinds, fmt.Sprintf("%s is the %s %s", part.Text, part.Type, part.shown()))
	}
	return strings.Join(kinds, " and ")
}

// topicMatches says whether an MQTT filter takes a topic (MQTT 5.0, section 4.7).
func topicMatches(filter, topic string) bool {
	if strings.HasPrefix(topic, "$") && !strings.HasPrefix(filter, "$") {
		return false
	}
	for {
		f, restF, moreF := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, restT, moreT := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !moreF || !moreT {
			return moreF == moreT || moreF && restF == "#"
		}
		filter, topic = restF, restT
	}
}

package model

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/internal/span"
	"github.com/naru-platform/naru/message"
)

// Row is a message as a row. It may be used for one message after the other, so that its memory is; Values' elements may be
// kept, the slice may not.
type Row struct {
	Time     time.Time // what the row is about; UTC
	Device   string    // empty where there is none
	Subject  message.Subject
	Trace    message.TraceID
	ID       message.ID
	Recorded time.Time
	// Values are the fields' in their order; nil where there is none. See Type for what they are.
	Values []any

	rest []byte // what no field took so far, JSON
}

// A time that a payload gives is plausible from timeLeast until timeAhead behind the moment it was recorded: a device's clock
// without a battery begins in 1970 or 2000, and one that is ahead would be the latest value for ever.
var timeLeast = time.Date(2000, 1, 2, 0, 0, 0, 0, time.UTC)

const timeAhead = 10 * time.Minute

const depthMax = 200 // of a payload's JSON; what is nested deeper was not measured

// plan is how a dataset's rows are made.
type plan struct {
	root  *node
	rest  int // the field's number, -1 where there is none
	raw   int
	time  int // the field that is the time, -1 where there is none
	rules []rule
}

// node is a place in a payload that some field stands at, or below.
type node struct {
	next  map[string]*node
	field int // -1 where none stands here, timeHere for the time that has no column
}

const timeHere = -2

// rule is what a field's values are held to.
type rule struct {
	*Field
	pattern *regexp.Regexp
}

// newPlan is for fields that were checked.
func newPlan(d *Dataset) *plan {
	p := &plan{root: &node{field: -1}, rest: -1, raw: -1, time: -1, rules: make([]rule, len(d.Fields))}
	for i := range d.Fields {
		f := &d.Fields[i]
		p.rules[i].Field = f
		if f.Pattern != "" {
			p.rules[i].pattern = regexp.MustCompile(f.Pattern)
		}
		switch {
		case f.Rest:
			p.rest = i
		case f.Raw:
			p.raw = i
		default:
			p.put(f.pointer(), i)
		}
		if f.Name == d.Time {
			p.time = i
		}
	}
	if strings.HasPrefix(d.Time, "/") {
		p.put(d.Time, timeHere)
	}
	return p
}

func (p *plan) put(at string, field int) {
	tokens, err := pointer(at)
	if err != nil {
		return // it was checked
	}
	n := p.root
	for _, t := range tokens {
		if n.next == nil {
			n.next = map[string]*node{}
		}
		if n.next[t] == nil {
			n.next[t] = &node{field: -1}
		}
		n = n.next[t]
	}
	n.field = field
}

// Row makes a message the row r. What does not fit is a *message.Rejection: not_decodable where the payload is no JSON and the
// dataset takes only that, schema_mismatch with field, value and what was expected otherwise; r is then not to be used.
// The dataset is one that Parse or a Book gave. Any number of goroutines may call it, each with its own r.
func (d *Dataset) Row(m *message.Message, r *Row) error {
	p := d.plan
	r.Device, r.Subject, r.Trace, r.ID, r.Recorded = m.Device, m.Subject, m.Trace.ID, m.ID, m.Recorded().UTC()
	r.Time = r.Recorded
	if t := m.Time; !t.IsZero() && plausible(t, r.Recorded) {
		r.Time = t.UTC().Truncate(time.Microsecond)
	}
	r.Values = slices.Grow(r.Values[:0], len(d.Fields))[:len(d.Fields)]
	clear(r.Values)
	r.rest = r.rest[:0]
	body := bytes.TrimSpace(m.Data)
	object := len(body) > 0 && body[0] == '{' && utf8.Valid(body) && json.Valid(body)
	switch {
	case object:
		if deep(body) {
			return message.Rejectf(message.NotDecodable, "the payload's JSON is nested more than %d deep", depthMax)
		}
		if _, err := d.walk(body, 0, p.root, r); err != nil {
			return err
		}
		if p.rest >= 0 && len(r.rest) > 0 {
			r.Values[p.rest] = string(paired(r.rest))
		}
	case p.raw >= 0:
		if len(m.Data) > 0 {
			r.Values[p.raw] = bytes.Clone(m.Data)
		}
	case len(body) > 0 && utf8.Valid(body) && json.Valid(body) && p.rest >= 0:
		if deep(body) {
			return message.Rejectf(message.NotDecodable, "the payload's JSON is nested more than %d deep", depthMax)
		}
		r.Values[p.rest] = string(paired(body))
	default:
		return message.Rejectf(message.NotDecodable, "dataset %s wants a JSON object; the payload is %s (a field with `raw: true` would take it)", d.Name, sketch(m.Data))
	}
	if p.time >= 0 {
		if t, ok := r.Values[p.time].(time.Time); ok && plausible(t, r.Recorded) {
			r.Time = t
		}
	}
	return d.Check(r.Values)
}

// Check holds a row's values, by the fields' order and of the fields' types, to what is required and bounded: nil, or a
// *message.Rejection of reason schema_mismatch that names field, value and what was expected.
func (d *Dataset) Check(values []any) error {
	for i := range d.plan.rules {
		f := &d.plan.rules[i]
		v := values[i]
		if v == nil {
			if f.Required {
				return d.mismatch(f.Field, "is missing, and dataset %s requires it", d.Name)
			}
			continue
		}
		if f.Min == nil && f.Max == nil && f.Enum == nil && f.pattern == nil && f.MaxLength == 0 {
			continue
		}
		if err := d.bounds(f, v); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dataset) bounds(f *rule, v any) error {
	unit := ""
	if f.Unit != "" {
		unit = " " + f.Unit
	}
	number, isNumber := 0.0, true
	switch v := v.(type) {
	case int64:
		number = float64(v)
	case float64:
		number = v
	default:
		isNumber = false
	}
	if isNumber {
		switch {
		case f.Min != nil && !(number >= *f.Min):
			return d.mismatch(f.Field, "is %v; the least is %v%s", v, *f.Min, unit)
		case f.Max != nil && !(number <= *f.Max):
			return d.mismatch(f.Field, "is %v; the most is %v%s", v, *f.Max, unit)
		}
		return nil
	}
	if b, ok := v.([]byte); ok {
		if f.MaxLength > 0 && len(b) > f.MaxLength {
			return d.mismatch(f.Field, "has %d bytes; it may have %d", len(b), f.MaxLength)
		}
		return nil
	}
	s, ok := v.(string)
	if !ok {
		return nil
	}
	switch {
	case f.Enum != nil && !slices.Contains(f.Enum, s):
		return d.mismatch(f.Field, "is %s; it is one of %s", sketch([]byte(s)), strings.Join(f.Enum, ", "))
	case f.pattern != nil && !f.pattern.MatchString(s):
		return d.mismatch(f.Field, "is %s, which does not match %s", sketch([]byte(s)), f.Pattern)
	case f.MaxLength > 0 && len(s) > f.MaxLength && utf8.RuneCountInString(s) > f.MaxLength:
		return d.mismatch(f.Field, "has %d characters; it may have %d", utf8.RuneCountInString(s), f.MaxLength)
	}
	return nil
}

func (d *Dataset) mismatch(f *Field, format string, args ...any) error {
	return message.Rejectf(message.SchemaMismatch, "%s: "+strings.ReplaceAll(f.Name, "%", "%%")+" "+format, append([]any{f.pointer()}, args...)...)
}

func plausible(t, recorded time.Time) bool {
	return !t.Before(timeLeast) && !t.After(recorded.Add(timeAhead))
}

// walk goes over the object that begins at b[i], of text that is known to be valid JSON, gives its members to the fields and
// what is left to the rest, as an object where there is any. It gives the place behind the object.
func (d *Dataset) walk(b []byte, i int, n *node, r *Row) (int, error) {
	open := len(r.rest)
	r.rest = append(r.rest, '{')
	i = span.Space(b, i+1)
	for b[i] != '}' {
		from := i
		i = span.String(b, i)
		name := b[from:i]
		start := span.Space(b, span.Space(b, i)+1) // behind the colon
		next := n.find(name)
		mark := len(r.rest)
		var err error
		if next != nil && next.field == -1 && b[start] == '{' {
			r.member(name, nil)
			empty := len(r.rest)
			if i, err = d.walk(b, start, next, r); len(r.rest) == empty {
				r.rest = r.rest[:mark]
			}
		} else {
			i = span.Value(b, start)
			var taken bool
			if taken, err = d.take(b[start:i], next, r); !taken {
				r.member(name, b[start:i])
			}
		}
		if err != nil {
			return 0, err
		}
		if i = span.Space(b, i); b[i] == ',' {
			i = span.Space(b, i+1)
		}
	}
	if len(r.rest) == open+1 {
		r.rest = r.rest[:open]
	} else {
		r.rest = append(r.rest, '}')
	}
	return i + 1, nil
}

func (r *Row) member(name, value []byte) {
	if c := r.rest[len(r.rest)-1]; c != '{' {
		r.rest = append(r.rest, ',')
	}
	r.rest = append(append(append(r.rest, name...), ':'), value...)
}

// take gives a value to the field that stands there. What is no time where only the row's time would be read is not taken.
func (d *Dataset) take(raw []byte, n *node, r *Row) (bool, error) {
	switch {
	case n == nil || n.field == -1:
		if n != nil && raw[0] == '[' {
			return false, d.elements(raw, n, r)
		}
		return false, nil
	case n.field == timeHere:
		t, ok := timeOf(raw)
		if ok = ok && plausible(t, r.Recorded); ok {
			r.Time = t
		}
		return ok, nil
	}
	v, err := d.Fields[n.field].value(raw)
	if err != nil {
		return false, d.mismatch(&d.Fields[n.field], "%s", err)
	}
	r.Values[n.field] = v // of a name that is there twice, the last one counts
	return true, nil
}

// elements gives those of an array to the fields that stand there. The array stays in the rest as a whole.
func (d *Dataset) elements(b []byte, n *node, r *Row) error {
	i := span.Space(b, 1)
	for at := 0; b[i] != ']'; at++ {
		start := i
		i = span.Value(b, i)
		if next := n.next[strconv.Itoa(at)]; next != nil {
			raw := b[start:i]
			if next.field == -1 && raw[0] == '{' {
				var inner Row // what is not taken of it stays with the array
				inner.Values, inner.Recorded = r.Values, r.Recorded
				if _, err := d.walk(raw, 0, next, &inner); err != nil {
					return err
				}
				if !inner.Time.IsZero() {
					r.Time = inner.Time
				}
			} else if _, err := d.take(raw, next, r); err != nil {
				return err
			}
		}
		if i = span.Space(b, i); b[i] == ',' {
			i = span.Space(b, i+1)
		}
	}
	return nil
}

// find is the node below n of a name as JSON writes it.
func (n *node) find(name []byte) *node {
	if len(n.next) == 0 {
		return nil
	}
	if bytes.IndexByte(name, '\\') < 0 {
		return n.next[string(name[1:len(name)-1])]
	}
	return n.next[unquote(name)]
}

package twin

import (
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/internal/when"
	"github.com/naru-platform/naru/service_platform/twin/shadow"
)

// scanMax is how many twins are looked at for one answer.
const scanMax = 20_000

// Line is a twin in a list.
type Line struct {
	Device  string           `json:"device"`
	Shadow  string           `json:"shadow,omitempty"`
	Version uint64           `json:"version"`
	Updated time.Time        `json:"updated"`
	Source  string           `json:"source"` // of the last update
	Drift   time.Time        `json:"drifts_since,omitzero"`
	Fields  []shadow.Drifted `json:"fields,omitempty"` // that drift; in the list of those that do
}

// List is a part of the twins, by device and name.
type List struct {
	Twins []Line `json:"twins"`
	// Next is given as `after` for those that follow; empty where there are none.
	Next string `json:"next,omitempty"`
	// All is how many there are in all, and Drifting how many of them drift.
	All      int64 `json:"all"`
	Drifting int64 `json:"drifting"`
}

func line(r ref, d *shadow.Doc) Line {
	last := d.Last()
	l := Line{Device: r.device, Shadow: r.shadow, Version: d.Version, Updated: last.At().UTC(), Source: last.Source}
	if !d.Drift.IsZero() {
		l.Drift = d.Drift.UTC()
	}
	return l
}

func cursor(k []byte) string { return base64.RawURLEncoding.EncodeToString(k[1:]) }

// after is the first key behind a cursor, of a kind.
func after(kind byte, q url.Values) ([]byte, error) {
	s := q.Get("after")
	if s == "" {
		return []byte{kind}, nil
	}
	k, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil, answer.Bad(errors.New("after: want what `next` of the answer before said"))
	}
	return append(append([]byte{kind}, k...), 0), nil
}

// serveList gives twins in the order of their names: those of a device, whose device begins with a prefix, or all.
func (t *Twins) serveList(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := r.URL.Query()
	limit, err := limitOf(r, 100)
	if err != nil {
		return nil, err
	}
	from, err := after(kindTwin, q)
	if err != nil {
		return nil, err
	}
	to := []byte{kindTwin + 1}
	if dev, prefix := q.Get("device"), q.Get("prefix"); dev != "" || prefix != "" {
		first := append([]byte{kindTwin}, prefix...)
		if dev != "" {
			first = devicePrefix(dev)
		}
		if string(from) < string(first) {
			from = first
		}
		to = behind(first)
	}
	out := &List{Twins: []Line{}}
	return out, t.env.View(func(v component.View) error {
		var err, bad error
		if out.All, out.Drifting, err = counts(v); err != nil {
			return err
		}
		looked, last := 0, []byte(nil)
		err = v.Range(from, to, false, func(k, val []byte) bool {
			if len(out.Twins) == limit || looked == scanMax {
				out.Next = cursor(last)
				return false
			}
			looked++
			last = append(last[:0], k...)
			d, err := shadow.Decode(val)
			if bad = err; err != nil {
				return false
			}
			if d.Exists() {
				out.Twins = append(out.Twins, line(parseTwinKey(k), d))
			}
			return true
		})
		return errors.Join(err, bad)
	})
}

// behind is the first key behind all that begin so.
func behind(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// serveDrift gives twins of which something desired is not reported, for longer than `older`.
func (t *Twins) serveDrift(_ http.ResponseWriter, r *http.Request) (any, error) {
	q := r.URL.Query()
	limit, err := limitOf(r, 100)
	if err != nil {
		return nil, err
	}
	older := time.Duration(0)
	if s := q.Get("older"); s != "" {
		if older, err = time.ParseDuration(s); err != nil || older < 0 {
			return nil, answer.Bad(fmt.Errorf("older=%s: want a duration such as 10m", s))
		}
	}
	from, err := after(kindDrift, q)
	if err != nil {
		return nil, err
	}
	until := t.env.Now().Add(-older)
	out := &List{Twins: []Line{}}
	return out, t.env.View(func(v component.View) error {
		var err, bad error
		if out.All, out.Drifting, err = counts(v); err != nil {
			return err
		}
		looked, last := 0, []byte(nil)
		err = v.Range(from, []byte{kindDrift + 1}, false, func(k, val []byte) bool {
			if len(out.Twins) == limit || looked == scanMax {
				out.Next = cursor(last)
				return false
			}
			looked++
			last = append(last[:0], k...)
			if timeOf(val).After(until) {
				return true
			}
			x := parseTwinKey(k)
			d, err := load(v, x)
			if bad = err; err != nil {
				return false
			}
			l := line(x, d)
			for _, f := range d.Drifts() {
				if f.Since = f.Since.UTC(); !f.Since.After(until) {
					l.Fields = append(l.Fields, f)
				}
			}
			out.Twins = append(out.Twins, l)
			return true
		})
		return errors.Join(err, bad)
	})
}

// History is a part of what became of a twin, newest first.
type History struct {
	Device  string   `json:"device"`
	Shadow  string   `json:"shadow,omitempty"`
	Records []Record `json:"records"`
	// Next is given as `before` for older ones; 0 where there are none.
	Next uint64 `json:"next,omitempty"`
}

// records gives a twin's records from a number backwards, 0 for the newest, until f gives false.
func (t *Twins) records(v component.View, x ref, before uint64, f func(*shadow.Record) (bool, error)) error {
	to := behind(recordPrefix(x))
	if before > 0 {
		to = recordKey(x, before)
	}
	oldest := t.env.Now().Add(-t.age)
	var bad error
	err := v.Range(recordPrefix(x), to, true, func(k, val []byte) bool {
		_, number := parseRecordKey(k)
		rec, err := shadow.DecodeRecord(number, val)
		if bad = err; err != nil || rec.At().Before(oldest) {
			return false
		}
		var more bool
		more, bad = f(rec)
		return more && bad == nil
	})
	return errors.Join(err, bad)
}

func (t *Twins) serveHistory(_ http.ResponseWriter, r *http.Request) (any, error) {
	x, err := refOf(r)
	if err != nil {
		return nil, err
	}
	limit, err := limitOf(r, 100)
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	before := uint64(0)
	if s := q.Get("before"); s != "" {
		if before, err = strconv.ParseUint(s, 10, 64); err != nil || before == 0 {
			return nil, answer.Bad(fmt.Errorf("before=%s: want a record's number", s))
		}
	}
	path := q.Get("path")
	out := &History{Device: x.device, Shadow: x.shadow, Records: []Record{}}
	return out, t.env.View(func(v component.View) error {
		if err := known(v, x); err != nil {
			return err
		}
		return t.records(v, x, before, func(rec *shadow.Record) (bool, error) {
			if path != "" && !touches(rec, path) {
				return true, nil
			}
			if len(out.Records) == limit {
				out.Next = out.Records[limit-1].Number
				return false, nil
			}
			out.Records = append(out.Records, showRecord(x, rec))
			return true, nil
		})
	})
}

func touches(rec *shadow.Record, path string) bool {
	for _, c := range rec.Changes {
		if under(c.Path, path) {
			return true
		}
	}
	return false
}

// past gives a twin's state as it was at a time, or at a version, by undoing what came later.
func (t *Twins) past(x ref, q url.Values) (any, error) {
	var at time.Time
	version := uint64(0)
	var err error
	switch {
	case q.Has("at") && q.Has("version"):
		return nil, answer.Bad(errors.New("at and version: want one of them"))
	case q.Has("at"):
		if at, err = when.Parse(strings.ReplaceAll(q.Get("at"), " ", "+"), t.env.Now()); err != nil || at.IsZero() { // a plus in a URL is a space
			return nil, answer.Bad(fmt.Errorf("at=%s: %w", q.Get("at"), cmp.Or(err, errors.New("want a time"))))
		}
	default:
		if version, err = strconv.ParseUint(q.Get("version"), 10, 64); err != nil || version == 0 {
			return nil, answer.Bad(fmt.Errorf("version=%s: want a number from 1", q.Get("version")))
		}
	}
	later := func(rec *shadow.Record) bool {
		if version > 0 {
			return rec.Version > version || rec.Version == version && rec.Kind == shadow.Deleted
		}
		return rec.At().After(at)
	}
	s := Shown{Device: x.device, Shadow: x.shadow}
	return &s, t.env.View(func(v component.View) error {
		d, err := load(v, x)
		if err != nil {
			return err
		}
		if version > d.Version {
			return answer.Missing("the twin has version %d; there is no %d yet", d.Version, version)
		}
		p, next := d.Past(), d.Changes // next is the number of the record that made it what it is
		var made *shadow.Record
		err = t.records(v, x, 0, func(rec *shadow.Record) (bool, error) {
			if !later(rec) {
				made = rec
				return false, nil
			}
			next--
			return true, p.Undo(rec)
		})
		switch last := d.Last(); {
		case err != nil:
			return err
		case made != nil && p.Exists:
			s.Version, s.Updated, s.Message, s.Source = made.Version, made.At().UTC(), made.By.ID.String(), made.By.Source
		case made == nil && next == d.Changes && d.Exists() && (version == d.Version || version == 0 && !at.Before(last.At())):
			s.Version, s.Updated, s.Message, s.Source = d.Version, last.At().UTC(), last.ID.String(), last.Source
		case made == nil && next > 0 && !t.forgotForAge(d, next, at):
			return answer.Missing("the history of %s does not reach back so far; it has the last %d changes of the last %s", x.called(), t.history, t.age)
		case !p.Exists && d.Changes == 0:
			return absent(x)
		case !p.Exists:
			return answer.Missing("device %s had no such twin then; `naru twin history %s` shows what became of it", x.device, x.device)
		}
		s.Document = append(append([]byte(`{"state":`), p.State()...), '}')
		return nil
	})
}

// forgotForAge says whether a record is no longer remembered for its age alone, and so is older than a time in question.
func (t *Twins) forgotForAge(d *shadow.Doc, number uint64, at time.Time) bool {
	return d.Changes-number < t.history && !at.Before(t.env.Now().Add(-t.age))
}

package shadow

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/internal/span"
)

// Update is an update that was accepted.
type Update struct {
	// Before and After are the document before and after it.
	Before, After *Doc
	// Changes are the values that are other ones now, in the order of their sections and names. A value that was written
	// again as it was is none.
	Changes []Change

	now   time.Time
	ask   node // the request's state; null where it was null
	token string
	delta []node
}

// Change is a value that became another one.
type Change struct {
	// Path is its JSON pointer (RFC 6901) in the state, such as /desired/color/r.
	Path string
	// Before and After are what it was and is, as JSON; empty where there was or is none.
	Before, After string
}

// Update has a request done by whom, at the time that it is answered.
func (d *Doc) Update(request []byte, by Cause, now time.Time, l Limits) (*Update, *Error) {
	r, refused := readRequest(request, l)
	if refused != nil {
		return nil, refused
	}
	before := d.at(now)
	if r.hasVersion && r.version != before.Version {
		e := conflict(r.version)
		e.token = r.token
		return nil, e
	}
	by.Source = CutSource(by.Source)
	u := &Update{Before: before, now: now, ask: r.state, token: r.token}
	after := &Doc{Version: before.Version + 1, Changes: before.Changes, causes: append(slices.Clip(before.causes), by)}
	after.last = int32(len(after.causes) - 1)
	var path [8]string
	m := merger{cause: after.last, path: path[:0]}
	after.desired = m.section("/desired", before.desired, r.state.null(), find(r.state.fields, "desired"))
	after.reported = m.section("/reported", before.reported, r.state.null(), find(r.state.fields, "reported"))
	if after.stateSize() > l.State {
		e := TooLarge()
		e.token = r.token
		return nil, e
	}
	if u.Changes = m.changes; len(u.Changes) > 0 || !before.Exists() {
		after.Changes++
	}
	u.delta = diff(after.desired, after.reported)
	after.Drift = after.drift(u.delta)
	u.After = after
	return u, nil
}

// request is a request that keeps the protocol.
type request struct {
	state      node
	token      string // as JSON
	version    uint64
	hasVersion bool
}

func readRequest(b []byte, l Limits) (r request, refused *Error) {
	if len(b) > l.Request {
		return r, TooLarge()
	}
	if !utf8.Valid(b) {
		return r, notUTF8()
	}
	top, err := parse(string(b))
	switch {
	case err == errDeep:
		return r, tooDeep(l)
	case err != nil:
		return r, bad("Invalid JSON")
	}
	if r.token, refused = readToken(&top); refused != nil {
		return r, refused
	}
	if refused = r.read(&top, l); refused != nil {
		refused.token = r.token
	}
	return r, refused
}

func (r *request) read(top *node, l Limits) *Error {
	if v := find(top.fields, "version"); v != nil && !v.null() {
		n, err := strconv.ParseUint(v.text, 10, 64)
		if err != nil || n > math.MaxInt64 {
			return bad("Invalid version")
		}
		r.version, r.hasVersion = n, true
	}
	state := find(top.fields, "state")
	switch {
	case state == nil:
		return bad("Missing required node: state")
	case state.null():
		r.state = *state
		return nil
	case !state.object():
		return bad("State node must be an object")
	}
	for i := range state.fields {
		s := &state.fields[i]
		switch {
		case s.key != "desired" && s.key != "reported":
			return invalidNode(s.key)
		case !s.object() && !s.null():
			return bad(strings.ToUpper(s.key[:1]) + s.key[1:] + " node must be an object")
		}
		switch deep, nulled := fault(s.fields, 0, l.Depth); {
		case deep:
			return tooDeep(l)
		case nulled != "":
			return invalidNode(nulled)
		}
	}
	r.state = *state
	return nil
}

// readToken gives the client token of a request, as JSON.
func readToken(top *node) (string, *Error) {
	t := find(top.fields, "clientToken")
	if t == nil || t.null() {
		return "", nil
	}
	if !t.value() || t.text[0] != '"' || len(span.Unquote(nil, t.text)) > TokenMax {
		return "", bad("Invalid clientToken")
	}
	return t.text, nil
}

// merger makes the fields of a section anew. What it does not touch it shares.
type merger struct {
	cause   int32
	path    []string
	changes []Change
}

func (m *merger) section(name string, old []node, all bool, ask *node) []node {
	m.path = append(m.path[:0], name)
	switch {
	case all || ask != nil && ask.null():
		m.removed(old)
		return nil
	case ask == nil:
		return old
	}
	return m.merge(old, ask.fields)
}

// merge puts the fields that are asked for among the old ones.
func (m *merger) merge(old, ask []node) []node {
	if len(ask) == 0 {
		return old
	}
	kept := make([]node, 0, len(old)+len(ask))
	for len(old) > 0 || len(ask) > 0 {
		switch {
		case len(ask) == 0 || len(old) > 0 && old[0].key < ask[0].key:
			kept = append(kept, old[0])
			old = old[1:]
			continue
		case len(old) == 0 || ask[0].key < old[0].key:
			m.within(ask[0].key, func() {
				if n, some := m.grow(&ask[0]); some {
					kept = append(kept, n)
				}
			})
		default:
			m.within(ask[0].key, func() {
				if n, some := m.replace(&old[0], &ask[0]); some {
					kept = append(kept, n)
				}
			})
			old = old[1:]
		}
		ask = ask[1:]
	}
	return kept
}

func (m *merger) within(key string, f func()) {
	m.path = append(m.path, key)
	f()
	m.path = m.path[:len(m.path)-1]
}

// replace gives what becomes of a field, and whether anything does.
func (m *merger) replace(old, ask *node) (node, bool) {
	switch {
	case ask.null():
		m.gone(old)
		return node{}, false
	case ask.text == emptyObject && !old.value():
		return *old, true // nothing is put among its fields
	case ask.value():
		n := node{key: old.key, text: ask.text, wrote: m.cause, change: m.cause}
		switch {
		case old.value() && alike(old.text, ask.text):
			n.change = old.change
		case old.value():
			m.note(old.text, ask.text)
		default:
			m.gone(old)
			m.note("", ask.text)
		}
		return n, true
	case !old.value():
		n := node{key: old.key, fields: m.merge(old.fields, ask.fields)}
		return n, len(n.fields) > 0
	}
	at := len(m.changes)
	m.note(old.text, "")
	n, some := m.grow(ask)
	if !some { // it only removes, and there is nothing to be removed from
		m.changes = m.changes[:at]
		return *old, true
	}
	return n, true
}

// grow makes a field where there is none, without what is null. An object of which nothing is left is not made.
func (m *merger) grow(ask *node) (node, bool) {
	switch {
	case ask.null():
		return node{}, false
	case ask.value():
		m.note("", ask.text)
		return node{key: ask.key, text: ask.text, wrote: m.cause, change: m.cause}, true
	}
	n := node{key: ask.key, fields: m.merge(nil, ask.fields)}
	return n, len(n.fields) > 0
}

// gone notes that a field is no more.
func (m *merger) gone(old *node) {
	if old.value() {
		m.note(old.text, "")
		return
	}
	m.removed(old.fields)
}

func (m *merger) removed(old []node) {
	for i := range old {
		m.within(old[i].key, func() { m.gone(&old[i]) })
	}
}

func (m *merger) note(before, after string) {
	m.changes = append(m.changes, Change{Path: pointer(m.path), Before: before, After: after})
}

// pointer joins names into a JSON pointer; the first one is one already.
func pointer(path []string) string {
	var room [128]byte
	b := append(room[:0], path[0]...)
	for _, name := range path[1:] {
		if strings.ContainsAny(name, "~/") {
			name = strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
		}
		b = append(append(b, '/'), name...)
	}
	return string(b)
}

// diff gives the desired fields that are missing in reported, or other ones there.
func diff(desired, reported []node) (delta []node) {
	for i := range desired {
		d := &desired[i]
		for len(reported) > 0 && reported[0].key < d.key {
			reported = reported[1:]
		}
		if len(reported) == 0 || reported[0].key != d.key {
			delta = append(delta, *d)
			continue
		}
		r := &reported[0]
		switch {
		case d.text == emptyObject && r.object():
		case d.value():
			if !r.value() || !alike(d.text, r.text) {
				delta = append(delta, *d)
			}
		case r.value() && r.text != emptyObject:
			delta = append(delta, *d)
		default:
			if fields := diff(d.fields, r.fields); len(fields) > 0 {
				delta = append(delta, node{key: d.key, fields: fields})
			}
		}
	}
	return delta
}

// drift is since when the oldest field of the delta is not as desired, in whole seconds.
func (d *Doc) drift(delta []node) (oldest time.Time) {
	d.eachDrift(nil, delta, d.reported, func(_ []string, _, _ *node, since time.Time) {
		if since = since.Truncate(time.Second); oldest.IsZero() || since.Before(oldest) {
			oldest = since
		}
	})
	return oldest
}

// eachDrift gives the values of the delta, what is reported in the place of each (nil for nothing), and since when they
// differ: since the one of the two that changed last did.
func (d *Doc) eachDrift(path []string, delta, reported []node, f func(path []string, want, have *node, since time.Time)) {
	for i := range delta {
		want, have := &delta[i], find(reported, delta[i].key)
		at := append(path, want.key)
		if !want.value() {
			if have != nil && have.value() {
				d.eachUnder(at, want.fields, have, f)
				continue
			}
			var under []node
			if have != nil {
				under = have.fields
			}
			d.eachDrift(at, want.fields, under, f)
			continue
		}
		f(at, want, have, d.since(want, have))
	}
}

// eachUnder gives the values below an object in whose place a value is reported.
func (d *Doc) eachUnder(path []string, fields []node, have *node, f func(path []string, want, have *node, since time.Time)) {
	for i := range fields {
		want := &fields[i]
		at := append(path, want.key)
		if want.value() {
			f(at, want, nil, d.since(want, have))
		} else {
			d.eachUnder(at, want.fields, have, f)
		}
	}
}

func (d *Doc) since(want, have *node) time.Time {
	at := d.causes[want.change].At()
	if have != nil {
		if t := d.changed(have); t.After(at) {
			return t
		}
	}
	return at
}

// changed is when a field changed last.
func (d *Doc) changed(n *node) (last time.Time) {
	if n.value() {
		return d.causes[n.change].At()
	}
	for i := range n.fields {
		if t := d.changed(&n.fields[i]); t.After(last) {
			last = t
		}
	}
	return last
}

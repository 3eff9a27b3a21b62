package shadow

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzUpdate holds any update of any document to what always holds.
func FuzzUpdate(f *testing.F) {
	for _, s := range []struct{ first, second string }{
		{`{"state":{"desired":{"a":{"b":1.0}},"reported":{"a":{"b":1}}}}`, `{"state":{"desired":{"a":null}},"version":1,"clientToken":"t"}`},
		{`{"state":{"desired":{"a":[1,{"b":"\u0000"}],"c":{}}}}`, `{"state":{"reported":{"a":{"x":{"y":null}},"c":5}}}`},
		{`{"state":null}`, `{"state":{"desired":{"a":1},"a":{}}}`},
		{`{"state":{"reported":{"":{"":[[],{}]}}}}`, `{"state":{"desired":{"":{"":{}}}}}`},
		{`{"state":{"desired":{"\ud800":-0,"e":1e-5}}}`, `{"state":{"reported":{"\udc00":0E9,"e":0.00001}}}`},
	} {
		f.Add([]byte(s.first), []byte(s.second))
	}
	l := Defaults
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := &Doc{}
		for i, ask := range [][]byte{first, second} {
			now := time.Unix(begins+int64(i), 0)
			before := string(d.State())
			u, refused := d.Update(ask, by(now.Unix(), byte(i), "//naru/fuzz"), now, l)
			if refused != nil {
				if !json.Valid(refused.Payload(now)) || refused.Code < 400 || refused.Message == "" {
					t.Fatalf("%q is refused with %s", ask, refused.Payload(now))
				}
				if refused.Message == "Invalid JSON" && json.Valid(ask) {
					t.Fatalf("%q is JSON", ask)
				}
				continue
			}
			if !json.Valid(ask) || !utf8.Valid(ask) {
				t.Fatalf("%q is accepted", ask)
			}
			if u.After.Version != d.Version+1 {
				t.Fatalf("version %d follows %d", u.After.Version, d.Version)
			}
			if got := string(d.State()); got != before {
				t.Fatalf("the document before is %s; it was %s", got, before)
			}
			for _, b := range [][]byte{u.AppendAccepted(nil), u.AppendDocuments(nil), u.AppendDelta(nil), u.After.State()} {
				if b != nil && !json.Valid(b) {
					t.Fatalf("%s is not JSON", b)
				}
			}
			if len(u.After.State()) != u.After.stateSize() || u.After.stateSize() > l.State {
				t.Fatalf("%s has a size of %d", u.After.State(), u.After.stateSize())
			}
			onlyWhatWasAsked(t, ask, u.AppendAccepted(nil))
			kept, err := Decode(u.After.Append(nil))
			if err != nil || !bytes.Equal(kept.State(), u.After.State()) || !bytes.Equal(kept.Append(nil), u.After.Append(nil)) || !kept.Drift.Equal(u.After.Drift) {
				t.Fatalf("%s is kept as %s (%v)", u.After.State(), kept.State(), err)
			}
			undone(t, u)
			deltaApplies(t, u, l)
			d = kept
		}
	})
}

// deltaApplies reports what the delta wants; then there is no delta.
func deltaApplies(t *testing.T, u *Update, l Limits) {
	delta := u.AppendDelta(nil)
	if (delta != nil) == u.After.Drift.IsZero() || (delta != nil) != (len(u.After.Drifts()) > 0) {
		t.Fatalf("delta %s, drift since %v: %+v", delta, u.After.Drift, u.After.Drifts())
	}
	if delta == nil {
		return
	}
	l.State *= 3
	owed := appendObject(nil, diff(u.After.desired, u.After.reported))
	next, refused := u.After.Update([]byte(`{"state":{"reported":`+string(owed)+`}}`), by(begins+9, 9, ""), time.Unix(begins+9, 0), l)
	if refused != nil {
		t.Fatalf("the delta %s, reported, is refused: %v", owed, refused)
	}
	if next.AppendDelta(nil) != nil {
		t.Fatalf("%s and the delta %s, reported, leave %s", u.After.State(), delta, next.AppendDelta(nil))
	}
}

// undone takes an update back by its record.
func undone(t *testing.T, u *Update) {
	p := u.After.Past()
	for _, c := range u.Changes {
		if c.Before == c.After {
			t.Fatalf("%+v is no change", c)
		}
	}
	if err := p.Undo(&Record{Kind: Updated, Changes: u.Changes}); err != nil {
		t.Fatal(err)
	}
	was := u.Before.State()
	if got := p.State(); !bytes.Equal(got, was) {
		// A number that was written otherwise is no change.
		if a, b := parsed(t, got), parsed(t, was); len(diff(a, b)) > 0 || len(diff(b, a)) > 0 {
			t.Fatalf("%s undone is %s; want %s", u.After.State(), got, was)
		}
	}
}

func parsed(t *testing.T, state []byte) []node {
	n, err := parse(string(state))
	if err != nil {
		t.Fatal(err)
	}
	return n.fields
}

// onlyWhatWasAsked looks for what is in the answer and not in the request.
func onlyWhatWasAsked(t *testing.T, ask, accepted []byte) {
	asked, _ := parse(string(ask))
	answered, err := parse(string(accepted))
	if err != nil {
		t.Fatal(err)
	}
	var within func(got, want []node)
	within = func(got, want []node) {
		for i := range got {
			w := find(want, got[i].key)
			if w == nil || w.text != got[i].text {
				t.Fatalf("%s is the answer to %s", accepted, ask)
			}
			within(got[i].fields, w.fields)
		}
	}
	within(find(answered.fields, "state").fields, find(asked.fields, "state").fields)
	if token := find(asked.fields, "clientToken"); token != nil && token.text != null && find(answered.fields, "clientToken").text != token.text {
		t.Fatalf("%s is the answer to %s", accepted, ask)
	}
}

// FuzzDecode reads any bytes.
func FuzzDecode(f *testing.F) {
	for _, b := range samples(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := Decode(b); err == nil && len(b) > 0 {
			if again, err := Decode(d.Append(nil)); err != nil || !bytes.Equal(again.Append(nil), d.Append(nil)) {
				t.Fatalf("%x is read, and not again (%v)", b, err)
			}
		}
		if r, err := DecodeRecord(1, b); err == nil {
			r.Append(nil)
		}
	})
}

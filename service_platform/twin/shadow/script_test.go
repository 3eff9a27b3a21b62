package shadow

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/naru-platform/naru/message"
)

// none is an answer that must not be given.
const none = "none"

// step is a request and what is answered to it; what is empty is not looked at.
type step struct {
	op       string // update where empty, get or delete
	at       int64  // Unix seconds; those of the step before where zero
	ask      string
	accepted string
	delta    string
	docs     string
	rejected string
	state    string // of the document after the step
}

// script is a shadow's life, from a state at a version on.
type script struct {
	name, url string
	state     string // nothing where there is no shadow yet
	version   uint64
	limits    *Limits
	shadow    string // its name, for errors
	steps     []step
}

const begins = 1591140517

// idAt is a message's id of that time, the same each time.
func idAt(unix int64, n byte) message.ID {
	id := message.NewID(time.Unix(unix, 0))
	for i := range id[8:] {
		id[8+i] = 0x80
	}
	id[15] = n
	return id
}

func by(unix int64, n byte, source string) Cause { return Cause{ID: idAt(unix, n), Source: source} }

func docWith(t testing.TB, state string, version uint64, at int64) *Doc {
	t.Helper()
	if state == "" {
		return &Doc{}
	}
	l := Defaults
	l.State, l.Depth = 1<<20, 60
	u, refused := (&Doc{Version: version - 1}).Update([]byte(`{"state":`+state+`}`), by(at, 0, "//naru/begin"), time.Unix(at, 0), l)
	if refused != nil {
		t.Fatalf("the state to begin with, %s: %v", state, refused)
	}
	return u.After
}

func play(t *testing.T, s script) {
	l := Defaults
	if s.limits != nil {
		l = *s.limits
	}
	at := int64(begins)
	d := docWith(t, s.state, max(1, s.version), at)
	for i, st := range s.steps {
		if st.at != 0 {
			at = st.at
		}
		now := time.Unix(at, 0)
		var accepted, delta, docs, rejected []byte
		var refused *Error
		switch st.op {
		case "get":
			accepted, refused = d.Get([]byte(st.ask), s.shadow, now)
		case "delete":
			var gone *Doc
			if gone, accepted, refused = d.Delete([]byte(st.ask), s.shadow, now); refused == nil {
				d = gone
			}
		default:
			var u *Update
			if u, refused = d.Update([]byte(st.ask), by(at, byte(i+1), "//naru/test"), now, l); refused == nil {
				accepted, delta, docs = u.AppendAccepted(nil), u.AppendDelta(nil), u.AppendDocuments(nil)
				d = u.After
			}
		}
		if refused != nil {
			rejected = refused.Payload(now)
			if st.rejected == "" {
				t.Errorf("step %d, %s %s, is rejected: %s", i+1, st.op, st.ask, rejected)
			}
		}
		if d.Version > 0 { // whatever was done, the document survives being kept
			kept, err := Decode(d.Append(nil))
			if err != nil {
				t.Fatalf("step %d: %v", i+1, err)
			}
			if !bytes.Equal(kept.State(), d.State()) || !reflect.DeepEqual(kept.Blame(), d.Blame()) || kept.Version != d.Version || !kept.Drift.Equal(d.Drift) {
				t.Errorf("step %d: kept, %s is %s", i+1, d.State(), kept.State())
			}
			d = kept
		}
		expect(t, i, "accepted", accepted, st.accepted)
		expect(t, i, "delta", delta, st.delta)
		expect(t, i, "documents", docs, st.docs)
		expect(t, i, "rejected", rejected, st.rejected)
		expect(t, i, "state", d.State(), st.state)
	}
}

func expect(t *testing.T, i int, what string, got []byte, want string) {
	t.Helper()
	switch {
	case want == "":
	case want == none:
		if got != nil {
			t.Errorf("step %d: %s is %s; want none", i+1, what, got)
		}
	case got == nil:
		t.Errorf("step %d: no %s; want %s", i+1, what, want)
	case !reflect.DeepEqual(loose(t, got), loose(t, []byte(want))):
		t.Errorf("step %d: %s is\n%s\nwant\n%s", i+1, what, got, want)
	}
}

// loose reads JSON as another program would.
func loose(t *testing.T, b []byte) (v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return v
}

func playAll(t *testing.T, scripts []script) {
	names := map[string]bool{}
	for _, s := range scripts {
		if names[s.name] {
			t.Errorf("two scripts are called %q", s.name)
		}
		names[s.name] = true
		t.Run(s.name, func(t *testing.T) { play(t, s) })
	}
}

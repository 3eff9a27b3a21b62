package shadow

import (
	"testing"
	"time"

	"github.com/naru-platform/naru/message"
)

func TestHistoryLeadsBackToEachState(t *testing.T) {
	asks := []string{
		`{"state":{"reported":{"a":1}}}`,
		`{"state":{"desired":{"a":2,"b":{"c":{"d":1}}}}}`,
		`{"state":{"reported":{"a":1}}}`, // no change
		`{"state":{"desired":{"b":{"c":7}}}}`,
		`{"state":{"desired":{"b":{"c":{}}}}}`,
		`{"state":{"desired":{"b":{"c":{"x":[1],"~/":2}}}}}`,
		`{"state":{"desired":{"b":{"c":null}},"reported":{"":{"":5}}}}`,
		`{"state":null}`,
		`{"state":{"reported":{"z":1}}}`,
		"delete",
		`{"state":{"desired":{"again":true}}}`,
	}
	d := &Doc{}
	states := []string{"{}"}
	var records []*Record
	var changedAt []int // the index of the state after each record
	for i, ask := range asks {
		c := by(begins+int64(i), byte(i), "//naru/test")
		var r *Record
		if ask == "delete" {
			r = d.Removal(c, message.TraceID{1})
			d = d.Gone(c.At())
		} else {
			u, refused := d.Update([]byte(ask), c, c.At(), Defaults)
			if refused != nil {
				t.Fatal(refused)
			}
			r = u.Record(message.TraceID{1})
			d = u.After
		}
		states = append(states, string(d.State()))
		if r == nil {
			continue
		}
		kept, err := DecodeRecord(r.Number, r.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if !equal(kept, r) {
			t.Errorf("record %+v is kept as %+v", r, kept)
		}
		records, changedAt = append(records, kept), append(changedAt, i+1)
	}
	p := d.Past()
	for i := len(records) - 1; i >= 0; i-- {
		if r := records[i]; r.Number != uint64(i+1) {
			t.Errorf("record %d has number %d", i+1, r.Number)
		}
		if got := string(p.State()); got != states[changedAt[i]] {
			t.Errorf("after record %d the state is %s; want %s", i+1, got, states[changedAt[i]])
		}
		if err := p.Undo(records[i]); err != nil {
			t.Fatal(err)
		}
	}
	if p.Exists || string(p.State()) != "{}" {
		t.Errorf("before all it is there: %v, %s", p.Exists, p.State())
	}
	if k := records[0].Kind + records[1].Kind + records[8].Kind + records[9].Kind; k != "createdupdateddeletedcreated" {
		t.Errorf("kinds are %s", k)
	}
}

func TestARecordNamesWhatChanged(t *testing.T) {
	d := docWith(t, `{"desired":{"a":{"b":1,"c":2}},"reported":{"x":5}}`, 1, begins)
	u, refused := d.Update([]byte(`{"state":{"desired":{"a":{"b":1,"c":3}},"reported":{"x":null,"y":[1]}}}`), by(begins+1, 1, "//naru/app"), time.Unix(begins+1, 0), Defaults)
	if refused != nil {
		t.Fatal(refused)
	}
	want := []Change{{"/desired/a/c", "2", "3"}, {"/reported/x", "5", ""}, {"/reported/y", "", "[1]"}}
	if r := u.Record(message.TraceID{}); !equal(r.Changes, want) || !equal(r.Paths(), []string{"/desired/a/c", "/reported/x", "/reported/y"}) {
		t.Errorf("changes are %+v; want %+v", r.Changes, want)
	}
}

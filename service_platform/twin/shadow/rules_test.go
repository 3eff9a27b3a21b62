package shadow

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

var docTime = time.Unix(begins, 0)

func equal(a, b any) bool { return reflect.DeepEqual(a, b) }

// What the protocol leaves open, as the package's comment decides it.
func TestDecisions(t *testing.T) {
	update := func(ask, state string) step { return step{ask: ask, state: state} }
	playAll(t, []script{
		{name: "names are sorted", steps: []step{{ask: `{"state":{"reported":{"b":{"z":1,"a":2},"a":[{"y":1,"x":2}],"B":3}}}`}, {op: "get"}}},
		{name: "of a name that comes twice the last counts", steps: []step{update(`{"state":{"desired":{"a":1,"b":2,"a":3}},"state":{"reported":{"a":{"x":1},"a":{"y":2}}}}`, `{"reported":{"a":{"y":2}}}`)}},
		{name: "a name written otherwise is the same name", state: `{"desired":{"a/b":1}}`, steps: []step{update(`{"state":{"desired":{"\u0061\/b":null,"c":1}}}`, `{"desired":{"c":1}}`)}},
		{name: "numbers are kept as written", steps: []step{update(`{"state":{"reported":{"a":1.0,"b":1e3,"c":12345678901234567890.5}}}`, `{"reported":{"a":1.0,"b":1e3,"c":12345678901234567890.5}}`)}},
		{name: "numbers of one value leave no delta", state: `{"desired":{"a":1,"b":1000,"c":0,"d":0.10,"e":[1,2.50]}}`, steps: []step{{
			ask: `{"state":{"reported":{"a":1.0,"b":1E+3,"c":-0.0,"d":1e-1,"e":[1e0,2.5]}}}`, delta: none}}},
		{name: "numbers that differ far behind the point do", state: `{"desired":{"a":0.1000000000000000000001}}`, steps: []step{{
			ask: `{"state":{"reported":{"a":0.1}}}`, delta: `{"version":2,"timestamp":1591140517,"state":{"a":0.1000000000000000000001},"metadata":{"a":{"timestamp":1591140517}}}`}}},
		{name: "a number is no text", state: `{"desired":{"a":1,"b":"true","c":[1]}}`, steps: []step{{
			ask: `{"state":{"reported":{"a":"1","b":true,"c":["1"]}}}`, delta: `{"version":2,"timestamp":1591140517,"state":{"a":1,"b":"true","c":[1]},"metadata":{"a":{"timestamp":1591140517},"b":{"timestamp":1591140517},"c":[{"timestamp":1591140517}]}}`}}},
		{name: "texts written otherwise are the same", state: `{"desired":{"a":"é\n","b":["/"]}}`, steps: []step{{ask: `{"state":{"reported":{"a":"\u00E9\u000a","b":["\/"]}}}`, delta: none}}},
		{name: "a pair of surrogates is one character, half a pair is U+FFFD", steps: []step{update(`{"state":{"reported":{"a":"\ud83d\ude00","b":"\ud83dx","c":"\ude00\ud83d"}}}`, `{"reported":{"a":"😀","b":"�x","c":"��"}}`)}},
		{name: "the order of names in an array's objects means nothing", state: `{"desired":{"a":[{"x":1,"y":2}]}}`, steps: []step{{ask: `{"state":{"reported":{"a":[{"y":2,"x":1}]}}}`, delta: none}}},
		{name: "the order in an array means something", state: `{"desired":{"a":[1,2]}}`, steps: []step{{ask: `{"state":{"reported":{"a":[2,1]}}}`, state: `{"desired":{"a":[1,2]},"reported":{"a":[2,1]}}`,
			delta: `{"version":2,"timestamp":1591140517,"state":{"a":[1,2]},"metadata":{"a":[{"timestamp":1591140517},{"timestamp":1591140517}]}}`}}},
		{name: "an object that loses its last field goes", state: `{"desired":{"a":{"b":{"c":1}},"d":1}}`, steps: []step{update(`{"state":{"desired":{"a":{"b":{"c":null}}}}}`, `{"desired":{"d":1}}`)}},
		{name: "an object of nulls only is not made", steps: []step{update(`{"state":{"desired":{"a":{"b":null},"c":{"d":null,"e":1}}}}`, `{"desired":{"c":{"e":1}}}`)}},
		{name: "null below a value does nothing", state: `{"desired":{"a":5,"e":{}}}`, steps: []step{update(`{"state":{"desired":{"a":{"b":null},"e":{"f":null}}}}`, `{"desired":{"a":5,"e":{}}}`)}},
		{name: "null removes a whole object", state: `{"desired":{"a":{"b":1,"c":{"d":2}},"e":1}}`, steps: []step{update(`{"state":{"desired":{"a":null}}}`, `{"desired":{"e":1}}`)}},
		{name: "an empty object among fields does nothing", state: `{"desired":{"a":{"b":1}}}`, steps: []step{update(`{"state":{"desired":{"a":{}}}}`, `{"desired":{"a":{"b":1}}}`)}},
		{name: "fields grow in an empty object", state: `{"desired":{"a":{}}}`, steps: []step{update(`{"state":{"desired":{"a":{"b":1}}}}`, `{"desired":{"a":{"b":1}}}`)}},
		{name: "a value takes an object's place", state: `{"desired":{"a":{"b":1}},"reported":{"a":{"b":1}}}`, steps: []step{{ask: `{"state":{"desired":{"a":7}}}`, delta: `{"version":2,"timestamp":1591140517,"state":{"a":7},"metadata":{"a":{"timestamp":1591140517}}}`}}},
		{name: "an object takes a value's place", state: `{"reported":{"a":7}}`, steps: []step{{ask: `{"state":{"desired":{"a":{"b":1,"c":{"d":2}}}}}`,
			delta: `{"version":2,"timestamp":1591140517,"state":{"a":{"b":1,"c":{"d":2}}},"metadata":{"a":{"b":{"timestamp":1591140517},"c":{"d":{"timestamp":1591140517}}}}}`}}},
		{name: "an empty object desired and none reported", steps: []step{
			{ask: `{"state":{"desired":{"a":{}}}}`, delta: `{"version":1,"timestamp":1591140517,"state":{"a":{}},"metadata":{"a":{}}}`},
			{ask: `{"state":{"reported":{"a":{"b":1}}}}`, delta: none},
		}},
		{name: "metadata of arrays mirrors them", steps: []step{{ask: `{"state":{"reported":{"a":[1,"x,]",true,[],[2],{"k:":"v","n":{"m":[3]}}]}}}`,
			accepted: `{"state":{"reported":{"a":[1,"x,]",true,[],[2],{"k:":"v","n":{"m":[3]}}]}},"metadata":{"reported":{"a":[{"timestamp":1591140517},{"timestamp":1591140517},{"timestamp":1591140517},[],[{"timestamp":1591140517}],{"k:":{"timestamp":1591140517},"n":{"m":[{"timestamp":1591140517}]}}]}},"version":1,"timestamp":1591140517}`}}},
		{name: "only what is written is stamped", state: `{"reported":{"a":1,"b":{"c":2,"d":3}}}`, steps: []step{
			{at: begins + 60, ask: `{"state":{"reported":{"b":{"d":3}}}}`},
			{op: "get", at: begins + 90, accepted: `{"state":{"reported":{"a":1,"b":{"c":2,"d":3}}},"metadata":{"reported":{"a":{"timestamp":1591140517},"b":{"c":{"timestamp":1591140517},"d":{"timestamp":1591140577}}}},"version":2,"timestamp":1591140607}`},
		}},
		{name: "null for version and token is as if they were not there", state: `{"reported":{"a":1}}`, steps: []step{{ask: `{"state":{},"version":null,"clientToken":null}`, accepted: `{"state":{},"metadata":{},"version":2,"timestamp":1591140517}`}}},
		{name: "an empty token is one", steps: []step{{ask: `{"state":{},"clientToken":""}`, accepted: `{"state":{},"metadata":{},"version":1,"timestamp":1591140517,"clientToken":""}`}}},
		{name: "a token is given back as text", steps: []step{{ask: `{"state":{},"clientToken":"a\"\u0062\n"}`, accepted: `{"state":{},"metadata":{},"version":1,"timestamp":1591140517,"clientToken":"a\"b\n"}`}}},
		{name: "other fields of a request are ignored", steps: []step{update(`{"timestamp":5,"metadata":{"x":[null]},"state":{"desired":{"a":1}}}`, `{"desired":{"a":1}}`)}},
		{name: "get gives the token back, and refuses a long one", state: `{"reported":{"a":1}}`, steps: []step{
			{op: "get", ask: `{"clientToken":"t"}`, accepted: `{"state":{"reported":{"a":1}},"metadata":{"reported":{"a":{"timestamp":1591140517}}},"version":1,"timestamp":1591140517,"clientToken":"t"}`},
			{op: "get", ask: `{"clientToken":"` + strings.Repeat("t", 65) + `"}`, rejected: `{"code":400,"message":"Invalid clientToken","timestamp":1591140517}`},
			{op: "get", ask: `what?`, accepted: `{"state":{"reported":{"a":1}},"metadata":{"reported":{"a":{"timestamp":1591140517}}},"version":1,"timestamp":1591140517}`},
		}},
		{name: "delete gives the token back", state: `{"reported":{"a":1}}`, version: 3, steps: []step{
			{op: "delete", ask: `{"clientToken":"t"}`, accepted: `{"version":3,"timestamp":1591140517,"clientToken":"t"}`},
			{op: "delete", ask: `{"clientToken":"u"}`, rejected: `{"code":404,"message":"No shadow exists with name: ''","timestamp":1591140517,"clientToken":"u"}`},
		}},
		{name: "a deleted shadow's version is the one to state within 48 hours", state: `{"reported":{"a":1}}`, version: 3, steps: []step{
			{op: "delete"},
			{ask: `{"state":{"reported":{"a":2}},"version":0}`, rejected: `{"code":409,"message":"Version conflict","timestamp":1591140517}`},
			{ask: `{"state":{"reported":{"a":2}},"version":3}`, state: `{"reported":{"a":2}}`},
		}},
		{name: "documents of a shadow that is made", steps: []step{{ask: `{"state":{"desired":{"a":1}}}`,
			docs: `{"previous":{"state":{},"metadata":{},"version":0},"current":{"state":{"desired":{"a":1}},"metadata":{"desired":{"a":{"timestamp":1591140517}}},"version":1},"timestamp":1591140517}`}}},
		{name: "a state of exactly the limit is taken, also when it grew", limits: &Limits{Request: 1000, State: 30, Depth: 8}, steps: []step{
			update(`{"state":{"desired":{"a":"12345678"}}}`, `{"desired":{"a":"12345678"}}`), // 28 bytes
			{ask: `{"state":{"desired":{"a":"12345678901"}}}`, rejected: `{"code":413,"message":"The payload exceeds the maximum size allowed","timestamp":1591140517}`},
			update(`{"state":{"desired":{"a":"1234567890"}}}`, `{"desired":{"a":"1234567890"}}`),
			{ask: `{"state":{"reported":{"b":1}}}`, rejected: `{"code":413,"message":"The payload exceeds the maximum size allowed","timestamp":1591140517}`},
			update(`{"state":{"desired":null,"reported":{"b":1}}}`, `{"reported":{"b":1}}`),
		}},
		{name: "fields of the strangest names", steps: []step{update(`{"state":{"reported":{"":1,"\"":2,"\\":3,"\u0000":4,"~/":5,"가":{"":{"":6}}}}}`, `{"reported":{"":1,"\"":2,"\\":3,"\u0000":4,"~/":5,"가":{"":{"":6}}}}`)}},
	})
}

func TestSizeIsThatOfTheJSON(t *testing.T) {
	d := docWith(t, `{"desired":{"a\"\\\n\u0001b":{"c":[1,{"d":"é"}],"e":{}},"f":"g"},"reported":{"h":true}}`, 1, begins)
	if got := d.stateSize(); got != len(d.State()) {
		t.Errorf("size is %d; %s has %d bytes", got, d.State(), len(d.State()))
	}
	if got := (&Doc{}).stateSize(); got != 2 {
		t.Errorf("an empty state has %d bytes; want 2", got)
	}
}

func TestBlameKnowsWhoChangedAndWhoWrote(t *testing.T) {
	d := docWith(t, `{"reported":{"a":1,"b":{"c/d":2}}}`, 1, begins)
	d = updated(t, d, `{"state":{"desired":{"a":5},"reported":{"b":{"c/d":3}}}}`, by(begins+10, 1, "//naru/app"))
	d = updated(t, d, `{"state":{"reported":{"b":{"c/d":3.0}}}}`, by(begins+20, 2, "//naru/device"))
	var got []string
	for _, f := range d.Blame() {
		got = append(got, f.Path+" "+string(f.Value)+" changed "+f.Changed.Source+" "+f.ChangedAt.UTC().Format("05")+" wrote "+f.Wrote.Source+" "+f.WroteAt.UTC().Format("05"))
	}
	want := []string{
		"/desired/a 5 changed //naru/app 47 wrote //naru/app 47",
		"/reported/a 1 changed //naru/begin 37 wrote //naru/begin 37",
		"/reported/b/c~1d 3.0 changed //naru/app 47 wrote //naru/device 57",
	}
	if !equal(got, want) {
		t.Errorf("blame is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if last := d.Last(); last.ID != idAt(begins+20, 2) {
		t.Errorf("the last update was by %v", last)
	}
}

func TestASourceIsBounded(t *testing.T) {
	d := updated(t, &Doc{}, `{"state":{"reported":{"a":1}}}`, by(begins, 1, strings.Repeat("s", 5000)))
	if n := len(d.Last().Source); n != sourceMax {
		t.Errorf("%d bytes of a source are kept; want %d", n, sourceMax)
	}
}

func TestDriftBeginsWhenDesiredAndReportedPart(t *testing.T) {
	d := updated(t, &Doc{}, `{"state":{"desired":{"a":1,"b":{"c":2},"d":{"e":1}},"reported":{"a":1,"d":9}}}`, by(begins, 1, "//naru/app"))
	d = updated(t, d, `{"state":{"reported":{"a":1,"d":9}}}`, by(begins+100, 2, "//naru/device")) // says it again: no change
	if want := time.Unix(begins, 0); !d.Drift.Equal(want) {
		t.Errorf("it drifts since %v; want %v", d.Drift, want)
	}
	d = updated(t, d, `{"state":{"reported":{"a":7,"b":{"c":2}}}}`, by(begins+200, 3, "//naru/device"))
	var got []string
	for _, x := range d.Drifts() {
		got = append(got, x.Path+" "+string(x.Desired)+" "+string(x.Reported)+" "+x.Since.Sub(docTime).String()+" "+x.By.Source)
	}
	if want := []string{"/a 1 7 3m20s //naru/app", "/d/e 1  0s //naru/app"}; !equal(got, want) {
		t.Errorf("drift is %q; want %q", got, want)
	}
	if d = updated(t, d, `{"state":{"desired":null}}`, by(begins+300, 4, "//naru/app")); !d.Drift.IsZero() || len(d.Drifts()) != 0 {
		t.Errorf("nothing is desired, and it drifts since %v", d.Drift)
	}
}

func updated(t testing.TB, d *Doc, ask string, c Cause) *Doc {
	t.Helper()
	u, refused := d.Update([]byte(ask), c, c.At(), Defaults)
	if refused != nil {
		t.Fatalf("%s: %v", ask, refused)
	}
	return u.After
}

func TestAnUpdateLeavesTheDocumentBeforeAsItWas(t *testing.T) {
	d := docWith(t, `{"desired":{"a":{"b":1,"c":2}},"reported":{"x":[1]}}`, 3, begins)
	state, blame := string(d.State()), d.Blame()
	updated(t, d, `{"state":{"desired":{"a":{"b":9,"c":null,"d":{"e":1}}},"reported":null}}`, by(begins+1, 1, "//naru/app"))
	updated(t, d, `{"state":{"desired":{"a":{"b":8}}}}`, by(begins+2, 2, "//naru/other"))
	if string(d.State()) != state || !equal(d.Blame(), blame) {
		t.Errorf("it is %s by %v; it was %s by %v", d.State(), d.Blame(), state, blame)
	}
}

func TestNamesOfShadows(t *testing.T) {
	for name, ok := range map[string]bool{"a": true, "config-1_x:y$": true, "": false, "a b": false, "ü": false, "a/b": false, strings.Repeat("n", 64): true, strings.Repeat("n", 65): false} {
		if CheckName(name) != ok {
			t.Errorf("CheckName(%q) is %v", name, !ok)
		}
	}
}

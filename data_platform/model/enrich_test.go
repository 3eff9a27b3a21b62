package model

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestEnrichFindsWhatATwinHas(t *testing.T) {
	const doc = `{"state":{"reported":{"site":"hall","a/b":{"x":[1,{"y":null,"z":{"deep":true}}]}},"desired":{"limit":20.5}},"metadata":{"reported":{"site":{"timestamp":7}}},"version":4,"timestamp":1}`
	for at, want := range map[string]any{
		"/reported/site": `"hall"`, "/desired/limit": "20.5", "/version": "4", "/timestamp": "1", "/metadata/reported/site/timestamp": "7", "/reported/a~1b/x/0": "1",
		"/reported/a~1b/x/1/z": `{"deep":true}`, "/reported/a~1b/x/1/y": nil, "/reported/a~1b/x/2": nil, "/reported/site/x": nil, "/desired/none": nil,
	} {
		e := &Enrich{Twin: []string{at}}
		if got, err := e.Of([]byte(doc)); err != nil || !reflect.DeepEqual(got, []any{want}) {
			t.Errorf("%s: %v, %v; want %v", at, got, err, want)
		}
		for _, empty := range []string{"", `{}`, `{"state":{}}`, `{"state":{"reported":{},"desired":null}}`} {
			if got, err := e.Of([]byte(empty)); err != nil || got[0] != nil {
				t.Errorf("%s of %s: %v, %v", at, empty, got, err)
			}
		}
	}
	if _, err := (&Enrich{Twin: []string{"/version"}}).Of([]byte("nonsense")); err == nil {
		t.Error("a document that is none is taken")
	}
}

func TestAPipelineThatEnrichesReadsNothingTwice(t *testing.T) {
	for change, want := range map[string]string{
		"[/state/site]}":                   "a twin has no /state; it has /reported/…",
		"[/reported/site, /desired/site]}": "column twin_site is there twice",
		"[/reported/Site]}":                "the column's name",
		"[reported]}":                      "is no JSON pointer",
		"[/reported/x]}\ninput: [{name: twin_x, type: text}]": "column twin_x is a field of input already",
	} {
		_, err := Parse("f.yaml", []byte("pipeline: p\ndataset: engine\nsteps: [{sql: SELECT 1}]\nenrich: {twin: "+change+"\n"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", change, err, want)
		}
	}
	d := parse1(t, strings.Replace(engine, "{name: state,", "{name: twin_state,", 1)[:strings.Index(engine, "rollups:")+len("twin_")])
	p := &Pipeline{Enrich: &Enrich{Twin: []string{"/reported/state"}}}
	if r := p.Reads(d); r.Field("twin_state") != nil || r.Field("celsius") == nil || d.Field("twin_state") == nil {
		t.Error("what the twin gives is read from the payload too")
	}
}

// TestLateDataIsNotTakenWhereItsWindowsRowsAreGone, since a window is computed from the rows there are.
func TestLateDataIsNotTakenWhereItsWindowsRowsAreGone(t *testing.T) {
	hour := func(n int) Duration { return Duration(time.Duration(n) * time.Hour) }
	rollups := []Rollup{{Name: "a", Every: hour(1)}, {Name: "b", Every: hour(24)}}
	for _, c := range []struct {
		late, retention Duration
		rollups         []Rollup
		want            time.Duration
	}{
		{0, 0, rollups, 0}, {hour(2), 0, rollups, 2 * time.Hour}, {0, hour(48), nil, 0},
		{hour(2), hour(48), rollups, 2 * time.Hour}, {hour(40), hour(48), rollups, 24*time.Hour - timeAhead}, {0, hour(48), rollups[:1], 47*time.Hour - timeAhead},
	} {
		d := &Dataset{Late: c.late, Retention: c.retention, Rollups: c.rollups}
		if got := d.TakesLate(); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if _, err := Parse("f.yaml", []byte(strings.NewReplacer("retention: 30d", "retention: 1h", "every: 1m", "every: 1h").Replace(engine))); err == nil || !strings.Contains(err.Error(), "keep them for longer than 70m") {
		t.Errorf("windows that are longer than rows are kept: %v", err)
	}
}

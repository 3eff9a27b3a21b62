package twin

import (
	"fmt"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/twin/shadow"
)

func recordOf(t *testing.T) *shadow.Record {
	t.Helper()
	now := time.Now()
	u, refused := (&shadow.Doc{}).Update([]byte(`{"state":{"reported":{"a":1}}}`), shadow.Cause{ID: message.NewID(now)}, now, shadow.Defaults)
	if refused != nil {
		t.Fatal(refused)
	}
	return u.Record(message.TraceID{1})
}

func TestWhatIsTooOldGoes(t *testing.T) {
	d := open(t, "")
	d.update("device.d-1.twin.update", `{"state":{"reported":{"a":1},"desired":{"z":1}}}`)
	d.update("device.d-2.twin.update", `{"state":{"desired":{"a":1}}}`)
	d.update("device.d-2.twin.update", `{"state":{"desired":{"a":1}},"version":9}`)
	d.update("device.d-2.twin.delete", ``)
	d.r.Say(gone("d-3"))
	d.r.Settled(name, "service_platform")
	want := func(want string) {
		t.Helper()
		d.house()
		if got := fmt.Sprint(d.keys()); got != want {
			t.Errorf("kept are %s; want %s", got, want)
		}
	}
	want("map[c:1 d:1 g:1 h:3 n:1 t:2 x:1 y:1]")
	d.pass(shadow.VersionKept - time.Minute)
	want("map[c:1 d:1 g:1 h:3 n:1 t:2 x:1 y:1]")
	d.pass(2 * time.Minute)
	want("map[d:1 h:1 n:1 t:1]") // the deleted twin is forgotten, and that a device was
	d.pass(7 * 24 * time.Hour)
	want("map[d:1 n:1 t:1]") // what is left has no history
	d.update("device.d-2.twin.update", `{"state":{"reported":{"a":1}}}`)
	var s Shown
	if d.get("/api/v1/twins/d-2", &s); s.Version != 1 {
		t.Errorf("made again after days it has version %d", s.Version)
	}
	var h History
	if d.get("/api/v1/twins/d-2/history", &h); len(h.Records) != 1 || h.Records[0].Number != 1 {
		t.Errorf("made again after days it has the history %+v", h.Records)
	}
}

func TestATwinMadeAgainIsNotForgotten(t *testing.T) {
	d := open(t, "")
	d.update("device.d-1.twin.update", `{"state":{"reported":{"a":1}}}`)
	d.update("device.d-1.twin.delete", ``)
	d.pass(time.Hour)
	due, err := d.twins.due(kindExpiry, d.now())
	if err != nil || len(due) != 1 {
		t.Fatalf("due are %q, %v", due, err)
	}
	d.update("device.d-1.twin.update", `{"state":{"reported":{"a":2}}}`)
	if n := d.keys()["x"]; n != 0 {
		t.Errorf("%d are due although it was made again", n)
	}
	// What was found due before it was made again is not so any more.
	if err := d.twins.env.Change(t.Context(), func(tx component.Tx) error { return d.twins.forget(tx, due[0]) }); err != nil {
		t.Fatal(err)
	}
	d.pass(shadow.VersionKept)
	d.house()
	var s Shown
	if d.get("/api/v1/twins/d-1", &s); s.Version != 2 || d.keys()["h"] != 3 {
		t.Errorf("it has version %d; kept are %v", s.Version, d.keys())
	}
}

func TestOldRecordsGoInParts(t *testing.T) {
	d := open(t, `{"history_max":5000}`)
	var ms []*message.Message
	for i := range sweepMax + 50 {
		ms = append(ms, say("device.d-1.twin.update", fmt.Sprintf(`{"state":{"reported":{"a":%d}}}`, i)))
	}
	together(t, d.r, ms)
	d.r.Settled(name, "device")
	d.pass(8 * 24 * time.Hour)
	for i, want := range []int{50, 0} {
		if d.house(); d.keys()["h"] != want {
			t.Errorf("after turn %d there are %d; want %d", i+1, d.keys()["h"], want)
		}
	}
}

func TestMetricsCountTwinsAndDrift(t *testing.T) {
	d := open(t, "")
	d.update("device.d-1.twin.update", `{"state":{"desired":{"a":1}}}`)
	d.pass(time.Hour)
	d.update("device.d-2.twin.update", `{"state":{"desired":{"a":1}}}`)
	d.update("device.d-3.twin.update", `{"state":{"reported":{"a":1}},"version":5}`)
	d.update("device.d-3.twin.get", ``)
	d.house()
	for metric, want := range map[string]float64{
		"naru_twins": 2, "naru_twins_drifting": 2, "naru_twin_conflicts_total": 1,
		"naru_twin_requests_total update accepted": 2, "naru_twin_requests_total update rejected": 1, "naru_twin_requests_total get rejected": 1,
	} {
		if got := measured(t, d, metric); got != want {
			t.Errorf("%s is %v; want %v", metric, got, want)
		}
	}
	if got := measured(t, d, "naru_twin_drift_oldest_seconds"); got < 3600 || got > 3700 {
		t.Errorf("the oldest drift is %v seconds old", got)
	}
	d.update("device.d-1.twin.delete", ``)
	d.update("device.d-2.twin.update", `{"state":{"reported":{"a":1}}}`)
	d.house()
	if got := measured(t, d, "naru_twins") + measured(t, d, "naru_twins_drifting") + measured(t, d, "naru_twin_drift_oldest_seconds"); got != 1 {
		t.Errorf("twins and drift add up to %v; want 1", got)
	}
}

// measured is a metric's value; its labels' values stand behind its name.
func measured(t *testing.T, d *desk, want string) float64 {
	t.Helper()
	all, err := d.r.Host.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			if r := labels["request"]; r != "" {
				name += " " + r + " " + labels["answer"]
			}
			if name == want {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no metric %s", want)
	return 0
}

package status

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/component/componenttest"
)

func TestLatestIsOfTheLastMinute(t *testing.T) {
	var l lateness
	at := time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	for _, step := range []struct {
		after      time.Duration
		late, want time.Duration
	}{
		{0, 10 * time.Millisecond, 10 * time.Millisecond},
		{time.Second, 3 * time.Second, 3 * time.Second},
		{30 * time.Second, time.Second, 3 * time.Second},
		{25 * time.Second, 0, 3 * time.Second},
		{10 * time.Second, 0, time.Second}, // the three seconds are over a minute ago
		{-2 * time.Hour, 5 * time.Millisecond, 5 * time.Millisecond},
	} {
		at = at.Add(step.after)
		l.note(at, step.late)
		if got := l.latest(); got != step.want {
			t.Errorf("at %s: %s, want %s", at.Format(time.TimeOnly), got, step.want)
		}
	}
}

// TestAProcessInTimeIsNotLate: its own waiting does not count.
func TestAProcessInTimeIsNotLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		r.Start(Spec)
		r.Running(Spec.Name)
		time.Sleep(2 * beatsFor)
		if m := told(t, r).Machine; m.Late != 0 || m.Cores < 1 {
			t.Errorf("%+v", m)
		}
	})
}

func TestStarvingIsToldWhereItExplainsSomething(t *testing.T) {
	if c := (Machine{Cores: 2, Load: 3, Late: lateTold - 1}).cause("n1"); c != "" {
		t.Errorf("a little late is told as %q", c)
	}
	c := Machine{Cores: 2, Load: 71.37, Late: 2140 * time.Millisecond}.cause("n1")
	for _, want := range []string{"process on n1", "2.1s", "load 71.4 on 2 cores", "leases"} {
		if !strings.Contains(c, want) {
			t.Errorf("%q does not say %q", c, want)
		}
	}
	if c := (Machine{Cores: 2, Late: time.Second}).cause("n1"); strings.Contains(c, "load") {
		t.Errorf("where there is no load it says %q", c)
	}
	if f := behind("", []string{"a"}); len(f) != 1 {
		t.Errorf("%q", f)
	}
	if f := behind(c, nil); len(f) != 0 {
		t.Errorf("what is well has the faults %q", f)
	}
	if f := behind(c, []string{"a"}); len(f) != 2 || f[0] != c {
		t.Errorf("%q", f)
	}
}

func TestLoadIsTheFirstNumber(t *testing.T) {
	f := filepath.Join(t.TempDir(), "loadavg")
	for text, want := range map[string]float64{"71.37 50.26 34.91 11/190 23786\n": 71.37, "": 0, "x y": 0} {
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := load(f); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	if load(f+".not") != 0 {
		t.Error("a file that is not there has a load")
	}
}

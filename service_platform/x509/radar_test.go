package x509

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"
)

// An alert on a metric that nobody exports never fires.
func TestAlertsAskForMetricsThatThereAre(t *testing.T) {
	rules, err := os.ReadFile("../../deploy/prometheus/x509.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(rules, &file); err != nil || len(file.Groups) != 1 {
		t.Fatalf("%d groups, %v", len(file.Groups), err)
	}
	for _, r := range file.Groups[0].Rules {
		if r.Alert == "" || r.Expr == "" || r.Annotations["summary"] == "" || !strings.Contains(r.Annotations["description"], "`naru ") && !strings.Contains(r.Annotations["description"], "log") {
			t.Errorf("%s does not say what to do: %+v", r.Alert, r)
		}
	}
	a := startAPI(t)
	have, err := a.s.env.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		t.Fatal(err)
	}
	var series []string
	for _, f := range have {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				series = append(series, f.GetName()+`{`+l.GetName()+`="`+l.GetValue()+`"}`)
			}
		}
	}
	asked := regexp.MustCompile(`naru_\w+\{[^}]*\}`).FindAllString(string(rules), -1)
	if len(asked) < 6 {
		t.Errorf("%d series are asked for", len(asked))
	}
	for _, s := range asked {
		if !slices.Contains(series, s) {
			t.Errorf("%s is not exported; there are %q", s, series)
		}
	}
}

// gauges are the radar's, by their label.
func (a *api) gauges() map[string]float64 {
	a.Helper()
	a.s.look(a.Context(), a.s.open.Load())
	have, err := a.s.env.Metrics.(*prometheus.Registry).Gather()
	if err != nil {
		a.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range have {
		for _, m := range f.GetMetric() {
			if f.GetName() == "naru_x509_devices_expiring" || f.GetName() == "naru_x509_devices" {
				got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	return got
}

func TestRadarCountsWhatEndsSoon(t *testing.T) {
	a := startAPI(t)
	for id, validity := range map[string]int{"a": 5, "b": 20, "c": 300, "d": 1} {
		a.do("POST", "/api/v1/devices", Enrolment{ID: id, Validity: Duration(validity) * Duration(day)}, nil)
	}
	a.do("POST", "/api/v1/devices/b/disable", nil, nil) // is off on purpose, and no concern
	a.clock.move(2 * day)
	got := a.gauges()
	for label, want := range map[string]float64{"1d": 0, "7d": 1, "30d": 1, "active": 2, "expired": 1, "disabled": 1} {
		if got[label] != want {
			t.Errorf("%s: %g, want %g", label, got[label], want)
		}
	}
}

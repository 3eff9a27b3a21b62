package etl

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// TestAlertsAskForMetricsThatThereAre: an alert on a metric that nobody exports never fires.
func TestAlertsAskForMetricsThatThereAre(t *testing.T) {
	raw, err := os.ReadFile("../../deploy/prometheus/data.rules.yaml")
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
	if err := yaml.Unmarshal(raw, &file); err != nil || len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatalf("%+v, %v", file, err)
	}
	l := newLab(t)
	l.put(rooms)
	l.start()
	l.say("rooms", `{"celsius": 1}`)
	l.Settled(Name+"/rooms", "data_platform")
	for _, r := range file.Groups[0].Rules {
		if !strings.Contains(r.Annotations["description"], "`naru ") {
			t.Errorf("%s does not say what to do", r.Alert)
		}
		for _, name := range regexp.MustCompile(`naru_\w+`).FindAllString(r.Expr, -1) {
			if l.metric(name, "rooms") < 0 {
				t.Errorf("%s asks for %s, which nobody tells", r.Alert, name)
			}
		}
	}
}

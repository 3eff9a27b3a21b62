package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// shownTrace is what `naru trace` tells of a message, as far as a path needs it.
type shownTrace struct {
	Messages []struct{ ID, Cause, Subject, Source, Device string }
}

// TestReadingComesBackToItsDevice is what `make run` shows: a simulated device's reading is taken by a rule, the rule updates
// the twin, the twin tells the device what it should be, and the device says that it is so: all in one trace. Started
// without simulated devices on the same data, there is no such rule.
func TestReadingComesBackToItsDevice(t *testing.T) {
	p := newPlatform(t, "--sim", "20")
	p.start()
	until := time.Now().Add(time.Minute)
	var trace string
	for missing := "a delta"; trace == ""; {
		if time.Now().After(until) {
			t.Fatalf("after a minute there is no trace with %s", missing)
		}
		var list struct {
			Messages []struct{ Trace string }
		}
		p.json(&list, "messages", "--subject", "device/+/twin/update/delta", "-n", "50")
		for _, m := range list.Messages {
			var shown shownTrace
			p.json(&shown, "trace", m.Trace)
			if missing = lacks(shown); missing == "" {
				trace = m.Trace
				break
			}
		}
	}
	if out, code := p.naru("trace", trace); code != 0 || !strings.Contains(out, "rule=sim-thermostat@1") || !strings.Contains(out, "twin.update.delta") {
		t.Errorf("naru trace: exit %d\n%s", code, out)
	}
	if out, code := p.naru("rule", "disable", "sim-thermostat"); code != 1 || !strings.Contains(out, "give yours another name") {
		t.Errorf("disabling the rule is answered %d %s", code, out)
	}
	p.stop()

	p.args = nil
	p.start()
	for until = time.Now().Add(time.Minute); ; {
		out, code := p.naru("rule", "show", "sim-thermostat")
		if code == 1 && strings.Contains(out, "there is no rule sim-thermostat") {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("without simulated devices the rule is there: %d %s", code, out)
		}
	}
	p.stop()
}

// lacks says what of the path a trace does not have.
func lacks(tr shownTrace) string {
	by := map[string]int{} // by subject, without the device, and for updates of the twin by who said them
	for i, m := range tr.Messages {
		what := strings.TrimPrefix(m.Subject, "device."+m.Device+".")
		if what == "twin.update" {
			what += " of " + map[bool]string{true: "the rule", false: "the device"}[strings.Contains(m.Source, "service_platform.rule?rule=sim-thermostat@")]
		}
		by[what] = i + 1
	}
	for _, what := range []string{"telemetry", "twin.update of the rule", "twin.update.delta", "twin.update of the device"} {
		if by[what] == 0 {
			return what
		}
	}
	of := func(what string) int { return by[what] - 1 }
	for _, follows := range [][2]string{{"twin.update of the rule", "telemetry"}, {"twin.update.delta", "twin.update of the rule"}} {
		if m, cause := tr.Messages[of(follows[0])], tr.Messages[of(follows[1])]; m.Cause != cause.ID {
			return follows[0] + " as a consequence of " + follows[1]
		}
	}
	if device := tr.Messages[of("telemetry")].Device; slices.ContainsFunc(tr.Messages, func(m struct{ ID, Cause, Subject, Source, Device string }) bool { return m.Device != device }) {
		return "one device only"
	}
	return ""
}

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/message"
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
	for _, of := range []string{"rule show sim-stalled-pump", "worker show sim-mechanic"} {
		gone(t, p, strings.Fields(of)...)
	}
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

// gone waits until a command says that there is none of what it is asked for.
func gone(t *testing.T, p *platform, args ...string) {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; {
		out, code := p.naru(args...)
		if code == 1 && strings.Contains(out, "there is no") {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("naru %s: %d %s", strings.Join(args, " "), code, out)
		}
	}
}

// TestReadingBecomesACommandAndIsAnswered is the other thing that `make run` shows: a simulated pump stands still, a rule gives
// its reading to a worker, the worker has it start again by a command, and the pump obeys and answers: all in one trace. So it
// is over a SIGKILL, with one rule and one worker.
func TestReadingBecomesACommandAndIsAnswered(t *testing.T) {
	p := newPlatform(t, "--sim", "19")
	p.start()
	seen := map[string]bool{}
	answered := func() {
		t.Helper()
		var missing string
		for until := time.Now().Add(3 * time.Minute); time.Now().Before(until); {
			var list struct {
				Messages []struct{ Trace string }
			}
			p.json(&list, "messages", "--subject", "device/+/command/restart/+/reply", "-n", "50")
			for _, m := range list.Messages {
				if seen[m.Trace] {
					continue
				}
				var shown shownTrace
				p.json(&shown, "trace", m.Trace)
				if missing = lacksCommand(shown); missing == "" {
					for _, x := range list.Messages {
						seen[x.Trace] = true
					}
					return
				}
			}
		}
		t.Fatalf("there is no trace from a reading to the answer of a command; the last one that was looked at lacks %q", missing)
	}
	answered()
	p.kill()
	p.start()
	answered()
	var rules []struct {
		Name    string
		Version int
	}
	p.json(&rules, "rule", "list")
	var names []string
	for _, r := range rules {
		names = append(names, fmt.Sprintf("%s@%d", r.Name, r.Version))
	}
	if slices.Sort(names); !slices.Equal(names, []string{"sim-stalled-pump@1", "sim-thermostat@1"}) {
		t.Errorf("the rules are %v", names)
	}
	var workers []struct {
		Name, State string
		Version     int
	}
	if p.json(&workers, "worker", "list"); len(workers) != 1 || workers[0].Name != "sim-mechanic" || workers[0].State != "running" || workers[0].Version != 1 {
		t.Errorf("the workers are %+v", workers)
	}
	p.stop()
}

// lacksCommand says what of the way from a reading to the answer of a command a trace does not have, each as a consequence
// of the one before.
func lacksCommand(tr shownTrace) string {
	said := func(cause, source, subject string) (id string) {
		for _, m := range tr.Messages {
			if (cause == "" || m.Cause == cause) && strings.Contains(m.Source, source) && message.Pattern(subject).Matches(message.Subject(m.Subject)) {
				id = m.ID
			}
		}
		return id
	}
	cause := ""
	for _, step := range []struct{ what, source, subject string }{
		{"the reading", "//naru/device/sim-", "device.*.telemetry"},
		{"the rule's work", "service_platform.rule?rule=sim-stalled-pump@", "service_platform.worker.sim-mechanic.invoke"},
		{"the worker's command", "service_platform.worker/sim-mechanic", "device.*.command.restart.*"},
		{"the release", "service_platform.command", "service_platform.command.release.>"},
		{"the device's answer", "//naru/device/sim-", "device.*.command.restart.*.reply"},
		{"the command's end", "service_platform.command", "service_platform.command.ended.*"},
	} {
		if cause = said(cause, step.source, step.subject); cause == "" {
			return step.what
		}
	}
	return ""
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

//go:build long

package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/operator/deadletter"
)

// TestARetryOfARulesLettersGoesThroughSIGKILL has messages die at the rules for want of one, in four partitions that two processes
// share, and retries them while one process after the other is killed: those with the rules, and the one with the letters.
// Each message is taken by the rule once, within its own trace, and has a result.
func TestARetryOfARulesLettersGoesThroughSIGKILL(t *testing.T) {
	const letters, kills = 60, 9
	bus := &node{Name: "bus", Dir: t.TempDir(), Port: port(t)}
	bus.start(t)
	t.Cleanup(bus.kill)
	const conf = "bus:\n  replicas: 1\n  partitions:\n    device: 4\n"
	keeps := configured(t, bus.url(), conf+"service_platform.broker:\n  policies:\n    devices: {for: {all: true}, publish: {allow: ['$aws/rules/#']}}\n", "operator", "service_platform.broker", "service_platform.x509")
	one, two := configured(t, bus.url(), conf, "service_platform.rule"), configured(t, bus.url(), conf, "service_platform.rule")
	for _, p := range []*platform{keeps, one, two} {
		p.start()
	}
	defer func() {
		if t.Failed() {
			t.Logf("letters:\n%s\nrules:\n%s\nrules:\n%s", keeps.out, one.out, two.out)
		}
	}()
	host, port, _ := strings.Cut(keeps.plain, ":")
	for n := range letters / 3 {
		pub := exec.Command("mosquitto_pub", "-h", host, "-p", port, "-V", "mqttv311", "-i", fmt.Sprintf("d-%d", n), "-q", "1", "-t", "$aws/rules/late/reading", "-l")
		pub.Stdin = strings.NewReader(strings.Repeat(`{"n":1}`+"\n", 3))
		if out, err := pub.CombinedOutput(); err != nil {
			t.Fatalf("mosquitto_pub: %v\n%s", err, out)
		}
	}
	dead := map[message.ID]deadletter.Letter{} // by message
	for _, x := range keeps.deadLetters(letters, "--component", "service_platform.rule", "--reason", "rule_error").Letters {
		dead[x.Message] = x
	}
	one.ok("rule", "add", ruleFile(t, "late", "SELECT n", "  - republish: {topic: device/d-1/event/late}\n"))

	id := keeps.job("retry", "--all", "--rate", "4", "--note", "the rule is there now")
	for round := range kills {
		var before deadletter.JobShown
		keeps.json(&before, "dead", "job", id)
		if before.State == deadletter.Running {
			until(t, "the job goes on", func() bool {
				var j deadletter.JobShown
				keeps.json(&j, "dead", "job", id)
				return j.Sent > before.Sent || j.State != deadletter.Running
			})
		}
		p := []*platform{one, keeps, two}[round%3]
		p.kill()
		p.start()
	}
	var j deadletter.JobShown
	until(t, "the job ends", func() bool {
		keeps.json(&j, "dead", "job", id)
		return j.State != deadletter.Running && j.Waiting == 0
	})
	if j.State != deadletter.Done || j.Handled != letters || j.Selected != letters || len(j.Results) != letters {
		t.Errorf("the job ended as %+v, with %d results", j.Job, len(j.Results))
	}
	for _, r := range j.Results {
		if x, ok := dead[r.Message]; !ok || r.Result != "handled" || r.Letter != x.ID || r.Component != "service_platform.rule" {
			t.Errorf("a result is %+v", r)
		}
	}
	keeps.deadLetters(0)
	out, code := keeps.naru("dead", "audit")
	if code != 0 || strings.Count(out, id) != 1 || !strings.Contains(out, "the rule is there now") {
		t.Errorf("the audit is %s", out)
	}
	for _, l := range keeps.settled(0) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	b, err := nats.Open(t.Context(), nats.Options{URL: bus.url()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	followed := map[message.ID]int{}
	eachStored(t, b, message.Device, func(m *message.Message) {
		if m.Subject != "device.d-1.event.late" {
			return
		}
		followed[m.Cause]++
		if x := dead[m.Cause]; m.Trace.ID != x.Trace || !json.Valid(m.Data) {
			t.Errorf("what follows from %s is of trace %s, and it was of %s: %s", m.Cause, m.Trace.ID, x.Trace, m.Data)
		}
	})
	for of, x := range dead {
		if followed[of] != 1 {
			t.Errorf("of %s, letter %s, follow %d messages; want one", of, x.ID, followed[of])
		}
	}
}

package rule

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// Several processes share the partitions of what is heard: each message is taken once by whoever has its partition, also
// while one leaves, and a change of a rule that one is told is known to all.
func TestProcessesShareTheWorkAndTheRules(t *testing.T) {
	synctest.Test(t, shareTheWork) // partitions change hands by and by
}

func shareTheWork(t *testing.T) {
	const doc = `{"sql": "SELECT n, %d AS v FROM 'device/+/telemetry'", "actions": [{"republish": {"topic": "out/${topic(2)}"}}]}`
	r := componenttest.New(t)
	defer r.Close()
	if _, err := r.Bus.Log(t.Context(), "device", bus.LogOptions{Partitions: 4}); err != nil {
		t.Fatal(err)
	}
	start(t, r)
	put(t, r, "all", fmt.Sprintf(doc, 1))
	other := joined(t, r, "n2")
	defer other.Close()
	start(t, other)
	n := 0
	burst := func() (ms []*message.Message) {
		for range 60 {
			ms = append(ms, say(message.Subject(fmt.Sprintf("device.d-%d.telemetry", n%20)), fmt.Sprintf(`{"n":%d}`, n)))
			n++
		}
		r.Say(ms...)
		return ms
	}
	taken := func(ms []*message.Message, v int) {
		t.Helper()
		last := []string(nil)
		tick := time.NewTicker(200 * time.Millisecond) // of the bubble's: to look means to read the logs
		defer tick.Stop()
		for range 600 {
			if last = said(r, ms...); len(last) >= len(ms) {
				break
			}
			<-tick.C
		}
		if len(last) != len(ms) {
			t.Errorf("of %d messages %d are taken", len(ms), len(last))
		}
		once := map[string]int{}
		for _, s := range last {
			once[s]++
		}
		for i, m := range ms {
			s := fmt.Sprintf(`out/%s {"n":%d,"v":%d}`, m.Device, i+n-len(ms), v)
			if once[s] != 1 {
				t.Errorf("%s is said %d times", s, once[s])
			}
		}
	}
	taken(burst(), 1)
	holds := func(r *componenttest.Rig) int { return r.Host.Health()[0].Holds }
	// Four of this log, and one of each other.
	r.Until(func() bool { return holds(r) == 4 && holds(other) == 4 }, func() string { return fmt.Sprintf("they hold %d and %d of 8 partitions", holds(r), holds(other)) })
	taken(burst(), 1)
	put(t, r, "all", fmt.Sprintf(doc, 2))
	other.Until(func() bool {
		_, body := ask(t, other, "GET", "/api/v1/rules/all", "")
		return strings.Contains(body, "2 AS v")
	}, func() string { return "the other process does not hear of the change" })
	taken(burst(), 2)
	ms := burst()
	other.Stop() // in the midst of them
	taken(ms, 2)
	taken(burst(), 2)
}

//go:build long

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/rule"
)

// TestRuleIsExplainedBacktestedAndRunInShadowMode in the real binary, over a SIGKILL.
func TestRuleIsExplainedBacktestedAndRunInShadowMode(t *testing.T) {
	p := newPlatform(t, "--sim", "3")
	p.start()
	file := func(limit int) string {
		name := filepath.Join(t.TempDir(), "hot.yaml")
		text := fmt.Sprintf("name: hot\nsql: SELECT seq, topic(2) AS device, get_thing_shadow(topic(2)).version AS v FROM 'device/+/telemetry' WHERE seq > %d\nactions:\n  - republish: {topic: \"seen/${topic(2)}\"}\n", limit)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	p.ok("rule", "add", file(0))
	type list struct {
		Messages []struct{ ID, Cause, Data string }
	}
	var seen list
	until := func(what string, ok func() bool) {
		t.Helper()
		for late := time.Now().Add(2 * time.Minute); !ok(); {
			if time.Now().After(late) {
				t.Fatalf("%s\n%s", what, p.out)
			}
		}
	}
	until("the rule says nothing", func() bool { p.json(&seen, "messages", "--subject", "seen/+"); return len(seen.Messages) > 0 })
	var x struct {
		rule.Explained
		Said  []struct{ Topic, Version string }
		Fault string
	}
	if code := p.json(&x, "rule", "explain", "hot", "--message", seen.Messages[0].Cause); code != 0 || !x.Matched || x.Version != 1 || len(x.Said) != 1 || x.Said[0].Version != "1" || x.Fault != "" {
		t.Errorf("explained with %d: %+v", code, x)
	}
	var b rule.Backtest
	if code := p.json(&b, "rule", "backtest", "hot", "--since", "1h", "-f", file(1_000_000)); code != 0 || b.Matched != 0 || b.MatchedBefore == 0 || b.Differences[rule.NoLongerMatched] != b.MatchedBefore || len(b.Examples) == 0 {
		t.Errorf("backtested with %d: %+v", code, b)
	}
	p.ok("rule", "shadow", "start", file(1_000_000), "--why", "a test")
	var shown rule.Shown
	differ := func() uint64 {
		p.json(&shown, "rule", "show", "hot")
		if shown.Trial == nil {
			return 0
		}
		return shown.Trial.Tally.Differences[rule.NoLongerMatched]
	}
	until("nothing is compared", func() bool { return differ() >= 10 })
	before := shown.Trial.Tally.Since
	p.kill()
	p.start()
	until("what was compared is forgotten", func() bool { return differ() > 10 })
	if !shown.Trial.Tally.Since.Equal(before) || shown.Version != 1 || shown.Trial.Why != "a test" {
		t.Errorf("after a SIGKILL it is compared since %s, before since %s: %+v", shown.Trial.Tally.Since, before, shown.Trial)
	}
	if out := p.ok("rule", "shadow", "promote", "hot"); !strings.Contains(out, "version 2, enabled") {
		t.Errorf("promoted: %s", out)
	}
	p.stop()
}

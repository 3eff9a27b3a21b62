package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/operator/partition"
)

// TestALogIsDividedAnewWhileAFleetSpeaks: readers go over, nobody is refused, and what was said before is found as before.
func TestALogIsDividedAnewWhileAFleetSpeaks(t *testing.T) {
	p := newPlatform(t, "--sim", "10")
	p.start()
	logs := func() map[string]partition.Log {
		var list []partition.Log
		p.json(&list, "log", "list")
		by := map[string]partition.Log{}
		for _, l := range list {
			by[l.Name] = l
		}
		return by
	}
	before := p.telemetry(1)[0]
	was := logs()["device"]
	if was.Partitions != 1 || len(was.Generations) != 1 || len(was.Consumers) < 5 {
		t.Fatalf("the log begins as %+v", was)
	}
	out, code := p.naru("log", "repartition", "device", "--partitions", "3", "--note", "rules lag")
	if code != 0 || !strings.Contains(out, "3 partitions") {
		t.Fatalf("repartition: exit %d\n%s", code, out)
	}
	is := logs()["device"]
	for _, c := range is.Consumers {
		if !c.Over {
			t.Errorf("%s has not gone over though the command had ended well: %+v", c.Name, c)
		}
	}
	if is.Partitions != 3 || is.Generations[len(is.Generations)-1].Number != 2 {
		t.Errorf("the log is %+v", is)
	}
	after := p.telemetry(30)
	if out, code := p.naru("log", "show", "device"); code != 0 || !strings.Contains(out, "rules lag") {
		t.Errorf("log show: exit %d\n%s", code, out)
	}
	for _, id := range []string{before, after[0], after[len(after)-1]} {
		if out, code := p.naru("trace", id); code != 0 || !strings.Contains(out, id) {
			t.Errorf("naru trace %s: exit %d\n%s", id, code, out)
		}
	}
	for name, args := range map[string][]string{
		"want 1 to 64":                          {"log", "repartition", "device", "--partitions", "0"},
		"log device has 3 already":              {"log", "repartition", "device", "--partitions", "3"},
		`no log "devices"; there are device, s`: {"log", "show", "devices"},
	} {
		if out, code := p.naru(args...); code != 1 || !strings.Contains(out, name) {
			t.Errorf("naru %s: exit %d\n%s", strings.Join(args, " "), code, out)
		}
	}
	p.stop()
}

// telemetry gives the ids of readings said from now on.
func (p *platform) telemetry(n int) (ids []string) {
	p.t.Helper()
	seen := map[string]bool{}
	list := func() (all []string) {
		var l struct{ Messages []struct{ ID string } }
		p.json(&l, "messages", "--subject", "device/+/telemetry", "-n", "200")
		for _, m := range l.Messages {
			all = append(all, m.ID)
		}
		return all
	}
	for _, id := range list() {
		seen[id] = true
	}
	for until := time.Now().Add(time.Minute); len(ids) < n; {
		for _, id := range list() {
			if !seen[id] {
				seen[id], ids = true, append(ids, id)
			}
		}
		if time.Now().After(until) {
			p.t.Fatalf("in a minute %d readings were said; want %d", len(ids), n)
		}
	}
	slices.Sort(ids)
	return ids
}

//go:build long

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/twin"
)

// ruleFile writes a rule down.
func ruleFile(t *testing.T, name, sql, actions string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name+".yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "name: %s\nsql: %s\nactions:\n%s", name, sql, actions), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// derived is what the log of devices has of readings, and of what rules made of them.
type derived struct {
	readings map[message.ID]string // their device
	seen     map[message.ID][]string
	updates  map[message.ID][]message.ID
	answers  map[message.ID]int
	versions map[string]int // of twins, by device
	order    []string       // the sources of what was said, in the order of the log
}

func readDerived(t *testing.T, p *platform) *derived {
	t.Helper()
	b, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(p.data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	d := &derived{map[message.ID]string{}, map[message.ID][]string{}, map[message.ID][]message.ID{}, map[message.ID]int{}, map[string]int{}, nil}
	eachStored(t, b, message.Device, func(m *message.Message) {
		device, kind := m.Subject.Token(1), strings.TrimPrefix(string(m.Subject), "device."+m.Subject.Token(1)+".")
		switch kind {
		case "telemetry":
			d.readings[m.ID] = device
		case "event.seen":
			source := strings.Clone(m.Source)
			d.seen[m.Cause] = append(d.seen[m.Cause], source)
			d.order = append(d.order, source)
		case "twin.update":
			d.updates[m.Cause] = append(d.updates[m.Cause], m.ID)
		case "twin.update.accepted":
			var doc struct{ Version int }
			if err := json.Unmarshal(m.Data, &doc); err != nil {
				t.Fatal(err)
			}
			d.answers[m.Cause]++
			if d.versions[device]++; doc.Version != d.versions[device] {
				t.Errorf("%s: an update gave version %d; %d is due", device, doc.Version, d.versions[device])
			}
		case "twin.update.rejected":
			t.Errorf("%s: an update is refused: %s", device, m.Data)
		}
	})
	return d
}

// TestRulesTakeEffectOnceThroughSIGKILL kills the process that holds rules and twins twenty times under load. Of each reading
// in the log follow one event and one update of a twin, and of that one version.
func TestRulesTakeEffectOnceThroughSIGKILL(t *testing.T) {
	p := newPlatform(t)
	p.start()
	p.ok("rule", "add", ruleFile(t, "seen", "SELECT n FROM 'device/+/telemetry'", "  - republish: {topic: \"device/${topic(2)}/event/seen\"}\n"))
	p.ok("rule", "add", ruleFile(t, "mirror", "SELECT n AS state.reported.n FROM 'device/+/telemetry'", "  - twin: {device: \"${topic(2)}\"}\n"))
	p.stop()
	senders := make([]*sender, 8)
	for i := range senders {
		s := newSender(fmt.Sprintf("d-%d", i), p.plain)
		s.payload, s.window = func(n int) []byte { return fmt.Appendf(nil, `{"n":%d}`, n) }, 4
		senders[i] = s
	}
	killUnderLoad(p, 20, senders)
	acked := 0
	for _, s := range senders {
		acked += len(s.acked)
	}
	for _, l := range p.settled(uint64(acked)) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	until(t, "all updates are answered", func() bool {
		var shown twin.Shown
		for _, s := range senders {
			if p.json(&shown, "twin", "get", s.id); shown.Version < uint64(len(s.acked)) {
				return false
			}
		}
		return true
	})
	p.stop()
	d := readDerived(t, p)
	if len(d.readings) < acked {
		t.Errorf("%d readings are in the log, and %d were acknowledged", len(d.readings), acked)
	}
	faults := 0
	for id, device := range d.readings {
		updates := d.updates[id]
		if len(d.seen[id]) != 1 || len(updates) != 1 || d.answers[updates[0]] != 1 {
			if faults++; faults <= 10 {
				t.Errorf("%s: of reading %s follow %d events, and %d updates", device, id, len(d.seen[id]), len(updates))
			}
		}
	}
	if len(d.seen) != len(d.readings) || len(d.updates) != len(d.readings) {
		t.Errorf("of %d readings, events follow of %d and updates of %d", len(d.readings), len(d.seen), len(d.updates))
	}
	t.Logf("%d readings through twenty kills", len(d.readings))
}

// TestRulesAreChangedUnderLoad changes a rule twenty times while devices send. Each reading is taken by one version, and the
// versions follow each other in the log.
func TestRulesAreChangedUnderLoad(t *testing.T) {
	p := newPlatform(t)
	p.start()
	change := func(n int) {
		p.ok("rule", "add", ruleFile(t, "seen", fmt.Sprintf("SELECT n, %d AS v FROM 'device/+/telemetry'", n), "  - republish: {topic: \"device/${topic(2)}/event/seen\"}\n"))
	}
	change(1)
	senders := make([]*sender, 4)
	stop := make(chan struct{})
	var group sync.WaitGroup
	for i := range senders {
		s := newSender(fmt.Sprintf("d-%d", i), p.plain)
		s.payload = func(n int) []byte { return fmt.Appendf(nil, `{"n":%d}`, n) }
		senders[i] = s
		group.Go(func() { s.run(stop) })
	}
	const versions = 20
	for n := 2; n <= versions; n++ {
		change(n)
	}
	close(stop)
	group.Wait()
	acked := 0
	for _, s := range senders {
		acked += len(s.acked)
	}
	for _, l := range p.settled(uint64(acked)) {
		if l.Accepted != l.Handled || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	p.stop()
	d := readDerived(t, p)
	for id := range d.readings {
		if len(d.seen[id]) != 1 {
			t.Errorf("of reading %s follow %d events: %v", id, len(d.seen[id]), d.seen[id])
			break
		}
	}
	var last, met int
	for _, source := range d.order {
		_, at, _ := strings.Cut(source, "rule=seen@")
		number, _, _ := strings.Cut(at, "&")
		var n int
		if _, err := fmt.Sscan(number, &n); err != nil {
			t.Fatalf("source %q: %v", source, err)
		}
		if n < last {
			t.Fatalf("version %d spoke after version %d", n, last)
		}
		if n > last {
			met++
		}
		last = n
	}
	if last != versions || met < versions/2 {
		t.Errorf("the last version that spoke is %d, and %d did", last, met)
	}
	t.Logf("%d readings through %d versions, %d of which spoke", len(d.readings), versions, met)
}

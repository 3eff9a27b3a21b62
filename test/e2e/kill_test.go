//go:build long

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/message"
)

// TestNothingAcknowledgedIsLostToSIGKILL kills the platform ten times under load. Then all that was acknowledged is in the
// log, and each message of the log has had its effect once, by what the log itself says.
func TestNothingAcknowledgedIsLostToSIGKILL(t *testing.T) {
	p := newPlatform(t)
	p.start()
	p.echo() // there before the first message
	p.stop()
	senders := killed(p, 10)
	acked := 0
	for _, s := range senders {
		acked += len(s.acked)
	}
	lines := p.settled(uint64(acked))
	for _, l := range lines {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	p.stop()
	t.Logf("%d messages acknowledged through ten kills", acked)
	checkStored(t, p.data, senders, effectFaults)
}

// TestAMutantThatAcknowledgesBeforeTheAppendIsCaught builds naru with one fault, and wants the same check to see it.
func TestAMutantThatAcknowledgesBeforeTheAppendIsCaught(t *testing.T) {
	file, err := filepath.Abs("../../service_platform/broker/publish.go")
	if err != nil {
		t.Fatal(err)
	}
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const sound = "switch err := c.put(t.door, token); {"
	const mutant = "c.Appended(token, bus.Position{}, nil); c.Settled(); switch err := t.door.Append(context.Background(), &c.scratch.msg, nil, 0); {"
	if strings.Count(string(src), sound) != 1 {
		t.Fatalf("%s has no line %q any more: let the mutant follow it", file, sound)
	}
	dir := t.TempDir()
	faulty := filepath.Join(dir, "publish.go")
	if err := os.WriteFile(faulty, []byte(strings.Replace(string(src), sound, mutant, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {file: faulty}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t)
	p.binary = filepath.Join(dir, "naru")
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", p.binary, "../../cmd/naru").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	senders := killed(p, 3)
	p.stop()
	b, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(p.data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, fault := range logFaults(t, b, senders) {
		if strings.HasSuffix(fault, "was acknowledged and is lost") {
			return
		}
	}
	t.Error("nothing was found to be lost, though it was acknowledged before it was stored")
}

// killed drives a platform from many devices, and kills it so many times.
func killed(p *platform, kills int) []*sender {
	senders := make([]*sender, 20)
	for i := range senders {
		senders[i] = newSender(fmt.Sprintf("d-%d", i), p.plain)
	}
	killUnderLoad(p, kills, senders)
	return senders
}

// checkStored opens the store that is left and holds it against what the senders know, and against itself.
func checkStored(t *testing.T, data string, senders []*sender, also ...func(*testing.T, bus.Bus) []string) {
	b, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	faults := logFaults(t, b, senders)
	for _, f := range also {
		faults = append(faults, f(t, b)...)
	}
	for _, fault := range faults {
		t.Error(fault)
	}
}

// echo has a rule say, of each reading of a device, that it was seen: an effect that can be held against the log.
func (p *platform) echo() {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "echo.yaml")
	const rule = "name: echo\nsql: SELECT topic(2) AS device FROM 'device/+/telemetry'\nactions:\n  - republish: {topic: \"device/${topic(2)}/seen\"}\n"
	if err := os.WriteFile(file, []byte(rule), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if out, code := p.naru("rule", "add", file); code != 0 {
		p.t.Fatalf("naru rule add: %d %s", code, out)
	}
}

// effectFaults lists the readings in the log of which the rule of [platform.echo] made nothing, or more than one message, and what it made
// of none.
func effectFaults(t *testing.T, b bus.Bus) (faults []string) {
	t.Helper()
	readings, seen := map[message.ID]bool{}, map[message.ID]int{}
	eachStored(t, b, message.Device, func(m *message.Message) {
		switch m.Subject.Token(2) {
		case "telemetry":
			readings[m.ID] = true
		case "seen":
			seen[m.Cause]++
		}
	})
	if len(readings) == 0 {
		faults = append(faults, "there are no readings")
	}
	for id := range readings {
		if n := seen[id]; n != 1 {
			faults = append(faults, fmt.Sprintf("%s has taken effect %d times", id, n))
		}
		delete(seen, id)
	}
	for id := range seen {
		faults = append(faults, fmt.Sprintf("an effect follows from %s, which is not in the log", id))
	}
	if len(faults) > 20 {
		faults = append(faults[:20], fmt.Sprintf("and %d more", len(faults)-20))
	}
	return faults
}

// logFaults lists what is lost or doubled.
func logFaults(t *testing.T, b bus.Bus, senders []*sender) (faults []string) {
	t.Helper()
	found := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	stored := map[string]map[int]int{}
	ids := map[message.ID]bool{}
	eachStored(t, b, message.Device, func(m *message.Message) {
		if ids[m.ID] {
			found("id %s is in the log twice", m.ID)
		}
		ids[m.ID] = true
		if !strings.HasSuffix(string(m.Subject), ".telemetry") {
			return
		}
		device := strings.Clone(m.Device)
		n, err := strconv.Atoi(string(m.Data))
		if err != nil {
			t.Fatal(err)
		}
		if stored[device] == nil {
			stored[device] = map[int]int{}
		}
		stored[device][n]++
	})
	for _, s := range senders {
		for n := range s.acked {
			switch times := stored[s.id][n]; {
			case times == 0:
				found("%s: %d was acknowledged and is lost", s.id, n)
			case times > s.sent[n]:
				found("%s: %d was sent %d times and is stored %d times", s.id, n, s.sent[n], times)
			}
		}
	}
	return faults
}

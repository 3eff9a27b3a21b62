package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestNewcomerSeesAMessageCross is the README's five minutes: start, watch, publish with a foreign client, trace.
func TestNewcomerSeesAMessageCross(t *testing.T) {
	p := newPlatform(t, "--sim", "20")
	p.start()
	var list struct {
		Messages []struct{ ID, Trace, Subject, Device, Outcome string }
	}
	until := time.Now().Add(2 * time.Minute)
	for len(list.Messages) < 20 {
		p.json(&list, "messages", "--subject", "device/+/telemetry", "-n", "100")
		if time.Now().After(until) {
			t.Fatalf("simulated devices sent %d messages in two minutes:\n%s", len(list.Messages), p.out)
		}
	}
	if out, code := p.naru("topic", "echo", "device.*.telemetry", "-n", "3"); code != 0 || strings.Count(out, "device.sim-") != 3 {
		t.Errorf("topic echo: %d %s", code, out)
	}
	if out, code := p.naru("trace", list.Messages[0].Trace); code != 0 || !strings.Contains(out, "data_platform.bridge") {
		t.Errorf("trace: %d %s", code, out)
	}

	dir := filepath.Join(t.TempDir(), "d-17")
	if out, code := p.naru("device", "add", "d-17", "--out", dir); code != 0 {
		t.Fatal(out)
	}
	if info, err := os.Stat(filepath.Join(dir, "device.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("device.key: %v %v", info, err)
	}
	host, port, _ := strings.Cut(p.mqtt, ":")
	pub := func(topic string, more ...string) (string, error) {
		args := append([]string{"-h", host, "-p", port, "--cafile", dir + "/ca.crt", "--cert", dir + "/device.crt", "--key", dir + "/device.key",
			"-i", "d-17", "-q", "1", "-t", topic, "-m", `{"celsius":21.5}`}, more...)
		out, err := exec.Command("mosquitto_pub", args...).CombinedOutput()
		return string(out), err
	}
	if out, err := pub("device/d-17/telemetry"); err != nil {
		t.Fatalf("mosquitto_pub, 3.1.1: %v %s", err, out)
	}
	if out, err := pub("device/d-17/telemetry", "-V", "5"); err != nil {
		t.Fatalf("mosquitto_pub, 5: %v %s", err, out)
	}
	if out, err := pub("device/d-18/telemetry", "-V", "5"); err == nil && !strings.Contains(out, "Not authorized") {
		t.Errorf("another device's subject was not refused: %s", out)
	}
	until = time.Now().Add(2 * time.Minute)
	for {
		p.json(&list, "messages", "--device", "d-17", "--subject", "device.d-17.telemetry")
		if len(list.Messages) == 2 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("found %+v", list.Messages)
		}
	}
	for {
		p.json(&list, "messages", "--outcome", "refused", "--device", "d-17")
		if len(list.Messages) == 1 {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("refusals: %+v", list.Messages)
		}
	}
	if out, code := p.naru("device", "revoke", "d-17", "--reason", "test"); code != 0 {
		t.Error(out)
	}
	until = time.Now().Add(time.Minute)
	for {
		if _, err := pub("device/d-17/telemetry"); err != nil {
			break
		}
		if time.Now().After(until) {
			t.Fatal("a revoked certificate still gets in")
		}
	}
	for _, args := range [][]string{{"status"}, {"graph"}, {"graph", "--dot"}, {"node", "list"}, {"node", "info", "operator.journal"}, {"topic", "list"},
		{"topic", "info", "device.d-17.telemetry"}, {"topic", "hz", "-w", "1s", "-n", "1"}, {"topic", "bw", "-w", "1s", "-n", "1"}, {"device", "list"},
		{"device", "show", "d-17"}, {"config", "show"}, {"config", "diff"}, {"version"}, {"reasons", "acl_denied"}, {"ledger"},
		{"topic", "pub", "device.d-17.event.hello", "hi"}} {
		if out, code := p.naru(args...); code != 0 {
			t.Errorf("naru %v: exit %d: %s", args, code, out)
		}
	}
	p.stop()
}

func TestMistakesGetOneClearLine(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("service_platform.broker:\n  lisen: 127.0.0.1:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"up", "--data", dir, "--config", bad}, `did you mean "listen"`},
		{[]string{"ledger", "--data", dir + "/nowhere"}, "naru up --data"},
		{[]string{"messages", "--server", "nonsense"}, "want a URL"},
		{[]string{"trace", "xyz", "--data", dir}, "no platform is running"},
		{[]string{"ledgr"}, `no command "ledgr"; is "ledger" meant?`},
		{[]string{"up", "--nonsense"}, "--help"},
		{[]string{"run", "nothing", "--data", dir}, "operator.journal"},
		{[]string{"status", "-o", "xml"}, "there are text, json"},
	} {
		out, err := exec.Command(naruBinary(t), c.args...).CombinedOutput()
		exit, ok := err.(*exec.ExitError)
		if !ok || exit.ExitCode() != 1 || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), c.want) {
			t.Errorf("naru %v: %v, want exit 1 and one line with %q:\n%s", c.args, err, c.want, out)
		}
	}
}

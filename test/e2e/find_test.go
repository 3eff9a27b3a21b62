package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestPortsThatTheSystemChoosesAreTold starts a platform that leaves all its ports open, and finds it again: by its banner,
// by its data directory, and by its URL with a token.
func TestPortsThatTheSystemChoosesAreTold(t *testing.T) {
	p := newPlatform(t, "--sim", "3")
	p.mqtt, p.plain = "127.0.0.1:0", "127.0.0.1:0"
	p.start()
	banner := p.out.String()
	found := regexp.MustCompile(`mqtts://(127\.0\.0\.1:[1-9][0-9]+)`).FindStringSubmatch(banner)
	if found == nil || strings.Contains(banner, ":0 ") || !regexp.MustCompile(`mqtt://127\.0\.0\.1:[1-9]`).MatchString(banner) {
		t.Fatalf("the banner does not say where it listens:\n%s", banner)
	}
	var where struct{ URL, MQTT string }
	raw, err := os.ReadFile(filepath.Join(p.data, "naru.json"))
	if err == nil {
		err = json.Unmarshal(raw, &where)
	}
	if err != nil || where.MQTT != found[1] {
		t.Errorf("other commands are told %q (%v), and it listens at %s", where.MQTT, err, found[1])
	}
	var list struct{ Messages []struct{ ID string } }
	for until := time.Now().Add(time.Minute); len(list.Messages) < 3; {
		p.json(&list, "messages", "--subject", "device/+/telemetry")
		if time.Now().After(until) {
			t.Fatalf("its own simulated devices do not find it:\n%s", p.out)
		}
	}

	token, err := os.ReadFile(filepath.Join(p.data, "token"))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(env string, args ...string) (string, int) {
		c := exec.CommandContext(t.Context(), naruBinary(t), append([]string{"--data", t.TempDir(), "--server", where.URL}, args...)...)
		c.Env = append(os.Environ(), env)
		out, err := c.CombinedOutput()
		if err != nil && c.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), c.ProcessState.ExitCode()
	}
	secret := strings.TrimSpace(string(token))
	if out, code := ask("", "status", "--token", secret); code != 0 || !strings.Contains(out, "operator.journal") {
		t.Errorf("with --token: %d %s", code, out)
	}
	if out, code := ask("NARU_TOKEN="+secret, "ledger"); code != 0 || !strings.Contains(out, "operator.journal") {
		t.Errorf("with NARU_TOKEN: %d %s", code, out)
	}
	for _, wrong := range []string{"", "guessed"} {
		if out, code := ask("NARU_TOKEN="+wrong, "messages"); code != 1 || strings.Count(out, "\n") != 1 || !strings.Contains(out, "token") {
			t.Errorf("with the token %q: %d %s", wrong, code, out)
		}
	}
	p.stop()
}

package e2e

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOptionsOfThePlainConfigurationDoWhatTheySay takes the comment signs off the options that the example shows.
func TestOptionsOfThePlainConfigurationDoWhatTheySay(t *testing.T) {
	raw, err := os.ReadFile("../../examples/plain-mqtt.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, option := range []string{"keep_alive_max: 5m", `refuse: ["secret/#"]`} {
		if !strings.Contains(text, "# "+option) {
			t.Fatalf("the example does not show %s", option)
		}
		text = strings.Replace(text, "# "+option, option, 1)
	}
	file := filepath.Join(t.TempDir(), "plain.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t, "--config", file)
	p.start() // with --mqtt: the example's own address may be another broker's
	if strings.HasSuffix(p.mqtt, ":1883") {
		t.Fatal("--mqtt does not override the address")
	}
	_, port, err := net.SplitHostPort(p.mqtt)
	if err != nil {
		t.Fatal(err)
	}
	c := clients{t, port}

	if out, err := c.command("mosquitto_pub", "-V", "311", "-k", "600", "-t", "a", "-m", "x", "-q", "1").CombinedOutput(); err == nil {
		t.Errorf("an old client with a keep alive of ten minutes is let in:\n%s", out)
	}
	c.pub("-V", "311", "-k", "60", "-t", "a", "-m", "x", "-q", "1")
	c.pub("-V", "5", "-k", "600", "-t", "a", "-m", "x", "-q", "1") // it is told to use five minutes

	if out, err := c.command("mosquitto_pub", "-V", "5", "-t", "secret/x", "-m", "five", "-q", "1", "-d").CombinedOutput(); !strings.Contains(string(out), "RC:135") {
		t.Errorf("a refused topic is answered with (%v)\n%s", err, out)
	}
	if out, err := c.command("mosquitto_sub", "-V", "5", "-t", "secret/#", "-W", "1").CombinedOutput(); !strings.Contains(string(out), "denied") {
		t.Errorf("a refused filter is answered with (%v)\n%s", err, out)
	}
	c.pub("-V", "311", "-t", "secret/x", "-m", "payload that was refused", "-q", "1")
	var list struct {
		Letters []struct{ ID, Reason, Component, Subject string }
	}
	for until := time.Now().Add(time.Minute); len(list.Letters) == 0; {
		p.json(&list, "dead", "list")
		if time.Now().After(until) {
			t.Fatal("the refused message is not among the dead letters")
		}
	}
	l := list.Letters[0]
	if l.Reason != "acl_denied" || l.Component != "service_platform.broker" || l.Subject != "3rd_party.legacy.secret.x" {
		t.Errorf("the letter is %+v", l)
	}
	if out, code := p.naru("dead", "show", l.ID); code == 1 || !strings.Contains(out, "payload that was refused") || !strings.Contains(out, "secret") {
		t.Errorf("naru dead show, exit code %d:\n%s", code, out)
	}
	if out, code := p.naru("mqtt", "may", "anybody", "publish", "secret/x"); code != 2 || !strings.Contains(out, "refused-at-legacy") {
		t.Errorf("naru mqtt may, exit code %d:\n%s", code, out)
	}
	if out, code := p.naru("mqtt", "may", "anybody", "publish", "open/x"); code != 0 {
		t.Errorf("naru mqtt may, exit code %d:\n%s", code, out)
	}

	// A question and its answer, by mosquitto_rr.
	asked := c.listen("-V", "5", "-t", "question", "-q", "1", "-C", "1", "-W", "60", "-F", "%R")
	answered := make(chan string, 1)
	go func() {
		out, err := c.command("mosquitto_rr", "-V", "5", "-t", "question", "-e", "answers/1", "-m", "?", "-q", "1", "-W", "60").CombinedOutput()
		if err != nil {
			out = append(out, err.Error()...)
		}
		answered <- strings.TrimSpace(string(out))
	}()
	for _, to := range collect(asked) {
		c.pub("-V", "5", "-t", to, "-m", "42", "-q", "1")
	}
	if got := <-answered; got != "42" {
		t.Errorf("mosquitto_rr prints %q", got)
	}
	p.settled(0)
	p.stop()
}

package rule

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// Before the table was read no rule is known: a message that was taken then would be taken by none.
func TestMessageWaitsForTheFirstSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := build(component.Env{Node: "n1"}, Config{RulesMax: 1, BacktestRate: 1})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 2)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		handle := func(ctx context.Context) {
			ended <- e.Handle(ctx, nil, say("device.d-1.telemetry", `{}`))
		}
		go handle(ctx)
		go handle(t.Context())
		synctest.Wait()
		if n := len(ended); n != 0 {
			t.Fatalf("%d messages have a fate before there are rules", n)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("stopped while it waits, a message gets %v", err)
		}
		e.now.Store(newSet(nil, nil))
		close(e.loaded)
		if err := <-ended; !errors.Is(err, component.ErrNotMatched) {
			t.Errorf("with a set that has no rule, a message gets %v", err)
		}
	})
}

func TestProcessThatStartsTakesNothingBeforeItsRulesAreThere(t *testing.T) {
	r := running(t, "all", `{"sql": "SELECT n FROM 'device/+/telemetry'", "actions": [{"republish": {"topic": "out"}}]}`)
	r.Stop()
	var ms []*message.Message
	for n := range 50 {
		ms = append(ms, say(message.Subject(fmt.Sprintf("device.d-%d.telemetry", n%5)), fmt.Sprintf(`{"n":%d}`, n)))
	}
	r.Say(ms...)
	r.Start(Spec)
	r.Settled(Name, "device")
	if got := said(r, ms...); len(got) != len(ms) {
		t.Errorf("of %d messages %d were taken", len(ms), len(got))
	}
}

func TestDemoRulesAreThereInSimulationsOnly(t *testing.T) {
	r := running(t)
	there := func(status int) {
		t.Helper()
		for _, name := range []string{"sim-thermostat", "sim-stalled-pump"} {
			var code int
			r.Until(func() bool { code, _ = ask(t, r, "GET", "/api/v1/rules/"+name, ""); return code == status }, func() string { return fmt.Sprintf("%s is answered %d", name, code) })
		}
	}
	there(404)
	r.Stop()
	r.Config[Name] = []byte(`{"demo":true}`)
	start(t, r)
	there(200)
	warm := say("device.sim-7.telemetry", `{"kind":"thermometer","celsius":23.5}`)
	still := say("device.sim-8.telemetry", `{"kind":"pump","state":"stalled","seq":4}`)
	r.Say(warm, still, say("device.d-7.telemetry", `{"kind":"thermometer","celsius":23.5}`), say("device.sim-8.telemetry", `{"kind":"pump","celsius":23.5}`), say("device.sim-9.telemetry", `{"kind":"thermometer","celsius":22}`),
		say("device.d-8.telemetry", `{"kind":"pump","state":"stalled","seq":4}`), say("device.sim-8.telemetry", `{"kind":"pump","state":"running"}`))
	if rep := r.Settled(Name, "device"); rep.Outcomes[component.Handled].Count != 2 {
		t.Errorf("outcomes are %+v", rep.Outcomes)
	}
	want(t, "said", said(r, warm), `device/sim-7/twin/update {"state":{"desired":{"setpoint":18}}}`)
	want(t, "said", said(r, still), `service_platform/worker/sim-mechanic/invoke {"device":"sim-8","state":"stalled","seq":4}`)
	if code, body := ask(t, r, "PUT", "/api/v1/rules/sim-thermostat", hot); code != 409 || !strings.Contains(body, "give yours another name") {
		t.Errorf("a rule of its name is answered %d %s", code, body)
	}
	r.Stop()
	delete(r.Config, Name)
	start(t, r)
	there(404)
	put(t, r, "sim-thermostat", hot) // somebody's own stays, whoever starts
	r.Stop()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine.yaml"), []byte(hot), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Config[Name] = fmt.Appendf(nil, `{"demo":true,"rules_dir":%q}`, dir)
	r.Start(Spec)
	r.Until(func() bool { code, _ := ask(t, r, "GET", "/api/v1/rules/mine", ""); return code == 200 }, func() string { return "the file's rule is not there" })
	if _, body := ask(t, r, "GET", "/api/v1/rules/sim-thermostat", ""); !strings.Contains(body, "alarms/") {
		t.Errorf("somebody's own rule became %s", body)
	}
}

// joined is another process on the same bus.
func joined(t *testing.T, r *componenttest.Rig, node string) *componenttest.Rig {
	t.Helper()
	other := componenttest.New(t)
	if err := other.Bus.Close(); err != nil {
		t.Fatal(err)
	}
	other.Bus, other.Node = r.Bus.Reopen(), node
	return other
}

package rule

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

func shownRule(t *testing.T, r *componenttest.Rig, name string) (s Shown) {
	t.Helper()
	if code, body := ask(t, r, "GET", "/api/v1/rules/"+name, ""); code != 200 || json.Unmarshal([]byte(body), &s) != nil {
		t.Fatalf("%d %s", code, body)
	}
	return s
}

// compared waits until so many messages were compared.
func compared(t *testing.T, r *componenttest.Rig, name string, n uint64) Tally {
	t.Helper()
	var s Shown
	r.Until(func() bool { s = shownRule(t, r, name); return s.Trial != nil && s.Trial.Tally.Heard >= n },
		func() string { return fmt.Sprintf("not %d are compared: %+v", n, s.Trial) })
	return s.Trial.Tally
}

const above = `{"sql": "SELECT celsius AS t FROM 'device/+/telemetry' WHERE celsius > %d", "actions": [{"republish": {"topic": "alarms/${topic(2)}"}}]}`

func TestShadowModeComparesAndSaysNothing(t *testing.T) {
	r := running(t, "hot", fmt.Sprintf(above, 30))
	if code, body := ask(t, r, "PUT", "/api/v1/rules/hot/shadow?by=tester&why=summer", fmt.Sprintf(above, 20)); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	warm, hot, cold := say("device.d-1.telemetry", `{"celsius":25}`), say("device.d-1.telemetry", `{"celsius":35}`), say("device.d-1.telemetry", `{"celsius":15}`)
	r.Say(warm, hot, cold)
	r.Settled(Name, "device")
	want(t, "said", said(r, warm, hot, cold), `alarms/d-1 {"t":35}`)
	of := compared(t, r, "hot", 3)
	if of.Matched != 2 || of.Before != 1 || of.Same != 2 || of.Differences[NewlyMatched] != 1 || len(of.Examples) != 1 || of.Examples[0].Message != warm.ID || of.Version != 2 || of.Against != 1 {
		t.Errorf("tally %+v", of)
	}
	s := shownRule(t, r, "hot")
	if s.Version != 1 || !s.Enabled || s.Trial.By != "tester" || s.Trial.Why != "summer" || s.Counts.Matched != 1 {
		t.Errorf("shown %+v", s)
	}

	// What was counted outlives the process, and nothing is counted twice.
	r.Stop()
	r.Start(Spec)
	r.Until(func() bool { code, _ := ask(t, r, "GET", "/api/v1/rules", ""); return code == 200 }, func() string { return "no answer" })
	if again := compared(t, r, "hot", 3); again.Heard != 3 || again.Differences[NewlyMatched] != 1 || len(again.Examples) != 1 || !again.Since.Equal(of.Since) {
		t.Errorf("after a restart: %+v", again)
	}
	r.Say(say("device.d-1.telemetry", `{"celsius":26}`))
	if of = compared(t, r, "hot", 4); of.Differences[NewlyMatched] != 2 {
		t.Errorf("after one more: %+v", of)
	}

	// Another running version is another comparison.
	put(t, r, "hot", fmt.Sprintf(above, 10))
	if s = shownRule(t, r, "hot"); s.Version != 3 || s.Trial.Tally.Heard != 0 || s.Trial.Tally.Against != 3 {
		t.Errorf("beside another version: %+v", s.Trial)
	}
	r.Say(say("device.d-1.telemetry", `{"celsius":15}`))
	if of = compared(t, r, "hot", 1); of.Differences[NoLongerMatched] != 1 {
		t.Errorf("beside another version: %+v", of)
	}

	if code, body := ask(t, r, "POST", "/api/v1/rules/hot/shadow/promote?by=tester", ""); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	if s = shownRule(t, r, "hot"); s.Version != 2 || s.Trial != nil {
		t.Errorf("promoted: %+v", s)
	}
	warm = say("device.d-1.telemetry", `{"celsius":25}`)
	r.Say(warm)
	r.Settled(Name, "device")
	want(t, "said", said(r, warm), `alarms/d-1 {"t":25}`)
}

// TestRuleMayBeginInShadowMode: a rule that is new runs nowhere, and is compared with nothing.
func TestRuleMayBeginInShadowMode(t *testing.T) {
	r := running(t)
	if code, body := ask(t, r, "PUT", "/api/v1/rules/new/shadow", fmt.Sprintf(above, 20)); code != 200 {
		t.Fatalf("%d %s", code, body)
	}
	m := say("device.d-1.telemetry", `{"celsius":25}`)
	r.Say(m)
	if of := compared(t, r, "new", 1); of.Against != 0 || of.Differences[NewlyMatched] != 1 {
		t.Errorf("tally %+v", of)
	}
	if s := shownRule(t, r, "new"); s.Enabled || s.Version != 1 {
		t.Errorf("shown %+v", s)
	}
	r.Settled(Name, "device")
	if list := said(r, m); len(list) != 0 {
		t.Errorf("it says %s", list)
	}
	for _, c := range []struct {
		method, path, body, want string
		code                     int
	}{
		{"DELETE", "new/shadow", "", `"version":1`, 200},
		{"DELETE", "new/shadow", "", "no version of rule new is in shadow mode", 404},
		{"POST", "new/shadow/promote", "", "no version of rule new is in shadow mode", 404},
		{"PUT", "new/shadow?version=7", "", "version 7 of rule new is not kept", 404},
		{"PUT", "new/shadow", `{"sql": "SELECT a b", "actions": [{"worker": {"name": "w"}}]}`, "line 1, column 10", 400},
		{"PUT", "nothing/shadow?version=1", "", "there is no rule nothing", 404},
	} {
		if code, body := ask(t, r, c.method, "/api/v1/rules/"+c.path, c.body); code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %s", c.method, c.path, code, body)
		}
	}
	put(t, r, "run", fmt.Sprintf(above, 20))
	if code, body := ask(t, r, "PUT", "/api/v1/rules/run/shadow?version=1", ""); code != 409 {
		t.Errorf("a version beside itself: %d %s", code, body)
	}
}

// twinStub answers wishes for twins in the place of service_platform.twin.
func twinStub(answers func(device.TwinRef) []byte) component.Spec {
	return component.Define(component.Spec{Name: "service_platform.twin", Doc: "a stand-in", Hears: []message.Pattern{serviceplatform.TwinWanted},
		Says: []message.Pattern{"device.*.twin.read"}, State: component.Local}, struct{}{}, func(component.Env, struct{}) (*component.Part, error) {
		return &component.Part{Handle: func(_ context.Context, tx component.Tx, m *message.Message) error {
			var ref device.TwinRef
			if err := json.Unmarshal(m.Data, &ref); err != nil {
				return err
			}
			raw, err := json.Marshal(device.TwinRead{Shadow: ref.Shadow, Document: answers(ref)})
			if err != nil {
				return err
			}
			return tx.Say(&message.Message{Subject: device.TwinReadSubject(ref.Device), Device: ref.Device, Data: raw})
		}}, nil
	})
}

func TestRuleReadsTwins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // waiting takes none of our time
		r := componenttest.New(t)
		defer r.Close()
		r.Start(Spec, twinStub(func(ref device.TwinRef) []byte {
			if ref.Device == "lamp" && ref.Shadow == "" {
				return []byte(`{"state":{"reported":{"on":true}},"metadata":{},"version":4,"timestamp":1}`)
			}
			return nil
		}))
		r.Until(func() bool { code, _ := ask(t, r, "GET", "/api/v1/rules", ""); return code == 200 }, func() string { return "no answer" })
		put(t, r, "look", `{"sql": "SELECT get_thing_shadow(thing).state.reported.on AS on, isUndefined(get_thing_shadow(thing)) AS none FROM 'ask'", "actions": [{"republish": {"topic": "told"}}]}`)
		put(t, r, "aside", `{"sql": "SELECT 1 AS one FROM 'aside'", "actions": [{"republish": {"topic": "aside/${get_thing_shadow('lamp').version}"}}]}`)
		aside := componenttest.Message("aside", "d-3", `{}`)
		r.Say(aside)
		r.Settled(Name, "device")
		want(t, "by a template", said(r, aside), `aside/4 {"one":1}`)
		lamp, other := componenttest.Message("ask", "d-1", `{"thing":"lamp"}`), componenttest.Message("ask", "d-2", `{"thing":"other"}`)
		r.Say(lamp, other)
		r.Settled(Name, "device")
		want(t, "of the lamp", said(r, lamp), `told {"on":true,"none":false}`)
		want(t, "of what has none", said(r, other), `told {"none":true}`)

		// From now on what the twin says of its changes is followed, and nothing is asked again.
		r.Say(componenttest.Message("device.lamp.twin.update.documents", "lamp", `{"previous":{},"current":{"state":{"reported":{"on":false}},"metadata":{},"version":5},"timestamp":2}`))
		wishes := len(r.Read("service_platform"))
		r.Until(func() bool {
			m := componenttest.Message("ask", "d-1", `{"thing":"lamp"}`)
			r.Say(m)
			r.Settled(Name, "device")
			return said(r, m)[0] == `told {"on":false,"none":false}`
		}, func() string { return "the change is not seen" })
		r.Say(componenttest.Message("device.lamp.twin.changed", "lamp", `{"device":"lamp","change":"deleted","version":5,"at":"2026-11-23T03:00:00Z","source":"x","paths":[]}`))
		r.Until(func() bool {
			m := componenttest.Message("ask", "d-1", `{"thing":"lamp"}`)
			r.Say(m)
			r.Settled(Name, "device")
			return said(r, m)[0] == `told {"none":true}`
		}, func() string { return "the deletion is not seen" })
		if now := len(r.Read("service_platform")); now != wishes {
			t.Errorf("%d wishes were said, and now %d", wishes, now)
		}
		if s := shownRule(t, r, "look"); s.Counts.Failed != 0 {
			t.Errorf("shown %+v", s)
		}
	})
}

// TestRuleFailsWhereNobodyTellsTheTwin: the message waits a while, then the rule fails and the others have it.
func TestRuleFailsWhereNobodyTellsTheTwin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // waiting takes none of our time
		r := componenttest.New(t)
		defer r.Close()
		r.Start(Spec)
		r.Until(func() bool { code, _ := ask(t, r, "GET", "/api/v1/rules", ""); return code == 200 }, func() string { return "no answer" })
		put(t, r, "look", `{"sql": "SELECT get_thing_shadow('lamp').state AS s FROM 'ask'", "actions": [{"republish": {"topic": "told"}}]}`)
		put(t, r, "plain", `{"sql": "SELECT 1 AS one FROM 'ask'", "actions": [{"republish": {"topic": "plain"}}]}`)
		m := componenttest.Message("ask", "d-1", `{}`)
		r.Say(m)
		rep := r.Settled(Name, "device")
		list := said(r, m)
		if rep.Outcomes[component.Dead].Count != 0 || len(list) != 2 || list[0] != `plain {"one":1}` || !strings.Contains(list[1], "is it running?") {
			t.Errorf("outcomes %+v, said %s", rep.Outcomes, list)
		}
		if s := shownRule(t, r, "look"); s.Counts.Failed != 1 || s.Counts.Matched != 0 {
			t.Errorf("shown %+v", s)
		}
		if s := shownRule(t, r, "plain"); s.Counts.Matched != 1 {
			t.Errorf("shown %+v", s)
		}
	})
}

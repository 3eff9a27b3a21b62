package rule

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

func compiled(t *testing.T, document string) *Rule {
	t.Helper()
	if document == "" {
		return nil
	}
	d, err := Parse([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	d.Name = "r"
	r, err := Compile(d, 1, "n1")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDifferenceNamesHowTwoVersionsDiffer(t *testing.T) {
	const to = `, "actions": [{"republish": {"topic": "to"}}]}`
	hot := `{"sql": "SELECT celsius AS t FROM 'device/+/telemetry' WHERE celsius > 30"` + to
	for _, c := range []struct{ name, before, after, data, want string }{
		{"the same", hot, hot, `{"celsius":31}`, ""},
		{"spelled otherwise", hot, strings.Replace(hot, "> 30", ">= 30.0001", 1), `{"celsius":31}`, ""},
		{"neither takes it", hot, strings.Replace(hot, "> 30", "> 35", 1), `{"celsius":30}`, ""},
		{"lower", hot, strings.Replace(hot, "> 30", "> 20", 1), `{"celsius":25}`, NewlyMatched},
		{"higher", hot, strings.Replace(hot, "> 30", "> 40", 1), `{"celsius":35}`, NoLongerMatched},
		{"new", "", hot, `{"celsius":35}`, NewlyMatched},
		{"another topic", hot, strings.Replace(hot, "device/+", "device/x-1", 1), `{"celsius":35}`, NoLongerMatched},
		{"another output", hot, strings.Replace(hot, "celsius AS t", "celsius + 1 AS t", 1), `{"celsius":35}`, OutputChanged},
		{"another number that is the same", hot, strings.Replace(hot, "celsius AS t", "celsius * 10 / 10 AS t", 1), `{"celsius":35.50}`, ""},
		{"goes elsewhere", hot, strings.Replace(hot, `"to"`, `"elsewhere"`, 1), `{"celsius":35}`, ActionsChanged},
		{"goes with another QoS", hot, strings.Replace(hot, `"to"`, `"to", "qos": 0`, 1), `{"celsius":35}`, ActionsChanged},
		{"one action more", hot, strings.Replace(hot, `"actions": [`, `"actions": [{"worker": {"name": "w"}}, `, 1), `{"celsius":35}`, ActionsChanged},
		{"an action cannot", hot, strings.Replace(hot, `"to"`, `"${missing}"`, 1), `{"celsius":35}`, NewlyFailing},
		{"SQL cannot", strings.Replace(hot, "celsius AS t FROM 'device/+/telemetry' WHERE celsius > 30", "* FROM 'device/+/telemetry'", 1), strings.Replace(hot, " WHERE celsius > 30", "", 1), `no JSON`, NewlyFailing},
		{"an action can again", strings.Replace(hot, `"to"`, `"${missing}"`, 1), hot, `{"celsius":35}`, NoLongerFailing},
		{"both cannot", strings.Replace(hot, `"to"`, `"${missing}"`, 1), strings.Replace(hot, `"to"`, `"${missing}"`, 1), `{"celsius":35}`, ""},
		{"a command has a new id each time", strings.Replace(hot, `"republish": {"topic": "to"}`, `"command": {"device": "d-1", "name": "cool"}`, 1),
			strings.Replace(hot, `"republish": {"topic": "to"}`, `"command": {"device": "d-1", "name": "cool"}`, 1), `{"celsius":35}`, ""},
		{"what is random is the same", strings.Replace(hot, "celsius AS t", "newuuid() AS t", 1), strings.Replace(hot, "celsius AS t", "newuuid() AS t", 1), `{"celsius":35}`, ""},
	} {
		m := say("device.d-1.telemetry", c.data)
		before, after := compiled(t, c.before).verdict(m, trying{}), compiled(t, c.after).verdict(m, trying{})
		if got := difference(before, after); got != c.want {
			t.Errorf("%s: %q, want %q\nbefore %+v\nafter  %+v", c.name, got, c.want, before, after)
		}
	}
}

// TestBacktestSaysWhatWouldChangeAndSaysNothing tries new versions on what was recorded.
func TestBacktestSaysWhatWouldChangeAndSaysNothing(t *testing.T) {
	r := running(t, "hot", `{"sql": "SELECT celsius AS t FROM 'device/+/telemetry' WHERE celsius > 30", "actions": [{"republish": {"topic": "alarms/${topic(2)}"}}]}`)
	for i := range 50 {
		r.Say(say("device.d-1.telemetry", fmt.Sprintf(`{"celsius":%d}`, i)))
	}
	r.Say(say("device.d-1.telemetry", `no JSON`), componenttest.Message("3rd_party.x.y.z", "d-1", `{"celsius":99}`))
	r.Settled(Name, "device")
	before := len(r.Read("device"))

	backtest := func(body string, query ...string) (of Backtest) {
		t.Helper()
		q := url.Values{}
		for i := 0; i < len(query); i += 2 {
			q.Set(query[i], query[i+1])
		}
		code, answer := ask(t, r, "POST", "/api/v1/rules/hot/backtest?"+q.Encode(), body)
		lines := strings.Split(strings.TrimSpace(answer), "\n")
		var last struct {
			Result *Backtest
			Error  string
		}
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); code != 200 || err != nil || last.Result == nil {
			t.Fatalf("%s: %d %s", body, code, answer)
		}
		return *last.Result
	}
	// The SQL alone goes with the actions of the version that runs.
	of := backtest(`{"sql": "SELECT celsius AS t FROM 'device/+/telemetry' WHERE celsius > 40"}`)
	if of.Matched != 9 || of.MatchedBefore != 19 || of.Differences[NoLongerMatched] != 10 || of.Heard != 51 || of.Same != 41 || of.Against != 1 || of.Stopped != "" {
		t.Errorf("above 40: %+v", of)
	}
	if len(of.Examples) != examplesMax || of.Examples[0].Data != `{"celsius":31}` || of.Examples[0].Before.Says[0].Topic != "alarms/d-1" || !strings.Contains(of.Examples[0].After.Reason, "celsius is 31") {
		t.Errorf("examples: %+v", of.Examples)
	}
	of = backtest(`{"sql": "SELECT celsius AS t FROM '#' WHERE celsius > 30", "actions": [{"republish": {"topic": "elsewhere"}}]}`)
	// The alarms that were said hold t, and so no celsius; what is not from devices is heard too.
	if of.Differences[ActionsChanged] != 19 || of.Differences[NewlyMatched] != 1 || of.Matched != 20 {
		t.Errorf("elsewhere: %+v", of)
	}
	of = backtest(`{"sql": "SELECT celsius AS t FROM 'device/+/telemetry'"}`)
	if of.Differences[NewlyFailing] != 1 || of.Differences[NewlyMatched] != 31 {
		t.Errorf("all: %+v", of)
	}
	if of = backtest("", "version", "1"); of.Matched != 19 || of.Against != 0 || of.Differences[NewlyMatched] != 19 {
		t.Errorf("itself: %+v", of)
	}
	if of = backtest("", "limit", "10"); of.Read != 10 || !strings.Contains(of.Stopped, "limit") {
		t.Errorf("ten: %+v", of)
	}
	if of = backtest("", "until", time.Now().Add(-time.Hour).UTC().Format(time.RFC3339), "since", "2h"); of.Read != 0 || of.Stopped != "" {
		t.Errorf("an hour ago: %+v", of)
	}
	if after := len(r.Read("device")); after != before {
		t.Errorf("%d messages were in the log, and now %d", before, after)
	}
	for query, want := range map[string]string{"since=x": "since=x", "limit=0": "limit=0", "rate=99999999": "backtest_rate", "for=-1s": "for=-1s", "since=1m&until=1h": "since before until", "version=7": "version 7 of rule hot is not kept"} {
		if code, answer := ask(t, r, "POST", "/api/v1/rules/hot/backtest?"+query, ""); code < 400 || !strings.Contains(answer, want) {
			t.Errorf("%s: %d %s", query, code, answer)
		}
	}
	if code, answer := ask(t, r, "POST", "/api/v1/rules/hot/backtest", `{"sql": "SELECT a FROM"}`); code != 400 || !strings.Contains(answer, "line 1, column 14") {
		t.Errorf("%d %s", code, answer)
	}
}

func TestExplainTellsWhyARecordedMessageMatchedOrNot(t *testing.T) {
	r := running(t, "hot", `{"sql": "SELECT celsius AS t FROM 'device/+/telemetry' WHERE celsius > 30", "actions": [{"republish": {"topic": "alarms/${topic(2)}"}}, {"republish": {"topic": "x/${missing}"}}]}`)
	cold, first := say("device.d-1.telemetry", `{"celsius":21}`), say("device.d-1.telemetry", `{"celsius":31}`)
	r.Say(cold, first)
	put(t, r, "hot", `{"sql": "SELECT celsius AS t FROM 'device/+/telemetry' WHERE celsius > 40", "actions": [{"republish": {"topic": "alarms/${topic(2)}"}}]}`)
	second, foreign := say("device.d-1.telemetry", `{"celsius":32}`), say("device.d-1.event.x", `{"celsius":99}`)
	r.Say(second, foreign)
	r.Settled(Name, "device")
	explain := func(m *message.Message, more string) (x Explained) {
		t.Helper()
		code, answer := ask(t, r, "GET", "/api/v1/rules/hot/explain?message="+m.ID.String()+more, "")
		if err := json.Unmarshal([]byte(answer), &x); code != 200 || err != nil {
			t.Fatalf("%d %s", code, answer)
		}
		return x
	}
	if x := explain(first, ""); !x.Matched || x.Version != 1 || x.InForce.Version != 1 || !x.InForce.Enabled || len(x.Says) != 2 || x.Says[0].Topic != "alarms/d-1" || !strings.Contains(x.Says[1].Error, "Undefined") {
		t.Errorf("matched: %+v", x)
	}
	if x := explain(cold, ""); x.Matched || !x.Heard || x.Reason != "celsius > 30 is false: celsius is 21" || len(x.Explain.Clauses) != 2 || x.Explain.Clauses[1].Holds || len(x.Explain.Clauses[1].Steps) == 0 {
		t.Errorf("cold: %+v", x)
	}
	if x := explain(second, ""); x.Matched || x.Version != 2 || x.InForce.Version != 2 || x.Reason != "celsius > 40 is false: celsius is 32" {
		t.Errorf("under the second version: %+v", x)
	}
	if x := explain(second, "&version=1"); !x.Matched || x.Version != 1 || x.InForce.Version != 2 {
		t.Errorf("by the first version: %+v", x)
	}
	if x := explain(foreign, ""); x.Heard || x.Matched || x.Explain.Clauses[0].Holds || !strings.Contains(x.Reason, "does not hear topic") {
		t.Errorf("foreign: %+v", x)
	}
	// By its place, as the journal tells it.
	if x := explain(second, "&log=device&generation=1&partition=0&sequence="+sequenceOf(t, r, second)); x.Version != 2 {
		t.Errorf("by place: %+v", x)
	}
	for query, want := range map[string]string{"message=x": "message=x", "message=" + message.NewID(time.Now()).String(): "no message", "message=" + first.ID.String() + "&version=9": "version 9",
		"message=" + first.ID.String() + "&log=nothing": "log=nothing", "message=" + first.ID.String() + "&log=device&generation=1&partition=0&sequence=1000": "no longer"} {
		if code, answer := ask(t, r, "GET", "/api/v1/rules/hot/explain?"+query, ""); code < 400 || !strings.Contains(answer, want) {
			t.Errorf("%s: %d %s", query, code, answer)
		}
	}
}

func sequenceOf(t *testing.T, r *componenttest.Rig, m *message.Message) string {
	t.Helper()
	l, err := r.Bus.Log(t.Context(), "device", bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); ; seq++ {
		s, err := l.Fetch(t.Context(), bus.Position{Log: l.ID(), Generation: 1, Sequence: seq})
		if err != nil {
			t.Fatal(err)
		}
		var x message.Message
		for c := s.Batch.Cursor(); c.Next(&x); {
			if x.ID == m.ID {
				raw, _ := json.Marshal(seq) // a number can be written
				return string(raw)
			}
		}
	}
}

func TestHistoryTellsWhatWasInForceThen(t *testing.T) {
	at := func(minute int) time.Time { return time.Date(2026, 11, 23, 3, minute, 0, 0, time.UTC) }
	h := Head{Name: "r", Changes: []Change{{At: at(1), Change: "created", Version: 1}, {At: at(2), Change: "updated", Version: 2}, {At: at(3), Change: "disabled", Version: 2},
		{At: at(4), Change: "shadow_started", Version: 3}, {At: at(5), Change: "enabled", Version: 2}, {At: at(6), Change: "rolled_back", Version: 1}, {At: at(7), Change: "deleted", Version: 1}}}
	for _, c := range []struct {
		minute, version    int
		enabled, forgotten bool
	}{{0, 0, false, false}, {1, 1, true, false}, {2, 2, true, false}, {3, 2, false, false}, {4, 2, false, false}, {5, 2, true, false}, {6, 1, true, false}, {8, 0, false, false}} {
		if f := h.then(at(c.minute)); f.Version != c.version || f.Enabled != c.enabled || f.Forgotten != c.forgotten {
			t.Errorf("at minute %d: %+v", c.minute, f)
		}
	}
	h.Changes = h.Changes[1:] // what was before is forgotten
	if f := h.then(at(0)); f.Version != 2 || !f.Forgotten {
		t.Errorf("before what is remembered: %+v", f)
	}
}

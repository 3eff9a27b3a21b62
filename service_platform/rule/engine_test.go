package rule

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

func say(subject message.Subject, data string) *message.Message {
	m := componenttest.Message(subject, subject.Token(1), data)
	m.Source = message.ClientSource(subject.Token(1), subject.Token(1))
	return m
}

// ask asks over HTTP and gives the status and the answer.
func ask(t *testing.T, r *componenttest.Rig, method, path, body string, headers ...string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	req := httptest.NewRequest(method, path, bytes.NewReader([]byte(body)))
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	r.Host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

// put puts a rule of YAML, and gives what is answered.
func put(t *testing.T, r *componenttest.Rig, name, yaml string) Shown {
	t.Helper()
	code, body := ask(t, r, "PUT", "/api/v1/rules/"+name+"?by=tester", yaml)
	var s Shown
	if code != 200 || json.Unmarshal([]byte(body), &s) != nil {
		t.Fatalf("%s: %d %s", name, code, body)
	}
	return s
}

// running starts a rig with rules, by their names.
func running(t *testing.T, rules ...string) *componenttest.Rig {
	t.Helper()
	r := componenttest.New(t)
	start(t, r)
	for i := 0; i < len(rules); i += 2 {
		put(t, r, rules[i], rules[i+1])
	}
	return r
}

// start starts the component, and waits until it answers. With State Derived it is up when it holds partitions; its routes
// are there a moment later.
func start(t *testing.T, r *componenttest.Rig) {
	t.Helper()
	r.Start(Spec)
	r.Until(func() bool { code, _ := ask(t, r, "GET", "/api/v1/rules", ""); return code == 200 }, func() string { return "no answer" })
}

// said gives what rules said of messages, as `topic data`, in order.
func said(r *componenttest.Rig, to ...*message.Message) (list []string) {
	for _, log := range message.Namespaces() {
		for _, s := range r.Read(log) {
			for _, m := range to {
				if s.Cause == m.ID && strings.Contains(s.Source, Name+"?rule=") {
					list = append(list, s.Subject.Topic()+" "+string(s.Data))
				}
			}
		}
	}
	return list
}

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

const hot = `
sql: SELECT celsius AS state.reported.t, topic(2) AS device FROM 'device/+/telemetry' WHERE celsius > 30
actions:
  - republish: {topic: "alarms/${topic(2)}", user_properties: [{name: kind, value: hot}]}
  - twin: {device: "${topic(2)}", shadow: alarm}
  - command: {device: "${clientid()}", name: cool, ttl: 10m}
  - worker: {name: pager}
`

func TestRuleSaysWhatItsActionsAre(t *testing.T) {
	r := running(t, "hot", hot)
	m, cold := say("device.d-1.telemetry", `{"celsius":31}`), say("device.d-1.telemetry", `{"celsius":30}`)
	r.Say(m, cold)
	rep := r.Settled(Name, "device")
	if rep.Outcomes[component.Handled].Count != 1 {
		t.Errorf("outcomes are %+v", rep.Outcomes)
	}
	const out = `{"state":{"reported":{"t":31}},"device":"d-1"}`
	got := slices.DeleteFunc(said(r, m), func(s string) bool { return strings.HasPrefix(s, "device/d-1/command/cool/") }) // its id is new each time
	want(t, "said", got, "alarms/d-1 "+out, "device/d-1/twin/name/alarm/update "+out, "service_platform/worker/pager/invoke "+out)
	if list := said(r, cold); len(list) != 0 {
		t.Errorf("of a cold one is said %s", list)
	}
	for _, s := range r.Read("device") {
		if s.Cause != m.ID {
			continue
		}
		if s.Trace.ID != m.Trace.ID || s.Depth != 1 || s.Device != "d-1" || !strings.Contains(s.Source, "?rule=hot@1&action=") {
			t.Errorf("%s: trace %s, depth %d, device %q, source %q", s.Subject, s.Trace.ID, s.Depth, s.Device, s.Source)
		}
	}
	var cmds []*message.Message
	for _, s := range r.Read("device") {
		if s.Cause == m.ID && strings.HasPrefix(string(s.Subject), "device.d-1.command.cool.") {
			cmds = append(cmds, s)
		}
	}
	if len(cmds) != 1 || cmds[0].Expires.Sub(cmds[0].Recorded()).Round(time.Second) != 10*time.Minute || string(cmds[0].Data) != out {
		t.Errorf("the commands are %+v", cmds)
	}
}

// What is said for datasets is passed as a whole while no rule may hear it, and heard from when one may.
func TestRuleThatNamesTheDataPlatformHearsItFromThenOn(t *testing.T) {
	r := running(t, "hot", hot)
	talk := func() *message.Message { return say("data_platform.telemetry.d-1", `{"celsius":31}`) }
	before, after, over := talk(), talk(), talk()
	r.Say(before)
	rep := r.Settled(Name, "data_platform")
	if rep.Outcomes[component.NotMatched].Count != 1 {
		t.Errorf("without a rule: %+v", rep.Outcomes)
	}
	put(t, r, "loud", `{"sql": "SELECT celsius FROM 'data_platform/telemetry/+'", "actions": [{"republish": {"topic": "loud"}}]}`)
	r.Say(after)
	r.Settled(Name, "data_platform")
	if code, body := ask(t, r, "DELETE", "/api/v1/rules/loud?by=tester", ""); code != 200 {
		t.Fatal(body)
	}
	r.Say(over)
	rep = r.Settled(Name, "data_platform")
	if rep.Outcomes[component.NotMatched].Count != 2 || rep.Outcomes[component.Handled].Count != 1 {
		t.Errorf("with a rule for a while: %+v", rep.Outcomes)
	}
	want(t, "said", said(r, before, after, over), `loud {"celsius":31}`)
}

func TestLogIsPassedWhereNoRuleMayHearIt(t *testing.T) {
	rule := func(from message.Pattern) *live {
		return &live{Rule: &Rule{Name: string(from), from: []message.Pattern{from}}}
	}
	for from, hears := range map[message.Pattern]bool{"device.*.telemetry": false, "data_platform.telemetry.>": true, "data_platform.>": true, "*.telemetry.>": true, ">": true, "3rd_party.>": false} {
		if newSet([]*live{rule(from)}, nil).mayHear(message.DataPlatform) != hears {
			t.Errorf("%s: the log of the data platform is heard: %v", from, !hears)
		}
		trials := map[string]*trial{"t": {now: rule(from).Rule}}
		if newSet(nil, trials).mayHear(message.DataPlatform) != hears {
			t.Errorf("%s in shadow mode: the log of the data platform is heard: %v", from, !hears)
		}
	}
	for _, log := range []string{message.Device, message.ServicePlatform} { // they hold more than rules name
		if !newSet(nil, nil).mayHear(log) {
			t.Errorf("%s is passed", log)
		}
	}
}

// An update without state would be rejected by the twin, where nobody looks: the rule fails, and says so before, where it can.
func TestTwinIsSentNothingButUpdates(t *testing.T) {
	r := running(t, "some", `{"sql": "SELECT * FROM 'device/+/telemetry'", "actions": [{"twin": {"device": "${topic(2)}"}}]}`)
	const never = `{"sql": "SELECT t FROM 'device/+/telemetry'", "actions": [{"twin": {"device": "${topic(2)}"}}], "error_action": {"twin": {"device": "errors"}}}`
	_, warned := ask(t, r, "PUT", "/api/v1/rules/never", never)
	for _, want := range []string{`actions[0].twin: the output has no \"state\"`, "error_action.twin: it gets what failed"} {
		if !strings.Contains(warned, want) {
			t.Errorf("a rule that never updates a twin is added with %s; want in it %q", warned, want)
		}
	}
	if _, shown := ask(t, r, "GET", "/api/v1/rules/some", ""); strings.Contains(shown, "warnings") {
		t.Errorf("one that may is warned of: %s", shown)
	}
	ask(t, r, "DELETE", "/api/v1/rules/never", "")
	update, other := say("device.d-1.telemetry", `{"state":{"reported":{"t":31}}}`), say("device.d-1.telemetry", `{"t":31}`)
	r.Say(update, other)
	r.Settled(Name, "device")
	want(t, "said of an update", said(r, update), `device/d-1/twin/update {"state":{"reported":{"t":31}}}`)
	if list := said(r, other); len(list) != 1 || !strings.HasPrefix(list[0], "service_platform/rule/some/failed ") || !strings.Contains(list[0], "updates no twin") {
		t.Errorf("of what is none is said %s", list)
	}
}

func TestFailingRuleConcernsNoOther(t *testing.T) {
	r := running(t,
		"a-bad", `{"sql": "SELECT a FROM 'device/+/telemetry'", "actions": [{"republish": {"topic": "x/${missing}"}}, {"republish": {"topic": "operator/alarm/${a}"}}, {"republish": {"topic": "ok/${a}"}}],
			"error_action": {"republish": {"topic": "errors/${topic(2)}"}}}`,
		"b-good", `{"sql": "SELECT a FROM 'device/+/telemetry'", "actions": [{"republish": {"topic": "good"}}]}`)
	m := say("device.d-1.telemetry", `{"a":"v"}`)
	noJSON := say("device.d-1.telemetry", `no JSON`)
	r.Say(m, noJSON)
	rep := r.Settled(Name, "device")
	if rep.Outcomes[component.Dead].Count != 0 || rep.Outcomes[component.Handled].Count != 2 {
		t.Errorf("outcomes are %+v", rep.Outcomes)
	}
	var topics []string
	// https://docs.aws.amazon.com/iot/latest/developerguide/rule-error-handling.html#rule-error-message-format
	var document struct {
		RuleName, Topic, CloudwatchTraceID, ClientID, Base64OriginalPayload string
		Failures                                                            []struct{ FailedAction, FailedResource, ErrorMessage string }
	}
	for _, s := range said(r, m) {
		topic, data, _ := strings.Cut(s, " ")
		topics = append(topics, topic)
		if topic == "errors/d-1" {
			if err := json.Unmarshal([]byte(data), &document); err != nil {
				t.Fatal(err)
			}
		}
	}
	want(t, "topics", topics, "ok/v", "errors/d-1", "good", "service_platform/rule/a-bad/failed")
	if document.RuleName != "a-bad" || document.Topic != "device/d-1/telemetry" || document.CloudwatchTraceID != m.Trace.ID.String() || document.ClientID != "d-1" ||
		document.Base64OriginalPayload != base64.StdEncoding.EncodeToString(m.Data) || len(document.Failures) != 2 ||
		document.Failures[0].FailedAction != "RepublishAction" || !strings.Contains(document.Failures[0].ErrorMessage, "Undefined") || !strings.Contains(document.Failures[1].ErrorMessage, "said by the platform alone") {
		t.Errorf("the error action got %+v", document)
	}
	if got := strings.Join(said(r, noJSON), "\n"); strings.Count(got, "rule_error") != 2 || !strings.Contains(got, `"kind":"sql"`) {
		t.Errorf("of what is no JSON is said\n%s", got)
	}
	// Who looks at the rule sees it, too, until it takes one without a failure.
	counts := func() Counts {
		var s Shown
		if _, body := ask(t, r, "GET", "/api/v1/rules/a-bad", ""); json.Unmarshal([]byte(body), &s) != nil {
			t.Fatal(body)
		}
		return s.Counts
	}
	if c := counts(); c.Failed != 2 || c.FailedInRow != 2 || c.Last == nil || c.Last.Message != noJSON.ID || c.Last.Trace != noJSON.Trace.ID || c.Last.Kind != "sql" || c.Last.Version != 1 || c.Last.At.IsZero() {
		t.Errorf("after two failures the rule shows %+v, and of the last one %+v", c, c.Last)
	}
	put(t, r, "a-bad", `{"sql": "SELECT a FROM 'device/+/telemetry'", "actions": [{"republish": {"topic": "ok/${a}"}}]}`)
	r.Say(say("device.d-1.telemetry", `{"a":"v"}`))
	r.Settled(Name, "device")
	if c := counts(); c.Failed != 2 || c.FailedInRow != 0 || c.Last == nil {
		t.Errorf("after one that did not fail: %+v", c)
	}
}

func TestMessageThatGoesRoundDiesAsALoop(t *testing.T) {
	r := running(t)
	s := put(t, r, "round", `{"sql": "SELECT * FROM 'ring/#'", "actions": [{"republish": {"topic": "ring/a"}}]}`)
	if len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "round → round") {
		t.Errorf("warnings are %q", s.Warnings)
	}
	m := componenttest.Message("ring.a", "d-1", `{}`)
	r.Say(m)
	_, dead := r.Buried(Name, 1)
	if dead[0].Reason != message.Loop || !strings.Contains(dead[0].Detail, "round@1") {
		t.Errorf("it dies of %s: %s", dead[0].Reason, dead[0].Detail)
	}
	n := 0
	for _, x := range r.Read("device") {
		if x.Trace.ID == m.Trace.ID {
			n++
		}
	}
	if n != 1+message.DepthMax {
		t.Errorf("%d messages are in the ring; want %d", n, 1+message.DepthMax)
	}
	// The next one goes round only a few times, since the circle is known now.
	next, other := componenttest.Message("ring.a", "d-2", `{}`), componenttest.Message("ring.a", "d-3", `{}`)
	r.Say(next, other)
	_, dead = r.Buried(Name, 3)
	if len(dead) != 3 || dead[1].Reason != message.Loop || !strings.Contains(dead[1].Detail, "rule round@1 takes what rule round says") {
		t.Errorf("dead are %+v", dead)
	}
	for _, one := range []*message.Message{next, other} {
		n = 0
		for _, x := range r.Read("device") {
			if x.Trace.ID == one.Trace.ID {
				n++
			}
		}
		if n != 1+roundsKnown {
			t.Errorf("%d messages are in the ring that is known; want %d", n, 1+roundsKnown)
		}
	}
}

func TestAWSSpellingIsASecondOne(t *testing.T) {
	r := running(t,
		"aws", `{"sql": "SELECT topic() AS t, topic(3) AS thing FROM '$aws/things/+/shadow/update/accepted'", "actions": [{"republish": {"topic": "$$aws/things/${topic(3)}/shadow/name/log/update"}}]}`,
		"ours", `{"sql": "SELECT topic() AS t FROM 'device/+/twin/#'", "actions": [{"republish": {"topic": "seen"}}]}`,
		"straight", `{"sql": "SELECT topic() AS t", "actions": [{"republish": {"topic": "straight"}}]}`)
	m := say("device.d-1.twin.update.accepted", `{}`)
	changed := say("device.d-1.twin.changed", `{}`)
	ingest := componenttest.Message("$aws.rules.straight.a.b", "d-1", `{}`)
	nobody := componenttest.Message("$aws.rules.nobody.a", "d-1", `{}`)
	r.Say(m, changed, ingest, nobody)
	r.Settled(Name, "device")
	want(t, "accepted", said(r, m), `device/d-1/twin/name/log/update {"t":"$aws/things/d-1/shadow/update/accepted","thing":"d-1"}`, `seen {"t":"device/d-1/twin/update/accepted"}`)
	want(t, "changed", said(r, changed), `seen {"t":"device/d-1/twin/changed"}`)
	want(t, "Basic Ingest", said(r, ingest), `straight {"t":"a/b"}`)
	if _, dead := r.Dead(Name); len(dead) != 1 || dead[0].Reason != message.RuleError || !strings.Contains(dead[0].Detail, `"nobody"`) {
		t.Errorf("dead are %+v", dead)
	}
}

func TestRuleHasVersionsAndAHistory(t *testing.T) {
	r := running(t)
	const v = `{"sql": "SELECT %d AS v FROM 'in'", "actions": [{"republish": {"topic": "out"}}]}`
	first := put(t, r, "v", fmt.Sprintf(v, 1))
	if again := put(t, r, "v", fmt.Sprintf(v, 1)); again.Version != 1 || again.Revision != first.Revision {
		t.Errorf("the same again is %+v", again)
	}
	second := put(t, r, "v", fmt.Sprintf(v, 2))
	outcome := func() string {
		m := componenttest.Message("in", "d-1", `{}`)
		r.Say(m)
		r.Settled(Name, "device")
		return strings.Join(said(r, m), ",")
	}
	if got := outcome(); second.Version != 2 || got != `out {"v":2}` {
		t.Errorf("version %d says %s", second.Version, got)
	}
	if code, body := ask(t, r, "PUT", "/api/v1/rules/v", fmt.Sprintf(v, 3), "If-Match", fmt.Sprint(first.Revision)); code != 412 {
		t.Errorf("a change of what was changed is answered %d %s", code, body)
	}
	for _, step := range []struct{ method, path, said string }{
		{"POST", "/rollback?why=too+eager", `out {"v":1}`},
		{"POST", "/disable", ""},
		{"POST", "/enable", `out {"v":1}`},
		{"DELETE", "", ""},
		{"POST", "/rollback?version=2", `out {"v":2}`},
	} {
		if code, body := ask(t, r, step.method, "/api/v1/rules/v"+step.path, ""); code != 200 {
			t.Fatalf("%s: %d %s", step.path, code, body)
		}
		if got := outcome(); got != step.said {
			t.Errorf("after %s %s it says %q; want %q", step.method, step.path, got, step.said)
		}
	}
	_, body := ask(t, r, "GET", "/api/v1/rules/v/history", "")
	var h Head
	if err := json.Unmarshal([]byte(body), &h); err != nil {
		t.Fatal(err)
	}
	var changes []string
	for _, c := range h.Changes {
		changes = append(changes, fmt.Sprintf("%s %d %s %s", c.Change, c.Version, c.By, c.Why))
	}
	want(t, "history", changes, "created 1 tester ", "updated 2 tester ", "rolled_back 1 operator too eager", "disabled 1 operator ", "enabled 1 operator ", "deleted 1 operator ", "rolled_back 2 operator ")
}

func TestRuleThatDoesNotCompileIsRefusedWithItsPlace(t *testing.T) {
	r := running(t)
	for body, want := range map[string]string{
		`{"sql": "SELECT a FROM 'x' WHERE", "actions": [{"worker": {"name": "w"}}]}`:                                                               "line 1, column 24",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"republish": {"topic": "a/${b +}"}}]}`:                                                          "actions[0]: republish: topic: sql: line 1, column",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"republish": {"topic": "operator/dead/x"}}]}`:                                                   "said by the platform alone",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"republish": {"topic": "device/d/twin/update/accepted"}}]}`:                                     "said by the platform alone",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"republish": {"topic": "$SYS/x"}}]}`:                                                            "$$aws/things",
		`{"sql": "SELECT a FROM '$aws/rules/x/y'", "actions": [{"worker": {"name": "w"}}]}`:                                                        "cannot be heard",
		`{"sql": "SELECT a FROM '$aws/jobs/x'", "actions": [{"worker": {"name": "w"}}]}`:                                                           "$aws/things/<thing or +>/shadow",
		`{"sql": "SELECT a FROM 'x/#/y'", "actions": [{"worker": {"name": "w"}}]}`:                                                                 "# stands alone, at the end",
		`{"sql": "SELECT a FROM 'x'", "actions": []}`:                                                                                              "1 to 10",
		`{"sql": "SELECT a FROM 'x'", "actions": [{}]}`:                                                                                            "exactly one of",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"s3": {}}]}`:                                                                                    "s3",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"worker": {"name": "w"}}], "error_action": {"worker": {"name": "${get_thing_shadow('d').x}"}}}`: "cannot be used in an error action",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"command": {"device": "d", "name": "n", "ttl": "soon"}}]}`:                                      "ttl",
		`{"name": "other", "sql": "SELECT a FROM 'x'", "actions": [{"worker": {"name": "w"}}]}`:                                                    "calls itself",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"republish": {"topic": "t", "qos": 3}}]}`:                                                       "qos 3",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"republish": {"topic": "t", "response_topic": "a/#"}}]}`:                                        "response_topic: topic name",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"republish": {"topic": "t", "message_expiry": "soon"}}]}`:                                       "want a whole number of seconds",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"republish": {"topic": "a/+/b"}}]}`:                                                             "has a wildcard",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"worker": {"name": "a/b"}}]}`:                                                                   "want a name without / + #",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"twin": {"device": "d/1"}}]}`:                                                                   "want a name without / + #",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"twin": {"device": "d", "shadow": "+"}}]}`:                                                      "want a name without / + #",
		`{"sql": "SELECT a FROM 'x'", "actions": [{"command": {"device": "d", "name": "a#"}}]}`:                                                    "want a name without / + #",
		"sql: [": "neither JSON nor YAML",
	} {
		if code, got := ask(t, r, "PUT", "/api/v1/rules/bad", body); code != 400 || !strings.Contains(got, strings.ReplaceAll(strings.ReplaceAll(want, "<", `\u003c`), ">", `\u003e`)) {
			t.Errorf("%s is answered %d %s; want %s", body, code, got, want)
		}
	}
	if code, _ := ask(t, r, "PUT", "/api/v1/rules/a.b", `{"sql": "SELECT a FROM 'x'", "actions": [{"worker": {"name": "w"}}]}`); code != 400 {
		t.Errorf("a name with a dot is answered %d", code)
	}
}

func TestFilesAreTheRules(t *testing.T) {
	r := componenttest.New(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "in.yaml")
	write := func(v string) {
		if err := os.WriteFile(file, []byte("sql: SELECT "+v+" AS v FROM 'in'\nactions: [{republish: {topic: out}}]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("1")
	r.Config[Name] = json.RawMessage(fmt.Sprintf(`{"rules_dir":%q}`, dir))
	r.Start(Spec)
	runs := func(version int) {
		t.Helper()
		var body string
		r.Until(func() bool {
			var s Shown
			_, body = ask(t, r, "GET", "/api/v1/rules/in", "")
			return json.Unmarshal([]byte(body), &s) == nil && s.Version == version && s.File == file
		}, func() string { return "it is " + body })
	}
	runs(1)
	write("2")
	runs(2)
	for _, c := range [][2]string{{"PUT", "/api/v1/rules/in"}, {"DELETE", "/api/v1/rules/in"}, {"POST", "/api/v1/rules/in/disable"}} {
		if code, body := ask(t, r, c[0], c[1], `{"sql": "SELECT a FROM 'x'", "actions": [{"worker": {"name": "w"}}]}`); code != 409 || !strings.Contains(body, file) {
			t.Errorf("%s %s of a file's rule is answered %d %s", c[0], c[1], code, body)
		}
	}
	// Files are looked at by name: when the next one's rule runs, the one before was read. What is in it does not compile,
	// so what ran goes on.
	write("(")
	next := filepath.Join(dir, "next.yaml")
	if err := os.WriteFile(next, []byte("sql: SELECT 1 AS v FROM 'nowhere'\nactions: [{republish: {topic: out}}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	there := func(rule string, want int) {
		t.Helper()
		r.Until(func() bool { code, _ := ask(t, r, "GET", "/api/v1/rules/"+rule, ""); return code == want }, func() string { return fmt.Sprintf("rule %s: no answer %d", rule, want) })
	}
	there("next", 200)
	says := func(v string) {
		t.Helper()
		m := componenttest.Message("in", "d-1", `{}`)
		r.Say(m)
		r.Settled(Name, "device")
		want(t, "said", said(r, m), `out {"v":`+v+`}`)
	}
	runs(2)
	says("2")
	// While a file cannot be read, no rule goes for want of its file: it may be in that one.
	if err := os.WriteFile(file, []byte("sql: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(next), os.WriteFile(filepath.Join(dir, "over.yaml"), []byte("sql: SELECT 1 AS v FROM 'nowhere'\nactions: [{republish: {topic: out}}]\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	there("over", 200)
	there("next", 200)
	says("2")
	write("3") // it is well again: read, and the rule without a file goes
	runs(3)
	there("next", 404)
	says("3")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	r.Until(func() bool { code, _ := ask(t, r, "GET", "/api/v1/rules/in", ""); return code == 404 }, func() string { return "the rule stays without its file" })
}

func TestRuleKeepsThePromises(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hot.yaml"), []byte(hot), 0o600); err != nil {
		t.Fatal(err)
	}
	componenttest.Promises(t, componenttest.Case{
		Spec:   Spec,
		Config: json.RawMessage(fmt.Sprintf(`{"rules_dir":%q}`, dir)),
		Poison: func() *message.Message { return componenttest.Message("$aws.rules.nobody.x", "d-1", `{}`) },
	})
}

// What rules say is said once, whatever dies between, while their versions change.
func TestEachMessageIsTakenOnceWhateverDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the time between two starts is the bubble's
		r := componenttest.New(t)
		defer r.Close()
		r.Start(Spec)
		r.Until(func() bool { code, _ := ask(t, r, "GET", "/api/v1/rules", ""); return code == 200 }, func() string { return "no answer" })
		const doc = `{"sql": "SELECT n, %d AS state.reported.v FROM 'device/+/telemetry'", "actions": [{"twin": {"device": "${topic(2)}"}}, {"worker": {"name": "w"}}]}`
		put(t, r, "twice", fmt.Sprintf(doc, 0))
		var ms []*message.Message
		for round := range 12 {
			var part []*message.Message
			for i := range 40 {
				part = append(part, say(message.Subject(fmt.Sprintf("device.d-%d.telemetry", i%4)), fmt.Sprintf(`{"n":%d}`, len(ms)+i)))
			}
			ms = append(ms, part...)
			died := r.Faults()
			switch round % 4 {
			case 0:
				r.FailBefore(1)
				died++
			case 1:
				r.FailAfter(1)
				died++
			}
			r.Say(part...)
			if round%4 == 2 {
				r.Stop() // wherever it is
				r.Start(Spec)
			}
			r.Until(func() bool { return r.Faults() == died }, func() string { return "it does not die" })
			r.Until(func() bool {
				code, _ := ask(t, r, "PUT", "/api/v1/rules/twice", fmt.Sprintf(doc, round+1))
				return code == 200
			}, func() string { return "the rule cannot be changed" })
		}
		r.Settled(Name, "device")
		r.Stop()
		twins, works := map[message.ID]int{}, map[message.ID]int{}
		for _, m := range r.Read("device") {
			if strings.HasSuffix(string(m.Subject), ".twin.update") {
				twins[m.Cause]++
			}
		}
		for _, m := range r.Read("service_platform") {
			if m.Subject == "service_platform.worker.w.invoke" {
				works[m.Cause]++
			}
		}
		for _, m := range ms {
			if twins[m.ID] != 1 || works[m.ID] != 1 {
				t.Fatalf("%s was given to its twin %d times, and to the worker %d times", m.Data, twins[m.ID], works[m.ID])
			}
		}
	})
}

func TestWordThatARuleHasNotIsNamedWithItsPlace(t *testing.T) {
	for doc, want := range map[string]string{
		`{"name": "x", "sqll": "SELECT"}`:                                        `the rule: it has no "sqll"; did you mean "sql"? It has name, `,
		`{"actions": [{"worker": {"name": "w"}}, {"republsh": {"topic": "a"}}]}`: `the rule: actions[1] has no "republsh"; did you mean "republish"? It has republish, twin, `,
		`{"error_action": {"republish": {"topic": "a", "headers": {}}}}`:         `the rule: error_action.republish has no "headers"; it has topic, qos, retain, `,
		`{"actions": [{"republish": {"topic": 1}}]}`:                             `the rule: json: cannot unmarshal number`,
		`{"ruleName": "hot", "topicRulePayload": {}}`:                            "the rule: it is written for AWS IoT; `naru rule import` reads that",
	} {
		if _, err := Parse([]byte(doc)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s gives %v; want %s", doc, err, want)
		}
	}
}

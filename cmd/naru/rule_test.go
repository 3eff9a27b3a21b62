package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/internal/same"
)

// naruWith runs a command, and gives what it prints.
func naruWith(t *testing.T, in string, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetArgs(args)
	root.SetIn(strings.NewReader(in))
	root.SetOut(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestRulesAreTriedWithoutAPlatform(t *testing.T) {
	const hot = "SELECT celsius AS t, topic(2) AS device FROM 'device/+/telemetry' WHERE celsius > 30"
	for _, c := range []struct {
		sql, topic, in string
		want           string // of the output as JSON, without the explanation
	}{
		{hot, "device/d-1/telemetry", `{"celsius": 31.0}`, `{"matched":true,"output":{"t":31,"device":"d-1"}}`},
		{hot, "device/d-1/telemetry", `{"celsius": 30}`, `{"matched":false}`},
		{hot, "device/d-1/telemetry", `{}`, `{"matched":false}`},
		{hot, "device/d-1/event/x", `{"celsius": 31}`, `{"matched":false}`},
		{"SELECT * FROM 'a'", "a", "no JSON", `{"matched":true,"output":"no JSON","bytes":"bm8gSlNPTg=="}`},
		{"SELECT * FROM 'a'", "a", "\x01\xff", `{"matched":true,"output":"Af8=","bytes":"Af8="}`},
		{"SELECT encode(*, 'base64') AS b FROM 'a'", "a", "\x01\xff", `{"matched":true,"output":{"b":"Af8="}}`},
		{"SELECT VALUE a FROM 'a'", "a", `{"a":null}`, `{"matched":true,"output":null}`},
		{"SELECT VALUE a FROM 'a'", "a", `{}`, `{"matched":true}`},
		{"SELECT a FROM 'a'", "a", `{"a":12345678901234567890123}`, `{"matched":true,"output":{"a":12345678901234567890123}}`},
		{"SELECT a FROM 'a'", "a", "no JSON", `{"matched":false,"error":"sql: the payload must be JSON, to take members from it; it is no JSON from byte 0 on"}`},
		{"SELECT topic(3) AS t FROM '$aws/things/+/shadow/update/accepted'", "$aws/things/lamp/shadow/update/accepted", `{}`, `{"matched":true,"output":{"t":"lamp"}}`},
		{"SELECT topic() AS t FROM '$aws/things/+/shadow/#'", "device/lamp/twin/get", `{}`, `{"matched":true,"output":{"t":"$aws/things/lamp/shadow/get"}}`},
		{"SELECT topic(2) AS t FROM 'device/+/twin/#'", "$aws/things/lamp/shadow/get", `{}`, `{"matched":true,"output":{"t":"lamp"}}`},
		{"SELECT * FROM '$aws/things/+/shadow/#'", "device/lamp/twin/changed", `{}`, `{"matched":false}`},
	} {
		out, err := naruWith(t, c.in, "rule", "test", "--sql", c.sql, "--topic", c.topic, "--message", "-", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]json.RawMessage
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatal(err)
		}
		if string(got["matched"]) == "false" && len(got["reason"])+len(got["error"]) == 0 {
			t.Errorf("%s of %s: nobody is told why it does not match", c.sql, c.in)
		}
		if len(got["explain"]) == 0 {
			t.Errorf("%s of %s shows no steps", c.sql, c.in)
		}
		delete(got, "explain")
		delete(got, "reason")
		raw, _ := json.Marshal(got)
		if !same.JSON(raw, []byte(c.want)) {
			t.Errorf("%s of %s gives %s; want %s", c.sql, c.in, raw, c.want)
		}
	}
	if _, err := naruWith(t, "", "rule", "test", "--sql", "SELECT a FROM 'x'", "--message", `{"a": 1}`); err == nil || !strings.HasPrefix(err.Error(), "--message wants a file, or - ") {
		t.Errorf("a message in place of its file: %v", err)
	}
	if _, err := naruWith(t, "", "rule", "test", "--sql", "SELECT a FROM 'x' WHERE", "--message", "-"); err == nil || !strings.Contains(err.Error(), "line 1, column 24") {
		t.Errorf("a statement that ends too early gives %v", err)
	}
	file := filepath.Join(t.TempDir(), "cases.json")
	if err := os.WriteFile(file, []byte(`[
		{"sql": "SELECT a FROM 't'", "topic": "t", "input": {"a": 1.0}, "expected": {"a": 1}},
		{"sql": "SELECT a FROM 't' WHERE a > 5", "topic": "t", "input": {"a": 1}},
		{"sql": "SELECT b FROM 't'", "topic": "t", "input": {"a": 1}, "expected": {"b": 1}}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := naruWith(t, "", "rule", "test", "--cases", file)
	if !errors.Is(err, errFault) || !strings.Contains(out, "case 3") || !strings.Contains(out, "2 passed, 1 failed") {
		t.Errorf("cases give %v\n%s", err, out)
	}
}

// TestRuleCasesTellNullFromNothingAndNumbersExactly holds what a list of cases means.
func TestRuleCasesTellNullFromNothingAndNumbersExactly(t *testing.T) {
	for _, c := range []struct {
		name, of string
		passes   bool
	}{
		{"null is emitted", `"sql": "SELECT VALUE a FROM 't'", "topic": "t", "input": {"a": null}, "expected": null`, true},
		{"null is not nothing", `"sql": "SELECT VALUE a FROM 't'", "topic": "t", "input": {"a": null}`, false},
		{"nothing is not null", `"sql": "SELECT VALUE a FROM 't'", "topic": "t", "input": {}, "expected": null`, false},
		{"nothing is nothing", `"sql": "SELECT VALUE a FROM 't'", "topic": "t", "input": {}`, true},
		{"not matched is nothing", `"sql": "SELECT * FROM 't' WHERE false", "topic": "t", "input": {}`, true},
		{"null is an input", `"sql": "SELECT VALUE * FROM 't'", "topic": "t", "input": null, "expected": null`, true},
		{"10.0 is 10", `"sql": "SELECT a FROM 't'", "topic": "t", "input": {"a": 10.0}, "expected": {"a": 10}`, true},
		{"1 is 1.0", `"sql": "SELECT a FROM 't'", "topic": "t", "input": {"a": 1}, "expected": {"a": 1.0}`, true},
		{"large numbers", `"sql": "SELECT a FROM 't'", "topic": "t", "input": {"a": 9007199254740993}, "expected": {"a": 9007199254740993}`, true},
		{"one more is another one", `"sql": "SELECT a FROM 't'", "topic": "t", "input": {"a": 9007199254740993}, "expected": {"a": 9007199254740992}`, false},
		{"bytes", `"sql": "SELECT encode(*, 'base64') AS b FROM 't'", "topic": "t", "input_base64": "Af8=", "expected": {"b": "Af8="}`, true},
		{"bytes come out", `"sql": "SELECT * FROM 't'", "topic": "t", "input_base64": "Af8=", "expected_base64": "Af8="`, true},
		{"other bytes", `"sql": "SELECT * FROM 't'", "topic": "t", "input_base64": "Af8=", "expected_base64": "Af4="`, false},
		{"two inputs", `"sql": "SELECT * FROM 't'", "topic": "t", "input": 1, "input_base64": "Af8="`, false},
		{"a failing rule is not nothing", `"sql": "SELECT a FROM 't'", "topic": "t", "input_base64": "Af8="`, false},
		{"the other spelling", `"sql": "SELECT topic(3) AS t FROM '$aws/things/+/shadow/#'", "topic": "device/lamp/twin/get", "input": {}, "expected": {"t": "lamp"}`, true},
		{"a shadow", `"sql": "SELECT VALUE get_thing_shadow('lamp').state.reported.on FROM 't'", "topic": "t", "input": {}, "expected": true, "shadows": {"lamp": {"state": {"reported": {"on": true}}}}`, true},
		{"a named shadow", `"sql": "SELECT VALUE get_thing_shadow('lamp', 'night', '').state.x FROM 't'", "topic": "t", "input": {}, "expected": 1, "shadows": {"lamp/night": {"state": {"x": 1}}}`, true},
		{"no shadow", `"sql": "SELECT VALUE get_thing_shadow('lamp') FROM 't'", "topic": "t", "input": {}`, true},
	} {
		out, err := naruWith(t, "[{"+c.of+"}]", "rule", "test", "--cases", "-", "-o", "json")
		if passed := err == nil; passed != c.passes || !passed && !errors.Is(err, errFault) {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
	}
}

// TestRuleCasesThatCannotBeReadAreNamed: an empty or broken list never passes.
func TestRuleCasesThatCannotBeReadAreNamed(t *testing.T) {
	for in, want := range map[string]string{
		``: "the cases: it is no JSON", `[{"sql": "SELECT * FROM 'a'"},`: "the cases: it is no JSON", `null`: "they are no list", `{}`: "they are no list", `[]`: "nothing was tried",
		`[null]`: "case 1: a JSON object is wanted, not a null", `[{}, 5]`: "case 2: a JSON object is wanted, not a number", `[{"sql": 5}]`: "case 1: sql cannot be a number",
		`[{"sql": "SELECT * FROM 'a'", "input_base64": "!"}]`: "case 1: illegal base64",
	} {
		if out, err := naruWith(t, in, "rule", "test", "--cases", "-"); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "Go ") {
			t.Errorf("%s gives %v; want %s\n%s", in, err, want, out)
		}
	}
}

// A rule that fails on what it takes is no healthy sight, wherever one looks.
func TestRuleThatFailsIsSeenInListShowAndStatus(t *testing.T) {
	last := map[string]any{"at": time.Now().Add(-3 * time.Hour), "message": "01a221ef-138a-781e-8eb9-7c284ea2b782", "trace": "01a221ef138a027f19c061a911600829", "action": 0, "kind": "republish", "error": "no base64"}
	rule := func(name string, failed, inRow int) map[string]any {
		return map[string]any{"name": name, "version": 1, "enabled": true, "document": map[string]any{"name": name, "sql": "SELECT * FROM 'device/+/telemetry'"},
			"counts": map[string]any{"matched": 9, "not_matched": 2, "failed": failed, "failed_in_row": inRow, "last_failure": last}}
	}
	var rules []map[string]any
	ways := map[string]http.HandlerFunc{
		"GET /api/v1/rules": func(w http.ResponseWriter, r *http.Request) {
			says(http.StatusOK, map[string]any{"rules": rules})(w, r)
		},
		"GET /api/v1/rules/hot": func(w http.ResponseWriter, r *http.Request) { says(http.StatusOK, rules[0])(w, r) },
		"GET /api/v1/status":    says(http.StatusOK, map[string]any{"healthy": true}),
	}
	const explain = "\n  -> naru rule explain hot --message 01a221ef-138a-781e-8eb9-7c284ea2b782\n"
	rules = []map[string]any{rule("hot", 7, 4)}
	const failing = "hot failed on the last 4 messages that it took, the last time 3h ago"
	for args, want := range map[string]string{"rule list": failing + ": republish: no base64" + explain, "rule show hot": failing + ": republish: no base64" + explain, "status": "  ! rule " + failing + ": naru rule show hot\n"} {
		out, _, err := asked(t, ways, strings.Fields(args)...)
		if !strings.Contains(out, want) || (args == "rule list") != errors.Is(err, errFault) {
			t.Errorf("naru %s: %v:\n%s\nwant in it\n%s", args, err, out, want)
		}
	}
	rules = []map[string]any{rule("hot", 7, 0)}
	if out, _, err := asked(t, ways, "rule", "list"); err != nil || !strings.Contains(out, "hot failed on 7 messages, the last time 3h ago: republish: no base64"+explain) || !strings.Contains(out, "device/+/telemetry\n") {
		t.Errorf("a rule that goes on: %v:\n%s", err, out)
	}
	if out, _, _ := asked(t, ways, "status"); strings.Contains(out, "hot") {
		t.Errorf("what is over for hours is still told:\n%s", out)
	}
	gives := rule("gives", 0, 0)
	gives["document"] = map[string]any{"name": "gives", "actions": []any{map[string]any{"worker": map[string]any{"name": "press"}}, map[string]any{"worker": map[string]any{"name": "lathe"}}, map[string]any{"worker": map[string]any{"name": "${a}"}}}}
	rules = []map[string]any{gives}
	ways["GET /api/v1/workers"] = says(http.StatusOK, map[string]any{"workers": []any{map[string]any{"name": "lathe", "state": "running"}}})
	if out, _, _ := asked(t, ways, "status"); strings.Count(out, "which is not there") != 1 || !strings.Contains(out, "  ! rule gives gives to worker press, which is not there, and nobody does it: naru worker add press\n") {
		t.Errorf("of work that nobody does is said:\n%s", out)
	}
}

// The actions of a rule are tried as its SQL is, so that a template that cannot be is found before a message comes.
func TestRuleInAFileIsTriedWithItsActions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hot.yaml")
	if err := os.WriteFile(file, []byte("sql: SELECT t AS state.reported.t FROM 'device/+/telemetry' WHERE t > 30\nactions:\n  - twin: {device: \"${topic(2)}\"}\n  - republish: {topic: \"hot/${room}\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	try := func(message string) (string, error) {
		return naruWith(t, message, "rule", "test", "-f", file, "--topic", "device/d-1/telemetry", "--message", "-")
	}
	if out, err := try(`{"t":31,"room":"a"}`); err != nil || !strings.Contains(out, "0       twin       device/d-1/twin/update\n1       republish  hot/a\n") {
		t.Errorf("a message that it takes: %v\n%s", err, out)
	}
	if out, err := try(`{"t":31}`); !errors.Is(err, errFault) || !strings.Contains(out, "1       republish  cannot: topic: ") {
		t.Errorf("one that an action cannot do: %v\n%s", err, out)
	}
	if out, err := try(`{"t":30}`); err != nil || strings.Contains(out, "ACTION") {
		t.Errorf("one that it does not take: %v\n%s", err, out)
	}
	if _, err := naruWith(t, "{}", "rule", "test", "-f", file, "--sql", "SELECT 1 AS a", "--message", "-"); err == nil {
		t.Error("a rule and a statement are tried at once")
	}
}

// What is shown of each message is its trace, and so it is what people have.
func TestRuleIsExplainedByATrace(t *testing.T) {
	const first, second, other = "01a221ef-138a-781e-8eb9-7c284ea2b782", "01a221ef-138a-781e-8eb9-7c284ea2b783", "01a221ef-138a-781e-8eb9-7c284ea2b784"
	trace := func(topics ...string) map[string]any {
		var list []map[string]any
		for i, topic := range topics {
			list = append(list, map[string]any{"id": []string{first, second, other}[i], "topic": topic, "subject": strings.ReplaceAll(topic, "/", ".")})
		}
		return map[string]any{"trace": "01a221ef138a027f19c061a911600829", "messages": list}
	}
	asks := ""
	var of map[string]any
	ways := map[string]http.HandlerFunc{
		"GET /api/v1/rules/hot":     says(http.StatusOK, map[string]any{"name": "hot", "document": map[string]any{"sql": "SELECT * FROM 'device/+/telemetry'"}}),
		"GET /api/v1/traces/{id}":   func(w http.ResponseWriter, r *http.Request) { says(http.StatusOK, of)(w, r) },
		"GET /api/v1/messages/{id}": says(http.StatusNotFound, nil),
		"GET /api/v1/rules/hot/explain": func(w http.ResponseWriter, r *http.Request) {
			asks = r.URL.Query().Get("message")
			says(http.StatusOK, map[string]any{"rule": "hot"})(w, r)
		},
	}
	explain := func() error {
		_, _, err := asked(t, ways, "rule", "explain", "hot", "--message", "01a221ef138a027f19c061a911600829")
		return err
	}
	if of = trace("alarms/d-1", "device/d-1/telemetry", "device/d-1/twin/update"); explain() != nil || asks != second {
		t.Errorf("of a trace with one message for the rule, %q is explained", asks)
	}
	if of = trace("alarms/d-1"); !strings.HasPrefix(explain().Error(), "rule hot hears device/+/telemetry, and no message of trace ") {
		t.Errorf("with none: %v", explain())
	}
	if of = trace("device/d-1/telemetry", "device/d-2/telemetry"); !strings.HasSuffix(explain().Error(), first+", "+second) {
		t.Errorf("with two: %v", explain())
	}
}

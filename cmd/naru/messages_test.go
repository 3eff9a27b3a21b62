package main

import (
	"errors"
	"net/http"
	"strings"
	"testing"
)

// What is wrong with a trace is found between what is not.
func TestTraceTellsWhatIsWrongFirstAndLeavesOutWhomItDoesNotConcern(t *testing.T) {
	fates := []map[string]any{
		{"consumer": "data_platform.bridge", "outcome": "handled"},
		{"consumer": "operator.journal", "outcome": "handled"},
		{"consumer": "service_platform.twin", "outcome": "not_heard"},
		{"consumer": "service_platform.worker/a", "outcome": "waiting", "batches_behind": 3},
		{"consumer": "service_platform.worker/b", "outcome": "dead", "reason": "schema_mismatch", "detail": "schema_mismatch: /a: a is missing", "attempts": 1},
	}
	ways := map[string]http.HandlerFunc{"GET /api/v1/traces/{id}": says(http.StatusOK, map[string]any{"trace": "01a221ef138a027f19c061a911600829", "messages": []map[string]any{
		{"id": "01a221ef-138a-781e-8eb9-7c284ea2b782", "subject": "device.d-1.telemetry", "outcome": "dead", "fates": fates},
		{"id": "01a221ef-138a-781e-8eb9-7c284ea2b783", "subject": "operator.dead.x", "outcome": "handled", "fates": fates[1:3]},
	}})}
	out, _, err := asked(t, ways, "trace", "01a221ef138a027f19c061a911600829")
	if !errors.Is(err, errFault) {
		t.Errorf("a trace with a dead message: %v", err)
	}
	want := `          service_platform.worker/a: waiting, 3 batches before it
          service_platform.worker/b: dead: schema_mismatch (/a: a is missing), 1 attempt
          handled by data_platform.bridge
`
	if !strings.Contains(out, want) || strings.Contains(out, "twin") {
		t.Errorf("printed:\n%s\nwant in it:\n%s", out, want)
	}
	if !strings.Contains(out, "handled by operator.journal\n") {
		t.Errorf("who alone heard a message is not named:\n%s", out)
	}
	out, _, _ = asked(t, ways, "trace", "01a221ef138a027f19c061a911600829", "--all")
	if !strings.Contains(out, "service_platform.twin        not_heard\n") || !strings.Contains(out, "operator.journal             handled\n") {
		t.Errorf("with --all:\n%s", out)
	}
}

// A refusal, a death and a rule's failure say why in words, and what shows more of it.
func TestTraceSaysWhyInWords(t *testing.T) {
	fates := []map[string]any{{"consumer": "operator.journal", "outcome": "handled"}}
	const failed = `{"rule":"hot","version":2,"reason":"rule_error","failures":[{"action":0,"kind":"republish","error":"no base64"},{"action":1,"kind":"twin","error":"no state"}]}`
	messages := []map[string]any{
		{"id": "01a221ef-138a-781e-8eb9-7c284ea2b780", "subject": "operator.refused.b", "outcome": "refused", "reason": "acl_denied", "fates": fates,
			"data": `{"reason":"acl_denied","detail":"d-1 may not publish on device.d-2.telemetry: allowed by none","device":"d-1","subject":"device.d-2.telemetry","count":3}`},
		{"id": "01a221ef-138a-781e-8eb9-7c284ea2b781", "subject": "operator.refused.b", "outcome": "refused", "reason": "acl_denied", "fates": fates,
			"data": `{"reason":"acl_denied","detail":"d-1 may not subscribe to a","device":"d-1","count":1}`},
		{"id": "01a221ef-138a-781e-8eb9-7c284ea2b782", "subject": "operator.dead.b", "outcome": "handled", "reason": "loop", "fates": fates, "data": `{"reason":"loop","detail":"too deep"}`},
		{"id": "01a221ef-138a-781e-8eb9-7c284ea2b783", "cause": "01a221ef-138a-781e-8eb9-7c284ea2b784", "subject": "service_platform.rule.hot.failed", "outcome": "handled", "fates": fates,
			"type": ruleFailed, "source": "//naru/n/service_platform.rule?rule=hot@2", "data": failed},
	}
	ways := map[string]http.HandlerFunc{
		"GET /api/v1/traces/{id}": says(http.StatusOK, map[string]any{"trace": "01a221ef138a027f19c061a911600829", "messages": messages}),
		"GET /api/v1/messages":    says(http.StatusOK, map[string]any{"messages": messages}),
	}
	out, _, err := asked(t, ways, "trace", "01a221ef138a027f19c061a911600829")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"said acl_denied: d-1 may not publish on device.d-2.telemetry: allowed by none (3 times)\n            -> naru mqtt may d-1 publish 'device/d-2/telemetry'\n",
		"said acl_denied: d-1 may not subscribe to a\n            -> naru reasons acl_denied\n",
		"said loop: too deep\n            -> naru dead show 01a221ef-138a-781e-8eb9-7c284ea2b782\n",
		"said rule_error: hot@2: republish: no base64; twin: no state\n            -> naru rule explain hot --message 01a221ef-138a-781e-8eb9-7c284ea2b784\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("want in the trace:\n%s\nit says:\n%s", want, out)
		}
	}
	if out, _, err = asked(t, ways, "messages"); err != nil || !strings.Contains(out, "  rule_error: hot@2: republish: no base64; twin: no state\n") {
		t.Errorf("the list: %v:\n%s", err, out)
	}
}

func TestGraphShowsWhoHearsWhomInALineEach(t *testing.T) {
	edge := func(from, subjects, to string) map[string]any {
		return map[string]any{"from": from, "subjects": subjects, "to": to}
	}
	ways := map[string]http.HandlerFunc{"GET /api/v1/graph": says(http.StatusOK, map[string]any{
		"nodes": []map[string]any{{"name": "device", "state": "running"}, {"name": "a.b", "state": "failed"}, {"name": "operator.journal", "state": "running"}},
		"edges": []map[string]any{edge("device", "device.*.x", "a.b"), edge("device", "device.*.y", "a.b"), edge("device", "device.*.x", "operator.journal"), edge("a.b", "a.b.c", "device")},
	})}
	out, _, err := asked(t, ways, "graph")
	want := "device            → a.b\na.b (failed)      → device\n\n"
	if err != nil || !strings.HasPrefix(out, want) || strings.Contains(out, "journal") {
		t.Errorf("%v:\n%s\nwant\n%s", err, out, want)
	}
	out, _, err = asked(t, ways, "graph", "a.b")
	if err != nil || !strings.HasPrefix(out, "a.b  failed\n\ndevice  ─  device.*.x  →  a.b\ndevice  ─  device.*.y  →  a.b\na.b     ─  a.b.c       →  device\n") {
		t.Errorf("of one: %v:\n%s", err, out)
	}
	if out, _, _ = asked(t, ways, "graph", "--all"); strings.Count(out, "→") != 4 {
		t.Errorf("all:\n%s", out)
	}
}

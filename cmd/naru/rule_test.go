package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		{"SELECT * FROM 'a'", "a", "no JSON", `{"matched":true,"bytes":"bm8gSlNPTg=="}`},
	} {
		out, err := naruWith(t, c.in, "rule", "test", "--sql", c.sql, "--topic", c.topic, "--message", "-", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]json.RawMessage
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatal(err)
		}
		if string(got["matched"]) == "false" && len(got["reason"]) == 0 {
			t.Errorf("%s of %s: nobody is told why it does not match", c.sql, c.in)
		}
		delete(got, "explain")
		delete(got, "reason")
		raw, _ := json.Marshal(got)
		if !same(raw, json.RawMessage(c.want)) {
			t.Errorf("%s of %s gives %s; want %s", c.sql, c.in, raw, c.want)
		}
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

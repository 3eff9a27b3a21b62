//go:build foreign

package foreign

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// ask has schema.js answer.
func ask(t *testing.T, in, out any) {
	t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", "schema.js")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(raw), t.Output()
	said, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	if err := json.Unmarshal(said, out); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
}

// datasets are those built in, of the example, and one with a field of every kind.
func datasets(t *testing.T) (list []*model.Dataset) {
	t.Helper()
	example, err := os.ReadFile("../../examples/engine.yaml")
	if err != nil {
		t.Fatal(err)
	}
	docs := model.BuiltIn()
	for name, text := range map[string]string{"engine.yaml": string(example), "every.yaml": every} {
		more, err := model.Parse(name, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, more...)
	}
	for _, d := range docs {
		if d.Dataset != nil {
			list = append(list, d.Dataset)
		}
	}
	return list
}

const every = `dataset: every
version: 3
owner: works
doc: A field of every kind.
time: seen
fields:
  - {name: n, type: int, required: true, min: 0, max: 10, at: /meta/n}
  - {name: m, type: int, min: 0, max: 3, at: /meta/m}
  - {name: celsius, type: double, unit: "°C", min: -90.5, max: 150, required: true}
  - {name: state, type: text, enum: ["on", "off"], doc: which it is}
  - {name: code, type: text, pattern: "^[A-Z]{2}$", max_length: 10, required: true}
  - {name: made, type: time, required: true}
  - {name: seen, type: time, at: /deep/er/at}
  - {name: blob, type: bytes, max_length: 4}
  - {name: open, type: bool, required: true}
  - {name: extra, type: json, at: /x~1y}
  - {name: sure, type: json, required: true}
  - {name: first, type: int, at: /list/0}
  - {name: third, type: text, at: /list/2}
  - {name: must, type: int, required: true, at: /pair/1}
  - {name: loud, type: text, pattern: "(?i)^a+$"}
  - {name: rest, type: json, rest: true}
`

// TestAsyncAPIIsValid by the parser of those who make AsyncAPI: of the catalog, and of what datasets say.
func TestAsyncAPIIsValid(t *testing.T) {
	contracts := catalog.Default().Contracts()
	for _, d := range datasets(t) {
		contracts = append(contracts, d.Contract())
	}
	c, err := message.NewCatalog(contracts...)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := catalog.AsyncAPI(c, "1")
	if err != nil {
		t.Fatal(err)
	}
	var found []struct{ Path, Message string }
	ask(t, map[string]any{"asyncapi": json.RawMessage(raw)}, &found)
	for _, f := range found {
		t.Errorf("%s: %s", f.Path, f.Message)
	}
	// It would be found.
	ask(t, map[string]any{"asyncapi": json.RawMessage(bytes.Replace(raw, []byte(`"action": "send"`), []byte(`"action": "sends"`), 1))}, &found)
	if len(found) == 0 {
		t.Error("a document that is wrong is not found to be")
	}
}

// TestJSONSchemaSaysWhatIsARow by another implementation of 2020-12: what it takes becomes a row, and what it does not is dead.
func TestJSONSchemaSaysWhatIsARow(t *testing.T) {
	whole := map[string]any{"meta": map[string]any{"n": 1}, "celsius": 20.5, "code": "AB", "made": "2026-11-28T02:00:00Z", "open": true, "sure": map[string]any{}, "pair": []any{1, 2}, "seq": 1, "oil": map[string]any{"celsius": 20}}
	with := func(change func(p map[string]any)) map[string]any {
		p := map[string]any{}
		for k, v := range whole {
			p[k] = v
		}
		change(p)
		return p
	}
	var payloads []any
	for _, key := range []string{"meta", "celsius", "code", "made", "open", "sure", "state", "blob", "x/y", "deep", "other", "list", "pair", "seq", "oil"} {
		payloads = append(payloads, with(func(p map[string]any) { delete(p, key) }))
		for _, v := range []any{nil, true, 1, 200, -91, 1.5, "on", "AB", "2026-11-28T02:00:00+09:00", "AAAA", "AAAAAAAAAAAA", []any{}, map[string]any{}, map[string]any{"n": 1}, map[string]any{"n": 11},
			map[string]any{"n": 1, "m": 2}, map[string]any{"n": 1, "m": 4}, map[string]any{"n": nil}, map[string]any{"er": map[string]any{"at": 1_800_000_000}}, map[string]any{"er": nil},
			json.RawMessage("1.0"), json.RawMessage("1e1"), json.RawMessage("-0.0"), "AAAAAA==", "AAAAAA=", []any{1}, []any{"x"}, []any{1, 2}, []any{nil, nil, "x"}, []any{1, "x"}, []any{1, 2, 3},
			map[string]any{"0": 1, "2": "x"}, map[string]any{"1": 1}, map[string]any{"1": "x"}} {
			payloads = append(payloads, with(func(p map[string]any) { p[key] = v }))
		}
	}
	for _, d := range datasets(t) {
		var valid []bool
		ask(t, map[string]any{"schema": d.JSONSchema(), "payloads": payloads}, &valid)
		rows := 0
		for i, p := range payloads {
			raw, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			var row model.Row
			why := d.Row(&message.Message{ID: message.NewID(time.Now()), Subject: message.NewSubject("data_platform", d.Name, "d-1"), Device: "d-1", Data: raw}, &row)
			if (why == nil) != valid[i] {
				t.Errorf("%s: %s: the row says %v, the schema that it is %s", d.Name, raw, why, map[bool]string{true: "valid", false: "not valid"}[valid[i]])
			}
			if why == nil {
				rows++
			}
		}
		if rows < len(payloads)/10 || rows > len(payloads)*9/10 {
			t.Errorf("%s: %d of %d payloads are rows: they tell nothing apart", d.Name, rows, len(payloads))
		}
	}
}

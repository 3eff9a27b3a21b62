package model

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/internal/schema"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

const engine = `dataset: engine
version: 1
owner: works
doc: What an engine measured.
from: [device.*.engine, device.*.engine.>]
time: ts
key: [device, n]
fields:
  - {name: n, type: int, required: true, min: 0, at: /meta/n}
  - {name: celsius, type: double, unit: "°C", min: -90, max: 150}
  - {name: state, type: text, enum: [on, off], max_length: 3}
  - {name: code, type: text, pattern: "^[A-Z]{2}$", max_length: 10}
  - {name: ts, type: time}
  - {name: blob, type: bytes, max_length: 4}
  - {name: open, type: bool}
  - {name: extra, type: json, at: /x~1y}
  - {name: rest, type: json, rest: true}
retention: 30d
late: 1h
rollups:
  - {name: engine_1m, every: 1m, by: [device, state], values: {celsius: [avg, max, count], n: [sum]}}
`

func parse1(t testing.TB, text string) *Dataset {
	t.Helper()
	docs, err := Parse("engine.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return docs[0].Dataset
}

func said(payload string) *message.Message {
	now := time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	return &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Device: "d-1", Subject: "data_platform.engine.d-1", Data: []byte(payload)}
}

func TestParseReadsAFileOfSeveralDocuments(t *testing.T) {
	docs, err := Parse("all.yaml", []byte("# ours\n---\n"+engine+"---\npipeline: cleaned\ndataset: engine\nsteps:\n  - sql: |\n      SELECT *\n      FROM input\nenrich: {twin: [/reported/site]}\n---\n"))
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) != 2 || docs[0].Kind() != "dataset" || docs[1].Kind() != "pipeline" || docs[1].Name() != "cleaned" {
		t.Fatalf("%+v", docs)
	}
	d := docs[0].Dataset
	if d.Retention.Std() != 30*24*time.Hour || d.Late.String() != "1h" || *d.Fields[1].Max != 150 || d.Fields[2].Enum[0] != "on" || docs[0].Line != 3 {
		t.Errorf("%+v at line %d", d, docs[0].Line)
	}
	if strings.TrimSpace(docs[1].Pipeline.Steps[0].SQL) != "SELECT *\nFROM input" || docs[1].Pipeline.Enrich.Twin[0] != "/reported/site" {
		t.Errorf("%+v", docs[1].Pipeline)
	}
	if again, err := Parse("again", []byte(docs[1].Text)); err != nil || again[0].Pipeline.Name != "cleaned" {
		t.Errorf("a document's own text: %v", err)
	}
	raw, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if again := parse1(t, string(raw)); !reflect.DeepEqual(again.Rollups, d.Rollups) || again.Retention != d.Retention {
		t.Errorf("as JSON it became %+v", again)
	}
}

func TestParseNamesFileLineAndRemedy(t *testing.T) {
	for name, c := range map[string]struct{ change, by, want string }{
		"unknown key":          {"owner: works", "ownr: works", `f.yaml:3: there is no setting "ownr"; did you mean "owner"?`},
		"unknown key in field": {"required: true, min: 0", "requierd: true", `f.yaml:9: fields[0]: there is no setting "requierd"; did you mean "required"?`},
		"wrong type":           {"version: 1", "version: one", "f.yaml:2: version: want a whole number, not a text"},
		"no type":              {"type: double", "type: float", `f.yaml:10: fields[1].type: celsius: "float" is no type; there are bool, int`},
		"twice":                {"name: open", "name: ts", "f.yaml:15: fields[6].name: ts is there twice"},
		"system":               {"name: open", "name: device", "a column that every dataset has"},
		"reserved":             {"dataset: engine", "dataset: select", "is a word of SQL"},
		"capitals":             {"dataset: engine", "dataset: Engine", "want a small letter"},
		"no owner":             {"owner: works", "owner: \"\"", "owner: is missing"},
		"filter":               {"device.*.engine,", "device/+/engine,", "as subjects it is device.*.engine"},
		"other namespace":      {"device.*.engine,", "operator.x,", "do not land in a dataset by themselves"},
		"everything":           {"device.*.engine,", "'>',", "begin it with device. or 3rd_party."},
		"key":                  {"key: [device, n]", "key: [device, m]", `there is no column "m"`},
		"time":                 {"time: ts", "time: celsius", "field celsius is double; it must be a time"},
		"bounds":               {"min: -90", "min: 200", "200 is above max, 150"},
		"bounds of text":       {"max_length: 3", "min: 3", "min and max are for int and double"},
		"pattern":              {`"^[A-Z]{2}$"`, `"["`, "error parsing regexp"},
		"duration":             {"retention: 30d", "retention: 30 days", "is no duration"},
		"negative":             {"retention: 30d", "retention: -1h", "is no duration"},
		"every":                {"every: 1m", "every: 7m", "what a day is a multiple of"},
		"function":             {"[sum]", "[median]", `"median" is nothing that is computed`},
		"rollup by its own":    {"retention: 30d\nlate: 1h\nrollups:\n  - {name: engine_1m, every: 1m, by: [device, state]", "  - {name: rows, type: int}\nrollups:\n  - {name: engine_1m, every: 1m, by: [rows]", "a column of the roll-up is called"},
		"rollup of text":       {"n: [sum]", "code: [sum]", "only count is computed"},
		"pointer":              {"at: /meta/n", "at: meta.n", "is no JSON pointer"},
		"inside":               {"at: /meta/n", "at: /celsius/n", "is inside of"},
		"anchor":               {"version: 1", "version: &v 1", "anchors, aliases and tags"},
		"list":                 {"doc: What an engine measured.", "doc: [a]", "doc: want a text, not a list"},
		"yaml":                 {"version: 1", "version: 'x", "is not YAML"},
		"duplicate key":        {"version: 1", "version: 1\nversion: 2", "f.yaml:3:"},
	} {
		text := strings.Replace(engine, c.change, c.by, 1)
		if text == engine {
			t.Fatalf("%s changes nothing", name)
		}
		_, err := Parse("f.yaml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	for _, text := range []string{"", "---\n", "a: b", "- x", "7", "pipeline: p\ndataset: d\n", "dataset: d", "pipeline: p\ndataset: d\nsteps: [{sql: ''}]"} {
		if _, err := Parse("f.yaml", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), "f.yaml:") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestParseWithstandsHostileYAML(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\ndataset: x\nfields: *c\n"
	for name, text := range map[string]string{
		"bomb":     bomb,
		"brackets": "dataset: x\nfields: " + strings.Repeat("[", 50000),
		"braces":   strings.Repeat("{a: ", 20000),
		"dashes":   strings.Repeat("- ", 30000) + "x",
		"keys":     strings.Repeat("? ", 30000) + "x",
		"indents": func() (s string) {
			for i := range 300 {
				s += strings.Repeat(" ", i) + "a:\n"
			}
			return
		}(),
		"large":    "dataset: x\ndoc: " + strings.Repeat("x", 2<<20),
		"document": "dataset: x\ndoc: " + strings.Repeat("x", 100<<10),
		"nul":      "dataset: \x00",
		"binary":   "\xff\xfe\x00",
		"merge":    "dataset: x\n<<: {version: 1}\n",
		"tag":      "dataset: !!binary aGk=\nversion: 1\nowner: x\ndoc: x\nfields: [{name: a, type: int}]\n",
	} {
		began := time.Now()
		if _, err := Parse("f", []byte(text)); err == nil {
			t.Errorf("%s is taken", name)
		} else if len(err.Error()) > 8<<10 {
			t.Errorf("%s: the error has %d bytes", name, len(err.Error()))
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%s took %s", name, took)
		}
	}
}

func TestRowTakesEachValueAsItsType(t *testing.T) {
	d := parse1(t, engine)
	var r Row
	m := said(`{"meta":{"n":3.0,"q":[1,{"z":2}]},"celsius":21,"state":"on","code":"AB","ts":"2026-11-28T02:59:59.5Z","blob":"aGk=","open":false,"x/y":{"a":[1, 2]},"more":null,"un\u0069t":"C","e":{}}`)
	if err := d.Row(m, &r); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 28, 2, 59, 59, 5e8, time.UTC)
	want := []any{int64(3), 21.0, "on", "AB", at, []byte("hi"), false, `{"a":[1, 2]}`, `{"meta":{"q":[1,{"z":2}]},"more":null,"un\u0069t":"C","e":{}}`}
	if !reflect.DeepEqual(r.Values, want) || !r.Time.Equal(at) || r.Device != "d-1" || r.ID != m.ID || r.Trace != m.Trace.ID {
		t.Errorf("the row is %+v", r)
	}
	if err := d.Row(said(`{"meta":{"n":0},"celsius":null}`), &r); err != nil || r.Values[1] != nil || r.Values[8] != nil || !r.Time.Equal(r.Recorded) {
		t.Errorf("the smallest row is %+v, %v", r, err)
	}
}

func TestRowNamesFieldValueAndExpectation(t *testing.T) {
	d := parse1(t, engine)
	for payload, want := range map[string]string{
		`{}`:                                 "schema_mismatch: /meta/n: n is missing, and dataset engine requires it",
		`{"meta":{"n":null}}`:                "is missing",
		`{"meta":{"n":-1}}`:                  "/meta/n: n is -1; the least is 0",
		`{"meta":{"n":1.5}}`:                 "is 1.5; it is a whole number",
		`{"meta":{"n":"1"}}`:                 `is "1"; it is a whole number`,
		`{"meta":{"n":9223372036854775808}}`: "has 64 bits",
		`{"meta":{"n":1e300}}`:               "goes to 2^53",
		`{"meta":{"n":1},"celsius":151}`:     "/celsius: celsius is 151; the most is 150 °C",
		`{"meta":{"n":1},"celsius":"hot"}`:   `celsius is "hot"; it is a number`,
		`{"meta":{"n":1},"celsius":1e999}`:   "beyond what a double holds",
		`{"meta":{"n":1},"state":"ON"}`:      "state is ON; it is one of on, off",
		`{"meta":{"n":1},"code":"abc"}`:      "does not match ^[A-Z]{2}$",
		`{"meta":{"n":1},"code":"A\u0000"}`:  "NUL",
		`{"meta":{"n":1},"ts":"noon"}`:       `ts is "noon"; it is a time such as`,
		`{"meta":{"n":1},"blob":"aGVsbG8="}`: "has 5 bytes; it may have 4",
		`{"meta":{"n":1},"blob":"%"}`:        "base64",
		`{"meta":{"n":1},"open":1}`:          "it is true or false",
		`[1]`:                                "is missing",
		`21.5`:                               "is missing",
		``:                                   "not_decodable: dataset engine wants a JSON object; the payload is empty",
		"{\"a\":\"\xff\"}":                   "not_decodable",
		`{"meta":`:                           "not_decodable",
		strings.Repeat(`{"a":`, 300) + "1" + strings.Repeat("}", 300): "nested more than 200 deep",
	} {
		var r Row
		err := d.Row(said(payload), &r)
		if err == nil || !strings.Contains(err.Error(), want) || message.ReasonOf(err, 0) == 0 {
			t.Errorf("%s: %v; want %q", payload, err, want)
		}
	}
}

func TestRowTimeIsPlausible(t *testing.T) {
	d := BuiltIn()[0].Dataset
	recorded := time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)
	for payload, want := range map[string]string{
		`{"ts":"2026-11-28T02:00:00Z"}`:                  "2026-11-28T02:00:00Z",
		`{"ts":1795831200}`:                              "2026-11-28T02:00:00Z",
		`{"ts":1795831200.25}`:                           "2026-11-28T02:00:00.25Z",
		`{"ts":1795831200000}`:                           "2026-11-28T02:00:00Z",
		`{"ts":1795831200000000}`:                        "2026-11-28T02:00:00Z",
		`{"ts":1795831200000000000}`:                     "2026-11-28T02:00:00Z",
		`{"ts":"1970-01-01T00:00:07Z"}`:                  "",
		`{"ts":12}`:                                      "",
		`{"ts":"2026-11-28T04:00:00+01:00"}`:             "2026-11-28T03:00:00Z",
		`{"ts":"2099-01-01T00:00:00Z"}`:                  "",
		`{"ts":"2026-11-28T03:10:00Z"}`:                  "2026-11-28T03:10:00Z",
		`{"ts":"2026-11-28T03:10:01Z"}`:                  "",
		`{"ts":{"a":1}}`:                                 "",
		`{"ts":true,"celsius":1}`:                        "",
		`{"celsius":1}`:                                  "",
		`{"ts":"yesterday","ts":"2026-11-28T02:00:00Z"}`: "2026-11-28T02:00:00Z",
	} {
		var r Row
		if err := d.Row(said(payload), &r); err != nil {
			t.Errorf("%s: %v", payload, err)
			continue
		}
		at, left := recorded, strings.Contains(payload, `"ts"`)
		if want != "" {
			at, _ = time.Parse(time.RFC3339, want)
			left = strings.Contains(payload, "yesterday")
		}
		rest, _ := r.Values[6].(string)
		if !r.Time.Equal(at) || strings.Contains(rest, "ts") != left {
			t.Errorf("%s: time %s, rest %q; want %s, and ts in the rest: %v", payload, r.Time, rest, at, left)
		}
	}
	m := said(`{}`)
	m.Time = recorded.Add(-time.Hour)
	var r Row
	if err := d.Row(m, &r); err != nil || !r.Time.Equal(m.Time) || !r.Recorded.Equal(recorded) {
		t.Errorf("a message with a time of its own: %+v, %v", r, err)
	}
	if err := d.Row(said("\x00\x01"), &r); err != nil || !reflect.DeepEqual(r.Values[7], []byte{0, 1}) {
		t.Errorf("a payload that is no JSON: %+v, %v", r, err)
	}
}

func TestPipelineReadsWhatIsNotBoundedYet(t *testing.T) {
	d := parse1(t, engine)
	var r Row
	if err := (&Pipeline{}).Reads(d).Row(said(`{"celsius":999}`), &r); err != nil || r.Values[1] != 999.0 {
		t.Errorf("%+v, %v", r, err)
	}
	p := &Pipeline{Input: []Field{{Name: "fahrenheit", Type: Double}}}
	if in := p.Reads(d); in.Row(said(`{"fahrenheit":70}`), &r) != nil || len(r.Values) != 1 || r.Values[0] != 70.0 {
		t.Errorf("%+v", r)
	}
	if (*Pipeline)(nil).Reads(d) != d {
		t.Error("without a pipeline the dataset is another")
	}
	if err := d.Check([]any{int64(1), 999.0, nil, nil, nil, nil, nil, nil, nil}); err == nil || !strings.Contains(err.Error(), "celsius is 999") {
		t.Errorf("what comes out is held to the model: %v", err)
	}
}

func TestAcceptLosesNothing(t *testing.T) {
	f := func(ty Type) *Field { return &Field{Name: "x", Type: ty} }
	for _, c := range []struct {
		t        Type
		in, want any
	}{
		{Int, int32(7), int64(7)}, {Int, 7.0, int64(7)}, {Int, 7.5, error(nil)}, {Int, "7", error(nil)}, {Int, uint64(1 << 63), error(nil)},
		{Double, int16(2), 2.0}, {Double, float32(0.5), 0.5}, {Text, "a", "a"}, {Text, 1, error(nil)}, {Text, "\xff", error(nil)},
		{Bool, true, true}, {Bool, int64(1), error(nil)}, {JSON, map[string]any{"a": 1}, `{"a":1}`}, {JSON, "{", error(nil)}, {Bytes, []byte{1}, []byte{1}},
	} {
		got, err := f(c.t).Accept(c.in)
		if (err == nil) == (c.want == nil) || err == nil && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v as %s: %v, %v; want %v", c.in, c.t, got, err, c.want)
		}
	}
}

func TestEvolveTellsWhatIsRefusedAndWhatIsFine(t *testing.T) {
	for name, c := range map[string]struct{ change, by, want string }{
		"add optional":    {"  - {name: open", "  - {name: extra2, type: text}\n  - {name: open", ""},
		"widen":           {"name: n, type: int", "name: n, type: double", ""},
		"raise":           {"max: 150", "max: 200", ""},
		"drop bound":      {", max: 150", "", ""},
		"not required":    {"required: true, ", "", ""},
		"more values":     {"enum: [on, off]", "enum: [on, off, no]", ""},
		"words":           {"doc: What an engine measured.", "doc: Other.", ""},
		"retention":       {"retention: 30d", "retention: 1d", ""},
		"no rollups":      {"by: [device, state], values", "by: [device], values", "give it another name"},
		"same version":    {"version: 2", "version: 1", "make it 2"},
		"remove":          {"  - {name: open, type: bool}\n", "", "field open would be gone"},
		"narrow":          {"type: double", "type: int", "not each value that is there fits"},
		"rename":          {"name: open", "name: opened", "field open would be gone"},
		"add required":    {"  - {name: open", "  - {name: extra2, type: text, required: true}\n  - {name: open", "is new and would be required"},
		"become required": {"name: open, type: bool", "name: open, type: bool, required: true", "there may be rows without it"},
		"lower":           {"max: 150", "max: 100", "leave max as it was"},
		"higher":          {"min: -90", "min: 0", "leave min as it was"},
		"shorter":         {"max_length: 10", "max_length: 5", "leave max_length"},
		"fewer values":    {"enum: [on, off]", "enum: [on]", `would not be "off" any more`},
		"pattern":         {`"^[A-Z]{2}$"`, `"^A"`, "leave pattern as it was"},
		"unit":            {`unit: "°C"`, `unit: "K"`, "would mean something else"},
		"time":            {"time: ts\n", "", "time is ts and would be none"},
		"key":             {"key: [device, n]", "key: [device]", "key is [device, n] and would be [device]"},
	} {
		next := strings.Replace(engine, "version: 1", "version: 2", 1)
		text := strings.Replace(next, c.change, c.by, 1)
		if text == next {
			t.Fatalf("%s changes nothing", name)
		}
		err := Evolve(parse1(t, engine), parse1(t, text))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
}

func TestSchemaAgreesWithRow(t *testing.T) {
	d := parse1(t, engine)
	s, err := schema.Compile(d.JSONSchema())
	if err != nil {
		t.Fatal(err)
	}
	for _, payload := range []string{
		`{"meta":{"n":1},"celsius":3}`, `{"meta":{"n":1},"celsius":null,"else":1}`, `{}`, `{"meta":{"n":-1}}`, `{"meta":{"n":1},"state":"ON"}`,
		`{"meta":{"n":1},"code":"AB"}`, `{"meta":{"n":1},"code":"a"}`, `{"meta":{"n":1},"ts":"2026-11-28T02:00:00Z"}`, `{"meta":{"n":1},"open":"x"}`, `{"meta":{"n":"x"}}`,
	} {
		var r Row
		if byRow, bySchema := d.Row(said(payload), &r), s.Check([]byte(payload)); (byRow == nil) != (bySchema == nil) {
			t.Errorf("%s: the row says %v, the schema %v", payload, byRow, bySchema)
		}
	}
	c, err := message.NewCatalog(append(catalog.Default().Contracts(), d.Contract())...)
	if err != nil {
		t.Fatal(err)
	}
	if doc, err := catalog.AsyncAPI(c, "1"); err != nil || !strings.Contains(string(doc), "data_platform.engine.v1") {
		t.Errorf("AsyncAPI: %v", err)
	}
}

func quiet(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError + 1}))
}

func TestBookIsOneForAllWhoFollowIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engineBus := mem.New(mem.Options{})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 2)
		books := [2]*Book{}
		for i := range books {
			books[i] = NewBook(engineBus, quiet(t), time.Now)
			go func() { done <- books[i].Run(ctx) }()
			<-books[i].Synced()
		}
		a, b := books[0], books[1]
		if names := a.Set().Names(); !reflect.DeepEqual(names, []string{"telemetry"}) {
			t.Errorf("at first there are %v", names)
		}
		put := func(text, want string) {
			t.Helper()
			docs, err := Parse("f.yaml", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			for i := range docs {
				if _, err = a.Put(ctx, &docs[i], Change{By: "me"}); err != nil {
					break
				}
			}
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("put: %v; want %q", err, want)
			}
		}
		put("pipeline: p\ndataset: engine\nsteps: [{sql: SELECT * FROM input}]\n", "there is no dataset engine")
		put(engine+"---\npipeline: p\ndataset: engine\nsteps: [{sql: SELECT * FROM input}]\n", "")
		put(strings.Replace(engine, "max: 150", "max: 200", 1), "make it 2")
		put(strings.NewReplacer("max: 150", "max: 200", "version: 1", "version: 2").Replace(engine), "")
		put("pipeline: q\ndataset: engine\nsteps: [{sql: SELECT * FROM input}]\n", "pipeline p fills dataset engine already")
		put(strings.NewReplacer("dataset: engine", "dataset: engine_1m", "name: engine_1m", "name: other").Replace(engine), "is the name of a roll-up of dataset engine")
		synctest.Wait()
		if d := b.Set().Datasets["engine"]; d == nil || d.Version != 2 || b.Set().Pipelines["engine"] == nil {
			t.Errorf("the other book has %+v", d)
		}
		if e, err := b.Entry(KindDataset, "engine"); err != nil || e.By != "me" || len(e.History) != 1 || e.History[0].Version != 1 {
			t.Errorf("%+v, %v", e, err)
		}
		var taken []string
		b.Set().Taking("device.d-1.engine.x", func(d *Dataset) { taken = append(taken, d.Name) })
		if !reflect.DeepEqual(taken, []string{"engine"}) {
			t.Errorf("taken by %v", taken)
		}
		if _, err := a.Remove(ctx, KindDataset, "engine", Change{By: "me"}); err == nil || !strings.Contains(err.Error(), "remove it first") {
			t.Errorf("remove: %v", err)
		}
		for _, kind := range []string{KindPipeline, KindDataset} {
			name := map[string]string{KindPipeline: "p", KindDataset: "engine"}[kind]
			if _, err := a.Remove(ctx, kind, name, Change{By: "me"}); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if b.Set().Datasets["engine"] != nil {
			t.Error("it is still there")
		}
		put(engine, "was deleted at version 2; begin again at version 3")
		stop()
		<-done
		<-done
		engineBus.Close()
	})
}

func TestFilesAreInForceAndFreeWhenTheyAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engineBus := mem.New(mem.Options{})
		ctx, stop := context.WithCancel(t.Context())
		dir := t.TempDir()
		write := func(name, text string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second) // of the bubble
		}
		b := NewBook(engineBus, quiet(t), time.Now)
		var tries atomic.Int32
		try := func(_ context.Context, _ *Dataset, p *Pipeline) error {
			if tries.Add(1); strings.Contains(p.Steps[0].SQL, "heat") {
				return &Fault{"there is no heat"}
			}
			return nil
		}
		done := make(chan bool, 2)
		go func() { _ = b.Run(ctx); done <- true }()
		go func() { b.Files(ctx, dir, "n1", try); done <- true }()
		write("a.yaml", engine)
		if b.Set().Datasets["engine"] == nil {
			t.Fatal("the file is not in force")
		}
		docs, _ := Parse("x", []byte(strings.Replace(engine, "version: 1", "version: 2", 1)))
		if _, err := b.Put(ctx, &docs[0], Change{By: "me"}); err == nil || !strings.Contains(err.Error(), "is from the file") {
			t.Errorf("changed beside its file: %v", err)
		}
		pipe := "pipeline: p\ndataset: engine\nsteps:\n  - sql: SELECT * FROM input\n"
		write("p.yaml", strings.Replace(pipe, "*", "heat", 1))
		if p := b.Set().Pipelines["engine"]; p != nil || tries.Load() != 1 {
			t.Errorf("what cannot be done is in force, or was tried %d times: %+v", tries.Load(), p)
		}
		write("p.yaml", pipe)
		if p := b.Set().Pipelines["engine"]; p == nil || tries.Load() != 2 {
			t.Errorf("mended, it is not in force, or was tried %d times", tries.Load())
		}
		write("p.yaml", strings.Replace(pipe, "*", "heat", 1))
		if p := b.Set().Pipelines["engine"]; p == nil || p.Steps[0].SQL != "SELECT * FROM input" {
			t.Error("what cannot be done has taken the place of what was in force")
		}
		os.Remove(filepath.Join(dir, "p.yaml"))
		write("b.yaml", "dataset: broken\n")
		write("a.yaml", strings.Replace(engine, "version: 1", "version: 2", 1))
		if d := b.Set().Datasets["engine"]; d.Version != 2 {
			t.Errorf("version %d, though another file is broken", d.Version)
		}
		os.Remove(filepath.Join(dir, "b.yaml"))
		os.Remove(filepath.Join(dir, "a.yaml"))
		time.Sleep(2 * time.Second)
		docs, _ = Parse("x", []byte(strings.Replace(engine, "version: 1", "version: 3", 1)))
		if _, err := b.Put(ctx, &docs[0], Change{By: "me"}); err != nil || b.Set().Datasets["engine"].Version != 3 {
			t.Errorf("its file is gone: %v", err)
		}
		stop()
		<-done
		<-done
		engineBus.Close()
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(engine))
	f.Add(telemetryYAML)
	f.Add([]byte("pipeline: p\ndataset: d\nsteps:\n  - sql: |\n      SELECT 1\n---\n? a\n: b\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		docs, err := Parse("f", b)
		if err != nil {
			return
		}
		for i := range docs {
			again, err := Parse("f", []byte(docs[i].Text))
			if err != nil || len(again) != 1 || again[0].Name() != docs[i].Name() {
				t.Errorf("its own text %q: %v", docs[i].Text, err)
			}
			if d := docs[i].Dataset; d != nil {
				var r Row
				_ = d.Row(said(`{"a":1}`), &r)
				d.JSONSchema()
			}
		}
	})
}

func FuzzRow(f *testing.F) {
	d := parse1(f, engine)
	rest := parse1(f, "dataset: x\nversion: 1\nowner: x\ndoc: x\nfields: [{name: a, type: double, at: /a/b/0}, {name: c, type: json, at: /a/c}, {name: rest, type: json, rest: true}]\n")
	for _, s := range []string{`{"meta":{"n":3},"celsius":21,"blob":"aGk=","x/y":[1,{"a":"\""}]}`, ` { "a" : { "b" : [ 1 , 2 ] , "c" : { } , "d" : "}" } } `, `{"a\\":"\\\""}`, `[]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Row
		m := said(string(b))
		_ = d.Row(m, &r)
		if err := rest.Row(m, &r); err == nil {
			if s, ok := r.Values[2].(string); ok && !json.Valid([]byte(s)) {
				t.Errorf("%q leaves the rest %q", b, s)
			}
		} else if message.ReasonOf(err, 0) == 0 {
			t.Errorf("%q: %v is no fate", b, err)
		}
	})
}

func BenchmarkRow(b *testing.B) {
	d := BuiltIn()[0].Dataset
	m := said(`{"seq":17,"ts":"2026-11-28T02:59:59.123456789Z","kind":"thermometer","celsius":21.375}`)
	var r Row
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Row(m, &r); err != nil {
			b.Fatal(err)
		}
	}
}

func TestExampleIsRight(t *testing.T) {
	raw, err := os.ReadFile("../../examples/engine.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if docs, err := Parse("examples/engine.yaml", raw); err != nil || len(docs) != 2 {
		t.Errorf("%d documents, %v", len(docs), err)
	}
}

// What no answer can write, and what a database may not hold, is no value of a field.
func TestATimeOrJSONThatCannotBeKeptIsRefused(t *testing.T) {
	at, rest := Field{Name: "at", Type: Time}, Field{Name: "rest", Type: JSON}
	for _, raw := range []string{"-99999999999", "-9223372036854775808", `"10000-01-01T00:00:00Z"`, `"0000-12-31T00:00:00Z"`} {
		if v, err := at.value([]byte(raw)); err == nil {
			t.Errorf("%s is the time %v", raw, v)
		}
	}
	if _, err := at.value([]byte("99999999999")); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		field *Field
		value any
		good  bool
	}{
		{&at, time.UnixMicro(math.MaxInt64), false}, // infinity, as DuckDB gives it
		{&at, time.Date(0, 12, 31, 0, 0, 0, 0, time.UTC), false},
		{&at, time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), true},
		{&rest, "{\"a\": \"\xff\"}", false},
		{&rest, strings.Repeat("[", 201) + strings.Repeat("]", 201), false},
		{&rest, strings.Repeat("[", 200) + strings.Repeat("]", 200), true},
		{&rest, "{", false},
		{&rest, `"\u0000"`, true},
	} {
		if _, err := c.field.Accept(c.value); (err == nil) != c.good {
			t.Errorf("%s accepts %.40v: %v", c.field.Name, c.value, err)
		}
	}
}

func TestHalfOfASurrogatePairIsNoCharacter(t *testing.T) {
	for text, want := range map[string]string{
		`{"a":"\ud83d\ude00"}`:                    `{"a":"\ud83d\ude00"}`,
		`{"a":"\ud83d"}`:                          `{"a":"\ufffd"}`,
		`{"a":"\ude00\ud83d x"}`:                  `{"a":"\ufffd\ufffd x"}`,
		`{"\uD83D\u0041":"\\ud83d \n\\\ud800\n"}`: `{"\ufffd\u0041":"\\ud83d \n\\\ufffd\n"}`,
		`{"a":"\ud83d\ud83d\ude00\u00e9\"\\"}`:    `{"a":"\ufffd\ud83d\ude00\u00e9\"\\"}`,
		`[1]`:                                     `[1]`,
		`""`:                                      `""`,
	} {
		if got := string(paired([]byte(text))); got != want || !json.Valid([]byte(got)) {
			t.Errorf("%s becomes %s; want %s", text, got, want)
		}
	}
}

// TestAHostileFileIsReadInTime: what takes of YAML's parser with the square of its length is cut into documents before, and no longer than one.
func TestAHostileFileIsReadInTime(t *testing.T) {
	for name, text := range map[string]string{
		"one document":   "dataset: " + strings.Repeat("@`", 400_000),
		"dashes":         "dataset: " + strings.Repeat("- ", 400_000),
		"many documents": strings.Repeat("---\ndataset: x\n", 20_000),
	} {
		began := time.Now()
		if _, err := Parse("m.yaml", []byte(text)); err == nil {
			t.Errorf("%s: it was read", name)
		}
		if took := time.Since(began); took > 20*time.Second { // it was minutes
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

// TestAFaultNamesTheLineOfItsFile in whichever document it stands.
func TestAFaultNamesTheLineOfItsFile(t *testing.T) {
	const good = "dataset: NAME\nversion: 1\nowner: o\ndoc: d\nfields: [{name: a, type: int}]\n"
	first, second := strings.Replace(good, "NAME", "one", 1), strings.Replace(good, "NAME", "two", 1)
	docs, err := Parse("m.yaml", []byte("%YAML 1.2\n# a comment\n---\n"+first+"--- # the other\n"+second+"...\n"))
	if err != nil || len(docs) != 2 || docs[0].Line != 4 || docs[1].Line != 10 || docs[0].Text != first || !strings.Contains(docs[1].Text, "dataset: two") {
		t.Errorf("%+v, %v", docs, err)
	}
	for text, at := range map[string]string{
		first + "---\n" + second + "colour: red\n":   "m.yaml:12: there is no setting",
		first + "---\n" + second + "doc: [\n":        "m.yaml:12:",
		first + "---\n" + first:                      "m.yaml:7: dataset one is at line 1 already",
		first + "---\n\n\n" + "dataset: two\nx: 1\n": "m.yaml:10: there is no setting",
	} {
		if _, err := Parse("m.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), at) {
			t.Errorf("%q: %v; want it at %q", text, err, at)
		}
	}
}

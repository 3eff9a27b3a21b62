package schema

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

const engine = `{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",
"required":["ts","celsius"],"additionalProperties":false,
"properties":{
 "ts":{"type":"string","format":"date-time"},
 "celsius":{"type":"number","minimum":-273.15},
 "rpm":{"type":["integer","null"],"exclusiveMaximum":20000,"multipleOf":5},
 "mode":{"enum":["idle","drive","charge"]},
 "unit":{"const":"C"},
 "name":{"type":"string","minLength":2,"maxLength":4,"pattern":"^[a-z]+$"},
 "cells":{"type":"array","minItems":1,"maxItems":3,"uniqueItems":true,"items":{"type":"object","properties":{"volt":{"type":"number"}}}},
 "at":{"oneOf":[{"type":"string"},{"type":"object","required":["lat"],"properties":{"lat":{"type":"number"}}}]},
 "id":{"anyOf":[{"type":"string"},{"type":"integer"}]},
 "tags":{"type":"object","propertyNames":{"pattern":"^[a-z]+$"}},
 "none":false,
 "serial":{"maximum":123456789012345678901234567890}
}}`

func compile(t testing.TB, raw string) *Schema {
	t.Helper()
	s, err := Compile([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCheckNamesPlaceFoundAndWanted(t *testing.T) {
	s := compile(t, engine)
	const ok = `"ts":"2026-11-23T03:00:00Z","celsius":20`
	for _, c := range []struct{ data, want string }{
		{`{` + ok + `}`, ""},
		{` {"celsius":-2e1,"ts":"2026-11-23T03:00:00.5+09:00","rpm":null,"at":{"lat":1.5},"id":7,"mode":"idle"} `, ""},
		{`{"ts":"2026-11-23T03:00:00Z","celsius":"21.5"}`, `/celsius: got string, want number`},
		{`{"celsius":20}`, `/ts: got nothing, want a value: it is required`},
		{`[]`, `(the whole): got array, want object`},
		{`{` + ok + `,"celcius":1}`, `/celcius: got a property that the contract does not know, want none`},
		{`{"ts":"noon","celsius":1}`, `/ts: got "noon", want the format date-time`},
		{`{"ts":"2026-11-23T03:00:00Z","celsius":-300}`, `/celsius: got -300, want at least -273.15`},
		{`{` + ok + `,"rpm":1.5}`, `/rpm: got number, want null or integer`},
		{`{` + ok + `,"rpm":20000}`, `/rpm: got 20000, want less than 20000`},
		{`{` + ok + `,"rpm":7}`, `/rpm: got 7, want a multiple of 5`},
		{`{` + ok + `,"mode":"fly"}`, `/mode: got "fly", want one of "idle", "drive", "charge"`},
		{`{` + ok + `,"unit":{}}`, `/unit: got an object, want "C"`},
		{`{` + ok + `,"name":"a"}`, `/name: got 1 character, want at least 2`},
		{`{` + ok + `,"name":"abcde"}`, `/name: got 5 characters, want at most 4`},
		{`{` + ok + `,"name":"AB"}`, `/name: got "AB", want what matches "^[a-z]+$"`},
		{`{` + ok + `,"cells":[]}`, `/cells: got 0 items, want at least 1`},
		{`{` + ok + `,"cells":[{"volt":1},{"volt":"x"}]}`, `/cells/1/volt: got string, want number`},
		{`{` + ok + `,"cells":[{"volt":1},{"volt":2},{"volt":1.0}]}`, `/cells/2: got the same as item 0, want no item twice`},
		{`{` + ok + `,"at":true}`, `/at: got boolean, want object or string`},
		{`{` + ok + `,"at":{"lat":"x"}}`, `/at/lat: got string, want number (the nearest of 2 alternatives)`},
		{`{` + ok + `,"id":1.5}`, `/id: got number, want integer or string`},
		{`{` + ok + `,"tags":{"A/b":1}}`, `/tags/A~1b: got a name that the contract does not allow`},
		{`{` + ok + `,"none":1}`, `/none: got number, want nothing there`},
		{`{` + ok + `,"serial":123456789012345678901234567890}`, ""},
		{`{` + ok + `,"serial":123456789012345678901234567891}`, `/serial: got 123456789012345678901234567891, want at most 123456789012345678901234567890`},
	} {
		got := ""
		if err := s.Check([]byte(c.data)); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s\n got: %s\nwant: %s", c.data, got, c.want)
		}
	}
}

func TestCheckNamesTheSameFaultEachTime(t *testing.T) {
	s := compile(t, engine)
	for range 50 {
		err := s.Check([]byte(`{"mode":1,"rpm":"x","cells":[{},{},{"volt":"x"}],"celsius":"x","zzz":1}`))
		if want := "/cells/1: got the same as item 0, want no item twice"; err == nil || err.Error() != want {
			t.Fatalf("got %v; want %s", err, want)
		}
	}
	list := compile(t, `{"items":{"type":"number"}}`)
	data := `[` + strings.Repeat("1,", 9) + `"x",` + `"y"` + `]`
	if err := list.Check([]byte(data)); err == nil || err.Error() != "/9: got string, want number" {
		t.Errorf("items go by their number: got %v", err)
	}
}

func TestNilSchemaTakesEverything(t *testing.T) {
	var s *Schema
	for _, data := range []string{"", "no JSON", "{}", "\xff"} {
		if err := s.Check([]byte(data)); err != nil {
			t.Errorf("%q: %v", data, err)
		}
	}
	data := []byte("x")
	if n := testing.AllocsPerRun(100, func() { _ = s.Check(data) }); n != 0 {
		t.Errorf("it allocates %v times", n)
	}
}

// TestSentenceIsBounded because it goes into logs, lists and packets, and its words are a stranger's.
func TestSentenceIsBounded(t *testing.T) {
	s := compile(t, `{"additionalProperties":{"additionalProperties":{"enum":["a"]}}}`)
	long := strings.Repeat("ü", 20_000)
	for _, data := range []string{
		`{"` + long + `":{"` + long + `":"` + long + `"}}`,
		`{"a\n\u0000\u001b[31m":{"b":"c\r\n\u0000"}}`,
		`{"x":{"y":` + strings.Repeat("9", 900) + `}}`,
		`{"` + long + `":1,"` + long + `":2}`,
		`{"x":` + strings.Repeat("9", 200_000) + `}`,
	} {
		err := s.Check([]byte(data))
		if err == nil {
			t.Errorf("%.40s… is taken", data)
			continue
		}
		msg := err.Error()
		if len(msg) > sentenceMax+len("…") || !utf8.ValidString(msg) || strings.ContainsFunc(msg, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("%d bytes: %q", len(msg), msg)
		}
	}
}

func TestCompileNamesTheFault(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "other.json")
	if err := os.WriteFile(secret, []byte(`{}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ schema, want string }{
		{`{"type":"objet"}`, `/type: got "objet", want one of "array", "boolean"`},
		{`{"properties":{"a":{"minimum":"1"}}}`, `/properties/a/minimum: got string, want number`},
		{`{"properties":{"a":{"pattern":"("}}}`, `/properties/a/pattern: got "(", `},
		{`{"pattern":"a(?=b)"}`, `got "a(?=b)", `},
		{`{"$ref":"https://example.com/other.json"}`, `it refers to "https://example.com/other.json", and nothing is loaded`},
		{`{"$ref":"other.json"}`, `it refers to "other.json", and nothing is loaded`},
		{`{"$ref":"file://` + secret + `"}`, `it refers to "file://` + secret[:20]},
		{`{"properties":{"a":{"$ref":"` + secret + `"}}}`, `and nothing is loaded from elsewhere: put that under $defs`},
		{`{"$ref":"#/$defs/no"}`, `#/$defs/no`},
		{`{"$ref":"#no"}`, `no`},
		{`{"$schema":"http://json-schema.org/draft-07/schema#"}`, `/$schema: got "http://json-schema.org/draft-07/schema#", want "` + Dialect + `"`},
		{`{"$schema":7}`, `/$schema: got 7`},
		{`[1]`, `(the whole): got array, want an object, true or false`},
		{`{"a":1,}`, `not JSON at byte 7: a name in double quotes is wanted`},
		{`{"maximum":1e999999999}`, `the number at byte 11 is too large`},
	} {
		_, err := Compile([]byte(c.schema))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s\n got: %v\nwant: %s", c.schema, err, c.want)
		}
	}
}

func TestCompileTakesWhatStandsAlone(t *testing.T) {
	s := compile(t, `{"$schema":"`+Dialect+`","$id":"https://example.com/engine","$ref":"#/$defs/n",
		"properties":{"next":{"$ref":"#"},"own":{"$ref":"`+Dialect+`"}},"$defs":{"n":{"type":"object"}}}`)
	if err := s.Check([]byte(`{"next":{"next":{"next":1}}}`)); err == nil || err.Error() != "/next/next/next: got number, want object" {
		t.Errorf("got %v", err)
	}
	if err := s.Check([]byte(`{"own":{"type":"object"}}`)); err != nil {
		t.Error(err)
	}
	if err := compile(t, `true`).Check([]byte(`nonsense`)); err == nil {
		t.Error("a schema wants JSON, even one that takes everything")
	}
}

// TestSchemaWithoutEndIsTold because only data shows that a schema refers to itself in a circle.
func TestSchemaWithoutEndIsTold(t *testing.T) {
	s := compile(t, `{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}`)
	if err := s.Check([]byte(`{}`)); err == nil || !strings.Contains(err.Error(), "refers to itself") {
		t.Errorf("got %v", err)
	}
}

func TestCheckStandsDeepAndLargeData(t *testing.T) {
	s := compile(t, `{"$id":"https://example.com/tree","type":["array","number"],"items":{"$ref":"#"},"minimum":0}`)
	deep := strings.Repeat("[", depthMax) + "1" + strings.Repeat("]", depthMax)
	if err := s.Check([]byte(deep)); err != nil {
		t.Error(err)
	}
	if err := s.Check([]byte("[" + deep + "]")); err == nil || !strings.Contains(err.Error(), "levels within each other") {
		t.Errorf("got %v", err)
	}
	if err := s.Check([]byte(strings.Repeat("[", 1<<20))); err == nil {
		t.Error("taken")
	}
	if err := s.Check([]byte("[" + strings.Repeat("1e400,", 40_000) + "1e-400]")); err != nil {
		t.Error(err)
	}
	if err := s.Check([]byte(`[1e401]`)); err == nil || err.Error() != "the number at byte 1 is too large or too long: got 1e401, want up to 1000 digits and exponents up to 400" {
		t.Errorf("got %v", err)
	}
}

func BenchmarkCheck(b *testing.B) {
	telemetry := []byte(`{"ts":"2026-11-23T20:24:39.300706618Z","celsius":22.29,"rpm":1500,"mode":"drive","name":"abc","unit":"C"}`)
	for _, c := range []struct {
		name, schema string
		data         []byte
	}{
		{"none", "", telemetry},
		{"types", `{"type":"object","required":["ts","celsius"],"properties":{"ts":{"type":"string"},"celsius":{"type":"number"},"rpm":{"type":"integer"}}}`, telemetry},
		{"limits", `{"type":"object","required":["ts","celsius"],"additionalProperties":false,"properties":{"ts":{"type":"string","format":"date-time"},
			"celsius":{"type":"number","minimum":-60,"maximum":1200},"rpm":{"type":"integer","minimum":0},"mode":{"enum":["idle","drive"]},
			"name":{"type":"string","maxLength":9},"unit":{"type":"string","pattern":"^[A-Z]$"}}}`, telemetry},
		{"all", engine, telemetry},
		{"broken", engine, []byte(strings.Replace(string(telemetry), "22.29", `"22.29"`, 1))},
	} {
		var s *Schema
		if c.schema != "" {
			s = compile(b, c.schema)
		}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(c.data)))
			for b.Loop() {
				_ = s.Check(c.data)
			}
		})
	}
}

func ExampleSchema_Check() {
	s, err := Compile([]byte(`{"type":"object","properties":{"celsius":{"type":"number"}}}`))
	if err != nil {
		panic(err)
	}
	fmt.Println(s.Check([]byte(`{"celsius":"warm"}`)))
	// Output: /celsius: got string, want number
}

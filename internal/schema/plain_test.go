package schema

import (
	"strings"
	"testing"
)

// plainSchemas use, between them, each word that is taken the short way, and words that are not.
var plainSchemas = []string{
	engine,
	`{"type":["object","array"],"minProperties":1,"maxProperties":2,"additionalProperties":{"type":"string","minLength":1,"maxLength":3}}`,
	`{"type":"array","minItems":1,"maxItems":3,"items":{"type":"integer","minimum":-1,"exclusiveMaximum":10.5}}`,
	`{"anyOf":[{"type":"number","exclusiveMinimum":0,"maximum":0.1},{"type":"string","pattern":"^a+$"},{"const":null}]}`,
	`{"allOf":[{"required":["a"]},{"$ref":"#/$defs/b"}],"$defs":{"b":{"properties":{"b":{"enum":["x","y",1]}}}}}`,
	`{"type":"object","properties":{"next":{"$ref":"#"},"when":{"format":"date-time"}},"additionalProperties":false}`,
	`{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}}}`,
	`{"items":{"oneOf":[{"type":"integer"},{"minimum":2}]},"uniqueItems":true}`,
	`{"prefixItems":[{"type":"string"}],"items":false}`,
	`{"maximum":1e400,"minimum":-1e400}`,
	`{"maximum":9007199254740993,"minimum":0.1}`,
	`{"minimum":1,"maximum":3,"exclusiveMinimum":0.99999999999999999999,"exclusiveMaximum":3.00000000000000000001}`,
	`{"minimum":1,"exclusiveMinimum":1,"maximum":3,"exclusiveMaximum":3}`,
	`{"patternProperties":{"^a":{"type":"string"}},"propertyNames":{"maxLength":2},"unevaluatedProperties":false}`,
	`{"dependentRequired":{"a":["b"]},"if":{"required":["c"]},"then":{"required":["a"]},"not":{"required":["z"]}}`,
	`{"type":"object","allOf":[{"$ref":"#"},{"$ref":"#/$defs/x"}],"$defs":{"x":{"anyOf":[{"$ref":"#"},{"$ref":"#"}]}}}`,
	`false`, `true`, `{}`, `{"enum":[]}`, `{"items":{"enum":["x"]},"anyOf":[]}`,
}

var plainData = []string{`{"ts":"2026-11-23T03:00:00Z","celsius":20,"rpm":5,"mode":"idle"}`, `{"a":"xyz"}`, `{"a":1,"b":"x"}`, `[1,2.0,10]`, `[1,1]`,
	`1`, `3`, `0.99999999999999999999`, `1.00000000000000000000001`, `3.00000000000000000000001`, `-0`,
	`0.1`, `0.10000000000000001`, `1e400`, `-1e400`, `9007199254740993`, `9007199254740994`, `"aaa"`, `null`, `{"next":{"next":{}}}`, `["x",1]`,
	`{"next":{"when":"noon"}}`, `{"ab":"x","b":1}`, `{"z":1}`, `[]`, `{}`, `1.0`, `1e0`, `"ü"`, `[[1],["x"]]`,
	`{"a":"x","a":"x"}`, `{"a":{"b":1,"b":1}}`, `{"\u0061":"x","a":"y"}`, `{"a":[{"a":1},{"a":1}],"b":{"a":{}}}`, `01`, `1.`, `"\ud800"`, "\"\xff\"", `{"a":1,}`, `[1,]`, `[1 2]`, `{} {}`,
	` { "a" : [ ] } `, `nul`, `truefalse`, `"a`, ``}

// FuzzPlainTakesNothingThatTheValidatorRefuses holds the short way to the long one.
func FuzzPlainTakesNothingThatTheValidatorRefuses(f *testing.F) {
	var all []*Schema
	for i, raw := range plainSchemas {
		s, err := Compile([]byte(raw))
		if err != nil {
			if strings.Contains(raw, `[]`) { // an empty enum or anyOf is no schema
				continue
			}
			f.Fatal(err)
		}
		all = append(all, s)
		for _, data := range plainData {
			f.Add(i, []byte(data))
		}
	}
	f.Fuzz(func(t *testing.T, _ int, data []byte) {
		doc, bad := decode(data)
		for i, s := range all {
			if !s.plain.takes(data) {
				continue
			}
			if bad != nil {
				t.Errorf("schema %d takes %q the short way: %v", i, data, bad)
			} else if err := s.compiled.Validate(doc); err != nil {
				t.Errorf("schema %d takes %q the short way: %v", i, data, err)
			}
		}
	})
}

// TestPlainTakesWhatIsUsual so that the short way stays one.
func TestPlainTakesWhatIsUsual(t *testing.T) {
	for _, c := range []struct{ schema, data string }{
		{`{"type":"object","required":["ts","celsius"],"additionalProperties":false,"properties":{"ts":{"type":"string","format":"date-time"},
			"celsius":{"type":"number","minimum":-273.15},"rpm":{"type":["integer","null"],"exclusiveMaximum":20000},"mode":{"enum":["idle","drive"]},
			"cells":{"type":"array","maxItems":9,"items":{"type":"object","properties":{"volt":{"type":"number"}}}},"id":{"anyOf":[{"type":"string"},{"type":"integer"}]}}}`,
			`{"ts":"2026-11-23T03:00:00Z","celsius":21.5,"rpm":null,"mode":"idle","cells":[{"volt":3.7}],"id":7}`},
		{`{"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"next":{"$ref":"#/$defs/n"}}}}}`, `{"next":{"next":{}}}`},
		{`{"minLength":1,"maxLength":3,"pattern":"^[a-zü]+$"}`, `"üüü"`},
		{`{"items":{"type":"integer","minimum":1,"maximum":3}}`, `[1,2,3]`},
	} {
		if !compile(t, c.schema).plain.takes([]byte(c.data)) {
			t.Errorf("%s goes the long way by %s", c.data, c.schema)
		}
	}
}

package schema

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestDecodeNamesTheByte(t *testing.T) {
	for _, c := range []struct{ data, want string }{
		{``, `not JSON at byte 0: it ends there`},
		{`  `, `not JSON at byte 2: it ends there`},
		{`{"celsius":`, `not JSON at byte 11: it ends there`},
		{`{"celsius":21,}`, `not JSON at byte 14: a name in double quotes is wanted`},
		{`{"celsius" 21}`, `not JSON at byte 11: a colon is wanted`},
		{`{"a":1 "b":2}`, `not JSON at byte 7: a comma or } is wanted`},
		{`[1 2]`, `not JSON at byte 3: a comma or ] is wanted`},
		{`{} {}`, `not JSON at byte 3: something behind the end`},
		{`nul`, `not JSON at byte 0: no value begins so`},
		{`NaN`, `not JSON at byte 0: no value begins so`},
		{`01`, `not JSON at byte 1: something behind the end`},
		{`-x`, `not JSON at byte 1: a digit is wanted`},
		{`1.`, `not JSON at byte 2: it ends there`},
		{`1.e5`, `not JSON at byte 2: a digit is wanted`},
		{`1e+`, `not JSON at byte 3: it ends there`},
		{`"a`, `not JSON at byte 2: it ends there`},
		{"\"a\nb\"", `not JSON at byte 2: a control character in a text`},
		{"\"a\xffb\"", `not JSON at byte 2: malformed UTF-8`},
		{"\"\\n\xff\"", `not JSON at byte 3: malformed UTF-8`},
		{`"\x"`, `not JSON at byte 2: an escape that does not exist`},
		{`"\u12g4"`, `not JSON at byte 5: four hexadecimal digits are wanted`},
		{`"\`, `not JSON at byte 2: it ends there`},
		{"\xef\xbb\xbf{}", `not JSON at byte 0: no value begins so`},
		{`{"a":1,"\u0061":2}`, `not JSON at byte 7: the name "a" for the second time`},
	} {
		_, err := decode([]byte(c.data))
		if err == nil || err.Error() != c.want {
			t.Errorf("%q\n got: %v\nwant: %s", c.data, err, c.want)
		}
	}
}

func TestDecodeReadsWhatIsWritten(t *testing.T) {
	got, err := decode([]byte(" {\"a\" : [ true , false, null , -0.50E+2 , 123456789012345678901234567890 ],\t\"b\\u0041\\n\\ud83d\\ude00ü\" : \"\\ud800\\u0041\\/\" , \"\":{}, \"l\":[]}\r\n"))
	want := map[string]any{"a": []any{true, false, nil, json.Number("-0.50E+2"), json.Number("123456789012345678901234567890")},
		"bA\n😀ü": "\ufffdA/", "": map[string]any{}, "l": []any{}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %#v, %v", got, err)
	}
}

// FuzzDecode holds the decoder to the standard library's: what it takes is JSON and means the same there. What it does
// not take is no JSON, or one of what it says that it does not take.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"a":[1,-2.5e3,"x\u00e9\n",true,false,null,{}]}`, `"\ud83d\ude00\ud800"`, `{"a":1,"a":2}`, `[[[]]]`, `1e401`, "\"\xff\""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decode(data)
		if err != nil {
			told := strings.Contains(err.Error(), "for the second time") || strings.Contains(err.Error(), "malformed UTF-8") ||
				strings.Contains(err.Error(), "levels within") || strings.Contains(err.Error(), "too large or too long")
			if json.Valid(data) && !told {
				t.Fatalf("%q is JSON: %v", data, err)
			}
			return
		}
		d := json.NewDecoder(strings.NewReader(string(data)))
		d.UseNumber()
		var want any
		if err := d.Decode(&want); err != nil || !json.Valid(data) {
			t.Fatalf("%q is no JSON: %v", data, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%q is %#v; want %#v", data, got, want)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	data := []byte(`{"ts":"2026-11-23T20:24:39.300706618Z","celsius":22.29,"rpm":1500,"mode":"drive","name":"abc","unit":"C"}`)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = decode(data)
	}
}

package span

import "testing"

func TestPartsEndWhereTheyDo(t *testing.T) {
	for text, end := range map[string]int{
		`1`: 1, `-1.5e3,2`: 6, `true]`: 4, `null }`: 4, `"a\"}b" ,`: 7, `"\\",1`: 4,
		`{}`: 2, `[]]`: 2, `{"a":["}",{"b":"\"]"}]},0`: 23, `[1,[2,{"x":3}]] `: 15,
	} {
		if got := Value([]byte(text), 0); got != end {
			t.Errorf("%s: the value ends at %d; want %d", text, got, end)
		}
	}
	for text, at := range map[string]int{"": 0, "x": 0, " \t\r\n x": 5, "  ": 2} {
		if got := Space([]byte(text), 0); got != at {
			t.Errorf("%q: what is no space begins at %d; want %d", text, got, at)
		}
	}
}

func TestStringsSayWhatTheyDo(t *testing.T) {
	for text, want := range map[string]string{
		`""`: "", `"a"`: "a", `"\"\\\/\b\f\n\r\t"`: "\"\\/\b\f\n\r\t", `"\u00e9\u20AC"`: "é€", `"\ud83d\ude00!"`: "😀!",
		`"\ud83d"`: "\ufffd", `"\ud83dx"`: "\ufffdx", `"\ude00\ud83d"`: "\ufffd\ufffd", `"\ud83d\u0041"`: "\ufffdA", `"\ud83d\ud83d\ude00"`: "\ufffd😀",
	} {
		if got := Unquote(nil, text); string(got) != want {
			t.Errorf("%s says %q; want %q", text, got, want)
		}
		if got := Unquote([]byte("-"), []byte(text)); string(got) != "-"+want {
			t.Errorf("%s behind another one says %q; want %q", text, got, want)
		}
	}
}

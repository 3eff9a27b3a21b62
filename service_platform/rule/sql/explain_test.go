package sql

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestExplainSaysWhyWhereDoesNotHold names the comparison, and what is missing.
func TestExplainSaysWhyWhereDoesNotHold(t *testing.T) {
	for _, c := range []struct{ where, payload, want string }{
		{"temperature > 20", `{"temperature":12}`, "temperature > 20 is false: temperature is 12"},
		{"temperature > 20", `{}`, `temperature > 20 is Undefined: the payload has no member "temperature"`},
		{"state.reported.t > 20", `{"state":{"reported":{}}}`, `state.reported.t > 20 is Undefined: state.reported has no member "t"`},
		{"state.reported.t > 20", `{"state":5}`, "state is no Object but Int"},
		{"temperature > 20", `{"temperature":"warm"}`, `temperature > 20 is Undefined: temperature is the String "warm"`},
		{"temperature > 20", "{no json", "the payload is no JSON from byte 1 on"},
		{"temperature > 20", "", "the payload is empty"},
		{"temperature > 20", "[1]", "the payload is no Object but Array"},
		{"a = 1 AND b = 2 AND c = 3", `{"a":1,"b":3,"c":4}`, "b = 2 is false: b is 3; c = 3 is false: c is 4"},
		{"a = 1 OR b = 2", `{"a":3,"b":3}`, "a = 1 is false: a is 3; b = 2 is false: b is 3"},
		{"a = 1 OR b = 2", `{"a":1}`, `b = 2 is Undefined: the payload has no member "b"`},
		{"NOT a = 1", `{"a":1}`, "NOT a = 1 is false: a = 1 is true"},
		{"startswith(name, 'x')", `{"name":"abc"}`, `startswith(name, 'x') is false: name is "abc"`},
		{"name", `{"name":"abc"}`, `name is "abc", not true`},
		{"abs(name) > 1", `{"name":"abc"}`, `abs(name) > 1 is Undefined: name is the String "abc"`},
		{"isNull(a, b)", `{}`, "isNull takes 1 argument, here are 2"},
		{"isUndefined(get(e, 0).n)", `{"e":[{"n":1}]}`, "isUndefined(get(e, 0).n) is false: get(e, 0).n is 1"},
		{"false", `{}`, ""},
	} {
		s, err := Compile("SELECT * FROM 'a/#' WHERE " + c.where)
		if err != nil {
			t.Fatal(err)
		}
		x := s.Explain(sample("a/b", c.payload))
		if x.Matched || !strings.Contains(x.Reason, c.want) {
			t.Errorf("%s of %s: matched %v, reason %q, want %q", c.where, c.payload, x.Matched, x.Reason, c.want)
		}
	}
}

// TestExplainShowsEachStep with its text, its place and its value.
func TestExplainShowsEachStep(t *testing.T) {
	s, err := Compile("SET @c = (f - 32) * 5 / 9\nSELECT @c AS celsius,\n  missing FROM 'a/+' WHERE f > 50")
	if err != nil {
		t.Fatal(err)
	}
	x := s.Explain(sample("a/b", `{"f":68}`))
	if !x.Matched || x.Reason != "" || string(x.Output) != `{"celsius":20}` || x.Error != "" {
		t.Errorf("matched %v, reason %q, output %s, error %q", x.Matched, x.Reason, x.Output, x.Error)
	}
	var seen []string
	var walk func(depth int, steps []*Step)
	walk = func(depth int, steps []*Step) {
		for _, s := range steps {
			seen = append(seen, strings.Repeat(" ", depth)+s.Text+"|"+s.Type+"|"+string(s.Value)+"|"+s.Note)
			walk(depth+1, s.Steps)
		}
	}
	for _, c := range x.Clauses {
		seen = append(seen, c.Name+": "+c.Text)
		walk(1, c.Steps)
	}
	want := []string{
		"FROM: a/+",
		"WHERE: f > 50", " f > 50|Boolean|true|", "  f|Int|68|",
		"SELECT: @c AS celsius,\n  missing", " @c|Int|20|", "  (f - 32) * 5 / 9|Int|20|", "   (f - 32) * 5|Int|180|", "    f - 32|Int|36|", "     f|Int|68|",
		` missing|Undefined||the payload has no member "missing"`,
	}
	if got := strings.Join(seen, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("steps:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	if last := x.Clauses[2].Steps[1]; last.Line != 3 || last.Column != 3 {
		t.Errorf("missing stands at line %d, column %d", last.Line, last.Column)
	}
	if _, err := json.Marshal(x); err != nil {
		t.Error(err)
	}
}

func TestExplainTellsErrorsAndBytes(t *testing.T) {
	s, _ := Compile("SELECT a FROM 'x'")
	x := s.Explain(sample("a/b", "\x01"))
	if x.Matched || !strings.Contains(x.Error, "no JSON from byte 0") || x.Clauses[0].Holds {
		t.Errorf("%+v", x)
	}
	s, _ = Compile("SELECT *")
	if x = s.Explain(sample("a/b", "\x01")); !x.Matched || string(x.Bytes) != "\x01" || x.Output != nil {
		t.Errorf("%+v", x)
	}
}

// TestExplainStaysShort whatever the message holds.
func TestExplainStaysShort(t *testing.T) {
	s, err := Compile("SELECT (SELECT VALUE n + 1 FROM big) AS x, big, text")
	if err != nil {
		t.Fatal(err)
	}
	big := "[" + strings.TrimSuffix(strings.Repeat(`{"n":1},`, 5000), ",") + "]"
	x := s.Explain(sample("a/b", `{"big":`+big+`,"text":"`+strings.Repeat("x", 5000)+`"}`))
	raw, err := json.Marshal(x.Clauses)
	if err != nil || !x.Cut || len(raw) > 500_000 || x.Error != "" {
		t.Errorf("%d bytes, cut %v, error %q, %v", len(raw), x.Cut, x.Error, err)
	}
}

func TestTopicMatches(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/c", false}, {"a/b", "a", false}, {"a", "a/b", false}, {"a/+", "a/", true}, {"a/+/c", "a/b/c", true}, {"+", "a/b", false},
		{"#", "a/b", true}, {"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/#", "b", false}, {"#", "$aws/x", false}, {"+/x", "$aws/x", false}, {"$aws/#", "$aws/x", true}, {"/+", "/a", true}, {"+/+", "/a", true},
	} {
		if got := topicMatches(c.filter, c.topic); got != c.want {
			t.Errorf("%s takes %s: %v", c.filter, c.topic, got)
		}
	}
}

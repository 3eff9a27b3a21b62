package sql

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
)

// documented is an example, or a row of a table, of the public documentation of the dialect.
type documented struct {
	URL       string
	SQL       string // a statement
	Expr      string // or an expression
	Topic     string
	Input     string
	Expected  string // JSON, or "undefined"
	Raw       bool   // Expected are bytes
	Unmatched bool
	From      *bool  // whether FROM takes the topic
	Refused   string // part of Compile's error, or of the template's
	Error     string // part of Eval's error
	Template  string
	Text      string // what the template gives
	Printed   string // what the documentation prints, where we differ
	Note      string
}

// shadows is a Lookup with one alarm.
type shadows struct{}

func (shadows) ThingShadow(thing, name string) ([]byte, error) {
	if thing != "MyThing" || name != "" && name != "MyThingShadow" {
		return nil, nil
	}
	return []byte(`{"state":{"reported":{"alarm":"ON"}}}`), nil
}

func sample(topic, payload string) *Input {
	expiry := uint32(60)
	if topic == "" {
		topic = "a/b"
	}
	return &Input{
		Topic: topic, ClientID: "123456789012", AccountID: "123456789012", SourceIP: "192.158.1.38",
		Principal: "ba67293af50bf2506f5f93469686da660c7c844e7b3950bfb16813e0d31e9373",
		TraceID:   "12345678-1234-1234-1234-123456789012", Payload: []byte(payload), Time: noon,
		NewUUID: func() string { return "123a4567-b89c-12d3-e456-789012345000" }, Rand: func() float64 { return 0.8231909191640703 },
		Lookup: shadows{},
		Properties: Properties{ContentType: "application/json", UTF8: true, ResponseTopic: "reply/to", CorrelationData: []byte("cid"),
			MessageExpiry: &expiry, User: []UserProperty{{"k", "v1"}, {"o", "ov"}, {"k", "v2"}}},
	}
}

// TestDocumentedExamples holds what the public documentation shows. Where it prints another result than ours, the case says why.
func TestDocumentedExamples(t *testing.T) {
	raw, err := os.ReadFile("testdata/documented.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []documented
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 250 {
		t.Errorf("only %d cases", len(cases))
	}
	for _, c := range cases {
		c.check(t)
	}
}

func (c documented) check(t *testing.T) {
	t.Helper()
	statement := c.SQL
	if c.Expr != "" {
		statement = "SELECT VALUE (" + c.Expr + ")"
	}
	s, err := Compile(statement)
	if c.Refused != "" {
		if err == nil && c.Template != "" {
			_, err = s.Template(c.Template)
		}
		if err == nil || !strings.Contains(err.Error(), c.Refused) {
			t.Errorf("%s: %v", statement, err)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", statement, err)
		return
	}
	if (c.Printed != "" || c.Error != "") && c.Note == "" {
		t.Errorf("%s differs and does not say why", statement)
	}
	in := sample(c.Topic, c.Input)
	if c.From != nil && topicMatches(s.Filter(), in.Topic) != *c.From {
		t.Errorf("%s takes %s: %v", statement, in.Topic, !*c.From)
	}
	out, matched, err := s.Eval(in)
	if c.Error != "" {
		if err == nil || !strings.Contains(err.Error(), c.Error) {
			t.Errorf("%s: error %v", statement, err)
		}
		return
	}
	if err != nil || matched == c.Unmatched {
		t.Errorf("%s: matched %v, error %v", statement, matched, err)
		return
	}
	if !c.Unmatched && !same(string(out.Payload), c.Expected, c.Raw) {
		t.Errorf("%s = %s, want %s", statement, out.Payload, c.Expected)
	}
	if c.Template != "" {
		tmpl, err := s.Template(c.Template)
		if err != nil {
			t.Fatal(err)
		}
		if text, defined, err := tmpl.Eval(in, out.Variables); text != c.Text || !defined || err != nil {
			t.Errorf("%s = %q (%v, %v)", c.Template, text, defined, err)
		}
	}
}

// same compares JSON by meaning: 3.0 is 3.
func same(got, want string, raw bool) bool {
	if want == "undefined" || raw {
		return got == strings.TrimPrefix(want, "undefined")
	}
	var x, y any
	return json.Unmarshal([]byte(got), &x) == nil && json.Unmarshal([]byte(want), &y) == nil && reflect.DeepEqual(x, y)
}

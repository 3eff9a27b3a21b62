package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/internal/same"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	engine "github.com/naru-platform/naru/service_platform/rule"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

// ruled is what a statement makes of a message.
type ruled struct {
	Matched bool `json:"matched"`
	// Output is what is emitted; absent where nothing is. What is no JSON is a text, or in base64 where it is no text, and is
	// in Bytes as it is.
	Output json.RawMessage `json:"output,omitempty"`
	Bytes  []byte          `json:"bytes,omitempty"`
	Reason string          `json:"reason,omitempty"` // why it is not taken
	Error  string          `json:"error,omitempty"`  // why the rule would fail
	// Explain has each clause with whether it holds, and each expression with its value.
	Explain *sql.Explanation `json:"explain,omitempty"`
	// Says is what the actions of a rule would say, or why they cannot.
	Says []engine.Saying `json:"says,omitempty"`
}

// apply applies a statement as the platform would, its FROM included.
func apply(s *sql.Statement, in sql.Input) (ruled, error) {
	topic, heard, err := spelled(s.Filter(), in.Topic)
	if err != nil {
		return ruled{}, err
	}
	asked := in.Topic
	in.Topic = topic
	e := s.Explain(&in)
	for i := range e.Clauses {
		if e.Clauses[i].Name == "FROM" {
			e.Clauses[i].Holds = heard
		}
	}
	r := ruled{Explain: &e}
	switch {
	case !heard:
		r.Reason = fmt.Sprintf("FROM '%s' does not hear topic %q", s.Filter(), asked)
	case e.Error != "":
		r.Error = e.Error
	default:
		r.Matched, r.Reason, r.Output = e.Matched, e.Reason, e.Output
		if len(e.Bytes) > 0 {
			r.Bytes, r.Output = e.Bytes, asText(e.Bytes)
		}
	}
	return r, nil
}

// asText is a JSON string of bytes that are no JSON.
func asText(b []byte) json.RawMessage {
	text := string(b)
	if !utf8.Valid(b) {
		text = base64.StdEncoding.EncodeToString(b)
	}
	raw, err := json.Marshal(text)
	if err != nil {
		return nil // a text can be written
	}
	return raw
}

// spelled gives a topic as FROM spells it, and says whether FROM hears it: a message is stored once, and each rule sees it in
// the spelling it asked for. Without one, or without a topic, nothing is to be checked.
func spelled(filter, topic string) (as string, heard bool, err error) {
	if filter == "" || topic == "" {
		return topic, true, nil
	}
	subject, ok := device.FromShadowTopic(topic)
	if !ok {
		if subject, err = message.FromTopic(topic); err != nil {
			return "", false, fmt.Errorf("the topic %q: %w", topic, err)
		}
	}
	patterns, aws := device.FromShadowFilter(filter)
	if aws {
		if as, ok = device.ShadowTopic(subject); !ok {
			return topic, false, nil
		}
	} else if patterns, err = message.FromFilter(filter); err != nil {
		return "", false, fmt.Errorf("FROM '%s': %w", filter, err)
	} else {
		as = subject.Topic()
	}
	return as, slices.ContainsFunc(patterns, func(p message.Pattern) bool { return p.Matches(subject) }), nil
}

// shadows are documents for get_thing_shadow(), by `thing` or `thing/name`.
type shadows map[string]json.RawMessage

// ThingShadow is of sql.Lookup.
func (s shadows) ThingShadow(thing, name string) ([]byte, error) {
	if name != "" {
		thing += "/" + name
	}
	return s[thing], nil
}

// readShadows reads those that are named by flags.
func readShadows(in io.Reader, flags []string) (shadows, error) {
	known := shadows{}
	for _, f := range flags {
		name, file, ok := strings.Cut(f, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--shadow %q: want THING=FILE or THING/NAME=FILE", f)
		}
		raw, err := readFile(in, file)
		if err != nil {
			return nil, fmt.Errorf("--shadow %s: %w", name, err)
		}
		if !json.Valid(raw) {
			return nil, fmt.Errorf("--shadow %s: %s is no JSON", name, file)
		}
		known[name] = raw
	}
	return known, nil
}

// ruleCase is one of --cases. Expected is nil where nothing is to be emitted, and the text null where the JSON null is.
type ruleCase struct {
	SQL            string          `json:"sql"`
	Topic          string          `json:"topic"`
	ClientID       string          `json:"client_id"`
	Input          json.RawMessage `json:"input"`
	InputBase64    *[]byte         `json:"input_base64"`
	Expected       json.RawMessage `json:"expected"`
	ExpectedBase64 *[]byte         `json:"expected_base64"`
	Shadows        shadows         `json:"shadows"`
}

// caseResult is what became of a case.
type caseResult struct {
	Case   int    `json:"case"` // from 1
	Passed bool   `json:"passed"`
	Fault  string `json:"fault,omitempty"` // why it did not pass
	ruled
}

// run gives what the statement makes of the case, and what is wrong with that.
func (k *ruleCase) run() (r ruled, fault string) {
	in := sql.Input{Topic: k.Topic, ClientID: k.ClientID, Payload: k.Input, Time: time.Now(), Lookup: k.Shadows}
	switch {
	case k.InputBase64 != nil && k.Input != nil:
		return r, "both input and input_base64 are there: want one of them"
	case k.ExpectedBase64 != nil && k.Expected != nil:
		return r, "both expected and expected_base64 are there: want one of them"
	case k.InputBase64 != nil:
		in.Payload = *k.InputBase64
	}
	s, err := sql.Compile(k.SQL)
	if err == nil {
		r, err = apply(s, in)
	}
	if err != nil {
		return r, err.Error()
	}
	r.Explain = nil
	emits := orNothing(r.Output)
	if r.Error != "" {
		emits = "nothing, since " + r.Error
	}
	switch {
	case k.ExpectedBase64 != nil:
		if !bytes.Equal(r.bytes(), *k.ExpectedBase64) {
			return r, fmt.Sprintf("emits %s; want the bytes %s", emits, base64.StdEncoding.EncodeToString(*k.ExpectedBase64))
		}
	case len(k.Expected) == 0:
		if len(r.Output) > 0 || r.Error != "" {
			return r, fmt.Sprintf("emits %s; want nothing", emits)
		}
	case !same.JSON(r.Output, k.Expected):
		return r, fmt.Sprintf("emits %s; want %s", emits, k.Expected)
	}
	return r, ""
}

// bytes is what is emitted as it is.
func (r *ruled) bytes() []byte {
	if r.Bytes != nil {
		return r.Bytes
	}
	return r.Output
}

func runCases(o *options, c *cobra.Command, raw []byte) error {
	var texts []json.RawMessage
	if err := json.Unmarshal(raw, &texts); err != nil || texts == nil {
		var kind *json.UnmarshalTypeError
		if err == nil || errors.As(err, &kind) {
			err = errors.New("they are no list")
		}
		return fmt.Errorf("the cases: %w; want a JSON list of {sql, topic, input, expected}", plainJSON(err))
	}
	if len(texts) == 0 {
		return errors.New("the cases: there is none in the list, so nothing was tried")
	}
	list := make([]ruleCase, len(texts))
	for i, text := range texts {
		err := json.Unmarshal(text, &list[i])
		if err == nil && string(text) == "null" {
			err = &json.UnmarshalTypeError{Value: "null"}
		}
		if err != nil {
			return fmt.Errorf("case %d: %w; want {sql, topic, input, expected}", i+1, plainJSON(err))
		}
	}
	out := struct {
		Passed int          `json:"passed"`
		Failed int          `json:"failed"`
		Cases  []caseResult `json:"cases"`
	}{Cases: []caseResult{}}
	for i := range list {
		r := caseResult{Case: i + 1}
		if r.ruled, r.Fault = list[i].run(); r.Fault == "" {
			r.Passed = true
			out.Passed++
		} else {
			out.Failed++
		}
		out.Cases = append(out.Cases, r)
	}
	err := o.show(c.OutOrStdout(), out, func(p *printer) {
		for _, r := range out.Cases {
			if !r.Passed {
				p.line("case %d: %s", r.Case, r.Fault)
				p.line("    %s", strings.TrimSpace(list[r.Case-1].SQL))
			}
		}
		p.line("%d passed, %d failed", out.Passed, out.Failed)
	})
	return found(err, out.Failed > 0)
}

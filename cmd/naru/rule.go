package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

func ruleCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "rule", Short: "Rules: the SQL that selects and shapes messages"}
	c.AddCommand(ruleTest(o), ruleList(o), ruleShow(o), ruleAdd(o), ruleChange(o, "enable", "Have a rule run"), ruleChange(o, "disable", "Have a rule rest"), ruleRollback(o), ruleHistory(o), ruleDelete(o))
	return c
}

// ruled is what a statement makes of a message.
type ruled struct {
	Matched bool `json:"matched"`
	// Output is what is emitted, where it is JSON; else Bytes is.
	Output  json.RawMessage  `json:"output,omitempty"`
	Bytes   []byte           `json:"bytes,omitempty"`
	Reason  string           `json:"reason,omitempty"`
	Explain *sql.Explanation `json:"explain,omitempty"`
}

func ruleTest(o *options) *cobra.Command {
	var statement, topic, client, file, cases string
	c := &cobra.Command{
		Use: "test", Short: "What a rule's SQL makes of a message, and why", Args: cobra.NoArgs,
		Long: `Evaluates a statement of the AWS IoT SQL dialect (2016-03-23) over a message, and shows every step. No platform needs to run.
The message is taken as its bytes are, JSON or not. With --cases, a file with a JSON list of {"sql", "topic", "input",
"expected"} is run instead, where "expected" is left out if nothing is to be emitted; it exits with 2 if one fails.`,
		Example: `  echo '{"celsius": 31}' | naru rule test --sql "SELECT celsius FROM 'device/+/telemetry' WHERE celsius > 30" --topic device/d-1/telemetry --message -
  naru rule test --cases cases.json`,
		RunE: func(c *cobra.Command, _ []string) error {
			if cases != "" {
				if statement != "" || file != "" || topic != "" {
					return errors.New("--cases has its own statements, topics and messages: give it alone")
				}
				raw, err := readFile(c.InOrStdin(), cases)
				if err != nil {
					return err
				}
				return runCases(o, c, raw)
			}
			if statement == "" || file == "" {
				return errors.New("want --sql and --message (a file, or - for standard input), or --cases")
			}
			s, err := sql.Compile(statement)
			if err != nil {
				return err
			}
			payload, err := readFile(c.InOrStdin(), file)
			if err != nil {
				return err
			}
			r, err := apply(s, &sql.Input{Topic: topic, ClientID: client, Payload: payload, Time: time.Now()})
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), r, func(p *printer) { showRuled(p, r) })
		},
	}
	c.Flags().StringVar(&statement, "sql", "", "the statement")
	c.Flags().StringVar(&topic, "topic", "", "the message's MQTT topic")
	c.Flags().StringVar(&client, "client-id", "", "who published it")
	c.Flags().StringVar(&file, "message", "", "file with the message, or - for standard input")
	c.Flags().StringVar(&cases, "cases", "", "file with a JSON list of cases, or -")
	return c
}

// apply applies a statement, its FROM included.
func apply(s *sql.Statement, in *sql.Input) (ruled, error) {
	if heard, err := fromHears(s.Filter(), in.Topic); err != nil {
		return ruled{}, err
	} else if !heard {
		return ruled{Reason: fmt.Sprintf("FROM '%s' does not hear topic %q", s.Filter(), in.Topic)}, nil
	}
	e := s.Explain(in)
	if e.Error != "" {
		return ruled{}, errors.New(e.Error)
	}
	return ruled{Matched: e.Matched, Output: e.Output, Bytes: e.Bytes, Reason: e.Reason, Explain: &e}, nil
}

// fromHears says whether a topic filter selects a topic. Without one, or without a topic, nothing is to be checked.
func fromHears(filter, topic string) (bool, error) {
	if filter == "" || topic == "" {
		return true, nil
	}
	patterns, err := message.FromFilter(filter)
	if err != nil {
		return false, fmt.Errorf("FROM '%s': %w", filter, err)
	}
	subject, err := message.FromTopic(topic)
	if err != nil {
		return false, fmt.Errorf("--topic: %w", err)
	}
	for _, p := range patterns {
		if p.Matches(subject) {
			return true, nil
		}
	}
	return false, nil
}

func showRuled(p *printer, r ruled) {
	if r.Matched {
		p.line("matched")
	} else {
		p.line("not matched: %s", r.Reason)
	}
	switch {
	case len(r.Output) > 0:
		p.line("%s", indented(r.Output))
	case len(r.Bytes) > 0:
		p.line("(%d bytes, not JSON)", len(r.Bytes))
	}
	if r.Explain == nil {
		return
	}
	p.line("")
	p.row("AT", "EXPRESSION", "VALUE", "")
	for _, clause := range r.Explain.Clauses {
		holds := "holds"
		if !clause.Holds {
			holds = "does not hold"
		}
		p.row("", clause.Name+" "+cut(clause.Text, 60), holds)
		for _, step := range clause.Steps {
			showStep(p, step, 1)
		}
	}
}

// showStep shows an expression, and below it what it was made of.
func showStep(p *printer, s *sql.Step, depth int) {
	value := string(s.Value)
	if value == "" {
		value = s.Type
	}
	p.row(fmt.Sprintf("%d:%d", s.Line, s.Column), strings.Repeat("  ", depth)+cut(s.Text, 60), cut(value, 60), s.Note)
	for _, below := range s.Steps {
		showStep(p, below, depth+1)
	}
}

// ruleCase is one of --cases; Expected is nil where nothing is to be emitted.
type ruleCase struct {
	SQL      string          `json:"sql"`
	Topic    string          `json:"topic"`
	ClientID string          `json:"client_id"`
	Input    json.RawMessage `json:"input"`
	Expected json.RawMessage `json:"expected"`
}

// caseResult is what became of a case.
type caseResult struct {
	Case   int    `json:"case"` // from 1
	Passed bool   `json:"passed"`
	Error  string `json:"error,omitempty"`
	ruled
}

func runCases(o *options, c *cobra.Command, raw []byte) error {
	var list []ruleCase
	if err := json.Unmarshal(raw, &list); err != nil {
		return fmt.Errorf("the cases: %w; want a JSON list of {sql, topic, input, expected}", err)
	}
	out := struct {
		Passed int          `json:"passed"`
		Failed int          `json:"failed"`
		Cases  []caseResult `json:"cases"`
	}{Cases: []caseResult{}}
	for i, k := range list {
		r := caseResult{Case: i + 1}
		s, err := sql.Compile(k.SQL)
		if err == nil {
			r.ruled, err = apply(s, &sql.Input{Topic: k.Topic, ClientID: k.ClientID, Payload: k.Input, Time: time.Now()})
			r.Explain = nil
		}
		switch {
		case err != nil:
			r.Error = err.Error()
		case !same(r.Output, k.Expected):
			r.Error = fmt.Sprintf("emits %s; want %s", orNothing(r.Output), orNothing(k.Expected))
		default:
			r.Passed = true
		}
		if r.Passed {
			out.Passed++
		} else {
			out.Failed++
		}
		out.Cases = append(out.Cases, r)
	}
	err := o.show(c.OutOrStdout(), out, func(p *printer) {
		for _, r := range out.Cases {
			if !r.Passed {
				p.line("case %d: %s", r.Case, r.Error)
				p.line("    %s", strings.TrimSpace(list[r.Case-1].SQL))
			}
		}
		p.line("%d passed, %d failed", out.Passed, out.Failed)
	})
	if err == nil && out.Failed > 0 {
		return errFault
	}
	return err
}

// same compares JSON by value: 1 is 1.0, and the order of names says nothing.
func same(a, b json.RawMessage) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

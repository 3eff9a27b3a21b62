package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	engine "github.com/naru-platform/naru/service_platform/rule"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

func ruleCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "rule", Short: "Rules: the SQL that selects and shapes messages"}
	c.AddCommand(ruleTest(o), ruleList(o), ruleShow(o), ruleAdd(o), ruleImport(o), ruleChange(o, "enable", "Have a rule run"), ruleChange(o, "disable", "Have a rule rest"), ruleRollback(o), ruleHistory(o), ruleDelete(o),
		ruleExplain(o), ruleBacktest(o), ruleShadow(o))
	return c
}

func ruleTest(o *options) *cobra.Command {
	var statement, document, topic, client, file, cases string
	var shadows []string
	c := &cobra.Command{
		Use: "test", Short: "What a rule's SQL makes of a message, and why", Args: cobra.NoArgs,
		Long: `Evaluates a statement of the AWS IoT SQL dialect (2016-03-23) over a message, and shows every step; of a rule in a file (--file) also
what its actions would say, and exits with 2 where the rule fails. No platform needs to run.
The message is taken as its bytes are, JSON or not; what is emitted and is no JSON is shown as a text, or in base64 where it is
no text. A topic may be spelled device/<thing>/twin/… or $aws/things/<thing>/shadow/…, and FROM too.

With --cases, a file with a JSON list of {"sql", "topic", "client_id", "input", "expected", "shadows"} is run instead; it exits
with 2 if one fails. "expected" is left out if nothing is to be emitted; null is the JSON null. Bytes that are no JSON are
"input_base64" and "expected_base64". "shadows" has documents for get_thing_shadow() by "thing" or "thing/name".`,
		Example: `  echo '{"celsius": 31}' | naru rule test --sql "SELECT celsius FROM 'device/+/telemetry' WHERE celsius > 30" --topic device/d-1/telemetry --message -
  naru rule test --sql "SELECT * FROM 'a/#' WHERE get_thing_shadow(topic(2)).state.reported.on" --topic a/lamp --message m.json --shadow lamp=lamp.json
  naru rule test --file hot.yaml --topic device/d-1/telemetry --message m.json
  naru rule test --cases cases.json`,
		RunE: func(c *cobra.Command, _ []string) error {
			if cases != "" {
				if statement != "" || document != "" || file != "" || topic != "" || client != "" || len(shadows) > 0 {
					return errors.New("--cases has its own statements, topics, messages and shadows: give it alone")
				}
				raw, err := readFile(c.InOrStdin(), cases)
				if err != nil {
					return err
				}
				return runCases(o, c, raw)
			}
			if (statement == "") == (document == "") || file == "" {
				return errors.New("want --sql or --file, and --message (a file, or - for standard input), or --cases")
			}
			var s *sql.Statement
			var rule *engine.Rule
			var err error
			if document != "" {
				if rule, err = readRule(c.InOrStdin(), document); err == nil {
					s = rule.Statement()
				}
			} else {
				s, err = sql.Compile(statement)
			}
			if err != nil {
				return err
			}
			payload, err := readFile(c.InOrStdin(), file)
			if err != nil && strings.HasPrefix(strings.TrimSpace(file), "{") {
				return errors.New("--message wants a file, or - for standard input; a message itself is given as `echo '{…}' | naru rule test … --message -`")
			}
			if err != nil {
				return err
			}
			known, err := readShadows(c.InOrStdin(), shadows)
			if err != nil {
				return err
			}
			in := sql.Input{Topic: topic, ClientID: client, Payload: payload, Time: time.Now(), Lookup: known}
			r, err := apply(s, in)
			if err != nil {
				return err
			}
			fails := false
			if rule != nil {
				if r.Matched {
					if in.Topic, _, err = spelled(s.Filter(), topic); err != nil {
						return err
					}
					r.Says = rule.Says(&in)
				}
				fails = r.Error != "" || slices.ContainsFunc(r.Says, func(s engine.Saying) bool { return s.Error != "" })
			}
			return found(o.show(c.OutOrStdout(), r, func(p *printer) { showRuled(p, r) }), fails)
		},
	}
	c.Flags().StringVar(&statement, "sql", "", "the statement")
	c.Flags().StringVarP(&document, "file", "f", "", "file with the rule, in place of --sql")
	c.Flags().StringVar(&topic, "topic", "", "the message's MQTT topic")
	c.Flags().StringVar(&client, "client-id", "", "who published it")
	c.Flags().StringVar(&file, "message", "", "file with the message, or - for standard input")
	c.Flags().StringArrayVar(&shadows, "shadow", nil, "THING=FILE or THING/NAME=FILE: a document for get_thing_shadow(); may be repeated")
	c.Flags().StringVar(&cases, "cases", "", "file with a JSON list of cases, or -")
	return c
}

func showRuled(p *printer, r ruled) {
	switch {
	case r.Error != "":
		p.line("not matched: the rule would fail: %s", r.Error)
	case r.Matched:
		p.line("matched")
	default:
		p.line("not matched: %s", r.Reason)
	}
	switch {
	case r.Bytes != nil:
		p.line("(%d bytes, not JSON)", len(r.Bytes))
	case len(r.Output) > 0:
		p.line("%s", indented(r.Output))
	}
	if r.Explain == nil {
		return
	}
	p.line("")
	showExplanation(p, r.Explain)
	showSays(p, r.Says)
}

// readRule reads a rule from a file, and compiles it.
func readRule(in io.Reader, file string) (*engine.Rule, error) {
	raw, err := readFile(in, file)
	if err != nil {
		return nil, err
	}
	d, err := engine.Parse(raw)
	if err != nil {
		return nil, err
	}
	d.Name = cmp.Or(d.Name, "unnamed") // it is only tried
	return engine.Compile(d, 1, "here")
}

// showSays shows what actions say, or why they cannot.
func showSays(p *printer, says []engine.Saying) {
	if len(says) == 0 {
		return
	}
	p.line("")
	p.columns("", "ACTION", "KIND", "SAYS ON")
	for _, s := range says {
		what := s.Topic
		if s.Error != "" {
			what = "cannot: " + s.Error
		}
		p.row(fmt.Sprint(s.Action), s.Kind, what)
	}
}

// showExplanation shows each clause, whether it holds, and below it each expression with its value.
func showExplanation(p *printer, x *sql.Explanation) {
	p.columns("", "AT", "EXPRESSION", "VALUE", "")
	for _, clause := range x.Clauses {
		holds := "holds"
		if !clause.Holds {
			holds = "does not hold"
		}
		p.row("", clause.Name+" "+cut(clause.Text, 60), holds)
		for _, step := range clause.Steps {
			showStep(p, step, 1)
		}
	}
	if x.Cut {
		p.line("there were more steps than are shown")
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

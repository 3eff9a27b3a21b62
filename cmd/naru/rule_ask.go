package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/operator/journal"
	engine "github.com/naru-platform/naru/service_platform/rule"
)

// explainedRule is what a rule makes of a recorded message, and what it made of it in fact.
type explainedRule struct {
	engine.Explained
	// Fate is what became of the message at the rule engine, by the journal.
	Fate *journal.Fate `json:"fate,omitempty"`
	// Said is what the rule said of the message in fact, by the journal.
	Said []saidByRule `json:"said,omitempty"`
	// Fault says what is not well, where something is.
	Fault string `json:"fault,omitempty"`
}

// saidByRule is a message that a rule said.
type saidByRule struct {
	ID      message.ID `json:"id"`
	Topic   string     `json:"topic"`
	Version string     `json:"version"`
	Outcome string     `json:"outcome"`
	Data    string     `json:"data,omitempty"`
}

func ruleExplain(o *options) *cobra.Command {
	var id string
	var version int
	c := &cobra.Command{
		Use: "explain RULE", Short: "Why a rule took a recorded message or not", Args: cobra.ExactArgs(1),
		Long: `Takes a message from the log and the version of the rule that was in force when it was accepted, and shows what each clause
makes of it, what the actions say, and, by the journal, what the rule said in fact. With --version it takes that version. It
exits with 2 when something is not well: SQL or an action fails, the message died at the rules, or another version said it.`,
		Example: "  naru rule explain hot --message 0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e\n  naru rule explain hot --message 0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e --version 3",
		RunE: func(c *cobra.Command, args []string) error {
			_, err := message.ParseID(id)
			trace, noTrace := message.ParseTraceID(id)
			if err != nil && noTrace != nil {
				return fmt.Errorf("--message %q: it is neither a message's id, such as 0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e, nor a trace's", id)
			}
			cl, noClient := o.client()
			if noClient != nil {
				return noClient
			}
			if err != nil {
				if id, err = heardOfTrace(c, cl, args[0], trace); err != nil {
					return err
				}
			}
			x, err := explainRule(c, cl, args[0], id, version)
			if err != nil {
				return err
			}
			return found(o.show(c.OutOrStdout(), x, func(p *printer) { showExplained(p, x) }), x.Fault != "")
		},
	}
	c.Flags().StringVar(&id, "message", "", "the message's id, as naru trace shows it; or its trace, where the rule hears one message of that")
	c.Flags().IntVar(&version, "version", 0, "that version; without it the one that was in force then")
	_ = c.MarkFlagRequired("message")
	return c
}

// heardOfTrace gives the one message of a trace that a rule's FROM hears.
func heardOfTrace(c *cobra.Command, cl *client, rule string, trace message.TraceID) (string, error) {
	var r engine.Shown
	if err := cl.get(c.Context(), rulePath(rule, ""), nil, &r); err != nil {
		return "", err
	}
	var v journal.TraceView
	if err := cl.get(c.Context(), "/api/v1/traces/"+trace.String(), nil, &v); err != nil {
		return "", err
	}
	var ids []string
	for _, l := range v.Messages {
		if _, heard, err := spelled(hears(&r), l.Topic); err == nil && heard {
			ids = append(ids, l.ID.String())
		}
	}
	switch len(ids) {
	case 1:
		return ids[0], nil
	case 0:
		return "", fmt.Errorf("rule %s hears %s, and no message of trace %s is that; `naru trace %s` shows them", rule, hears(&r), trace, trace)
	}
	return "", fmt.Errorf("rule %s hears %d messages of trace %s; --message takes one of them: %s", rule, len(ids), trace, strings.Join(ids, ", "))
}

// explainRule asks the journal where the message is and what followed from it, and the rule engine what it makes of it. Where
// the journal has forgotten the message, the rule engine looks for it alone.
func explainRule(c *cobra.Command, cl *client, rule, id string, version int) (*explainedRule, error) {
	x := &explainedRule{}
	q := url.Values{"message": {id}}
	var l journal.Line
	var trace journal.TraceView
	if err := cl.get(c.Context(), "/api/v1/messages/"+id, nil, &l); err == nil {
		q.Set("log", l.Log)
		q.Set("generation", fmt.Sprint(l.Position.Generation))
		q.Set("partition", fmt.Sprint(l.Position.Partition))
		q.Set("sequence", fmt.Sprint(l.Position.Sequence))
		for i := range l.Fates {
			if l.Fates[i].Consumer == engine.Name {
				x.Fate = &l.Fates[i]
			}
		}
		_ = cl.get(c.Context(), "/api/v1/traces/"+l.Trace.String(), nil, &trace) // what followed is told where it is known
	}
	failed := ""
	for _, t := range trace.Messages {
		name, v, ok := engine.RuleOf(t.Source)
		if !ok || name != rule || t.Cause.String() != id {
			continue
		}
		x.Said = append(x.Said, saidByRule{t.ID, t.Topic, v, t.Outcome, t.Data})
		if strings.HasSuffix(string(t.Subject), ".failed") {
			failed = t.Data
		}
		if n, err := strconv.Atoi(v); err == nil && version == 0 {
			version = n // what was said tells which version it was
		}
	}
	if version > 0 {
		q.Set("version", strconv.Itoa(version))
	}
	if err := cl.get(c.Context(), rulePath(rule, "/explain"), q, &x.Explained); err != nil {
		return nil, err
	}
	x.Fault = x.fault(failed)
	return x, nil
}

// fault says what is not well, the first of it.
func (x *explainedRule) fault(failed string) string {
	switch {
	case x.Fate != nil && x.Fate.Outcome == journal.OutcomeDead:
		return fmt.Sprintf("the message died at the rules: %s: %s", x.Fate.Reason, x.Fate.Detail)
	case x.Error != "":
		return "the SQL fails: " + x.Error
	case failed != "":
		return "the rule told that it failed on it: " + failed
	}
	for _, s := range x.Says {
		if s.Error != "" {
			return fmt.Sprintf("action %d (%s) fails: %s", s.Action, s.Kind, s.Error)
		}
	}
	return ""
}

func showExplained(p *printer, x *explainedRule) {
	p.line("message %s of %s, %s", x.Message, x.Recorded.Local().Format("2006-01-02 15:04:05.000"), x.Topic)
	p.line("rule %s@%d%s", x.Rule, x.Version, inForce(x))
	switch {
	case x.Error != "":
		p.line("not taken: the SQL fails: %s", x.Error)
	case x.Matched:
		p.line("taken")
	default:
		p.line("not taken: %s", x.Reason)
	}
	p.line("")
	showExplanation(p, &x.Explain)
	showSays(p, x.Says)
	p.line("")
	if x.Fate != nil {
		fateRows(p, []journal.Fate{*x.Fate})
	}
	for _, s := range x.Said {
		p.line("in fact said on %s by version %s: %s (message %s, %s)", s.Topic, s.Version, cut(s.Data, 80), s.ID, s.Outcome)
	}
	if x.Fault != "" {
		p.line("fault: %s", x.Fault)
	}
}

func inForce(x *explainedRule) string {
	f := x.InForce
	switch {
	case f.Forgotten:
		return "; which version was in force then is forgotten"
	case f.Version == 0:
		return "; there was no such rule then"
	case !f.Enabled:
		return fmt.Sprintf("; disabled then, since %s, by %s", f.Since.Local().Format(time.RFC3339), f.By)
	case f.Version != x.Version:
		return fmt.Sprintf("; version %d was in force then", f.Version)
	}
	return fmt.Sprintf(", in force since %s, by %s", f.Since.Local().Format(time.RFC3339), f.By)
}

func ruleBacktest(o *options) *cobra.Command {
	var since, until, statement, file, lasts string
	var version, limit, rate int
	c := &cobra.Command{
		Use: "backtest RULE", Short: "What a version of a rule would have made of recorded messages", Args: cobra.ExactArgs(1),
		Long: `Runs a version of a rule over the messages that are in the logs, and compares it with the one that runs: how many it would
have taken, what would have changed, with examples. Nothing is said. The version is that of --sql (with the actions of the one
that runs), of --file, or one that is kept (--version); without them the one in shadow mode, or the one that runs. It reads at a
pace that takes nothing from who is at work; where it ends before the end, it says so. It exits with 2 when the version fails
on messages on which the running one does not.`,
		Example: `  naru rule backtest hot --since 24h --sql "SELECT * FROM 'device/+/telemetry' WHERE celsius > 40"
  naru rule backtest hot --since 2h --file hot.yaml -o json`,
		RunE: func(c *cobra.Command, args []string) error {
			body, err := tried(c, statement, file, version)
			if err != nil {
				return err
			}
			q := values("since", inHours(since), "until", inHours(until), "for", inHours(lasts))
			for name, n := range map[string]int{"version": version, "limit": limit, "rate": rate} {
				if n != 0 {
					q.Set(name, strconv.Itoa(n))
				}
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			b, err := backtest(o, c, cl, args[0], q, body)
			if err != nil {
				return err
			}
			return found(o.show(c.OutOrStdout(), b, func(p *printer) { showBacktest(p, b) }), b.Differences[engine.NewlyFailing] > 0)
		},
	}
	f := c.Flags()
	f.StringVar(&since, "since", "24h", "from this time on: 24h, or 2026-11-23T03:00:00Z")
	f.StringVar(&until, "until", "", "up to this time; now where it is missing")
	f.StringVar(&statement, "sql", "", "the statement to try")
	f.StringVarP(&file, "file", "f", "", "file with the rule to try, or - for standard input")
	f.IntVar(&version, "version", 0, "a version that is kept")
	f.IntVar(&limit, "limit", 0, "how many messages to read at most (1000000)")
	f.IntVar(&rate, "rate", 0, "how many messages to read in a second (backtest_rate of the rules, 20000)")
	f.StringVar(&lasts, "for", "", "how long it may take (5m)")
	return c
}

// tried reads what is to be tried; nothing where it is a version that is kept.
func tried(c *cobra.Command, statement, file string, version int) ([]byte, error) {
	given := 0
	for _, is := range []bool{statement != "", file != "", version != 0} {
		if is {
			given++
		}
	}
	switch {
	case given > 1:
		return nil, errors.New("--sql, --file and --version: want one of them")
	case statement != "":
		return json.Marshal(map[string]string{"sql": statement})
	case file != "":
		return readFile(c.InOrStdin(), file)
	}
	return nil, nil
}

// backtest asks, and tells on standard error how it goes on.
func backtest(o *options, c *cobra.Command, cl *client, rule string, q url.Values, body []byte) (*engine.Backtest, error) {
	var in any
	if body != nil {
		in = body
	}
	answer, err := cl.open(c.Context(), http.MethodPost, rulePath(rule, "/backtest"), q, in)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	lines := bufio.NewScanner(answer)
	lines.Buffer(nil, 4<<20)
	told := false
	for lines.Scan() {
		var line struct {
			Progress, Result *engine.Backtest
			Error            string
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("read how the backtest goes: %w", err)
		}
		switch {
		case line.Error != "":
			return nil, errors.New(line.Error)
		case line.Result != nil:
			return line.Result, nil
		case line.Progress != nil && !o.json():
			told = true
			fmt.Fprintf(c.ErrOrStderr(), "%d messages read, up to %s; %d would match\n", line.Progress.Read, line.Progress.Upto.Local().Format(time.RFC3339), line.Progress.Matched)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if told {
		return nil, errors.New("the platform ended the backtest; it may have been stopped")
	}
	return nil, errors.New("the platform gives no result of the backtest; it may have been stopped")
}

func showBacktest(p *printer, b *engine.Backtest) {
	which := "the new version"
	if b.Version > 0 {
		which = fmt.Sprintf("version %d", b.Version)
	}
	p.line("%s of %s on messages from %s to %s", which, b.Rule, b.Since.Local().Format(time.RFC3339), b.Until.Local().Format(time.RFC3339))
	p.line("%d messages read in %s, %d heard: it would have taken %d, and failed on %d", b.Read, short(b.Took), b.Heard, b.Matched, b.Failed)
	if b.Against > 0 {
		p.line("version %d, which runs, takes %d of them, and fails on %d; %d are the same", b.Against, b.MatchedBefore, b.FailedBefore, b.Same)
	} else {
		p.line("no other version runs: all that it takes is shown as newly matched")
	}
	showDifferences(p, b.Differences, b.Examples)
	if b.Unreadable > 0 {
		p.line("%d batches cannot be read", b.Unreadable)
	}
	if b.Stopped != "" {
		p.line("it ended before the end, at %s: %s", b.Upto.Local().Format(time.RFC3339), b.Stopped)
	}
	p.line("nothing was said; what would have followed from it is not known")
}

// showDifferences shows how many messages differ in which way, and some of them.
func showDifferences(p *printer, n map[string]uint64, examples []engine.Difference) {
	for _, what := range engine.Differences() {
		if n[what] == 0 {
			continue
		}
		p.line("")
		p.line("%s: %d", strings.ReplaceAll(what, "_", " "), n[what])
		for _, x := range examples {
			if x.Difference == what {
				p.line("  %s  %s  %s", x.Message, x.Topic, cut(x.Data, 100))
				p.line("    before: %s", verdictLine(x.Before))
				p.line("    after:  %s", verdictLine(x.After))
			}
		}
	}
}

// verdictLine is a verdict in a line.
func verdictLine(v *engine.Verdict) string {
	switch {
	case v == nil || !v.Heard:
		return "not heard"
	case v.Error != "":
		return "fails: " + cut(v.Error, 160)
	case !v.Matched:
		return "not taken: " + cut(v.Reason, 160)
	}
	var to []string
	for _, s := range v.Says {
		if s.Error != "" {
			to = append(to, fmt.Sprintf("%s cannot: %s", s.Kind, cut(s.Error, 100)))
		} else {
			to = append(to, s.Kind+" "+s.Topic)
		}
	}
	return fmt.Sprintf("%s -> %s", cut(v.Output, 100), strings.Join(to, ", "))
}

package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	engine "github.com/naru-platform/naru/service_platform/rule"
	"github.com/naru-platform/naru/service_platform/rule/sql"
)

func rulePath(name, rest string) string { return "/api/v1/rules/" + url.PathEscape(name) + rest }

func ruleList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "The rules, and what they did", Args: cobra.NoArgs,
		Long: `Lists the rules with what the process that answers has counted since it started: messages that a rule took, those that its WHERE
left, and those that it failed on, with the last of these. Exits with 2 when a rule cannot run, or failed on the last message that it took.`,
		Example: "  naru rule list\n  naru rule list -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var got struct {
				Rules []engine.Shown `json:"rules"`
			}
			if err := cl.get(c.Context(), "/api/v1/rules", nil, &got); err != nil {
				return err
			}
			bad := false
			err = o.show(c.OutOrStdout(), got.Rules, func(p *printer) {
				p.columns("No rules; `naru rule add FILE` brings one in force.", "RULE", "VERSION", "ENABLED", "MATCHED", "NOT MATCHED", "FAILED", "FROM")
				for _, r := range got.Rules {
					p.row(r.Name, fmt.Sprint(r.Version), yes(r.Enabled), num(r.Counts.Matched), num(r.Counts.Passed), num(r.Counts.Failed), cut(hears(&r), 60))
				}
				for _, r := range got.Rules {
					if r.Counts.Last != nil {
						showFailure(p, &r)
					}
					if r.Fault != "" {
						p.line("%s does not run as it is: %s", r.Name, r.Fault)
					}
				}
			})
			for _, r := range got.Rules {
				bad = bad || r.Fault != "" || r.Enabled && r.Counts.FailedInRow > 0
			}
			return found(err, bad)
		},
	}
}

// hears is where a rule hears messages, as it is written there.
func hears(r *engine.Shown) string {
	if r.Document == nil {
		return ""
	}
	s, err := sql.Compile(r.Document.SQL)
	if err != nil {
		return ""
	}
	if s.Filter() == "" {
		return "$aws/rules/" + r.Name + "/#"
	}
	return s.Filter()
}

// failing says how often a rule failed, and how lately.
func failing(c *engine.Counts, now time.Time) string {
	switch {
	case c.FailedInRow == 1:
		return fmt.Sprintf("failed on the last message that it took, %s", ago(c.Last.At, now))
	case c.FailedInRow > 1:
		return fmt.Sprintf("failed on the last %d messages that it took, the last time %s", c.FailedInRow, ago(c.Last.At, now))
	}
	return fmt.Sprintf("failed on %s, the last time %s", count(int64(c.Failed), "message"), ago(c.Last.At, now))
}

// showFailure tells of a rule's last failure, and how to see what the rule made of that message.
func showFailure(p *printer, r *engine.Shown) {
	f := r.Counts.Last
	next := fmt.Sprintf("naru rule explain %s --message %s", r.Name, f.Message)
	if f.Kind == "http" { // the message that is named tells of the answer; what led to it is in the trace
		next = "naru trace " + f.Trace.String()
	}
	p.words("", fmt.Sprintf("%s %s: %s: %s", r.Name, failing(&r.Counts, time.Now()), f.Kind, f.Error))
	p.line("  -> %s", next)
}

func ruleShow(o *options) *cobra.Command {
	var version int
	c := &cobra.Command{
		Use: "show RULE", Short: "A rule, now or at a version", Args: cobra.ExactArgs(1),
		Example: "  naru rule show hot\n  naru rule show hot --version 3",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := url.Values{}
			if version > 0 {
				q.Set("version", strconv.Itoa(version))
			}
			var s engine.Shown
			if err := cl.get(c.Context(), rulePath(args[0], ""), q, &s); err != nil {
				return err
			}
			return showRule(o, c, &s)
		},
	}
	c.Flags().IntVar(&version, "version", 0, "as it was at that version")
	return c
}

func showRule(o *options, c *cobra.Command, s *engine.Shown) error {
	return o.show(c.OutOrStdout(), s, func(p *printer) {
		state := "enabled"
		switch {
		case s.Deleted:
			state = "deleted"
		case !s.Enabled:
			state = "disabled"
		}
		p.line("%s  version %d, %s", s.Name, s.Version, state)
		if s.File != "" {
			p.line("from file %s", s.File)
		}
		if raw, err := json.Marshal(s.Document); err == nil && s.Document != nil {
			p.line("%s", indented(raw))
		}
		p.line("matched %d, not matched %d, failed %d", s.Counts.Matched, s.Counts.Passed, s.Counts.Failed)
		if s.Counts.Last != nil {
			showFailure(p, s)
		}
		if s.Trial != nil {
			showTrial(p, s.Trial)
		}
		for _, w := range s.Warnings {
			p.line("warning: %s", w)
		}
		if s.Fault != "" {
			p.line("it does not run as it is: %s", s.Fault)
		}
	})
}

func ruleAdd(o *options) *cobra.Command {
	var why string
	c := &cobra.Command{
		Use: "add FILE", Short: "Add a rule, or a new version of one", Args: cobra.ExactArgs(1),
		Long: `Reads a rule, YAML or JSON, with name, sql, actions and error_action, and has it run. Where there is a rule of that name
it is a new version, and 'naru rule rollback' brings the one before back. A rule that does not compile is refused with the place.`,
		Example: "  naru rule add hot.yaml\n  naru rule add - --why 'the summer' <hot.yaml",
		RunE: func(c *cobra.Command, args []string) error {
			raw, err := readFile(c.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			d, err := engine.Parse(raw)
			if err != nil {
				return err
			}
			if d.Name == "" {
				return fmt.Errorf("the rule in %s has no name", args[0])
			}
			return putRule(o, c, "PUT", rulePath(d.Name, ""), why, raw)
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	return c
}

// putRule asks for a change, and shows what the rule is then.
func putRule(o *options, c *cobra.Command, method, path, why string, body any) error {
	cl, err := o.client()
	if err != nil {
		return err
	}
	q := url.Values{"by": {me()}}
	if why != "" {
		q.Set("why", why)
	}
	return askRule(o, c, cl, method, path, q, body)
}

func askRule(o *options, c *cobra.Command, cl *client, method, path string, q url.Values, body any) error {
	var s engine.Shown
	if err := cl.do(c.Context(), method, path, q, body, &s); err != nil {
		return err
	}
	return showRule(o, c, &s)
}

func ruleChange(o *options, verb, short string) *cobra.Command {
	var why string
	c := &cobra.Command{
		Use: verb + " RULE", Short: short, Args: cobra.ExactArgs(1), Example: "  naru rule " + verb + " hot --why 'the lab is closed'",
		RunE: func(c *cobra.Command, args []string) error {
			return putRule(o, c, "POST", rulePath(args[0], "/"+verb), why, nil)
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	return c
}

func ruleRollback(o *options) *cobra.Command {
	var why string
	var version int
	c := &cobra.Command{
		Use: "rollback RULE", Short: "Bring a rule's former version back", Args: cobra.ExactArgs(1),
		Example: "  naru rule rollback hot\n  naru rule rollback hot --version 3",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := url.Values{"by": {me()}}
			if why != "" {
				q.Set("why", why)
			}
			if version > 0 {
				q.Set("version", strconv.Itoa(version))
			}
			return askRule(o, c, cl, "POST", rulePath(args[0], "/rollback"), q, nil)
		},
	}
	c.Flags().IntVar(&version, "version", 0, "that one; without it the one before")
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	return c
}

func ruleDelete(o *options) *cobra.Command {
	var why string
	c := &cobra.Command{
		Use: "delete RULE", Short: "Delete a rule; its history stays", Args: cobra.ExactArgs(1), Example: "  naru rule delete hot",
		RunE: func(c *cobra.Command, args []string) error {
			return putRule(o, c, "DELETE", rulePath(args[0], ""), why, nil)
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	return c
}

func ruleHistory(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "history RULE", Short: "Who changed a rule, when and why", Args: cobra.ExactArgs(1), Example: "  naru rule history hot",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var h engine.Head
			if err := cl.get(c.Context(), rulePath(args[0], "/history"), nil, &h); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), h, func(p *printer) {
				p.columns("", "AT", "BY", "CHANGE", "VERSION", "WHY")
				for _, x := range h.Changes {
					p.row(x.At.Format(time.RFC3339), x.By, x.Change, fmt.Sprint(x.Version), x.Why)
				}
			})
		},
	}
}

package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	engine "github.com/naru-platform/naru/service_platform/rule"
)

func rulePath(name, rest string) string { return "/api/v1/rules/" + url.PathEscape(name) + rest }

func ruleList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "The rules, and what they did", Args: cobra.NoArgs,
		Long:    "Lists the rules with what the process that answers has counted since it started. Exits with 2 when one cannot run.",
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
				p.columns("No rules; `naru rule add FILE` brings one in force.", "RULE", "VERSION", "ENABLED", "MATCHED", "PASSED", "FAILED", "SQL")
				for _, r := range got.Rules {
					text := ""
					if r.Document != nil {
						text = r.Document.SQL
					}
					p.row(r.Name, fmt.Sprint(r.Version), yes(r.Enabled), num(r.Counts.Matched), num(r.Counts.Passed), num(r.Counts.Failed), text)
				}
				for _, r := range got.Rules {
					if r.Fault != "" {
						p.line("%s does not run as it is: %s", r.Name, r.Fault)
					}
				}
			})
			for _, r := range got.Rules {
				bad = bad || r.Fault != ""
			}
			return found(err, bad)
		},
	}
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
		p.line("matched %d, passed %d, failed %d", s.Counts.Matched, s.Counts.Passed, s.Counts.Failed)
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

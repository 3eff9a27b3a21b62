package main

import (
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	engine "github.com/naru-platform/naru/service_platform/rule"
)

func ruleShadow(o *options) *cobra.Command {
	c := &cobra.Command{
		Use: "shadow", Short: "Shadow mode: a version runs live, says nothing, and is compared with the one that runs",
		Long: `A version in shadow mode judges each message that comes, beside the version that runs. What they differ in is counted, with
examples: 'naru rule show'. It says nothing. A rule that is new can begin so.`,
	}
	c.AddCommand(ruleShadowStart(o), ruleShadowPromote(o), ruleShadowStop(o))
	return c
}

func ruleShadowStart(o *options) *cobra.Command {
	var why string
	var version int
	c := &cobra.Command{
		Use: "start FILE | start RULE --version N", Short: "Put a version into shadow mode", Args: cobra.ExactArgs(1),
		Long: `Reads a rule, YAML or JSON, as 'naru rule add' does, and has it run in shadow mode; or takes a version that is kept. There is
one for each rule: another one takes its place, and is counted anew.`,
		Example: "  naru rule shadow start hot.yaml --why 'lower limit for the summer'\n  naru rule shadow start hot --version 3",
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
				return askRule(o, c, cl, "PUT", rulePath(args[0], "/shadow"), q, nil)
			}
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
			return askRule(o, c, cl, "PUT", rulePath(d.Name, "/shadow"), q, raw)
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	c.Flags().IntVar(&version, "version", 0, "a version that is kept, instead of a file")
	return c
}

func ruleShadowPromote(o *options) *cobra.Command {
	var why string
	c := &cobra.Command{
		Use: "promote RULE", Short: "Have the version in shadow mode run", Args: cobra.ExactArgs(1), Example: "  naru rule shadow promote hot",
		RunE: func(c *cobra.Command, args []string) error {
			return putRule(o, c, "POST", rulePath(args[0], "/shadow/promote"), why, nil)
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	return c
}

func ruleShadowStop(o *options) *cobra.Command {
	var why string
	c := &cobra.Command{
		Use: "stop RULE", Short: "End the shadow mode of a rule's version; the version is kept", Args: cobra.ExactArgs(1), Example: "  naru rule shadow stop hot",
		RunE: func(c *cobra.Command, args []string) error {
			return putRule(o, c, "DELETE", rulePath(args[0], "/shadow"), why, nil)
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	return c
}

// showTrial shows how a version in shadow mode does.
func showTrial(p *printer, s *engine.ShownTrial) {
	p.line("")
	p.line("version %d is in shadow mode since %s, by %s%s", s.Version, s.At.Local().Format(time.RFC3339), s.By, reasonGiven(s.Why))
	if s.Fault != "" {
		p.line("it does not run: %s", s.Fault)
		return
	}
	t := s.Tally
	beside := fmt.Sprintf("beside version %d", t.Against)
	if t.Against == 0 {
		beside = "with no version running"
	}
	p.line("%s: %d messages heard, it takes %d (the other %d), fails on %d; %d are the same", beside, t.Heard, t.Matched, t.Before, t.Failed, t.Same)
	if t.Skipped > 0 {
		p.line("%d were not compared, since a twin that is asked for was not known yet", t.Skipped)
	}
	showDifferences(p, t.Differences, t.Examples)
}

func reasonGiven(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

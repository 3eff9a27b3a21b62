package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/service_platform/webhook"
)

func destinationCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "destination", Short: "HTTP servers elsewhere that rules send to"}
	c.AddCommand(destinationList(o), destinationShow(o), destinationAdd(o), destinationTurn(o, "pause", "Have a destination's messages wait"),
		destinationTurn(o, "resume", "Have a destination take messages again"), destinationDelete(o))
	return c
}

func destinationPath(name, rest string) string {
	return "/api/v1/destinations/" + url.PathEscape(name) + rest
}

func destinationList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "The destinations, and how they are", Args: cobra.NoArgs,
		Long:    "Lists the destinations with what waits for them. Exits with 2 when one does not take its messages.",
		Example: "  naru destination list\n  naru destination list -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var got struct{ Destinations []webhook.Shown }
			if err := cl.get(c.Context(), "/api/v1/destinations", nil, &got); err != nil {
				return err
			}
			bad := false
			err = o.show(c.OutOrStdout(), got.Destinations, func(p *printer) {
				p.columns("No destinations; `naru destination add NAME --url URL` registers one.", "DESTINATION", "STATE", "SENT", "WAITING", "DEAD", "URL")
				for i := range got.Destinations {
					d := &got.Destinations[i]
					p.row(d.Name, destinationState(d), num(d.Sent), num(d.Waiting), num(d.Dead), d.URL)
				}
				for _, d := range got.Destinations {
					if d.Fault != "" {
						p.line("%s: %s", d.Name, d.Fault)
					}
				}
			})
			for _, d := range got.Destinations {
				bad = bad || d.Fault != ""
			}
			return found(err, bad)
		},
	}
}

func destinationState(d *webhook.Shown) string {
	switch {
	case d.Paused:
		return "paused"
	case d.Breaker != "closed":
		return "breaker " + d.Breaker
	case d.Fault != "":
		return "failing"
	}
	return "well"
}

func destinationShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "show DESTINATION", Short: "A destination, and who changed it", Args: cobra.ExactArgs(1), Example: "  naru destination show pager",
		RunE: func(c *cobra.Command, args []string) error {
			return askDestination(o, c, "GET", destinationPath(args[0], ""), nil, nil)
		},
	}
}

// askDestination asks, and shows what the destination is then.
func askDestination(o *options, c *cobra.Command, method, path string, q url.Values, body any) error {
	cl, err := o.client()
	if err != nil {
		return err
	}
	var d webhook.Shown
	if err := cl.do(c.Context(), method, path, q, body, &d); err != nil {
		return err
	}
	return o.show(c.OutOrStdout(), d, func(p *printer) {
		p.line("%s  %s, %s", d.Name, destinationState(&d), d.URL)
		if raw, err := json.Marshal(d.Settings); err == nil {
			p.line("%s", indented(raw))
		}
		p.line("sent %d, waiting %d, dead %d", d.Sent, d.Waiting, d.Dead)
		if d.Fault != "" {
			p.line("last fault, %s: %s", d.FaultAt.Format(time.RFC3339), d.Fault)
		}
		p.columns("", "AT", "BY", "CHANGE", "WHY")
		for _, x := range d.Changes {
			p.row(x.At.Format(time.RFC3339), x.By, x.Change, x.Why)
		}
	})
}

func destinationAdd(o *options) *cobra.Command {
	var s webhook.Settings
	var why string
	var plain, files, envs []string
	c := &cobra.Command{
		Use: "add NAME --url URL", Short: "Register a destination, or change one", Args: cobra.ExactArgs(1),
		Long: `Registers an HTTP server elsewhere under a name, by which rules send to it (action http). Where there is one of that name it is
changed to what is said here. Secrets are never given here: --header-file names a file in secrets_dir of service_platform.webhook,
--header-env a variable of the platform's environment, which begins with NARU_SECRET_; what stands before the last space is put before it.`,
		Example: `  naru destination add pager --url https://pager.example/hook --header 'X-Team: ops' --header-env 'Authorization: Bearer NARU_SECRET_PAGER'
  naru destination add billing --url https://billing.example/events --mode structured --calls 2 --header-file 'X-Api-Key: billing.key'`,
		RunE: func(c *cobra.Command, args []string) error {
			for _, x := range []struct {
				list []string
				add  func(name, rest string) webhook.Header
			}{
				{plain, func(n, v string) webhook.Header { return webhook.Header{Name: n, Value: v} }},
				{files, func(n, v string) webhook.Header {
					prefix, last := lastWord(v)
					return webhook.Header{Name: n, Prefix: prefix, File: last}
				}},
				{envs, func(n, v string) webhook.Header {
					prefix, last := lastWord(v)
					return webhook.Header{Name: n, Prefix: prefix, Env: last}
				}},
			} {
				for _, h := range x.list {
					name, rest, ok := strings.Cut(h, ":")
					if !ok {
						return fmt.Errorf("header %q: want 'Name: …'", name)
					}
					s.Headers = append(s.Headers, x.add(strings.TrimSpace(name), strings.TrimSpace(rest)))
				}
			}
			if err := s.Valid(); err != nil {
				return err
			}
			return askDestination(o, c, "PUT", destinationPath(args[0], ""), changedBy(why), s)
		},
	}
	f := c.Flags()
	f.StringVar(&s.URL, "url", "", "where its messages go; a rule's path is below it")
	f.StringVar(&s.Description, "description", "", "one sentence")
	f.StringVar(&s.Mode, "mode", "", "how events are written: binary (default) or structured")
	f.StringVar(&s.Timeout, "timeout", "", "for one call (default 10s)")
	f.IntVar(&s.Calls, "calls", 0, "how many are made at once (default 8)")
	f.IntVar(&s.Attempts, "attempts", 0, "after how many a message is dead (default 12)")
	f.StringVar(&s.GiveUpAfter, "give-up-after", "", "for how long a message is tried that cannot be sent at all, which counts as no attempt (default 1h)")
	f.StringArrayVar(&plain, "header", nil, "'Name: value', sent with each request; may be repeated")
	f.StringArrayVar(&files, "header-file", nil, "'Name: [prefix ]file', its value from a file")
	f.StringArrayVar(&envs, "header-env", nil, "'Name: [prefix ]NARU_SECRET_…', its value from the environment")
	f.StringVar(&why, "why", "", "why, for the record")
	return c
}

// lastWord cuts a text before its last word.
func lastWord(s string) (before, last string) {
	i := strings.LastIndexByte(s, ' ')
	return s[:i+1], s[i+1:]
}

func changedBy(why string) url.Values {
	q := url.Values{"by": {me()}}
	if why != "" {
		q.Set("why", why)
	}
	return q
}

func destinationTurn(o *options, verb, short string) *cobra.Command {
	var why string
	c := &cobra.Command{
		Use: verb + " DESTINATION", Short: short, Args: cobra.ExactArgs(1), Example: "  naru destination " + verb + " pager --why 'they move house'",
		RunE: func(c *cobra.Command, args []string) error {
			return askDestination(o, c, "POST", destinationPath(args[0], "/"+verb), changedBy(why), nil)
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	return c
}

func destinationDelete(o *options) *cobra.Command {
	var why string
	var force bool
	c := &cobra.Command{
		Use: "delete DESTINATION", Short: "Forget a destination", Args: cobra.ExactArgs(1), Example: "  naru destination delete pager\n  naru destination delete pager --force",
		Long: "Forgets a destination with its account. What rules send there from then on is dead. While messages wait for it, it is refused without --force.",
		RunE: func(c *cobra.Command, args []string) error {
			q := changedBy(why)
			if force {
				q.Set("force", "true")
			}
			return askDestination(o, c, "DELETE", destinationPath(args[0], ""), q, nil)
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	c.Flags().BoolVar(&force, "force", false, "with the messages that wait for it")
	return c
}

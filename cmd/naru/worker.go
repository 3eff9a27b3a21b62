package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/worker"
)

func workerCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use: "worker", Short: "Code of yours that handles messages: who does it, how far it is, what fails",
		Long: `A worker is code that is not naru's: a service that is called by HTTP with CloudEvents, or processes that connect with the
SDK. It hears what rules and others give to it, and patterns of its own; each has its own position, retries and dead letters.`,
	}
	c.AddCommand(workerList(o), workerShow(o), workerAdd(o), workerTurn(o, "pause", "Stop giving messages to a worker; they wait"),
		workerTurn(o, "resume", "Give messages to a paused worker again"), workerMove(o), workerRemove(o))
	return c
}

func workerPath(name, rest string) string { return "/api/v1/workers/" + url.PathEscape(name) + rest }

// workerFaults are the states of a worker that somebody should look at.
var workerFaults = []string{"failed", "away", "breaker_open", "stuck_retrying", "no_instances"}

func workerList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "The workers, and how they are", Args: cobra.NoArgs,
		Long:    "Lists the workers with how far they are behind. Exits with 2 when one fails, is stuck, or has nobody who does its work.",
		Example: "  naru worker list\n  naru worker list -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var got struct {
				Workers []worker.Shown `json:"workers"`
			}
			if err := cl.get(c.Context(), "/api/v1/workers", nil, &got); err != nil {
				return err
			}
			err = o.show(c.OutOrStdout(), got.Workers, func(p *printer) {
				p.columns("No workers; `naru worker add NAME` adds one, with --url for one that is called by HTTP.", "WORKER", "KIND", "STATE", "INSTANCES", "LAG", "BEHIND BY", "PARKED", "RETRYING", "DIED", "P99", "ERRORS")
				for _, w := range got.Workers {
					instances, p99, failed := "", "", ""
					if w.Run != nil {
						p99, failed = took(w.Run.P99), errorsOf(w.Run)
						if w.Kind == worker.KindSDK {
							instances = fmt.Sprint(len(w.Run.Instances))
						}
					}
					p.row(w.Name, w.Kind, w.State, instances, num(w.Behind), took(w.BehindBy), num(w.Parked), num(w.Retrying), num(w.Dead), p99, failed)
				}
				for _, w := range got.Workers {
					if w.Detail != "" {
						p.line("%s: %s", w.Name, w.Detail)
					}
				}
			})
			return found(err, slices.ContainsFunc(got.Workers, func(w worker.Shown) bool { return slices.Contains(workerFaults, w.State) }))
		},
	}
}

// errorsOf are the failures of a worker by reason, the most frequent first.
func errorsOf(s *worker.State) string {
	kinds := slices.SortedFunc(maps.Keys(s.Errors), func(a, b string) int { return int(s.Errors[b]) - int(s.Errors[a]) })
	for i, k := range kinds {
		kinds[i] = fmt.Sprintf("%s %s", k, num(s.Errors[k]))
	}
	return strings.Join(kinds, ", ")
}

func workerShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "show WORKER", Short: "A worker: its record, its instances, what waits, what it was before", Args: cobra.ExactArgs(1),
		Example: "  naru worker show hot",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var w worker.Shown
			if err := cl.get(c.Context(), workerPath(args[0], ""), nil, &w); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), w, func(p *printer) { showWorker(p, &w) })
		},
	}
}

func showWorker(p *printer, w *worker.Shown) {
	p.line("%s  version %d, kind %s, %s", w.Name, w.Version, w.Kind, w.State)
	if w.Detail != "" {
		p.line("  %s", w.Detail)
	}
	if w.URL != "" {
		p.line("  called at %s", w.URL)
	}
	for _, h := range w.Hears {
		p.line("  hears %s", h)
	}
	p.line("  %d at once, %s each, %d attempts", w.Concurrency, w.Timeout, w.Attempts)
	oldest := ""
	if w.BehindBy > 0 {
		oldest = ", the oldest " + short(w.BehindBy)
	}
	p.line("  before it %s%s; in its hands %d, failing %d; handled %d, no concern of it %d, died %d", count(int64(w.Behind), "message"), oldest, w.Parked, w.Retrying, w.Handled, w.NotMatched, w.Dead)
	if r := w.Run; r != nil {
		calls := "no calls yet"
		if r.Calls > 0 {
			calls = fmt.Sprintf("%s, half within %s, 99 of 100 within %s", count(int64(r.Calls), "call"), short(r.P50), short(r.P99))
		}
		p.line("  runs on %s: %s", r.Node, calls)
		if text := errorsOf(r); text != "" {
			p.line("  failed: %s", text)
		}
		if r.Breaker != "" {
			p.line("  breaker %s", r.Breaker)
		}
		if len(r.Instances) > 0 {
			p.line("")
			p.columns("", "INSTANCE", "NAME", "AT ONCE", "IN HAND", "WAITING", "SINCE")
		}
		for _, i := range r.Instances {
			p.row(i.ID, i.Name, fmt.Sprint(i.Concurrency), fmt.Sprint(i.InHand), fmt.Sprint(i.Waiting), i.Since.Local().Format(time.DateTime))
		}
	}
	if len(w.Exceptions) > 0 {
		p.line("")
		p.columns("", "MESSAGE", "SUBJECT", "ATTEMPTS", "SINCE", "WHY")
	}
	for _, e := range w.Exceptions[:min(len(w.Exceptions), 20)] {
		p.row(e.ID.String(), string(e.Subject), fmt.Sprint(e.Attempts), e.Since.Local().Format(time.DateTime), cut(e.Detail, 80))
	}
	if len(w.Versions) > 0 {
		p.line("")
		p.columns("", "VERSION", "WHAT", "WHEN", "BY", "WHY")
	}
	for _, v := range w.Versions {
		p.row(fmt.Sprint(v.Number), v.Change, v.At.Local().Format(time.DateTime), v.By, v.Why)
	}
}

func workerAdd(o *options) *cobra.Command {
	var r worker.Record
	var hears, headers []string
	var why string
	var every time.Duration
	c := &cobra.Command{
		Use: "add WORKER", Short: "Add a worker, or change one", Args: cobra.ExactArgs(1),
		Long: `Adds a worker: with --url a service that is called by HTTP, without one a name for processes that connect with the SDK.
Where there is one of that name, it becomes what is said here, and goes on behind what it has finished.`,
		Example: `  naru worker add hot --url https://alerts.example/naru --header 'Authorization: Bearer …'
  naru worker add report --hears 'device/+/telemetry' --concurrency 64`,
		RunE: func(c *cobra.Command, args []string) error {
			r.Name = args[0]
			for _, h := range hears {
				p := []message.Pattern{message.Pattern(h)}
				if strings.Contains(h, "/") {
					var err error
					if p, err = message.FromFilter(h); err != nil {
						return fmt.Errorf("--hears: %w", err)
					}
				}
				r.Hears = append(r.Hears, p...)
			}
			for _, h := range headers {
				name, value, ok := strings.Cut(h, ":")
				if !ok {
					return fmt.Errorf("--header: want 'Name: value'")
				}
				if r.Headers == nil {
					r.Headers = map[string]string{}
				}
				r.Headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
			}
			for name, n := range map[string]int{"concurrency": r.Concurrency, "attempts": r.Attempts} {
				if c.Flags().Changed(name) && n < 1 {
					return fmt.Errorf("--%s %d: want a number from 1", name, n)
				}
			}
			if c.Flags().Changed("timeout") {
				r.Timeout = every.String()
			}
			return changeWorker(o, c, "PUT", workerPath(args[0], ""), why, nil, r)
		},
	}
	f := c.Flags()
	f.StringVar(&r.URL, "url", "", "where it is called")
	f.StringVar(&r.Mode, "mode", "", "binary (the default) or structured CloudEvents")
	f.StringArrayVar(&headers, "header", nil, "header of each call; kept, and never shown")
	f.StringArrayVar(&hears, "hears", nil, "pattern or topic filter that it hears beside the work it is given")
	f.IntVar(&r.Concurrency, "concurrency", 0, "calls at once (default 16)")
	f.DurationVar(&every, "timeout", 0, "how long one call may take (default 30s)")
	f.IntVar(&r.Attempts, "attempts", 0, "how often a message is tried before it is dead (default 10)")
	f.BoolVar(&r.Paused, "paused", false, "begin paused")
	f.StringVar(&why, "why", "", "why, for the record")
	return c
}

func workerTurn(o *options, verb, what string) *cobra.Command {
	var why string
	c := &cobra.Command{
		Use: verb + " WORKER", Short: what, Args: cobra.ExactArgs(1),
		Example: "  naru worker " + verb + " hot",
		RunE: func(c *cobra.Command, args []string) error {
			return changeWorker(o, c, "POST", workerPath(args[0], "/"+verb), why, nil, nil)
		},
	}
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	return c
}

func workerRemove(o *options) *cobra.Command {
	var why string
	var force bool
	c := &cobra.Command{
		Use: "remove WORKER", Short: "Remove a worker for good", Args: cobra.ExactArgs(1),
		Long:    "Removes a worker with all that is kept of it. While messages wait for it that wants --force: they are nobody's then.",
		Example: "  naru worker remove hot",
		RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{}
			if force {
				q.Set("force", "true")
			}
			return changeWorker(o, c, "DELETE", workerPath(args[0], ""), why, q, nil)
		},
	}
	c.Flags().BoolVar(&force, "force", false, "also where messages wait for it")
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	return c
}

func workerMove(o *options) *cobra.Command {
	var why string
	var force bool
	c := &cobra.Command{
		Use: "move WORKER", Short: "Have a worker go on elsewhere whose node is gone for good", Args: cobra.ExactArgs(1),
		Long: `Has a worker go on in the first process that can, behind what was last told of it. What it had handled in its last moment, and had not told,
is given again, under the same key. What was in its hands where it was, to be tried again, is lost with that node, and wants --force; so
does a worker that told of itself last more than a minute ago, since nobody knows.`,
		Example: "  naru worker move hot --why 'the machine burned down'",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := url.Values{"by": {me()}}
			if force {
				q.Set("force", "true")
			}
			if why != "" {
				q.Set("why", why)
			}
			var m worker.Moved
			if err := cl.do(c.Context(), "POST", workerPath(args[0], "/move"), q, nil, &m); err != nil {
				if refusedWith(err, http.StatusConflict) {
					return fmt.Errorf("%w (--force)", err)
				}
				return err
			}
			return o.show(c.OutOrStdout(), m, func(p *printer) {
				p.line("%s goes on in the first process that can; next: naru worker show %s", m.Name, m.Name)
				if m.Unknown {
					p.line("what was in its hands where it was is not known")
				}
				if m.Left > 0 {
					p.line("%d messages that were in its hands are left behind, of them", m.Left)
				}
				for _, x := range m.Exceptions {
					p.line("  %s  %s  %s", x.ID, x.Subject, x.Detail)
				}
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "also where messages were in its hands, which are lost")
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	return c
}

// changeWorker asks for a change, and shows what the worker is then.
func changeWorker(o *options, c *cobra.Command, method, path, why string, q url.Values, body any) error {
	cl, err := o.client()
	if err != nil {
		return err
	}
	if q == nil {
		q = url.Values{}
	}
	q.Set("by", me())
	if why != "" {
		q.Set("why", why)
	}
	var w worker.Shown
	if err := cl.do(c.Context(), method, path, q, body, &w); err != nil {
		if refusedWith(err, http.StatusConflict) && method == http.MethodDelete {
			return fmt.Errorf("%w (--force)", err)
		}
		return err
	}
	return o.show(c.OutOrStdout(), w, func(p *printer) {
		p.line("%s is %s", w.Name, strings.ReplaceAll(w.State, "_", " "))
		if w.Detail != "" {
			p.line("  %s", w.Detail)
		}
		if w.State == "starting" {
			p.line("  next: naru worker show %s", w.Name)
		}
	})
}

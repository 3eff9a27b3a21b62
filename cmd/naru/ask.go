package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/operator/ledger"
	"github.com/naru-platform/naru/operator/status"
	engine "github.com/naru-platform/naru/service_platform/rule"
	"github.com/naru-platform/naru/service_platform/webhook"
	"github.com/naru-platform/naru/service_platform/worker"
)

func ledgerCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use: "ledger", Short: "Accepted = handled + waiting + dead, for each log and consumer", Args: cobra.NoArgs,
		Long: `Shows, for each log and consumer, what was accepted and what became of it. The two sides are counted by different
hands: the appenders' running counts against what each consumer's handlers really finished. Exits with 2 when they
do not agree, and when messages wait for a consumer that is not heard of.`,
		Example: "  naru ledger\n  naru ledger -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			lines := []ledger.Line{}
			if err := cl.get(c.Context(), "/api/v1/ledger", nil, &lines); err != nil {
				return err
			}
			bad := slices.ContainsFunc(lines, func(l ledger.Line) bool { return !l.Balanced })
			away := slices.ContainsFunc(lines, func(l ledger.Line) bool { return l.Stale && l.Waiting > 0 })
			err = o.show(c.OutOrStdout(), lines, func(p *printer) {
				p.columns("No consumer has told of itself yet; ask again in a moment.", "LOG", "CONSUMER", "ACCEPTED", "HANDLED", "WAITING", "DEAD", "BALANCED")
				for _, l := range lines {
					p.row(l.Log, l.Consumer, num(l.Accepted), num(l.Handled), num(l.Waiting), num(l.Dead), yes(l.Balanced))
				}
				for _, l := range lines {
					if l.Fault != "" {
						p.line("%s on %s: %s", l.Consumer, l.Log, l.Fault)
					}
					if l.Stale {
						p.line("%s on %s: not heard of since %s; %s messages wait for it", l.Consumer, l.Log, l.At.Format(time.RFC3339), num(l.Waiting))
					}
				}
				if away {
					p.line("Messages wait for a consumer that is away. Next: start it; or, if it went for good, `naru ledger forget CONSUMER`.")
				}
				if bad {
					p.line("The ledger does not balance: a message has no fate, or two. Next: `naru status`, then the consumer's log.")
				}
			})
			return found(err, bad || away)
		},
	}
	c.AddCommand(&cobra.Command{
		Use: "forget CONSUMER", Short: "Forget a consumer that went for good, with what waits for it", Args: cobra.ExactArgs(1),
		Long: `Takes a consumer out of the ledger that has been silent for a while and will not come back: a component that was
removed, or renamed, or the one of a node that is gone. What the logs keep for it, because it is required, is released and
trimmed in its time. If it comes back after all, so does its account; what was trimmed meanwhile is dead then.`,
		Example: "  naru ledger forget service_platform.old",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var f ledger.Forgotten
			if err := cl.do(c.Context(), http.MethodDelete, (&url.URL{Path: "/api/v1/ledger/" + args[0]}).EscapedPath(), nil, nil, &f); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), f, func(p *printer) { p.line("%s is forgotten; %s messages waited for it", f.Consumer, num(f.Waiting)) })
		},
	})
	return c
}

func statusCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "How the platform is", Args: cobra.NoArgs,
		Long: `Shows whether the platform is well, and each component with what it has before it: BEHIND is in batches that it has not read, OLDEST for
how long the oldest message that it has not finished has waited. Exits with 2 when something is not well, but not within the first seconds
of a process, in which databases and sessions are still opened: then it says "starting". What is well as far as the platform goes, and may not be for you, stands behind a !:
rules, workers and destinations that fail, work that no worker does, and dead letters.`,
		Example: "  naru status\n  naru status -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var s status.Status
			if err := cl.get(c.Context(), "/api/v1/status", nil, &s); err != nil {
				return err
			}
			var beyond []string
			if !o.json() {
				beyond = yours(c.Context(), cl)
			}
			err = o.show(c.OutOrStdout(), s, func(p *printer) {
				word := "healthy"
				if !s.Healthy {
					word = "NOT WELL"
				}
				mark := "✗"
				if s.Starting {
					word, mark = "starting", "…"
				}
				last := "nothing appended yet"
				if s.Bus.Latency > 0 {
					last = "last append confirmed in " + short(s.Bus.Latency)
				}
				p.line("%s  node %s, bus %s, %s", word, s.Node, s.Bus.Engine, last)
				if s.Bus.Space.Total > 0 {
					p.line("disk: %s free of %s; the doors shut below %s", size(s.Bus.Space.Free), size(s.Bus.Space.Total), size(s.Bus.Space.Low))
				}
				if s.Healthy && s.Machine.Late >= time.Second { // else it stands first among what is wrong
					p.line("machine: the process %s", s.Machine.Waited())
				}
				for _, f := range s.Faults {
					p.line("  %s %s", mark, f)
				}
				for _, x := range beyond {
					p.line("  ! %s", x)
				}
				p.line("")
				p.columns("", "LOG", "BATCHES", "SIZE", "PARTITIONS", "GENERATION")
				for _, l := range s.Logs {
					p.row(l.Name, num(l.Batches), size(l.Bytes), fmt.Sprint(l.Partitions), fmt.Sprint(l.Generation))
				}
				p.line("")
				componentTable(p, s)
			})
			return found(err, !s.Healthy && !s.Starting)
		},
	}
}

// failedLately is for how long a rule that goes on without failures is still told of.
const failedLately = 10 * time.Minute

// yours is what the platform is well with and its operator may not be: rules, workers, destinations, dead letters. What cannot be
// asked for is left out.
func yours(ctx context.Context, cl *client) (list []string) {
	var rules struct {
		Rules []engine.Shown `json:"rules"`
	}
	if cl.get(ctx, "/api/v1/rules", nil, &rules) == nil {
		now := time.Now()
		for i := range rules.Rules {
			if x := &rules.Rules[i]; x.Fault != "" {
				list = append(list, fmt.Sprintf("rule %s does not run as it is: naru rule show %s", x.Name, x.Name))
			} else if c := &x.Counts; x.Enabled && c.Last != nil && (c.FailedInRow > 0 || now.Sub(c.Last.At) < failedLately) {
				list = append(list, fmt.Sprintf("rule %s %s: naru rule show %s", x.Name, failing(c, now), x.Name))
			}
		}
	}
	var w struct {
		Workers []worker.Shown `json:"workers"`
	}
	if cl.get(ctx, "/api/v1/workers", nil, &w) == nil {
		for _, x := range w.Workers {
			if slices.Contains(workerFaults, x.State) {
				list = append(list, fmt.Sprintf("worker %s: %s, %s before it: naru worker show %s", x.Name, strings.ReplaceAll(x.State, "_", " "), count(int64(x.Behind), "message"), x.Name))
			}
		}
		for _, r := range rules.Rules {
			if r.Document == nil || !r.Enabled {
				continue
			}
			for _, a := range r.Document.Actions {
				if a.Worker != nil && !strings.Contains(a.Worker.Name, "${") && !slices.ContainsFunc(w.Workers, func(x worker.Shown) bool { return x.Name == a.Worker.Name }) {
					list = append(list, fmt.Sprintf("rule %s gives to worker %s, which is not there, and nobody does it: naru worker add %s", r.Name, a.Worker.Name, a.Worker.Name))
				}
			}
		}
	}
	var d struct {
		Destinations []webhook.Shown `json:"destinations"`
	}
	if cl.get(ctx, "/api/v1/destinations", nil, &d) == nil {
		for i := range d.Destinations {
			if x := &d.Destinations[i]; x.Fault != "" && !x.Paused {
				list = append(list, fmt.Sprintf("destination %s: %s, %s waiting: naru destination show %s", x.Name, destinationState(x), count(int64(x.Waiting), "message"), x.Name))
			}
		}
	}
	var l struct {
		All int64 `json:"total_letters"`
	}
	if cl.get(ctx, "/api/v1/dead/groups", nil, &l) == nil && l.All > 0 {
		list = append(list, count(l.All, "dead letter")+": naru dead groups")
	}
	return list
}

func componentTable(p *printer, s status.Status) {
	p.columns("", "COMPONENT", "NODE", "STATE", "SINCE", "RESTARTS", "BEHIND", "OLDEST", "PARKED")
	for _, k := range s.Components {
		var behind, parked uint64
		var first time.Time // what waits for longest, in whatever log
		for _, l := range k.Lag {
			behind += l.Batches
			parked += l.Parked
			if first.IsZero() || !l.Oldest.IsZero() && l.Oldest.Before(first) {
				first = l.Oldest
			}
		}
		oldest := "-"
		if !first.IsZero() {
			oldest = short(max(s.At.Sub(first), 0))
		}
		since := ""
		if !k.Since.IsZero() {
			since = ago(k.Since, s.At)
		}
		p.row(k.Name, k.Node, k.State, since, fmt.Sprint(k.Restarts), batches(behind), oldest, num(parked))
	}
}

func nodeCommand(o *options) *cobra.Command {
	node := &cobra.Command{Use: "node", Short: "The components that run"}
	get := func(c *cobra.Command) (s status.Status, err error) {
		cl, err := o.client()
		if err != nil {
			return s, err
		}
		return s, cl.get(c.Context(), "/api/v1/status", nil, &s)
	}
	node.AddCommand(
		&cobra.Command{Use: "list", Short: "List them", Args: cobra.NoArgs, Example: "  naru node list",
			RunE: func(c *cobra.Command, _ []string) error {
				s, err := get(c)
				if err != nil {
					return err
				}
				return o.show(c.OutOrStdout(), s.Components, func(p *printer) { componentTable(p, s) })
			}},
		&cobra.Command{Use: "info COMPONENT", Short: "What one hears, takes and says", Args: cobra.ExactArgs(1), Example: "  naru node info operator.journal",
			RunE: func(c *cobra.Command, args []string) error {
				s, err := get(c)
				if err != nil {
					return err
				}
				i := slices.IndexFunc(s.Components, func(k status.Component) bool { return k.Name == args[0] })
				if i < 0 {
					var names []string
					for _, k := range s.Components {
						names = append(names, k.Name)
					}
					return fmt.Errorf("no component %q runs; there are %s", args[0], strings.Join(slices.Compact(names), ", "))
				}
				k := s.Components[i]
				err = o.show(c.OutOrStdout(), k, func(p *printer) {
					p.line("%s: %s", k.Name, k.Doc)
					p.row("state", k.State)
					p.row("node", k.Node)
					p.row("since", k.Since.Format(time.RFC3339))
					p.row("restarts", fmt.Sprint(k.Restarts))
					p.row("hears", join(k.Hears))
					p.row("takes", join(k.Takes))
					p.row("says", join(k.Says))
					for _, l := range k.Lag {
						p.row("log "+l.Log, fmt.Sprintf("%s behind, %d parked %s", batches(l.Batches), l.Parked, l.Fault))
					}
					if k.Fault != "" {
						p.row("fault", k.Fault)
					}
				})
				return found(err, k.State == "failed")
			}},
	)
	return node
}

func graphCommand(o *options) *cobra.Command {
	var dot, all bool
	c := &cobra.Command{
		Use: "graph [COMPONENT]", Short: "Who says what to whom", Args: cobra.MaximumNArgs(1),
		Long: `Shows for each component who hears it. Of one it shows what it hears of whom, and what it says to whom, by subjects. operator.* hear
everything, and are named with --all only, as is each kind of message.`,
		Example: "  naru graph\n  naru graph service_platform.rule\n  naru graph --dot | dot -Tsvg >naru.svg",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var g status.Graph
			if err := cl.get(c.Context(), "/api/v1/graph", nil, &g); err != nil {
				return err
			}
			if len(args) == 1 {
				var err error
				if g, err = about(g, args[0]); err != nil {
					return err
				}
			}
			return o.show(c.OutOrStdout(), g, func(p *printer) {
				switch {
				case dot:
					printDot(p, g)
				case all || len(args) == 1:
					for _, n := range g.Nodes {
						p.row(n.Name, n.State, n.Doc)
					}
					p.line("")
					for _, e := range g.Edges {
						if all || !operators(e.To) || operators(args[0]) {
							p.row(e.From, "─", string(e.Subjects), "→", e.To)
						}
					}
				default:
					printHearers(p, g)
				}
			})
		},
	}
	c.Flags().BoolVar(&dot, "dot", false, "print Graphviz dot")
	c.Flags().BoolVar(&all, "all", false, "each kind of message, and operator.*, which hear all of them")
	return c
}

func operators(component string) bool { return strings.HasPrefix(component, message.Operator+".") }

// about is the part of a graph that one component has: itself, and its edges.
func about(g status.Graph, name string) (status.Graph, error) {
	i := slices.IndexFunc(g.Nodes, func(n status.Node) bool { return n.Name == name })
	if i < 0 {
		return g, fmt.Errorf("there is no component %q; `naru graph` shows those there are", name)
	}
	return status.Graph{Nodes: g.Nodes[i : i+1 : i+1], Edges: slices.DeleteFunc(g.Edges, func(e status.Edge) bool { return e.From != name && e.To != name })}, nil
}

// printHearers shows who hears whom, a component in a line or two.
func printHearers(p *printer, g status.Graph) {
	wide := 0
	for _, n := range g.Nodes {
		wide = max(wide, len(n.Name))
	}
	for _, n := range g.Nodes {
		if operators(n.Name) {
			continue
		}
		var hear []string
		for _, e := range g.Edges {
			if e.From == n.Name && !operators(e.To) && !slices.Contains(hear, e.To) {
				hear = append(hear, e.To)
			}
		}
		mark := ""
		if n.State != "running" && n.State != "standby" {
			mark = " (" + n.State + ")"
		}
		if len(hear) > 0 {
			p.names(fmt.Sprintf("%-*s  → ", wide, n.Name+mark), hear)
		} else {
			p.line("%s", n.Name+mark)
		}
	}
	p.line("")
	p.line("operator.* hear everything. Next: `naru graph COMPONENT` shows one with what it hears and says; --all all of it.")
}

func printDot(p *printer, g status.Graph) {
	p.line("digraph naru {")
	p.line("  rankdir=LR; node [shape=box, style=rounded];")
	for i, ns := range message.Namespaces() {
		p.line("  subgraph cluster_%d { label=%q;", i, ns)
		for _, n := range g.Nodes {
			if n.Namespace == ns {
				p.line("    %q;", n.Name)
			}
		}
		p.line("  }")
	}
	for _, e := range g.Edges {
		p.line("  %q -> %q [label=%q];", e.From, e.To, e.Subjects)
	}
	p.line("}")
}

func reasonsCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "reasons [NAME|CODE]", Short: "What a reason means, and what to look at", Args: cobra.MaximumNArgs(1),
		Example: "  naru reasons acl_denied\n  naru reasons NARU-201",
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, r := range message.Reasons() {
				names = append(names, r.Name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			list := message.Reasons()
			if len(args) == 1 {
				r, err := message.ParseReason(args[0])
				if err != nil {
					return err
				}
				list = []message.ReasonInfo{r.Info()}
			}
			return o.show(c.OutOrStdout(), list, func(p *printer) {
				for _, r := range list {
					if len(list) == 1 {
						p.line("%s %s\n%s\nLook at: %s", r.Code, r.Name, r.Means, r.Look)
						return
					}
					p.row(r.Code, r.Name, r.Means)
				}
			})
		},
	}
}

// found turns a fault that was shown into exit code 2.
func found(err error, fault bool) error {
	if err == nil && fault {
		return errFault
	}
	return err
}

func num(n uint64) string { return fmt.Sprint(n) }

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}

func batches(n uint64) string {
	if n == 1 {
		return "1 batch"
	}
	return fmt.Sprintf("%d batches", n)
}

func join(p []message.Pattern) string {
	if len(p) == 0 {
		return "-"
	}
	var s []string
	for _, x := range p {
		s = append(s, string(x))
	}
	return strings.Join(s, " ")
}

func values(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	return v
}

package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/operator/partition"
)

func logCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use: "log", Short: "The logs: generations, partitions, who reads them and how far",
		Long: `Each namespace has a log. A log has partitions: rows of batches, each in its own order; what one device says is in one of
them. While the number of partitions stays the same it is in one generation.`,
	}
	c.AddCommand(logList(o), logShow(o), logRepartition(o))
	return c
}

func logPath(name, rest string) string { return "/api/v1/logs/" + url.PathEscape(name) + rest }

func logList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "The logs, their size, and who is behind", Args: cobra.NoArgs,
		Long:    "Lists the logs. Exits with 2 when a reader stands still.",
		Example: "  naru log list\n  naru log list -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var got struct {
				Logs []partition.Log `json:"logs"`
			}
			if err := cl.get(c.Context(), "/api/v1/logs", nil, &got); err != nil {
				return err
			}
			still := false
			err = o.show(c.OutOrStdout(), got.Logs, func(p *printer) {
				p.columns("", "LOG", "PARTITIONS", "GENERATIONS", "SIZE", "OLDEST", "NEWEST", "READERS", "FURTHEST BEHIND")
				for i := range got.Logs {
					l := &got.Logs[i]
					p.row(l.Name, fmt.Sprint(l.Partitions), generations(l), size(l.Bytes), ago(l.Oldest, time.Now()), ago(l.Newest, time.Now()), fmt.Sprint(len(l.Consumers)), furthest(l))
				}
				for i := range got.Logs {
					for _, x := range got.Logs[i].Consumers {
						if x.Fault != "" {
							p.line("%s on %s stands still: %s", x.Name, got.Logs[i].Name, x.Fault)
						}
					}
				}
			})
			for i := range got.Logs {
				still = still || slices.ContainsFunc(got.Logs[i].Consumers, func(x partition.Consumer) bool { return x.Fault != "" })
			}
			return found(err, still)
		},
	}
}

func generations(l *partition.Log) string {
	sealed := len(l.Generations) - 1
	if sealed < 1 {
		return "1 open"
	}
	return fmt.Sprintf("1 open, %d sealed", sealed)
}

func furthest(l *partition.Log) string {
	var most *partition.Consumer
	for i := range l.Consumers {
		if c := &l.Consumers[i]; most == nil || c.Behind > most.Behind {
			most = c
		}
	}
	if most == nil || most.Behind == 0 {
		return "none"
	}
	return fmt.Sprintf("%s, %d messages", most.Name, most.Behind)
}

func logShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "show LOG", Short: "A log: its generations, partitions, readers, and who changed it", Args: cobra.ExactArgs(1),
		Long:    "Shows a log. Exits with 2 when one of its readers stands still.",
		Example: "  naru log show device\n  naru log show device -o json",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var l partition.Log
			if err := cl.get(c.Context(), logPath(args[0], ""), nil, &l); err != nil {
				return err
			}
			err = o.show(c.OutOrStdout(), l, func(p *printer) { showLog(p, &l) })
			return found(err, slices.ContainsFunc(l.Consumers, func(x partition.Consumer) bool { return x.Fault != "" }))
		},
	}
}

func showLog(p *printer, l *partition.Log) {
	p.line("log %s  %s  on %s", l.Name, l.ID, l.Engine)
	p.line("  %s, oldest %s, newest %s", size(l.Bytes), ago(l.Oldest, time.Now()), ago(l.Newest, time.Now()))
	p.line("")
	p.columns("", "GENERATION", "PARTITION", "FIRST", "LAST", "SIZE")
	for _, g := range l.Generations {
		state := "open"
		if g.Sealed {
			state = "sealed"
		}
		for _, x := range g.Partitions {
			p.row(fmt.Sprintf("%d %s", g.Number, state), fmt.Sprint(x.Number), num(x.First), num(x.Last), size(x.Bytes))
		}
	}
	p.line("")
	p.columns("No reader has told of itself.", "READER", "GENERATION", "BEHIND", "OLDEST", "PARKED", "STATE")
	for _, c := range l.Consumers {
		state, oldest := "reads", "-"
		switch {
		case c.Fault != "":
			state = "stands still: " + c.Fault
		case c.Away:
			state = "away"
		case !c.Over:
			state = "goes over"
		}
		if !c.Oldest.IsZero() {
			oldest = ago(c.Oldest, time.Now())
		}
		p.row(c.Name, fmt.Sprint(c.Generation), num(c.Behind), oldest, num(c.Parked), state)
	}
	if len(l.Changes) > 0 {
		p.line("")
		p.columns("", "CHANGED", "BY", "GENERATION", "PARTITIONS", "NOTE")
		for _, x := range l.Changes {
			p.row(x.At.Local().Format(time.DateTime), x.By, fmt.Sprint(x.Generation), fmt.Sprintf("%d -> %d", x.Before, x.Partitions), x.Note)
		}
	}
}

// goneOver is what a repartition has come to.
type goneOver struct {
	partition.Done
	Waited  string   `json:"waited,omitempty"`
	Missing []string `json:"missing,omitempty"` // readers that have not gone over yet
}

func logRepartition(o *options) *cobra.Command {
	var wish partition.Wish
	var wait time.Duration
	c := &cobra.Command{
		Use: "repartition LOG --partitions N", Short: "Give a log another number of partitions, while it runs", Args: cobra.ExactArgs(1),
		Long: `Seals the log's open generation and opens the next one, with N partitions. Who writes goes over at once, and nothing is refused
or lost meanwhile. Each reader reads the sealed generation to its end, with what is parked of it, before it begins with the
next, so that the order of what one device says is kept. The old generation is trimmed by its age as before.

More partitions let components that spread (rules) do more at the same time. With the embedded bus they do not make the disk
faster: all partitions wait for the same fsync.

It waits until all readers that run have gone over, for as long as --wait, and exits with 2 when one has not by then. Who did
it and why is kept: naru log show LOG.`,
		Example: "  naru log repartition device --partitions 4 --note 'rules lag behind'\n  naru log repartition device --partitions 4 --wait 0 -o json",
		RunE: func(c *cobra.Command, args []string) error {
			if !c.Flags().Changed("partitions") {
				return fmt.Errorf("want --partitions with how many log %s shall have", args[0])
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			var out goneOver
			wish.By = me()
			if err := cl.post(c.Context(), logPath(args[0], "/repartition"), wish, &out.Done); err != nil {
				return err
			}
			for _, w := range out.Warnings {
				fmt.Fprintf(c.ErrOrStderr(), "warning: %s\n", w)
			}
			if wait > 0 {
				began := time.Now()
				if out.Missing, err = waitForReaders(c, cl, args[0], out.Generation, wait); err != nil {
					return err
				}
				out.Waited = time.Since(began).Round(time.Millisecond).String()
			}
			err = o.show(c.OutOrStdout(), out, func(p *printer) {
				p.line("Log %s has %d partitions, before %d; generation %d is open.", out.Log, out.Partitions, out.Before, out.Generation)
				switch {
				case len(out.Missing) > 0:
					p.line("Not gone over within %s: %s. Nothing is lost; look at `naru log show %s`.", out.Waited, strings.Join(out.Missing, ", "), out.Log)
				case wait > 0:
					p.line("All readers that run have gone over, within %s.", out.Waited)
				default:
					p.line("Next: `naru log show %s` shows who has gone over.", out.Log)
				}
			})
			return found(err, len(out.Missing) > 0)
		},
	}
	c.Flags().IntVar(&wish.Partitions, "partitions", 0, "how many the log shall have")
	c.Flags().StringVar(&wish.Note, "note", "", "why, for the record")
	c.Flags().DurationVar(&wait, "wait", 2*time.Minute, "for how long to wait for the readers; 0 for not at all")
	return c
}

// waitForReaders waits until every reader that runs reads the generation, and names those that do not.
func waitForReaders(c *cobra.Command, cl *client, name string, generation uint32, wait time.Duration) (missing []string, err error) {
	ctx, cancel := context.WithTimeout(c.Context(), wait)
	defer cancel()
	var p *progress
	over := map[string]bool{}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		var l partition.Log
		if err := cl.get(c.Context(), logPath(name, ""), nil, &l); err != nil {
			return nil, err
		}
		missing = nil
		if p == nil {
			p = newProgress(c, "readers gone over", len(l.Consumers))
			defer p.end()
		}
		for _, x := range l.Consumers {
			switch {
			case x.Generation >= generation && !over[x.Name]:
				over[x.Name] = true
				p.add()
			case x.Generation < generation && !x.Away:
				missing = append(missing, x.Name)
			}
		}
		if len(missing) == 0 {
			return nil, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return missing, c.Context().Err()
		}
	}
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/operator/journal"
	"github.com/naru-platform/naru/operator/topic"
	engine "github.com/naru-platform/naru/service_platform/rule"
)

func messagesCommand(o *options) *cobra.Command {
	var device, subject, since, until, outcome string
	var limit int
	var follow bool
	c := &cobra.Command{
		Use: "messages [ID]", Short: "The message list: what crossed, and what became of it", Args: cobra.MaximumNArgs(1),
		Long: `Lists messages, the newest last, with what became of each. With an id it shows that message whole. --follow goes on
with what comes, until Ctrl-C.

Outcomes: handled, waiting, parked, dead, refused, not_heard.`,
		Example: `  naru messages --device d-17 --since 10m
  naru messages --outcome dead -o json
  naru messages --subject 'device.*.telemetry' --follow`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return showMessage(c, o, cl, args[0])
			}
			q := values("device", device, "since", since, "until", until, "outcome", outcome, "limit", fmt.Sprint(limit))
			if q["subject"], err = subjects(subject); err != nil {
				return err
			}
			var list journal.List
			if err := cl.get(c.Context(), "/api/v1/messages", q, &list); err != nil {
				return err
			}
			for i, j := 0, len(list.Messages)-1; i < j; i, j = i+1, j-1 {
				list.Messages[i], list.Messages[j] = list.Messages[j], list.Messages[i]
			}
			if !follow {
				return o.show(c.OutOrStdout(), list, func(p *printer) {
					if len(list.Messages) == 0 {
						p.line("No message matches.")
					} else {
						messageHead(p)
					}
					for _, l := range list.Messages {
						messageRow(p, l)
					}
					if !list.Stopped.IsZero() {
						p.line("Older ones were not looked at (from %s back); --limit, --since and --until narrow or widen the search.", list.Stopped.Format(time.RFC3339))
					}
				})
			}
			return followMessages(c, o, cl, list, q)
		},
	}
	f := c.Flags()
	f.StringVar(&device, "device", "", "only of this device")
	f.StringVar(&subject, "subject", "", "only of subjects that match, such as device.*.telemetry (or an MQTT filter)")
	f.StringVar(&since, "since", "", "from this time on: 10m, or 2026-11-23T03:00:00Z")
	f.StringVar(&until, "until", "", "up to this time")
	f.StringVar(&outcome, "outcome", "", "only with this outcome")
	f.IntVarP(&limit, "limit", "n", 20, "how many at most")
	f.BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	_ = c.RegisterFlagCompletionFunc("outcome", cobra.FixedCompletions(
		[]string{"handled", "waiting", "parked", "dead", "refused", "not_heard"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// followEvery is how often new messages are asked for; the journal is a moment behind the log anyway.
const followEvery = 500 * time.Millisecond

func followMessages(c *cobra.Command, o *options, cl *client, list journal.List, q url.Values) error {
	seen := map[message.ID]bool{}
	last := time.Now().Add(-time.Second)
	out := c.OutOrStdout()
	if !o.json() {
		p := &printer{w: out}
		messageHead(p)
		if err := p.flush(); err != nil {
			return err
		}
	}
	for {
		for _, l := range list.Messages {
			if seen[l.ID] {
				continue
			}
			seen[l.ID] = true
			if l.Recorded.After(last) {
				last = l.Recorded
			}
			if o.json() {
				if err := json.NewEncoder(out).Encode(l); err != nil {
					return err
				}
				continue
			}
			p := &printer{w: out}
			messageRow(p, l)
			if err := p.flush(); err != nil {
				return err
			}
		}
		if len(seen) > 100_000 {
			seen = map[message.ID]bool{}
		}
		select {
		case <-c.Context().Done():
			return nil
		case <-time.After(followEvery):
		}
		// A little overlap, since batches are indexed a moment after their messages were minted.
		q.Set("since", last.Add(-2*time.Second).UTC().Format(time.RFC3339))
		q.Set("order", "oldest")
		q.Set("limit", "5000")
		if err := cl.get(c.Context(), "/api/v1/messages", q, &list); err != nil {
			if c.Context().Err() != nil {
				return nil
			}
			return err
		}
	}
}

func messageHead(p *printer) {
	p.line("%-12s  %-8s  %-32s  %-40s  %s", "TIME", "OUTCOME", "TRACE", "SUBJECT", "DATA")
}

func messageRow(p *printer, l journal.Line) {
	data := cut(l.Data, 60)
	if l.Data == "" && l.Size > 0 {
		data = fmt.Sprintf("(%d bytes)", l.Size)
	}
	if said := complaint(l); said != "" {
		data = cut(said, 200)
	}
	p.line("%-12s  %-8s  %-32s  %-40s  %s", l.Recorded.Local().Format("15:04:05.000"), l.Outcome, l.Trace, cut(string(l.Subject), 40), data)
}

// complaint is what a refusal, a dead letter or a rule that failed says, in words that begin with the reason; nothing where a
// message is none of these.
func complaint(l journal.Line) string {
	if l.Type == ruleFailed {
		var f serviceplatform.RuleFailed
		if json.Unmarshal([]byte(l.Data), &f) != nil || len(f.Failures) == 0 {
			return ""
		}
		all := make([]string, len(f.Failures))
		for i, x := range f.Failures {
			all[i] = x.Kind + ": " + x.Error
		}
		return fmt.Sprintf("%s: %s@%d: %s", f.Reason, f.Rule, f.Version, strings.Join(all, "; "))
	}
	if l.Reason == 0 {
		return ""
	}
	var said struct {
		Detail string `json:"detail"`
		Count  uint64 `json:"count"`
	}
	if json.Unmarshal([]byte(l.Data), &said) != nil || said.Detail == "" { // too long for a list; its beginning must do
		return l.Reason.String() + " " + cut(l.Data, 60)
	}
	if !strings.HasPrefix(said.Detail, l.Reason.String()) {
		said.Detail = l.Reason.String() + ": " + said.Detail
	}
	if said.Count > 1 {
		return fmt.Sprintf("%s (%d times)", said.Detail, said.Count)
	}
	return said.Detail
}

// ruleFailed is the type of what tells that a rule could not do something.
const ruleFailed = "service_platform.rule_failed.v1"

// next is the command that says more of a complaint.
func next(l journal.Line) string {
	var r operator.Refusal
	switch {
	case l.Type == ruleFailed:
		rule, _, _ := engine.RuleOf(l.Source)
		return fmt.Sprintf("naru rule explain %s --message %s", rule, l.Cause)
	case l.Outcome != journal.OutcomeRefused: // a letter's id is that of the message which tells of the death
		return "naru dead show " + l.ID.String()
	case l.Reason == message.ACLDenied && json.Unmarshal([]byte(l.Data), &r) == nil && r.Device != "" && r.Subject != "" && strings.Contains(r.Detail, " may not publish "):
		return fmt.Sprintf("naru mqtt may %s publish '%s'", r.Device, r.Subject.Topic())
	}
	return "naru reasons " + l.Reason.String()
}

func showMessage(c *cobra.Command, o *options, cl *client, id string) error {
	if _, err := message.ParseID(id); err != nil {
		return err
	}
	var l journal.Line
	if err := cl.get(c.Context(), "/api/v1/messages/"+id, nil, &l); err != nil {
		return err
	}
	err := o.show(c.OutOrStdout(), l, func(p *printer) {
		p.row("id", l.ID.String())
		p.row("trace", l.Trace.String())
		if !l.Cause.IsZero() {
			p.row("cause", l.Cause.String())
		}
		p.row("subject", string(l.Subject))
		p.row("topic", l.Topic)
		p.row("type", l.Type)
		p.row("source", l.Source)
		p.row("device", l.Device)
		p.row("recorded", l.Recorded.Format(time.RFC3339Nano))
		if !l.Time.IsZero() {
			p.row("time", l.Time.Format(time.RFC3339Nano))
		}
		p.row("place", fmt.Sprintf("log %s, generation %d, partition %d, batch %d, record %d", l.Log, l.Position.Generation,
			l.Position.Partition, l.Position.Sequence, l.Position.Index))
		for _, kv := range l.Properties {
			p.row("property "+cut(kv[0], 40), cut(kv[1], 200))
		}
		if l.DataBase64 != nil {
			p.row("data", fmt.Sprintf("%d bytes, not text; -o json has them", l.Size))
		} else {
			p.row("data", cut(l.Data, 4000))
		}
		fateRows(p, l.Fates)
	})
	return found(err, l.Outcome == journal.OutcomeDead)
}

func fateRows(p *printer, fates []journal.Fate) {
	for _, f := range fates {
		p.row("  at "+f.Consumer, fate(f))
	}
}

func traceCommand(o *options) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "trace ID", Short: "One trace: every message of it, in order, with its fates", Args: cobra.ExactArgs(1),
		Long: `Shows every message of a trace, who said it, how long after the first, and what became of it where it was heard; what is wrong
comes first. --all has each consumer in a line of its own, also those that are no concern of a message, and those that only look
(operator.*). ID is a trace id (32 hexadecimal digits) or a message id. What became a row of a dataset ends there: its row is shown, and
in JSON stands in rows. Exits with 2 when a message of the trace is dead.`,
		Example: "  naru trace 0193d5a07b2c1a2b5d2f8a6b1c4e7f90\n  naru trace 0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e --all",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			id := args[0]
			if m, err := message.ParseID(id); err == nil {
				var l journal.Line
				if err := cl.get(c.Context(), "/api/v1/messages/"+m.String(), nil, &l); err != nil {
					return err
				}
				id = l.Trace.String()
			} else if _, err := message.ParseTraceID(id); err != nil {
				return fmt.Errorf("%q is neither a trace id (32 hexadecimal digits) nor a message id", id)
			}
			var v journal.TraceView
			if err := cl.get(c.Context(), "/api/v1/traces/"+id, nil, &v); err != nil {
				return err
			}
			dead := false
			for _, l := range v.Messages {
				dead = dead || l.Outcome == journal.OutcomeDead
			}
			rows, err := rowsOfTrace(c.Context(), cl, v)
			if err != nil {
				return err
			}
			err = o.show(c.OutOrStdout(), rows, func(p *printer) {
				printTrace(p, v, all)
				rows.print(p)
			})
			return found(err, dead)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "each consumer in a line of its own, also those that it does not concern")
	return c
}

func printTrace(p *printer, v journal.TraceView, all bool) {
	p.line("trace %s: %s in %s, from %s", v.Trace, count(int64(len(v.Messages)), "message"), short(v.Took), v.Began.Local().Format("2006-01-02 15:04:05.000"))
	for _, l := range v.Messages {
		p.line("")
		p.line("%s%-9s %s  [%s]", strings.Repeat("  ", int(l.Depth)), "+"+short(l.Recorded.Sub(v.Began)), l.Subject, l.Outcome)
		pad := strings.Repeat("  ", int(l.Depth)) + "          "
		p.line("%sid %s", pad, l.ID)
		if l.Source != "" {
			p.line("%sfrom %s", pad, cut(l.Source, 100))
		}
		if said := complaint(l); said != "" {
			p.words(pad+"said ", said)
			p.line("%s  -> %s", pad, next(l))
		} else if l.Data != "" {
			p.line("%sdata %s", pad, cut(l.Data, 100))
		}
		if all {
			for _, f := range l.Fates {
				p.line("%s%-28s %s", pad, f.Consumer, fate(f))
			}
			continue
		}
		printFates(p, pad, l)
	}
}

// fate is what became of a message at a consumer, in words.
func fate(f journal.Fate) string {
	what := f.Outcome
	if f.Reason != 0 {
		what += ": " + f.Reason.String()
	}
	if d := beyond(f.Reason, f.Detail); d != "" {
		what += " (" + cut(d, 120) + ")"
	}
	if f.Attempts > 0 {
		what += ", " + count(int64(f.Attempts), "attempt")
	}
	if f.Behind > 0 {
		what += ", " + batches(f.Behind) + " before it"
	}
	return what
}

// beyond is what a detail says beyond the reason that it may begin with.
func beyond(r message.Reason, detail string) string {
	rest, found := strings.CutPrefix(detail, r.String())
	if more, ok := strings.CutPrefix(rest, ": "); found && (ok || rest == "") {
		return more
	}
	return detail
}

// printFates tells in few lines what became of a message: first what is not done, each with why, then who did it. Whom it does
// not concern is left out, and so are operator.*, which hear everything, but where nobody else did.
func printFates(p *printer, pad string, l journal.Line) {
	var done, watched []string
	for _, f := range l.Fates {
		switch {
		case f.Outcome == journal.OutcomeNotHeard:
		case f.Outcome != journal.OutcomeHandled:
			p.line("%s%s: %s", pad, f.Consumer, fate(f))
		case strings.HasPrefix(f.Consumer, string(message.Operator)+"."):
			watched = append(watched, f.Consumer)
		default:
			done = append(done, f.Consumer)
		}
	}
	if len(done) == 0 {
		done = watched
	}
	p.names(pad+"handled by ", done)
}

func topicCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "topic", Short: "What is said where: list, info, echo, hz, bw, pub"}
	c.AddCommand(topicList(o), topicInfo(o), topicEcho(o), topicRate(o, "hz"), topicRate(o, "bw"), topicPub(o))
	return c
}

func topics(c *cobra.Command, o *options) ([]topic.Line, error) {
	cl, err := o.client()
	if err != nil {
		return nil, err
	}
	list := []topic.Line{}
	return list, cl.get(c.Context(), "/api/v1/topics", nil, &list)
}

func topicList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Every kind of message, with its rate", Args: cobra.NoArgs, Example: "  naru topic list",
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := topics(c, o)
			if err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), list, func(p *printer) {
				p.columns("No subject is declared.", "SUBJECTS", "TYPE", "MSG/S", "MESSAGES", "SIZE", "LAST")
				for _, l := range list {
					p.row(string(l.Subjects), l.Type, fmt.Sprintf("%.1f", l.PerSec), num(l.Messages), size(l.Bytes), ago(l.Last, time.Now()))
				}
			})
		},
	}
}

func topicInfo(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "info SUBJECT|TYPE", Short: "One kind of message: contract, who says it, who hears it", Args: cobra.ExactArgs(1),
		Example: "  naru topic info device.d-17.telemetry",
		RunE: func(c *cobra.Command, args []string) error {
			list, err := topics(c, o)
			if err != nil {
				return err
			}
			want := strings.ReplaceAll(args[0], "/", ".")
			var hits []topic.Line
			for _, l := range list {
				if l.Type == want || l.Subjects == message.Pattern(want) || message.Subject(want).Valid() == nil && l.Subjects.Matches(message.Subject(want)) {
					hits = append(hits, l)
				}
			}
			if len(hits) == 0 {
				return fmt.Errorf("no contract covers %q and nobody said it; `naru topic list` shows what there is", args[0])
			}
			return o.show(c.OutOrStdout(), hits, func(p *printer) {
				for _, l := range hits {
					p.row("subjects", string(l.Subjects))
					p.row("type", l.Type)
					p.row("doc", l.Doc)
					p.row("owner", l.Owner)
					p.row("route", string(l.Route))
					p.row("says", strings.Join(l.Says, " "))
					p.row("hears", strings.Join(l.Hears, " "))
					if l.Schema != nil {
						p.row("schema", string(l.Schema))
					}
					if l.Example != nil {
						p.row("example", string(l.Example))
					}
					p.row("messages", fmt.Sprintf("%d (%.1f/s), %s, last %s", l.Messages, l.PerSec, size(l.Bytes), ago(l.Last, time.Now())))
					if l.Orphan {
						p.row("note", "nobody that runs hears it")
					}
					p.line("")
				}
			})
		},
	}
}

// echo calls f with each message said from now on, until f gives false or ctx is done.
func echo(ctx context.Context, cl *client, subject string, head bool, f func(raw []byte, h topic.Heard, missed int64) bool) error {
	q := url.Values{}
	var err error
	if q["subject"], err = subjects(subject); err != nil {
		return err
	}
	if head {
		q.Set("head", "1")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, err := cl.open(ctx, "GET", "/api/v1/echo", q, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	s := bufio.NewScanner(body)
	s.Buffer(nil, 64<<20)
	for s.Scan() {
		var line struct {
			topic.Heard
			Missed int64 `json:"missed"`
		}
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		if !f(s.Bytes(), line.Heard, line.Missed) {
			return nil
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	if err := s.Err(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("the echo broke off: %w", err)
	}
	return fmt.Errorf("the platform at %s went away; what is said meanwhile, `naru messages` has when it is back", cl.URL)
}

// subjects are the patterns that a person means: subjects with * and >, or an MQTT filter with / + and #.
func subjects(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	if !strings.ContainsAny(s, "/+#") {
		return []string{s}, message.Pattern(s).Valid()
	}
	patterns, err := message.FromFilter(s)
	var list []string
	for _, p := range patterns {
		list = append(list, string(p))
	}
	return list, err
}

func topicEcho(o *options) *cobra.Command {
	var count int
	c := &cobra.Command{
		Use: "echo [SUBJECT]", Short: "What is being said, live", Args: cobra.MaximumNArgs(1),
		Example: "  naru topic echo 'device.*.telemetry'\n  naru topic echo device/d-17/# -n 5",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if count < 0 {
				return fmt.Errorf("--count %d: want how many, or 0 for no end", count)
			}
			o.listening(c, first(args, ">"))
			n := 0
			var werr error
			err = echo(c.Context(), cl, first(args, ">"), false, func(raw []byte, h topic.Heard, missed int64) bool {
				switch {
				case missed > 0:
					_, werr = fmt.Fprintf(c.ErrOrStderr(), "(%d messages came faster than they could be shown)\n", missed)
				case o.json():
					_, werr = fmt.Fprintf(c.OutOrStdout(), "%s\n", raw)
					n++
				default:
					data := cut(h.Text, 200)
					if h.Binary != nil {
						data = fmt.Sprintf("(%d bytes, not text)", h.Size)
					}
					_, werr = fmt.Fprintf(c.OutOrStdout(), "%s  %s  trace %s\n  %s\n", h.Recorded.Local().Format("15:04:05.000"), printable(string(h.Subject)), h.Trace, printable(data))
					n++
				}
				return werr == nil && (count == 0 || n < count)
			})
			if err == nil {
				err = werr
			}
			return err
		},
	}
	c.Flags().IntVarP(&count, "count", "n", 0, "stop after so many")
	return c
}

func topicRate(o *options, kind string) *cobra.Command {
	var window time.Duration
	var rounds int
	what, does := "How often something is said, and how regularly", "messages a second; mean, least, most and deviation of the gaps"
	if kind == "bw" {
		what, does = "How many bytes a second are said", "bytes a second, and the sizes of messages"
	}
	c := &cobra.Command{
		Use: kind + " [SUBJECT]", Short: what, Args: cobra.MaximumNArgs(1),
		Long:    what + ": " + does + ", each window anew.",
		Example: "  naru topic " + kind + " 'device.*.telemetry' -n 1",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if window <= 0 || rounds < 0 {
				return fmt.Errorf("--window %s --count %d: want a time such as 5s, and how many windows or 0 for no end", window, rounds)
			}
			return measure(c, o, cl, first(args, ">"), kind, window, rounds)
		},
	}
	c.Flags().DurationVarP(&window, "window", "w", 5*time.Second, "over how long")
	c.Flags().IntVarP(&rounds, "count", "n", 0, "stop after so many windows")
	return c
}

func topicPub(o *options) *cobra.Command {
	var contentType string
	c := &cobra.Command{
		Use: "pub SUBJECT DATA|-", Short: "Say a message", Args: cobra.ExactArgs(2),
		Long:    "Says a message as an operator, and returns when it is on disk. DATA - reads standard input.",
		Example: `  naru topic pub device.d-17.event.test '{"hello":"naru"}'`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			data := []byte(args[1])
			if args[1] == "-" {
				if data, err = io.ReadAll(io.LimitReader(c.InOrStdin(), 16<<20)); err != nil {
					return err
				}
			}
			subject := args[0]
			if strings.Contains(subject, "/") {
				s, err := message.FromTopic(subject)
				if err != nil {
					return err
				}
				subject = string(s)
			}
			in := map[string]any{"subject": subject, "data_base64": data, "content_type": contentType}
			var out struct {
				ID      message.ID      `json:"id"`
				Trace   message.TraceID `json:"trace"`
				Subject message.Subject `json:"subject"`
			}
			if err := cl.post(c.Context(), "/api/v1/publish", in, &out); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), out, func(p *printer) {
				p.line("on disk: %s, id %s\nnext: naru trace %s", out.Subject, out.ID, out.Trace)
			})
		},
	}
	c.Flags().StringVar(&contentType, "content-type", "", "media type of the data")
	return c
}

func first(args []string, otherwise string) string {
	if len(args) > 0 {
		return args[0]
	}
	return otherwise
}

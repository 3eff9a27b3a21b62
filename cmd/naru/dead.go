package main

import (
	"errors"
	"fmt"
	"net/url"
	"os/user"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/internal/when"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/operator/deadletter"
	"github.com/naru-platform/naru/service_platform/twin"
)

func deadCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "dead", Short: "Dead letters: what died, why, and bringing it back"}
	c.AddCommand(deadGroups(o), deadList(o), deadShow(o), deadRetry(o), deadDiscard(o), deadEdit(o), deadJobs(o), deadJob(o), deadCancel(o), deadAudit(o))
	return c
}

// selection are the flags that select letters.
type selection struct {
	group, component, reason, device, owner, subject, text, since, until string
	ids                                                                  []string
}

func (s *selection) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.group, "group", "", "of a group, as naru dead groups names it")
	f.StringVar(&s.component, "component", "", "that died at a component")
	f.StringVar(&s.reason, "reason", "", "that died for a reason, such as schema_mismatch")
	f.StringVar(&s.device, "device", "", "of a device")
	f.StringVar(&s.owner, "owner", "", "whose contract a team owns")
	f.StringVar(&s.subject, "subject", "", "whose subject a pattern selects, such as 'device.*.telemetry'")
	f.StringVar(&s.text, "text", "", "with this in the particulars")
	f.StringVar(&s.since, "since", "", "that failed last since a time (RFC 3339), or how long ago, such as 2h")
	f.StringVar(&s.until, "until", "", "that failed last before a time, or how long ago")
}

// query is the selection as a list takes it.
func (s *selection) query() (url.Values, error) {
	q := url.Values{}
	for k, v := range map[string]string{"group": s.group, "component": s.component, "reason": s.reason, "device": s.device, "owner": s.owner, "subject": s.subject, "text": s.text} {
		if v != "" {
			q.Set(k, v)
		}
	}
	for k, v := range map[string]string{"since": s.since, "until": s.until} {
		if v == "" {
			continue
		}
		at, err := when.Parse(v, time.Now())
		if err != nil {
			return nil, fmt.Errorf("--%s %s: %w", k, v, err)
		}
		q.Set(k, at.Format(time.RFC3339))
	}
	for _, id := range s.ids {
		q.Add("id", id)
	}
	return q, nil
}

// said refuses a selection that is none, unless all letters are meant.
func (s *selection) said(c *cobra.Command, all bool) error {
	q, err := s.query()
	if err != nil {
		return err
	}
	if all && len(q) > 0 {
		return fmt.Errorf("%s: --all is every letter there is, and some are named or selected too: want one of these", c.CommandPath())
	}
	if all || len(q) > 0 {
		return nil
	}
	return fmt.Errorf("%s: which letters? Name them, or select some, such as by --group; --all is every letter there is", c.CommandPath())
}

func (s *selection) filter() (deadletter.Filter, error) {
	q, err := s.query()
	if err != nil {
		return deadletter.Filter{}, err
	}
	return deadletter.FilterOf(q)
}

func deadGroups(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "groups", Short: "What died, by what is alike; the largest first", Args: cobra.NoArgs,
		Long:    "Shows dead letters by component, reason and what was said of them. Exits with 2 when there are any.",
		Example: "  naru dead groups\n  naru dead groups -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var got struct {
				Groups []deadletter.Group `json:"groups"`
				All    int64              `json:"total_letters"`
				Bytes  int64              `json:"total_bytes"`
			}
			if err := cl.get(c.Context(), "/api/v1/dead/groups", nil, &got); err != nil {
				return err
			}
			err = o.show(c.OutOrStdout(), got.Groups, func(p *printer) {
				p.columns("No dead letters.", "GROUP", "COUNT", "COMPONENT", "REASON", "LAST", "OWNER", "WHAT")
				for _, g := range got.Groups {
					p.row(g.ID, num(uint64(g.Count)), g.Component, g.Reason.String(), ago(g.Last, time.Now()), g.Owner, beyond(g.Reason, g.Shape))
				}
				if got.All == 0 {
					return
				}
				p.line("")
				p.line("%s, %s. Next: `naru dead list --group GROUP`; when the cause is mended, `naru dead retry --group GROUP`.", count(got.All, "letter"), size(uint64(got.Bytes)))
			})
			return found(err, got.All > 0)
		},
	}
}

func deadList(o *options) *cobra.Command {
	var s selection
	var limit int
	var before string
	c := &cobra.Command{
		Use: "list", Short: "Dead letters, the newest first", Args: cobra.NoArgs,
		Example: "  naru dead list --component service_platform.twin --since 2h\n  naru dead list --device d-17 -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			q, err := s.query()
			if err != nil {
				return err
			}
			q.Set("limit", strconv.Itoa(limit))
			if before != "" {
				q.Set("before", before)
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			var l deadletter.List
			if err := cl.get(c.Context(), "/api/v1/dead", q, &l); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), l, func(p *printer) {
				p.columns(noneOf("dead letters", len(q) > 1, "`naru dead groups` shows what there is"), "LETTER", "FAILED", "COMPONENT", "REASON", "STATE", "DEVICE", "SUBJECT", "DETAIL")
				for _, x := range l.Letters {
					p.row(x.ID.String(), ago(x.Last, time.Now()), x.Component, x.Reason.String(), x.State, x.Device, string(x.Subject), beyond(x.Reason, x.Detail))
				}
				if l.Next != "" {
					p.line("There are older ones: --before %s", l.Next)
				}
			})
		},
	}
	s.flags(c)
	c.Flags().IntVarP(&limit, "limit", "n", 100, "at most so many, up to 1000")
	c.Flags().StringVar(&before, "before", "", "those that are older than this letter")
	return c
}

func deadShow(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "show LETTER", Short: "One dead letter, with its message as it came", Args: cobra.ExactArgs(1),
		Example: "  naru dead show 0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e",
		RunE: func(c *cobra.Command, args []string) error {
			if err := isOne("letter", "list", args[0]); err != nil {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			var s deadletter.Shown
			if err := cl.get(c.Context(), "/api/v1/dead/letters/"+url.PathEscape(args[0]), nil, &s); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), s, func(p *printer) { showLetter(p, &s) })
		},
	}
}

func showLetter(p *printer, s *deadletter.Shown) {
	info := s.Reason.Info()
	p.row("died at", s.Component)
	p.row("reason", s.Reason.String()+" ("+info.Code+"): "+info.Means)
	p.row("detail", beyond(s.Reason, s.Dead.Detail))
	p.row("look at", info.Look)
	p.row("attempts", fmt.Sprintf("%d, from %s to %s", s.Attempts, s.First.Format(time.RFC3339), s.Last.Format(time.RFC3339)))
	p.row("state", s.State)
	p.row("group", s.Group)
	p.row("owner", s.Owner)
	p.row("message", s.Message.String())
	p.row("trace", s.Trace.String())
	p.row("subject", string(s.Subject))
	p.row("from", s.Source+", "+s.Recorded.Format(time.RFC3339))
	p.row("place", s.Dead.Log+" "+s.Dead.Position)
	if s.Bytes != nil {
		p.row("data", fmt.Sprintf("%d bytes that are no text", len(s.Bytes)))
	} else {
		p.row("data", s.Data)
	}
	if s.Edited {
		p.row("edited to", s.EditedData)
	}
	p.line("")
	if s.State == deadletter.Retrying {
		p.line("It is being tried again. Next: `naru dead job %s`.", s.Job)
		return
	}
	p.line("Next: `naru trace %s`; when the cause is mended, `naru dead retry %s`.", s.Trace, s.ID)
}

// isOne says of what can be no letter or job where those there are stand.
func isOne(what, list, id string) error {
	if _, err := message.ParseID(id); err != nil {
		return fmt.Errorf("%q is no %s; `naru dead %s` shows those there are", id, what, list)
	}
	return nil
}

// me is who asks, for the record.
func me() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "operator"
}

func deadRetry(o *options) *cobra.Command {
	var s selection
	var all, anyway bool
	var j deadletter.Job
	c := &cobra.Command{
		Use: "retry [LETTER…]", Short: "Send dead letters back to where they died",
		Long: `Sends the letters that are selected back to the component they died at, and to no other, with the ids and traces they had. A
few go first (--canary); the others follow when these were handled, at --rate. It is a job: it has what was there when
it began, goes on after a restart, and can be cancelled. Follow it with 'naru dead job'.`,
		Example: "  naru dead retry --group 91b0c4d2e8f3a675\n  naru dead retry --component service_platform.twin --since 3h --rate 200",
		RunE: func(c *cobra.Command, args []string) error {
			j.Kind, s.ids = deadletter.Retry, args
			if err := s.said(c, all); err != nil {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			if !anyway {
				if err := newer(c, cl, &s); err != nil {
					return err
				}
			}
			return beginJob(o, c, cl, &s, j, all)
		},
	}
	s.flags(c)
	c.Flags().IntVar(&j.Canary, "canary", 5, "so many go first, and the others when these were handled; 0 for none")
	c.Flags().Float64Var(&j.Rate, "rate", 50, "letters a second")
	c.Flags().StringVar(&j.Note, "note", "", "why, for the record")
	c.Flags().BoolVar(&all, "all", false, "every letter there is")
	c.Flags().BoolVar(&anyway, "even-if-newer", false, "also what is older than what its twin has now")
	return c
}

// newerMost is how many letters are held against their twins before a retry.
const newerMost = 200

// newer refuses to bring back an update of a twin that has a later one: the older would win.
func newer(c *cobra.Command, cl *client, s *selection) error {
	q, err := s.query()
	if err != nil {
		return err
	}
	if c := q.Get("component"); c != "" && c != twin.Spec.Name {
		return nil
	}
	q.Set("component", twin.Spec.Name)
	q.Set("limit", strconv.Itoa(newerMost))
	var l deadletter.List
	if err := cl.get(c.Context(), "/api/v1/dead", q, &l); err != nil {
		return err
	}
	late, example := 0, ""
	for _, x := range l.Letters {
		var t twin.Shown
		if x.Device == "" || cl.get(c.Context(), twinPath(x.Device, ""), nil, &t) != nil { // it has none, or it is not asked here
			continue
		}
		if t.Updated.After(x.Message.Time()) {
			late++
			example = x.Device
		}
	}
	if late > 0 {
		return fmt.Errorf("%d of the letters are updates of twins that were updated later, such as %s's: handled now, the older would win. Discard them, or say --even-if-newer", late, example)
	}
	return nil
}

func deadDiscard(o *options) *cobra.Command {
	var s selection
	var all bool
	var j deadletter.Job
	c := &cobra.Command{
		Use: "discard [LETTER…]", Short: "Give dead letters up for good",
		Long:    "Discards the letters that are selected, at --rate, as a job that can be cancelled. Who did it and why is kept.",
		Example: "  naru dead discard --device lab-3 --note 'the lab bench'\n  naru dead discard --group 91b0c4d2e8f3a675 --until 720h",
		RunE: func(c *cobra.Command, args []string) error {
			j.Kind, s.ids = deadletter.Discard, args
			if err := s.said(c, all); err != nil {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			return beginJob(o, c, cl, &s, j, all)
		},
	}
	s.flags(c)
	c.Flags().Float64Var(&j.Rate, "rate", 1000, "letters a second")
	c.Flags().StringVar(&j.Note, "note", "", "why, for the record")
	c.Flags().BoolVar(&all, "all", false, "every letter there is")
	return c
}

func beginJob(o *options, c *cobra.Command, cl *client, s *selection, j deadletter.Job, all bool) (err error) {
	if j.Filter, err = s.filter(); err != nil {
		return err
	}
	q := url.Values{}
	if all {
		q.Set("all", "true")
	}
	request := map[string]any{"kind": j.Kind, "filter": j.Filter, "by": me(), "note": j.Note, "canary": j.Canary, "rate": j.Rate}
	var begun deadletter.Job
	if err := cl.do(c.Context(), "POST", "/api/v1/dead/jobs", q, request, &begun); err != nil {
		return err
	}
	return o.show(c.OutOrStdout(), begun, func(p *printer) {
		p.line("job %s: %s of %s", begun.ID, begun.Kind, count(int64(begun.Selected), "letter"))
		p.line("Next: `naru dead job %s`, or `naru dead cancel %s`.", begun.ID, begun.ID)
	})
}

func deadEdit(o *options) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "edit LETTER", Short: "Put other data into a dead message, for its next retry", Args: cobra.ExactArgs(1),
		Long:    "Puts data into a dead letter's message, which its next retry has; it must keep the message's contract. The original stays as it was, and who edited it is kept.",
		Example: "  naru dead edit 0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e --file mended.json",
		RunE: func(c *cobra.Command, args []string) error {
			if err := isOne("letter", "list", args[0]); err != nil {
				return err
			}
			if file == "" {
				return errors.New("want --file with the data, or - for standard input")
			}
			data, err := readFile(c.InOrStdin(), file)
			if err != nil {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			var s deadletter.Shown
			if err := cl.do(c.Context(), "PUT", "/api/v1/dead/letters/"+url.PathEscape(args[0])+"/data", url.Values{"by": {me()}}, data, &s); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), s, func(p *printer) { showLetter(p, &s) })
		},
	}
	c.Flags().StringVar(&file, "file", "", "file with the data, or - for standard input")
	return c
}

func deadJobs(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "jobs", Short: "Retries and discards, the newest first", Args: cobra.NoArgs, Example: "  naru dead jobs",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			list := []deadletter.Job{}
			if err := cl.get(c.Context(), "/api/v1/dead/jobs", nil, &list); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), list, func(p *printer) {
				p.columns("No retries or discards yet; `naru dead retry` and `naru dead discard` begin one.", "JOB", "BEGAN", "BY", "KIND", "STATE", "SELECTED", "SENT", "WAITING", "HANDLED", "DIED AGAIN", "REFUSED")
				for i := range list {
					jobRow(p, &list[i])
				}
			})
		},
	}
}

func jobRow(p *printer, j *deadletter.Job) {
	p.row(j.ID.String(), ago(j.Began, time.Now()), j.By, j.Kind, j.State, fmt.Sprint(j.Selected), fmt.Sprint(j.Sent), fmt.Sprint(j.Waiting),
		fmt.Sprint(j.Handled+j.NotMatched), fmt.Sprint(j.Died), fmt.Sprint(j.Refused))
}

func deadJob(o *options) *cobra.Command {
	var result, after string
	c := &cobra.Command{
		Use: "job JOB", Short: "One retry or discard, with the result of each letter", Args: cobra.ExactArgs(1),
		Long:    "Shows a job and what became of its letters. Exits with 2 when it stopped, or letters died again or were refused.",
		Example: "  naru dead job 0193d5a1-7b2c-7e41-9c3f-5d2f8a6b1c4e --result dead",
		RunE: func(c *cobra.Command, args []string) error {
			if err := isOne("job", "jobs", args[0]); err != nil {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {"1000"}}
			if result != "" {
				q.Set("result", result)
			}
			if after != "" {
				q.Set("after", after)
			}
			var j deadletter.JobShown
			if err := cl.get(c.Context(), "/api/v1/dead/jobs/"+url.PathEscape(args[0]), q, &j); err != nil {
				return err
			}
			err = o.show(c.OutOrStdout(), j, func(p *printer) {
				p.columns("No retries or discards yet; `naru dead retry` and `naru dead discard` begin one.", "JOB", "BEGAN", "BY", "KIND", "STATE", "SELECTED", "SENT", "WAITING", "HANDLED", "DIED AGAIN", "REFUSED")
				jobRow(p, &j.Job)
				if j.Why != "" {
					p.line("%s: %s", j.State, j.Why)
				}
				p.line("")
				p.columns("No letter has a result yet.", "LETTER", "RESULT", "AT", "COMPONENT", "DEVICE", "DETAIL")
				for _, r := range j.Results {
					p.row(r.Letter.String(), r.Result, ago(r.At, time.Now()), r.Component, r.Device, r.Detail)
				}
				if j.Next != "" {
					p.line("There are more: --after %s", j.Next)
				}
			})
			return found(err, j.State == deadletter.Stopped || j.Died+j.Refused > 0)
		},
	}
	c.Flags().StringVar(&result, "result", "", "only those with a result: waiting, handled, not_matched, dead, refused, discarded")
	c.Flags().StringVar(&after, "after", "", "those behind this letter")
	return c
}

func deadCancel(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "cancel JOB", Short: "Have a retry or discard send nothing more", Args: cobra.ExactArgs(1), Example: "  naru dead cancel 0193d5a1-7b2c-7e41-9c3f-5d2f8a6b1c4e",
		RunE: func(c *cobra.Command, args []string) error {
			if err := isOne("job", "jobs", args[0]); err != nil {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			var j deadletter.Job
			if err := cl.do(c.Context(), "POST", "/api/v1/dead/jobs/"+args[0]+"/cancel", url.Values{"by": {me()}}, nil, &j); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), j, func(p *printer) {
				p.line("cancelled: %d of %d were sent, and %d of them wait for their result", j.Sent, j.Selected, j.Waiting)
			})
		},
	}
}

func deadAudit(o *options) *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "audit", Short: "Who did what with dead letters, the newest first", Args: cobra.NoArgs, Example: "  naru dead audit",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			list := []deadletter.Entry{}
			if err := cl.get(c.Context(), "/api/v1/dead/audit", url.Values{"limit": {strconv.Itoa(limit)}}, &list); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), list, func(p *printer) {
				p.columns("Nobody has retried, discarded or edited a dead letter yet.", "AT", "BY", "WHAT", "JOB OR LETTER", "DETAIL")
				for _, e := range list {
					of := e.Job
					if of.IsZero() {
						of = e.Letter
					}
					what := ""
					if !of.IsZero() {
						what = of.String()
					}
					p.row(e.At.Format(time.RFC3339), e.By, e.What, what, e.Detail)
				}
			})
		},
	}
	c.Flags().IntVarP(&limit, "limit", "n", 100, "at most so many, up to 1000")
	return c
}

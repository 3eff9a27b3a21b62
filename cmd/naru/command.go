package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/command"
)

func commandCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "command", Short: "Commands to devices: say one, and see how far it came"}
	c.AddCommand(commandSend(o), commandList(o), commandShow(o), commandCancel(o))
	return c
}

func commandPath(device, id string) string {
	return "/api/v1/commands/" + url.PathEscape(device) + "/" + url.PathEscape(id)
}

func commandSend(o *options) *cobra.Command {
	var s command.Send
	var qos uint8
	var file string
	var wait time.Duration
	c := &cobra.Command{
		Use: "send DEVICE NAME [DATA]", Short: "Say a command to a device", Args: cobra.RangeArgs(2, 3),
		Long: `Says a command, as an app does. It is kept until the device has answered or its time to live is over, whether the device
is connected or not. DATA is JSON, or text where it is not. With --wait it waits for the end, and exits with 2 when that is
anything but an answer, or has not come by then.`,
		Example: "  naru command send d-17 reboot '{\"delay\":5}' --ttl 10m\n  naru command send sim-0 ping --wait 10s",
		RunE: func(c *cobra.Command, args []string) error {
			s.Device, s.Name, s.By, s.QoS, s.TTL = args[0], args[1], me(), &qos, inHours(s.TTL)
			data := []byte(nil)
			if len(args) > 2 {
				data = []byte(args[2])
			}
			if file != "" {
				if data != nil {
					return errors.New("DATA and --file: want one of them")
				}
				var err error
				if data, err = readFile(c.InOrStdin(), file); err != nil {
					return err
				}
			}
			if json.Valid(data) {
				s.Data = data
			} else {
				s.Text = string(data)
				if begins := strings.TrimSpace(s.Text); begins != "" && strings.Contains("{[", begins[:1]) {
					o.hint(c, "DATA begins as JSON does and is none; it is sent as text")
				}
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			var shown command.Shown
			if err := cl.post(c.Context(), "/api/v1/commands", s, &shown); err != nil {
				return err
			}
			if wait > 0 {
				if err := awaitCommand(c.Context(), cl, &shown, wait); err != nil {
					return err
				}
			}
			if !shown.Ended() {
				if there, err := cl.registered(c.Context(), s.Device); err == nil && !there {
					o.hint(c, "no device %s is registered (`naru device list`): the command waits until one of that name is and comes; to take it back: naru command cancel %s %s", s.Device, s.Device, shown.ID)
				}
			}
			return showCommand(o, c, &shown, wait)
		},
	}
	f := c.Flags()
	f.StringVar(&s.ID, "id", "", "the command's id; said again under one id, it is the same command (default: a new one)")
	f.StringVar(&s.TTL, "ttl", "", "for how long it is worth something, such as 10m (default: a day)")
	f.Uint8Var(&qos, "qos", 1, "0, 1 or 2; with 0 nobody knows whether it arrived")
	f.StringVar(&s.ContentType, "content-type", "", "of the data (default: application/json where it is JSON)")
	f.StringVar(&file, "file", "", "file with the data, or - for standard input")
	f.DurationVar(&wait, "wait", 0, "wait so long for the end")
	return c
}

// awaitCommand asks until the command has ended, or the time is over.
func awaitCommand(ctx context.Context, cl *client, s *command.Shown, wait time.Duration) error {
	const most = 30 * time.Second // of one request
	for until := time.Now().Add(wait); !s.Ended(); {
		left := min(time.Until(until), most)
		if left <= 0 {
			return nil
		}
		q := url.Values{"wait": {left.Round(time.Millisecond).String()}, "name": {s.Name}}
		next := command.Shown{}
		if err := cl.get(ctx, commandPath(s.Device, s.ID), q, &next); err != nil {
			return err
		}
		*s = next
	}
	return nil
}

func commandShow(o *options) *cobra.Command {
	var name string
	var wait time.Duration
	c := &cobra.Command{
		Use: "show DEVICE COMMAND-ID", Short: "A command: states and times, what it waits for, the answer", Args: cobra.ExactArgs(2),
		Long:    "Shows a command. It exits with 2 when the command failed, expired or was cancelled, or with --wait has not ended by then.",
		Example: "  naru command show d-17 c1\n  naru command show d-17 c1 --wait 1m",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			s, err := findCommand(c.Context(), cl, args[0], args[1], name)
			if err == nil && wait > 0 {
				err = awaitCommand(c.Context(), cl, s, wait)
			}
			if err != nil {
				return err
			}
			return showCommand(o, c, s, wait)
		},
	}
	c.Flags().StringVar(&name, "name", "", "the command's name, where the device has several of one id")
	c.Flags().DurationVar(&wait, "wait", 0, "wait so long for the end")
	return c
}

func findCommand(ctx context.Context, cl *client, device, id, name string) (*command.Shown, error) {
	q := url.Values{}
	if name != "" {
		q.Set("name", name)
	}
	s := new(command.Shown)
	return s, cl.get(ctx, commandPath(device, id), q, s)
}

// unwell says that a command has ended without having been done.
func unwell(state string) bool {
	switch state {
	case serviceplatform.CommandFailed, serviceplatform.CommandExpired, serviceplatform.CommandCancelled:
		return true
	}
	return false
}

// showCommand shows a command, for whose end it was waited so long.
func showCommand(o *options, c *cobra.Command, s *command.Shown, waited time.Duration) error {
	if err := o.show(c.OutOrStdout(), s, func(p *printer) { printCommand(p, s) }); err != nil {
		return err
	}
	if waited > 0 && !s.Ended() {
		o.hint(c, "it has not ended within %s; it goes on: naru command show %s %s --wait 1m", exactly(waited), s.Device, s.ID)
		return errFault
	}
	if unwell(s.State) {
		return errFault
	}
	return nil
}

func printCommand(p *printer, s *command.Shown) {
	head := fmt.Sprintf("command %s (%s) to %s: %s", s.ID, s.Name, s.Device, s.State)
	if s.State == serviceplatform.CommandSent {
		head += ", unconfirmed"
	}
	if s.Reason != 0 {
		head += ", " + s.Reason.String()
	}
	p.line("%s", head)
	for _, more := range []string{s.Detail, s.Why} {
		if more != "" {
			p.line("  %s", more)
		}
	}
	if s.Look != "" {
		p.line("  -> %s", s.Look)
	}
	if s.Data != "" {
		p.line("data     %s", cut(s.Data, 200))
	}
	p.line("said by  %s", s.Source)
	p.line("trace    %s", s.Trace)
	for _, t := range []struct {
		name string
		at   time.Time
		more string
	}{
		{"queued", s.Times.Queued, ""}, {"released", s.Times.Released, fmt.Sprintf("%d times", s.Attempts)}, {"sent", s.Times.Sent, "QoS 0, unconfirmed"},
		{"delivered", s.Times.Delivered, "to client " + s.Client}, {"replied", s.Times.Replied, ""}, {"ended", s.Times.Ended, ""}, {"expires", s.Expires, ""},
	} {
		if t.at.IsZero() || t.name == "expires" && s.Ended() {
			continue
		}
		if t.name == "released" && s.Attempts == 1 {
			t.more = ""
		}
		p.row(t.name, t.at.Local().Format(time.DateTime+".000"), t.more)
	}
	if s.Reply != nil {
		p.line("answer   %s", cut(s.Reply.Data, 1000))
	}
	for _, r := range s.Late {
		p.line("late     %s: %s", r.At.Local().Format(time.DateTime+".000"), cut(r.Data, 200))
	}
}

func commandList(o *options) *cobra.Command {
	var device, state, name, before string
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "The commands there are, the newest first", Args: cobra.NoArgs,
		Example: "  naru command list --device d-17\n  naru command list --state queued",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			for k, v := range map[string]string{"device": device, "state": state, "name": name, "before": before} {
				if v != "" {
					q.Set(k, v)
				}
			}
			var l command.List
			if err := cl.get(c.Context(), "/api/v1/commands", q, &l); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), l, func(p *printer) {
				printCommands(p, &l, noneOf("commands", len(q) > 1, "`naru command send DEVICE NAME` says one"))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&device, "device", "", "of one device")
	f.StringVar(&state, "state", "", "in one state; open for those that have not ended")
	f.StringVar(&name, "name", "", "of one name")
	f.StringVar(&before, "before", "", "what the page before said comes next")
	f.IntVar(&limit, "limit", 100, "how many, 1000 at most")
	return c
}

func printCommands(p *printer, l *command.List, none string) {
	now := time.Now()
	p.columns(none, "SAID", "DEVICE", "NAME", "ID", "STATE", "DETAIL")
	for _, x := range l.Commands {
		p.row(ago(x.Times.Queued, now), x.Device, x.Name, x.ID, x.State, cut(x.Detail+x.Why, 60))
	}
	var kept []string
	for _, s := range []string{serviceplatform.CommandQueued, serviceplatform.CommandReleased, serviceplatform.CommandSent, serviceplatform.CommandDelivered,
		serviceplatform.CommandReplied, serviceplatform.CommandFailed, serviceplatform.CommandExpired, serviceplatform.CommandCancelled} {
		if n := l.Counts[s]; n > 0 {
			kept = append(kept, fmt.Sprintf("%d %s", n, s))
		}
	}
	if len(kept) > 0 {
		p.line("commands kept, of all devices: %s", strings.Join(kept, ", "))
	}
	if l.Next != "" {
		p.line("there are more: --before %s", l.Next)
	}
}

func commandCancel(o *options) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "cancel DEVICE COMMAND-ID", Short: "Take a command back", Args: cobra.ExactArgs(2),
		Long:    "Takes a command back that has not ended. One that was released already may reach the device all the same.",
		Example: "  naru command cancel d-17 c1",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := url.Values{"by": {me()}}
			if name != "" {
				q.Set("name", name)
			}
			var s command.Shown
			if err := cl.do(c.Context(), "DELETE", commandPath(args[0], args[1]), q, nil, &s); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), s, func(p *printer) { printCommand(p, &s) })
		},
	}
	c.Flags().StringVar(&name, "name", "", "the command's name, where the device has several of one id")
	return c
}

// whyCommandOf says why a command is where it is.
func whyCommandOf(o *options) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "command DEVICE COMMAND-ID", Short: "Why a command is where it is", Args: cobra.ExactArgs(2),
		Long:    "Says what a command waits for, or why it ended as it did, and what to do. It exits with 2 when it was not done, or waits for something.",
		Example: "  naru why command d-17 c1",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			s, err := findCommand(c.Context(), cl, args[0], args[1], name)
			if err != nil {
				return err
			}
			b := struct {
				Device string `json:"device"`
				ID     string `json:"id"`
				State  string `json:"state"`
				Cause  string `json:"cause"`
				Remedy string `json:"remedy,omitempty"`
			}{s.Device, s.ID, s.State, s.Why + s.Detail, s.Look}
			if s.Reason != 0 && b.Remedy == "" {
				b.Remedy = s.Reason.Info().Look
			}
			if b.Cause == "" {
				b.Cause = "the device has answered"
			}
			if err := o.show(c.OutOrStdout(), b, func(p *printer) {
				p.line("command %s of %s is %s: %s", b.ID, b.Device, b.State, b.Cause)
				if b.Remedy != "" {
					p.line("  -> %s", b.Remedy)
				}
			}); err != nil {
				return err
			}
			if unwell(s.State) || s.State == serviceplatform.CommandQueued {
				return errFault
			}
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", "", "the command's name, where the device has several of one id")
	return c
}

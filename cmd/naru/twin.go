package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/naru-platform/naru/service_platform/twin"
)

func twinCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "twin", Short: "Device twins: what is desired, what is reported, and who changed it"}
	c.AddCommand(twinGet(o), twinSet(o), twinList(o), twinWatch(o), twinBlame(o), twinHistory(o), twinConflicts(o), twinDrift(o), twinDelete(o))
	return c
}

// twinPath is where a device's twin is asked for.
func twinPath(device, rest string) string {
	return "/api/v1/twins/" + url.PathEscape(device) + rest
}

// named adds --name, which may be said as --shadow: so rules and HTTP call it.
func named(c *cobra.Command, name *string) *cobra.Command {
	c.Flags().StringVar(name, "name", "", "a named twin, instead of the unnamed one")
	c.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, flag string) pflag.NormalizedName {
		if flag == "shadow" {
			flag = "name"
		}
		return pflag.NormalizedName(flag)
	})
	return c
}

func shadowQuery(name string) url.Values {
	if name == "" {
		return url.Values{}
	}
	return url.Values{"shadow": {name}}
}

func twinGet(o *options) *cobra.Command {
	var name, at, version string
	c := &cobra.Command{
		Use: "get DEVICE", Short: "A twin, now or in the past", Args: cobra.ExactArgs(1),
		Example: "  naru twin get d-17\n  naru twin get d-17 --name config\n  naru twin get d-17 --at 2h",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := shadowQuery(name)
			if at != "" {
				q.Set("at", inHours(at))
			}
			if version != "" {
				q.Set("version", version)
			}
			var s twin.Shown
			if err := cl.get(c.Context(), twinPath(args[0], ""), q, &s); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), s, func(p *printer) {
				p.line("%s  version %d, updated %s by %s", called(s.Device, s.Shadow), s.Version, ago(s.Updated, time.Now()), s.Source)
				p.line("%s", indented(s.Document))
				for _, d := range s.Drift {
					p.line("drifts: %s is desired %s and reported %s, for %s (message %s)", d.Path, d.Desired, orNothing(d.Reported), short(time.Since(d.Since)), d.By.ID)
				}
				if len(s.Shadows) > 0 {
					p.line("it has other twins: %s", strings.Join(s.Shadows, ", "))
				}
			})
		},
	}
	c.Flags().StringVar(&at, "at", "", "as it was then: a time (RFC 3339), or how long ago, such as 2h")
	c.Flags().StringVar(&version, "version", "", "as it was at that version")
	return named(c, &name)
}

func twinSet(o *options) *cobra.Command {
	var name, file string
	var version uint64
	c := &cobra.Command{
		Use: "set DEVICE FIELD=VALUE…", Short: "Desire something of a device", Args: cobra.MinimumNArgs(1),
		Long: `Says an update of a device's twin, as an app would, and shows the answer. Fields are of what is desired, with dots between
levels; values are JSON, or text where they are not; null removes a field. With --file the whole request is read instead,
with state.desired and state.reported as AWS Device Shadow has them.`,
		Example: "  naru twin set d-17 mode=eco limits.celsius=21.5\n  naru twin set d-17 mode=null\n  naru twin set d-17 --file request.json",
		RunE: func(c *cobra.Command, args []string) error {
			request, err := twinRequest(c.InOrStdin(), args[1:], file, version)
			if err != nil {
				return err
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := shadowQuery(name)
			if u, err := user.Current(); err == nil {
				q.Set("by", u.Username)
			}
			var answer json.RawMessage
			if err := cl.do(c.Context(), "POST", twinPath(args[0], ""), q, request, &answer); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), answer, func(p *printer) { p.line("%s", indented(answer)) })
		},
	}
	c.Flags().StringVar(&file, "file", "", "file with the request, or - for standard input")
	c.Flags().Uint64Var(&version, "version", 0, "refuse, unless the twin has this version")
	return named(c, &name)
}

// twinRequest makes a request of fields and values.
func twinRequest(in io.Reader, fields []string, file string, version uint64) (json.RawMessage, error) {
	if file != "" {
		if len(fields) > 0 || version > 0 {
			return nil, fmt.Errorf("--file is the whole request: no fields and no --version beside it")
		}
		raw, err := readFile(in, file)
		if err == nil && !json.Valid(raw) {
			err = fmt.Errorf("%s is no JSON", file)
		}
		return raw, err
	}
	if len(fields) == 0 {
		return nil, fmt.Errorf("nothing to set: want fields such as mode=eco, or --file")
	}
	desired := map[string]any{}
	for _, f := range fields {
		path, value, ok := strings.Cut(f, "=")
		levels := strings.Split(path, ".")
		if !ok || slices.Contains(levels, "") {
			return nil, fmt.Errorf("%q: want FIELD=VALUE, such as limits.celsius=21.5", f)
		}
		at := desired
		for _, l := range levels[:len(levels)-1] {
			next, ok := at[l].(map[string]any)
			if at[l] != nil && !ok {
				return nil, fmt.Errorf("%q: %s has a value already", f, l)
			}
			if next == nil {
				next = map[string]any{}
				at[l] = next
			}
			at = next
		}
		last := levels[len(levels)-1]
		if json.Valid([]byte(value)) {
			at[last] = json.RawMessage(value)
		} else {
			at[last] = value
		}
	}
	request := map[string]any{"state": map[string]any{"desired": desired}}
	if version > 0 {
		request["version"] = version
	}
	return json.Marshal(request)
}

func twinList(o *options) *cobra.Command {
	var device, prefix, after string
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "The twins there are", Args: cobra.NoArgs,
		Example: "  naru twin list\n  naru twin list --device d-17",
		RunE: func(c *cobra.Command, _ []string) error {
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			for k, v := range map[string]string{"device": device, "prefix": prefix, "after": after} {
				if v != "" {
					q.Set(k, v)
				}
			}
			return listTwins(o, c, "/api/v1/twins", q)
		},
	}
	c.Flags().StringVar(&device, "device", "", "of one device")
	c.Flags().StringVar(&prefix, "prefix", "", "of devices whose names begin so")
	c.Flags().StringVar(&after, "after", "", "what the page before said comes next")
	c.Flags().IntVar(&limit, "limit", 100, "how many, 1000 at most")
	return c
}

func twinDrift(o *options) *cobra.Command {
	var older, after string
	c := &cobra.Command{
		Use: "drift", Short: "Twins of which something desired was never reported", Args: cobra.NoArgs,
		Long:    "Lists twins whose device has not reported what is desired. It exits with 2 when there are such.",
		Example: "  naru twin drift --older 10m",
		RunE: func(c *cobra.Command, _ []string) error {
			q := url.Values{}
			for k, v := range map[string]string{"older": inHours(older), "after": after} {
				if v != "" {
					q.Set(k, v)
				}
			}
			return listTwins(o, c, "/api/v1/drift", q)
		},
	}
	c.Flags().StringVar(&older, "older", "", "for longer than this, such as 10m")
	c.Flags().StringVar(&after, "after", "", "what the page before said comes next")
	return c
}

// listTwins shows a page of twins; of those that drift, finding one is finding a fault.
func listTwins(o *options, c *cobra.Command, path string, q url.Values) error {
	cl, err := o.client()
	if err != nil {
		return err
	}
	var list twin.List
	if err := cl.get(c.Context(), path, q, &list); err != nil {
		return err
	}
	err = o.show(c.OutOrStdout(), list, func(p *printer) {
		now := time.Now()
		if len(list.Twins) == 0 && list.Next == "" {
			p.line("None of %s; %d drift.", count(int64(list.All), "twin"), list.Drifting)
			return
		}
		p.columns("", "DEVICE", "NAME", "VERSION", "UPDATED", "DRIFTS", "BY")
		for _, l := range list.Twins {
			drift := "no"
			if !l.Drift.IsZero() {
				drift = "for " + short(now.Sub(l.Drift))
			}
			p.row(l.Device, l.Shadow, fmt.Sprint(l.Version), ago(l.Updated, now), drift, l.Source)
		}
		for _, l := range list.Twins {
			for _, d := range l.Fields {
				p.line("  %s: %s is desired %s and reported %s, for %s", called(l.Device, l.Shadow), d.Path, cut(string(d.Desired), 40),
					cut(orNothing(d.Reported), 40), short(now.Sub(d.Since)))
				p.line("    by %s (message %s)", d.By.Source, d.By.ID)
			}
		}
		p.line("%d of %d twins; %d drift", len(list.Twins), list.All, list.Drifting)
		if list.Next != "" {
			p.line("  -> more with --after %s", list.Next)
		}
	})
	if err == nil && strings.HasSuffix(path, "drift") && len(list.Twins) > 0 {
		return errFault
	}
	return err
}

func twinBlame(o *options) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "blame DEVICE [PATH]", Short: "Which message, from whom, made each field what it is", Args: cobra.RangeArgs(1, 2),
		Example: "  naru twin blame d-17\n  naru twin blame d-17 /desired/mode",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := shadowQuery(name)
			if len(args) > 1 {
				path := args[1]
				if !strings.HasPrefix(path, "/") {
					path = "/" + strings.ReplaceAll(path, ".", "/")
				}
				q.Set("path", path)
			}
			var b twin.Blame
			if err := cl.get(c.Context(), twinPath(args[0], "/blame"), q, &b); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), b, func(p *printer) {
				p.columns("The twin has no fields; `naru twin set` desires something.", "FIELD", "VALUE", "CHANGED", "BY", "MESSAGE", "TRACE")
				for _, f := range b.Fields {
					trace := "forgotten"
					if !f.Trace.IsZero() {
						trace = f.Trace.String()
					}
					p.row(f.Path, cut(string(f.Value), 40), ago(f.ChangedAt, time.Now()), f.Changed.Source, f.Changed.ID.String(), trace)
				}
				if len(b.Fields) > 0 {
					p.line("  -> naru trace MESSAGE shows the whole way of one, also where the history has forgotten its trace")
				}
			})
		},
	}
	return named(c, &name)
}

func twinHistory(o *options) *cobra.Command {
	var name, before string
	var limit int
	c := &cobra.Command{
		Use: "history DEVICE", Short: "What changed a twin, the newest first", Args: cobra.ExactArgs(1),
		Example: "  naru twin history d-17",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := shadowQuery(name)
			q.Set("limit", strconv.Itoa(limit))
			if before != "" {
				q.Set("before", before)
			}
			var h twin.History
			if err := cl.get(c.Context(), twinPath(args[0], "/history"), q, &h); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), h, func(p *printer) {
				if len(h.Records) == 0 {
					p.line("nothing is remembered of %s that far back", called(args[0], name))
				}
				for _, r := range h.Records {
					showTwinRecord(p, &r)
				}
				if h.Next > 0 {
					p.line("  -> older ones with --before %d", h.Next)
				}
			})
		},
	}
	c.Flags().StringVar(&before, "before", "", "what the page before said comes next")
	c.Flags().IntVar(&limit, "limit", 100, "how many, 1000 at most")
	return named(c, &name)
}

func showTwinRecord(p *printer, r *twin.Record) {
	p.line("%s  %s  %s version %d by %s, trace %s", r.At.Local().Format("2006-01-02 15:04:05.000"), called(r.Device, r.Shadow), r.Change, r.Version, r.Source, r.Trace)
	for _, c := range r.Changes {
		p.line("    %s: %s -> %s", c.Path, cut(orNothing(c.Before), 60), cut(orNothing(c.After), 60))
	}
}

func twinConflicts(o *options) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "conflicts DEVICE", Short: "Updates that were refused since another one had come before", Args: cobra.ExactArgs(1),
		Example: "  naru twin conflicts d-17",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var answer struct {
				Device    string          `json:"device"`
				Shadow    string          `json:"shadow,omitempty"`
				Conflicts []twin.Conflict `json:"conflicts"`
			}
			if err := cl.get(c.Context(), twinPath(args[0], "/conflicts"), shadowQuery(name), &answer); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), answer, func(p *printer) {
				p.columns("No update of "+called(args[0], name)+" was refused for its version.", "WHEN", "BY", "STATED", "WAS", "MADE SO BY", "TRACE")
				for _, x := range answer.Conflicts {
					p.row(ago(x.At, time.Now()), x.Source, fmt.Sprint(x.Stated), fmt.Sprint(x.Was), x.Other.Source, x.Trace.String())
				}
			})
		},
	}
	return named(c, &name)
}

func twinWatch(o *options) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "watch DEVICE", Short: "A device's twins as they change", Args: cobra.ExactArgs(1),
		Example: "  naru twin watch d-17",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			body, err := cl.open(c.Context(), "GET", twinPath(args[0], "/watch"), shadowQuery(name), nil)
			if err != nil {
				return err
			}
			defer body.Close()
			o.listening(c, "the twins of "+args[0])
			lines := bufio.NewScanner(body)
			lines.Buffer(nil, 4<<20)
			for lines.Scan() {
				if o.json() {
					if _, err := fmt.Fprintf(c.OutOrStdout(), "%s\n", lines.Bytes()); err != nil {
						return err
					}
					continue
				}
				var r struct {
					twin.Record
					Missed int `json:"missed"`
				}
				if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
					return fmt.Errorf("read a change: %w", err)
				}
				p := &printer{w: c.OutOrStdout()}
				if r.Missed > 0 {
					p.line("(%d changes came faster than they could be shown)", r.Missed)
				} else {
					showTwinRecord(p, &r.Record)
				}
				if err := p.flush(); err != nil {
					return err
				}
			}
			if c.Context().Err() != nil {
				return nil
			}
			return lines.Err()
		},
	}
	return named(c, &name)
}

func twinDelete(o *options) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "delete DEVICE", Short: "Forget a twin; its version goes on for two days", Args: cobra.ExactArgs(1),
		Example: "  naru twin delete d-17 --name config",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var answer json.RawMessage
			if err := cl.do(c.Context(), "DELETE", twinPath(args[0], ""), shadowQuery(name), nil, &answer); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), answer, func(p *printer) { p.line("the twin of %s is deleted", called(args[0], name)) })
		},
	}
	return named(c, &name)
}

func called(device, shadow string) string {
	if shadow == "" {
		return device
	}
	return device + " " + shadow
}

func orNothing(v json.RawMessage) string {
	if len(v) == 0 {
		return "nothing"
	}
	return string(v)
}

func indented(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Indent(&b, raw, "", "  ") != nil {
		return string(raw)
	}
	return string(plainText(b.Bytes()))
}

// readFile reads a file, or standard input for -.
func readFile(in io.Reader, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(name)
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/naru-platform/naru/data_platform/api"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/internal/when"
	"github.com/naru-platform/naru/internal/whole"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/operator/journal"
)

// queryMax is how long a query from standard input may be; the platform takes less.
const queryMax = 1 << 20

func dataQuery(o *options) *cobra.Command {
	var limit int
	var timeout string
	var args []string
	c := &cobra.Command{
		Use: "query SQL|-", Short: "Ask by SQL that only reads", Args: cobra.ExactArgs(1), Annotations: map[string]string{alsoFormats: "csv ndjson arrow"},
		Long: `Answers one SELECT over datasets and their roll-ups; - reads it from standard input. --arg gives what $1, $2… stand for. The rows
are a table, or with -o json, csv, ndjson or arrow (a stream of Arrow's IPC format) for other programs. Where there are more rows than
--limit, standard error says so.`,
		Example: `  naru data query "SELECT device, max(celsius) FROM telemetry WHERE time > now() - INTERVAL 1 DAY GROUP BY device"
  naru data query -o json "SELECT count(*) AS n FROM telemetry"
  naru data query -o csv --arg d-17 'SELECT time, celsius FROM telemetry WHERE device = $1' >d-17.csv`,
		RunE: func(c *cobra.Command, sql []string) error {
			if sql[0] == "-" {
				raw, err := io.ReadAll(io.LimitReader(c.InOrStdin(), queryMax))
				if err != nil {
					return err
				}
				sql[0] = string(raw)
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			r, err := cl.ask(c.Context(), http.MethodPost, "/api/v1/data/query", values("format", o.rowFormat()), map[string]any{"sql": sql[0], "args": args, "limit": limit, "timeout": timeout})
			if err != nil {
				return err
			}
			return o.rows(c, r, false)
		},
	}
	f := c.Flags()
	f.IntVarP(&limit, "limit", "n", 10_000, "how many rows at most")
	f.StringVar(&timeout, "timeout", "", "for how long it may be computed (default: what the platform's configuration says, 30s)")
	f.StringArrayVar(&args, "arg", nil, "what $1, and then $2…, stand for")
	return c
}

func dataLatest(o *options) *cobra.Command {
	var device string
	c := &cobra.Command{
		Use: "latest DATASET [DEVICE]", Short: "The newest row of a device, or of each", Args: cobra.RangeArgs(1, 2), Annotations: map[string]string{alsoFormats: "csv ndjson arrow"},
		Long:    "Shows the newest row by time of a device, or of each device where none is named. " + tableLeavesOut,
		Example: "  naru data latest telemetry\n  naru data latest telemetry d-17 -o json",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if device != "" && len(args) > 1 {
				return errors.New("DEVICE and --device: want one of them")
			}
			r, err := cl.ask(c.Context(), http.MethodGet, datasetPath(args[0])+"/latest", values("format", o.rowFormat(), "device", first(args[1:], device)), nil)
			if err != nil {
				return err
			}
			return o.rows(c, r, true)
		},
	}
	c.Flags().StringVar(&device, "device", "", "only of this device, as with data show")
	return c
}

func datasetPath(name string) string { return "/api/v1/data/datasets/" + url.PathEscape(name) }

// rowFormat is how the platform is asked to write rows.
func (o *options) rowFormat() string {
	if o.output == "text" {
		return "csv"
	}
	return o.output
}

// tableLeavesOut is told where a table is brief.
const tableLeavesOut = "The table leaves out subject, message_id and recorded, and has the trace last; -o json, csv and ndjson have all as it is."

// rows prints an answer with rows: as it comes, or as a table, a brief one for who wants to see what was measured.
func (o *options) rows(c *cobra.Command, r *http.Response, brief bool) error {
	defer r.Body.Close()
	if err := o.noTerminal(c); err != nil {
		return err
	}
	if o.output == "text" {
		if err := o.table(c, r.Body, brief); err != nil {
			return err
		}
	} else if _, err := io.Copy(c.OutOrStdout(), r.Body); err != nil {
		return fmt.Errorf("the answer broke off: %w", err)
	}
	if r.Header.Get("Naru-Truncated") != "" {
		o.truncated(c, r.Header.Get("Naru-Rows"))
	}
	return nil
}

// truncated says that there is more; also to who reads JSON, since it is no hint.
func (o *options) truncated(c *cobra.Command, rows string) {
	fmt.Fprintf(c.ErrOrStderr(), "There are more than these %s rows; --limit raises how many are shown.\n", rows)
}

// noTerminal refuses to write what is no text to a terminal.
func (o *options) noTerminal(c *cobra.Command) error {
	f, ok := c.OutOrStdout().(interface{ Fd() uintptr })
	if o.output == "arrow" && ok && term.IsTerminal(int(f.Fd())) {
		return errors.New("-o arrow is nothing to be read in a terminal; lead it into a file or a program")
	}
	return nil
}

// table prints CSV as a table, and says how many rows it has.
func (o *options) table(c *cobra.Command, body io.Reader, brief bool) error {
	p := &printer{w: c.OutOrStdout()}
	in := csv.NewReader(body)
	n := -1
	var order []int // of the columns, where not all are shown as they come
	for ; ; n++ {
		cells, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("the answer broke off: %w", err)
		}
		if n < 0 && brief {
			order = briefly(cells)
		}
		if order != nil {
			all := cells
			cells = make([]string, len(order))
			for i, from := range order {
				cells[i] = all[from]
			}
		}
		for i := range cells {
			cells[i] = cut(cells[i], cellMax)
			if n < 0 {
				cells[i] = strings.ToUpper(cells[i])
			}
		}
		if n < 0 {
			p.columns("No rows.", cells...)
			continue
		}
		p.row(cells...)
	}
	return p.flush()
}

// briefly are the columns of a dataset that a person looks at, in this order: when, of whom, what, and the trace to follow.
func briefly(columns []string) (order []int) {
	trace := -1
	for i, name := range columns {
		switch name {
		case "subject", "message_id", "recorded":
		case "trace_id":
			trace = i
		default:
			order = append(order, i)
		}
	}
	if trace >= 0 {
		order = append(order, trace)
	}
	return order
}

// cellMax is how much of a value a table shows; the other formats have all of it.
const cellMax = 100

func dataShow(o *options) *cobra.Command {
	var device, since, until, columns string
	var newest bool
	var limit int
	c := &cobra.Command{
		Use: "show DATASET", Short: "Rows of a time", Args: cobra.ExactArgs(1), Annotations: map[string]string{alsoFormats: "csv ndjson"},
		Long: "Shows rows by time, the oldest first, or with --newest the newest first. Times are RFC 3339, or how long ago. " + tableLeavesOut,
		Example: `  naru data show telemetry --newest -n 20
  naru data show telemetry --device d-17 --since 24h --columns time,celsius -o csv >d-17.csv`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if limit < 1 {
				return fmt.Errorf("--limit %d: want 1 at least", limit)
			}
			q, err := span(since, until)
			if err != nil {
				return err
			}
			for k, v := range map[string]string{"device": device, "columns": columns} {
				if v != "" {
					q.Set(k, v)
				}
			}
			if newest {
				q.Set("newest", "true")
			}
			return o.pages(c, cl, args[0], q, limit)
		},
	}
	f := c.Flags()
	f.StringVar(&device, "device", "", "only of this device")
	f.StringVar(&since, "since", "", "from this time on: 10m, 7d, or 2026-11-23T03:00:00Z")
	f.StringVar(&until, "until", "", "up to this time, without it")
	f.StringVar(&columns, "columns", "", "only these, with commas between them")
	f.BoolVar(&newest, "newest", false, "the newest first")
	f.IntVarP(&limit, "limit", "n", 100, "how many rows at most")
	return c
}

// span is what --since and --until say as the API takes it.
func span(since, until string) (url.Values, error) {
	var at [2]time.Time
	now := time.Now()
	for i, f := range [2]struct{ name, value string }{{"since", since}, {"until", until}} {
		if f.value == "" {
			continue
		}
		var err error
		if at[i], err = when.Parse(f.value, now); err != nil {
			return nil, fmt.Errorf("--%s %s: %w", f.name, f.value, err)
		}
	}
	if since != "" && until != "" && !at[0].Before(at[1]) {
		return nil, fmt.Errorf("--since %s is not before --until %s", since, until)
	}
	return values("from", since, "to", until), nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// pageMost is how many rows are asked for at once.
const pageMost = 10_000

// pages asks for page after page, and prints them as one answer.
func (o *options) pages(c *cobra.Command, cl *client, dataset string, q url.Values, limit int) error {
	format := o.rowFormat()
	if format == "json" {
		format = "ndjson"
	}
	q.Set("format", format)
	out := bufio.NewWriter(c.OutOrStdout())
	shown, more := 0, true
	for page := 0; more && shown < limit; page++ {
		q.Set("limit", strconv.Itoa(min(limit-shown, pageMost)))
		r, err := cl.ask(c.Context(), http.MethodGet, datasetPath(dataset)+"/rows", q, nil)
		if err != nil {
			return err
		}
		n, err := o.page(c, out, r.Body, q.Get("columns") == "", page, shown)
		r.Body.Close()
		if err != nil {
			return err
		}
		shown += n
		if q, more, err = nextPage(r.Header.Get("Link")); err != nil {
			return err
		}
		if n == 0 && more {
			return errors.New("a page has no rows, and says that there are more")
		}
	}
	if o.json() {
		end := "]\n"
		if shown == 0 {
			end = "[]\n"
		}
		if _, err := out.WriteString(end); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if more {
		o.truncated(c, strconv.Itoa(shown))
	}
	return nil
}

// page prints one, and gives how many rows it has.
func (o *options) page(c *cobra.Command, out *bufio.Writer, body io.Reader, brief bool, page, before int) (n int, err error) {
	if o.output == "text" {
		var copied bytes.Buffer
		if err := o.table(c, io.TeeReader(body, &copied), brief); err != nil {
			return 0, err
		}
		list, err := csv.NewReader(&copied).ReadAll()
		return max(len(list)-1, 0), err
	}
	if o.output == "csv" {
		raw, err := io.ReadAll(body)
		if err != nil {
			return 0, fmt.Errorf("the answer broke off: %w", err)
		}
		list, err := csv.NewReader(bytes.NewReader(raw)).ReadAll()
		if err != nil {
			return 0, err
		}
		if page > 0 {
			_, raw, _ = bytes.Cut(raw, []byte("\r\n")) // its names; no name has an end of line
		}
		_, err = out.Write(raw)
		return max(len(list)-1, 0), err
	}
	lines := bufio.NewReader(body)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("the answer broke off: %w", err)
		}
		if n++; o.json() {
			line = bytes.TrimRight(line, "\n")
			if before+n == 1 {
				line = append([]byte("["), line...)
			} else {
				line = append([]byte(",\n"), line...)
			}
		}
		if _, err := out.Write(line); err != nil {
			return n, err
		}
	}
}

// nextPage reads the query of a Link to the next page.
func nextPage(link string) (q url.Values, more bool, err error) {
	target, ok := strings.CutPrefix(link, "<")
	if !ok {
		return nil, false, nil
	}
	target, _, _ = strings.Cut(target, ">")
	u, err := url.Parse(target)
	if err != nil {
		return nil, false, fmt.Errorf("link to the next page: %w", err)
	}
	return u.Query(), true, nil
}

func dataStats(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "stats [DATASET]", Short: "How many rows there are, from when to when, and how large", Args: cobra.MaximumNArgs(1),
		Long:    "Lists the datasets with their rows; of one, its columns too.",
		Example: "  naru data stats\n  naru data stats telemetry -o json",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				var d api.Dataset
				if err := cl.get(c.Context(), datasetPath(args[0]), nil, &d); err != nil {
					return err
				}
				return o.show(c.OutOrStdout(), d, func(p *printer) {
					statsTable(p, []api.Dataset{d})
					p.line("")
					p.columns("", "COLUMN", "TYPE", "UNIT", "")
					for _, col := range d.Columns {
						p.row(col.Name, string(col.Type), col.Unit, col.Doc)
					}
					if len(d.Rollups) > 0 {
						p.line("\nroll-ups: %s", strings.Join(d.Rollups, ", "))
					}
				})
			}
			list := []api.Dataset{}
			if err := cl.get(c.Context(), "/api/v1/data/datasets", nil, &list); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), list, func(p *printer) {
				statsTable(p, list)
			})
		},
	}
}

func statsTable(p *printer, list []api.Dataset) {
	at := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.Local().Format("2006-01-02 15:04:05")
	}
	p.columns("No dataset has rows yet.", "DATASET", "ROWS", "OLDEST", "NEWEST", "LAST RECORDED", "SIZE", "KEPT")
	for _, d := range list {
		kept := "for ever"
		if d.Retention != "" {
			kept = d.Retention
			if is, err := time.ParseDuration(kept); err == nil {
				kept = exactly(is)
			}
		}
		s := d.Stats
		bytes := "-"
		if s.Bytes > 0 {
			bytes = size(uint64(s.Bytes))
		}
		p.row(d.Name, strconv.FormatInt(s.Rows, 10), at(s.Oldest), at(s.Newest), at(s.Last), bytes, kept)
	}
}

func dataExport(o *options) *cobra.Command {
	var since, until string
	c := &cobra.Command{
		Use: "export DATASET FILE", Short: "Rows of a time as a file of Parquet", Args: cobra.ExactArgs(2),
		Long: `Writes the rows of a time, or all, to a file of Parquet. The file is there whole or not at all; what stood in its place stays until
then.`,
		Example: "  naru data export telemetry yesterday.parquet --since 2026-11-27 --until 2026-11-28",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q, err := span(since, until)
			if err != nil {
				return err
			}
			if dir := filepath.Dir(args[1]); !isDir(dir) {
				return fmt.Errorf("%s: there is no directory %s", args[1], dir)
			}
			f, err := whole.Create(args[1]) // before the platform goes to the trouble
			if err != nil {
				return err
			}
			defer f.Drop()
			if _, err := os.Stat(args[1]); err == nil {
				o.hint(c, "%s is there already, and will be replaced", args[1])
			}
			r, err := cl.ask(c.Context(), http.MethodGet, datasetPath(args[0])+"/export", q, nil)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			const unit = 1 << 20
			p := newProgress(c, "MiB", int((r.ContentLength+unit-1)/unit))
			for {
				_, err = io.CopyN(f, r.Body, unit)
				if err != nil {
					break
				}
				p.add()
			}
			p.end()
			if !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("the file broke off, and nothing is left of it: %w", err)
			}
			if err := f.Keep(0o644); err != nil {
				return err
			}
			rows, err := strconv.ParseInt(r.Header.Get("Naru-Rows"), 10, 64)
			if err != nil {
				return fmt.Errorf("how many rows %s has: %w", args[1], err)
			}
			done := struct {
				File  string `json:"file"`
				Rows  int64  `json:"rows"`
				Bytes int64  `json:"bytes"`
			}{args[1], rows, r.ContentLength}
			return o.show(c.OutOrStdout(), done, func(p *printer) {
				p.line("%s: %d rows, %s", done.File, done.Rows, size(uint64(done.Bytes)))
			})
		},
	}
	c.Flags().StringVar(&since, "since", "", "rows from this time on: 7d, or 2026-11-23T03:00:00Z")
	c.Flags().StringVar(&until, "until", "", "rows before this time")
	return c
}

// traceRows is a trace with the rows that its messages became.
type traceRows struct {
	journal.TraceView
	Rows []storage.Traced `json:"rows"`
	// RowsFault says why nobody knows which rows there are.
	RowsFault string `json:"rows_fault,omitempty"`
}

// rowsOfTrace asks the data platform; that it is not there is no fault of the trace.
func rowsOfTrace(ctx context.Context, cl *client, v journal.TraceView) (*traceRows, error) {
	t := &traceRows{TraceView: v, Rows: []storage.Traced{}}
	err := cl.get(ctx, "/api/v1/data/traces/"+v.Trace.String(), nil, &t.Rows)
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		t.RowsFault = "the data platform is not there: " + err.Error()
	}
	return t, nil
}

func (t *traceRows) print(p *printer) {
	for _, r := range t.Rows {
		p.line("")
		p.line("row of dataset %s, %s after the first message", r.Dataset, short(r.Recorded.Sub(t.Began)))
		p.row("  time", r.Time.Local().Format("2006-01-02 15:04:05.000"))
		if r.Device != "" {
			p.row("  device", r.Device)
		}
		p.row("  message", r.Message.String())
		p.row("  recorded", r.Recorded.Local().Format("2006-01-02 15:04:05.000"))
	}
	switch {
	case t.RowsFault != "":
		p.line("\nWhich rows it became nobody knows: %s", t.RowsFault)
	case len(t.Rows) == 0 && t.intoData():
		p.line("\nNo row came of it: its messages for the data platform wait, are dead, or were left out by a pipeline, as said above.")
	}
}

// intoData says whether a message of the trace was said for a dataset.
func (t *traceRows) intoData() bool {
	for _, l := range t.Messages {
		if strings.HasPrefix(string(l.Subject), message.DataPlatform+".") {
			return true
		}
	}
	return false
}

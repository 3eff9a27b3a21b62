package main

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/naru-platform/naru/internal/whole"
	"github.com/naru-platform/naru/service_platform/x509"
)

const (
	importAtOnce = 8       // enough to hide the network; the registry's disk sets the pace
	lineMax      = 1 << 20 // bytes of a line of JSON
	aloneShown   = 20      // devices that are named since they got no certificate
)

// fleetColumns are the columns of a fleet's CSV. Groups are joined by semicolons; attributes and certs are JSON.
var fleetColumns = []string{"id", "state", "groups", "policy", "attributes", "disabled", "certs", "ca", "created_at"}

func deviceExport(o *options) *cobra.Command {
	var format, out string
	c := &cobra.Command{
		Use: "export", Short: "Write the fleet as CSV or JSON lines", Args: cobra.NoArgs,
		Long: `Writes every device with its groups, attributes, policy and certificates (their fingerprints; no keys). import reads it.
The fleet alone is on standard output; with --out and -o json that is {"exported": N, "file": …}.`,
		Example: "  naru device export --format csv --out fleet.csv",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			w, keep := c.OutOrStdout(), func() error { return nil }
			if o.json() && format == "csv" && out == "-" {
				return errors.New("-o json has standard output to itself; write the CSV to a file with --out, or take jsonl, which is JSON")
			}
			if out != "-" {
				f, whole, drop, err := exportFile(out)
				if err != nil {
					return err
				}
				defer drop()
				w, keep = f, whole
			}
			write, flush, err := fleetWriter(w, format)
			if err != nil {
				return err
			}
			total, err := fleetSize(c.Context(), cl)
			if err != nil {
				return err
			}
			bar := newProgress(c, "exported", total)
			n := 0
			err = eachDevice(c.Context(), cl, url.Values{}, func(d x509.Shown) error {
				n++
				bar.add()
				return write(d)
			})
			bar.end()
			if err = errors.Join(err, flush()); err == nil {
				err = keep()
			}
			if err != nil {
				return err
			}
			if o.json() && out != "-" {
				return o.show(c.OutOrStdout(), map[string]any{"exported": n, "file": out}, nil)
			}
			o.hint(c, "%d devices exported", n)
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "jsonl", "jsonl or csv")
	c.Flags().StringVar(&out, "out", "-", "file to write, - for standard output")
	return c
}

// exportFile is what an export is written to. A file of before stays as it is until keep: drop, which does nothing
// afterwards, leaves it so. What is no file, such as a pipe, is written to as it is.
func exportFile(path string) (w io.Writer, keep func() error, drop func(), err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, nil, nil, err
		}
		return f, f.Close, func() { _ = f.Close() }, nil
	}
	f, err := whole.Create(path)
	if err != nil {
		return nil, nil, nil, err
	}
	return f, func() error { return f.Keep(0o600) }, f.Drop, nil
}

func fleetWriter(w io.Writer, format string) (write func(x509.Shown) error, flush func() error, err error) {
	switch format {
	case "jsonl":
		b := bufio.NewWriter(w)
		e := json.NewEncoder(b)
		return func(d x509.Shown) error { return e.Encode(d.Device) }, b.Flush, nil
	case "csv":
		t := csv.NewWriter(w)
		if err := t.Write(fleetColumns); err != nil {
			return nil, nil, err
		}
		return func(d x509.Shown) error {
			attributes, err := json.Marshal(d.Attributes)
			if err != nil {
				return err
			}
			certs, err := json.Marshal(d.Certs)
			if err != nil {
				return err
			}
			return t.Write([]string{d.ID, d.State, strings.Join(d.Groups, ";"), d.Policy, string(attributes), fmt.Sprint(d.Disabled), string(certs),
				d.CA, d.CreatedAt.Format(time.RFC3339Nano)})
		}, func() error { t.Flush(); return t.Error() }, nil
	}
	return nil, nil, fmt.Errorf("--format %s: there are jsonl and csv", format)
}

func deviceImport(o *options) *cobra.Command {
	var format, issue string
	var another bool
	c := &cobra.Command{
		Use: "import FILE", Short: "Register a fleet from CSV or JSON lines (- for standard input)", Args: cobra.ExactArgs(1),
		Long: `Registers the devices of a file, one a line. Only id is wanted; groups, attributes, policy, disabled and certs are taken
where they are there. A device that is registered already is brought up to date, so an import that was cut off is simply
run again. With --issue each device also gets a certificate and key, in a directory of its own below the one named;
those that have a certificate already are left alone, and told of where it is not in that directory: --another gives
them one as well, such as those that come from a platform with another CA.

A CSV's first line names its columns; groups are joined by semicolons, attributes are JSON:

  id,groups,policy,attributes
  d-17,pumps;hall-2,pump,"{""site"":""busan""}"

A line that is refused is told with its number, the others go on, and the command ends with 1. A field that is not known
is refused, not passed over. How far it is stands on standard error: a bar in a terminal, else a line now and then; of all
lines where FILE is a file. With -o json standard output has a line {"line": N, "id": …, "error": …} for each that was
refused, and {"imported": N, "refused": N} at the end; with --issue also "left_alone" and "disabled", which got no
certificate and are among the imported.`,
		Example: "  naru device import fleet.csv --issue keys\n  naru device export | naru --server https://other.example:8780 device import -",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if another && issue == "" {
				return errors.New("--another is about what --issue gives; say --issue DIR as well")
			}
			if format == "" {
				format = "jsonl"
				if strings.EqualFold(filepath.Ext(args[0]), ".csv") {
					format = "csv"
				}
			}
			if args[0] == "-" {
				return o.importFleet(c, cl, c.InOrStdin(), format, issuing{issue, another}, -1)
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			total, err := countLines(f, format)
			if err != nil {
				return err
			}
			return o.importFleet(c, cl, f, format, issuing{issue, another}, total)
		},
	}
	c.Flags().StringVar(&format, "format", "", "jsonl or csv (default: by the file's name)")
	c.Flags().StringVar(&issue, "issue", "", "directory to write a certificate and key of each device to")
	c.Flags().BoolVar(&another, "another", false, "with --issue: give one to devices, too, that have a certificate already")
	return c
}

// fleetSize is how many devices are registered.
func fleetSize(ctx context.Context, cl *client) (int, error) {
	var page struct {
		Total int `json:"total"`
	}
	err := cl.get(ctx, "/api/v1/devices", url.Values{"limit": {"1"}}, &page)
	return page.Total, err
}

// countLines says how many devices a file has, the refused ones among them, and goes back to its beginning; -1 where there
// is no going back.
func countLines(f *os.File, format string) (n int, err error) {
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return -1, err
	}
	if err := eachLine(f, format, func(int, x509.Import, error) error { n++; return nil }); err != nil {
		return 0, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return n, err
}

// importFleet goes on after a refused line, and stops where the platform does not answer. total is how many lines there
// are; -1 where nobody knows.
func (o *options) importFleet(c *cobra.Command, cl *client, in io.Reader, format string, issue issuing, total int) error {
	bar := newProgress(c, "imported", total)
	var mu sync.Mutex
	done, refused, alone, disabled, warned := 0, 0, 0, 0, false
	lines := json.NewEncoder(c.OutOrStdout())
	note := func(line int, id string, is imported, err error) {
		mu.Lock()
		defer mu.Unlock()
		bar.add()
		if is.warning != "" && !warned {
			warned = true
			o.hint(c, "warning: line %d: %s; others like it are not told", line, is.warning)
		}
		if err == nil {
			done++
			if is.disabled {
				if disabled++; disabled <= aloneShown {
					o.hint(c, "line %d: %s is disabled: no certificate", line, id)
				}
			}
			if is.alone {
				if alone++; alone <= aloneShown {
					o.hint(c, "line %d: %s has a certificate already, which is not in %s; it got no other", line, id, issue.to)
				}
			}
			return
		}
		refused++
		if o.json() {
			_ = lines.Encode(refusedLine{line, id, oneLine(err)}) // where nobody reads, the end says it
			return
		}
		fmt.Fprintf(c.ErrOrStderr(), "line %d: %s\n", line, oneLine(err))
	}
	group, ctx := errgroup.WithContext(c.Context())
	group.SetLimit(importAtOnce)
	err := eachLine(in, format, func(line int, d x509.Import, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			note(line, d.ID, imported{}, err)
			return nil
		}
		group.Go(func() error {
			is, err := importDevice(ctx, cl, d, issue)
			if errors.As(err, new(noAnswer)) {
				return fmt.Errorf("line %d: %w; import the file again then", line, err)
			}
			if ctx.Err() == nil {
				note(line, d.ID, is, err)
			}
			return ctx.Err()
		})
		return nil
	})
	err = errors.Join(err, group.Wait())
	bar.end()
	o.hint(c, "%d devices imported, %d refused", done, refused)
	if alone > 0 {
		o.hint(c, "%d of them had a certificate already and got no other; --another gives them one, naru device rotate a single one", alone)
	}
	if disabled > 0 {
		o.hint(c, "%d of them are disabled and got no certificate; once one is enabled, naru device rotate gives it one", disabled)
	}
	if o.json() {
		sum := map[string]int{"imported": done, "refused": refused}
		if issue.to != "" {
			sum["left_alone"], sum["disabled"] = alone, disabled
		}
		err = errors.Join(err, lines.Encode(sum))
	}
	if err == nil && refused > 0 {
		err = fmt.Errorf("%d lines were refused; mend them and import the file again", refused)
	}
	return err
}

// refusedLine is a line of a fleet that was not taken.
type refusedLine struct {
	Line  int    `json:"line"`
	ID    string `json:"id,omitempty"`
	Error string `json:"error"`
}

// issuing says which devices of a fleet are given a certificate.
type issuing struct {
	to      string // the directory; empty for none
	another bool   // also those that have one
}

// imported is what became of a device of a fleet.
type imported struct {
	warning string
	alone   bool // it has a certificate, and got no other
	// disabled says that it is switched off, and got no certificate.
	disabled bool
}

// importDevice registers a device, and has a certificate issued to it, where that is wanted.
func importDevice(ctx context.Context, cl *client, d x509.Import, issue issuing) (is imported, err error) {
	d.By = "operator"
	var now x509.Shown
	if err := cl.do(ctx, "PUT", "/api/v1/devices/"+url.PathEscape(d.ID), nil, d, &now); err != nil || issue.to == "" {
		return imported{warning: now.Warning}, err
	}
	if now.Disabled {
		return imported{warning: now.Warning, disabled: true}, nil
	}
	dir := filepath.Join(issue.to, url.PathEscape(d.ID))
	there := func(file string) bool { _, err := os.Stat(filepath.Join(dir, file)); return err == nil }
	switch {
	case there(certFile):
		return imported{warning: now.Warning}, nil
	case len(now.Certs) > 0 && !issue.another && !there(keyFile): // a key is what a command left that was cut off
		return imported{warning: now.Warning, alone: true}, nil
	}
	own, err := openCredentials(dir, d.ID, "")
	if errors.Is(err, errHasCertificate) { // from another line of the same device
		return imported{warning: now.Warning}, nil
	}
	if err != nil {
		return imported{}, err
	}
	defer own.close()
	var e enrolled
	if err := cl.post(ctx, "/api/v1/devices", map[string]any{"id": d.ID, "by": "operator", "csr": own.csr, "new": !issue.another}, &e); err != nil {
		own.settle(err)
		return imported{}, err
	}
	return imported{warning: now.Warning}, own.keep(e)
}

// eachLine calls f for each device, or for what is wrong with its line; an error of its own ends it.
func eachLine(in io.Reader, format string, f func(line int, d x509.Import, err error) error) error {
	switch format {
	case "jsonl":
		s := bufio.NewScanner(in)
		s.Buffer(nil, lineMax)
		line := 1
		for ; s.Scan(); line++ {
			if len(strings.TrimSpace(s.Text())) == 0 {
				continue
			}
			d, err := readLine(s.Bytes())
			if err == nil && d.ID == "" {
				err = errors.New("it has no id")
			}
			if err := f(line, d, err); err != nil {
				return err
			}
		}
		if errors.Is(s.Err(), bufio.ErrTooLong) {
			return fmt.Errorf("line %d has more than %d bytes, so this is no file of a fleet", line, lineMax)
		}
		return s.Err()
	case "csv":
		return eachRow(csv.NewReader(in), f)
	}
	return fmt.Errorf("--format %s: there are jsonl and csv", format)
}

func eachRow(r *csv.Reader, f func(line int, d x509.Import, err error) error) error {
	head, err := r.Read()
	if err != nil {
		return fmt.Errorf("read the head of the CSV: %w", err)
	}
	column := map[string]int{}
	for i, name := range head {
		name = strings.ToLower(strings.TrimSpace(strings.TrimPrefix(name, "\ufeff")))
		if name == "" { // a spreadsheet's empty column
			continue
		}
		if !slices.Contains(fleetColumns, name) {
			return fmt.Errorf("line 1: there is no column %s", unknownName(name, fleetColumns))
		}
		column[name] = i
	}
	if _, ok := column["id"]; !ok {
		return fmt.Errorf("the CSV has no column id; there may be %s", strings.Join(fleetColumns, ", "))
	}
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		var syntax *csv.ParseError
		if err != nil && !errors.As(err, &syntax) {
			return err
		}
		var d x509.Import
		line := 0
		if err == nil {
			line, _ = r.FieldPos(0)
			d, err = deviceOf(func(name string) string {
				if i, ok := column[name]; ok {
					return strings.TrimSpace(row[i])
				}
				return ""
			})
		} else {
			line, err = syntax.Line, syntax.Err
		}
		if err := f(line, d, err); err != nil {
			return err
		}
	}
}

func deviceOf(cell func(name string) string) (d x509.Import, err error) {
	d.ID, d.Policy, d.CA = cell("id"), cell("policy"), cell("ca")
	if d.ID == "" {
		return d, errors.New("it has no id")
	}
	for g := range strings.SplitSeq(cell("groups"), ";") {
		if g = strings.TrimSpace(g); g != "" {
			d.Groups = append(d.Groups, g)
		}
	}
	switch strings.ToLower(cell("disabled")) {
	case "", "false", "no", "0":
	case "true", "yes", "1":
		d.Disabled = true
	default:
		return d, fmt.Errorf("disabled %q is neither true nor false", cell("disabled"))
	}
	if text := cell("created_at"); text != "" {
		if d.CreatedAt, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return d, fmt.Errorf("created_at %q is no time such as 2026-11-28T12:00:00Z", text)
		}
	}
	for name, into := range map[string]any{"attributes": &d.Attributes, "certs": &d.Certs} {
		if text := cell(name); text != "" {
			if err := readFields([]byte(text), into); err != nil {
				return d, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return d, nil
}

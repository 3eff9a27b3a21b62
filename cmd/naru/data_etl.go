package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/data_platform/etl"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/operator/topic"
)

func dataETL(o *options) *cobra.Command {
	c := &cobra.Command{Use: "etl", Short: "What a dataset's pipeline makes of messages"}
	c.AddCommand(dataETLTest(o))
	return c
}

func dataETLTest(o *options) *cobra.Command {
	var inputs, twins []string
	var dataset, since, device string
	var limit, show int
	c := &cobra.Command{
		Use: "test [PIPELINE|FILE]", Short: "Try a pipeline on samples or recorded messages; nothing is written", Args: cobra.MaximumNArgs(1),
		Long: `Does with messages what the platform would do, and writes nothing: the rows that would come out, what each step gives, which messages
a step leaves out, and which would be dead, with the reason. What is tried is a pipeline or a dataset of a YAML file, or the one in
force of that name.

With --input the messages are lines of JSON files (- for stdin): payloads, or message records as ` + "`naru topic echo -o json`" + ` prints
them. That needs no running platform, unless the dataset is neither in the file nor built in. Without --input the messages are those
that were recorded for the dataset since --since; for a dataset that is not in force, those that it would take.

Duplicates by key are not looked for: what is there only the database knows. Exits with 2 when the pipeline cannot be done.`,
		Example: "  naru data etl test engine.yaml --input samples.jsonl\n  naru data etl test cleaned --since 1h --limit 500\n  naru data etl test --dataset telemetry --since 10m -o json",
		RunE: func(c *cobra.Command, args []string) error {
			name, raw := "", []byte(nil)
			if len(args) == 1 {
				var err error
				if raw, err = os.ReadFile(args[0]); errors.Is(err, os.ErrNotExist) && !strings.ContainsAny(args[0], "/.") {
					name = args[0]
				} else if err != nil {
					return err
				}
			}
			var t *etl.Trial
			var err error
			if len(inputs) > 0 {
				t, err = o.tryFiles(c, args, raw, name, dataset, device, inputs, twins)
			} else {
				if len(raw) > 0 { // its mistakes are told with the file's name
					if _, err := model.Parse(args[0], raw); err != nil {
						return err
					}
				}
				if len(twins) > 0 || device != "" {
					return errors.New("--twin and --device are for --input: recorded messages have a device, and its twin is asked for")
				}
				t, err = o.tryRecorded(c.Context(), raw, name, dataset, since, limit)
			}
			if err != nil {
				return err
			}
			err = o.show(c.OutOrStdout(), t, func(p *printer) { printTrial(p, t, show) })
			return found(err, t.Fault != "")
		},
	}
	c.Flags().StringArrayVar(&inputs, "input", nil, "a file of JSON lines: payloads or message records; may be given again")
	c.Flags().StringArrayVar(&twins, "twin", nil, "DEVICE=FILE: the document of a device's twin, for a pipeline that enriches")
	c.Flags().StringVar(&device, "device", "", "the device that payloads without one are of (sample)")
	c.Flags().StringVar(&dataset, "dataset", "", "the dataset that is meant, by name")
	c.Flags().StringVar(&since, "since", "1h", "how far back recorded messages are tried: 10m, 1h, 2d, or a time")
	c.Flags().IntVar(&limit, "limit", 1000, "how many recorded messages at most")
	c.Flags().IntVar(&show, "show", 20, "how many rows, and messages of each fate, are printed; -o json has all")
	return c
}

// tryRecorded has the platform try.
func (o *options) tryRecorded(ctx context.Context, raw []byte, name, dataset, since string, limit int) (*etl.Trial, error) {
	cl, err := o.client()
	if err != nil {
		return nil, err
	}
	t := new(etl.Trial)
	q := url.Values{"name": {name}, "dataset": {dataset}, "since": {since}, "limit": {fmt.Sprint(limit)}}
	return t, cl.do(ctx, http.MethodPost, "/api/v1/data/etl/test", q, raw, t)
}

// tryFiles tries in this process.
func (o *options) tryFiles(c *cobra.Command, args []string, raw []byte, name, dataset, device string, inputs, twins []string) (*etl.Trial, error) {
	ctx := c.Context()
	d, p, err := o.chosen(ctx, args, raw, name, dataset)
	if err != nil {
		return nil, err
	}
	if device == "" {
		device = "sample"
	}
	var samples []etl.Sample
	for _, file := range inputs {
		b, err := readFile(c.InOrStdin(), file)
		if err != nil {
			return nil, err
		}
		of, err := readSamples(file, b, d, device)
		if err != nil {
			return nil, err
		}
		samples = append(samples, of...)
	}
	known, err := readShadows(c.InOrStdin(), twins)
	if err != nil {
		return nil, errors.New(strings.Replace(err.Error(), "--shadow", "--twin", 1))
	}
	return etl.Alone(ctx, d, p, samples, func(device string) []byte { return known[device] })
}

// tryPipelines tries the pipelines of a file on a message without any field, and says which could not be done whatever the
// message: brought in force, it would hold its dataset up. Untried are those whose dataset is neither here nor can be asked for.
func (o *options) tryPipelines(ctx context.Context, file string, raw []byte, docs []model.Document) (untried map[string]bool, err error) {
	untried = map[string]bool{}
	for i := range docs {
		if docs[i].Pipeline == nil {
			continue
		}
		name := docs[i].Name()
		d, p, err := o.chosen(ctx, []string{file}, raw, name, "")
		if err != nil {
			untried[name] = true
			continue
		}
		if err := etl.Tried(ctx, d, p); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, docs[i].Line, err)
		}
	}
	return untried, nil
}

// chosen finds what is to be tried: in the file, among what is built in, and else in the running platform.
func (o *options) chosen(ctx context.Context, args []string, raw []byte, name, dataset string) (*model.Dataset, *model.Pipeline, error) {
	var docs []model.Document
	if len(raw) > 0 {
		var err error
		if docs, err = model.Parse(args[0], raw); err != nil {
			return nil, nil, err
		}
	}
	datasets, pipelines := map[string]*model.Dataset{}, map[string]*model.Pipeline{}
	take := func(list []model.Document) {
		for _, d := range list {
			if d.Dataset != nil {
				datasets[d.Dataset.Name] = d.Dataset
			} else {
				pipelines[d.Pipeline.Dataset] = d.Pipeline
			}
		}
	}
	take(model.BuiltIn())
	d, p, err := etl.Choose(docs, datasets, pipelines, name, dataset)
	if err == nil {
		return d, p, nil
	}
	cl, away := o.client()
	var list []model.Entry
	if away == nil {
		away = cl.get(ctx, "/api/v1/data/models", nil, &list)
	}
	if away != nil {
		return nil, nil, fmt.Errorf("%w (and the platform could not be asked: %v)", err, away)
	}
	for _, e := range list {
		if of, err := model.Parse(e.Name, []byte(e.YAML)); err == nil {
			take(of)
		}
	}
	return etl.Choose(docs, datasets, pipelines, name, dataset)
}

const sampleMax = 16 << 20 // bytes of a line

// readSamples reads a file's lines as messages for a dataset. What has `subject` and `data` or `data_base64`, and nothing that a
// message record does not have, is a message record; anything else is a payload.
func readSamples(file string, b []byte, d *model.Dataset, device string) (samples []etl.Sample, err error) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, sampleMax)
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		now := time.Now()
		m := &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Device: device, Data: slices.Clone(line)}
		if h, ok := record(line); ok {
			if !h.ID.IsZero() {
				m.ID = h.ID
			}
			if !h.Trace.IsZero() {
				m.Trace.ID = h.Trace
			}
			m.Subject, m.Device, m.Time, m.Data = h.Subject, h.Device, h.Time, []byte(h.Text)
			if h.Binary != nil {
				m.Data = h.Binary
			}
			if m.Device == "" && m.Subject.Namespace() == message.Device {
				m.Device = m.Subject.Token(1)
			}
		}
		switch {
		case m.Subject == "":
			m.Subject = d.Subject(m.Device)
		case m.Subject.Namespace() != message.DataPlatform:
			m.Subject = d.SubjectOf(m)
		}
		samples = append(samples, etl.Sample{Message: m, Where: fmt.Sprintf("%s:%d", file, n)})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s, behind line %d: %w", file, len(samples), err)
	}
	if len(samples) == 0 {
		return nil, fmt.Errorf("%s: there is no message in it; want one JSON payload or message record a line", file)
	}
	return samples, nil
}

func record(line []byte) (h topic.Heard, ok bool) {
	r := json.NewDecoder(bytes.NewReader(line))
	r.DisallowUnknownFields()
	if r.Decode(&h) != nil || h.Subject == "" || h.Text == "" && h.Binary == nil {
		return h, false
	}
	_, err := r.Token()
	return h, errors.Is(err, io.EOF) && h.Subject.Valid() == nil
}

func printTrial(p *printer, t *etl.Trial, show int) {
	what := "dataset " + t.Dataset
	if t.Pipeline != "" {
		what = "pipeline " + t.Pipeline + " into " + what
	}
	p.line("%s: of %d messages %d rows, %d dropped, %d dead; nothing was written", what, t.Messages, t.Rows, t.Dropped, t.Dead)
	if t.Fault != "" {
		p.line("✗ the dataset would stand still: %s", t.Fault)
	} else if t.Stopped != "" {
		p.line("%s", t.Stopped)
	}
	if t.Messages == 0 && t.Fault == "" {
		p.line("No message that it takes was recorded in this time; --since looks further back, --input takes samples.")
		return
	}
	if len(t.Steps) > 0 {
		p.line("")
		p.columns("", "STEP", "ROWS", "WHAT")
		p.row("read", fmt.Sprint(t.Read), "the payloads, as fields")
		for i, s := range t.Steps {
			doc := s.Doc
			if doc == "" {
				doc = strings.Join(strings.Fields(s.SQL), " ")
			}
			if r := []rune(doc); len(r) > 80 {
				doc = string(r[:79]) + "…"
			}
			p.row(fmt.Sprint(i+1), fmt.Sprint(s.Rows), doc)
		}
	}
	some := func(n int) int { return max(min(n, show), 0) }
	rest := func(n int) {
		if n > show {
			p.line("… and %d more (--show, or -o json)", n-some(n))
		}
	}
	for i, row := range t.Out[:some(len(t.Out))] {
		if i == 0 {
			p.line("\nrows:")
		}
		p.line("  %s", row)
	}
	rest(len(t.Out))
	for i, l := range t.Letters[:some(len(t.Letters))] {
		if i == 0 {
			p.line("\ndead:")
		}
		p.line("  %s  %s: %s", sampledAt(l.Sampled), l.Reason, l.Detail)
	}
	rest(len(t.Letters))
	for i, l := range t.Left[:some(len(t.Left))] {
		if i == 0 {
			p.line("\ndropped by a step:")
		}
		p.line("  %s", sampledAt(l))
	}
	rest(len(t.Left))
}

func sampledAt(s etl.Sampled) string {
	if s.Where != "" {
		return s.Where
	}
	return s.Message.String()
}

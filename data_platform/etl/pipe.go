package etl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/message"
)

// Pipe makes messages rows, as a dataset and its pipeline say. It writes nothing, so that what a pipeline would do can be
// looked at. It is for one goroutine.
type Pipe struct {
	Dataset  *model.Dataset
	Pipeline *model.Pipeline // nil: rows are stored as they come
	// Scratch is where the steps are done; it is asked for when the first one is.
	Scratch func(context.Context) (*storage.Scratch, error)
	// Twins gives the documents of devices' twins, nil of one that is not there; it is asked where the pipeline enriches.
	Twins func(ctx context.Context, devices []string) (map[string][]byte, error)
	// Count has Made.Counts filled.
	Count bool

	reads *model.Dataset // what a payload is read as
	row   model.Row
}

// NewPipe makes one.
func NewPipe(d *model.Dataset, p *model.Pipeline, scratch func(context.Context) (*storage.Scratch, error)) *Pipe {
	return &Pipe{Dataset: d, Pipeline: p, Scratch: scratch, reads: p.Reads(d)}
}

// Made is what became of messages.
type Made struct {
	Rows []storage.Row
	Of   []int   // whose row a row is: the message's index
	Err  []error // of each message: nil where it has rows, component.ErrNotMatched where a step left it out, else why it is dead
	// Read is how many rows were read, and Counts how many each step gave, if asked for.
	Read   int
	Counts []int
}

// Make makes messages rows. An error is the pipeline's, or the machine's: no message is to blame, and none has a fate.
func (p *Pipe) Make(ctx context.Context, in []component.Heard) (*Made, error) {
	made := &Made{Err: make([]error, len(in))}
	for i := range in {
		if made.Err[i] = p.reads.Row(in[i].Message, &p.row); made.Err[i] != nil {
			continue
		}
		r := &p.row
		made.Rows = append(made.Rows, storage.Row{Time: r.Time, Device: r.Device, Subject: string(r.Subject), Trace: r.Trace.String(), Message: r.ID,
			Recorded: r.Recorded.Truncate(time.Microsecond), Values: slices.Clone(r.Values), Position: in[i].Position, Again: in[i].Again})
		made.Of = append(made.Of, i)
	}
	made.Read = len(made.Rows)
	if p.Pipeline == nil || len(made.Rows) == 0 {
		return made, nil
	}
	if err := p.steps(ctx, made); err != nil {
		return nil, fmt.Errorf("pipeline %s: %w", p.Pipeline.Name, err)
	}
	return made, nil
}

// steps has the pipeline's steps done with the rows that were read.
func (p *Pipe) steps(ctx context.Context, made *Made) error {
	scratch, err := p.Scratch(ctx)
	if err != nil {
		return err
	}
	do := storage.Steps{Count: p.Count}
	for i := range p.reads.Fields {
		do.Columns = append(do.Columns, storage.Column{Name: p.reads.Fields[i].Name, Type: storage.Type(p.reads.Fields[i].Type)})
	}
	for _, s := range p.Pipeline.Steps {
		do.SQL = append(do.SQL, s.SQL)
	}
	rows, of := made.Rows, made.Of
	if p.Pipeline.Enrich != nil {
		columns, err := p.enrich(ctx, rows)
		if err != nil {
			return err
		}
		do.Columns = append(do.Columns, columns...)
	}
	out, err := scratch.Do(ctx, do, rows)
	if err != nil {
		return err
	}
	made.Counts = out.Counts
	place, id, err := p.places(out.Columns)
	if err != nil {
		return err
	}
	for _, f := range out.Failed {
		given := f.Given
		if given != "" {
			given += ": "
		}
		made.Err[of[f.Row]] = message.Rejectf(message.ETLError, "pipeline %s, step %d: %s%w", p.Pipeline.Name, f.Step, given, f.Err)
	}
	from := make(map[string]int, len(rows))
	for i := range rows {
		from[rows[i].Message.String()] = i
	}
	mine := make([][]storage.Row, len(rows))
	for _, values := range out.Rows {
		key, _ := values[id].(string)
		i, ok := from[key]
		if !ok {
			return fmt.Errorf("a row of the last step has message_id %v, which is of no message", values[id])
		}
		if made.Err[of[i]] != nil {
			continue
		}
		r, err := shape(p.Dataset, rows[i], place, values)
		if err != nil {
			made.Err[of[i]], mine[i] = err, nil
			continue
		}
		mine[i] = append(mine[i], r)
	}
	made.Rows, made.Of = nil, nil
	for i := range rows {
		if len(mine[i]) == 0 && made.Err[of[i]] == nil {
			made.Err[of[i]] = component.ErrNotMatched // a step has left it out
		}
		for _, r := range mine[i] {
			made.Rows, made.Of = append(made.Rows, r), append(made.Of, of[i])
		}
	}
	return nil
}

// enrich gives the rows what the twins of their devices have. A device without a twin, and a twin without a value, has null.
func (p *Pipe) enrich(ctx context.Context, rows []storage.Row) (columns []storage.Column, err error) {
	var devices []string
	for i := range rows {
		if d := rows[i].Device; d != "" {
			devices = append(devices, d)
		}
	}
	slices.Sort(devices)
	devices = slices.Compact(devices)
	documents := map[string][]byte{}
	if p.Twins != nil && len(devices) > 0 {
		if documents, err = p.Twins(ctx, devices); err != nil {
			return nil, fmt.Errorf("enrich: %w", err)
		}
	}
	values := map[string][]any{"": make([]any, len(p.Pipeline.Enrich.Twin))}
	for _, d := range devices {
		if values[d], err = p.Pipeline.Enrich.Of(documents[d]); err != nil {
			return nil, fmt.Errorf("enrich: the twin of %s: %w", d, err)
		}
	}
	for i := range rows {
		rows[i].Values = append(rows[i].Values, values[rows[i].Device]...)
	}
	for _, name := range p.Pipeline.Enrich.Columns() {
		columns = append(columns, storage.Column{Name: name, Type: storage.JSON})
	}
	return columns, nil
}

// places finds the last step's columns, message_id among them.
func (p *Pipe) places(columns []storage.Column) (place map[string]int, id int, err error) {
	place = map[string]int{}
	for i, c := range columns {
		place[c.Name] = i
		if p.Dataset.Column(c.Name) == nil {
			if of, n, ok := cutLast(c.Name, "_"); ok && n == "1" && p.Dataset.Column(of) != nil { // so DuckDB names the second of two
				return nil, 0, fmt.Errorf("the last step has column %s twice; write SELECT * REPLACE (… AS %s), since SELECT * has it already", of, of)
			}
			return nil, 0, fmt.Errorf("column %s of the last step is none of dataset %s; leave it out (SELECT * EXCLUDE (%s)), or add the field", c.Name, p.Dataset.Name, c.Name)
		}
	}
	id, ok := place["message_id"]
	if !ok {
		return nil, 0, errors.New("the last step's columns lack message_id, so that nobody knows whose row one is; let it go along in each step, as SELECT * does")
	}
	return place, id, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

const deviceMax = 512 // bytes of what a step calls a device: indexes of databases hold no more than 2.7 KB

// shape makes a row of what the last step gave, held to the model.
func shape(d *model.Dataset, r storage.Row, place map[string]int, values []any) (storage.Row, error) {
	if i, ok := place["time"]; ok {
		if t, ok := values[i].(time.Time); ok {
			r.Time = t.Truncate(time.Microsecond)
		} else {
			return r, message.Rejectf(message.SchemaMismatch, "time is %v after the last step; it must be a time", values[i])
		}
	}
	if i, ok := place["device"]; ok {
		if r.Device, _ = values[i].(string); len(r.Device) > deviceMax || !utf8.ValidString(r.Device) || strings.IndexByte(r.Device, 0) >= 0 {
			return r, message.Rejectf(message.SchemaMismatch, "device is a text of %d bytes after the last step; it must be a device's name, of at most %d and without NUL", len(r.Device), deviceMax)
		}
	}
	r.Values = make([]any, len(d.Fields))
	for j := range d.Fields {
		f := &d.Fields[j]
		i, ok := place[f.Name]
		if !ok {
			continue
		}
		var err error
		if r.Values[j], err = f.Accept(values[i]); err != nil {
			return r, message.Rejectf(message.SchemaMismatch, "after the last step %v", err)
		}
	}
	return r, d.Check(r.Values)
}

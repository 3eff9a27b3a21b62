package etl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/message"
)

// Trial is what a dataset and its pipeline make of messages when nothing is written.
type Trial struct {
	Dataset  string `json:"dataset"`
	Version  int    `json:"version"`
	Pipeline string `json:"pipeline,omitempty"`
	// Messages became Rows, or were Dropped by a step, or are Dead.
	Messages int `json:"messages"`
	Rows     int `json:"rows"`
	Dropped  int `json:"dropped"`
	Dead     int `json:"dead"`
	// Read is how many rows the first step found, and Steps what each step gave.
	Read  int    `json:"read"`
	Steps []Step `json:"steps,omitempty"`
	// Out are the rows as objects, Left the messages that a step left out, and Letters those that would be dead.
	Out     []json.RawMessage `json:"out"`
	Left    []Sampled         `json:"left"`
	Letters []Letter          `json:"letters"`
	// Stopped says why not all messages were tried.
	Stopped string `json:"stopped,omitempty"`
	// Fault is why the pipeline cannot be done with any row: the dataset would stand still.
	Fault string `json:"fault,omitempty"`

	bytes int // of Out and of Letters' details
}

// Step is one of a pipeline's, in a trial.
type Step struct {
	Doc  string `json:"doc,omitempty"`
	SQL  string `json:"sql"`
	Rows int    `json:"rows"` // without those that failed here or before
}

// Sampled names a message of a trial.
type Sampled struct {
	Message message.ID `json:"message"`
	Where   string     `json:"where,omitempty"` // file and line that it is from
}

// Letter is a message that would be dead.
type Letter struct {
	Sampled
	Reason message.Reason `json:"reason"`
	Detail string         `json:"detail"`
}

// Sample is a message to try.
type Sample struct {
	Message *message.Message
	Where   string
}

// trialGroup is how many messages are one micro-batch in a trial, as where much is to be done in fact.
const trialGroup = 8192

// outMost is how many bytes of rows and reasons a trial gives, before no further group is tried: a step may make much of little.
const outMost = 64 << 20

// Try does with messages what the running platform would do, and writes nothing. A pipeline that cannot be done is told in
// Trial.Fault; an error is the machine's. Keys are not looked at: what is a duplicate only the database knows.
func (p *Pipe) Try(ctx context.Context, samples []Sample) (*Trial, error) {
	t := &Trial{Dataset: p.Dataset.Name, Version: p.Dataset.Version, Messages: len(samples), Out: []json.RawMessage{}, Left: []Sampled{}, Letters: []Letter{}}
	p.Count = true
	if p.Pipeline != nil {
		t.Pipeline = p.Pipeline.Name
		for _, s := range p.Pipeline.Steps {
			t.Steps = append(t.Steps, Step{Doc: s.Doc, SQL: s.SQL})
		}
	}
	for from := 0; from < len(samples); from += trialGroup {
		group := samples[from:min(from+trialGroup, len(samples))]
		in := make([]component.Heard, len(group))
		for i := range group {
			in[i].Message = group[i].Message
		}
		made, err := p.Make(ctx, in)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			t.Fault, t.Stopped = err.Error(), "the pipeline cannot be done"
			t.Messages = from
			return t, nil
		}
		if err := t.add(p.Dataset, group, made); err != nil {
			return nil, err
		}
		if done := from + len(group); t.bytes > outMost && done < len(samples) {
			t.Messages, t.Stopped = done, fmt.Sprintf("%d messages were tried, which gave as much as is shown at once; there are more", done)
			break
		}
	}
	return t, nil
}

// Alone tries samples in a database of its own, with what twins gives for the twin of a device.
func Alone(ctx context.Context, d *model.Dataset, p *model.Pipeline, samples []Sample, twins func(device string) []byte) (*Trial, error) {
	scratch, err := storage.NewScratch(ctx, storage.Options{})
	if err != nil {
		return nil, err
	}
	defer scratch.Close()
	pipe := NewPipe(d, p, func(context.Context) (*storage.Scratch, error) { return scratch, nil })
	pipe.Twins = func(_ context.Context, devices []string) (map[string][]byte, error) {
		all := map[string][]byte{}
		for _, d := range devices {
			all[d] = twins(d)
		}
		return all, nil
	}
	return pipe.Try(ctx, samples)
}

// Tried tries a pipeline on a message without any field. A *model.Fault says why it could not be done whatever the message: brought
// in force, it would hold its dataset up. It may be called by any number of goroutines.
func Tried(ctx context.Context, d *model.Dataset, p *model.Pipeline) error {
	now := time.Now()
	m := &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Subject: d.Subject("sample"), Device: "sample", Data: []byte("{}")}
	t, err := Alone(ctx, d, p, []Sample{{Message: m}}, func(string) []byte { return nil })
	if err != nil {
		return fmt.Errorf("try pipeline %s: %w", p.Name, err)
	}
	if t.Fault != "" {
		return &model.Fault{Text: fmt.Sprintf("%s; dataset %s would stand still", t.Fault, d.Name)}
	}
	return nil
}

// add takes over what became of a group.
func (t *Trial) add(d *model.Dataset, group []Sample, made *Made) error {
	t.Read += made.Read
	for i, n := range made.Counts {
		t.Steps[i].Rows += n
	}
	for i := range made.Rows {
		raw, err := object(d, &made.Rows[i])
		if err != nil {
			return err
		}
		t.Rows++
		t.Out = append(t.Out, raw)
		t.bytes += len(raw)
	}
	for i, err := range made.Err {
		at := Sampled{group[i].Message.ID, group[i].Where}
		var dead *message.Rejection
		switch {
		case err == nil:
		case errors.Is(err, component.ErrNotMatched):
			t.Dropped++
			t.Left = append(t.Left, at)
		default:
			t.Dead++
			l := Letter{Sampled: at, Reason: message.ReasonOf(err, message.HandlerError), Detail: err.Error()}
			if errors.As(err, &dead) && dead.Err != nil {
				l.Detail = dead.Err.Error()
			}
			t.Letters = append(t.Letters, l)
			t.bytes += len(l.Detail)
		}
	}
	return nil
}

// object is a row as JSON, its columns in their order.
func object(d *model.Dataset, r *storage.Row) (json.RawMessage, error) {
	var b bytes.Buffer
	put := func(name string, v any) error {
		raw, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("column %s: %w", name, err)
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		} else {
			b.WriteByte('{')
		}
		fmt.Fprintf(&b, "%q:%s", name, raw)
		return nil
	}
	var device any
	if r.Device != "" {
		device = r.Device
	}
	system := []any{r.Time.UTC().Format(time.RFC3339Nano), device, r.Subject, r.Trace, r.Message.String(), r.Recorded.UTC().Format(time.RFC3339Nano)}
	for i := range model.System {
		if err := put(model.System[i].Name, system[i]); err != nil {
			return nil, err
		}
	}
	for i := range d.Fields {
		v := r.Values[i]
		if s, ok := v.(string); ok && d.Fields[i].Type == model.JSON {
			v = json.RawMessage(s)
		}
		if err := put(d.Fields[i].Name, v); err != nil {
			return nil, err
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

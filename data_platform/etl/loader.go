package etl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/message"
)

// patience is how long a load waits for the database to be opened before it says that it is not.
const patience = 2 * time.Second

// loader is the child of one dataset.
type loader struct {
	*etl
	env     component.Env
	name    string
	sources map[storage.Source]*source
	ensured *model.Dataset // as the database has it
	store   storage.Store  // in which it is so

	reads   *model.Dataset // what a payload is read as
	readsOf *model.Dataset // and of what it was made
	readsBy *model.Pipeline
	row     model.Row
}

// source is what is known of a partition.
type source struct {
	mark storage.Mark
	// settled is the place up to which the runner has committed: no fate before it is asked for again.
	settled bus.Position
}

// errors that are fates of their own.
func (l *loader) unknown() error {
	return message.Rejectf(message.DatasetUnknown, "there is no dataset %q any more; `naru data models` shows those there are", l.name)
}

// handle decides the fates of a group: those that the database knows, since the process died behind a load, as it knows
// them, and the others by a load.
func (l *loader) handle(ctx context.Context, tx component.Tx, _ string, in []component.Heard) ([]error, error) {
	select {
	case <-l.book.Synced():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	store, err := l.hub.Store(waiting)
	cancel()
	if err != nil {
		return nil, err
	}
	if store != l.store { // it was opened anew, and may be another
		l.store, l.ensured = store, nil
		clear(l.sources)
	}
	set := l.book.Set()
	d, p := set.Datasets[l.name], set.Pipelines[l.name]
	if d != nil && d != l.ensured {
		if err := store.Ensure(ctx, Table(d)); err != nil {
			return nil, fmt.Errorf("dataset %s, version %d: %w", d.Name, d.Version, err)
		}
		l.ensured = d
	}
	if d != nil && (l.readsOf != d || l.readsBy != p) {
		l.reads, l.readsOf, l.readsBy = p.Reads(d), d, p
	}

	at := in[0].Position
	id := storage.Source{Consumer: l.env.Spec.Name, Log: at.Log, Generation: at.Generation, Partition: at.Partition}
	src := l.sources[id]
	if src == nil {
		mark, err := store.Mark(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("ask how far %s was loaded: %w", l.name, err)
		}
		src = &source{mark: mark}
		l.sources[id] = src
	}

	fates := make([]error, len(in))
	batch := &storage.Batch{Table: l.name, Source: id, From: src.mark, Upto: src.mark}
	batch.Upto.Fates = slices.DeleteFunc(slices.Clone(src.mark.Fates), func(f storage.Fate) bool {
		return f.Sequence < src.settled.Sequence || f.Sequence == src.settled.Sequence && f.Index <= src.settled.Index
	})
	var fresh []int // indexes of those that are new
	for i := range in {
		if h := &in[i]; h.Again || !src.mark.Covers(h.Position) {
			fresh = append(fresh, i)
		} else if f, ok := src.mark.Fate(h.Position); ok {
			fates[i] = revive(f)
		}
	}
	if len(fresh) == 0 {
		return fates, nil
	}
	of := make([]int, 0, len(fresh)) // whose row a row is
	if d == nil {
		for _, i := range fresh {
			fates[i] = l.unknown()
		}
	} else if batch.Rows, of, err = l.transform(ctx, d, p, in, fresh, fates); err != nil {
		return nil, err
	}
	last := in[fresh[len(fresh)-1]]
	for _, i := range fresh {
		if fates[i] != nil && !in[i].Again {
			batch.Upto.Fates = append(batch.Upto.Fates, remember(in[i].Position, fates[i]))
		}
	}
	if !last.Again {
		batch.Upto.Sequence, batch.Upto.Index = last.Position.Sequence, last.Position.Index
	}
	if d != nil {
		done, err := store.Load(ctx, batch)
		if err != nil {
			delete(l.sources, id) // it may have been committed, or moved by another
			return nil, err
		}
		l.loaded(in, of, fates, batch, &done, last.Message.Recorded())
		for _, i := range done.Duplicates {
			if p := batch.Rows[i].Position; !batch.Rows[i].Again {
				batch.Upto.Fates = append(batch.Upto.Fates, storage.Fate{Sequence: p.Sequence, Index: p.Index})
			}
		}
		src.mark = batch.Upto
	}
	if !last.Again {
		tx.After(func() { src.settled = last.Position })
	}
	return fates, nil
}

// loaded notes what became of the rows.
func (l *loader) loaded(in []component.Heard, of []int, fates []error, b *storage.Batch, done *storage.Loaded, newest time.Time) {
	for _, i := range done.Duplicates {
		if h := &in[of[i]]; !h.Again { // one that comes again and is there is what it should be
			fates[of[i]] = component.ErrNotMatched
		}
	}
	l.rows.WithLabelValues(l.name).Add(float64(done.Rows))
	l.duplicates.WithLabelValues(l.name).Add(float64(len(done.Duplicates)))
	l.late.WithLabelValues(l.name).Add(float64(done.Late))
	if len(b.Rows) > 0 && !b.Rows[0].Again {
		l.watermark.WithLabelValues(l.name).Set(float64(newest.UnixMilli()) / 1000)
		l.lag.WithLabelValues(l.name).Set(max(l.env.Now().Sub(newest).Seconds(), 0))
	}
}

// detailMax bounds what is remembered of a death, since many may be remembered at once.
const detailMax = 512

func remember(p bus.Position, fate error) storage.Fate {
	f := storage.Fate{Sequence: p.Sequence, Index: p.Index}
	if !errors.Is(fate, component.ErrNotMatched) {
		f.Reason, f.Detail = message.ReasonOf(fate, message.HandlerError), fate.Error()
		f.Detail = f.Detail[:min(len(f.Detail), detailMax)]
	}
	return f
}

func revive(f storage.Fate) error {
	if f.Reason == 0 {
		return component.ErrNotMatched
	}
	return message.Rejectf(f.Reason, "%s", f.Detail)
}

// transform makes the new messages rows; of says whose each is. A message that makes none has its fate in fates. An error is
// the pipeline's: no message is to blame.
func (l *loader) transform(ctx context.Context, d *model.Dataset, p *model.Pipeline, in []component.Heard, fresh []int, fates []error) (rows []storage.Row, of []int, err error) {
	for _, i := range fresh {
		if fates[i] = l.reads.Row(in[i].Message, &l.row); fates[i] != nil {
			continue
		}
		r := &l.row
		rows = append(rows, storage.Row{Time: r.Time, Device: r.Device, Subject: string(r.Subject), Trace: r.Trace.String(), Message: r.ID,
			Recorded: r.Recorded.Truncate(time.Microsecond), Values: slices.Clone(r.Values), Position: in[i].Position, Again: in[i].Again})
		of = append(of, i)
	}
	if p == nil || len(rows) == 0 {
		return rows, of, nil
	}
	return l.pipe(ctx, d, p, rows, of, fates)
}

// pipe has a pipeline's steps done.
func (l *loader) pipe(ctx context.Context, d *model.Dataset, p *model.Pipeline, rows []storage.Row, of []int, fates []error) ([]storage.Row, []int, error) {
	if p.Enrich != nil {
		return nil, nil, fmt.Errorf("pipeline %s: enrich is not there yet; take it out, or use get_thing_shadow in a rule", p.Name)
	}
	scratch, err := l.steps(ctx)
	if err != nil {
		return nil, nil, err
	}
	var columns []storage.Column
	for i := range l.reads.Fields {
		columns = append(columns, storage.Column{Name: l.reads.Fields[i].Name, Type: storage.Type(l.reads.Fields[i].Type)})
	}
	var steps []string
	for _, s := range p.Steps {
		steps = append(steps, s.SQL)
	}
	out, list, err := scratch.Steps(ctx, columns, rows, steps)
	if err != nil {
		return nil, nil, fmt.Errorf("pipeline %s: %w", p.Name, err)
	}
	place := map[string]int{}
	for i, c := range out {
		place[c.Name] = i
		if d.Column(c.Name) == nil {
			return nil, nil, fmt.Errorf("pipeline %s: column %s of the last step is none of dataset %s; leave it out (SELECT * EXCLUDE (%s)), or add the field", p.Name, c.Name, d.Name, c.Name)
		}
	}
	id, ok := place["message_id"]
	if !ok {
		return nil, nil, fmt.Errorf("pipeline %s: the last step's columns lack message_id, so that nobody knows whose row one is; let it go along in each step, as SELECT * does", p.Name)
	}
	from := map[string]int{}
	for i := range rows {
		from[rows[i].Message.String()] = i
	}
	made := map[int][]storage.Row{}
	for _, values := range list {
		key, _ := values[id].(string)
		i, ok := from[key]
		if !ok {
			return nil, nil, fmt.Errorf("pipeline %s: a row of the last step has message_id %v, which is of no message", p.Name, values[id])
		}
		if fates[of[i]] != nil {
			continue
		}
		r, err := shape(d, rows[i], place, values)
		if err != nil {
			fates[of[i]] = err
			delete(made, i)
			continue
		}
		made[i] = append(made[i], r)
	}
	var result []storage.Row
	var whose []int
	for i := range rows {
		if len(made[i]) == 0 && fates[of[i]] == nil {
			fates[of[i]] = component.ErrNotMatched // a step has left it out
		}
		for _, r := range made[i] {
			result, whose = append(result, r), append(whose, of[i])
		}
	}
	return result, whose, nil
}

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
		r.Device, _ = values[i].(string)
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

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

const (
	// patience is how long a load waits for the database to be opened before it says that it is not.
	patience = 2 * time.Second
	// loadMost is how long steps and load of a group may take: a database that never answers is to be seen.
	loadMost = 2 * time.Minute
)

// loader is the child of one dataset.
type loader struct {
	*etl
	env     component.Env
	name    string
	sources map[storage.Source]*source
	ensured *model.Dataset // as the database has it
	store   storage.Store  // in which it is so

	pipe  *Pipe
	stand *standing
}

// source is what is known of a partition.
type source struct {
	mark storage.Mark
	// settled is the place up to which the runner has committed: no fate before it is asked for again.
	settled bus.Position
}

// unknown is the fate of what was on its way to a dataset that is gone.
func (l *loader) unknown() error {
	return message.Rejectf(message.DatasetUnknown, "there is no dataset %q any more; `naru data models` shows those there are", l.name)
}

// handle decides the fates of a group. While it cannot, the breaker of the dataset is open: its position stands still, and
// the runner tries again, at first soon and then every few seconds.
func (l *loader) handle(ctx context.Context, tx component.Tx, _ string, in []component.Heard) ([]error, error) {
	oldest := in[0].Message.Recorded()
	l.stand.begin(oldest)
	bounded, cancel := context.WithTimeout(ctx, loadMost)
	defer cancel()
	fates, err := l.load(bounded, tx, in)
	if err == nil {
		l.stand.goOn()
		return fates, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if bounded.Err() != nil {
		err = fmt.Errorf("it takes longer than %v: %w", loadMost, err)
	}
	now := l.env.Now()
	since := l.stand.open(now)
	return nil, fmt.Errorf("breaker open since %s, its oldest message waits for %v: %w", since.UTC().Format(time.RFC3339), max(now.Sub(oldest), 0).Round(time.Second), err)
}

// load has all at hand that a load wants, and does it.
func (l *loader) load(ctx context.Context, tx component.Tx, in []component.Heard) ([]error, error) {
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
	if d != nil && (l.pipe == nil || l.pipe.Dataset != d || l.pipe.Pipeline != p) {
		l.pipe = NewPipe(d, p, l.scratches)
		l.pipe.Twins = l.twins.WaitAll
	}
	return l.loadInto(ctx, tx, store, d, in)
}

// loadInto decides the fates of a group: those that the database knows, since the process died behind a load, as it knows
// them, and the others by a load. The dataset is nil where it is not in force any more.
func (l *loader) loadInto(ctx context.Context, tx component.Tx, store storage.Store, d *model.Dataset, in []component.Heard) ([]error, error) {
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
	var of []int // whose row a row is
	if d == nil {
		for _, i := range fresh {
			fates[i] = l.unknown()
		}
	} else {
		var err error
		if of, err = l.make(ctx, in, fresh, fates, batch); err != nil {
			return nil, err
		}
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
		for _, r := range done.Refused {
			if x := &batch.Rows[r.Row]; !x.Again {
				batch.Upto.Fates = append(batch.Upto.Fates, r.Fate(x.Position))
			}
		}
		src.mark = batch.Upto
	}
	if !last.Again {
		tx.After(func() { src.settled = last.Position })
	}
	return fates, nil
}

// make makes the new messages the batch's rows; of says whose each is. A message that makes none has its fate in fates.
func (l *loader) make(ctx context.Context, in []component.Heard, fresh []int, fates []error, batch *storage.Batch) (of []int, err error) {
	news := make([]component.Heard, len(fresh))
	for k, i := range fresh {
		news[k] = in[i]
	}
	made, err := l.pipe.Make(ctx, news)
	if err != nil {
		return nil, err
	}
	for k, i := range fresh {
		fates[i] = made.Err[k]
	}
	for _, k := range made.Of {
		of = append(of, fresh[k])
	}
	batch.Rows = made.Rows
	return of, nil
}

// loaded notes what became of the rows.
func (l *loader) loaded(in []component.Heard, of []int, fates []error, b *storage.Batch, done *storage.Loaded, newest time.Time) {
	for _, i := range done.Duplicates {
		if h := &in[of[i]]; !h.Again { // one that comes again and is there is what it should be
			fates[of[i]] = component.ErrNotMatched
		}
	}
	for _, r := range done.Refused {
		fates[of[r.Row]] = revive(r.Fate(b.Rows[r.Row].Position))
	}
	l.rows.WithLabelValues(l.name).Add(float64(done.Rows))
	l.duplicates.WithLabelValues(l.name).Add(float64(len(done.Duplicates)))
	l.late.WithLabelValues(l.name).Add(float64(done.Late))
	if len(b.Rows) > 0 && !b.Rows[0].Again {
		l.stand.loaded(newest, l.env.Now())
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

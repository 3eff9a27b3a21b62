package component

import (
	"context"
	"errors"
	"time"

	"github.com/naru-platform/naru/bus"
)

const (
	lagEvery = 5 * time.Second // a scrape is not more frequent as a rule
	lagDepth = 8               // batches looked at from a log's end
)

// lag is how far a component is behind in a log.
type lag struct {
	messages uint64
	oldest   time.Time // zero where nothing waits
}

func (l *lag) add(n uint64, at time.Time) {
	l.messages += n
	if n > 0 && !at.IsZero() && (l.oldest.IsZero() || at.Before(l.oldest)) {
		l.oldest = at
	}
}

// measureLag asks the logs how much lies behind the component's positions, adds what is parked, and sets the gauges.
func (r *run) measureLag(ctx context.Context, workers []*worker) error {
	reports := map[place]Report{}
	lags := map[string]*lag{}
	for _, name := range r.spec.Logs() {
		lags[name] = new(lag)
	}
	var held map[place]bool
	if r.spec.State == Derived {
		held = map[place]bool{}
	}
	var all []Report
	for _, w := range workers {
		all = append(all, w.snapshot()...)
		if k, ok := w.keep.(*derived); ok {
			held[k.at] = true
		}
	}
	for _, rep := range all {
		reports[place{rep.Log, rep.Position.Generation, rep.Position.Partition}] = rep
		if l := lags[rep.Log]; l != nil && len(rep.Exceptions) > 0 {
			l.add(rep.Waiting.Count, rep.Exceptions[0].ID.Time())
		}
	}
	behind := map[string]Behind{}
	for name, l := range lags {
		log, err := r.h.Bus.Log(ctx, name, bus.LogOptions{})
		if err != nil {
			return err
		}
		info, err := log.Info(ctx)
		if err != nil {
			return err
		}
		for _, g := range info.Generations {
			for _, p := range g.Partitions {
				if held != nil && !held[place{name, g.Number, p.Number}] {
					continue // another process has it, and measures it
				}
				if err := unread(ctx, log, g, p, reports[place{name, g.Number, p.Number}], l); err != nil {
					return err
				}
			}
		}
		behind[name] = Behind{l.messages, l.oldest}
		age := time.Duration(0)
		if !l.oldest.IsZero() {
			age = max(0, r.h.Now().Sub(l.oldest))
		}
		r.h.metrics.lagMessages.WithLabelValues(r.spec.Name, name).Set(float64(l.messages))
		r.h.metrics.lagSeconds.WithLabelValues(r.spec.Name, name).Set(age.Seconds())
	}
	r.mu.Lock()
	r.health.Behind = behind // a map that is told is not changed
	r.mu.Unlock()
	return nil
}

// unread adds what lies behind a position: by the running counts of the rows that wrote to the partition last, which
// leaves out only rows that have been silent for many batches and were not read yet.
func unread(ctx context.Context, log bus.Log, g bus.Generation, p bus.Partition, rep Report, l *lag) error {
	if c, ok := log.(bus.Copy); ok {
		return uncopied(ctx, c, g, p, rep, l)
	}
	next := max(rep.Position.Sequence+1, p.First)
	if next > p.Last {
		return nil
	}
	fetch := func(seq uint64) (bus.Stored, bool, error) {
		s, err := log.Fetch(ctx, bus.Position{Generation: g.Number, Partition: p.Number, Sequence: seq})
		if errors.Is(err, bus.ErrNotFound) {
			return s, false, nil // trimmed in the meantime
		}
		return s, err == nil && s.Err == nil, err
	}
	oldest := time.Time{}
	if s, ok, err := fetch(next); err != nil {
		return err
	} else if ok && s.Batch.Count > 0 {
		oldest = s.Batch.First
	}
	met := map[string]bool{}
	for seq := p.Last; seq >= next && seq+lagDepth > p.Last; seq-- {
		s, ok, err := fetch(seq)
		if err != nil {
			return err
		}
		if !ok || met[s.Appender] {
			continue
		}
		met[s.Appender] = true
		n := uint64(s.Batch.Count)
		if row, known := rep.Rows[s.Appender]; known || rep.Position.Sequence == 0 {
			n = s.Batch.Running + n - row.Upto.Count
		}
		if n > 0 && oldest.IsZero() {
			oldest = s.Batch.First
		}
		l.add(n, oldest)
	}
	return nil
}

// uncopied adds what lies behind a position in a copy, as far as that is known without asking where the copy is. How old
// it is the source says, where it still has it.
func uncopied(ctx context.Context, c bus.Copy, g bus.Generation, p bus.Partition, rep Report, l *lag) error {
	written, err := c.Written(ctx, g.Number, p.Number)
	if err != nil {
		return err
	}
	n := uint64(0)
	for row, count := range written {
		if had := rep.Rows[row].Upto.Count; count > had {
			n += count - had
		}
	}
	if n == 0 {
		return nil
	}
	at, err := c.Reached(ctx, bus.Position{Generation: g.Number, Partition: p.Number, Sequence: rep.Position.Sequence})
	if err != nil {
		return err
	}
	at.Sequence++
	oldest := time.Time{}
	if source, err := c.Read(ctx, at); err == nil && source.Err == nil && source.Batch.Count > 0 {
		oldest = source.Batch.First
	}
	l.add(n, oldest)
	return nil
}

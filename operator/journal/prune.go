package journal

import (
	"context"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

const (
	// pruneEvery is how often the index lets go of what was trimmed from the logs.
	pruneEvery = time.Minute
	// pruneMost is how many entries go in one commit: messages are indexed between two of them.
	pruneMost = 2000
)

// run prunes the index until ctx is done.
func (j *Journal) run(ctx context.Context, ready func()) error {
	ready()
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		if err := j.prune(ctx); err != nil && ctx.Err() == nil {
			j.env.Log.Warn("let go of what was trimmed from the logs", "error", err) // tried again at the next tick
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// prune takes out of the index the minutes of which every batch was trimmed, the oldest first, up to the first minute
// that still has one.
func (j *Journal) prune(ctx context.Context) error {
	trimmed, err := j.trimmed(ctx)
	if err != nil {
		return err
	}
	for {
		keys, at, err := j.gone(trimmed)
		if err != nil || len(keys) == 0 {
			return err
		}
		err = j.env.Change(ctx, func(tx component.Tx) error {
			for _, k := range keys {
				tx.Delete(k)
			}
			left := false
			if err := tx.Scan(minutePrefix(at), func(_, _ []byte) bool { left = true; return false }); err != nil || left {
				return err
			}
			return j.forgetSpans(tx, at)
		})
		if err != nil {
			return err
		}
	}
}

// forgetSpans forgets a minute that has no batches any more, and its hour with the last of its minutes.
func (j *Journal) forgetSpans(tx component.Tx, minute uint32) error {
	for _, l := range j.levels {
		at := minute / l.unit
		if (at+1)*l.unit-1 > minute {
			left := false
			for m := minute + 1; !left && m < (at+1)*l.unit; m++ {
				if err := tx.Scan(minutePrefix(m), func(_, _ []byte) bool { left = true; return false }); err != nil {
					return err
				}
			}
			if left {
				continue
			}
		}
		j.mu.Lock()
		delete(l.open, at)
		j.mu.Unlock()
		if err := l.forget(tx, at); err != nil {
			return err
		}
	}
	return nil
}

// trimmed says of a batch whether it was trimmed from its log, as of now.
func (j *Journal) trimmed(ctx context.Context) (func(log string, p bus.Position) bool, error) {
	type part struct {
		log       string
		gen, part uint32
	}
	first, oldest := map[part]uint64{}, map[string]uint32{}
	for _, name := range message.Namespaces() {
		log, err := j.log(ctx, name)
		if err != nil {
			return nil, err
		}
		info, err := log.Info(ctx)
		if err != nil {
			return nil, err
		}
		for i, g := range info.Generations {
			if i == 0 {
				oldest[name] = g.Number
			}
			for _, p := range g.Partitions {
				first[part{name, g.Number, p.Number}] = p.First
			}
		}
	}
	return func(log string, p bus.Position) bool {
		if begins, ok := first[part{log, p.Generation, p.Partition}]; ok {
			return p.Sequence < begins
		}
		return p.Generation < oldest[log] // trimmed to its end, it has disappeared
	}, nil
}

// gone lists entries of the oldest minute, if all of it was trimmed: as many as go in one commit.
func (j *Journal) gone(trimmed func(string, bus.Position) bool) (keys [][]byte, at uint32, err error) {
	err = j.env.View(func(v component.View) error {
		var bad error
		all := true
		err := v.Range([]byte{kindBatch}, []byte{kindBatch + 1}, false, func(k, val []byte) bool {
			e, minute, err := parseEntry(k, val)
			if err != nil {
				bad = err
				return false
			}
			if at == 0 {
				at = minute
			}
			if minute != at {
				return false
			}
			if !trimmed(e.log, e.position) {
				all = false
				return false
			}
			if len(keys) < pruneMost {
				keys = append(keys, slices.Clone(k))
			}
			return true
		})
		if bad != nil || !all {
			keys = nil
		}
		if bad != nil {
			return bad
		}
		return err
	})
	return keys, at, err
}

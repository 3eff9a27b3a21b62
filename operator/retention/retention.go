// Package retention gives disk back. What every required consumer has finished is trimmed from the logs once it is old
// enough, or when a log has grown too large; what one of them has not finished stays, however long that takes, and the
// doors shut before the disk is full.
package retention

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// Config is the component's configuration.
type Config struct {
	// MaxAge is how long messages are kept that everybody has finished.
	MaxAge string `json:"max_age"`
	// MaxBytes is how large a partition of a log may become before finished messages go earlier; 0 for any size.
	MaxBytes uint64 `json:"max_bytes"`
	// Every is how often it looks.
	Every string `json:"every"`
}

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name: "operator.retention",
	Doc:  "trims from the logs what every required consumer has finished, by age and size",
}, Config{MaxAge: "168h", MaxBytes: 64 << 30, Every: "30s"}, New)

// Retention trims.
type Retention struct {
	env      component.Env
	maxAge   time.Duration
	maxBytes uint64
	every    time.Duration
	trimmed  *prometheus.CounterVec
	since    map[string]time.Time // marks whose consumers are away, and since when that is known here
	told     map[string]time.Time // consumers that are away, and when that was said
	done     map[string]uint64    // how far each partition was trimmed; its rows' last batches stay, and are not counted again
}

// New builds the component.
func New(env component.Env, c Config) (*component.Part, error) {
	age, err := time.ParseDuration(c.MaxAge)
	if err != nil || age <= 0 {
		return nil, fmt.Errorf("max_age %q: want a duration such as 168h", c.MaxAge)
	}
	every, err := time.ParseDuration(c.Every)
	if err != nil || every < time.Second {
		return nil, fmt.Errorf("every %q: want a duration of at least 1s", c.Every)
	}
	r := &Retention{env: env, maxAge: age, maxBytes: c.MaxBytes, every: every,
		since: map[string]time.Time{}, told: map[string]time.Time{}, done: map[string]uint64{},
		trimmed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "naru_trimmed_batches_total", Help: "Batches that were trimmed from a log after everybody had finished them.",
		}, []string{"log"})}
	if env.Metrics != nil {
		env.Metrics.MustRegister(r.trimmed)
	}
	return &component.Part{Run: r.run}, nil
}

// tellEvery is how often it is said that messages are kept for a consumer that is away.
const tellEvery = time.Hour

// tellAfter is how long a consumer is not heard of before it is said to be away: when all of a platform has started again,
// nobody was heard of yet, and none of them is to be forgotten. `naru ledger forget` wants a silence of as long.
const tellAfter = 45 * time.Second

func (r *Retention) run(ctx context.Context, ready func()) error {
	marks, err := r.env.Bus.Table(ctx, component.RequiredTable, bus.TableOptions{})
	if err != nil {
		return fmt.Errorf("open the table of required consumers: %w", err)
	}
	ready()
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		for _, name := range message.Namespaces() {
			if err := r.trim(ctx, marks, name); err != nil && ctx.Err() == nil {
				r.env.Log.Warn("trim", "log", name, "error", err) // tried again at the next tick
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// trim looks at one log.
func (r *Retention) trim(ctx context.Context, marks bus.Table, name string) error {
	log, err := r.env.Bus.Log(ctx, name, bus.LogOptions{})
	if err != nil {
		return err
	}
	info, err := log.Info(ctx)
	if err != nil {
		return err
	}
	newest, err := newestOf(ctx, marks, name, info.ID)
	if err != nil {
		return err
	}
	for _, g := range info.Generations {
		for _, p := range g.Partitions {
			at := bus.Position{Log: info.ID, Generation: g.Number, Partition: p.Number}
			floor, err := r.floor(ctx, marks, newest, name, at)
			if err != nil {
				return err
			}
			at.Sequence, err = r.target(ctx, log, at, p, min(floor, p.Last))
			if err != nil {
				return err
			}
			place := fmt.Sprintf("%s/%d/%d", name, g.Number, p.Number)
			if at.Sequence < p.First || at.Sequence <= r.done[place] {
				continue
			}
			if err := log.Trim(ctx, at); err != nil {
				return fmt.Errorf("up to %d: %w", at.Sequence, err)
			}
			r.trimmed.WithLabelValues(name).Add(float64(at.Sequence - max(p.First, r.done[place]+1) + 1))
			r.done[place] = at.Sequence
		}
	}
	return nil
}

// newestOf is, for each consumer that has marks in a log, the newest generation in which it has one.
func newestOf(ctx context.Context, marks bus.Table, name string, id message.ID) (map[string]uint32, error) {
	entries, err := bus.Entries(ctx, marks, name+"/")
	if err != nil {
		return nil, err
	}
	newest := map[string]uint32{}
	for _, e := range entries {
		var p bus.Position
		if part := strings.SplitN(e.Key, "/", 4); len(part) == 4 && json.Unmarshal(e.Value, &p) == nil && p.Log == id {
			consumer := component.MarkOf(part[3])
			newest[consumer] = max(newest[consumer], p.Generation)
		}
	}
	return newest, nil
}

// floor is how far every required consumer has come in a partition. A consumer that was ever required counts with the last
// position known of it, whether it runs or not; where none is known at all, nothing is trimmed. One that is not known here,
// but elsewhere in the log and nowhere in a later generation, has all of the partition before it: a generation is begun
// when the one before is finished. newest is of before; what is reported by now is added to it.
func (r *Retention) floor(ctx context.Context, marks bus.Table, newest map[string]uint32, name string, at bus.Position) (uint64, error) {
	prefix := fmt.Sprintf("%s/%d/%d/", name, at.Generation, at.Partition)
	forgotten := r.env.Peers.Forgotten()
	reported, beyond := map[string]bool{}, map[string]bool{} // marks of this generation; consumers that are in a later one
	heard, unread := map[string]bool{}, map[string]bool{}    // consumers that are in the log; those that may have all of the partition before them
	for _, report := range r.env.Peers.Reports() {
		if !report.Required || report.Log != name && report.Log != bus.CopyName(name) {
			continue
		}
		mark, have := report.Consumer, report.Position
		if report.Log != name {
			var err error
			if mark, have, err = r.copied(ctx, &report, name); err != nil {
				return 0, err
			}
		}
		begun := !report.Position.Log.IsZero() // else it stands still before the first batch, and says nothing of how far it is
		heard[report.Consumer] = true
		if begun {
			newest[report.Consumer] = max(newest[report.Consumer], have.Generation)
		}
		if have.Generation > at.Generation {
			beyond[report.Consumer] = true
		}
		if have.Generation != at.Generation || have.Partition != at.Partition {
			continue
		}
		reported[mark] = true
		if !begun { // its mark may be of a former worker that knew more
			unread[report.Consumer] = true
			continue
		}
		if report.Needed > 0 && report.Needed <= have.Sequence && report.Log == name {
			have.Sequence = report.Needed - 1 // what is parked is read from the log again
		}
		value, err := json.Marshal(have)
		if err != nil {
			return 0, err
		}
		old, err := marks.Get(ctx, prefix+mark)
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			return 0, err
		}
		if string(old.Value) != string(value) {
			if _, err := marks.Put(ctx, prefix+mark, value); err != nil {
				return 0, err
			}
		}
	}
	for consumer, generation := range newest {
		if generation <= at.Generation && (heard[consumer] || forgotten[consumer].IsZero()) {
			unread[consumer] = true
		}
	}
	var gone, away []string
	floor, known := ^uint64(0), false
	keep := func(key string, upto uint64, present bool) {
		known = true
		floor = min(floor, upto)
		if present {
			delete(r.since, key)
		} else if _, known := r.since[key]; !known {
			r.since[key] = r.env.Now()
		} else if r.env.Now().Sub(r.since[key]) >= tellAfter {
			away = append(away, component.MarkOf(strings.TrimPrefix(key, prefix)))
		}
	}
	entries, err := bus.Entries(ctx, marks, prefix)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		var p bus.Position
		if json.Unmarshal(e.Value, &p) != nil || p.Log != at.Log && !p.Log.IsZero() {
			continue
		}
		if p.Log.IsZero() { // who stood still was noted so, once
			p.Sequence = 0
		}
		mark := strings.TrimPrefix(e.Key, prefix)
		consumer := component.MarkOf(mark)
		delete(unread, consumer)
		if !forgotten[consumer].IsZero() && !reported[mark] {
			gone = append(gone, e.Key)
			continue
		}
		keep(e.Key, p.Sequence, reported[mark] || beyond[consumer])
	}
	for consumer := range unread {
		keep(prefix+consumer, 0, heard[consumer])
	}
	for _, consumer := range away {
		if r.env.Now().Sub(r.told[consumer]) >= tellEvery {
			r.told[consumer] = r.env.Now()
			r.env.Log.Warn("messages are kept for a required consumer that is not heard of; if it went for good: naru ledger forget "+consumer, "consumer", consumer, "log", name)
		}
	}
	for _, key := range gone { // nothing is kept for it any more
		delete(r.since, key)
		if err := marks.Delete(ctx, key, 0); err != nil {
			return 0, err
		}
	}
	if !known {
		return 0, nil
	}
	return floor, nil
}

// copied is how far a consumer that reads a copy of a log has come in the log itself, and its mark there. What is not
// finished is kept here as well, where a person finds it; the copy may forget it any time.
func (r *Retention) copied(ctx context.Context, report *component.Report, name string) (mark string, have bus.Position, err error) {
	log, err := r.env.Bus.Log(ctx, report.Log, bus.LogOptions{})
	if err != nil {
		return "", have, err
	}
	c, ok := log.(bus.Copy)
	if !ok || c.Source() != name {
		return "", have, fmt.Errorf("log %s, which %s reads, is not known here as a copy of %s", report.Log, report.Consumer, name)
	}
	have, err = c.Reached(ctx, report.Position)
	return fmt.Sprintf("%s=%d", report.Consumer, report.Position.Partition), have, err
}

// target is the sequence to trim to: the newest that is too old, or as many as the partition is too large by; at most
// floor.
func (r *Retention) target(ctx context.Context, log bus.Log, at bus.Position, p bus.Partition, floor uint64) (uint64, error) {
	if floor < p.First {
		return 0, nil
	}
	target := p.First - 1
	if r.maxBytes > 0 && p.Bytes > r.maxBytes {
		mean := max(p.Bytes/(p.Last-p.First+1), 1)
		target = min(floor, p.First+(p.Bytes-r.maxBytes)/mean)
	}
	before := r.env.Now().Add(-r.maxAge)
	low, high := target+1, floor+1 // the first in [low, high) that is young enough
	for low < high {
		mid := low + (high-low)/2
		said, last, err := r.newest(ctx, log, at, mid, high)
		switch {
		case err != nil:
			return 0, err
		case said > 0 && last.Before(before):
			low = said + 1
		default: // young; or nothing from here on says how old it is, and so it is not taken for old
			high = mid
		}
	}
	if low == p.First && low+probeMost <= floor+1 {
		// So many in front that say nothing go without an age: they would hide what is old behind them for ever.
		if said, _, err := r.newest(ctx, log, at, low, floor+1); said == 0 && err == nil {
			low += probeMost
		}
	}
	return min(low-1, floor), nil
}

// probeMost is how many batches are looked at for one that says how old it is.
const probeMost = 256

// newest is the first batch in [from, to) that says how old it is, and its newest message's time; 0 where none of the next
// few does. One that a fence left behind holds no message, and one that is lost or cannot be read says nothing either:
// neither makes those before it old.
func (r *Retention) newest(ctx context.Context, log bus.Log, at bus.Position, from, to uint64) (uint64, time.Time, error) {
	for n := from; n < to && n < from+probeMost; n++ {
		at.Sequence = n
		s, err := log.Fetch(ctx, at)
		switch {
		case errors.Is(err, bus.ErrNotFound), err == nil && (s.Err != nil || s.Batch.Count == 0):
		case err != nil:
			return 0, time.Time{}, err
		default:
			return n, s.Batch.Last, nil
		}
	}
	return 0, time.Time{}, nil
}

package component

import (
	"context"
	"encoding/json"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
)

// The tables that runners tell operators through. What is in them is said again and goes by itself.
const (
	reportTable = "naru_fates"
	healthTable = "naru_nodes"
	reportTTL   = time.Minute
	healthTTL   = 30 * time.Second
	nodeTTL     = 10 * time.Minute // after which a node that says nothing is taken for gone for good, with its consumers
)

// Peers is an operator's view of all components on the bus, in whatever process. It is safe for concurrent use.
type Peers struct {
	mu      sync.Mutex
	reports map[string]Report
	health  map[string]Health
	gone    map[string]time.Time // consumers that were forgotten, and when
}

// NewPeers begins an empty view.
func NewPeers() *Peers {
	return &Peers{reports: map[string]Report{}, health: map[string]Health{}, gone: map[string]time.Time{}}
}

// Reports are the newest of each consumer and partition.
func (p *Peers) Reports() []Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]Report, 0, len(p.reports))
	for _, r := range p.reports {
		list = append(list, r)
	}
	return list
}

// Components are those that run, or said so within the last half minute.
func (p *Peers) Components() []Health {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]Health, 0, len(p.health))
	for _, h := range p.health {
		list = append(list, h)
	}
	return list
}

// Forgotten are the consumers that were forgotten lately, and when: what was reported of them until then is void.
func (p *Peers) Forgotten() map[string]time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.gone)
}

// Add takes a report into the view; it is what watching does, and tests.
func (p *Peers) Add(r Report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Forgotten {
		p.gone[r.Consumer] = r.At
		maps.DeleteFunc(p.reports, func(_ string, old Report) bool { return old.Consumer == r.Consumer && !old.At.After(r.At) })
		return
	}
	if at, ok := p.gone[r.Consumer]; ok && !r.At.After(at) {
		return
	}
	key := reportKey(&r)
	if old, ok := p.reports[key]; !ok || !r.Older(old) {
		p.reports[key] = r
	}
}

// run keeps the view until ctx is done.
func (p *Peers) run(ctx context.Context, b bus.Bus) error {
	reports, err := b.Table(ctx, reportTable, bus.TableOptions{Volatile: true, TTL: reportTTL})
	if err != nil {
		return err
	}
	health, err := b.Table(ctx, healthTable, bus.TableOptions{Volatile: true, TTL: healthTTL})
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	group.Go(func() {
		_ = reports.Watch(ctx, "", func(e bus.Entry) { // ends with ctx or the bus
			var r Report
			if e.Deleted {
				p.mu.Lock()
				delete(p.reports, e.Key)
				p.mu.Unlock()
			} else if json.Unmarshal(e.Value, &r) == nil {
				p.Add(r)
			}
		}, func() {})
	})
	group.Go(func() {
		_ = health.Watch(ctx, "", func(e bus.Entry) {
			p.mu.Lock()
			defer p.mu.Unlock()
			var h Health
			if e.Deleted || json.Unmarshal(e.Value, &h) != nil {
				delete(p.health, e.Key)
				return
			}
			p.health[e.Key] = h
		}, func() {})
	})
	// What was not said again is dropped here too, should the engine not tell that its time to live is over; and a consumer
	// that is a node's own goes with the node.
	tick := time.NewTicker(healthTTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			group.Wait()
			return nil
		case now := <-tick.C:
			p.mu.Lock()
			for k, h := range p.health {
				if now.Sub(h.At) > healthTTL+10*time.Second {
					delete(p.health, k)
				}
			}
			p.forget(now)
			p.mu.Unlock()
		}
	}
}

// drop tells all operators on the bus that a consumer is forgotten.
func (p *Peers) drop(ctx context.Context, b bus.Bus, consumer string, now time.Time) error {
	last := Report{Checkpoint: Checkpoint{Consumer: consumer}, Child: true, Forgotten: true, At: now}
	if err := put(ctx, b, reportTable, reportTTL, consumer+"/forgotten", last); err != nil {
		return err
	}
	var keys []string
	p.mu.Lock()
	for k, r := range p.reports {
		if r.Consumer == consumer {
			keys = append(keys, k)
		}
	}
	p.mu.Unlock()
	p.Add(last)
	t, err := b.Table(ctx, reportTable, bus.TableOptions{Volatile: true, TTL: reportTTL})
	for _, k := range keys {
		if err == nil {
			err = t.Delete(ctx, k, 0)
		}
	}
	return err
}

// RequiredTable has, under `<log>/<generation>/<partition>/<consumer>`, how far each required consumer has come, whether
// it runs or not: what it has not finished is not trimmed. operator.retention keeps it.
const RequiredTable = "naru_required"

// MarkOf is the consumer whose mark it is that a key of RequiredTable ends in. A consumer that reads a copy of a log has
// a mark in that log for each partition of the copy: `<consumer>=<partition>`.
func MarkOf(end string) (consumer string) {
	consumer, _, _ = strings.Cut(end, "=")
	return consumer
}

// Marks lists the keys of RequiredTable that keep messages for a consumer.
func Marks(ctx context.Context, b bus.Bus, consumer string) (keys []string, err error) {
	err = eachMark(ctx, b, func(e bus.Entry, _, of string) {
		if of == consumer {
			keys = append(keys, e.Key)
		}
	})
	return keys, err
}

// Owed are the consumers that the logs keep messages for, running or not, with how far each has come in each partition of
// them: reports of what operator.retention has noted.
func Owed(ctx context.Context, b bus.Bus) (list []Report, err error) {
	err = eachMark(ctx, b, func(e bus.Entry, log, of string) {
		r := Report{Checkpoint: Checkpoint{Consumer: of, Log: log}, Required: true, Child: strings.Contains(of, "/")}
		if json.Unmarshal(e.Value, &r.Position) == nil {
			list = append(list, r)
		}
	})
	return list, err
}

func eachMark(ctx context.Context, b bus.Bus, f func(e bus.Entry, log, consumer string)) error {
	t, err := b.Table(ctx, RequiredTable, bus.TableOptions{})
	if err != nil {
		return err
	}
	marks, err := bus.Entries(ctx, t, "")
	for _, e := range marks {
		if part := strings.SplitN(e.Key, "/", 4); len(part) == 4 {
			f(e, part[0], MarkOf(part[3]))
		}
	}
	return err
}

// Forget tells all operators on the bus that a consumer is no more, and releases what the logs keep for it.
func (p *Peers) Forget(ctx context.Context, b bus.Bus, consumer string, now time.Time) error {
	if err := p.drop(ctx, b, consumer, now); err != nil {
		return err
	}
	keys, err := Marks(ctx, b, consumer)
	if err != nil {
		return err
	}
	t, err := b.Table(ctx, RequiredTable, bus.TableOptions{})
	for _, k := range keys {
		if err == nil {
			err = t.Delete(ctx, k, 0)
		}
	}
	return err
}

// forget drops the consumers of nodes that are gone. The view's mutex is held.
func (p *Peers) forget(now time.Time) {
	maps.DeleteFunc(p.gone, func(_ string, at time.Time) bool { return now.Sub(at) > nodeTTL })
	for k, r := range p.reports {
		if r.Gone(now) {
			delete(p.reports, k)
		}
	}
}

// Older says that it is from before another of the same consumer and partition. No report comes so late as the table keeps them: one that
// seems to was told by a clock that is right now, and the other by one that was ahead.
func (r *Report) Older(than Report) bool {
	return r.At.Before(than.At) && than.At.Sub(r.At) <= reportTTL
}

// Gone says that the consumer is one of a node's own and that the node has said nothing for so long that it is taken for
// gone for good, with what its consumers were owed.
func (r *Report) Gone(now time.Time) bool {
	return strings.Contains(r.Consumer, "/") && !r.Child && now.Sub(r.At) > nodeTTL
}

// What the components of a process tell operators of themselves.

package component

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
)

// tell puts reports and health where operators look.
func (h *Host) tell(ctx context.Context) {
	said := map[*run]map[string]time.Time{}
	var measured time.Time
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		all := h.all()
		maps.DeleteFunc(said, func(r *run, _ map[string]time.Time) bool { return !slices.Contains(all, r) })
		for _, r := range all {
			if said[r] == nil {
				said[r] = map[string]time.Time{}
			}
			if err := h.tellOf(ctx, r, said[r]); err != nil && ctx.Err() == nil {
				h.Log.Debug("tell of a component", "component", r.spec.Name, "error", err)
			}
		}
		if now := time.Now(); now.Sub(measured) >= lagEvery {
			measured = now
			for _, r := range all {
				if err := caught(func() error { return r.lag(ctx) }); err != nil && ctx.Err() == nil {
					h.Log.Debug("measure how far a component is behind", "component", r.spec.Name, "error", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tellOf tells of one component.
func (h *Host) tellOf(ctx context.Context, r *run, said map[string]time.Time) error {
	h.telling.Lock()
	defer h.telling.Unlock()
	return caught(func() error { return r.tell(ctx, said) })
}

func (r *run) tell(ctx context.Context, said map[string]time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	now := r.h.Now()
	r.mu.Lock()
	health, workers := r.health, slices.Clone(r.workers)
	r.mu.Unlock()
	health.At = now
	key := strings.NewReplacer(":", "_", " ", "_").Replace(health.Node) + "/" + health.Name
	waits := false
	for _, b := range health.Behind {
		waits = waits || b.Messages > 0
	}
	stamp := fmt.Sprintf("h%s %s %s %d %v %v", key, health.State, health.Fault, health.Holds, health.Listens, waits)
	if now.Sub(said[stamp]) >= againEvery && health.State != "" {
		if err := put(ctx, r.h.Bus, healthTable, healthTTL, key, health); err != nil {
			return err
		}
		for k := range said { // what was said of its former states is forgotten
			if strings.HasPrefix(k, "h"+key) {
				delete(said, k)
			}
		}
		said[stamp] = now
	}
	for _, w := range workers {
		if err := r.tellReports(ctx, w, said); err != nil {
			return err
		}
	}
	return nil
}

// lag measures how far the component is behind, where it runs here.
func (r *run) lag(ctx context.Context) error {
	r.mu.Lock()
	workers := slices.Clone(r.workers)
	r.mu.Unlock()
	if len(workers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lagEvery)
	defer cancel()
	return r.measureLag(ctx, workers)
}

// tellReports puts what changed since it was said.
func (r *run) tellReports(ctx context.Context, w *worker, said map[string]time.Time) error {
	now := r.h.Now()
	for _, rep := range w.snapshot() {
		key := reportKey(&rep)
		// One that has not changed since it was said is said again only now and then.
		if last, ok := said["r"+key]; ok && !rep.At.After(last) && now.Sub(last) < againEvery {
			continue
		}
		rep.At = now
		if err := put(ctx, r.h.Bus, reportTable, reportTTL, key, rep); err != nil {
			return err
		}
		r.h.peers.Add(rep)
		said["r"+key] = now
	}
	return nil
}

func reportKey(r *Report) string {
	return fmt.Sprintf("%s/%s/%d/%d", r.Consumer, r.Log, r.Position.Generation, r.Position.Partition)
}

func put(ctx context.Context, b bus.Bus, table string, ttl time.Duration, key string, v any) error {
	t, err := b.Table(ctx, table, bus.TableOptions{Volatile: true, TTL: ttl})
	if err != nil {
		return err
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = t.Put(ctx, key, raw)
	return err
}

// set changes what is told of the component.
func (r *run) set(state, fault string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.health.State == state && r.health.Fault == fault {
		return
	}
	r.health.State, r.health.Fault, r.health.Since = state, fault, r.h.Now()
	up := 0.0
	if state == "running" {
		up = 1
	}
	r.h.metrics.up.WithLabelValues(r.spec.Name).Set(up)
}

// fault notes what keeps the component from its work while it runs.
func (r *run) fault(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	why, _, _ = strings.Cut(why, "\n")
	if r.health.State == "running" && r.health.Fault != why {
		r.health.Fault, r.health.Since = why, r.h.Now()
	}
}

// listening notes where the component listens. The map is not changed once it is told.
func (r *run) listening(name, address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := maps.Clone(r.health.Listens)
	if all == nil {
		all = map[string]string{}
	}
	all[name] = address
	r.health.Listens = all
}

package worker

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/outbound"
	"github.com/naru-platform/naru/message"
)

const (
	statsTable = "naru_workers"
	statsTTL   = 30 * time.Second
	statsEvery = time.Second
	recent     = 1024 // calls that percentiles are of
)

// tally counts a worker's calls in this process.
type tally struct {
	mu     sync.Mutex
	calls  uint64
	errors map[string]uint64
	took   [recent]time.Duration
}

func (t *tally) add(took time.Duration, kind string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.took[t.calls%recent] = took
	t.calls++
	if kind != "" {
		if t.errors == nil {
			t.errors = map[string]uint64{}
		}
		t.errors[kind]++
	}
}

// kindOf is the word that a failure is counted under; nothing for none.
func kindOf(err error) string {
	var f *failure
	switch {
	case err == nil || errors.Is(err, component.ErrNotMatched):
		return ""
	case errors.As(err, &f):
		return f.kind
	}
	return message.ReasonOf(err, message.HandlerError).String()
}

// State is how a worker is, told by the process that runs it.
type State struct {
	Name      string            `json:"name"`
	Node      string            `json:"node"`
	At        time.Time         `json:"at"`
	Calls     uint64            `json:"calls"`  // since the process began to run it
	Errors    map[string]uint64 `json:"errors"` // of them, by reason
	P50       time.Duration     `json:"p50_ns"` // of the last thousand calls
	P99       time.Duration     `json:"p99_ns"`
	Breaker   string            `json:"breaker,omitempty"`
	OpenSince time.Time         `json:"breaker_since,omitzero"`
	OpenFor   string            `json:"breaker_why,omitempty"` // how the newest call failed
	Instances []Instance        `json:"instances,omitempty"`
}

// state gives what there is to tell; ok says whether the worker runs here.
func (l *live) state() (s State, ok bool) {
	l.mu.Lock()
	h, running, kind := l.hub, l.open != nil, l.rec.Kind
	l.mu.Unlock()
	if !running {
		return s, false
	}
	now := l.w.env.Now()
	s = State{Name: l.name, Node: l.w.env.Node, At: now, Errors: map[string]uint64{}}
	l.tally.mu.Lock()
	s.Calls = l.tally.calls
	maps.Copy(s.Errors, l.tally.errors)
	took := slices.Clone(l.tally.took[:min(l.tally.calls, recent)])
	l.tally.mu.Unlock()
	if slices.Sort(took); len(took) > 0 {
		s.P50, s.P99 = took[len(took)/2], took[len(took)*99/100]
	}
	if kind == KindHTTP {
		s.Breaker, s.OpenSince = l.breaker.State(now)
		if s.Breaker == outbound.Closed {
			s.OpenSince = time.Time{}
		} else {
			s.OpenFor = l.breaker.Why()
		}
	}
	if h != nil {
		s.Instances = h.shown()
	}
	return s, true
}

// tell puts the states of what runs here where all processes see them.
func (w *Workers) tell(ctx context.Context, t bus.Table) {
	tick := time.NewTicker(statsEvery)
	defer tick.Stop()
	for {
		w.mu.Lock()
		all := slices.Collect(maps.Values(w.live))
		w.mu.Unlock()
		for _, l := range all {
			s, ok := l.state()
			if !ok {
				continue
			}
			raw, err := json.Marshal(s)
			if err == nil {
				_, err = t.Put(ctx, l.name, raw)
			}
			if err != nil && ctx.Err() == nil {
				w.env.Log.Debug("tell of a worker", "worker", l.name, "error", err) // told again in a second
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// board is what processes tell of the workers that they run.
type board struct {
	mu  sync.Mutex
	all map[string]State
}

func newBoard() *board { return &board{all: map[string]State{}} }

func (b *board) follow(ctx context.Context, t bus.Table) error {
	return t.Watch(ctx, "", func(e bus.Entry) {
		var s State
		b.mu.Lock()
		defer b.mu.Unlock()
		if e.Deleted || json.Unmarshal(e.Value, &s) != nil {
			delete(b.all, e.Key)
			return
		}
		b.all[e.Key] = s
	}, func() {})
}

// of is what was told of a worker lately; nil where nothing was.
func (b *board) of(name string, now time.Time) *State {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.all[name]
	if !ok || now.Sub(s.At) > statsTTL {
		return nil
	}
	return &s
}

// Shown is a worker as it is listed.
type Shown struct {
	Record
	Version  int    `json:"version"`
	Revision uint64 `json:"revision"`
	// Demo is naru's own, for simulated devices.
	Demo bool `json:"demo,omitempty"`
	// State is in one word: running, paused, starting, away, no_instances, breaker_open, stuck_retrying, failed.
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
	Run    *State `json:"run,omitempty"` // as the process tells that runs it
	// Behind is what it has before it: messages that it has not read or not finished, and the age of the oldest.
	Behind     uint64                `json:"lag_messages"`
	BehindBy   time.Duration         `json:"lag_ns"`
	Parked     uint64                `json:"parked"`   // of them, those in its hands
	Retrying   uint64                `json:"retrying"` // of those, as far as they are told by name, which failed before
	Handled    uint64                `json:"handled"`
	NotMatched uint64                `json:"not_matched"` // were no concern of it
	Dead       uint64                `json:"dead"`        // died here, and were not taken back since; discarded letters are among them
	Exceptions []component.Exception `json:"exceptions,omitempty"`
	Versions   []Version             `json:"versions,omitempty"`
}

// begun says whether a worker hears by now all that is said: it has its place in each log, and what comes is its own.
func (w *Workers) begun(r *Record) bool {
	consumer, spec := Name+"/"+r.Name, component.Spec{Hears: r.hears()}
	reports := w.env.Peers.Reports()
	return !slices.ContainsFunc(spec.Logs(), func(log string) bool {
		return !slices.ContainsFunc(reports, func(rep component.Report) bool {
			return rep.Consumer == consumer && rep.Log == log && !rep.Position.Log.IsZero()
		})
	})
}

const beginWait = 5 * time.Second

// begins waits until a worker has begun, for a while.
func (w *Workers) begins(ctx context.Context, r *Record) {
	ctx, cancel := context.WithTimeout(ctx, beginWait)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !w.begun(r) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// show gathers what is known of a worker.
func (w *Workers) show(d *kept, whole bool) Shown {
	k := &d.Value
	now := w.env.Now()
	s := Shown{Record: k.Record.shown(), Version: k.Version, Revision: d.Revision, Demo: k.Demo, Run: w.stats.of(k.Name, now), State: "starting"}
	consumer := Name + "/" + k.Name
	for _, h := range w.env.Peers.Components() {
		if h.Name != consumer {
			continue
		}
		for _, b := range h.Behind {
			s.Behind += b.Messages
			if !b.Oldest.IsZero() {
				s.BehindBy = max(s.BehindBy, now.Sub(b.Oldest))
			}
		}
		if h.State == "failed" {
			s.State, s.Detail = "failed", h.Fault
		} else if h.State == "standby" && h.Fault != "" && s.State == "starting" {
			s.State, s.Detail = "away", h.Fault+"; if that node is gone for good: `naru worker move "+k.Name+"`"
		} else if h.State == "running" && s.Run != nil && w.begun(&k.Record) {
			s.State, s.Detail = "running", ""
		}
	}
	var stuck *component.Exception
	for _, r := range w.env.Peers.Reports() {
		if r.Consumer != consumer {
			continue
		}
		s.Parked += r.Waiting.Count
		for outcome, sum := range r.Outcomes {
			switch outcome {
			case component.Handled:
				s.Handled += sum.Count
			case component.NotMatched:
				s.NotMatched += sum.Count
			case component.Dead, component.Unreadable:
				s.Dead += sum.Count
			}
		}
		for _, e := range r.Exceptions {
			if e.Attempts > 0 || e.Reason != 0 {
				s.Retrying++
				if stuck == nil || e.Since.Before(stuck.Since) {
					stuck = &e
				}
			}
		}
		if whole {
			s.Exceptions = append(s.Exceptions, r.Exceptions...)
		}
		if r.Fault != "" && s.State == "running" {
			s.State, s.Detail = "failed", r.Fault
		}
	}
	s.Behind = max(s.Behind, s.Parked)
	switch {
	case k.Paused:
		s.State, s.Detail = "paused", "what it hears waits; `naru worker resume "+k.Name+"`"
	case s.State != "running":
	case k.Kind == KindSDK && len(s.Run.Instances) == 0:
		s.State, s.Detail = "no_instances", "nobody who does its work is connected: start its processes, with NARU_URL and NARU_TOKEN"
	case s.Run.Breaker == outbound.Open || s.Run.Breaker == outbound.HalfOpen:
		s.State, s.Detail = "breaker_open", "its calls fail since "+s.Run.OpenSince.UTC().Format(time.RFC3339)
		if s.Run.OpenFor != "" {
			s.Detail += ": " + s.Run.OpenFor
		}
	case stuck != nil && now.Sub(stuck.Since) > lateBy:
		s.State, s.Detail = "stuck_retrying", "message "+stuck.ID.String()+" is tried since "+stuck.Since.UTC().Format(time.RFC3339)+": "+stuck.Detail
	}
	if whole {
		for _, v := range k.Versions {
			v.Record = v.Record.shown()
			s.Versions = append(s.Versions, v)
		}
	}
	return s
}

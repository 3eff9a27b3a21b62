package journal

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// Fate is what became of a message at one consumer.
type Fate struct {
	Consumer string         `json:"consumer"`
	Outcome  string         `json:"outcome"` // handled, not_heard, waiting, parked, dead
	Reason   message.Reason `json:"reason,omitempty"`
	Detail   string         `json:"detail,omitempty"`
	Attempts int            `json:"attempts,omitempty"`
	Since    time.Time      `json:"since,omitzero"`
	Behind   uint64         `json:"batches_behind,omitempty"` // where it waits: how far the consumer is from it
}

// The outcomes of a message at a consumer.
const (
	OutcomeHandled  = component.Handled
	OutcomeNotHeard = component.NotHeard
	OutcomeWaiting  = "waiting"
	OutcomeParked   = "parked"
	OutcomeDead     = component.Dead
	OutcomeRefused  = "refused"
)

// witness knows what is needed to tell fates at one moment.
type witness struct {
	reports []component.Report
	hears   map[string][]message.Pattern
	dead    map[message.ID]map[string]*operator.Dead // by original and component
	retried map[message.ID]map[string]time.Time      // when they were handled after all
}

func (j *Journal) witness() *witness {
	w := &witness{reports: j.env.Peers.Reports(), hears: map[string][]message.Pattern{}, dead: map[message.ID]map[string]*operator.Dead{}, retried: map[message.ID]map[string]time.Time{}}
	for _, h := range j.env.Peers.Components() {
		w.hears[h.Name] = h.Hears
	}
	slices.SortFunc(w.reports, func(a, b component.Report) int {
		return cmp.Or(cmp.Compare(a.Consumer, b.Consumer), cmp.Compare(a.Log, b.Log))
	})
	return w
}

// learn takes a dead letter into account; it gives nil for what is none.
func (w *witness) learn(m *message.Message) *operator.Dead {
	if message.Pattern("operator.retried.*").Matches(m.Subject) {
		var r operator.Retried
		if json.Unmarshal(m.Data, &r) == nil && r.Result != operator.RetryRefused {
			if w.retried[r.Message] == nil {
				w.retried[r.Message] = map[string]time.Time{}
			}
			w.retried[r.Message][r.Consumer] = r.At
		}
		return nil
	}
	if !message.Pattern("operator.dead.*.*").Matches(m.Subject) {
		return nil
	}
	d := new(operator.Dead)
	if json.Unmarshal(m.Data, d) != nil {
		return nil
	}
	if w.dead[m.Cause] == nil {
		w.dead[m.Cause] = map[string]*operator.Dead{}
	}
	w.dead[m.Cause][d.Component] = d
	return d
}

// fates tells what became of a message at each consumer of its log.
func (w *witness) fates(f *Found) []Fate {
	var list []Fate
	for i := range w.reports {
		r := &w.reports[i]
		if r.Log != f.Log || r.Position.Partition != f.Position.Partition || r.Position.Generation != f.Position.Generation {
			continue
		}
		list = append(list, w.fate(r, f))
	}
	return list
}

func (w *witness) fate(r *component.Report, f *Found) Fate {
	fate := Fate{Consumer: r.Consumer}
	for _, e := range r.Exceptions {
		if e.ID == f.Message.ID && e.Reason == 0 { // in hand, and nothing failed yet
			fate.Outcome, fate.Attempts, fate.Since, fate.Detail = OutcomeWaiting, e.Attempts, e.Since, "waits for its call"
			if !e.Calling.IsZero() {
				fate.Since, fate.Detail = e.Calling, "is being handled outside"
			}
			return fate
		}
		if e.ID == f.Message.ID {
			fate.Outcome, fate.Reason, fate.Detail, fate.Attempts, fate.Since = OutcomeParked, e.Reason, e.Detail, e.Attempts, e.Since
			return fate
		}
	}
	if d := w.dead[f.Message.ID][r.Consumer]; d != nil && !w.retried[f.Message.ID][r.Consumer].After(d.Last) {
		fate.Outcome, fate.Reason, fate.Detail, fate.Attempts, fate.Since = OutcomeDead, d.Reason, d.Detail, d.Attempts, d.First
		return fate
	}
	switch {
	case before(r.Position, f.Position):
		fate.Outcome = OutcomeWaiting
		fate.Behind = f.Position.Sequence - r.Position.Sequence
		fate.Detail = r.Fault
	case !heard(w.hears[r.Consumer], f.Message.Subject):
		fate.Outcome = OutcomeNotHeard
	case behindShown(r, f.Position):
		fate.Outcome = OutcomeWaiting
		fate.Detail = fmt.Sprintf("or handled: %d messages are parked here, and only the oldest %d are told by name", r.Waiting.Count, len(r.Exceptions))
	default:
		fate.Outcome = OutcomeHandled
	}
	return fate
}

// behindShown says whether a message may be parked without being among those that are told by name.
func behindShown(r *component.Report, p bus.Position) bool {
	n := len(r.Exceptions)
	return r.Waiting.Count > uint64(n) && (n == 0 || before(r.Exceptions[n-1].Position, p))
}

// before says whether the position a has not reached b.
func before(a, b bus.Position) bool {
	return cmp.Or(cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.Index, b.Index)) < 0
}

func heard(patterns []message.Pattern, s message.Subject) bool {
	if len(patterns) == 0 {
		return true // the component is not up; what it hears is not known
	}
	for _, p := range patterns {
		if p.Matches(s) {
			return true
		}
	}
	return false
}

// worst is the outcome to show where there is room for one.
func worst(fates []Fate) string {
	rank := []string{OutcomeDead, OutcomeParked, OutcomeWaiting, OutcomeHandled, OutcomeNotHeard}
	best := ""
	at := len(rank)
	for _, f := range fates {
		if i := slices.Index(rank, f.Outcome); i >= 0 && i < at {
			at, best = i, f.Outcome
		}
	}
	if best == "" {
		return OutcomeWaiting
	}
	return best
}

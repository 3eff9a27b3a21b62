// What a worker tells of itself.

package component

import (
	"strings"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// report notes a committed checkpoint for those who ask.
func (w *worker) report(at place, c *Checkpoint) {
	r := Report{Checkpoint: *c, Required: w.env.Spec.Required, Child: w.env.Spec.of != "", Node: w.env.Node, At: w.env.Now()}
	r.Exceptions = exceptions(w.parked.oldestAt(at))
	parked := r.Waiting.Count
	if w.caller != nil {
		parked = uint64(w.caller.failed[at.log])
	}
	w.metrics.parked(at.log, parked)
	r.Outcomes, r.Rows = map[string]Sum{}, map[string]Row{}
	for k, v := range c.Outcomes {
		r.Outcomes[k] = v
	}
	for k, v := range c.Rows {
		r.Rows[k] = v
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r.Fault = w.faults[at]
	w.reports[at] = r
	w.from[at] = c.Position
	if w.env.Peers != nil {
		w.env.Peers.Add(r) // who asks in this process need not wait for the table
	}
}

// stand notes why a partition stands still; nothing when it moves.
func (w *worker) stand(at place, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.faults[at] == why {
		return
	}
	w.faults[at] = why
	r := w.reports[at]
	if r.Log == "" {
		r.Checkpoint = Checkpoint{Consumer: w.env.Spec.consumer(w.env.Node), Log: at.log, Position: bus.Position{Generation: at.gen, Partition: at.part}}
		r.Required, r.Child, r.Node = w.env.Spec.Required, w.env.Spec.of != "", w.env.Node
	}
	r.Fault, r.At = why, w.env.Now()
	w.reports[at] = r
	if w.env.Peers != nil {
		w.env.Peers.Add(r) // where the bus has no room for it either, it is seen in this process
	}
}

// standAll notes that all partitions wait for space, and with nothing that those go on which did.
func (w *worker) standAll(why string) {
	w.mu.Lock()
	var all []place
	for at := range w.faults {
		if why != "" || strings.HasPrefix(w.faults[at], message.StorageLow.String()) {
			all = append(all, at)
		}
	}
	w.mu.Unlock()
	for _, at := range all {
		w.stand(at, why)
	}
}

// snapshot is what is reported.
func (w *worker) snapshot() []Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]Report, 0, len(w.reports))
	for _, r := range w.reports {
		list = append(list, r)
	}
	return list
}

// position is where a partition is to be read from.
func (w *worker) position(at place) (bus.Position, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, ok := w.from[at]
	return p, ok && !p.Log.IsZero()
}

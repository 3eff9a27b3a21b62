package component

import (
	"context"
	"fmt"
	"slices"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Succession is the place of another process of a component, taken since that one is gone. While it is held, the other
// one does not come back.
type Succession struct {
	bus.Lease
	// Fences are the places behind which the other process has written nothing: whoever has heard them has heard all of it.
	Fences []bus.Position
}

// succeed takes the place of another process of the component, and fences all rows that it writes to.
func (r *run) succeed(ctx context.Context, node string) (*Succession, error) {
	if !r.spec.PerNode || node == r.h.Node {
		return nil, fmt.Errorf("succeed %s of node %q: only a component of each node can be succeeded, by that of another node", r.spec.Name, node)
	}
	lease, err := r.lease(ctx, node, leaseTTL)
	if err != nil {
		return nil, err
	}
	s := &Succession{Lease: lease}
	for _, name := range r.spec.sayLogs() {
		log, err := r.h.Bus.Log(ctx, name, bus.LogOptions{})
		for _, row := range []string{rowName(r.spec.Name, node), rowName(r.spec.Name, node, "say")} { // door and outbox; Say
			if err != nil {
				break
			}
			var at []bus.Position
			at, err = log.Fence(ctx, row, r.h.owner)
			s.Fences = append(s.Fences, at...)
		}
		if err != nil {
			_ = lease.Release(context.WithoutCancel(ctx)) // it goes by itself
			return nil, fmt.Errorf("succeed %s of node %q: %w", r.spec.Name, node, err)
		}
	}
	return s, nil
}

// sayLogs are the logs that the component may have rows in, but for its alarms and dead letters.
func (s *Spec) sayLogs() (names []string) {
	for _, ns := range message.Namespaces() {
		if slices.ContainsFunc(s.Says, func(p message.Pattern) bool {
			return p[0] == '*' || p[0] == '>' || message.Subject(p).Namespace() == ns
		}) {
			names = append(names, ns)
		}
	}
	return names
}

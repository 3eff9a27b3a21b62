package component

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
)

// sameMost is for how long another process may have this node's name: longer than the lease of one that was killed lasts.
const sameMost = 3 * leaseTTL

// alone keeps the node's name for this process until ctx is done, and gives an error where another one has it. Leases go by that name, so two
// of one name, as where a data directory was copied, would both own all that is the node's; and what one has said from its copy
// of an outbox, the other would take for its own and never say.
func (h *Host) alone(ctx context.Context) error {
	var since time.Time // another one has it
	for ctx.Err() == nil {
		lease, err := h.Bus.Lease(ctx, "node/"+h.Node, h.owner.String(), leaseTTL)
		switch {
		case err == nil:
			since = time.Time{}
			select {
			case <-lease.Lost():
			case <-ctx.Done():
				free, done := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
				_ = lease.Release(free) // it goes by itself
				done()
			}
			continue
		case !errors.Is(err, bus.ErrHeld): // the bus is away: that is told elsewhere
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > sameMost:
			return fmt.Errorf("another process runs as node %s on this bus: one of their data directories is a copy of the other, or both are configured with one name; start this one with a directory of its own, or another `node`", h.Node)
		}
		_ = pause(ctx, leaseTTL/5) // ends with ctx
	}
	return nil
}

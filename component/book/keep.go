package book

import (
	"context"
	"time"

	"github.com/naru-platform/naru/bus"
)

const (
	filesEvery = time.Second // files are looked at; they are small, and their content is compared
	filesLease = 5 * time.Second
	freeWait   = 2 * time.Second
)

// Keep has look called every second until ctx is done, by one process at a time of those that share the lease: for files
// whose content is kept in a table. owner tells this process from others.
func Keep(ctx context.Context, on bus.Bus, lease, owner string, look func(context.Context)) {
	var held bus.Lease
	defer func() {
		if held != nil {
			free, done := context.WithTimeout(context.WithoutCancel(ctx), freeWait)
			defer done()
			_ = held.Release(free) // it goes by itself
		}
	}()
	tick := time.NewTicker(filesEvery)
	defer tick.Stop()
	for {
		if held == nil || !held.Held() {
			var err error
			if held, err = on.Lease(ctx, lease, owner, filesLease); err != nil {
				held = nil
			}
		}
		if held != nil {
			look(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

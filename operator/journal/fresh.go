package journal

import (
	"context"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// freshMost is how long an answer waits for the index. Who asks has often just said something.
const freshMost = time.Second

// fresh waits until the index holds what is in the logs now, unless that takes too long: then the answer is as old as
// the index, as it would have been without waiting.
func (j *Journal) fresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, freshMost)
	defer cancel()
	type spot struct {
		log       string
		gen, part uint32
	}
	owed := map[spot]uint64{}
	for _, name := range message.Namespaces() {
		log, err := j.env.Bus.Log(ctx, name, bus.LogOptions{})
		if err != nil {
			return
		}
		info, err := log.Info(ctx)
		if err != nil {
			return
		}
		for _, g := range info.Generations {
			for _, p := range g.Partitions {
				if p.Last >= p.First {
					owed[spot{name, g.Number, p.Number}] = p.Last
				}
			}
		}
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, r := range j.env.Peers.Reports() {
			at := spot{r.Log, r.Position.Generation, r.Position.Partition}
			if r.Consumer == j.env.Spec.Name && r.Position.Sequence >= owed[at] {
				delete(owed, at)
			}
		}
		if len(owed) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

package component

import (
	"context"
	"hash/maphash"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// shards handle the messages of a batch at the same time, split by key. What they do stays apart until all are at their
// end; then the worker takes it over in the order of the batch, as if one had handled them all.
type shards struct {
	w     *worker
	n     int
	seed  maphash.Seed
	slabs []slab // of each
}

func newShards(w *worker, n int) *shards { return &shards{w, n, maphash.MakeSeed(), make([]slab, n)} }

// result is what a handler did with a message. tx is nil where it was not called: the message was behind a parked one of its
// key, and is parked, or handled in its place where nothing of its key is parked any more.
type result struct {
	tx  *tx
	err error
}

// layer is what the messages before have done in a shard.
type layer struct{ ops map[string][]byte }

// task is a message to be handled.
type task struct {
	i int
	m *message.Message
}

// handle calls the handler for the messages from the done-th on that are heard and not behind a parked one.
func (s *shards) handle(ctx context.Context, at place, b *bus.Stored, done int) ([]result, error) {
	results := make([]result, b.Batch.Count)
	messages := make([]message.Message, b.Batch.Count)
	lists := make([][]task, s.n)
	cursor := b.Batch.Cursor()
	for i := 0; i < len(messages) && cursor.Next(&messages[i]); i++ {
		m := &messages[i]
		if i < done || !hears(s.w.env.Spec.Hears, m.Subject) {
			continue
		}
		key := m.Key()
		if s.w.parked.blocks(at.log, key) {
			continue
		}
		n := maphash.String(s.seed, key) % uint64(s.n)
		lists[n] = append(lists[n], task{i, m})
	}
	var group sync.WaitGroup
	for i, list := range lists {
		if len(list) > 0 {
			group.Go(func() { s.shard(ctx, list, results, &s.slabs[i]) })
		}
	}
	group.Wait()
	return results, ctx.Err()
}

// shard handles its messages one after the other. Those behind one that is to be tried again are left.
func (s *shards) shard(ctx context.Context, list []task, results []result, slab *slab) {
	below := &layer{map[string][]byte{}}
	held := map[string]bool{}
	for _, t := range list {
		if ctx.Err() != nil {
			return
		}
		if held[t.m.Key()] {
			continue
		}
		x := &tx{w: s.w, cause: t.m, slab: slab, below: below}
		began := time.Now()
		err := s.w.guard(func() error { return s.w.part.Handle(ctx, x, t.m) })
		s.w.metrics.handled(time.Since(began))
		switch {
		case retryable(err):
			held[t.m.Key()] = true
		case x.effective(err):
			for _, o := range x.ops.list {
				below.ops[o.key] = o.value
			}
		}
		results[t.i] = result{x, err}
	}
}

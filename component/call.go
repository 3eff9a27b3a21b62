// Calls: messages that are handled outside and may take their time, many at once.

package component

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	callsDefault   = 16        // at once, where Spec.Calls is zero
	callBytes      = 64 << 20  // what waits for its call may take so much memory
	retryAfterMost = time.Hour // nobody may put a message off for longer
)

// Try says which attempt a call is.
type Try struct {
	N     int       // counts from 1
	Last  bool      // fails it, the message is dead
	First time.Time // when the first one began, whether it counted or not
}

// RetryAfter is a failure that says when to try again: not before After has passed, nor before the usual back-off.
type RetryAfter struct {
	Err   error
	After time.Duration
	// Uncounted says that there was no attempt, since nobody was there to make it: it counts as none.
	Uncounted bool
}

// Error is the failure's own.
func (r *RetryAfter) Error() string { return r.Err.Error() }

// Unwrap gives the failure.
func (r *RetryAfter) Unwrap() error { return r.Err }

func uncounted(err error) bool {
	var r *RetryAfter
	return errors.As(err, &r) && r.Uncounted
}

// gate says how many calls may be made at once just now.
type gate struct {
	n    atomic.Int64
	wake chan struct{}
}

func newGate(n int) *gate {
	g := &gate{wake: make(chan struct{}, 1)}
	g.n.Store(int64(n))
	return g
}

func (g *gate) set(n int) {
	g.n.Store(int64(n))
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// caller makes a worker's calls. What is heard is parked; the first message of each key is called for, those that came
// in first before others, and leaves when its call has ended, with all that follows from it in one commit. What ends
// before it had to be committed is never written. It is for the worker's goroutine; only the calls run beside it.
type caller struct {
	w       *worker
	gate    *gate
	most    int
	running int
	due     heads // to be called now; at their time those that the worker has parked for later
	fresh   []*parked
	bytes   int            // of what is parked
	failed  map[string]int // parked messages that were tried, by log
	ended   bool           // a call has, since the last commit
	settles chan settled
	calls   sync.WaitGroup
}

// settled is a call's end.
type settled struct {
	x    *parked
	say  []*message.Message
	err  error
	took time.Duration
}

func newCaller(w *worker) *caller {
	n := w.env.Spec.calls()
	c := &caller{w: w, gate: w.env.gate, most: n, settles: make(chan settled, n), failed: map[string]int{},
		due: heads{before: func(a, b *parked) int { return cmp.Compare(a.order, b.order) }}}
	if c.gate == nil {
		c.gate = newGate(n)
	}
	return c
}

func (s *Spec) calls() int {
	if s.Calls == 0 {
		return callsDefault
	}
	return s.Calls
}

// keyOf is what order is kept by: in all logs together, since calls of one key are never made at the same time.
func (c *caller) keyOf(x *parked) parkKey {
	if f := c.w.part.Key; f != nil {
		return parkKey{key: f(x.m)}
	}
	return parkKey{key: x.m.Key()}
}

// restored takes what a former process left.
func (c *caller) restored() {
	for _, row := range c.w.parked.rows {
		for _, x := range row {
			c.bytes += weight(x.m)
			if x.attempts > 0 {
				c.failed[x.at.log]++
			}
		}
	}
}

// weight is about what a message takes in memory.
func weight(m *message.Message) int {
	return 512 + len(m.Data) + len(m.Properties) + len(m.Correlation)
}

// take parks a message that was heard.
func (c *caller) take(at place, p bus.Position, m *message.Message) {
	now := c.w.env.Now()
	c.add(&parked{m: m.Clone(), at: at, position: p, first: now, next: now})
	c.w.dirty[at] = true
}

// add has a message wait for its call.
func (c *caller) add(x *parked) {
	c.w.parked.push(x)
	c.bytes += weight(x.m)
	c.fresh = append(c.fresh, x)
}

// line puts the first message of a key where its next call comes from.
func (c *caller) line(x *parked) {
	if x.next.After(c.w.env.Now()) {
		heap.Push(&c.w.parked.later, x)
	} else {
		heap.Push(&c.due, x)
	}
}

// full says that no more batches are to be taken.
func (c *caller) full() bool { return c.w.parked.n >= c.w.retry.ParkedMax || c.bytes >= callBytes }

// dispatch makes the calls that may be made. They end with ctx.
func (c *caller) dispatch(ctx context.Context) {
	now := c.w.env.Now()
	for x := c.w.parked.due(now); x != nil; x = c.w.parked.due(now) {
		heap.Push(&c.due, x)
	}
	for len(c.due.list) > 0 && c.running < min(c.most, int(c.gate.n.Load())) && ctx.Err() == nil {
		x := heap.Pop(&c.due).(*parked)
		if x.calling = now; x.attempts == 0 && x.reason == 0 {
			x.first = now
		}
		try := Try{N: x.attempts + 1, Last: x.attempts+1 >= c.w.retry.Attempts, First: x.first}
		c.running++
		c.calls.Go(func() {
			s := settled{x: x}
			began := time.Now()
			s.err = c.w.guard(func() (err error) {
				s.say, err = c.w.part.Call(ctx, x.m, try)
				return err
			})
			s.took = time.Since(began)
			c.settles <- s // has room for all that run
		})
	}
}

// settle makes a call's end the fate of its message. stopping says that a failure tells nothing: its ctx has ended.
func (c *caller) settle(ctx context.Context, s settled, stopping bool) error {
	w, x := c.w, s.x
	c.running--
	x.calling = time.Time{}
	w.metrics.handled(s.took)
	if stopping && s.err != nil && !errors.Is(s.err, ErrNotMatched) {
		return nil
	}
	w.begun()
	w.pendingMessages++
	c.ended = true
	w.tx.reset(x.m)
	result := s.err
	if !retryable(result) || !uncounted(result) && x.attempts+1 >= w.retry.Attempts {
		for _, m := range s.say {
			if refused := w.tx.Say(m); refused != nil { // all of it or nothing
				w.tx.reset(x.m)
				if w.tx.effective(result) {
					result = refused
				} else {
					result = fmt.Errorf("%w; what was to be said of that was refused: %v", result, refused)
				}
				break
			}
		}
		if err := w.tx.apply(); err != nil {
			return err
		}
	}
	tried := x.attempts > 0
	left, err := w.fate(ctx, x, result)
	if err != nil {
		return err
	}
	if x.attempts > 0 && !tried {
		c.failed[x.at.log]++
	}
	if !left {
		c.line(x)
		return nil
	}
	if tried {
		c.failed[x.at.log]--
	}
	c.bytes -= weight(x.m)
	if row := w.parked.rows[x.key]; len(row) > 0 {
		c.line(row[0])
	}
	return nil
}

// finish waits for the calls under way, whose ctx has ended, as long as ctx lasts, and settles them.
func (c *caller) finish(ctx context.Context) error {
	for c.running > 0 {
		select {
		case s := <-c.settles:
			if err := c.settle(ctx, s, true); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil // those that are left stay parked
		}
	}
	return nil
}

// write has what came in since the last commit, and is parked still, written with this one.
func (c *caller) write() error {
	for _, x := range c.fresh {
		if !x.gone {
			x.written = true
			if err := c.w.keep.park(x); err != nil {
				return err
			}
		}
	}
	clear(c.fresh)
	c.fresh, c.ended = c.fresh[:0], false
	return nil
}

// heads are the first messages of their keys, as a heap.
type heads struct {
	list   []*parked
	before func(a, b *parked) int
}

// Len, Less, Swap, Push and Pop are for container/heap.
func (h *heads) Len() int { return len(h.list) }

// Less is by before, and where that does not tell by order.
func (h *heads) Less(i, j int) bool {
	a, b := h.list[i], h.list[j]
	return cmp.Or(h.before(a, b), cmp.Compare(a.order, b.order)) < 0
}

// Swap exchanges two.
func (h *heads) Swap(i, j int) { h.list[i], h.list[j] = h.list[j], h.list[i] }

// Push adds one at the end.
func (h *heads) Push(x any) { h.list = append(h.list, x.(*parked)) }

// Pop takes the last one.
func (h *heads) Pop() any {
	last := len(h.list) - 1
	x := h.list[last]
	h.list[last] = nil
	h.list = h.list[:last]
	return x
}

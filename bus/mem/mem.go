// Package mem is the bus in memory, for tests: it keeps every promise of package bus and forgets all at the end of the
// process. What it stores are real batches, built and parsed by the codec of package message.
//
// Its goroutines wait on channels and on timers of package time only, so it runs in a bubble of testing/synctest when
// it is made there; all of them have ended when Close returns. The faults of an engine can be made to order: see
// [Bus.SetDown] and its neighbours.
package mem

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Options are what a test may choose. The zero value is good.
type Options struct {
	// Now is the clock of ids, queue delays, acknowledgement waits and times to live; time.Now where nil. Waiting is
	// done by timers of package time all the same: call [Bus.Tick] after having moved a clock of your own. Leases and
	// patience do not follow it, since they are renewed and waited for in real time.
	Now func() time.Time
	// Log is told of what the engine does by itself; nothing is logged where nil.
	Log *slog.Logger
	// MaxBatch is the largest batch in bytes; 1 MiB where zero. The largest message is smaller by a batch's header.
	MaxBatch int
}

// Bus is a handle on an engine in memory. Several may be open on the same data, as the nodes of a cluster are.
type Bus struct {
	e      *engine
	closed chan struct{}
	once   sync.Once
	work   sync.WaitGroup // what was started for this handle
	asleep atomic.Bool
}

var _ bus.Bus = (*Bus)(nil)

// New makes an empty engine and opens it.
func New(o Options) *Bus {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxBatch == 0 {
		o.MaxBatch = 1 << 20
	}
	e := &engine{
		now: o.Now, log: o.Log, maxBatch: o.MaxBatch, since: o.Now(),
		space: bus.Space{Free: 1 << 40, Total: 1 << 40},
		logs:  map[string]*logData{}, queues: map[string]*queueData{},
		tables: map[string]*tableData{}, leases: map[string]leaseData{}, answers: map[string][]*answerer{},
	}
	return e.open()
}

// Reopen gives another handle on the same data, as a process that starts again or a second node has it. The receiver
// stays as it was; where it is closed, and no other handle is open, volatile tables are empty now.
func (b *Bus) Reopen() *Bus { return b.e.open() }

// MaxMessage as in [bus.Bus].
func (b *Bus) MaxMessage() int { return b.e.maxBatch - message.BatchOverhead }

// Status as in [bus.Bus]. It never waits.
func (b *Bus) Status(context.Context) bus.Status {
	e := b.e
	e.mu.Lock()
	defer e.mu.Unlock()
	s := bus.Status{Engine: "memory", Up: !e.down, Since: e.since, Space: e.space, Latency: e.latency}
	if e.down {
		s.Fault = "switched off by a test"
	}
	return s
}

// Close ends the handle: appends under way end with ErrClosed, and so does everything that waits. Leases are not
// released, as when a process dies: call their Release before. It returns when all goroutines have ended, so a
// completion must not call it.
func (b *Bus) Close() error {
	b.once.Do(func() {
		close(b.closed)
		b.work.Wait()
		b.e.let()
	})
	return nil
}

package component

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

const (
	commitMessages = 8192                   // a commit holds at most so many,
	commitBytes    = 8 << 20                // or so many bytes of batches,
	commitAfter    = 100 * time.Millisecond // or what came in so long
	attemptsShown  = 100                    // parked messages in a report
)

// worker is the one goroutine of a component that handles messages, so handlers need no locks among themselves. Readers
// feed it; it decides fates and commits them together with position and effects.
type worker struct {
	env     Env
	part    *Part
	retry   Retry
	keep    keeper
	store   *store // of State Local, where the outcomes of queued messages are; else nil
	metrics *metrics
	skew    func(index int) int // how often a message is handled, for tests that must see a wrong ledger; nil is once

	events     chan event
	deliveries chan bus.Delivery
	changes    chan change     // from outside
	over       chan struct{}   // closed when run has ended
	stopping   <-chan struct{} // nothing new is begun
	holds      map[place]*hold // partitions that are kept back
	gathered   map[place]*gathering
	swept      time.Time
	tx         *tx
	shards     *shards       // nil where all is handled in one goroutine
	caller     *caller       // where messages are called for; else nil
	at         place         // of the batch under way,
	here       Within        // and the message at hand in it; zero between batches
	done       chan struct{} // closed when all that is read is finished and nothing is parked; of State Derived
	ended      bool          // it is

	points map[place]*Checkpoint
	dirty  map[place]bool
	torn   map[place]bool // whose log is not the one that was read; they stand still
	parked parking

	pendingMessages, pendingBytes int
	pendingSince                  time.Time
	after                         []func(context.Context) // once the commit is durable

	mu      sync.Mutex // guards what follows
	reports map[place]Report
	faults  map[place]string
	from    map[place]bus.Position  // where partitions are to be read from
	gates   map[place]chan struct{} // of the partitions in holds
}

// event is what a reader tells the worker of its partition: a batch, or one of the things below it.
type event struct {
	at       place
	stored   bus.Stored
	began    []bus.Position // the consumer begins behind them
	noted    chan struct{}  // closed when that is committed
	finished bool           // a sealed generation was read to its end
	trimmed  bool           // what comes next was trimmed before it was read
	group    []bus.Stored   // batches for HandleAll
	alarm    message.Reason // to be raised
	detail   string
}

// newWorker goes on from what was committed last.
func newWorker(ctx context.Context, env Env, part *Part, keep keeper, m *metrics) (*worker, error) {
	w := &worker{env: env, part: part, retry: env.Spec.Retry.withDefaults(env.Spec.State), keep: keep, metrics: m,
		events: make(chan event), deliveries: make(chan bus.Delivery), changes: make(chan change), over: make(chan struct{}), stopping: make(chan struct{}), done: make(chan struct{}), swept: env.Now(),
		points: map[place]*Checkpoint{}, parked: newParking(), dirty: map[place]bool{}, torn: map[place]bool{},
		reports: map[place]Report{}, faults: map[place]string{}, from: map[place]bus.Position{}, holds: map[place]*hold{}, gathered: map[place]*gathering{}, gates: map[place]chan struct{}{}}
	w.parked.line = w.parked.wait
	w.tx = &tx{w: w, slab: new(slab)}
	if n := env.Spec.Parallel; n > 1 && part.Handle != nil {
		w.shards = newShards(w, n)
	}
	if part.Call != nil {
		w.caller = newCaller(w)
		w.parked.keyOf, w.parked.line = w.caller.keyOf, w.caller.line
		keep.(*local).out.letters = operator.DeadSubject(env.Spec.Name)
	}
	if err := keep.restore(ctx, w); err != nil {
		return nil, err
	}
	w.hasten()
	if w.caller != nil {
		w.caller.restored()
	}
	for at, c := range w.points {
		w.from[at], w.faults[at] = c.Position, ""
		if c.Within == nil { // which the next batch completes
			w.report(at, c)
		}
	}
	return w, nil
}

// errStopping ends a wait in the middle of work whose fate is still open; what was decided before it is committed.
var errStopping = errors.New("stopping")

// run handles events until stop is done, then finishes and commits what is under way. ctx is for the work itself: it
// ends later than stop, so that a handler may come to its end.
func (w *worker) run(stop, ctx context.Context) error {
	w.stopping = stop.Done()
	defer close(w.over)
	timer := time.NewTimer(sweepEvery)
	defer timer.Stop()
	calling := stop
	var settles chan settled // nil where there are no calls
	var opened chan struct{}
	if w.caller != nil {
		var end context.CancelFunc
		calling, end = context.WithCancel(stop)
		settles, opened = w.caller.settles, w.caller.gate.wake
		defer w.caller.calls.Wait()
		defer end()
	}
	for {
		w.dispatch(calling)
		timer.Reset(min(w.untilDue(), w.untilHeld(), w.untilCommit(), w.untilGathered(), w.untilSweep()))
		var err error
		select {
		case <-w.stopping:
			if w.caller != nil {
				if err := w.caller.finish(ctx); err != nil {
					return err
				}
			}
			return w.commit(ctx)
		case e := <-w.intake():
			err = w.handle(ctx, e)
		case d := <-w.deliveries:
			err = w.handleDelivery(ctx, d)
		case c := <-w.changes:
			err = w.makeChange(ctx, c)
		case s := <-settles:
			err = w.caller.settle(ctx, s, calling.Err() != nil)
		case <-opened:
		case <-timer.C:
			if err = w.retryDue(ctx); err == nil {
				err = w.goOn(ctx)
			}
			if err == nil && w.untilSweep() == 0 {
				err = w.sweep()
			}
		}
		if err == nil {
			err = w.drain(ctx, calling)
		}
		if err == nil {
			err = w.handDue(ctx)
		}
		switch {
		case errors.Is(err, errStopping):
			return nil
		case err != nil:
			return err
		}
		if w.untilCommit() < sweepEvery {
			continue
		}
		if err := w.commit(ctx); err != nil {
			return err
		}
	}
}

// untilCommit is how long the commit can wait for more: nobody waits to hear of it, and there is room and time. It is sweepEvery where it cannot wait, or need not. A sync of this store competes with the log's.
func (w *worker) untilCommit() time.Duration {
	wait := w.keep.patience(w.env.Spec.Lazy)
	if w.caller != nil && !w.caller.ended {
		wait = commitAfter // what ends until then need not be written
	}
	if wait == 0 || w.pendingMessages == 0 || len(w.after) > 0 || w.pendingMessages >= commitMessages || w.pendingBytes >= commitBytes || w.keep.full() {
		return sweepEvery
	}
	if left := wait - time.Since(w.pendingSince); left > 0 {
		return left
	}
	return sweepEvery
}

// intake is where batches come from: from nowhere while as many calls are in hand as may be.
func (w *worker) intake() <-chan event {
	if w.caller != nil && w.caller.full() { // it is behind, as its lag tells, and does not stand still
		return nil
	}
	return w.events
}

// drain takes what is at hand, so that one commit carries it all.
func (w *worker) drain(ctx, calling context.Context) error {
	var settles chan settled
	if w.caller != nil {
		settles = w.caller.settles
	}
	for w.pendingMessages < commitMessages && w.pendingBytes < commitBytes && !w.keep.full() && time.Since(w.pendingSince) < commitAfter {
		var err error
		select {
		case e := <-w.intake():
			err = w.handle(ctx, e)
		case d := <-w.deliveries:
			err = w.handleDelivery(ctx, d)
		case c := <-w.changes:
			err = w.makeChange(ctx, c)
		case s := <-settles:
			err = w.caller.settle(ctx, s, calling.Err() != nil)
		default:
			return nil
		}
		if err != nil {
			return err
		}
		w.dispatch(calling)
	}
	return nil
}

// dispatch makes the calls that may be made.
func (w *worker) dispatch(calling context.Context) {
	if w.caller != nil {
		w.caller.dispatch(calling)
		w.metrics.calls(w.caller.running)
	}
}

// begun notes when the first thing of a commit came in: what comes within a moment shares it.
func (w *worker) begun() {
	if w.pendingMessages == 0 {
		w.pendingSince = time.Now()
	}
}

func (w *worker) handleDelivery(ctx context.Context, d bus.Delivery) error {
	w.begun()
	return w.take(ctx, d)
}

func (w *worker) handle(ctx context.Context, e event) error {
	w.begun()
	if h := w.holds[e.at]; h != nil { // its reader had it in hand
		h.queue = append(h.queue, e)
		return nil
	}
	if w.part.HandleAll != nil {
		if e.batch() {
			return w.gather(ctx, e)
		}
		if err := w.handGathered(ctx, e.at); err != nil { // it was before
			return err
		}
		if h := w.holds[e.at]; h != nil {
			h.queue = append(h.queue, e)
			return nil
		}
	}
	_, err := w.deal(ctx, e, 0)
	return err
}

// deal deals with an event that was tried so often before; done is false where it has to wait and its partition is held
// back.
func (w *worker) deal(ctx context.Context, e event, attempts int) (done bool, err error) {
	if e.alarm != 0 {
		if err := w.alarm(e.alarm, e.detail); err != nil {
			return false, err
		}
	}
	switch {
	case e.group != nil:
		return w.all(ctx, e, attempts)
	case e.began != nil:
		for _, p := range e.began {
			at := place{e.at.log, p.Generation, p.Partition}
			c := w.point(at)
			c.Position, c.Began = p, p.Sequence
			w.dirty[at] = true
		}
		w.after = append(w.after, func(context.Context) { close(e.noted) })
	case e.finished:
		c := w.points[e.at]
		if c == nil && w.env.Spec.State == Derived {
			c = w.point(e.at) // nothing was ever in it: the next generation waits for it all the same
		}
		if c != nil && !c.Finished {
			c.Finished = true
			w.dirty[e.at] = true
			w.after = append(w.after, func(context.Context) {}) // who reads the next generation waits for this commit
		}
	case e.trimmed:
		if c := w.points[e.at]; c != nil {
			for name, row := range c.Rows {
				row.Trimmed = true
				c.Rows[name] = row
			}
			w.dirty[e.at] = true
		}
	case e.stored.Position.Sequence > 0 && w.part.HandleAll != nil: // with an alarm
		return w.all(ctx, event{at: e.at, group: []bus.Stored{e.stored}}, attempts)
	case e.stored.Position.Sequence > 0:
		return w.batch(ctx, e, attempts)
	}
	return true, nil
}

// point is the checkpoint of a partition, made where there is none.
func (w *worker) point(at place) *Checkpoint {
	c := w.points[at]
	if c == nil {
		c = &Checkpoint{Consumer: w.env.Spec.consumer(w.env.Node), Log: at.log, Outcomes: map[string]Sum{}, Rows: map[string]Row{},
			Position: bus.Position{Generation: at.gen, Partition: at.part}}
		w.points[at] = c
		w.mu.Lock()
		w.faults[at] += "" // it is there from now on: its first commit may be what waits for space
		w.mu.Unlock()
	}
	return c
}

// commit makes positions, effects, what is parked and what is to be said durable, together.
func (w *worker) commit(ctx context.Context) error {
	if w.caller != nil {
		if err := w.caller.write(); err != nil {
			return err
		}
	}
	var dirty []*Checkpoint
	for at := range w.dirty {
		c := w.points[at]
		c.Waiting = w.parked.sum(at)
		dirty = append(dirty, c)
	}
	if err := w.keep.commit(ctx, dirty, &w.parked); err != nil {
		return err
	}
	for at := range w.dirty {
		if c := w.points[at]; c.Within == nil {
			w.report(at, c)
		}
	}
	if !w.ended && w.env.Spec.State == Derived && w.finished() {
		w.ended = true
		close(w.done)
	}
	clear(w.dirty)
	w.pendingMessages, w.pendingBytes = 0, 0
	after := w.after
	w.after = nil
	for _, f := range after {
		f(ctx)
	}
	return nil
}

// finished says whether all that is read was read to its end and nothing of it is parked, be it that a former worker came
// that far.
func (w *worker) finished() bool {
	for _, c := range w.points {
		if !c.Finished {
			return false
		}
	}
	return len(w.points) > 0 && w.parked.n == 0
}

// pause waits, unless the component stops.
func (w *worker) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-w.stopping:
		return errStopping
	case <-ctx.Done():
		return ctx.Err()
	}
}

func hears(patterns []message.Pattern, s message.Subject) bool {
	return slices.ContainsFunc(patterns, func(p message.Pattern) bool { return p.Matches(s) })
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// cut bounds what an error may say in a dead letter: a stack is long.
func cut(s string) string {
	if len(s) > 4096 {
		return s[:4096] + "…"
	}
	return s
}

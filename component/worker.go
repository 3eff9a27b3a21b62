package component

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/answer"
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
	calls      chan call
	over       chan struct{}   // closed when run has ended
	stopping   <-chan struct{} // nothing new is begun
	holds      map[place]*hold // partitions that are kept back
	gathered   map[place]*gathering
	swept      time.Time
	tx         *tx
	shards     *shards       // nil where all is handled in one goroutine
	caller     *caller       // where messages are called for; else nil
	here       Within        // the message at hand, in the batch under way; zero between batches
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
		events: make(chan event), deliveries: make(chan bus.Delivery), calls: make(chan call), over: make(chan struct{}), stopping: make(chan struct{}), done: make(chan struct{}), swept: env.Now(),
		points: map[place]*Checkpoint{}, parked: parking{keyOf: keyInLog, rows: map[parkKey][]*parked{}, sums: map[place]Sum{}}, dirty: map[place]bool{}, torn: map[place]bool{},
		reports: map[place]Report{}, faults: map[place]string{}, from: map[place]bus.Position{}, holds: map[place]*hold{}, gathered: map[place]*gathering{}, gates: map[place]chan struct{}{}}
	w.tx = &tx{w: w, ops: map[string][]byte{}}
	if n := env.Spec.Parallel; n > 1 && part.Handle != nil {
		w.shards = newShards(w, n)
	}
	if part.Call != nil {
		w.caller = newCaller(w)
		w.parked.keyOf = w.caller.keyOf
		keep.(*local).out.letters = operator.DeadSubject(env.Spec.Name)
	}
	if err := keep.restore(ctx, w); err != nil {
		return nil, err
	}
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
		case c := <-w.calls:
			err = w.answer(ctx, c)
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
	if wait == 0 || w.pendingMessages == 0 || len(w.after) > 0 || w.pendingMessages >= commitMessages || w.pendingBytes >= commitBytes {
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
	for w.pendingMessages < commitMessages && w.pendingBytes < commitBytes && time.Since(w.pendingSince) < commitAfter {
		var err error
		select {
		case e := <-w.intake():
			err = w.handle(ctx, e)
		case d := <-w.deliveries:
			err = w.handleDelivery(ctx, d)
		case c := <-w.calls:
			err = w.answer(ctx, c)
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

// call is a change from outside the handlers.
type call struct {
	f    func(Tx) error
	done chan error // holds one
}

// answer makes a change, and says so when it is committed.
func (w *worker) answer(ctx context.Context, c call) error {
	w.begun()
	w.tx.reset(nil)
	err := w.guard(func() error { return c.f(w.tx) })
	if err != nil {
		c.done <- err
		return nil
	}
	if err := w.keepEffects(ctx, w.tx, nil); err != nil {
		return err
	}
	w.pendingMessages++
	w.after = append(w.after, func(context.Context) { c.done <- nil })
	return nil
}

// change has a change made, and waits until it is committed.
func (w *worker) change(ctx context.Context, f func(Tx) error) error {
	c := call{f, make(chan error, 1)}
	gone := answer.Unavailable("%s is stopping", w.env.Spec.Name)
	select {
	case w.calls <- c:
	case <-w.over:
		return gone
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-c.done:
		return err
	case <-w.over:
		select {
		case err := <-c.done:
			return err
		default:
			return gone
		}
	case <-ctx.Done():
		return ctx.Err()
	}
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

// batch decides the fates of a batch's messages and moves the position behind it.
func (w *worker) batch(ctx context.Context, e event, attempts int) (done bool, err error) {
	at, s := e.at, e.stored
	c := w.point(at)
	if w.torn[at] || s.Position.Sequence <= c.Position.Sequence {
		return true, nil // a reader that was opened again behind the last commit gives again what is under way
	}
	if what := regrown(c, &s); what != "" {
		return true, w.tear(at, what)
	}
	if w.times(-1) == 0 {
		w.passOver(c, at, &s)
		return true, nil
	}
	if w.keep.idle(&s) && len(w.dirty) == 0 {
		c.Position = s.Position // nothing is in it: where it is read again, nothing is lost
		w.account(c, &s)
		return true, nil
	}
	if !w.ready(e) {
		return false, nil
	}
	switch {
	case w.part.HandleBatch != nil:
		if done, err = w.wholeBatch(ctx, c, at, s, attempts+1); err == nil && !done {
			return false, nil
		}
	case s.Err != nil:
	case w.passes(c, at.log, &s):
		n := Sum{uint64(s.Batch.Count), s.Batch.IDSum}
		c.Outcomes[NotMatched] = c.Outcomes[NotMatched].Plus(n)
		w.metrics.messages(at.log, NotMatched, n.Count)
	default:
		err = w.eachMessage(ctx, c, at, s)
	}
	if err == nil && s.Err != nil {
		err = w.unreadable(at, &s)
	}
	if err != nil {
		return false, err
	}
	// From here on nothing fails: a checkpoint that is reported never has half a batch.
	c.Within = nil
	w.pass(c, at, &s)
	return true, nil
}

// passes says whether a batch is passed without a look at its messages: not one of which some have their fates already, nor
// where a test wants each message seen.
func (w *worker) passes(c *Checkpoint, log string, s *bus.Stored) bool {
	return w.part.Passes != nil && w.skew == nil && (c.Within == nil || c.Within.Sequence != s.Position.Sequence) && w.part.Passes(log)
}

// unreadable tells that a batch cannot be read.
func (w *worker) unreadable(at place, s *bus.Stored) error {
	return w.alarm(message.CorruptBatch, fmt.Sprintf("%s: batch %d of log %s, generation %d, partition %d cannot be read; what was in it is dead: %v",
		w.env.Spec.Name, s.Position.Sequence, at.log, at.gen, at.part, s.Err))
}

// pass moves the position behind a batch whose messages all have their fates.
func (w *worker) pass(c *Checkpoint, at place, s *bus.Stored) {
	if s.Err != nil {
		c.UnreadableBatches++
		w.metrics.unreadable(at.log)
	} else {
		w.account(c, s)
	}
	c.Position = s.Position
	w.dirty[at] = true
	w.pendingMessages += int(s.Batch.Count) + 1
	w.pendingBytes += len(s.Batch.Bytes())
}

// passOver moves the position behind a batch as if it had never been there, for a test that must see that.
func (w *worker) passOver(c *Checkpoint, at place, s *bus.Stored) {
	c.Position = s.Position
	w.dirty[at] = true
	w.pendingMessages++
}

// tear has a partition stand still whose log is not the one that was read.
func (w *worker) tear(at place, what string) error {
	w.torn[at] = true
	w.stand(at, message.LogTruncated.String()+": "+what)
	return w.alarm(message.LogTruncated, w.env.Spec.Name+" stands still: "+what)
}

// regrown says whether a log has lost what was read of it, and has grown past that place since: then its messages of now
// lie where others were, some of them before this position, and going on would leave those out without a word. An
// appender's running count never falls.
func regrown(c *Checkpoint, s *bus.Stored) string {
	if s.Err != nil {
		return ""
	}
	row, met := c.Rows[s.Appender]
	if !met || s.Batch.Header.Running >= row.Upto.Count {
		return ""
	}
	return fmt.Sprintf("batch %d of log %s counts %d messages of %s before it, and %d had been read; the log was cut behind what was read, and has grown again. Bring the log back from a copy, or remove this component's state so that it reads from the beginning",
		s.Position.Sequence, c.Log, s.Batch.Header.Running, s.Appender, row.Upto.Count)
}

// account takes a header's running count and sum. What lies between it and the row's last known place was in batches
// that could not be read.
func (w *worker) account(c *Checkpoint, s *bus.Stored) {
	h := &s.Batch.Header
	before := Sum{h.Running, h.RunningSum}
	row, met := c.Rows[s.Appender]
	if !met {
		row.Start = before
	} else if before.Count > row.Upto.Count {
		gap, outcome := before.Minus(row.Upto), Unreadable
		if row.Trimmed {
			outcome = Dead
			w.metrics.died(message.RetentionExceeded, gap.Count)
		}
		c.Outcomes[outcome] = c.Outcomes[outcome].Plus(gap)
		w.metrics.messages(c.Log, outcome, gap.Count)
	}
	row.Trimmed = false
	row.Upto = before.Plus(Sum{uint64(h.Count), h.IDSum})
	c.Rows[s.Appender] = row
}

// count adds a message to an outcome.
func (w *worker) count(c *Checkpoint, outcome string, id message.ID) {
	s := c.Outcomes[outcome]
	s.Add(id)
	c.Outcomes[outcome] = s
}

// wholeBatch hands a batch to HandleBatch; done is false where that failed and is to be tried again.
func (w *worker) wholeBatch(ctx context.Context, c *Checkpoint, at place, s bus.Stored, attempt int) (done bool, err error) {
	w.tx.reset(nil)
	if err := w.guard(func() error { return w.part.HandleBatch(ctx, w.tx, at.log, s) }); err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		w.failed(event{at: at, stored: s}, s.Position.Sequence, attempt, err)
		return false, nil
	}
	if err := w.keepEffects(ctx, w.tx, nil); err != nil {
		return false, err
	}
	w.stand(at, "")
	if s.Err != nil {
		return true, nil
	}
	// Counted by a walk of its own, not from the header, which the ledger holds it against.
	cursor := s.Batch.Cursor()
	for i := 0; ; i++ {
		id, ok := cursor.NextID()
		if !ok {
			break
		}
		for range w.times(i) {
			w.count(c, Handled, id)
		}
	}
	if err := cursor.Err(); err != nil {
		return false, fmt.Errorf("count batch %d of %s: %w", s.Position.Sequence, at.log, err)
	}
	w.metrics.messages(at.log, Handled, uint64(s.Batch.Count))
	return true, nil
}

func (w *worker) times(index int) int {
	if w.skew == nil {
		return 1
	}
	return w.skew(index)
}

// eachMessage hands the messages one by one to Handle.
func (w *worker) eachMessage(ctx context.Context, c *Checkpoint, at place, s bus.Stored) error {
	done := 0
	if c.Within != nil && c.Within.Sequence == s.Position.Sequence {
		done = int(c.Within.Count)
	}
	var results []result
	if w.shards != nil {
		var err error
		if results, err = w.shards.handle(ctx, at, &s, done); err != nil {
			return err
		}
	}
	var m message.Message
	cursor := s.Batch.Cursor()
	for i := 0; cursor.Next(&m); i++ {
		if i < done {
			continue
		}
		p := s.Position
		p.Index = uint32(i)
		w.here = Within{s.Position.Sequence, p.Index}
		for range w.times(i) {
			var err error
			if results == nil {
				err = w.message(ctx, c, at, p, &m, nil)
			} else {
				err = w.message(ctx, c, at, p, &m, &results[i])
			}
			if err != nil {
				return err
			}
		}
		if w.keep.crowded() {
			if err := w.uncrowd(ctx, at); err != nil {
				return err
			}
		}
	}
	w.here = Within{}
	if err := cursor.Err(); err != nil {
		return fmt.Errorf("read batch %d of %s: %w", s.Position.Sequence, at.log, err)
	}
	return nil
}

// makeRoom commits what came before, in the middle of a batch if need be, where what a message says finds no room.
func (w *worker) makeRoom(ctx context.Context, bytes int) error {
	if w.keep.room(bytes) {
		return nil
	}
	w.cut()
	if err := w.commit(ctx); err != nil {
		return &broken{err}
	}
	return nil
}

// cut makes the next commit one in the middle of the batch under way: what came before the message at hand is in it.
func (w *worker) cut() {
	if w.here.Sequence == 0 {
		return
	}
	for at, c := range w.points { // there is one, where commits have limits
		here := w.here
		c.Within = &here
		w.dirty[at] = true
	}
}

// uncrowd waits in the middle of a batch until less is parked.
func (w *worker) uncrowd(ctx context.Context, at place) error {
	w.here.Count++
	w.stand(at, fmt.Sprintf("%d messages are parked, which is as many as fit into a position", w.parked.n))
	defer w.stand(at, "")
	for w.keep.crowded() {
		w.cut()
		if err := w.commit(ctx); err != nil {
			return err
		}
		if err := w.pause(ctx, max(w.untilDue(), time.Millisecond)); err != nil {
			return err
		}
		here := w.here
		w.here = Within{} // what retries say is of no batch
		err := w.retryDue(ctx)
		if w.here = here; err != nil {
			return err
		}
	}
	return nil
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

// report notes a committed checkpoint for those who ask.
func (w *worker) report(at place, c *Checkpoint) {
	r := Report{Checkpoint: *c, Required: w.env.Spec.Required, Child: w.env.Spec.of != "", Node: w.env.Node, At: w.env.Now()}
	if waiting := r.Waiting.Count; w.caller != nil {
		r.Exceptions = exceptions(w.caller.oldest(at))
		w.metrics.parked(at.log, uint64(w.caller.failed[at.log]))
	} else {
		r.Exceptions = exceptions(w.parked.oldestAt(at))
		w.metrics.parked(at.log, waiting)
	}
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

package nats

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	pendingMax   = 64 << 20  // bytes not yet settled, by the contract
	batchBytes   = 512 << 10 // a batch is closed beyond this; measured: larger ones gain nothing
	batchRecords = 2048
)

// appender gathers messages from many goroutines. What arrives while a batch is being written makes the next one.
//
// Each partition has a lane with a goroutine of its own, which writes one batch after the other. What became of them is
// told by one more goroutine, so that telling many doesn't hold up the next write.
type appender struct {
	l *Log
	o bus.AppenderOptions

	mu      sync.Mutex
	gen     uint32
	lanes   []*lane
	running int           // lanes whose goroutine has not ended
	moving  bool          // lanes end, and the last one goes over to the next generation
	pending int           // bytes
	freed   chan struct{} // closed when pending becomes less, where somebody waits
	ended   error         // why nothing is taken any more
	closing bool          // what is pending is still written
	outcome []outcome     // to be told, in order
	news    chan struct{} // there is something to tell, or all lanes have ended
	done    chan struct{} // everything is told
}

// lane is the way to one partition. Its fields but row are guarded by the appender's mutex; row is its goroutine's.
type lane struct {
	row   row
	queue []*gathering // the last one grows
	wake  chan struct{}
	hint  int // how large the next batch may become
}

// gathering is a batch that is being gathered, and who wants to hear of it.
type gathering struct {
	b       message.Builder
	tickets []ticket
	size    int // as counted in pending
}

type ticket struct {
	to    bus.Completion
	token uint64
	size  int32
}

// outcome is what became of a batch.
type outcome struct {
	g   *gathering
	at  bus.Position
	err error
}

// Appender opens a door.
func (l *Log) Appender(ctx context.Context, o bus.AppenderOptions) (bus.Appender, error) {
	if o.Standing == nil {
		o.Standing = func() bool { return true }
	}
	if o.Patience <= 0 {
		o.Patience = patienceDefault
	}
	a := &appender{l: l, o: o, news: make(chan struct{}, 1), done: make(chan struct{})}
	if err := checkRow(o.Name, o.Owner); err != nil {
		return nil, fmt.Errorf("open appender of log %s: %w", l.name, err)
	}
	err := l.b.patiently(ctx, o.Patience, func(ctx context.Context) error {
		if err := l.reload(ctx); err != nil {
			return err
		}
		m := l.snapshot()
		a.openLanes(m.open())
		for _, ln := range a.lanes {
			if _, _, err := ln.row.begin(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open appender %s of log %s: %w", o.Name, l.name, l.b.closed(err))
	}
	l.b.group.Go(a.tell)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.runLanes()
	return a, nil
}

// checkRow holds a row's name to one word of letters, digits, dashes and underscores.
func checkRow(name string, owner message.ID) error {
	if !word(name) {
		return fmt.Errorf("row %q: a name is one word of letters, digits, - and _", name)
	}
	if owner.IsZero() {
		return fmt.Errorf("row %s: its owner has no id, so nobody could be told apart", name)
	}
	return nil
}

func word(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return s != ""
}

func (a *appender) openLanes(g *genMeta) {
	a.gen = g.Number
	a.lanes = make([]*lane, len(g.Trimmed))
	for part := range a.lanes {
		a.lanes[part] = &lane{wake: make(chan struct{}, 1), row: row{l: a.l, gen: g.Number, part: uint32(part), name: a.o.Name,
			owner: a.o.Owner, standing: a.o.Standing, patience: a.o.Patience}}
	}
}

// runLanes starts the lanes' goroutines. a.mu is held.
func (a *appender) runLanes() {
	a.running = len(a.lanes)
	for _, ln := range a.lanes {
		a.l.b.group.Go(func() { a.run(ln) })
	}
}

// Append takes a copy of the message.
func (a *appender) Append(ctx context.Context, m *message.Message, to bus.Completion, token uint64) error {
	if a.o.Door {
		if err := a.l.b.doorShut(); err != nil {
			return err
		}
	}
	size, err := a.l.b.sizeOf(m)
	if err != nil {
		return err
	}
	a.mu.Lock()
	for a.pending > pendingMax && a.ended == nil {
		if err := a.waitForRoom(ctx); err != nil {
			a.mu.Unlock()
			return err
		}
	}
	if a.ended != nil {
		defer a.mu.Unlock()
		return a.ended
	}
	a.pending += size
	ln := a.lanes[bus.PartitionOf(m.Key(), len(a.lanes))]
	ln.add(m, ticket{to, token, int32(size)})
	a.mu.Unlock()
	return nil
}

// waitForRoom waits until something was settled. a.mu is held, but not while it waits.
func (a *appender) waitForRoom(ctx context.Context) error {
	if a.freed == nil {
		a.freed = make(chan struct{})
	}
	freed := a.freed
	a.mu.Unlock()
	defer a.mu.Lock()
	select {
	case <-freed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// add puts a message into the batch that grows. The appender's mutex is held.
func (ln *lane) add(m *message.Message, t ticket) {
	var g *gathering
	if n := len(ln.queue); n > 0 {
		g = ln.queue[n-1]
	}
	if g == nil || len(g.tickets) >= batchRecords || g.b.Len()+int(t.size) > batchBytes {
		g = &gathering{tickets: make([]ticket, 0, min(max(ln.hint/256, 1), batchRecords))}
		g.b.Reset(message.Header{}, max(ln.hint, message.BatchOverhead+int(t.size)))
		ln.queue = append(ln.queue, g)
		signal(ln.wake)
	}
	g.b.Add(m)
	g.size += int(t.size)
	g.tickets = append(g.tickets, t)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run writes a lane's batches until the appender ends or moves.
func (a *appender) run(ln *lane) {
	for {
		g, ok := a.next(ln)
		if !ok {
			break
		}
		if g == nil {
			select {
			case <-ln.wake:
			case <-a.l.b.ctx.Done():
				a.mu.Lock()
				a.end(bus.ErrClosed)
				a.mu.Unlock()
			}
			continue
		}
		seq, data, err := ln.row.write(a.l.b.ctx, &g.b)
		if errors.Is(err, errSealed) {
			a.sealed(ln, g)
			continue
		}
		if err != nil {
			a.settle(outcome{g, bus.Position{}, err})
			continue
		}
		// Handed over before anybody is told: who has an acknowledgement finds the batch, and nothing is trimmed in between.
		s := a.l.stored(ln.row.gen, ln.row.part, raw{seq, ln.row.subject(), data})
		a.l.feed(ln.row.gen, ln.row.part).put(s)
		a.settle(outcome{g, s.Position, nil})
	}
	a.laneEnded()
}

// next takes the lane's next batch; nil where there is none now. ok is false where the lane ends.
func (a *appender) next(ln *lane) (g *gathering, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.moving, a.ended != nil && !a.closing:
		return nil, false
	case len(ln.queue) > 0:
		g = ln.queue[0]
		ln.queue[0] = nil
		ln.queue = ln.queue[1:]
		ln.hint = min(g.b.Len()+g.b.Len()/4, batchBytes+batchBytes/8)
		return g, true
	}
	return nil, !a.closing
}

// settle has a batch's fate told. One that concerns more than the batch ends the appender.
func (a *appender) settle(o outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outcome = append(a.outcome, o)
	if errors.Is(o.err, bus.ErrClosed) || message.ReasonOf(o.err, 0) == message.Fenced {
		a.end(o.err)
	}
	signal(a.news)
}

// end takes nothing more and lets what is pending die of err. a.mu is held.
func (a *appender) end(err error) {
	if a.ended == nil || a.closing {
		a.ended, a.closing = err, false
	}
	a.wakeAll()
}

// wakeAll has lanes and those who wait for room look again. a.mu is held.
func (a *appender) wakeAll() {
	for _, ln := range a.lanes {
		signal(ln.wake)
	}
	if a.freed != nil {
		close(a.freed)
		a.freed = nil
	}
}

// sealed puts a batch back that its partition does not take any more, and has all lanes end.
func (a *appender) sealed(ln *lane, g *gathering) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ln.queue = append([]*gathering{g}, ln.queue...)
	a.moving = true
	a.wakeAll()
}

// laneEnded goes over to the next generation, or to the end, when all lanes have ended.
func (a *appender) laneEnded() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.running--; a.running > 0 {
		return
	}
	if a.moving && (a.ended == nil || a.closing) {
		a.mu.Unlock()
		g, err := a.leave()
		a.mu.Lock()
		if err == nil {
			a.move(g)
			return
		}
		a.end(err)
	}
	a.moving = false
	for _, ln := range a.lanes {
		for _, g := range ln.queue {
			a.outcome = append(a.outcome, outcome{g: g, err: a.ended})
		}
		ln.queue = nil
	}
	signal(a.news)
}

// leave waits for the next generation, and makes sure that no row was continued by another owner before the seal.
func (a *appender) leave() (g *genMeta, err error) {
	fenced := false
	err = a.l.b.patiently(a.l.b.ctx, a.o.Patience, func(ctx context.Context) (err error) {
		if g, err = a.l.after(ctx, a.gen); err != nil {
			return err
		}
		for _, ln := range a.lanes {
			if err = ln.row.checkLeft(ctx); final(err) {
				fenced = true
				return nil
			} else if err != nil {
				return err
			}
		}
		return nil
	})
	switch {
	case fenced:
		g, err = nil, a.fence()
	case a.l.b.ctx.Err() != nil:
		err = bus.ErrClosed
	case err != nil:
		err = message.Reject(message.BusUnavailable, err)
	}
	return g, err
}

func (a *appender) fence() error {
	return message.Rejectf(message.Fenced, "row %s of log %s was continued by another owner before generation %d was sealed; this is %s",
		a.o.Name, a.l.name, a.gen, a.o.Owner)
}

// move gathers what the lanes had left anew, each key's messages in their order. a.mu is held.
func (a *appender) move(g *genMeta) {
	old := a.lanes
	a.moving = false
	a.openLanes(g)
	for _, ln := range old {
		for _, g := range ln.queue {
			a.regather(g)
		}
	}
	a.runLanes()
}

// regather takes the messages of a batch over into the new lanes. a.mu is held.
func (a *appender) regather(g *gathering) {
	b, err := message.ParseBatch(g.b.Seal(1, 0, 0, a.o.Owner))
	if err != nil { // it was sealed just now
		a.outcome = append(a.outcome, outcome{g: g, err: err})
		return
	}
	var m message.Message
	for c := b.Cursor(); c.Next(&m); {
		a.lanes[bus.PartitionOf(m.Key(), len(a.lanes))].add(&m, g.tickets[c.Index()-1])
	}
}

// tell calls the completions, one at a time, until the lanes have ended and everything is told.
func (a *appender) tell() {
	defer close(a.done)
	var list []outcome
	var settle settler
	for {
		a.mu.Lock()
		for i := range list {
			a.pending -= list[i].g.size
		}
		if len(list) > 0 && a.freed != nil {
			close(a.freed)
			a.freed = nil
		}
		list, a.outcome = a.outcome, nil
		over := len(list) == 0 && a.running == 0 && !a.moving && a.ended != nil
		a.mu.Unlock()
		if over {
			return
		}
		if len(list) == 0 {
			<-a.news
		}
		for i := range list {
			settle.tell(&list[i])
		}
	}
}

// settler tells everybody in a batch, and then each of them once that this was all.
type settler struct {
	seen  map[bus.Completion]struct{}
	order []bus.Completion
}

func (s *settler) tell(o *outcome) {
	if s.seen == nil {
		s.seen = map[bus.Completion]struct{}{}
	}
	var last bus.Completion
	at := o.at
	for i, t := range o.g.tickets {
		if t.to == nil {
			continue
		}
		if o.err == nil {
			at.Index = uint32(i)
		}
		t.to.Appended(t.token, at, o.err)
		if !comparable(t.to) { // cannot be recognised again
			t.to.Settled()
			continue
		}
		if t.to == last {
			continue
		}
		last = t.to
		if _, ok := s.seen[t.to]; !ok {
			s.seen[t.to] = struct{}{}
			s.order = append(s.order, t.to)
		}
	}
	for _, to := range s.order {
		to.Settled()
	}
	clear(s.seen)
	clear(s.order)
	s.order = s.order[:0]
}

// comparable says whether == on it does not panic.
func comparable(c bus.Completion) bool {
	v := reflect.ValueOf(c)
	return v.Kind() == reflect.Pointer || v.Comparable()
}

// Close writes what is pending and ends. What is not written when ctx ends is completed with ErrClosed.
func (a *appender) Close(ctx context.Context) error {
	a.mu.Lock()
	if a.ended == nil {
		a.ended, a.closing = bus.ErrClosed, true
	}
	a.wakeAll()
	a.mu.Unlock()
	select {
	case <-a.done:
		return nil
	case <-ctx.Done():
		a.mu.Lock()
		a.end(bus.ErrClosed)
		a.mu.Unlock()
		return fmt.Errorf("close appender %s of log %s: %w", a.o.Name, a.l.name, ctx.Err())
	}
}

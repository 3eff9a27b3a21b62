package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// pendingMax bounds what waits to be written, in bytes, over all partitions of an appender.
const pendingMax = 64 << 20

// recordOverhead is what a record has around its variable fields, at most.
const recordOverhead = 160

// appender gathers messages from many goroutines. What arrives while a batch is being written makes the next one.
type appender struct {
	l *Log
	o bus.AppenderOptions

	// moving is held for reading by those who append, and for writing while the appender goes over to the next
	// generation.
	moving sync.RWMutex
	lanes  []*lane
	gen    uint32

	mu      sync.Mutex // guards what follows
	room    *sync.Cond
	pending int
	closed  bool
	dead    error // why nothing is taken any more
	group   sync.WaitGroup
}

// lane is the way to one partition: a batch that grows, batches that are full, one that is being written.
type lane struct {
	a    *appender
	row  row
	mu   sync.Mutex
	wake *sync.Cond
	full []*gathering
	open *gathering
	stop bool
	hint int
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
}

// Appender opens a door.
func (l *Log) Appender(ctx context.Context, o bus.AppenderOptions) (bus.Appender, error) {
	if err := checkRow(o.Name); err != nil {
		return nil, err
	}
	if o.Patience <= 0 {
		o.Patience = patienceDefault
	}
	if o.Standing == nil {
		o.Standing = func() bool { return true }
	}
	a := &appender{l: l, o: o}
	a.room = sync.NewCond(&a.mu)
	if err := l.b.patiently(ctx, o.Patience, l.reload); err != nil {
		return nil, fmt.Errorf("open row %s of log %s: %w", o.Name, l.name, l.b.closed(err))
	}
	a.openLanes()
	return a, nil
}

// checkRow holds a row's name to one token of letters, digits, dashes and underscores.
func checkRow(name string) error {
	for i := range len(name) {
		c := name[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return fmt.Errorf("row name %q: want letters, digits, - and _", name)
		}
	}
	if name == "" {
		return errors.New("row name is empty")
	}
	return nil
}

// openLanes begins the lanes of the open generation.
func (a *appender) openLanes() {
	m := a.l.snapshot()
	g := m.open()
	a.gen = g.Number
	a.lanes = make([]*lane, len(g.Trimmed))
	for part := range a.lanes {
		ln := &lane{a: a, row: row{l: a.l, gen: g.Number, part: uint32(part), name: a.o.Name, owner: a.o.Owner,
			standing: a.o.Standing, patience: a.o.Patience}}
		ln.wake = sync.NewCond(&ln.mu)
		a.lanes[part] = ln
		a.group.Go(ln.run)
	}
}

// Append takes a copy of the message.
func (a *appender) Append(ctx context.Context, m *message.Message, to bus.Completion, token uint64) error {
	if a.o.Door && a.l.b.space.Load().Shut {
		s := a.l.b.space.Load()
		return message.Rejectf(message.StorageLow, "%d MiB free; the doors are shut below %d MiB", s.Free>>20, s.Low>>20)
	}
	n := recordOverhead + len(m.Data) + len(m.Properties) + len(m.Subject) + len(m.Source) + len(m.Type) + len(m.Device) +
		len(m.ContentType) + len(m.Schema) + len(m.ReplyTo) + len(m.Correlation)
	if limit := a.l.b.MaxMessage(); n > limit {
		return message.Rejectf(message.MessageTooLarge, "%s has %d bytes; the limit is %d", m.Subject, n, limit)
	}
	if err := a.reserve(ctx, n); err != nil {
		return err
	}
	a.moving.RLock()
	defer a.moving.RUnlock()
	ln := a.lanes[bus.PartitionOf(m.Key(), len(a.lanes))]
	ln.mu.Lock()
	if ln.stop {
		ln.mu.Unlock()
		a.release(n)
		return a.why()
	}
	g := ln.open
	if g != nil && (len(g.tickets) >= batchRecords || g.b.Len()+n > batchBytes) {
		ln.full = append(ln.full, g)
		g = nil
	}
	if g == nil {
		g = &gathering{}
		g.b.Reset(message.Header{}, max(ln.hint, message.BatchOverhead+n))
		ln.open = g
	}
	g.b.Add(m)
	g.size += n
	g.tickets = append(g.tickets, ticket{to, token})
	if len(g.tickets) == 1 {
		ln.wake.Signal()
	}
	ln.mu.Unlock()
	return nil
}

// reserve waits for room among what is pending.
func (a *appender) reserve(ctx context.Context, n int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending+n > pendingMax && a.dead == nil && !a.closed {
		stop := context.AfterFunc(ctx, func() { a.mu.Lock(); defer a.mu.Unlock(); a.room.Broadcast() })
		defer stop()
		for a.pending > 0 && a.pending+n > pendingMax && a.dead == nil && !a.closed {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			a.room.Wait()
		}
	}
	if a.dead != nil {
		return a.dead
	}
	if a.closed {
		return bus.ErrClosed
	}
	a.pending += n
	return nil
}

func (a *appender) release(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending -= n
	a.room.Broadcast()
}

func (a *appender) why() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead != nil {
		return a.dead
	}
	return bus.ErrClosed
}

// next waits for a batch to write; nil when the lane has stopped and has no more.
func (ln *lane) next() *gathering {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	for {
		if len(ln.full) > 0 {
			g := ln.full[0]
			ln.full[0] = nil
			ln.full = ln.full[1:]
			return g
		}
		if g := ln.open; g != nil {
			ln.open = nil
			ln.hint = g.b.Len() + g.b.Len()/4
			return g
		}
		if ln.stop {
			return nil
		}
		ln.wake.Wait()
	}
}

// outcome is what became of a batch, on its way to those who want to hear.
type outcome struct {
	g   *gathering
	at  bus.Position
	err error
}

// run writes batches one after the other. Those who wait are told by another goroutine, so that telling many of them
// doesn't hold up the next write.
func (ln *lane) run() {
	tell := make(chan outcome, 4)
	var telling sync.WaitGroup
	telling.Go(func() {
		for o := range tell {
			o.g.settle(o.at, o.err)
			ln.a.release(o.g.size)
		}
	})
	defer telling.Wait()
	defer close(tell)
	for {
		g := ln.next()
		if g == nil {
			return
		}
		seq, raw, err := ln.row.write(ln.a.l.b.ctx, &g.b)
		switch {
		case errors.Is(err, errSealed):
			ln.mu.Lock()
			ln.full = slices.Insert(ln.full, 0, g)
			ln.stop = true
			ln.mu.Unlock()
			go ln.a.move(ln.row.gen)
			return
		case err != nil:
			tell <- outcome{g: g, err: err}
			if message.ReasonOf(err, 0) == message.Fenced || errors.Is(err, bus.ErrClosed) {
				ln.a.die(err)
			}
		default:
			at := bus.Position{Log: ln.a.l.ID(), Generation: ln.row.gen, Partition: ln.row.part, Sequence: seq}
			ln.a.l.feed(ln.row.gen, ln.row.part).put(ln.a.l.stored(ln.row.gen, ln.row.part, rawOf(seq, ln.row.subject(), raw)))
			tell <- outcome{g: g, at: at}
		}
	}
}

func rawOf(seq uint64, subject string, data []byte) raw { return raw{seq, subject, data} }

// settle tells everybody in a batch, in order.
func (g *gathering) settle(at bus.Position, err error) {
	for i, t := range g.tickets {
		if t.to == nil {
			continue
		}
		p := at
		p.Index = uint32(i)
		t.to.Appended(t.token, p, err)
		if i+1 == len(g.tickets) || g.tickets[i+1].to != t.to {
			t.to.Settled()
		}
	}
}

// die fails everything pending and takes no more.
func (a *appender) die(err error) {
	a.mu.Lock()
	if a.dead == nil {
		a.dead = err
	}
	a.room.Broadcast()
	a.mu.Unlock()
	for _, ln := range a.lanes {
		ln.mu.Lock()
		ln.stop = true
		left := ln.full
		if ln.open != nil {
			left = append(left, ln.open)
		}
		ln.full, ln.open = nil, nil
		ln.wake.Broadcast()
		ln.mu.Unlock()
		for _, g := range left {
			g.settle(bus.Position{}, err)
			a.release(g.size)
		}
	}
}

// move goes over to the next generation: all lanes end, and what they had left is gathered again by key, in order.
func (a *appender) move(from uint32) {
	a.moving.Lock()
	defer a.moving.Unlock()
	if a.gen != from {
		return // another lane was first
	}
	for _, ln := range a.lanes {
		ln.mu.Lock()
		ln.stop = true
		ln.wake.Broadcast()
		ln.mu.Unlock()
	}
	a.group.Wait() // a lane that still has something writes it or finds the seal
	old := a.lanes
	err := a.l.b.patiently(a.l.b.ctx, a.o.Patience, func(ctx context.Context) error {
		if err := a.l.reload(ctx); err != nil {
			return err
		}
		if m := a.l.snapshot(); m.open().Number <= from {
			return fmt.Errorf("log %s: the generation after %d is not there yet", a.l.name, from)
		}
		return nil
	})
	if err != nil {
		a.die(message.Reject(message.BusUnavailable, a.l.b.closed(err)))
		return
	}
	a.openLanes()
	for _, ln := range old {
		left := ln.full
		if ln.open != nil {
			left = append(left, ln.open)
		}
		for _, g := range left {
			a.regather(g)
		}
	}
}

// regather takes the messages of a batch over into the new lanes.
func (a *appender) regather(g *gathering) {
	b, err := message.ParseBatch(g.b.Seal(1, 0, 0, a.o.Owner))
	if err != nil {
		g.settle(bus.Position{}, err)
		a.release(g.size)
		return
	}
	each := g.size / max(len(g.tickets), 1)
	a.release(g.size - each*len(g.tickets))
	var m message.Message
	for c := b.Cursor(); c.Next(&m); {
		ln := a.lanes[bus.PartitionOf(m.Key(), len(a.lanes))]
		ln.mu.Lock()
		if ln.open == nil || len(ln.open.tickets) >= batchRecords || ln.open.b.Len()+len(m.Data) > batchBytes {
			if ln.open != nil {
				ln.full = append(ln.full, ln.open)
			}
			ln.open = &gathering{}
			ln.open.b.Reset(message.Header{}, batchBytes/4)
		}
		ln.open.b.Add(&m)
		ln.open.size += each
		ln.open.tickets = append(ln.open.tickets, g.tickets[c.Index()-1])
		ln.wake.Signal()
		ln.mu.Unlock()
	}
}

// Close writes what is pending and ends.
func (a *appender) Close(ctx context.Context) error {
	a.mu.Lock()
	a.closed = true
	a.room.Broadcast()
	a.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			a.moving.RLock()
			gen := a.gen
			for _, ln := range a.lanes {
				ln.mu.Lock()
				ln.stop = true
				ln.wake.Broadcast()
				ln.mu.Unlock()
			}
			a.moving.RUnlock()
			a.group.Wait()
			a.moving.RLock() // a move that was under way has begun new lanes
			same := a.gen == gen
			a.moving.RUnlock()
			if same {
				return
			}
		}
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close row %s of log %s: %w", a.o.Name, a.l.name, ctx.Err())
	}
}

// writer writes derived batches.
type writer struct {
	row row
	l   *Log
}

// Writer opens a consumer's row.
func (l *Log) Writer(_ context.Context, o bus.WriterOptions) (bus.Writer, error) {
	if err := checkRow(o.Name); err != nil {
		return nil, err
	}
	if o.Patience <= 0 {
		o.Patience = patienceDefault
	}
	return &writer{l: l, row: row{l: l, name: o.Name, owner: o.Owner, standing: o.Standing, patience: o.Patience}}, nil
}

// Last asks for the newest batch of the row, in the open generation or the ones before it. The row is one partition's:
// the one its name belongs to.
func (w *writer) Last(ctx context.Context) (h message.Header, ok bool, err error) {
	err = w.l.b.patiently(ctx, w.row.patience, func(ctx context.Context) error {
		if err := w.l.reload(ctx); err != nil {
			return err
		}
		m := w.l.snapshot()
		for _, g := range slices.Backward(m.Generations) {
			w.row.gen, w.row.part = g.Number, bus.PartitionOf(w.row.name, len(g.Trimmed))
			if h, ok, err = w.row.sync(ctx); ok || err != nil {
				break
			}
		}
		if open := m.open(); w.row.gen != open.Number {
			w.enter(open)
		}
		return err
	})
	if err != nil {
		return h, false, fmt.Errorf("last batch of row %s of log %s: %w", w.row.name, w.l.name, w.l.b.closed(err))
	}
	h.Mark = slices.Clone(h.Mark)
	return h, ok, nil
}

func (w *writer) enter(g *genMeta) {
	w.row.gen, w.row.part = g.Number, bus.PartitionOf(w.row.name, len(g.Trimmed))
	w.row.known, w.row.seq, w.row.number, w.row.running, w.row.runningSum = false, 0, 0, 0, 0
}

// Write writes one batch.
func (w *writer) Write(ctx context.Context, source bus.Position, mark []byte, messages []*message.Message) (bus.Position, error) {
	if w.row.gen == 0 {
		if _, _, err := w.Last(ctx); err != nil {
			return bus.Position{}, err
		}
	}
	var b message.Builder
	b.Reset(message.Header{Derived: true, Source: source.Origin(), Mark: mark}, 0)
	for _, m := range messages {
		b.Add(m)
	}
	if b.Len() > w.MaxBatch() {
		return bus.Position{}, message.Rejectf(message.MessageTooLarge, "batch of %d bytes; the bus takes %d", b.Len(), w.MaxBatch())
	}
	deadline := time.Now().Add(w.row.patience)
	for {
		seq, raw, err := w.row.write(ctx, &b)
		if errors.Is(err, errSealed) && time.Now().Before(deadline) {
			if err := w.l.b.patiently(ctx, w.row.patience, func(ctx context.Context) error {
				if err := w.l.reload(ctx); err != nil {
					return err
				}
				if m := w.l.snapshot(); m.open().Number <= w.row.gen {
					return fmt.Errorf("log %s: the generation after %d is not there yet", w.l.name, w.row.gen)
				}
				return nil
			}); err != nil {
				return bus.Position{}, w.l.b.closed(err)
			}
			m := w.l.snapshot()
			w.enter(m.open())
			continue
		}
		if err != nil {
			return bus.Position{}, err
		}
		at := bus.Position{Log: w.l.ID(), Generation: w.row.gen, Partition: w.row.part, Sequence: seq}
		if len(messages) > 0 {
			at.Index = uint32(len(messages) - 1)
		}
		w.l.feed(w.row.gen, w.row.part).put(w.l.stored(w.row.gen, w.row.part, rawOf(seq, w.row.subject(), raw)))
		return at, nil
	}
}

// MaxBatch is the largest batch the server takes.
func (w *writer) MaxBatch() int { return w.l.b.maxBatch() - 4096 } // headers and subject come on top

// Close lets go; nothing is pending.
func (w *writer) Close() error { return nil }

package mem

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
	pendingMax = 64 << 20  // bytes, by the contract
	batchBytes = 512 << 10 // where a batch is full
)

// Appender as in [bus.Log].
func (l *logHandle) Appender(ctx context.Context, o bus.AppenderOptions) (bus.Appender, error) {
	if o.Standing == nil {
		o.Standing = func() bool { return true }
	}
	r, err := newRow(l, o.Name, o.Owner, o.Standing, o.Patience)
	if err != nil {
		return nil, err
	}
	if err := l.b.enter(ctx); err != nil {
		return nil, fmt.Errorf("open appender %s of log %s: %w", o.Name, l.d.name, err)
	}
	defer l.b.e.mu.Unlock()
	stop, kill := context.WithCancel(context.Background())
	a := &appender{row: r, door: o.Door, gen: l.d.newest(), stop: stop, kill: kill,
		wake: make(chan struct{}, 1), done: make(chan struct{}), freed: make(chan struct{})}
	for i := range a.gen.parts {
		a.places = append(a.places, placeOf(o.Name, a.gen, uint32(i)))
	}
	l.b.work.Add(1)
	go a.run()
	return a, nil
}

// appender gathers while it writes.
type appender struct {
	row
	door bool

	mu      sync.Mutex
	pending []item
	bytes   int  // of pending and of what is being written
	closed  bool // nothing more is taken
	freed   chan struct{}
	sizing  []byte

	wake chan struct{} // pending is not empty any more, or closed
	stop context.Context
	kill func() // gives up what is pending
	done chan struct{}

	// The goroutine's own.
	gen    *generation
	places []place // by partition of gen
}

// item is a message on its way.
type item struct {
	m     *message.Message
	size  int
	to    bus.Completion
	token uint64
}

func (a *appender) Append(ctx context.Context, m *message.Message, to bus.Completion, token uint64) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if a.door {
			if s := a.b.Status(ctx).Space; s.Shut {
				return message.Rejectf(message.StorageLow, "%d bytes are free and the doors shut below %d: free some space or shorten retention", s.Free, s.Low)
			}
		}
		a.mu.Lock()
		if a.closed || a.b.isClosed() {
			a.mu.Unlock()
			return fmt.Errorf("append to log %s: %w", a.d.name, bus.ErrClosed)
		}
		a.sizing = message.AppendRecord(a.sizing[:0], m)
		size := len(a.sizing)
		if most := a.b.MaxMessage(); size > most {
			a.mu.Unlock()
			return message.Rejectf(message.MessageTooLarge, "message %s on %s takes %d bytes, and the log %s takes up to %d", m.ID, m.Subject, size, a.d.name, most)
		}
		if a.bytes <= pendingMax {
			a.pending = append(a.pending, item{m: m.Clone(), size: size, to: to, token: token})
			a.bytes += size
			a.mu.Unlock()
			select {
			case a.wake <- struct{}{}:
			default:
			}
			return nil
		}
		freed := a.freed
		a.mu.Unlock()
		if err := a.b.wait(ctx, freed); err != nil {
			return err
		}
	}
}

// Close as in [bus.Appender]. What is not written when ctx ends is completed with ErrClosed.
func (a *appender) Close(ctx context.Context) error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
	select {
	case <-a.done:
		return nil
	case <-ctx.Done():
		a.kill()
		<-a.done
		return ctx.Err()
	}
}

// run writes until the appender is closed.
func (a *appender) run() {
	defer a.b.work.Done()
	defer close(a.done)
	defer a.kill()
	for {
		items, closed := a.take()
		if len(items) > 0 {
			a.writeAll(items)
			continue
		}
		if closed {
			return
		}
		select {
		case <-a.wake:
		case <-a.b.closed:
			a.mu.Lock()
			a.closed = true
			a.mu.Unlock()
		}
	}
}

func (a *appender) take() (items []item, closed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	items, a.pending = a.pending, nil
	return items, a.closed
}

// writeAll writes the items as few batches as the limit allows, for each partition in their order. A seal on the way
// sends the rest to the partitions of the next generation, each key's in its order.
func (a *appender) writeAll(items []item) {
	for len(items) > 0 {
		split := make([][]item, len(a.places))
		for _, it := range items {
			p := bus.PartitionOf(it.m.Key(), len(split))
			split[p] = append(split[p], it)
		}
		items = nil
		for p, rest := range split {
			for len(rest) > 0 {
				n, err := a.writeOne(&a.places[p], rest)
				if errors.Is(err, errSealed) {
					break
				}
				rest = rest[n:]
			}
			items = append(items, rest...)
		}
		if len(items) > 0 {
			a.gen = a.next(a.gen)
			a.places = nil
			for p := range a.gen.parts {
				// Not where the row is, but where it begins: who wrote there in the meantime is another owner.
				a.places = append(a.places, place{gen: a.gen, partition: uint32(p), number: 1})
			}
		}
	}
}

// writeOne writes one batch of the first items, tells their completions and says how many they were. Nothing has
// happened where it gives errSealed.
func (a *appender) writeOne(pl *place, items []item) (n int, err error) {
	var b message.Builder
	b.Reset(message.Header{}, 0)
	size := 0
	for _, it := range items {
		if n > 0 && b.Len()+it.size > min(batchBytes, a.b.e.maxBatch) {
			break
		}
		b.Add(it.m)
		size += it.size
		n++
	}
	at, err := a.write(a.stop, pl, &b)
	if errors.Is(err, errSealed) {
		return 0, err
	}
	if err != nil && a.stop.Err() != nil {
		err = bus.ErrClosed
	}
	complete(items[:n], at, err)
	a.mu.Lock()
	a.bytes -= size
	close(a.freed)
	a.freed = make(chan struct{})
	a.mu.Unlock()
	return n, err
}

// complete tells what became of a batch.
func complete(items []item, at bus.Position, err error) {
	var order []bus.Completion
	seen := map[bus.Completion]bool{}
	for i, it := range items {
		if it.to == nil {
			continue
		}
		if at.Index = uint32(i); err != nil {
			at = bus.Position{}
		}
		it.to.Appended(it.token, at, err)
		switch {
		case !reflect.ValueOf(it.to).Comparable(): // cannot be recognised again
			it.to.Settled()
		case !seen[it.to]:
			seen[it.to] = true
			order = append(order, it.to)
		}
	}
	for _, to := range order {
		to.Settled()
	}
}

package mem

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// consumerData is what the consumers of one name share.
type consumerData struct {
	name       string
	pattern    message.Pattern
	ackWait    time.Duration
	inFlight   int
	unanswered int
	handles    map[*consumer]bool
}

// Consumer as in [bus.Queue]. It gives ErrConflict where the pattern overlaps that of another name's open consumer.
func (q *queue) Consumer(ctx context.Context, o bus.ConsumerOptions) (bus.Consumer, error) {
	fail := func(err error) (bus.Consumer, error) {
		return nil, fmt.Errorf("consumer %s of queue %s: %w", o.Name, q.d.name, err)
	}
	if err := o.Pattern.Valid(); err != nil {
		return fail(err)
	}
	if o.AckWait == 0 {
		o.AckWait = 30 * time.Second
	}
	if o.InFlight == 0 {
		o.InFlight = 256
	}
	if err := q.b.enter(ctx); err != nil {
		return fail(err)
	}
	defer q.b.e.mu.Unlock()
	for _, other := range q.d.consumers {
		if other.name != o.Name && other.used() && overlap(string(other.pattern), string(o.Pattern)) {
			return fail(fmt.Errorf("its pattern %s overlaps %s of consumer %s: %w", o.Pattern, other.pattern, other.name, bus.ErrConflict))
		}
	}
	d := q.d.consumers[o.Name]
	if d == nil {
		d = &consumerData{name: o.Name, handles: map[*consumer]bool{}}
		q.d.consumers[o.Name] = d
	}
	d.pattern, d.ackWait, d.inFlight = o.Pattern, o.AckWait, o.InFlight
	c := &consumer{q: q, d: d, closed: make(chan struct{})}
	d.handles[c] = true
	return c, nil
}

// used says whether a handle is open, and forgets those whose bus was closed.
func (d *consumerData) used() bool {
	for c := range d.handles {
		if c.q.b.isClosed() {
			delete(d.handles, c)
		}
	}
	return len(d.handles) > 0
}

type consumer struct {
	q      *queue
	d      *consumerData
	closed chan struct{}
	once   sync.Once
}

func (c *consumer) Close() {
	c.once.Do(func() {
		close(c.closed)
		c.q.b.e.mu.Lock()
		defer c.q.b.e.mu.Unlock()
		delete(c.d.handles, c)
	})
}

func (c *consumer) Next(ctx context.Context) (bus.Delivery, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d, bell, due := c.look()
		switch {
		case d != nil:
			return d, nil
		case bell == nil:
			return nil, fmt.Errorf("next of consumer %s of queue %s: %w", c.d.name, c.q.d.name, bus.ErrClosed)
		}
		var fires <-chan time.Time
		stop := func() bool { return true }
		if !due.IsZero() {
			t := c.q.b.timer(due)
			fires, stop = t.C, t.Stop
		}
		select {
		case <-bell:
		case <-fires:
		case <-ctx.Done():
		case <-c.closed:
		case <-c.q.b.closed:
		}
		stop()
	}
}

// look gives the next message that may be given out, or the bell and the time to wait for; neither where the consumer
// is closed.
func (c *consumer) look() (d *delivery, bell <-chan struct{}, due time.Time) {
	select {
	case <-c.closed:
		return nil, nil, due
	case <-c.q.b.closed:
		return nil, nil, due
	default:
	}
	e, q := c.q.b.e, c.q.d
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down {
		return nil, e.up.heard(), due
	}
	now := e.now()
	q.expire(now)
	for _, it := range q.items {
		if !c.d.pattern.Matches(it.subject) {
			continue
		}
		if it.by == nil && !now.Before(it.due) && c.d.unanswered < c.d.inFlight {
			it.by, it.due = c.d, now.Add(c.d.ackWait)
			it.attempt++
			c.d.unanswered++
			return newDelivery(c, it), nil, due
		}
		// One that is due waits for an answer to another, and that rings.
		if it.due.After(now) && (due.IsZero() || it.due.Before(due)) {
			due = it.due
		}
	}
	return nil, q.changed.heard(), due
}

// delivery is one attempt.
type delivery struct {
	c       *consumer
	it      *queued
	m       *message.Message
	attempt int
}

func newDelivery(c *consumer, it *queued) *delivery {
	d := &delivery{c: c, it: it, m: new(message.Message), attempt: it.attempt}
	if _, err := message.DecodeRecord(it.raw, d.m); err != nil {
		panic(fmt.Sprintf("queue %s: a record that Put has read cannot be read: %v", c.q.d.name, err))
	}
	d.m = d.m.Clone() // whoever gets a message may change it
	return d
}

func (d *delivery) Message() *message.Message { return d.m }
func (d *delivery) Attempt() int              { return d.attempt }

// Ack counts even when it comes late: the message is taken out, and a delivery of it that is under way is the last.
func (d *delivery) Ack(ctx context.Context) error {
	return d.answer(ctx, "ack", func(bool) { d.c.q.d.remove(d.it) })
}

func (d *delivery) Drop(ctx context.Context) error {
	return d.answer(ctx, "drop", func(bool) { d.c.q.d.remove(d.it) })
}

// Retry changes nothing when it comes late: the message is under way again already.
func (d *delivery) Retry(ctx context.Context, delay time.Duration) error {
	return d.answer(ctx, "retry", func(current bool) {
		if current {
			d.it.by.unanswered--
			d.it.by, d.it.due = nil, d.c.q.b.e.now().Add(delay)
			d.c.q.d.changed.ring()
		}
	})
}

func (d *delivery) Working(ctx context.Context) error {
	return d.answer(ctx, "put off", func(current bool) {
		if current {
			d.it.due = d.c.q.b.e.now().Add(d.c.d.ackWait)
		}
	})
}

// answer calls f with the engine's lock; current says whether this is the attempt that an answer is awaited to.
func (d *delivery) answer(ctx context.Context, verb string, f func(current bool)) error {
	b := d.c.q.b
	if err := b.enter(ctx); err != nil {
		return fmt.Errorf("%s message %s of queue %s: %w", verb, d.m.ID, d.c.q.d.name, err)
	}
	defer b.e.mu.Unlock()
	d.c.q.d.expire(b.e.now())
	f(d.it.by != nil && d.it.attempt == d.attempt)
	return nil
}

// overlap says whether some subject is selected by both patterns.
func overlap(p, q string) bool {
	for {
		pt, pr, pmore := strings.Cut(p, ".")
		qt, qr, qmore := strings.Cut(q, ".")
		switch {
		case pt == ">" || qt == ">":
			return true
		case pt != "*" && qt != "*" && pt != qt, pmore != qmore:
			return false
		case !pmore:
			return true
		}
		p, q = pr, qr
	}
}

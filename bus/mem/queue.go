package mem

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// dedupe is how long a second Put of an id is the same as the first.
const dedupe = 2 * time.Minute

// queueData is a stored queue.
type queueData struct {
	name      string
	items     []*queued // in the order they were put
	seen      map[message.ID]time.Time
	consumers map[string]*consumerData
	changed   bell
}

// queued is a message in a queue.
type queued struct {
	raw     []byte // a record
	subject message.Subject
	expires time.Time
	due     time.Time     // not given out before
	by      *consumerData // who has it, unanswered; nil where nobody
	attempt int
}

// Queue as in [bus.Bus].
func (b *Bus) Queue(ctx context.Context, name string) (bus.Queue, error) {
	if err := b.enter(ctx); err != nil {
		return nil, fmt.Errorf("open queue %s: %w", name, err)
	}
	defer b.e.mu.Unlock()
	d := b.e.queues[name]
	if d == nil {
		d = &queueData{name: name, seen: map[message.ID]time.Time{}, consumers: map[string]*consumerData{}}
		b.e.queues[name] = d
	}
	return &queue{b: b, d: d}, nil
}

type queue struct {
	b *Bus
	d *queueData
}

func (q *queue) Name() string { return q.d.name }

func (q *queue) Put(ctx context.Context, m *message.Message, door bool) error {
	if err := q.b.enter(ctx); err != nil {
		return fmt.Errorf("put %s into queue %s: %w", m.ID, q.d.name, err)
	}
	e := q.b.e
	defer e.mu.Unlock()
	if door && e.space.Shut {
		return message.Rejectf(message.StorageLow, "%d bytes are free and the doors shut below %d: free some space or shorten retention", e.space.Free, e.space.Low)
	}
	raw := message.AppendRecord(nil, m)
	if most := q.b.MaxMessage(); len(raw) > most {
		return message.Rejectf(message.MessageTooLarge, "message %s on %s takes %d bytes, and the queue %s takes up to %d", m.ID, m.Subject, len(raw), q.d.name, most)
	}
	now := e.now()
	for id, at := range q.d.seen {
		if now.Sub(at) >= dedupe {
			delete(q.d.seen, id)
		}
	}
	if _, again := q.d.seen[m.ID]; again {
		return nil
	}
	q.d.seen[m.ID] = now
	var stored message.Message
	if _, err := message.DecodeRecord(raw, &stored); err != nil {
		return fmt.Errorf("put %s into queue %s: %w", m.ID, q.d.name, err)
	}
	q.d.items = append(q.d.items, &queued{raw: raw, subject: stored.Subject, expires: stored.Expires})
	q.d.changed.ring()
	return nil
}

func (q *queue) Waiting(ctx context.Context) (uint64, error) {
	if err := q.b.enter(ctx); err != nil {
		return 0, fmt.Errorf("waiting in queue %s: %w", q.d.name, err)
	}
	defer q.b.e.mu.Unlock()
	q.d.expire(q.b.e.now())
	return uint64(len(q.d.items)), nil
}

// expire lets go what has lost its worth, and takes back what was not answered in time.
func (d *queueData) expire(now time.Time) {
	d.items = slices.DeleteFunc(d.items, func(it *queued) bool {
		late := it.by != nil && !now.Before(it.due)
		gone := !it.expires.IsZero() && !now.Before(it.expires)
		if it.by != nil && (late || gone) {
			it.by.unanswered--
			it.by = nil
		}
		return gone
	})
}

// remove takes a message out; it may have gone already.
func (d *queueData) remove(it *queued) {
	if it.by != nil {
		it.by.unanswered--
		it.by = nil
	}
	if i := slices.Index(d.items, it); i >= 0 {
		d.items = slices.Delete(d.items, i, i+1)
	}
	d.changed.ring()
}

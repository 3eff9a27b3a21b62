package bustest

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

func queueing() []promise {
	return []promise{
		{"a queued message is given until it is acknowledged", Features{}, putAndAck},
		{"an unanswered message comes again after the wait", Features{}, ackWait},
		{"working puts the end of the wait off", Features{}, working},
		{"a retried message comes again after its delay", Features{}, retryDelay},
		{"a dropped message does not come again", Features{}, drops},
		{"a message goes by itself when it expires", Features{}, expires},
		{"a second put of an id is the same as the first", Features{}, deduped},
		{"consumers of one name share the messages", Features{}, shared},
		{"consumers of different patterns get their own", Features{}, patterns},
		{"no more than the limit is unanswered", Features{}, inFlight},
		{"a queue outlives a restart", Features{Reopen: true}, queueRestarts},
		{"a queue's door is shut when space is low", Features{SetSpace: true}, queueDoor},
		{"closing ends a waiting consumer", Features{}, consumerCloses},
	}
}

func (s *scene) queue() bus.Queue {
	s.Helper()
	q, err := s.Bus.Queue(s.ctx, "suite")
	s.must(err)
	return q
}

func (s *scene) consumer(q bus.Queue, o bus.ConsumerOptions) bus.Consumer {
	s.Helper()
	if o.Name == "" {
		o.Name = "consumer"
	}
	if o.Pattern == "" {
		o.Pattern = "device.>"
	}
	c, err := q.Consumer(s.ctx, o)
	s.must(err)
	s.Cleanup(c.Close)
	return c
}

// put puts messages of a device and gives them.
func (s *scene) put(q bus.Queue, device string, n int) (list []*message.Message) {
	s.Helper()
	for range n {
		m := s.message(device)
		s.must(q.Put(s.ctx, m, false))
		list = append(list, m)
	}
	return list
}

// take takes the next delivery and fails where it is not this message at this attempt.
func (s *scene) take(c bus.Consumer, m *message.Message, attempt int) bus.Delivery {
	s.Helper()
	d, err := c.Next(s.ctx)
	s.must(err)
	if d.Message().ID != m.ID || d.Attempt() != attempt {
		s.Fatalf("took message %s at attempt %d, want %s at %d", d.Message().ID, d.Attempt(), m.ID, attempt)
	}
	return d
}

// nothing fails where a delivery comes within a moment.
func (s *scene) nothing(c bus.Consumer, why string) {
	s.Helper()
	brief, cancel := s.brief()
	defer cancel()
	if d, err := c.Next(brief); !errors.Is(err, context.DeadlineExceeded) {
		s.Fatalf("%s: got %+v, %v", why, d, err)
	}
}

func (s *scene) waiting(q bus.Queue, want uint64) {
	s.Helper()
	if n, err := q.Waiting(s.ctx); err != nil || n != want {
		s.Fatalf("%d messages wait (%v), want %d", n, err, want)
	}
}

func putAndAck(s *scene) {
	q := s.queue()
	m := s.put(q, "d", 2)
	s.waiting(q, 2)
	c := s.consumer(q, bus.ConsumerOptions{})
	d := s.take(c, m[0], 1)
	if !reflect.DeepEqual(d.Message(), m[0]) {
		s.Errorf("took %+v, want %+v", d.Message(), m[0])
	}
	s.waiting(q, 2)
	s.must(d.Ack(s.ctx))
	s.must(s.take(c, m[1], 1).Ack(s.ctx))
	s.nothing(c, "all is acknowledged")
	s.waiting(q, 0)
	// A consumer that waits is woken.
	got := make(chan bus.Delivery, 1)
	go func() {
		d, err := c.Next(s.ctx)
		if err != nil {
			s.Error(err)
		}
		got <- d
	}()
	m = s.put(q, "d", 1)
	if d := <-got; d == nil || d.Message().ID != m[0].ID {
		s.Errorf("woke with %+v", d)
	}
}

func ackWait(s *scene) {
	const wait = time.Second
	q := s.queue()
	m := s.put(q, "d", 1)
	c := s.consumer(q, bus.ConsumerOptions{AckWait: wait})
	s.take(c, m[0], 1)
	began := time.Now()
	s.nothing(c, "before the wait is over")
	d := s.take(c, m[0], 2)
	if took := time.Since(began); took < wait*9/10 {
		s.Errorf("it came again after %s, want %s", took, wait)
	}
	s.must(d.Ack(s.ctx))
	s.pass(wait * 3 / 2)
	s.nothing(c, "it is acknowledged")
}

func working(s *scene) {
	q := s.queue()
	m := s.put(q, "d", 1)
	c := s.consumer(q, bus.ConsumerOptions{AckWait: 2 * time.Second})
	d := s.take(c, m[0], 1)
	s.pass(1500 * time.Millisecond)
	s.must(d.Working(s.ctx))
	s.pass(time.Second)
	s.nothing(c, "the wait was put off")
	s.take(c, m[0], 2)
}

func retryDelay(s *scene) {
	const delay = time.Second
	q := s.queue()
	m := s.put(q, "d", 2)
	c := s.consumer(q, bus.ConsumerOptions{})
	d := s.take(c, m[0], 1)
	began := time.Now()
	s.must(d.Retry(s.ctx, delay))
	s.must(s.take(c, m[1], 1).Ack(s.ctx)) // others do not wait for it
	s.must(s.take(c, m[0], 2).Ack(s.ctx))
	if took := time.Since(began); took < delay*9/10 {
		s.Errorf("it came again after %s, want %s", took, delay)
	}
}

func drops(s *scene) {
	q := s.queue()
	m := s.put(q, "d", 1)
	c := s.consumer(q, bus.ConsumerOptions{AckWait: time.Second})
	s.must(s.take(c, m[0], 1).Drop(s.ctx))
	s.pass(1500 * time.Millisecond)
	s.nothing(c, "it was dropped")
	s.waiting(q, 0)
}

func expires(s *scene) {
	q := s.queue()
	m := s.message("d")
	m.Expires = time.Now().Add(2 * time.Second)
	s.must(q.Put(s.ctx, m, false))
	stays := s.put(q, "d", 1)
	s.waiting(q, 2)
	s.pass(4 * time.Second)
	s.waiting(q, 1)
	s.take(s.consumer(q, bus.ConsumerOptions{}), stays[0], 1)
}

func deduped(s *scene) {
	q := s.queue()
	m := s.put(q, "d", 1)
	s.must(q.Put(s.ctx, m[0], false))
	s.waiting(q, 1)
	c := s.consumer(q, bus.ConsumerOptions{})
	s.must(s.take(c, m[0], 1).Ack(s.ctx))
	s.must(q.Put(s.ctx, m[0], false))
	s.nothing(c, "the same id again")
}

func shared(s *scene) {
	const n = 40
	q := s.queue()
	m := s.put(q, "d", n)
	ctx, done := context.WithCancel(s.ctx)
	defer done()
	took := make(chan message.ID, 2*n)
	var both sync.WaitGroup
	for range 2 {
		c := s.consumer(q, bus.ConsumerOptions{})
		both.Go(func() {
			for {
				d, err := c.Next(ctx)
				if err != nil {
					return
				}
				if err := d.Ack(s.ctx); err != nil {
					s.Error(err)
				}
				took <- d.Message().ID
			}
		})
	}
	seen := map[message.ID]int{}
	for range n {
		select {
		case id := <-took:
			seen[id]++
		case <-s.ctx.Done():
			s.Fatalf("%d of %d messages came", len(seen), n)
		}
	}
	select {
	case id := <-took:
		s.Errorf("message %s came twice", id)
	case <-time.After(moment):
	}
	done()
	both.Wait()
	for _, one := range m {
		if seen[one.ID] != 1 {
			s.Errorf("message %s came %d times", one.ID, seen[one.ID])
		}
	}
}

func patterns(s *scene) {
	q := s.queue()
	a := s.consumer(q, bus.ConsumerOptions{Name: "a", Pattern: "device.a.>"})
	b := s.consumer(q, bus.ConsumerOptions{Name: "b", Pattern: "device.b.>"})
	forB := s.put(q, "b", 1)
	forA := s.put(q, "a", 1)
	s.put(q, "nobody", 1)
	s.must(s.take(a, forA[0], 1).Ack(s.ctx))
	s.must(s.take(b, forB[0], 1).Ack(s.ctx))
	s.nothing(a, "nothing is for a")
	s.nothing(b, "nothing is for b")
	s.waiting(q, 1)
}

func inFlight(s *scene) {
	q := s.queue()
	m := s.put(q, "d", 3)
	c := s.consumer(q, bus.ConsumerOptions{InFlight: 2})
	first := s.take(c, m[0], 1)
	s.take(c, m[1], 1)
	s.nothing(c, "two are unanswered")
	s.must(first.Ack(s.ctx))
	s.take(c, m[2], 1)
}

func queueRestarts(s *scene) {
	m := s.put(s.queue(), "d", 2)
	s.must(s.take(s.consumer(s.queue(), bus.ConsumerOptions{AckWait: time.Second}), m[0], 1).Ack(s.ctx))
	s.Bus = s.Reopen()
	q := s.queue()
	c := s.consumer(q, bus.ConsumerOptions{AckWait: time.Second})
	// The acknowledgement may have been forgotten; the message that was not acknowledged must not be.
	for {
		d, err := c.Next(s.ctx)
		s.must(err)
		s.must(d.Ack(s.ctx))
		if d.Message().ID == m[1].ID {
			return
		}
	}
}

func queueDoor(s *scene) {
	q := s.queue()
	s.SetSpace(bus.Space{Free: 10, Total: 100, Low: 20, Shut: true})
	s.refused(q.Put(s.ctx, s.message("d"), true), message.StorageLow, "at the door")
	s.put(q, "d", 1)
	s.SetSpace(bus.Space{Free: 90, Total: 100, Low: 20})
	s.must(q.Put(s.ctx, s.message("d"), true))
	s.waiting(q, 2)
}

func consumerCloses(s *scene) {
	c := s.consumer(s.queue(), bus.ConsumerOptions{})
	got := make(chan error, 1)
	go func() {
		_, err := c.Next(s.ctx)
		got <- err
	}()
	c.Close()
	s.is(<-got, bus.ErrClosed, "a consumer that waits")
}

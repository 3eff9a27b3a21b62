package nats

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// queue is a work queue on JetStream: a message goes when it is acknowledged, or when it expires.
type queue struct {
	b    *Bus
	name string
}

const (
	dedupeWindow    = 2 * time.Minute
	ackWaitDefault  = 30 * time.Second
	inFlightDefault = 256
	consumerAgain   = 200 * time.Millisecond
	subjectMax      = 2048 // bytes; a server closes the connection beyond 4096 for the whole line
)

// Queue opens a queue.
func (b *Bus) Queue(ctx context.Context, name string) (bus.Queue, error) {
	b.mu.Lock()
	q := b.queues[name]
	b.mu.Unlock()
	if q != nil {
		return q, nil
	}
	if !word(name) {
		return nil, fmt.Errorf("open queue %q: want a name of letters, digits, - and _", name)
	}
	q = &queue{b, name}
	err := b.patiently(ctx, openPatience, func(ctx context.Context) error {
		_, err := b.js().CreateOrUpdateStream(ctx, jetstream.StreamConfig{
			Name: q.stream(), Subjects: []string{q.prefix() + ">"}, Storage: jetstream.FileStorage,
			Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew, Replicas: b.o.Replicas,
			Duplicates: dedupeWindow, AllowMsgTTL: true, MaxMsgSize: -1, MaxMsgs: -1, MaxBytes: -1,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open queue %s: %w", name, b.closed(err))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if other := b.queues[name]; other != nil {
		return other, nil
	}
	b.queues[name] = q
	return q, nil
}

func (q *queue) stream() string { return "NARU_queue_" + q.name }
func (q *queue) prefix() string { return "naru.queue." + q.name + "." }

// Name is the queue's name.
func (q *queue) Name() string { return q.name }

// Put stores a message.
func (q *queue) Put(ctx context.Context, m *message.Message, door bool) error {
	if door {
		if err := q.b.doorShut(); err != nil {
			return err
		}
	}
	if _, err := q.b.sizeOf(m); err != nil {
		return err
	}
	if err := m.Subject.Valid(); err != nil {
		return message.Reject(message.TopicInvalid, err)
	}
	if len(m.Subject) > subjectMax {
		return message.Rejectf(message.TopicInvalid, "a subject of %d bytes; a queue takes up to %d", len(m.Subject), subjectMax)
	}
	out := natsgo.NewMsg(q.prefix() + string(m.Subject))
	out.Data = message.AppendRecord(nil, m)
	out.Header["Nats-Msg-Id"] = []string{m.ID.String()}
	err := q.b.patiently(ctx, patienceDefault, func(ctx context.Context) error {
		if !m.Expires.IsZero() {
			left := m.Expires.Sub(q.b.now())
			if left <= 0 {
				return message.Rejectf(message.Expired, "%s expired at %s", m.Subject, m.Expires.Format(time.RFC3339))
			}
			out.Header["Nats-TTL"] = []string{strconv.Itoa(int((left+time.Second-1)/time.Second)) + "s"} // whole seconds, none less
		}
		ack, err := q.b.ask(ctx, out)
		if err != nil {
			return err
		}
		_, err = parseAck(ack.Data)
		return err
	})
	switch {
	case err == nil, final(err):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("put %s into queue %s: %w", m.ID, q.name, err)
	}
	return message.Rejectf(message.BusUnavailable, "put %s into queue %s: %w", m.ID, q.name, err)
}

// Waiting counts what is in the queue.
func (q *queue) Waiting(ctx context.Context) (uint64, error) {
	s, err := q.b.js().Stream(ctx, q.stream())
	if err != nil {
		return 0, fmt.Errorf("queue %s: %w", q.name, q.b.closed(err))
	}
	return s.CachedInfo().State.Msgs, nil
}

// Consumer opens a consumer.
func (q *queue) Consumer(ctx context.Context, o bus.ConsumerOptions) (bus.Consumer, error) {
	o.AckWait, o.InFlight = cmp.Or(o.AckWait, ackWaitDefault), cmp.Or(o.InFlight, inFlightDefault)
	if err := o.Pattern.Valid(); err != nil || o.Name == "" {
		return nil, fmt.Errorf("consumer %q of queue %s: want a name and a valid pattern: %w", o.Name, q.name, err)
	}
	c := &consumer{q: q, o: o}
	c.ctx, c.close = context.WithCancel(q.b.ctx)
	if err := q.b.patiently(ctx, openPatience, c.open); err != nil {
		c.close()
		return nil, fmt.Errorf("consumer %s of queue %s: %w", o.Name, q.name, q.b.closed(err))
	}
	q.b.group.Go(func() { <-c.ctx.Done(); c.giveBack() })
	return c, nil
}

// consumer pulls one message at a time, and only when somebody wants it: what lay ready here would use up its AckWait.
type consumer struct {
	q     *queue
	o     bus.ConsumerOptions
	ctx   context.Context
	close context.CancelFunc

	mu sync.Mutex
	it jetstream.MessagesContext
}

func (c *consumer) open(ctx context.Context) error {
	made, err := c.q.b.js().CreateOrUpdateConsumer(ctx, c.q.stream(), jetstream.ConsumerConfig{
		Durable: durable(c.o.Name), AckPolicy: jetstream.AckExplicitPolicy, AckWait: c.o.AckWait, MaxDeliver: -1,
		MaxAckPending: c.o.InFlight, FilterSubject: c.q.prefix() + string(c.o.Pattern),
	})
	if err != nil {
		return err
	}
	it, err := made.Messages(jetstream.PullMaxMessages(1))
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.it = it
	return nil
}

// durable is a name that JetStream takes, one for each of ours.
func durable(name string) string {
	if word(name) {
		return name
	}
	return "x" + hex.EncodeToString([]byte(name))
}

func (c *consumer) iterator() jetstream.MessagesContext {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.it
}

// Next waits for a delivery, and for an engine that is away. What cannot be read is dropped and said: it was put by
// something that is not naru.
func (c *consumer) Next(ctx context.Context) (bus.Delivery, error) {
	for {
		m, err := c.iterator().Next(jetstream.NextContext(ctx))
		switch {
		case c.ctx.Err() != nil:
			if err == nil {
				_ = m.Nak() // it comes again anyway
			}
			return nil, bus.ErrClosed
		case ctx.Err() != nil && err != nil:
			return nil, ctx.Err()
		case err != nil:
			c.again(ctx, err)
			continue
		}
		d := &delivery{q: c.q, m: m}
		if _, err := message.DecodeRecord(m.Data(), &d.message); err != nil {
			c.q.b.log.Error("a queued message cannot be read and is dropped", "queue", c.q.name, "subject", m.Subject(), "error", err)
			_ = m.Term() // comes again if this is lost, and is dropped again
			continue
		}
		return d, nil
	}
}

// again opens the consumer anew after a fault.
func (c *consumer) again(ctx context.Context, why error) {
	c.q.b.log.Debug("open the consumer again", "queue", c.q.name, "consumer", c.o.Name, "error", why)
	select {
	case <-time.After(jitter(consumerAgain)):
	case <-ctx.Done():
		return
	case <-c.ctx.Done():
		return
	}
	c.iterator().Stop()
	if err := c.open(ctx); err != nil {
		c.q.b.log.Debug("open the consumer again", "queue", c.q.name, "consumer", c.o.Name, "error", err)
	}
}

// Close ends a waiting Next.
func (c *consumer) Close() { c.close() }

// giveBack returns what came and was not taken, so that nobody waits for AckWait.
func (c *consumer) giveBack() {
	it := c.iterator()
	it.Drain()
	for {
		m, err := it.Next(jetstream.NextMaxWait(time.Second))
		if err != nil {
			it.Stop()
			return
		}
		_ = m.Nak() // it comes again anyway
	}
}

type delivery struct {
	q       *queue
	m       jetstream.Msg
	message message.Message
}

// Message is what was put.
func (d *delivery) Message() *message.Message { return &d.message }

// Attempt counts from 1.
func (d *delivery) Attempt() int {
	meta, err := d.m.Metadata()
	if err != nil {
		return 1
	}
	return int(meta.NumDelivered)
}

// Ack ends the message.
func (d *delivery) Ack(ctx context.Context) error { return d.wrap("acknowledge", d.m.DoubleAck(ctx)) }

// Retry has the message come again.
func (d *delivery) Retry(_ context.Context, after time.Duration) error {
	return d.wrap("retry", d.m.NakWithDelay(after))
}

// Drop gives the message up.
func (d *delivery) Drop(context.Context) error { return d.wrap("drop", d.m.Term()) }

// Working puts the end of AckWait off.
func (d *delivery) Working(context.Context) error { return d.wrap("put off", d.m.InProgress()) }

func (d *delivery) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s message %s of queue %s: %w", what, d.message.ID, d.q.name, d.q.b.closed(err))
}

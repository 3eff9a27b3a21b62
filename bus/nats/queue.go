package nats

import (
	"context"
	"errors"
	"fmt"
	"strings"
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

const dedupeWindow = 2 * time.Minute

// Queue opens a queue.
func (b *Bus) Queue(ctx context.Context, name string) (bus.Queue, error) {
	b.mu.Lock()
	q := b.queues[name]
	b.mu.Unlock()
	if q != nil {
		return q, nil
	}
	q = &queue{b, name}
	err := b.patiently(ctx, 30*time.Second, func(ctx context.Context) error {
		_, err := b.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
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
	b.queues[name] = q
	return q, nil
}

func (q *queue) stream() string { return "NARU_queue_" + q.name }
func (q *queue) prefix() string { return "naru.queue." + q.name + "." }
func (q *queue) Name() string   { return q.name }

// Put stores a message.
func (q *queue) Put(ctx context.Context, m *message.Message, door bool) error {
	if s := q.b.space.Load(); door && s.Shut {
		return message.Rejectf(message.StorageLow, "%d MiB free; the doors are shut below %d MiB", s.Free>>20, s.Low>>20)
	}
	data := message.AppendRecord(nil, m)
	if limit := q.b.MaxMessage(); len(data) > limit {
		return message.Rejectf(message.MessageTooLarge, "%s has %d bytes; the limit is %d", m.Subject, len(data), limit)
	}
	out := natsgo.NewMsg(q.prefix() + string(m.Subject))
	out.Data = data
	opts := []jetstream.PublishOpt{jetstream.WithMsgID(m.ID.String())}
	if !m.Expires.IsZero() {
		left := m.Expires.Sub(q.b.now())
		if left <= 0 {
			return message.Rejectf(message.Expired, "%s expired at %s", m.Subject, m.Expires.Format(time.RFC3339))
		}
		opts = append(opts, jetstream.WithMsgTTL(max(left.Round(time.Second), time.Second)))
	}
	err := q.b.patiently(ctx, patienceDefault, func(ctx context.Context) error {
		_, err := q.b.js.PublishMsg(ctx, out, opts...)
		return err
	})
	if err != nil {
		return message.Reject(message.BusUnavailable, fmt.Errorf("put %s: %w", m.Subject, q.b.closed(err)))
	}
	return nil
}

// Waiting counts what is in the queue.
func (q *queue) Waiting(ctx context.Context) (uint64, error) {
	s, err := q.b.js.Stream(ctx, q.stream())
	if err != nil {
		return 0, fmt.Errorf("queue %s: %w", q.name, q.b.closed(err))
	}
	return s.CachedInfo().State.Msgs, nil
}

// Consumer opens a consumer.
func (q *queue) Consumer(ctx context.Context, o bus.ConsumerOptions) (bus.Consumer, error) {
	if o.AckWait == 0 {
		o.AckWait = 30 * time.Second
	}
	if o.InFlight == 0 {
		o.InFlight = 256
	}
	var c jetstream.Consumer
	err := q.b.patiently(ctx, 30*time.Second, func(ctx context.Context) (err error) {
		c, err = q.b.js.CreateOrUpdateConsumer(ctx, q.stream(), jetstream.ConsumerConfig{
			Durable: strings.NewReplacer(".", "-", "*", "any", ">", "all", " ", "-", "/", "-").Replace(o.Name), AckPolicy: jetstream.AckExplicitPolicy,
			AckWait: o.AckWait, MaxDeliver: -1, MaxAckPending: o.InFlight, FilterSubject: q.prefix() + string(o.Pattern),
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("consumer %s of queue %s: %w", o.Name, q.name, q.b.closed(err))
	}
	it, err := c.Messages(jetstream.PullMaxMessages(o.InFlight))
	if err != nil {
		return nil, fmt.Errorf("consumer %s of queue %s: %w", o.Name, q.name, q.b.closed(err))
	}
	return &consumer{q, it}, nil
}

type consumer struct {
	q  *queue
	it jetstream.MessagesContext
}

// Next waits for a delivery. What cannot be read is dropped and said: it was put by something that is not naru.
func (c *consumer) Next(ctx context.Context) (bus.Delivery, error) {
	for {
		m, err := c.it.Next(jetstream.NextContext(ctx))
		switch {
		case errors.Is(err, jetstream.ErrMsgIteratorClosed):
			return nil, bus.ErrClosed
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, c.q.b.closed(err)
		}
		d := &delivery{m: m}
		if _, err := message.DecodeRecord(m.Data(), &d.message); err != nil {
			c.q.b.log.Error("a queued message cannot be read and is dropped", "queue", c.q.name, "subject", m.Subject(), "error", err)
			_ = m.Term() // comes again if this is lost, and is dropped again
			continue
		}
		return d, nil
	}
}

// Close ends a waiting Next.
func (c *consumer) Close() { c.it.Stop() }

type delivery struct {
	m       jetstream.Msg
	message message.Message
}

func (d *delivery) Message() *message.Message { return &d.message }

func (d *delivery) Attempt() int {
	meta, err := d.m.Metadata()
	if err != nil {
		return 1
	}
	return int(meta.NumDelivered)
}

func (d *delivery) Ack(ctx context.Context) error { return d.m.DoubleAck(ctx) }
func (d *delivery) Retry(_ context.Context, after time.Duration) error {
	return d.m.NakWithDelay(after)
}
func (d *delivery) Drop(context.Context) error    { return d.m.Term() }
func (d *delivery) Working(context.Context) error { return d.m.InProgress() }

package component

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// parking holds the messages that wait to be tried again, in order per key, as the store has them.
type parking struct {
	rows map[parkKey][]*parked
	sums map[place]Sum
	n    int
}

// parkKey is what order is kept by: a key within a log, also where a new generation has put it into another partition.
type parkKey struct{ log, key string }

// parked is a message that waits.
type parked struct {
	m        *message.Message
	at       place
	position bus.Position
	attempts int
	first    time.Time
	next     time.Time
	reason   message.Reason
	detail   string
}

// parkedHead is what stands before the record in the store.
type parkedHead struct {
	Position bus.Position   `json:"position"`
	Attempts int            `json:"attempts"`
	First    time.Time      `json:"first"`
	Next     time.Time      `json:"next"`
	Reason   message.Reason `json:"reason"`
	Detail   string         `json:"detail"`
}

func (p *parking) blocks(log, key string) bool { return len(p.rows[parkKey{log, key}]) > 0 }

func (p *parking) sum(at place) Sum { return p.sums[at] }

// push puts a message behind those of its key.
func (p *parking) push(x *parked) {
	k := parkKey{x.at.log, x.m.Key()}
	p.rows[k] = append(p.rows[k], x)
	s := p.sums[x.at]
	s.Add(x.m.ID)
	p.sums[x.at] = s
	p.n++
}

// pop takes the first message of a key out.
func (p *parking) pop(k parkKey) {
	x := p.rows[k][0]
	if row := p.rows[k][1:]; len(row) > 0 {
		p.rows[k] = row
	} else {
		delete(p.rows, k)
	}
	s := p.sums[x.at]
	s.Remove(x.m.ID)
	p.sums[x.at] = s
	p.n--
}

// earlier orders positions of one log.
func earlier(a, b bus.Position) int {
	return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Partition, b.Partition),
		cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.Index, b.Index))
}

// exceptions shows the oldest.
func (p *parking) exceptions(at place) (list []Exception) {
	var all []*parked
	for _, row := range p.rows {
		for _, x := range row {
			if x.at == at {
				all = append(all, x)
			}
		}
	}
	slices.SortFunc(all, func(a, b *parked) int { return earlier(a.position, b.position) })
	for _, x := range all[:min(len(all), attemptsShown)] {
		list = append(list, Exception{ID: x.m.ID, Trace: x.m.Trace.ID, Device: x.m.Device, Subject: x.m.Subject, Position: x.position,
			Attempts: x.attempts, Since: x.first, Next: x.next, Reason: x.reason, Detail: x.detail})
	}
	return list
}

func parkedKey(at place, p bus.Position) []byte {
	k := at.key(kindParked)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(k, p.Sequence), p.Index)
}

func (w *worker) keepParked(x *parked) error {
	head, err := json.Marshal(parkedHead{x.position, x.attempts, x.first, x.next, x.reason, x.detail})
	if err != nil {
		return err
	}
	v := binary.BigEndian.AppendUint32(nil, uint32(len(head)))
	return w.store.set(parkedKey(x.at, x.position), message.AppendRecord(append(v, head...), x.m))
}

func (w *worker) loadParked() error {
	w.parked = parking{rows: map[parkKey][]*parked{}, sums: map[place]Sum{}}
	var bad error
	err := walk(w.store.db, []byte{kindParked}, []byte{kindParked + 1}, false, func(k, v []byte) bool {
		x := &parked{m: new(message.Message)}
		var h parkedHead
		v = slices.Clone(v)
		end := slices.Index(k, 0)
		if len(v) < 4 || end < 0 || len(v) < 4+int(binary.BigEndian.Uint32(v)) {
			bad = fmt.Errorf("a parked message in the store is damaged")
			return false
		}
		n := 4 + int(binary.BigEndian.Uint32(v))
		if bad = json.Unmarshal(v[4:n], &h); bad != nil {
			return false
		}
		if _, bad = message.DecodeRecord(v[n:], x.m); bad != nil {
			return false
		}
		x.at = place{string(k[1:end]), h.Position.Generation, h.Position.Partition}
		x.position, x.attempts, x.first, x.next, x.reason, x.detail = h.Position, h.Attempts, h.First, h.Next, h.Reason, h.Detail
		w.parked.push(x) // keys sort by place, so rows are in order
		return true
	})
	return errors.Join(err, bad)
}

// park puts a message aside, durably with the next commit.
func (w *worker) park(at place, p bus.Position, m *message.Message, attempts int, reason message.Reason, detail string) error {
	now := w.env.Now()
	x := &parked{m: m.Clone(), at: at, position: p, attempts: attempts, first: now, next: now, reason: reason, detail: cut(detail)}
	if attempts > 0 {
		x.next = now.Add(w.retry.delay(attempts))
		w.env.Log.Warn("parked, to be tried again", "id", m.ID, "trace", m.Trace.ID, "subject", m.Subject, "reason", reason, "error", detail)
		w.metrics.retried(reason)
	}
	w.parked.push(x)
	w.dirty[at] = true
	return w.keepParked(x)
}

// untilDue is how long until a parked message is to be tried.
func (w *worker) untilDue() time.Duration {
	d := time.Hour
	now := w.env.Now()
	for _, row := range w.parked.rows {
		d = min(d, max(row[0].next.Sub(now), 0))
	}
	return d
}

// retryDue tries the heads that are due, and after each success what waited behind it.
func (w *worker) retryDue(ctx context.Context) error {
	var due []parkKey
	now := w.env.Now()
	for k, row := range w.parked.rows {
		if !row[0].next.After(now) {
			due = append(due, k)
		}
	}
	slices.SortFunc(due, func(a, b parkKey) int {
		return cmp.Or(cmp.Compare(a.log, b.log), earlier(w.parked.rows[a][0].position, w.parked.rows[b][0].position))
	})
	for _, k := range due {
		for len(w.parked.rows[k]) > 0 {
			select {
			case <-w.stopping:
				return nil // what was settled is committed, and the rest is parked still
			default:
			}
			settled, err := w.again(ctx, k, w.parked.rows[k][0])
			if err != nil {
				return err
			}
			if !settled {
				break
			}
		}
	}
	return nil
}

// again tries a parked message; settled says that it has left.
func (w *worker) again(ctx context.Context, k parkKey, x *parked) (settled bool, err error) {
	at := x.at
	c := w.points[at]
	w.dirty[at] = true
	result := w.call(ctx, x.m)
	if ctx.Err() != nil && result != nil && !errors.Is(result, ErrNotMatched) {
		return false, ctx.Err()
	}
	x.attempts++
	var reject *message.Rejection
	isReject := errors.As(result, &reject) && reject.Reason != message.HandlerPanic
	switch {
	case result == nil, errors.Is(result, ErrNotMatched):
		outcome := Handled
		if result != nil {
			outcome = NotMatched
		}
		w.count(c, outcome, x.m.ID)
		w.metrics.messages(at.log, outcome, 1)
	case isReject:
		if err := w.die(c, at, x.position, x.m, x.attempts, reject.Reason, result, x.first); err != nil {
			return false, err
		}
	case x.attempts >= w.retry.Attempts:
		reason := message.RetriesExhausted
		if reject != nil {
			reason = reject.Reason // a panic
		}
		if err := w.die(c, at, x.position, x.m, x.attempts, reason, result, x.first); err != nil {
			return false, err
		}
	default:
		x.reason, x.detail = message.ReasonOf(result, message.HandlerError), cut(result.Error())
		x.next = w.env.Now().Add(w.retry.delay(x.attempts))
		w.metrics.retried(x.reason)
		return false, w.keepParked(x)
	}
	w.parked.pop(k)
	return true, w.store.delete(parkedKey(x.at, x.position))
}

// take decides the fate of a queued message. Its outcome is recorded under its id in the commit that carries its
// effects, and only then is the queue answered; so a redelivery does nothing.
func (w *worker) take(ctx context.Context, d bus.Delivery) error {
	m := d.Message()
	w.pendingMessages++
	seen, err := get(w.store.batch, outcomeKey(m.ID))
	if err != nil {
		return err
	}
	answer := func(f func(context.Context) error) {
		w.after = append(w.after, func(ctx context.Context) {
			if err := f(ctx); err != nil {
				w.env.Log.Debug("answer the queue; the message comes again and is then only answered", "id", m.ID, "error", err)
			}
		})
	}
	if seen != nil {
		answer(d.Ack)
		return nil
	}
	w.tx.reset(m)
	var result error
	if m.Expired(w.env.Now()) {
		result = message.Rejectf(message.Expired, "it lost its worth at %s, attempt %d", m.Expires.UTC().Format(time.RFC3339Nano), d.Attempt())
	} else {
		began := time.Now()
		result = w.guard(func() error { return w.part.Take(ctx, w.tx, m, d.Attempt()) })
		w.metrics.handled(time.Since(began))
	}
	var reject *message.Rejection
	isReject := errors.As(result, &reject) && reject.Reason != message.HandlerPanic
	finish := d.Ack
	switch {
	case result == nil, errors.Is(result, ErrNotMatched):
		if err := w.tx.apply(); err != nil {
			return err
		}
		w.metrics.messages(CommandQueue, map[bool]string{true: Handled, false: NotMatched}[result == nil], 1)
	case ctx.Err() != nil:
		return ctx.Err()
	case isReject, d.Attempt() >= w.retry.Attempts:
		reason := message.ReasonOf(result, message.RetriesExhausted)
		if err := w.die(nil, place{log: "queue"}, bus.Position{}, m, d.Attempt(), reason, result, m.Recorded()); err != nil {
			return err
		}
		w.metrics.messages(CommandQueue, Dead, 1)
		finish = d.Drop
	default:
		w.metrics.retried(message.ReasonOf(result, message.HandlerError))
		delay := w.retry.delay(d.Attempt())
		answer(func(ctx context.Context) error { return d.Retry(ctx, delay) })
		return nil
	}
	answer(finish)
	return w.store.set(outcomeKey(m.ID), beAppend(uint64(w.env.Now().UnixNano())))
}

// sweep forgets the outcomes of queued messages that cannot come again any more.
func (w *worker) sweep() error {
	w.swept = w.env.Now()
	before := uint64(w.env.Now().Add(-outcomeKept).UnixNano())
	var old [][]byte
	err := walk(w.store.db, []byte{kindOutcome}, []byte{kindOutcome + 1}, false, func(k, v []byte) bool {
		if len(v) == 8 && beUint64(v) < before {
			old = append(old, slices.Clone(k))
		}
		return true
	})
	for _, k := range old {
		err = errors.Join(err, w.store.delete(k))
	}
	return err
}

func beAppend(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
func beUint64(v []byte) uint64 { return binary.BigEndian.Uint64(v) }

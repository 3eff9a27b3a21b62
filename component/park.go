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
	n    int
}

type parkKey struct {
	at  place
	key string
}

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

func (p *parking) blocks(at place, key string) bool { return len(p.rows[parkKey{at, key}]) > 0 }

func (p *parking) sum(at place) (s Sum) {
	for k, row := range p.rows {
		if k.at == at {
			for _, x := range row {
				s.Add(x.m.ID)
			}
		}
	}
	return s
}

// exceptions shows the oldest.
func (p *parking) exceptions(at place) (list []Exception) {
	for k, row := range p.rows {
		if k.at != at {
			continue
		}
		for _, x := range row {
			list = append(list, Exception{ID: x.m.ID, Trace: x.m.Trace.ID, Device: x.m.Device, Subject: x.m.Subject, Position: x.position,
				Attempts: x.attempts, Since: x.first, Next: x.next, Reason: x.reason, Detail: x.detail})
		}
	}
	slices.SortFunc(list, func(a, b Exception) int {
		return cmp.Or(cmp.Compare(a.Position.Sequence, b.Position.Sequence), cmp.Compare(a.Position.Index, b.Position.Index))
	})
	return list[:min(len(list), attemptsShown)]
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
	w.parked.rows = map[parkKey][]*parked{}
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
		row := parkKey{x.at, x.m.Key()}
		w.parked.rows[row] = append(w.parked.rows[row], x) // keys sort by place, so rows are in order
		w.parked.n++
		return true
	})
	return errors.Join(err, bad)
}

// park puts a message aside, durably with the next commit. Where too many wait already, the partition stands still
// until there is room.
func (w *worker) park(ctx context.Context, c *Checkpoint, at place, p bus.Position, m *message.Message, attempts int, reason message.Reason, detail string) error {
	for w.parked.n >= w.retry.ParkedMax {
		w.stand(at, fmt.Sprintf("%d messages are parked, the limit; the oldest: %s", w.parked.n, detail))
		if err := w.commit(ctx); err != nil {
			return err
		}
		if err := pause(ctx, w.untilDue()); err != nil {
			return err
		}
		if err := w.retryDue(ctx); err != nil {
			return err
		}
	}
	w.stand(at, "")
	now := w.env.Now()
	x := &parked{m: m.Clone(), at: at, position: p, attempts: attempts, first: now, next: now, reason: reason, detail: cut(detail)}
	if attempts > 0 {
		x.next = now.Add(w.retry.delay(attempts))
		w.env.Log.Warn("parked, to be tried again", "id", m.ID, "trace", m.Trace.ID, "subject", m.Subject, "reason", reason, "error", detail)
		w.metrics.retried(reason)
	}
	row := parkKey{at, x.m.Key()}
	w.parked.rows[row] = append(w.parked.rows[row], x)
	w.parked.n++
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
		x, y := w.parked.rows[a][0], w.parked.rows[b][0]
		return cmp.Or(cmp.Compare(x.position.Sequence, y.position.Sequence), cmp.Compare(x.position.Index, y.position.Index))
	})
	for _, k := range due {
		for len(w.parked.rows[k]) > 0 {
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
	c := w.points[k.at]
	w.dirty[k.at] = true
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
		w.metrics.messages(k.at.log, outcome, 1)
	case isReject:
		if err := w.die(c, k.at, x.position, x.m, x.attempts, reject.Reason, result, x.first); err != nil {
			return false, err
		}
	case x.attempts >= w.retry.Attempts:
		reason := message.RetriesExhausted
		if reject != nil {
			reason = reject.Reason // a panic
		}
		if err := w.die(c, k.at, x.position, x.m, x.attempts, reason, result, x.first); err != nil {
			return false, err
		}
	default:
		x.reason, x.detail = message.ReasonOf(result, message.HandlerError), cut(result.Error())
		x.next = w.env.Now().Add(w.retry.delay(x.attempts))
		w.metrics.retried(x.reason)
		return false, w.keepParked(x)
	}
	row := w.parked.rows[k][1:]
	if len(row) == 0 {
		delete(w.parked.rows, k)
	} else {
		w.parked.rows[k] = row
	}
	w.parked.n--
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
	result := w.guard(func() error { return w.part.Take(ctx, w.tx, m, d.Attempt()) })
	var reject *message.Rejection
	isReject := errors.As(result, &reject) && reject.Reason != message.HandlerPanic
	finish := d.Ack
	switch {
	case result == nil, errors.Is(result, ErrNotMatched):
		if err := w.tx.apply(); err != nil {
			return err
		}
	case ctx.Err() != nil:
		return ctx.Err()
	case isReject, d.Attempt() >= w.retry.Attempts:
		reason := message.ReasonOf(result, message.RetriesExhausted)
		if err := w.die(nil, place{log: "queue"}, bus.Position{}, m, d.Attempt(), reason, result, m.Recorded()); err != nil {
			return err
		}
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

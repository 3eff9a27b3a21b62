package component

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// parking holds the messages that wait to be tried again, in order per key, as the store has them.
type parking struct {
	keyOf func(*parked) parkKey
	rows  map[parkKey][]*parked
	sums  map[place]Sum
	order map[place]*inOrder
	later heads         // the first of their keys, by when they are tried again
	line  func(*parked) // puts the first one of a key where its next try comes from
	n     int
	came  uint64 // how many ever
}

// newParking has the first messages of keys in later.
func newParking() parking {
	return parking{keyOf: keyInLog, rows: map[parkKey][]*parked{}, sums: map[place]Sum{}, order: map[place]*inOrder{},
		later: heads{before: func(a, b *parked) int { return a.next.Compare(b.next) }}}
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
	reason   message.Reason // zero where it was not tried
	detail   string
	letter   letter // that it was taken back from; zero for none
	record   []byte // with State Derived, of one that was taken back: the log may have it no more, or as it was before it was edited

	key     parkKey
	order   uint64    // in which they came, also of a former process, log by log
	written bool      // into the store
	size    int       // bytes of it that are counted as in the mark, with State Derived
	gone    bool      // it is parked no more
	calling time.Time // since when it is called for; zero where it is not
}

// keyInLog keeps order by key within a log.
func keyInLog(x *parked) parkKey { return parkKey{x.at.log, x.m.Key()} }

func (p *parking) blocks(log, key string) bool { return len(p.rows[parkKey{log, key}]) > 0 }

func (p *parking) sum(at place) Sum { return p.sums[at] }

// push puts a message behind those of its key.
func (p *parking) push(x *parked) {
	x.key = p.keyOf(x)
	p.rows[x.key] = append(p.rows[x.key], x)
	s := p.sums[x.at]
	s.Add(x.m.ID)
	p.sums[x.at] = s
	p.n++
	p.came++
	x.order = p.came
	o := p.order[x.at]
	if o == nil {
		o = new(inOrder)
		p.order[x.at] = o
	}
	o.add(x)
	if p.rows[x.key][0] == x {
		p.line(x)
	}
}

// pop takes the first message of a key out.
func (p *parking) pop(k parkKey) {
	x := p.rows[k][0]
	x.gone = true
	if row := p.rows[k][1:]; len(row) > 0 {
		p.rows[k] = row
	} else {
		delete(p.rows, k)
	}
	s := p.sums[x.at]
	s.Remove(x.m.ID)
	p.sums[x.at] = s
	p.order[x.at].left()
	p.n--
}

// oldest is the sequence of the oldest batch with a parked message; zero where nothing is parked.
func (p *parking) oldest() (seq uint64) {
	for _, row := range p.rows {
		for _, x := range row {
			if x.record != nil {
				continue // the mark has it
			}
			if s := x.position.Sequence; seq == 0 || s < seq {
				seq = s
			}
			break
		}
	}
	return seq
}

// earlier orders positions of one log.
func earlier(a, b bus.Position) int {
	return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Partition, b.Partition),
		cmp.Compare(a.Sequence, b.Sequence), cmp.Compare(a.Index, b.Index))
}

// oldestAt are the first that are parked at a place, in order, up to attemptsShown.
func (p *parking) oldestAt(at place) []*parked {
	if o := p.order[at]; o != nil {
		return o.first(attemptsShown)
	}
	return nil
}

// inOrder is what is parked at a place by its position. What is gone stays in it until it is come across, or there is
// much of it: so a look at the first ones costs no more than they do, however many are parked.
type inOrder struct {
	list []*parked
	gone int // of the list
}

func (o *inOrder) add(x *parked) {
	i := len(o.list)
	if i > 0 && earlier(o.list[i-1].position, x.position) > 0 { // taken back
		i, _ = slices.BinarySearchFunc(o.list, x, func(a, b *parked) int { return earlier(a.position, b.position) })
	}
	o.list = slices.Insert(o.list, i, x)
}

// left notes that one of the list is gone.
func (o *inOrder) left() {
	if o.gone++; o.gone > 100+len(o.list)/4 {
		o.list, o.gone = slices.DeleteFunc(o.list, func(x *parked) bool { return x.gone }), 0
	}
}

// first gives up to n, valid until the next call of anything.
func (o *inOrder) first(n int) []*parked {
	end, there := 0, 0
	for ; end < len(o.list) && there < n; end++ {
		if !o.list[end].gone {
			there++
		}
	}
	begin := end
	for i := end - 1; i >= 0; i-- { // those that are there close up to the next one
		if x := o.list[i]; !x.gone {
			begin--
			o.list[begin] = x
		}
	}
	clear(o.list[:begin])
	o.list, o.gone = o.list[begin:], o.gone-begin
	return o.list[:there]
}

// exceptions shows parked messages.
func exceptions(parked []*parked) (list []Exception) {
	for _, x := range parked {
		list = append(list, Exception{ID: x.m.ID, Trace: x.m.Trace.ID, Device: x.m.Device, Subject: x.m.Subject, Position: x.position,
			Attempts: x.attempts, Since: x.first, Next: x.next, Calling: x.calling, Reason: x.reason, Detail: x.detail})
	}
	return list
}

// park puts a message aside, durably with the next commit: to be tried again after a failure, or because it waits behind
// an earlier message of its key, where cause is nil.
func (w *worker) park(at place, p bus.Position, m *message.Message, cause error) error {
	now := w.env.Now()
	x := &parked{m: m.Clone(), at: at, position: p, first: now, next: now, reason: message.HandlerError, detail: "waits behind an earlier message of its key"}
	if cause != nil {
		w.postpone(x, cause)
		w.env.Log.Warn("parked, to be tried again", "id", m.ID, "trace", m.Trace.ID, "subject", m.Subject, "reason", x.reason, "error", cause)
	}
	w.parked.push(x)
	w.dirty[at] = true
	err := w.keep.park(x)
	x.written = true
	return err
}

// postpone notes a failure, and when to try again.
func (w *worker) postpone(x *parked, cause error) {
	wait := time.Duration(0)
	var asked *RetryAfter
	if errors.As(cause, &asked) {
		wait = min(asked.After, retryAfterMost)
	}
	if !uncounted(cause) {
		x.attempts++
	}
	x.reason, x.detail = message.ReasonOf(cause, message.HandlerError), cut(cause.Error())
	x.next = w.env.Now().Add(max(wait, w.retry.delay(x.attempts)))
	w.metrics.retried(x.reason)
}

// hasten has nothing that a former process parked wait for longer than what is parked now may: that one's clock may have been ahead.
func (w *worker) hasten() {
	most := w.retry.Most + w.retry.Most/5
	if w.caller != nil {
		most = max(most, retryAfterMost)
	}
	latest := w.env.Now().Add(most)
	for _, row := range w.parked.rows {
		for _, x := range row {
			if x.next.After(latest) {
				x.next = latest
			}
		}
	}
	heap.Init(&w.parked.later)
}

// untilDue is how long until a parked message is to be tried.
func (w *worker) untilDue() time.Duration {
	if len(w.parked.later.list) == 0 {
		return time.Hour
	}
	return max(w.parked.later.list[0].next.Sub(w.env.Now()), 0)
}

// wait puts the first message of a key where it waits for its time.
func (p *parking) wait(x *parked) { heap.Push(&p.later, x) }

// due takes the next one out of those whose time has come; nil where there is none.
func (p *parking) due(now time.Time) *parked {
	if len(p.later.list) == 0 || p.later.list[0].next.After(now) {
		return nil
	}
	return heap.Pop(&p.later).(*parked)
}

// retryDue tries the heads that are due, and after each success what waited behind it.
func (w *worker) retryDue(ctx context.Context) error {
	if w.caller != nil {
		return nil // they are called for by dispatch
	}
	var due []*parked
	now := w.env.Now()
	for x := w.parked.due(now); x != nil; x = w.parked.due(now) {
		due = append(due, x)
	}
	defer func() {
		for _, x := range due {
			if row := w.parked.rows[x.key]; len(row) > 0 {
				w.parked.line(row[0])
			}
		}
	}()
	slices.SortFunc(due, func(a, b *parked) int {
		return cmp.Or(cmp.Compare(a.at.log, b.at.log), earlier(a.position, b.position))
	})
	for _, x := range due {
		for k := x.key; len(w.parked.rows[k]) > 0; {
			select {
			case <-w.stopping:
				return nil // what was settled is committed, and the rest is parked still
			default:
			}
			settled, err := w.again(ctx, w.parked.rows[k][0])
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
func (w *worker) again(ctx context.Context, x *parked) (settled bool, err error) {
	w.dirty[x.at] = true
	var result error
	if w.part.HandleAll != nil {
		result = w.onceMore(ctx, x)
	} else {
		result = w.invoke(ctx, x.m)
	}
	if ctx.Err() != nil && result != nil && !errors.Is(result, ErrNotMatched) {
		return false, ctx.Err()
	}
	var own *broken
	if errors.As(result, &own) {
		return false, own.err
	}
	return w.fate(ctx, x, result)
}

// fate makes a result the fate of a parked message, which is the first of its key; left says that it is parked no more.
func (w *worker) fate(ctx context.Context, x *parked, result error) (left bool, err error) {
	at := x.at
	c := w.point(at)
	w.dirty[at] = true
	switch {
	case result == nil, errors.Is(result, ErrNotMatched):
		outcome := Handled
		if result != nil {
			outcome = NotMatched
		}
		w.count(c, outcome, x.m.ID)
		w.metrics.messages(at.log, outcome, 1)
		if err := w.tellRetried(ctx, x.letter, x.m, x.m.ID, outcome, ""); err != nil {
			return false, err
		}
	case !retryable(result):
		if err := w.die(ctx, c, at, x.position, x.m, x.attempts+1, message.ReasonOf(result, message.HandlerError), result, x.first, x.letter); err != nil {
			return false, err
		}
	case !uncounted(result) && x.attempts+1 >= w.retry.Attempts:
		reason := message.ReasonOf(result, message.RetriesExhausted) // of a panic its own
		if err := w.die(ctx, c, at, x.position, x.m, x.attempts+1, reason, result, x.first, x.letter); err != nil {
			return false, err
		}
	default:
		w.postpone(x, result)
		if x.written {
			return false, w.keep.park(x)
		}
		return false, nil // the commit writes it
	}
	w.parked.pop(x.key)
	if x.written {
		return true, w.keep.unpark(x)
	}
	return true, nil
}

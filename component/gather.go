// HandleAll: messages of one partition, gathered from its batches, whose fates are decided at once.

package component

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// gatherMax is how many messages are gathered where Spec.GatherMax is zero: what a commit holds.
const gatherMax = commitMessages

// Heard is a message among those that HandleAll is given.
type Heard struct {
	Message *message.Message // not to be changed, nor kept
	// Position is its place in the log, whose id is in it.
	Position bus.Position
	// Again says that it died here, and was given back: it comes alone and out of order, and what is behind it was
	// handled long ago.
	Again bool
}

// gathering is what a partition has at hand.
type gathering struct {
	batches  []bus.Stored
	messages int
	bytes    int
	since    time.Time
}

func (g *gathering) add(s bus.Stored) {
	g.batches = append(g.batches, s)
	g.messages += int(s.Batch.Count)
	g.bytes += len(s.Batch.Bytes())
}

func (g *gathering) last() uint64 { return g.batches[len(g.batches)-1].Position.Sequence }

// gather puts a batch to those of its partition that are handled together.
func (w *worker) gather(ctx context.Context, e event) error {
	g := w.gathered[e.at]
	switch {
	case g == nil:
		g = &gathering{since: time.Now()}
		w.gathered[e.at] = g
	case e.stored.Position.Sequence <= g.last():
		return nil // its reader was opened again
	}
	g.add(e.stored)
	if w.full(g) {
		return w.handGathered(ctx, e.at)
	}
	return nil
}

func (w *worker) full(g *gathering) bool {
	return g.messages >= cmp.Or(w.env.Spec.GatherMax, gatherMax) || g.bytes >= commitBytes
}

// handGathered has what a partition has at hand handled, or tried again later.
func (w *worker) handGathered(ctx context.Context, at place) error {
	g := w.gathered[at]
	if g == nil {
		return nil
	}
	delete(w.gathered, at)
	_, err := w.deal(ctx, event{at: at, group: g.batches}, 0)
	return err
}

// handDue has all handled that was gathered for long enough.
func (w *worker) handDue(ctx context.Context) error {
	for at, g := range w.gathered {
		if time.Since(g.since) >= w.env.Spec.Gather {
			if err := w.handGathered(ctx, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// untilGathered is how long until something was gathered for long enough.
func (w *worker) untilGathered() time.Duration {
	d := sweepEvery
	for _, g := range w.gathered {
		d = min(d, max(w.env.Spec.Gather-time.Since(g.since), 0))
	}
	return d
}

// regroup makes the batches that a held partition begins with one group.
func (w *worker) regroup(queue []event) []event {
	if len(queue) == 0 || queue[0].group != nil || !queue[0].batch() {
		return queue
	}
	g := gathering{}
	for n := 0; n < len(queue) && queue[n].batch() && !w.full(&g); n++ {
		g.add(queue[n].stored)
	}
	return append([]event{{at: queue[0].at, group: g.batches}}, queue[len(g.batches):]...)
}

// batch says that an event is a batch, and nothing else.
func (e *event) batch() bool {
	return e.stored.Position.Sequence > 0 && e.alarm == 0 && e.began == nil && !e.finished && !e.trimmed && e.group == nil
}

// all hands the messages of some batches to HandleAll; done is false where that failed and is to be tried again.
func (w *worker) all(ctx context.Context, e event, attempts int) (done bool, err error) {
	c := w.point(e.at)
	var in []Heard
	var batches []bus.Stored
	var messages [][]message.Message // of each batch, heard or not
	alarm := ""
	rows := map[string]uint64{} // running counts of what is before in this group
	for _, s := range e.group {
		if w.torn[e.at] || s.Position.Sequence <= c.Position.Sequence {
			continue
		}
		if alarm = regrown(c, &s); alarm == "" && s.Err == nil && s.Batch.Header.Running < rows[s.Appender] {
			alarm = fmt.Sprintf("batch %d of log %s counts fewer messages of %s than one before it", s.Position.Sequence, c.Log, s.Appender)
		}
		if alarm != "" {
			break
		}
		var list []message.Message
		if s.Err == nil && w.times(-1) > 0 {
			rows[s.Appender] = s.Batch.Header.Running
			list = make([]message.Message, 0, s.Batch.Count)
			cursor := s.Batch.Cursor()
			for m := (message.Message{}); cursor.Next(&m); m = (message.Message{}) {
				list = append(list, m)
			}
			if err := cursor.Err(); err != nil {
				return false, fmt.Errorf("read batch %d of %s: %w", s.Position.Sequence, e.at.log, err)
			}
			for i := range list {
				if hears(w.env.Spec.Hears, list[i].Subject) {
					p := s.Position
					p.Index = uint32(i)
					in = append(in, Heard{Message: &list[i], Position: p})
				}
			}
		}
		batches, messages = append(batches, s), append(messages, list)
	}
	var fates []error
	if len(in) > 0 {
		if fates, err = w.callAll(ctx, e.at.log, in); err != nil {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			w.failed(e, in[0].Position.Sequence, attempts+1, err)
			return false, nil
		}
		if err := w.store.crash.at("after HandleAll"); err != nil {
			return false, err
		}
		if err := w.keepEffects(ctx, w.tx, nil); err != nil {
			return false, err
		}
	}
	w.stand(e.at, "")
	for i, s := range batches {
		n, err := w.settleBatch(ctx, c, e.at, s, messages[i], in, fates)
		if err != nil {
			return false, err
		}
		in, fates = in[n:], fates[n:]
	}
	if alarm != "" {
		return true, w.tear(e.at, alarm)
	}
	return true, nil
}

// callAll calls the handler.
func (w *worker) callAll(ctx context.Context, log string, in []Heard) (fates []error, err error) {
	w.tx.reset(nil)
	w.tx.mute = true
	defer func() { w.tx.mute = false }()
	began := time.Now()
	err = w.guard(func() (err error) {
		fates, err = w.part.HandleAll(ctx, w.tx, log, in)
		return err
	})
	w.metrics.handled(time.Since(began))
	if err == nil && len(fates) != len(in) {
		err = fmt.Errorf("HandleAll decided %d fates of %d messages", len(fates), len(in))
	}
	return fates, err
}

// settleBatch counts the fates of a batch's messages, and moves the position behind it. in begins with those that were handled,
// n of them, and fates with theirs.
func (w *worker) settleBatch(ctx context.Context, c *Checkpoint, at place, s bus.Stored, list []message.Message, in []Heard, fates []error) (n int, err error) {
	if w.times(-1) == 0 {
		w.passOver(c, at, &s)
		return 0, nil
	}
	if s.Err != nil {
		if err := w.unreadable(at, &s); err != nil {
			return 0, err
		}
	}
	for i := range list {
		m, p := &list[i], s.Position
		p.Index = uint32(i)
		heard := n < len(in) && in[n].Message == m
		for range w.times(i) {
			if !heard {
				w.count(c, NotHeard, m.ID)
				w.metrics.messages(at.log, NotHeard, 1)
			} else if err := w.settleOne(ctx, c, at, p, m, fates[n]); err != nil {
				return n, err
			}
		}
		if heard {
			n++
		}
	}
	w.pass(c, at, &s)
	return n, nil
}

// settleOne makes one of HandleAll's results a fate. There is no trying again: what is no fate is a death.
func (w *worker) settleOne(ctx context.Context, c *Checkpoint, at place, p bus.Position, m *message.Message, fate error) error {
	if retryable(fate) {
		return w.die(ctx, c, at, p, m, 1, message.ReasonOf(fate, message.HandlerError), fate, w.env.Now(), letter{})
	}
	return w.decide(ctx, c, at, p, m, fate)
}

// onceMore calls the handler for a message that was given back.
func (w *worker) onceMore(ctx context.Context, x *parked) error {
	fates, err := w.callAll(ctx, x.at.log, []Heard{{Message: x.m, Position: x.position, Again: true}})
	if err != nil {
		return &RetryAfter{Err: err, Uncounted: true} // none was decided: there was no attempt
	}
	if err := w.keepEffects(ctx, w.tx, nil); err != nil {
		return err
	}
	if retryable(fates[0]) {
		return message.Reject(message.ReasonOf(fates[0], message.HandlerError), fates[0])
	}
	return fates[0]
}

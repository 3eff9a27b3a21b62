package component

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// letter is the dead letter that a parked message was taken back from, and the job that this is part of.
type letter struct{ id, job message.ID }

// takesBack says whether messages that died at the component can be given to it again. A consumer of each node's own is
// none that a letter could name for long.
func (s *Spec) takesBack() bool { return s.State != None && !s.PerNode && len(s.Hears) > 0 }

// taken is what the component takes from the queue, its own dead letters among it.
func (s *Spec) taken() []message.Pattern {
	if !s.takesBack() {
		return s.Takes
	}
	return append(s.Takes[:len(s.Takes):len(s.Takes)], message.Pattern(operator.RetrySubject(s.Name)))
}

// takeBack parks a message that died here, so that it is handled again as if it had never been dead: one less is dead,
// and one more waits. It is recorded with the commit, and m's redelivery does nothing.
func (w *worker) takeBack(ctx context.Context, m *message.Message) error {
	var r operator.Retry
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return w.die(ctx, nil, place{log: "queue"}, bus.Position{}, m, 1, message.NotDecodable, err, w.env.Now(), letter{})
	}
	from := letter{r.Letter, r.Job}
	x, err := w.wasHere(ctx, &r)
	if err != nil {
		w.env.Log.Warn("a dead letter cannot be taken back", "letter", r.Letter, "trace", m.Trace.ID, "error", err)
		return w.tellRetried(ctx, from, m, message.ID{}, operator.RetryRefused, err.Error())
	}
	c := w.points[x.at]
	dead := c.Outcomes[Dead]
	dead.Remove(x.m.ID)
	c.Outcomes[Dead] = dead
	now := w.env.Now()
	x.first, x.next, x.letter = now, now, from
	x.reason, x.detail = message.HandlerError, "taken back from dead letter "+r.Letter.String()
	w.dirty[x.at] = true
	if w.caller != nil {
		w.caller.add(x)
		return nil
	}
	if w.env.Spec.State == Derived {
		x.record = message.AppendRecord(nil, x.m)
	}
	w.parked.push(x)
	err = w.keep.park(x)
	x.written = true
	return err
}

// wasHere finds the account that a dead letter's message is in.
func (w *worker) wasHere(ctx context.Context, r *operator.Retry) (*parked, error) {
	var p bus.Position
	if n, err := fmt.Sscanf(r.Position, "%d/%d/%d/%d", &p.Generation, &p.Partition, &p.Sequence, &p.Index); err != nil || n != 4 {
		return nil, fmt.Errorf("its position %q is no place in a log; it was taken from the queue, and died there for good", r.Position)
	}
	at := place{r.Log, p.Generation, p.Partition}
	c := w.points[at]
	if c == nil || c.Outcomes[Dead].Count == 0 || p.Sequence > c.Position.Sequence && !c.Within.holds(p) {
		return nil, fmt.Errorf("%s has no account of it in %s: its state was begun anew since, and what is there it hears again", w.env.Spec.Name, at.log)
	}
	p.Log = c.Position.Log
	m, err := r.Message()
	if err != nil {
		return nil, fmt.Errorf("the message in it: %w", err)
	}
	if r.Bare {
		if m, err = w.fetch(ctx, at.log, p, m.ID); err != nil {
			return nil, err
		}
	}
	for _, y := range w.parked.rows[w.parked.keyOf(&parked{m: m, at: at})] {
		if y.m.ID == m.ID {
			return nil, errors.New("it waits here already")
		}
	}
	return &parked{m: m, at: at, position: p}, nil
}

// holds says whether a message was dealt with in the middle of the batch behind a position.
func (w *Within) holds(p bus.Position) bool {
	return w != nil && w.Sequence == p.Sequence && p.Index < w.Count
}

// fetch reads a message whose data a letter could not hold.
func (w *worker) fetch(ctx context.Context, name string, p bus.Position, id message.ID) (*message.Message, error) {
	log, err := w.env.Bus.Log(ctx, name, bus.LogOptions{})
	if err != nil {
		return nil, err
	}
	s, err := log.Fetch(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("its data was too large for the letter, and the log has it no more: %w", err)
	}
	m := recordOf(s, p.Index)
	if m == nil || m.ID != id {
		return nil, errors.New("its data was too large for the letter, and is not at its place in the log any more")
	}
	return m, nil
}

// tellRetried tells what became of a message that was taken back; nothing of one that was not.
func (w *worker) tellRetried(ctx context.Context, from letter, of *message.Message, id message.ID, result, detail string) error {
	if from.id.IsZero() {
		return nil
	}
	data, err := json.Marshal(operator.Retried{Letter: from.id, Job: from.job, Message: id, Consumer: w.env.Spec.Name, Result: result, Detail: cut(detail), At: w.env.Now()})
	if err != nil {
		return err
	}
	m := &message.Message{Subject: operator.RetriedSubject(w.env.Spec.Name), ContentType: "application/json", Data: data}
	w.env.Mint(m)
	if err := m.Follow(of); err != nil {
		m.Depth = message.DepthMax // it is told of, however deep its message was
	}
	s := newSaid(m)
	if err := w.makeRoom(ctx, len(s.record)); err != nil {
		return err
	}
	return w.keep.say(s)
}

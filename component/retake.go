package component

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// retakenTable has, under `<component>/<id>`, the retries that a component with State Derived has taken from the queue, so
// that one that comes again does nothing. It is written behind the mark that has it, and before the queue is answered.
const retakenTable = "naru_retaken"

// retakeAgain is after how long a retry comes again that nobody could take.
const retakeAgain = time.Second

// errElsewhere says that a letter's partition is in other hands.
var errElsewhere = errors.New("its partition is another process's, or between two")

func retaken(ctx context.Context, b bus.Bus) (bus.Table, error) {
	return b.Table(ctx, retakenTable, bus.TableOptions{TTL: outcomeKept})
}

// took says whether a retry was taken before.
func (k *derived) took(ctx context.Context, id message.ID) (bool, error) {
	if slices.Contains(k.taken, id) {
		return true, nil
	}
	t, err := retaken(ctx, k.env.Bus)
	if err != nil {
		return false, err
	}
	_, err = t.Get(ctx, k.env.Spec.Name+"/"+id.String())
	if errors.Is(err, bus.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// note writes down what was taken, once a mark has it; what is noted need not be in the next one.
func (k *derived) note(ctx context.Context) error {
	if len(k.taken) == 0 {
		return nil
	}
	t, err := retaken(ctx, k.env.Bus)
	if err != nil {
		return err
	}
	for len(k.taken) > 0 {
		if _, err := t.Put(ctx, k.env.Spec.Name+"/"+k.taken[0].String(), nil); err != nil {
			return err
		}
		k.taken = k.taken[1:]
	}
	return nil
}

// retake takes a message back with State Derived: the next mark has the account, the message and that it was taken.
func (w *worker) retake(ctx context.Context, d bus.Delivery) error {
	k, m := w.keep.(*derived), d.Message()
	again := func(why error) error {
		w.env.Log.Debug("a dead letter waits to be taken back", "id", m.ID, "error", why)
		if err := d.Retry(ctx, retakeAgain); err != nil {
			w.env.Log.Debug("answer the queue; the message comes again", "id", m.ID, "error", err)
		}
		return nil
	}
	seen, err := k.took(ctx, m.ID)
	if err != nil {
		return again(err)
	}
	if !seen {
		if k.parked > 0 && k.parked+len(m.Data) > k.row.MaxBatch()/2 {
			return again(errors.New("as much is parked as a position holds"))
		}
		if k.bytes > 0 { // what is carried must fit beside it
			if err := w.commit(ctx); err != nil {
				return err
			}
		}
		w.begun()
		if err := w.takeBack(ctx, m); err != nil {
			return err
		}
		k.taken = append(k.taken, m.ID)
		w.point(k.at)
		w.dirty[k.at] = true
	}
	w.pendingMessages++
	w.after = append(w.after, func(ctx context.Context) {
		err := k.note(ctx)
		if err == nil {
			err = d.Ack(ctx)
		}
		if err != nil {
			w.env.Log.Debug("answer the queue; the message comes again and is then only answered", "id", m.ID, "error", err)
		}
	})
	return nil
}

// letters gives dead letters that are to be tried again to the partitions they died in, until ctx is done.
func (s *spread) letters(ctx, drained context.Context) {
	for ctx.Err() == nil {
		if err := s.fetchLetters(ctx, drained); err != nil && ctx.Err() == nil {
			s.r.env.Log.Warn("fetch dead letters that are to be tried again", "error", err)
			_ = pause(ctx, restartMin) // ends with ctx
		}
	}
}

func (s *spread) fetchLetters(ctx, drained context.Context) error {
	q, err := s.r.h.Bus.Queue(ctx, CommandQueue)
	if err != nil {
		return err
	}
	name := s.r.spec.Name
	c, err := q.Consumer(ctx, bus.ConsumerOptions{Name: name + "-retry", Pattern: message.Pattern(operator.RetrySubject(name))})
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		d, err := c.Next(ctx)
		if err != nil {
			return err
		}
		if err := s.hand(ctx, drained, d); err != nil && ctx.Err() == nil {
			s.r.env.Log.Debug("a dead letter waits to be taken back", "id", d.Message().ID, "error", err)
			_ = d.Retry(ctx, retakeAgain) // else it comes again by itself
		}
	}
}

// hand gives a letter to the lane of its partition. Where that was finished the lane is opened once more. A letter of no
// partition goes to any lane, which refuses it.
func (s *spread) hand(ctx, drained context.Context, d bus.Delivery) error {
	var l *lane
	at, known, err := s.died(ctx, d.Message())
	if err != nil {
		return err
	}
	if known {
		l, err = s.reopen(ctx, drained, at)
	} else {
		s.mu.Lock()
		for _, l = range s.held {
			break
		}
		s.mu.Unlock()
	}
	if err != nil || l == nil {
		return errors.Join(err, errElsewhere)
	}
	select {
	case l.letters <- d:
		l.handed.Do(func() { close(l.first) })
		return nil
	case <-l.over:
		return errElsewhere
	case <-ctx.Done():
		return ctx.Err()
	}
}

// died says where a letter's message died; known is false where there is no such partition.
func (s *spread) died(ctx context.Context, m *message.Message) (at place, known bool, err error) {
	var r operator.Retry
	var p bus.Position
	if json.Unmarshal(m.Data, &r) != nil || !slices.Contains(s.r.spec.Logs(), r.Log) {
		return at, false, nil
	}
	if n, err := fmt.Sscanf(r.Position, "%d/%d/%d/%d", &p.Generation, &p.Partition, &p.Sequence, &p.Index); err != nil || n != 4 {
		return at, false, nil
	}
	log, err := s.r.h.Bus.Log(ctx, r.Log, bus.LogOptions{})
	if err != nil {
		return at, false, err
	}
	info, err := log.Info(ctx)
	if err != nil {
		return at, false, err
	}
	for _, g := range info.Generations {
		if g.Number == p.Generation && int(p.Partition) >= len(g.Partitions) {
			return at, false, nil
		}
	}
	newest := info.Generations[len(info.Generations)-1].Number
	return place{r.Log, p.Generation, p.Partition}, p.Generation >= 1 && p.Generation <= newest, nil
}

// reopen gives the lane of a partition, if it is in this process's hands or can be, since it is sealed and nobody has it.
func (s *spread) reopen(ctx, drained context.Context, at place) (*lane, error) {
	s.taking.Lock()
	defer s.taking.Unlock()
	s.mu.Lock()
	l := s.held[at]
	s.mu.Unlock()
	if l != nil {
		return l, nil
	}
	log, err := s.r.h.Bus.Log(ctx, at.log, bus.LogOptions{})
	if err != nil {
		return nil, err
	}
	info, err := log.Info(ctx)
	if err != nil {
		return nil, err
	}
	// One that was trimmed to its end is not in the list; its mark is kept.
	w := &want{log: log, gen: bus.Generation{Number: at.gen, Sealed: true}, part: bus.Partition{Number: at.part}}
	for _, g := range info.Generations {
		if g.Number == at.gen {
			w.gen, w.part = g, g.Partitions[at.part]
		}
	}
	if !w.gen.Sealed {
		return nil, nil // somebody reads it in a moment
	}
	lease, err := s.lease(ctx, at)
	if errors.Is(err, bus.ErrHeld) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return s.start(ctx, drained, w, lease, make(chan struct{})), nil
}

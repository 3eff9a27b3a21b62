// A batch in its place: whole to HandleBatch, or message by message, and the account that goes with it.

package component

import (
	"context"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// batch decides the fates of a batch's messages and moves the position behind it.
func (w *worker) batch(ctx context.Context, e event, attempts int) (done bool, err error) {
	at, s := e.at, e.stored
	c := w.point(at)
	if w.torn[at] || s.Position.Sequence <= c.Position.Sequence {
		return true, nil // a reader that was opened again behind the last commit gives again what is under way
	}
	if what := regrown(c, &s); what != "" {
		return true, w.tear(at, what)
	}
	if w.times(-1) == 0 {
		w.passOver(c, at, &s)
		return true, nil
	}
	if w.keep.idle(&s) && len(w.dirty) == 0 {
		c.Position = s.Position // nothing is in it: where it is read again, nothing is lost
		w.account(c, &s)
		return true, nil
	}
	if !w.ready(e) {
		return false, nil
	}
	switch {
	case w.part.HandleBatch != nil:
		if done, err = w.wholeBatch(ctx, c, at, s, attempts+1); err == nil && !done {
			return false, nil
		}
	case s.Err != nil:
	case w.passes(c, at.log, &s):
		n := Sum{uint64(s.Batch.Count), s.Batch.IDSum}
		c.Outcomes[NotMatched] = c.Outcomes[NotMatched].Plus(n)
		w.metrics.messages(at.log, NotMatched, n.Count)
	default:
		err = w.eachMessage(ctx, c, at, s)
	}
	if err == nil && s.Err != nil {
		err = w.unreadable(at, &s)
	}
	if err != nil {
		return false, err
	}
	// From here on nothing fails: a checkpoint that is reported never has half a batch.
	c.Within = nil
	w.pass(c, at, &s)
	return true, nil
}

// passes says whether a batch is passed without a look at its messages: not one of which some have their fates already, nor
// where a test wants each message seen.
func (w *worker) passes(c *Checkpoint, log string, s *bus.Stored) bool {
	return w.part.Passes != nil && w.skew == nil && (c.Within == nil || c.Within.Sequence != s.Position.Sequence) && w.part.Passes(log)
}

// unreadable tells that a batch cannot be read.
func (w *worker) unreadable(at place, s *bus.Stored) error {
	return w.alarm(message.CorruptBatch, fmt.Sprintf("%s: batch %d of log %s, generation %d, partition %d cannot be read; what was in it is dead: %v",
		w.env.Spec.Name, s.Position.Sequence, at.log, at.gen, at.part, s.Err))
}

// pass moves the position behind a batch whose messages all have their fates.
func (w *worker) pass(c *Checkpoint, at place, s *bus.Stored) {
	if s.Err != nil {
		c.UnreadableBatches++
		w.metrics.unreadable(at.log)
	} else {
		w.account(c, s)
	}
	c.Position = s.Position
	w.dirty[at] = true
	w.pendingMessages += int(s.Batch.Count) + 1
	w.pendingBytes += len(s.Batch.Bytes())
}

// passOver moves the position behind a batch as if it had never been there, for a test that must see that.
func (w *worker) passOver(c *Checkpoint, at place, s *bus.Stored) {
	c.Position = s.Position
	w.dirty[at] = true
	w.pendingMessages++
}

// tear has a partition stand still whose log is not the one that was read.
func (w *worker) tear(at place, what string) error {
	w.torn[at] = true
	w.stand(at, message.LogTruncated.String()+": "+what)
	return w.alarm(message.LogTruncated, w.env.Spec.Name+" stands still: "+what)
}

// regrown says whether a log has lost what was read of it, and has grown past that place since: then its messages of now
// lie where others were, some of them before this position, and going on would leave those out without a word. An
// appender's running count never falls.
func regrown(c *Checkpoint, s *bus.Stored) string {
	if s.Err != nil {
		return ""
	}
	row, met := c.Rows[s.Appender]
	if !met || s.Batch.Header.Running >= row.Upto.Count {
		return ""
	}
	return fmt.Sprintf("batch %d of log %s counts %d messages of %s before it, and %d had been read; the log was cut behind what was read, and has grown again. Bring the log back from a copy, or remove this component's state so that it reads from the beginning",
		s.Position.Sequence, c.Log, s.Batch.Header.Running, s.Appender, row.Upto.Count)
}

// account takes a header's running count and sum. What lies between it and the row's last known place was in batches
// that could not be read.
func (w *worker) account(c *Checkpoint, s *bus.Stored) {
	h := &s.Batch.Header
	before := Sum{h.Running, h.RunningSum}
	row, met := c.Rows[s.Appender]
	if !met {
		row.Start = before
	} else if before.Count > row.Upto.Count {
		gap, outcome := before.Minus(row.Upto), Unreadable
		if row.Trimmed {
			outcome = Dead
			w.metrics.died(message.RetentionExceeded, gap.Count)
		}
		c.Outcomes[outcome] = c.Outcomes[outcome].Plus(gap)
		w.metrics.messages(c.Log, outcome, gap.Count)
	}
	row.Trimmed = false
	row.Upto = before.Plus(Sum{uint64(h.Count), h.IDSum})
	c.Rows[s.Appender] = row
}

// count adds a message to an outcome.
func (w *worker) count(c *Checkpoint, outcome string, id message.ID) {
	s := c.Outcomes[outcome]
	s.Add(id)
	c.Outcomes[outcome] = s
}

// wholeBatch hands a batch to HandleBatch; done is false where that failed and is to be tried again.
func (w *worker) wholeBatch(ctx context.Context, c *Checkpoint, at place, s bus.Stored, attempt int) (done bool, err error) {
	w.tx.reset(nil)
	if err := w.guard(func() error { return w.part.HandleBatch(ctx, w.tx, at.log, s) }); err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		w.failed(event{at: at, stored: s}, s.Position.Sequence, attempt, err)
		return false, nil
	}
	if err := w.keepEffects(ctx, w.tx, nil); err != nil {
		return false, err
	}
	w.stand(at, "")
	if s.Err != nil {
		return true, nil
	}
	// Counted by a walk of its own, not from the header, which the ledger holds it against.
	cursor := s.Batch.Cursor()
	for i := 0; ; i++ {
		id, ok := cursor.NextID()
		if !ok {
			break
		}
		for range w.times(i) {
			w.count(c, Handled, id)
		}
	}
	if err := cursor.Err(); err != nil {
		return false, fmt.Errorf("count batch %d of %s: %w", s.Position.Sequence, at.log, err)
	}
	w.metrics.messages(at.log, Handled, uint64(s.Batch.Count))
	return true, nil
}

func (w *worker) times(index int) int {
	if w.skew == nil {
		return 1
	}
	return w.skew(index)
}

// eachMessage hands the messages one by one to Handle.
func (w *worker) eachMessage(ctx context.Context, c *Checkpoint, at place, s bus.Stored) error {
	done := 0
	if c.Within != nil && c.Within.Sequence == s.Position.Sequence {
		done = int(c.Within.Count)
	}
	var results []result
	if w.shards != nil {
		var err error
		if results, err = w.shards.handle(ctx, at, &s, done); err != nil {
			return err
		}
	}
	var m message.Message
	cursor := s.Batch.Cursor()
	for i := 0; cursor.Next(&m); i++ {
		if i < done {
			continue
		}
		p := s.Position
		p.Index = uint32(i)
		w.at, w.here = at, Within{s.Position.Sequence, p.Index}
		for range w.times(i) {
			var err error
			if results == nil {
				err = w.message(ctx, c, at, p, &m, nil)
			} else {
				err = w.message(ctx, c, at, p, &m, &results[i])
			}
			if err != nil {
				return err
			}
		}
		w.here.Count++ // it has its fate
		if w.keep.full() {
			if err := w.commitWithin(ctx); err != nil {
				return err
			}
		}
		if w.keep.crowded() {
			if err := w.uncrowd(ctx, at); err != nil {
				return err
			}
		}
	}
	w.here = Within{}
	if err := cursor.Err(); err != nil {
		return fmt.Errorf("read batch %d of %s: %w", s.Position.Sequence, at.log, err)
	}
	return nil
}

// makeRoom commits what came before, in the middle of a batch if need be, where what a message says finds no room.
func (w *worker) makeRoom(ctx context.Context, bytes int) error {
	if w.keep.room(bytes) {
		return nil
	}
	if err := w.commitWithin(ctx); err != nil {
		return &broken{err}
	}
	return nil
}

// commitWithin commits, in the middle of the batch under way where there is one: what has its fate by now is in it.
func (w *worker) commitWithin(ctx context.Context) error {
	if w.here.Sequence != 0 {
		here := w.here
		w.points[w.at].Within = &here
		w.dirty[w.at] = true
	}
	return w.commit(ctx)
}

// uncrowd waits in the middle of a batch until less is parked.
func (w *worker) uncrowd(ctx context.Context, at place) error {
	w.stand(at, fmt.Sprintf("%d messages are parked, which is as many as fit into a position", w.parked.n))
	defer w.stand(at, "")
	for w.keep.crowded() {
		if err := w.commitWithin(ctx); err != nil {
			return err
		}
		if err := w.pause(ctx, max(w.untilDue(), time.Millisecond)); err != nil {
			return err
		}
		here := w.here
		w.here = Within{} // what retries say is of no batch
		err := w.retryDue(ctx)
		if w.here = here; err != nil {
			return err
		}
	}
	return nil
}

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

const (
	markOnlyAfter = time.Second // for how long a position without anything said may wait
	parkedDetail  = 128         // bytes of a parked message's error in a mark
	parkedFixed   = 90          // bytes of a parked message in a mark at most, without its texts and its record
	markRoom      = 64 << 10    // what a mark may take beside what is parked and said
)

// errStateless is for handlers that want keys and values where there are none.
var errStateless = message.Rejectf(message.Undeclared, "a component with state Derived has no keys and values of its own")

// derived keeps a partition's place in the batches that are derived from it: one row in the log that the component
// writes into. The newest batch's mark is the whole account: the checkpoint, what is parked (by its place in the log that
// is read), and what is still to be said in other logs. The next batch is written only when that has arrived, so the
// newest one is all that a next owner has to know. The store fences: a batch is written behind the one that was read, or
// not at all.
type derived struct {
	env     Env
	source  bus.Log
	at      place
	row     bus.Writer
	crashes crash

	w      *worker
	out    *outbox
	next   uint64
	home   []*message.Message // of the commit under way
	away   []said
	bytes  int          // of both
	parked int          // bytes of what is parked, in the mark
	taken  []message.ID // retries that were taken from the queue, and are not in retakenTable yet
}

// laneRow names the row of a partition's lane, in every log that the lane writes to.
func laneRow(component string, at place) string {
	return rowName(component, at.log, fmt.Sprint(at.gen), fmt.Sprint(at.part))
}

// openDerived opens the row; source is the log that is read.
func openDerived(ctx context.Context, env Env, source bus.Log, at place) (*derived, error) {
	row, err := laneWriter(ctx, env, at)
	if err != nil {
		return nil, err
	}
	return &derived{env: env, source: source, at: at, row: row}, nil
}

func laneWriter(ctx context.Context, env Env, at place) (bus.Writer, error) {
	log, err := env.Bus.Log(ctx, env.Spec.Into, bus.LogOptions{})
	if err != nil {
		return nil, err
	}
	return log.Writer(ctx, bus.WriterOptions{Name: laneRow(env.Spec.Name, at), Owner: env.Owner})
}

// restore reads the newest mark. What a former owner left to be said elsewhere is said first.
func (k *derived) restore(ctx context.Context, w *worker) error {
	k.w = w
	h, ok, err := k.row.Last(ctx)
	if err != nil {
		return err
	}
	var m mark
	if ok {
		if m, err = parseMark(h.Mark); err != nil {
			return fmt.Errorf("the mark of row %s in log %s: %w", laneRow(k.env.Spec.Name, k.at), k.env.Spec.Into, err)
		}
	} else {
		m.birth = message.NewID(k.env.Now())
	}
	k.next, k.taken = m.next, m.taken
	k.out = newOutbox(k.env, laneRow(k.env.Spec.Name, k.at), m.birth, nil)
	k.out.crash = k.crashes
	k.out.resume(m.away)
	if err := k.out.skipWritten(ctx); err != nil {
		return err
	}
	if err := k.out.empty(ctx); err != nil {
		return err
	}
	if m.point == nil {
		return nil
	}
	w.points[k.at] = m.point
	return k.fetchParked(ctx, m.parked)
}

// fetchParked reads what is parked from where it is.
func (k *derived) fetchParked(ctx context.Context, list []*parked) error {
	var s bus.Stored
	slices.SortFunc(list, func(a, b *parked) int { return earlier(a.position, b.position) })
	for _, x := range list {
		x.at, x.position.Log, x.position.Generation, x.position.Partition = k.at, k.source.ID(), k.at.gen, k.at.part
		if x.record != nil {
			x.written = true
			k.w.parked.push(x)
			_ = k.park(x)
			continue
		}
		if x.position.Sequence != s.Position.Sequence {
			var err error
			if s, err = k.source.Fetch(ctx, x.position); err != nil && !errors.Is(err, bus.ErrNotFound) {
				return fmt.Errorf("read a parked message again: %w", err)
			} else if err != nil {
				s = bus.Stored{Position: x.position, Err: err}
			}
		}
		id := x.m.ID
		if x.m = recordOf(s, x.position.Index); x.m == nil || x.m.ID != id {
			// Its account is closed: the message itself is nowhere any more.
			c := k.w.points[k.at]
			k.w.count(c, Dead, id)
			k.w.metrics.died(message.RetentionExceeded, 1)
			k.w.dirty[k.at] = true
			detail := fmt.Sprintf("%s: message %s was parked at %s, batch %d, and was trimmed before it was tried again; it is dead",
				k.env.Spec.Name, id, k.at.log, x.position.Sequence)
			if err := k.w.alarm(message.RetentionExceeded, detail); err != nil {
				return err
			}
			continue
		}
		x.written = true
		k.w.parked.push(x)
		_ = k.park(x)
	}
	return nil
}

// recordOf is a copy of a batch's record; nil where it cannot be read.
func recordOf(s bus.Stored, index uint32) *message.Message {
	if s.Err != nil {
		return nil
	}
	var m message.Message
	cursor := s.Batch.Cursor()
	for i := uint32(0); cursor.Next(&m); i++ {
		if i == index {
			return m.Clone()
		}
	}
	return nil
}

func (k *derived) get([]byte) ([]byte, error)                      { return nil, errStateless }
func (k *derived) scan([]byte, func(key, value []byte) bool) error { return errStateless }
func (k *derived) set(string, []byte) error                        { return errStateless }
func (k *derived) delete(string) error                             { return errStateless }

func parkedSize(x *parked) int {
	n := parkedFixed + min(len(x.detail), parkedDetail)
	if x.record != nil {
		n += len(x.record)
	}
	return n
}

func (k *derived) park(x *parked) error {
	k.parked -= x.size
	x.size = parkedSize(x) // why it waits may be told at greater length than before
	k.parked += x.size
	return nil
}

func (k *derived) unpark(x *parked) error {
	k.parked -= x.size
	return nil
}

func (k *derived) say(s said) error {
	k.next++
	s.number = k.next
	if s.to = k.out.destination(s.m); s.to == k.env.Spec.Into {
		k.home = append(k.home, s.m)
		if len(s.told) > 0 {
			k.w.after = append(k.w.after, func(context.Context) { s.tell(nil) })
		}
	} else {
		k.away = append(k.away, s)
	}
	k.bytes += len(s.record) + 12
	return nil
}

// room says whether the next commit can take so many bytes more.
func (k *derived) room(bytes int) bool {
	return message.BatchOverhead+markRoom+256*len(k.w.point(k.at).Rows)+k.parked+k.bytes+bytes <= k.row.MaxBatch()
}

func (k *derived) full() bool { return false } // room says so beforehand, since more cannot be written

// largest is the largest message that can be said: beside what is parked it has a batch to itself.
func (k *derived) largest() int {
	return min(largest(k.env.Bus), k.row.MaxBatch()-message.BatchOverhead-markRoom-k.parked-12)
}

// crowded says that what is parked leaves too little room for anything else.
func (k *derived) crowded() bool { return k.parked > k.row.MaxBatch()/2 }

// idle says that a batch has nothing in it: a mark for it alone could come back to its own writer, for ever.
func (k *derived) idle(s *bus.Stored) bool { return s.Err == nil && s.Batch.Count == 0 }

func (k *derived) patience(lazy bool) time.Duration {
	if len(k.home)+len(k.away) == 0 {
		return markOnlyAfter // a position alone: a crash makes it read that much again, and nothing is said twice
	}
	if lazy {
		return commitAfter
	}
	return 0
}

// commit writes the batch, and then says elsewhere what is to be said there.
func (k *derived) commit(ctx context.Context, dirty []*Checkpoint, p *parking) error {
	if len(dirty) == 0 && len(k.home)+len(k.away) == 0 {
		return nil
	}
	c := k.w.point(k.at)
	c.Needed = p.oldest()
	m := mark{birth: k.out.birth, next: k.next, point: c, away: k.away, taken: k.taken}
	for _, row := range p.rows {
		m.parked = append(m.parked, row...)
	}
	if err := k.crash("before the commit"); err != nil {
		return err
	}
	if err := k.write(ctx, &m, k.home); err != nil {
		return err
	}
	if err := k.crash("after the commit"); err != nil {
		return err
	}
	k.out.add(k.away)
	k.home, k.away, k.bytes = nil, nil, 0
	if err := k.out.empty(ctx); err != nil || !k.queued(m.away) {
		return err
	}
	// A queue has no marks, and forgets in minutes what was put into it: the next owner must not put it there again.
	m.away = nil
	return k.write(ctx, &m, nil)
}

func (k *derived) write(ctx context.Context, m *mark, messages []*message.Message) error {
	raw, err := m.encode()
	if err != nil {
		return err
	}
	if _, err := k.row.Write(ctx, m.point.Position, raw, messages); err != nil {
		return fmt.Errorf("write what was derived from %s, generation %d, partition %d: %w", k.at.log, k.at.gen, k.at.part, err)
	}
	return nil
}

// queued says whether any of them goes to the queue.
func (k *derived) queued(list []said) bool {
	return slices.ContainsFunc(list, func(s said) bool { return s.to == toQueue })
}

func (k *derived) crash(boundary string) error { return k.out.crash.at(boundary) }

// mark is what a lane's batch carries.
type mark struct {
	birth  message.ID // of the row's numbers
	next   uint64     // the last of them
	point  *Checkpoint
	parked []*parked
	away   []said
	taken  []message.ID
}

// The versions of a mark. The second one has letters that were taken back, and is written only where there are any.
const (
	markVersion      = 1
	markWithLetters  = 2
	markVersionsText = "1 and 2"
)

func (m *mark) version() byte {
	if len(m.taken) > 0 || slices.ContainsFunc(m.parked, func(x *parked) bool { return x.record != nil }) {
		return markWithLetters
	}
	return markVersion
}

// encode writes, all of it big-endian: the version (1 byte), birth (16), next (8), the checkpoint as JSON behind its
// length (4), the count of parked messages (4), for each its sequence (8), index (4), id (16), attempts (2), first and
// next try in Unix nanoseconds (8 each), reason (2) and detail behind its length (2); the count of messages for other
// logs (4), for each its number (8) and its record behind its length (4). Version 2 has, behind each parked message, the
// letter (16) and job (16) that it was taken back from and its record behind its length (4), zero where it is in the log;
// and at the end the count (4) and the ids (16 each) of retries that were taken.
func (m *mark) encode() ([]byte, error) {
	point, err := json.Marshal(m.point)
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	v := m.version()
	b := append(make([]byte, 0, 256+len(point)), v)
	b = append(b, m.birth[:]...)
	b = be.AppendUint64(b, m.next)
	b = append(be.AppendUint32(b, uint32(len(point))), point...)
	b = be.AppendUint32(b, uint32(len(m.parked)))
	for _, x := range m.parked {
		b = be.AppendUint32(be.AppendUint64(b, x.position.Sequence), x.position.Index)
		b = append(b, x.m.ID[:]...)
		b = be.AppendUint16(b, uint16(min(x.attempts, 1<<16-1)))
		b = be.AppendUint64(be.AppendUint64(b, uint64(x.first.UnixNano())), uint64(x.next.UnixNano()))
		detail := x.detail[:min(len(x.detail), parkedDetail)]
		b = be.AppendUint16(be.AppendUint16(b, uint16(x.reason)), uint16(len(detail)))
		b = append(b, detail...)
		if v == markWithLetters {
			b = append(append(b, x.letter.id[:]...), x.letter.job[:]...)
			b = append(be.AppendUint32(b, uint32(len(x.record))), x.record...)
		}
	}
	b = be.AppendUint32(b, uint32(len(m.away)))
	for _, s := range m.away {
		b = be.AppendUint32(be.AppendUint64(b, s.number), uint32(len(s.record)))
		b = append(b, s.record...)
	}
	if v == markWithLetters {
		b = be.AppendUint32(b, uint32(len(m.taken)))
		for _, id := range m.taken {
			b = append(b, id[:]...)
		}
	}
	return b, nil
}

// parseMark reads what encode wrote. It takes nothing for granted: who else may write to the bus may write a mark.
func parseMark(b []byte) (m mark, err error) {
	short := false
	take := func(n uint64) []byte {
		if short = short || n > uint64(len(b)); short {
			return make([]byte, min(n, 16))
		}
		v := b[:n]
		b = b[n:]
		return v
	}
	be := binary.BigEndian
	u16 := func() uint16 { return be.Uint16(take(2)) }
	u32 := func() uint32 { return be.Uint32(take(4)) }
	u64 := func() uint64 { return be.Uint64(take(8)) }
	v := take(1)[0]
	if !short && v != markVersion && v != markWithLetters {
		return m, fmt.Errorf("it has version %d, and this naru knows versions %s", v, markVersionsText)
	}
	m.birth = message.ID(take(16))
	m.next = u64()
	if point := take(uint64(u32())); !short {
		if err := json.Unmarshal(point, &m.point); err != nil {
			return m, fmt.Errorf("its checkpoint: %w", err)
		}
	}
	for n := u32(); n > 0 && !short; n-- {
		x := &parked{m: new(message.Message)}
		x.position.Sequence, x.position.Index = u64(), u32()
		x.m.ID = message.ID(take(16))
		x.attempts = int(u16())
		x.first, x.next = time.Unix(0, int64(u64())), time.Unix(0, int64(u64()))
		x.reason = message.Reason(u16())
		x.detail = string(take(uint64(u16())))
		if v == markWithLetters {
			x.letter = letter{message.ID(take(16)), message.ID(take(16))}
			if record := slices.Clone(take(uint64(u32()))); !short && len(record) > 0 {
				id := x.m.ID
				if _, err := message.DecodeRecord(record, x.m); err != nil || x.m.ID != id {
					return m, fmt.Errorf("message %s, which was taken back: %w", id, cmp.Or(err, errors.New("another one is in its place")))
				}
				x.record = record
			}
		}
		m.parked = append(m.parked, x)
	}
	for n := u32(); n > 0 && !short; n-- {
		s := said{number: u64(), m: new(message.Message)}
		if s.record = slices.Clone(take(uint64(u32()))); short {
			break
		}
		if _, err := message.DecodeRecord(s.record, s.m); err != nil {
			return m, fmt.Errorf("message %d for another log: %w", s.number, err)
		}
		m.away = append(m.away, s)
	}
	if v == markWithLetters {
		for n := u32(); n > 0 && !short; n-- {
			m.taken = append(m.taken, message.ID(take(16)))
		}
	}
	switch {
	case short:
		return m, errors.New("it is cut short")
	case len(b) > 0:
		return m, fmt.Errorf("%d bytes are left over", len(b))
	case m.point == nil:
		return m, errors.New("it has no checkpoint")
	}
	if m.point.Outcomes == nil {
		m.point.Outcomes = map[string]Sum{}
	}
	if m.point.Rows == nil {
		m.point.Rows = map[string]Row{}
	}
	return m, nil
}

package component

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// keeper keeps what a worker commits, all of it or nothing. It is for the worker's goroutine; get and scan are also for
// those that handle messages beside it, while it waits for them.
type keeper interface {
	// restore gives the worker what was committed last: checkpoints and what is parked.
	restore(ctx context.Context, w *worker) error
	// get, scan, set and delete are for the component's own keys; get gives nil where there is none.
	get(key []byte) ([]byte, error)
	scan(prefix []byte, f func(key, value []byte) bool) error
	set(key string, value []byte) error
	delete(key string) error
	// park and unpark say what waits.
	park(x *parked) error
	unpark(x *parked) error
	// say puts a message into the next commit.
	say(s said) error
	// room says whether the next commit can take messages of so many bytes more; largest is the largest single one.
	room(bytes int) bool
	largest() int
	// full says that what the next commit holds is enough for one.
	full() bool
	// crowded says that nothing more is to be parked.
	crowded() bool
	// idle says that a batch is not worth a commit of its own: reading it again does nothing.
	idle(s *bus.Stored) bool
	// patience is for how long what is there may wait to be committed.
	patience(lazy bool) time.Duration
	commit(ctx context.Context, dirty []*Checkpoint, p *parking) error
}

// local keeps all in the component's store: state, positions, what is parked, and an outbox.
type local struct {
	s      *store
	out    *outbox
	next   uint64 // highest number of an entry
	queued []said // of the commit under way
	bytes  int    // of queued
}

func newLocal(env Env, s *store, held func() bool) *local {
	k := &local{s: s, out: newOutbox(env, outboxRow(&env), s.birth, held)}
	k.out.crash, k.out.forget = s.crash, k.forget
	return k
}

// outboxRow is the row of a component's outbox: the component's own, and where it is each node's own, the node's.
func outboxRow(env *Env) string {
	if env.Spec.PerNode {
		return rowName(append(env.Spec.rows(), env.Node)...)
	}
	return rowName(env.Spec.rows()...)
}

func (k *local) restore(_ context.Context, w *worker) (err error) {
	w.store = k.s
	if w.points, err = k.s.checkpoints(); err != nil {
		return err
	}
	if err := k.parked(w); err != nil {
		return err
	}
	left, err := k.s.outbox()
	if err != nil {
		return err
	}
	// The highest number an entry ever had is kept apart, since the entries go.
	v, err := get(k.s.db, []byte{'n'})
	if err != nil {
		return err
	}
	if len(v) == 8 {
		k.next = beUint64(v)
	}
	for _, s := range left {
		k.next = max(k.next, s.number)
	}
	k.out.resume(left)
	return nil
}

func (k *local) get(key []byte) ([]byte, error) { return get(k.s.batch, userKey(key)) }

func (k *local) scan(prefix []byte, f func(key, value []byte) bool) error {
	p := userKey(prefix)
	return walk(k.s.batch, p, prefixEnd(p), false, func(key, v []byte) bool { return f(key[1:], v) })
}

func (k *local) set(key string, value []byte) error {
	op := k.s.batch.SetDeferred(1+len(key), len(value))
	op.Key[0] = kindUser
	copy(op.Key[1:], key)
	copy(op.Value, value)
	return op.Finish()
}

func (k *local) delete(key string) error {
	op := k.s.batch.DeleteDeferred(1 + len(key))
	op.Key[0] = kindUser
	copy(op.Key[1:], key)
	return op.Finish()
}

func (k *local) say(s said) error {
	k.next++
	s.number, s.to = k.next, k.out.destination(s.m)
	k.queued = append(k.queued, s)
	k.bytes += len(s.record)
	return nil
}

func (k *local) room(int) bool         { return true }
func (k *local) full() bool            { return k.s.batch.Len()+k.bytes >= storeBatch }
func (k *local) largest() int          { return largest(k.out.env.Bus) }
func (k *local) crowded() bool         { return false }
func (k *local) idle(*bus.Stored) bool { return false }

func (k *local) patience(lazy bool) time.Duration {
	if lazy && len(k.queued) == 0 {
		return commitAfter // a sync of this store competes with the log's
	}
	return 0
}

func (k *local) commit(ctx context.Context, dirty []*Checkpoint, _ *parking) error {
	for _, c := range dirty {
		if err := k.s.setCheckpoint(c); err != nil {
			return err
		}
	}
	if len(k.queued) > 0 {
		if err := k.s.setOutbox(k.queued); err != nil {
			return err
		}
		if err := k.s.set([]byte{'n'}, beAppend(k.next)); err != nil {
			return err
		}
	}
	if err := k.s.commit(ctx); err != nil {
		return err
	}
	k.out.add(k.queued)
	clear(k.queued)
	k.queued, k.bytes = k.queued[:0], 0
	return nil
}

// forget removes chunks from the store of which all has arrived. It need not be durable: what comes back is skipped by its number. But a
// queue knows no numbers, and who takes from it knows for a day what he took: what went there must not come back after a week.
// A chunk is set once, so that a single delete does, and both are gone when the memtable is flushed: a plain one would go on through
// all levels.
func (k *local) forget(ctx context.Context, list []said) error {
	b := k.s.db.NewBatch()
	queued := false
	for _, s := range list {
		queued = queued || s.to == toQueue
		if s.chunk.left--; s.chunk.left > 0 {
			continue
		}
		if err := b.SingleDelete(outboxKey(s.chunk.number), nil); err != nil {
			return err
		}
	}
	if queued {
		if err := k.s.disk.do(ctx, func() error { return b.Commit(pebble.Sync) }); err != nil {
			return fmt.Errorf("strike off what was put into the queue: %w", err)
		}
		return b.Close()
	}
	return errors.Join(b.Commit(pebble.NoSync), b.Close())
}

// parkedHead is what stands before the record in the store.
type parkedHead struct {
	Position bus.Position   `json:"position"`
	Attempts int            `json:"attempts"`
	First    time.Time      `json:"first"`
	Next     time.Time      `json:"next"`
	Reason   message.Reason `json:"reason,omitempty"`
	Detail   string         `json:"detail,omitempty"`
	Letter   message.ID     `json:"letter,omitzero"`
	Job      message.ID     `json:"job,omitzero"`
}

func parkedKey(at place, p bus.Position) []byte {
	k := at.key(kindParked)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(k, p.Sequence), p.Index)
}

func (k *local) park(x *parked) error {
	head, err := json.Marshal(parkedHead{x.position, x.attempts, x.first, x.next, x.reason, x.detail, x.letter.id, x.letter.job})
	if err != nil {
		return err
	}
	v := binary.BigEndian.AppendUint32(nil, uint32(len(head)))
	return k.s.set(parkedKey(x.at, x.position), message.AppendRecord(append(v, head...), x.m))
}

func (k *local) unpark(x *parked) error { return k.s.delete(parkedKey(x.at, x.position)) }

// parked gives back what waited.
func (k *local) parked(w *worker) error {
	var bad error
	err := walk(k.s.db, []byte{kindParked}, []byte{kindParked + 1}, false, func(key, v []byte) bool {
		x := &parked{m: new(message.Message)}
		var h parkedHead
		v = slices.Clone(v)
		end := slices.Index(key, 0)
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
		x.at = place{string(key[1:end]), h.Position.Generation, h.Position.Partition}
		x.position, x.attempts, x.first, x.next, x.reason, x.detail = h.Position, h.Attempts, h.First, h.Next, h.Reason, h.Detail
		x.letter = letter{h.Letter, h.Job}
		x.written = true
		w.parked.push(x) // keys sort by place, so rows are in order
		return true
	})
	return errors.Join(err, bad)
}

package component

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// tx is what one handler call does: kept apart until the handler has succeeded, so that a failure leaves nothing.
type tx struct {
	w     *worker
	cause *message.Message // nil in HandleBatch and HandleAll
	ops   writes
	said  []said
	bytes int // of it
	after []func()
	slab  *slab  // of its goroutine
	mute  bool   // in HandleAll
	below *layer // what earlier messages of its shard did; nil where all is handled in one goroutine
}

func (t *tx) reset(cause *message.Message) {
	clear(t.said)
	clear(t.after)
	t.cause, t.said, t.bytes, t.after = cause, t.said[:0], 0, t.after[:0]
	t.ops.clear()
}

// writes is what was set and deleted, by key, in the order of its first time.
type writes struct {
	list []write
	at   map[string]int // in list; empty while there are few
}

// write is what became of a key.
type write struct {
	key   string
	value []byte // nil where it is deleted
}

// fewWrites are found without a map.
const fewWrites = 8

func (o *writes) clear() {
	clear(o.list)
	o.list = o.list[:0]
	clear(o.at)
}

func (o *writes) find(key []byte) *write {
	if len(o.list) <= fewWrites {
		for i := range o.list {
			if o.list[i].key == string(key) {
				return &o.list[i]
			}
		}
		return nil
	}
	if i, ok := o.at[string(key)]; ok {
		return &o.list[i]
	}
	return nil
}

func (o *writes) put(key, value []byte) {
	if x := o.find(key); x != nil {
		x.value = value
		return
	}
	o.list = append(o.list, write{string(key), value})
	switch n := len(o.list); {
	case n == fewWrites+1:
		if o.at == nil {
			o.at = map[string]int{}
		}
		for i, x := range o.list {
			o.at[x.key] = i
		}
	case n > fewWrites:
		o.at[o.list[n-1].key] = n - 1
	}
}

// Now is the injected clock.
func (t *tx) Now() time.Time { return t.w.env.Now() }

// After as in [Tx].
func (t *tx) After(f func()) { t.after = append(t.after, f) }

// Said as in [Tx].
func (t *tx) Said(f func(error)) {
	if n := len(t.said); n > 0 {
		t.said[n-1].told = append(t.said[n-1].told, f)
		return
	}
	t.After(func() { f(nil) })
}

// Heard as in [Tx].
func (t *tx) Heard() []bus.Position {
	list := make([]bus.Position, 0, len(t.w.points))
	for _, c := range t.w.points {
		if !c.Position.Log.IsZero() {
			list = append(list, c.Position)
		}
	}
	return list
}

// Get reads through what this call has set.
func (t *tx) Get(key []byte) ([]byte, error) {
	if x := t.ops.find(key); x != nil {
		return x.value, nil
	}
	if t.below != nil {
		if v, ok := t.below.ops[string(key)]; ok {
			return v, nil
		}
	}
	return t.w.keep.get(key)
}

// Set sets a key.
func (t *tx) Set(key, value []byte) { t.ops.put(key, append(make([]byte, 0, len(value)), value...)) }

// Delete removes a key.
func (t *tx) Delete(key []byte) { t.ops.put(key, nil) }

// Scan walks the keys with a prefix, those this call has set among them. f may set and delete.
func (t *tx) Scan(prefix []byte, f func(key, value []byte) bool) error {
	// What this call has set is merged, as it is now, with what the store has; neither is read further than f goes.
	var keys []string
	mine := map[string][]byte{}
	merge := func(k string, v []byte) {
		if strings.HasPrefix(k, string(prefix)) {
			if _, there := mine[k]; !there {
				keys = append(keys, k)
			}
			mine[k] = v
		}
	}
	if t.below != nil {
		for k, v := range t.below.ops {
			merge(k, v)
		}
	}
	for _, x := range t.ops.list {
		merge(x.key, x.value)
	}
	slices.Sort(keys)
	more := true
	upTo := func(end []byte) { // gives what sorts before end
		for more && len(keys) > 0 && (end == nil || keys[0] < string(end)) {
			k := keys[0]
			keys = keys[1:]
			if v := mine[k]; v != nil {
				more = f([]byte(k), v)
			}
		}
	}
	err := t.w.keep.scan(prefix, func(k, v []byte) bool {
		upTo(k)
		if _, set := mine[string(k)]; more && !set {
			more = f(slices.Clone(k), slices.Clone(v))
		}
		return more
	})
	if err == nil {
		upTo(nil)
	}
	return err
}

// Say says a consequence.
func (t *tx) Say(m *message.Message) error {
	if t.mute {
		return message.Rejectf(message.Undeclared, "%s says %s in HandleAll, where it follows from no one message", t.w.env.Spec.Name, m.Subject)
	}
	if t.cause != nil {
		m.Trace.ID = t.cause.Trace.ID // so that none is minted
	}
	t.w.env.Mint(m)
	if t.cause != nil {
		if err := m.Follow(t.cause); err != nil {
			return err
		}
	}
	if err := maySay(&t.w.env.Spec, m); err != nil {
		return err
	}
	if err := t.w.env.Check(m); err != nil {
		return err
	}
	s := t.slab.said(m)
	most := t.w.keep.largest()
	if len(s.record) > most {
		return message.Rejectf(message.MessageTooLarge, "%s takes %d bytes, and the bus takes up to %d", m.Subject, len(s.record), most)
	}
	if all := t.bytes + len(s.record); all > most && t.w.env.Spec.State == Derived { // what is refused takes no room
		return message.Rejectf(message.MessageTooLarge, "what is said of one message takes %d bytes, and is written in one batch of up to %d", all, most)
	}
	t.bytes += len(s.record)
	t.said = append(t.said, s)
	return nil
}

// effective says whether what the call did counts, by its result.
func (t *tx) effective(err error) bool { return err == nil || errors.Is(err, ErrNotMatched) }

// apply takes a successful call over into the next commit.
func (t *tx) apply() error {
	for _, x := range t.ops.list {
		var err error
		if x.value == nil {
			err = t.w.keep.delete(x.key)
		} else {
			err = t.w.keep.set(x.key, x.value)
		}
		if err != nil {
			return fmt.Errorf("keep effects: %w", err)
		}
	}
	for _, s := range t.said {
		if err := t.w.keep.say(s); err != nil {
			return err
		}
	}
	for _, f := range t.after {
		t.w.after = append(t.w.after, func(context.Context) { f() })
	}
	return nil
}

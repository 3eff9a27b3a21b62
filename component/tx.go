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
	cause *message.Message  // nil in HandleBatch and HandleAll
	ops   map[string][]byte // nil deletes
	order []string
	said  []said
	bytes int // of it
	after []func()
	mute  bool   // in HandleAll
	below *layer // what earlier messages of its shard did; nil where all is handled in one goroutine
}

func (t *tx) reset(cause *message.Message) {
	t.cause, t.said, t.bytes, t.after, t.order = cause, nil, 0, nil, t.order[:0]
	clear(t.ops)
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
	if v, ok := t.ops[string(key)]; ok {
		return v, nil
	}
	if t.below != nil {
		if v, ok := t.below.ops[string(key)]; ok {
			return v, nil
		}
	}
	return t.w.keep.get(key)
}

// Set sets a key.
func (t *tx) Set(key, value []byte) { t.put(key, append(make([]byte, 0, len(value)), value...)) }

// Delete removes a key.
func (t *tx) Delete(key []byte) { t.put(key, nil) }

func (t *tx) put(key, value []byte) {
	k := string(key)
	if _, ok := t.ops[k]; !ok {
		t.order = append(t.order, k)
	}
	t.ops[k] = value
}

// Scan walks the keys with a prefix, those this call has set among them. f may set and delete.
func (t *tx) Scan(prefix []byte, f func(key, value []byte) bool) error {
	// What this call has set is merged, as it is now, with what the store has; neither is read further than f goes.
	var keys []string
	mine := map[string][]byte{}
	layers := []map[string][]byte{t.ops}
	if t.below != nil {
		layers = []map[string][]byte{t.below.ops, t.ops}
	}
	for _, ops := range layers {
		for k, v := range ops {
			if strings.HasPrefix(k, string(prefix)) {
				if _, there := mine[k]; !there {
					keys = append(keys, k)
				}
				mine[k] = v
			}
		}
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
	t.w.env.Mint(m)
	if t.cause != nil {
		if err := m.Follow(t.cause); err != nil {
			return err
		}
	}
	if err := maySay(t.w.env.Spec, m); err != nil {
		return err
	}
	if err := t.w.env.Check(m); err != nil {
		return err
	}
	s := newSaid(m)
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
	for _, k := range t.order {
		var err error
		if v := t.ops[k]; v == nil {
			err = t.w.keep.delete([]byte(k))
		} else {
			err = t.w.keep.set([]byte(k), v)
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

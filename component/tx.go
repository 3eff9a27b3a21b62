package component

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/message"
)

// tx is what one handler call does: kept apart until the handler has succeeded, so that a failure leaves nothing.
type tx struct {
	w     *worker
	cause *message.Message  // nil in HandleBatch
	ops   map[string][]byte // nil deletes
	order []string
	said  []*message.Message
}

func (t *tx) reset(cause *message.Message) {
	t.cause, t.said, t.order = cause, nil, t.order[:0]
	clear(t.ops)
}

// Now is the injected clock.
func (t *tx) Now() time.Time { return t.w.env.Now() }

// Get reads through what this call has set.
func (t *tx) Get(key []byte) ([]byte, error) {
	if v, ok := t.ops[string(key)]; ok {
		return v, nil
	}
	return get(t.w.store.batch, userKey(key))
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
	type pair struct{ k, v []byte }
	var list []pair
	p := userKey(prefix)
	err := walk(t.w.store.batch, p, prefixEnd(p), false, func(k, v []byte) bool {
		if _, mine := t.ops[string(k[1:])]; !mine {
			list = append(list, pair{slices.Clone(k[1:]), slices.Clone(v)})
		}
		return true
	})
	if err != nil {
		return err
	}
	for k, v := range t.ops {
		if v != nil && bytes.HasPrefix([]byte(k), prefix) {
			list = append(list, pair{[]byte(k), v})
		}
	}
	slices.SortFunc(list, func(a, b pair) int { return bytes.Compare(a.k, b.k) })
	for _, e := range list {
		if !f(e.k, e.v) {
			break
		}
	}
	return nil
}

// Say says a consequence.
func (t *tx) Say(m *message.Message) error {
	t.w.env.Mint(m)
	if t.cause != nil {
		if err := m.Follow(t.cause); err != nil {
			return err
		}
	}
	if err := t.w.maySay(m); err != nil {
		return err
	}
	t.said = append(t.said, m.Clone())
	return nil
}

// apply takes a successful call over into the next commit.
func (t *tx) apply() error {
	for _, k := range t.order {
		var err error
		if v := t.ops[k]; v == nil {
			err = t.w.store.delete(userKey([]byte(k)))
		} else {
			err = t.w.store.set(userKey([]byte(k)), v)
		}
		if err != nil {
			return fmt.Errorf("keep effects: %w", err)
		}
	}
	for _, m := range t.said {
		if err := t.w.enqueue(m); err != nil {
			return err
		}
	}
	return nil
}

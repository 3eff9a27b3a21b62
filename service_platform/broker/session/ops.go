package session

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// What a store changes of its sessions goes to the neighbours as a row of operations on its keys:
//
//	1 byte   kind: 1 sets a key, 2 deletes one, 3 deletes all that is stored of a session, 4 sets a key where one is lacking,
//	         5 passes a message of a shared subscription on: the key is its group's
//	uvarint  length of the key, and the key; of kind 3 the session's id
//	uvarint  length of the value, and the value, of kinds 1, 4 and 5
const (
	opSet    = 1
	opDelete = 2
	opReset  = 3
	opOffer  = 4
	opGift   = 5
)

// partMost is how many bytes of operations go into one message. What is longer is cut anywhere, and joined again.
const partMost = 128 << 10

func appendOp(b []byte, kind byte, key, value []byte) []byte {
	b = append(binary.AppendUvarint(append(b, kind), uint64(len(key))), key...)
	if kind == opSet || kind >= opOffer {
		b = append(binary.AppendUvarint(b, uint64(len(value))), value...)
	}
	return b
}

// nextOp takes the first operation off.
func nextOp(b []byte) (kind byte, key, value, rest []byte, err error) {
	short := errors.New("an operation of a neighbour is cut short")
	field := func() (f []byte) {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			err = short
			return nil
		}
		f, b = b[w:w+int(n)], b[w+int(n):]
		return f
	}
	kind, b = b[0], b[1:]
	key = field()
	if (kind == opSet || kind >= opOffer) && err == nil {
		value = field()
	}
	if err == nil && (kind < opSet || kind > opGift || len(key) == 0 || kind == opReset && len(key) != 16) {
		err = errors.New("an operation of a neighbour is unknown")
	}
	return kind, key, value, b, err
}

// writing is a transaction of which the neighbours are told.
type writing struct {
	component.Tx
	s      *Store
	ops    []byte
	queued map[*Session]uint64
	state  serviceplatform.SessionState // what else is told
	tell   bool                         // something of it
	then   []func(error)                // once it is in the log
	unsaid []string                     // groups of whose members it tells
	joins  []*joining                   // who waits until it is heard
	gifts  []*gift                      // that were heard, and are this node's
}

// shared says whether the neighbours hold copies of a key.
func shared(key []byte) bool {
	switch key[0] {
	case kindSession, kindQueue, kindSent, kindReceived, kindReleased, kindWill, kindHand:
		return true
	}
	return false
}

// Set sets a key, here and at the neighbours.
func (w *writing) Set(key, value []byte) {
	w.Tx.Set(key, value)
	w.add(opSet, key, value)
}

// Delete deletes a key, here and at the neighbours.
func (w *writing) Delete(key []byte) {
	w.Tx.Delete(key)
	w.add(opDelete, key, nil)
}

func (w *writing) add(kind byte, key, value []byte) {
	if kind < opReset && !shared(key) {
		return
	}
	if w.s.cluster.start.IsZero() {
		return // nobody knows of this node
	}
	w.ops = appendOp(w.ops, kind, key, value)
}

// writing begins to gather what the neighbours are to be told.
func (s *Store) writing(tx component.Tx) component.Tx {
	if s.cluster == nil {
		return tx
	}
	return &writing{Tx: tx, s: s}
}

// enqueued notes that a session's queue has grown: its client is sent that when the neighbours can know it.
func enqueued(tx component.Tx, x *Session, n uint64) {
	w, ok := tx.(*writing)
	if !ok {
		return
	}
	if w.queued == nil {
		w.queued = map[*Session]uint64{}
	}
	w.queued[x] = n
}

// errApart says that nobody goes on with what this node does.
var errApart = message.Rejectf(message.Fenced, "this node is not among the others any more")

// ship says what a transaction has gathered, in the same commit. It is the handlers' last call with the transaction.
func (s *Store) ship(tx component.Tx) error {
	w, ok := tx.(*writing)
	if !ok {
		return nil
	}
	c, then := s.cluster, w.then
	if c.start.IsZero() || len(w.ops) == 0 && !w.tell {
		var err error
		if c.start.IsZero() {
			err = errApart
		}
		w.After(func() {
			for _, f := range then {
				f(err)
			}
		})
		return nil
	}
	number := c.number
	for last := false; !last; {
		part := w.ops[:min(len(w.ops), partMost)]
		w.ops = w.ops[len(part):]
		var st serviceplatform.SessionState
		if last = len(w.ops) == 0; last {
			st = w.state
			st.Heard = s.places()
		}
		st.Changes = part
		number++
		st.Node, st.Store, st.Start, st.Number, st.Clock, st.More = c.node, c.store, c.start, number, s.clock.Load(), !last
		data, err := json.Marshal(&st)
		if err != nil {
			return err
		}
		if err := w.Say(&message.Message{Subject: serviceplatform.SessionStateSubject(c.node), ContentType: "application/json", Data: data}); err != nil {
			return err
		}
	}
	c.number = number
	for _, j := range w.joins {
		j.start, j.number = c.start, number
	}
	if len(w.joins) > 0 {
		s.mu.Lock()
		c.shares.joins = append(c.shares.joins, w.joins...)
		s.mu.Unlock()
	}
	c.moved.Store(false)
	if err := c.save(w.Tx); err != nil {
		return err
	}
	queued := w.queued
	if len(then)+len(queued) > 0 {
		w.Said(func(err error) {
			if err == nil {
				s.shipped(queued)
			}
			for _, f := range then {
				f(err)
			}
		})
	}
	return nil
}

// shipped lets the clients of sessions have what the neighbours can know by now.
func (s *Store) shipped(queued map[*Session]uint64) {
	var list []Client
	s.mu.Lock()
	for x, n := range queued {
		if x.shipped = max(x.shipped, n); x.client != nil {
			list = append(list, x.client)
		}
	}
	s.mu.Unlock()
	for _, c := range list {
		c.Wake()
	}
}

// apply does what another node has done. Its wills are kept apart from those of this node. Of what this node has done
// itself, own, it only follows which sessions are kept.
func (s *Store) apply(w *writing, st *serviceplatform.SessionState, ops []byte, own bool) error {
	c, tx := s.cluster, w.Tx
	for len(ops) > 0 {
		kind, key, value, rest, err := nextOp(ops)
		if err != nil {
			return err
		}
		ops = rest
		switch {
		case kind == opGift:
			var g *gift
			if g, err = parseGift(string(key), value); err == nil {
				s.gifted(w, g)
			}
		case kind == opOffer:
			err = s.offered(tx, key, value, st.Heard)
		case kind == opReset && own:
		case kind == opReset:
			err = wipe(tx, message.ID(key))
		case !shared(key) || len(key) < 17:
			err = errors.New("a neighbour sets a key that is not shared")
		case key[0] == kindSession && kind == opSet:
			err = c.index(tx, st.Node, message.ID(key[1:17]), value)
		case key[0] == kindSession:
			err = c.index(tx, st.Node, message.ID(key[1:17]), nil)
		case key[0] == kindWill:
			key = heldWill(st.Node, key[1:])
		}
		switch {
		case err != nil:
			return err
		case own:
		case kind == opSet:
			tx.Set(key, value)
		case kind == opDelete:
			tx.Delete(key)
		}
	}
	return nil
}

// wipe deletes all that is stored of a session.
func wipe(tx component.Tx, id message.ID) error {
	for _, kind := range []byte{kindSession, kindSent, kindQueue, kindReceived, kindReleased} {
		if err := wipeAll(tx, key(kind, id)); err != nil {
			return err
		}
	}
	return nil
}

// wipeAll deletes the keys with a prefix.
func wipeAll(tx component.Tx, prefix []byte) error {
	var keys [][]byte
	if err := tx.Scan(prefix, func(k, _ []byte) bool { keys = append(keys, slices.Clone(k)); return true }); err != nil {
		return err
	}
	for _, k := range keys {
		tx.Delete(k)
	}
	return nil
}

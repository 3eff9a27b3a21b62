package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"slices"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// states are where the nodes tell of their sessions.
const states = message.Pattern("service_platform.broker.session.*")

// hearStates follows what nodes tell of their sessions, and says whether there was anything else in the batch.
func (s *Store) hearStates(ctx context.Context, tx component.Tx, b *bus.Stored) (more bool, err error) {
	w := tx.(*writing)
	s.cluster.shares.at, s.cluster.shares.gifts = b.Position, 0
	var m message.Message
	cursor := b.Batch.Cursor()
	for cursor.Next(&m) {
		if !states.Matches(m.Subject) {
			more = true
			continue
		}
		var st serviceplatform.SessionState
		if err := json.Unmarshal(m.Data, &st); err != nil {
			continue // it is kept to its contract where it is said
		}
		if err := s.hearState(ctx, w, &st); err != nil {
			return more, err
		}
	}
	return more, cursor.Err()
}

func (s *Store) hearState(ctx context.Context, w *writing, st *serviceplatform.SessionState) error {
	c := s.cluster
	s.observe(st.Clock)
	n := c.nodes[st.Node]
	if n == nil {
		n = new(neighbour)
		s.mu.Lock()
		c.nodes[st.Node] = n
		s.mu.Unlock()
	}
	if !s.follows(n, st) {
		return nil
	}
	if st.Begins {
		if err := s.begins(w, n, st); err != nil {
			return err
		}
	}
	s.mu.Lock()
	n.Store, n.Start, n.Number, n.Gone = st.Store, st.Start, st.Number, false
	n.Lacks = n.Lacks && !st.Whole
	s.mu.Unlock()
	if err := s.sharing(w, st.Node, st.Shares); err != nil {
		return err
	}
	for _, q := range st.Claims {
		if err := s.claimed(w, st.Node, q); err != nil {
			return err
		}
	}
	// What this store has told itself it has done before it was heard.
	own := st.Node == c.node && st.Store == c.store
	ops, err := s.joinParts(w.Tx, st)
	if err == nil {
		err = s.locked(func() error { return s.apply(w, st, ops, own) })
	}
	if err != nil {
		return err
	}
	if !st.More {
		s.mu.Lock()
		n.Heard = st.Heard
		err := s.received(w, st.Store, st.Heard)
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if own {
		s.heardJoins(st)
	}
	s.joined(w, st.Joins)
	if err := keep(w.Tx, kindNode, st.Node, n); err != nil {
		return err
	}
	for _, h := range st.Holds {
		if err := s.holds(w, st.Node, h); err != nil {
			return err
		}
	}
	for _, y := range st.Yields {
		if err := s.yielded(ctx, w, st.Node, y, st.Heard); err != nil {
			return err
		}
	}
	if st.Asks != nil {
		s.asked(w, st.Node, *st.Asks)
	}
	if !st.Given.IsZero() {
		err = s.given(w, st.Node, st.Given)
	}
	if err == nil && st.Whole {
		err = s.hasAll(w, st.Node)
	}
	if err == nil && st.Adopts != nil {
		err = s.adopted(ctx, w, st.Node, st.Adopts)
	}
	if err == nil {
		gifts := w.gifts
		w.gifts = nil
		err = s.accept(ctx, w, gifts)
	}
	w.After(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cluster.shares.goOn()
	})
	return err
}

func (s *Store) locked(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return f()
}

// follows says whether a message counts: it is of the node's newest start, and the next one of it.
func (s *Store) follows(n *neighbour, st *serviceplatform.SessionState) bool {
	switch {
	case n.Start.IsZero(): // it is met for the first time
		return true
	case st.Start != n.Start:
		if bytes.Compare(st.Start[:], n.Start[:]) < 0 {
			return false
		}
		if !st.Begins {
			s.cluster.end("node %s begins without a word: what it said before could not be read", st.Node)
		}
		return true
	case n.Gone || st.Number <= n.Number:
		return false
	case st.Number > n.Number+1:
		s.cluster.end("messages %d to %d of node %s could not be read", n.Number+1, st.Number-1, st.Node)
	}
	return true
}

// joinParts gives the operations of a message, with those of the parts before it. One that is a part itself is put aside.
func (s *Store) joinParts(tx component.Tx, st *serviceplatform.SessionState) (ops []byte, err error) {
	prefix := append(append([]byte{kindPart}, st.Node...), 0)
	if st.More {
		tx.Set(binary.BigEndian.AppendUint64(prefix, st.Number), st.Changes)
		return nil, nil
	}
	var keys [][]byte
	if err := tx.Scan(prefix, func(k, v []byte) bool {
		keys = append(keys, slices.Clone(k))
		ops = append(ops, v...)
		return true
	}); err != nil {
		return nil, err
	}
	for _, k := range keys {
		tx.Delete(k)
	}
	return append(ops, st.Changes...), nil
}

// begins takes from a node what has ended with its former start: clients of which nothing is kept, and its claims. Where
// the node has lost what it kept, another one that has all of it adopts what was its own.
func (s *Store) begins(w *writing, n *neighbour, st *serviceplatform.SessionState) error {
	c, node := s.cluster, st.Node
	if err := wipeAll(w.Tx, append(append([]byte{kindPart}, node...), 0)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !n.Start.IsZero() && !n.Gone && n.Former.IsZero() && n.Store != st.Store {
		n.Former, n.Behind, n.FormerStore = n.Start, n.Heard, n.Store
	}
	if _, ok := c.shares.heirs[st.Store]; ok { // it is back, and what it is given from now on is its own
		delete(c.shares.heirs, st.Store)
		w.Tx.Delete(key(kindHeir, st.Store))
	}
	if err := s.uncasual(w, node); err != nil {
		return err
	}
	n.Lacks = st.Lacks
	for key, x := range c.claims {
		if x.Next == node {
			x.Next = ""
			if err := c.setClaim(w.Tx, key, x); err != nil {
				return err
			}
		}
		if x.Owner == node && x.Session.IsZero() {
			if err := s.passOn(w, key, x); err != nil {
				return err
			}
		}
	}
	if node != c.node {
		c.changed()
	}
	if node == c.node && st.Start == c.start && c.begun != nil {
		begun := c.begun
		c.begun, c.speaks = nil, true
		w.After(func() { close(begun) })
	}
	return nil
}

// passOn gives a client that nothing is kept of to who has claimed it, if anybody has. The store's mutex is held.
func (s *Store) passOn(w *writing, key string, x *claim) error {
	next := x.Next
	if next == "" {
		w.After(func() { s.settleWaits(key, nil) })
		return s.cluster.setClaim(w.Tx, key, nil)
	}
	if next == s.cluster.node {
		w.After(func() { s.granted(key) })
	}
	return s.cluster.setClaim(w.Tx, key, &claim{Owner: next})
}

// claimed hears that a client is at a node.
func (s *Store) claimed(w *writing, by string, q serviceplatform.Claim) error {
	c := s.cluster
	s.mu.Lock()
	defer s.mu.Unlock()
	key := Who(q.Client).Key()
	if by == c.node {
		delete(c.asked, key)
	}
	x := c.claims[key]
	switch {
	case x == nil:
		x = &claim{Owner: by}
		if by == c.node {
			w.After(func() { s.granted(key) })
		}
	case x.Owner == by: // its clients are faster than those who have claimed it
		if x.Next == c.node {
			w.After(func() { s.settleWaits(key, errFormer) })
		}
		if by == c.node {
			w.After(func() { s.settleWaits(key, nil) })
		}
		x.Next, x.Clean = "", false
	default:
		if x.Next == c.node && by != c.node {
			w.After(func() { s.settleWaits(key, errFormer) })
		}
		x.Next, x.Clean = by, q.Clean
		if x.Owner == c.node {
			w.After(func() { s.spawn(func() { s.yield(key) }) })
		}
	}
	return c.setClaim(w.Tx, key, x)
}

// yielded hears that a client is a node's no more.
func (s *Store) yielded(ctx context.Context, w *writing, by string, y serviceplatform.Yield, heard []serviceplatform.Place) error {
	c := s.cluster
	key := Who(y.Client).Key()
	s.mu.Lock()
	x := c.claims[key]
	if x == nil || x.Owner != by {
		s.mu.Unlock()
		return nil
	}
	if by == c.node {
		delete(c.giving, key)
	} else if y.Taken {
		w.After(func() { s.taken(key) })
	}
	id := x.Session
	if id.IsZero() {
		defer s.mu.Unlock()
		return s.passOn(w, key, x)
	}
	if x.Next == "" {
		x.Next = by // who has claimed it is gone: it stays where it is
	}
	x = &claim{Owner: x.Next, Session: id, From: x.From}
	err := c.setClaim(w.Tx, key, x)
	if c.whole != nil && !c.whole[key] {
		c.changed() // nobody tells of it: it was between two nodes
	}
	s.mu.Unlock()
	if err != nil || x.Owner != c.node {
		return err
	}
	w.After(func() { s.granted(key) })
	return s.take(ctx, w, []taken{{id, heard, y.Received}})
}

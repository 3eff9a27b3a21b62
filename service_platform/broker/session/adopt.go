package session

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// Left is what a node has left to be told when it was gone.
type Left struct {
	Wills []Will
	// Absent are devices that were told to be connected there, and are not, with the version of that news.
	Absent []Absent
}

// Absent is a device that is not connected any more.
type Absent struct {
	Device  string
	Last    device.Presence // what was told last
	Version uint64
}

// Adopt makes all that was a node's own this node's. It wants the node to be gone, and fenced, and all to be heard that
// it has said; or, where lost is set, to be there and to have lost what it kept. It returns when all nodes that come to
// hear it know so.
func (s *Store) Adopt(ctx context.Context, node string, lost bool) (left Left, err error) {
	c := s.cluster
	wait := make(chan Left, 1)
	err = s.changeSoon(ctx, func(tx component.Tx) error {
		w := tx.(*writing)
		s.mu.Lock()
		defer s.mu.Unlock()
		n := c.nodes[node]
		if n == nil || n.orphaned(lost).IsZero() || c.start.IsZero() {
			wait <- Left{} // there is nothing, or another one has it
			return nil
		}
		c.adopts[node] = wait
		w.state.Adopts, w.tell = &serviceplatform.Adopted{Node: node, Start: n.orphaned(lost)}, true
		return nil
	})
	if err != nil {
		return left, err
	}
	select {
	case left = <-wait:
		return left, nil
	case <-ctx.Done():
		return left, ctx.Err()
	}
}

// orphaned is the start of the node that is to be adopted: that of a store that it has lost, or the last one; zero where
// there is none.
func (n *neighbour) orphaned(lost bool) message.ID {
	switch {
	case lost:
		return n.Former
	case n.Gone:
		return message.ID{}
	}
	return n.Start
}

// adopted hears that a node has adopted what was another's own.
func (s *Store) adopted(ctx context.Context, w *writing, by string, a *serviceplatform.Adopted) error {
	c := s.cluster
	var done func(Left)
	if wait := c.adopts[a.Node]; by == c.node && wait != nil {
		delete(c.adopts, a.Node)
		done = func(l Left) { wait <- l }
	}
	n := c.nodes[a.Node]
	if n == nil || a.Start != n.Former && a.Start != n.orphaned(false) {
		if done != nil {
			w.After(func() { done(Left{}) })
		}
		return nil
	}
	s.mu.Lock()
	lost, heard, store := a.Start == n.Former, n.Heard, n.Store
	if lost {
		heard, store = n.Behind, n.FormerStore
		n.Former, n.Behind, n.FormerStore = message.ID{}, nil, message.ID{}
	} else {
		n.Gone = true
		if err := s.uncasual(w, a.Node); err != nil {
			s.mu.Unlock()
			return err
		}
	}
	c.changed()
	s.mu.Unlock()
	if !lost {
		if err := wipeAll(w.Tx, append(append([]byte{kindPart}, a.Node...), 0)); err != nil {
			return err
		}
	}
	if err := keep(w.Tx, kindNode, a.Node, n); err != nil {
		return err
	}
	if a.Node == c.node && n.Store == c.store && !lost {
		if err := s.lose(w.Tx, by); err != nil {
			return err
		}
	}
	ids, err := s.inherit(w, by, a.Node)
	if err != nil {
		return err
	}
	gifts, err := s.bequeath(w, store, c.nodes[by].Store)
	if err != nil {
		return err
	}
	w.gifts = append(w.gifts, gifts...) // for those who are there now
	wills, err := moveWills(w.Tx, a.Node, by, by == c.node)
	if err != nil || by != c.node {
		return err
	}
	var list []taken
	for _, id := range ids {
		list = append(list, taken{id: id, heard: heard})
	}
	if err := s.take(ctx, w, list); err != nil {
		return err
	}
	w.tell = true // who waits for the node that draws for a group waits for this one
	left := Left{Wills: s.judge(wills)}
	if left.Absent, err = s.absent(w.Tx, func(node string) bool { n := c.nodes[node]; return node == a.Node || n != nil && n.Gone }); err != nil {
		return err
	}
	if done != nil {
		w.After(func() { done(left) })
	}
	return nil
}

// inherit gives a node's clients to another one, and says which sessions are kept of them.
func (s *Store) inherit(w *writing, by, node string) (ids []message.ID, err error) {
	c := s.cluster
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, x := range c.claims {
		if x.Next == node {
			x.Next = ""
			if err := c.setClaim(w.Tx, key, x); err != nil {
				return nil, err
			}
		}
		if x.Owner != node {
			continue
		}
		id := x.Session
		if id.IsZero() {
			if err := s.passOn(w, key, x); err != nil {
				return nil, err
			}
			continue
		}
		ids = append(ids, id)
		x.Owner, x.From = by, node
		if x.Next == by {
			x.Next = ""
		}
		if err := c.setClaim(w.Tx, key, x); err != nil {
			return nil, err
		}
		if by == c.node {
			w.After(func() {
				if s.wanted(key) {
					s.spawn(func() { s.yield(key) })
				} else {
					s.settleWaits(key, nil)
				}
			})
		}
	}
	return ids, nil
}

// wanted says whether another node has claimed a client that is this node's.
func (s *Store) wanted(key string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	x := s.cluster.claims[key]
	return x != nil && x.Owner == s.cluster.node && x.Next != ""
}

// moveWills gives a node's wills to another one, and lists those that are this node's now.
func moveWills(tx component.Tx, node, by string, own bool) (list []Will, err error) {
	prefix := heldWill(node, nil)
	moved := map[string][]byte{}
	if err := tx.Scan(prefix, func(k, v []byte) bool { moved[string(k)] = slices.Clone(v); return true }); err != nil {
		return nil, err
	}
	for k, v := range moved {
		id := []byte(k)[len(prefix):]
		tx.Delete([]byte(k))
		if !own {
			tx.Set(heldWill(by, id), v)
			continue
		}
		tx.Set(append([]byte{kindWill}, id...), v)
		w, err := parseWill(v)
		if err != nil || len(id) != 16 {
			continue
		}
		w.ID = message.ID(id)
		list = append(list, w)
	}
	return list, nil
}

// judge gives the wills of clients whose connections have ended their delays: a session that is over has none, and of
// one that goes on elsewhere nothing is to be said that would have waited (MQTT-3.1.3-9).
func (s *Store) judge(wills []Will) (list []Will) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, w := range wills {
		x, here := (*Session)(nil), false
		key, kept := "", false
		if s.cluster != nil {
			key, kept = s.cluster.keys[w.Session]
			x = s.sessions[key]
			here = kept && x != nil && x.rec.ID == w.Session
		}
		switch {
		case s.cluster == nil:
		case here:
			w.Delay = min(w.Delay, time.Duration(x.rec.Expiry)*time.Second)
		case kept && w.Delay > 0:
			w.Delay = -1
		default:
			w.Delay = 0
		}
		list = append(list, w)
	}
	return list
}

// absent lists the devices of which nodes have told last that they are there, and that are not.
func (s *Store) absent(tx component.Tx, of func(node string) bool) (list []Absent, err error) {
	var all []Absent
	err = tx.Scan([]byte{kindPresence}, func(k, v []byte) bool {
		a := Absent{Device: string(k[1:])}
		if json.Unmarshal(v, &a.Last) == nil && a.Last.Online && of(a.Last.Node) {
			all = append(all, a)
		}
		return true
	})
	return s.trulyAbsent(all), err
}

// stranded tells that a device is gone that has left another node for this one, and was not let in.
func (s *Store) stranded(key string) {
	who := clientOf(key)
	if who.Mount != "" || who.Identity == "" {
		return
	}
	var left Left
	err := s.changeSoon(context.Background(), func(tx component.Tx) error {
		v, err := tx.Get(append([]byte{kindPresence}, who.Identity...))
		a := Absent{Device: who.Identity}
		if v != nil && json.Unmarshal(v, &a.Last) == nil && a.Last.Online {
			left.Absent = s.trulyAbsent([]Absent{a})
		}
		return err
	})
	if err == nil && len(left.Absent) > 0 {
		s.cluster.absent(left)
	}
}

// trulyAbsent leaves out devices that are connected, here or where it is another node's to tell.
func (s *Store) trulyAbsent(all []Absent) (list []Absent) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, a := range all {
		client := a.Last.Client
		if client == "" {
			client = a.Device
		}
		key := Who{Identity: a.Device, ClientID: client}.Key()
		if of := s.cluster.claims[key]; of != nil && of.Owner != s.cluster.node {
			continue // it is that node's to tell
		}
		if x := s.sessions[key]; x != nil && x.client != nil {
			continue
		}
		a.Version = s.Version()
		list = append(list, a)
	}
	return list
}

// Left is what a former process of this node has left to be told. It is asked for before any client is there.
func (s *Store) Left(ctx context.Context) (left Left, err error) {
	wills, err := s.Wills()
	if err != nil {
		return left, err
	}
	err = s.changeSoon(ctx, func(tx component.Tx) (err error) {
		c := s.cluster
		left.Absent, err = s.absent(tx, func(node string) bool { n := c.nodes[node]; return node == c.node || n != nil && n.Gone })
		return err
	})
	left.Wills = s.judge(wills)
	return left, err
}

// lose forgets what was this node's own, and another one has adopted: what was not told in time is not.
func (s *Store) lose(tx component.Tx, to string) error {
	c := s.cluster
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, list := range c.waits {
		for _, wait := range list {
			wait <- errApart
		}
	}
	clear(c.waits)
	for _, x := range s.sessions {
		if x.Kept() {
			if err := wipe(tx, x.rec.ID); err != nil {
				return err
			}
			s.count(x, -1)
		}
		x.moved = true
		s.forget(x)
	}
	if err := wipeAll(tx, []byte{kindWill}); err != nil {
		return err
	}
	clear(c.ending)
	clear(c.giving)
	clear(c.asked)
	c.asks = nil
	c.start, c.number = message.ID{}, 0
	if c.lacks == "" {
		c.lacks = c.node
	}
	if c.speaks {
		c.end("node %s has adopted what was this node's own: it was taken for gone", to)
	}
	return c.save(tx)
}

// Heard says whether logs were heard up to places.
func (s *Store) Heard(places []bus.Position) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return !slices.ContainsFunc(places, func(p bus.Position) bool {
		return s.heard[part{p.Log, p.Generation, p.Partition}] < p.Sequence
	})
}

// Orphans are nodes that have lost what they kept: what was their own is to be adopted, though they are there.
func (s *Store) Orphans() (list []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for name, n := range s.cluster.nodes {
		if !n.Former.IsZero() {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

package session

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// everything is what a node lacks that has heard nothing of what others keep.
const everything = "*"

const (
	giveAtOnce = 256       // sessions in one commit,
	giveBytes  = 512 << 10 // or so many bytes of what is kept of them
	askAgain   = 30 * time.Second
)

// Lacks says whether the node has not all that the others keep.
func (s *Store) Lacks() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.cluster.lacks != ""
}

// Fill asks the others for what this node lacks, and returns when it has it. others are the nodes that there are now;
// where one of them does not answer in time, stalled is called.
func (s *Store) Fill(ctx context.Context, others func() []string, patience time.Duration, stalled func(ctx context.Context)) error {
	c := s.cluster
	for s.Lacks() {
		id := message.NewID(s.env.Now())
		changed := make(chan struct{}, 1)
		err := s.changeSoon(ctx, func(tx component.Tx) error {
			w := tx.(*writing)
			s.mu.Lock()
			defer s.mu.Unlock()
			c.asking, c.given, c.named, c.whole, c.news = id, map[string]bool{}, map[string]bool{}, map[string]bool{}, changed
			w.state.Asks, w.tell = &serviceplatform.Ask{ID: id, Of: lackOf(c.lacks)}, true
			return nil
		})
		if err != nil {
			return err
		}
		whole, err := s.filled(ctx, others, changed, patience)
		if err != nil {
			return err
		}
		if !whole {
			stalled(ctx)
			continue
		}
		err = s.changeSoon(ctx, func(tx component.Tx) error {
			w := tx.(*writing)
			s.mu.Lock()
			defer s.mu.Unlock()
			c.lacks, c.touched, c.given, c.named, c.whole, c.news = "", nil, nil, nil, nil, nil
			w.state.Whole, w.tell = true, true
			return c.save(tx)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func lackOf(lacks string) string {
	if lacks == everything {
		return ""
	}
	return lacks
}

// filled waits until all others have given what was asked for. It gives false where it has to be asked for again, since one of
// them has begun anew, or is gone and another one has what was its own.
func (s *Store) filled(ctx context.Context, others func() []string, changed chan struct{}, patience time.Duration) (bool, error) {
	late := time.NewTimer(patience)
	defer late.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.RLock()
		missing := slices.ContainsFunc(others(), func(node string) bool { return !s.cluster.given[node] })
		s.mu.RUnlock()
		if !missing {
			return true, nil
		}
		select {
		case <-tick.C:
		case <-changed:
			return false, nil
		case <-late.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// changed says that another node has begun anew, or is gone: what was asked of it is not answered. The store's mutex is held.
func (c *cluster) changed() {
	if c.news != nil {
		select {
		case c.news <- struct{}{}:
		default:
		}
	}
}

// give tells a node that has asked what it lacks of what is this node's own.
func (s *Store) give(to string, ask serviceplatform.Ask) error {
	ctx, c := context.Background(), s.cluster
	s.mu.RLock()
	var keys []string
	for key, x := range c.claims {
		if x.Owner == c.node && (ask.Of == "" || x.From == ask.Of) {
			keys = append(keys, key)
		}
	}
	start := c.start
	s.mu.RUnlock()
	slices.Sort(keys)
	for len(keys) > 0 {
		err := s.changeSoon(ctx, func(tx component.Tx) (err error) {
			keys, err = s.giveSome(tx.(*writing), start, keys)
			return err
		})
		if err != nil {
			return err
		}
	}
	if ask.Of == "" {
		if err := s.giveRest(ctx, start, to); err != nil {
			return err
		}
	}
	return s.changeSoon(ctx, func(tx component.Tx) error {
		w := tx.(*writing)
		w.state.Given, w.tell = ask.ID, true
		return c.still(start)
	})
}

// errBegun ends what a former start of the node was about.
var errBegun = errors.New("the node has begun anew")

func (c *cluster) still(start message.ID) error {
	if c.start != start {
		return errBegun
	}
	return nil
}

// giveSome tells of the first of clients, as many as one commit should hold, and gives the rest.
func (s *Store) giveSome(w *writing, start message.ID, keys []string) ([]string, error) {
	c := s.cluster
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := c.still(start); err != nil {
		return nil, err
	}
	names := 0 // bytes
	for n := 0; len(keys) > 0 && n < giveAtOnce && len(w.ops) < giveBytes && names < announceMost; n++ {
		key := keys[0]
		keys = keys[1:]
		names += len(key)
		x := c.claims[key]
		if x == nil || x.Owner != c.node || c.giving[key] {
			continue // whoever has it by now tells of it, or has been told
		}
		if of := s.sessions[key]; of != nil && of.Kept() {
			if err := w.all(of.rec.ID); err != nil {
				return nil, err
			}
		}
		w.tell = true
		w.state.Holds = append(w.state.Holds, serviceplatform.Hold{Client: clientOf(key), Next: x.Next, Clean: x.Clean, From: x.From})
	}
	return keys, nil
}

// giveRest tells of what else is this node's own, and one of all nodes tells of what is the same at each: retained messages,
// whether devices are connected, and what nodes were given that are not known to have taken it.
func (s *Store) giveRest(ctx context.Context, start message.ID, to string) error {
	c := s.cluster
	var keys [][]byte
	err := s.changeSoon(ctx, func(tx component.Tx) error {
		w := tx.(*writing)
		if err := w.own(); err != nil {
			return err
		}
		s.mu.Lock()
		for key, nodes := range c.shares.casual {
			if n := nodes[c.node]; n > 0 {
				s.tellGroup(w, key, n)
			}
		}
		s.mu.Unlock()
		if !c.speaksForAll(to) {
			return c.still(start)
		}
		all := func(k, _ []byte) bool { keys = append(keys, slices.Clone(k)); return true }
		return errors.Join(w.Scan([]byte{kindRetained}, all), w.Scan([]byte{kindPresence}, all), w.Scan([]byte{kindGift}, all), c.still(start))
	})
	for err == nil && len(keys) > 0 {
		err = s.changeSoon(ctx, func(tx component.Tx) error {
			w := tx.(*writing)
			for len(keys) > 0 && len(w.ops) < giveBytes {
				v, err := w.Get(keys[0])
				if err != nil {
					return err
				}
				if v != nil {
					w.add(opOffer, keys[0], v)
				}
				keys = keys[1:]
			}
			return c.still(start)
		})
	}
	return err
}

// speaksForAll says whether this node is the one that tells another one of what is the same at each: the first by name
// of those that lack nothing.
func (c *cluster) speaksForAll(to string) bool {
	best, bestLacks := "", true
	for name, n := range c.nodes {
		if n.Gone || name == to {
			continue
		}
		if best == "" || bestLacks && !n.Lacks || bestLacks == n.Lacks && name < best {
			best, bestLacks = name, n.Lacks
		}
	}
	return best == c.node
}

// asked hears that a node lacks something.
func (s *Store) asked(w *writing, by string, ask serviceplatform.Ask) {
	c := s.cluster
	if by == c.node || c.start.IsZero() {
		return
	}
	w.After(func() {
		s.spawn(func() {
			if err := s.give(by, ask); err != nil && !errors.Is(err, errBegun) {
				s.env.Log.Warn("tell another node what it lacks", "node", by, "error", err)
			}
		})
	})
}

// holds hears whose a client is, which only a node that lacks something does not know.
func (s *Store) holds(w *writing, by string, h serviceplatform.Hold) error {
	c := s.cluster
	if c.lacks == "" || by == c.node {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := Who(h.Client).Key()
	x := c.claims[key]
	switch {
	case x == nil:
		x = &claim{Owner: by, Next: h.Next, Clean: h.Clean}
	case x.Owner != by: // who has claimed it was taken to have it
		x.Owner, x.Next = by, x.Owner
	}
	x.From = h.From
	if c.whole != nil {
		c.whole[key] = true
	}
	return c.setClaim(w.Tx, key, x)
}

// given hears that a node has told all that another one lacks.
func (s *Store) given(w *writing, by string, id message.ID) error {
	c := s.cluster
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != c.asking || c.given == nil {
		return nil
	}
	if c.lacks == everything { // what the node has not named is not its own
		for key, x := range c.claims {
			if x.Owner == by && !c.named[key] {
				if err := c.setClaim(w.Tx, key, nil); err != nil {
					return err
				}
			}
		}
	}
	c.given[by] = true
	return nil
}

// hasAll hears that a node lacks nothing any more.
func (s *Store) hasAll(w *writing, by string) error {
	c := s.cluster
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, x := range c.claims {
		if x.From == by {
			x.From = ""
			if err := c.setClaim(w.Tx, key, x); err != nil {
				return err
			}
		}
	}
	return nil
}

// touch notes where a retained message was heard, while it may be offered by a node that has heard less, or more.
func (c *cluster) touch(key []byte, at bus.Position) {
	if c.lacks == everything {
		if c.touched == nil {
			c.touched = map[string]bus.Position{}
		}
		c.touched[string(key)] = at
	}
}

// offered takes what another node keeps as this one would, where that is newer.
func (s *Store) offered(tx component.Tx, key, value []byte, heard []serviceplatform.Place) error {
	c := s.cluster
	if c.lacks != everything {
		return nil
	}
	old, err := tx.Get(key)
	if err != nil {
		return err
	}
	switch key[0] {
	case kindRetained:
		if at, ok := c.touched[string(key)]; ok {
			for _, p := range heard {
				if (part{at.Log, at.Generation, at.Partition}) == partOf(p) && at.Sequence > p.Sequence {
					return nil
				}
			}
		}
		if old == nil {
			s.retained++
		}
		tx.Set(key, value)
	case kindPresence:
		var is, was device.Presence
		if json.Unmarshal(value, &is) == nil && (old == nil || json.Unmarshal(old, &was) == nil && was.Version < is.Version) {
			s.observe(is.Version)
			tx.Set(key, value)
		}
	case kindGift:
		return s.offeredGift(tx, key, value)
	}
	return nil
}

// offeredGift takes a gift that was told before this node was there: it may come to adopt the node whose it is. What it was told itself lies
// at the same place, under a number of its own.
func (s *Store) offeredGift(tx component.Tx, key, value []byte) error {
	c := s.cluster
	if len(key) != len(giftKey(message.ID{}, bus.Position{}, 0)) {
		return errors.New("a gift that a neighbour keeps has no place")
	}
	store, at := message.ID(key[1:17]), key[:len(key)-4]
	if store == c.store {
		return nil
	}
	had := false
	if err := tx.Scan(at, func(_, v []byte) bool { had = had || bytes.Equal(v, value); return !had }); err != nil || had {
		return err
	}
	tx.Set(append(slices.Clone(at), 0xff, key[len(key)-3], key[len(key)-2], key[len(key)-1]), value)
	c.shares.pending[store]++
	return nil
}

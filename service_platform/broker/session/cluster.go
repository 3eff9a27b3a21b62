package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// cluster is what a store with neighbours knows of the sessions of all nodes. Each of them tells what it does on
// `service_platform.broker.session.<node>`, and all follow what is told, themselves too, in the log's order alone. So
// whose a client is, is the same everywhere at the same place of the log, and each node has a copy of what is kept.
//
// What was told of the nodes only the handlers' goroutine changes, under the store's mutex: so it reads that without. Who waits,
// what is to be told, and which members have come to this node, any goroutine changes under it.
type cluster struct {
	node   string
	store  message.ID // of what is kept here
	start  message.ID // under which this node speaks; zero while it is not among the others
	number uint64     // of its last message

	speaks bool   // it has heard that its start begins
	lacks  string // what it has not of what others keep: what was a node's own, or everything
	gone   func(session message.ID)
	absent func(Left)

	claims map[string]*claim     // by key
	nodes  map[string]*neighbour // this one too
	keys   map[message.ID]string // of the sessions that are kept, wherever
	alone  []*Session            // kept since before there were neighbours, who know nothing of them
	moved  atomic.Bool           // something was heard that the neighbours have not been told to be
	logs   map[message.ID]string // names
	recent map[part]*recent

	// What any goroutine changes, as does shares.casual of this node, shares.shifted and shares.finding.
	waits  map[string][]chan error // connections that wait for their client to be this node's
	asked  map[string]bool         // claims that were made and not heard
	asks   []serviceplatform.Claim // to be made
	ending map[string]struct{}     // what may be given up
	giving map[string]bool         // what is: the node says so, and has not heard itself
	kick   chan struct{}           // there is something to announce
	begun  chan struct{}           // closed when this node has heard that its start begins
	adopts map[string]chan Left    // nodes whose own this one wants to have

	asking  message.ID              // what this node has asked for
	given   map[string]bool         // nodes that have answered
	named   map[string]bool         // clients of whom was said since whose they are
	whole   map[string]bool         // clients of whom was told all that is kept
	news    chan struct{}           // it has to be asked for again
	touched map[string]bus.Position // where retained messages were heard

	shares shares

	ended   chan error // holds why this node is no more among the others
	closing bool
	work    sync.WaitGroup
}

// claim says whose a client is: of the node where it was connected last, as long as it is connected or its session kept.
type claim struct {
	Owner   string     `json:"owner"`
	Session message.ID `json:"session,omitzero"` // that is kept, where one is
	Next    string     `json:"next,omitempty"`   // who has claimed it since
	Clean   bool       `json:"clean,omitempty"`  // and wants nothing of what is kept
	From    string     `json:"from,omitempty"`   // whose it was, when that node was gone
}

// neighbour is a node, as far as it was heard.
type neighbour struct {
	Store       message.ID              `json:"store"`
	Start       message.ID              `json:"start"`
	Number      uint64                  `json:"number"`
	Lacks       bool                    `json:"lacks,omitempty"` // it has not all that is kept
	Gone        bool                    `json:"gone,omitempty"`  // another node has adopted what was its own
	Former      message.ID              `json:"former,omitzero"` // the start of a store that the node has lost, while nobody has adopted that
	FormerStore message.ID              `json:"former_store,omitzero"`
	Heard       []serviceplatform.Place `json:"heard,omitempty"`
	Behind      []serviceplatform.Place `json:"behind,omitempty"` // Heard, of Former
}

// The keys of a store with neighbours.
const (
	kindSelf     = 'i'
	kindNode     = 'm' // node
	kindClaim    = 'c' // key of a session
	kindPart     = 'h' // node, zero, number: of a message that came in parts
	kindHeld     = 'W' // node, zero, will id: another node's will
	kindPresence = 'O' // device
	kindCasual   = 'S' // node, zero, key of a group: how many members it has there whose sessions are not kept
	kindHeir     = 'H' // store that is gone: the one that has what was its own
	kindHand     = 'G' // store, message, group: see hand.go
	kindGift     = 'g' // store, where it was heard: what it was given, and is not known to have taken
)

// self is what a store keeps of its own node.
type self struct {
	Store  message.ID `json:"store"`
	Start  message.ID `json:"start"`
	Number uint64     `json:"number"`
	Lacks  string     `json:"lacks,omitempty"`
}

func heldWill(node string, id []byte) []byte {
	return append(append(append([]byte{kindHeld}, node...), 0), id...)
}

// Join gives the store neighbours. It comes before everything else. moved is told of sessions that go on at another node,
// absent of a device that has come to this node and is gone before it was let in. Both may block.
func (s *Store) Join(moved func(session message.ID), absent func(Left)) {
	s.cluster = &cluster{node: s.env.Node, gone: moved, absent: absent, waits: map[string][]chan error{}, asked: map[string]bool{}, adopts: map[string]chan Left{}, ending: map[string]struct{}{},
		giving: map[string]bool{}, kick: make(chan struct{}, 1), ended: make(chan error, 1)}
	s.cluster.forget()
}

// forget begins anew with what is read from the store.
func (c *cluster) forget() {
	c.claims, c.nodes = map[string]*claim{}, map[string]*neighbour{}
	c.keys = map[message.ID]string{}
	c.logs, c.recent = map[message.ID]string{}, map[part]*recent{}
	c.alone = nil
	c.shares = newShares()
}

// load reads what is known of the nodes; the sessions come after it.
func (c *cluster) load(tx component.Tx) error {
	c.forget()
	v, err := tx.Get([]byte{kindSelf})
	if err != nil {
		return err
	}
	var me self
	if v != nil {
		if err := json.Unmarshal(v, &me); err != nil {
			return err
		}
	} else {
		me.Store, me.Lacks = message.NewID(tx.Now()), everything
	}
	c.store, c.start, c.number, c.lacks = me.Store, me.Start, me.Number, me.Lacks
	if err := c.save(tx); err != nil {
		return err
	}
	return errors.Join(c.shares.load(tx), readAll(tx, kindNode, func(name string, n *neighbour) { c.nodes[name] = n }),
		readAll(tx, kindClaim, func(key string, x *claim) {
			c.claims[key] = x
			if !x.Session.IsZero() {
				c.keys[x.Session] = key
			}
		}))
}

// readAll reads what is kept as JSON under one kind of key.
func readAll[T any](tx component.Tx, kind byte, f func(name string, x *T)) error {
	var bad error
	err := tx.Scan([]byte{kind}, func(k, v []byte) bool {
		x := new(T)
		if bad = json.Unmarshal(v, x); bad == nil {
			f(string(k[1:]), x)
		}
		return bad == nil
	})
	return errors.Join(err, bad)
}

func keep(tx component.Tx, kind byte, name string, x any) error {
	v, err := json.Marshal(x)
	if err == nil {
		tx.Set(append([]byte{kind}, name...), v)
	}
	return err
}

func (c *cluster) save(tx component.Tx) error {
	return keep(tx, kindSelf, "", self{c.store, c.start, c.number, c.lacks})
}

// index follows which session is kept of a client.
func (c *cluster) index(tx component.Tx, node string, id message.ID, v []byte) error {
	var rec kept
	if v == nil {
		c.shares.kinship(id, Who{}, false, nil)
		key := c.keys[id]
		delete(c.keys, id)
		if x := c.claims[key]; x != nil && x.Session == id {
			x.Session = message.ID{}
			return c.setClaim(tx, key, x)
		}
		return nil
	}
	if err := json.Unmarshal(v, &rec); err != nil {
		return err
	}
	c.shares.kinship(id, rec.Who, rec.Gone.IsZero(), rec.shared())
	key := rec.Who.Key()
	x := c.claims[key]
	switch {
	case x == nil: // it was not heard from the beginning
		x = &claim{Owner: node}
	case x.Session == id:
		return nil
	default:
		delete(c.keys, x.Session)
	}
	c.keys[id], x.Session = key, id
	return c.setClaim(tx, key, x)
}

// mine says whether a client is this node's, and nobody else has claimed it. The store's mutex is held.
func (c *cluster) mine(key string) bool {
	x := c.claims[key]
	return x != nil && x.Owner == c.node && x.Next == "" && !c.giving[key]
}

// setClaim keeps whose a client is; nobody's where x is nil.
func (c *cluster) setClaim(tx component.Tx, key string, x *claim) error {
	c.shares.era++
	if c.named != nil {
		c.named[key] = true
	}
	if x == nil {
		delete(c.claims, key)
		tx.Delete(append([]byte{kindClaim}, key...))
		return nil
	}
	c.claims[key] = x
	return keep(tx, kindClaim, key, x)
}

// places is how far the logs were heard. It is for the handlers' goroutine.
func (s *Store) places() []serviceplatform.Place {
	list := make([]serviceplatform.Place, 0, len(s.heard))
	for p, n := range s.heard {
		list = append(list, serviceplatform.Place{Log: p.log, Generation: p.gen, Partition: p.part, Sequence: n})
	}
	return list
}

func partOf(p serviceplatform.Place) part { return part{p.Log, p.Generation, p.Partition} }

// Ended holds why this node is no more among the others, when it is not: the broker has to begin anew.
func (s *Store) Ended() <-chan error {
	if s.cluster == nil {
		return nil
	}
	return s.cluster.ended
}

func (c *cluster) end(format string, args ...any) {
	select {
	case c.ended <- fmt.Errorf(format, args...):
	default:
	}
}

// spawn does what would hold up the handlers.
func (s *Store) spawn(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.cluster.closing {
		s.cluster.work.Go(f)
	}
}

// Close waits for what the store does by itself.
func (s *Store) Close() {
	if s.cluster == nil {
		return
	}
	s.mu.Lock()
	s.cluster.closing = true
	s.mu.Unlock()
	s.cluster.work.Wait()
}

// recent are the last batches of a partition, for sessions that come from a node that has heard less of it.
type recent struct {
	list  []bus.Stored
	bytes int
}

const recentMost = 8 << 20 // bytes of a partition

func (c *cluster) remember(log string, b *bus.Stored) {
	c.logs[b.Position.Log] = log
	k := part{b.Position.Log, b.Position.Generation, b.Position.Partition}
	r := c.recent[k]
	if r == nil {
		r = new(recent)
		c.recent[k] = r
	}
	r.list = append(r.list, *b)
	r.bytes += len(b.Batch.Bytes())
	for r.bytes > recentMost && len(r.list) > 1 {
		r.bytes -= len(r.list[0].Batch.Bytes())
		r.list[0] = bus.Stored{}
		r.list = r.list[1:]
	}
}

// resume goes on with what was under way when the process ended.
func (s *Store) resume(tx component.Tx) {
	for key, x := range s.cluster.claims {
		if x.Owner == s.cluster.node && x.Next != "" {
			tx.After(func() { s.spawn(func() { s.yield(key) }) })
		}
	}
}

// Begin has this node be among the others from now on, and returns when all that come to hear it know so. Sessions that are kept
// since before there were neighbours are told them.
func (s *Store) Begin(ctx context.Context) error {
	c := s.cluster
	begun := make(chan struct{})
	err := s.changeSoon(ctx, func(tx component.Tx) error {
		w := tx.(*writing)
		s.mu.Lock()
		defer s.mu.Unlock()
		first := c.start.IsZero()
		c.begun, c.start, c.number = begun, message.NewID(tx.Now()), 0
		clear(c.shares.said)
		for key := range c.shares.casual {
			c.shares.shifted[key] = struct{}{}
		}
		w.state.Begins, w.state.Lacks, w.tell = true, c.lacks != "", true
		for _, x := range c.alone {
			if x.ended {
				continue
			}
			w.state.Claims = append(w.state.Claims, serviceplatform.Claim{Client: serviceplatform.Client(x.rec.Who)})
			if err := w.all(x.rec.ID); err != nil {
				return err
			}
		}
		if first {
			if err := w.own(); err != nil {
				return err
			}
		}
		c.alone = nil
		return nil
	})
	if err != nil {
		return err
	}
	select {
	case <-begun:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// all tells the neighbours all that is stored of a session.
func (w *writing) all(id message.ID) error {
	w.add(opReset, id[:], nil)
	for _, kind := range []byte{kindSession, kindSent, kindQueue, kindReceived, kindReleased} {
		if err := w.Scan(key(kind, id), func(k, v []byte) bool { w.add(opSet, k, v); return true }); err != nil {
			return err
		}
	}
	return nil
}

// own tells the neighbours what this node keeps beside sessions: wills, and what members of groups have in hand.
func (w *writing) own() error {
	tell := func(k, v []byte) bool { w.add(opSet, k, v); return true }
	return errors.Join(w.Scan([]byte{kindWill}, tell), w.Scan(key(kindHand, w.s.cluster.store), tell))
}

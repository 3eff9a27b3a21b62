package session

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// clientOf is a session's name of its key.
func clientOf(key string) serviceplatform.Client {
	mount, rest, _ := strings.Cut(key, "\x00")
	identity, id, _ := strings.Cut(rest, "\x00")
	return serviceplatform.Client{Mount: mount, Identity: identity, ClientID: id}
}

// errGiving says that what a node gave up it has to claim again.
var errGiving = errors.New("the client is being given up")

// lookEvery is how often a client that waits for its session is looked at: whether it is there still.
const lookEvery = 250 * time.Millisecond

// errLeft says that a client has not waited for its session.
var errLeft = message.Rejectf(message.TakenOver, "its client has closed the connection")

// hold waits until a client is this node's. What other nodes keep of it is here then, and its connection there is over. Where
// the client leaves meanwhile, it is not claimed any more: it may be at another node by then, and would lose its connection
// there to nobody.
func (s *Store) hold(ctx context.Context, who Who, clean bool, client Client) error {
	c, key := s.cluster, who.Key()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		s.mu.Lock()
		if c.mine(key) {
			delete(c.ending, key)
			s.mu.Unlock()
			return nil
		}
		wait := make(chan error, 1)
		c.waits[key] = append(c.waits[key], wait)
		if x := c.claims[key]; !c.asked[key] && (x == nil || x.Next != c.node) {
			c.asked[key] = true
			c.asks = append(c.asks, serviceplatform.Claim{Client: serviceplatform.Client(who), Clean: clean})
		}
		s.mu.Unlock()
		c.hurry()
		for waits := true; waits; {
			select {
			case err := <-wait:
				if err != nil {
					return err
				}
				waits = false
			case <-look.C:
				if client != nil && client.HungUp() {
					s.unwait(key, wait)
					return errLeft
				}
			case <-ctx.Done():
				s.unwait(key, wait)
				return message.Rejectf(message.BusUnavailable, "the node that has the client did not give it up in time")
			}
		}
	}
}

// unwait forgets one who waits. With the last of them goes the claim, if it has not been made. To one who was given the client
// in the same moment it is as if nobody had waited.
func (s *Store) unwait(key string, wait chan error) {
	if s.stopWaiting(key, wait) {
		return
	}
	if err := <-wait; err == nil {
		s.granted(key)
	}
}

// stopWaiting gives false where the one who waits has been answered.
func (s *Store) stopWaiting(key string, wait chan error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cluster
	list := c.waits[key]
	at := slices.Index(list, wait)
	if at < 0 {
		return false
	}
	if list = slices.Delete(list, at, at+1); len(list) > 0 {
		c.waits[key] = list
		return true
	}
	delete(c.waits, key)
	if n := len(c.asks); n > 0 {
		if c.asks = slices.DeleteFunc(c.asks, func(a serviceplatform.Claim) bool { return Who(a.Client).Key() == key }); len(c.asks) < n {
			delete(c.asked, key)
		}
	}
	return true
}

// settleWaits has those who wait for a client look again, or give up.
func (s *Store) settleWaits(key string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, wait := range s.cluster.waits[key] {
		wait <- err
	}
	delete(s.cluster.waits, key)
}

// granted says that a client is this node's now. Nobody may be waiting any more.
func (s *Store) granted(key string) {
	s.mu.Lock()
	nobody := len(s.cluster.waits[key]) == 0
	if nobody {
		s.release(key)
	}
	s.mu.Unlock()
	s.settleWaits(key, nil)
	if nobody {
		s.spawn(func() { s.stranded(key) })
	}
}

// release has a client given up, unless it is needed by then. The store's mutex is held.
func (s *Store) release(key string) {
	if s.cluster != nil {
		s.cluster.ending[key] = struct{}{}
	}
}

// endEvery is how long clients that are gone may stay this node's.
const endEvery = 500 * time.Millisecond

// Announce makes the claims of those who wait, and gives up clients of whom nothing is left, as many at once as there
// are, until ctx is done.
func (s *Store) Announce(ctx context.Context) {
	if s.cluster == nil {
		return
	}
	tick := time.NewTicker(endEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.cluster.kick:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s.mu.RLock()
		any := len(s.cluster.asks)+len(s.cluster.ending) > 0 || s.cluster.moved.Load() && s.kept > 0 || s.untended()
		undrawn := s.undrawn()
		s.mu.RUnlock()
		for _, sub := range undrawn {
			s.find(ctx, sub)
		}
		if !any {
			continue
		}
		var made serviceplatform.SessionState
		err := s.changeSoon(context.Background(), func(tx component.Tx) error {
			defer func() { made = tx.(*writing).state }()
			return s.announce(tx)
		})
		if err != nil && ctx.Err() == nil {
			s.unannounce(&made)
			s.env.Log.Warn("claim clients for this node", "error", err)
			select {
			case <-time.After(endEvery):
			case <-ctx.Done():
			}
			s.cluster.hurry()
		}
	}
}

// hurry has claims made now.
func (c *cluster) hurry() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// announceMost is how many bytes the names of clients may have that one message tells of; what is beyond follows in the next
// one. In JSON a name may take six times its bytes, and the smallest bus takes messages of a megabyte.
const announceMost = 128 << 10

func (s *Store) announce(tx component.Tx) error {
	w, c := tx.(*writing), s.cluster
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.start.IsZero() {
		return errApart
	}
	room := announceMost
	takes := func(key string) { room -= len(key) + 64 } // what stands around a name, about
	n := 0
	for ; n < len(c.asks) && room > 0; n++ {
		takes(Who(c.asks[n].Client).Key())
	}
	w.state.Claims, c.asks = slices.Clip(c.asks[:n]), c.asks[n:]
	for key := range c.ending {
		if room <= 0 {
			break
		}
		delete(c.ending, key)
		if s.sessions[key] == nil && len(c.waits[key]) == 0 && c.mine(key) {
			takes(key)
			w.state.Yields = append(w.state.Yields, serviceplatform.Yield{Client: clientOf(key)})
			c.giving[key] = true
		}
	}
	if len(c.asks)+len(c.ending) > 0 {
		c.hurry()
	}
	if err := s.tend(tx); err != nil {
		return err
	}
	// Where nothing else is told, how far was heard is: whoever goes on with the sessions need not look through more.
	w.tell = len(w.state.Claims)+len(w.state.Yields) > 0 || c.moved.Load() && s.kept > 0
	return nil
}

// unannounce takes back what nobody hears, so that it is told again.
func (s *Store) unannounce(made *serviceplatform.SessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.cluster
	c.asks = append(made.Claims, c.asks...)
	for _, y := range made.Yields {
		key := Who(y.Client).Key()
		delete(c.giving, key)
		c.ending[key] = struct{}{}
	}
}

// yieldMost is how long messages of a client that goes may be on their way into the log.
const yieldMost = 90 * time.Second

// yield gives a client to the node that has claimed it: when its connection here handles nothing more, and what it had
// sent is in the log or is not.
func (s *Store) yield(key string) {
	s.mu.RLock()
	x := s.sessions[key]
	var client Client
	if x != nil {
		client = x.client
	}
	s.mu.RUnlock()
	taken := false
	if client != nil {
		taken = s.takenFrom(client, key)
		client.TakenOver()
	}
	if x != nil && !x.calm(yieldMost) {
		s.env.Log.Warn("a client was claimed by another node, and messages of it are on their way into the log for long", "client_id", x.rec.Who.ClientID)
	}
	var moved message.ID
	err := s.changeSoon(context.Background(), func(tx component.Tx) error {
		w, c := tx.(*writing), s.cluster
		s.mu.Lock()
		defer s.mu.Unlock()
		of := c.claims[key]
		if of == nil || of.Owner != c.node || of.Next == "" || c.giving[key] || c.start.IsZero() {
			return nil
		}
		y := serviceplatform.Yield{Client: clientOf(key), Taken: taken}
		if x := s.sessions[key]; x != nil {
			if x.Kept() {
				if x.rec.Gone.IsZero() {
					x.rec.Gone = s.env.Now()
				}
				x.keepSent(tx)
				if err := x.save(tx); err != nil {
					return err
				}
				y.Received = maps.Clone(x.received)
				s.count(x, -1)
			}
			if x.moved = !of.Clean; x.moved {
				moved = x.rec.ID
			}
			s.forget(x)
		}
		delete(c.ending, key)
		c.giving[key] = true
		c.shares.era++
		w.state.Yields, w.tell = []serviceplatform.Yield{y}, true
		return nil
	})
	if err != nil {
		s.env.Log.Warn("give a client to the node that has claimed it", "error", err)
	} else if !moved.IsZero() {
		s.cluster.gone(moved)
	}
}

// calm waits until no message of QoS 2 of the session is on its way into the log.
func (x *Session) calm(most time.Duration) bool {
	late := time.NewTimer(most)
	defer late.Stop()
	for {
		x.store.mu.Lock()
		if len(x.pending) == 0 {
			x.store.mu.Unlock()
			return true
		}
		if x.settled == nil {
			x.settled = make(chan struct{})
		}
		settled := x.settled
		x.store.mu.Unlock()
		select {
		case <-settled:
		case <-late.C:
			return false
		}
	}
}

// stir wakes who waits for the session to be calm. The store's mutex is held.
func (x *Session) stir() {
	if x.settled != nil && len(x.pending) == 0 {
		close(x.settled)
		x.settled = nil
	}
}

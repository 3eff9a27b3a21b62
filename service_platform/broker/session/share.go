package session

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// Where brokers share a bus, a group of a shared subscription is a session of its own, without a client: it is one node's,
// goes to another one when that node is gone, and then hears what that node had not, as sessions do. The node that has it
// draws for each message the node whose members get one, and passes the message to it as a gift, in the commit with how
// far it has heard. Who is given a message and can do nothing with it passes it on. So a message is in one hand at each
// place of the log, and in whose, all agree.

// groupOf names the session that a group is. No client has its name: an MQTT string holds no zero.
func groupOf(mount, filter string) Who { return Who{Mount: mount, ClientID: "\x00" + filter} }

func (w Who) group() bool { return strings.HasPrefix(w.ClientID, "\x00") }

// group says whether the session is a group of a shared subscription among several nodes.
func (x *Session) group() bool { return x.rec.Who.group() }

// How ready a member is for a message; a gift says what is good enough.
const (
	memberReady = iota
	memberBusy  // has enough to do
	memberAway  // gets it when it comes back
	// memberMoving is as memberAway, asked again: a member may have gone from a node that was asked late to one that was asked early.
	memberMoving
)

// fit gives the member of a group here that is the readiest for a message, and ready enough, in turn. It may be told what
// the message says. The store's mutex is held.
func (s *Store) fit(key string, m *message.Message, enough byte) (best *Subscription) {
	g := s.groups[key]
	if g == nil {
		return nil
	}
	at := 0
	for i := range g.members {
		n := (g.turn + i) % len(g.members)
		sub := g.members[n]
		ready := byte(memberReady)
		switch {
		case !sub.of.mayHear(m.Subject, sub.AWS):
			continue
		case sub.of.client == nil:
			if ready = memberAway; !sub.of.Kept() || min(sub.QoS, m.QoS) == 0 {
				continue
			}
		case sub.of.client.Busy():
			ready = memberBusy
		}
		if ready <= enough && (best == nil || ready < enough) {
			best, enough, at = sub, ready, n
		}
		if ready == memberReady {
			break
		}
	}
	if best != nil {
		g.turn = (at + 1) % len(g.members)
	}
	return best
}

// shares is what a node knows of the groups of all nodes.
type shares struct {
	kin     map[string]map[message.ID]bool // by group: sessions that are kept, and whether their clients are there
	groups  map[message.ID][]string        // the same by session
	casual  map[string]map[string]int      // by group and node: members whose sessions are not kept; of this node as it is now
	said    map[string]int                 // of this node as the others were told
	shifted map[string]struct{}            // groups where these may differ
	heirs   map[message.ID]message.ID      // by store that is gone: the one that has what was its own
	pending map[message.ID]int             // by store: gifts that it is not known to have taken
	era     uint64                         // grows with each change of what parties says
	parties map[string]*parties
	turns   map[string]int
	finding map[string]bool
	joins   []*joining
	news    chan struct{} // closed when a node was heard; nil where nobody waits
	at      bus.Position  // of what is heard
	gifts   uint32        // in that
}

func newShares() shares {
	return shares{kin: map[string]map[message.ID]bool{}, groups: map[message.ID][]string{}, casual: map[string]map[string]int{}, said: map[string]int{},
		shifted: map[string]struct{}{}, heirs: map[message.ID]message.ID{}, pending: map[message.ID]int{}, parties: map[string]*parties{}, turns: map[string]int{}, finding: map[string]bool{}}
}

// kinship notes of which groups a session that is kept is a member, by the filters of its shared subscriptions: of none
// where it has ended. there says that its client is.
func (h *shares) kinship(id message.ID, of Who, there bool, filters []string) {
	for _, key := range h.groups[id] {
		delete(h.kin[key], id)
		if len(h.kin[key]) == 0 {
			delete(h.kin, key)
		}
		h.era++
	}
	delete(h.groups, id)
	if of.group() {
		return
	}
	for _, filter := range filters {
		key := groupOf(of.Mount, filter).Key()
		if h.kin[key] == nil {
			h.kin[key] = map[message.ID]bool{}
		}
		h.kin[key][id] = there
		h.groups[id] = append(h.groups[id], key)
		h.era++
	}
}

// kept is what a node knows of a session that another one has.
type kept struct {
	Who  Who       `json:"who"`
	Gone time.Time `json:"gone"`
	Subs map[string]struct {
		Share string `json:"share"`
	} `json:"subscriptions"`
}

func (k *kept) shared() (filters []string) {
	for filter, sub := range k.Subs {
		if sub.Share != "" {
			filters = append(filters, filter)
		}
	}
	return filters
}

func (r *record) shared() (filters []string) {
	for filter, sub := range r.Subs {
		if sub.Share != "" {
			filters = append(filters, filter)
		}
	}
	return filters
}

// setCasual notes how many members a node has whose sessions are not kept.
func (h *shares) setCasual(key, node string, n int) {
	h.era++
	if n > 0 {
		if h.casual[key] == nil {
			h.casual[key] = map[string]int{}
		}
		h.casual[key][node] = n
		return
	}
	delete(h.casual[key], node)
	if len(h.casual[key]) == 0 {
		delete(h.casual, key)
	}
}

// came notes that a member has come to this node, or has left. The store's mutex is held.
func (s *Store) came(sub *Subscription, n int) {
	c := s.cluster
	if c == nil {
		return
	}
	c.shares.era++
	if sub.of.Kept() {
		return
	}
	key := sub.groupKey()
	c.shares.setCasual(key, c.node, c.shares.casual[key][c.node]+n)
	c.shares.shifted[key] = struct{}{}
	c.hurry()
}

// tellCasual tells the others which members have come or left whose sessions are not kept.
func (s *Store) tellCasual(w *writing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.cluster.shares
	if s.cluster.start.IsZero() {
		return
	}
	for key := range h.shifted {
		if n := h.casual[key][s.cluster.node]; n != h.said[key] {
			s.tellGroup(w, key, n)
			w.unsaid = append(w.unsaid, key)
		}
	}
	clear(h.shifted)
}

func (s *Store) tellGroup(w *writing, key string, n int) {
	of := clientOf(key)
	w.state.Shares = append(w.state.Shares, serviceplatform.Share{Mount: of.Mount, Filter: of.ClientID[1:], Members: n})
	w.tell = true
	s.cluster.shares.said[key] = n
}

func casualKey(node, key string) []byte {
	return append(append([]byte{kindCasual}, node...), "\x00"+key...)
}

// sharing hears how many such members a node has.
func (s *Store) sharing(w *writing, node string, list []serviceplatform.Share) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, of := range list {
		if node == s.cluster.node {
			continue // it knows better
		}
		key := groupOf(of.Mount, of.Filter).Key()
		s.cluster.shares.setCasual(key, node, of.Members)
		if of.Members == 0 {
			w.Tx.Delete(casualKey(node, key))
		} else if err := keep(w.Tx, kindCasual, node+"\x00"+key, of.Members); err != nil {
			return err
		}
	}
	return nil
}

// joined hears that a node has new members, which wait until whoever draws for their groups says how far it has heard.
func (s *Store) joined(w *writing, list []serviceplatform.Share) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, of := range list {
		w.tell = w.tell || s.draws(groupOf(of.Mount, of.Filter).Key())
	}
}

// heardJoins notes that what this node has said of new members is in the log.
func (s *Store) heardJoins(st *serviceplatform.SessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.cluster.shares
	h.joins = slices.DeleteFunc(h.joins, func(j *joining) bool {
		if j.start == st.Start && j.number <= st.Number {
			j.heard, j.at = true, h.at
		}
		return j.heard
	})
}

// uncasual forgets such members of a node whose connections have ended. The store's mutex is held.
func (s *Store) uncasual(w *writing, node string) error {
	c := s.cluster
	if node == c.node {
		return nil
	}
	for key, nodes := range c.shares.casual {
		if _, ok := nodes[node]; ok {
			c.shares.setCasual(key, node, 0)
		}
	}
	return wipeAll(w.Tx, casualKey(node, ""))
}

// draws says whether this node draws who gets a message of a group. The store's mutex is held.
func (s *Store) draws(key string) bool { return s.drawn[key] != nil && s.cluster.mine(key) }

// parties are the nodes that have members of a group.
type parties struct {
	era  uint64
	list []party
}

type party struct {
	store       message.ID
	there, away int // members
}

// parties gives the nodes that have members of a group, as far as is known. The store's mutex is held.
func (s *Store) parties(key string) []party {
	c := s.cluster
	p := c.shares.parties[key]
	if p != nil && p.era == c.shares.era {
		return p.list
	}
	count := map[string]*party{}
	of := func(node string) *party {
		if count[node] == nil {
			count[node] = new(party)
		}
		return count[node]
	}
	for id, there := range c.shares.kin[key] {
		key := c.keys[id]
		x := c.claims[key]
		if x == nil {
			continue
		}
		owner := x.Owner
		if x.Next != "" && c.giving[key] { // this node has let go of it, and has not heard itself
			owner = x.Next
		}
		if there {
			of(owner).there++
		} else {
			of(owner).away++
		}
	}
	for node, n := range c.shares.casual[key] {
		of(node).there += n
	}
	p = &parties{era: c.shares.era}
	c.shares.parties[key] = p
	for node, x := range count {
		if node == c.node {
			x.store = c.store
		} else if n := c.nodes[node]; n != nil {
			x.store = n.Store
		}
		if !x.store.IsZero() {
			p.list = append(p.list, *x)
		}
	}
	slices.SortFunc(p.list, func(a, b party) int { return strings.Compare(string(a.store[:]), string(b.store[:])) })
	return p.list
}

// deserted says whether a group has no members, anywhere. The store's mutex is held.
func (s *Store) deserted(key string) bool {
	c := s.cluster
	return c.lacks == "" && s.groups[key] == nil && len(c.shares.kin[key]) == 0 && len(c.shares.casual[key]) == 0
}

// gift is a message that a node is to give to one of its members of a group.
type gift struct {
	group  string
	to     message.ID   // store of the node
	enough byte         // how ready the member has to be
	tried  []message.ID // stores of nodes that have none so ready
	i      item         // a reference
}

func (g *gift) encode() []byte {
	b := append(append(make([]byte, 0, 96), g.to[:]...), g.enough, byte(len(g.tried)))
	for _, id := range g.tried {
		b = append(b, id[:]...)
	}
	return append(b, g.i.encode()...)
}

func parseGift(group string, v []byte) (*gift, error) {
	g := &gift{group: group}
	if len(v) < 18 || len(v) < 18+16*int(v[17]) || v[16] > memberMoving {
		return nil, errors.New("a message that was passed on is cut short")
	}
	g.to, g.enough = message.ID(v[:16]), v[16]
	n := int(v[17])
	for v = v[18:]; n > 0; n-- {
		g.tried = append(g.tried, message.ID(v[:16]))
		v = v[16:]
	}
	var err error
	if g.i, err = parseItem(v); err == nil && g.i.kind != itemRef {
		err = errors.New("a message that was passed on is no reference")
	}
	return g, err
}

// draw gives a message of a group to the members of one node: in turn, to each as often as it has members that are there.
// The store's mutex is held.
func (s *Store) draw(w *writing, x *Session, m *message.Message, log string, at bus.Position) {
	c := s.cluster
	g := &gift{group: x.rec.Who.Key(), i: item{kind: itemRef, log: log, at: at}}
	list := s.parties(g.group)
	of := func(p party) int { return p.there }
	sum := 0
	for _, p := range list {
		sum += p.there
	}
	if sum == 0 { // nobody is there: it waits for one of those who come back
		g.enough, of = memberAway, func(p party) int { return p.away }
		for _, p := range list {
			sum += p.away
		}
	}
	if sum > 0 {
		n := c.shares.turns[g.group] % sum
		c.shares.turns[g.group] = n + 1
		for _, p := range list {
			if n -= of(p); n < 0 {
				if p.store != c.store {
					s.send(w, g, p.store)
					return
				}
				break
			}
		}
	}
	s.pass(w, g, m)
}

func (s *Store) send(w *writing, g *gift, to message.ID) {
	g.to = to
	w.add(opGift, []byte(g.group), g.encode())
}

// pass gives a message to a member here that is ready enough, or passes it on to a node that may have one; where none has,
// less is enough. One that nobody may have goes to nobody. The store's mutex is held.
func (s *Store) pass(w *writing, g *gift, m *message.Message) {
	c := s.cluster
	for ; g.enough <= memberMoving; g.enough, g.tried = g.enough+1, nil {
		if g.enough == memberMoving && len(c.shares.kin[g.group]) == 0 {
			return
		}
		if sub := s.fit(g.group, m, g.enough); sub != nil {
			s.hand(w, sub, g, m)
			return
		}
		g.tried = append(g.tried, c.store)
		for _, p := range s.parties(g.group) {
			if (p.there > 0 || g.enough >= memberAway) && !slices.Contains(g.tried, p.store) {
				s.send(w, g, p.store)
				return
			}
		}
	}
}

// hand gives a message to a member. One that keeps none gets it when the others can know that: whoever draws after this
// node does not draw it again.
func (s *Store) hand(tx component.Tx, sub *Subscription, g *gift, m *message.Message) {
	o := Options{QoS: min(sub.QoS, m.QoS), Retain: m.Retain && sub.AsPublished, IDs: sub.ids(), AWS: sub.AWS}
	w, neighbours := tx.(*writing)
	if o.QoS > 0 && sub.of.Kept() {
		sub.of.enqueueRef(tx, m, g.i.log, g.i.at, o)
		if !neighbours {
			tx.After(sub.of.wake)
		}
		return
	}
	client, kept := sub.of.client, m.Clone()
	if o.Lasting = true; o.QoS == 1 {
		o.Drawn = &Drawn{g.group, g.i.log, g.i.at}
		s.inHand(tx, o.Drawn)
	}
	if !neighbours {
		tx.After(func() { client.Deliver(kept, o) })
		return
	}
	w.tell = true
	w.then = append(w.then, func(err error) {
		if err == nil {
			client.Deliver(kept, o)
		}
	})
}

// Drawn is where a message lies that a member of a group was drawn for.
type Drawn struct {
	group string
	log   string
	at    bus.Position
}

// Compare orders by place, within a partition; it is for messages of one session, whose order among partitions nobody knows.
func (d *Drawn) Compare(e *Drawn) int {
	return cmp.Or(strings.Compare(d.log, e.log), cmp.Compare(d.at.Generation, e.at.Generation), cmp.Compare(d.at.Partition, e.at.Partition),
		cmp.Compare(d.at.Sequence, e.at.Sequence), cmp.Compare(d.at.Index, e.at.Index))
}

// Redraw gives messages to other members of their groups, in their order: the one that had them has ended, and keeps no session.
// Where a group has no members any more, nobody is owed its messages. It returns when that is on disk, or in the hands of others;
// it must not be called by a [Client]'s methods.
func (s *Store) Redraw(ctx context.Context, list []*Drawn) error {
	var gifts []*gift
	var messages []*message.Message
	for _, d := range list {
		g := &gift{group: d.group, i: item{kind: itemRef, log: d.log, at: d.at}}
		switch m, err := s.giftOf(ctx, g); {
		case errors.Is(err, bus.ErrNotFound):
			s.lost(g)
			s.Took(d)
		case err != nil:
			return err
		default:
			gifts, messages = append(gifts, g), append(messages, m)
		}
	}
	return s.changeSoon(ctx, func(tx component.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, g := range gifts {
			if had, err := s.letGo(tx, &Drawn{g.group, g.i.log, g.i.at}); err != nil {
				return err
			} else if !had {
				continue // this node was taken for gone, and another one has it
			}
			if w, ok := tx.(*writing); ok {
				s.pass(w, g, messages[i])
			} else if sub := s.fit(g.group, messages[i], memberAway); sub != nil {
				s.hand(tx, sub, g, messages[i])
			}
		}
		return nil
	})
}

// lost tells of a message that no member can have.
func (s *Store) lost(g *gift) {
	s.tell(clientWho(g.group), message.RetentionExceeded, fmt.Errorf("a message for one of a shared subscription is no longer in log %s", g.i.log))
}

// heir is the store that has what was a store's own.
func (h *shares) heir(store message.ID) message.ID {
	for range 1000 {
		next, ok := h.heirs[store]
		if !ok {
			break
		}
		store = next
	}
	return store
}

func giftKey(store message.ID, at bus.Position, n uint32) []byte {
	be := binary.BigEndian
	return be.AppendUint32(be.AppendUint64(be.AppendUint32(key(kindGift, store), at.Generation), at.Sequence), n)
}

// gifted hears of a gift. It is this node's, or is kept until the node whose it is is known to have taken it. The
// store's mutex is held.
func (s *Store) gifted(w *writing, g *gift) {
	h := &s.cluster.shares
	to := h.heir(g.to)
	if to == s.cluster.store {
		w.gifts = append(w.gifts, g)
		return
	}
	s.keepGift(w, to, g.group, g.encode())
}

func (s *Store) keepGift(w *writing, to message.ID, group string, v []byte) {
	h := &s.cluster.shares
	w.Tx.Set(giftKey(to, h.at, h.gifts), appendOp(nil, opGift, []byte(group), v))
	h.gifts++
	h.pending[to]++
}

// received strikes off what a node has taken by what it says, which it had heard up to places.
func (s *Store) received(w *writing, store message.ID, heard []serviceplatform.Place) error {
	h := &s.cluster.shares
	if h.pending[store] == 0 {
		return nil
	}
	for _, p := range heard {
		if p.Log != h.at.Log || p.Partition != h.at.Partition {
			continue
		}
		end := giftKey(store, bus.Position{Generation: p.Generation, Sequence: p.Sequence + 1}, 0)
		var keys [][]byte
		err := w.Tx.Scan(key(kindGift, store), func(k, _ []byte) bool {
			if string(k) >= string(end) {
				return false
			}
			keys = append(keys, slices.Clone(k))
			return true
		})
		if err != nil {
			return err
		}
		for _, k := range keys {
			w.Tx.Delete(k)
		}
		h.pending[store] -= len(keys)
	}
	return nil
}

// bequeath gives what a store that is gone was given, and has not taken, to another one. What is this node's by that is returned.
func (s *Store) bequeath(w *writing, from, to message.ID) (list []*gift, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.cluster.shares
	if from.IsZero() || h.heir(to) == from {
		return nil, nil
	}
	h.heirs[from] = to
	if err := keep(w.Tx, kindHeir, string(from[:]), to); err != nil {
		return nil, err
	}
	var keys, all [][]byte
	for _, kind := range []byte{kindHand, kindGift} { // the order in which they were drawn
		if err := w.Tx.Scan(key(kind, from), func(k, v []byte) bool {
			keys, all = append(keys, slices.Clone(k)), append(all, slices.Clone(v))
			return true
		}); err != nil {
			return nil, err
		}
	}
	delete(h.pending, from)
	for i, op := range all {
		w.Tx.Delete(keys[i])
		_, group, v, _, err := nextOp(op)
		if err != nil {
			return nil, err
		}
		if h.heir(to) != s.cluster.store {
			s.keepGift(w, h.heir(to), string(group), v)
			continue
		}
		g, err := parseGift(string(group), v)
		if err != nil {
			return nil, err
		}
		list = append(list, g)
	}
	return list, nil
}

// accept takes what this node was given. It comes back only with all of it done, or when the process ends.
func (s *Store) accept(ctx context.Context, w *writing, list []*gift) error {
	for _, g := range list {
		w.tell = true // the others need not keep it any more
		m, err := s.giftOf(ctx, g)
		if errors.Is(err, bus.ErrNotFound) {
			s.lost(g)
			continue
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.pass(w, g, m)
		s.mu.Unlock()
	}
	return nil
}

func clientWho(key string) Who {
	of := clientOf(key)
	return Who{Mount: of.Mount, ClientID: strings.TrimPrefix(of.ClientID, "\x00")}
}

// giftOf reads the message that was given: mostly it was heard here just now.
func (s *Store) giftOf(ctx context.Context, g *gift) (*message.Message, error) {
	for {
		m, err := s.fetch(ctx, &g.i)
		if err == nil || errors.Is(err, bus.ErrNotFound) || ctx.Err() != nil {
			return m, err
		}
		s.env.Log.Warn("read a message for one of a shared subscription", "log", g.i.log, "error", err)
		select {
		case <-time.After(giftAgain):
		case <-ctx.Done():
		}
	}
}

const (
	// giftAgain is how long a node waits before it tries again to read what it was given.
	giftAgain = 200 * time.Millisecond
	// joinMost is how long a subscription waits until the node that draws for its group knows of it: longer than a node that
	// is gone takes to be succeeded.
	joinMost = 20 * time.Second
)

// joining is a member that has come, and was told.
type joining struct {
	number uint64
	start  message.ID
	heard  bool
	at     bus.Position // where that is in the log
}

// join returns when the groups of subscriptions know their new members: a message that is said from then on goes to one.
func (s *Store) join(ctx context.Context, list []*Subscription, failed []error) error {
	if s.cluster == nil {
		return nil
	}
	var shared []*Subscription
	for i, sub := range list {
		if sub.Share != "" && failed[i] == nil {
			shared = append(shared, sub)
		}
	}
	if len(shared) == 0 {
		return nil
	}
	j := new(joining)
	if err := s.change(ctx, func(tx component.Tx) error {
		w := tx.(*writing)
		w.joins, w.tell = append(w.joins, j), true
		for _, sub := range shared {
			w.state.Joins = append(w.state.Joins, serviceplatform.Share{Mount: sub.of.rec.Who.Mount, Filter: sub.Filter})
		}
		return nil
	}); err != nil {
		return err
	}
	for _, sub := range shared {
		if err := s.found(ctx, sub, j); err != nil {
			return err
		}
	}
	return nil
}

// found returns when there is a node that draws for the group, and knows of j, where that is not nil; it may be this one.
func (s *Store) found(ctx context.Context, sub *Subscription, j *joining) error {
	ctx, cancel := context.WithTimeout(ctx, joinMost)
	defer cancel()
	c, key := s.cluster, sub.groupKey()
	for {
		s.mu.Lock()
		of, mine := c.claims[key], c.mine(key)
		switch {
		case s.drawn[key] != nil && mine:
			s.mu.Unlock()
			return nil
		case of == nil || of.Session.IsZero():
			s.mu.Unlock()
			if err := s.foundGroup(ctx, sub); err != nil {
				return err
			}
			continue
		case of.Owner != c.node && (j == nil || j.heard && c.nodes[of.Owner] != nil && c.nodes[of.Owner].hasHeard(j.at)):
			s.mu.Unlock()
			return nil
		}
		if c.shares.news == nil {
			c.shares.news = make(chan struct{})
		}
		news := c.shares.news
		s.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
			return message.Rejectf(message.BusUnavailable, "the node that has %s did not answer in time", sub.Filter)
		}
	}
}

func (n *neighbour) hasHeard(at bus.Position) bool {
	return slices.ContainsFunc(n.Heard, func(p serviceplatform.Place) bool {
		return p.Log == at.Log && p.Generation == at.Generation && p.Partition == at.Partition && p.Sequence >= at.Sequence
	})
}

// foundGroup makes a group of which nothing is kept, once it is this node's; another one may have done so first.
func (s *Store) foundGroup(ctx context.Context, sub *Subscription) error {
	who := groupOf(sub.of.rec.Who.Mount, sub.Filter)
	if err := s.hold(ctx, who, false, nil); err != nil {
		if errors.Is(err, errFormer) {
			return nil
		}
		return err
	}
	return s.change(ctx, func(tx component.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.yet(who.Key()) != nil || s.sessions[who.Key()] != nil {
			return nil
		}
		return s.newGroup(who, sub).save(tx)
	})
}

// newGroup makes the session that a group is. The store's mutex is held.
func (s *Store) newGroup(who Who, sub *Subscription) *Session {
	own := *sub
	x := &Session{store: s, head: 1, next: 1, rec: record{ID: message.NewID(s.env.Now()), Who: who, Expiry: Never, Gone: s.env.Now(), Subs: map[string]*Subscription{sub.Filter: &own}}}
	own.of = x
	x.named()
	x.kept.Store(true)
	s.sessions[who.Key()] = x
	s.count(x, 1)
	s.insert(&own)
	return x
}

// foundLeft makes the groups of sessions that are kept since before the nodes drew for groups, or since before there were
// neighbours. The store's mutex is held.
func (s *Store) foundLeft(tx component.Tx) error {
	c := s.cluster
	for key, g := range s.groups {
		if of := c.claims[key]; s.drawn[key] != nil || of != nil && !of.Session.IsZero() {
			continue
		}
		x := s.newGroup(groupOf(g.members[0].of.rec.Who.Mount, g.members[0].Filter), g.members[0])
		if c.claims[key] == nil {
			c.alone = append(c.alone, x)
		}
		if err := x.save(tx); err != nil {
			return err
		}
	}
	return nil
}

// tend ends groups that have no members any more, and finds those here that no node draws for. The store's mutex is held.
func (s *Store) tend(tx component.Tx) error {
	c := s.cluster
	for key, x := range s.drawn {
		if c.mine(key) && s.deserted(key) {
			if err := s.erase(tx, x); err != nil {
				return err
			}
			s.forget(x)
			delete(c.shares.turns, key)
		}
	}
	return nil
}

// untended says whether there is something to tend. The store's mutex is held.
func (s *Store) untended() bool {
	for key := range s.drawn {
		if s.cluster.mine(key) && s.deserted(key) {
			return true
		}
	}
	return len(s.cluster.shares.shifted) > 0
}

// undrawn are groups here that no node draws for, as when a process ended between two steps. The store's mutex is held.
func (s *Store) undrawn() (list []*Subscription) {
	c := s.cluster
	if !c.speaks || c.lacks != "" {
		return nil
	}
	for key, g := range s.groups {
		if of := c.claims[key]; (of == nil || of.Session.IsZero()) && s.drawn[key] == nil {
			list = append(list, g.members[0])
		}
	}
	return list
}

// find has a group found, unless that is under way.
func (s *Store) find(ctx context.Context, sub *Subscription) {
	key := sub.groupKey()
	s.mu.Lock()
	under := s.cluster.shares.finding[key]
	s.cluster.shares.finding[key] = true
	s.mu.Unlock()
	if under {
		return
	}
	s.spawn(func() {
		if err := s.found(ctx, sub, nil); err != nil && ctx.Err() == nil {
			s.env.Log.Warn("find a node that draws for a shared subscription", "filter", sub.Filter, "error", err)
		}
		s.mu.Lock()
		delete(s.cluster.shares.finding, key)
		s.mu.Unlock()
	})
}

// goOn wakes those who wait for what a node says. The store's mutex is held.
func (h *shares) goOn() {
	if h.news != nil {
		close(h.news)
		h.news = nil
	}
}

// load reads what is known of others' members, and of what they were given.
func (h *shares) load(tx component.Tx) error {
	var bad error
	err := errors.Join(readAll(tx, kindCasual, func(name string, n *int) {
		node, key, _ := strings.Cut(name, "\x00")
		h.setCasual(key, node, *n)
	}), readAll(tx, kindHeir, func(name string, to *message.ID) {
		if len(name) == 16 {
			h.heirs[message.ID([]byte(name))] = *to
		}
	}), tx.Scan([]byte{kindGift}, func(k, _ []byte) bool {
		if len(k) < 17 {
			bad = errors.New("a message that was passed on has no owner")
			return false
		}
		h.pending[message.ID(k[1:17])]++
		return true
	}))
	return errors.Join(err, bad)
}

// Draws says whether this node draws who gets a message of a group, by the key of the session that the group is.
func (s *Store) Draws(key string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.drawn[key] != nil
}

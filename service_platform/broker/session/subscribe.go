package session

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
)

// group is the members of a shared subscription: each message goes to one of them.
type group struct {
	members []*Subscription
	turn    int
}

func (s *Subscription) groupKey() string {
	g := groupOf(s.of.rec.Who.Mount, s.Filter)
	return g.Key()
}

// insert has a subscription heard. Where it is a member of a group, only the first member stands for the group in the
// trie; where there are neighbours, what stands for it is the session that the group is. The store's mutex is held.
func (s *Store) insert(sub *Subscription) {
	if sub.Share != "" && !sub.of.group() {
		g := s.groups[sub.groupKey()]
		if g == nil {
			g = new(group)
			s.groups[sub.groupKey()] = g
		}
		g.members = append(g.members, sub)
		s.came(sub, 1)
		if len(g.members) > 1 || s.cluster != nil {
			return
		}
	}
	for _, p := range sub.Select {
		s.subs.Add(p, sub)
	}
}

// withdraw is the opposite.
func (s *Store) withdraw(sub *Subscription) {
	if sub.Share != "" && !sub.of.group() {
		g := s.groups[sub.groupKey()]
		if g == nil || !slices.Contains(g.members, sub) {
			return
		}
		s.came(sub, -1)
		first := g.members[0] == sub && s.cluster == nil
		g.members = slices.DeleteFunc(g.members, func(m *Subscription) bool { return m == sub })
		if len(g.members) == 0 {
			delete(s.groups, sub.groupKey())
		}
		if !first {
			return
		}
		for _, p := range sub.Select {
			s.subs.Remove(p, sub)
			if len(g.members) > 0 {
				s.subs.Add(p, g.members[0])
			}
		}
		return
	}
	for _, p := range sub.Select {
		s.subs.Remove(p, sub)
	}
}

// Subscribe adds subscriptions, or replaces those of the same filter, and returns when that is on disk where the session
// is kept. failed holds an error for each that cannot be had. Retained messages follow by Deliver or Wake.
func (x *Session) Subscribe(ctx context.Context, list []*Subscription) (failed []error, err error) {
	s := x.store
	failed = make([]error, len(list))
	fresh := make([]bool, len(list))
	put := func() {
		for i, sub := range list {
			old := x.rec.Subs[sub.Filter]
			if most := cmp.Or(x.rec.Caps.Subscriptions, s.limits.Subscriptions); old == nil && len(x.rec.Subs) >= most {
				failed[i] = message.Rejectf(message.SessionLimit, "more than %d subscriptions", most)
				continue
			}
			if old != nil {
				s.withdraw(old)
			}
			sub.of, fresh[i] = x, old == nil
			note(&x.rec.Subs, sub.Filter, sub)
			s.insert(sub)
		}
	}
	wanted := func(i int) bool {
		return failed[i] == nil && list[i].Share == "" && (list[i].Retained == 0 || list[i].Retained == 1 && fresh[i])
	}
	if err := s.catchUp(ctx); err != nil {
		return nil, err
	}
	// What stands outside the logs goes to the connection, as retained messages of QoS 0 do.
	standing := func() (tell func()) {
		var all []func()
		for i, sub := range list {
			if wanted(i) {
				for _, m := range s.stands(sub) {
					all = append(all, func() { x.deliverRetained(sub, m) })
				}
			}
		}
		return func() {
			for _, f := range all {
				f()
			}
		}
	}
	if !x.Kept() {
		s.mu.Lock()
		if x.ended {
			s.mu.Unlock()
			return nil, errFormer
		}
		put()
		tell := standing()
		any := s.retained > 0 || !s.loaded
		s.mu.Unlock()
		tell()
		if err := s.join(ctx, list, failed); err != nil {
			return nil, err
		}
		if !any || !slices.ContainsFunc(list, func(sub *Subscription) bool { return sub.Share == "" && sub.Retained < 2 }) {
			return failed, nil
		}
		// Where the handlers run: a message is either retained by now, or will find the subscription.
		copies := clones{}
		return failed, s.change(ctx, func(tx component.Tx) error {
			for i, sub := range list {
				if wanted(i) {
					if err := s.matchRetained(tx.Scan, sub, func(_ []byte, m *message.Message) {
						kept := copies.of(m)
						tx.After(func() { x.deliverRetained(sub, kept) })
					}); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	copies := clones{}
	err = s.change(ctx, func(tx component.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if x.ended { // another one has its name, and nobody would ever end what this one subscribes to
			return errFormer
		}
		put()
		for i, sub := range list {
			if !wanted(i) {
				continue
			}
			if err := s.matchRetained(tx.Scan, sub, func(raw []byte, m *message.Message) {
				if qos := min(sub.QoS, m.QoS); qos > 0 {
					if !x.mayHear(m.Subject, sub.AWS) {
						return
					}
					x.enqueue(tx, item{kind: itemInline, o: Options{QoS: qos, Retain: true, IDs: sub.ids(), AWS: sub.AWS}, record: slices.Clone(raw), expires: m.Expires})
				} else {
					kept := copies.of(m)
					tx.After(func() { x.deliverRetained(sub, kept) })
				}
			}); err != nil {
				return err
			}
		}
		tx.After(standing())
		tx.After(x.wake)
		return x.save(tx)
	})
	if err == nil {
		err = s.join(ctx, list, failed)
	}
	return failed, err
}

// clones are copies of retained messages: one of each, however many filters of a SUBSCRIBE select it.
type clones map[message.Subject]*message.Message

func (c clones) of(m *message.Message) *message.Message {
	if c[m.Subject] == nil {
		kept := m.Clone()
		c[kept.Subject] = kept
	}
	return c[m.Subject]
}

func (s *Subscription) ids() []uint32 {
	if s.ID == 0 {
		return nil
	}
	return []uint32{s.ID}
}

func (x *Session) deliverRetained(sub *Subscription, m *message.Message) {
	x.store.mu.RLock()
	c := x.client
	x.store.mu.RUnlock()
	if c != nil {
		c.Deliver(m, Options{QoS: min(sub.QoS, m.QoS), Retain: true, IDs: sub.ids(), AWS: sub.AWS, Lasting: true})
	}
}

func (x *Session) wake() {
	x.store.mu.RLock()
	c := x.client
	x.store.mu.RUnlock()
	if c != nil {
		c.Wake()
	}
}

// Unsubscribe removes subscriptions, and says which there were.
func (x *Session) Unsubscribe(ctx context.Context, filters []string) (existed []bool, err error) {
	s := x.store
	existed = make([]bool, len(filters))
	take := func() {
		for i, f := range filters {
			if sub := x.rec.Subs[f]; sub != nil {
				existed[i] = true
				s.withdraw(sub)
				delete(x.rec.Subs, f)
			}
		}
	}
	if !x.Kept() {
		s.mu.Lock()
		defer s.mu.Unlock()
		take()
		return existed, nil
	}
	err = s.change(ctx, func(tx component.Tx) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if x.ended {
			return errFormer
		}
		take()
		return x.save(tx)
	})
	return existed, err
}

// Subscriptions are the session's, by filter.
func (x *Session) Subscriptions() []Subscription {
	x.store.mu.RLock()
	defer x.store.mu.RUnlock()
	list := make([]Subscription, 0, len(x.rec.Subs))
	for _, f := range slices.Sorted(maps.Keys(x.rec.Subs)) {
		list = append(list, *x.rec.Subs[f])
	}
	return list
}

// HasNoLocal says whether the session does not want to hear itself somewhere, so that its messages must name it.
func (x *Session) HasNoLocal() bool {
	x.store.mu.RLock()
	defer x.store.mu.RUnlock()
	for _, sub := range x.rec.Subs {
		if sub.NoLocal {
			return true
		}
	}
	return false
}

// sees says whether a subject that the patterns select is one of the filter: it has a topic in the filter's spelling, and
// a wildcard does not see a `$` that a mount point has moved away from the front.
func (s *Subscription) sees(subject message.Subject) bool {
	if s.AWS {
		_, ok := device.ShadowTopic(subject)
		return ok
	}
	f := s.Filter
	if s.Share != "" {
		f = strings.TrimPrefix(f, "$share/"+s.Share+"/")
	}
	if s.Hidden == 0 || f == "" || f[0] != '#' && f[0] != '+' {
		return true
	}
	rest := string(subject)
	for range s.Hidden {
		_, rest, _ = strings.Cut(rest, ".")
	}
	return !strings.HasPrefix(rest, "$")
}

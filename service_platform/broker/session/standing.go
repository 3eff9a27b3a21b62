package session

import (
	"slices"

	"github.com/naru-platform/naru/message"
)

// Stand tells messages that are in no log: what a broker says of itself. Each stands until another of its subject does, as
// a retained message would, in memory and at QoS 0: who has subscribed hears it now, who subscribes finds it. They must not
// be changed any more.
func (s *Store) Stand(list []*message.Message) {
	var now []delivery
	s.mu.Lock()
	for _, m := range list {
		note(&s.standing, m.Subject, m)
		for _, h := range s.matches(&s.subs, m) {
			if h.x.client != nil {
				h.o.QoS, h.o.Retain = 0, m.Retain && h.publish
				now = append(now, delivery{h.x.client, *m, h.o})
			}
		}
		for key, g := range s.groups { // of what is in no log, each node has its own
			if s.cluster == nil || !g.members[0].selects(m) {
				continue
			}
			if sub := s.fit(key, m, memberBusy); sub != nil {
				now = append(now, delivery{sub.of.client, *m, Options{Retain: m.Retain && sub.AsPublished, IDs: sub.ids(), AWS: sub.AWS}})
			}
		}
	}
	s.mu.Unlock()
	for i := range now {
		now[i].to.Deliver(&now[i].m, now[i].o)
	}
}

// selects says whether a subscription selects a message.
func (s *Subscription) selects(m *message.Message) bool {
	return slices.ContainsFunc(s.Select, func(p message.Pattern) bool { return p.Matches(m.Subject) }) && s.sees(m.Subject)
}

// stands lists what stands under a subscription's patterns. The store's mutex is held.
func (s *Store) stands(sub *Subscription) (list []*message.Message) {
	for _, m := range s.standing {
		if sub.selects(m) {
			list = append(list, m)
		}
	}
	return list
}

// Counts is how much a store holds.
type Counts struct {
	Sessions      int
	Away          int // of them, those whose clients are not connected
	Subscriptions int // those that are shared among them
	Groups        int // of shared subscriptions
	Retained      int
	Waiting       int   // messages for sessions that are kept
	Bytes         int64 // of them
}

// Counts counts what there is.
func (s *Store) Counts() Counts {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := Counts{Sessions: len(s.sessions) - len(s.drawn), Groups: len(s.groups), Retained: s.retained}
	for _, x := range s.sessions {
		if x.group() {
			continue
		}
		if x.client == nil {
			c.Away++
		}
		c.Subscriptions += len(x.rec.Subs)
		c.Waiting += x.count
		c.Bytes += x.bytes
	}
	return c
}

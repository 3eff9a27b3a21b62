package broker

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

func TestConformanceOfRetainedMessages(t *testing.T) {
	keep := func(s *stage, p *peer, topic, data string, qos byte) {
		s.Helper()
		m := publish(s.topic(topic), data, qos, 500)
		m.Retain = true
		if code := p.send(m); code != 0 {
			s.Errorf("%s is answered with %s", topic, code)
		}
	}
	perform(t, []scene{
		{name: "the newest retained message goes to who subscribes later", holds: "3:3.3.1-5 3:3.3.1-6 3:3.3.1-7 3:3.3.1-8 3:3.3.1-12 3:3.1.2-7 " +
			"5:3.3.1-5 5:3.3.1-8 5:3.3.1-9", play: func(s *stage) {
			from := s.client("from")
			for qos := range byte(3) {
				topic := fmt.Sprint(qos)
				keep(s, from, topic, "old", 1)
				keep(s, from, topic, "kept", qos)
				from.send(publish(s.topic(topic), "passing", 1, 9))
			}
			from.leaves() // its session ends with that
			for _, session := range []func(*packet.Connect){func(*packet.Connect) {}, kept} {
				ear := s.client("ear", session)
				for qos := range 3 {
					ear.granted(packet.Subscription{Filter: s.topic(fmt.Sprint(qos)), QoS: 2})
					ear.takes(fmt.Sprintf("%s kept q%d rtrue dfalse", s.topic(fmt.Sprint(qos)), qos))
				}
				s.only(ear, s.client("other"), s.topic("1"), 1)
			}
		}},
		{name: "a retained message of no bytes takes the kept one away", holds: "3:3.3.1-10 3:3.3.1-11 5:3.3.1-6 5:3.3.1-7", play: func(s *stage) {
			ear, from := s.hears("ear", 1, "t"), s.client("from")
			keep(s, from, "t", "kept", 1)
			keep(s, from, "t", "", 1)
			ear.takes(s.topic("t")+" kept q1 rfalse dfalse", s.topic("t")+"  q1 rfalse dfalse")
			s.only(s.hears("late", 1, "t"), from, s.topic("t"), 1)
		}},
		{name: "retained for those who come later is not retained for those who are there", holds: "3:3.3.1-9 5:3.3.1-12", play: func(s *stage) {
			ear, from := s.hears("ear", 1, "t"), s.client("from")
			keep(s, from, "t", "kept", 1)
			ear.takes(s.topic("t") + " kept q1 rfalse dfalse")
		}},
		{name: "retain as published", holds: "5:3.3.1-13", play: func(s *stage) {
			ear, from := s.client("ear"), s.client("from")
			ear.granted(packet.Subscription{Filter: s.topic("t"), QoS: 1, RetainAsPublished: true})
			keep(s, from, "t", "kept", 1)
			from.send(publish(s.topic("t"), "passing", 1, 9))
			ear.takes(s.topic("t")+" kept q1 rtrue dfalse", s.topic("t")+" passing q1 rfalse dfalse")
		}},
		{name: "retain handling", holds: "5:3.3.1-9 5:3.3.1-10 5:3.3.1-11 5:3.8.4-4", play: func(s *stage) {
			from := s.client("from")
			keep(s, from, "t", "kept", 1)
			for _, session := range []func(*packet.Connect){func(*packet.Connect) {}, kept} {
				for handling, want := range [][2]bool{{true, true}, {true, false}, {false, false}} {
					ear := s.client(fmt.Sprint("ear", handling), session)
					for i, comes := range want {
						ear.granted(packet.Subscription{Filter: s.topic("t"), QoS: 1, RetainHandling: byte(handling)})
						if comes {
							ear.takes(s.topic("t") + " kept q1 rtrue dfalse")
						}
						from.send(publish(s.topic("t"), fmt.Sprint(i), 1, 9))
						ear.takes(fmt.Sprintf("%s %d q1 rfalse dfalse", s.topic("t"), i))
					}
					ear.Close()
				}
			}
		}},
	})
}

func TestConformanceOfSubscribe(t *testing.T) {
	perform(t, []scene{
		{name: "SUBACK has the identifier, and a code for each filter in its place", play: func(s *stage) {
			p := s.client("p")
			ear := packet.Subscribe{ID: 65535, Subscriptions: []packet.Subscription{{Filter: s.topic("a"), QoS: 2}, {Filter: "b#"}, {Filter: s.topic("c"), QoS: 1}, {Filter: s.topic("d")}}}
			p.write(ear.Append(nil, s.v))
			h, body := p.next()
			var a packet.SubAnswer
			bad := packet.TopicFilterInvalid
			if s.v == packet.V311 {
				bad = packet.UnspecifiedError
			}
			if err := a.Decode(h, body, s.v); err != nil || h.Type != packet.SUBACK || a.ID != 65535 || !slices.Equal(a.Codes, []packet.ReasonCode{2, bad, 1, 0}) {
				s.Errorf("%s of %d with %v (%v)", h.Type, a.ID, a.Codes, err)
			}
			from := s.client("from") // and each of them is heard, with the lower QoS of the two
			for i, topic := range []string{"a", "c", "d"} {
				for qos := range byte(3) {
					from.send(publish(s.topic(topic), "x", qos, 9))
					p.takes(fmt.Sprintf("%s x q%d rfalse dfalse", s.topic(topic), min(qos, byte(2-i))))
				}
			}
		}, holds: "3:2.3.1-7 3:3.8.3-2 3:3.8.4-1 3:3.8.4-2 3:3.8.4-4 3:3.8.4-5 3:3.8.4-6 3:3.9.3-1 3:3.9.3-2 " +
			"5:2.2.1-6 5:3.8.4-1 5:3.8.4-2 5:3.8.4-5 5:3.8.4-6 5:3.8.4-7 5:3.8.4-8 5:3.9.3-1 5:3.9.3-2"},
		{name: "a subscription to the same filter takes the place of the former", holds: "3:3.8.4-3 5:3.8.4-3 5:3.8.4-4", play: func(s *stage) {
			from := s.client("from")
			m := publish(s.topic("t"), "kept", 1, 1)
			m.Retain = true
			from.send(m)
			for _, session := range []func(*packet.Connect){func(*packet.Connect) {}, kept} {
				p := s.client("p", session)
				for qos := byte(2); qos < 3; qos-- {
					p.granted(packet.Subscription{Filter: s.topic("t"), QoS: qos})
					p.takes(fmt.Sprintf("%s kept q%d rtrue dfalse", s.topic("t"), min(qos, 1)))
					from.send(publish(s.topic("t"), "live", 2, 2))
					p.takes(fmt.Sprintf("%s live q%d rfalse dfalse", s.topic("t"), qos))
				}
				s.only(p, from, s.topic("t"), 0)
				p.Close()
			}
		}},
		{name: "no message is lost while a subscription is replaced", holds: "3:3.8.4-3 5:3.8.4-4", play: func(s *stage) {
			const n = 200
			from := s.client("from")
			for _, session := range []func(*packet.Connect){func(*packet.Connect) {}, kept} {
				p := s.client("p", session)
				p.granted(packet.Subscription{Filter: s.topic("t"), QoS: 1})
				var b []byte
				for i := range n {
					m := publish(s.topic("t"), fmt.Sprint(i), 1, uint16(i+1))
					b = m.Append(b, s.v)
				}
				from.write(b)
				for i, again := 0, 0; i < n; {
					if again <= i/20 {
						p.write((&packet.Subscribe{ID: 3, Subscriptions: []packet.Subscription{{Filter: s.topic("t"), QoS: 1}}}).Append(nil, s.v))
						again++
					}
					h, body := p.next()
					var m packet.Publish
					if h.Type == packet.SUBACK {
						continue
					}
					if err := m.Decode(h, body, s.v); err != nil || string(m.Payload) != fmt.Sprint(i) {
						s.Fatalf("%s %q came (%v); want message %d", h.Type, m.Payload, err, i)
					}
					p.ack(packet.PUBACK, m.ID, 0)
					i++
				}
				for i := range uint16(n) {
					from.answer(packet.PUBACK, i+1)
				}
				p.Close()
			}
		}},
		{name: "overlapping subscriptions give the highest QoS, and the identifiers of all", holds: "3:3.3.5-1 5:3.3.4-2 5:3.3.4-3 5:3.3.4-4", play: func(s *stage) {
			from := s.client("from")
			for _, session := range []func(*packet.Connect){func(*packet.Connect) {}, kept} {
				p := s.client("p", session)
				for i, f := range []string{"+", "t", "#"} {
					sub := packet.Subscribe{ID: 9, Subscriptions: []packet.Subscription{{Filter: s.topic(f), QoS: byte([]int{0, 2, 1}[i])}}}
					if s.v == packet.V5 && i > 0 {
						sub.Properties.SubscriptionIDs = []uint32{uint32(i)}
					}
					p.write(sub.Append(nil, s.v))
					p.next()
				}
				from.send(publish(s.topic("t"), "x", 2, 2))
				m := p.hear()
				if m.QoS != 2 || s.v == packet.V5 && !slices.Equal(m.Properties.SubscriptionIDs, []uint32{1, 2}) {
					s.Errorf("QoS %d came, with identifiers %v", m.QoS, m.Properties.SubscriptionIDs)
				}
				p.Close()
			}
		}},
		{name: "each copy has the identifier of its subscription", holds: "5:3.3.4-5", play: func(s *stage) {
			p := s.client("p")
			for i, f := range []string{s.topic("#"), "$share/g/" + s.topic("t")} {
				sub := packet.Subscribe{ID: 9, Subscriptions: []packet.Subscription{{Filter: f, QoS: 1}}}
				sub.Properties.SubscriptionIDs = []uint32{uint32(i + 1)}
				p.write(sub.Append(nil, s.v))
				p.next()
			}
			s.client("from").send(publish(s.topic("t"), "x", 1, 2))
			ids := append(p.hear().Properties.SubscriptionIDs, p.hear().Properties.SubscriptionIDs...)
			if slices.Sort(ids); !slices.Equal(ids, []uint32{1, 2}) {
				s.Errorf("the copies have the identifiers %v", ids)
			}
		}},
		{name: "no local", holds: "5:3.8.3-3", play: func(s *stage) {
			from := s.client("from")
			for _, session := range []func(*packet.Connect){func(*packet.Connect) {}, kept} {
				p := s.client("p", session)
				p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 1, NoLocal: true})
				p.send(publish(s.topic("t"), "its own", 1, 1))
				s.only(p, from, s.topic("t"), 1)
				p.Close()
			}
		}},
		{name: "UNSUBSCRIBE ends what is spelled the same, and is always answered", play: unsubscribes,
			holds: "3:3.10.4-1 3:3.10.4-2 3:3.10.4-4 3:3.10.4-5 3:3.10.4-6 3:2.3.1-7 5:2.2.1-6 5:3.10.4-1 5:3.10.4-2 5:3.10.4-4 5:3.10.4-5 5:3.10.4-6 5:3.11.3-1 5:3.11.3-2"},
		{name: "what was begun to be sent goes on after UNSUBSCRIBE", holds: "3:3.10.4-3 5:3.10.4-3", play: func(s *stage) {
			from := s.client("from")
			for _, session := range []func(*packet.Connect){func(*packet.Connect) {}, kept} {
				p := s.client("p", session)
				p.granted(packet.Subscription{Filter: s.topic("t"), QoS: 2})
				from.send(publish(s.topic("t"), "x", 2, 1))
				m := p.hear()
				p.write((&packet.Unsubscribe{ID: 2, Filters: []string{s.topic("t")}}).Append(nil, s.v))
				p.next()
				p.ack(packet.PUBREC, m.ID, 0)
				p.answer(packet.PUBREL, m.ID)
				p.ack(packet.PUBCOMP, m.ID, 0)
				p.nothing()
				p.Close()
			}
		}},
	})
}

func unsubscribes(s *stage) {
	from := s.client("from")
	for _, session := range []func(*packet.Connect){func(*packet.Connect) {}, kept} {
		p := s.client("p", session)
		for _, f := range []string{"A", "a", "+/x", "#"} {
			p.granted(packet.Subscription{Filter: s.topic(f), QoS: 1})
		}
		u := packet.Unsubscribe{ID: 65535, Filters: []string{s.topic("a"), s.topic("none"), s.topic("#"), s.topic("a/x")}}
		p.write(u.Append(nil, s.v))
		h, body := p.next()
		var a packet.SubAnswer
		if err := a.Decode(h, body, s.v); err != nil || h.Type != packet.UNSUBACK || a.ID != 65535 {
			s.Errorf("%s of %d (%v)", h.Type, a.ID, err)
		}
		if none := packet.NoSubscriptionExisted; s.v == packet.V5 && !slices.Equal(a.Codes, []packet.ReasonCode{0, none, 0, none}) {
			s.Errorf("UNSUBACK has %v", a.Codes)
		}
		from.send(publish(s.topic("a"), "not heard any more", 1, 1))
		from.send(publish(s.topic("A"), "heard", 1, 1))
		from.send(publish(s.topic("a/x"), "heard", 1, 1))
		p.takes(s.topic("A")+" heard q1 rfalse dfalse", s.topic("a/x")+" heard q1 rfalse dfalse")
		p.write((&packet.Unsubscribe{ID: 1, Filters: []string{"never/there"}}).Append(nil, s.v))
		if h, body := p.next(); h.Type != packet.UNSUBACK || body[1] != 1 {
			s.Errorf("what was not subscribed to is answered with %s %x", h.Type, body)
		}
		p.Close()
	}
}

func TestConformanceOfTopics(t *testing.T) {
	perform(t, []scene{
		{name: "filters select as the specification's examples say", play: selects,
			holds: "3:3.3.2-3 3:4.7.1-2 3:4.7.1-3 3:4.7.3-4 5:3.3.2-3 5:4.7.1-1 5:4.7.1-2 5:4.7.3-4"},
		{name: "filters that are none are refused", holds: "3:4.7.1-2 3:4.7.1-3 3:4.7.3-1 5:4.7.1-1 5:4.7.1-2 5:4.7.3-1 5:4.8.2-1 5:4.8.2-2", play: func(s *stage) {
			p := s.client("p")
			for _, f := range []string{"", "a#", "a/#/b", "#/a", "a+", "+a/b", "a/b+/c", "$share//a", "$share/g", "$share/g/", "$share/g+/a", "$share/#/a", "$share/g/a#"} {
				if codes := p.subscribe(packet.Subscription{Filter: f}); !codes[0].Failed() {
					s.Errorf("%q is granted", f)
				}
			}
		}},
		{name: "topics of up to 65535 bytes", holds: "3:4.7.3-3 5:4.7.3-3", play: func(s *stage) {
			long := s.word + strings.Repeat("x", 65535-len(s.word))
			p := s.client("p")
			p.granted(packet.Subscription{Filter: long, QoS: 0})
			s.client("from").write(longPublish(s, long))
			if m := p.hear(); m.Topic != long {
				s.Errorf("a topic of %d bytes came", len(m.Topic))
			}
		}},
		{name: "a leading wildcard does not see $", holds: "3:4.7.2-1 5:4.7.2-1", play: func(s *stage) {
			from, p := s.client("from"), s.client("p")
			dollar := "$" + s.word
			p.granted(packet.Subscription{Filter: "+/" + s.word, QoS: 1}, packet.Subscription{Filter: "+/" + s.word + "/#", QoS: 1})
			from.send(publish("$x/"+s.word, "hidden", 1, 1))
			from.send(publish("$x/"+s.word+"/x", "hidden", 1, 1))
			s.only(p, from, "a/"+s.word+"/x", 1)
			p.granted(packet.Subscription{Filter: dollar + "/#", QoS: 1})
			from.send(publish(dollar+"/x", "seen", 1, 1))
			p.takes(dollar + "/x seen q1 rfalse dfalse")
		}},
		{name: "a shared leading wildcard does not see $ either", holds: "3:4.7.2-1 5:4.7.2-1", play: func(s *stage) {
			from, p := s.client("from"), s.client("p")
			p.granted(packet.Subscription{Filter: "$share/" + s.word + "/+/" + s.word, QoS: 1})
			from.send(publish("$x/"+s.word, "hidden", 1, 1))
			s.only(p, from, "a/"+s.word, 1)
		}},
	})
}

func longPublish(s *stage, topic string) []byte {
	m := publish(topic, "x", 0, 0)
	return m.Append(nil, s.v)
}

// selects tries pairs of a filter and a topic; topics come back as they were spelled.
func selects(s *stage) {
	from := s.client("from")
	for i, c := range []struct{ filter, yes, no string }{
		{"sport/tennis/player1/#", "sport/tennis/player1 sport/tennis/player1/ranking sport/tennis/player1/score/wimbledon", "sport/tennis sport/tennis/player12"},
		{"sport/#", "sport sport/ sport//x", "sports Sport"},
		{"sport/tennis/+", "sport/tennis/player1 sport/tennis/", "sport/tennis/player1/ranking sport/tennis"},
		{"sport/+", "sport/ sport/x", "sport sport/x/"},
		{"+/+", "/finance a/ /", "finance //"},
		{"/+", "/finance /", "x/finance"},
		{"+", "finance", "/finance"},
		{"+/tennis/#", "x/tennis /tennis/", "tennis x/Tennis"},
		{"a//b", "a//b", "a/b a///b"},
		{"a.b", "a.b", "a/b a"},
		{"*/>", "*/>", "x/y"},
		{"%41", "%41", "A"},
		{"e\u0301", "e\u0301", "\u00e9"},
		{"Accounts\u00a0payable", "Accounts\u00a0payable", "accounts\u00a0payable"},
	} {
		// The pairs are apart from each other by a level in front; an empty first level is behind it all the same.
		at := func(topic string) string { return fmt.Sprintf("%s/%d/%s", s.word, i, topic) }
		p := s.client("p")
		p.granted(packet.Subscription{Filter: at(c.filter), QoS: 0}, packet.Subscription{Filter: at("fence/fence/fence/fence/fence"), QoS: 0})
		for _, topic := range strings.Split(c.no, " ") {
			from.send(publish(at(topic), "not selected", 0, 0))
		}
		for _, topic := range strings.Split(c.yes, " ") {
			from.send(publish(at(topic), "x", 0, 0))
			p.takes(at(topic) + " x q0 rfalse dfalse")
		}
		s.only(p, from, at("fence/fence/fence/fence/fence"), 0)
	}
}

func TestConformanceOfSharedSubscriptions(t *testing.T) {
	perform(t, []scene{
		{name: "each member of a group has its own QoS", holds: "5:4.8.2-3", play: func(s *stage) {
			from := s.client("from")
			var members []*peer
			for qos := range byte(3) {
				p := s.client(fmt.Sprint(qos))
				p.granted(packet.Subscription{Filter: "$share/g/" + s.topic("#"), QoS: qos})
				members = append(members, p)
			}
			for i := range 6 {
				from.send(publish(s.topic("t"), "x", 2, uint16(i+1)))
			}
			for qos, p := range members {
				for range 2 {
					if m := p.hear(); int(m.QoS) != qos {
						s.Errorf("a member with QoS %d was sent one of %d", qos, m.QoS)
					}
				}
			}
		}},
		{name: "a message of QoS 2 stays with the member that was sent it", holds: "5:4.8.2-4 5:4.8.2-5", play: func(s *stage) {
			from, one := s.client("from"), s.client("one", kept)
			filter := "$share/g/" + s.topic("#")
			one.granted(packet.Subscription{Filter: filter, QoS: 2})
			from.send(publish(s.topic("t"), "x", 2, 1))
			m := one.hear()
			two := s.client("two")
			two.granted(packet.Subscription{Filter: filter, QoS: 2})
			one.Close()
			one = s.client("one", kept)
			if again := one.hear(); again.ID != m.ID || !again.Dup {
				s.Errorf("its member is sent it again with identifier %d, dup %t; it had %d", again.ID, again.Dup, m.ID)
			}
			one.Close()
			s.client("one") // its session is over
			s.only(two, from, s.topic("t"), 2)
		}},
		{name: "a message that a member refuses goes to no other", holds: "5:4.8.2-6", play: func(s *stage) {
			from, one := s.client("from"), s.client("one", kept)
			filter := "$share/g/" + s.topic("#")
			one.granted(packet.Subscription{Filter: filter, QoS: 2})
			from.send(publish(s.topic("t"), "1", 1, 1))
			from.send(publish(s.topic("t"), "2", 2, 2))
			first, second := one.hear(), one.hear()
			two := s.client("two")
			two.granted(packet.Subscription{Filter: filter, QoS: 2})
			one.ack(packet.PUBACK, first.ID, packet.UnspecifiedError)
			one.ack(packet.PUBREC, second.ID, packet.UnspecifiedError)
			one.nothing()
			one.write((&packet.Unsubscribe{ID: 1, Filters: []string{filter}}).Append(nil, s.v))
			one.next()
			s.only(two, from, s.topic("t"), 1)
		}},
	})
}

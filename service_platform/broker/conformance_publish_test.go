package broker

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

func TestConformanceOfPublish(t *testing.T) {
	perform(t, []scene{
		{name: "each PUBLISH is answered by its QoS, with its identifier", play: answersEachQoS,
			holds: "3:2.3.1-6 3:3.3.4-1 3:4.3.2-2 3:4.3.3-2 5:2.2.1-5 5:3.3.4-1 5:4.3.2-4 5:4.3.2-5 5:4.3.3-8 5:4.3.3-10 5:4.3.3-11 5:4.3.3-12"},
		{name: "what is sent has identifiers of its own and is no duplicate", holds: "3:2.3.1-4 3:3.3.1-2 3:3.3.1-3 3:4.3.1-1 3:4.3.2-1 3:4.3.3-1 " +
			"5:2.2.1-4 5:3.3.1-2 5:3.3.1-3 5:4.3.1-1 5:4.3.2-1 5:4.3.2-2 5:4.3.3-1 5:4.3.3-2", play: func(s *stage) {
			from := s.client("from")
			for _, session := range []func(*packet.Connect){func(*packet.Connect) {}, kept} {
				p := s.client("p", session)
				p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 2})
				ids := map[uint16]bool{}
				for i := range 12 {
					m := publish(s.topic("t"), fmt.Sprint(i), byte(i%3), uint16(i+100))
					m.Dup = m.QoS > 0 // which is between these two only
					if from.send(m); m.QoS == 0 {
						m.Dup = false
					}
				}
				for range 12 {
					m := p.hear()
					if m.Dup || (m.ID == 0) != (m.QoS == 0) || m.QoS > 0 && ids[m.ID] {
						s.Errorf("%s came with QoS %d, identifier %d and dup %t; used were %v", m.Payload, m.QoS, m.ID, m.Dup, ids)
					}
					ids[m.ID] = true
				}
			}
		}},
		{name: "what was not acknowledged comes again with a new connection, and only then", play: redelivers,
			holds: "3:3.3.1-1 3:4.4.0-1 3:4.6.0-5 5:3.3.1-1 5:4.3.2-3 5:4.3.3-3 5:4.3.3-5 5:4.3.3-6 5:4.4.0-1"},
		{name: "what a client never answered comes again as a duplicate", holds: "3:3.3.1-1 5:3.3.1-1", play: func(s *stage) {
			p := s.client("p", kept)
			p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 2})
			s.client("from").send(publish(s.topic("t"), "x", 1, 1))
			first := p.hear()
			p.Close()
			again := s.client("p", kept).hear()
			if !again.Dup || again.ID != first.ID {
				s.Errorf("it comes again with identifier %d and dup %t; it had %d", again.ID, again.Dup, first.ID)
			}
		}},
		{name: "what a client refuses is not sent again", holds: "5:4.3.3-4 5:4.4.0-2", play: func(s *stage) {
			from, p := s.client("from"), s.client("p", kept)
			p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 2})
			from.send(publish(s.topic("1"), "x", 1, 1))
			from.send(publish(s.topic("2"), "x", 2, 2))
			p.ack(packet.PUBACK, p.hear().ID, packet.UnspecifiedError)
			p.ack(packet.PUBREC, p.hear().ID, packet.UnspecifiedError)
			p.nothing() // no PUBREL
			from.send(publish(s.topic("3"), "good", 2, 3))
			p.takes(s.topic("3") + " good q2 rfalse dfalse") // PUBREL with its identifier is part of it
			p.Close()
			if owed := s.rest(s.client("p", kept), from, s.topic("fence"), 1); slices.Contains(owed, "x") {
				s.Errorf("%q is sent again", owed)
			}
		}},
		{name: "a PUBREC that refuses frees its identifier", holds: "5:4.3.3-9", play: func(s *stage) {
			p := s.client("p")
			m := publish(s.topic("t"), strings.Repeat("x", Defaults.MaxMessageBytes+1), 2, 7)
			if code := p.send(m); !code.Failed() {
				s.Errorf("a message beyond the limit is answered with %s", code)
			}
			ear := s.hears("ear", 2, "#")
			if code := p.send(publish(s.topic("t"), "new", 2, 7)); code != 0 {
				s.Errorf("the next with its identifier is answered with %s", code)
			}
			ear.takes(s.topic("t") + " new q2 rfalse dfalse")
		}},
		{name: "messages come in the order in which they were sent", holds: "3:4.6.0-5 3:4.6.0-6 5:4.6.0-5 5:4.6.0-6", play: func(s *stage) {
			from := s.client("from")
			for qos := range byte(3) {
				live, lasting := s.client("a"), s.client(fmt.Sprint("b", qos), kept)
				for _, p := range []*peer{live, lasting} {
					p.granted(packet.Subscription{Filter: s.topic("+"), QoS: 2})
				}
				for i := range 40 {
					from.send(publish(s.topic("t"), fmt.Sprint(i), qos, uint16(i+1)))
				}
				for i := range 40 {
					for _, p := range []*peer{live, lasting} {
						if m := p.hear(); string(m.Payload) != fmt.Sprint(i) || m.QoS != qos {
							s.Errorf("number %d of QoS %d is %s", i, m.QoS, m.Payload)
						}
					}
				}
			}
		}},
		{name: "acknowledgements come in the order of the messages", holds: "3:4.6.0-6 5:4.6.0-5", play: func(s *stage) {
			p := s.client("p")
			var b []byte
			for i := range uint16(60) {
				m := publish(s.topic("t"), "x", byte(1+i%2), i+1)
				b = m.Append(b, s.v)
			}
			p.write(b)
			for i := range uint16(60) {
				p.answer([]packet.Type{packet.PUBACK, packet.PUBREC}[i%2], i+1)
			}
		}},
		{name: "what stands beside a message passes as it is", play: passesProperties,
			holds: "5:3.3.2-4 5:3.3.2-15 5:3.3.2-16 5:3.3.2-17 5:3.3.2-18 5:3.3.2-20 5:1.5.4-3 5:2.2.2-1"},
		{name: "a byte order mark stays", holds: "3:1.5.3-3 5:1.5.4-3", play: func(s *stage) {
			topic := s.topic("\ufeffa\ufeff")
			ear := s.hears("ear", 0, "+")
			s.client("from").send(publish(topic, "x", 0, 0))
			ear.takes(topic + " x q0 rfalse dfalse")
			s.only(s.hears("plain", 1, "a"), s.client("from"), s.topic("a"), 1)
		}},
		{name: "what has expired is not sent, and the rest says what is left", holds: "5:3.3.2-5 5:3.3.2-6 5:4.3.3-13", play: expires},
		{name: "topic aliases of a client", play: takesAliases, holds: "5:3.3.2-7 5:3.3.2-12"},
		{name: "a PUBLISH of a client has no subscription identifier", holds: "5:3.3.4-6", play: func(s *stage) {
			p := s.client("p")
			m := publish(s.topic("t"), "x", 0, 0)
			m.Properties.SubscriptionIDs = []uint32{1}
			p.write(m.Append(nil, s.v))
			p.closed(packet.ProtocolError)
		}},
		{name: "a PUBLISH of a client with an alias has no subscription identifier either", holds: "5:3.3.4-6", play: func(s *stage) {
			p := s.client("p")
			m := publish(s.topic("t"), "x", 0, 0)
			m.Properties.SubscriptionIDs = []uint32{1}
			m.Properties.Set(packet.TopicAlias, 1)
			p.write(m.Append(nil, s.v))
			p.write(packet.AppendPingreq(nil))
			if h, _ := p.next(); h.Type == packet.PINGRESP {
				s.Error("it is taken")
			}
		}},
		{name: "no more is under way than the client takes, and all else goes on", play: holdsReceiveMaximum,
			holds: "5:3.3.4-9 5:3.3.4-10 5:4.9.0-1 5:4.9.0-2 5:4.9.0-3"},
		{name: "acknowledgements stay within the client's packet size and codes", play: keepsAcksSmall,
			holds: "5:3.4.2-1 5:3.4.2-2 5:3.4.2-3 5:3.5.2-1 5:3.5.2-2 5:3.5.2-3 5:3.6.2-1 5:3.6.2-2 5:3.6.2-3 5:3.7.2-1 5:3.7.2-2 5:3.7.2-3 " +
				"5:3.9.2-1 5:3.9.2-2 5:3.9.3-2 5:3.11.2-1 5:3.11.2-2 5:3.11.3-2 5:3.2.2-19 5:3.2.2-20"},
	})
}

func answersEachQoS(s *stage) {
	ear, p := s.hears("ear", 2, "#"), s.client("p", kept)
	topic := s.topic("t")
	says := func(data string, qos byte) { ear.takes(fmt.Sprintf("%s %s q%d rfalse dfalse", topic, data, qos)) }
	p.send(publish(topic, "0", 0, 0))
	p.nothing()
	says("0", 0)
	for _, id := range []uint16{1, 258, 65535} {
		for _, data := range []string{"first", "second"} { // an identifier that was acknowledged is free
			p.send(publish(topic, data, 1, id))
			says(data, 1)
			p.send(publish(topic, data, 2, id))
			says(data, 2)
		}
	}
	m := publish(topic, "said three times", 2, 9)
	for range 3 {
		p.write(m.Append(nil, s.v))
		if code := p.answer(packet.PUBREC, 9); code != 0 {
			s.Errorf("PUBREC has %s", code)
		}
		m.Dup = true
	}
	p.ack(packet.PUBREL, 9, 0)
	p.answer(packet.PUBCOMP, 9)
	says("said three times", 2)
	p.send(m) // a new one now, whatever DUP says
	says("said three times", 2)
	m = publish(topic, "once more", 1, 9)
	m.Dup = true
	p.send(m)
	says("once more", 1)
	s.only(ear, p, topic, 1)
}

func redelivers(s *stage) {
	from, p := s.client("from"), s.client("p", kept)
	p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 2})
	ids := map[string]uint16{}
	for i, qos := range []byte{1, 2, 2, 1} {
		from.send(publish(s.topic("t"), fmt.Sprint(i), qos, uint16(i+1)))
		m := p.hear()
		ids[string(m.Payload)] = m.ID
	}
	p.ack(packet.PUBREC, ids["2"], 0)
	p.answer(packet.PUBREL, ids["2"])
	p.nothing() // nothing is sent again on the same connection
	for range 2 {
		p.Close()
		p = s.client("p", kept)
		for i, want := range []string{"0", "1", "", "3"} {
			if want == "" { // whose PUBREL was sent: the message itself never comes again
				p.answer(packet.PUBREL, ids["2"])
				continue
			}
			if m := p.hear(); string(m.Payload) != want || !m.Dup || m.ID != ids[want] {
				s.Errorf("number %d that comes again is %s with identifier %d, dup %t; want %s with %d, dup", i, m.Payload, m.ID, m.Dup, want, ids[want])
			}
		}
		p.nothing()
	}
	p.ack(packet.PUBACK, ids["0"], 0)
	p.ack(packet.PUBREC, ids["1"], 0)
	p.answer(packet.PUBREL, ids["1"])
	p.ack(packet.PUBCOMP, ids["1"], 0)
	p.ack(packet.PUBCOMP, ids["2"], 0)
	p.ack(packet.PUBACK, ids["3"], 0)
	s.only(p, from, s.topic("fence"), 1)
}

func passesProperties(s *stage) {
	ear := s.hears("ear", 2, "#")
	m := publish(s.topic("t"), "x", 1, 1)
	m.Properties.Set(packet.PayloadFormat, 1)
	m.Properties.ContentType, m.Properties.ResponseTopic, m.Properties.CorrelationData = "text/\ufeffplain", s.word+"/re ply//a.b*>%", []byte{0, 0xff, 1}
	m.Properties.User = []packet.UserProperty{{Key: "b", Value: "2"}, {Key: "", Value: ""}, {Key: "a", Value: "\ufeff1"}, {Key: "b", Value: "0"}}
	from := s.client("from")
	for qos := range byte(3) {
		m.QoS, m.ID = qos, uint16(qos)
		from.send(m)
		got := ear.hear()
		p, q := got.Properties, m.Properties
		if p.Num(packet.PayloadFormat, 0) != 1 || p.ContentType != q.ContentType || p.ResponseTopic != q.ResponseTopic || !bytes.Equal(p.CorrelationData, q.CorrelationData) || !slices.Equal(p.User, q.User) {
			s.Errorf("%+v came; want %+v", p, q)
		}
	}
	from.send(publish(s.topic("t"), "plain", 0, 0))
	if p := ear.hear().Properties; p.Has(packet.PayloadFormat) || p.Has(packet.ContentType) || p.Has(packet.ResponseTopic) || p.Has(packet.CorrelationData) || len(p.User) > 0 {
		s.Errorf("a message without properties came with %+v", p)
	}
}

func expires(s *stage) {
	from, p := s.client("from"), s.client("p", kept)
	p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 2})
	p.leaves()
	say := func(data string, seconds uint32, id uint16, retain bool) {
		m := publish(s.topic(data), data, 2, id)
		m.Retain = retain
		m.Properties.Set(packet.MessageExpiry, seconds)
		if code := from.send(m); code != 0 { // the handshake goes to its end, whatever becomes of the message
			s.Errorf("%s is answered with %s", data, code)
		}
	}
	say("late", 1, 1, false)
	say("late retained", 1, 2, true)
	say("in time", 100, 3, false)
	<-time.After(1200 * time.Millisecond) // time itself is what is looked at
	p = s.client("p", kept)
	m := p.hear()
	if left := m.Properties.Num(packet.MessageExpiry, 0); string(m.Payload) != "in time" || left < 90 || left > 99 {
		s.Errorf("%s came, with %d s left of 100", m.Payload, left)
	}
	s.only(s.hears("late", 1, "#"), from, s.topic("fence"), 1)
}

func takesAliases(s *stage) {
	p, a := s.connect("p")
	most := a.Properties.Num(packet.TopicAliasMaximum, 0)
	if most == 0 {
		s.Fatal("CONNACK allows no topic alias")
	}
	ear := s.hears("ear", 0, "#")
	aliased := func(topic string, n uint32) packet.Publish {
		m := publish(topic, "x", 0, 0)
		m.Properties.Set(packet.TopicAlias, n)
		return m
	}
	for n := uint32(1); n <= most; n++ {
		topic := s.topic(fmt.Sprint(n))
		p.send(aliased(topic, n))
		p.send(aliased("", n))
		ear.takes(topic+" x q0 rfalse dfalse", topic+" x q0 rfalse dfalse")
	}
	p.send(aliased(s.topic("other"), 1)) // it stands for another topic from now on
	p.send(aliased("", 1))
	ear.takes(s.topic("other")+" x q0 rfalse dfalse", s.topic("other")+" x q0 rfalse dfalse")
	p = s.client("p", kept)
	lost := aliased("", 1)
	p.write(lost.Append(nil, s.v)) // of the former connection
	p.closed(packet.TopicAliasInvalid)
}

func holdsReceiveMaximum(s *stage) {
	for i, session := range []func(*packet.Connect){func(*packet.Connect) {}, kept} {
		from, p := s.client("from"), s.client("p", with(packet.ReceiveMaximum, 2), session)
		p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 2})
		for n := range 5 {
			from.send(publish(s.topic("t"), fmt.Sprint(n), byte(1+n%2), uint16(n+1)))
		}
		first, second := p.hear(), p.hear()
		p.nothing()
		p.granted(packet.Subscription{Filter: s.topic("free"), QoS: 0}) // asked and answered
		from.send(publish(s.topic("free"), "QoS 0", 0, 0))
		p.takes(s.topic("free") + " QoS 0 q0 rfalse dfalse")
		p.ack(packet.PUBREC, second.ID, 0)
		p.answer(packet.PUBREL, second.ID)
		p.nothing() // PUBREC gives no place back
		p.ack(packet.PUBCOMP, second.ID, 0)
		third := p.hear()
		p.nothing()
		if string(first.Payload)+string(second.Payload)+string(third.Payload) != "012" {
			s.Errorf("session %d: %s, %s and %s came", i, first.Payload, second.Payload, third.Payload)
		}
		p.Close()
	}
}

// keepsAcksSmall reads what the broker answers to a client that takes 40 bytes. Decoding holds the codes: the codec
// refuses a code that a packet cannot have.
func keepsAcksSmall(s *stage) {
	p := s.client("p", with(packet.MaximumPacketSize, 40))
	long := strings.Repeat("x", Defaults.MaxMessageBytes+1)
	small := func(want packet.Type) []byte {
		h, body := p.next()
		if h.Type != want || len(body) > 38 {
			s.Fatalf("%s of %d bytes came; want %s of 38 at most", h.Type, len(body), want)
		}
		switch want {
		case packet.SUBACK, packet.UNSUBACK:
			var a packet.SubAnswer
			if err := a.Decode(h, body, s.v); err != nil || len(a.Properties.User) > 0 {
				s.Errorf("%s %x: %v", want, body, err)
			}
		default:
			var a packet.Ack
			if err := a.Decode(h, body, s.v); err != nil || len(a.Properties.User) > 0 {
				s.Errorf("%s %x: %v", want, body, err)
			}
		}
		return body
	}
	for qos, want := range map[byte]packet.Type{1: packet.PUBACK, 2: packet.PUBREC} {
		m := publish(s.topic("t"), long, qos, 1)
		p.write(m.Append(nil, s.v))
		if body := small(want); !packet.ReasonCode(body[2]).Failed() {
			s.Errorf("%s %x; want a refusal", want, body)
		}
	}
	p.ack(packet.PUBREC, 77, 0) // which nobody sent
	small(packet.PUBREL)
	p.ack(packet.PUBREL, 77, 0)
	small(packet.PUBCOMP)
	p.write((&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "a#"}, {Filter: s.topic("ok")}}}).Append(nil, s.v))
	small(packet.SUBACK)
	p.write((&packet.Unsubscribe{ID: 2, Filters: []string{"a#", s.topic("ok")}}).Append(nil, s.v))
	small(packet.UNSUBACK)
	refused := s.dial(s.r.plain)
	c := s.hello("", with(packet.MaximumPacketSize, 20), func(c *packet.Connect) { c.ClientID = "a/b" })
	refused.hello(c)
	if b := refused.ended(); len(b) != 5 || packet.ReasonCode(b[3]) != packet.ClientIDNotValid {
		s.Errorf("CONNACK is %x; want 5 bytes with 0x85", b)
	}
}

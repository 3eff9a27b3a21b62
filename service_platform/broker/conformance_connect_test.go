package broker

import (
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

func TestConformanceOfConnect(t *testing.T) {
	perform(t, []scene{
		{name: "the first packet is not CONNECT", holds: "3:3.1.0-1 5:3.1.0-1 5:3.14.0-1", play: func(s *stage) {
			p := s.dial(s.addr)
			p.write(packet.AppendPingreq(nil))
			if b := p.ended(); len(b) > 0 {
				s.Errorf("it was answered with %x", b)
			}
		}},
		{name: "a second CONNECT", holds: "3:3.1.0-2 5:3.1.0-2", play: func(s *stage) {
			p := s.client("a")
			again := s.hello("a")
			p.write(again.Append(nil))
			p.closed(packet.ProtocolError)
		}},
		{name: "another protocol", holds: "3:3.1.2-1 5:3.1.2-1", play: func(s *stage) {
			p := s.dial(s.addr)
			p.write(raw(0x10, field("MQTX")+string([]byte{byte(s.v), 2, 0, 60})+s.none()+field(s.word)))
			p.turnedAway("a protocol of another name", packet.UnsupportedProtocolVersion)
		}},
		{name: "another level of the protocol", holds: "3:3.1.2-2 5:3.1.2-2", play: func(s *stage) {
			p := s.dial(s.addr)
			p.write(raw(0x10, field("MQTT")+"\x06\x02\x00\x3c"+field(s.word)))
			if b := p.ended(); string(b) != "\x20\x02\x00\x01" {
				s.Errorf("it was answered with %x; want CONNACK 0x01 as 3.1.1 writes it", b)
			}
		}},
		{name: "a CONNECT that is none", play: refusesMalformedConnect,
			holds: "3:3.1.2-3 3:3.1.2-9 3:3.1.2-11 3:3.1.2-13 3:3.1.2-14 3:3.1.2-15 3:3.1.2-18 3:3.1.2-19 3:3.1.2-20 3:3.1.2-21 3:3.1.2-22 " +
				"3:3.1.3-1 3:3.1.3-3 3:3.1.3-4 3:3.1.3-10 3:3.1.3-11 " +
				"5:3.1.2-3 5:3.1.2-9 5:3.1.2-11 5:3.1.2-12 5:3.1.2-13 5:3.1.2-16 5:3.1.2-17 5:3.1.2-18 5:3.1.2-19 " +
				"5:3.1.3-1 5:3.1.3-3 5:3.1.3-4 5:3.1.3-11 5:3.1.3-12 5:3.1.4-1"},
		{name: "a CONNECT that is none is not answered", holds: "3:3.1.4-1 3:3.2.2-6", play: func(s *stage) {
			for _, b := range [][]byte{s.rawConnect(3, field(s.word)), s.rawConnect(0x06, field(s.word)+field("a/#")+field("x"))} {
				p := s.dial(s.addr)
				p.write(b)
				if got := p.ended(); len(got) > 0 {
					s.Errorf("%x was answered with %x", b, got)
				}
			}
		}},
		{name: "a session is resumed or begun as the client asks", play: resumesSessions,
			holds: "3:3.1.2-4 3:3.1.2-5 3:3.1.2-6 3:3.1.3-2 3:3.1.4-3 3:3.1.4-4 3:3.2.2-1 3:3.2.2-2 3:3.2.2-3 3:4.5.0-1 " +
				"5:3.1.2-4 5:3.1.2-5 5:3.1.2-6 5:3.1.2-23 5:3.1.3-2 5:3.1.4-4 5:3.1.4-5 5:3.2.2-2 5:3.2.2-3 5:4.5.0-1"},
		{name: "client identifiers of 1 to 23 letters and digits", holds: "3:3.1.3-5 5:3.1.3-5", play: func(s *stage) {
			const all = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			for _, id := range []string{"0", "Z", all[:23], all[20:43], all[39:]} {
				s.client("", func(c *packet.Connect) { c.ClientID = id })
			}
		}},
		{name: "no client identifier", play: assignsIdentifiers, holds: "3:3.1.3-6 5:3.1.3-6 5:3.1.3-7 5:3.2.2-16"},
		{name: "no client identifier and a session to keep", holds: "3:3.1.3-8", play: func(s *stage) {
			p := s.dial(s.addr)
			p.hello(packet.Connect{Version: packet.V311})
			if b := p.ended(); string(b) != "\x20\x02\x00\x02" {
				s.Errorf("it was answered with %x; want CONNACK 0x02", b)
			}
		}},
		{name: "a client identifier that is refused", holds: "3:3.1.3-9 3:3.2.2-4 3:3.2.2-5 5:3.1.3-8 5:3.2.2-6 5:3.2.2-7 5:3.2.2-8 5:3.1.4-2 5:3.14.0-1", play: func(s *stage) {
			p := s.dial(s.r.plain)
			p.hello(packet.Connect{Version: s.v, CleanStart: true, ClientID: "a/b"})
			p.turnedAway("a client id that is no device", packet.ClientIDNotValid)
		}},
		{name: "what follows a refused CONNECT is not heard", holds: "3:3.1.4-5 5:3.1.4-6 5:3.2.0-2", play: func(s *stage) {
			ear, mouth := s.hears("ear", 1, "#"), s.client("mouth")
			c := s.hello("x", func(c *packet.Connect) { c.CleanStart, c.ClientID = false, "" })
			if s.v == packet.V5 {
				c.Properties.SetString(packet.AuthenticationMethod, "SCRAM")
			}
			p := s.dial(s.addr)
			m := publish(s.topic("t"), "from one who was not let in", 1, 1)
			p.write(m.Append(c.Append(nil), s.v))
			if list, _ := split(s.T, p.ended()); len(list) != 1 || list[0].Type != packet.CONNACK {
				s.Errorf("it was answered with %v; want one CONNACK", list)
			}
			s.only(ear, mouth, s.topic("fence"), 1)
		}},
		{name: "CONNACK comes first, and once", holds: "3:3.2.0-1 5:3.2.0-1 5:3.2.0-2 5:3.2.2-1", play: func(s *stage) {
			p := s.client("a", kept)
			p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 1})
			p.leaves()
			s.client("b").send(publish(s.topic("t"), "waits", 1, 1))
			p = s.dial(s.addr)
			c := s.hello("a", kept)
			p.write(packet.AppendPingreq(c.Append(nil)))
			seen := map[packet.Type]int{}
			for i := range 3 {
				h, body := p.next()
				seen[h.Type]++
				if (i == 0) != (h.Type == packet.CONNACK) || i == 0 && (body[0] != 1 || body[1] != 0) {
					s.Errorf("packet %d is %s %x", i+1, h.Type, body)
				}
			}
			if seen[packet.PUBLISH] != 1 || seen[packet.PINGRESP] != 1 {
				s.Errorf("there came %v", seen)
			}
		}},
		{name: "CONNACK of MQTT 5 takes nothing back", holds: "5:3.1.2-28 5:3.2.2-9 5:3.2.2-10 5:3.2.2-12 5:3.2.2-13 5:4.12.0-6", play: func(s *stage) {
			_, a := s.connect("a", with(packet.RequestResponseInfo, 0), testament(packet.Will{QoS: 2, Retain: true, Topic: s.topic("w")}))
			for _, id := range []packet.PropertyID{packet.ResponseInformation, packet.MaximumQoS, packet.RetainAvailable, packet.WildcardAvailable,
				packet.SubIDAvailable, packet.SharedAvailable, packet.AuthenticationMethod, packet.AuthenticationData} {
				if a.Properties.Has(id) {
					s.Errorf("CONNACK has property 0x%02X", byte(id))
				}
			}
			if a.Code != 0 {
				s.Errorf("a retained will of QoS 2 is answered with %s", a.Code)
			}
			s.hears("b", 2, "#", "+/x")
		}},
		{name: "a client that says nothing for one and a half keep alives", holds: "3:3.1.2-24 5:3.1.2-22 5:3.2.2-22", play: func(s *stage) {
			ear := s.hears("ear", 0, "#")
			p, a := s.connect("p", func(c *packet.Connect) {
				c.KeepAlive, c.Will = 1, &packet.Will{Topic: s.topic("w"), Payload: []byte("gone")}
			})
			began := time.Now()
			if a.Properties.Has(packet.ServerKeepAlive) {
				s.Error("its own keep alive is not taken")
			}
			p.closed(packet.KeepAliveTimeout)
			if took := time.Since(began); took < 1400*time.Millisecond {
				s.Errorf("closed after %s", took)
			}
			ear.takes(s.topic("w") + " gone q0 rfalse dfalse")
		}},
		{name: "a packet that never ends is none", holds: "3:3.1.2-24 5:3.1.2-22", play: func(s *stage) {
			p := s.client("p", func(c *packet.Connect) { c.KeepAlive = 1 })
			p.write([]byte{0x30, 100})
			if !p.endsWithin(10 * time.Second) {
				s.Error("still connected after 10 s with a keep alive of 1 s, and no whole packet came")
			}
		}},
		{name: "a client identifier that is connected already", holds: "3:3.1.4-2 5:3.1.4-3", play: func(s *stage) {
			old := s.client("a")
			s.client("a").nothing()
			old.closed(packet.SessionTakenOver)
		}},
		{name: "nothing is sent that is larger than the client takes", holds: "5:3.1.2-24 5:3.1.2-25", play: func(s *stage) {
			p := s.client("p", with(packet.MaximumPacketSize, 60), with(packet.ReceiveMaximum, 1), kept)
			p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 1})
			from := s.client("from")
			from.send(publish(s.topic("t"), strings.Repeat("x", 100), 1, 1))
			from.send(publish(s.topic("t"), "small", 1, 2)) // the large one does not use the one place up
			p.takes(s.topic("t") + " small q1 rfalse dfalse")
			p.Close()
			if owed := s.rest(s.client("p", kept), from, s.topic("t"), 1); len(owed) > 0 && owed[0] != "small" {
				s.Errorf("it is owed still: %q", owed)
			}
		}},
		{name: "not even SUBACK is larger than the client takes", holds: "5:3.1.2-24", play: func(s *stage) {
			p := s.client("p", with(packet.MaximumPacketSize, 40))
			var subs []packet.Subscription
			for range 50 {
				subs = append(subs, packet.Subscription{Filter: s.topic("t")})
			}
			p.write((&packet.Subscribe{ID: 1, Subscriptions: subs}).Append(nil, s.v))
			if h, body := p.next(); len(body) > 38 {
				s.Errorf("%s of %d bytes came", h.Type, len(body)+2)
			}
		}},
		{name: "topic aliases as many as the client takes", holds: "5:3.1.2-26 5:3.1.2-27 5:3.3.2-8 5:3.3.2-11", play: func(s *stage) {
			from := s.client("from")
			for most := range uint32(3) {
				p := s.client("p", with(packet.TopicAliasMaximum, most))
				p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 0})
				for i, topic := range []string{"a", "b", "c", "a", "b", "c"} {
					from.send(publish(s.topic(topic), "x", 0, 0))
					m := p.hear()
					a := m.Properties.Num(packet.TopicAlias, 0)
					if a > most || m.Properties.Has(packet.TopicAlias) && a == 0 || (m.Topic == "") != (i >= 3 && a > 0) {
						s.Errorf("message %d to a client that takes %d aliases has alias %d and topic %q", i, most, a, m.Topic)
					}
				}
			}
		}},
	})
}

// turnedAway wants CONNACK with a refusal and the end, and nothing else.
func (p *peer) turnedAway(what string, code packet.ReasonCode) {
	p.t.Helper()
	list, bodies := split(p.t, p.ended())
	if len(list) != 1 || list[0].Type != packet.CONNACK {
		p.t.Errorf("%s is answered with %v; want one CONNACK", what, list)
		return
	}
	want := byte(code)
	if p.v != packet.V5 {
		want = code.ConnackV311()
	}
	if bodies[0][0] != 0 || bodies[0][1] != want {
		p.t.Errorf("%s is answered with CONNACK %x; want 00 %02x", what, bodies[0], want)
	}
}

func refusesMalformedConnect(s *stage) {
	id, will := field(s.word), s.none()+field(s.topic("w"))+field("gone")
	cases := map[string][]byte{
		"the reserved flag":                      s.rawConnect(0x03, id),
		"will QoS 3":                             s.rawConnect(0x1e, id+will),
		"will QoS without a will":                s.rawConnect(0x0a, id),
		"will retain without a will":             s.rawConnect(0x22, id),
		"a will flag without a will":             s.rawConnect(0x06, id),
		"a will without its flag":                s.rawConnect(0x02, id+will),
		"a will topic without a message":         s.rawConnect(0x06, id+s.none()+field(s.topic("w"))),
		"a user name flag without a name":        s.rawConnect(0x82, id),
		"a user name without its flag":           s.rawConnect(0x02, id+field("ann")),
		"a password flag without a password":     s.rawConnect(0xc2, id+field("ann")),
		"a password without its flag":            s.rawConnect(0x82, id+field("ann")+field("secret")),
		"no client identifier, not an empty one": s.rawConnect(0x02, ""),
		"a client identifier that is no UTF-8":   s.rawConnect(0x02, field("\xc3\x28")),
		"a will topic that is no UTF-8":          s.rawConnect(0x06, id+s.none()+field("\xed\xa0\x80")+field("x")),
		"a user name that is no UTF-8":           s.rawConnect(0x82, id+field("\xff")),
		"bytes behind the end":                   s.rawConnect(0x02, id+"x"),
	}
	if s.v == packet.V311 {
		cases["a password flag without a user name flag"] = s.rawConnect(0x42, id+field("secret"))
	}
	for name, b := range cases {
		p := s.dial(s.addr)
		p.write(b)
		got := p.ended()
		if s.v == packet.V5 && (len(got) < 4 || got[0] != 0x20 || got[2] != 0 || !packet.ReasonCode(got[3]).Failed()) || len(got) > 3 && got[3] == 0 {
			s.Errorf("%s is answered with %x", name, got)
		}
	}
	// And all that may be there, in its order.
	p := s.dial(s.addr)
	p.write(s.rawConnect(0xc6, id+will+field("ann")+field("secret")))
	if h, body := p.next(); h.Type != packet.CONNACK || body[1] != 0 {
		s.Errorf("a CONNECT with all is answered with %s %x", h.Type, body)
	}
}

func resumesSessions(s *stage) {
	other := s.client("other")
	come := func(want bool, change ...func(*packet.Connect)) *peer {
		s.Helper()
		p, a := s.connect("a", change...)
		if a.Code != 0 || a.SessionPresent != want {
			s.Errorf("CONNACK has %s and session present %t; want %t", a.Code, a.SessionPresent, want)
		}
		return p
	}
	p := come(false, kept)
	p.granted(packet.Subscription{Filter: s.topic("#"), QoS: 2})
	p.leaves()
	if _, a := s.connect("b", kept); a.SessionPresent {
		s.Error("one client has another's session")
	}
	other.send(publish(s.topic("1"), "one", 1, 1))
	other.send(publish(s.topic("2"), "two", 2, 2))
	p = come(true, kept)
	p.takes(s.topic("1")+" one q1 rfalse dfalse", s.topic("2")+" two q2 rfalse dfalse")
	p.leaves()
	other.send(publish(s.topic("3"), "three", 1, 3))
	p = come(false) // begun anew, without what was waiting and without subscriptions
	other.send(publish(s.topic("4"), "four", 1, 4))
	p.granted(packet.Subscription{Filter: s.topic("5"), QoS: 1})
	other.send(publish(s.topic("5"), "five", 1, 5))
	p.takes(s.topic("5") + " five q1 rfalse dfalse")
	p.leaves()
	p = come(false, kept) // the clean one is not taken up again
	p.granted(packet.Subscription{Filter: s.topic("6"), QoS: 1})
	s.only(p, other, s.topic("6"), 1)
}

func assignsIdentifiers(s *stage) {
	names := map[string]bool{}
	var last string
	for range 3 {
		p, a := s.connect("", func(c *packet.Connect) {
			c.ClientID = ""
			if s.v == packet.V5 {
				c.Properties.Set(packet.SessionExpiry, 60)
			}
		})
		if a.Code != 0 {
			s.Fatalf("answered with %s", a.Code)
		}
		p.granted(packet.Subscription{Filter: s.topic("t"), QoS: 1})
		last = a.Properties.AssignedClientID
		names[last] = true
	}
	if s.v == packet.V311 {
		from := s.client("from") // all three are there, so each has an identifier of its own
		from.send(publish(s.topic("t"), "x", 1, 1))
		return
	}
	if len(names) != 3 || names[""] {
		s.Errorf("the clients were given %v", names)
	}
	if _, a := s.connect("", kept, func(c *packet.Connect) { c.ClientID = last }); !a.SessionPresent {
		s.Error("who comes with the identifier that was given does not find the session")
	}
}

func TestConformanceOfWills(t *testing.T) {
	gone := func(s *stage, qos byte, retain bool) packet.Will {
		return packet.Will{Topic: s.topic("w"), Payload: []byte("gone"), QoS: qos, Retain: retain}
	}
	perform(t, []scene{
		{name: "a will is said when the connection ends, once, and not retained", holds: "3:3.1.2-8 3:3.1.2-10 3:3.1.2-14 3:3.1.2-16 5:3.1.2-7 5:3.1.2-10 5:3.1.2-14", play: func(s *stage) {
			ear := s.hears("ear", 2, "w", "fence")
			for qos := range byte(3) {
				s.client("p", testament(gone(s, qos, false))).Close()
				ear.takes(s.topic("w") + " gone q" + string('0'+rune(qos)) + " rfalse dfalse")
			}
			from := s.client("from")
			late := s.hears("late", 2, "w", "fence")
			s.only(ear, from, s.topic("fence"), 1)
			s.only(late, from, s.topic("fence"), 1)
		}},
		{name: "a retained will", holds: "3:3.1.2-17 5:3.1.2-15", play: func(s *stage) {
			ear := s.hears("ear", 1, "w")
			s.client("p", testament(gone(s, 1, true))).Close()
			ear.takes(s.topic("w") + " gone q1 rfalse dfalse")
			s.hears("late", 1, "w").takes(s.topic("w") + " gone q1 rtrue dfalse")
		}},
		{name: "no will is said that was taken back, or not left", holds: "3:3.1.2-10 3:3.1.2-12 3:3.14.4-3 5:3.1.2-10 5:3.14.4-3", play: func(s *stage) {
			ear := s.hears("ear", 1, "#")
			p := s.client("p", testament(gone(s, 1, false)))
			p.leaves()
			s.client("q").Close()
			s.client("r", testament(packet.Will{Topic: s.topic("r"), Payload: []byte("said"), QoS: 1})).Close()
			ear.takes(s.topic("r") + " said q1 rfalse dfalse")
			s.only(ear, s.client("from"), s.topic("fence"), 1)
		}},
		{name: "a DISCONNECT that wants the will said", holds: "5:3.1.2-8", play: func(s *stage) {
			ear := s.hears("ear", 1, "#")
			p := s.client("p", testament(gone(s, 1, false)))
			p.write((&packet.Disconnect{Code: packet.DisconnectWithWill}).Append(nil, s.v))
			ear.takes(s.topic("w") + " gone q1 rfalse dfalse")
		}},
		{name: "a DISCONNECT that tells of a fault takes no will back", holds: "5:3.1.2-8", play: func(s *stage) {
			ear := s.hears("ear", 1, "#")
			p := s.client("p", testament(gone(s, 1, false)))
			p.write((&packet.Disconnect{Code: packet.UnspecifiedError}).Append(nil, s.v))
			ear.takes(s.topic("w") + " gone q1 rfalse dfalse")
		}},
		{name: "a will that waits is not said when its client is there again", holds: "5:3.1.3-9 5:3.1.2-8", play: func(s *stage) {
			ear := s.hears("ear", 1, "#")
			delayed := func(c *packet.Connect) {
				c.Will = &packet.Will{Topic: s.topic("w"), Payload: []byte(c.ClientID), QoS: 1}
				c.Will.Properties.Set(packet.WillDelay, 1)
			}
			s.client("p", kept, delayed).Close()
			s.client("p", kept)
			s.client("q", kept, delayed).Close() // whose second begins later
			ear.takes(s.topic("w") + " " + s.word + "q q1 rfalse dfalse")
			s.only(ear, s.client("from"), s.topic("fence"), 1)
		}},
		{name: "a will has its properties, in their order", holds: "5:3.1.3-10", play: func(s *stage) {
			ear := s.hears("ear", 1, "#")
			s.client("p", func(c *packet.Connect) {
				w := gone(s, 1, false)
				w.Properties.User = []packet.UserProperty{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}, {Key: "b", Value: "0"}}
				c.Will = &w
			}).Close()
			var keys []string
			m := ear.hear()
			for _, u := range m.Properties.User {
				keys = append(keys, u.Key+u.Value)
			}
			if got := strings.Join(keys, " "); got != "b1 a2 b0" {
				s.Errorf("they came as %q", got)
			}
		}},
	})
}

package broker

import (
	"bufio"
	"context"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

func TestConformanceOfMalformedPackets(t *testing.T) {
	perform(t, []scene{
		{name: "what is no packet ends the connection, and MQTT 5 is told why", play: refusesMalformed,
			holds: "3:1.5.3-1 3:1.5.3-2 3:2.2.2-1 3:2.2.2-2 3:2.3.1-1 3:2.3.1-5 3:3.3.1-2 3:3.3.1-4 3:3.3.2-1 3:3.3.2-2 3:3.6.1-1 3:3.8.1-1 3:3.8.3-1 3:3.8.3-3 3:3-8.3-4 " +
				"3:3.10.1-1 3:3.10.3-1 3:3.10.3-2 3:3.14.1-1 3:4.7.1-1 3:4.7.3-1 3:4.7.3-2 3:4.8.0-1 " +
				"5:1.5.4-1 5:1.5.4-2 5:1.5.5-1 5:1.5.7-1 5:2.1.3-1 5:2.2.1-2 5:2.2.1-3 5:3.3.1-2 5:3.3.1-4 5:3.3.2-1 5:3.3.2-2 5:3.3.2-13 5:3.3.2-14 5:3.3.2-19 " +
				"5:3.6.1-1 5:3.8.1-1 5:3.8.3-1 5:3.8.3-2 5:3.8.3-4 5:3.8.3-5 5:3.10.1-1 5:3.10.3-1 5:3.10.3-2 5:3.14.1-1 5:3.14.2-1 5:3.15.1-1 " +
				"5:4.7.0-1 5:4.7.3-1 5:4.7.3-2 5:4.13.1-1 5:4.13.2-1 5:3.14.4-2"},
		{name: "a fault of one client ends no other's connection", holds: "3:4.8.0-1 5:4.13.1-1", play: func(s *stage) {
			good, bad := s.client("good"), s.client("bad")
			bad.write([]byte{0x00, 0x00})
			bad.closed(packet.MalformedPacket)
			good.nothing()
		}},
		{name: "PINGREQ is answered", holds: "3:3.12.4-1 5:3.12.4-1", play: func(s *stage) {
			p := s.client("p")
			for range 3 {
				p.write(packet.AppendPingreq(packet.AppendPingreq(nil)))
				for range 2 {
					if h, body := p.next(); h.Type != packet.PINGRESP || len(body) > 0 {
						s.Errorf("PINGREQ is answered with %s %x", h.Type, body)
					}
				}
			}
		}},
		{name: "nothing follows DISCONNECT, which is short enough and has no expiry", holds: "5:3.14.2-2 5:3.14.2-3 5:3.14.2-4 5:3.14.4-1 5:3.14.4-2", play: func(s *stage) {
			for _, most := range []uint32{30, 4096} {
				p := s.client("p", with(packet.MaximumPacketSize, most))
				var b []byte
				for i := range uint16(20) {
					m := publish(s.topic("t"), "x", 1, i+1)
					b = m.Append(b, s.v)
				}
				bad := publish("", "x", 1, 30)
				bad.Properties.Set(packet.TopicAlias, 9) // which is none yet
				p.write(packet.AppendPingreq(bad.Append(b, s.v)))
				list, bodies := split(s.T, p.ended())
				for i, h := range list {
					if last := i == len(list)-1; (h.Type == packet.DISCONNECT) != last {
						s.Fatalf("packet %d of %d is %s", i+1, len(list), h.Type)
					}
				}
				var d packet.Disconnect
				body := bodies[len(bodies)-1]
				if err := d.Decode(list[len(list)-1], body, s.v); err != nil || d.Code != packet.TopicAliasInvalid || d.Properties.Has(packet.SessionExpiry) || len(body)+2 > int(most) {
					s.Errorf("DISCONNECT is %x (%v)", body, err)
				}
				if told := d.Properties.ReasonString != ""; told != (most > 100) {
					s.Errorf("a client that takes %d bytes is told %q", most, d.Properties.ReasonString)
				}
			}
		}},
		{name: "a clean DISCONNECT ends the connection without an answer", holds: "3:3.14.4-3 5:3.14.4-3", play: func(s *stage) {
			p := s.client("p", testament(packet.Will{Topic: s.topic("w"), Payload: []byte("x")}))
			p.write((&packet.Disconnect{}).Append(nil, s.v))
			if b := p.ended(); len(b) > 0 {
				s.Errorf("it was answered with %x", b)
			}
		}},
		{name: "enhanced authentication is refused, and never begun", play: func(s *stage) {
			p := s.dial(s.addr)
			c := s.hello("p")
			c.Properties.SetString(packet.AuthenticationMethod, "SCRAM-SHA-256")
			c.Properties.AuthData = []byte("first")
			p.hello(c)
			list, bodies := split(s.T, p.ended())
			var a packet.Connack
			if len(list) != 1 || list[0].Type != packet.CONNACK {
				s.Fatalf("it was answered with %v", list)
			}
			if err := a.Decode(list[0], bodies[0], s.v); err != nil || a.Code != packet.BadAuthenticationMethod || a.Properties.Has(packet.AuthenticationMethod) {
				s.Errorf("CONNACK is %x (%v)", bodies[0], err)
			}
			for _, code := range []packet.ReasonCode{packet.ContinueAuthentication, packet.ReAuthenticate} {
				p := s.client("q")
				auth := packet.Auth{Code: code}
				auth.Properties.SetString(packet.AuthenticationMethod, "SCRAM-SHA-256")
				p.write(auth.Append(nil))
				p.closed(packet.ProtocolError)
			}
		}, holds: "5:4.12.0-1 5:4.12.0-2 5:4.12.0-4 5:4.12.0-5 5:4.12.0-6 5:4.12.0-7 5:4.12.1-2 5:3.15.2-1 5:3.15.2-2 5:3.15.2-3"},
	})
}

func refusesMalformed(s *stage) {
	id, none, topic := "\x00\x01", s.none(), field(s.topic("t"))
	type bad struct {
		bytes []byte
		code  packet.ReasonCode // of MQTT 5; zero where there is no such packet
	}
	malformed, protocol := packet.MalformedPacket, packet.ProtocolError
	cases := map[string]bad{
		"packet type 0":                        {[]byte{0, 0}, malformed},
		"a remaining length of five bytes":     {[]byte{0x30, 0xff, 0xff, 0xff, 0xff, 1}, malformed},
		"a remaining length that is not short": {[]byte{0xc0, 0x80, 0}, malformed},
		"PINGREQ with flags":                   {[]byte{0xc1, 0}, malformed},
		"PUBACK with flags":                    {raw(0x42, id), malformed},
		"PUBREL without its flag":              {raw(0x60, id), malformed},
		"SUBSCRIBE without its flag":           {raw(0x80, id+none+topic+"\x00"), malformed},
		"UNSUBSCRIBE without its flag":         {raw(0xa0, id+none+topic), malformed},
		"DISCONNECT with flags":                {[]byte{0xe1, 0}, malformed},
		"AUTH with flags":                      {[]byte{0xf1, 0}, malformed},
		"PUBLISH of QoS 3":                     {raw(0x36, topic+id+none), malformed},
		"PUBLISH of QoS 0 with DUP":            {raw(0x38, topic+none), malformed},
		"PUBLISH of QoS 1 without identifier":  {raw(0x32, topic), malformed},
		"PUBLISH with identifier 0":            {raw(0x32, topic+"\x00\x00"+none), protocol},
		"PUBLISH with a surrogate":             {raw(0x30, field("\xed\xa0\x80")+none), malformed},
		"PUBLISH with an overlong form":        {raw(0x30, field("\xc0\xaf")+none), malformed},
		"PUBLISH with a NUL":                   {raw(0x30, field("a\x00")+none), malformed},
		"PUBLISH without a topic":              {raw(0x30, field("")+none), protocol},
		"PUBLISH with #":                       {raw(0x30, field("a/#")+none), packet.TopicNameInvalid},
		"PUBLISH with +":                       {raw(0x30, field("+")+none), packet.TopicNameInvalid},
		"SUBSCRIBE to nothing":                 {raw(0x82, id+none), protocol},
		"SUBSCRIBE with identifier 0":          {raw(0x82, "\x00\x00"+none+topic+"\x00"), protocol},
		"SUBSCRIBE with QoS 3":                 {raw(0x82, id+none+topic+"\x03"), protocol},
		"SUBSCRIBE with reserved bits":         {raw(0x82, id+none+topic+"\x80"), malformed},
		"SUBSCRIBE with a NUL":                 {raw(0x82, id+none+field("\x00")+"\x00"), malformed},
		"SUBSCRIBE with bad UTF-8":             {raw(0x82, id+none+field("\xff")+"\x00"), malformed},
		"UNSUBSCRIBE from nothing":             {raw(0xa2, id+none), protocol},
		"UNSUBSCRIBE with identifier 0":        {raw(0xa2, "\x00\x00"+none+topic), protocol},
		"UNSUBSCRIBE with bad UTF-8":           {raw(0xa2, id+none+field("\xff")), malformed},
		"CONNACK, which is the server's":       {[]byte{0x20, 2, 0, 0}, protocol},
		"SUBACK, which is the server's":        {raw(0x90, id+none+"\x00"), protocol},
		"PINGRESP, which is the server's":      {[]byte{0xd0, 0}, protocol},
	}
	if s.v == packet.V5 {
		for name, x := range map[string]bad{
			"a response topic with a wildcard":              {raw(0x30, topic+"\x04\x08"+field("#")), protocol},
			"a response topic with bad UTF-8":               {raw(0x30, topic+"\x04\x08"+field("\xff")), malformed},
			"a content type with bad UTF-8":                 {raw(0x30, topic+"\x04\x03"+field("\xff")), malformed},
			"a user property whose name is bad UTF-8":       {raw(0x30, topic+"\x06\x26"+field("\xff")+field("")), malformed},
			"a user property whose value has a NUL":         {raw(0x30, topic+"\x06\x26"+field("")+field("\x00")), malformed},
			"a subscription identifier that is not short":   {raw(0x82, id+"\x03\x0b\x81\x00"+topic+"\x00"), malformed},
			"topic alias 0":                                 {raw(0x30, topic+"\x03\x23\x00\x00"), packet.TopicAliasInvalid},
			"SUBSCRIBE with retain handling 3":              {raw(0x82, id+none+topic+"\x30"), protocol},
			"a shared subscription with no local":           {raw(0x82, id+none+field("$share/g/a")+"\x04"), protocol},
			"DISCONNECT with another packet's code":         {raw(0xe0, "\x01"), malformed},
			"DISCONNECT that prolongs a session of no time": {raw(0xe0, "\x00\x05\x11\x00\x00\x00\x01"), protocol},
			"a property of another packet":                  {raw(0x30, topic+"\x03\x21\x00\x01"), malformed},
		} {
			cases[name] = x
		}
	} else {
		cases["SUBSCRIBE with an option of MQTT 5"] = bad{raw(0x82, id+topic+"\x04"), 0}
		cases["AUTH"] = bad{[]byte{0xf0, 0}, 0}
		cases["DISCONNECT with a body"] = bad{raw(0xe0, "\x00"), 0}
	}
	for name, x := range cases {
		p := s.client("p")
		p.write(x.bytes)
		b := p.ended()
		if s.v == packet.V311 && len(b) > 0 || s.v == packet.V5 && (len(b) < 3 || b[0] != 0xe0 || packet.ReasonCode(b[2]) != x.code) {
			s.Errorf("%s is answered with %x", name, b)
		}
	}
}

func TestConformanceOfWebSocket(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Protocol = "ws" })
	r := newRig(t, conf)
	holds := func(string) {}
	dial := func(t *testing.T, protocols ...string) (*websocket.Conn, context.Context) {
		ws, _, err := websocket.Dial(t.Context(), "ws://"+addr+"/mqtt", &websocket.DialOptions{Subprotocols: protocols})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ws.CloseNow() })
		return ws, t.Context()
	}
	hello := (&packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "w"}).Append(nil)

	holds("3:6.0.0-1 5:6.0.0-1")
	ws, ctx := dial(t, "mqtt")
	if err := ws.Write(ctx, websocket.MessageText, hello); err != nil {
		t.Fatal(err)
	}
	if kind, b, err := ws.Read(ctx); err == nil {
		t.Errorf("a text frame is answered with %s %x", kind, b)
	}

	holds("3:6.0.0-2 5:6.0.0-2")
	ws, ctx = dial(t, "mqtt")
	all := packet.AppendPingreq(packet.AppendPingreq(hello))
	for len(all) > 0 { // a byte in each frame, and then two packets in one
		n := 1
		if len(all) <= 4 {
			n = len(all)
		}
		if err := ws.Write(ctx, websocket.MessageBinary, all[:n]); err != nil {
			t.Fatal(err)
		}
		all = all[n:]
	}
	c := websocket.NetConn(ctx, ws, websocket.MessageBinary)
	p := &peer{t: t, Conn: c, r: bufio.NewReader(c), v: packet.V5}
	for i, want := range []packet.Type{packet.CONNACK, packet.PINGRESP, packet.PINGRESP} {
		if h, _ := p.next(); h.Type != want {
			t.Errorf("packet %d is %s; want %s", i+1, h.Type, want)
		}
	}

	holds("3:6.0.0-4 5:6.0.0-4")
	if ws, _ := dial(t, "mqttv3.1", "mqtt"); ws.Subprotocol() != "mqtt" {
		t.Errorf("the subprotocol is %q", ws.Subprotocol())
	}
	if ws, ctx := dial(t, "mqttv3.1"); strings.Contains(ws.Subprotocol(), "mqtt") {
		t.Errorf("the subprotocol is %q", ws.Subprotocol())
	} else if _, _, err := ws.Read(ctx); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("without the subprotocol: %v", err)
	}
	r.stop()
}

package broker

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"golang.org/x/crypto/bcrypt"

	"github.com/naru-platform/naru/internal/porttest"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// open is a listener as of an ordinary broker.
func open(t *testing.T, change ...func(*Listener)) (func(*Config), string) {
	t.Helper()
	e := Listener{Name: "open", Address: porttest.Addr(t), Protocol: "mqtt", Auth: "none", Policy: "open", Mount: "3rd_party.legacy"}
	for _, f := range change {
		f(&e)
	}
	return func(c *Config) { c.Listeners = []Listener{e} }, e.Address
}

// client speaks packets over any connection.
func (r *rig) dial(addr string) *peer {
	r.t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return &peer{t: r.t, Conn: c, r: bufio.NewReader(c)}
}

// connect says CONNECT, and gives CONNACK.
func (p *peer) connect(c packet.Connect) packet.Connack {
	p.t.Helper()
	p.hello(c)
	h, body := p.next()
	var a packet.Connack
	if err := a.Decode(h, body, c.Version); err != nil || h.Type != packet.CONNACK {
		p.t.Fatalf("CONNECT was answered with %s %x (%v)", h.Type, body, err)
	}
	return a
}

func keeping(id string, clean bool, seconds uint32) packet.Connect {
	c := packet.Connect{Version: packet.V5, CleanStart: clean, ClientID: id, KeepAlive: 60}
	c.Properties.Set(packet.SessionExpiry, seconds)
	return c
}

func (p *peer) subscribe(subs ...packet.Subscription) []packet.ReasonCode {
	p.t.Helper()
	p.write((&packet.Subscribe{ID: 99, Subscriptions: subs}).Append(nil, p.v))
	h, body := p.reply()
	var a packet.SubAnswer
	if err := a.Decode(h, body, p.v); err != nil || h.Type != packet.SUBACK {
		p.t.Fatalf("SUBSCRIBE was answered with %s %x (%v)", h.Type, body, err)
	}
	return a.Codes
}

// send publishes and goes through the handshake of its QoS.
func (p *peer) send(m packet.Publish) packet.ReasonCode {
	p.t.Helper()
	p.write(m.Append(nil, p.v))
	switch m.QoS {
	case 1:
		return p.answer(packet.PUBACK, m.ID)
	case 2:
		if code := p.answer(packet.PUBREC, m.ID); code.Failed() {
			return code
		}
		p.write((&packet.Ack{Type: packet.PUBREL, ID: m.ID}).Append(nil, p.v))
		return p.answer(packet.PUBCOMP, m.ID)
	}
	return 0
}

func (p *peer) answer(want packet.Type, id uint16) packet.ReasonCode {
	p.t.Helper()
	h, body := p.reply()
	var a packet.Ack
	if err := a.Decode(h, body, p.v); err != nil || h.Type != want || a.ID != id {
		p.t.Fatalf("%s %x (%v); want %s of %d", h.Type, body, err, want, id)
	}
	return a.Code
}

// hear wants a PUBLISH, and does not answer it.
func (p *peer) hear() packet.Publish {
	p.t.Helper()
	var h packet.Header
	var body []byte
	if len(p.early) > 0 {
		h, body, p.early = p.early[0].h, p.early[0].body, p.early[1:]
	} else {
		h, body = p.next()
	}
	var m packet.Publish
	if err := m.Decode(h, body, p.v); err != nil || h.Type != packet.PUBLISH {
		p.t.Fatalf("%s %x (%v); want PUBLISH", h.Type, body, err)
	}
	return m
}

// take hears, and goes through the handshake.
func (p *peer) take() string {
	p.t.Helper()
	m := p.hear()
	switch m.QoS {
	case 1:
		p.write((&packet.Ack{Type: packet.PUBACK, ID: m.ID}).Append(nil, p.v))
	case 2:
		p.write((&packet.Ack{Type: packet.PUBREC, ID: m.ID}).Append(nil, p.v))
		p.answer(packet.PUBREL, m.ID)
		p.write((&packet.Ack{Type: packet.PUBCOMP, ID: m.ID}).Append(nil, p.v))
	}
	return fmt.Sprintf("%s %s q%d r%t d%t", m.Topic, m.Payload, m.QoS, m.Retain, m.Dup)
}

// nothing wants silence: what a ping is answered with comes next.
func (p *peer) nothing() {
	p.t.Helper()
	if len(p.early) > 0 {
		p.t.Fatalf("%s %q came, and nothing should have", p.early[0].h.Type, p.early[0].body)
	}
	p.write(packet.AppendPingreq(nil))
	if h, body := p.next(); h.Type != packet.PINGRESP {
		p.t.Fatalf("%s %q came, and nothing should have", h.Type, body)
	}
}

func publish(topic, data string, qos byte, id uint16) packet.Publish {
	return packet.Publish{Topic: topic, Payload: []byte(data), QoS: qos, ID: id}
}

func TestASessionIsThereAfterTheBrokerHasStartedAgain(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, conf)
	sub := r.dial(addr)
	if a := sub.connect(keeping("sub", false, 3600)); a.SessionPresent {
		t.Error("a new session is said to be present")
	}
	if codes := sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 2}); !slices.Equal(codes, []packet.ReasonCode{2}) {
		t.Errorf("SUBACK has %v", codes)
	}
	pub := r.dial(addr)
	pub.connect(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "pub"})
	pub.send(publish("a/b", "1", 2, 1))
	if got := sub.take(); got != "a/b 1 q2 rfalse dfalse" {
		t.Error(got)
	}
	pub.send(publish("a/b", "2", 2, 2))
	m := sub.hear()
	sub.write((&packet.Ack{Type: packet.PUBREC, ID: m.ID}).Append(nil, packet.V5))
	sub.answer(packet.PUBREL, m.ID)
	pub.send(publish("a/b", "3", 1, 3))
	third := sub.hear()
	sub.Close()
	pub.send(publish("a/b", "4", 1, 4))
	r.stop()
	r.start(catalog.Default())
	pub = r.dial(addr)
	pub.connect(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "pub"})
	pub.send(publish("a/b", "5", 1, 5))
	sub = r.dial(addr)
	if a := sub.connect(keeping("sub", false, 3600)); !a.SessionPresent {
		t.Error("the session is not present")
	}
	sub.answer(packet.PUBREL, m.ID) // of the handshake that had begun
	again := sub.hear()
	if string(again.Payload) != "3" || again.ID != third.ID {
		t.Errorf("first comes %s with identifier %d; want 3 with %d", again.Payload, again.ID, third.ID)
	}
	sub.write((&packet.Ack{Type: packet.PUBCOMP, ID: m.ID}).Append(nil, packet.V5))
	sub.write((&packet.Ack{Type: packet.PUBACK, ID: again.ID}).Append(nil, packet.V5))
	if got := sub.take(); !strings.HasPrefix(got, "a/b 4 q1 rfalse") { // a duplicate, where it was written before the connection was seen to be gone
		t.Errorf("%s came; want 4", got)
	}
	if got := sub.take(); got != "a/b 5 q1 rfalse dfalse" {
		t.Errorf("%s came; want 5", got)
	}
	sub.nothing()
}

func TestAQoS2MessageIsStoredOnceThoughItIsSentAgain(t *testing.T) {
	r := newRig(t, nil)
	p := r.raw()
	p.connect(keeping("d-1", false, 3600))
	m := publish("device/d-1/telemetry", "once", 2, 7)
	p.write(m.Append(nil, packet.V5))
	p.answer(packet.PUBREC, 7)
	p.Close()
	r.stop()
	r.start(catalog.Default())
	p = r.raw()
	p.connect(keeping("d-1", false, 3600))
	m.Dup = true
	p.write(m.Append(nil, packet.V5))
	p.answer(packet.PUBREC, 7)
	p.write((&packet.Ack{Type: packet.PUBREL, ID: 7}).Append(nil, packet.V5))
	p.answer(packet.PUBCOMP, 7)
	p.write((&packet.Ack{Type: packet.PUBREL, ID: 7}).Append(nil, packet.V5))
	if code := p.answer(packet.PUBCOMP, 7); code != packet.PacketIDNotFound {
		t.Errorf("a second PUBREL is answered with %s", code)
	}
	p.send(publish("device/d-1/telemetry", "another", 2, 7))
	list := r.stored(2)
	if len(list) != 2 || string(list[0].Data) != "once" || string(list[1].Data) != "another" {
		t.Errorf("%d messages are stored", len(list))
	}
}

func TestRetainedMessagesSharedSubscriptionsAndOptions(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, conf)
	pub := r.dial(addr)
	pub.connect(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "pub"})
	kept := publish("state/lamp", "on", 1, 1)
	kept.Retain = true
	pub.send(kept)
	sub := r.dial(addr)
	sub.connect(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "sub"})
	sub.subscribe(packet.Subscription{Filter: "state/+", QoS: 1})
	if got := sub.take(); got != "state/lamp on q1 rtrue dfalse" {
		t.Error(got)
	}
	pub.send(kept)
	if got := sub.take(); got != "state/lamp on q1 rfalse dfalse" {
		t.Error(got)
	}
	sub.subscribe(packet.Subscription{Filter: "state/+", QoS: 1, RetainAsPublished: true, RetainHandling: 1})
	pub.send(kept)
	if got := sub.take(); got != "state/lamp on q1 rtrue dfalse" {
		t.Error(got)
	}
	// No Local: its own messages are not for it.
	pub.subscribe(packet.Subscription{Filter: "echo/#", QoS: 1, NoLocal: true})
	pub.send(publish("echo/x", "mine", 1, 2))
	sub.send(publish("echo/x", "yours", 1, 2))
	if got := pub.take(); got != "echo/x yours q1 rfalse dfalse" {
		t.Error(got)
	}
	// A group: each message to one of them.
	other := r.dial(addr)
	other.connect(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "other"})
	for _, p := range []*peer{sub, other} {
		p.subscribe(packet.Subscription{Filter: "$share/g/work/#", QoS: 1})
	}
	for i := range 4 {
		pub.send(publish("work/x", fmt.Sprint(i), 1, uint16(10+i)))
	}
	for _, p := range []*peer{sub, sub, other, other} {
		if got := p.take(); !strings.HasPrefix(got, "work/x ") {
			t.Error(got)
		}
	}
	sub.nothing()
	other.nothing()
	// Identifiers come with what they matched, and an alias stands for a topic.
	c := packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "alias"}
	c.Properties.Set(packet.TopicAliasMaximum, 5)
	aliased := r.dial(addr)
	aliased.connect(c)
	s := packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "t/#", QoS: 0}}}
	s.Properties.SubscriptionIDs = []uint32{42}
	aliased.write(s.Append(nil, packet.V5))
	if h, _ := aliased.next(); h.Type != packet.SUBACK {
		t.Fatal(h.Type)
	}
	first := publish("t/long/topic", "1", 1, 20)
	first.Properties.Set(packet.TopicAlias, 3)
	pub.send(first)
	second := publish("", "2", 1, 21)
	second.Properties.Set(packet.TopicAlias, 3)
	pub.send(second)
	if m := aliased.hear(); m.Topic != "t/long/topic" || m.Properties.Num(packet.TopicAlias, 0) != 1 || !slices.Equal(m.Properties.SubscriptionIDs, []uint32{42}) {
		t.Errorf("first came %+v", m)
	}
	if m := aliased.hear(); m.Topic != "" || m.Properties.Num(packet.TopicAlias, 0) != 1 || string(m.Payload) != "2" {
		t.Errorf("then came %+v", m)
	}
}

func TestAWillWaitsForItsDelayAndForTheNextStart(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, conf)
	sub := r.dial(addr)
	sub.connect(keeping("sub", false, 3600))
	sub.subscribe(packet.Subscription{Filter: "will/#", QoS: 1})
	dying := func(id string, delay, expiry uint32) *peer {
		c := keeping(id, false, expiry)
		c.Will = &packet.Will{QoS: 1, Topic: "will/" + id, Payload: []byte("gone")}
		c.Will.Properties.Set(packet.WillDelay, delay)
		p := r.dial(addr)
		p.connect(c)
		return p
	}
	a := dying("a", 3600, 7200)
	a.Close()
	b := dying("b", 0, 3600)
	b.Close()
	if got := sub.take(); got != "will/b gone q1 rfalse dfalse" {
		t.Error(got)
	}
	c := dying("c", 3600, 0)
	c.Close() // its session ends with it, and that is sooner
	if got := sub.take(); got != "will/c gone q1 rfalse dfalse" {
		t.Error(got)
	}
	d := dying("d", 0, 0)
	d.write((&packet.Disconnect{}).Append(nil, packet.V5)) // with a good-bye there is no will
	d.ended()
	sub.nothing()
	dying("e", 0, 3600)
	if err := r.bus.Close(); err != nil { // as a process that is killed, for all that is written
		t.Fatal(err)
	}
	r.stop()
	r.bus = r.bus.Reopen()
	r.start(catalog.Default())
	sub = r.dial(addr)
	sub.connect(keeping("sub", false, 3600))
	if got := sub.take(); got != "will/e gone q1 rfalse dfalse" {
		t.Error(got)
	}
}

func TestNobodyTakesOverAnotherListenersSession(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users")
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(users, []byte("# users\nann:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, addr := open(t, func(l *Listener) {
		l.Auth, l.UsersFile, l.KeepAliveMax, l.Refuse = "password", users, "30s", []string{"secret/#"}
	})
	r := newRig(t, conf)
	in := func(user, password string) packet.Connect {
		c := keeping("x", false, 60)
		c.HasUserName, c.UserName, c.HasPassword, c.Password = true, user, true, []byte(password)
		return c
	}
	for _, c := range []packet.Connect{in("ann", "wrong"), in("bob", "secret"), keeping("x", true, 0)} {
		if a := r.dial(addr).connect(c); a.Code != packet.BadUserNameOrPassword {
			t.Errorf("user %q is answered with %s", c.UserName, a.Code)
		}
	}
	p := r.dial(addr)
	if a := p.connect(in("ann", "secret")); a.Code != 0 || a.Properties.Num(packet.ServerKeepAlive, 0) != 30 {
		t.Errorf("CONNACK is %+v", a)
	}
	if codes := p.subscribe(packet.Subscription{Filter: "secret/x"}, packet.Subscription{Filter: "#"}); codes[0] != packet.NotAuthorized || codes[1] != 0 {
		t.Errorf("SUBACK has %v", codes)
	}
	if code := p.send(publish("secret/x", "no", 1, 1)); code != packet.NotAuthorized {
		t.Errorf("what is refused is answered with %s", code)
	}
	p.send(publish("$hidden/x", "not seen by #", 1, 2))
	p.send(publish("open/x", "seen", 1, 3))
	if m := p.hear(); string(m.Payload) != "seen" {
		t.Errorf("%s came", m.Payload)
	}
	same := r.raw() // the same client id by another way in
	if a := same.connect(keeping("x", false, 60)); a.SessionPresent {
		t.Error("it has another one's session")
	}
	p.nothing()
}

func TestMQTTOverWebSocket(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Protocol = "ws" })
	r := newRig(t, conf)
	ws, _, err := websocket.Dial(t.Context(), "ws://"+addr+"/mqtt", &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := websocket.NetConn(ctx, ws, websocket.MessageBinary)
	p := &peer{t: t, Conn: c, r: bufio.NewReader(c)}
	p.connect(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "w"})
	p.subscribe(packet.Subscription{Filter: "x", QoS: 1})
	p.write(publishBytes(publish("x", "hello", 1, 1)))
	for range 2 {
		if h, _ := p.next(); h.Type != packet.PUBACK && h.Type != packet.PUBLISH {
			t.Error(h.Type)
		}
	}
	other, _, err := websocket.Dial(t.Context(), "ws://"+addr+"/mqtt", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("without the subprotocol: %v", err)
	}
	r.stop() // ends with clients connected
}

func publishBytes(m packet.Publish) []byte { return m.Append(nil, packet.V311) }

func TestListenersAreCheckedWhenTheyAreRead(t *testing.T) {
	for want, l := range map[string]Listener{
		"host:port":      {Address: "1883"},
		"protocol":       {Address: "127.0.0.1:1", Protocol: "amqp"},
		"auth":           {Address: "127.0.0.1:1", Protocol: "mqtt", Auth: "magic"},
		"wants TLS":      {Address: "127.0.0.1:1", Protocol: "mqtt", Auth: "certificate"},
		"not a loopback": {Address: "10.0.0.1:1", Protocol: "mqtt", Auth: "none"},
		"wants a mount":  {Address: "127.0.0.1:1", Protocol: "mqtt", Auth: "none", Policy: "open"},
		"live under":     {Address: "127.0.0.1:1", Protocol: "mqtt", Auth: "none", Policy: "open", Mount: "operator.x"},
		"go together":    {Address: "127.0.0.1:1", Auth: "password"},
		"keep_alive_max": {Address: "127.0.0.1:1", KeepAliveMax: "-1s"},
		"refuse":         {Address: "127.0.0.1:1", Refuse: []string{"a/#/b"}},
		"publish_rate":   {Address: "127.0.0.1:1", PublishRate: &Rate{Messages: -1}},
		"expiry_max":     {Address: "127.0.0.1:1", SessionExpiryMax: "soon"},
		"messages_max":   {Address: "127.0.0.1:1", SessionMessagesMax: -1},
		"users_file":     {Address: "127.0.0.1:1", Auth: "password", UsersFile: "/nowhere"},
	} {
		if _, err := newEntrance(l); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v gives %v; want it to say %q", l, err, want)
		}
	}
}

package broker

import (
	"bufio"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/porttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/operator"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// gate admits by the common name, or refuses as it is told.
type gate struct {
	pair   tls.Certificate
	refuse error
	mu     sync.Mutex
	change map[*func(string)]struct{}
	known  sync.Map // of what is registered of devices, beside that they are
}

func (g *gate) ServerTLS() (*tls.Config, error) {
	return &tls.Config{Certificates: []tls.Certificate{g.pair}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS12}, nil
}

func (g *gate) Admit(_ context.Context, leaf *x509.Certificate, _ []*x509.Certificate) (string, error) {
	return leaf.Subject.CommonName, g.refuse
}

func (g *gate) OnChange(f func(string)) (stop func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.change == nil {
		g.change = map[*func(string)]struct{}{}
	}
	g.change[&f] = struct{}{}
	return func() { g.mu.Lock(); defer g.mu.Unlock(); delete(g.change, &f) }
}

// changed tells that something of a device has changed.
func (g *gate) changed(device string) {
	g.mu.Lock()
	all := slices.Collect(maps.Keys(g.change))
	g.mu.Unlock()
	for _, f := range all {
		(*f)(device)
	}
}

func certificate(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

type rig struct {
	t     *testing.T
	bus   *mem.Bus
	gate  *gate
	host  *component.Host
	plain string
	tls   string
	conf  json.RawMessage
	dir   string
	b     *Broker
	node  string
	lease time.Duration // of the next start; the usual where zero
	turns *turns        // of the next start; nil where clients may take over as often as they like
	again time.Duration // after which the next start says a will again that the log could not take; as usual where zero
	stop  func()        // ends the broker, and returns when it has gone
}

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	return newRigOn(t, catalog.Default(), change)
}

// newRigOn is newRig with contracts of the test.
func newRigOn(t *testing.T, contracts *message.Catalog, change func(*Config)) *rig {
	t.Helper()
	return newNode(t, mem.New(mem.Options{}), "n1", contracts, change)
}

// newNode is a rig on a bus that others may be on.
func newNode(t *testing.T, on *mem.Bus, node string, contracts *message.Catalog, change func(*Config)) *rig {
	t.Helper()
	return newNodeWith(t, &rig{}, on, node, contracts, change)
}

// newRigWith is newRig with what the rig has been given.
func newRigWith(t *testing.T, r *rig, change func(*Config)) *rig {
	t.Helper()
	return newNodeWith(t, r, mem.New(mem.Options{}), "n1", catalog.Default(), change)
}

func newNodeWith(t *testing.T, r *rig, on *mem.Bus, node string, contracts *message.Catalog, change func(*Config)) *rig {
	t.Helper()
	r.t, r.bus, r.node, r.gate = t, on, node, &gate{pair: certificate(t, "localhost")}
	r.plain, r.tls = porttest.Addr(t), porttest.Addr(t)
	c := Defaults
	c.Plain, c.Listen = r.plain, r.tls
	if change != nil {
		change(&c)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	r.conf, r.dir = raw, t.TempDir()
	t.Cleanup(func() { r.bus.SetDown(false); r.stop(); r.bus.Close() })
	r.start(contracts)
	return r
}

// start runs the broker, again where it has been stopped.
func (r *rig) start(contracts *message.Catalog) {
	r.t.Helper()
	spec := component.Define(With(r.gate), Defaults, func(env component.Env, c Config) (*component.Part, error) {
		b, err := build(env, c, r.gate)
		if err != nil {
			return nil, err
		}
		r.b = b
		if b.turns.free = 1 << 20; r.turns != nil {
			b.turns = r.turns
		}
		b.wills.again = cmp.Or(r.again, b.wills.again)
		part := b.part()
		part.Lease = cmp.Or(r.lease, part.Lease)
		return part, nil
	})
	r.host = &component.Host{Bus: r.bus, Catalog: contracts, Dir: r.dir, Node: r.node, Specs: []component.Spec{spec},
		Config: map[string]json.RawMessage{"service_platform.broker": r.conf}, Log: slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	host := r.host
	go func() { done <- host.Run(ctx) }()
	r.stop = sync.OnceFunc(func() { cancel(); <-done })
	for until := time.Now().Add(45 * time.Second); ; {
		if h := r.host.Health(); h[0].State == "running" {
			return
		}
		if time.Now().After(until) {
			r.t.Fatal("the broker does not start")
		}
	}
}

// refused waits for a refusal with the reason, as the operator's log has it.
func (r *rig) refused(want message.Reason) operator.Refusal {
	r.t.Helper()
	return r.refusedAs(want, "")
}

// refusedAs does so for one whose detail has a word.
func (r *rig) refusedAs(want message.Reason, word string) operator.Refusal {
	r.t.Helper()
	l, err := r.bus.Log(r.t.Context(), message.Operator, bus.LogOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	reader, err := l.Reader(r.t.Context(), bus.Position{Generation: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(r.t.Context(), 45*time.Second)
	defer cancel()
	var seen []string
	for {
		s, err := reader.Next(ctx)
		if err != nil {
			r.t.Fatalf("no refusal for %s; there were %v", want, seen)
		}
		var m message.Message
		for c := s.Batch.Cursor(); c.Next(&m); {
			var x operator.Refusal
			if err := json.Unmarshal(m.Data, &x); err != nil {
				r.t.Fatal(err)
			}
			if x.Reason == want && strings.Contains(x.Detail, word) {
				return x
			}
			seen = append(seen, x.Reason.String()+" "+x.Detail)
		}
	}
}

// stored waits for n messages of telemetry in the log.
func (r *rig) stored(n int) (list []*message.Message) {
	r.t.Helper()
	l, err := r.bus.Log(r.t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	reader, err := l.Reader(r.t.Context(), bus.Position{Generation: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(r.t.Context(), 45*time.Second)
	defer cancel()
	for len(list) < n {
		s, err := reader.Next(ctx)
		if err != nil {
			r.t.Fatalf("%d of %d messages are stored", len(list), n)
		}
		var m message.Message
		for c := s.Batch.Cursor(); c.Next(&m); {
			if strings.Contains(string(m.Subject), "telemetry") {
				list = append(list, m.Clone())
			}
		}
	}
	return list
}

// peer is a client that speaks packets.
type peer struct {
	t *testing.T
	net.Conn
	r     *bufio.Reader
	v     packet.Version
	early []frame // PUBLISH that came before an answer
}

type frame struct {
	h    packet.Header
	body []byte
}

func (r *rig) raw() *peer {
	r.t.Helper()
	c, err := net.Dial("tcp", r.plain)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return &peer{t: r.t, Conn: c, r: bufio.NewReader(c)}
}

func (r *rig) join(id string, v packet.Version) *peer {
	r.t.Helper()
	p := r.raw()
	p.hello(packet.Connect{Version: v, CleanStart: true, ClientID: id, KeepAlive: 60})
	h, body := p.next()
	if h.Type != packet.CONNACK || body[1] != 0 {
		r.t.Fatalf("CONNECT of %s was answered with %s %x", id, h.Type, body)
	}
	return p
}

func (p *peer) hello(c packet.Connect) {
	p.v = c.Version
	p.write(c.Append(nil))
}

func (p *peer) write(b []byte) {
	p.t.Helper()
	if _, err := p.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// next reads a packet.
func (p *peer) next() (packet.Header, []byte) {
	p.t.Helper()
	h, body, err := p.try(30 * time.Second)
	if err != nil {
		p.t.Fatal(err)
	}
	return h, body
}

// reply reads a packet that answers one. What a client subscribes to, or says itself, may come before (MQTT 5 §3.8.4), and is heard later.
func (p *peer) reply() (packet.Header, []byte) {
	p.t.Helper()
	h, body := p.next()
	for ; h.Type == packet.PUBLISH; h, body = p.next() {
		p.early = append(p.early, frame{h, slices.Clone(body)})
	}
	return h, body
}

func (p *peer) try(d time.Duration) (h packet.Header, body []byte, err error) {
	_ = p.SetReadDeadline(time.Now().Add(d))
	var buf []byte
	for {
		h, start, total, _, ferr := packet.Frame(buf, 0)
		if ferr != nil {
			return h, nil, ferr
		}
		if total > 0 {
			return h, buf[start:total], nil
		}
		b, err := p.r.ReadByte()
		if err != nil {
			return h, nil, err
		}
		buf = append(buf, b)
	}
}

// ended wants the connection closed, and gives what came before.
func (p *peer) ended() []byte {
	p.t.Helper()
	_ = p.SetReadDeadline(time.Now().Add(30 * time.Second))
	b, err := io.ReadAll(p.r)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		p.t.Fatalf("the connection was not closed: %v", err)
	}
	return b
}

func (p *peer) publish(id uint16, topic, data string, props ...packet.UserProperty) {
	p.t.Helper()
	m := packet.Publish{QoS: 1, ID: id, Topic: topic, Payload: []byte(data)}
	m.Properties.User = props
	if id == 0 {
		m.QoS = 0
	}
	p.write(m.Append(nil, p.v))
}

// acked wants the next answer to be a PUBACK of that id, and gives its code.
func (p *peer) acked(id uint16) packet.ReasonCode {
	p.t.Helper()
	h, body := p.reply()
	var a packet.Ack
	if err := a.Decode(h, body, p.v); err != nil || h.Type != packet.PUBACK || a.ID != id {
		p.t.Fatalf("%s %x (%v); want PUBACK of %d", h.Type, body, err, id)
	}
	return a.Code
}

func TestBrokerRefusesBadInputWithItsReason(t *testing.T) {
	hello := func(c packet.Connect) []byte { return c.Append(nil) }
	ok := hello(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1"})
	pub := func(p packet.Publish) []byte { return append(append([]byte{}, ok...), p.Append(nil, packet.V5)...) }
	for _, c := range []struct {
		name  string
		bytes []byte
		want  message.Reason
	}{
		{"garbage", []byte("GET / HTTP/1.1\r\n\r\n"), message.MalformedPacket},
		{"reserved packet type", []byte{0x00, 0x00}, message.MalformedPacket},
		{"bad remaining length", []byte{0x10, 0xff, 0xff, 0xff, 0xff, 0x01}, message.MalformedPacket},
		{"CONNECT larger than its limit", []byte{0x10, 0x80, 0x80, 0x08}, message.MessageTooLarge},
		{"not CONNECT first", []byte{0xc0, 0x00}, message.ProtocolError},
		{"protocol 3.1", []byte{0x10, 14, 0, 6, 'M', 'Q', 'I', 's', 'd', 'p', 3, 2, 0, 0, 0, 0}, message.Unsupported},
		{"malformed UTF-8 in the client id", []byte{0x10, 14, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, 2, 0xc3, 0x28}, message.MalformedPacket},
		{"a client id that is no device name", hello(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "a/b"}), message.ClientIDMismatch},
		{"a second CONNECT", append(append([]byte{}, ok...), ok...), message.ProtocolError},
		{"wildcard in the topic", pub(packet.Publish{QoS: 1, ID: 1, Topic: "device/d-1/+"}), message.TopicInvalid},
		{"malformed UTF-8 in the topic", pub(packet.Publish{QoS: 1, ID: 1, Topic: "device/d-1/\xff"}), message.MalformedPacket},
		{"NUL in the topic", pub(packet.Publish{QoS: 1, ID: 1, Topic: "device/d-1/\x00"}), message.MalformedPacket},
		{"a topic alias beyond the limit", pub(packet.Publish{QoS: 1, ID: 1, Topic: "device/d-1/telemetry", Properties: alias(aliasMax + 1)}), message.ProtocolError},
		{"a topic alias without a topic", pub(packet.Publish{QoS: 1, ID: 1, Properties: alias(1)}), message.ProtocolError},
		{"enhanced authentication", hello(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1", Properties: method("SCRAM")}), message.Unsupported},
		{"no client id and a session to keep", hello(packet.Connect{Version: packet.V311}), message.ClientIDMismatch},
		{"packet far beyond the limit", append(append([]byte{}, ok...), 0x32, 0xff, 0xff, 0xff, 0x7f), message.MessageTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil)
			p := r.raw()
			p.write(c.bytes)
			p.ended()
			if got := r.refused(c.want); got.Detail == "" || got.Address == "" {
				t.Errorf("the refusal says too little: %+v", got)
			}
			r.join("d-neighbour", packet.V311).publish(1, "device/d-neighbour/telemetry", "x")
			r.stored(1)
		})
	}
}

func alias(n uint32) (p packet.Properties) { p.Set(packet.TopicAlias, n); return p }

func method(name string) (p packet.Properties) {
	p.SetString(packet.AuthenticationMethod, name)
	return p
}

func TestBrokerClosesWhoIsSlowToSayConnect(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ConnectTimeout = "100ms" })
	p := r.raw()
	p.write([]byte{0x10, 20, 0, 4})
	p.ended()
	r.refused(message.SlowHandshake)
}

func TestBrokerAcknowledgesInOrderAndOnlyWhatIsStored(t *testing.T) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		r := newRig(t, nil)
		p := r.join("d-1", v)
		r.bus.SetDown(true)
		for id := uint16(1); id <= 200; id++ {
			p.publish(id, "device/d-1/telemetry", fmt.Sprint(id))
		}
		// The broker still answers, and acknowledges nothing.
		p.write(packet.AppendPingreq(nil))
		if h, _ := p.next(); h.Type != packet.PINGRESP {
			t.Fatalf("%s came while the bus was down", h.Type)
		}
		r.bus.SetDown(false)
		for id := uint16(1); id <= 200; id++ {
			if code := p.acked(id); code != 0 {
				t.Errorf("%d has code %s", id, code)
			}
		}
		for i, m := range r.stored(200) {
			if string(m.Data) != fmt.Sprint(i+1) {
				t.Fatalf("message %d is %s", i, m.Data)
			}
		}
	}
}

func TestBrokerNeverAcknowledgesWhatItCannotStore(t *testing.T) {
	r := newRig(t, nil)
	five, three := r.join("d-5", packet.V5), r.join("d-3", packet.V311)
	r.bus.SetSpace(bus.Space{Free: 1, Total: 100, Low: 50, Shut: true})
	five.publish(1, "device/d-5/telemetry", "x")
	if code := five.acked(1); code != packet.QuotaExceeded {
		t.Errorf("code %s; want quota exceeded", code)
	}
	three.publish(1, "device/d-3/telemetry", "x")
	if b := three.ended(); len(b) != 0 {
		t.Errorf("an older client was answered with %x", b)
	}
	r.bus.SetSpace(bus.Space{Free: 100, Total: 100, Low: 50})
	five.publish(2, "device/d-5/telemetry", "y")
	if code := five.acked(2); code != 0 {
		t.Errorf("code %s after there was space again", code)
	}
	r.refused(message.StorageLow)
}

func TestBrokerHoldsADeviceToItsSubtree(t *testing.T) {
	r := newRig(t, nil)
	five, three := r.join("d-5", packet.V5), r.join("d-3", packet.V311)
	for i, topic := range []string{"device/d-6/telemetry", "device/d-5", "device/d-5/presence", "device/d-5/command/reboot/1", "device/d-5/twin/update/accepted", "device/d-5/twin/changed",
		"service_platform/x509/device/d-5", "operator/dead/a/b", "$SYS/x", "home/kitchen"} {
		five.publish(uint16(i+1), topic, "x")
		if code := five.acked(uint16(i + 1)); code != packet.NotAuthorized {
			t.Errorf("%s has code %s", topic, code)
		}
	}
	three.publish(1, "device/d-6/telemetry", "x")
	three.acked(1) // it has no word for a refusal, and would send for ever if it were closed
	if got := r.refused(message.ACLDenied); got.Device == "" || got.Subject == "" {
		t.Errorf("the refusal says too little: %+v", got)
	}
	five.publish(100, "device/d-5/command/reboot/1/reply", "done")
	if code := five.acked(100); code != 0 {
		t.Errorf("a reply has code %s", code)
	}
	five.publish(101, "device/d-5/telemetry", strings.Repeat("x", Defaults.MaxMessageBytes+1))
	if code := five.acked(101); code != packet.ImplementationSpecific {
		t.Errorf("too large has code %s", code)
	}
	for i, f := range []string{"device/d-6/#", "#", "device/+/telemetry", "$share/g/device/d-6/#"} {
		s := packet.Subscribe{ID: uint16(i + 1), Subscriptions: []packet.Subscription{{Filter: f}}}
		five.write(s.Append(nil, packet.V5))
		h, body := five.next()
		var a packet.SubAnswer
		if err := a.Decode(h, body, packet.V5); err != nil || !a.Codes[0].Failed() {
			t.Errorf("%s was granted: %v %v", f, a.Codes, err)
		}
	}
}

func TestBrokerKeepsPropertiesAndTraces(t *testing.T) {
	r := newRig(t, nil)
	p := r.join("d-1", packet.V5)
	good := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	p.publish(1, "device/d-1/telemetry", "good", packet.UserProperty{Key: "b", Value: "2"}, packet.UserProperty{Key: "traceparent", Value: good}, packet.UserProperty{Key: "b", Value: "1"})
	p.publish(2, "device/d-1/telemetry", "bad", packet.UserProperty{Key: "traceparent", Value: "00-XYZ"})
	p.acked(1)
	p.acked(2)
	list := r.stored(2)
	if list[0].Trace.Traceparent() != good {
		t.Errorf("the trace is %s", list[0].Trace.Traceparent())
	}
	var pairs []string
	for k, v := range list[0].Properties.All() {
		pairs = append(pairs, k+"="+v)
	}
	if got := strings.Join(pairs, " "); got != "b=2 traceparent="+good+" b=1" {
		t.Errorf("properties are %q", got)
	}
	if v, _ := list[1].Properties.Get("traceparent"); list[1].Trace.ID.IsZero() || v != "00-XYZ" {
		t.Errorf("a bad traceparent: trace %s, property %q", list[1].Trace.ID, v)
	}
	if list[0].Type != "device.telemetry.v1" || list[0].Source != "//naru/device/d-1" || list[0].Device != "d-1" {
		t.Errorf("the envelope is %+v", list[0])
	}
}

// TestNobodyPassesHimselfOffAsAnotherClient since rules ask by the source which client has said a message, and blame tells it.
func TestNobodyPassesHimselfOffAsAnotherClient(t *testing.T) {
	r := newRig(t, nil)
	p := r.join("d-1", packet.V5)
	for i, source := range []string{message.ClientSource("d-2", "d-2"), "//naru/n1/service_platform.rule?rule=hot@1", "https://example.com/plant"} {
		p.publish(uint16(i+1), "device/d-1/telemetry", "x", packet.UserProperty{Key: "specversion", Value: "1.0"}, packet.UserProperty{Key: "source", Value: source})
		p.acked(uint16(i + 1))
	}
	var got []string
	for _, m := range r.stored(3) {
		got = append(got, m.Source)
		if said, _ := m.Properties.Get("source"); said == "" {
			t.Error("what the client has said itself is gone")
		}
	}
	if want := []string{"//naru/device/d-1", "//naru/device/d-1", "https://example.com/plant"}; !slices.Equal(got, want) {
		t.Errorf("the sources are %q; want %q", got, want)
	}
	if message.ClientOf(got[0]) != "d-1" {
		t.Errorf("its client id is %q", message.ClientOf(got[0]))
	}
}

func TestBrokerHandsMessagesToLiveSubscribers(t *testing.T) {
	r := newRig(t, nil)
	p := r.join("d-1", packet.V5)
	s := packet.Subscribe{ID: 7, Subscriptions: []packet.Subscription{{Filter: "device/d-1/event/#", QoS: 1}, {Filter: "device/d-1/event/x", QoS: 0}}}
	p.write(s.Append(nil, packet.V5))
	if h, _ := p.next(); h.Type != packet.SUBACK {
		t.Fatal(h.Type)
	}
	p.publish(1, "device/d-1/event/x", "hello", packet.UserProperty{Key: "k", Value: "v"})
	var ack, got bool
	for !ack || !got {
		h, body := p.next()
		switch h.Type {
		case packet.PUBACK:
			ack = true
		case packet.PUBLISH:
			var m packet.Publish
			if err := m.Decode(h, body, packet.V5); err != nil {
				t.Fatal(err)
			}
			if got || m.Topic != "device/d-1/event/x" || string(m.Payload) != "hello" || m.QoS != 1 || len(m.Properties.User) != 1 {
				t.Errorf("delivered %+v", m)
			}
			got = true
			p.write((&packet.Ack{Type: packet.PUBACK, ID: m.ID}).Append(nil, packet.V5))
		default:
			t.Fatalf("%s", h.Type)
		}
	}
}

func TestBrokerPushesBackAtTheReceiveMaximum(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ReceiveMaximum = 5 })
	five, three := r.join("d-5", packet.V5), r.join("d-3", packet.V311)
	r.bus.SetDown(true)
	for id := uint16(1); id <= 6; id++ {
		five.publish(id, "device/d-5/telemetry", "x")
		three.publish(id, "device/d-3/telemetry", "x")
	}
	if b := five.ended(); len(b) < 3 || b[0] != byte(packet.DISCONNECT)<<4 || packet.ReasonCode(b[2]) != packet.ReceiveMaximumExceeded {
		t.Errorf("answered with %x", b)
	}
	r.bus.SetDown(false)
	for id := uint16(1); id <= 6; id++ {
		three.acked(id)
	}
	r.refused(message.ReceiveMaximum)
}

func TestBrokerGivesAClientIDToTheNewestConnection(t *testing.T) {
	r := newRig(t, nil)
	old := r.join("d-1", packet.V5)
	r.join("d-1", packet.V5)
	if b := old.ended(); len(b) < 3 || packet.ReasonCode(b[2]) != packet.SessionTakenOver {
		t.Errorf("the old one was told %x", b)
	}
}

func TestBrokerClosesASilentClient(t *testing.T) {
	r := newRig(t, nil)
	p := r.raw()
	p.hello(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1", KeepAlive: 1})
	p.next()
	p.ended()
	r.refused(message.KeepAliveTimeout)
}

func TestBrokerPublishesTheWillOfWhoWentWithoutAWord(t *testing.T) {
	r := newRig(t, nil)
	p := r.raw()
	p.hello(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1", Will: &packet.Will{QoS: 1, Topic: "device/d-1/telemetry/last", Payload: []byte("gone")}})
	p.next()
	p.Close()
	if m := r.stored(1)[0]; string(m.Data) != "gone" {
		t.Errorf("stored %s", m.Data)
	}
}

func TestSlowClientHoldsUpNobody(t *testing.T) {
	r := newRig(t, nil)
	slow := r.join("d-slow", packet.V5)
	s := packet.Subscribe{ID: 7, Subscriptions: []packet.Subscription{{Filter: "device/d-slow/#"}}}
	slow.write(s.Append(nil, packet.V5))
	slow.next()
	// It publishes to itself, and never reads: its kernel buffers and then its spill fill up.
	big := strings.Repeat("x", 100_000)
	quick := r.join("d-quick", packet.V311)
	for id := uint16(1); id <= 600; id++ { // more than any kernel buffers
		m := packet.Publish{Topic: "device/d-slow/telemetry", Payload: []byte(big)}
		if _, err := slow.Write(m.Append(nil, packet.V5)); err != nil {
			break // closed as too slow
		}
		quick.publish(id, "device/d-quick/telemetry", "x")
		quick.acked(id)
	}
	r.refused(message.SlowConsumer)
}

func TestBrokerSaysWhyACertificateIsNotAdmitted(t *testing.T) {
	r := newRig(t, nil)
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(r.gate.pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	dial := func(certs ...tls.Certificate) (*peer, error) {
		c, err := tls.Dial("tcp", r.tls, &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: certs})
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { c.Close() })
		return &peer{t: t, Conn: c, r: bufio.NewReader(c)}, nil
	}
	connect := func(p *peer, id string) packet.ReasonCode {
		p.hello(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: id})
		_, body := p.next()
		return packet.ReasonCode(body[1])
	}
	cert := certificate(t, "d-1")
	p, err := dial(cert)
	if err != nil {
		t.Fatal(err)
	}
	if code := connect(p, "d-1"); code != 0 {
		t.Errorf("admitted with code %s", code)
	}
	p.publish(1, "device/d-1/telemetry", "over TLS")
	p.acked(1)

	other, err := dial(cert)
	if err != nil {
		t.Fatal(err)
	}
	if code := connect(other, "d-2"); code != packet.ClientIDNotValid {
		t.Errorf("another's client id has code %s", code)
	}
	r.refused(message.ClientIDMismatch)

	// Withdrawn while it is connected: told, closed, and not let in again.
	r.gate.refuse = message.Rejectf(message.CertRevoked, "revoked: %s", strings.Repeat("é", 5000)) // what a stranger says, at length
	r.gate.changed("d-1")
	p.ended()
	again, err := dial(cert)
	if err != nil {
		t.Fatal(err)
	}
	if code := connect(again, "d-1"); code != packet.NotAuthorized {
		t.Errorf("a revoked certificate has code %s", code)
	}
	r.refused(message.CertRevoked)

	if p, err := dial(); err == nil { // TLS 1.3 tells a client at its first read
		if _, _, err := p.try(5 * time.Second); err == nil {
			t.Error("no certificate was asked for")
		}
	}
	r.refused(message.CertMissing)

	w := httptest.NewRecorder()
	r.host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/broker/refusals", nil))
	if !strings.Contains(w.Body.String(), "cert_revoked") || !utf8.Valid(w.Body.Bytes()) || w.Body.Len() > 5<<10 {
		t.Errorf("the operator is shown %s", w.Body)
	}
}

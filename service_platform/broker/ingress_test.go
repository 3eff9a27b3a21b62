package broker

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// split takes packets off what a connection said before it ended.
func split(t *testing.T, b []byte) (list []packet.Header, bodies [][]byte) {
	t.Helper()
	for len(b) > 0 {
		h, start, total, _, err := packet.Frame(b, 0)
		if err != nil || total == 0 {
			t.Fatalf("%x is no packet: %v", b, err)
		}
		list, bodies = append(list, h), append(bodies, b[start:total])
		b = b[total:]
	}
	return list, bodies
}

func subscribe(p *peer, filter string, noLocal bool) {
	p.t.Helper()
	s := packet.Subscribe{ID: 9, Subscriptions: []packet.Subscription{{Filter: filter, QoS: 1, NoLocal: noLocal}}}
	p.write(s.Append(nil, p.v))
	if h, body := p.reply(); h.Type != packet.SUBACK || packet.ReasonCode(body[len(body)-1]).Failed() {
		p.t.Fatalf("SUBSCRIBE was answered with %s %x", h.Type, body)
	}
}

func TestBrokerStopsWithEverythingAcknowledgedStoredAndSaysSo(t *testing.T) {
	r := newRig(t, nil)
	const clients, each = 20, 50
	var peers []*peer
	for i := range clients {
		p := r.join(fmt.Sprintf("d-%d", i), packet.V5)
		peers = append(peers, p)
		for id := uint16(1); id <= each; id++ {
			p.publish(id, fmt.Sprintf("device/d-%d/telemetry", i), "x")
		}
	}
	for _, p := range peers {
		p.acked(1) // so something is under way everywhere
	}
	go r.stop()
	acked := clients
	for _, p := range peers {
		list, bodies := split(t, p.ended())
		for i, h := range list {
			last := i == len(list)-1
			switch {
			case h.Type == packet.PUBACK && !last:
				acked++
			case h.Type == packet.DISCONNECT && last && packet.ReasonCode(bodies[i][0]) == packet.ServerShuttingDown:
			default:
				t.Fatalf("packet %d of %d is %s %x; the last should be DISCONNECT 0x8b, all others PUBACK", i+1, len(list), h.Type, bodies[i])
			}
		}
		if len(list) == 0 {
			t.Fatal("a client was not told that the broker stops")
		}
	}
	r.stop()
	if got := len(r.stored(acked)); got < acked {
		t.Errorf("%d messages were acknowledged and %d are stored", acked, got)
	}
}

func TestBrokerThatStopsWaitsForTheDisk(t *testing.T) {
	r := newRig(t, nil)
	p := r.join("d-1", packet.V5)
	r.bus.SetDown(true)
	p.publish(1, "device/d-1/telemetry", "taken before the stop")
	ping := packet.AppendPingreq(nil)
	p.write(ping)
	if h, _ := p.next(); h.Type != packet.PINGRESP {
		t.Fatal(h.Type)
	}
	go r.stop()
	for { // until the broker has begun to stop
		c, err := net.Dial("tcp", r.plain)
		if err != nil {
			break
		}
		c.Close()
	}
	p.write(ping)
	for { // until nothing is read any more; the client is told nothing while the disk is away
		h, _, err := p.try(300 * time.Millisecond)
		if err != nil && timedOut(err) {
			break
		}
		if err != nil || h.Type != packet.PINGRESP {
			t.Fatalf("while the disk is away the client is told %s (%v)", h.Type, err)
		}
	}
	r.bus.SetDown(false)
	list, _ := split(t, p.ended())
	if len(list) > 0 && list[0].Type == packet.PINGRESP { // it came late
		list = list[1:]
	}
	if len(list) != 2 || list[0].Type != packet.PUBACK || list[1].Type != packet.DISCONNECT {
		t.Errorf("the client was told %v; want PUBACK, DISCONNECT", list)
	}
}

func TestBrokerTellsAPacketIdentifierInUse(t *testing.T) {
	r := newRig(t, nil)
	five, three, again := r.join("d-5", packet.V5), r.join("d-3", packet.V311), r.join("d-4", packet.V311)
	r.bus.SetDown(true)
	five.publish(7, "device/d-5/telemetry", "first")
	five.publish(7, "device/d-5/telemetry", "second")
	again.publish(7, "device/d-4/telemetry", "said twice")
	m := packet.Publish{Dup: true, QoS: 1, ID: 7, Topic: "device/d-4/telemetry", Payload: []byte("said twice")}
	again.write(m.Append(nil, packet.V311))
	again.publish(8, "device/d-4/telemetry", "next")
	three.publish(7, "device/d-3/telemetry", "first")
	three.publish(7, "device/d-3/telemetry", "second")
	if b := three.ended(); len(b) != 0 {
		t.Errorf("3.1.1 was told %x; want a close", b)
	}
	r.bus.SetDown(false)
	if code := five.acked(7); code != 0 {
		t.Errorf("the first message has code %s", code)
	}
	if code := five.acked(7); code != packet.PacketIDInUse {
		t.Errorf("the second message has code %s", code)
	}
	again.acked(7)
	again.acked(8)
	five.publish(7, "device/d-5/telemetry", "free again")
	if code := five.acked(7); code != 0 {
		t.Errorf("an identifier that was acknowledged has code %s", code)
	}
}

func TestAcksKnowWhichIdentifiersAreOwed(t *testing.T) {
	var a acks
	for id := range uint16(40) { // the ring grows on the way, and 1 and 9 lead to one place at first
		a.push(owed{id: id*8 + 1})
	}
	for range 10 {
		a.pop()
	}
	for id := range uint16(400) {
		want := id%8 == 1 && id/8 >= 10 && id/8 < 40
		if a.holds(id) != want {
			t.Errorf("holds(%d) is %v", id, !want)
		}
	}
}

func TestBrokerWantsACleanSessionWithAnEmptyClientID(t *testing.T) {
	r := newRig(t, nil)
	p := r.raw()
	p.hello(packet.Connect{Version: packet.V311})
	if b := p.ended(); string(b) != "\x20\x02\x00\x02" {
		t.Errorf("answered with %x; want CONNACK 0x02 and a close (MQTT-3.1.3-8)", b)
	}
}

func TestBrokerKeepsReasonsWithinTheClientsPacketSize(t *testing.T) {
	r := newRig(t, nil)
	refused := r.raw()
	c := packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "a/b"}
	c.Properties.Set(packet.MaximumPacketSize, 20)
	refused.hello(c)
	if b := refused.ended(); len(b) != 5 || packet.ReasonCode(b[3]) != packet.ClientIDNotValid {
		t.Errorf("CONNACK is %x; want 5 bytes with 0x85", b)
	}
	p := r.raw()
	c = packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1"}
	c.Properties.Set(packet.MaximumPacketSize, 60)
	p.hello(c)
	p.next()
	m := packet.Publish{QoS: 1, ID: 1, Properties: alias(9)}
	p.write(m.Append(nil, packet.V5))
	if b := p.ended(); len(b) < 3 || len(b) > 60 || packet.ReasonCode(b[2]) != packet.TopicAliasInvalid {
		t.Errorf("DISCONNECT is %x", b)
	}
	tiny := r.raw()
	c = packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-2"}
	c.Properties.Set(packet.MaximumPacketSize, 10)
	tiny.hello(c)
	if b := tiny.ended(); len(b) > 10 {
		t.Errorf("a client that takes 10 bytes was sent %x", b)
	}
}

func TestBrokerShortensAKeepAlive(t *testing.T) {
	r := newRig(t, func(c *Config) { c.KeepAliveMax = "30s" })
	for asked, want := range map[uint16]uint32{0: 30, 31: 30, 30: 0, 5: 0} {
		p := r.raw()
		p.hello(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1", KeepAlive: asked})
		h, body := p.next()
		var a packet.Connack
		if err := a.Decode(h, body, packet.V5); err != nil {
			t.Fatal(err)
		}
		if got := a.Properties.Num(packet.ServerKeepAlive, 0); got != want {
			t.Errorf("asked for %d s, told %d; want %d", asked, got, want)
		}
	}
}

func TestNoLocalIsNotFooledByASource(t *testing.T) {
	r := newRig(t, nil)
	p := r.join("d-1", packet.V5)
	subscribe(p, "device/d-1/telemetry", true)
	p.publish(1, "device/d-1/telemetry", "mine", packet.UserProperty{Key: "specversion", Value: "1.0"}, packet.UserProperty{Key: "source", Value: "//somebody/else"})
	p.acked(1)
	// What another says to it comes, and nothing has come before that.
	log, err := r.bus.Log(t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := log.Appender(t.Context(), bus.AppenderOptions{Name: "elsewhere", Owner: message.NewID(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	m := &message.Message{ID: message.NewID(time.Now()), Subject: "device.d-1.telemetry", Device: "d-1", Source: "//naru/device/d-1", QoS: 1, Data: []byte("another's")}
	if _, err := bus.AppendSync(t.Context(), a, m); err != nil {
		t.Fatal(err)
	}
	if got := string(p.hear().Payload); got != "another's" {
		t.Errorf("heard %q", got)
	}
}

func TestSubscribeWhileTheBusIsAwayHoldsUpNobody(t *testing.T) {
	r := newRig(t, nil)
	waits, leaves := r.join("d-1", packet.V5), r.join("d-2", packet.V5)
	r.bus.SetDown(true)
	s := packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "device/d-1/#"}}}
	waits.write(s.Append(nil, packet.V5))
	// d-2's connections come and go meanwhile; unsubscribing asks the fan as well.
	u := packet.Unsubscribe{ID: 2, Filters: []string{"device/d-2/#"}}
	leaves.write(u.Append(nil, packet.V5))
	if h, _ := leaves.next(); h.Type != packet.UNSUBACK {
		t.Fatalf("%s; want UNSUBACK", h.Type)
	}
	r.bus.SetDown(false)
	if h, _ := waits.next(); h.Type != packet.SUBACK {
		t.Fatalf("%s; want SUBACK", h.Type)
	}
}

func TestSubscribersHearEveryGeneration(t *testing.T) {
	r := newRig(t, nil)
	p := r.join("d-1", packet.V5)
	subscribe(p, "device/d-1/telemetry", false)
	log, err := r.bus.Log(t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		// Two generations at once, so that the middle one is easily missed.
		for range 2 {
			if err := log.Repartition(t.Context(), 1+n%3); err != nil {
				t.Fatal(err)
			}
			say := r.join(fmt.Sprintf("d-1-%d", n), packet.V311)
			say.Close()
		}
		want := fmt.Sprint("message ", n)
		m := packet.Publish{Topic: "device/d-1/telemetry", Payload: []byte(want)}
		p.write(m.Append(nil, packet.V5))
		if got := string(p.hear().Payload); got != want {
			t.Fatalf("heard %q; want %q", got, want)
		}
	}
}

func TestBrokerEndsAConnectionWithItsCertificate(t *testing.T) {
	r := newRig(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "d-1"}, NotAfter: time.Now().Add(-time.Minute)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(r.gate.pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(leaf)
	// The gate of this test admits it, so only the watch over those connected is left to end it.
	nc, err := tls.Dial("tcp", r.tls, &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	p := &peer{t: t, Conn: nc, r: bufio.NewReader(nc)}
	p.hello(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1"})
	p.next()
	if h, body := p.next(); h.Type != packet.DISCONNECT || packet.ReasonCode(body[0]) != packet.NotAuthorized {
		t.Errorf("told %s %x", h.Type, body)
	}
	r.refused(message.CertExpired)
}

func TestSlowBytesBuyNoTime(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ConnectTimeout = "300ms" })
	p := r.raw()
	hello := (&packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "d-" + strings.Repeat("1", 40)}).Append(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	drip := time.NewTicker(20 * time.Millisecond)
	defer drip.Stop()
	for i := 0; ; i++ {
		if i == len(hello) {
			t.Fatal("the whole CONNECT was taken, byte by byte, beyond its time")
		}
		if _, err := p.Write(hello[i : i+1]); err != nil {
			break
		}
		select {
		case <-drip.C:
		case <-ctx.Done():
			t.Fatal("not closed")
		}
		_ = p.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := p.r.ReadByte(); err != nil {
			if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
				break
			}
		}
	}
	r.refused(message.SlowHandshake)
}

package broker

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// withWill is a CONNECT whose client leaves a will on will/<id>.
func withWill(id string, delay, life uint32) packet.Connect {
	c := keeping(id, true, 3600)
	c.Will = &packet.Will{QoS: 1, Topic: "will/" + id, Payload: []byte("gone")}
	c.Will.Properties.Set(packet.WillDelay, delay)
	if life > 0 {
		c.Will.Properties.Set(packet.MessageExpiry, life)
	}
	return c
}

// The session goes on with the new connection, so the will of the old one is void ([MQTT-3.1.3-9]): now, after its delay,
// and at the next start.
func TestADelayedWillIsVoidWhenItsSessionGoesOn(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, conf)
	sub := r.dial(addr)
	sub.connect(keeping("sub", true, 3600))
	sub.subscribe(packet.Subscription{Filter: "will/#", QoS: 1})
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			c := withWill(fmt.Sprint("d", i), 1, 0)
			r.dial(addr).connect(c)
			if i%2 == 0 {
				c.Will = nil // comes back without one
			} else {
				c.Will.Properties.Set(packet.WillDelay, 600)
			}
			c.CleanStart = false
			r.dial(addr).connect(c)
		})
	}
	all.Wait()
	if h, b, err := sub.try(2 * time.Second); err == nil {
		t.Errorf("%s %q came of a client that is connected", h.Type, b)
	}
	r.stop()
	r.start(catalog.Default())
	sub = r.dial(addr)
	sub.connect(keeping("sub", false, 3600))
	if h, b, err := sub.try(2 * time.Second); err == nil {
		t.Errorf("%s %q came after a start", h.Type, b)
	}
}

func TestTheLifeOfAWillBeginsWhenItIsSaid(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, conf)
	sub := r.dial(addr)
	sub.connect(keeping("sub", true, 3600))
	sub.subscribe(packet.Subscription{Filter: "will/#", QoS: 1})
	r.dial(addr).connect(withWill("d", 1, 2))
	<-time.After(2500 * time.Millisecond)
	r.stop()
	r.start(catalog.Default())
	sub = r.dial(addr)
	sub.connect(keeping("sub", false, 3600))
	if h, _, err := sub.try(45 * time.Second); err != nil || h.Type != packet.PUBLISH {
		t.Errorf("the will did not come: its two seconds were counted from CONNECT (%v)", err)
	}
}

// A will is kept until the log takes it: while there is no room, it is neither given up nor left to the next start. Its client is
// back meanwhile, and gets it: the delay was over.
func TestAWillThatTheLogCouldNotTakeIsSaidLater(t *testing.T) {
	conf, addr := open(t)
	r := newRigWith(t, &rig{again: 50 * time.Millisecond}, conf)
	p := r.dial(addr)
	p.connect(withWill("d", 0, 0))
	r.bus.SetSpace(bus.Space{Free: 1, Total: 100, Low: 10, Shut: true})
	p.Close()
	r.refusedAs(message.StorageLow, "a will is not said")
	c := keeping("d", false, 3600)
	p = r.dial(addr)
	p.connect(c)
	p.subscribe(packet.Subscription{Filter: "will/#", QoS: 1})
	r.bus.SetSpace(bus.Space{Free: 100, Total: 100, Low: 10})
	if got := p.take(); got != "will/d gone q1 rfalse dfalse" {
		t.Error(got)
	}
	r.eventually(func() string {
		if left, err := r.b.store.Wills(); err != nil || len(left) > 0 {
			return fmt.Sprintf("%d wills are kept, and would be said again (%v)", len(left), err)
		}
		return ""
	})
}

// lastPresence is what was told last of each device, by version.
func (r *rig) lastPresence() map[string]device.Presence {
	r.t.Helper()
	last := map[string]device.Presence{}
	log, err := r.bus.Log(r.t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := log.Info(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	p := info.Generations[0].Partitions[0]
	reader, err := log.Reader(r.t.Context(), bus.Position{Generation: info.Generations[0].Number, Partition: p.Number})
	if err != nil {
		r.t.Fatal(err)
	}
	defer reader.Close()
	for at := uint64(0); at < p.Last; {
		s, err := reader.Next(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		at = s.Position.Sequence
		var m message.Message
		for c := s.Batch.Cursor(); c.Next(&m); {
			var x device.Presence
			if strings.HasSuffix(string(m.Subject), ".presence") && json.Unmarshal(m.Data, &x) == nil && x.Version > last[m.Device].Version {
				last[strings.Clone(m.Device)] = x
			}
		}
	}
	return last
}

func TestADeviceThatWasTakenOverIsStillOnline(t *testing.T) {
	r := newRig(t, nil)
	const n = 100
	for i := range n {
		id := fmt.Sprint("d-", i)
		first := r.raw()
		first.connect(keeping(id, true, 3600))
		r.raw().connect(keeping(id, false, 3600))
		first.ended()
	}
	r.told(n)
	<-time.After(200 * time.Millisecond) // what must not be told is not waited for
	last := r.lastPresence()
	for id, p := range last {
		if !p.Online {
			t.Errorf("%s is connected, and was told to be offline", id)
		}
	}
	if len(last) != n {
		t.Errorf("the presence of %d devices was told; want %d", len(last), n)
	}
}

// Below a mount point names are another world's: what happens there must not be told of the fleet's device of that name.
func TestAUserBelowAMountPointIsNoDeviceOfTheFleet(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Policy = "device" })
	r := newRig(t, conf)
	r.raw().connect(keeping("pump", true, 0))
	other := r.dial(addr)
	other.connect(keeping("pump", true, 0))
	if code := other.send(publish("device/pump/telemetry", "x", 1, 1)); code.Failed() {
		t.Errorf("its message is refused: %v", code)
	}
	other.write((&packet.Disconnect{}).Append(nil, other.v))
	other.ended()
	r.told(1)
	<-time.After(200 * time.Millisecond)
	if p := r.lastPresence()["pump"]; !p.Online {
		t.Errorf("the fleet's pump is connected, and was told to be offline: %+v", p)
	}
}

func TestARevokedCertificateEndsConnectionsAtEveryListener(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Protocol, l.Auth = "mqtts", "certificate" })
	r := newRig(t, conf)
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(r.gate.pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	nc, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: []tls.Certificate{certificate(t, "d-1")}})
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, Conn: nc, r: bufio.NewReader(nc)}
	p.connect(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "x"})
	r.gate.refuse = message.Reject(message.CertRevoked, errors.New("revoked"))
	r.gate.changed("d-1")
	p.ended()
}

func TestAWildcardDoesNotReachWhatTheListenerRefuses(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Refuse = []string{"secret/#"} })
	second, trusted := open(t, func(l *Listener) { l.Name = "trusted" })
	r := newRig(t, func(c *Config) {
		second(c)
		list := c.Listeners
		conf(c)
		c.Listeners = append(c.Listeners, list...)
	})
	for _, expiry := range []uint32{0, 3600} {
		sub := r.dial(addr)
		sub.connect(keeping(fmt.Sprint("sub", expiry), true, expiry))
		if codes := sub.subscribe(packet.Subscription{Filter: "#", QoS: 1}); codes[0].Failed() {
			t.Fatal(codes)
		}
		pub := r.dial(trusted)
		pub.connect(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "pub"})
		pub.send(publish("secret/key", "hush", 1, 1))
		pub.send(publish("open/door", "hello", 1, 2))
		if got := sub.hear(); got.Topic != "open/door" {
			t.Errorf("%s %q came", got.Topic, got.Payload)
		}
	}
}

func TestAnAliasIsGivenOnlyByAMessageThatWasSent(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, conf)
	sub := r.dial(addr)
	c := keeping("sub", true, 0)
	c.Properties.Set(packet.MaximumPacketSize, 200)
	c.Properties.Set(packet.TopicAliasMaximum, 5)
	sub.connect(c)
	sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 1})
	pub := r.dial(addr)
	pub.connect(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "pub"})
	pub.send(publish("a/b", strings.Repeat("x", 300), 1, 1)) // larger than it takes
	pub.send(publish("a/b", "small", 1, 2))
	if m := sub.hear(); m.Topic == "" {
		t.Errorf("%q came with alias %d, and no message has given it a topic", m.Payload, m.Properties.Num(packet.TopicAlias, 0))
	}
}

func TestWhatWaitsForAClientThatAcknowledgesNothingIsBoundedInBytes(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, conf)
	sub := r.dial(addr)
	c := keeping("slow", true, 0)
	c.Properties.Set(packet.ReceiveMaximum, 1)
	sub.connect(c)
	sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 1})
	pub := r.dial(addr)
	pub.connect(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "pub"})
	for i := range 20 {
		pub.send(publish("a/b", strings.Repeat("x", 200<<10), 1, uint16(i+1)))
	}
	pub.send(publish("a/b", "last", 1, 100))
	heard := 0
	for {
		h, b, err := sub.try(3 * time.Second)
		if err != nil {
			break
		}
		var p packet.Publish
		if err := p.Decode(h, b, sub.v); err != nil {
			t.Fatal(err)
		}
		heard++
		sub.write((&packet.Ack{Type: packet.PUBACK, ID: p.ID}).Append(nil, sub.v))
	}
	if most := 2 + waitBytes/(200<<10); heard < 2 || heard > most+1 {
		t.Errorf("%d messages of 200 KiB were kept for it; want at most %d", heard, most)
	}
}

func TestAFilterOfTooManyLevelsIsRefused(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, conf)
	p := r.dial(addr)
	p.connect(keeping("deep", true, 0))
	if codes := p.subscribe(packet.Subscription{Filter: strings.Repeat("a/", levelsMax) + "a"}, packet.Subscription{Filter: strings.Repeat("a/", levelsMax+1) + "a"}); codes[0].Failed() || codes[1] != packet.QuotaExceeded {
		t.Errorf("SUBACK has %v", codes)
	}
}

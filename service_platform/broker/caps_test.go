package broker

import (
	"fmt"
	"testing"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

func TestSessionsHaveTheLimitsOfTheirListenerAlsoAfterAStart(t *testing.T) {
	conf, addr := open(t, func(l *Listener) {
		l.SessionExpiryMax, l.SessionMessagesMax, l.SubscriptionsMax = "30s", 3, 2
	})
	r := newRig(t, conf)
	p := r.dial(addr)
	if a := p.connect(keeping("small", false, 3600)); a.Properties.Num(packet.SessionExpiry, 0) != 30 {
		t.Errorf("CONNACK is %+v; want an expiry of 30 s", a)
	}
	subs := []packet.Subscription{{Filter: "a", QoS: 1}, {Filter: "b", QoS: 1}, {Filter: "c", QoS: 1}}
	if codes := p.subscribe(subs...); codes[1].Failed() || codes[2] != packet.QuotaExceeded {
		t.Errorf("SUBACK has %v", codes)
	}
	p.leaves()
	free := r.raw() // of a listener that has the broker's own
	if a := free.connect(keeping("d-1", false, 3600)); a.Properties.Has(packet.SessionExpiry) {
		t.Errorf("CONNACK of the other listener is %+v", a)
	}
	r.stop()
	r.start(catalog.Default())
	fence := r.dial(addr)
	fence.connect(keeping("fence", true, 0))
	fence.subscribe(packet.Subscription{Filter: "a"})
	pub := r.dial(addr)
	pub.connect(keeping("pub", true, 0))
	for id := uint16(1); id <= 5; id++ {
		pub.send(publish("a", fmt.Sprint(id), 1, id))
	}
	for range 5 { // all is queued
		fence.hear()
	}
	r.refused(message.SessionLimit)
	p = r.dial(addr)
	if a := p.connect(keeping("small", false, 3600)); !a.SessionPresent {
		t.Error("its session is gone")
	}
	for id := 3; id <= 5; id++ {
		if got, want := p.take(), fmt.Sprintf("a %d q1 rfalse dfalse", id); got != want {
			t.Errorf("%q came; want %q", got, want)
		}
	}
	p.nothing()
}

func TestAListenerMayKeepNoSessions(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.SessionExpiryMax = "0s" })
	r := newRig(t, conf)
	old := packet.Connect{Version: packet.V311, ClientID: "old", KeepAlive: 60}
	p := r.dial(addr)
	p.connect(old)
	p.subscribe(packet.Subscription{Filter: "a", QoS: 1})
	p.leaves()
	p = r.dial(addr)
	if a := p.connect(old); a.SessionPresent {
		t.Error("a session outlived its connection")
	}
	p = r.dial(addr)
	if a := p.connect(keeping("new", false, 60)); a.Properties.Num(packet.SessionExpiry, 60) != 0 {
		t.Errorf("CONNACK is %+v; want an expiry of 0", a)
	}
}

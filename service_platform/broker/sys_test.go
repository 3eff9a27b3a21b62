package broker

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// sysTopics reads what a subscription to $SYS finds, until all of the topics have come.
func (p *peer) sysTopics(want ...string) map[string]string {
	p.t.Helper()
	got := map[string]string{}
	for until := time.Now().Add(30 * time.Second); ; {
		missing := slices.DeleteFunc(slices.Clone(want), func(topic string) bool { _, ok := got[topic]; return ok })
		if len(missing) == 0 {
			return got
		}
		if time.Now().After(until) {
			p.t.Fatalf("%q did not come; there are %q", missing, slices.Sorted(maps.Keys(got)))
		}
		m := p.hear()
		got[m.Topic] = string(m.Payload)
		if m.QoS != 0 {
			p.t.Errorf("%s came with QoS %d", m.Topic, m.QoS)
		}
	}
}

func TestSYSTellsWhatMosquittoTellsAndIsHiddenFromWildcards(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, func(c *Config) { conf(c); c.SysInterval = "20ms" })
	s := &stage{T: t, r: r, addr: addr, v: packet.V5, word: "sys"}
	wide := s.client("wide")
	wide.granted(packet.Subscription{Filter: "#", QoS: 1}, packet.Subscription{Filter: "+/broker/uptime", QoS: 1})
	kept := s.client("kept", kept)
	kept.granted(packet.Subscription{Filter: "a/b", QoS: 1}, packet.Subscription{Filter: "$share/g/a/#", QoS: 1})
	kept.leaves()
	state := packet.Publish{Topic: "a/b", Payload: []byte("12345"), QoS: 1, ID: 1, Retain: true}
	pub := s.client("pub")
	if code := pub.send(state); code != 0 {
		t.Fatal(code)
	}
	sub := s.client("sub")
	sub.granted(packet.Subscription{Filter: "$SYS/#", QoS: 2})
	first := sub.hear()
	if !first.Retain || !strings.HasPrefix(first.Topic, "$SYS/broker/") {
		t.Errorf("the first is %s, retain %v", first.Topic, first.Retain)
	}
	sub.sysTopics("$SYS/broker/uptime") // by then all that is retained has come, or has changed since
	other := s.client("other")
	other.granted(packet.Subscription{Filter: "$SYS/broker/+"}, packet.Subscription{Filter: "$SYS/broker/+/+"}, packet.Subscription{Filter: "$SYS/broker/publish/messages/+"})
	got := other.sysTopics("$SYS/broker/version", "$SYS/broker/uptime", "$SYS/broker/clients/connected", "$SYS/broker/clients/disconnected", "$SYS/broker/clients/total",
		"$SYS/broker/clients/maximum", "$SYS/broker/messages/received", "$SYS/broker/messages/sent", "$SYS/broker/publish/messages/received", "$SYS/broker/publish/messages/sent",
		"$SYS/broker/bytes/received", "$SYS/broker/bytes/sent", "$SYS/broker/subscriptions/count", "$SYS/broker/shared_subscriptions/count", "$SYS/broker/retained messages/count")
	if !strings.HasPrefix(got["$SYS/broker/version"], "naru version ") || !strings.HasSuffix(got["$SYS/broker/uptime"], " seconds") {
		t.Errorf("version and uptime are %q and %q", got["$SYS/broker/version"], got["$SYS/broker/uptime"])
	}
	// What is told follows what is.
	want := map[string]string{"$SYS/broker/clients/connected": "4", "$SYS/broker/clients/disconnected": "1", "$SYS/broker/clients/total": "5",
		"$SYS/broker/subscriptions/count": "8", "$SYS/broker/shared_subscriptions/count": "1", "$SYS/broker/retained messages/count": "1"}
	for until := time.Now().Add(30 * time.Second); ; {
		wrong := ""
		for topic, value := range want {
			if got[topic] != value {
				wrong += topic + " is " + got[topic] + ", want " + value + "; "
			}
		}
		if wrong == "" {
			break
		}
		if time.Now().After(until) {
			t.Fatal(wrong)
		}
		m := other.hear()
		got[m.Topic] = string(m.Payload)
	}
	// Nobody else's wildcard has seen any of it, and nobody says it but the broker.
	code, why := pub.told("$SYS/broker/uptime")
	if code != packet.NotAuthorized {
		t.Errorf("a client that speaks under $SYS is answered with %s (%s)", code, why)
	}
	if m := wide.hear(); m.Topic != "a/b" {
		t.Errorf("# selects %s", m.Topic)
	}
	pub.send(packet.Publish{Topic: "last", QoS: 1, ID: 2})
	if m := wide.hear(); m.Topic != "last" {
		t.Errorf("# selects %s", m.Topic)
	}
}

func TestSYSIsHeardAsPoliciesSay(t *testing.T) {
	r := newRig(t, func(c *Config) {
		policies(t, `
staff:
  for: {groups: [staff]}
  subscribe: {allow: ["$SYS/#"], deny: ["$SYS/broker/clients/#"]}
`)(c)
		c.SysInterval = "20ms"
	})
	r.gate.known.Store("ann", registered{groups: []string{"staff"}})
	ann := r.device("ann", packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "ann"})
	if code, why := ann.asked("$SYS/broker/#"); code.Failed() {
		t.Fatalf("%s: %s", code, why)
	}
	for topic := range ann.sysTopics("$SYS/broker/uptime", "$SYS/broker/version", "$SYS/broker/subscriptions/count", "$SYS/broker/bytes/sent") {
		if strings.HasPrefix(topic, "$SYS/broker/clients/") {
			t.Errorf("%s was sent, which is denied", topic)
		}
	}
	other := r.device("d-1", packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1"})
	if code, _ := other.asked("$SYS/#"); code != packet.NotAuthorized {
		t.Errorf("a device that no policy allows it is answered with %s", code)
	}
}

package broker

import (
	"slices"
	"testing"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// TestTwinsHaveASecondSpelling: one message, one rule, one place in the log, and each subscription hears it as it spells
// it: live, retained, from a queue that has outlived the broker.
func TestTwinsHaveASecondSpelling(t *testing.T) {
	const naru, aws = "device/d-1/twin/update", "$aws/things/d-1/shadow/update"
	r := newRig(t, policies(t, `gateways: {for: {groups: [gateways]}, publish: {allow: [device.*.twin.>]}}`))
	r.register("g-1", registered{groups: []string{"gateways"}})
	both := r.device("d-1", keeping("d-1", true, 3600))
	both.subscribe(packet.Subscription{Filter: "device/d-1/twin/#", QoS: 1}, packet.Subscription{Filter: "$aws/things/d-1/shadow/#", QoS: 1})
	say := func(topic string, id uint16) {
		t.Helper()
		m := publish(topic, `{}`, 1, id)
		m.Properties.SetString(packet.ResponseTopic, "$aws/things/d-1/shadow/get")
		both.write(m.Append(nil, both.v))
	}
	// heard collects what comes beside the answers.
	heard := func(n int) (topics []string) {
		t.Helper()
		for len(topics) < n {
			h, body := both.next()
			var m packet.Publish
			if h.Type != packet.PUBLISH {
				continue
			}
			if err := m.Decode(h, body, both.v); err != nil {
				t.Fatal(err)
			}
			if !m.Dup { // or its acknowledgement was not written down before the client went
				topics = append(topics, m.Topic+" "+m.Properties.ResponseTopic)
			}
			both.write((&packet.Ack{Type: packet.PUBACK, ID: m.ID}).Append(nil, both.v))
		}
		slices.Sort(topics)
		return topics
	}
	want := []string{aws + " $aws/things/d-1/shadow/get", naru + " device/d-1/twin/get"}
	for i, topic := range []string{naru, aws} {
		say(topic, uint16(i+1))
		if got := heard(2); !slices.Equal(got, want) {
			t.Errorf("said on %s, it is heard on %q", topic, got)
		}
	}
	subjects := 0
	r.awaited(message.Device, "two updates", func(m *message.Message) bool {
		if m.Subject == "device.d-1.twin.update" {
			subjects++
		}
		return subjects == 2
	})

	// From a queue, over a restart: the session has another's message in both spellings, and what has no topic in AWS
	// IoT's comes in naru's alone.
	both.write((&packet.Disconnect{}).Append(nil, both.v))
	both.ended()
	gateway := r.device("g-1", keeping("g-1", true, 0))
	if code, why := gateway.told("device/d-1/twin/get"); code != 0 {
		t.Fatal(why)
	}
	gateway.told("device/d-1/twin/mine")
	r.stop()
	r.start(catalog.Default())
	both = r.device("d-1", keeping("d-1", false, 3600))
	if got, want := heard(3), []string{"$aws/things/d-1/shadow/get ", "device/d-1/twin/get ", "device/d-1/twin/mine "}; !slices.Equal(got, want) {
		t.Errorf("%q came from the queue; want %q", got, want)
	}
	m := publish(aws, `{"retained":true}`, 1, 9)
	m.Retain = true
	both.write(m.Append(nil, both.v))
	heard(2)
	both.write((&packet.Subscribe{ID: 9, Subscriptions: []packet.Subscription{{Filter: aws, QoS: 1}}}).Append(nil, both.v))
	if got := heard(1); !slices.Equal(got, []string{aws + " "}) {
		t.Errorf("what is retained came on %q", got)
	}
}

// TestTwinsAreNotBelowAMountPoint: neither by a wildcard nor by their own name can who is below one reach the fleet's.
func TestTwinsAreNotBelowAMountPoint(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, conf)
	p := r.dial(addr)
	p.connect(keeping("x", true, 0))
	if code, why := p.told("$aws/things/d-1/shadow/update"); code != packet.NotAuthorized || why == "" {
		t.Errorf("to publish is answered with %s, %q", code, why)
	}
	if code, why := p.asked("$aws/things/d-1/shadow/#"); code != packet.NotAuthorized || why == "" {
		t.Errorf("to subscribe is answered with %s, %q", code, why)
	}
	p.asked("#")
	p.told("device/d-1/twin/get") // of its own world
	if m := p.hear(); m.Topic != "device/d-1/twin/get" {
		t.Errorf("%s came", m.Topic)
	}
}

// TestAPolicyThatNamesTwinsLetsThoseBelowAMountPointIn, in AWS IoT's spelling.
func TestAPolicyThatNamesTwinsLetsThoseBelowAMountPointIn(t *testing.T) {
	conf, addr := open(t)
	named := policies(t, `shadows: {for: {listeners: [open]}, publish: {allow: ["$aws/things/${client_id}/shadow/#"]}, subscribe: {allow: ["$aws/things/${client_id}/shadow/#"]}}`)
	r := newRig(t, func(c *Config) { conf(c); named(c) })
	p := r.dial(addr)
	p.connect(keeping("d-1", true, 0))
	if code, why := p.asked("$aws/things/d-1/shadow/update"); code.Failed() {
		t.Fatal(why)
	}
	if code, _ := p.told("$aws/things/d-2/shadow/update"); code != packet.NotAuthorized {
		t.Errorf("another's is answered with %s", code)
	}
	p.write(publishAs(p.v, publish("$aws/things/d-1/shadow/update", "{}", 0, 0)))
	if m := p.hear(); m.Topic != "$aws/things/d-1/shadow/update" {
		t.Errorf("it is heard on %s", m.Topic)
	}
	r.awaited(message.Device, "the twin's request", func(m *message.Message) bool {
		return m.Subject == "device.d-1.twin.update" && m.Device == "d-1"
	})
}

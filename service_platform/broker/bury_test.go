package broker

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// letters waits for so many dead letters of the broker.
func (r *rig) letters(n int) (list []operator.Dead) {
	r.t.Helper()
	r.awaited(message.Operator, fmt.Sprintf("%d dead letters", n), func(m *message.Message) bool {
		if m.Subject != operator.DeadSubject("service_platform.broker") {
			return false
		}
		var d operator.Dead
		if err := json.Unmarshal(m.Data, &d); err != nil {
			r.t.Fatal(err)
		}
		original, err := d.Message()
		if err != nil {
			r.t.Fatal(err)
		}
		if m.Cause != original.ID || m.Trace.ID != original.Trace.ID || m.Device != original.Device {
			r.t.Errorf("the letter of %s names %s, trace %s, device %q", original.ID, m.Cause, m.Trace.ID, m.Device)
		}
		list = append(list, d)
		return len(list) == n
	})
	return list
}

func TestARefusedPublishOfAnOldClientIsAcknowledgedWhenItLiesAmongTheDeadLetters(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxMessageBytes = 1000 })
	p := r.join("d-1", packet.V311)
	big := strings.Repeat("x", 1001)
	for i, m := range []packet.Publish{
		{Topic: "device/d-2/telemetry", Payload: []byte("forged"), QoS: 1, ID: 1},
		{Topic: "device/d-1/presence", Payload: []byte{0xff, 0}, QoS: 1, ID: 2, Retain: true},
		{Topic: "device/d-1/telemetry", Payload: []byte(big), QoS: 1, ID: 3},
	} {
		p.write(m.Append(nil, packet.V311))
		p.acked(uint16(i + 1))
	}
	p.write(publishAs(packet.V311, packet.Publish{Topic: "service_platform/x", Payload: []byte("exactly once"), QoS: 2, ID: 4}))
	p.answer(packet.PUBREC, 4)
	p.write((&packet.Ack{Type: packet.PUBREL, ID: 4}).Append(nil, packet.V311))
	p.answer(packet.PUBCOMP, 4)
	want := []struct {
		reason                message.Reason
		subject, data, device string
		qos                   byte
	}{
		{message.ACLDenied, "device.d-2.telemetry", "forged", "d-1", 1},
		{message.ACLDenied, "device.d-1.presence", "\xff\x00", "d-1", 1},
		{message.MessageTooLarge, "device.d-1.telemetry", big, "d-1", 1},
		{message.ACLDenied, "service_platform.x", "exactly once", "d-1", 2},
	}
	for i, d := range r.letters(len(want)) {
		m, err := d.Message()
		if err != nil {
			t.Fatal(err)
		}
		w := want[i]
		if d.Reason != w.reason || string(m.Subject) != w.subject || string(m.Data) != w.data || m.Device != w.device || m.QoS != w.qos {
			t.Errorf("letter %d: %s of %s with %d bytes, device %s, QoS %d; want %+v", i, d.Reason, m.Subject, len(m.Data), m.Device, m.QoS, w)
		}
		if d.Detail == "" || d.Component != "service_platform.broker" || m.Source != "//naru/device/d-1" {
			t.Errorf("letter %d: detail %q, component %s, source %s", i, d.Detail, d.Component, m.Source)
		}
	}
	// Nothing of it is anywhere else: QoS 0 is only counted, and MQTT 5 clients are told.
	p.write(publishAs(packet.V311, packet.Publish{Topic: "device/d-2/telemetry"}))
	five := r.join("d-5", packet.V5)
	five.publish(1, "device/d-2/telemetry", "x")
	if code := five.acked(1); code != packet.NotAuthorized {
		t.Errorf("an MQTT 5 client is answered with %s", code)
	}
	p.publish(5, "device/d-1/telemetry", "good")
	p.acked(5)
	if got := r.stored(1); string(got[0].Data) != "good" {
		t.Errorf("the log has %q", got[0].Data)
	}
	p.publish(6, "device/d-9/telemetry", "another")
	p.acked(6)
	r.letters(len(want) + 1)
}

func TestARefusedPublishIsNotAcknowledgedWhileTheLogIsAway(t *testing.T) {
	r := newRig(t, nil)
	p := r.join("d-1", packet.V311)
	r.bus.SetDown(true)
	p.publish(1, "device/d-2/telemetry", "forged")
	p.write(packet.AppendPingreq(nil))
	if h, _ := p.next(); h.Type != packet.PINGRESP {
		t.Fatalf("%s came while nothing can be written", h.Type)
	}
	r.bus.SetDown(false)
	p.acked(1)
	r.letters(1)
}

func TestAListenerMayCloseOnARefusedPublish(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Refused, l.Refuse = "close", []string{"secret/#"} })
	r := newRig(t, conf)
	s := &stage{T: t, r: r, addr: addr, v: packet.V311, word: "c"}
	p := s.client("1")
	p.write(publishAs(packet.V311, packet.Publish{Topic: "secret/x", QoS: 1, ID: 1}))
	p.closed(0)
	r.refused(message.ACLDenied)
	q := s.client("2") // QoS 0 is no reason to close: nobody would say it again
	q.write(publishAs(packet.V311, packet.Publish{Topic: "secret/x"}))
	if code := q.send(packet.Publish{Topic: "open/x", QoS: 1, ID: 1}); code != 0 {
		t.Error(code)
	}
}

// A client that has not heard PUBREC sends its message again, on a connection that follows: it died once.
func TestARefusedMessageOfQoS2ThatIsSentAgainLeavesOneDeadLetter(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Refuse = []string{"secret/#"} })
	r := newRig(t, conf)
	m := packet.Publish{Topic: "secret/x", Payload: []byte("once"), QoS: 2, ID: 7}
	for again := range 3 {
		p := r.dial(addr)
		p.connect(packet.Connect{Version: packet.V311, ClientID: "c"})
		m.Dup = again > 0
		p.write(publishAs(packet.V311, m))
		p.answer(packet.PUBREC, 7)
		if again < 2 {
			p.Close()
			continue
		}
		p.write((&packet.Ack{Type: packet.PUBREL, ID: 7}).Append(nil, packet.V311))
		p.answer(packet.PUBCOMP, 7)
		p.send(packet.Publish{Topic: "secret/x", Payload: []byte("another"), QoS: 2, ID: 7})
	}
	for i, d := range r.letters(2) {
		m, err := d.Message()
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"once", "another"}[i]; string(m.Data) != want {
			t.Errorf("letter %d is of %q; want %q", i+1, m.Data, want)
		}
	}
}

func TestARefusalThatClosesItsConnectionIsCountedOnce(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Refused, l.Refuse = "close", []string{"secret/#"} })
	r := newRig(t, conf)
	for range 3 {
		p := r.dial(addr)
		p.connect(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "c"})
		p.write(publishAs(packet.V311, packet.Publish{Topic: "secret/x", QoS: 1, ID: 1}))
		p.ended()
	}
	r.eventually(func() string { // what a connection does at its end is done
		r.b.mu.Lock()
		defer r.b.mu.Unlock()
		return map[bool]string{true: "", false: "there are connections"}[len(r.b.all) == 0]
	})
	if n := valueOf(r.b.metrics.refused.WithLabelValues("service_platform.broker", message.ACLDenied.String())); n != 3 {
		t.Errorf("3 refusals are counted as %g", n)
	}
}

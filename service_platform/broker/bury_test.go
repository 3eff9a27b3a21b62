package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/naru-platform/naru/bus"
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

// shelf is a door that takes no letter with data, which is too large, and none without, until there is room.
type shelf struct {
	bus.Appender
	room atomic.Bool
}

func (s *shelf) Append(ctx context.Context, m *message.Message, to bus.Completion, token uint64) error {
	var d operator.Dead
	if err := json.Unmarshal(m.Data, &d); err != nil {
		return err
	}
	switch original, err := d.Message(); {
	case err != nil:
		return err
	case len(original.Data) > 0:
		return message.Rejectf(message.MessageTooLarge, "too large for the shelf")
	case !s.room.Load():
		return message.Rejectf(message.StorageLow, "the shelf is full")
	}
	return s.Appender.Append(ctx, m, to, token)
}

// A letter that is too large goes without its data; where that cannot be stored either, the client says its message again, and is
// not told for ever that the one before is on its way.
func TestARefusedMessageOfQoS2WhoseLettersBothFailMayBeSaidAgain(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Refuse = []string{"secret/#"} })
	r := newRig(t, conf)
	door, err := r.b.door(t.Context(), message.Operator)
	if err != nil {
		t.Fatal(err)
	}
	full := &shelf{Appender: door}
	r.b.doors.Store(message.Operator, bus.Appender(full))
	m := packet.Publish{Topic: "secret/x", Payload: []byte("large"), QoS: 2, ID: 7}
	say := func() *peer {
		p := r.dial(addr)
		p.connect(packet.Connect{Version: packet.V311, ClientID: "c"})
		p.write(publishAs(packet.V311, m))
		return p
	}
	say().ended()
	full.room.Store(true)
	m.Dup = true
	say().answer(packet.PUBREC, 7)
	if d := r.letters(1)[0]; !strings.Contains(d.Detail, "are not in it") {
		t.Errorf("the letter says %q", d.Detail)
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

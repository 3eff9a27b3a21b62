package broker

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// says appends messages as another component does.
func (r *rig) says(list ...*message.Message) {
	r.t.Helper()
	for _, m := range list {
		l, err := r.bus.Log(r.t.Context(), m.Subject.Namespace(), bus.LogOptions{})
		if err != nil {
			r.t.Fatal(err)
		}
		a, err := l.Appender(r.t.Context(), bus.AppenderOptions{Name: "test", Owner: message.NewID(time.Now())})
		if err != nil {
			r.t.Fatal(err)
		}
		if _, err := bus.AppendSync(r.t.Context(), a, m); err != nil {
			r.t.Fatal(err)
		}
		if err := a.Close(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
	}
}

// release has a command handed to the broker.
func (r *rig) release(of, id, data string, change ...func(*message.Message)) *message.Message {
	r.t.Helper()
	now := time.Now()
	m := &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Subject: serviceplatform.CommandReleaseSubject("n1", of, "open", id), Type: "device.command.v1",
		Source: "//naru/test", Device: of, QoS: 1, Depth: 2, ReplyTo: device.ReplySubject(of, "open", id), Correlation: []byte(id), Expires: now.Add(time.Hour), Data: []byte(data)}
	for _, f := range change {
		f(m)
	}
	r.says(m)
	return m
}

// receipts waits until so many receipts of a result were told, and gives the last.
func (r *rig) receipt(result string, nth int) (x serviceplatform.Receipt) {
	r.t.Helper()
	r.awaited(message.ServicePlatform, "receipt "+result, func(m *message.Message) bool {
		if m.Subject.Token(2) != "receipt" || json.Unmarshal(m.Data, &x) != nil || x.Result != result {
			return false
		}
		nth--
		return nth == 0
	})
	return x
}

// quiet releases another command, which comes behind those released before, so that what came before it is all there was.
func (p *peer) quiet(r *rig) {
	p.t.Helper()
	r.release("d-1", "quiet", "quiet", func(m *message.Message) { m.QoS = 0 })
	if m := p.hear(); string(m.Payload) != "quiet" {
		p.t.Fatalf("it hears %s of %q; want nothing", m.Topic, m.Payload)
	}
}

func TestCommandReachesItsDeviceWhenItIsReleased(t *testing.T) {
	r := newRig(t, nil)
	d := r.raw()
	d.connect(packet.Connect{Version: packet.V311, ClientID: "d-1", KeepAlive: 60})
	d.subscribe(packet.Subscription{Filter: "device/d-1/#", QoS: 1})
	now := time.Now()
	r.says(&message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Subject: device.CommandSubject("d-1", "open", "c1"), Device: "d-1", QoS: 1, Retain: true, Data: []byte("said")})
	r.says(&message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Subject: "device.d-1.note", Device: "d-1", Data: []byte("behind it")})
	if got := d.hear(); string(got.Payload) != "behind it" { // as it was said it reaches nobody
		t.Fatalf("the device hears %+v", got)
	}
	m := r.release("d-1", "c1", "now")
	got := d.hear()
	if got.Topic != "device/d-1/command/open/c1" || string(got.Payload) != "now" || got.QoS != 1 || got.Retain {
		t.Fatalf("the device hears %+v", got)
	}
	d.write(packet.AppendPuback(nil, got.ID))
	x := r.receipt(serviceplatform.ReceiptDelivered, 1)
	if x.Device != "d-1" || x.Release != m.ID || x.Name != "open" || x.ID != "c1" || x.QoS != 1 || x.Client != "d-1" || x.Node != "n1" || x.Version == 0 {
		t.Errorf("the receipt is %+v", x)
	}
	// A client that passes no trace on answers all the same within the command's.
	d.publish(7, "device/d-1/command/open/c1/reply", "done")
	r.awaited(message.Device, "the answer", func(a *message.Message) bool {
		if a.Subject != device.ReplySubject("d-1", "open", "c1") {
			return false
		}
		if a.Cause != m.ID || a.Trace.ID != m.Trace.ID || a.Depth != 3 || a.Trace.Span == m.Trace.Span {
			t.Errorf("the answer follows from %s in trace %s, depth %d", a.Cause, a.Trace.ID, a.Depth)
		}
		return true
	})
}

func TestCommandOfMQTT5HasWhereToAnswer(t *testing.T) {
	r := newRig(t, nil)
	d := r.raw()
	d.connect(keeping("d-1", true, 3600))
	d.subscribe(packet.Subscription{Filter: "device/d-1/command/#", QoS: 1})
	r.release("d-1", "c1", "now")
	got := d.hear()
	if left := got.Properties.Num(packet.MessageExpiry, 0); got.Properties.ResponseTopic != "device/d-1/command/open/c1/reply" || string(got.Properties.CorrelationData) != "c1" || left < 3500 || left > 3600 {
		t.Errorf("the device hears %+v, with %d s left", got.Properties, left)
	}
	d.write((&packet.Ack{Type: packet.PUBACK, ID: got.ID, Code: packet.ImplementationSpecific}).Append(nil, packet.V5))
	if x := r.receipt(serviceplatform.ReceiptRefused, 1); x.Reason != message.Unsupported || x.Detail == "" {
		t.Errorf("the receipt is %+v", x)
	}
}

func TestCommandByQoS0IsSentUnconfirmed(t *testing.T) {
	r := newRig(t, nil)
	d := r.join("d-1", packet.V311)
	d.subscribe(packet.Subscription{Filter: "device/d-1/command/+/+", QoS: 0})
	r.release("d-1", "c1", "now")
	if got := d.hear(); got.QoS != 0 {
		t.Errorf("it comes with QoS %d", got.QoS)
	}
	if x := r.receipt(serviceplatform.ReceiptSent, 1); x.QoS != 0 || x.ID != "c1" {
		t.Errorf("the receipt is %+v", x)
	}
}

func TestDeviceThatDoesNotWantItsCommandsIsTold(t *testing.T) {
	r := newRig(t, nil)
	d := r.join("d-1", packet.V311)
	app := r.join("app", packet.V5) // what others hear is no receipt
	app.subscribe(packet.Subscription{Filter: "device/app/#", QoS: 1})
	r.release("d-1", "c2", "now", func(m *message.Message) { m.Subject = serviceplatform.CommandReleaseSubject("n2", "d-1", "open", "c2") }) // another node tells
	m := r.release("d-1", "c1", "now")
	first := r.receipt(serviceplatform.ReceiptUnsubscribed, 1)
	if first.Device != "d-1" || first.Release != m.ID || first.Detail == "" {
		t.Errorf("the receipt is %+v", first)
	}
	d.subscribe(packet.Subscription{Filter: "device/d-1/command/#", QoS: 1})
	if x := r.receipt(serviceplatform.ReceiptSubscribed, 1); x.Device != "d-1" || x.Version <= first.Version {
		t.Errorf("the receipt is %+v after %+v", x, first)
	}
	r.release("d-1", "c1", "again")
	if got := d.hear(); string(got.Payload) != "again" {
		t.Errorf("the device hears %q", got.Payload)
	}
}

func TestCommandTooLargeForItsDeviceIsTold(t *testing.T) {
	r := newRig(t, nil)
	d := r.raw()
	c := keeping("d-1", true, 3600)
	c.Properties.Set(packet.MaximumPacketSize, 200)
	d.connect(c)
	d.subscribe(packet.Subscription{Filter: "device/d-1/#", QoS: 1})
	r.release("d-1", "c1", string(make([]byte, 300)))
	if x := r.receipt(serviceplatform.ReceiptWithheld, 1); x.Reason != message.MessageTooLarge || x.ID != "c1" {
		t.Errorf("the receipt is %+v", x)
	}
	d.quiet(r)
}

func TestCommandThatIsReleasedAgainComesOnce(t *testing.T) {
	for _, kept := range []bool{true, false} {
		r := newRig(t, nil)
		seconds := uint32(0)
		if kept {
			seconds = 3600
		}
		d := r.raw()
		d.connect(keeping("d-1", true, seconds))
		d.subscribe(packet.Subscription{Filter: "device/d-1/#", QoS: 1})
		r.release("d-1", "c1", "now")
		got := d.hear()
		r.release("d-1", "c1", "now")
		d.quiet(r) // it has it already
		if kept {
			d.Close()
			r.firstOffline("d-1")
			r.stop()
			r.start(r.host.Catalog) // nor is that forgotten
			d = r.raw()
			if a := d.connect(keeping("d-1", false, 3600)); !a.SessionPresent {
				t.Fatal("the session is gone")
			}
			r.release("d-1", "c1", "now")
			if got = d.hear(); !got.Dup || got.Topic != "device/d-1/command/open/c1" {
				t.Fatalf("it comes again as %+v", got)
			}
		}
		d.write(packet.AppendPuback(nil, got.ID))
		r.receipt(serviceplatform.ReceiptDelivered, 1)
		if kept { // that crosses with the acknowledgement
			again := r.release("d-1", "c1", "now")
			r.awaited(message.ServicePlatform, "its receipt", func(m *message.Message) bool {
				return m.Subject == serviceplatform.ReceiptSubject("d-1") && m.Cause == again.ID
			})
			d.quiet(r)
		}
		r.release("d-1", "c2", "next")
		if got := d.hear(); string(got.Payload) != "next" {
			t.Errorf("next comes %q", got.Payload)
		}
		r.stop()
	}
}

func TestCommandWithQoS2IsDeliveredWithItsPUBREC(t *testing.T) {
	r := newRig(t, nil)
	d := r.raw()
	d.connect(keeping("d-1", true, 3600))
	d.subscribe(packet.Subscription{Filter: "device/d-1/#", QoS: 2})
	r.release("d-1", "c1", "now", func(m *message.Message) { m.QoS = 2 })
	got := d.hear()
	d.write((&packet.Ack{Type: packet.PUBREC, ID: got.ID}).Append(nil, packet.V5))
	if x := r.receipt(serviceplatform.ReceiptDelivered, 1); x.QoS != 2 {
		t.Errorf("the receipt is %+v", x)
	}
	d.answer(packet.PUBREL, got.ID)
	restart := func() {
		t.Helper()
		d.Close()
		r.firstOffline("d-1")
		r.stop()
		r.start(r.host.Catalog)
		d = r.raw()
		if a := d.connect(keeping("d-1", false, 3600)); !a.SessionPresent {
			t.Fatal("the session is gone")
		}
	}
	again := func() { // once the handshake is over: before that it is known to be owed, and nothing is told
		t.Helper()
		r.eventually(func() string {
			if x := r.session("d-1"); x.Waiting > 0 {
				return fmt.Sprintf("%d messages wait for it", x.Waiting)
			}
			return ""
		})
		m := r.release("d-1", "c1", "now", func(m *message.Message) { m.QoS = 2 })
		r.awaited(message.ServicePlatform, "its receipt", func(x *message.Message) bool {
			return x.Subject == serviceplatform.ReceiptSubject("d-1") && x.Cause == m.ID
		})
	}
	restart() // in the middle of the handshake, which goes on
	d.answer(packet.PUBREL, got.ID)
	d.write((&packet.Ack{Type: packet.PUBCOMP, ID: got.ID}).Append(nil, packet.V5))
	again()
	restart() // and behind it
	again()
	d.quiet(r)
}

func TestWatcherSeesCommandsAsTheyGo(t *testing.T) {
	r := newRig(t, policies(t, `watchers: {for: {groups: [watchers]}, subscribe: {allow: [device.*.command.>]}}`))
	r.register("app", registered{groups: []string{"watchers"}})
	d, app := r.device("d-1", keeping("d-1", true, 0)), r.device("app", keeping("app", true, 0))
	d.subscribe(packet.Subscription{Filter: "device/d-1/#", QoS: 1})
	if codes := app.subscribe(packet.Subscription{Filter: "device/+/command/#", QoS: 1}); slices.ContainsFunc(codes, packet.ReasonCode.Failed) {
		t.Fatalf("the app may not: %v", codes)
	}
	r.release("d-1", "c1", "now")
	seen := app.hear()
	if seen.Topic != "device/d-1/command/open/c1" {
		t.Errorf("the app sees %s", seen.Topic)
	}
	app.write(packet.AppendPuback(nil, seen.ID)) // which is no receipt of the device
	got := d.hear()
	d.write(packet.AppendPuback(nil, got.ID))
	if x := r.receipt(serviceplatform.ReceiptDelivered, 1); x.Client != "d-1" {
		t.Errorf("the receipt is %+v", x)
	}
}

// The platform says a command's answer on the response topic that its sender names: only where the sender may speak himself.
func TestAResponseTopicOfACommandIsOneWhereItsSenderMaySpeak(t *testing.T) {
	r := newRig(t, policies(t, `
apps: {for: {groups: [apps]}, publish: {allow: ["device/+/command/#", "app/answers", "operator/#", "service_platform/#"]}}
`))
	r.register("d-1", registered{groups: []string{"apps"}})
	d := r.device("d-1", keeping("d-1", true, 0))
	send := func(topic, answers string) packet.ReasonCode {
		m := packet.Publish{Topic: topic, QoS: 1, ID: 1, Payload: []byte("{}")}
		m.Properties.SetString(packet.ResponseTopic, answers)
		return d.send(m)
	}
	for answers, want := range map[string]packet.ReasonCode{"app/answers": packet.Success, "another/answers": packet.NotAuthorized,
		"operator/alarm/x": packet.NotAuthorized, "service_platform/worker/w/invoke": packet.NotAuthorized} {
		if got := send("device/d-2/command/open/c1", answers); got != want {
			t.Errorf("a command with answers on %s is answered %s; want %s", answers, got, want)
		}
	}
	if got := send("device/d-1/telemetry", "another/answers"); got != packet.Success { // who hears it answers by himself
		t.Errorf("another message is answered %s", got)
	}
}

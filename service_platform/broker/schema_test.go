package broker

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// contracts are the platform's, and one of an engine.
func contracts(t *testing.T) *message.Catalog {
	t.Helper()
	c, err := message.NewCatalog(append(catalog.Default().Contracts(), message.Contract{
		Subjects: "device.*.telemetry.engine", Type: "engine.v1", Doc: "d", Owner: "o", Route: message.ByLog, Says: []string{"device"},
		ContentType: "application/json", Schema: json.RawMessage(`{"type":"object","properties":{"celsius":{"type":"number"}}}`)})...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const fault = "/celsius: got string, want number (contract engine.v1)"

// refusal wants the next answer to be a PUBACK of that id, and gives it.
func (p *peer) refusal(id uint16) (code packet.ReasonCode, why string) {
	p.t.Helper()
	h, body := p.reply()
	var a packet.Ack
	if err := a.Decode(h, body, p.v); err != nil || h.Type != packet.PUBACK || a.ID != id {
		p.t.Fatalf("%s %x (%v); want PUBACK of %d", h.Type, body, err, id)
	}
	return a.Code, a.Properties.ReasonString
}

func TestBrokerRefusesWhatBreaksItsContract(t *testing.T) {
	r := newRigOn(t, contracts(t), nil)
	p := r.join("d-1", packet.V5)
	p.publish(1, "device/d-1/telemetry/engine", `{"celsius":"hot"}`)
	if code, why := p.refusal(1); code != packet.PayloadFormatInvalid || why != "schema_mismatch: "+fault {
		t.Errorf("refused with %s %q", code, why)
	}
	p.publish(2, "device/d-1/telemetry/engine", "\x00\x01")
	if code, why := p.refusal(2); code != packet.PayloadFormatInvalid || !strings.Contains(why, "not JSON at byte 0") {
		t.Errorf("refused with %s %q", code, why)
	}
	p.publish(3, "device/d-1/telemetry/engine", `{"celsius":21.5}`)
	p.publish(4, "device/d-1/telemetry/brake", "free")
	p.publish(0, "device/d-1/telemetry/engine", `{"celsius":null}`)
	for id := uint16(3); id <= 4; id++ {
		if code := p.acked(id); code != 0 {
			t.Errorf("message %d is refused with %s", id, code)
		}
	}
	if list := r.stored(2); string(list[0].Data) != `{"celsius":21.5}` || string(list[1].Data) != "free" {
		t.Errorf("stored are %s and %s", list[0].Data, list[1].Data)
	}
	got := r.refused(message.SchemaMismatch)
	// Equal refusals are told together, with the particulars of the last: the second may have come before the first was told.
	if !strings.Contains(got.Detail, fault) && got.Count == 1 || got.Subject != "device.d-1.telemetry.engine" || got.Device != "d-1" {
		t.Errorf("the refusal is told as %+v", got)
	}
}

// TestBrokerAcknowledgesWhatAnOlderClientMustNotSayAgain because 3.1.1 has no word for a refusal, and a closed
// connection would have the device send it for ever.
func TestBrokerAcknowledgesWhatAnOlderClientMustNotSayAgain(t *testing.T) {
	r := newRigOn(t, contracts(t), nil)
	p := r.join("d-1", packet.V311)
	p.publish(1, "device/d-1/telemetry/engine", `{"celsius":"hot"}`)
	p.acked(1)
	p.publish(2, "device/d-1/telemetry/engine", `{"celsius":1}`)
	p.acked(2)
	if list := r.stored(1); string(list[0].Data) != `{"celsius":1}` {
		t.Errorf("stored is %s", list[0].Data)
	}
	if got := r.refused(message.SchemaMismatch); !strings.Contains(got.Detail, fault) {
		t.Errorf("the refusal is told as %+v", got)
	}
}

func TestBrokerExplainsOnlyToWhoWantsIt(t *testing.T) {
	for name, change := range map[string]func(*packet.Properties){
		"no problem information":       func(p *packet.Properties) { p.Set(packet.RequestProblemInfo, 0) },
		"packets of up to forty bytes": func(p *packet.Properties) { p.Set(packet.MaximumPacketSize, 40) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRigOn(t, contracts(t), nil)
			p := r.raw()
			c := packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1"}
			change(&c.Properties)
			p.hello(c)
			p.next()
			p.publish(1, "device/d-1/telemetry/engine", `{"celsius":"hot"}`)
			if code, why := p.refusal(1); code != packet.PayloadFormatInvalid || why != "" {
				t.Errorf("refused with %s %q", code, why)
			}
		})
	}
}

func TestBrokerTakesNoWillThatBreaksItsContract(t *testing.T) {
	r := newRigOn(t, contracts(t), nil)
	for version, want := range map[packet.Version]packet.ReasonCode{packet.V5: packet.PayloadFormatInvalid, packet.V311: 5} {
		p := r.raw()
		p.hello(packet.Connect{Version: version, CleanStart: true, ClientID: "d-1",
			Will: &packet.Will{QoS: 1, Topic: "device/d-1/telemetry/engine", Payload: []byte(`{"celsius":"gone"}`)}})
		h, body := p.next()
		if h.Type != packet.CONNACK || packet.ReasonCode(body[1]) != want {
			t.Errorf("%s: answered with %s %x; want code %s", version, h.Type, body, want)
		}
		p.ended()
	}
	if got := r.refused(message.SchemaMismatch); !strings.Contains(got.Detail, fault) {
		t.Errorf("the refusal is told as %+v", got)
	}
}

func TestReasonStringIsBoundedText(t *testing.T) {
	for _, in := range []string{"a\x00b\nc\u0085", strings.Repeat("ü", 1000), "\xff"} {
		got := reasonString(fmt.Errorf("%s", in))
		if len(got) > reasonMax+len("…") || strings.ContainsAny(got, "\x00\n\u0085") || strings.ToValidUTF8(got, "") != got {
			t.Errorf("%.20q becomes %q", in, got)
		}
	}
}

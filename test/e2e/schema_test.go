package e2e

import (
	"bufio"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

const engineConfig = `channels:
  - subject: device.*.telemetry.engine
    type: com.example.engine.v1
    doc: What the engine measures.
    owner: engine team
    schema_file: engine.json
    example: {celsius: 81.5}
`

// device is an MQTT client on the plain listener that speaks packets.
type device struct {
	t testing.TB
	net.Conn
	in *bufio.Reader
	v  packet.Version
}

func (p *platform) device(id string, v packet.Version) *device {
	p.t.Helper()
	c, err := net.Dial("tcp", p.plain)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	d := &device{t: p.t, Conn: c, in: bufio.NewReader(c), v: v}
	hello := packet.Connect{Version: v, CleanStart: true, ClientID: id}
	d.write(hello.Append(nil))
	if h, body := d.next(); h.Type != packet.CONNACK || body[1] != 0 {
		p.t.Fatalf("CONNECT of %s is answered with %s %x", id, h.Type, body)
	}
	return d
}

func (d *device) write(b []byte) {
	d.t.Helper()
	if _, err := d.Write(b); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) next() (packet.Header, []byte) {
	d.t.Helper()
	_ = d.SetReadDeadline(time.Now().Add(20 * time.Second))
	var buf []byte
	for {
		h, start, total, _, err := packet.Frame(buf, 0)
		if err != nil {
			d.t.Fatal(err)
		}
		if total > 0 {
			return h, buf[start:total]
		}
		b, err := d.in.ReadByte()
		if err != nil {
			d.t.Fatal(err)
		}
		buf = append(buf, b)
	}
}

// publish says data with QoS 1, and gives the answer.
func (d *device) publish(id uint16, topic, data string) (packet.ReasonCode, string) {
	d.t.Helper()
	m := packet.Publish{QoS: 1, ID: id, Topic: topic, Payload: []byte(data)}
	d.write(m.Append(nil, d.v))
	h, body := d.next()
	var a packet.Ack
	if err := a.Decode(h, body, d.v); err != nil || h.Type != packet.PUBACK || a.ID != id {
		d.t.Fatalf("%s is answered with %s %x (%v)", topic, h.Type, body, err)
	}
	return a.Code, a.Properties.ReasonString
}

// TestContractIsKeptFromTheConfigurationToTheMessageList is the story of a channel of one's own: written down in the
// configuration, kept at the door, told to the device and to the operator.
func TestContractIsKeptFromTheConfigurationToTheMessageList(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "naru.yaml")
	for name, text := range map[string]string{file: engineConfig,
		filepath.Join(dir, "engine.json"): `{"type":"object","required":["celsius"],"properties":{"celsius":{"type":"number"}}}`} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := newPlatform(t, "--config", file)
	p.start()

	const topic, fault = "device/d-5/telemetry/engine", "/celsius: got string, want number (contract com.example.engine.v1)"
	five := p.device("d-5", packet.V5)
	if code, why := five.publish(1, topic, `{"celsius":"hot"}`); code != packet.PayloadFormatInvalid || why != "schema_mismatch: "+fault {
		t.Errorf("what breaks the contract is answered with %s %q", code, why)
	}
	if code, why := five.publish(2, topic, `{"celsius":81.5`); code != packet.PayloadFormatInvalid || !strings.Contains(why, "not JSON at byte 15") {
		t.Errorf("what is no JSON is answered with %s %q", code, why)
	}
	if code, why := five.publish(3, topic, `{"celsius":81.5}`); code != 0 {
		t.Errorf("what keeps the contract is answered with %s %q", code, why)
	}
	if code, _ := five.publish(4, "device/d-5/telemetry/brake", "anything"); code != 0 {
		t.Errorf("what has no schema is answered with %s", code)
	}
	three := p.device("d-3", packet.V311)
	three.publish(1, "device/d-3/telemetry/engine", `{"celsius":"hot"}`) // acknowledged, since 3.1.1 has no word for it
	three.publish(2, "device/d-3/telemetry/engine", `{"celsius":1}`)

	var list struct {
		Messages []struct{ Subject, Type, Data, Reason string }
	}
	await := func(n int, what string, args ...string) {
		t.Helper()
		for until := time.Now().Add(time.Minute); ; {
			if p.json(&list, append([]string{"messages", "-n", "100"}, args...)...); len(list.Messages) >= n {
				return
			}
			if time.Now().After(until) {
				t.Fatalf("%s: %+v", what, list.Messages)
			}
		}
	}
	await(1, "refusals of d-5", "--outcome", "refused", "--device", "d-5")
	await(1, "refusals of d-3", "--outcome", "refused", "--device", "d-3")
	if m := list.Messages[0]; m.Reason != "schema_mismatch" || !strings.Contains(m.Data, fault) {
		t.Errorf("the operator is told %+v", m)
	}
	if out, code := p.naru("messages", "--outcome", "refused", "--device", "d-3"); code != 0 || !strings.Contains(out, "schema_mismatch: "+fault) {
		t.Errorf("the list shows, with exit code %d:\n%s", code, out)
	}
	await(2, "telemetry of engines", "--subject", "device.*.telemetry.engine")
	for _, m := range list.Messages {
		if m.Type != "com.example.engine.v1" || strings.Contains(m.Data, "hot") {
			t.Errorf("in the log is %+v", m)
		}
	}
	if len(list.Messages) != 2 {
		t.Errorf("in the log are %+v", list.Messages)
	}

	for want, args := range map[string][]string{
		"engine team":                     {"topic", "info", "device.d-5.telemetry.engine"},
		`"celsius":{"type":"number"}`:     {"topic", "info", "com.example.engine.v1"},
		"com.example.engine.v1":           {"topic", "list"},
		"subject: device.*.telemetry.eng": {"config", "show", "--config", file},
	} {
		if out, code := p.naru(args...); code != 0 || !strings.Contains(out, want) {
			t.Errorf("naru %v: exit %d; want %q in\n%s", args, code, want, out)
		}
	}
	// An operator's own word is held to it too.
	if out, code := p.naru("topic", "pub", "device.d-5.telemetry.engine", `{"celsius":"hot"}`); code != 1 || !strings.Contains(out, fault) {
		t.Errorf("naru topic pub: exit %d: %s", code, out)
	}
	_, _ = io.WriteString(five, "\xe0\x00") // DISCONNECT
	p.stop()
}

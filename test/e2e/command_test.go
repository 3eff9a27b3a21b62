//go:build long

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/command"
)

// awaitedCommand waits until a command is in one of the states.
func (p *platform) awaitedCommand(device, id string, states ...string) (s command.Shown) {
	p.t.Helper()
	wait := "0s"
	if !slices.Contains(states, "queued") {
		wait = "20s" // until it has ended
	}
	for until := time.Now().Add(time.Minute); ; {
		s = command.Shown{}
		p.json(&s, "command", "show", device, id, "--wait", wait)
		if slices.Contains(states, s.State) {
			return s
		}
		if time.Now().After(until) {
			p.t.Fatalf("command %s of %s is not %v: %+v\n%s", id, device, states, s, p.out)
		}
	}
}

func (p *platform) send(device, id string, more ...string) {
	p.t.Helper()
	var s command.Shown
	p.json(&s, append([]string{"command", "send", device, "open", "--id", id}, more...)...)
}

// TestDeviceOfMQTT311AnswersItsCommands has mosquitto's tools be a device that wakes up for one command at a time.
func TestDeviceOfMQTT311AnswersItsCommands(t *testing.T) {
	if _, err := exec.LookPath("mosquitto_sub"); err != nil {
		t.Fatal("mosquitto_sub is wanted: install mosquitto-clients")
	}
	p := newPlatform(t)
	p.start()
	host, port, err := net.SplitHostPort(p.plain)
	if err != nil {
		t.Fatal(err)
	}
	device := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, append([]string{"-h", host, "-p", port, "-V", "mqttv311", "-i", "d-1", "-q", "1"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	for i := range 3 {
		p.send("d-1", fmt.Sprint("c", i), fmt.Sprintf(`{"n":%d}`, i))
	}
	if s := p.awaitedCommand("d-1", "c0", "queued"); !strings.Contains(s.Why, "away") {
		t.Errorf("it waits because %q", s.Why)
	}
	for i := range 3 {
		got := device("mosquitto_sub", "-c", "-t", "device/d-1/command/+/+", "-C", "1", "-W", "60", "-F", "%t %p")
		topic, data, _ := strings.Cut(got, " ")
		if want := fmt.Sprintf("device/d-1/command/open/c%d", i); topic != want || data != fmt.Sprintf(`{"n":%d}`, i) {
			t.Fatalf("the device gets %q; want %s", got, want)
		}
		device("mosquitto_pub", "-t", topic+"/reply", "-m", fmt.Sprintf(`{"ok":%t}`, i != 1))
		s := p.awaitedCommand("d-1", fmt.Sprint("c", i), "replied", "failed")
		if (s.State == "failed") != (i == 1) || s.Reply == nil {
			t.Errorf("it ended as %+v", s)
		}
	}
	if out, code := p.naru("command", "show", "d-1", "c1"); code != 2 || !strings.Contains(out, "the device says no") {
		t.Errorf("show of a failed one exits with %d: %s", code, out)
	}
	p.settled(0)
	p.stop()
}

func TestCommandExpiresAndSaysWhy(t *testing.T) {
	p := newPlatform(t)
	p.start()
	out, code := p.naru("command", "send", "d-9", "open", "--id", "c1", "--ttl", "1s", "--wait", "30s")
	if code != 2 || !strings.Contains(out, "expired") || !strings.Contains(out, "the device was away, and never seen") {
		t.Errorf("send exits with %d: %s", code, out)
	}
	p.send("d-9", "c2")
	if out, code := p.naru("why", "command", "d-9", "c2"); code != 2 || !strings.Contains(out, "away") {
		t.Errorf("why exits with %d: %s", code, out)
	}
	if out, code := p.naru("command", "cancel", "d-9", "c2"); code != 0 || !strings.Contains(out, "cancelled") {
		t.Errorf("cancel exits with %d: %s", code, out)
	}
	if out, code := p.naru("command", "cancel", "d-9", "c2"); code != 1 {
		t.Errorf("cancelled twice: %d %s", code, out)
	}
	if out, code := p.naru("command", "show", "d-9", "c3"); code != 1 || !strings.Contains(out, "naru command list") {
		t.Errorf("show of none exits with %d: %s", code, out)
	}
	var l command.List
	if p.json(&l, "command", "list", "--device", "d-9"); len(l.Commands) != 2 || l.Commands[0].ID != "c2" {
		t.Errorf("listed are %+v", l.Commands)
	}
	p.stop()
}

// TestRuleCommandAndAnswerAreOneTrace: what a simulated device measures makes a rule command it, and it answers.
func TestRuleCommandAndAnswerAreOneTrace(t *testing.T) {
	rules := t.TempDir()
	rule := `{"sql":"SELECT seq FROM 'device/sim-0/telemetry' WHERE seq = 5","actions":[{"command":{"device":"sim-0","name":"ping","ttl":"5m"}}]}`
	if err := os.WriteFile(filepath.Join(rules, "ping.json"), []byte(rule), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "naru.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "service_platform.rule:\n  rules_dir: %s\n", rules), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t, "--config", config, "--sim", "1")
	p.start()
	var l command.List
	for until := time.Now().Add(time.Minute); len(l.Commands) == 0; {
		if p.json(&l, "command", "list", "--device", "sim-0", "--state", "replied"); time.Now().After(until) {
			p.json(&l, "command", "list")
			t.Fatalf("no command is answered: %+v", l)
		}
	}
	x := l.Commands[0]
	if x.Name != "ping" || x.Depth != 1 || !strings.Contains(x.Source, "rule=ping") {
		t.Errorf("the command is %+v", x)
	}
	topic := "device.sim-0.command.ping." + x.ID
	var out string
	for until := time.Now().Add(time.Minute); ; {
		missing := ""
		out, _ = p.naru("trace", x.Trace.String())
		for _, subject := range []string{"device.sim-0.telemetry", topic, "service_platform.command.release.", topic + ".reply", "service_platform.command.ended.sim-0"} {
			if !strings.Contains(out, subject) {
				missing = subject
			}
		}
		if missing == "" {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("%s is not in the trace:\n%s", missing, out)
		}
	}
	p.stop()
}

// wisher is a device of MQTT 3.1.1 with a session that is kept. With QoS 2 it counts what it has begun once, as it should.
type wisher struct {
	t    *testing.T
	addr string
	id   string
	qos  byte
	conn net.Conn
	r    *bufio.Reader
	seen []string // command ids, as they came
	done []string // topics of commands whose handshake of QoS 2 is over
	open map[uint16]string
}

func newWisher(t *testing.T, id string, qos byte, addr string) *wisher {
	return &wisher{t: t, id: id, qos: qos, addr: addr, open: map[uint16]string{}}
}

// connect tries until it is let in, and subscribes where it has no session yet.
func (w *wisher) connect() {
	w.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(time.Minute); ; <-tick.C {
		if time.Now().After(until) {
			w.t.Fatal("the device is not let in")
		}
		c, err := net.DialTimeout("tcp", w.addr, 5*time.Second)
		if err != nil {
			continue
		}
		w.conn, w.r = c, bufio.NewReader(c)
		hello := packet.Connect{Version: packet.V311, ClientID: w.id, KeepAlive: 60}
		if _, err := c.Write(hello.Append(nil)); err != nil {
			continue
		}
		h, body, err := w.next()
		if err != nil || h.Type != packet.CONNACK || body[1] != 0 {
			c.Close()
			continue
		}
		if body[0]&1 == 0 {
			sub := packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "device/" + w.id + "/command/+/+", QoS: w.qos}}}
			if _, err := c.Write(sub.Append(nil, packet.V311)); err != nil {
				continue
			}
		}
		return
	}
}

func (w *wisher) next() (h packet.Header, body []byte, err error) {
	_ = w.conn.SetReadDeadline(time.Now().Add(time.Minute))
	var buf []byte
	for {
		h, start, total, _, ferr := packet.Frame(buf, 0)
		if ferr != nil {
			return h, nil, ferr
		}
		if total > 0 {
			return h, buf[start:total], nil
		}
		b, err := w.r.ReadByte()
		if err != nil {
			return h, nil, err
		}
		buf = append(buf, b)
	}
}

// hear waits for a command, which is not acknowledged yet.
func (w *wisher) hear() packet.Publish {
	w.t.Helper()
	for {
		h, body, err := w.next()
		if err != nil {
			w.t.Fatalf("the device hears nothing more behind %v: %v", w.seen, err)
		}
		var m packet.Publish
		if h.Type != packet.PUBLISH {
			continue
		}
		if err := m.Decode(h, body, packet.V311); err != nil {
			w.t.Fatal(err)
		}
		m.Topic = strings.Clone(m.Topic)
		w.seen = append(w.seen, m.Topic[strings.LastIndexByte(m.Topic, '/')+1:])
		return m
	}
}

// goes goes on with commands of QoS 2 until a packet of that type has come, or where the device says it has gone out.
func (w *wisher) goes(until packet.Type) {
	w.t.Helper()
	say := func(kind packet.Type, id uint16) bool {
		_, _ = w.conn.Write((&packet.Ack{Type: kind, ID: id}).Append(nil, packet.V311)) // a connection that is gone ends the next read
		return kind == until
	}
	for {
		h, body, err := w.next()
		if err != nil {
			w.t.Fatalf("the device hears nothing more behind %v: %v", w.seen, err)
		}
		switch h.Type {
		case packet.PUBLISH:
			var m packet.Publish
			if err := m.Decode(h, body, packet.V311); err != nil || m.QoS != 2 {
				w.t.Fatalf("%+v (%v)", m, err)
			}
			if w.open[m.ID] == "" {
				w.open[m.ID] = strings.Clone(m.Topic)
				w.seen = append(w.seen, w.open[m.ID][strings.LastIndexByte(m.Topic, '/')+1:])
			}
			if until == packet.PUBLISH || say(packet.PUBREC, m.ID) {
				return
			}
		case packet.PUBREL:
			if until == packet.PUBREL {
				return
			}
			id := uint16(body[0])<<8 | uint16(body[1])
			if topic := w.open[id]; topic != "" {
				w.done = append(w.done, topic)
				delete(w.open, id)
			}
			if say(packet.PUBCOMP, id) {
				return
			}
		}
	}
}

// alone says that the device has nothing more than what it has heard: the broker has answered it since.
func (w *wisher) alone() {
	w.t.Helper()
	if _, err := w.conn.Write(packet.AppendPingreq(nil)); err != nil {
		w.t.Fatal(err)
	}
	for {
		h, body, err := w.next()
		switch {
		case err != nil:
			w.t.Fatal(err)
		case h.Type == packet.PINGRESP:
			return
		case h.Type == packet.PUBLISH:
			w.t.Fatalf("%s has a command in hand and is given another one: %q", w.id, body)
		}
	}
}

// answers answers a command by its topic.
func (w *wisher) answers(topic string) {
	w.t.Helper()
	reply := packet.Publish{QoS: 0, Topic: topic + "/reply", Payload: []byte(`{"ok":true}`)}
	if _, err := w.conn.Write(reply.Append(nil, packet.V311)); err != nil {
		w.t.Fatal(err)
	}
}

// came are the ids of the commands in the order in which they came first.
func (w *wisher) came() (first []string) {
	for _, id := range w.seen {
		if !slices.Contains(first, id) {
			first = append(first, id)
		}
	}
	return first
}

// do acknowledges a command and answers it.
func (w *wisher) do(m packet.Publish) {
	w.t.Helper()
	if _, err := w.conn.Write(packet.AppendPuback(nil, m.ID)); err != nil {
		w.t.Fatal(err)
	}
	w.answers(m.Topic)
}

// TestCommandsSurviveSIGKILLBeforeTheirAcknowledgement kills the platform twenty times while a device has a command in hand that it has
// not acknowledged. Each comes at least once, in order, and has its answer in the end.
func TestCommandsSurviveSIGKILLBeforeTheirAcknowledgement(t *testing.T) {
	const rounds = 20
	p := newPlatform(t)
	p.start()
	w := newWisher(t, "d-1", 1, p.plain)
	w.connect()
	var want []string
	for round := range rounds {
		for _, id := range []string{fmt.Sprintf("%02d-a", round), fmt.Sprintf("%02d-b", round)} {
			p.send("d-1", id)
			want = append(want, id)
		}
		m := w.hear()
		p.kill()
		w.conn.Close()
		p.start()
		w.connect()
		for _, id := range want[2*round:] {
			for {
				m = w.hear()
				w.do(m)
				if strings.HasSuffix(m.Topic, "/"+id) {
					break
				}
			}
		}
		p.awaitedCommand("d-1", want[2*round+1], "replied") // and so is the one before it
		t.Logf("round %d: it came %d times", round, len(w.seen))
	}
	if first := w.came(); !slices.Equal(first, want) {
		t.Errorf("the device got %v; want %v", first, want)
	}
	for _, id := range want {
		p.awaitedCommand("d-1", id, "replied")
	}
	t.Logf("%d commands came %d times", len(want), len(w.seen))
	for _, l := range p.settled(0) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	p.stop()
}

// TestCommandsOfQoS2AreDeliveredOnceThroughSIGKILL kills the platform in each part of the handshake by turns. A device that keeps QoS 2 gets each
// command once, and each is told to be delivered, whatever the acknowledgement's fate was.
func TestCommandsOfQoS2AreDeliveredOnceThroughSIGKILL(t *testing.T) {
	parts := []packet.Type{packet.PUBLISH, packet.PUBREC, packet.PUBREL, packet.PUBCOMP}
	p := newPlatform(t)
	p.start()
	w := newWisher(t, "d-1", 2, p.plain)
	w.connect()
	var want []string
	for round := range 4 * len(parts) {
		ids := []string{fmt.Sprintf("%02d-a", round), fmt.Sprintf("%02d-b", round)}
		for _, id := range ids {
			p.send("d-1", id, "--qos", "2")
		}
		want = append(want, ids...)
		w.goes(parts[round%len(parts)])
		p.kill()
		w.conn.Close()
		p.start()
		w.connect()
		for len(w.done) < len(want) {
			w.goes(packet.PUBCOMP)
		}
		for _, id := range ids {
			until(t, id+" is told to be delivered", func() bool {
				var s command.Shown
				p.json(&s, "command", "show", "d-1", id)
				if !s.Times.Sent.IsZero() {
					t.Fatalf("%s is told to be unconfirmed: %+v", id, s)
				}
				return s.State == "delivered"
			})
		}
		w.alone()
		for _, topic := range w.done[2*round:] {
			w.answers(topic)
		}
		for _, id := range ids {
			p.awaitedCommand("d-1", id, "replied")
		}
	}
	if !slices.Equal(w.seen, want) {
		t.Errorf("the device got %v; want %v", w.seen, want)
	}
	for _, l := range p.settled(0) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	p.stop()
}

// TestCommandsGoAlongWithTheirDeviceFromNodeToNode has a device with QoS 1 and one with QoS 2 at one of two nodes, and what they are to do said at
// the other. The node is killed while they have a command in hand, and more of theirs wait; they go on at the other one.
func TestCommandsGoAlongWithTheirDeviceFromNodeToNode(t *testing.T) {
	bus := &node{Name: "bus", Dir: t.TempDir(), Port: port(t)}
	bus.start(t)
	t.Cleanup(bus.kill)
	const conf = "bus:\n  replicas: 1\n"
	keeps := configured(t, bus.url(), conf, "service_platform.command", "service_platform.x509", "operator.journal", "operator.ledger")
	keeps.start()
	var nodes []*platform
	for range 2 {
		server := filepath.Join(keeps.data, "service_platform.x509", "server")
		p := configured(t, bus.url(), fmt.Sprintf("%sserver_cert: %s.crt\nserver_key: %s.key\nservice_platform.broker:\n  cluster: auto\n  policies:\n    apps: {for: {listeners: [plain]}, publish: {allow: ['device/+/command/#']}}\n",
			conf, server, server), "service_platform.broker")
		p.start()
		nodes = append(nodes, p)
	}
	defer func() {
		if t.Failed() {
			t.Logf("first:\n%s\nsecond:\n%s\ncommands:\n%s", nodes[0].out, nodes[1].out, keeps.out)
		}
	}()
	one, two := newWisher(t, "d-1", 1, nodes[0].plain), newWisher(t, "d-2", 2, nodes[0].plain)
	both := []*wisher{one, two}
	for _, w := range both {
		w.connect()
	}
	state := func(w *wisher, id string, wait ...string) (s command.Shown) {
		t.Helper()
		keeps.json(&s, append([]string{"command", "show", w.id, id}, wait...)...)
		return s
	}
	var want []string
	for round := range 4 {
		here, there := nodes[round%2], nodes[1-round%2]
		ids := []string{fmt.Sprintf("%d-a", round), fmt.Sprintf("%d-b", round), fmt.Sprintf("%d-c", round)}
		want = append(want, ids...)
		for _, id := range ids {
			for _, w := range both {
				host, port, _ := strings.Cut(there.plain, ":")
				say := []string{"-h", host, "-p", port, "-V", "mqttv311", "-i", "app", "-q", fmt.Sprint(w.qos), "-t", "device/" + w.id + "/command/open/" + id, "-m", `{"n":1}`}
				if out, err := exec.Command("mosquitto_pub", say...).CombinedOutput(); err != nil {
					t.Fatalf("mosquitto_pub: %v\n%s", err, out)
				}
			}
		}
		one.hear()
		two.goes([]packet.Type{packet.PUBLISH, packet.PUBREL}[round/2])
		for _, w := range both {
			w.alone()
		}
		here.kill()
		for _, w := range both {
			w.conn.Close()
			w.addr = there.plain
			late := fmt.Sprintf("late-%d", round) // nobody is there while it lives
			var s command.Shown
			keeps.json(&s, "command", "send", w.id, "open", "--id", late, "--ttl", "1s")
			until(t, late+" expires", func() bool { return state(w, late, "--wait", "5s").State == "expired" })
			w.connect()
		}
		for _, id := range ids {
			for {
				m := one.hear()
				one.alone()
				one.do(m)
				if strings.HasSuffix(m.Topic, "/"+id) {
					break
				}
			}
		}
		for len(two.done) < len(want) {
			two.goes(packet.PUBCOMP)
			two.answers(two.done[len(two.done)-1])
		}
		for _, w := range both {
			for _, id := range ids {
				until(t, id+" of "+w.id+" is answered", func() bool { return state(w, id, "--wait", "5s").State == "replied" })
			}
		}
		here.start()
		t.Logf("round %d: the commands came %d and %d times", round, len(one.seen), len(two.seen))
	}
	if first := one.came(); !slices.Equal(first, want) {
		t.Errorf("the device with QoS 1 got %v; want %v", first, want)
	}
	if !slices.Equal(two.seen, want) {
		t.Errorf("the device with QoS 2 got %v; want %v", two.seen, want)
	}
	for _, l := range keeps.settled(0) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
}

package broker

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/message/operator"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/policy"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// registered is what a gate knows of a device.
type registered struct {
	policy string
	groups []string
	site   string
}

func (g *gate) AdmitPeer(ctx context.Context, _ string, s tls.ConnectionState) (device, claim string, err error) {
	device, err = g.Admit(ctx, s.PeerCertificates[0], nil)
	return device, "", err
}

func (g *gate) RecheckPeer(ctx context.Context, _, _ string, s tls.ConnectionState) error {
	_, err := g.Admit(ctx, s.PeerCertificates[0], nil)
	return err
}

func (g *gate) RefusePeer(string, string, tls.ConnectionState, string, error) {}
func (g *gate) ClaimMayPublish(string) bool                                   { return false }
func (g *gate) ClaimMaySubscribe(string) bool                                 { return false }
func (g *gate) ProvisionPeer(context.Context, string, string, *x509.Certificate, string, []byte) (string, []byte) {
	return "", nil
}

func (g *gate) DeviceOf(leaf *x509.Certificate) (policy string, groups []string, attributes map[string]string, known bool) {
	v, _ := g.known.Load(leaf.Subject.CommonName)
	d, _ := v.(registered)
	return d.policy, d.groups, map[string]string{"site": d.site}, true
}

// register changes what is registered of a device, as an operator does.
func (r *rig) register(name string, d registered) {
	r.gate.known.Store(name, d)
	r.gate.changed(name)
}

// device connects with a certificate of that name.
func (r *rig) device(name string, c packet.Connect) *peer {
	r.t.Helper()
	p := r.knock(name)
	if a := p.connect(c); a.Code != 0 {
		r.t.Fatalf("CONNECT of %s is answered with %s: %s", name, a.Code, a.Properties.ReasonString)
	}
	return p
}

func (r *rig) knock(name string) *peer {
	r.t.Helper()
	nc, err := tls.Dial("tcp", r.tls, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate(r.t, name)}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { nc.Close() })
	return &peer{t: r.t, Conn: nc, r: bufio.NewReader(nc)}
}

// awaited reads a log until a message is as wanted.
func (r *rig) awaited(log, what string, want func(*message.Message) bool) {
	r.t.Helper()
	l, err := r.bus.Log(r.t.Context(), log, bus.LogOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	reader, err := l.Reader(r.t.Context(), bus.Position{Generation: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(r.t.Context(), 45*time.Second)
	defer cancel()
	for {
		s, err := reader.Next(ctx)
		if err != nil {
			r.t.Fatalf("%s: not in log %s", what, log)
		}
		var m message.Message
		for c := s.Batch.Cursor(); c.Next(&m); {
			if want(&m) {
				return
			}
		}
	}
}

// refusedWith waits for a refusal that says so.
func (r *rig) refusedWith(reason message.Reason, text string) (detail string) {
	r.t.Helper()
	r.awaited(message.Operator, "a refusal that says "+text, func(m *message.Message) bool {
		var x operator.Refusal
		if json.Unmarshal(m.Data, &x) != nil || x.Reason != reason || !strings.Contains(x.Detail, text) {
			return false
		}
		detail = x.Detail
		return true
	})
	return detail
}

// firstOffline waits until a device is told to be gone, and gives the session of which that is told.
func (r *rig) firstOffline(name string) (gone message.ID) {
	r.t.Helper()
	r.awaited(message.Device, name+" going", func(m *message.Message) bool {
		var x device.Presence
		if m.Subject != device.PresenceSubject(name) || json.Unmarshal(m.Data, &x) != nil || x.Online {
			return false
		}
		gone = x.Session
		return true
	})
	return gone
}

// session is the one of a client, as operators see it.
func (r *rig) session(client string) session.Show {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/broker/sessions?client="+client, nil))
	var list []session.Show
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil || len(list) != 1 {
		r.t.Fatalf("%v: %s", err, w.Body)
	}
	return list[0]
}

// policies reads what a user would write.
func policies(t *testing.T, text string) func(*Config) {
	t.Helper()
	var all map[string]policy.Policy
	if err := yaml.UnmarshalWithOptions([]byte(text), &all, yaml.Strict(), yaml.UseJSONUnmarshaler()); err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.Policies = all }
}

// told is the answer to a PUBLISH of QoS 1 with its reason in words.
func (p *peer) told(topic string) (packet.ReasonCode, string) {
	p.t.Helper()
	p.write(publishAs(p.v, publish(topic, "{}", 1, 1)))
	h, body := p.reply()
	var a packet.Ack
	if err := a.Decode(h, body, p.v); err != nil || h.Type != packet.PUBACK {
		p.t.Fatalf("%s %x (%v); want PUBACK", h.Type, body, err)
	}
	return a.Code, a.Properties.ReasonString
}

func publishAs(v packet.Version, m packet.Publish) []byte { return m.Append(nil, v) }

// asked is the answer to a SUBSCRIBE, with the reason in words.
func (p *peer) asked(filter string) (packet.ReasonCode, string) {
	p.t.Helper()
	p.write((&packet.Subscribe{ID: 7, Subscriptions: []packet.Subscription{{Filter: filter, QoS: 1}}}).Append(nil, p.v))
	h, body := p.next()
	for h.Type == packet.PUBLISH { // what was said a moment ago may match, and come before the answer (MQTT 5 §3.8.4)
		h, body = p.next()
	}
	var a packet.SubAnswer
	if err := a.Decode(h, body, p.v); err != nil || h.Type != packet.SUBACK {
		p.t.Fatalf("%s %x (%v); want SUBACK", h.Type, body, err)
	}
	return a.Codes[0], a.Properties.ReasonString
}

// TestADeviceForgesNothing asks the broker for what only the platform says, in every spelling, and reads the rule in the
// answer.
func TestADeviceForgesNothing(t *testing.T) {
	r := newRig(t, policies(t, `
gateways: {for: {groups: [gateways]}, publish: {allow: [device.>, "$aws/rules/hot/#"]}, subscribe: {allow: [device.>]}}
`))
	r.register("g-1", registered{groups: []string{"gateways"}})
	d, g := r.device("d-1", keeping("d-1", true, 0)), r.device("g-1", keeping("g-1", true, 0))
	for _, c := range []struct {
		by    *peer
		topic string
		rule  string // that refuses it; empty where it is taken
	}{
		{d, "device/d-1/telemetry", ""},
		{d, "device/d-1/presence", "denied by policy device: publish.deny"},
		{d, "device/d-2/telemetry", "allowed by none of its policies (device)"},
		{d, "device/d-1/command/open/c-1", "denied by policy device: publish.deny"},
		{d, "device/d-1/twin/update/accepted", "device.*.twin.update.>"},
		{d, "$aws/things/d-1/shadow/update/accepted", "device.*.twin.update.>"},
		{d, "$aws/things/d-2/shadow/update", "allowed by none"},
		{d, "$aws/things/d-1/jobs/get", "allowed by none"},
		{d, "$aws/rules/hot/reading", "allowed by none"},
		{g, "$aws/rules/hot/reading", ""},
		{g, "$aws/rules/cold/reading", "allowed by none"},
		{d, "$SYS/broker/uptime", "allowed by none"},
		{g, "device/d-2/telemetry", ""},
		{g, "device/d-2/presence", "device.*.presence"},
		{g, "$aws/things/d-2/shadow/get/accepted", "device.*.twin.get.>"},
	} {
		code, why := c.by.told(c.topic)
		if (code == 0) != (c.rule == "") || !strings.Contains(why, c.rule) {
			t.Errorf("%s is answered with %s, %q; want %q", c.topic, code, why, c.rule)
		}
	}
	for _, c := range []struct{ filter, rule string }{
		{"device/d-1/#", ""}, {"$aws/things/d-1/shadow/#", ""},
		{"device/+/telemetry", "allowed by none"}, {"#", "allowed by none"}, {"$share/g/device/#", "allowed by none"},
		{"$aws/things/+/shadow/#", "allowed by none"}, {"$aws/things/d-2/shadow/update/delta", "allowed by none"},
		{"$SYS/#", "allowed by none"}, {"device/d-1/presence", "denied by policy device: subscribe.deny"},
	} {
		code, why := d.asked(c.filter)
		if code.Failed() != (c.rule != "") || !strings.Contains(why, c.rule) {
			t.Errorf("%s is answered with %s, %q; want %q", c.filter, code, why, c.rule)
		}
	}
	will := keeping("d-1", true, 0)
	will.Will = &packet.Will{Topic: "device/d-1/presence", Payload: []byte(`{"online":true}`), QoS: 1}
	if a := r.knock("d-1").connect(will); a.Code != packet.NotAuthorized || !strings.Contains(a.Properties.ReasonString, "publish.deny") {
		t.Errorf("a forged will is answered with %s, %q", a.Code, a.Properties.ReasonString)
	}
	r.refused(message.ACLDenied)
}

// TestEveryKindOfDenialIsTold, not only the first one of a connection.
func TestEveryKindOfDenialIsTold(t *testing.T) {
	r := newRig(t, nil)
	d := r.device("d-1", keeping("d-1", true, 0))
	topics := []string{"device/d-1/presence", "device/d-1/twin/get/accepted", "device/d-2/telemetry"}
	for _, topic := range topics {
		d.told(topic)
	}
	d.asked("device/+/telemetry")
	for _, want := range append(topics, "subscribe to device.*.telemetry") {
		r.refusedWith(message.ACLDenied, strings.ReplaceAll(want, "/", "."))
	}
}

// TestGroupsDecideAsTheyAreRegisteredNow has a device join and leave a group while it is connected.
func TestGroupsDecideAsTheyAreRegisteredNow(t *testing.T) {
	r := newRig(t, policies(t, `
pumps: {for: {groups: [pumps]}, publish: {allow: ["device/${device}/pump/#"]}, subscribe: {allow: ["device/${attribute.site}/news"]}}
quarantine: {for: {groups: [quarantine]}, publish: {deny: [">"]}, subscribe: {deny: [">"]}}
`))
	d := r.device("d-1", keeping("d-1", true, 3600))
	if code, _ := d.told("device/d-1/pump/speed"); code != packet.NotAuthorized {
		t.Errorf("without its group: %s", code)
	}
	r.register("d-1", registered{groups: []string{"pumps"}, site: "seoul"})
	if code, why := d.told("device/d-1/pump/speed"); code != 0 {
		t.Errorf("with its group: %s, %s", code, why)
	}
	if code, why := d.asked("device/seoul/news"); code.Failed() {
		t.Errorf("with its attribute: %s, %s", code, why)
	}
	if code, _ := d.asked("device/busan/news"); !code.Failed() {
		t.Error("another's attribute counts")
	}
	r.register("d-1", registered{groups: []string{"pumps", "quarantine"}, site: "seoul"})
	if code, why := d.told("device/d-1/pump/speed"); code != packet.NotAuthorized || !strings.Contains(why, "policy quarantine") {
		t.Errorf("in quarantine: %s, %s", code, why)
	}
	// The subscriptions are taken away, which is told.
	r.refusedWith(message.ACLDenied, "a subscription of its session ends")
	r.register("d-1", registered{policy: "no-such"})
	d.ended()
	if got := r.refusedWith(message.ACLDenied, "no-such"); !strings.Contains(got, "there are device, open") {
		t.Errorf("the refusal says %q", got)
	}
	if a := r.knock("d-1").connect(keeping("d-1", true, 0)); a.Code != packet.NotAuthorized || !strings.Contains(a.Properties.ReasonString, "no-such") {
		t.Errorf("a policy that is not there: %s, %s", a.Code, a.Properties.ReasonString)
	}
}

// TestWhatIsDeniedIsWithheldHoweverItComes: live, retained, from a queue, for a member of a group.
func TestWhatIsDeniedIsWithheldHoweverItComes(t *testing.T) {
	r := newRig(t, policies(t, `
readers:
  for: {groups: [readers]}
  subscribe: {allow: [device.>], deny: ["device/+/telemetry/secret/#"]}
all:
  for: {groups: [all]}
  subscribe: {allow: [device.>]}
`))
	r.register("g-1", registered{groups: []string{"readers"}})
	r.register("g-2", registered{groups: []string{"readers"}})
	r.register("g-3", registered{groups: []string{"all"}})
	d := r.device("d-1", keeping("d-1", true, 0))
	retained := publish("device/d-1/telemetry/secret/a", "retained and denied", 1, 1)
	retained.Retain = true
	d.send(retained)
	retained = publish("device/d-1/telemetry/open", "retained", 1, 2)
	retained.Retain = true
	d.send(retained)

	live := r.device("g-1", keeping("g-1", true, 0))
	away := r.device("g-2", keeping("g-2", true, 3600))
	for _, p := range []*peer{live, away} {
		p.subscribe(packet.Subscription{Filter: "device/d-1/#", QoS: 1})
		if m := p.hear(); string(m.Payload) != "retained" {
			t.Errorf("%q came of what is retained", m.Payload)
		} else {
			p.write((&packet.Ack{Type: packet.PUBACK, ID: m.ID}).Append(nil, p.v))
		}
	}
	away.write((&packet.Disconnect{}).Append(nil, away.v))
	away.ended()
	d.send(publish("device/d-1/telemetry/secret/b", "denied", 1, 3))
	d.send(publish("device/d-1/telemetry/x", "allowed", 1, 4))
	if m := live.hear(); string(m.Payload) != "allowed" {
		t.Errorf("%q came alive", m.Payload)
	}
	away = r.device("g-2", keeping("g-2", false, 3600))
	if m := away.hear(); string(m.Payload) != "allowed" {
		t.Errorf("%q came from the queue", m.Payload)
	}

	// Of a group, the member that may hear it gets all that the other may not, and they share the rest.
	member, other := r.device("g-1", keeping("g-1", true, 0)), r.device("g-3", keeping("g-3", true, 0))
	for _, p := range []*peer{member, other} {
		p.subscribe(packet.Subscription{Filter: "$share/team/device/d-1/telemetry/#"})
	}
	const n = 10
	for i := range n {
		d.send(publish("device/d-1/telemetry/secret/c", fmt.Sprint(i), 1, uint16(10+i)))
	}
	for i := range n {
		if m := other.hear(); string(m.Payload) != fmt.Sprint(i) {
			t.Errorf("%s came to the member that may hear it; want %d", m.Payload, i)
		}
	}
	member.nothing()
}

// TestARestoredSubscriptionIsJudgedAgain when its client comes back, and so is what waits from it.
func TestARestoredSubscriptionIsJudgedAgain(t *testing.T) {
	r := newRig(t, policies(t, `wide: {for: {groups: [wide]}, subscribe: {allow: [device.>]}}`))
	r.register("g-1", registered{groups: []string{"wide"}})
	g, d := r.device("g-1", keeping("g-1", true, 3600)), r.device("d-1", keeping("d-1", true, 0))
	g.subscribe(packet.Subscription{Filter: "device/+/telemetry", QoS: 1}, packet.Subscription{Filter: "device/g-1/#", QoS: 1})
	g.write((&packet.Disconnect{}).Append(nil, g.v))
	g.ended()
	d.send(publish("device/d-1/telemetry", "waits", 1, 1))
	r.register("g-1", registered{})
	g = r.device("g-1", keeping("g-1", false, 3600))
	r.refusedWith(message.ACLDenied, "a subscription of its session ends")
	d.send(publish("device/d-1/telemetry", "live", 1, 2))
	g.send(publish("device/g-1/telemetry", "its own", 1, 3))
	if m := g.hear(); string(m.Payload) != "its own" {
		t.Errorf("%q came; want what it still may hear", m.Payload)
	}
	if x := r.session("g-1"); len(x.Subscriptions) != 1 || x.Subscriptions[0].Filter != "device/g-1/#" {
		t.Errorf("its session has %+v", x)
	}
}

// TestADeviceHasTheClientIDsThatPoliciesGiveIt, and is there until the last of its connections goes.
func TestADeviceHasTheClientIDsThatPoliciesGiveIt(t *testing.T) {
	r := newRig(t, policies(t, `phones: {for: {groups: [phones]}, client_ids: ["${device}-*"]}`))
	if a := r.knock("d-1").connect(keeping("d-1-app", true, 0)); a.Code != packet.ClientIDNotValid || !strings.Contains(a.Properties.ReasonString, "client_ids") {
		t.Errorf("another client id is answered with %s, %q", a.Code, a.Properties.ReasonString)
	}
	r.register("d-1", registered{groups: []string{"phones"}})
	app := r.device("d-1", keeping("d-1-app", true, 0))
	if a := r.knock("d-1").connect(keeping("d-2-app", true, 0)); a.Code != packet.ClientIDNotValid {
		t.Errorf("another device's is answered with %s", a.Code)
	}
	p := r.knock("d-1")
	if a := p.connect(keeping("", true, 0)); a.Code != 0 || a.Properties.AssignedClientID != "d-1" {
		t.Errorf("without one it is answered with %s and called %q", a.Code, a.Properties.AssignedClientID)
	}
	if code, why := app.told("device/d-1/telemetry"); code != 0 {
		t.Errorf("by its other client id it may not speak as itself: %s", why)
	}
	list := r.stored(1)
	if list[0].Device != "d-1" || list[0].Source != message.ClientSource("d-1", "d-1-app") {
		t.Errorf("its message is of %q, by %s", list[0].Device, list[0].Source)
	}
	last := r.session("d-1-app").ID
	p.leaves()
	r.eventually(func() string { // what the first has to tell is told behind the end of its connection
		if n, leaving := len(r.connections("?device=d-1")), strings.Count(stacks(), "broker.(*conn).leave("); n != 1 || leaving > 0 {
			return fmt.Sprintf("it has %d connections, and %d are ending", n, leaving)
		}
		return ""
	})
	app.leaves()
	if gone := r.firstOffline("d-1"); gone != last {
		t.Error("the device was told to be gone with the first of its two connections")
	}
}

// TestAGatewaySpeaksForADeviceInThatDevicesOrder: the message is the device's, and its source the gateway.
func TestAGatewaySpeaksForADeviceInThatDevicesOrder(t *testing.T) {
	r := newRig(t, policies(t, `gateways: {for: {groups: [gateways]}, publish: {allow: [device.*.telemetry]}}`))
	r.register("g-1", registered{groups: []string{"gateways"}})
	g := r.device("g-1", keeping("g-1", true, 0))
	if code, why := g.told("device/d 7/telemetry"); code != 0 {
		t.Fatal(why)
	}
	if m := r.stored(1)[0]; m.Device != "d 7" || m.Source != "//naru/device/g-1" {
		t.Errorf("the message is of %q, by %s", m.Device, m.Source)
	}
}

func TestPoliciesAreCheckedWhenTheyAreRead(t *testing.T) {
	for want, change := range map[string]func(*Config){
		`policy "all" is not there; there are device, open`: func(c *Config) { c.Listeners = []Listener{{Address: "127.0.0.1:1", Policy: "all"}} },
		`there is no listener "fleeet"`:                     policies(t, `p: {for: {listeners: [fleeet]}, publish: {allow: [a]}}`),
		`there is no variable ${devise}`:                    policies(t, `p: {publish: {allow: ["device.${devise}.x"]}}`),
		`this name is a built-in policy's`:                  policies(t, `open: {publish: {allow: [a]}}`),
	} {
		c := Defaults
		change(&c)
		raw, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := With(nil).Build(component.Env{Catalog: catalog.Default()}, raw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

// Who registers devices is told which policies there are: those that may be named for one, of every node.
func TestPoliciesAreToldToWhoRegistersDevices(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Policies = map[string]policy.Policy{"pump": {Publish: policy.Rules{Allow: []string{"device.${device}.>"}}}}
		c.Listeners = []Listener{{Name: "own", Address: "127.0.0.1:0", Auth: "none", Policy: "open", Mount: "3rd_party.x", Refuse: []string{"a/#"}}}
	})
	known := names.NewKnown(r.bus, names.Policies, time.Now)
	for _, name := range []string{"device", "open", "pump"} {
		if err := known.Check(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if err := known.Check(t.Context(), "pmup"); err == nil || !strings.HasSuffix(err.Error(), `did you mean "pump"? There are device, open, pump`) {
		t.Errorf("it says %v", err)
	}
}

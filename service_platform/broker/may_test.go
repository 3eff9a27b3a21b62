package broker

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// RegisteredDevice has every name registered that the test has, or that begins with d.
func (g *gate) RegisteredDevice(name string) (policy string, groups []string, attributes map[string]string, known bool) {
	v, known := g.known.Load(name)
	d, _ := v.(registered)
	return d.policy, d.groups, map[string]string{"site": d.site}, known || strings.HasPrefix(name, "d")
}

// ask asks as `naru mqtt may` does.
func (r *rig) ask(listener, who, client, action, topic string) (m May, status int, text string) {
	r.t.Helper()
	q := url.Values{"listener": {listener}, "who": {who}, "client_id": {client}, "action": {action}, "topic": {topic}}
	w := httptest.NewRecorder()
	r.host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/broker/may?"+q.Encode(), nil))
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &m); err != nil {
			r.t.Fatal(err)
		}
	}
	return m, w.Code, w.Body.String()
}

const mayPolicies = `
pumps:
  for: {groups: [pumps]}
  publish: {allow: ["device/${device}/pump/#", "device/${attribute.site}/door"]}
  subscribe: {allow: ["device/${attribute.site}/announcements/#"]}
gateways:
  for: {groups: [gateways]}
  client_ids: ["${device}-*"]
  publish: {allow: [device.*.telemetry.>, "service_platform/#", "$SYS/#"]}
  subscribe: {allow: [device.>], deny: ["device/+/secret/#"]}
quarantine:
  for: {groups: [quarantine]}
  publish: {deny: [">"]}
  subscribe: {deny: [">"]}
shadowless:
  for: {groups: [shadowless]}
  publish: {deny: ["$aws/things/#"]}
staff:
  for: {listeners: [office], users: [ann]}
  publish: {allow: ["notes/${username}/#"]}
  subscribe: {allow: ["notes/#", "$SYS/#"], deny: ["notes/+/private"]}
own:
  publish: {allow: ["device/${device}/#"]}
`

// mayTable is: listener and client (a device, a user, a client id; with another client id behind `as`), what, topic, whether
// it may, and part of the reason or of the rule that decides.
const mayTable = `
# a device says what the catalog says that devices say, on its own subtree
devices d-1 | publish | device/d-1/telemetry | yes | policy device
devices d-1 | publish | device/d-1/telemetry/engine | yes | policy device
devices d-1 | publish | device/d-1/event/door | yes | policy device
devices d-1 | publish | device/d-1/twin/update | yes | policy device
devices d-1 | publish | device/d-1/command/open/c1/reply | yes | policy device
devices d-1 | publish | device/d-1/diary | no | no policy
devices d-1 | publish | kitchen/lamp | no | no policy
devices d-1 | publish | /device/d-1/telemetry | no | no policy
devices d-1 | publish | device//telemetry | no | no policy
# forged identities: another's subtree, names that look alike, names with the grammar in them
devices d-1 | publish | device/d-2/telemetry | no | no policy
devices d-1 | publish | device/D-1/telemetry | no | no policy
devices d-1 | publish | device/d-1./telemetry | no | no policy
devices d-1 | publish | device/d-11/telemetry | no | no policy
devices d-1 | publish | device/d-/telemetry | no | no policy
devices d-1 | publish | device/*/telemetry | no | no policy
devices d-1 | publish | device/>/telemetry | no | no policy
devices d-1 | publish | device/${device}/telemetry | no | no policy
devices d-1 as d-2 | publish | device/d-1/telemetry | no | client id
devices d-1 as d-2 | subscribe | device/d-2/# | no | client id
devices d-1 as d-1-phone | publish | device/d-1/telemetry | no | client id
devices d* | publish | device/d*/telemetry | yes | policy device
devices d* | publish | device/d-1/telemetry | no | no policy
devices d.1 | publish | device/d.1/telemetry | yes | policy device
devices d.1 | publish | device/d/1/telemetry | no | no policy
# facts that only the platform tells
devices d-1 | publish | device/d-1/presence | no | device.*.presence
devices d-1 | publish | device/d-1/command/open/c1 | no | publish.deny
devices d-1 | publish | device/d-2/command/open/c1 | no | no policy
devices d-1 | publish | device/d-1/twin/update/accepted | no | twin.update
devices d-1 | publish | device/d-1/twin/get/rejected | no | twin.get
devices d-1 | publish | device/d-1/twin/update/delta | no | twin.update
devices d-1 | publish | operator/alarm/x | no | no policy
devices d-1 | publish | service_platform/x509/device/d-1 | no | no policy
devices d-gate | publish | service_platform/x509/device/d-1 | no | platform's own
devices d-gate | publish | $SYS/broker/uptime | no | platform's own
# forged spellings of AWS's shadows
devices d-1 | publish | $aws/things/d-1/shadow/update | yes | policy device
devices d-1 | publish | $aws/things/d-1/shadow/name/cfg/get | yes | policy device
devices d-1 | publish | $aws/things/d-2/shadow/update | no | no policy
devices d-1 | publish | $aws/things/d-1/shadow/update/accepted | no | twin.update
devices d-1 | publish | $aws/things/d-1/shadow/get/rejected | no | twin.get
devices d-1 | publish | $aws/things/d-1/shadow/name/cfg/update/delta | no | twin.name
devices d-1 | publish | $aws/things/d-1/jobs/get | no | no policy
devices d-1 | publish | $aws/things//shadow/update | no | no policy
devices d-1 | publish | $AWS/things/d-1/shadow/update | no | no policy
devices d-1 | publish | aws/things/d-1/shadow/update | no | no policy
devices d-1 | publish | $aws/things/d-1/shadow | no | no policy
devices d-1 | publish | $aws/certificates/create/json | no | no policy
devices d-bare | publish | $aws/things/d-bare/shadow/update | no | $aws/things/#
devices d-bare | publish | device/d-bare/twin/update | no | $aws/things/#
devices d-bare | publish | device/d-bare/telemetry | yes | policy device
devices d-1 | subscribe | $aws/things/d-1/shadow/# | yes | policy device
devices d-1 | subscribe | $aws/things/+/shadow/# | no | no policy
devices d-1 | subscribe | $aws/things/d-2/shadow/update/accepted | no | no policy
devices d-1 | subscribe | $aws/# | no | no policy
# it hears its own subtree
devices d-1 | subscribe | device/d-1/# | yes | policy device
devices d-1 | subscribe | $share/g/device/d-1/command/# | yes | policy device
devices d-1 | subscribe | $share/g/device/+/command/# | no | no policy
devices d-1 | subscribe | # | no | no policy
devices d-1 | subscribe | +/d-1/telemetry | no | no policy
devices d-1 | subscribe | device/d-1/presence | no | subscribe.deny
devices d-1 | subscribe | $SYS/# | no | no policy
devices d-1 | deliver | device/d-1/command/open/c1 | yes | policy device
devices d-1 | deliver | device/d-2/command/open/c1 | no | no policy
# groups, attributes, the registration's own policy
devices d-pump | publish | device/d-pump/pump/speed | yes | policy pumps
devices d-pump | publish | device/seoul/door | yes | policy pumps
devices d-pump | publish | device/busan/door | no | no policy
devices d-pump | subscribe | device/seoul/announcements/# | yes | policy pumps
devices d-pump | subscribe | device/+/announcements/# | no | no policy
devices d-1 | publish | device/d-1/pump/speed | no | no policy
devices d-gate as d-gate-7 | publish | device/d-9/telemetry/x | yes | policy gateways
devices d-gate as d-gates-7 | publish | device/d-9/telemetry/x | no | client id
devices d-gate | publish | device/d-9/presence | no | device.*.presence
devices d-gate | subscribe | device/# | yes | policy gateways
devices d-gate | subscribe | device/d-1/secret/x | no | secret
devices d-gate | deliver | device/d-1/secret/x | no | secret
devices d-own | publish | device/d-own/diary | yes | policy own
devices d-own | publish | device/d-own/presence | no | device.*.presence
devices d-lost | publish | device/d-lost/telemetry | no | "nowhere"
devices d-sick | publish | device/d-sick/telemetry | no | policy quarantine
devices d-sick | subscribe | device/d-sick/# | no | policy quarantine
# users, and an ordinary listener, in their own topics
office ann | publish | notes/ann/today | yes | policy staff
office ann | publish | notes/bob/today | no | no policy
office ann | subscribe | notes/# | yes | policy staff
office ann | subscribe | notes/+/private | no | notes/+/private
office ann | subscribe | $SYS/broker/uptime | yes | policy staff
office bob | publish | notes/bob/today | no | no policy
open any | publish | a//b. c/ | yes | policy open
open any | subscribe | $share/g/# | yes | policy open
open any | publish | secret/x | no | refused-at-open
open any | subscribe | secret/# | no | refused-at-open
open any | publish | $aws/things/d-1/shadow/update | no | no policy
open any | subscribe | $aws/things/d-1/shadow/# | no | no policy
open any | publish | $SYS/x | no | no policy
`

// TestMayAnswersWhatTheClientGets asks everything twice: `naru mqtt may`, and by a client that tries.
func TestMayAnswersWhatTheClientGets(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users")
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(users, []byte("ann:"+string(hash)+"\nbob:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, addr := open(t, func(l *Listener) { l.Refuse = []string{"secret/#"} })
	_, office := open(t)
	r := newRig(t, func(c *Config) {
		policies(t, mayPolicies)(c)
		conf(c)
		c.Listeners = append(c.Listeners, Listener{Name: "office", Address: office, Protocol: "mqtt", Auth: "password", UsersFile: users, Policy: "nothing", Mount: "3rd_party.office"})
		c.Policies["nothing"] = c.Policies["staff"]
		n := c.Policies["nothing"]
		n.For, n.Subscribe.Allow, n.Publish.Allow = nil, []string{"nothing"}, []string{"nothing"}
		c.Policies["nothing"] = n
	})
	for name, d := range map[string]registered{"d-pump": {groups: []string{"pumps"}, site: "seoul"}, "d-gate": {groups: []string{"gateways"}},
		"d-bare": {groups: []string{"shadowless"}}, "d-own": {policy: "own"}, "d-lost": {policy: "nowhere"}, "d-sick": {groups: []string{"quarantine"}}} {
		r.gate.known.Store(name, d)
	}
	peers := map[string]*peer{}
	come := func(listener, who, client string) *peer { // nil where it is not let in
		key := listener + " " + who + " " + client
		if p, there := peers[key]; there {
			return p
		}
		hello := packet.Connect{Version: packet.V5, CleanStart: true, ClientID: client}
		var p *peer
		switch listener {
		case "devices":
			p = r.knock(who)
			if client == "" {
				hello.ClientID = who
			}
		case "office":
			p = r.dial(office)
			hello.ClientID, hello.HasUserName, hello.UserName, hello.HasPassword, hello.Password = "id-"+who, true, who, true, []byte("secret")
		default:
			p = r.dial(addr)
			hello.ClientID = who
		}
		if a := p.connect(hello); a.Code != 0 {
			p = nil
		}
		peers[key] = p
		return p
	}
	asked := 0
	for line := range strings.Lines(mayTable) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		cells := strings.Split(line, " | ")
		if len(cells) != 5 {
			t.Fatalf("%q has %d cells", line, len(cells))
		}
		listener, rest, _ := strings.Cut(cells[0], " ")
		who, client, _ := strings.Cut(rest, " as ")
		want := cells[3] == "yes"
		asked++
		m, status, text := r.ask(listener, who, client, cells[1], cells[2])
		if status != http.StatusOK {
			t.Errorf("%s\n\t%d %s", line, status, text)
			continue
		}
		if m.Allowed != want || !strings.Contains(m.Reason, cells[4]) {
			t.Errorf("%s\n\tmay answers %v: %s", line, m.Allowed, m.Reason)
		}
		p := come(listener, who, client)
		got := p != nil
		why := "not let in"
		if got {
			var code packet.ReasonCode
			switch cells[1] {
			case "publish":
				code, why = p.told(cells[2])
			case "subscribe":
				code, why = p.asked(cells[2])
				if !code.Failed() {
					p.write((&packet.Unsubscribe{ID: 9, Filters: []string{cells[2]}}).Append(nil, packet.V5))
					for h, _ := p.next(); h.Type != packet.UNSUBACK; h, _ = p.next() {
					}
				}
			default:
				continue
			}
			// What policy allows may still break its contract, which is another refusal.
			got = !code.Failed() || code == packet.PayloadFormatInvalid
		}
		if got != want {
			t.Errorf("%s\n\tthe client gets %v: %s", line, got, why)
		}
	}
	if asked < 60 {
		t.Errorf("only %d decisions were asked for", asked)
	}
	// Who is not there is not asked about.
	for _, x := range []struct{ listener, who, want string }{{"devices", "x-9", "not registered"}, {"office", "eve", "no user"}, {"nowhere", "d-1", "there are plain, devices, open, office"}} {
		if _, status, text := r.ask(x.listener, x.who, "", "publish", "a"); status < 400 || !strings.Contains(text, x.want) {
			t.Errorf("%s at %s: %d %s", x.who, x.listener, status, text)
		}
	}
	if _, status, text := r.ask("devices", "d-1", "", "shout", "a"); status != http.StatusBadRequest {
		t.Errorf("%d %s", status, text)
	}
}

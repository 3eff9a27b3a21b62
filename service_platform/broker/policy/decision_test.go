package policy

import (
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// plant is a configuration as a user would write it.
const plant = `
pumps:
  for: {groups: [pumps, "pumps.old"]}
  publish:
    allow: ["device/${device}/pump/#", "site.${attribute.site}.pump.${device}"]
  subscribe:
    allow: ["site/${attribute.site}/announce/#", "group.${group}.>"]
gateways:
  for: {groups: [gateways], listeners: [devices]}
  publish: {allow: [device.>]}
  subscribe: {allow: [device.>], deny: [device.*.secret.>, device/+/key]}
wide:
  publish: {allow: ["device/${device}/#"]}
thing:
  publish: {allow: ["$aws/things/${device}/shadow/#"]}
  subscribe: {allow: ["$aws/things/${device}/shadow/#"]}
jobs:
  publish: {allow: ["$aws/things/${device}/jobs/#", $aws/certificates/create/json]}
quarantine:
  for: {groups: [quarantine]}
  publish: {deny: [">"]}
  subscribe: {deny: [">"]}
shadowless:
  for: {groups: [shadowless]}
  publish: {deny: ["$aws/things/#"]}
  subscribe: {deny: [$aws.>]}
legacy:
  for: {listeners: [legacy]}
  publish:
    allow: ["clients/${client_id}/#", "users.${username}.up", "${client_id}.own", "pairs.${client_id}.${username}"]
    deny: ["clients/+/firmware", "banned.${client_id}"]
  subscribe:
    allow: ["clients/${client_id}/#", "all/+/news", "all/today", "all/+/+"]
    deny: [all.secret.>]
reports:
  for: {users: [alice, "bob smith"]}
  subscribe: {allow: [reports/#]}
`

// clients are who comes, by the names in the table below.
var clients = map[string]Identity{
	"d-1":          {Device: "d-1", ClientID: "d-1", Listener: "devices", Policies: []string{"device"}},
	"a.b":          {Device: "a.b", ClientID: "a.b", Listener: "devices", Policies: []string{"device"}},
	"a b":          {Device: "a b", Listener: "devices", Policies: []string{"device"}},
	"star":         {Device: "*", Listener: "devices", Policies: []string{"device"}},
	"greater":      {Device: ">", Listener: "devices", Policies: []string{"device"}},
	"plus":         {Device: "+", Listener: "devices", Policies: []string{"device"}},
	"hash":         {Device: "#", Listener: "devices", Policies: []string{"device"}},
	"slash":        {Device: "d-1/telemetry", Listener: "devices", Policies: []string{"device"}},
	"dotted":       {Device: "d-1.telemetry", Listener: "devices", Policies: []string{"device"}},
	"percent":      {Device: "d%2E1", Listener: "devices", Policies: []string{"device"}},
	"나루":           {Device: "나루", Listener: "devices", Policies: []string{"device"}},
	"broken":       {Device: "d\xff", Listener: "devices", Policies: []string{"device"}},
	"nobody":       {Listener: "devices", Policies: []string{"device"}},
	"pump":         {Device: "p-1", Listener: "devices", Policies: []string{"device"}, Groups: []string{"x", "pumps"}, Attributes: map[string]string{"site": "seoul 1"}},
	"old pump":     {Device: "p-2", Listener: "devices", Policies: []string{"device"}, Groups: []string{"pumps.old"}, Attributes: map[string]string{"site": ""}},
	"evil site":    {Device: "p-3", Listener: "devices", Policies: []string{"device"}, Groups: []string{"pumps"}, Attributes: map[string]string{"site": "*"}},
	"deep site":    {Device: "p-4", Listener: "devices", Policies: []string{"device"}, Groups: []string{"pumps"}, Attributes: map[string]string{"site": "a/b"}},
	"gateway":      {Device: "g-1", Listener: "devices", Policies: []string{"device"}, Groups: []string{"gateways"}},
	"far gateway":  {Device: "g-2", Listener: "legacy", ClientID: "g-2", Groups: []string{"gateways"}},
	"wide":         {Device: "w-1", Listener: "devices", Policies: []string{"device", "wide"}},
	"only wide":    {Device: "w-2", Listener: "devices", Policies: []string{"wide"}},
	"thing":        {Device: "t-1", Listener: "devices", Policies: []string{"device", "thing", "jobs"}},
	"quarantined":  {Device: "q-1", Listener: "devices", Policies: []string{"device", "wide", "jobs"}, Groups: []string{"quarantine"}},
	"shadowless":   {Device: "s-1", Listener: "devices", Policies: []string{"device", "thing"}, Groups: []string{"shadowless"}},
	"legacy":       {ClientID: "c1", Username: "alice", Listener: "legacy"},
	"bob":          {ClientID: "c2", Username: "bob smith", Listener: "legacy"},
	"operator":     {ClientID: "operator", Listener: "legacy"},
	"dollar":       {ClientID: "$SYS", Listener: "legacy"},
	"device":       {ClientID: "device", Listener: "legacy"},
	"fresh":        {ClientID: "fresh", Listener: "legacy"},
	"open":         {ClientID: "o", Listener: "legacy2", Policies: []string{"open"}},
	"no policy":    {Device: "n-1", Listener: "elsewhere"},
	"empty policy": {Device: "n-2", Listener: "elsewhere", Policies: []string{""}},
}

// decisions has who, what to do, where (a topic or filter where it has a slash), what is decided, and part of the reason.
const decisions = `
# a device says what the catalog has devices say, of itself
d-1 | publish | device/d-1/telemetry | yes | device.${device}.telemetry
d-1 | publish | device/d-1/telemetry/engine/oil | yes | device.${device}.telemetry.>
d-1 | publish | device/d-1/event/door | yes | device.${device}.event.*
d-1 | publish | device/d-1/event | no | no policy
d-1 | publish | device/d-1/event/door/open | no | no policy
d-1 | publish | device/d-1/diary | no | no policy
d-1 | publish | device/d-1 | no | no policy
d-1 | publish | device/d-1/ | no | no policy
d-1 | publish | device/d-1/telemetry/ | yes | telemetry.>
d-1 | publish | device/d-1//telemetry | no | no policy
d-1 | publish | device//telemetry | no | no policy
d-1 | publish | /device/d-1/telemetry | no | no policy
d-1 | publish | DEVICE/d-1/telemetry | no | no policy
d-1 | publish | device/D-1/telemetry | no | no policy
d-1 | publish | device/d-1/command/open/c1/reply | yes | command.*.*.reply
d-1 | publish | device/d-1/twin/update | yes | twin.update
d-1 | publish | device/d-1/twin/name/cfg/get | yes | twin.name.*.get
# and of nobody else
d-1 | publish | device/d-2/telemetry | no | no policy
d-1 | publish | device/d-1.telemetry | no | no policy
d-1 | publish | device/d-11/telemetry | no | no policy
d-1 | publish | device/d-/telemetry | no | no policy
d-1 | publish | device/*/telemetry | no | no policy
d-1 | publish | device/>/telemetry | no | no policy
d-1 | publish | device/${device}/telemetry | no | no policy
d-1 | publish | service_platform/x509/device/d-1 | no | no policy
d-1 | publish | operator/alarm/a | no | no policy
d-1 | publish | 3rd_party/acme/x | no | no policy
# it forges neither presence, nor commands, nor the twin's answers
d-1 | publish | device/d-1/presence | no | device.*.presence
d-1 | publish | device/d-2/presence | no | device.*.presence
d-1 | publish | device/d-1/command/open/c1 | no | publish.deny
d-1 | publish | device/d-1/command/open | no | no policy
d-1 | publish | device/d-2/command/open/c1 | no | no policy
d-1 | publish | device/d-2/command/open/c1/reply | no | no policy
d-1 | publish | device/d-1/twin/update/accepted | no | device.*.twin.update.>
d-1 | publish | device/d-1/twin/get/rejected | no | device.*.twin.get.>
d-1 | publish | device/d-1/twin/update/delta | no | device.*.twin.update.>
d-1 | publish | device/d-1/twin/update/documents | no | device.*.twin.update.>
d-1 | publish | device/d-1/twin/name/cfg/update/accepted | no | device.*.twin.name.*.update.>
d-1 | publish | device/d-1/twin/changed | no | device.*.twin.changed
d-1 | publish | device/d-2/twin/update/accepted | no | device.*.twin.update.>
d-1 | publish | device/d-2/twin/update | no | no policy
d-1 | publish | device/d-1/twin | no | no policy
# nor by AWS's spelling
d-1 | publish | $aws/things/d-1/shadow/update | yes | twin.update
d-1 | publish | $aws/things/d-1/shadow/name/cfg/get | yes | twin.name.*.get
d-1 | publish | $aws/things/d-2/shadow/update | no | no policy
d-1 | publish | $aws/things/d-1/shadow/update/accepted | no | device.*.twin.update.>
d-1 | publish | $aws/things/d-2/shadow/name/cfg/get/accepted | no | device.*.twin.name.*.get.>
d-1 | publish | $aws/things/d-1/shadow/changed | no | no policy
d-1 | publish | $aws/things/d-1/jobs/get | no | no policy
d-1 | publish | $aws/things//shadow/update | no | no policy
d-1 | publish | $aws/certificates/create/json | no | no policy
d-1 | publish | $aws/provisioning-templates/t/provision/json | no | no policy
d-1 | subscribe | $aws/things/d-1/shadow/update/accepted | yes | device.${device}.>
d-1 | subscribe | $aws/things/d-1/shadow/# | yes | device.${device}.>
d-1 | subscribe | $aws/things/d-2/shadow/# | no | no policy
d-1 | subscribe | $aws/things/+/shadow/# | no | no policy
d-1 | subscribe | $aws/# | no | no policy
d-1 | subscribe | $aws/certificates/create/json/accepted | no | no policy
thing | publish | $aws/things/t-1/shadow/update | yes | holds
thing | publish | $aws/things/t-1/shadow/update/accepted | no | device.*.twin.update.>
thing | publish | $aws/things/t-2/shadow/update | no | no policy
thing | publish | $aws/things/t-1/shadow/anything | yes | thing
thing | publish | $aws/things/t-1/jobs/get | yes | jobs
thing | publish | $aws/things/t-2/jobs/get | no | no policy
thing | publish | $aws/certificates/create/json | yes | jobs
shadowless | publish | $aws/things/s-1/shadow/update | no | $aws/things/#
shadowless | publish | device/s-1/twin/update | no | $aws/things/#
shadowless | publish | device/s-1/telemetry | yes | telemetry
shadowless | subscribe | $aws/things/s-1/shadow/get/accepted | no | $aws.>
shadowless | subscribe | device/s-1/twin/get/accepted | no | $aws.>
shadowless | subscribe | device/s-1/# | yes | device.${device}.>
shadowless | deliver | device/s-1/twin/get/accepted | no | $aws.>
# it hears its own subtree, and asks for no more
d-1 | subscribe | device/d-1/# | yes | device.${device}.>
d-1 | subscribe | device/d-1/+ | yes | device.${device}.>
d-1 | subscribe | device/d-1/command/+/+ | yes | device.${device}.>
d-1 | subscribe | device/d-1/+/+/accepted | yes | device.${device}.>
d-1 | subscribe | device/d-1 | no | no policy
d-1 | subscribe | device/+/telemetry | no | no policy
d-1 | subscribe | device/# | no | no policy
d-1 | subscribe | # | no | no policy
d-1 | subscribe | + | no | no policy
d-1 | subscribe | +/d-1/telemetry | no | no policy
d-1 | subscribe | device/d-2/# | no | no policy
d-1 | subscribe | device/d-1/presence | no | subscribe.deny
d-1 | deliver | device/d-1/command/open/c1 | yes | device.${device}.>
d-1 | deliver | device/d-1/presence | no | subscribe.deny
d-1 | deliver | device/d-1/twin/changed | no | subscribe.deny
d-1 | deliver | device/d-1 | no | no policy
d-1 | deliver | device/d-2/command/open/c1 | no | no policy
# a name with separators or wildcards is one token
a.b | publish | device/a.b/telemetry | yes | telemetry
a.b | publish | device/a/b/telemetry | no | no policy
a b | publish | device/a b/telemetry | yes | telemetry
a b | publish | device/a/telemetry | no | no policy
star | publish | device/*/telemetry | yes | telemetry
star | publish | device/d-1/telemetry | no | no policy
star | subscribe | device/d-1/# | no | no policy
star | subscribe | device/+/# | no | no policy
star | deliver | device/d-1/command/x/y | no | no policy
greater | publish | device/>/telemetry | yes | telemetry
greater | publish | device/d-1/telemetry | no | no policy
greater | subscribe | device/# | no | no policy
plus | subscribe | device/+/# | no | no policy
plus | publish | device/d-1/telemetry | no | no policy
hash | subscribe | device/# | no | no policy
hash | deliver | device/d-1/telemetry | no | no policy
slash | publish | device/d-1/telemetry/telemetry | no | no policy
slash | publish | device/d-1/telemetry | no | no policy
dotted | publish | device/d-1/telemetry | no | no policy
dotted | publish | device/d-1/telemetry/telemetry | no | no policy
percent | publish | device/d%2E1/telemetry | yes | telemetry
percent | publish | device/d.1/telemetry | no | no policy
나루 | publish | device/나루/telemetry/엔진 | yes | telemetry.>
나루 | publish | device/나/telemetry | no | no policy
broken | publish | device/d-1/telemetry | no | no policy
nobody | publish | device//telemetry | no | no policy
nobody | subscribe | device//# | no | no policy
nobody | subscribe | device/# | no | no policy
nobody | deliver | device/d-1/telemetry | no | no policy
# groups and attributes add
pump | publish | device/p-1/pump/speed | yes | pumps
pump | publish | device/p-1/pump | yes | pumps
pump | publish | device/p-2/pump | no | no policy
pump | publish | site/seoul 1/pump/p-1 | yes | pumps
pump | publish | site/seoul/pump/p-1 | no | no policy
pump | publish | site/seoul 1/pump/p-2 | no | no policy
pump | publish | device/p-1/telemetry | yes | policy device
pump | subscribe | site/seoul 1/announce/# | yes | pumps
pump | subscribe | site/+/announce/# | no | no policy
pump | subscribe | group/pumps/# | yes | pumps
pump | subscribe | group/x/y | yes | pumps
pump | subscribe | group/y/x | no | no policy
pump | subscribe | group/+/x | no | no policy
pump | subscribe | group/# | no | no policy
old pump | subscribe | group/pumps.old/x | yes | pumps
old pump | subscribe | group/pumps/old/x | no | no policy
old pump | publish | site//pump/p-2 | no | no policy
evil site | publish | site/seoul 1/pump/p-3 | no | no policy
evil site | publish | site/*/pump/p-3 | yes | pumps
evil site | subscribe | site/+/announce/# | no | no policy
deep site | publish | site/a/b/pump/p-4 | no | no policy
d-1 | publish | device/d-1/pump/speed | no | no policy
# several lists of a For have to fit together
gateway | publish | device/d-7/telemetry | yes | gateways
far gateway | publish | device/d-7/telemetry | no | no policy
# whatever is allowed beside it, the platform's facts are not a device's to tell
gateway | publish | device/d-7/presence | no | device.*.presence
gateway | publish | device/d-7/twin/update/accepted | no | device.*.twin.update.>
gateway | publish | device/d-7/command/open/c1 | yes | gateways
gateway | publish | device/g-1/command/open/c1 | no | publish.deny
wide | publish | device/w-1/diary | yes | wide
wide | publish | device/w-1 | yes | wide
wide | publish | device/w-1/presence | no | device.*.presence
wide | publish | device/w-1/twin/get/accepted | no | device.*.twin.get.>
only wide | publish | device/w-2/presence | yes | wide
only wide | subscribe | device/w-2/# | no | no policy
# a subscription wider than a denial is granted, and what is denied is withheld
gateway | subscribe | device/# | yes | gateways
gateway | subscribe | device/+/secret/+ | no | device.*.secret.>
gateway | subscribe | device/d-1/secret/# | no | device.*.secret.>
gateway | subscribe | device/+/key | no | device/+/key
gateway | subscribe | device/+/+ | yes | gateways
gateway | deliver | device/d-1/secret/a | no | device.*.secret.>
gateway | deliver | device/d-1/secret | yes | gateways
gateway | deliver | device/d-1/key | no | device/+/key
gateway | deliver | device/d-1/telemetry | yes | gateways
gateway | subscribe | # | no | no policy
# a denial wins over every allowance
quarantined | publish | device/q-1/telemetry | no | quarantine
quarantined | subscribe | device/q-1/# | no | quarantine
quarantined | deliver | device/q-1/command/a/b | no | quarantine
quarantined | publish | $aws/things/q-1/jobs/get | no | quarantine
# one allowance has to cover a filter
legacy | subscribe | clients/c1/# | yes | legacy
legacy | subscribe | clients/c1 | yes | legacy
legacy | subscribe | clients/+/x | no | no policy
legacy | subscribe | all/+/+ | yes | legacy
legacy | subscribe | all/+ | no | no policy
legacy | subscribe | all/# | no | no policy
legacy | subscribe | all/secret/+ | no | all.secret.>
legacy | deliver | all/secret/x | no | all.secret.>
legacy | deliver | all/open/x | yes | legacy
legacy | subscribe | reports/# | yes | reports
bob | subscribe | reports/2026 | yes | reports
fresh | subscribe | reports/# | no | no policy
# client ids and user names
legacy | publish | users/alice/up | yes | legacy
bob | publish | users/bob smith/up | yes | legacy
bob | publish | users/alice/up | no | no policy
fresh | publish | users//up | no | no policy
legacy | publish | pairs/c1/alice | yes | legacy
legacy | publish | pairs/alice/c1 | no | no policy
legacy | publish | clients/c1/firmware | no | clients/+/firmware
legacy | publish | clients/c1/state | yes | legacy
legacy | publish | banned/c1 | no | banned.${client_id}
fresh | publish | fresh/own | yes | legacy
operator | publish | operator/own | no | no policy
operator | publish | clients/operator/x | yes | legacy
device | publish | device/own | no | no policy
dollar | publish | $SYS/own | no | no policy
dollar | publish | clients/$SYS/x | yes | legacy
# wildcards do not stand for what is the broker's or the platform's; other topics with a dollar are topics
open | publish | $mine/x | yes | open
open | subscribe | $mine/# | yes | open
open | publish | a//b. c/ | yes | open
open | publish | $SYS/x | no | no policy
open | subscribe | # | yes | open
open | subscribe | +/x | yes | open
open | subscribe | $SYS/# | yes | open
open | subscribe | $SYS/broker/uptime | yes | open
open | deliver | $SYS/x | yes | open
d-1 | subscribe | $SYS/# | no | no policy
# what nobody allows is denied
no policy | publish | a/b | no | no policy
no policy | subscribe | # | no | no policy
empty policy | publish | device/n-2/telemetry | no | no policy
`

func compileYAML(t testing.TB, text string) *Set {
	t.Helper()
	var configured map[string]Policy
	if err := yaml.UnmarshalWithOptions([]byte(text), &configured, yaml.Strict(), yaml.UseJSONUnmarshaler()); err != nil {
		t.Fatal(err)
	}
	s, err := Compile(configured, nil, catalog.Default())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask puts a question of the table to a Judge, as the broker does.
func ask(t testing.TB, j *Judge, action Action, where string) (d Decision, what []message.Pattern) {
	t.Helper()
	if action == Subscribe {
		filter, err := PresentFilter(where)
		if err != nil {
			t.Fatal(err)
		}
		return j.Subscribe(filter...), filter
	}
	s, err := Present(where)
	if err != nil {
		t.Fatal(err)
	}
	if action == Publish {
		return j.Publish(s), []message.Pattern{message.Pattern(s)}
	}
	return j.Deliver(s), []message.Pattern{message.Pattern(s)}
}

// TestDecisions holds the table, for Judge and Explain alike.
func TestDecisions(t *testing.T) {
	s := compileYAML(t, plant)
	asked := 0
	for line := range strings.Lines(decisions) {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		cells := strings.Split(line, " | ")
		if len(cells) != 5 {
			t.Fatalf("%q has %d cells", line, len(cells))
		}
		id, known := clients[cells[0]]
		if !known {
			t.Fatalf("%q: who is that?", line)
		}
		j, err := s.Judge(id)
		if err != nil {
			t.Fatal(err)
		}
		asked++
		d, what := ask(t, j, Action(cells[1]), cells[2])
		e, err := s.Explain(id, Action(cells[1]), what...)
		if err != nil {
			t.Fatal(err)
		}
		reason := strings.ReplaceAll(d.Reason(), "allowed by", "holds: allowed by")
		if d.Allowed != (cells[3] == "yes") || !strings.Contains(reason, cells[4]) {
			t.Errorf("%s\n\tdecided %v: %s", line, d.Allowed, d.Reason())
		}
		if e.Allowed != d.Allowed || e.Reason != d.Reason() {
			t.Errorf("%s\n\tJudge: %v, %s\n\tExplain: %v, %s", line, d.Allowed, d.Reason(), e.Allowed, e.Reason)
		}
	}
	if asked < 80 {
		t.Errorf("only %d decisions were asked for", asked)
	}
	t.Log(asked, "decisions")
}

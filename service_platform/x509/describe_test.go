package x509

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/naru-platform/naru/component/names"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// facts gives what was said of devices.
func (a *api) facts() (list []serviceplatform.DeviceChanged) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.said {
		var f serviceplatform.DeviceChanged
		if err := json.Unmarshal(m.Data, &f); err != nil {
			a.Error(err)
		}
		list = append(list, f)
	}
	return list
}

// What describes a device is changed field by field; who did it and what it was before is said, and doors feel it at once.
func TestDeviceIsDescribedAnew(t *testing.T) {
	a := newArena(t)
	told := make(chan string, 100)
	a.gate.OnChange(func(string) { t.Error("who has ended it is told") })()
	a.gate.OnChange(func(who string) { told <- who })
	text := func(s string) *string { return &s }
	var d Shown
	patch := func(want int, p Patch) {
		t.Helper()
		d = Shown{} // JSON joins maps
		if status := a.do("PATCH", "/api/v1/devices/d-1", p, &d); status != want {
			t.Fatalf("answered %d", status)
		}
	}
	patch(200, Patch{Attributes: map[string]*string{"site": text("seoul"), "line": text("3")}, Groups: &[]string{"b", "a", "b"}, By: "mina"})
	patch(200, Patch{Attributes: map[string]*string{"site": text("busan"), "line": nil, "none": nil}, AddGroups: []string{"c"}, RemoveGroups: []string{"a"},
		Policy: text("pump"), Template: text("brief"), Reason: "moved", By: "mina"})
	if fmt.Sprintf("%v %v %s %s", d.Attributes, d.Groups, d.Policy, d.CA) != "map[site:busan] [b c] pump claim:brief" {
		t.Errorf("it is %+v", d)
	}
	said := len(a.facts())
	patch(200, Patch{Attributes: map[string]*string{"site": text("busan")}, Policy: text("pump")}) // as it is
	if n := len(a.facts()); n != said {
		t.Error("what did not change is said")
	}
	f := a.facts()[said-1]
	var fields []string
	for _, c := range f.Fields {
		fields = append(fields, c.Field+":"+c.Was+">"+c.Is)
	}
	if got := strings.Join(fields, " "); f.Change != "changed" || f.By != "mina" || f.Reason != "moved" ||
		got != "attribute.line:3> attribute.site:seoul>busan groups:a;b>b;c policy:>pump template:>claim:brief" {
		t.Errorf("%s by %s for %s: %s", f.Change, f.By, f.Reason, got)
	}
	for range 2 {
		if who := <-told; who != "d-1" {
			t.Errorf("told of %s", who)
		}
	}
	leaf := certOf(t, a.device)
	if policy, groups, attributes, _ := a.gate.DeviceOf(leaf); policy != "pump" || fmt.Sprint(groups, attributes) != "[b c] map[site:busan]" {
		t.Errorf("the door has %s %v %v", policy, groups, attributes)
	}
	var next Enrolled // as long as its template says
	if status := a.do("POST", "/api/v1/devices/d-1/rotate", Rotation{}, &next); status != 201 || next.NotAfter.Sub(a.clock.Now()) > 31*day {
		t.Errorf("answered %d, until %s", status, next.NotAfter)
	}
	patch(200, Patch{Groups: &[]string{}, Policy: text(""), Template: text("")})
	if len(d.Groups) > 0 || d.Policy != "" || d.CA != "" {
		t.Errorf("it is %+v", d)
	}

	// Many long values are told in brief, and fit in the device's entry.
	many := map[string]*string{}
	for i := range 40 {
		many[fmt.Sprint("n-", i)] = text(strings.Repeat("x", 180))
	}
	patch(200, Patch{Attributes: many})
	for i := range many {
		many[i] = text(strings.Repeat("y", 180))
	}
	patch(200, Patch{Attributes: many})
	if all := a.facts(); len(all[len(all)-1].Fields) != fieldsMax+1 {
		t.Errorf("%d fields are told of", len(all[len(all)-1].Fields))
	}

	if err := names.Tell(t.Context(), a.bus, names.Policies, "n-1", []string{"device", "pump"}); err != nil {
		t.Fatal(err)
	}
	before := a.fleet()
	for what, p := range map[string]Patch{
		"nothing": {}, "group": {AddGroups: []string{"a;b"}}, "groups": {Groups: &[]string{""}}, "attribute": {Attributes: map[string]*string{"": nil}},
		"value": {Attributes: map[string]*string{"a": text("\x00")}}, "policy": {Policy: text("pmup")}, "by": {By: "\n", Policy: text("")},
	} {
		if status := a.do("PATCH", "/api/v1/devices/d-1", p, nil); status != 400 {
			t.Errorf("%s: answered %d", what, status)
		}
	}
	for what, p := range map[string]Patch{"template": {Template: text("none")}, "too much": {Attributes: map[string]*string{"a": text(strings.Repeat("x", recordMax))}}} {
		if status := a.do("PATCH", "/api/v1/devices/d-1", p, nil); status != 409 {
			t.Errorf("%s: answered %d", what, status)
		}
	}
	if status := a.do("PATCH", "/api/v1/devices/d-9", Patch{Policy: text("")}, nil); status != 404 {
		t.Errorf("a device that is not there: answered %d", status)
	}
	if is := a.fleet(); is != before {
		t.Errorf("what was refused changed\n%s to\n%s", before, is)
	}
}

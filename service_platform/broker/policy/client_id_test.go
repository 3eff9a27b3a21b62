package policy

import (
	"strings"
	"testing"
)

// TestClientIDsAreAsThePoliciesHaveThem holds a table of who may be called what.
func TestClientIDsAreAsThePoliciesHaveThem(t *testing.T) {
	s := compileYAML(t, `
phones: {for: {groups: [phones]}, client_ids: ["${device}-*", "${attribute.site}/${device}"]}
cameras: {for: {groups: [cameras]}, client_ids: ["${group}:*:${device}"]}
staff: {for: {users: [ann]}, client_ids: ["staff-${username}", x]}
any: {for: {users: [root]}, client_ids: ["*"]}
`)
	phone := Identity{Device: "d-1", Groups: []string{"phones"}, Attributes: map[string]string{"site": "seoul"}, Policies: []string{"device"}}
	camera := Identity{Device: "d-1", Groups: []string{"x", "cameras"}, Policies: []string{"device"}}
	device := Identity{Device: "d-1", Policies: []string{"device"}}
	noSite := phone
	noSite.Attributes = nil
	for _, c := range []struct {
		who Identity
		id  string
		ok  bool
	}{
		{device, "d-1", true}, {device, "d-2", false}, {device, "d-1-x", false}, {device, "", false},
		{phone, "d-1", true}, {phone, "d-1-app", true}, {phone, "d-1-", true}, {phone, "d-1", true}, {phone, "d-2-app", false}, {phone, "d-11", false},
		{phone, "seoul/d-1", true}, {phone, "busan/d-1", false}, {noSite, "/d-1", false},
		{camera, "cameras:7:d-1", true}, {camera, "x::d-1", true}, {camera, "cameras:d-1", false}, {camera, "y:7:d-1", false}, {camera, "cameras:7:d-2", false},
		{Identity{Username: "ann"}, "staff-ann", true}, {Identity{Username: "ann"}, "x", true}, {Identity{Username: "ann"}, "y", false},
		{Identity{Username: "root"}, "whatever", true}, {Identity{}, "whatever", true},
	} {
		j, err := s.Judge(c.who)
		if err != nil {
			t.Fatal(err)
		}
		c.who.ClientID = c.id
		if err := j.MayBeCalled(c.who); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.who, err)
		}
	}
}

func TestClientIDsAreCheckedWhenTheyAreRead(t *testing.T) {
	for text, want := range map[string]string{
		"": "nothing there", "a*b*": "two stars", "${client_id}": "asked about", "${devise}": "did you mean ${device}", "${device": "closing brace",
		strings.Repeat("x", textMax+1): "is the most",
	} {
		if _, err := compile("p", Policy{ClientIDs: []string{text}}, nil); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "client_ids[0]") {
			t.Errorf("%q gives %v; want it to say %q", text, err, want)
		}
	}
}

package x509

import (
	stdx509 "crypto/x509"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/message"
)

// Before a CA ends, whoever ends it can know who depends on it.
func TestDependentsOfACAAreCounted(t *testing.T) {
	a := newArena(t)
	of := func(fingerprint string) (d Dependents) {
		t.Helper()
		a.must(a.do("GET", "/api/v1/ca/dependents?fingerprint="+fingerprint, nil, &d), 200)
		return d
	}
	root := authority.Fingerprint(a.s.open.Load().authority.Bundle().Roots[0].Raw)
	if got := a.do("GET", "/api/v1/ca/dependents?fingerprint="+root, nil, nil); got != http.StatusConflict {
		t.Errorf("the root in use: %d", got)
	}
	a.must(a.do("GET", "/api/v1/ca/dependents?fingerprint=ab", nil, nil), 404)
	a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: "d-2"}, nil), 201)
	a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: "d-3"}, nil), 201)
	a.must(a.do("POST", "/api/v1/devices/d-3/revoke", nil, nil), 200)
	a.must(a.do("POST", "/api/v1/ca/rollover", struct{}{}, nil), 200)
	a.must(a.do("POST", "/api/v1/devices/d-2/rotate", Rotation{}, nil), 201)
	a.settle()
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: certOf(t, a.device)}); err != nil {
		t.Fatal(err)
	}
	a.attempts(attemptFilter{}) // has them written
	if d := of(root); d.Devices != 2 || d.ShutOut != 1 || len(d.Examples) != 1 || d.Examples[0] != "d-1" || d.Seen != 1 || d.Claims != 1 {
		t.Errorf("the root of before: %+v", d)
	}
	if d := of(a.factoryID); d.Devices != 0 || d.Seen != 0 {
		t.Errorf("a registered CA that nobody has used: %+v", d)
	}
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: leafBy(t, a.clock, a.factory, "meter-7", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} })}); err != nil {
		t.Fatal(err)
	}
	a.attempts(attemptFilter{})
	a.listed(func() bool { return of(a.factoryID).Devices == 1 }, "the device is not counted")
	if d := of(a.factoryID); d.ShutOut != 1 || d.Seen != 1 || d.Name != "Factory CA" {
		t.Errorf("a registered CA: %+v", d)
	}
}

// Who holds certificates of a CA that is trusted no more is told so, and the CA is not taken for a stranger's.
func TestACATrustedNoMoreKeepsItsStanding(t *testing.T) {
	a := newArena(t)
	root := authority.Fingerprint(a.s.open.Load().authority.Bundle().Roots[0].Raw)
	meter := leafBy(t, a.clock, a.factory, "meter-7", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} })
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: meter}); err != nil {
		t.Fatal(err)
	}
	a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: "d-2"}, nil), 201)
	a.must(a.do("POST", "/api/v1/ca/rollover", struct{}{}, nil), 200)
	a.must(a.do("POST", "/api/v1/devices/d-2/rotate", Rotation{}, nil), 201)
	untrusted := func(id string) Standing {
		t.Helper()
		var d Shown
		a.must(a.do("GET", "/api/v1/devices/"+id, nil, &d), 200)
		return d.Untrusted
	}
	for _, id := range []string{"d-1", "d-2", "meter-7"} {
		if got := untrusted(id); got != "" {
			t.Errorf("%s, before: %q", id, got)
		}
	}
	a.must(a.do("POST", "/api/v1/ca/retire", map[string]string{"fingerprint": root}, nil), 200)
	a.must(a.do("POST", "/api/v1/ca/registered/"+a.factoryID+"/disable", struct{}{}, nil), 200)
	a.settle()
	for id, want := range map[string]Standing{"d-1": Retired, "d-2": "", "meter-7": Disabled} {
		if got := untrusted(id); got != want {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
	// The list says so, and the metric, and what became of the CA; and of one that is removed as well.
	listed := func(q string) (states map[string]string) {
		t.Helper()
		var page struct{ Devices []Shown }
		a.must(a.do("GET", "/api/v1/devices"+q, nil, &page), 200)
		states = map[string]string{}
		for _, d := range page.Devices {
			states[d.ID] = d.State + " " + string(d.Untrusted)
		}
		return states
	}
	if got, want := listed(""), map[string]string{"d-1": "untrusted retired", "d-2": "active ", "meter-7": "untrusted disabled"}; !maps.Equal(got, want) {
		t.Errorf("listed %v", got)
	}
	if got := listed("?state=active"); len(got) != 1 || got["d-2"] == "" {
		t.Errorf("active are %v", got)
	}
	gauges := a.gauges()
	for state, want := range map[string]float64{"active": 1, "untrusted": 2} {
		if got := gauges[state]; got != want {
			t.Errorf("%g devices are counted as %s, want %g", got, state, want)
		}
	}
	a.must(a.do("DELETE", "/api/v1/ca/registered/"+a.factoryID, nil, nil), 204)
	a.settle()
	if got := listed("?state=untrusted"); got["meter-7"] != "untrusted removed" {
		t.Errorf("once its CA is removed: %v", got)
	}
	for _, c := range []*stdx509.Certificate{meter, certOf(t, a.device)} {
		if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: c}); err == nil {
			t.Fatal("it got in")
		}
	}
	a.attempts(attemptFilter{})
	var by struct{ CAs []CAAttempts }
	a.must(a.do("GET", "/api/v1/admissions/by-ca", nil, &by), 200)
	got := map[Standing]int{}
	for _, c := range by.CAs {
		if c.Known {
			got[c.Standing] += c.Refused
		}
	}
	if got[Retired] != 1 || got[Removed] != 1 {
		t.Errorf("refused by standing %v: %+v", got, by.CAs)
	}
}

// Two CAs of one name stay two where their certificates do not say whose key signed them, if they are shown.
func TestCAsOfOneNameAreToldApart(t *testing.T) {
	a := newArena(t)
	for range 2 {
		ca := foreignCA(t, a.clock, nil)
		mute := *ca.cert
		mute.SubjectKeyId = nil
		leaf := leafBy(t, a.clock, pair{&mute, ca.key}, "d-8", nil)
		if len(leaf.AuthorityKeyId) > 0 {
			t.Fatal("it says whose key signed it")
		}
		if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: leaf, Chain: []*stdx509.Certificate{ca.cert}}); err == nil {
			t.Fatal("a stranger got in")
		}
	}
	a.attempts(attemptFilter{})
	var by struct{ CAs []CAAttempts }
	a.do("GET", "/api/v1/admissions/by-ca", nil, &by)
	n := 0
	for _, c := range by.CAs {
		if c.Name == "Factory CA" && c.Refused == 1 {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%+v", by.CAs)
	}
}

// What a registered CA has signed counts as its own at every step, also where the certificate does not say whose key signed
// it, or another certificate stands between.
func TestCertificatesOfARegisteredCAAreItsOwn(t *testing.T) {
	a := newArena(t)
	acme := func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} }
	mute := *a.factory.cert
	mute.SubjectKeyId = nil
	silent := leafBy(t, a.clock, pair{&mute, a.factory.key}, "meter-1", acme)
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	line := pair{leafFor(t, a.clock, a.factory, "Line 3", key.Public(), func(c *stdx509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage, c.SubjectKeyId = true, stdx509.KeyUsageCertSign, nil, []byte{1, 2, 3}
	}), key}
	below := Client{Leaf: leafBy(t, a.clock, line, "meter-2", acme), Chain: []*stdx509.Certificate{line.cert}}
	if len(silent.AuthorityKeyId) > 0 || len(below.Leaf.AuthorityKeyId) == 0 {
		t.Fatal("they are not as they are wanted")
	}
	for _, c := range []Client{{Leaf: silent}, below} {
		if _, err := a.gate.AdmitClient(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		a.gate.Refused(c, "policy", message.Rejectf(message.ACLDenied, "it may not"))
	}
	a.attempts(attemptFilter{})
	var by struct{ CAs []CAAttempts }
	a.do("GET", "/api/v1/admissions/by-ca", nil, &by)
	var lines []string
	for _, c := range by.CAs {
		if c.Admitted+c.Refused > 0 {
			lines = append(lines, fmt.Sprint(c.CA == keyIDOf(a.factory.cert), c.Known, c.Admitted, c.Refused))
		}
	}
	slices.Sort(lines)
	if got := strings.Join(lines, ", "); got != "true true 1 1, true true 1 1" { // the name of its issuer is told too
		t.Errorf("%s: %+v", got, by.CAs)
	}
	a.listed(func() bool { return a.s.open.Load().index.size() == 3 }, "the devices are not listed")
	var d Dependents
	if a.do("GET", "/api/v1/ca/dependents?fingerprint="+a.factoryID, nil, &d); d.Devices != 2 || d.ShutOut != 2 || d.Seen != 2 {
		t.Errorf("%+v", d)
	}
}

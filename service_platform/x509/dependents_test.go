package x509

import (
	stdx509 "crypto/x509"
	"net/http"
	"testing"
)

// Before a CA ends, whoever ends it can know who depends on it.
func TestDependentsOfACAAreCounted(t *testing.T) {
	a := newArena(t)
	of := func(fingerprint string) (d Dependents) {
		t.Helper()
		a.must(a.do("GET", "/api/v1/ca/dependents?fingerprint="+fingerprint, nil, &d), 200)
		return d
	}
	root := Fingerprint(a.s.open.Load().authority.Bundle().Roots[0].Raw)
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

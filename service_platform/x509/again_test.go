package x509

import (
	"crypto/elliptic"
	"strings"
	"testing"
)

// Who asks again with the same key gets the certificate that was issued for it, and nothing new is made.
func TestSameRequestAgainGivesTheSameCertificate(t *testing.T) {
	a := startAPI(t)
	key, other := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	in := Enrolment{ID: "d-1", CSR: string(csr(t, key, "d-1")), Groups: []string{"a"}, New: true}
	var first, again Enrolled
	if status := a.do("POST", "/api/v1/devices", in, &first); status != 201 {
		t.Fatalf("answered %d", status)
	}
	certs := func() int {
		t.Helper()
		var d Device
		if status := a.do("GET", "/api/v1/devices/d-1", nil, &d); status != 200 {
			t.Fatalf("answered %d", status)
		}
		return len(d.Certs)
	}
	in.CSR = string(csr(t, key, "d-1")) // another request, the same key
	a.stop()
	a.start() // the CA remembers it over a restart
	for range 2 {
		if status := a.do("POST", "/api/v1/devices", in, &again); status != 200 || again.Certificate != first.Certificate || again.CA != first.CA || again.Fingerprint != first.Fingerprint || again.Created {
			t.Errorf("answered %d %+v, at first %+v", status, again, first)
		}
	}
	if n := len(a.changes()); certs() != 1 || n != 1 {
		t.Errorf("%d certificates, %d facts", certs(), n)
	}
	// Not for another key, not for another device, not with another description, and not for ever.
	for want, e := range map[int]Enrolment{
		409: {ID: "d-1", CSR: string(csr(t, other, "d-1")), New: true},  // another key
		400: {ID: "d-1", CSR: in.CSR, Groups: []string{"b"}, New: true}, // another description
	} {
		var problem struct{ Detail string }
		if status := a.do("POST", "/api/v1/devices", e, &problem); status != want || !strings.Contains(problem.Detail, "registered already") {
			t.Errorf("answered %d %s", status, problem.Detail)
		}
	}
	if status := a.do("POST", "/api/v1/devices", Enrolment{ID: "d-2", CSR: string(csr(t, key, "d-2")), New: true}, nil); status != 409 {
		t.Errorf("another device: answered %d", status)
	}
	if status := a.do("POST", "/api/v1/devices/d-1/disable", nil, nil); status != 200 {
		t.Fatal(status)
	}
	if status := a.do("POST", "/api/v1/devices", in, nil); status != 409 {
		t.Errorf("a disabled device: answered %d", status)
	}
	a.do("POST", "/api/v1/devices/d-1/enable", nil, nil)
	a.clock.move(366 * day)
	if status := a.do("POST", "/api/v1/devices", in, &again); status != 201 || again.Fingerprint == first.Fingerprint {
		t.Errorf("once it has expired: answered %d", status)
	}
	if status := a.do("POST", "/api/v1/devices/d-1/revoke", nil, nil); status != 200 {
		t.Fatal(status)
	}
	if status := a.do("POST", "/api/v1/devices", in, nil); status != 409 {
		t.Errorf("a revoked key: answered %d", status)
	}
}

func TestSameRequestAtOnceMakesOneCertificate(t *testing.T) {
	a := startAPI(t)
	in := Enrolment{ID: "d-1", CSR: string(csr(t, ecKey(t, elliptic.P256()), "d-1")), New: true}
	if n := together(func(int) bool { return a.do("POST", "/api/v1/devices", in, nil) == 201 }); n != 1 {
		t.Errorf("%d certificates were issued", n)
	}
	var d Device
	if a.do("GET", "/api/v1/devices/d-1", nil, &d); len(d.Certs) != 1 {
		t.Errorf("it has %d certificates", len(d.Certs))
	}
}

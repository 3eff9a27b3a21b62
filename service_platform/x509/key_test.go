package x509

import (
	"crypto"
	stdx509 "crypto/x509"
	"slices"
	"testing"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/x509/authority"
)

// A key that was revoked with one certificate gets in with no other of its device, and whoever else has it is named.
func TestRevokedKeyGetsInWithNoOtherCertificate(t *testing.T) {
	a := newArena(t)
	p := pairOf(t, a.device)
	status, text := a.est(estCall{path: estReenroll, cert: p, body: csrText(t, p.PrivateKey.(crypto.Signer), "d-1")})
	a.must(status, 200)
	second := a.enrolled(text)
	var fresh Enrolled
	a.must(a.do("POST", "/api/v1/devices/d-1/rotate", Rotation{}, &fresh), 201)
	c := certOf(t, a.device)
	other := leafFor(t, a.clock, a.factory, "meter-1", c.PublicKey, nil)
	a.must(a.do("PUT", "/api/v1/devices/meter-1", Import{Certs: []Certificate{*recordOf(other, a.clock.Now())}}, nil), 201)

	var done RevokedDevice
	a.must(a.do("POST", "/api/v1/devices/d-1/revoke", Change{Fingerprint: a.device.Fingerprint, Reason: "stolen"}, &done), 200)
	if !slices.Equal(done.SameKey, []string{"meter-1"}) {
		t.Errorf("others with the key: %q", done.SameKey)
	}
	a.settle()
	for what, leaf := range map[string]*stdx509.Certificate{"the one": c, "another of the same key": second} {
		if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: leaf}); message.ReasonOf(err, 0) != message.CertRevoked {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: certOf(t, fresh)}); err != nil {
		t.Errorf("one with another key: %v", err)
	}
	a.must(a.do("POST", "/api/v1/devices/meter-1/revoke", Change{}, nil), 200)
	if done = (RevokedDevice{}); a.do("POST", "/api/v1/devices/d-1/revoke", Change{Fingerprint: authority.Fingerprint(second.Raw)}, &done) != 200 || len(done.SameKey) > 0 {
		t.Errorf("once nobody has it: %q", done.SameKey)
	}
}

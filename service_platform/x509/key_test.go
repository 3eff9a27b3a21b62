package x509

import (
	"crypto"
	"crypto/elliptic"
	stdx509 "crypto/x509"
	"slices"
	"strings"
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

// A key that others have is no device's own: neither that of a claim certificate nor another device's.
func TestKeyOfAnotherIsNotCertified(t *testing.T) {
	a := newArena(t)
	key := func(e Enrolled) crypto.Signer { return pairOf(t, e).PrivateKey.(crypto.Signer) }
	refused := func(what string, got int, text string, names string) {
		t.Helper()
		if got < 400 || got > 409 || !strings.Contains(text, names) {
			t.Errorf("%s: %d %s", what, got, text)
		}
	}
	for _, c := range []struct {
		key   crypto.Signer
		names string
	}{{key(a.claim), "claim certificate lot-7"}, {key(a.device), "device d-1"}} {
		token := a.token("d-2")
		got, text := a.est(estCall{path: estEnroll, user: "d-2", token: token, body: csrText(t, c.key, "d-2")})
		refused("EST", got, text, c.names)
		if got, text = a.est(estCall{path: estEnroll, user: "d-2", token: token, body: csrText(t, ecKey(t, elliptic.P256()), "d-2")}); got != 200 {
			t.Errorf("the token is used up by a key that was refused: %d %s", got, text)
		}
		a.must(a.do("DELETE", "/api/v1/devices/d-2", nil, nil), 204)
		got = a.do("POST", "/api/v1/devices", Enrolment{ID: "d-3", CSR: string(csr(t, c.key, "d-3"))}, &text)
		refused("an operator", got, text, c.names)
	}
	if got := a.ask(a.claimClient(), topicCSR, map[string]string{"certificateSigningRequest": string(csr(t, key(a.claim), "x"))}, nil); got.Accepted {
		t.Error("the claim's key is certified by claim")
	}
	var made created
	if got := a.ask(a.claimClient(), topicCSR, map[string]string{"certificateSigningRequest": string(csr(t, key(a.device), "x"))}, &made); !got.Accepted {
		t.Fatal(got)
	}
	if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": "1"}), nil); got.Accepted || !strings.Contains(string(got.Payload), "device d-1") {
		t.Errorf("another device's key is provisioned: %v", got)
	}
	leaf := leafFor(t, a.clock, a.factory, "meter-1", key(a.claim).Public(), func(c *stdx509.Certificate) { c.Subject.Organization = []string{"F"} })
	if who, err := a.gate.AdmitClient(t.Context(), Client{Leaf: leaf}); err == nil || who.Device != "" || !strings.Contains(err.Error(), "claim certificate lot-7") {
		t.Errorf("the claim's key comes just in time: %+v %v", who, err)
	}
	var text string
	refused("an import", a.do("PUT", "/api/v1/devices/meter-1", Import{Certs: []Certificate{*recordOf(leaf, a.clock.Now())}}, &text), text, "claim certificate lot-7")
	text = ""
	refused("a claim certificate", a.do("POST", "/api/v1/claims", ClaimRequest{Name: "lot-8", Templates: []string{"lot"}, CSR: string(csr(t, key(a.device), "lot-8"))}, &text), text, "device d-1")
}

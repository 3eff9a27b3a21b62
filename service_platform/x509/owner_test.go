package x509

import (
	"crypto/elliptic"
	stdx509 "crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// However a token came to be and whether it was used, it ends with the device and with a certificate that is revoked; one
// that is made afterwards is good.
func TestTokensEndWithTheirDevice(t *testing.T) {
	a := newArena(t)
	key := ecKey(t, elliptic.P256())
	body := csrText(t, key, "d-9")
	enrol := func(token string) int {
		status, _ := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: body})
		return status
	}
	early := a.token("d-9") // before there is such a device
	unused := a.token("d-9")
	used := a.token("d-9")
	if got := enrol(used); got != 200 {
		t.Fatal(got)
	}
	a.must(a.do("DELETE", "/api/v1/devices/d-9", nil, nil), 204)
	a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: "d-9"}, nil), 201)
	for what, token := range map[string]string{"before": early, "unused": unused, "used": used} {
		if got := enrol(token); got != 401 {
			t.Errorf("after a deletion, the token %s: %d", what, got)
		}
	}
	next, other := a.token("d-9"), a.token("d-9")
	if got := enrol(next); got != 200 {
		t.Errorf("a token that was made after the deletion: %d", got)
	}
	a.must(a.do("POST", "/api/v1/devices/d-9/revoke", nil, nil), 200)
	if got := enrol(other); got != 401 {
		t.Errorf("after a revocation, an unused token: %d", got)
	}
}

// A device whose answer was lost gets another with its token, until it has come in: that is known of the device, and not of
// what a recorder still holds.
func TestTokenIsOverOnceItsDeviceHasComeIn(t *testing.T) {
	a := newArena(t)
	token, body := a.token("d-9"), csrText(t, ecKey(t, elliptic.P256()), "d-9")
	var last *stdx509.Certificate
	for range 2 {
		status, text := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: body})
		a.must(status, 200)
		last = a.enrolled(text)
	}
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: last}); err != nil {
		t.Fatal(err)
	}
	if status, _ := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: body}); status != 401 {
		t.Errorf("after it has come in: %d", status)
	}
	var d Device
	if a.do("GET", "/api/v1/devices/d-9", nil, &d); len(d.Certs) != 2 || d.Certs[1].Awaited {
		t.Errorf("%+v", d.Certs)
	}
}

// Two devices never have one certificate, however many ask at once; who was refused leaves nothing behind, and who was cut
// off may ask again.
func TestTwoDevicesNeverHaveOneCertificate(t *testing.T) {
	h := newHouse(t)
	c := Certificate{Fingerprint: strings.Repeat("ab", 32), NotAfter: h.clock.Now().Add(day)}
	if n := together(func(i int) bool {
		_, _, err := h.reg.Import(t.Context(), Registration{ID: fmt.Sprint("d-", i)}, []Certificate{c}, false)
		if err != nil && !errors.Is(err, ErrRefused) {
			t.Error(err)
		}
		return err == nil
	}); n != 1 {
		t.Errorf("%d devices have it", n)
	}
	entries, err := bus.Entries(t.Context(), h.reg.table, devicePrefix)
	if err != nil || len(entries) != 1 {
		t.Errorf("%d devices are registered, %v", len(entries), err)
	}
	cut := Certificate{Fingerprint: strings.Repeat("cd", 32), NotAfter: h.clock.Now().Add(day)}
	if _, err := h.reg.own(t.Context(), "x", cut); err != nil { // and there it was killed
		t.Fatal(err)
	}
	add := func(id string) error {
		_, _, err := h.reg.Add(t.Context(), Registration{ID: id, Certificate: &cut})
		return err
	}
	if err := add("y"); !errors.Is(err, ErrRefused) {
		t.Errorf("another takes it: %v", err)
	}
	if err := add("x"); err != nil {
		t.Errorf("the same does not go on: %v", err)
	}
	h.clock.move(2 * ownerPatience)
	if err := add("y"); !errors.Is(err, ErrRefused) {
		t.Errorf("another takes what is registered: %v", err)
	}
	left := Certificate{Fingerprint: strings.Repeat("ef", 32), NotAfter: h.clock.Now().Add(day)}
	if _, err := h.reg.own(t.Context(), "x", left); err != nil {
		t.Fatal(err)
	}
	h.clock.move(2 * ownerPatience)
	if cut = left; add("y") != nil {
		t.Error("what was left long ago is nobody's for ever")
	}
}

// The key of a revoked certificate is certified no more, in no way in.
func TestRevokedKeyIsCertifiedNoMore(t *testing.T) {
	a := newArena(t)
	key := ecKey(t, elliptic.P256())
	pem := string(csr(t, key, "d-9"))
	a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: "d-9", CSR: pem}, nil), 201)
	a.must(a.do("POST", "/api/v1/devices/d-9/rotate", Rotation{CSR: pem}, nil), 201) // it may keep its key
	a.must(a.do("POST", "/api/v1/devices/d-9/revoke", nil, nil), 200)
	var d Device
	a.do("GET", "/api/v1/devices/d-9", nil, &d)
	for path, in := range map[string]any{
		"/api/v1/devices":            Enrolment{ID: "d-10", CSR: string(csr(t, key, "d-10"))},
		"/api/v1/devices/d-9/rotate": Rotation{CSR: pem},
		"/api/v1/claims":             ClaimRequest{Name: "lot-8", Templates: []string{"lot"}, CSR: string(csr(t, key, "lot-8"))},
	} {
		var said string
		if got := a.do("POST", path, in, &said); got != 409 || !strings.Contains(said, d.Certs[0].Fingerprint[:16]) {
			t.Errorf("%s: %d %s", path, got, said)
		}
	}
	token := a.token("d-9")
	if status, text := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: csrText(t, key, "d-9")}); status != 403 {
		t.Errorf("EST: %d %s", status, text)
	}
	if status, text := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: csrText(t, ecKey(t, elliptic.P256()), "d-9")}); status != 200 {
		t.Errorf("EST with a new key, which it was told to make: %d %s", status, text)
	}
	if got := a.ask(a.claimClient(), topicCSR, map[string]string{"certificateSigningRequest": string(csr(t, key, "any"))}, nil); got.Accepted {
		t.Error("by claim it is certified")
	}
	leaf := leafFor(t, a.clock, a.factory, "meter-1", key.Public(), func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} })
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: leaf}); message.ReasonOf(err, 0) != message.KeyRevoked {
		t.Errorf("just in time: %v", err)
	}
	if got := a.attempts(attemptFilter{refused: true}); len(got) < 3 || got[0].Reason != "key_revoked" {
		t.Errorf("recorded: %+v", got)
	}
}

// A bus that is away is no verdict on who asks: he is told to come again, and that is what is recorded.
func TestBusThatIsAwayIsNoVerdict(t *testing.T) {
	a := newArena(t)
	token := a.token("d-9")
	made := a.ownership()
	stranger := leafBy(t, a.clock, a.factory, "meter-1", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} })
	trust, devices := a.bus.(*tables).open[trustTable], a.bus.(*tables).open[devicesTable]
	trust.gone.Store(true)
	devices.gone.Store(true)
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: stranger}); message.ReasonOf(err, 0) != message.BusUnavailable {
		t.Errorf("at the door: %v", err)
	}
	devices.gone.Store(false)
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: stranger}); message.ReasonOf(err, 0) != message.BusUnavailable {
		t.Errorf("just in time: %v", err)
	}
	if status, text := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: csrText(t, ecKey(t, elliptic.P256()), "d-9")}); status != 503 {
		t.Errorf("EST: %d %s", status, text)
	}
	var no struct{ ErrorCode string }
	if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": "1"}), &no); no.ErrorCode != "ServiceUnavailable" {
		t.Errorf("by claim: %s", string(got.Payload))
	}
	if got := a.do("POST", "/api/v1/devices/d-9/token", TokenRequest{}, nil); got != 503 {
		t.Errorf("the registry: %d", got)
	}
	full := &a.bus.(*tables).full // and where it is for a full disk, that is told
	full.Store(true)
	if status, detail := a.problemOf("POST", "/api/v1/devices/d-9/token", TokenRequest{}); status != 507 || !strings.Contains(detail, "shorten retention") {
		t.Errorf("the registry, its disk full: %d %s", status, detail)
	}
	if status, text := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: csrText(t, ecKey(t, elliptic.P256()), "d-9")}); status != 503 {
		t.Errorf("EST, the disk full: %d %s", status, text)
	}
	full.Store(false)
	trust.gone.Store(false)
	if low := a.attempts(attemptFilter{step: "enrolment"}); !slices.ContainsFunc(low, func(at Attempt) bool { return at.Reason == "storage_low" }) {
		t.Errorf("recorded: %+v", low)
	}
	for _, at := range a.attempts(attemptFilter{refused: true}) {
		if at.Reason != "bus_unavailable" && at.Reason != "storage_low" {
			t.Errorf("recorded: %s at %s: %s", at.Reason, at.Door, at.Detail)
		}
	}
	if who, err := a.gate.AdmitClient(t.Context(), Client{Leaf: stranger}); who.Device != "meter-1" { // and it was not remembered
		t.Errorf("once it is back: %v", err)
	}
}

// A registration code is not spent on a CA that is not taken.
func TestRegistrationCodeIsSpentLast(t *testing.T) {
	h := newHouse(t)
	c := &CAs{h.reg.trust, h.clock.Now, &unreadables{log: slog.New(slog.DiscardHandler)}}
	var last string
	for i := range casMax {
		r := RegisteredCA{Fingerprint: fmt.Sprintf("%064x", i), Name: "x"}
		if _, err := c.keep(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		last = r.Fingerprint
	}
	code, _, err := c.Code(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ca := foreignCA(t, h.clock, nil)
	register := func() error {
		_, err := c.Register(t.Context(), authority.CertPEM(ca.cert), authority.CertPEM(leafBy(t, h.clock, ca, code, nil)), "", "")
		return err
	}
	if err := register(); !errors.Is(err, ErrRefused) {
		t.Fatal(err)
	}
	if _, err := c.Remove(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if err := register(); err != nil {
		t.Errorf("with the same code, once there is room: %v", err)
	}
}

// An import keeps since when a device is registered, and how it came.
func TestImportKeepsWhereADeviceComesFrom(t *testing.T) {
	a := startAPI(t)
	since := a.clock.Now().Add(-100 * day).UTC()
	if got := a.do("PUT", "/api/v1/devices/d-1", Import{CA: claimedBy + "lot", CreatedAt: since}, nil); got != 201 {
		t.Fatal(got)
	}
	var d Device
	if a.do("GET", "/api/v1/devices/d-1", nil, &d); !d.CreatedAt.Equal(since) || d.CA != claimedBy+"lot" {
		t.Errorf("%+v", d)
	}
	for _, in := range []Import{{CA: "x"}, {CreatedAt: a.clock.Now().Add(1000 * time.Hour)}} {
		if got := a.do("PUT", "/api/v1/devices/d-2", in, nil); got != 400 {
			t.Errorf("%+v: %d", in, got)
		}
	}
}

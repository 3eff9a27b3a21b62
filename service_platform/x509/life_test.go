package x509

import (
	"bytes"
	"crypto/elliptic"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// door opens an admission beside the component.
func (a *api) door() *house {
	h := &house{TB: a.TB, clock: a.clock, bus: a.bus, dir: a.dir, told: make(chan string, 64)}
	h.door = h.openDoor()
	h.door.OnChange(func(d string) { h.told <- d })
	return h
}

// knows waits until the door has heard why it refuses a certificate.
func (h *house) knows(c *stdx509.Certificate, why string) {
	for said := ""; !strings.Contains(said, why); runtime.Gosched() {
		_, err, _ := h.door.lookup(sha256.Sum256(c.Raw))
		said = fmt.Sprint(err)
	}
}

func certOf(t *testing.T, e Enrolled) *stdx509.Certificate {
	t.Helper()
	c, err := authority.ParseCerts([]byte(e.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	return c[0]
}

func TestOldAndNewCertificateOverlapAfterARotation(t *testing.T) {
	a := startAPI(t)
	var first, second Enrolled
	a.do("POST", "/api/v1/devices", Enrolment{ID: "d-17"}, &first)
	overlap := Duration(2 * day)
	if got := a.do("POST", "/api/v1/devices/d-17/rotate", Rotation{CSR: string(csr(t, ecKey(t, elliptic.P256()), "d-17")), Overlap: &overlap}, &second); got != http.StatusCreated {
		t.Fatal(got)
	}
	h := a.door()
	h.admitted(certOf(t, first), "d-17")
	h.admitted(certOf(t, second), "d-17")
	a.clock.move(2 * day)
	h.refused(certOf(t, first), message.CertRevoked) // even before anybody has revoked it
	if d := <-h.told; d != "d-17" {                  // who holds its connection hears of it, though no CA has looked
		t.Errorf("told of %q", d)
	}
	a.s.look(t.Context(), a.s.open.Load())
	h.knows(certOf(t, first), "was revoked")
	var d Device
	if a.do("GET", "/api/v1/devices/d-17", nil, &d); !d.Certs[0].Revoked() || d.Certs[0].Reason != superseded {
		t.Errorf("after the overlap: %+v", d.Certs[0])
	}
	h.refused(certOf(t, first), message.CertRevoked)
	h.admitted(certOf(t, second), "d-17")

	var third Enrolled
	at := Duration(0)
	a.do("POST", "/api/v1/devices/d-17/rotate", Rotation{Overlap: &at}, &third)
	h.knows(certOf(t, second), "was revoked")
	h.refused(certOf(t, second), message.CertRevoked)
	h.admitted(certOf(t, third), "d-17")
	if got := a.do("POST", "/api/v1/devices/nobody/rotate", Rotation{}, nil); got != http.StatusNotFound {
		t.Errorf("rotation of an unknown device: %d", got)
	}
	if got := a.do("POST", "/api/v1/devices/d-17/rotate", map[string]string{"overlap": "-1h"}, nil); got != http.StatusBadRequest {
		t.Errorf("negative overlap: %d", got)
	}
}

// The process dies between the registry's write and the message: the next start says it, under the id it had.
func TestFactIsSaidAfterAKillBetweenWriteAndMessage(t *testing.T) {
	a := startAPI(t)
	o := a.s.open.Load()
	if _, _, err := o.registry.Add(t.Context(), Registration{ID: "d-18", By: "mina"}); err != nil {
		t.Fatal(err)
	}
	a.stop()
	for len(a.heard) > 0 {
		<-a.heard
	}
	a.said = nil
	d, _, err := o.registry.load(t.Context(), "d-18")
	if err != nil {
		t.Fatal(err)
	}
	d.Unsaid = []Fact{{ID: message.NewID(a.clock.Now()), At: a.clock.Now(), Of: serviceplatform.DeviceChanged{Device: "d-18", Change: serviceplatform.Registered, By: "mina"}}}
	raw, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.registry.table.Put(t.Context(), deviceKey("d-18"), raw); err != nil {
		t.Fatal(err)
	}
	a.start()
	if got := <-a.heard; got != "d-18 registered" {
		t.Errorf("said %q", got)
	}
	if a.said[0].ID != d.Unsaid[0].ID {
		t.Error("it was said under another id")
	}
	a.stop() // ends after the fact was settled
	if left, err := o.registry.unsaid(t.Context(), "d-18"); err != nil || len(left) > 0 {
		t.Errorf("unsaid: %v, %v", left, err)
	}
}

// While the bus takes no facts, changes are done and kept to be said in their order, the deletion among them.
func TestFactsWaitForTheBus(t *testing.T) {
	a := startAPI(t)
	a.deaf = true
	a.do("POST", "/api/v1/devices", Enrolment{ID: "d-17"}, nil)
	a.do("POST", "/api/v1/devices/d-17/disable", nil, nil)
	if got := a.do("DELETE", "/api/v1/devices/d-17", nil, nil); got != http.StatusNoContent {
		t.Errorf("delete: %d", got)
	}
	if got := a.do("GET", "/api/v1/devices/d-17", nil, nil); got != http.StatusNotFound {
		t.Errorf("after delete: %d", got)
	}
	a.stop()
	a.deaf = false
	a.start()
	for _, want := range []string{"d-17 registered", "d-17 disabled", "d-17 deleted"} {
		if got := <-a.heard; got != want {
			t.Errorf("said %q, want %q", got, want)
		}
	}
	a.stop()
	if _, _, err := a.s.registryForTest(t).load(t.Context(), "d-17"); !errors.Is(err, ErrUnknownDevice) {
		t.Errorf("the entry is still there: %v", err)
	}
}

func (s *service) registryForTest(t *testing.T) *Registry {
	r, err := OpenRegistry(t.Context(), s.env.Bus, s.env.Now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDeviceIsMadeAnewAfterItsDeletion(t *testing.T) {
	a := startAPI(t)
	var first, second Enrolled
	a.do("POST", "/api/v1/devices", Enrolment{ID: "d-17", Groups: []string{"hall-2"}}, &first)
	a.do("DELETE", "/api/v1/devices/d-17", nil, nil)
	if got := a.do("POST", "/api/v1/devices", Enrolment{ID: "d-17"}, &second); got != http.StatusCreated || !second.Created {
		t.Errorf("%d, created %v", got, second.Created)
	}
	var d Device
	a.do("GET", "/api/v1/devices/d-17", nil, &d)
	if len(d.Certs) != 1 || len(d.Groups) != 0 {
		t.Errorf("it remembers what was before: %+v", d)
	}
	h := a.door()
	h.refused(certOf(t, first), message.CertUnregistered)
	h.admitted(certOf(t, second), "d-17")
}

func TestDevicesAreSelectedByGroupStateAndExpiry(t *testing.T) {
	a := startAPI(t)
	a.do("POST", "/api/v1/devices", Enrolment{ID: "a", Groups: []string{"hall-2"}, Validity: Duration(20 * day)}, nil)
	a.do("POST", "/api/v1/devices", Enrolment{ID: "b", Groups: []string{"hall-2"}}, nil)
	a.do("POST", "/api/v1/devices", Enrolment{ID: "c", Validity: Duration(day)}, nil)
	a.do("PUT", "/api/v1/devices/d", Import{}, nil)
	a.do("POST", "/api/v1/devices/b/disable", nil, nil)
	a.clock.move(2 * day)
	for query, want := range map[string][]string{
		"group=hall-2": {"a", "b"}, "state=expired": {"c"}, "state=disabled": {"b"}, "state=pending": {"d"}, "state=active": {"a"},
		"expiring=30d": {"a", "c"}, "expiring=1d": {"c"}, "group=hall-2&state=active": {"a"},
	} {
		var page struct{ Devices []Device }
		a.do("GET", "/api/v1/devices?"+query, nil, &page)
		var got []string
		for _, d := range page.Devices {
			got = append(got, d.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", query, got, want)
		}
	}
	if got := a.do("GET", "/api/v1/devices?state=lost", nil, nil); got != http.StatusBadRequest {
		t.Errorf("a state that there is not: %d", got)
	}
}

// What was exported, imported elsewhere, is the same fleet; and once more changes nothing.
func TestExportedFleetIsImported(t *testing.T) {
	a, b := startAPI(t), startAPI(t)
	a.do("POST", "/api/v1/devices", Enrolment{ID: "d-17", Groups: []string{"x", "b"}, Attributes: map[string]string{"hall": "2"}, Policy: "pump"}, nil)
	a.do("POST", "/api/v1/devices/d-17/disable", nil, nil)
	var was, is Device
	a.do("GET", "/api/v1/devices/d-17", nil, &was)
	in := Import{ID: was.ID, Attributes: was.Attributes, Groups: was.Groups, Policy: was.Policy, Disabled: was.Disabled, Certs: was.Certs}
	for range 2 {
		if got := b.do("PUT", "/api/v1/devices/d-17", in, &is); got >= 300 {
			t.Fatal(got)
		}
	}
	if is.Policy != "pump" || !is.Disabled || len(is.Certs) != 1 || is.Certs[0].Fingerprint != was.Certs[0].Fingerprint || !slices.Equal(is.Groups, []string{"b", "x"}) {
		t.Errorf("imported %+v", is)
	}
	if got := b.changes(); !slices.Equal(got, []string{"d-17 registered by operator", "d-17 issued by operator", "d-17 disabled by operator"}) {
		t.Errorf("said %q", got)
	}
	for name, c := range map[string]struct {
		path   string
		in     Import
		status int
	}{
		"another's certificate": {"d-18", Import{Certs: was.Certs}, 409},
		"another name":          {"d-18", Import{ID: "d-19"}, 400},
		"bad fingerprint":       {"d-18", Import{Certs: []Certificate{{Fingerprint: "AB"}}}, 400},
	} {
		if got := b.do("PUT", "/api/v1/devices/"+c.path, c.in, nil); got != c.status {
			t.Errorf("%s: %d, want %d", name, got, c.status)
		}
	}
}

func (a *api) crl(issuer string) *stdx509.RevocationList {
	a.Helper()
	var text string
	if got := a.do("GET", "/api/v1/ca/crl?issuer="+issuer, nil, &text); got != http.StatusOK {
		a.Fatal(got, text)
	}
	list, err := stdx509.ParseRevocationList([]byte(text))
	if err != nil {
		a.Fatal(err)
	}
	return list
}

func TestRevocationListHoldsWhatWasWithdrawn(t *testing.T) {
	a := startAPI(t)
	var kept, revoked, deleted Enrolled
	a.do("POST", "/api/v1/devices", Enrolment{ID: "kept"}, &kept)
	a.do("POST", "/api/v1/devices", Enrolment{ID: "revoked"}, &revoked)
	a.do("POST", "/api/v1/devices", Enrolment{ID: "deleted"}, &deleted)
	if n := len(a.crl("").RevokedCertificateEntries); n != 0 {
		t.Errorf("%d entries before anything was withdrawn", n)
	}
	a.do("POST", "/api/v1/devices/revoked/revoke", Change{Reason: superseded}, nil)
	a.do("DELETE", "/api/v1/devices/deleted", nil, nil)
	o := a.s.open.Load()
	list := a.crl("")
	if err := list.CheckSignatureFrom(o.authority.Bundle().Issuing[0]); err != nil {
		t.Error(err)
	}
	has := func(e Enrolled) bool {
		return slices.ContainsFunc(list.RevokedCertificateEntries, func(r stdx509.RevocationListEntry) bool {
			return r.SerialNumber.Cmp(certOf(t, e).SerialNumber) == 0
		})
	}
	if has(kept) || !has(revoked) || !has(deleted) {
		t.Errorf("kept %v, revoked %v, deleted %v", has(kept), has(revoked), has(deleted))
	}
	old := fmt.Sprintf("%x", o.authority.Bundle().Issuing[0].SubjectKeyId)
	if got := a.do("POST", "/api/v1/ca/rollover", struct{}{}, nil); got != http.StatusOK {
		t.Fatal(got)
	}
	if n := len(a.crl("").RevokedCertificateEntries); n != 0 {
		t.Errorf("the new CA's list has %d entries of the old one's", n)
	}
	if list = a.crl(old); !has(revoked) {
		t.Error("the old CA's list is not served any more")
	}
	if got := a.do("GET", "/api/v1/ca/crl?issuer=00", nil, nil); got != http.StatusNotFound {
		t.Errorf("of an unknown issuer: %d", got)
	}
}

func TestOpenSSLReadsTheRevocationList(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("no openssl on this machine: tools/needs.sh installs it")
	}
	a := newAPI(t)
	a.clock.ns.Store(time.Now().UnixNano()) // openssl has no other clock
	a.start()
	var good, bad Enrolled
	a.do("POST", "/api/v1/devices", Enrolment{ID: "good"}, &good)
	a.do("POST", "/api/v1/devices", Enrolment{ID: "bad"}, &bad)
	a.do("POST", "/api/v1/devices/bad/revoke", nil, nil)
	var list string
	a.do("GET", "/api/v1/ca/crl?format=pem", nil, &list)
	dir := t.TempDir()
	for name, text := range map[string]string{"crl.pem": list, "good": good.Certificate, "bad": bad.Certificate} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]bool{"good": true, "bad": false} {
		out, err := exec.Command(openssl, "verify", "-crl_check", "-CRLfile", filepath.Join(dir, "crl.pem"), "-CAfile", filepath.Join(a.dir, "root.crt"),
			"-untrusted", filepath.Join(a.dir, "issuing.crt"), filepath.Join(dir, name)).CombinedOutput()
		if (err == nil) != want || !want && !bytes.Contains(out, []byte("revoked")) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestRootKeyTravelsEncryptedAndIsNotLogged(t *testing.T) {
	a := startAPI(t)
	var k struct{ Key, Certificate, Fingerprint string }
	if got := a.do("POST", "/api/v1/ca/root/export", map[string]string{"passphrase": "short"}, nil); got != http.StatusConflict {
		t.Errorf("under a short passphrase: %d", got)
	}
	a.do("POST", "/api/v1/ca/root/export", map[string]string{"passphrase": passphrase}, &k)
	if _, err := authority.UnsealKey([]byte(k.Key), []byte(passphrase)); err != nil {
		t.Fatal(err)
	}
	if got := a.do("POST", "/api/v1/ca/root/remove", map[string]string{"fingerprint": k.Fingerprint}, nil); got != http.StatusOK {
		t.Errorf("remove: %d", got)
	}
	if got := a.do("POST", "/api/v1/ca/rollover", struct{}{}, nil); got != http.StatusConflict {
		t.Errorf("rollover without the root's key: %d", got)
	}
	var st CAStatus
	if got := a.do("POST", "/api/v1/ca/root/restore", map[string]string{"key": k.Key, "passphrase": passphrase}, &st); got != http.StatusOK || !st.RootKey {
		t.Errorf("restore: %d", got)
	}
	if strings.Contains(a.logs.String(), passphrase) || strings.Contains(a.logs.String(), "PRIVATE") {
		t.Error("a secret is in the log")
	}
}

// A root's key that nobody has elsewhere is not removed by a slip; that it was exported is remembered over a restart.
func TestRootKeyThatWasNeverExportedIsNotRemoved(t *testing.T) {
	a := startAPI(t)
	var st CAStatus
	a.do("GET", "/api/v1/ca/status", nil, &st)
	if got := a.do("POST", "/api/v1/ca/root/remove", RootKey{Fingerprint: st.Root.Fingerprint}, nil); got != http.StatusConflict || st.Exported {
		t.Fatalf("never exported: %d, %+v", got, st)
	}
	if got := a.do("POST", "/api/v1/ca/rollover", struct{}{}, &st); got != http.StatusOK {
		t.Fatalf("rollover: %d", got)
	}
	a.do("POST", "/api/v1/ca/root/export", map[string]string{"passphrase": passphrase}, nil)
	a.start()
	a.do("POST", "/api/v1/ca/rollover", struct{}{}, &st)
	if got := a.do("POST", "/api/v1/ca/root/remove", RootKey{Fingerprint: st.Root.Fingerprint}, nil); got != http.StatusConflict || st.Exported {
		t.Fatalf("the root of before was exported, not this one: %d, %+v", got, st)
	}
	a.do("POST", "/api/v1/ca/root/export", map[string]string{"passphrase": passphrase}, nil)
	a.start()
	if got := a.do("POST", "/api/v1/ca/root/remove", RootKey{Fingerprint: st.Root.Fingerprint}, &st); got != http.StatusOK || st.RootKey || !st.Exported {
		t.Errorf("exported before a restart: %d, %+v", got, st)
	}

	b := startAPI(t)
	b.do("GET", "/api/v1/ca/status", nil, &st)
	if got := b.do("POST", "/api/v1/ca/root/remove", RootKey{Fingerprint: st.Root.Fingerprint, ForGood: true}, &st); got != http.StatusOK || st.RootKey {
		t.Errorf("for good: %d, %+v", got, st)
	}
}

func TestTokenThatIsOverAtOnceIsRefused(t *testing.T) {
	a := startAPI(t)
	for expires, want := range map[string]int{"0s": 400, "-1h": 400, "91d": 400, "1h": 201, "90d": 201} {
		if got := a.do("POST", "/api/v1/devices/d-1/token", map[string]string{"expires": expires}, nil); got != want {
			t.Errorf("expires in %s: %d, want %d", expires, got, want)
		}
	}
}

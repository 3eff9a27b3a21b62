package x509

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// house is a CA, its registry and a door, on one bus.
type house struct {
	testing.TB
	clock *clock
	bus   bus.Bus
	dir   string
	ca    *authority.Authority
	reg   *Registry
	door  *Admission
	told  chan string
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{TB: t, clock: newClock(), bus: newTables(), dir: t.TempDir(), told: make(chan string, 64)}
	h.ca = openCA(t, h.dir, h.clock)
	trust, _ := h.bus.Table(t.Context(), trustTable, bus.TableOptions{})
	if err := publishTrust(t.Context(), trust, h.ca.Bundle(), false); err != nil {
		t.Fatal(err)
	}
	var err error
	if h.reg, err = OpenRegistry(t.Context(), h.bus, h.clock.Now); err != nil {
		t.Fatal(err)
	}
	h.door = h.openDoor()
	h.door.OnChange(func(d string) { h.told <- d })
	return h
}

// openDoor starts an admission and waits until it has read the tables.
func (h *house) openDoor() *Admission {
	a := NewAdmission(h.bus, AdmissionOptions{Now: h.clock.Now,
		ServerCert: filepath.Join(h.dir, "server.crt"), ServerKey: filepath.Join(h.dir, "server.key")})
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- a.Run(ctx, func() { close(ready) }) }()
	h.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.Error(err)
		}
	})
	<-ready
	return a
}

func (h *house) enrol(id string) *stdx509.Certificate {
	h.Helper()
	i := issue(h.TB, h.ca, authority.Request{Device: id})
	if _, _, err := h.reg.Add(h.Context(), Registration{ID: id, Certificate: recordOf(i.Certificate, h.clock.Now())}); err != nil {
		h.Fatal(err)
	}
	return i.Certificate
}

func (h *house) admitted(c *stdx509.Certificate, want string) {
	h.Helper()
	if got, err := h.door.Admit(h.Context(), c, nil); got != want || err != nil {
		h.Errorf("got %q, %v; want %q admitted", got, err, want)
	}
}

func (h *house) refused(c *stdx509.Certificate, want message.Reason) {
	h.Helper()
	got, err := h.door.Admit(h.Context(), c, nil)
	var r *message.Rejection
	if !errors.As(err, &r) || r.Reason != want || got != "" {
		h.Errorf("got %q, %v; want it refused as %s", got, err, want)
	}
}

func TestRegisteredDeviceIsAdmitted(t *testing.T) {
	h := newHouse(t)
	h.admitted(h.enrol("d.17"), "d.17")
}

// The bus may be slow to tell of a device that was enrolled a moment ago, and must not have it refused.
func TestDeviceIsAdmittedAtOnceAfterEnrolment(t *testing.T) {
	h := newHouse(t)
	h.bus.(*tables).open[devicesTable].deaf = true
	h.admitted(h.enrol("d-17"), "d-17")
}

func TestNoCertificate(t *testing.T) { newHouse(t).refused(nil, message.CertMissing) }

func TestExpiredCertificate(t *testing.T) {
	h := newHouse(t)
	c := h.enrol("d-17")
	h.clock.move(365*day + time.Second)
	h.refused(c, message.CertExpired)
	h.clock.move(30 * 365 * day) // and after the end of its issuers it is still its own end that counts
	h.refused(c, message.CertExpired)
}

func TestCertificateOfTheFuture(t *testing.T) {
	h := newHouse(t)
	h.clock.move(day)
	c := h.enrol("d-17")
	h.clock.move(-day)
	h.refused(c, message.CertNotYetValid)
}

// The common name proves nothing: the same one under another CA is a stranger.
func TestSameNameUnderAnotherCA(t *testing.T) {
	h := newHouse(t)
	h.enrol("d-17")
	other := openCA(t, t.TempDir(), h.clock)
	h.refused(issue(t, other, authority.Request{Device: "d-17"}).Certificate, message.CertUnknownCA)

	// not even with the other CA's whole chain
	i := issue(t, other, authority.Request{Device: "d-17"})
	b := other.Bundle()
	if _, err := h.door.Admit(t.Context(), i.Certificate, append(b.Issuing, b.Roots...)); message.ReasonOf(err, 0) != message.CertUnknownCA {
		t.Errorf("with its chain: %v", err)
	}
}

// Nor does a registration help whose CA is not trusted.
func TestRegisteredUnderAnotherCA(t *testing.T) {
	h := newHouse(t)
	i := issue(t, openCA(t, t.TempDir(), h.clock), authority.Request{Device: "d-17"})
	if _, _, err := h.reg.Add(t.Context(), Registration{ID: "d-17", Certificate: recordOf(i.Certificate, h.clock.Now())}); err != nil {
		t.Fatal(err)
	}
	h.refused(i.Certificate, message.CertUnknownCA)
}

// A certificate of this CA that nobody registered, though its name is a registered device's.
func TestUnregisteredCertificateOfAKnownDevice(t *testing.T) {
	h := newHouse(t)
	h.enrol("d-17")
	h.refused(issue(t, h.ca, authority.Request{Device: "d-17"}).Certificate, message.CertUnregistered)
}

func TestCertificateRegisteredUnderAnotherName(t *testing.T) {
	h := newHouse(t)
	i := issue(t, h.ca, authority.Request{Device: "d-17"})
	if _, _, err := h.reg.Add(t.Context(), Registration{ID: "d-18", Certificate: recordOf(i.Certificate, h.clock.Now())}); err != nil {
		t.Fatal(err)
	}
	h.refused(i.Certificate, message.CertUnregistered)
}

func TestServersAndCAsAreNoDevices(t *testing.T) {
	h := newHouse(t)
	server := certsIn(t, filepath.Join(h.dir, "server.crt"))
	h.refused(server[0], message.CertWrongUsage)
	h.refused(h.ca.Bundle().Issuing[0], message.CertWrongUsage)
}

func TestSelfSignedCertificate(t *testing.T) {
	h := newHouse(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &stdx509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "d-17"}, NotBefore: h.clock.Now(),
		NotAfter: h.clock.Now().Add(day), ExtKeyUsage: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth}}
	c, err := sign(tmpl, pair{tmpl, key}, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	h.refused(c, message.CertUnknownCA)
}

func TestRevocationReachesTheDoorAndTheConnected(t *testing.T) {
	h := newHouse(t)
	lost, kept := h.enrol("d-17"), h.enrol("d-17")
	h.admitted(lost, "d-17")
	h.admitted(kept, "d-17")
	if _, revoked, err := h.reg.Revoke(t.Context(), "d-17", authority.Fingerprint(lost.Raw), "mina", "stolen"); err != nil || len(revoked) != 1 {
		t.Fatal(revoked, err)
	}
	if d := <-h.told; d != "d-17" {
		t.Errorf("told of %q", d)
	}
	h.refused(lost, message.CertRevoked)
	h.admitted(kept, "d-17")
}

func TestDisabledDeviceIsRefusedUntilEnabled(t *testing.T) {
	h := newHouse(t)
	c, other := h.enrol("d-17"), h.enrol("d-18")
	h.admitted(c, "d-17")
	h.admitted(other, "d-18")
	if _, _, err := h.reg.Disable(t.Context(), "d-17", true, "mina", "floods"); err != nil {
		t.Fatal(err)
	}
	if d := <-h.told; d != "d-17" {
		t.Errorf("told of %q", d)
	}
	h.refused(c, message.DeviceDisabled)
	h.admitted(other, "d-18")
	if _, _, err := h.reg.Disable(t.Context(), "d-17", false, "mina", ""); err != nil {
		t.Fatal(err)
	}
	h.enrol("d-19") // one call at a time: when this one is known without asking, so is the one before
	for known := false; !known; {
		h.door.mu.RLock()
		known = h.door.devices[deviceKey("d-19")] != nil
		h.door.mu.RUnlock()
	}
	h.admitted(c, "d-17")
}

func TestRemovedDeviceIsUnregistered(t *testing.T) {
	h := newHouse(t)
	c := h.enrol("d-17")
	h.admitted(c, "d-17")
	if _, err := h.reg.Remove(t.Context(), "d-17", "mina"); err != nil {
		t.Fatal(err)
	}
	<-h.told
	h.refused(c, message.CertUnregistered)
}

func TestUnreadableEntryAdmitsNobody(t *testing.T) {
	h := newHouse(t)
	c := h.enrol("d-17")
	h.admitted(c, "d-17")
	if _, err := h.reg.table.Put(t.Context(), deviceKey("d-17"), []byte("{")); err != nil {
		t.Fatal(err)
	}
	<-h.told
	h.refused(c, message.CertUnregistered)
}

// What was told late must not undo what is known already.
func TestOlderEntryDoesNotUndoARevocation(t *testing.T) {
	h := newHouse(t)
	c := h.enrol("d-17")
	before, err := h.reg.table.Get(t.Context(), deviceKey("d-17"))
	if err != nil {
		t.Fatal(err)
	}
	h.admitted(c, "d-17")
	if _, _, err := h.reg.Revoke(t.Context(), "d-17", "", "mina", "stolen"); err != nil {
		t.Fatal(err)
	}
	<-h.told
	h.door.applyDevice(before)
	h.refused(c, message.CertRevoked)
	if _, err := h.reg.Remove(t.Context(), "d-17", "mina"); err != nil {
		t.Fatal(err)
	}
	after, err := h.reg.table.Get(t.Context(), deviceKey("d-17"))
	if err != nil {
		t.Fatal(err)
	}
	h.door.applyDevice(after)
	h.door.applyDevice(before)
	h.refused(c, message.CertUnregistered)
	if _, _, err := h.reg.Add(t.Context(), Registration{ID: "d-17", Certificate: &Certificate{Fingerprint: authority.Fingerprint(c.Raw), NotAfter: c.NotAfter}}); !errors.Is(err, ErrRefused) {
		t.Errorf("a withdrawn certificate was registered again: %v", err)
	}
}

func TestRegistrySurvivesARestart(t *testing.T) {
	h := newHouse(t)
	good, bad := h.enrol("d-17"), h.enrol("d-18")
	if _, _, err := h.reg.Revoke(t.Context(), "d-18", "", "mina", "lost"); err != nil {
		t.Fatal(err)
	}
	h.door = h.openDoor()
	h.admitted(good, "d-17")
	h.refused(bad, message.CertRevoked)
}

func TestAdmitWaitsForTheRegistry(t *testing.T) {
	h := newHouse(t)
	c := h.enrol("d-17")
	h.door = NewAdmission(h.bus, AdmissionOptions{Now: h.clock.Now}) // does not run
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.door.Admit(ctx, c, nil); message.ReasonOf(err, 0) != message.BusUnavailable {
		t.Errorf("got %v; want bus_unavailable", err)
	}
}

// A CA that was lost must not be replaced by a new one in silence.
func TestSecondCAIsNotTrustedByItself(t *testing.T) {
	h := newHouse(t)
	table, _ := h.bus.Table(t.Context(), trustTable, bus.TableOptions{})
	other := openCA(t, t.TempDir(), h.clock)
	if err := publishTrust(t.Context(), table, other.Bundle(), false); !errors.Is(err, ErrOtherCA) || !strings.Contains(err.Error(), "add_root") {
		t.Errorf("got %v; want ErrOtherCA and the remedy", err)
	}
	if err := publishTrust(t.Context(), table, other.Bundle(), true); err != nil {
		t.Error(err)
	}
}

func TestTwoChangesAtOnceBothStay(t *testing.T) {
	h := newHouse(t)
	done := make(chan error, 12)
	for range cap(done) {
		go func() {
			i, err := h.ca.Issue(authority.Request{Device: "d-17"})
			if err == nil {
				_, _, err = h.reg.Add(t.Context(), Registration{ID: "d-17", Certificate: recordOf(i.Certificate, h.clock.Now())})
			}
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if d, err := h.reg.Get(t.Context(), "d-17"); err != nil || len(d.Certs) != cap(done) {
		t.Errorf("%d certificates, %v; want %d", len(d.Certs), err, cap(done))
	}
}

func TestTooManyValidCertificatesAreRefused(t *testing.T) {
	h := newHouse(t)
	first := h.enrol("d-17")
	for range certsMax - 1 {
		h.enrol("d-17")
	}
	add := func() error {
		_, _, err := h.reg.Add(t.Context(), Registration{ID: "d-17", Certificate: recordOf(issue(t, h.ca, authority.Request{Device: "d-17"}).Certificate, h.clock.Now())})
		return err
	}
	if err := add(); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v; want ErrRefused", err)
	}
	if _, _, err := h.reg.Revoke(t.Context(), "d-17", authority.Fingerprint(first.Raw), "", ""); err != nil {
		t.Fatal(err)
	}
	if err := add(); err != nil {
		t.Error("after one was revoked:", err)
	}
}

// handshake connects to a listener with the door's configuration and gives the server's certificate.
func (h *house) handshake(conf *tls.Config) *stdx509.Certificate {
	h.Helper()
	device := issue(h.TB, h.ca, authority.Request{Device: "d-17"})
	pair, err := tls.X509KeyPair(device.Chain, device.Key)
	if err != nil {
		h.Fatal(err)
	}
	roots, _ := pools(h.ca.Bundle())
	l, r := net.Pipe()
	client := tls.Client(l, &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}, Time: h.clock.Now})
	server := tls.Server(r, conf)
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		h.Fatal(err)
	}
	go func() { _, _ = client.Read(make([]byte, 1)) }() // takes the session ticket
	if err := <-done; err != nil {
		h.Fatal(err)
	}
	if got := server.ConnectionState().PeerCertificates[0]; !got.Equal(device.Certificate) {
		h.Error("the server saw another client certificate")
	}
	cert := client.ConnectionState().PeerCertificates[0]
	_ = l.Close()
	_ = r.Close()
	return cert
}

func TestServerCertificateIsRenewedAndReloadedLive(t *testing.T) {
	h := newHouse(t)
	conf, err := h.door.ServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	first := h.handshake(conf)
	for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
		if err := first.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	h.clock.move(59 * day)
	if err := h.ca.Renew(unpublished); err != nil {
		t.Fatal(err)
	}
	if !h.handshake(conf).Equal(first) {
		t.Error("renewed before two thirds of its time")
	}
	h.clock.move(2 * day)
	if err := h.ca.Renew(unpublished); err != nil {
		t.Fatal(err)
	}
	h.clock.move(reloadEvery)
	if h.handshake(conf).Equal(first) {
		t.Error("the listener still shows the old certificate")
	}
}

func TestServerTLSWantsFiles(t *testing.T) {
	a := NewAdmission(newTables(), AdmissionOptions{})
	if _, err := a.ServerTLS(); err == nil || !strings.Contains(err.Error(), "server_cert") {
		t.Errorf("got %v; want the remedy", err)
	}
}

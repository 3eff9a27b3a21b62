package x509

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"crypto/rand"
	stdx509 "crypto/x509"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

func TestBothRootsAreTrustedAfterARollover(t *testing.T) {
	h := newHouse(t)
	old, oldRoot := h.enrol("d-17"), h.ca.Bundle().Roots[0]
	table, _ := h.bus.Table(t.Context(), trustTable, bus.TableOptions{})
	if err := h.ca.Rollover(func(b authority.Bundle) error { return publishTrust(t.Context(), table, b, false) }); err != nil {
		t.Fatal(err)
	}
	fresh := h.enrol("d-18")
	if err := fresh.CheckSignatureFrom(h.ca.Bundle().Issuing[0]); err != nil || h.ca.Bundle().Issuing[0].CheckSignatureFrom(oldRoot) == nil {
		t.Error("the new root does not issue:", err)
	}
	h.door = h.openDoor()
	h.admitted(old, "d-17")
	h.admitted(fresh, "d-18")
	again := openCA(t, h.dir, h.clock)
	if !bytes.Equal(again.Bundle().PEM(), h.ca.Bundle().PEM()) {
		t.Error("a restart knows another bundle")
	}
	if err := h.ca.Retire(authority.Fingerprint(h.ca.Bundle().Roots[0].Raw)); !errors.Is(err, ErrRefused) {
		t.Errorf("the root in use is retired: %v", err)
	}
	if err := errors.Join(h.ca.Retire(authority.Fingerprint(oldRoot.Raw)), unpublishTrust(t.Context(), table, authority.Fingerprint(oldRoot.Raw))); err != nil {
		t.Fatal(err)
	}
	if b := openCA(t, h.dir, h.clock).Bundle(); len(b.Roots) != 1 || len(b.Issuing) != 1 {
		t.Errorf("after retiring: %d roots, %d issuing CAs", len(b.Roots), len(b.Issuing))
	}
	h.door = h.openDoor()
	h.refused(old, message.CertUnknownCA)
	h.admitted(fresh, "d-18")
}

// Who publishes what he read before a root was retired, here or at another node, does not bring it back.
func TestRetiredRootDoesNotComeBack(t *testing.T) {
	h := newHouse(t)
	table, _ := h.bus.Table(t.Context(), trustTable, bus.TableOptions{})
	publish := func(b authority.Bundle) error { return publishTrust(t.Context(), table, b, false) }
	oldRoot := h.ca.Bundle().Roots[0]
	if err := h.ca.Rollover(publish); err != nil {
		t.Fatal(err)
	}
	late := h.ca.Bundle()
	s := &service{}
	o := &opened{authority: h.ca, trust: store{table}}
	if err := o.retire(t.Context(), authority.Fingerprint(h.ca.Bundle().Roots[0].Raw)); !errors.Is(err, ErrRefused) {
		t.Errorf("the root in use is retired: %v", err)
	}
	// Another node that has the same directory retires it: this one's memory has it still.
	if err := unpublishTrust(t.Context(), table, authority.Fingerprint(oldRoot.Raw)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // once more, as after a break, it is no error
		if err := errors.Join(publish(late), s.publish(t.Context(), o, nil), o.retire(t.Context(), authority.Fingerprint(oldRoot.Raw))); err != nil {
			t.Fatal(err)
		}
	}
	all, err := o.trusted(t.Context())
	if err != nil || len(all.Roots) != 1 || len(all.Issuing) != 1 || all.Roots[0].Equal(oldRoot) {
		t.Errorf("%d roots and %d issuing CAs are trusted, %v", len(all.Roots), len(all.Issuing), err)
	}
	if b := h.ca.Bundle(); len(b.Roots) != 1 || len(b.Issuing) != 1 {
		t.Errorf("this process has not forgotten it: %d roots", len(b.Roots))
	}
	if err := unpublishTrust(t.Context(), table, authority.Fingerprint(h.ca.Bundle().Roots[0].Raw)); !errors.Is(err, ErrRefused) {
		t.Errorf("the last root is retired: %v", err)
	}
}

// foreignCA is somebody else's CA: what it signs, and with which key.
func foreignCA(t testing.TB, c *clock, change func(*stdx509.Certificate)) pair {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &stdx509.Certificate{SerialNumber: serial(t), NotBefore: c.Now().Add(-day), NotAfter: c.Now().Add(900 * day),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: stdx509.KeyUsageCertSign}
	tmpl.Subject.CommonName = "Factory CA"
	if change != nil {
		change(tmpl)
	}
	cert, err := sign(tmpl, pair{tmpl, key}, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pair{cert, key}
}

// leafBy signs a client's certificate with somebody's CA.
func leafBy(t testing.TB, c *clock, by pair, cn string, change func(*stdx509.Certificate)) *stdx509.Certificate {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	return leafFor(t, c, by, cn, key.Public(), change)
}

func leafFor(t testing.TB, c *clock, by pair, cn string, key any, change func(*stdx509.Certificate)) *stdx509.Certificate {
	t.Helper()
	tmpl := &stdx509.Certificate{SerialNumber: serial(t), NotBefore: c.Now().Add(-time5), NotAfter: c.Now().Add(90 * day),
		KeyUsage: stdx509.KeyUsageDigitalSignature, ExtKeyUsage: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
	tmpl.Subject.CommonName = cn
	if change != nil {
		change(tmpl)
	}
	der, err := stdx509.CreateCertificate(rand.Reader, tmpl, by.cert, key, by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := stdx509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestKeysOfDevicesAreApart(t *testing.T) {
	if deviceKey("a.b") == deviceKey("a=2Eb") || strings.ContainsAny(strings.TrimPrefix(deviceKey("a.b:c"), devicePrefix), ".:") {
		t.Error("keys of two devices meet, or hold what a table's key cannot")
	}
}

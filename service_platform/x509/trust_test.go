package x509

import (
	"bytes"
	"context"
	"encoding/json"
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

// An entry that cannot be read is passed over and named once; all others are listed.
func TestUnreadableEntriesSpoilNoList(t *testing.T) {
	a := newArena(t)
	table := a.bus.(*tables).open[trustTable]
	for _, key := range []string{casPrefix + "zz", claimPrefix + "zz"} {
		if _, err := table.Put(t.Context(), key, []byte("garbage")); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/api/v1/devices", "/api/v1/claims", "/api/v1/ca/registered", "/api/v1/admissions/by-ca", "/api/v1/devices/d-1"} {
		for range 2 {
			var got json.RawMessage
			if status := a.do("GET", path, nil, &got); status != 200 {
				t.Errorf("%s: %d %s", path, status, got)
			}
		}
	}
	if said := a.logs.String(); strings.Count(said, "it is not listed") != 2 || !strings.Contains(said, casPrefix+"zz") || !strings.Contains(said, claimPrefix+"zz") {
		t.Errorf("not named once each:\n%s", said)
	}
}

// What is trusted but cannot be read is named, with the remedy; nobody writes over it unless told to, and then all is well.
func TestUnreadableTrustIsNamedAndMended(t *testing.T) {
	a := newArena(t)
	o, leaf := a.s.open.Load(), certOf(t, a.device)
	if _, err := o.trust.Put(t.Context(), trustKey, []byte(`{"roots":`)); err != nil {
		t.Fatal(err)
	}
	a.settle()
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: leaf}); err != nil { // it knows those of before
		t.Error(err)
	}
	fresh := NewAdmission(a.bus, AdmissionOptions{Now: a.clock.Now})
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- fresh.Run(ctx, func() { close(ready) }) }()
	<-ready
	named := func(err error) bool {
		return err != nil && strings.Contains(err.Error(), trustKey+" of table "+trustTable) && strings.Contains(err.Error(), "add_root")
	}
	if _, err := fresh.AdmitClient(t.Context(), Client{Leaf: leaf}); !named(err) {
		t.Errorf("a door that starts now: %v", err)
	}
	if err := a.s.renew(t.Context(), o); !named(err) {
		t.Errorf("the CA: %v", err)
	}
	if err := publishTrust(t.Context(), o.trust, o.authority.Bundle(), true); err != nil {
		t.Fatal(err)
	}
	a.settle()
	if _, err := fresh.AdmitClient(t.Context(), Client{Leaf: leaf}); err != nil {
		t.Errorf("once it is mended: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

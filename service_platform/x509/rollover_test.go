package x509

import (
	"bytes"
	"crypto/rand"
	stdx509 "crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// serverTrustedBy verifies the server's certificate with what it shows, by one root.
func serverTrustedBy(t *testing.T, dir string, c *clock, root *stdx509.Certificate) error {
	t.Helper()
	shown, err := readCerts(filepath.Join(dir, "server.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots, others := stdx509.NewCertPool(), stdx509.NewCertPool()
	roots.AddCert(root)
	for _, i := range shown[1:] {
		others.AddCert(i)
	}
	_, err = shown[0].Verify(stdx509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: c.Now(), DNSName: "localhost"})
	return err
}

func TestBothRootsAreTrustedAfterARollover(t *testing.T) {
	h := newHouse(t)
	old, oldRoot := h.enrol("d-17"), h.ca.Bundle().Roots[0]
	if err := h.ca.Rollover(); err != nil {
		t.Fatal(err)
	}
	table, _ := h.bus.Table(t.Context(), trustTable, bus.TableOptions{})
	if err := publishTrust(t.Context(), table, h.ca.Bundle(), false); err != nil {
		t.Fatal(err)
	}
	fresh := h.enrol("d-18")
	if err := fresh.CheckSignatureFrom(h.ca.use.cert); err != nil || h.ca.use.cert.CheckSignatureFrom(oldRoot) == nil {
		t.Error("the new root does not issue:", err)
	}
	h.door = h.openDoor()
	h.admitted(old, "d-17")
	h.admitted(fresh, "d-18")
	for name, root := range map[string]*stdx509.Certificate{"old": oldRoot, "new": h.ca.Bundle().Roots[0]} {
		if err := serverTrustedBy(t, h.dir, h.clock, root); err != nil {
			t.Errorf("a device that knows only the %s root: %v", name, err)
		}
	}

	again := openCA(t, h.dir, h.clock)
	if !bytes.Equal(again.Bundle().PEM(), h.ca.Bundle().PEM()) {
		t.Error("a restart knows another bundle")
	}
	if err := h.ca.Retire(Fingerprint(h.ca.Bundle().Roots[0].Raw)); !errors.Is(err, ErrRefused) {
		t.Errorf("the root in use is retired: %v", err)
	}
	if err := errors.Join(h.ca.Retire(Fingerprint(oldRoot.Raw)), unpublishTrust(t.Context(), table, Fingerprint(oldRoot.Raw))); err != nil {
		t.Fatal(err)
	}
	if b := openCA(t, h.dir, h.clock).Bundle(); len(b.Roots) != 1 || len(b.Issuing) != 1 {
		t.Errorf("after retiring: %d roots, %d issuing CAs", len(b.Roots), len(b.Issuing))
	}
	h.door = h.openDoor()
	h.refused(old, message.CertUnknownCA)
	h.admitted(fresh, "d-18")
}

// A rollover that was cut off is finished, or was not begun; the devices of before get in either way.
func TestRolloverCutOffAnywhere(t *testing.T) {
	for moved := range 7 {
		t.Run(fmt.Sprint("after ", moved, " moves"), func(t *testing.T) {
			dir, c := t.TempDir(), newClock()
			a := openCA(t, dir, c)
			old, before := issue(t, a, Request{Device: "d"}).Certificate, a.Bundle()
			if err := a.retire(a.use); err != nil {
				t.Fatal(err)
			}
			if err := a.prepareRollover(fmt.Sprintf("root-%x.crt", a.root.cert.SerialNumber)); err != nil {
				t.Fatal(err)
			}
			files, err := filepath.Glob(filepath.Join(dir, rolloverDir, "*.*"))
			if err != nil || len(files) != 6 {
				t.Fatal(files, err)
			}
			for _, f := range files[:min(moved, len(files))] {
				to := filepath.Join(dir, filepath.Base(f))
				if bytes.HasPrefix([]byte(filepath.Base(f)), []byte("root-")) {
					to = filepath.Join(dir, retiredDir, filepath.Base(f))
				}
				if err := os.Rename(f, to); err != nil {
					t.Fatal(err)
				}
			}
			b := openCA(t, dir, c).Bundle()
			if len(b.Roots) != 2 || len(b.Issuing) != 2 || !b.Roots[1].Equal(before.Roots[0]) {
				t.Fatalf("%d roots, %d issuing CAs", len(b.Roots), len(b.Issuing))
			}
			roots, issuing := pools(b)
			if _, err := old.Verify(stdx509.VerifyOptions{Roots: roots, Intermediates: issuing, CurrentTime: c.Now(),
				KeyUsages: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth}}); err != nil {
				t.Error(err)
			}
		})
	}
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	if err := a.prepareRollover("root-1.crt"); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, rolloverDir, rolloverDone)); err != nil {
		t.Fatal(err)
	}
	if b := openCA(t, dir, c).Bundle(); !bytes.Equal(b.PEM(), a.Bundle().PEM()) {
		t.Error("a rollover that was not whole took place")
	}
	if _, err := os.Stat(filepath.Join(dir, rolloverDir)); !errors.Is(err, os.ErrNotExist) {
		t.Error("keys of a rollover that was not whole lie around:", err)
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

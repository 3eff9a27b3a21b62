package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const day = 24 * time.Hour

// clock stands still until it is moved.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) Now() time.Time       { return time.Unix(0, c.ns.Load()).UTC() }
func (c *clock) move(d time.Duration) { c.ns.Add(int64(d)) }

func openCA(t testing.TB, dir string, c *clock) *Authority {
	t.Helper()
	a, err := Open(dir, Options{Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t testing.TB, a *Authority, r Request) *Issued {
	t.Helper()
	i, err := a.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func pools(b Bundle) (roots, issuing *stdx509.CertPool) {
	roots, issuing = stdx509.NewCertPool(), stdx509.NewCertPool()
	for _, c := range b.Roots {
		roots.AddCert(c)
	}
	for _, c := range b.Issuing {
		issuing.AddCert(c)
	}
	return roots, issuing
}

func TestDeviceCertificateSaysWhoAndOnlyClient(t *testing.T) {
	c := newClock()
	a := openCA(t, t.TempDir(), c)
	cert := issue(t, a, Request{Device: "pump:7@hall.2"}).Certificate
	roots, issuing := pools(a.Bundle())
	verify := func(u stdx509.ExtKeyUsage) error {
		_, err := cert.Verify(stdx509.VerifyOptions{Roots: roots, Intermediates: issuing, CurrentTime: c.Now(), KeyUsages: []stdx509.ExtKeyUsage{u}})
		return err
	}
	if err := verify(stdx509.ExtKeyUsageClientAuth); err != nil {
		t.Error("as a client:", err)
	}
	if err := verify(stdx509.ExtKeyUsageServerAuth); err == nil {
		t.Error("a device's certificate verifies as a server's")
	}
	if cert.Subject.CommonName != "pump:7@hall.2" || len(cert.URIs) != 1 || cert.URIs[0].String() != "naru:device:pump:7@hall.2" {
		t.Errorf("it names %q and %v", cert.Subject.CommonName, cert.URIs)
	}
	if got := cert.NotBefore; !got.Equal(c.Now().Add(-5 * time.Minute)) {
		t.Errorf("it begins %s, want five minutes ago", got)
	}
	if got := cert.NotAfter; !got.Equal(c.Now().Add(365 * day)) {
		t.Errorf("it ends %s, want in a year", got)
	}
	if cert.SerialNumber.BitLen() < 100 || cert.IsCA {
		t.Errorf("serial %v, CA %v", cert.SerialNumber, cert.IsCA)
	}
}

func TestOpenSSLVerifiesTheChain(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("no openssl on this machine: tools/needs.sh installs it")
	}
	dir, c := t.TempDir(), &clock{}
	c.ns.Store(time.Now().UnixNano()) // openssl has no other clock
	a := openCA(t, dir, c)
	chain := filepath.Join(dir, "device.crt")
	if err := os.WriteFile(chain, issue(t, a, Request{Device: "d-17"}).Chain, 0o600); err != nil {
		t.Fatal(err)
	}
	for purpose, file := range map[string]string{"sslclient": chain, "sslserver": filepath.Join(dir, "server.crt")} {
		out, err := exec.Command(openssl, "verify", "-x509_strict", "-purpose", purpose, "-CAfile", filepath.Join(dir, "root.crt"),
			"-untrusted", filepath.Join(dir, "issuing.crt"), file).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", purpose, err, out)
		}
	}
}

func TestKeysAreForTheirOwnerOnly(t *testing.T) {
	dir := t.TempDir()
	openCA(t, dir, newClock())
	keys := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if filepath.Ext(path) != ".key" {
			return err
		}
		keys++
		if info, _ := d.Info(); info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", d.Name(), info.Mode())
		}
		return err
	})
	if err != nil || keys != 3 {
		t.Errorf("%d keys, %v; want root, issuing and server", keys, err)
	}
}

func TestCAIsTheSameAfterARestart(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	before := openCA(t, dir, c).Bundle().PEM()
	if err := os.WriteFile(filepath.Join(dir, ".root.crt.naru-tmp-123"), []byte("-----BEGIN CERT"), 0o600); err != nil {
		t.Fatal(err) // what a SIGKILL in the middle of a write leaves
	}
	if after := openCA(t, dir, c).Bundle().PEM(); !bytes.Equal(before, after) {
		t.Error("a restart made another CA")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// Whatever was not written yet when the first start was killed, the next one completes.
func TestFirstStartCutOffAnywhereIsCompleted(t *testing.T) {
	order := []string{"root.key", "root.crt", "issuing.key", "issuing.crt", "server.key", "server.crt"}
	for n := range order {
		t.Run(fmt.Sprint("after ", n, " files"), func(t *testing.T) {
			dir, c := t.TempDir(), newClock()
			openCA(t, dir, c)
			for _, name := range order[n:] {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			a := openCA(t, dir, c)
			roots, issuing := pools(a.Bundle())
			if _, err := issue(t, a, Request{Device: "d"}).Certificate.Verify(stdx509.VerifyOptions{Roots: roots, Intermediates: issuing,
				CurrentTime: c.Now(), KeyUsages: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth}}); err != nil {
				t.Error(err)
			}
		})
	}
}

// A part of a CA is what a bad restore leaves; a new one in its place would lock every device out.
func TestHalfACAIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"root.crt lost":    func(d string) error { return os.Remove(filepath.Join(d, "root.crt")) },
		"issuing.key lost": func(d string) error { return os.Remove(filepath.Join(d, "issuing.key")) },
		"issuing.key mixed": func(d string) error {
			return os.Rename(filepath.Join(d, "server.key"), filepath.Join(d, "issuing.key"))
		},
		"root.key mixed":     func(d string) error { return os.Rename(filepath.Join(d, "server.key"), filepath.Join(d, "root.key")) },
		"issuing.crt broken": func(d string) error { return os.WriteFile(filepath.Join(d, "issuing.crt"), []byte("x"), 0o600) },
		"issuing.key broken": func(d string) error { return os.WriteFile(filepath.Join(d, "issuing.key"), []byte("x"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, c := t.TempDir(), newClock()
			openCA(t, dir, c)
			if err := spoil(dir); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir, Options{Now: c.Now})
			if err == nil || !strings.Contains(err.Error(), "backup") && !strings.Contains(err.Error(), ".crt") {
				t.Errorf("got %v; want an error with the remedy", err)
			}
		})
	}
}

func TestIssuingCAIsRenewedAndTheOldOneStaysTrusted(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	first := a.Bundle().Issuing[0]
	c.move(4 * 365 * day)
	old := issue(t, a, Request{Device: "d"})
	if err := a.Renew(unpublished); err != nil {
		t.Fatal(err)
	}
	b := openCA(t, dir, c).Bundle() // and a restart knows both
	if len(b.Issuing) != 2 || b.Issuing[0].Equal(first) || !b.Issuing[1].Equal(first) {
		t.Fatalf("the bundle has %d issuing CAs", len(b.Issuing))
	}
	roots, issuing := pools(b)
	if _, err := old.Certificate.Verify(stdx509.VerifyOptions{Roots: roots, Intermediates: issuing, CurrentTime: c.Now(),
		KeyUsages: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error("a device of the old issuing CA:", err)
	}
}

func TestRenewalCutOffAnywhereIsFinished(t *testing.T) {
	for moved := range 3 {
		dir, c := t.TempDir(), newClock()
		a := openCA(t, dir, c)
		before := a.Bundle()
		if err := a.prepareIssuing(); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, rolloverDir, "*.*"))
		if err != nil || len(files) != 2 {
			t.Fatal(files, err)
		}
		for _, f := range files[:moved] {
			if err := os.Rename(f, filepath.Join(dir, filepath.Base(f))); err != nil {
				t.Fatal(err)
			}
		}
		a = openCA(t, dir, c)
		b := a.Bundle()
		if len(b.Roots) != 1 || len(b.Issuing) != 2 || !b.Issuing[1].Equal(before.Issuing[0]) {
			t.Fatalf("after %d moves: %d issuing CAs; want the new and the old one", moved, len(b.Issuing))
		}
		if _, err := a.RevocationList(hex.EncodeToString(before.Issuing[0].SubjectKeyId), nil); err != nil {
			t.Errorf("after %d moves: the old one's key is lost: %v", moved, err)
		}
	}
}

func TestRootKeyMayBeTakenAway(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	openCA(t, dir, c)
	if err := os.Remove(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	a := openCA(t, dir, c)
	issue(t, a, Request{Device: "d"})
	c.move(4 * 365 * day)
	if err := a.Renew(unpublished); err == nil || !strings.Contains(err.Error(), "put root.key back") {
		t.Errorf("got %v; want to be told that root.key is wanted", err)
	}
	if ends, err := a.ServerEnd(); err != nil || !ends.After(c.Now()) {
		t.Errorf("the server's certificate ends %s, %v: it does not wait for the root's key", ends, err)
	}
	a = openCA(t, dir, c) // which goes on, as long as the issuing CA does
	if ends, err := a.ServerEnd(); err != nil || !ends.After(c.Now()) {
		t.Error(ends, err)
	}
	issue(t, a, Request{Device: "d"})
}

func TestNoCertificateOutlivesItsIssuer(t *testing.T) {
	a := openCA(t, t.TempDir(), newClock())
	got := issue(t, a, Request{Device: "d", Validity: 50 * 365 * day}).Certificate.NotAfter
	if want := a.Bundle().Issuing[0].NotAfter; !got.Equal(want) {
		t.Errorf("it ends %s, its issuer %s", got, want)
	}
}

func TestConcurrentIssuingGivesDistinctSerials(t *testing.T) {
	a := openCA(t, t.TempDir(), newClock())
	var seen sync.Map
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			issued, err := a.Issue(Request{Device: fmt.Sprint("d-", i)})
			if err != nil {
				t.Error(err)
				return
			}
			if _, twice := seen.LoadOrStore(issued.Certificate.SerialNumber.String(), i); twice {
				t.Error("a serial number came twice")
			}
		})
	}
	all.Wait()
}

func csr(t testing.TB, key crypto.Signer, cn string) []byte {
	t.Helper()
	der, err := stdx509.CreateCertificateRequest(rand.Reader, &stdx509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func ecKey(t testing.TB, c elliptic.Curve) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestCSRThatMustNotBeSignedIsRefused(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := csr(t, ecKey(t, elliptic.P256()), "d-17")
	block, _ := pem.Decode(good)
	block.Bytes[len(block.Bytes)-5] ^= 1
	for name, c := range map[string]struct {
		csr  []byte
		want string
	}{
		"weak RSA key":    {csr(t, weak, "d-17"), "1024 bits"},
		"weak curve":      {csr(t, ecKey(t, elliptic.P224()), "d-17"), "P-224"},
		"other name":      {csr(t, ecKey(t, elliptic.P256()), "d-18"), `for "d-18"`},
		"bad signature":   {pem.EncodeToMemory(block), "signature"},
		"not PEM":         {[]byte("hello"), "PEM"},
		"two requests":    {append(bytes.Clone(good), good...), "behind its end"},
		"garbage in PEM":  {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte{1, 2}}), "no certificate signing request (PKCS #10); was"},
		"a private key's": {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER(t)}), "private key, which should go nowhere"},
	} {
		if _, err := ParseRequest("d-17", c.csr); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	for _, cn := range []string{"d-17", ""} {
		if _, err := ParseRequest("d-17", csr(t, ecKey(t, elliptic.P384()), cn)); err != nil {
			t.Errorf("a good request with name %q: %v", cn, err)
		}
	}
}

func TestDeviceIDs(t *testing.T) {
	for _, id := range []string{"d", "d-17", "A_b.c:d@e", "a$b", "host=x,y=1", strings.Repeat("x", 128), "a.b"} {
		if err := CheckDevice(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for _, id := range []string{"", "a/b", "a+", "#", "*", "a>b", "a%20", "a b", "a\tb", "a\x00", "a\x7f", "$SYS", strings.Repeat("x", 129), "é", "..", "a\\b", `a"b`} {
		if CheckDevice(id) == nil {
			t.Errorf("%q is allowed", id)
		}
	}
}

func TestSecretIsNeverPrinted(t *testing.T) {
	s := issue(t, openCA(t, t.TempDir(), newClock()), Request{Device: "d"}).Key
	block, _ := pem.Decode(s)
	if block == nil {
		t.Fatal("no key")
	}
	inside := string(block.Bytes[:16])
	for _, text := range []string{fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q %x %d", s, s, s, s, s, s, s), fmt.Sprintf("%+v", Issued{Key: s})} {
		if strings.Contains(text, "BEGIN") || strings.Contains(text, inside) || strings.Contains(text, fmt.Sprintf("%x", []byte(s[:8]))) || strings.Contains(text, "45 45 45") {
			t.Errorf("printed: %.80s", text)
		}
	}
}

func keyDER(t *testing.T) []byte {
	t.Helper()
	der, err := stdx509.MarshalPKCS8PrivateKey(ecKey(t, elliptic.P256()))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

package x509

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"
)

func TestMain(m *testing.M) {
	crlCheap = time.Hour
	os.Exit(m.Run())
}

const (
	day        = 24 * time.Hour
	passphrase = "correct horse battery"
	// machineSecret opens the keys of a CA without a passphrase.
	machineSecret = "machine.secret"
)

// clock stands still until it is moved.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) Now() time.Time       { return time.Unix(0, c.ns.Load()).UTC() }
func (c *clock) move(d time.Duration) { c.ns.Add(int64(d)) }

func openCA(t testing.TB, dir string, c *clock) *authority.Authority {
	t.Helper()
	a, err := authority.Open(dir, authority.Options{Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t testing.TB, a *authority.Authority, r authority.Request) *authority.Issued {
	t.Helper()
	i, err := a.Issue(r)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// unpublished is for a renewal that no door has to hear of.
func unpublished(authority.Bundle) error { return nil }

func pools(b authority.Bundle) (roots, issuing *stdx509.CertPool) {
	roots, issuing = stdx509.NewCertPool(), stdx509.NewCertPool()
	for _, c := range b.Roots {
		roots.AddCert(c)
	}
	for _, c := range b.Issuing {
		issuing.AddCert(c)
	}
	return roots, issuing
}

// pair is a certificate and its key.
type pair struct {
	cert *stdx509.Certificate
	key  *ecdsa.PrivateKey
}

// stolen is the issuing CA of a directory, with its key: whoever has that signs what he likes.
func stolen(t testing.TB, dir string) pair {
	t.Helper()
	machine, err := os.ReadFile(filepath.Join(dir, machineSecret))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := hex.DecodeString(strings.TrimSpace(string(machine)))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "issuing.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := authority.UnsealKey(text, secret)
	if err != nil {
		t.Fatal(err)
	}
	return pair{certsIn(t, filepath.Join(dir, "issuing.crt"))[0], key}
}

func certsIn(t testing.TB, file string) []*stdx509.Certificate {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := authority.ParseCerts(raw)
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

func sign(tmpl *stdx509.Certificate, by pair, key crypto.PublicKey) (*stdx509.Certificate, error) {
	der, err := stdx509.CreateCertificate(rand.Reader, tmpl, by.cert, key, by.key)
	if err != nil {
		return nil, err
	}
	return stdx509.ParseCertificate(der)
}

func csr(t testing.TB, key crypto.Signer, cn string) []byte {
	t.Helper()
	der, err := stdx509.CreateCertificateRequest(rand.Reader, &stdx509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func ecKey(t testing.TB, c elliptic.Curve) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

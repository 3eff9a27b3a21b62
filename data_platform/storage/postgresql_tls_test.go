package storage

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/internal/postgrestest"
)

// certificate makes one that signs itself, for a server on loopback, and gives both parts in PEM.
func certificate(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a database"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func TestPostgreSQLIsReachedByTLSAsTheURLSays(t *testing.T) {
	dir := t.TempDir()
	server, err := postgrestest.New(dir, "ssl = on")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	owner, err := os.Stat(server.Data())
	if err != nil {
		t.Fatal(err)
	}
	cert, key := certificate(t)
	other, _ := certificate(t)
	for name, b := range map[string][]byte{"server.crt": cert, "server.key": key} {
		file := filepath.Join(server.Data(), name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s := owner.Sys().(*syscall.Stat_t); os.Geteuid() == 0 {
			if err := os.Chown(file, int(s.Uid), int(s.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	right, wrong := filepath.Join(dir, "right.pem"), filepath.Join(dir, "wrong.pem")
	for file, b := range map[string][]byte{right: cert, wrong: other} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := database(t, server, "")
	plain := o.URL
	encrypted := func() bool {
		t.Helper()
		s := openPostgres(t, o)
		defer s.Close()
		var on bool
		if err := s.(*postgres).loads.QueryRow(t.Context(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").Scan(&on); err != nil {
			t.Fatal(err)
		}
		return on
	}
	o.URL = plain + "?sslmode=verify-full&sslrootcert=" + right
	want(t, "encrypted", encrypted(), true)
	o.URL = plain // where the server can, it is
	want(t, "encrypted", encrypted(), true)
	o.URL = plain + "?sslmode=disable"
	want(t, "encrypted", encrypted(), false)
	o.URL = plain + "?sslmode=verify-full&sslrootcert=" + wrong
	failing(t, o, server.Address(), "certificate")
}

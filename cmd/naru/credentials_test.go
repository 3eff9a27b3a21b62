package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Commands for one directory at the same time: one writes it, its key and certificate belong together, and the others say
// that it is done.
func TestCredentialsOfOneDirectoryAreWrittenOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d-1")
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	certify := func(csr string) (string, error) {
		block, _ := pem.Decode([]byte(csr))
		r, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			return "", err
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "d-1"}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, c, c, r.PublicKey, ca)
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), err
	}
	var wrote, done atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			own, err := openCredentials(dir, "d-1", "")
			if errors.Is(err, errHasCertificate) {
				done.Add(1)
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer own.close()
			cert, err := certify(own.csr)
			if err == nil {
				err = own.keep(enrolled{ID: "d-1", Certificate: cert, CA: "ca"})
			}
			if err != nil {
				t.Error(err)
				return
			}
			wrote.Add(1)
		})
	}
	all.Wait()
	if wrote.Load() != 1 || done.Load() != 7 {
		t.Errorf("%d wrote, %d found it done", wrote.Load(), done.Load())
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile)); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(dir, keyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

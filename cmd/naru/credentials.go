package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/naru-platform/naru/internal/whole"
)

// The files of a directory of credentials.
const (
	certFile = "device.crt"
	keyFile  = "device.key"
	caFile   = "ca.crt"
)

// enrolled is what the platform answers to an enrolment.
type enrolled struct {
	ID          string    `json:"id"`
	Certificate string    `json:"certificate"`
	CA          string    `json:"ca"`
	Fingerprint string    `json:"fingerprint"`
	NotAfter    time.Time `json:"not_after"`
}

// credentials are a key and the directory where its certificate will be. The key is made here and is on disk before
// anybody is asked for a certificate; device.crt comes last and says that all is there. So a directory with a key and
// without a certificate is a command that was cut off, and the same command finishes it: whatever certificate was made
// meanwhile, its key is there.
type credentials struct {
	dir  string
	csr  string // PEM
	owns bool   // the key is in dir
}

// openCredentials makes ready to ask for a certificate by the name; with a csr the key is elsewhere.
func openCredentials(dir, name, csrFile string) (*credentials, error) {
	if _, err := os.Stat(filepath.Join(dir, certFile)); err == nil {
		return nil, fmt.Errorf("%s has a certificate already; choose another directory with --out", dir)
	}
	if csrFile != "" {
		raw, err := os.ReadFile(csrFile)
		if err != nil {
			return nil, fmt.Errorf("--csr: %w", err)
		}
		return &credentials{dir: dir, csr: string(raw)}, nil
	}
	key, err := keyIn(dir)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, fmt.Errorf("sign a request with %s: %w; move it away, and another is made", filepath.Join(dir, keyFile), err)
	}
	return &credentials{dir, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), true}, nil
}

// keyIn gives the key of a directory, made where there is none.
func keyIn(dir string) (crypto.Signer, error) {
	file := filepath.Join(dir, keyFile)
	raw, err := os.ReadFile(file)
	if err == nil {
		block, _ := pem.Decode(raw)
		if block == nil {
			return nil, fmt.Errorf("%s holds no PEM private key; move it away, and another is made", file)
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, fmt.Errorf("%s is not a PKCS #8 private key that signs; move it away, and another is made", file)
		}
		return signer, os.Chmod(file, 0o600)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	if err := whole.Directory(dir, 0o700); err != nil {
		return nil, err
	}
	return key, whole.Write(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// keep writes what the platform gave, the certificate last.
func (c *credentials) keep(e enrolled) error {
	if err := whole.Directory(c.dir, 0o700); err != nil {
		return err
	}
	if err := whole.Write(filepath.Join(c.dir, caFile), []byte(e.CA), 0o644); err != nil {
		return err
	}
	return whole.Write(filepath.Join(c.dir, certFile), []byte(e.Certificate), 0o644)
}

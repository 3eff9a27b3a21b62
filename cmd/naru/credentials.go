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
	"syscall"
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
	Warning     string    `json:"warning"`
}

// errHasCertificate says that a directory is done already.
var errHasCertificate = errors.New("has a certificate already; choose another directory with --out")

// credentials are a key and the directory where its certificate will be. The key is made here and is on disk before
// anybody is asked for a certificate; device.crt comes last and says that all is there. So a directory with a key and
// without a certificate is a command that was cut off, and the same command finishes it: whatever certificate was made
// meanwhile, its key is there. Two commands for one directory take turns, so that its key and its certificate belong together.
type credentials struct {
	dir  string
	csr  string // PEM
	owns bool   // the key is in dir
	// resumed says that the key was there: a command before this one was cut off, and the platform may have heard of it.
	resumed bool
	lock    *os.File // nil where it does not
	made    []string // the directories that were not there before, the inmost first
}

// close lets the next command have the directory.
func (c *credentials) close() {
	if c.lock != nil {
		_ = c.lock.Close() // and with it the lock goes
	}
}

// openCredentials makes ready to ask for a certificate by the name; with a csr the key is elsewhere.
func openCredentials(dir, name, csrFile string) (*credentials, error) {
	c := &credentials{dir: dir}
	has := func() error {
		if _, err := os.Stat(filepath.Join(dir, certFile)); err == nil {
			return fmt.Errorf("%s %w", dir, errHasCertificate)
		}
		return nil
	}
	if err := has(); err != nil {
		return nil, err
	}
	if csrFile != "" {
		raw, err := os.ReadFile(csrFile)
		if err != nil {
			return nil, fmt.Errorf("--csr: %w", err)
		}
		c.csr = string(raw)
		return c, nil
	}
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		c.made = append(c.made, at)
	}
	if err := whole.Directory(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if c.lock, err = os.Open(dir); err != nil {
		return nil, err
	}
	if err = syscall.Flock(int(c.lock.Fd()), syscall.LOCK_EX); err == nil {
		err = has() // by the command that was waited for
	}
	var key crypto.Signer
	if err == nil {
		key, c.resumed, err = keyIn(dir)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("sign a request with %s: %w; move it away, and another is made", filepath.Join(dir, keyFile), err)
	}
	c.csr, c.owns = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), true
	return c, nil
}

// settle is given how asking for the certificate ended. Where the platform refused, it takes away what was made for it: the
// key, and the directories where nothing else is in them. Where nobody knows whether a certificate was issued, because the
// answer was lost, all stays, and the same command goes on; so does a key that was there before.
func (c *credentials) settle(err error) {
	if !c.owns || c.resumed || !refusedForGood(err) {
		return
	}
	_ = os.Remove(filepath.Join(c.dir, keyFile)) // a key without a certificate is good for nothing
	for _, dir := range c.made {
		_ = os.Remove(dir) // not where there is something else
	}
}

// keyIn gives the key of a directory, made where there is none; had says that it was there.
func keyIn(dir string) (key crypto.Signer, had bool, err error) {
	file := filepath.Join(dir, keyFile)
	raw, err := os.ReadFile(file)
	if err == nil {
		block, _ := pem.Decode(raw)
		if block == nil {
			return nil, true, fmt.Errorf("%s holds no PEM private key; move it away, and another is made", file)
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, true, fmt.Errorf("%s is not a PKCS #8 private key that signs; move it away, and another is made", file)
		}
		return signer, true, os.Chmod(file, 0o600)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, false, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(made)
	if err != nil {
		return nil, false, fmt.Errorf("encode a key: %w", err)
	}
	return made, false, whole.Write(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
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

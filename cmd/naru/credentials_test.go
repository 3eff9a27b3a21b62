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
	"net/http"
	"os"
	"path/filepath"
	"strings"
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

// What was refused leaves nothing behind; what may have been done, and a key that was there, stay.
func TestRefusedRequestLeavesNoKey(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		stays  bool
	}{
		{"device add d-1 --policy nope", 400, false}, {"device add d-1", 409, false}, {"device add d-1", 401, false}, {"device add d-1", 500, true}, {"device add d-1", 503, true},
		{"device add d-1", 429, true}, {"device rotate d-1", 404, false}, {"device rotate d-1", 409, false}, {"device rotate d-1", 502, true},
		{"ca claim add lot --template nope", 400, false}, {"ca claim add lot --template nope", 503, true},
	} {
		dir := t.TempDir()
		refuse := says(c.status, map[string]string{"detail": "no"})
		ways := map[string]http.HandlerFunc{"POST /api/v1/devices": refuse, "POST /api/v1/devices/d-1/rotate": refuse, "POST /api/v1/claims": refuse,
			"GET /api/v1/devices/d-1": says(404, map[string]string{"detail": "unknown"})}
		args := append(strings.Fields(c.args), "--out", filepath.Join(dir, "a", "b"))
		if _, _, err := asked(t, ways, args...); err == nil {
			t.Errorf("%s: no error", c.args)
		}
		_, err := os.Stat(filepath.Join(dir, "a", "b", keyFile))
		left, _ := os.ReadDir(dir)
		if (err == nil) != c.stays || (len(left) > 0) != c.stays {
			t.Errorf("%s, %d: its key: %v, %d directories left", c.args, c.status, err, len(left))
		}
		if !c.stays {
			continue
		}
		refuse = says(409, map[string]string{"detail": "no"})
		for way := range ways {
			ways[way] = refuse
		}
		_, _, _ = asked(t, ways, args...)
		if _, err := os.Stat(filepath.Join(dir, "a", "b", keyFile)); err != nil {
			t.Errorf("%s: a key of a command before is gone: %v", c.args, err)
		}
	}
}

func TestBadNameMakesNoDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, args := range [][]string{{"device", "add", "bad id/#"}, {"device", "rotate", "../x"}, {"ca", "claim", "add", "a/b", "--template", "t"}} {
		_, _, err := asked(t, nil, args...)
		if left, _ := os.ReadDir("."); err == nil || !strings.Contains(err.Error(), "are allowed") || len(left) > 0 {
			t.Errorf("%v: %v, left %v", args, err, left)
		}
	}
}

package x509

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	stdx509 "crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// csrMax is room for an RSA key of 8192 bits and extensions that nobody looks at.
const csrMax = 8 << 10

// ParseRequest reads a certificate signing request for the device (any where that is empty), in PEM, and refuses one that the CA must not sign:
// a signature that does not hold (the sender does not have the key), a weak key, another device's name. What else the
// request asks for is not looked at: the CA alone decides what is in a certificate.
func ParseRequest(device string, csr []byte) (*stdx509.CertificateRequest, error) {
	block, rest := pem.Decode(csr)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, errors.New("the csr is not a PEM certificate request (-----BEGIN CERTIFICATE REQUEST-----)")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("the csr has something behind its end")
	}
	return parseRequest(device, block.Bytes)
}

// parseRequest reads one in DER.
func parseRequest(device string, der []byte) (*stdx509.CertificateRequest, error) {
	if len(der) > csrMax {
		return nil, fmt.Errorf("the csr has %d bytes; %d is the most", len(der), csrMax)
	}
	r, err := stdx509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("read the csr: %w", err)
	}
	if err := checkKey(r.PublicKey); err != nil { // before the signature: a huge key must cost nothing
		return nil, err
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the csr's signature does not hold: %w", err)
	}
	if cn := r.Subject.CommonName; cn != "" && device != "" && cn != device {
		return nil, fmt.Errorf("the csr is for %q, the request for device %q; leave the common name out or make it the same", cn, device)
	}
	return r, nil
}

func checkKey(key any) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return fmt.Errorf("its key is on the curve %s, which is too weak; use P-256", k.Curve.Params().Name)
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		// NIST SP 800-57: 2048 bits is the least; beyond 8192 each verification costs more than it protects.
		if n := k.N.BitLen(); n < 2048 || n > 8192 {
			return fmt.Errorf("its RSA key has %d bits; between 2048 and 8192 are wanted, or ECDSA P-256", n)
		}
		return nil
	}
	return fmt.Errorf("its key is a %T; use ECDSA P-256, Ed25519 or RSA of 2048 bits or more", key)
}

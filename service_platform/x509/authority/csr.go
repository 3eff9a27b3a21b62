package authority

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
	"strings"
)

// csrMax is room for an RSA key of 8192 bits and extensions that nobody looks at.
const csrMax = 8 << 10

// ParseRequest reads a certificate signing request for the device (any where that is empty), in PEM, and refuses one that the CA must not sign:
// a signature that does not hold (the sender does not have the key), a weak key, another device's name. What else the
// request asks for is not looked at: the CA alone decides what is in a certificate.
func ParseRequest(device string, csr []byte) (*stdx509.CertificateRequest, error) {
	block, rest := pem.Decode(csr)
	if block != nil && strings.HasSuffix(block.Type, "PRIVATE KEY") || block != nil && block.Type == "CERTIFICATE" {
		return nil, noRequest(block.Bytes, nil)
	}
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, errors.New("the csr is not a PEM certificate request (-----BEGIN CERTIFICATE REQUEST-----)")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("the csr has something behind its end")
	}
	return ParseRequestDER(device, block.Bytes)
}

// ParseRequestDER is ParseRequest for one in DER.
func ParseRequestDER(device string, der []byte) (*stdx509.CertificateRequest, error) {
	if len(der) > csrMax {
		return nil, fmt.Errorf("the csr has %d bytes; %d is the most", len(der), csrMax)
	}
	r, err := stdx509.ParseCertificateRequest(der)
	if err != nil {
		return nil, noRequest(der, err)
	}
	if err := CheckKey(r.PublicKey); err != nil { // before the signature: a huge key must cost nothing
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

// noRequest says what somebody sent in the place of a request. What the decoder says, it says to programmers.
func noRequest(der []byte, err error) error {
	if _, e := stdx509.ParseCertificate(der); e == nil {
		return errors.New("the csr is a certificate; a certificate signing request is wanted (openssl req -new)")
	}
	for _, parse := range []func([]byte) error{
		func(b []byte) error { _, err := stdx509.ParsePKCS8PrivateKey(b); return err },
		func(b []byte) error { _, err := stdx509.ParseECPrivateKey(b); return err },
		func(b []byte) error { _, err := stdx509.ParsePKCS1PrivateKey(b); return err },
	} {
		if parse(der) == nil {
			return errors.New("the csr is a private key, which should go nowhere: make another one, and send a certificate signing request (openssl req -new)")
		}
	}
	return fmt.Errorf("the csr is no certificate signing request (PKCS #10)%s; was it cut off?", reasonOf(err))
}

// reasonOf is what a decoder says, where a person can make something of it.
func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	if strings.Contains(text, "asn1") || strings.Contains(text, "{") {
		return ""
	}
	return ": " + strings.TrimPrefix(text, "x509: ")
}

// CheckKey says why a public key is none that is certified or trusted here: its kind, or its length.
func CheckKey(key any) error {
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

package authority

import (
	stdx509 "crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
)

// Bundle is what a verifier needs to know of a CA: its certificates, public all of them.
type Bundle struct {
	Roots   []*stdx509.Certificate
	Issuing []*stdx509.Certificate // the one in use first, then those it took over from
	// Retired are the fingerprints of roots that are trusted no more. Only what is published has them: whoever publishes
	// what his own directory holds, at whatever node and however late, brings none of them back.
	Retired []string
	// RetiredKeys are the key identifiers, hexadecimal, of those roots and of the issuing CAs that only they vouched for.
	RetiredKeys []string
}

// PEM writes the roots, then the issuing certificates.
func (b Bundle) PEM() []byte { return append(CertPEM(b.Roots...), CertPEM(b.Issuing...)...) }

type bundleJSON struct {
	Roots   string   `json:"roots"`
	Issuing string   `json:"issuing"`
	Retired []string `json:"retired,omitempty"`
	Keys    []string `json:"retired_keys,omitempty"`
}

// MarshalJSON writes both as PEM.
func (b Bundle) MarshalJSON() ([]byte, error) {
	return json.Marshal(bundleJSON{string(CertPEM(b.Roots...)), string(CertPEM(b.Issuing...)), b.Retired, b.RetiredKeys})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (b *Bundle) UnmarshalJSON(raw []byte) (err error) {
	var j bundleJSON
	if err = json.Unmarshal(raw, &j); err != nil {
		return err
	}
	if b.Roots, err = ParseCerts([]byte(j.Roots)); err != nil {
		return fmt.Errorf("roots: %w", err)
	}
	if b.Issuing, err = ParseCerts([]byte(j.Issuing)); err != nil {
		return fmt.Errorf("issuing: %w", err)
	}
	b.Retired, b.RetiredKeys = j.Retired, j.Keys
	return nil
}

// Without leaves a root out, and the issuing CAs that only it vouches for.
func (b Bundle) Without(retired func(fingerprint string) bool) (left Bundle) {
	left.Retired, left.RetiredKeys = b.Retired, b.RetiredKeys
	for _, c := range b.Roots {
		if !retired(Fingerprint(c.Raw)) {
			left.Roots = append(left.Roots, c)
		}
	}
	for _, c := range b.Issuing {
		if slices.ContainsFunc(left.Roots, func(r *stdx509.Certificate) bool { return c.CheckSignatureFrom(r) == nil }) {
			left.Issuing = append(left.Issuing, c)
		}
	}
	return left
}

package x509

import (
	"bytes"
	"context"
	"crypto/rand"
	stdx509 "crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
)

const (
	revokedPrefix = "revoked/"
	crlValidity   = 24 * time.Hour
	crlFresh      = time.Hour // after which a list is made anew though nothing changed
	crlReason     = 4         // superseded, RFC 5280 section 5.3.1
)

// revokedCert is a certificate of a device that was deleted.
type revokedCert struct {
	Device   string    `json:"device"`
	Serial   string    `json:"serial"`
	Issuer   string    `json:"issuer,omitempty"`
	NotAfter time.Time `json:"not_after"`
	At       time.Time `json:"at"`
}

// keepRevoked remembers a device's certificates until they end, before the device goes.
func keepRevoked(ctx context.Context, t bus.Table, d Device, now time.Time) error {
	for _, c := range d.Certs {
		if now.After(c.NotAfter) {
			continue
		}
		at := c.RevokedAt
		if at.IsZero() {
			at = now.UTC()
		}
		raw, err := json.Marshal(revokedCert{d.ID, c.Serial, c.Issuer, c.NotAfter, at})
		if err != nil {
			return err
		}
		if _, err := t.Put(ctx, revokedPrefix+c.Fingerprint, raw); err != nil {
			return fmt.Errorf("withdraw the certificates of device %s: %w", d.ID, err)
		}
	}
	return nil
}

// sweepRevoked forgets what has ended by itself: withdrawn certificates and registration codes.
func sweepRevoked(ctx context.Context, t bus.Table, now time.Time) error {
	for prefix, ended := range map[string]func([]byte) bool{
		revokedPrefix: func(raw []byte) bool {
			var c revokedCert
			return json.Unmarshal(raw, &c) == nil && now.After(c.NotAfter)
		},
		codePrefix: func(raw []byte) bool {
			var c registrationCode
			return json.Unmarshal(raw, &c) == nil && now.After(c.Expires)
		},
		ownershipPrefix: func(raw []byte) bool {
			var o ownership
			return json.Unmarshal(raw, &o) == nil && now.After(o.Expires.Add(ownershipValidity))
		},
		tokenPrefix: func(raw []byte) bool {
			var t enrolmentToken
			return json.Unmarshal(raw, &t) == nil && now.After(t.Expires)
		},
	} {
		entries, err := scan(ctx, t, prefix)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !ended(e.Value) {
				continue
			}
			if err := t.Delete(ctx, e.Key, e.Revision); err != nil && !errors.Is(err, bus.ErrConflict) {
				return err
			}
		}
	}
	return nil
}

// crlCache holds the last list of each issuing CA.
type crlCache struct {
	mu    sync.Mutex
	lists map[string]crlMade
}

type crlMade struct {
	der     []byte
	at      time.Time
	version uint64
}

// RevocationList signs the list (RFC 5280) of an issuing CA, by its key identifier in hexadecimal digits; the one in use
// where that is empty. ErrUnknownCA says that no such issuing CA, or not its key, is here.
func (a *Authority) RevocationList(issuer string, entries []stdx509.RevocationListEntry) ([]byte, error) {
	p, err := a.issuer(issuer)
	if err != nil {
		return nil, err
	}
	now := a.o.Now().UTC()
	t := &stdx509.RevocationList{
		RevokedCertificateEntries: entries, Number: big.NewInt(now.UnixMilli()),
		ThisUpdate: now.Add(-backdate).Truncate(time.Second), NextUpdate: now.Add(crlValidity).Truncate(time.Second),
	}
	der, err := stdx509.CreateRevocationList(rand.Reader, t, p.cert, p.key)
	if err != nil {
		return nil, fmt.Errorf("sign the revocation list: %w", err)
	}
	return der, nil
}

func (a *Authority) issuer(id string) (pair, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, p := range append([]pair{a.use}, a.old...) {
		if (id == "" || hex.EncodeToString(p.cert.SubjectKeyId) == id) && p.key != nil {
			return p, nil
		}
	}
	return pair{}, fmt.Errorf("%w: no issuing CA here has the key identifier %q and a key", ErrUnknownCA, short(id))
}

// crl serves a list: `?issuer=<key identifier>` for one of before, `?format=pem` for PEM.
func (s *service) crl(o *opened, w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	der, err := s.revocationList(r.Context(), o, q.Get("issuer"))
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "max-age=60")
	if q.Get("format") == "pem" {
		w.Header().Set("Content-Type", "application/x-pem-file")
		return pem.Encode(w, &pem.Block{Type: "X509 CRL", Bytes: der})
	}
	w.Header().Set("Content-Type", "application/pkix-crl")
	_, err = w.Write(der)
	return err
}

// revocationList gives the list of before while nothing has changed: signing costs little, a million entries do not.
func (s *service) revocationList(ctx context.Context, o *opened, issuer string) ([]byte, error) {
	p, err := o.authority.issuer(issuer)
	if err != nil {
		return nil, err
	}
	issuer = hex.EncodeToString(p.cert.SubjectKeyId)
	inUse := bytes.Equal(p.cert.Raw, o.authority.Bundle().Issuing[0].Raw)
	o.crls.mu.Lock()
	defer o.crls.mu.Unlock()
	version, now := o.index.state(), s.env.Now()
	if made, ok := o.crls.lists[issuer]; ok && made.version == version && now.Sub(made.at) < crlFresh {
		return made.der, nil
	}
	var entries []stdx509.RevocationListEntry
	add := func(by, serial, reason string, at time.Time) {
		n, ok := new(big.Int).SetString(serial, 16)
		if !ok || by != issuer && !(by == "" && inUse) { // what was issued before issuers were recorded
			return
		}
		e := stdx509.RevocationListEntry{SerialNumber: n, RevocationTime: at.UTC().Truncate(time.Second)}
		if reason == superseded {
			e.ReasonCode = crlReason
		}
		entries = append(entries, e)
	}
	o.index.each(func(d *Device) {
		for _, c := range d.Certs {
			if c.Revoked() && !now.After(c.NotAfter) {
				add(c.Issuer, c.Serial, c.Reason, c.RevokedAt)
			}
		}
	})
	gone, err := scan(ctx, o.trust, revokedPrefix)
	if err != nil {
		return nil, fmt.Errorf("read the withdrawn certificates: %w", err)
	}
	for _, e := range gone {
		var c revokedCert
		if json.Unmarshal(e.Value, &c) == nil && !now.After(c.NotAfter) {
			add(c.Issuer, c.Serial, "", c.At)
		}
	}
	der, err := o.authority.RevocationList(issuer, entries)
	if err != nil {
		return nil, err
	}
	if o.crls.lists == nil {
		o.crls.lists = map[string]crlMade{}
	}
	o.crls.lists[issuer] = crlMade{der, now, version}
	return der, nil
}

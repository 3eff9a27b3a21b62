package x509

import (
	"bytes"
	stdx509 "crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"
)

const (
	crlFresh = time.Hour // after which a list is made anew though nothing changed
	// A list that took long to make is served for longer, though something changed: for as many times as long as making
	// it took. So the lists of however many revocations take a tenth of a processor at most, and small ones are always new.
	crlFloor = 10
	crlRetry = time.Minute // after a list could not be made
)

// crlCheap is what a list may take to make without being served for longer. Tests, whose machine may be slow, give more.
var crlCheap = 100 * time.Millisecond

// crlReason is the reason of RFC 5280, section 5.3.1, for one of ours.
func crlReason(reason string) uint8 {
	if reason == superseded {
		return 4
	}
	return 0 // unspecified
}

// crlCache holds the last list of each issuing CA.
type crlCache struct {
	mu    sync.Mutex
	lists map[string]*crlList
}

// crlList is one of them. Whoever asks while it is made anew gets the one before, if there is one.
type crlList struct {
	making sync.Mutex
	made   atomic.Pointer[crlMade]
	failed time.Time // when it could not be made, by the component's clock; under making
}

type crlMade struct {
	der     []byte
	at      time.Time // by the component's clock
	version [2]uint64
	serve   time.Time // until then, whatever changes
}

// holds says whether the list is neither of the future, by a clock that was ahead, nor older than so long. None is neither.
func (m *crlMade) holds(now time.Time, within time.Duration) bool {
	return m != nil && !now.Before(m.at) && now.Sub(m.at) < within
}

func (c *crlCache) of(issuer string) *crlList {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lists == nil {
		c.lists = map[string]*crlList{}
	}
	l := c.lists[issuer] // as many as there are issuing CAs: others have no key here
	if l == nil {
		l = &crlList{}
		c.lists[issuer] = l
	}
	return l
}

// crl serves a list: `?issuer=<key identifier>` for one of before, `?format=pem` for PEM.
func (s *service) crl(o *opened, w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	der, err := s.revocationList(o, q.Get("issuer"))
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

// revocationList gives the list of before while no revocation came or went, or where no other can be made, until it ends.
func (s *service) revocationList(o *opened, issuer string) ([]byte, error) {
	by, err := o.authority.Issuer(issuer)
	if err != nil {
		return nil, err
	}
	issuer = hex.EncodeToString(by.SubjectKeyId)
	list := o.crls.of(issuer)
	good := func() []byte {
		m := list.made.Load()
		if !m.holds(s.env.Now(), crlFresh) || m.version != o.revocations() && !time.Now().Before(m.serve) {
			return nil
		}
		return m.der
	}
	if der := good(); der != nil {
		return der, nil
	}
	if !list.making.TryLock() {
		if m := list.made.Load(); m.holds(s.env.Now(), authority.CRLValidity) {
			return m.der, nil
		}
		list.making.Lock()
	}
	defer list.making.Unlock()
	if der := good(); der != nil {
		return der, nil
	}
	began, version, now := time.Now(), o.revocations(), s.env.Now()
	last := list.made.Load()
	keeps := last.holds(now, authority.CRLValidity)
	if keeps && !now.Before(list.failed) && now.Sub(list.failed) < crlRetry {
		return last.der, nil
	}
	der, err := o.authority.RevocationList(issuer, o.revoked(issuer, bytes.Equal(by.Raw, o.authority.Bundle().Issuing[0].Raw), now))
	if err != nil && keeps {
		list.failed = now
		s.env.Log.Error("no revocation list can be made; the last one is served until it ends, and lacks what was revoked since; is the directory of the CA there, writable and its disk not full?",
			"issuer", issuer, "made", stamp(last.at), "ends", stamp(last.at.Add(authority.CRLValidity)), "error", err)
		return last.der, nil
	}
	if err != nil {
		return nil, err
	}
	m := &crlMade{der: der, at: now, version: version}
	if took := time.Since(began); took > crlCheap {
		m.serve = time.Now().Add(crlFloor * took)
	}
	list.made.Store(m)
	return der, nil
}

// revocations changes when one comes or goes.
func (o *opened) revocations() [2]uint64 {
	return [2]uint64{o.index.revocations(), o.withdrawn.state()}
}

// revoked gives the entries of an issuer's list; inUse says that it is the one that issues now.
func (o *opened) revoked(issuer string, inUse bool, now time.Time) (entries []stdx509.RevocationListEntry) {
	of := func(by string) bool { return by == issuer || by == "" && inUse } // what was issued before issuers were recorded
	o.index.each(func(d *Device) {
		for _, c := range d.Certs {
			n, ok := new(big.Int).SetString(c.Serial, 16)
			if ok && c.Revoked() && of(c.Issuer) && !now.After(c.NotAfter) {
				entries = append(entries, stdx509.RevocationListEntry{SerialNumber: n, RevocationTime: c.RevokedAt.UTC().Truncate(time.Second), ReasonCode: int(crlReason(c.Reason))})
			}
		}
	})
	o.withdrawn.each(now, func(by string, e stdx509.RevocationListEntry) {
		if of(by) {
			entries = append(entries, e)
		}
	})
	return entries
}

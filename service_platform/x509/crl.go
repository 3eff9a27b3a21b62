package x509

import (
	"bytes"
	"crypto/rand"
	stdx509 "crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/internal/whole"
)

const (
	crlValidity = 24 * time.Hour
	crlFresh    = time.Hour // after which a list is made anew though nothing changed
	// A list that took long to make is served for longer, though something changed: for as many times as long as making
	// it took. So the lists of however many revocations take a tenth of a processor at most, and small ones are always new.
	crlFloor = 10
)

// crlCheap is what a list may take to make without being served for longer. Tests, whose machine may be slow, give more.
var crlCheap = 100 * time.Millisecond

// crlIssuer stands for the issuing CA's key identifier in the address of a list.
const crlIssuer = "${issuer}"

func checkCRLURL(text string) error {
	if text == "" {
		return nil
	}
	plain := strings.ReplaceAll(text, crlIssuer, "00")
	u, err := url.Parse(plain)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" || strings.Contains(plain, "${") {
		return fmt.Errorf("crl_url %q is not a URL such as http://naru.example/api/v1/ca/crl?issuer=%s", text, crlIssuer)
	}
	return nil
}

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
}

type crlMade struct {
	der     []byte
	at      time.Time // by the component's clock
	version [2]uint64
	serve   time.Time // until then, whatever changes
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

// RevocationList signs the list (RFC 5280) of an issuing CA, by its key identifier in hexadecimal digits; the one in use
// where that is empty. ErrUnknownCA says that no such issuing CA, or not its key, is here.
func (a *Authority) RevocationList(issuer string, entries []stdx509.RevocationListEntry) ([]byte, error) {
	p, err := a.issuer(issuer)
	if err != nil {
		return nil, err
	}
	number, err := a.nextList()
	if err != nil {
		return nil, fmt.Errorf("number the revocation list: %w", err)
	}
	now := a.o.Now().UTC()
	t := &stdx509.RevocationList{
		RevokedCertificateEntries: entries, Number: new(big.Int).SetUint64(number),
		ThisUpdate: now.Add(-backdate).Truncate(time.Second), NextUpdate: now.Add(crlValidity).Truncate(time.Second),
	}
	der, err := stdx509.CreateRevocationList(rand.Reader, t, p.cert, p.key)
	if err != nil {
		return nil, fmt.Errorf("sign the revocation list: %w", err)
	}
	return der, nil
}

// listName holds the number of the last revocation list of any issuing CA here.
const listName = "crl.number"

// nextList gives a number above all before it (RFC 5280, section 5.2.3), on disk before anybody sees it: whoever holds a list
// takes none with a lower number, whatever this machine's clock says. It begins with the clock, which also brings it above
// what a directory restored from a backup has forgotten.
func (a *Authority) nextList() (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	path := a.path(listName)
	if a.list == 0 {
		raw, err := os.ReadFile(path)
		if err == nil {
			a.list, err = strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 63)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, fmt.Errorf("read %s: %w; remove it if the clock is right: the lists go on with the time", path, err)
		}
	}
	next := max(a.list+1, uint64(max(0, a.o.Now().UnixMilli())))
	if err := whole.Write(path, fmt.Appendf(nil, "%d\n", next), 0o600); err != nil {
		return 0, err
	}
	a.list = next
	return next, nil
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

// revocationList gives the list of before while no revocation came or went.
func (s *service) revocationList(o *opened, issuer string) ([]byte, error) {
	p, err := o.authority.issuer(issuer)
	if err != nil {
		return nil, err
	}
	issuer = hex.EncodeToString(p.cert.SubjectKeyId)
	list := o.crls.of(issuer)
	good := func() []byte {
		m := list.made.Load()
		if m == nil || s.env.Now().Sub(m.at) >= crlFresh || m.version != o.revocations() && !time.Now().Before(m.serve) {
			return nil
		}
		return m.der
	}
	if der := good(); der != nil {
		return der, nil
	}
	if !list.making.TryLock() {
		if m := list.made.Load(); m != nil {
			return m.der, nil
		}
		list.making.Lock()
	}
	defer list.making.Unlock()
	if der := good(); der != nil {
		return der, nil
	}
	began, version, now := time.Now(), o.revocations(), s.env.Now()
	der, err := o.authority.RevocationList(issuer, o.revoked(issuer, bytes.Equal(p.cert.Raw, o.authority.Bundle().Issuing[0].Raw), now))
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

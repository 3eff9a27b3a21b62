package x509

import (
	"bytes"
	stdx509 "crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
)

// trust is what the platform's own CA published.
type trust struct {
	roots, issuing *stdx509.CertPool
	bundle         authority.Bundle
}

// registeredCA is somebody else's CA as the door holds it.
type registeredCA struct {
	RegisteredCA
	cert *stdx509.Certificate
}

// anchor is what a certificate was verified by: the platform's own CA (the zero value), or a registered one.
type anchor struct {
	ca     *registeredCA
	barred string // the CA whose extended usage, on every way there, allows no clients; empty where one way is free
}

// verify checks signatures up to a trusted CA, at a time when the leaf was or will be valid: whether it is now gets
// reasons of its own. Nothing is locked while it does; and however many CAs are registered and whatever is presented, one
// budget bounds how many signatures of a stranger are checked (crypto/x509's, of one Verify).
func (a *Admission) verify(leaf *stdx509.Certificate, presented []*stdx509.Certificate, now time.Time) (anchor, error) {
	a.mu.RLock()
	t, cas, unread := a.trust, slices.Collect(maps.Values(a.cas)), a.unread
	a.mu.RUnlock()
	if t == nil && unread != nil {
		return anchor{}, unread
	}
	if t == nil {
		return anchor{}, errors.New("this platform trusts no CA yet; start service_platform.x509")
	}
	at := now
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	o := stdx509.VerifyOptions{
		Roots: t.roots, Intermediates: t.issuing, CurrentTime: at,
		KeyUsages: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageAny}, // a wrong usage has a reason of its own: checkUsage, and anchor.barred
	}
	chains, err := leaf.Verify(o) // by what is the platform's own alone, as nearly all are
	if err == nil {
		return t.anchorOf(chains, nil)
	}
	if !errors.As(err, new(stdx509.UnknownAuthorityError)) || len(cas)+len(presented) == 0 {
		return anchor{}, shortened{err}
	}
	if len(presented) > intermediatesMax {
		return anchor{}, fmt.Errorf("%d certificates beside its own; %d is the most", len(presented), intermediatesMax)
	}
	o.Roots, o.Intermediates = t.roots.Clone(), t.issuing.Clone()
	for _, ca := range cas {
		o.Roots.AddCert(ca.cert)
	}
	for _, c := range presented { // an issuing CA so new that the bus has not brought it yet, or what stands below a registered one
		o.Intermediates.AddCert(c)
	}
	if chains, err = leaf.Verify(o); err != nil {
		return anchor{}, shortened{byName(leaf, presented, cas, err)}
	}
	return t.anchorOf(chains, cas)
}

// anchorOf is what a certificate was verified by, of several that allow clients the platform's own, else a registered CA that is
// not switched off, else the nearest. Where none allows clients it is the one that they would lead to.
func (t *trust) anchorOf(chains [][]*stdx509.Certificate, cas []*registeredCA) (anchor, error) {
	barred := ""
	free := slices.DeleteFunc(slices.Clone(chains), func(chain []*stdx509.Certificate) bool {
		by := barring(chain)
		if by != nil {
			barred = called(by)
		}
		return by != nil
	})
	if len(free) > 0 {
		chains, barred = free, ""
	}
	var found *registeredCA
	near := 0
	for _, chain := range chains {
		root := chain[len(chain)-1]
		if holds(t.bundle.Roots, root) {
			return anchor{barred: barred}, nil
		}
		i := slices.IndexFunc(cas, func(ca *registeredCA) bool { return ca.cert.Equal(root) })
		if i < 0 {
			continue // every root is the one or the other
		}
		if ca := cas[i]; found == nil || found.Disabled && !ca.Disabled || found.Disabled == ca.Disabled && len(chain) < near {
			found, near = ca, len(chain)
		}
	}
	switch {
	case found == nil:
		return anchor{}, errors.New("it leads to no trusted CA")
	case found.Disabled:
		return anchor{}, fmt.Errorf("the registered CA %q is switched off", found.Name)
	}
	return anchor{found, barred}, nil
}

// barring is the CA of a chain whose extended key usage does not allow client authentication; nil where there is none. One
// that has no extended usage allows all.
func barring(chain []*stdx509.Certificate) *stdx509.Certificate {
	for _, c := range chain[1:] {
		if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 &&
			!slices.Contains(c.ExtKeyUsage, stdx509.ExtKeyUsageClientAuth) && !slices.Contains(c.ExtKeyUsage, stdx509.ExtKeyUsageAny) {
			return c
		}
	}
	return nil
}

// shortened is an error of crypto/x509 whose text is cut: it repeats what certificates call themselves.
type shortened struct{ error }

func (b shortened) Error() string { return cut(b.error.Error(), 2*textMax) }
func (b shortened) Unwrap() error { return b.error }

// byName names the registered CA that a certificate, or one presented with it, claims to be of.
func byName(leaf *stdx509.Certificate, presented []*stdx509.Certificate, cas []*registeredCA, err error) error {
	if errors.As(err, new(stdx509.UnknownAuthorityError)) {
		return err
	}
	for _, c := range append([]*stdx509.Certificate{leaf}, presented...) {
		if i := slices.IndexFunc(cas, func(ca *registeredCA) bool { return bytes.Equal(ca.cert.RawSubject, c.RawIssuer) }); i >= 0 {
			return fmt.Errorf("by the registered CA %q: %w", cas[i].Name, err)
		}
	}
	return err
}

func (a *Admission) applyTrust(e bus.Entry) {
	if e.Key != trustKey {
		return
	}
	var b authority.Bundle
	if !e.Deleted {
		var err error
		if b, err = bundleOf(e); err != nil {
			a.o.Log.Error("keeping the trusted CAs of before, if there were", "error", err)
			a.mu.Lock()
			a.unread = err
			a.mu.Unlock()
			return
		}
	}
	t := &trust{stdx509.NewCertPool(), stdx509.NewCertPool(), b}
	for _, c := range b.Roots {
		t.roots.AddCert(c)
	}
	for _, c := range b.Issuing {
		t.issuing.AddCert(c)
	}
	a.mu.Lock()
	was := a.trust
	a.trust, a.unread = t, nil
	close(a.published)
	a.published = make(chan struct{})
	a.mu.Unlock()
	if was != nil && slices.ContainsFunc(append(slices.Clone(was.bundle.Roots), was.bundle.Issuing...), func(c *stdx509.Certificate) bool {
		return !holds(b.Roots, c) && !holds(b.Issuing, c)
	}) {
		a.tellAll()
	}
}

// applyCA takes a registered CA over; one that cannot be read vouches for nobody.
func (a *Admission) applyCA(e bus.Entry) {
	ca, err := registeredOf(e)
	if err != nil {
		a.o.Log.Error("a registered CA cannot be read; it vouches for nobody", "table", trustTable, "key", e.Key, "error", err)
	}
	a.mu.Lock()
	was := a.cas[e.Key]
	if ca == nil {
		delete(a.cas, e.Key)
	} else {
		a.cas[e.Key] = ca
	}
	a.mu.Unlock()
	if was != nil && !was.Disabled && (ca == nil || ca.Disabled) {
		a.tellAll()
	}
}

// applyTemplate takes a template over, or forgets it.
func (a *Admission) applyTemplate(e bus.Entry) {
	key := strings.TrimPrefix(e.Key, templatePrefix)
	var t Template
	err := error(nil)
	if !e.Deleted {
		err = json.Unmarshal(e.Value, &t)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if e.Deleted || err != nil {
		delete(a.templates, key)
		return
	}
	a.templates[key] = t
}

func registeredOf(e bus.Entry) (*registeredCA, error) {
	if e.Deleted {
		return nil, nil
	}
	ca := &registeredCA{}
	if err := json.Unmarshal(e.Value, &ca.RegisteredCA); err != nil {
		return nil, err
	}
	certs, err := authority.ParseCerts([]byte(ca.Certificate))
	if err != nil {
		return nil, err
	}
	ca.cert = certs[0]
	return ca, nil
}

// tellAll tells of every device and claim certificate: what is trusted has changed, and each connection is to be looked
// at again.
func (a *Admission) tellAll() {
	a.mu.RLock()
	var all []string
	if len(a.onChange) > 0 {
		for _, d := range a.devices {
			all = append(all, d.id)
		}
		for _, c := range a.claims {
			all = append(all, claimPeer+c.Name)
		}
	}
	a.mu.RUnlock()
	a.tell(all...)
}

// tell tells those who asked to be told; see OnChange.
func (a *Admission) tell(who ...string) {
	a.mu.RLock()
	tell := slices.Clone(a.onChange)
	a.mu.RUnlock()
	for _, w := range who {
		for _, f := range tell {
			(*f)(w)
		}
	}
}

func checkUsage(c *stdx509.Certificate) error {
	switch {
	case c.IsCA:
		return errors.New("it is a CA's")
	case c.KeyUsage != 0 && c.KeyUsage&stdx509.KeyUsageDigitalSignature == 0:
		return errors.New("its key may not sign (key usage)")
	case !slices.Contains(c.ExtKeyUsage, stdx509.ExtKeyUsageClientAuth):
		return errors.New("it is not one for client authentication")
	}
	return authority.CheckKey(c.PublicKey)
}

package x509

import (
	stdx509 "crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
)

// trust is what the platform's own CA published.
type trust struct {
	roots, issuing *stdx509.CertPool
	bundle         Bundle
}

// registeredCA is somebody else's CA as the door holds it.
type registeredCA struct {
	RegisteredCA
	cert *stdx509.Certificate
	pool *stdx509.CertPool
}

// anchor is what a certificate was verified by: the platform's own CA (the zero value), or a registered one.
type anchor struct{ ca *registeredCA }

// verify checks signatures up to a trusted CA, at a time when the leaf was or will be valid: whether it is now gets
// reasons of its own.
func (a *Admission) verify(leaf *stdx509.Certificate, presented []*stdx509.Certificate, now time.Time) (anchor, error) {
	a.mu.RLock()
	t := a.trust
	cas := make([]*registeredCA, 0, len(a.cas))
	for _, ca := range a.cas {
		cas = append(cas, ca)
	}
	a.mu.RUnlock()
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
		KeyUsages: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageAny},
	}
	_, err := leaf.Verify(o)
	if err == nil || !errors.As(err, new(stdx509.UnknownAuthorityError)) {
		return anchor{}, err
	}
	if len(presented) > intermediatesMax {
		return anchor{}, fmt.Errorf("%d certificates beside its own; %d is the most", len(presented), intermediatesMax)
	}
	if len(presented) > 0 { // an issuing CA so new that the bus has not brought it yet
		o.Intermediates = t.issuing.Clone()
		for _, c := range presented {
			o.Intermediates.AddCert(c)
		}
		if _, err = leaf.Verify(o); err == nil {
			return anchor{}, nil
		}
	}
	return a.verifyRegistered(leaf, presented, cas, o, err)
}

// verifyRegistered looks for a registered CA that vouches for the leaf; err is why the platform's own does not.
func (a *Admission) verifyRegistered(leaf *stdx509.Certificate, presented []*stdx509.Certificate, cas []*registeredCA, o stdx509.VerifyOptions, err error) (anchor, error) {
	o.Intermediates = stdx509.NewCertPool()
	for _, c := range presented {
		o.Intermediates.AddCert(c)
	}
	for _, ca := range cas {
		o.Roots = ca.pool
		_, e := leaf.Verify(o)
		switch {
		case e == nil && ca.Disabled:
			return anchor{}, fmt.Errorf("the registered CA %q is switched off", ca.Name)
		case e == nil:
			return anchor{ca}, nil
		case !errors.As(e, new(stdx509.UnknownAuthorityError)):
			err = fmt.Errorf("by the registered CA %q: %w", ca.Name, e)
		}
	}
	return anchor{}, err
}

func (a *Admission) applyTrust(e bus.Entry) {
	if e.Key != trustKey {
		return
	}
	var b Bundle
	if e.Deleted {
		b = Bundle{}
	} else if err := json.Unmarshal(e.Value, &b); err != nil {
		a.o.Log.Error("the list of trusted CAs cannot be read; keeping the one before", "table", trustTable, "error", err)
		return
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
	a.trust = t
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
	ca := &registeredCA{pool: stdx509.NewCertPool()}
	if err := json.Unmarshal(e.Value, &ca.RegisteredCA); err != nil {
		return nil, err
	}
	certs, err := parseCerts([]byte(ca.Certificate))
	if err != nil {
		return nil, err
	}
	ca.cert = certs[0]
	ca.pool.AddCert(ca.cert)
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
			f(w)
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
	return checkKey(c.PublicKey)
}

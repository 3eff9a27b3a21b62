package x509

import (
	"bytes"
	"context"
	"crypto/rand"
	stdx509 "crypto/x509"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
)

const (
	casPrefix    = "ca."
	codePrefix   = "code."
	codeValidity = time.Hour
	casMax       = 64 // each is looked at for every stranger's certificate
)

// RegisteredCA is a CA of somebody else whose certificates may admit devices: those that are registered, and with a
// Template also new ones, which are registered when they first come (just in time).
type RegisteredCA struct {
	Fingerprint  string    `json:"fingerprint"`
	Name         string    `json:"name"`        // its common name
	Certificate  string    `json:"certificate"` // PEM
	NotAfter     time.Time `json:"not_after"`
	Template     string    `json:"template,omitempty"`
	Disabled     bool      `json:"disabled,omitempty"`
	RegisteredAt time.Time `json:"registered_at"`
	By           string    `json:"by"`
}

// registrationCode is what a CA's owner proves its key with.
type registrationCode struct {
	Expires time.Time `json:"expires"`
}

// CAs is the list of registered CAs, in a table on the bus.
type CAs struct {
	table  bus.Table
	now    func() time.Time
	unread *unreadables
}

// Code gives a registration code, good for one registration within an hour.
func (c *CAs) Code(ctx context.Context) (code string, expires time.Time, err error) {
	raw := make([]byte, 20)
	if _, err := rand.Read(raw); err != nil {
		return "", expires, fmt.Errorf("make a registration code: %w", err)
	}
	code = strings.ToLower(base32.StdEncoding.EncodeToString(raw))
	expires = c.now().Add(codeValidity).UTC()
	value, err := json.Marshal(registrationCode{expires})
	if err != nil {
		return "", expires, err
	}
	if _, err := c.table.Update(ctx, codePrefix+code, value, 0); err != nil {
		return "", expires, fmt.Errorf("keep a registration code: %w", err)
	}
	return code, expires, nil
}

// Register takes a CA in whose owner has proved to hold its key: proof is a certificate, signed by the CA, whose common
// name is a registration code. ErrRefused says what is wrong with either. Registering a CA again replaces its
// template; one that is disabled stays so.
func (c *CAs) Register(ctx context.Context, certificate, proof []byte, template, by string) (RegisteredCA, error) {
	none := RegisteredCA{}
	ca, err := oneCert("certificate", certificate)
	if err != nil {
		return none, err
	}
	evidence, err := oneCert("proof", proof)
	if err != nil {
		return none, err
	}
	now := c.now()
	if err := checkCA(ca, now); err != nil {
		return none, fmt.Errorf("%w: the CA %q: %w", ErrRefused, ca.Subject.CommonName, err)
	}
	if err := evidence.CheckSignatureFrom(ca); err != nil {
		return none, fmt.Errorf("%w: the proof is not signed by the CA: %w", ErrRefused, err)
	}
	if now.Before(evidence.NotBefore.Add(-authority.Backdate)) || now.After(evidence.NotAfter) {
		return none, fmt.Errorf("%w: the proof is valid from %s to %s, here it is %s", ErrRefused, stamp(evidence.NotBefore), stamp(evidence.NotAfter), stamp(now))
	}
	r := RegisteredCA{Fingerprint: authority.Fingerprint(ca.Raw), Name: short(ca.Subject.CommonName), Certificate: string(authority.CertPEM(ca)), NotAfter: ca.NotAfter,
		Template: template, RegisteredAt: now.UTC(), By: by}
	have, err := c.List(ctx)
	if err != nil {
		return none, err
	}
	if len(have) >= casMax && !slices.ContainsFunc(have, func(h RegisteredCA) bool { return h.Fingerprint == r.Fingerprint }) {
		return none, fmt.Errorf("%w: %d CAs are registered, which is the most; remove one", ErrRefused, len(have))
	}
	if err := c.spend(ctx, evidence.Subject.CommonName); err != nil { // last: a code is good once
		return none, err
	}
	return c.keep(ctx, r)
}

// keep writes a CA, whose being disabled is as it was.
func (c *CAs) keep(ctx context.Context, r RegisteredCA) (RegisteredCA, error) {
	for {
		e, err := c.get(ctx, r.Fingerprint)
		if err != nil && !errors.Is(err, ErrUnknownCA) {
			return r, fmt.Errorf("register the CA %q: %w", r.Name, err)
		}
		if err == nil {
			var was RegisteredCA
			if err := json.Unmarshal(e.Value, &was); err != nil {
				return r, fmt.Errorf("read the registered CA %s: %w", r.Fingerprint, err)
			}
			r.Disabled = was.Disabled
		}
		raw, err := json.Marshal(r)
		if err != nil {
			return r, err
		}
		if len(raw) > recordMax {
			return r, fmt.Errorf("%w: the CA's certificate takes %d bytes; %d is the most", ErrRefused, len(raw), recordMax)
		}
		if _, err = c.table.Update(ctx, casPrefix+r.Fingerprint, raw, e.Revision); err == nil {
			return r, nil
		} else if !errors.Is(err, bus.ErrConflict) {
			return r, fmt.Errorf("register the CA %q: %w", r.Name, err)
		}
	}
}

// spend uses up a registration code.
func (c *CAs) spend(ctx context.Context, code string) error {
	wrong := fmt.Errorf("%w: the proof's common name %q is no registration code of the last hour; get one, and sign a certificate with it", ErrRefused, short(code))
	if len(code) != 32 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return wrong
	}
	e, err := c.table.Get(ctx, codePrefix+code)
	switch {
	case errors.Is(err, bus.ErrNotFound):
		return wrong
	case err != nil:
		return fmt.Errorf("look up a registration code: %w", err)
	}
	var rc registrationCode
	if json.Unmarshal(e.Value, &rc) != nil || c.now().After(rc.Expires) {
		return wrong
	}
	switch err := c.table.Delete(ctx, codePrefix+code, e.Revision); {
	case errors.Is(err, bus.ErrConflict), errors.Is(err, bus.ErrNotFound):
		return wrong
	case err != nil:
		return fmt.Errorf("use a registration code: %w", err)
	}
	return nil
}

// List gives the registered CAs by fingerprint; not those whose entry cannot be read.
func (c *CAs) List(ctx context.Context) ([]RegisteredCA, error) {
	entries, err := bus.Entries(ctx, c.table, casPrefix)
	if err != nil {
		return nil, fmt.Errorf("list the registered CAs: %w", err)
	}
	list := []RegisteredCA{}
	for _, e := range entries {
		var r RegisteredCA
		if err := json.Unmarshal(e.Value, &r); err != nil {
			c.unread.tell("a registered CA cannot be read; it is not listed, and vouches for nobody", e, err)
			continue
		}
		list = append(list, r)
	}
	return list, nil
}

// meant gives the fingerprint of the registered CA that somebody means by the beginning of one.
func (c *CAs) meant(ctx context.Context, given string) (string, error) {
	list, err := c.List(ctx)
	if err != nil {
		return "", err
	}
	var all []string
	for _, r := range list {
		all = append(all, r.Fingerprint)
	}
	return complete(given, all, ErrUnknownCA)
}

// ErrUnknownCA says that no such CA is registered.
var ErrUnknownCA = errors.New("no such CA is registered")

// Disable switches a CA off or on: the certificates of one that is off admit nobody.
func (c *CAs) Disable(ctx context.Context, fingerprint string, off bool) (r RegisteredCA, err error) {
	for {
		e, err := c.get(ctx, fingerprint)
		if err != nil {
			return r, err
		}
		if err := json.Unmarshal(e.Value, &r); err != nil {
			return r, fmt.Errorf("read the registered CA %s: %w", fingerprint, err)
		}
		r.Disabled = off
		raw, err := json.Marshal(r)
		if err != nil {
			return r, err
		}
		if _, err = c.table.Update(ctx, e.Key, raw, e.Revision); !errors.Is(err, bus.ErrConflict) {
			return r, err
		}
	}
}

// Remove ends the trust in a CA; its devices' certificates admit nobody any more. It gives what was removed.
func (c *CAs) Remove(ctx context.Context, fingerprint string) (r RegisteredCA, err error) {
	e, err := c.get(ctx, fingerprint)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return r, fmt.Errorf("read the registered CA %s: %w", fingerprint, err)
	}
	if err := c.remember(ctx, removedCA{r.KeyID(), c.now().UTC()}); err != nil { // before it is gone; while it is there, that counts
		return r, err
	}
	return r, c.table.Delete(ctx, e.Key, 0)
}

const (
	removedKey = "removed.cas"
	// removedMax is how many removed CAs are remembered, the latest: of those before, their devices' states say what they did.
	removedMax = 256
)

// removedCA is a CA that was registered here and removed: whose devices are shut out for that.
type removedCA struct {
	Key string    `json:"key"` // as RegisteredCA.KeyID
	At  time.Time `json:"at"`
}

func (c *CAs) removed(ctx context.Context) (list []removedCA, err error) {
	list, _, err = c.removedAt(ctx)
	return list, err
}

func (c *CAs) removedAt(ctx context.Context) (list []removedCA, revision uint64, err error) {
	e, err := c.table.Get(ctx, removedKey)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, 0, nil
	}
	if err == nil {
		err = json.Unmarshal(e.Value, &list)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read which CAs were removed: %w", err)
	}
	return list, e.Revision, nil
}

func (c *CAs) remember(ctx context.Context, r removedCA) error {
	for {
		list, revision, err := c.removedAt(ctx)
		if err != nil {
			return err
		}
		list = append(slices.DeleteFunc(list, func(o removedCA) bool { return o.Key == r.Key }), r)
		raw, err := json.Marshal(list[max(0, len(list)-removedMax):])
		if err != nil {
			return err
		}
		if _, err = c.table.Update(ctx, removedKey, raw, revision); !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}

func (c *CAs) get(ctx context.Context, fingerprint string) (e bus.Entry, err error) {
	if len(fingerprint) != 64 || strings.Trim(fingerprint, "0123456789abcdef") != "" {
		return e, fmt.Errorf("%w: %q is no fingerprint", ErrUnknownCA, short(fingerprint))
	}
	e, err = c.table.Get(ctx, casPrefix+fingerprint)
	if errors.Is(err, bus.ErrNotFound) {
		return e, fmt.Errorf("%w: %s", ErrUnknownCA, fingerprint)
	}
	return e, err
}

// checkCA says why a certificate is none that others may be trusted by.
func checkCA(c *stdx509.Certificate, now time.Time) error {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		return errors.New("is not a CA's (basic constraints)")
	case c.KeyUsage != 0 && c.KeyUsage&stdx509.KeyUsageCertSign == 0:
		return errors.New("may not sign certificates (key usage)")
	case now.After(c.NotAfter):
		return fmt.Errorf("ended %s", stamp(c.NotAfter))
	case now.Before(c.NotBefore):
		return fmt.Errorf("begins %s", stamp(c.NotBefore))
	case len(c.UnhandledCriticalExtensions) > 0:
		return fmt.Errorf("has the critical extension %s, which nobody here understands", c.UnhandledCriticalExtensions[0])
	}
	if err := authority.CheckKey(c.PublicKey); err != nil {
		return err
	}
	if bytes.Equal(c.RawSubject, c.RawIssuer) {
		if err := c.CheckSignatureFrom(c); err != nil {
			return fmt.Errorf("does not carry its own signature: %w", err)
		}
	}
	return nil
}

// oneCert reads one PEM certificate.
func oneCert(what string, text []byte) (*stdx509.Certificate, error) {
	certs, err := authority.ParseCerts(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrRefused, what, err)
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("%w: %s: one certificate is wanted, there are %d", ErrRefused, what, len(certs))
	}
	return certs[0], nil
}

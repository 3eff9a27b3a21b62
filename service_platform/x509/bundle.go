package x509

import (
	"bytes"
	"context"
	stdx509 "crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
)

// The tables are small and public: certificates and states, never a key. A dot ends the first part of each key, by which
// the bus tells entries apart: whoever follows or reads one kind is sent no other.
const (
	trustTable   = "naru_x509"
	trustPrefix  = "trust."
	trustKey     = trustPrefix + "bundle"
	devicesTable = "naru_devices"
)

// ErrOtherCA says that the platform already trusts another CA than the one in this directory.
var ErrOtherCA = errors.New("the platform already has another CA")

// trusted reads what the platform trusts, other CAs of its own among it.
func (o *opened) trusted(ctx context.Context) (all authority.Bundle, err error) {
	e, err := o.trust.Get(ctx, trustKey)
	if err != nil {
		return all, fmt.Errorf("read the trusted CAs: %w", err)
	}
	return bundleOf(e)
}

// errBundle says that what the platform trusts cannot be read, and what to do.
var errBundle = errors.New("the list of trusted CAs cannot be read")

// bundleOf reads the entry of what the platform trusts. No CA writes over one that cannot be read unless it is told to: the CAs
// of others, and what was retired, may have stood there.
func bundleOf(e bus.Entry) (b authority.Bundle, err error) {
	if err := json.Unmarshal(e.Value, &b); err != nil {
		return authority.Bundle{}, fmt.Errorf("%w: entry %s of table %s: %w; start service_platform.x509 with `add_root: true`, which publishes its own CA in its "+
			"place, start other CAs of this platform too, and retire again what was retired", errBundle, trustKey, trustTable, err)
	}
	return b, nil
}

// publish has the platform trust what this process's CA issues by, next where that is given, and forgets here what was
// retired in the meantime, at another node perhaps.
func (s *service) publish(ctx context.Context, o *opened, next *authority.Bundle) error {
	o.publishing.Lock()
	defer o.publishing.Unlock()
	b := o.authority.Bundle()
	if next != nil {
		b = *next
	}
	if err := publishTrust(ctx, o.trust, b, s.config.AddRoot); err != nil {
		return err
	}
	all, err := o.trusted(ctx)
	if err != nil {
		return err
	}
	for _, c := range o.authority.Bundle().Roots[1:] {
		if f := authority.Fingerprint(c.Raw); slices.Contains(all.Retired, f) {
			if err := o.authority.Retire(f); err != nil {
				return fmt.Errorf("retire the root %s: %w", f, err)
			}
		}
	}
	return nil
}

// retire ends the trust in a root, everywhere and then here.
func (o *opened) retire(ctx context.Context, fingerprint string) error {
	o.publishing.Lock()
	defer o.publishing.Unlock()
	if err := o.authority.MayRetire(fingerprint); err != nil {
		return err
	}
	if err := unpublishTrust(ctx, o.trust, fingerprint); err != nil {
		return err
	}
	return o.authority.Retire(fingerprint)
}

// publishTrust adds the bundle to what the platform trusts. A root that is not there yet is added only if it is the
// first, or add says so: a CA whose directory was lost must not be replaced by a new one in silence, because the
// devices out there do not trust the new one's server certificate. With add it also takes the place of what cannot be read.
func publishTrust(ctx context.Context, t bus.Table, mine authority.Bundle, add bool) error {
	for {
		var have authority.Bundle
		e, err := t.Get(ctx, trustKey)
		switch {
		case errors.Is(err, bus.ErrNotFound):
		case err != nil:
			return fmt.Errorf("read the trusted CAs: %w", err)
		default:
			if have, err = bundleOf(e); err != nil && !add {
				return err
			}
		}
		if len(have.Roots) > 0 && !add && !slices.ContainsFunc(mine.Roots, func(c *stdx509.Certificate) bool { return holds(have.Roots, c) }) {
			return fmt.Errorf("%w: trusted is the root %s, here is %s; restore the directory of service_platform.x509 from a backup, "+
				"run the component where that CA's keys are, or set `add_root: true` to trust both", ErrOtherCA,
				authority.Fingerprint(have.Roots[0].Raw)[:16], authority.Fingerprint(mine.Roots[0].Raw)[:16])
		}
		gone := func(fingerprint string) bool { return slices.Contains(have.Retired, fingerprint) }
		if gone(authority.Fingerprint(mine.Roots[0].Raw)) {
			return fmt.Errorf("%w: the root %s that is in use here was retired; move the directory of service_platform.x509 away and set "+
				"`add_root: true` to begin with another", ErrOtherCA, authority.Fingerprint(mine.Roots[0].Raw)[:16])
		}
		mine := mine.Without(gone)
		want := authority.Bundle{Roots: union(mine.Roots, have.Roots), Issuing: union(mine.Issuing, have.Issuing), Retired: have.Retired, RetiredKeys: have.RetiredKeys}
		if bytes.Equal(want.PEM(), have.PEM()) {
			return nil
		}
		raw, err := json.Marshal(want)
		if err != nil {
			return err
		}
		switch _, err = t.Update(ctx, trustKey, raw, e.Revision); {
		case err == nil:
			return nil
		case !errors.Is(err, bus.ErrConflict):
			return fmt.Errorf("publish the trusted CAs: %w", err)
		}
	}
}

// unpublishTrust takes a root, and the issuing CAs that only it vouches for, out of what the platform trusts, for good.
// Doing it again changes nothing.
func unpublishTrust(ctx context.Context, t bus.Table, fingerprint string) error {
	for {
		e, err := t.Get(ctx, trustKey)
		if err != nil {
			return fmt.Errorf("read the trusted CAs: %w", err)
		}
		have, err := bundleOf(e)
		if err != nil {
			return err
		}
		if slices.Contains(have.Retired, fingerprint) {
			return nil
		}
		want := have.Without(func(f string) bool { return f == fingerprint })
		if len(want.Roots) == len(have.Roots) {
			return fmt.Errorf("%w: no trusted root has the fingerprint %s", ErrUnknownCA, short(fingerprint))
		}
		if len(want.Roots) == 0 || len(want.Issuing) == 0 {
			return fmt.Errorf("%w: it is the last trusted root", ErrRefused)
		}
		want.Retired = append(slices.Clone(have.Retired), fingerprint)
		for _, c := range slices.Concat(have.Roots, have.Issuing) {
			if !holds(want.Roots, c) && !holds(want.Issuing, c) {
				want.RetiredKeys = append(slices.Clone(want.RetiredKeys), keyIDOf(c))
			}
		}
		raw, err := json.Marshal(want)
		if err != nil {
			return err
		}
		if _, err = t.Update(ctx, trustKey, raw, e.Revision); !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}

func holds(list []*stdx509.Certificate, c *stdx509.Certificate) bool {
	for _, l := range list {
		if l.Equal(c) {
			return true
		}
	}
	return false
}

func union(a, b []*stdx509.Certificate) []*stdx509.Certificate {
	var all []*stdx509.Certificate
	for _, c := range append(append(all, a...), b...) {
		if !holds(all, c) {
			all = append(all, c)
		}
	}
	return all
}

package x509

import (
	"context"
	stdx509 "crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"
)

// An answer may be lost on the way. Whoever asks again with the same key, for the same device, gets the certificate that was
// issued for it, while that is in force: nothing new is made, and nobody has to say that a second one is not meant.

// asking has requests with one key take turns, so that two of them at once are one. The CA runs in one process.
type asking struct {
	seed  maphash.Seed
	locks [64]sync.Mutex
}

func (a *asking) turn(key string) *sync.Mutex {
	return &a.locks[maphash.String(a.seed, key)%uint64(len(a.locks))]
}

// givenBefore is the certificate in force that was issued for a key to the device that is to be registered, which is
// described anew; nil where there is none, or where it is not kept: it came another way. It refuses a request
// for a new device that describes it otherwise.
func (o *opened) givenBefore(ctx context.Context, g Registration, key string, now time.Time) (*authority.Issued, error) {
	d, err := o.registry.Get(ctx, g.ID)
	if errors.Is(err, ErrUnknownDevice) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, c := range slices.Backward(d.Certs) {
		if c.Key != key || !c.InForce(now) {
			continue
		}
		given, err := o.reissued(ctx, d.ID, c.Fingerprint)
		if err != nil {
			return nil, err
		}
		if given == nil {
			continue
		}
		if d.Disabled {
			return nil, d.off()
		}
		if is := d; g.First && len(is.describe(g)) > 0 {
			return nil, bad(fmt.Errorf("device %s is registered already, with a certificate for this key, and with other groups, attributes or another policy; ask without them, and change them by device set", d.ID))
		}
		g.First = false
		_, _, err = o.registry.Add(ctx, g)
		return given, err
	}
	return nil, nil
}

// reissued is a certificate as it was issued for a device; nil where it is not kept, or its issuer is trusted no more.
func (o *opened) reissued(ctx context.Context, device, fingerprint string) (*authority.Issued, error) {
	der, err := o.registry.issued(ctx, device, fingerprint)
	if err != nil || authority.Fingerprint(der) != fingerprint {
		return nil, err
	}
	return o.chained(der)
}

// chained is a certificate that was issued here before, with its issuer; nil where that is trusted no more, or der is empty.
func (o *opened) chained(der []byte) (*authority.Issued, error) {
	if len(der) == 0 {
		return nil, nil
	}
	cert, err := stdx509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate %s that was issued: %w", authority.Fingerprint(der), err)
	}
	for _, issuer := range o.authority.Bundle().Issuing {
		if cert.CheckSignatureFrom(issuer) == nil {
			return &authority.Issued{Certificate: cert, Chain: authority.CertPEM(cert, issuer)}, nil
		}
	}
	return nil, nil
}

package x509

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
)

// ownerPatience is how long a certificate is kept for a device that has not registered it: for a request that is under
// way. One that was cut off may be given again at any time, for the same device.
const ownerPatience = 10 * time.Minute

// certOwner is the entry of a certificate: whose it is. It is written before the certificate stands with the device, and may
// be made only where there is none, so two devices never have the same one.
type certOwner struct {
	Device string    `json:"device"`
	At     time.Time `json:"at"`
	// Certificate is the certificate itself, DER, where it was issued to a request that may be repeated (see givenBefore).
	Certificate []byte `json:"certificate,omitempty"`
}

// owning are the certificates that a request has taken for its device.
type owning struct {
	r      *Registry
	device string
	at     time.Time
	fresh  map[string]uint64 // made by this request: revisions, by fingerprint
}

// own takes certificates for a device before they are registered. ErrRefused says that one is another's.
func (r *Registry) own(ctx context.Context, device string, certs ...Certificate) (*owning, error) {
	o := &owning{r: r, device: device, at: r.now().UTC(), fresh: map[string]uint64{}}
	for _, c := range certs {
		if err := o.take(ctx, c.Fingerprint, c.der); err != nil {
			o.giveBack(ctx, err)
			return nil, err
		}
	}
	return o, nil
}

func (o *owning) take(ctx context.Context, fingerprint string, der []byte) error {
	raw, err := json.Marshal(certOwner{o.device, o.at, der})
	if err != nil {
		return err
	}
	key := certKey(fingerprint)
	for {
		revision, err := o.r.table.Update(ctx, key, raw, 0)
		if err == nil {
			o.fresh[fingerprint] = revision
			return nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return fmt.Errorf("take the certificate %s for device %s: %w", fingerprint, o.device, err)
		}
		e, err := o.r.table.Get(ctx, key)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look whose the certificate %s is: %w", fingerprint, err)
		}
		var of certOwner
		if err := json.Unmarshal(e.Value, &of); err != nil {
			return fmt.Errorf("read whose the certificate %s is: %w", fingerprint, err)
		}
		has, err := o.r.has(ctx, of.Device, fingerprint)
		if err != nil {
			return err
		}
		switch {
		case has && of.Device == o.device:
			return nil
		case of.Device == o.device: // left by a request that was cut off; taken anew, so that nobody sweeps it away meanwhile
			if len(der) == 0 && len(of.Certificate) > 0 {
				if raw, err = json.Marshal(certOwner{o.device, o.at, of.Certificate}); err != nil {
					return err
				}
			}
			if revision, err = o.r.table.Update(ctx, key, raw, e.Revision); err == nil {
				o.fresh[fingerprint] = revision
				return nil
			} else if !errors.Is(err, bus.ErrConflict) {
				return fmt.Errorf("take the certificate %s for device %s: %w", fingerprint, o.device, err)
			}
			continue
		case has:
			return fmt.Errorf("%w: the certificate %s is registered for device %s", ErrRefused, fingerprint, of.Device)
		}
		if until := of.At.Add(ownerPatience); o.at.Before(until) {
			return fmt.Errorf("%w: the certificate %s is just being registered for device %s; if that was cut off, repeat it, or try again after %s",
				ErrRefused, fingerprint, of.Device, stamp(until))
		}
		if revision, err = o.r.table.Update(ctx, key, raw, e.Revision); err == nil {
			o.fresh[fingerprint] = revision
			return nil
		} else if !errors.Is(err, bus.ErrConflict) {
			return fmt.Errorf("take the certificate %s for device %s: %w", fingerprint, o.device, err)
		}
	}
}

// stands says whether there is time left to register what was taken; another may take it afterwards.
func (o *owning) stands() error {
	if o.r.now().Sub(o.at) > ownerPatience/2 {
		return awayError{fmt.Errorf("register the certificates of device %s: it took more than %s; try again", o.device, ownerPatience/2)}
	}
	return nil
}

// giveBack leaves nothing of a request that was refused. After a fault of the bus nobody knows whether the certificate stands
// with the device, and what was taken is kept for the request that comes again.
func (o *owning) giveBack(ctx context.Context, err error) {
	if errors.Is(err, errAway) {
		return
	}
	for f, revision := range o.fresh {
		if has, err := o.r.has(ctx, o.device, f); err == nil && !has {
			_ = o.r.table.Delete(ctx, certKey(f), revision) // or another may take it in a while
		}
	}
}

// issued is a certificate as it was issued for a device; nil where that is not kept.
func (r *Registry) issued(ctx context.Context, device, fingerprint string) ([]byte, error) {
	e, err := r.table.Get(ctx, certKey(fingerprint))
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the certificate %s: %w", fingerprint, err)
	}
	var of certOwner
	if err := json.Unmarshal(e.Value, &of); err != nil || of.Device != device {
		return nil, nil
	}
	return of.Certificate, nil
}

// has says whether a device has a certificate.
func (r *Registry) has(ctx context.Context, device, fingerprint string) (bool, error) {
	d, _, err := r.load(ctx, device)
	if errors.Is(err, ErrUnknownDevice) {
		return false, nil
	}
	return slices.ContainsFunc(d.Certs, func(c Certificate) bool { return c.Fingerprint == fingerprint }), err
}

// disown forgets whose certificates were that are no device's any more; they stay withdrawn.
func (r *Registry) disown(ctx context.Context, certs []Certificate) (err error) {
	for _, c := range certs {
		err = errors.Join(err, unlessNotFound(r.table.Delete(ctx, certKey(c.Fingerprint), 0)))
	}
	return err
}

// orphanPatience is how long whose a certificate is stands without the certificate: a request that was cut off is given again
// soon or never.
const orphanPatience = time.Hour

// sweepOwners forgets whose certificates are that no device has: of requests that were cut off, and of deletions.
func (s *service) sweepOwners(ctx context.Context, o *opened) error {
	now := s.env.Now()
	if now.Before(o.ownersSwept.Add(ownersSweptEvery)) {
		return nil
	}
	type orphan struct {
		device   string
		revision uint64
	}
	orphans := map[string]orphan{} // by key; those that are in order are as many as there are certificates, and not held
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	read := false
	err := o.registry.table.Watch(watch, certPrefix, func(e bus.Entry) {
		delete(orphans, e.Key)
		var of certOwner
		if e.Deleted || json.Unmarshal(e.Value, &of) != nil || now.Sub(of.At) < orphanPatience {
			return
		}
		if o.index.owner(strings.TrimPrefix(e.Key, certPrefix)) != of.Device {
			orphans[e.Key] = orphan{of.Device, e.Revision}
		}
	}, func() { read = true; cancel() })
	if !read {
		return fmt.Errorf("look whose certificates are no device's: %w", errors.Join(err, context.Cause(ctx)))
	}
	for key, left := range orphans {
		if has, err := o.registry.has(ctx, left.device, strings.TrimPrefix(key, certPrefix)); err != nil {
			return err
		} else if has { // this process has not heard of it yet
			continue
		}
		if err := o.registry.table.Delete(ctx, key, left.revision); err != nil && !errors.Is(err, bus.ErrConflict) && !errors.Is(err, bus.ErrNotFound) {
			return fmt.Errorf("forget whose a certificate was: %w", err)
		}
	}
	o.ownersSwept = now
	return nil
}

// ownersSweptEvery is rare: there are as many entries as certificates.
const ownersSweptEvery = 24 * time.Hour

func unlessNotFound(err error) error {
	if errors.Is(err, bus.ErrNotFound) {
		return nil
	}
	return err
}

package x509

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
)

// A device's entry must stay small, since every broker holds the table.
const (
	certsMax  = 16       // a device rotates one at a time; more than this is a mistake that repeats itself
	recordMax = 16 << 10 // bytes of JSON
)

// Device is what is registered of a device.
type Device struct {
	ID             string            `json:"id"`
	Certs          []Certificate     `json:"certs"` // oldest first
	Disabled       bool              `json:"disabled"`
	DisabledAt     time.Time         `json:"disabled_at,omitzero"`
	DisabledBy     string            `json:"disabled_by,omitempty"`
	DisabledReason string            `json:"disabled_reason,omitempty"`
	CreatedAt      time.Time         `json:"created_at"`
	Attributes     map[string]string `json:"attributes,omitempty"`
	Groups         []string          `json:"groups,omitempty"`
}

// Certificate is a registered certificate. The fingerprint is the identity; the rest is for people.
type Certificate struct {
	Fingerprint string    `json:"fingerprint"` // as Fingerprint
	Serial      string    `json:"serial"`      // hexadecimal
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	IssuedAt    time.Time `json:"issued_at"`
	RevokedAt   time.Time `json:"revoked_at,omitzero"`
	RevokedBy   string    `json:"revoked_by,omitempty"`
	Reason      string    `json:"reason,omitempty"`
}

// Revoked says whether the certificate was withdrawn.
func (c Certificate) Revoked() bool { return !c.RevokedAt.IsZero() }

// ErrUnknownDevice says that no device of that id is registered.
var ErrUnknownDevice = errors.New("no such device")

// ErrRefused says that the device's state does not allow what was asked.
var ErrRefused = errors.New("refused")

// Registry is the list of devices and their certificates, in a table on the bus. Changes of any number of processes do
// not overwrite each other.
type Registry struct {
	table bus.Table
	now   func() time.Time
}

// OpenRegistry opens it.
func OpenRegistry(ctx context.Context, b bus.Bus, now func() time.Time) (*Registry, error) {
	t, err := b.Table(ctx, devicesTable, bus.TableOptions{})
	if err != nil {
		return nil, fmt.Errorf("open table %s: %w", devicesTable, err)
	}
	return &Registry{table: t, now: now}, nil
}

// Get gives ErrUnknownDevice where there is none.
func (r *Registry) Get(ctx context.Context, id string) (Device, error) {
	d, _, err := r.get(ctx, id)
	return d, err
}

// List gives the devices behind the id after, by id, at most limit of them; more says whether there are more.
func (r *Registry) List(ctx context.Context, after string, limit int) (list []Device, more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := map[string]Device{}
	synced := false
	var bad error
	err = r.table.Watch(ctx, devicePrefix, func(e bus.Entry) {
		if synced {
			return
		}
		var d Device
		switch {
		case e.Deleted:
			delete(found, e.Key)
		case json.Unmarshal(e.Value, &d) != nil:
			bad = fmt.Errorf("entry %s of table %s cannot be read", e.Key, devicesTable)
		case d.ID > after:
			found[e.Key] = d
		}
	}, func() { synced = true; cancel() })
	if !synced {
		return nil, false, fmt.Errorf("list devices: %w", cmp.Or(err, ctx.Err()))
	}
	if bad != nil {
		return nil, false, bad
	}
	for _, d := range found {
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b Device) int { return strings.Compare(a.ID, b.ID) })
	if len(list) > limit {
		return list[:limit], true, nil
	}
	return list, false, nil
}

// Add registers a certificate, and the device with it where it is new. Attributes and groups replace what is there
// where they are not nil. It gives ErrRefused for a device that is disabled or has too many certificates.
func (r *Registry) Add(ctx context.Context, id string, c Certificate, attributes map[string]string, groups []string) (d Device, created bool, err error) {
	d, err = r.change(ctx, id, true, func(d *Device) error {
		created = d.CreatedAt.IsZero()
		if created {
			d.CreatedAt = r.now().UTC()
		}
		if attributes != nil {
			d.Attributes = attributes
		}
		if groups != nil {
			d.Groups = groups
		}
		if err := d.roomForCert(r.now()); err != nil {
			return err
		}
		d.Certs = append(d.Certs, c)
		return nil
	})
	return d, created, err
}

// Revoke withdraws the certificate with the fingerprint, or all where it is empty. Withdrawing twice changes nothing:
// the first time and reason stay. It gives the certificates that it withdrew.
func (r *Registry) Revoke(ctx context.Context, id, fingerprint, by, reason string) (d Device, revoked []Certificate, err error) {
	d, err = r.change(ctx, id, false, func(d *Device) error {
		revoked = nil
		known := fingerprint == ""
		for i := range d.Certs {
			c := &d.Certs[i]
			if fingerprint != "" && c.Fingerprint != fingerprint {
				continue
			}
			known = true
			if !c.Revoked() {
				c.RevokedAt, c.RevokedBy, c.Reason = r.now().UTC(), by, reason
				revoked = append(revoked, *c)
			}
		}
		if !known {
			return fmt.Errorf("%w: device %s has no certificate %s", ErrUnknownDevice, id, fingerprint)
		}
		return nil
	})
	return d, revoked, err
}

// Disable switches a device off or on; changed is false where it was so already.
func (r *Registry) Disable(ctx context.Context, id string, off bool, by, reason string) (d Device, changed bool, err error) {
	d, err = r.change(ctx, id, false, func(d *Device) error {
		if changed = d.Disabled != off; !changed {
			return nil
		}
		d.Disabled = off
		if off {
			d.DisabledAt, d.DisabledBy, d.DisabledReason = r.now().UTC(), by, reason
		} else {
			d.DisabledAt, d.DisabledBy, d.DisabledReason = time.Time{}, "", ""
		}
		return nil
	})
	return d, changed, err
}

// Remove takes the device and all its certificates out of the registry; the door refuses them as unregistered.
func (r *Registry) Remove(ctx context.Context, id string) error {
	for {
		_, revision, err := r.get(ctx, id)
		if err != nil {
			return err
		}
		switch err := r.table.Delete(ctx, deviceKey(id), revision); {
		case err == nil:
			return nil
		case !errors.Is(err, bus.ErrConflict):
			return fmt.Errorf("remove device %s: %w", id, err)
		}
	}
}

// roomForCert forgets expired certificates, then the revoked that were withdrawn first, and refuses what is too much:
// what is forgotten is refused at the door as expired or as unregistered.
func (d *Device) roomForCert(now time.Time) error {
	if d.Disabled {
		return fmt.Errorf("%w: device %s is disabled by %s; enable it first", ErrRefused, d.ID, d.DisabledBy)
	}
	if len(d.Certs) < certsMax {
		return nil
	}
	d.Certs = slices.DeleteFunc(d.Certs, func(c Certificate) bool { return now.After(c.NotAfter) })
	for len(d.Certs) >= certsMax {
		i := slices.IndexFunc(d.Certs, Certificate.Revoked)
		if i < 0 {
			return fmt.Errorf("%w: device %s has %d valid certificates; revoke those it does not use", ErrRefused, d.ID, len(d.Certs))
		}
		d.Certs = slices.Delete(d.Certs, i, i+1)
	}
	return nil
}

func (r *Registry) get(ctx context.Context, id string) (d Device, revision uint64, err error) {
	if CheckDevice(id) != nil { // what cannot be registered is not; and the key stays short
		return d, 0, fmt.Errorf("%w: %q is no device id", ErrUnknownDevice, short(id))
	}
	e, err := r.table.Get(ctx, deviceKey(id))
	switch {
	case errors.Is(err, bus.ErrNotFound):
		return d, 0, fmt.Errorf("%w: %s is not registered", ErrUnknownDevice, id)
	case err != nil:
		return d, 0, fmt.Errorf("read device %s: %w", id, err)
	}
	if err := json.Unmarshal(e.Value, &d); err != nil {
		return d, 0, fmt.Errorf("read device %s: its entry in table %s: %w", id, devicesTable, err)
	}
	return d, e.Revision, nil
}

// change reads, changes and writes until nobody came between. f may run several times.
func (r *Registry) change(ctx context.Context, id string, create bool, f func(*Device) error) (Device, error) {
	for {
		d, revision, err := r.get(ctx, id)
		if errors.Is(err, ErrUnknownDevice) && create {
			d, err = Device{ID: id}, nil
		}
		if err != nil {
			return d, err
		}
		if err := f(&d); err != nil {
			return d, err
		}
		raw, err := json.Marshal(d)
		if err != nil {
			return d, err
		}
		if len(raw) > recordMax {
			return d, fmt.Errorf("%w: device %s would take %d bytes, %d is the most; use fewer attributes", ErrRefused, id, len(raw), recordMax)
		}
		switch _, err = r.table.Update(ctx, deviceKey(id), raw, revision); {
		case err == nil:
			return d, nil
		case !errors.Is(err, bus.ErrConflict):
			return d, fmt.Errorf("register device %s: %w", id, err)
		}
	}
}

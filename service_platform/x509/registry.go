package x509

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// A device's entry must stay small, since every broker holds the table.
const (
	unsaidMax = 64       // beyond it the bus has not taken a fact for long, and changes are refused
	certsMax  = 16       // a device rotates one at a time; more than this is a mistake that repeats itself
	recordMax = 16 << 10 // bytes of JSON
	// recordEver leaves room to withdraw, with the longest of reasons, all certificates of a device that is as large as it
	// may be made, and to disable it.
	recordEver = 8 * recordMax
)

// limits are how far a change may let a device's entry grow.
type limits struct {
	bytes  int
	unsaid int // 0: any number
}

var (
	wished   = limits{recordMax, unsaidMax}  // what people add to a device
	kept     = limits{recordEver, unsaidMax} // what happens to it
	stopping = limits{bytes: recordEver}     // what keeps somebody out: neither size nor a bus that hears nothing stands in its way
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
	Policy         string            `json:"policy,omitempty"`
	// CA says how the device registered itself, where it did: the fingerprint of the registered CA by whose certificate,
	// or `claim:` and the template.
	CA string `json:"ca,omitempty"`
	// TokensVoid voids every enrolment token that was made until then: the device was deleted, or a certificate of it revoked.
	TokensVoid time.Time `json:"tokens_void,omitzero"`
	// Gone marks a device that was deleted and stays until that has been said; nobody is shown it.
	Gone bool `json:"gone,omitempty"`
	// Unsaid are facts about the device that are still to be said, oldest first: written with the change itself, so
	// that a process that dies between the two loses none.
	Unsaid []Fact `json:"unsaid,omitempty"`
}

// claimedBy is in front of the template in Device.CA.
const claimedBy = "claim:"

// Fact is a change that is to be said, under the id that it will always have.
type Fact struct {
	ID message.ID                    `json:"id"`
	At time.Time                     `json:"at"`
	Of serviceplatform.DeviceChanged `json:"of"`
}

// Certificate is a registered certificate. The fingerprint is the identity; the rest is for people.
type Certificate struct {
	Fingerprint string    `json:"fingerprint"` // as Fingerprint
	Serial      string    `json:"serial"`      // hexadecimal
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	IssuedAt    time.Time `json:"issued_at"`
	// Name is its common name where that is not the device's id.
	Name string `json:"name,omitempty"`
	// Issuer is the issuer's key identifier, hexadecimal: whose revocation list it belongs in. One that a registered CA
	// vouches for has that CA's.
	Issuer string `json:"issuer,omitempty"`
	// Key is the hash of its public key (see keyHash), hexadecimal; empty where nobody here has seen the certificate itself.
	Key string `json:"key,omitempty"`
	// Awaited says that the device was given it by a token and has not come in with it yet: until it has, its answer may
	// have been lost, and the same token gives it once more.
	Awaited bool `json:"awaited,omitempty"`
	// EndsAt is when it stops being accepted because another took its place; zero where none did.
	EndsAt    time.Time `json:"ends_at,omitzero"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	RevokedBy string    `json:"revoked_by,omitempty"`
	Reason    string    `json:"reason,omitempty"`

	der []byte // kept beside the device, for a request that is repeated
}

// InForce says whether a device gets in with it.
func (c Certificate) InForce(now time.Time) bool {
	return !c.Revoked() && now.Before(c.NotAfter) && (c.EndsAt.IsZero() || now.Before(c.EndsAt))
}

// replaced says that it was withdrawn since another took its place, and not by anybody.
func (c Certificate) replaced() bool { return c.Reason == superseded && c.RevokedBy == rotation }

// Revoked says whether the certificate was withdrawn.
func (c Certificate) Revoked() bool { return !c.RevokedAt.IsZero() }

// ErrUnknownDevice says that no device of that id is registered.
var ErrUnknownDevice = errors.New("no such device")

// errUnknownCert says that a device has no such certificate.
var errUnknownCert = errors.New("no such certificate")

// ErrRefused says that the device's state, or the CA's, does not allow what was asked.
var ErrRefused = authority.ErrRefused

// Registry is the list of devices and their certificates, in a table on the bus. Changes of any number of processes do
// not overwrite each other.
type Registry struct {
	table store
	trust store // where what is withdrawn stays
	now   func() time.Time
	// These are told of each write to a table that was done here; they may be nil.
	wrote, withdrew func(bus.Entry)
	// These refuse the key of a claim certificate, and that of another device where a certificate is issued here; they may be nil.
	claimKey     func(key string) error
	otherDevices func(key, device string) error
}

// OpenRegistry opens it.
func OpenRegistry(ctx context.Context, b bus.Bus, now func() time.Time) (*Registry, error) {
	t, err := openStore(ctx, b, devicesTable, bus.TableOptions{})
	if err != nil {
		return nil, err
	}
	trust, err := openStore(ctx, b, trustTable, bus.TableOptions{})
	if err != nil {
		return nil, err
	}
	return &Registry{table: t, trust: trust, now: now}, nil
}

// Get gives ErrUnknownDevice where there is none.
func (r *Registry) Get(ctx context.Context, id string) (Device, error) {
	d, _, err := r.get(ctx, id)
	return d, err
}

// Registration is what a device is registered with.
type Registration struct {
	ID          string
	Certificate *Certificate      // nil for a device that has none yet
	Attributes  map[string]string // these three replace what is there where they are not zero
	Groups      []string
	Policy      string
	CA          string    // see Device.CA
	CreatedAt   time.Time // of an import; now where zero
	By          string
	// Fresh refuses a device that is registered already, unless with this very certificate.
	Fresh bool
	// First refuses a device that has or had a certificate with another key.
	First bool
	// Token is when the enrolment token was made by which the device comes; zero where it comes another way.
	Token time.Time
	// Overlap is set for a rotation: the certificates of before are accepted for that much longer.
	Overlap *time.Duration
}

// Add registers a certificate, and the device with it where it is new. Adding the same certificate again changes
// nothing. It gives ErrRefused for a device that is disabled or has too many certificates, and for a certificate that was
// withdrawn.
func (r *Registry) Add(ctx context.Context, g Registration) (d Device, created bool, err error) {
	if err := authority.CheckDevice(g.ID); err != nil {
		return d, false, fmt.Errorf("%w: %w", ErrUnknownDevice, err)
	}
	var own *owning
	var dropped []Certificate
	if g.Certificate != nil {
		if own, err = r.own(ctx, g.ID, *g.Certificate); err != nil {
			return d, false, err
		}
		defer func() {
			if err != nil {
				own.giveBack(ctx, err)
			}
		}()
	}
	d, err = r.change(ctx, g.ID, true, func(d *Device) error {
		now := r.now().UTC()
		if !g.Token.IsZero() && !g.Token.After(d.TokensVoid) {
			return fmt.Errorf("%w: device %s was deleted or its certificate revoked in the meantime, which voids its tokens", ErrRefused, d.ID)
		}
		dropped = nil
		if created = d.CreatedAt.IsZero(); created {
			d.CreatedAt, d.CA = now, g.CA
		}
		if g.Certificate != nil {
			i := slices.IndexFunc(d.Certs, func(c Certificate) bool { return c.Fingerprint == g.Certificate.Fingerprint })
			if i >= 0 && d.Certs[i].Revoked() {
				return fmt.Errorf("%w: the certificate %s of device %s was revoked, and stays so; issue another", ErrRefused, g.Certificate.Fingerprint, d.ID)
			}
			if i >= 0 {
				return nil
			}
			// A deletion withdraws first, and takes the device out then: what was withdrawn after this look changes the
			// entry behind it, and there is another look.
			if err := firstOf(checkWithdrawn(ctx, r.trust, g.Certificate.Fingerprint), own.stands()); err != nil {
				return err
			}
			if err := r.checkKey(ctx, g.Certificate.Key); err != nil {
				return err
			}
			if r.otherDevices != nil {
				if err := r.otherDevices(g.Certificate.Key, d.ID); err != nil {
					return err
				}
			}
		}
		if !created && g.CA != "" && d.CA != g.CA {
			return fmt.Errorf("%w: device %s was not registered this way, and cannot be changed this way", ErrRefused, d.ID)
		}
		if g.Fresh && !created {
			return fmt.Errorf("%w: device %s is registered already", ErrRefused, d.ID)
		}
		if g.First && len(d.Certs) > 0 && !slices.ContainsFunc(d.Certs, func(c Certificate) bool { return c.Key != "" && c.Key == g.Certificate.Key }) {
			return fmt.Errorf("%w: device %s is registered already, and has certificates: %d", ErrRefused, d.ID, len(d.Certs))
		}
		f := serviceplatform.DeviceChanged{Device: d.ID, Change: serviceplatform.Changed, By: g.By}
		if fields := d.describe(g); !created {
			f.Fields = fields
		}
		if g.Certificate != nil {
			if d.Disabled {
				return d.off()
			}
			if g.Overlap != nil { // first: what ends at once makes room
				d.supersede(now.Add(*g.Overlap), *g.Certificate)
				d.endOverlaps(now)
			}
			forgotten, expired, err := d.roomForCert(now)
			if err != nil {
				return err
			}
			dropped = append(forgotten, expired...)
			if err := r.keepRevoked(ctx, d.ID, forgotten); err != nil { // before it is forgotten, and twice is the same as once
				return err
			}
			d.Certs = append(d.Certs, *g.Certificate)
			f.Change, f.Fingerprint, f.NotAfter = serviceplatform.Issued, g.Certificate.Fingerprint, g.Certificate.NotAfter
		}
		if created {
			f.Change = serviceplatform.Registered
		}
		if created || len(f.Fields) > 0 || g.Certificate != nil {
			d.note(now, f)
		}
		return nil
	})
	if err == nil {
		err = r.disown(ctx, dropped)
	}
	return d, created, err
}

// Import registers a device with certificates that it has elsewhere, or adds them to what is there, in one write: one that
// is to be disabled is never let in, whatever comes between. It does not enable one that is disabled.
func (r *Registry) Import(ctx context.Context, g Registration, certs []Certificate, disabled bool) (d Device, created bool, err error) {
	own, err := r.own(ctx, g.ID, certs...)
	if err != nil {
		return d, false, err
	}
	defer func() {
		if err != nil {
			own.giveBack(ctx, err)
		}
	}()
	var dropped []Certificate
	d, err = r.change(ctx, g.ID, true, func(d *Device) error {
		now := r.now().UTC()
		note := func(change string, c Certificate) {
			d.note(now, serviceplatform.DeviceChanged{Device: d.ID, Change: change, Fingerprint: c.Fingerprint, NotAfter: c.NotAfter, By: g.By})
		}
		dropped = nil
		if err := own.stands(); err != nil {
			return err
		}
		if created = d.CreatedAt.IsZero(); created {
			d.CreatedAt, d.CA = now, g.CA
			if !g.CreatedAt.IsZero() {
				d.CreatedAt = g.CreatedAt.UTC()
			}
		}
		switch fields := d.describe(g); {
		case created:
			note(serviceplatform.Registered, Certificate{})
		case len(fields) > 0:
			d.note(now, serviceplatform.DeviceChanged{Device: d.ID, Change: serviceplatform.Changed, By: g.By, Fields: fields})
		}
		for _, c := range certs {
			if slices.ContainsFunc(d.Certs, func(has Certificate) bool { return has.Fingerprint == c.Fingerprint }) {
				continue
			}
			if d.Disabled && !disabled {
				return d.off()
			}
			if err := r.importable(ctx, d.ID, c); err != nil {
				return err
			}
			forgotten, expired, err := d.roomForCert(now)
			if err != nil {
				return err
			}
			dropped = append(append(dropped, forgotten...), expired...)
			if err := r.keepRevoked(ctx, d.ID, forgotten); err != nil { // first, and twice is the same as once
				return err
			}
			c.Awaited = false // whoever was to ask again was to ask there
			d.Certs = append(d.Certs, c)
			note(serviceplatform.Issued, c)
		}
		if disabled && !d.Disabled {
			d.Disabled, d.DisabledAt, d.DisabledBy, d.DisabledReason = true, now, g.By, "imported so"
			note(serviceplatform.Disabled, Certificate{})
		}
		return nil
	})
	if err == nil {
		err = r.disown(ctx, dropped)
	}
	return d, created, err
}

// importable refuses a certificate that was withdrawn or whose key was revoked here, and takes over that one was revoked
// elsewhere. It belongs inside the change, for the reason that Add has.
func (r *Registry) importable(ctx context.Context, device string, c Certificate) error {
	if err := checkWithdrawn(ctx, r.trust, c.Fingerprint); err != nil {
		return err
	}
	if !c.Revoked() {
		return r.checkKey(ctx, c.Key)
	}
	return r.condemn(ctx, device, c)
}

// checkKey refuses a key that was revoked, or is a claim certificate's.
func (r *Registry) checkKey(ctx context.Context, key string) error {
	if err := checkRevokedKey(ctx, r.trust, key); err != nil || r.claimKey == nil {
		return err
	}
	return r.claimKey(key)
}

// condemn revokes the key of a certificate that is revoked, unless another only took its place.
func (r *Registry) condemn(ctx context.Context, device string, c Certificate) error {
	if c.replaced() {
		return nil
	}
	return condemn(ctx, r.trust, c.Key, revokedKey{Device: device, Fingerprint: c.Fingerprint, At: r.now().UTC(), Until: c.NotAfter.Add(revokedKeyKept)})
}

// Came notes that a device has come in with a certificate that a token gave it.
func (r *Registry) Came(ctx context.Context, id, fingerprint string) error {
	_, err := r.changeWithin(ctx, kept, id, false, func(d *Device) error {
		for i := range d.Certs {
			if d.Certs[i].Fingerprint == fingerprint {
				d.Certs[i].Awaited = false
			}
		}
		return nil
	})
	if errors.Is(err, ErrUnknownDevice) {
		return nil
	}
	return err
}

// supersede has the certificates in force end then, if they do not end before.
func (d *Device) supersede(then time.Time, by Certificate) {
	for i := range d.Certs {
		c := &d.Certs[i]
		if !c.Revoked() && (c.EndsAt.IsZero() || c.EndsAt.After(then)) && c.Fingerprint != by.Fingerprint {
			c.EndsAt = then
		}
	}
}

// note keeps a fact until it has been said.
func (d *Device) note(now time.Time, f serviceplatform.DeviceChanged) {
	if f.By == "" {
		f.By = defaultBy
	}
	d.Unsaid = append(d.Unsaid, Fact{message.NewID(now), now, f})
}

// Revoke withdraws the certificate with the fingerprint, or the beginning of one, and every other of the device with the same key: who has that
// key gets in with each of them. Where the fingerprint is empty it withdraws all. Withdrawing twice changes nothing: the first time and reason stay. It gives the certificates that it withdrew. Their keys are certified no more, and every
// enrolment token of the device that there is by now is void.
func (r *Registry) Revoke(ctx context.Context, id, fingerprint, by, reason string) (d Device, revoked []Certificate, err error) {
	d, err = r.changeWithin(ctx, stopping, id, false, func(d *Device) error {
		revoked = nil
		known := fingerprint == ""
		if !known {
			var all []string
			for _, c := range d.Certs {
				all = append(all, c.Fingerprint)
			}
			if fingerprint, err = complete(fingerprint, all, fmt.Errorf("%w of device %s", errUnknownCert, id)); err != nil {
				return err
			}
		}
		d.TokensVoid = r.now().UTC()
		key := ""
		if i := slices.IndexFunc(d.Certs, func(c Certificate) bool { return c.Fingerprint == fingerprint }); i >= 0 {
			key = d.Certs[i].Key
		}
		for i := range d.Certs {
			c := &d.Certs[i]
			if fingerprint != "" && c.Fingerprint != fingerprint && (key == "" || c.Key != key) {
				continue
			}
			known = true
			if !c.Revoked() {
				if err := r.condemn(ctx, d.ID, *c); err != nil { // first, and twice is the same as once
					return err
				}
				now := r.now().UTC()
				c.RevokedAt, c.RevokedBy, c.Reason = now, by, reason
				revoked = append(revoked, *c)
				d.note(now, serviceplatform.DeviceChanged{Device: d.ID, Change: serviceplatform.Revoked, Fingerprint: c.Fingerprint, NotAfter: c.NotAfter, By: by, Reason: reason})
			}
		}
		if !known {
			return fmt.Errorf("%w of device %s: %s", errUnknownCert, id, fingerprint)
		}
		return nil
	})
	return d, revoked, err
}

// Disable switches a device off or on; changed is false where it was so already.
func (r *Registry) Disable(ctx context.Context, id string, off bool, by, reason string) (d Device, changed bool, err error) {
	within := kept
	if off {
		within = stopping
	}
	d, err = r.changeWithin(ctx, within, id, false, func(d *Device) error {
		if changed = d.Disabled != off; !changed {
			return nil
		}
		d.Disabled = off
		change := serviceplatform.Enabled
		if off {
			change = serviceplatform.Disabled
		}
		d.note(r.now().UTC(), serviceplatform.DeviceChanged{Device: d.ID, Change: change, By: by, Reason: reason})
		if off {
			d.DisabledAt, d.DisabledBy, d.DisabledReason = r.now().UTC(), by, reason
		} else {
			d.DisabledAt, d.DisabledBy, d.DisabledReason = time.Time{}, "", ""
		}
		return nil
	})
	return d, changed, err
}

// End withdraws the certificates whose overlap has passed. It gives those that it withdrew.
func (r *Registry) End(ctx context.Context, id string) (ended []Certificate, err error) {
	_, err = r.changeWithin(ctx, kept, id, false, func(d *Device) error {
		ended = d.endOverlaps(r.now().UTC())
		return nil
	})
	return ended, err
}

// endOverlaps withdraws the certificates whose overlap has passed, and gives them.
func (d *Device) endOverlaps(now time.Time) (ended []Certificate) {
	for i := range d.Certs {
		c := &d.Certs[i]
		if c.Revoked() || c.EndsAt.IsZero() || now.Before(c.EndsAt) {
			continue
		}
		c.RevokedAt, c.RevokedBy, c.Reason = c.EndsAt, rotation, superseded
		ended = append(ended, *c)
		d.note(now, serviceplatform.DeviceChanged{Device: d.ID, Change: serviceplatform.Revoked, Fingerprint: c.Fingerprint, NotAfter: c.NotAfter, By: c.RevokedBy, Reason: c.Reason})
	}
	return ended
}

const (
	superseded = "superseded"
	rotation   = "rotation"
)

// Remove takes the device and all its certificates out of the registry; the door refuses them as unregistered, and they
// stay withdrawn: those of a registered CA do not come back by themselves. The entry itself goes once the fact has been
// said (see settle). It gives what was there.
func (r *Registry) Remove(ctx context.Context, id, by string) (was Device, err error) {
	_, err = r.changeWithin(ctx, stopping, id, false, func(d *Device) error {
		was = *d
		if err := r.keepRevoked(ctx, d.ID, d.Certs); err != nil { // of this very state, and first
			return err
		}
		*d = Device{ID: d.ID, CreatedAt: d.CreatedAt, Gone: true, Unsaid: slices.Clone(d.Unsaid), TokensVoid: r.now().UTC()}
		d.note(r.now().UTC(), serviceplatform.DeviceChanged{Device: d.ID, Change: serviceplatform.Deleted, By: by})
		return nil
	})
	if err == nil {
		err = r.disown(ctx, was.Certs)
	}
	return was, err
}

// unsaid gives the facts about a device that are still to be said.
func (r *Registry) unsaid(ctx context.Context, id string) ([]Fact, error) {
	d, _, err := r.load(ctx, id)
	if errors.Is(err, ErrUnknownDevice) {
		return nil, nil
	}
	return d.Unsaid, err
}

// settle forgets facts that have been said, and with the last of them a device that was deleted.
func (r *Registry) settle(ctx context.Context, id string, said []Fact) error {
	for {
		d, revision, err := r.load(ctx, id)
		if errors.Is(err, ErrUnknownDevice) {
			return nil
		}
		if err != nil {
			return err
		}
		before := len(d.Unsaid)
		d.Unsaid = slices.DeleteFunc(d.Unsaid, func(f Fact) bool {
			return slices.ContainsFunc(said, func(s Fact) bool { return s.ID == f.ID })
		})
		switch {
		case d.Gone && len(d.Unsaid) == 0:
			if err := r.dropTokens(ctx, id, d.TokensVoid); err != nil { // first: nothing voids them afterwards
				return err
			}
			if err = r.table.Delete(ctx, deviceKey(id), revision); err == nil && r.wrote != nil {
				r.wrote(bus.Entry{Key: deviceKey(id), Revision: revision + 1, Deleted: true})
			}
		case len(d.Unsaid) == before:
			return nil
		default:
			err = r.write(ctx, d, revision, recordEver)
		}
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}

// off refuses another certificate to a device that is disabled.
func (d *Device) off() error {
	return fmt.Errorf("%w: device %s is disabled by %s; enable it first", ErrRefused, d.ID, d.DisabledBy)
}

// roomForCert forgets expired certificates, then the revoked that were withdrawn first, and refuses what is too much. It
// gives the revoked that it forgot, which must stay withdrawn, and the expired.
func (d *Device) roomForCert(now time.Time) (forgotten, expired []Certificate, err error) {
	if len(d.Certs) < certsMax {
		return nil, nil, nil
	}
	d.Certs = slices.DeleteFunc(d.Certs, func(c Certificate) bool {
		if !now.After(c.NotAfter) {
			return false
		}
		if c.Revoked() { // and may be in force by a clock that is right
			forgotten = append(forgotten, c)
		} else {
			expired = append(expired, c)
		}
		return true
	})
	for len(d.Certs) >= certsMax {
		i := slices.IndexFunc(d.Certs, Certificate.Revoked)
		if i < 0 {
			return nil, nil, fmt.Errorf("%w: device %s has %d valid certificates, which is the most; revoke those it does not use, or rotate with an overlap of 0, which ends them all", ErrRefused, d.ID, len(d.Certs))
		}
		forgotten = append(forgotten, d.Certs[i])
		d.Certs = slices.Delete(d.Certs, i, i+1)
	}
	return forgotten, expired, nil
}

func (r *Registry) get(ctx context.Context, id string) (d Device, revision uint64, err error) {
	d, revision, err = r.load(ctx, id)
	if err == nil && d.Gone {
		return Device{}, 0, fmt.Errorf("%w: %s is not registered", ErrUnknownDevice, id)
	}
	return d, revision, err
}

// load gives an entry as it stands, a deleted device's among them.
func (r *Registry) load(ctx context.Context, id string) (d Device, revision uint64, err error) {
	if authority.CheckDevice(id) != nil { // what cannot be registered is not; and the key stays short
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

// change is changeWithin what people may add to a device.
func (r *Registry) change(ctx context.Context, id string, create bool, f func(*Device) error) (Device, error) {
	return r.changeWithin(ctx, wished, id, create, f)
}

// changeWithin reads, changes and writes until nobody came between. f may run several times; where it changes nothing,
// nothing is written. A device that is beyond the limits may be changed as long as it does not grow.
func (r *Registry) changeWithin(ctx context.Context, l limits, id string, create bool, f func(*Device) error) (Device, error) {
	for {
		d, revision, err := r.load(ctx, id)
		switch {
		case errors.Is(err, ErrUnknownDevice) && create && authority.CheckDevice(id) == nil:
			d = Device{ID: id}
		case err != nil:
			return d, err
		case d.Gone && create:
			d = Device{ID: id, Unsaid: d.Unsaid, TokensVoid: d.TokensVoid}
		case d.Gone:
			return Device{}, fmt.Errorf("%w: %s is not registered", ErrUnknownDevice, id)
		}
		before, err := json.Marshal(d)
		if err != nil {
			return d, err
		}
		unsaid := len(d.Unsaid)
		if err := f(&d); err != nil {
			return d, err
		}
		if l.unsaid > 0 && len(d.Unsaid) > max(l.unsaid, unsaid) {
			return d, fmt.Errorf("%w: %d changes of device %s could not be said yet; is the bus writable?", ErrRefused, len(d.Unsaid)-1, id)
		}
		if after, err := json.Marshal(d); err == nil && revision != 0 && bytes.Equal(before, after) {
			return d, nil
		}
		if err := r.write(ctx, d, revision, max(l.bytes, len(before))); !errors.Is(err, bus.ErrConflict) {
			return d, err
		}
	}
}

// write gives bus.ErrConflict where another came between, and ErrRefused for more than most bytes.
func (r *Registry) write(ctx context.Context, d Device, revision uint64, most int) error {
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if len(raw) > most {
		return fmt.Errorf("%w: device %s would take %d bytes, %d is the most; use fewer attributes", ErrRefused, d.ID, len(raw), most)
	}
	if revision, err = r.table.Update(ctx, deviceKey(d.ID), raw, revision); err != nil {
		return fmt.Errorf("register device %s: %w", d.ID, err)
	}
	if r.wrote != nil {
		r.wrote(bus.Entry{Key: deviceKey(d.ID), Value: raw, Revision: revision})
	}
	return nil
}

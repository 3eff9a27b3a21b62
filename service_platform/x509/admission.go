package x509

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	stdx509 "crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/names"
	"github.com/naru-platform/naru/message"
)

// intermediatesMax is how many certificates a client may present beside its own; this CA's chains need one.
const intermediatesMax = 8

// AdmissionOptions are what an Admission needs beside the bus.
type AdmissionOptions struct {
	// Now is the clock; time.Now where nil.
	Now func() time.Time
	// Log is told what a refusal cannot say: entries that cannot be read, a server certificate that cannot be loaded.
	Log *slog.Logger
	// ServerCert and ServerKey are the PEM files of the listener's certificate: in the process of the component
	// `service_platform.x509` those in its directory (server.crt, server.key), elsewhere files that were put there.
	ServerCert, ServerKey string
	// Node names the process in what is recorded; a random name where empty.
	Node string
}

// Admission decides who may come in, in any process: it follows the trusted CAs and the registered devices on the bus
// and holds them in memory. The identity of a client is its registered certificate, by fingerprint; its common name
// alone admits nobody. All methods may be called by any number of goroutines.
type Admission struct {
	bus    bus.Bus
	o      AdmissionOptions
	synced chan struct{} // closed when both tables have been read once
	server serverCert

	recorder    recorder
	refused     refusals // just in time
	overlaps    overlaps
	policies    *names.Known
	provisioner atomic.Pointer[Provisioner]
	provisions  claimLimits // at this door

	mu        sync.RWMutex  // guards what follows
	published chan struct{} // closed, and another put in its place, when a CA has published what is trusted
	trust     *trust
	unread    error                    // why what was published since cannot be read; nil where it can
	cas       map[string]*registeredCA // by key in the table
	templates map[string]Template
	claims    map[fingerprint]Claim
	devices   map[string]*admitted // by key in the table
	deleted   tombstones
	certs     map[fingerprint]*admitted
	registry  bus.Table              // nil until opened
	unnoted   map[fingerprint]string // devices that have come in, which could not be noted yet
	onChange  []*func(who string)
}

type fingerprint [sha256.Size]byte

// admitted is what has to be known of a device at the door.
type admitted struct {
	id       string
	disabled bool
	by       string // who disabled it
	revision uint64
	certs    map[fingerprint]revocation

	policy     string
	groups     []string
	attributes map[string]string
}

// revocation is what the door holds of a certificate; at and ends are zero for one in force.
type revocation struct {
	at, ends time.Time
	reason   string
	name     string // its common name where that is not the device's id
	awaited  bool   // the device has not come in with it yet, and somebody waits for that
}

// NewAdmission makes one that knows nothing until Run has read the tables.
func NewAdmission(b bus.Bus, o AdmissionOptions) *Admission {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Node == "" {
		o.Node = "n-" + strings.ToLower(rand.Text()[:8])
	}
	return &Admission{
		bus: b, o: o, synced: make(chan struct{}), published: make(chan struct{}),
		server:   serverCert{cert: o.ServerCert, key: o.ServerKey, now: o.Now, log: o.Log},
		recorder: recorder{node: o.Node}, policies: names.NewKnown(b, names.Policies, o.Now), templates: map[string]Template{}, claims: map[fingerprint]Claim{},
		cas: map[string]*registeredCA{}, devices: map[string]*admitted{}, certs: map[fingerprint]*admitted{},
		unnoted: map[fingerprint]string{},
	}
}

// OnChange has f called whenever a certificate stops being accepted: revoked, its device disabled, its registration or
// its CA gone, its overlap with another over; and when a device's groups, attributes or policy have changed. who is the
// device, or `claim/` and the name of a claim certificate. Whoever holds connections of it then asks Recheck with
// their certificates, and closes those it refuses, and DeviceOf for the others. f may be called by several goroutines at
// once and must not block for long. A certificate's expiry is not told. stop ends it; a call that has begun may still go on.
func (a *Admission) OnChange(f func(who string)) (stop func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.onChange = append(a.onChange, &f)
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.onChange = slices.DeleteFunc(a.onChange, func(is *func(string)) bool { return is == &f })
	}
}

// Run follows the tables, and keeps what it records, until ctx is done, through breaks of the bus. It calls ready once everything has been read.
func (a *Admission) Run(ctx context.Context, ready func()) error {
	var read sync.WaitGroup
	follows := []struct {
		table, prefix string
		apply         func(bus.Entry)
	}{
		{trustTable, trustPrefix, a.applyTrust}, {trustTable, casPrefix, a.applyCA}, {trustTable, templatePrefix, a.applyTemplate},
		{trustTable, claimPrefix, a.applyClaim}, {devicesTable, devicePrefix, func(e bus.Entry) { a.apply(e, true) }},
	}
	read.Add(len(follows))
	once := make([]sync.Once, len(follows))
	done := make(chan struct{})
	var all sync.WaitGroup
	for i, f := range follows {
		all.Go(func() { a.follow(ctx, f.table, f.prefix, f.apply, func() { once[i].Do(read.Done) }) })
	}
	all.Go(func() { a.endOverlaps(ctx) })
	all.Go(func() {
		a.recorder.run(ctx, a.bus, func(err error, dropped int) {
			a.o.Log.Warn("admission attempts could not be recorded", "dropped", dropped, "error", err)
		})
	})
	go func() {
		read.Wait()
		close(done)
	}()
	select {
	case <-done:
		close(a.synced)
		if ready != nil {
			ready()
		}
	case <-ctx.Done():
	}
	all.Wait()
	for i := range once {
		once[i].Do(read.Done)
	}
	return nil
}

func (a *Admission) follow(ctx context.Context, table, prefix string, apply func(bus.Entry), synced func()) {
	opened := func(t bus.Table) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if table == devicesTable {
			a.registry = t
		}
	}
	follow(ctx, a.bus, a.o.Log, table, prefix, opened, apply, synced)
}

// follow watches a table until ctx is done; where a watch ends before that, it begins anew after a second.
func follow(ctx context.Context, b bus.Bus, log *slog.Logger, table, prefix string, opened func(bus.Table), apply func(bus.Entry), synced func()) {
	for ctx.Err() == nil {
		t, err := b.Table(ctx, table, bus.TableOptions{})
		if err == nil {
			if opened != nil {
				opened(t)
			}
			err = t.Watch(ctx, prefix, apply, synced)
		}
		if ctx.Err() != nil || errors.Is(err, bus.ErrClosed) {
			return
		}
		log.Warn("table cannot be followed; trying again", "table", table, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (a *Admission) lookup(fp fingerprint) (who Admitted, err error, known bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	d := a.certs[fp]
	if d == nil {
		return who, nil, false
	}
	r := d.certs[fp]
	if !r.at.IsZero() {
		return who, message.Rejectf(message.CertRevoked, "certificate %x of %q was revoked %s: %s", fp, d.id, stamp(r.at), r.reason), true
	}
	if !r.ends.IsZero() && !a.o.Now().Before(r.ends) {
		return who, message.Rejectf(message.CertRevoked, "certificate %x of %q was replaced by another, and accepted until %s", fp, d.id, stamp(r.ends)), true
	}
	if d.disabled {
		return who, message.Rejectf(message.DeviceDisabled, "device %q was disabled by %s", d.id, d.by), true
	}
	return Admitted{Device: d.id, Policy: d.policy, Groups: d.groups, Attributes: d.attributes}, nil, true
}

// nameOf is the common name that a registered certificate must have.
func (a *Admission) nameOf(fp fingerprint, id string) string {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if d := a.certs[fp]; d != nil && d.certs[fp].name != "" {
		return d.certs[fp].name
	}
	return id
}

// ask looks the device of a certificate up in the table. Where that cannot be asked nobody knows whose it is.
func (a *Admission) ask(ctx context.Context, fp fingerprint) error {
	a.mu.RLock()
	t := a.registry
	a.mu.RUnlock()
	if t == nil {
		return message.Rejectf(message.BusUnavailable, "the device registry has not been opened yet")
	}
	look := func(key string) (e bus.Entry, found bool, err error) {
		switch e, err = t.Get(ctx, key); {
		case err == nil:
			return e, true, nil
		case errors.Is(err, bus.ErrNotFound):
			return e, false, nil
		}
		return e, false, message.Rejectf(message.BusUnavailable, "the device of certificate %x cannot be looked up: %w", fp, err)
	}
	e, found, err := look(certKey(hex.EncodeToString(fp[:])))
	if err != nil || !found {
		return err
	}
	var of certOwner
	if err := json.Unmarshal(e.Value, &of); err != nil {
		a.o.Log.Error("whose a certificate is cannot be read; it is refused", "table", devicesTable, "key", e.Key, "error", err)
		return nil
	}
	if e, found, err = look(deviceKey(of.Device)); found {
		a.applyDevice(e)
	}
	return err
}

// came notes that a device has come in with a certificate by which somebody waits for it. What cannot be noted now is noted
// in a while: nobody is kept out for it.
func (a *Admission) came(ctx context.Context, device string, fp fingerprint) {
	a.mu.RLock()
	d, t := a.certs[fp], a.registry
	awaited := d != nil && d.certs[fp].awaited
	a.mu.RUnlock()
	if !awaited || t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), camePatience)
	defer cancel()
	r := &Registry{table: store{t}, now: a.o.Now, wrote: a.applyDevice}
	err := r.Came(ctx, device, hex.EncodeToString(fp[:]))
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		delete(a.unnoted, fp)
	} else if _, there := a.unnoted[fp]; there || len(a.unnoted) < unnotedMax {
		a.unnoted[fp] = device
	}
}

const (
	camePatience = 2 * time.Second
	unnotedMax   = 4096 // beyond it a device is noted when it comes the next time
)

// noteCame notes what could not be noted at once.
func (a *Admission) noteCame(ctx context.Context) {
	a.mu.RLock()
	left := maps.Clone(a.unnoted)
	a.mu.RUnlock()
	for fp, device := range left {
		a.mu.RLock()
		d := a.certs[fp]
		still := d != nil && d.certs[fp].awaited
		a.mu.RUnlock()
		if !still {
			a.mu.Lock()
			delete(a.unnoted, fp)
			a.mu.Unlock()
			continue
		}
		a.came(ctx, device, fp)
		if a.mu.RLock(); a.unnoted[fp] != "" || ctx.Err() != nil { // the bus is still away
			a.mu.RUnlock()
			return
		}
		a.mu.RUnlock()
	}
}

// applyDevice takes over what was read or written here, unless something newer is known already.
func (a *Admission) applyDevice(e bus.Entry) { a.apply(e, false) }

// apply takes an entry over, unless a newer one is here already, and tells what is no longer accepted. An entry that cannot
// be read admits nobody. told says that it comes from following the table, which tells everything in time.
func (a *Admission) apply(e bus.Entry, told bool) {
	next, err := admittedOf(e)
	if err != nil {
		a.o.Log.Error("a device's entry cannot be read; the device is refused", "table", devicesTable, "key", e.Key, "error", err)
	}
	now := a.o.Now()
	a.mu.Lock()
	was := a.devices[e.Key]
	if !vanished(e) && (was != nil && was.revision > e.Revision || was == nil && a.deleted.after(e, told)) {
		a.mu.Unlock()
		return
	}
	var lost bool
	if was != nil {
		for fp, r := range was.certs {
			delete(a.certs, fp)
			lost = lost || !was.disabled && r.at.IsZero() && !next.accepts(fp, now)
		}
	}
	if next == nil {
		delete(a.devices, e.Key)
		a.deleted.note(e)
	} else {
		a.deleted.forget(e.Key)
		a.devices[e.Key] = next
		for fp := range next.certs {
			a.certs[fp] = next
		}
	}
	a.overlaps.note(e.Key, next, now)
	a.mu.Unlock()
	if lost || was != nil && next != nil && !was.alike(next) {
		a.tell(was.id)
	}
}

// vanished says that an entry went while the bus was away, which is known from its not being told again. It has no
// revision: it is true of what is known at that moment, and what was written since is told behind it.
func vanished(e bus.Entry) bool { return e.Deleted && e.Revision == 0 }

// alike says whether policies see no difference.
func (d *admitted) alike(other *admitted) bool {
	return d.policy == other.policy && slices.Equal(d.groups, other.groups) && maps.Equal(d.attributes, other.attributes)
}

func (d *admitted) accepts(fp fingerprint, now time.Time) bool {
	if d == nil || d.disabled {
		return false
	}
	r, ok := d.certs[fp]
	return ok && r.at.IsZero() && (r.ends.IsZero() || now.Before(r.ends))
}

// admittedOf gives nil for a removed or an unreadable entry.
func admittedOf(e bus.Entry) (*admitted, error) {
	if e.Deleted {
		return nil, nil
	}
	var d Device
	if err := json.Unmarshal(e.Value, &d); err != nil {
		return nil, err
	}
	if d.Gone {
		return nil, nil
	}
	if deviceKey(d.ID) != e.Key {
		return nil, fmt.Errorf("it is for device %q", d.ID)
	}
	a := &admitted{id: d.ID, disabled: d.Disabled, by: d.DisabledBy, revision: e.Revision, certs: make(map[fingerprint]revocation, len(d.Certs)),
		policy: d.Policy, groups: d.Groups, attributes: d.Attributes}
	for _, c := range d.Certs {
		var fp fingerprint
		if n, err := hex.Decode(fp[:], []byte(c.Fingerprint)); err != nil || n != len(fp) || len(c.Fingerprint) != 2*len(fp) {
			return nil, fmt.Errorf("fingerprint %q is not SHA-256 in hexadecimal digits", c.Fingerprint)
		}
		a.certs[fp] = revocation{at: c.RevokedAt, ends: c.EndsAt, reason: c.Reason, name: c.Name, awaited: c.Awaited && !c.Revoked()}
	}
	return a, nil
}

func name(c *stdx509.Certificate) string { return c.Subject.CommonName }

// called is the name as errors tell it: whoever makes a certificate makes its name as long as he likes.
func called(c *stdx509.Certificate) string { return short(name(c)) }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

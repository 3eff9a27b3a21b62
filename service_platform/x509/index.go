package x509

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
)

// index holds the registry in memory, ordered by id, so that a page of it, the radar and the revocation list do not read
// the whole table. It follows the table, and hears of this process's own writes at once.
type index struct {
	log *slog.Logger

	mu      sync.RWMutex
	devices map[string]indexed  // by key
	ids     []string            // sorted, unless loading
	certs   map[string]string   // fingerprint -> device
	keys    map[string][]string // hash of a public key -> devices with a certificate for it that is not revoked
	gone    map[string]uint64   // key -> revision of its removal, until the table has told of it
	loading bool
	revoked uint64 // grows with each change of what is revoked
	unsaid  func(device string)
}

type indexed struct {
	Device
	revision uint64
}

// newIndex makes an empty one. unsaid is told of each device with facts that are still to be said.
func newIndex(log *slog.Logger, unsaid func(device string)) *index {
	return &index{log: log, devices: map[string]indexed{}, certs: map[string]string{}, keys: map[string][]string{}, gone: map[string]uint64{}, loading: true, unsaid: unsaid}
}

// apply takes an entry over, unless a newer one is here already.
func (x *index) apply(e bus.Entry) {
	var d Device
	if !e.Deleted {
		if err := json.Unmarshal(e.Value, &d); err != nil || deviceKey(d.ID) != e.Key {
			x.log.Error("a device's entry cannot be read; it is not listed", "table", devicesTable, "key", e.Key, "error", err)
			return
		}
	}
	x.mu.Lock()
	was, known := x.devices[e.Key]
	if !vanished(e) && (known && was.revision > e.Revision || x.gone[e.Key] > e.Revision) {
		x.mu.Unlock()
		return
	}
	delete(x.gone, e.Key)
	if !sameRevocations(was.Certs, d.Certs) {
		x.revoked++
	}
	for _, c := range was.Certs {
		delete(x.certs, c.Fingerprint)
		left := slices.DeleteFunc(x.keys[c.Key], func(id string) bool { return id == was.ID })
		if x.keys[c.Key] = left; len(left) == 0 {
			delete(x.keys, c.Key)
		}
	}
	if e.Deleted {
		delete(x.devices, e.Key)
		if known && !vanished(e) {
			x.gone[e.Key] = e.Revision
		}
	} else {
		x.devices[e.Key] = indexed{d, e.Revision}
		for _, c := range d.Certs {
			x.certs[c.Fingerprint] = d.ID
			if c.Key != "" && !c.Revoked() && !slices.Contains(x.keys[c.Key], d.ID) {
				x.keys[c.Key] = append(x.keys[c.Key], d.ID)
			}
		}
	}
	x.place(was.ID, known && !was.Gone, d.ID, !e.Deleted && !d.Gone)
	x.mu.Unlock()
	if len(d.Unsaid) > 0 || d.Gone {
		x.unsaid(d.ID)
	}
}

// place keeps ids in order.
func (x *index) place(old string, was bool, id string, is bool) {
	switch {
	case x.loading, was && is:
	case is:
		i, _ := slices.BinarySearch(x.ids, id)
		x.ids = slices.Insert(x.ids, i, id)
	case was:
		if i, found := slices.BinarySearch(x.ids, old); found {
			x.ids = slices.Delete(x.ids, i, i+1)
		}
	}
}

// loaded puts what has been read in order.
func (x *index) loaded() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.loading {
		return
	}
	x.loading = false
	for _, d := range x.devices {
		if !d.Gone {
			x.ids = append(x.ids, d.ID)
		}
	}
	slices.Sort(x.ids)
}

// size is how many devices are registered.
func (x *index) size() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.ids)
}

// page gives the devices behind the id after that keep selects, at most limit of them; more says whether there are
// more. What it gives must not be changed.
func (x *index) page(after string, limit int, keep func(*Device) bool) (list []Device, more bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	i, found := slices.BinarySearch(x.ids, after)
	if found {
		i++
	}
	for _, id := range x.ids[i:] {
		d := x.devices[deviceKey(id)].Device
		if keep != nil && !keep(&d) {
			continue
		}
		if len(list) == limit {
			return list, true
		}
		list = append(list, d)
	}
	return list, false
}

// each calls f for every device, in no order; it must not be changed.
func (x *index) each(f func(*Device)) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, d := range x.devices {
		if !d.Gone {
			f(&d.Device)
		}
	}
}

// owner is the device that a certificate is registered for, if any.
func (x *index) owner(fingerprint string) string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.certs[fingerprint]
}

// holders are the devices with a certificate for a key that is not revoked, in no order.
func (x *index) holders(key string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.keys[key])
}

func (x *index) revocations() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.revoked
}

// sameRevocations says whether the same certificates are revoked.
func sameRevocations(a, b []Certificate) bool {
	only := func(all []Certificate) (list []string) {
		for _, c := range all {
			if c.Revoked() {
				list = append(list, c.Fingerprint)
			}
		}
		return list
	}
	return slices.Equal(only(a), only(b))
}

// Until is when the device's last certificate ends, its overlap considered; zero where it has none that is in force.
func (d *Device) Until() (last time.Time) {
	for _, c := range d.Certs {
		end := c.NotAfter
		if !c.EndsAt.IsZero() && c.EndsAt.Before(end) {
			end = c.EndsAt
		}
		if !c.Revoked() && end.After(last) {
			last = end
		}
	}
	return last
}

// State is the device itself in a word: active, disabled, expired, revoked, or pending where it never had a certificate.
func (d *Device) State(now time.Time) string {
	until := d.Until()
	switch {
	case d.Disabled:
		return "disabled"
	case len(d.Certs) == 0:
		return "pending"
	case until.IsZero():
		return "revoked"
	case !now.Before(until):
		return "expired"
	}
	return "active"
}

// states are what a list can be asked for, and what is counted.
var states = []string{"active", "disabled", "expired", "revoked", "pending", stateUntrusted}

// selection is which devices a list is asked for.
type selection struct {
	group, state string
	within       time.Duration // expiring: the last certificate ends before then
	expiring     bool
}

func (s selection) check() error {
	if s.state != "" && !slices.Contains(states, s.state) {
		return fmt.Errorf("state %q: there are %s", short(s.state), strings.Join(states, ", "))
	}
	return nil
}

func (s selection) keeps(of map[string]Standing, now time.Time) func(*Device) bool {
	if s == (selection{}) {
		return nil
	}
	return func(d *Device) bool {
		if s.group != "" && !slices.ContainsFunc(d.Groups, func(g string) bool { return strings.EqualFold(g, s.group) }) {
			return false
		}
		if state, _ := d.stateOf(of, now); s.state != "" && state != s.state {
			return false
		}
		if !s.expiring {
			return true
		}
		until := d.Until()
		return !d.Disabled && !until.IsZero() && until.Before(now.Add(s.within))
	}
}

package x509

import (
	"context"
	"sync"
	"time"
)

// overlapEvery is how late a connection may be told to be looked at again after its certificate's overlap.
const overlapEvery = time.Second

// overlaps are the certificates that another has taken the place of, while they are still accepted, so that each door
// ends their connections in time by itself. The CA withdraws them a little later, for the record.
type overlaps struct {
	mu      sync.Mutex
	ends    map[string]overlapEnd // by the device's key in the table
	soonest time.Time             // of ends, or earlier
}

type overlapEnd struct {
	device string
	at     time.Time
}

// note takes a device's entry into account; nil for one that is gone. The caller holds the Admission's lock.
func (o *overlaps) note(key string, d *admitted, now time.Time) {
	var at time.Time
	if d != nil && !d.disabled {
		for _, r := range d.certs {
			if r.at.IsZero() && r.ends.After(now) && (at.IsZero() || r.ends.Before(at)) {
				at = r.ends
			}
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if at.IsZero() {
		delete(o.ends, key)
		return
	}
	if o.ends == nil {
		o.ends = map[string]overlapEnd{}
	}
	o.ends[key] = overlapEnd{d.id, at}
	if o.soonest.IsZero() || at.Before(o.soonest) {
		o.soonest = at
	}
}

// over gives the devices of which an overlap has passed, each once. It looks at them only when the soonest has.
func (o *overlaps) over(now time.Time) (keys, devices []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.soonest.IsZero() || now.Before(o.soonest) {
		return nil, nil
	}
	o.soonest = time.Time{}
	for key, e := range o.ends {
		switch {
		case !now.Before(e.at):
			delete(o.ends, key)
			keys, devices = append(keys, key), append(devices, e.device)
		case o.soonest.IsZero() || e.at.Before(o.soonest):
			o.soonest = e.at
		}
	}
	return keys, devices
}

// endOverlaps tells of certificates whose overlap has passed, until ctx is done.
func (a *Admission) endOverlaps(ctx context.Context) {
	tick := time.NewTicker(overlapEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.endedOverlaps()
			a.noteCame(ctx)
		}
	}
}

// endedOverlaps tells of those that have passed by now, and notes what else their devices have.
func (a *Admission) endedOverlaps() {
	now := a.o.Now()
	keys, devices := a.overlaps.over(now)
	a.tell(devices...)
	for _, key := range keys {
		a.mu.RLock() // while it is noted: no newer entry comes between
		a.overlaps.note(key, a.devices[key], now)
		a.mu.RUnlock()
	}
}

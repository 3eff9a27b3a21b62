package mem

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
)

// leaseData is who holds a name, by the runtime's clock: leases are renewed in real time, whatever clock a test injects.
type leaseData struct {
	owner string
	until time.Time
}

// Lease as in [bus.Bus].
func (b *Bus) Lease(ctx context.Context, name, owner string, ttl time.Duration) (bus.Lease, error) {
	if name == "" || owner == "" || ttl <= 0 {
		return nil, fmt.Errorf("lease %q for %q of %s: it needs a name, an owner and a time to live", name, owner, ttl)
	}
	if err := b.enter(ctx); err != nil {
		return nil, fmt.Errorf("lease %s: %w", name, err)
	}
	defer b.e.mu.Unlock()
	now := time.Now()
	if h, ok := b.e.leases[name]; ok && h.owner != owner && now.Before(h.until) {
		return nil, fmt.Errorf("lease %s is with %s: %w", name, h.owner, bus.ErrHeld)
	}
	b.e.leases[name] = leaseData{owner: owner, until: now.Add(ttl)}
	l := &lease{b: b, name: name, owner: owner, ttl: ttl, until: now.Add(ttl), lost: make(chan struct{})}
	b.work.Go(l.keep)
	return l, nil
}

type lease struct {
	b           *Bus
	name, owner string
	ttl         time.Duration

	mu    sync.Mutex
	until time.Time // by the last renewal
	lost  chan struct{}
	gone  bool
}

func (l *lease) Held() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.gone && time.Now().Before(l.until)
}

func (l *lease) Lost() <-chan struct{} { return l.lost }

// Release as in [bus.Lease]. It is lost for this owner even where an error says that others must wait for its end.
func (l *lease) Release(ctx context.Context) error {
	l.lose()
	if err := l.b.enter(ctx); err != nil {
		return fmt.Errorf("release lease %s: %w; it ends by itself within %s", l.name, err, l.ttl)
	}
	defer l.b.e.mu.Unlock()
	if l.b.e.leases[l.name].owner == l.owner {
		delete(l.b.e.leases, l.name)
	}
	return nil
}

func (l *lease) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.gone {
		l.gone = true
		close(l.lost)
	}
}

// keep renews three times in a life, and says when that was not possible in time.
func (l *lease) keep() {
	defer l.lose()
	for {
		l.mu.Lock()
		left := time.Until(l.until)
		l.mu.Unlock()
		if left <= 0 && !l.b.asleep.Load() {
			return
		}
		t := time.NewTimer(max(min(left, l.ttl/3), time.Millisecond))
		select {
		case <-t.C:
		case <-l.lost:
			t.Stop()
			return
		case <-l.b.closed:
			t.Stop()
			return
		}
		if !l.renew() {
			return
		}
	}
}

// renew says whether the lease is still this owner's.
func (l *lease) renew() bool {
	e := l.b.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down || l.b.asleep.Load() {
		return true // until its time has passed
	}
	now := time.Now()
	if h, ok := e.leases[l.name]; !ok || h.owner != l.owner || !now.Before(h.until) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return false
	}
	l.until = now.Add(l.ttl)
	e.leases[l.name] = leaseData{owner: l.owner, until: l.until}
	return true
}

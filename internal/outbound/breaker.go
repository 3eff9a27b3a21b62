package outbound

import (
	"fmt"
	"sync"
	"time"
)

const (
	breakerLast  = 20 // calls that are looked at
	breakerLeast = 8  // as many must be known
	breakerFirst = time.Second
	breakerMost  = 30 * time.Second
)

// Breaker holds calls of one target back while they fail: where half of the last twenty failed it opens, and after a while
// lets one call through, whose end says whether the others may follow. The while grows from a second to half a minute.
// The zero value is closed; it is safe for concurrent use.
type Breaker struct {
	mu      sync.Mutex
	last    [breakerLast]bool // true for a failure
	n, at   int
	open    bool
	until   time.Time
	since   time.Time
	wait    time.Duration
	probing bool
}

// The states of a breaker.
const (
	Closed   = "closed"
	Open     = "open"
	HalfOpen = "half_open"
)

// State is the breaker's, and since when it is open.
func (b *Breaker) State(now time.Time) (state string, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !b.open:
		return Closed, time.Time{}
	case b.probing || !now.Before(b.until):
		return HalfOpen, b.since
	}
	return Open, b.since
}

// Look is the breaker's state, and how long it lets nobody through.
func (b *Breaker) Look(now time.Time) (state string, left time.Duration) {
	state, _ = b.State(now)
	b.mu.Lock()
	defer b.mu.Unlock()
	if state == Open {
		left = b.until.Sub(now)
	}
	return state, left
}

// outcome is a call's end as far as the breaker is concerned.
type outcome int

const (
	well outcome = iota
	failed
	untold // it was broken off by the caller
)

// enter asks for a call; done tells its end.
func (b *Breaker) enter(now time.Time) (done func(outcome, time.Time), err error) {
	if b == nil {
		return func(outcome, time.Time) {}, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return b.ended, nil
	}
	if left := b.until.Sub(now); left > 0 {
		return nil, &Later{Err: fmt.Errorf("its calls fail since %s; the next one is made in %s", b.since.Format(time.RFC3339), left.Round(time.Millisecond)), Kind: "breaker", After: left, Uncounted: true}
	}
	if b.probing {
		return nil, &Later{Err: fmt.Errorf("its calls fail since %s; one is under way that tries it", b.since.Format(time.RFC3339)), Kind: "breaker", After: breakerFirst, Uncounted: true}
	}
	b.probing = true
	return b.probed, nil
}

// ended takes the end of an ordinary call.
func (b *Breaker) ended(o outcome, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o == untold || b.open { // one that began before it was opened says nothing new
		return
	}
	b.last[b.at] = o == failed
	b.at = (b.at + 1) % breakerLast
	b.n = min(b.n+1, breakerLast)
	bad := 0
	for _, f := range b.last[:b.n] {
		if f {
			bad++
		}
	}
	if b.n >= breakerLeast && 2*bad >= b.n {
		b.open, b.since, b.wait = true, now, breakerFirst
		b.until = now.Add(b.wait)
	}
}

// probed takes the end of the one call that was let through.
func (b *Breaker) probed(o outcome, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
	switch o {
	case well:
		b.open, b.n, b.at = false, 0, 0
	case failed:
		b.wait = min(2*b.wait, breakerMost)
		b.until = now.Add(b.wait)
	}
}

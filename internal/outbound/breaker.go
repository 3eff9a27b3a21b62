package outbound

import (
	"fmt"
	"sync"
	"time"
)

const (
	breakerLast  = 20 // calls that are looked at
	breakerLeast = 8  // as many must be known
	breakerKinds = 3  // as many messages must have failed: what fails of one or two is their own fault, and not the target's
	breakerFirst = time.Second
	breakerMost  = 30 * time.Second
	breakerTried = 1000 // messages that are remembered: eight hours of them
)

// Breaker holds calls of one target back while they fail: where half of the last twenty failed, and not of the same one or two
// messages, it opens, and after a while lets one call through, whose end says whether the others may follow. The while
// grows from a second to half a minute. A message that failed so lets others be tried before it is tried again: it may be to
// blame, and the target well. The zero value is closed; it is safe for concurrent use.
type Breaker struct {
	mu   sync.Mutex
	last [breakerLast]struct {
		message string
		failed  bool
	}
	n, at   int
	open    bool
	until   time.Time
	since   time.Time
	why     string // the newest failure
	wait    time.Duration
	probing bool
	tried   map[string]bool // the messages that failed, while it is open; true for one that has let others go first since
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

// Why is the newest failure of a call, empty where none has failed yet. It is none of those that the breaker made up itself.
func (b *Breaker) Why() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.why
}

// because notes why a call failed.
func (b *Breaker) because(err error) {
	if b != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.why = err.Error()
	}
}

// Now has an open breaker let a call through at once: the target was changed, or somebody has mended it and says so.
func (b *Breaker) Now(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open {
		b.until, b.wait = now, breakerFirst
	}
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

// enter asks for a call with a message; done tells its end.
func (b *Breaker) enter(message string, now time.Time) (done func(outcome, time.Time), err error) {
	if b == nil {
		return func(outcome, time.Time) {}, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return func(o outcome, now time.Time) { b.ended(message, o, now) }, nil
	}
	hold := func(after time.Duration, next string) error {
		return &Later{Err: fmt.Errorf("its calls fail since %s (%s); %s", b.since.Format(time.RFC3339), b.why, next), Kind: "breaker", After: after, Uncounted: true}
	}
	if left := b.until.Sub(now); left > 0 {
		return nil, hold(left, "the next one is made in "+left.Round(time.Millisecond).String())
	}
	if b.probing {
		return nil, hold(breakerFirst, "one is under way that tries it")
	}
	if let, failed := b.tried[message]; failed && !let {
		b.tried[message] = true
		return nil, hold(breakerFirst, "it is tried with another message than this one")
	}
	b.probing = true
	return func(o outcome, now time.Time) { b.probed(message, o, now) }, nil
}

// ended takes the end of an ordinary call.
func (b *Breaker) ended(message string, o outcome, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o == untold || b.open { // one that began before it was opened says nothing new
		return
	}
	b.last[b.at].message, b.last[b.at].failed = message, o == failed
	b.at = (b.at + 1) % breakerLast
	b.n = min(b.n+1, breakerLast)
	bad, messages := 0, map[string]bool{}
	for _, c := range b.last[:b.n] {
		if c.failed {
			bad++
			messages[c.message] = false
		}
	}
	if b.n >= breakerLeast && 2*bad >= b.n && len(messages) >= breakerKinds {
		b.open, b.since, b.wait, b.tried = true, now, breakerFirst, messages
		b.until = now.Add(b.wait)
	}
}

// probed takes the end of the one call that was let through.
func (b *Breaker) probed(message string, o outcome, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
	switch o {
	case well:
		b.open, b.n, b.at, b.tried = false, 0, 0, nil
	case failed:
		b.wait = min(2*b.wait, breakerMost)
		b.until = now.Add(b.wait)
		if len(b.tried) >= breakerTried {
			clear(b.tried)
		}
		b.tried[message] = false
	}
}

package broker

import (
	"container/heap"
	"runtime"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/naru-platform/naru/message"
)

// turnstile lets as many connections at a time compute on who their clients are (TLS handshakes, password hashes) as
// there are processors. The rest stand in a line, the oldest connection first: so the clients of a storm come in one
// after the other, instead of all at once and all too late, and whoever is in already is not held up by those who come.
//
// A place is had for computing only, and given back while a client is waited for: clients that send their bytes slowly
// keep nobody out, and far ones do not either.
type turnstile struct {
	most     int           // connections that may stand in line
	patience time.Duration // for how long

	mu   sync.Mutex
	free int
	line line
}

func newTurnstile(most int, patience time.Duration) *turnstile {
	return &turnstile{most: most, patience: patience, free: runtime.GOMAXPROCS(0)}
}

// enter gives a place, which leave gives back, and says how long that took. again says that the connection has had one
// before: what was begun is not turned away for want of room.
func (t *turnstile) enter(since time.Time, again bool, cut <-chan struct{}) (waited time.Duration, err error) {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return 0, nil
	}
	if n := len(t.line); n >= t.most && !again {
		t.mu.Unlock()
		return 0, message.Rejectf(message.ConnectionLimit, "%d connections wait to be let in, which is connects_waiting_max", n)
	}
	w := &waiter{since: since, in: make(chan struct{})}
	heap.Push(&t.line, w)
	t.mu.Unlock()
	began := time.Now()
	late := time.NewTimer(t.patience)
	defer late.Stop()
	select {
	case <-w.in:
		return time.Since(began), nil
	case <-late.C:
		err = message.Rejectf(message.ConnectionLimit, "its turn did not come within %s, which is connect_wait", t.patience)
	case <-cut:
		err = errEnded
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.at < 0 { // it came at the same moment
		t.pass()
	} else {
		heap.Remove(&t.line, w.at)
	}
	return time.Since(began), err
}

// leave gives a place back.
func (t *turnstile) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pass()
}

// pass gives a place to the oldest in line. t.mu is held.
func (t *turnstile) pass() {
	if len(t.line) == 0 {
		t.free++
		return
	}
	close(heap.Pop(&t.line).(*waiter).in)
}

// waiting is how many stand in line.
func (t *turnstile) waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.line)
}

// line is a heap of who waits, the oldest connection on top.
type line []*waiter

type waiter struct {
	since time.Time
	in    chan struct{} // closed when it has its place
	at    int           // in the heap; below zero when it is out
}

func (l line) Len() int           { return len(l) }
func (l line) Less(i, j int) bool { return l[i].since.Before(l[j].since) }
func (l line) Swap(i, j int)      { l[i], l[j] = l[j], l[i]; l[i].at, l[j].at = i, j }
func (l *line) Push(x any)        { w := x.(*waiter); w.at = len(*l); *l = append(*l, w) }

func (l *line) Pop() any {
	last := len(*l) - 1
	w := (*l)[last]
	(*l)[last] = nil
	*l = (*l)[:last]
	w.at = -1
	return w
}

// waitConnectRate holds connections to connect_rate: each has its moment, in the order in which they came. One whose moment is
// too far off is refused.
func (b *Broker) waitConnectRate(cut <-chan struct{}) error {
	if b.connectRate == nil {
		return nil
	}
	now := time.Now()
	r := b.connectRate.ReserveN(now, 1)
	d := r.DelayFrom(now)
	switch {
	case d == 0:
		return nil
	case d > b.gate.patience:
		r.CancelAt(now)
		return message.Rejectf(message.ConnectionLimit, "more than connect_rate come, and its turn would not be within %s, which is connect_wait", b.gate.patience)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-cut:
		r.Cancel()
		return errEnded
	}
}

// newConnectRate is a second's worth of connections at once, and so many each second; nil for any number.
func newConnectRate(perSecond float64) *rate.Limiter {
	if perSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond)))
}

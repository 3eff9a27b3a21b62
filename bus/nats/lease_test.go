package nats

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"
)

// Who has slept past the end of his lease may find it free again, since another one has had it and has gone on with the work.
func TestALeaseThatWasSleptThroughIsLostThoughItIsFree(t *testing.T) {
	var ahead atomic.Int64
	b, err := Open(t.Context(), Options{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	l, err := b.Lease(t.Context(), "work", "one", 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release(t.Context())
	in := l.(*lease)
	till := func() time.Time { in.mu.Lock(); defer in.mu.Unlock(); return in.till }
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for first, seen := till(), 0; seen < 5; <-tick.C { // it has been renewed, and waits for its next turn
		if till() != first {
			seen++
		}
	}
	ahead.Store(int64(4 * time.Second)) // and the renewal that comes now would be granted
	if l.Held() {
		t.Error("it is still held")
	}
	select {
	case <-l.Lost():
	case <-time.After(45 * time.Second):
		t.Error("it was renewed, as if nothing had happened")
	}
}

package nats

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"
)

// asleep is the time as a machine has it that slept for so long: the wall clock went on, and the monotonic one stood still.
func asleep(t time.Time, d time.Duration) time.Time {
	t = t.Add(d)
	(*struct {
		wall uint64
		mono int64
		loc  *time.Location
	})(unsafe.Pointer(&t)).mono -= int64(d)
	return t
}

func TestTimePassedByTheClockThatSaysMore(t *testing.T) {
	from := time.Now()
	for _, c := range []struct {
		name string
		to   time.Time
		want time.Duration
	}{
		{"awake", from.Add(2 * time.Second), 2 * time.Second},
		{"asleep", asleep(from.Add(time.Second), time.Minute), time.Minute + time.Second},
		{"the wall clock was set back", asleep(from.Add(2*time.Second), -time.Hour), 2 * time.Second},
		{"without a monotonic clock", from.Round(0).Add(time.Second), time.Second},
	} {
		if got := passed(from, c.to); got != c.want {
			t.Errorf("%s: %s passed, want %s", c.name, got, c.want)
		}
	}
}

// Who has slept past the end of his lease may find it free again, since another one has had it and has gone on with the work. That the
// machine slept is nothing that the monotonic clock would show.
func TestALeaseThatWasSleptThroughIsLostThoughItIsFree(t *testing.T) {
	for name, later := range map[string]func(time.Time, time.Duration) time.Time{"the process": time.Time.Add, "the machine": asleep} {
		t.Run(name, func(t *testing.T) { sleptThrough(t, later) })
	}
}

func sleptThrough(t *testing.T, later func(time.Time, time.Duration) time.Time) {
	var ahead atomic.Int64
	b, err := Open(t.Context(), Options{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: func() time.Time { return later(time.Now(), time.Duration(ahead.Load())) }})
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
	asked := func() time.Time { in.mu.Lock(); defer in.mu.Unlock(); return in.asked }
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for first, seen := asked(), 0; seen < 5; <-tick.C { // it has been renewed, and waits for its next turn
		if asked() != first {
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

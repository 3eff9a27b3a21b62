//go:build long

package nats

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/bustest"
	"github.com/naru-platform/naru/message"
)

// TestEngineComesBackByItselfAfterTheDiskWasFull fills a file system of its own to the brim under a running engine, lets
// it switch its store off, and makes room again.
func TestEngineComesBackByItselfAfterTheDiskWasFull(t *testing.T) {
	dir, ok := bustest.SmallDisk(t, "64m")
	if !ok {
		return
	}
	b := open(t, filepath.Join(dir, "store"))
	t.Cleanup(func() { b.Close() })
	l, err := b.Log(t.Context(), "device", bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	inside, err := l.Appender(t.Context(), bus.AppenderOptions{Name: "inside", Owner: message.NewID(time.Now()), Patience: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	door, err := l.Appender(t.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(time.Now()), Door: true})
	if err != nil {
		t.Fatal(err)
	}
	first := say("device.d-1.telemetry", 0)
	if _, err := bus.AppendSync(t.Context(), door, first); err != nil {
		t.Fatal(err)
	}

	filler := filepath.Join(dir, "filler")
	fill(t, filler)
	until(t, b, "the doors are shut", func(s bus.Status) bool { return s.Space.Shut })
	if err := door.Append(t.Context(), say("device.d-1.telemetry", 1), nil, 0); message.ReasonOf(err, 0) != message.StorageLow {
		t.Fatalf("the door says %v, want storage_low", err)
	}

	told := newGather()
	const n = 40
	for i := range n {
		m := say("device.d-1.telemetry", i+1)
		m.Data = make([]byte, 256<<10)
		if err := inside.Append(t.Context(), m, told, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, b, "the bus is down", func(s bus.Status) bool { return !s.Up })
	until(t, b, "the engine has given up its store; else this tests nothing", func(bus.Status) bool { return storeFault(b.embedded.Load()) != "" })
	acknowledged := len(told.tokens())
	if acknowledged == n {
		t.Fatal("everything was acknowledged on a full disk")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	told.wait(t, n)
	if len(told.errs) > 0 {
		t.Fatal(told.errs[0])
	}
	until(t, b, "the bus is up again", func(s bus.Status) bool { return s.Up && s.Restarts == 1 && !s.Space.Shut })
	if _, err := bus.AppendSync(t.Context(), door, say("device.d-1.telemetry", n+1)); err != nil {
		t.Fatal(err)
	}
	got := read(t, l, bus.Position{}, n+2)
	if len(got) != n+2 || got[0].ID != first.ID {
		t.Fatalf("the log holds %d messages, want %d", len(got), n+2)
	}
}

// fill writes a file until the file system takes no more.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 4096; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// until waits for a status.
func until(t *testing.T, b *Bus, what string, is func(bus.Status) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is(b.Status(ctx)) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within 30 s; the status is %+v", what, b.Status(ctx))
		}
	}
}

package nats

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
)

// What was removed stays so when the process is killed long after: an operator who deleted a device must not find it in the
// fleet again, nor a worker among those that messages are kept for. The directory is copied while the server runs, as a kill
// leaves it.
func TestTableKeepsRemovedOverAKillWhatWasRemovedLongBefore(t *testing.T) {
	was := markerTTL
	markerTTL = time.Second // the least there is
	t.Cleanup(func() { markerTTL = was })
	dir, left := t.TempDir(), t.TempDir()
	b := open(t, dir)
	kept, err := b.Table(t.Context(), "kept", bus.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	volatile, err := b.Table(t.Context(), "volatile", bus.TableOptions{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []bus.Table{kept, volatile} {
		for i := range 20 {
			if _, err := table.Put(t.Context(), fmt.Sprint("k.", i), []byte("v")); err != nil {
				t.Fatal(err)
			}
		}
		for i := 5; i < 15; i++ {
			if err := table.Delete(t.Context(), fmt.Sprint("k.", i), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Long is when a marker that has a time to live is gone: those of the volatile table, which came after.
	var kv jetstream.KeyValue = *volatile.(*table).kv.Load()
	limit := time.After(time.Minute)
	for values := uint64(0); values != 10; {
		s, err := kv.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		values = s.Values()
		select {
		case <-limit:
			t.Fatalf("%d values are left in the volatile table; want 10", values)
		default:
		}
	}
	if err := os.CopyFS(left, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	again, err := open(t, left).Table(t.Context(), "kept", bus.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		_, err := again.Get(t.Context(), fmt.Sprint("k.", i))
		if gone := i >= 5 && i < 15; gone != errors.Is(err, bus.ErrNotFound) {
			t.Errorf("k.%d, removed: %t: %v", i, gone, err)
		}
	}
}

package nats

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
)

// A volatile table that things come and go in does not grow: nothing is left of what was removed, in a bucket of before too.
func TestTableForgetsWhatWasRemoved(t *testing.T) {
	was := markerTTL
	markerTTL = time.Second
	t.Cleanup(func() { markerTTL = was })
	b := open(t, t.TempDir())
	if _, err := b.js().CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "naru_table_before", Storage: jetstream.MemoryStorage}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fresh", "before"} {
		table, err := b.Table(t.Context(), name, bus.TableOptions{Volatile: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := table.Put(t.Context(), "stays", []byte("v")); err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			key := fmt.Sprint("k.", i)
			r, err := table.Update(t.Context(), key, []byte("v"), 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := table.Delete(t.Context(), key, r*uint64(i%2)); err != nil {
				t.Fatal(err)
			}
			if _, err := table.Update(t.Context(), key, []byte("again"), 0); err != nil {
				t.Fatal("a key that was removed cannot be made anew:", err)
			}
			if err := table.Delete(t.Context(), key, 0); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for left := uint64(0); left != 1; {
			s, err := b.js().Stream(ctx, "KV_naru_table_"+name)
			if err != nil {
				t.Fatalf("%s: %d entries are left, %v", name, left, err)
			}
			left = s.CachedInfo().State.Msgs
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("%s: %d entries are left", name, left)
			}
		}
		if e, err := table.Get(t.Context(), "stays"); err != nil || string(e.Value) != "v" {
			t.Errorf("%s: what was not removed: %v", name, err)
		}
	}
}

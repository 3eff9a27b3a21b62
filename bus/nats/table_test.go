package nats

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	natsgo "github.com/nats-io/nats.go"
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

// deaf is a bucket whose next answer is lost.
type deaf struct {
	jetstream.KeyValue
	lose *error
}

func (d deaf) hear(err error) error {
	if lose := *d.lose; lose != nil {
		*d.lose = nil
		return lose
	}
	return err
}

func (d deaf) Create(ctx context.Context, key string, value []byte, o ...jetstream.KVCreateOpt) (uint64, error) {
	r, err := d.KeyValue.Create(ctx, key, value, o...)
	return r, d.hear(err)
}

func (d deaf) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	r, err := d.KeyValue.Update(ctx, key, value, revision)
	return r, d.hear(err)
}

func (d deaf) Purge(ctx context.Context, key string, o ...jetstream.KVDeleteOpt) error {
	return d.hear(d.KeyValue.Purge(ctx, key, o...))
}

// A write that was taken and whose answer was lost is no conflict with itself, and one with another's write still is.
func TestTableKnowsItsOwnWriteWhoseAnswerWasLost(t *testing.T) {
	b := open(t, t.TempDir())
	opened, err := b.Table(t.Context(), "deaf", bus.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	table := opened.(*table)
	var lose error
	kv := jetstream.KeyValue(deaf{*table.kv.Load(), &lose})
	table.kv.Store(&kv)
	for _, fault := range []error{natsgo.ErrTimeout, context.DeadlineExceeded} {
		var rev uint64
		for _, value := range []string{"made", "changed"} {
			lose = fault
			if rev, err = table.Update(t.Context(), "key", []byte(value), rev); err != nil {
				t.Fatalf("%s: %v", value, err)
			}
			if e, err := table.Get(t.Context(), "key"); err != nil || string(e.Value) != value || e.Revision != rev {
				t.Errorf("%s: %q at %d is there, %v; want revision %d", value, e.Value, e.Revision, err, rev)
			}
		}
		lose = fault
		if _, err := table.Update(t.Context(), "key", []byte("of another"), rev-1); !errors.Is(err, bus.ErrConflict) {
			t.Errorf("a write at an old revision: %v", err)
		}
		lose = fault
		if err := table.Delete(t.Context(), "key", rev-1); !errors.Is(err, bus.ErrConflict) {
			t.Errorf("a removal at an old revision: %v", err)
		}
		lose = fault
		if err := table.Delete(t.Context(), "key", rev); err != nil {
			t.Errorf("removed: %v", err)
		}
	}
}

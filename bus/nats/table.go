package nats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
)

// table is a KV bucket.
type table struct {
	b    *Bus
	name string
	conf jetstream.KeyValueConfig
	kv   atomic.Pointer[jetstream.KeyValue]
}

// markerTTL is how long a volatile table remembers that an entry is gone, for those who watch; whoever was away for longer finds
// out from what he is not told again. Then nothing of the entry is left. Shorter in tests.
//
// A table on disk remembers it for as long as it keeps anything. The server writes nowhere that a value went because a newer one
// came: it follows from the newer one being there. Killed after the marker had gone, it would find the old value, and nothing newer.
var markerTTL = time.Minute

// Table opens a table.
func (b *Bus) Table(ctx context.Context, name string, o bus.TableOptions) (bus.Table, error) {
	b.mu.Lock()
	t := b.tables[name]
	b.mu.Unlock()
	if t != nil {
		return t, nil
	}
	t = &table{b: b, name: name, conf: jetstream.KeyValueConfig{
		Bucket: "naru_table_" + name, Replicas: b.o.Replicas, TTL: o.TTL, Storage: jetstream.FileStorage, LimitMarkerTTL: markerTTL,
	}}
	if o.Volatile {
		t.conf.Storage = jetstream.MemoryStorage
	}
	if !word(name) {
		return nil, fmt.Errorf("open table %q: want a name of letters, digits, - and _", name)
	}
	if err := b.patiently(ctx, openPatience, t.ready); err != nil {
		return nil, fmt.Errorf("open table %s: %w", name, b.closed(err))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if other := b.tables[name]; other != nil {
		return other, nil
	}
	b.tables[name] = t
	return t, nil
}

// ready makes the bucket where there is none: a server forgets the volatile ones when it stops.
func (t *table) ready(ctx context.Context) error {
	kv, err := t.b.js().CreateKeyValue(ctx, t.conf)
	if errors.Is(err, jetstream.ErrBucketExists) {
		kv, err = t.b.js().KeyValue(ctx, t.conf.Bucket)
		if err == nil {
			kv, err = t.forgetful(ctx, kv)
		}
	}
	if err != nil {
		return err
	}
	t.kv.Store(&kv)
	return nil
}

// forgetful has a bucket of before forget what was removed.
func (t *table) forgetful(ctx context.Context, kv jetstream.KeyValue) (jetstream.KeyValue, error) {
	if s, err := kv.Status(ctx); err != nil || s.LimitMarkerTTL() > 0 {
		return kv, err
	}
	return t.b.js().UpdateKeyValue(ctx, t.conf)
}

// do calls f with the bucket, once more if the server had forgotten it or the connection that it was opened by is over, and
// names the fault.
func (t *table) do(ctx context.Context, key string, f func(jetstream.KeyValue) error) error {
	if err := bus.CheckKey(key); err != nil {
		return fmt.Errorf("table %s: %w", t.name, err)
	}
	err := f(*t.kv.Load())
	if forgotten(err) {
		if rerr := t.ready(ctx); rerr == nil {
			err = f(*t.kv.Load())
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted):
		err = bus.ErrNotFound
	case errors.Is(err, jetstream.ErrKeyExists), isCode(err, codeWrongSequence, codeWrongSequenceConst):
		err = bus.ErrConflict
	}
	return fmt.Errorf("table %s, key %s: %w", t.name, key, t.b.closed(err))
}

func forgotten(err error) bool {
	return errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrBucketNotFound) ||
		errors.Is(err, natsgo.ErrConnectionClosed) || errors.Is(err, natsgo.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse)
}

// Get reads a key.
func (t *table) Get(ctx context.Context, key string) (e bus.Entry, err error) {
	err = t.do(ctx, key, func(kv jetstream.KeyValue) error {
		got, err := kv.Get(ctx, key)
		if err == nil {
			e = bus.Entry{Key: key, Value: got.Value(), Revision: got.Revision()}
		}
		return err
	})
	return e, err
}

// Put writes a key.
func (t *table) Put(ctx context.Context, key string, value []byte) (rev uint64, err error) {
	err = t.do(ctx, key, func(kv jetstream.KeyValue) (err error) {
		rev, err = kv.Put(ctx, key, value)
		return err
	})
	return rev, err
}

// Update writes a key at a revision.
func (t *table) Update(ctx context.Context, key string, value []byte, revision uint64) (rev uint64, err error) {
	err = t.surely(ctx, key, func(ctx context.Context, kv jetstream.KeyValue) (err error) {
		if revision == 0 {
			rev, err = kv.Create(ctx, key, value)
		} else {
			rev, err = kv.Update(ctx, key, value, revision)
		}
		return err
	}, func() bool {
		e, err := t.Get(ctx, key)
		rev = e.Revision
		return err == nil && e.Revision > revision && bytes.Equal(e.Value, value)
	})
	return rev, err
}

// Delete removes a key.
func (t *table) Delete(ctx context.Context, key string, revision uint64) error {
	return t.surely(ctx, key, func(ctx context.Context, kv jetstream.KeyValue) error {
		var o []jetstream.KVDeleteOpt
		if t.conf.Storage == jetstream.MemoryStorage {
			o = append(o, jetstream.PurgeTTL(markerTTL))
		}
		if revision != 0 {
			o = append(o, jetstream.LastRevision(revision))
		}
		return kv.Purge(ctx, key, o...)
	}, func() bool {
		_, err := t.Get(ctx, key)
		return errors.Is(err, bus.ErrNotFound)
	})
}

// surely writes at a revision, and once more where the answer is lost. What was taken all the same has the second try refused: then
// stands says whether what is there is what was wanted.
func (t *table) surely(ctx context.Context, key string, write func(context.Context, jetstream.KeyValue) error, stands func() bool) error {
	doubt := false
	err := t.do(ctx, key, func(kv jetstream.KeyValue) error {
		try, cancel := context.WithTimeout(ctx, requestWait)
		defer cancel()
		err := write(try, kv)
		if !lost(err) {
			return err
		}
		if doubt = true; ctx.Err() != nil || errors.Is(err, natsgo.ErrConnectionClosed) { // that is tried again with another connection
			return err
		}
		return write(ctx, kv)
	})
	if doubt && errors.Is(err, bus.ErrConflict) && stands() {
		return nil
	}
	return err
}

// lost says that what was asked may have been done, though nobody said so.
func lost(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, natsgo.ErrTimeout) || errors.Is(err, natsgo.ErrConnectionClosed) ||
		errors.Is(err, natsgo.ErrDisconnected)
}

// watchAgain is how long a watch waits before it begins anew after a fault.
const watchAgain = 250 * time.Millisecond

// Watch tells of the entries and their changes. After a break in the connection it begins anew.
func (t *table) Watch(ctx context.Context, prefix string, f func(bus.Entry), synced func()) error {
	w := watch{t: t, prefix: prefix, f: f, known: map[string]struct{}{}}
	for {
		err := w.run(ctx, func() {
			if synced != nil {
				synced()
				synced = nil
			}
		})
		if err := w.over(ctx); err != nil {
			return err
		}
		t.b.log.Debug("watch again", "table", t.name, "error", err)
		if forgotten(err) {
			_ = t.ready(ctx) // if not now, then the next time
		}
		select {
		case <-ctx.Done():
		case <-t.b.ctx.Done():
		case <-time.After(watchAgain):
		}
	}
}

// watch is one who watches, over all breaks of the connection.
type watch struct {
	t      *table
	prefix string
	f      func(bus.Entry)
	known  map[string]struct{} // keys that were told and not removed
}

func (w *watch) over(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if w.t.b.ctx.Err() != nil {
		return bus.ErrClosed
	}
	return nil
}

// run watches until the connection breaks.
func (w *watch) run(ctx context.Context, synced func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	broken := *w.t.b.broken.Load()
	// A bucket's wildcards go by token; what is after the prefix's last dot is compared here.
	filter := ">"
	if i := strings.LastIndexByte(w.prefix, '.'); i >= 0 {
		filter = w.prefix[:i+1] + ">"
	}
	updates, err := (*w.t.kv.Load()).Watch(ctx, filter)
	if err != nil {
		return err
	}
	defer updates.Stop() //nolint:errcheck // the watch is over anyway
	missing := w.known
	w.known = map[string]struct{}{}
	first := true
	for {
		select {
		case <-ctx.Done():
			w.restore(missing)
			return ctx.Err()
		case <-w.t.b.ctx.Done():
			return bus.ErrClosed
		case <-broken:
			w.restore(missing)
			return errDisconnected
		case e, ok := <-updates.Updates():
			switch {
			case !ok:
				w.restore(missing)
				return errors.New("the watch ended")
			case e == nil && first:
				// What is not told again went during the break.
				for key := range missing {
					w.f(bus.Entry{Key: key, Deleted: true})
				}
				missing, first = nil, false
				synced()
			case e != nil && strings.HasPrefix(e.Key(), w.prefix):
				delete(missing, e.Key())
				w.tell(bus.Entry{Key: e.Key(), Value: e.Value(), Revision: e.Revision(), Deleted: e.Operation() != jetstream.KeyValuePut})
			}
		}
	}
}

func (w *watch) tell(e bus.Entry) {
	if e.Deleted {
		delete(w.known, e.Key)
	} else {
		w.known[e.Key] = struct{}{}
	}
	w.f(e)
}

// restore remembers what was told before the break, when another break came before all was told again.
func (w *watch) restore(missing map[string]struct{}) {
	for key := range missing {
		w.known[key] = struct{}{}
	}
}

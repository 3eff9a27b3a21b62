package mem

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
)

// tableData is a stored table.
type tableData struct {
	name     string
	volatile bool
	ttl      time.Duration
	revision uint64
	entries  map[string]tableEntry
	watchers map[*watcher]bool
	changed  bell
}

type tableEntry struct {
	bus.Entry
	expires time.Time // zero for never
}

// watcher is what a Watch has still to tell.
type watcher struct {
	prefix  string
	pending []bus.Entry
}

// Table as in [bus.Bus].
func (b *Bus) Table(ctx context.Context, name string, o bus.TableOptions) (bus.Table, error) {
	if err := b.enter(ctx); err != nil {
		return nil, fmt.Errorf("open table %s: %w", name, err)
	}
	defer b.e.mu.Unlock()
	d := b.e.tables[name]
	if d == nil {
		d = &tableData{name: name, volatile: o.Volatile, ttl: o.TTL, entries: map[string]tableEntry{}, watchers: map[*watcher]bool{}}
		b.e.tables[name] = d
	}
	return &table{b: b, d: d}, nil
}

type table struct {
	b *Bus
	d *tableData
}

func (t *table) Get(ctx context.Context, key string) (bus.Entry, error) {
	var found bus.Entry
	err := t.do(ctx, "get", key, func() error {
		e, ok := t.d.entries[key]
		if !ok {
			return bus.ErrNotFound
		}
		found = copied(e.Entry)
		return nil
	})
	return found, err
}

func (t *table) Put(ctx context.Context, key string, value []byte) (revision uint64, err error) {
	err = t.do(ctx, "put", key, func() error {
		revision = t.d.put(key, value, t.b.e.now())
		return nil
	})
	return revision, err
}

func (t *table) Update(ctx context.Context, key string, value []byte, revision uint64) (written uint64, err error) {
	err = t.do(ctx, "update", key, func() error {
		if is := t.d.entries[key].Revision; is != revision {
			return fmt.Errorf("revision is %d and not %d: %w", is, revision, bus.ErrConflict)
		}
		written = t.d.put(key, value, t.b.e.now())
		return nil
	})
	return written, err
}

func (t *table) Delete(ctx context.Context, key string, revision uint64) error {
	return t.do(ctx, "delete", key, func() error {
		e, there := t.d.entries[key]
		if revision != 0 && e.Revision != revision {
			return fmt.Errorf("revision is %d and not %d: %w", e.Revision, revision, bus.ErrConflict)
		}
		if there {
			t.d.remove(key)
		}
		return nil
	})
}

// Watch as in [bus.Table]. It returns ctx's error, or ErrClosed.
func (t *table) Watch(ctx context.Context, prefix string, f func(bus.Entry), synced func()) error {
	if err := t.b.enter(ctx); err != nil {
		return fmt.Errorf("watch table %s: %w", t.d.name, err)
	}
	e := t.b.e
	t.d.expire(e.now())
	w := &watcher{prefix: prefix}
	for _, key := range slices.Sorted(maps.Keys(t.d.entries)) {
		if strings.HasPrefix(key, prefix) {
			w.pending = append(w.pending, copied(t.d.entries[key].Entry))
		}
	}
	t.d.watchers[w] = true
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(t.d.watchers, w)
	}()
	for told := false; ; {
		e.mu.Lock()
		if !e.down {
			t.d.expire(e.now())
		}
		news, bell, due := w.pending, t.d.changed.heard(), t.d.nextExpiry()
		w.pending = nil
		e.mu.Unlock()
		for _, entry := range news {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			f(entry)
		}
		if !told && ctx.Err() == nil {
			told = true
			synced()
		}
		var fires <-chan time.Time
		stop := func() bool { return true }
		if !due.IsZero() {
			timer := t.b.timer(due)
			fires, stop = timer.C, timer.Stop
		}
		select {
		case <-bell:
		case <-fires:
		case <-ctx.Done():
			stop()
			return ctx.Err()
		case <-t.b.closed:
			stop()
			return fmt.Errorf("watch table %s: %w", t.d.name, bus.ErrClosed)
		}
		stop()
	}
}

// do calls f with the engine's lock.
func (t *table) do(ctx context.Context, verb, key string, f func() error) error {
	err := bus.CheckKey(key)
	if err == nil {
		if err = t.b.enter(ctx); err == nil {
			defer t.b.e.mu.Unlock()
			t.d.expire(t.b.e.now())
			err = f()
		}
	}
	if err != nil {
		return fmt.Errorf("%s %q in table %s: %w", verb, key, t.d.name, err)
	}
	return nil
}

func (d *tableData) put(key string, value []byte, now time.Time) uint64 {
	d.revision++
	e := tableEntry{Entry: bus.Entry{Key: key, Value: append([]byte{}, value...), Revision: d.revision}}
	if d.ttl > 0 {
		e.expires = now.Add(d.ttl)
	}
	d.entries[key] = e
	d.tell(e.Entry)
	return d.revision
}

func (d *tableData) remove(key string) {
	d.revision++
	delete(d.entries, key)
	d.tell(bus.Entry{Key: key, Revision: d.revision, Deleted: true})
}

func (d *tableData) tell(e bus.Entry) {
	for w := range d.watchers {
		if strings.HasPrefix(e.Key, w.prefix) {
			w.pending = append(w.pending, copied(e))
		}
	}
	d.changed.ring()
}

func (d *tableData) expire(now time.Time) {
	if d.ttl == 0 {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(d.entries)) {
		if !now.Before(d.entries[key].expires) {
			d.remove(key)
		}
	}
}

// nextExpiry is when the next entry goes by itself; zero for never.
func (d *tableData) nextExpiry() (at time.Time) {
	if d.ttl == 0 {
		return at
	}
	for _, e := range d.entries {
		if at.IsZero() || e.expires.Before(at) {
			at = e.expires
		}
	}
	return at
}

// clear forgets the entries; revisions go on, so that an old one is never met again.
func (d *tableData) clear() {
	clear(d.entries)
	d.changed.ring()
}

func copied(e bus.Entry) bus.Entry {
	e.Value = bytes.Clone(e.Value)
	return e
}

package x509

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/naru-platform/naru/bus"
)

// tables is the part of a bus that this package uses: tables with revisions and watches, in memory.
type tables struct {
	bus.Bus
	mu   sync.Mutex
	open map[string]*table
	full atomic.Bool // its disk is
}

func (b *tables) Status(context.Context) bus.Status {
	return bus.Status{Space: bus.Space{Shut: b.full.Load()}}
}

var errNobody = errors.New("no responders")

func newTables() *tables { return &tables{open: map[string]*table{}} }

func (b *tables) Table(_ context.Context, name string, _ bus.TableOptions) (bus.Table, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.open[name]
	if t == nil {
		t = &table{entries: map[string]bus.Entry{}, watchers: map[chan bus.Entry]string{}}
		b.open[name] = t
	}
	return t, nil
}

type table struct {
	mu       sync.Mutex
	revision uint64
	entries  map[string]bus.Entry
	watchers map[chan bus.Entry]string
	deaf     bool        // watchers are told nothing: a bus that is slow
	gone     atomic.Bool // nothing can be read or written: a bus that is away

	telling pending
}

// pending is how much watchers were told and have not taken in yet.
type pending struct {
	mu   sync.Mutex
	n    int
	none sync.Cond
}

func (p *pending) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n += n; p.n == 0 && p.none.L != nil {
		p.none.Broadcast()
	}
}

func (p *pending) wait() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.none.L = &p.mu; p.n > 0; {
		p.none.Wait()
	}
}

// settled waits until whoever watches has taken in all that was written before.
func (b *tables) settled() {
	b.mu.Lock()
	open := slices.Collect(maps.Values(b.open))
	b.mu.Unlock()
	for _, t := range open {
		t.telling.wait()
	}
}

func (t *table) Get(_ context.Context, key string) (bus.Entry, error) {
	if t.gone.Load() {
		return bus.Entry{}, errNobody
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.entries[key]
	if !ok {
		return e, bus.ErrNotFound
	}
	return e, nil
}

func (t *table) Put(_ context.Context, key string, value []byte) (uint64, error) {
	if t.gone.Load() {
		return 0, errNobody
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.write(bus.Entry{Key: key, Value: value}), nil
}

func (t *table) Update(_ context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if t.gone.Load() {
		return 0, errNobody
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.entries[key].Revision != revision {
		return 0, bus.ErrConflict
	}
	return t.write(bus.Entry{Key: key, Value: value}), nil
}

func (t *table) Delete(_ context.Context, key string, revision uint64) error {
	if t.gone.Load() {
		return errNobody
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if revision != 0 && t.entries[key].Revision != revision {
		return bus.ErrConflict
	}
	t.write(bus.Entry{Key: key, Deleted: true})
	return nil
}

func (t *table) write(e bus.Entry) uint64 {
	t.revision++
	e.Revision = t.revision
	if e.Deleted {
		delete(t.entries, e.Key)
	} else {
		t.entries[e.Key] = e
	}
	for w, prefix := range t.watchers {
		if strings.HasPrefix(e.Key, prefix) && !t.deaf {
			t.telling.add(1)
			w <- e
		}
	}
	return t.revision
}

func (t *table) Watch(ctx context.Context, prefix string, f func(bus.Entry), synced func()) error {
	if t.gone.Load() {
		return errNobody
	}
	w := make(chan bus.Entry, 4096)
	t.mu.Lock()
	now := slices.SortedFunc(maps.Values(t.entries), func(a, b bus.Entry) int { return strings.Compare(a.Key, b.Key) })
	t.watchers[w] = prefix
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.watchers, w)
		t.telling.add(-len(w)) // nobody will take it in
	}()
	for _, e := range now {
		if strings.HasPrefix(e.Key, prefix) {
			f(e)
		}
	}
	synced()
	for {
		select {
		case e := <-w:
			f(e)
			t.telling.add(-1)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/answer"
)

const (
	tableName    = "workers"
	versionsKept = 20
	triesMax     = 20 // of a change that meets others
	settle       = 5 * time.Second
)

// Head is a worker as it is kept: what it is now, and what it was. It is one key of the table, so it changes at once.
type Head struct {
	Record
	Version int `json:"version"`
	// Removed workers are forgotten: their messages wait for nobody.
	Removed bool `json:"removed,omitempty"`
	// Forgotten says that nothing is left of a removed one.
	Forgotten bool      `json:"forgotten,omitempty"`
	Versions  []Version `json:"versions"` // the last ones, oldest first
}

// Version is what a worker was made at a time.
type Version struct {
	Number int       `json:"version"`
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Why    string    `json:"why,omitempty"`
	Change string    `json:"change"` // added, changed, paused, resumed, removed
	Record Record    `json:"record"`
}

type kept struct {
	Head
	revision uint64
}

// book is the table of workers as this process knows it.
type book struct {
	now   func() time.Time
	most  int
	table bus.Table

	mu     sync.Mutex
	heads  map[string]*kept
	synced bool
	seen   uint64
	news   chan struct{} // closed and made anew with each change
}

func newBook(now func() time.Time, most int) *book {
	return &book{now: now, most: most, heads: map[string]*kept{}, news: make(chan struct{})}
}

func (b *book) open(ctx context.Context, bu bus.Bus) error {
	t, err := bu.Table(ctx, tableName, bus.TableOptions{})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.table = t
	return err
}

// follow keeps the view until ctx is done.
func (b *book) follow(ctx context.Context, broken func(key string, err error)) error {
	return b.table.Watch(ctx, "", func(e bus.Entry) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.seen = max(b.seen, e.Revision)
		if e.Deleted {
			delete(b.heads, e.Key)
		} else {
			k := &kept{revision: e.Revision}
			if err := json.Unmarshal(e.Value, &k.Head); err != nil {
				broken(e.Key, err)
				return
			}
			b.heads[e.Key] = k
		}
		b.ring()
	}, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.synced = true
		b.ring()
	})
}

// ring tells of a change. mu is held.
func (b *book) ring() {
	close(b.news)
	b.news = make(chan struct{})
}

// list gives the workers by name, and what is closed at the next change. It is not ok before the table was read.
func (b *book) list() (list []*kept, news <-chan struct{}, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range b.heads {
		list = append(list, k)
	}
	slices.SortFunc(list, func(x, y *kept) int { return strings.Compare(x.Name, y.Name) })
	return list, b.news, b.synced
}

// get gives one that is there.
func (b *book) get(name string) (*kept, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.synced {
		return nil, answer.Unavailable("%s is starting", Name)
	}
	k := b.heads[name]
	if k == nil || k.Removed {
		return nil, missing(name)
	}
	return k, nil
}

func missing(name string) error {
	return answer.Missing("there is no worker %s; `naru worker list` shows those there are, and `naru worker add` adds one", name)
}

// errSame says that nothing is to be changed.
var errSame = errors.New("it is as wanted")

// change makes a change once, whoever else changes the same worker, and waits until this process knows it.
func (b *book) change(ctx context.Context, name, by, why string, do func(h *Head) (string, error)) (*kept, error) {
	b.mu.Lock()
	t := b.table
	b.mu.Unlock()
	if t == nil {
		return nil, answer.Unavailable("%s is starting", Name)
	}
	for range triesMax {
		k := &kept{}
		e, err := t.Get(ctx, name)
		switch {
		case errors.Is(err, bus.ErrNotFound):
			k.Head = Head{Record: Record{Name: name}, Removed: true, Forgotten: true}
		case err != nil:
			return nil, err
		default:
			k.revision = e.Revision
			if err := json.Unmarshal(e.Value, &k.Head); err != nil {
				return nil, fmt.Errorf("worker %s in the table: %w", name, err)
			}
		}
		before := k.Record
		was := k.Removed
		what, err := do(&k.Head)
		if errors.Is(err, errSame) {
			return k, nil
		}
		if err != nil {
			return nil, err
		}
		if was && !k.Removed && b.count() >= b.most {
			return nil, answer.Conflict("there are %d workers, as many as may be (workers_max)", b.most)
		}
		if what != "" && (!reflect.DeepEqual(before, k.Record) || was != k.Removed) {
			k.Version++
			k.Versions = append(slices.Clone(k.Versions), Version{k.Version, b.now().UTC(), by, why, what, k.Record})
			k.Versions = k.Versions[max(0, len(k.Versions)-versionsKept):]
		}
		raw, err := json.Marshal(k.Head)
		if err != nil {
			return nil, err
		}
		rev, err := t.Update(ctx, name, raw, k.revision)
		if errors.Is(err, bus.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, err
		}
		k.revision = rev
		b.settled(ctx, rev)
		return k, nil
	}
	return nil, answer.Unavailable("worker %s is being changed by others all the time; try again", name)
}

func (b *book) count() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range b.heads {
		if !k.Removed {
			n++
		}
	}
	return n
}

// settled waits until this process has heard of a revision.
func (b *book) settled(ctx context.Context, revision uint64) {
	late := time.NewTimer(settle)
	defer late.Stop()
	for {
		b.mu.Lock()
		seen, news := b.seen, b.news
		b.mu.Unlock()
		if seen >= revision {
			return
		}
		select {
		case <-news:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// put makes a record the worker's.
func put(r Record) func(h *Head) (string, error) {
	return func(h *Head) (string, error) {
		if h.Removed && !h.Forgotten {
			return "", answer.Conflict("worker %s was removed, and what is kept of it is being forgotten; try again in a moment", r.Name)
		}
		what := "changed"
		if h.Removed {
			what = "added"
		} else if h.Record.version() == r.version() && h.Paused == r.Paused {
			return "", errSame
		}
		h.Record, h.Removed, h.Forgotten = r, false, false
		return what, nil
	}
}

// pause stops or resumes a worker's calls.
func pause(on bool) func(h *Head) (string, error) {
	return func(h *Head) (string, error) {
		switch {
		case h.Removed:
			return "", missing(h.Name)
		case h.Paused == on:
			return "", errSame
		}
		if h.Paused = on; on {
			return "paused", nil
		}
		return "resumed", nil
	}
}

func remove(h *Head) (string, error) {
	if h.Removed {
		return "", missing(h.Name)
	}
	h.Removed = true
	h.Headers = nil // secrets are not kept longer than they are used
	return "removed", nil
}

func forgotten(h *Head) (string, error) {
	if !h.Removed || h.Forgotten {
		return "", errSame
	}
	h.Forgotten = true
	return "", nil
}

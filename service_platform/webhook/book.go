package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/answer"
)

const (
	tableName = "destinations"
	keyPrefix = "destination/"
	triesMax  = 20              // of a change that meets others
	settle    = 5 * time.Second // how long a change waits until it is known here
)

// book is the table of destinations as this process knows it.
type book struct {
	w    *Webhook
	wake chan struct{} // told when something has changed

	mu     sync.Mutex
	table  bus.Table
	all    map[string]*Destination
	synced bool
	seen   uint64
	news   chan struct{} // closed and made anew with each change
}

func newBook(w *Webhook) *book {
	return &book{w: w, wake: make(chan struct{}, 1), all: map[string]*Destination{}, news: make(chan struct{})}
}

func (b *book) open(ctx context.Context) error {
	t, err := b.w.env.Bus.Table(ctx, tableName, bus.TableOptions{})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.table = t
	return err
}

func (b *book) ring() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *book) follow(ctx context.Context) error {
	b.mu.Lock()
	t := b.table
	b.mu.Unlock()
	return t.Watch(ctx, "", b.told, func() {
		b.mu.Lock()
		b.synced = true
		b.mu.Unlock()
		b.ring()
	})
}

func (b *book) told(e bus.Entry) {
	name, ok := strings.CutPrefix(e.Key, keyPrefix)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen = max(b.seen, e.Revision)
	defer func() {
		close(b.news)
		b.news = make(chan struct{})
		b.ring()
	}()
	if e.Deleted {
		delete(b.all, name)
		return
	}
	d, err := read(e)
	if err != nil {
		b.w.env.Log.Error("read a destination of the table; what was known of it holds", "key", e.Key, "error", err)
		return
	}
	b.all[name] = d
}

func read(e bus.Entry) (*Destination, error) {
	d := &Destination{revision: e.Revision}
	return d, json.Unmarshal(e.Value, d)
}

// known says that the table was read.
func (b *book) known() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.synced
}

// list gives the destinations by name, those that are being forgotten among them.
func (b *book) list() []*Destination {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]*Destination, 0, len(b.all))
	for _, d := range b.all {
		list = append(list, d)
	}
	slices.SortFunc(list, func(x, y *Destination) int { return strings.Compare(x.Name, y.Name) })
	return list
}

// find gives a destination that is registered; nil where there is none. That there is none is asked of the table itself,
// since word of a new one may be under way.
func (b *book) find(ctx context.Context, name string) (*Destination, error) {
	b.mu.Lock()
	d, t := b.all[name], b.table
	b.mu.Unlock()
	if d == nil {
		if t == nil {
			return nil, fmt.Errorf("%s is starting", Name)
		}
		e, err := t.Get(ctx, keyPrefix+name)
		if errors.Is(err, bus.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if d, err = read(e); err != nil {
			return nil, err
		}
	}
	if d.Deleted {
		return nil, nil
	}
	return d, nil
}

// act is a change of a destination as somebody wants it.
type act struct {
	by, why  string
	revision uint64                                          // it must still have it; 0 is any
	do       func(d *Destination) (change string, err error) // d is nil-named where there is none
}

var errSame = errors.New("it is as wanted")

// change makes a change, once, whoever else changes the same destination.
func (b *book) change(ctx context.Context, name string, a act) (*Destination, error) {
	b.mu.Lock()
	t := b.table
	b.mu.Unlock()
	if t == nil {
		return nil, answer.Unavailable("%s is starting", Name)
	}
	for range triesMax {
		d := &Destination{Deleted: true}
		e, err := t.Get(ctx, keyPrefix+name)
		switch {
		case errors.Is(err, bus.ErrNotFound):
		case err != nil:
			return nil, err
		default:
			if d, err = read(e); err != nil {
				return nil, fmt.Errorf("destination %s in the table: %w", name, err)
			}
			if d.Deleted {
				return nil, answer.Conflict("destination %s is being forgotten; try again in a moment", name)
			}
		}
		if a.revision != 0 && a.revision != d.revision {
			return nil, &answer.Problem{Status: 412, Title: "Precondition Failed", Detail: fmt.Sprintf("destination %s was changed in the meantime: it has revision %d, not %d", name, d.revision, a.revision)}
		}
		fresh := d.Name == ""
		what, err := a.do(d)
		if errors.Is(err, errSame) {
			return d, nil
		}
		if err != nil {
			return nil, err
		}
		now := b.w.env.Now().UTC()
		if fresh {
			if n := len(b.list()); n >= b.w.conf.DestinationsMax {
				return nil, answer.Conflict("there are %d destinations, as many as may be (destinations_max)", n)
			}
			d.Name, d.Deleted, d.Since = name, false, now.Truncate(time.Millisecond) // as ids tell the time
		}
		d.Changes = append(slices.Clone(d.Changes), Change{At: now, By: a.by, Why: a.why, Change: what})
		d.Changes = d.Changes[max(0, len(d.Changes)-changesMost):]
		raw, err := json.Marshal(d)
		if err != nil {
			return nil, err
		}
		rev, err := t.Update(ctx, keyPrefix+name, raw, d.revision)
		if errors.Is(err, bus.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, err
		}
		d.revision = rev
		b.settled(ctx, rev)
		return d, nil
	}
	return nil, answer.Unavailable("destination %s is being changed by others all the time; try again", name)
}

// erase takes a destination that is forgotten out of the table.
func (b *book) erase(ctx context.Context, d *Destination) error {
	b.mu.Lock()
	t := b.table
	b.mu.Unlock()
	if err := t.Delete(ctx, keyPrefix+d.Name, d.revision); err != nil && !errors.Is(err, bus.ErrNotFound) {
		return err
	}
	return nil
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

// missing answers for a destination that is not there.
func missing(name string) error {
	return answer.Missing("there is no destination %s; `naru destination list` shows those there are", name)
}

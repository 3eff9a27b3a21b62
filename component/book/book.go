// Package book is a table of documents as one process knows it, for what people change while the platform runs: rules,
// workers, destinations, datasets. A change is made once, on what its author saw, whoever else changes the same document;
// and it returns when this process knows it, so that who asks next sees what he did.
package book

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
	triesMax = 20              // of a change that meets others
	settle   = 5 * time.Second // how long a change waits until it is known here
)

// ErrSame is what a change gives that finds all as it is wanted: nothing is written.
var ErrSame = errors.New("it is as wanted")

// Options say what is in the book.
type Options[T any] struct {
	Table  string // its name on the bus
	Prefix string // of the keys that hold documents; a document's name is the rest
	What   string // a document is, for messages: "destination"
	// Called gives what one is called in messages; "<What> <name>" where it is nil.
	Called func(name string) string
	Owner  string // the component that keeps the table, for messages
	// Broken is told of a document that cannot be read; what was known of it holds.
	Broken func(key string, err error)
	// Told is called for each document that is new or has changed, and with nil for one that is gone, in the order of the
	// table, before a change of it returns. It may be nil.
	Told func(name string, d *Doc[T])
	// Other is called for entries with other keys; it may be nil.
	Other func(e bus.Entry)
	// Read is called once, when all that was in the table has been told. It may be nil.
	Read func()
}

// Doc is a document as it is in the table.
type Doc[T any] struct {
	Value    T
	Revision uint64 // 0 where there is none
}

// Book is safe for concurrent use, once it is open.
type Book[T any] struct {
	o Options[T]

	mu     sync.Mutex
	table  bus.Table
	docs   map[string]*Doc[T]
	synced bool
	seen   uint64        // the highest revision told
	news   chan struct{} // closed and made anew with each change
}

// New makes a book that is to be opened.
func New[T any](o Options[T]) *Book[T] {
	if o.Called == nil {
		o.Called = func(name string) string { return o.What + " " + name }
	}
	return &Book[T]{o: o, docs: map[string]*Doc[T]{}, news: make(chan struct{})}
}

// Open opens the table, and creates it where there is none.
func (b *Book[T]) Open(ctx context.Context, on bus.Bus) error {
	t, err := on.Table(ctx, b.o.Table, bus.TableOptions{})
	if err != nil {
		return fmt.Errorf("open the table of %ss: %w", b.o.What, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.table = t
	return nil
}

// Table is the table itself; nil before Open.
func (b *Book[T]) Table() bus.Table {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.table
}

// Follow keeps what is known what the table says, until ctx is done.
func (b *Book[T]) Follow(ctx context.Context) error {
	err := b.Table().Watch(ctx, "", b.told, func() {
		if b.o.Read != nil {
			b.o.Read()
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.synced = true
		b.ring()
	})
	if err != nil {
		return fmt.Errorf("follow the table of %ss: %w", b.o.What, err)
	}
	return nil
}

func (b *Book[T]) told(e bus.Entry) {
	name, ours := strings.CutPrefix(e.Key, b.o.Prefix)
	switch {
	case !ours && b.o.Other != nil:
		b.o.Other(e)
	case ours && e.Deleted:
		b.know(name, nil)
	case ours:
		if d, err := read[T](e); err == nil {
			b.know(name, d)
		} else if b.o.Broken != nil {
			b.o.Broken(e.Key, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen = max(b.seen, e.Revision)
	b.ring()
}

// know takes a document over, or that it is gone.
func (b *Book[T]) know(name string, d *Doc[T]) {
	b.mu.Lock()
	if d == nil {
		delete(b.docs, name)
	} else {
		b.docs[name] = d
	}
	b.mu.Unlock()
	if b.o.Told != nil {
		b.o.Told(name, d)
	}
}

func read[T any](e bus.Entry) (*Doc[T], error) {
	d := &Doc[T]{Revision: e.Revision}
	return d, json.Unmarshal(e.Value, &d.Value)
}

// ring tells of a change. mu is held.
func (b *Book[T]) ring() {
	close(b.news)
	b.news = make(chan struct{})
}

// List gives the documents by name, and what is closed at the next change. ok is false before the table was read. Nobody
// changes what the documents hold.
func (b *Book[T]) List() (list []*Doc[T], news <-chan struct{}, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	names := make([]string, 0, len(b.docs))
	for name := range b.docs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		list = append(list, b.docs[name])
	}
	return list, b.news, b.synced
}

// News is closed at the next change.
func (b *Book[T]) News() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.news
}

// Known gives a document as it is known here; nil where there is none. It is not ok before the table was read.
func (b *Book[T]) Known(name string) (d *Doc[T], ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.docs[name], b.synced
}

// Find gives a document; nil where there is none. What is not known here is asked of the table itself, since word of a
// new one may be under way.
func (b *Book[T]) Find(ctx context.Context, name string) (*Doc[T], error) {
	b.mu.Lock()
	d, t := b.docs[name], b.table
	b.mu.Unlock()
	if d != nil {
		return d, nil
	}
	if t == nil {
		return nil, b.starting()
	}
	return b.ask(ctx, t, name)
}

func (b *Book[T]) ask(ctx context.Context, t bus.Table, name string) (*Doc[T], error) {
	e, err := t.Get(ctx, b.o.Prefix+name)
	if errors.Is(err, bus.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d, err := read[T](e)
	if err != nil {
		return nil, fmt.Errorf("%s in the table: %w", b.o.Called(name), err)
	}
	return d, nil
}

func (b *Book[T]) starting() error { return answer.Unavailable("%s is starting", b.o.Owner) }

// Change has do change a document, which it gets as it is now, with revision 0 and the zero value where there is none; it is
// called again where another one was quicker. Its error ends the change, and nothing is written; with ErrSame the document
// is given all the same.
func (b *Book[T]) Change(ctx context.Context, name string, do func(d *Doc[T]) error) (*Doc[T], error) {
	t := b.Table()
	if t == nil {
		return nil, b.starting()
	}
	for range triesMax {
		d, err := b.ask(ctx, t, name)
		if err != nil {
			return nil, err
		}
		if d == nil {
			d = new(Doc[T])
		}
		if err := do(d); errors.Is(err, ErrSame) {
			return d, err
		} else if err != nil {
			return nil, err
		}
		raw, err := json.Marshal(&d.Value)
		if err != nil {
			return nil, err
		}
		revision, err := t.Update(ctx, b.o.Prefix+name, raw, d.Revision)
		if errors.Is(err, bus.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, err
		}
		d.Revision = revision
		b.settled(ctx, revision)
		return d, nil
	}
	return nil, answer.Unavailable("%s is being changed by others all the time; try again", b.o.Called(name))
}

// Erase takes a document out of the table, if it still has the revision; 0 is any.
func (b *Book[T]) Erase(ctx context.Context, name string, revision uint64) error {
	t := b.Table()
	if t == nil {
		return b.starting()
	}
	if err := t.Delete(ctx, b.o.Prefix+name, revision); err != nil && !errors.Is(err, bus.ErrNotFound) {
		return err
	}
	return nil
}

// settled waits until this process has heard of a revision.
func (b *Book[T]) settled(ctx context.Context, revision uint64) {
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

package model

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/book"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/internal/trie"
	"github.com/naru-platform/naru/message"
)

const (
	// TableName is the table of the bus that all processes of a platform find their datasets in.
	TableName  = "datasets"
	historyMax = 20
	entryMax   = 700 << 10 // bytes of an entry; a table's value may have a megabyte, and older versions go before that
)

// Entry is a document of the table with what became of it.
type Entry struct {
	Kind    string `json:"kind"` // dataset or pipeline
	Name    string `json:"name"`
	Version int    `json:"version"` // the dataset's; a pipeline's counts its changes
	YAML    string `json:"yaml"`
	Deleted bool   `json:"deleted,omitempty"`
	// File is the file that it is from; it is changed there.
	File string    `json:"file,omitempty"`
	By   string    `json:"by"`
	Why  string    `json:"why,omitempty"`
	At   time.Time `json:"at"`
	// History are the versions before, newest first, 20 at most.
	History []Version `json:"history,omitempty"`
	// BuiltIn says that nobody has changed it yet.
	BuiltIn bool `json:"built_in,omitempty"`
	// Fault is why what the table says is not in force in this process; what was in force before goes on.
	Fault string `json:"fault,omitempty"`
}

// Version is what a document was.
type Version struct {
	Version int       `json:"version"`
	YAML    string    `json:"yaml"`
	Deleted bool      `json:"deleted,omitempty"`
	By      string    `json:"by"`
	Why     string    `json:"why,omitempty"`
	At      time.Time `json:"at"`
}

// Set is what is in force at a moment. It does not change; any number of goroutines may read it.
type Set struct {
	// Datasets and Pipelines are in force, by the dataset's name. A dataset without a pipeline is stored as it comes.
	Datasets  map[string]*Dataset
	Pipelines map[string]*Pipeline

	from trie.Trie[*Dataset]
}

// Names are the datasets', in order.
func (s *Set) Names() []string { return slices.Sorted(maps.Keys(s.Datasets)) }

// Taking calls f once for each dataset that takes messages of the subject unchanged.
func (s *Set) Taking(subject message.Subject, f func(*Dataset)) {
	var first *Dataset
	var more []*Dataset
	s.from.Match(subject, func(d *Dataset) {
		switch {
		case first == nil:
			first = d
		case d != first && !slices.Contains(more, d): // several of its patterns may match
			more = append(more, d)
		}
	})
	if first != nil {
		f(first)
	}
	for _, d := range more {
		f(d)
	}
}

// newSet joins what is in force.
func newSet(datasets map[string]*Dataset, pipelines map[string]*Pipeline) *Set {
	s := &Set{Datasets: datasets, Pipelines: pipelines}
	for _, name := range s.Names() {
		for _, p := range datasets[name].From {
			s.from.Add(p, datasets[name])
		}
	}
	return s
}

// Book follows the table of datasets and changes it. Its methods may be called by any number of goroutines.
type Book struct {
	bus   bus.Bus
	log   *slog.Logger
	now   func() time.Time
	table *book.Book[Entry]

	set    atomic.Pointer[Set]
	synced chan struct{}

	mu      sync.Mutex
	entries map[string]*Entry
	docs    map[string]*Document // in force, by key
}

// NewBook makes a book; Run opens it. Until then its set is that of BuiltIn.
func NewBook(on bus.Bus, log *slog.Logger, now func() time.Time) *Book {
	b := &Book{bus: on, log: log, now: now, synced: make(chan struct{}), entries: map[string]*Entry{}, docs: map[string]*Document{}}
	b.table = book.New(book.Options[Entry]{Table: TableName, What: "dataset", Owner: "data_platform",
		Called: func(key string) string { return strings.Replace(key, "/", " ", 1) },
		Broken: b.broken, Told: b.told, Read: b.read})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.swap()
	return b
}

// Run follows the table until ctx is done. It may be run again after that.
func (b *Book) Run(ctx context.Context) error {
	if err := b.table.Open(ctx, b.bus); err != nil {
		return err
	}
	return b.table.Follow(ctx)
}

// Serve is the Run of a component that waits for the book, and does nothing else by itself.
func (b *Book) Serve(ctx context.Context, ready func()) error {
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	select {
	case <-b.synced:
		ready()
	case err := <-done:
		return err
	}
	if err := <-done; ctx.Err() == nil {
		return err
	}
	return nil
}

// Synced is closed once the book has what the table says; what concerns data waits for it.
func (b *Book) Synced() <-chan struct{} { return b.synced }

// Set is what is in force now.
func (b *Book) Set() *Set { return b.set.Load() }

// News is closed at the next change; ask for it before Set.
func (b *Book) News() <-chan struct{} { return b.table.News() }

// Entries lists what the table has, with what is built in, by kind and name. Those that were deleted are among them.
func (b *Book) Entries() []Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string]*Entry{}
	for _, e := range builtInEntries() {
		all[key(e.Kind, e.Name)] = e
	}
	maps.Copy(all, b.entries)
	list := make([]Entry, 0, len(all))
	for _, k := range slices.Sorted(maps.Keys(all)) {
		list = append(list, *all[k])
	}
	return list
}

// Entry is one of them; an *answer.Problem where it is not there.
func (b *Book) Entry(kind, name string) (Entry, error) {
	for _, e := range b.Entries() {
		if e.Kind == kind && e.Name == name && !e.Deleted {
			return e, nil
		}
	}
	return Entry{}, missing(kind, name)
}

func missing(kind, name string) error {
	return answer.Missing("there is no %s %s; `naru data models` shows those there are", kind, name)
}

func builtInEntries() (list []*Entry) {
	for i := range BuiltIn() {
		d := &BuiltIn()[i]
		list = append(list, &Entry{Kind: d.Kind(), Name: d.Name(), Version: d.Dataset.Version, YAML: d.Text, By: "naru", BuiltIn: true})
	}
	return list
}

func key(kind, name string) string { return kind + "/" + name }

func (b *Book) broken(key string, err error) {
	b.log.Error("read an entry of the table of datasets; what was in force goes on", "key", key, "error", err)
}

// read puts in force what the table says, now that all of it is known.
func (b *Book) read() {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.synced:
	default:
		b.swap()
		close(b.synced)
	}
}

// told takes over what the table says of one document. What does not parse changes nothing, and is told.
func (b *Book) told(k string, d *book.Doc[Entry]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if d == nil { // naru itself never does; somebody took it out of the table
		delete(b.entries, k)
		delete(b.docs, k)
	} else {
		entry := d.Value
		if key(entry.Kind, entry.Name) != k {
			b.broken(k, fmt.Errorf("it is %s %s", entry.Kind, entry.Name))
			return
		}
		b.entries[k] = &entry
		if entry.Deleted {
			delete(b.docs, k)
		} else if docs, err := Parse(k, []byte(entry.YAML)); err != nil {
			entry.Fault = err.Error()
			b.log.Error("a document of the table of datasets cannot be used here; what was in force goes on", "key", k, "error", err)
			return
		} else {
			b.docs[k] = &docs[0]
		}
	}
	select {
	case <-b.synced:
		b.swap()
	default: // one set for all that is told at first
	}
}

// swap puts what is known in force. mu is held.
func (b *Book) swap() {
	datasets, pipelines := map[string]*Dataset{}, map[string]*Pipeline{}
	take := func(d *Document) {
		if d.Dataset != nil {
			datasets[d.Dataset.Name] = d.Dataset
		} else {
			pipelines[d.Pipeline.Dataset] = d.Pipeline
		}
	}
	for i := range BuiltIn() {
		d := &BuiltIn()[i]
		if b.entries[key(d.Kind(), d.Name())] == nil {
			take(d)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b.docs)) {
		take(b.docs[k])
	}
	b.set.Store(newSet(datasets, pipelines))
}

// Change is who changes something, and why.
type Change struct {
	By   string
	Why  string
	File string // where it is kept, for what is from a file
}

// Put brings a document in force: it is checked beside the others and, of a dataset, against what it was (Evolve). The same
// document once more changes nothing. It returns when this process has heard of it. An error for who asked is an
// *answer.Problem.
func (b *Book) Put(ctx context.Context, d *Document, c Change) (Entry, error) {
	return b.change(ctx, d.Kind(), d.Name(), c, func(e *Entry, there bool) (bool, error) {
		if there && e.YAML == d.Text && e.File == c.File {
			return false, nil
		}
		if err := b.beside(d); err != nil {
			return false, answer.Conflict("%s", err)
		}
		version := e.Version + 1
		if d.Dataset != nil {
			version = d.Dataset.Version
			if before, err := parsed(e, KindDataset); err == nil && e.YAML != d.Text && !e.Deleted {
				if err := Evolve(before.Dataset, d.Dataset); err != nil {
					return false, answer.Conflict("%s", err)
				}
			} else if e.Deleted && version <= e.Version {
				return false, answer.Conflict("dataset %s was deleted at version %d; begin again at version %d", e.Name, e.Version, e.Version+1)
			}
		}
		e.Version, e.YAML, e.Deleted = version, d.Text, false
		return true, nil
	})
}

// Remove takes a document out of force. What is stored stays, and so does what is on its way to the dataset, which dies where
// it has not arrived.
func (b *Book) Remove(ctx context.Context, kind, name string, c Change) (Entry, error) {
	return b.change(ctx, kind, name, c, func(e *Entry, there bool) (bool, error) {
		if !there {
			return false, missing(kind, name)
		}
		if kind == KindDataset {
			if p := b.Set().Pipelines[name]; p != nil {
				return false, answer.Conflict("pipeline %s fills dataset %s; remove it first: `naru data remove pipeline %s`", p.Name, name, p.Name)
			}
		}
		e.Deleted = true
		return true, nil
	})
}

// Dry says what Put would: nil where the document would be taken.
func (b *Book) Dry(ctx context.Context, d *Document) error {
	if err := b.beside(d); err != nil {
		return err
	}
	e, err := b.Entry(d.Kind(), d.Name())
	if err != nil || d.Dataset == nil || e.YAML == d.Text {
		return nil
	}
	before, err := parsed(&e, KindDataset)
	if err != nil {
		return nil // nothing that rows were made by
	}
	return Evolve(before.Dataset, d.Dataset)
}

func parsed(e *Entry, kind string) (*Document, error) {
	docs, err := Parse(e.Name, []byte(e.YAML))
	if err == nil && (len(docs) != 1 || docs[0].Kind() != kind) {
		err = errors.New("not one document")
	}
	if err != nil {
		return nil, err
	}
	return &docs[0], nil
}

// beside says whether a document goes with those in force.
func (b *Book) beside(d *Document) error {
	set := b.Set()
	if p := d.Pipeline; p != nil {
		if set.Datasets[p.Dataset] == nil {
			return fmt.Errorf("pipeline %s: there is no dataset %s; apply it first, or in one file with the pipeline before it", p.Name, p.Dataset)
		}
		if other := set.Pipelines[p.Dataset]; other != nil && other.Name != p.Name {
			return fmt.Errorf("pipeline %s: pipeline %s fills dataset %s already; a dataset has one: change that one, or remove it", p.Name, other.Name, p.Dataset)
		}
		return nil
	}
	mine := []string{d.Dataset.Name}
	for i := range d.Dataset.Rollups {
		mine = append(mine, d.Dataset.Rollups[i].Name)
	}
	for _, name := range set.Names() {
		other := set.Datasets[name]
		if other.Name == d.Dataset.Name {
			continue
		}
		if slices.Contains(mine, other.Name) {
			return fmt.Errorf("dataset %s: its roll-up %s has the name of a dataset; take another", d.Dataset.Name, other.Name)
		}
		for i := range other.Rollups {
			if slices.Contains(mine, other.Rollups[i].Name) {
				return fmt.Errorf("dataset %s: %s is the name of a roll-up of dataset %s; take another", d.Dataset.Name, other.Rollups[i].Name, name)
			}
		}
	}
	return nil
}

func (b *Book) change(ctx context.Context, kind, name string, c Change, do func(e *Entry, there bool) (bool, error)) (Entry, error) {
	if text := checkTable(name); text != "" || kind != KindDataset && kind != KindPipeline {
		return Entry{}, missing(kind, name)
	}
	d, err := b.table.Change(ctx, key(kind, name), func(d *book.Doc[Entry]) error {
		e := &d.Value
		if d.Revision == 0 {
			*e = Entry{Kind: kind, Name: name, Deleted: true}
			for _, own := range builtInEntries() {
				if own.Kind == kind && own.Name == name {
					*e = *own
				}
			}
		}
		before := *e
		changed, err := do(e, !before.Deleted)
		if err != nil {
			return err
		}
		if !changed {
			return book.ErrSame
		}
		if before.File != "" && c.File == "" && !before.Deleted {
			return answer.Conflict("%s %s is from the file %s: change it there; removed from there, it is free", kind, name, before.File)
		}
		if !before.BuiltIn && before.YAML != "" {
			e.History = append([]Version{{before.Version, before.YAML, before.Deleted, before.By, before.Why, before.At}}, before.History...)
		}
		e.By, e.Why, e.File, e.At, e.BuiltIn, e.Fault = c.By, c.Why, c.File, b.now().UTC(), false, ""
		if c.File == freed {
			e.File = ""
		}
		return e.fit()
	})
	if err != nil && !errors.Is(err, book.ErrSame) {
		return Entry{}, err
	}
	return d.Value, nil
}

// fit drops the oldest versions where there are too many, or they have become too much.
func (e *Entry) fit() error {
	e.History = e.History[:min(len(e.History), historyMax)]
	for {
		raw, err := json.Marshal(e)
		if err != nil || len(raw) <= entryMax || len(e.History) == 0 {
			return err
		}
		e.History = e.History[:len(e.History)-1]
	}
}

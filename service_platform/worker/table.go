package worker

import (
	"context"
	"errors"
	"reflect"
	"time"

	docs "github.com/naru-platform/naru/component/book"
	"github.com/naru-platform/naru/internal/answer"
)

const (
	tableName    = "workers"
	versionsKept = 20
)

// Head is a worker as it is kept: what it is now, and what it was. It is one key of the table, so it changes at once.
type Head struct {
	Record
	Version int `json:"version"`
	// Removed workers are forgotten: their messages wait for nobody.
	Removed bool `json:"removed,omitempty"`
	// Forgotten says that nothing is left of a removed one.
	Forgotten bool `json:"forgotten,omitempty"`
	// Demo is naru's own, for simulated devices.
	Demo     bool      `json:"demo,omitempty"`
	Versions []Version `json:"versions"` // the last ones, oldest first
}

// Version is what a worker was made at a time.
type Version struct {
	Number int       `json:"version"`
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Why    string    `json:"why,omitempty"`
	Change string    `json:"change"` // added, changed, paused, resumed, moved, removed
	Record Record    `json:"record"`
}

// kept is a worker as it is in the table.
type kept = docs.Doc[Head]

// book is the table of workers as this process knows it.
type book struct {
	*docs.Book[Head]
	now  func() time.Time
	most int
}

func newBook(now func() time.Time, most int, told func(name string, k *kept), broken func(key string, err error)) *book {
	return &book{now: now, most: most, Book: docs.New(docs.Options[Head]{Table: tableName, What: "worker", Owner: Name, Told: told, Broken: broken})}
}

// get gives one that is there.
func (b *book) get(name string) (*kept, error) {
	k, ok := b.Known(name)
	if !ok {
		return nil, answer.Unavailable("%s is starting", Name)
	}
	if k == nil || k.Value.Removed {
		return nil, missing(name)
	}
	return k, nil
}

func missing(name string) error {
	return answer.Missing("there is no worker %s; `naru worker list` shows those there are, and `naru worker add` adds one", name)
}

// errSame says that nothing is to be changed.
var errSame = docs.ErrSame

// change makes a change once, whoever else changes the same worker.
func (b *book) change(ctx context.Context, name, by, why string, do func(h *Head) (string, error)) (*kept, error) {
	k, err := b.Change(ctx, name, func(d *kept) error {
		h := &d.Value
		if d.Revision == 0 {
			*h = Head{Record: Record{Name: name}, Removed: true, Forgotten: true}
		}
		before, was := h.Record, h.Removed
		what, err := do(h)
		if err != nil {
			return err
		}
		if was && !h.Removed && b.count() >= b.most {
			return answer.Conflict("there are %d workers, as many as may be (workers_max)", b.most)
		}
		if what == moved || what != "" && (!reflect.DeepEqual(before, h.Record) || was != h.Removed) {
			h.Version++
			h.Versions = append(h.Versions, Version{h.Version, b.now().UTC(), by, why, what, h.Record})
			h.Versions = h.Versions[max(0, len(h.Versions)-versionsKept):]
		}
		return nil
	})
	if errors.Is(err, errSame) {
		err = nil
	}
	return k, err
}

func (b *book) count() (n int) {
	all, _, _ := b.List()
	for _, k := range all {
		if !k.Value.Removed {
			n++
		}
	}
	return n
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

// moved is a change that leaves the record as it is.
const moved = "moved"

func move(h *Head) (string, error) {
	if h.Removed {
		return "", missing(h.Name)
	}
	return moved, nil
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

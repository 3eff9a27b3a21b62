package webhook

import (
	"context"
	"errors"
	"fmt"
	"time"

	docs "github.com/naru-platform/naru/component/book"
	"github.com/naru-platform/naru/internal/answer"
)

const (
	tableName = "destinations"
	keyPrefix = "destination/"
)

// book is the table of destinations as this process knows it.
type book struct {
	*docs.Book[Destination]
	w *Webhook
}

func newBook(w *Webhook) *book {
	return &book{w: w, Book: docs.New(docs.Options[Destination]{Table: tableName, Prefix: keyPrefix, What: "destination", Owner: Name,
		Broken: func(key string, err error) {
			w.env.Log.Error("read a destination of the table; what was known of it holds", "key", key, "error", err)
		},
	})}
}

// of is a document as a destination that knows its revision.
func of(d *docs.Doc[Destination]) *Destination {
	v := d.Value
	v.revision = d.Revision
	return &v
}

// list gives the destinations by name, those that are being forgotten among them, and what is closed at the next change. It
// is not ok before the table was read.
func (b *book) list() (list []*Destination, news <-chan struct{}, ok bool) {
	all, news, ok := b.List()
	for _, d := range all {
		list = append(list, of(d))
	}
	return list, news, ok
}

// find gives a destination that is registered; nil where there is none.
func (b *book) find(ctx context.Context, name string) (*Destination, error) {
	d, err := b.Find(ctx, name)
	if err != nil || d == nil || d.Value.Deleted {
		return nil, err
	}
	return of(d), nil
}

// act is a change of a destination as somebody wants it.
type act struct {
	by, why  string
	revision uint64                                          // it must still have it; 0 is any
	do       func(d *Destination) (change string, err error) // d is nil-named where there is none
}

var errSame = docs.ErrSame

// change makes a change, once, whoever else changes the same destination.
func (b *book) change(ctx context.Context, name string, a act) (*Destination, error) {
	made, err := b.Change(ctx, name, func(doc *docs.Doc[Destination]) error {
		d := &doc.Value
		if doc.Revision == 0 {
			d.Deleted = true
		} else if d.Deleted {
			return answer.Conflict("destination %s is being forgotten; try again in a moment", name)
		}
		if a.revision != 0 && a.revision != doc.Revision {
			return &answer.Problem{Status: 412, Title: "Precondition Failed", Detail: fmt.Sprintf("destination %s was changed in the meantime: it has revision %d, not %d", name, doc.Revision, a.revision)}
		}
		fresh := d.Name == ""
		what, err := a.do(d)
		if err != nil {
			return err
		}
		now := b.w.env.Now().UTC()
		if fresh {
			if all, _, _ := b.list(); len(all) >= b.w.conf.DestinationsMax {
				return answer.Conflict("there are %d destinations, as many as may be (destinations_max)", len(all))
			}
			d.Name, d.Deleted, d.Since = name, false, now.Truncate(time.Millisecond) // as ids tell the time
		}
		d.Changes = append(d.Changes, Change{At: now, By: a.by, Why: a.why, Change: what})
		d.Changes = d.Changes[max(0, len(d.Changes)-changesMost):]
		return nil
	})
	if err != nil && !errors.Is(err, errSame) {
		return nil, err
	}
	return of(made), nil
}

// missing answers for a destination that is not there.
func missing(name string) error {
	return answer.Missing("there is no destination %s; `naru destination list` shows those there are", name)
}

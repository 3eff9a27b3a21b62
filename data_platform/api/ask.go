// How a question is answered: in its turn, with the database that is open, and whole before its first byte is sent.

package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/internal/answer"
)

// Headers of an answer with rows.
const (
	// rowsHeader is how many rows there are in it.
	rowsHeader = "Naru-Rows"
	// truncatedHeader is `true` where there were more.
	truncatedHeader = "Naru-Truncated"
)

// turns bounds how many requests of a kind are computed at once.
type turns struct {
	free chan struct{}
	kind string
}

func newTurns(n int, kind string) *turns { return &turns{make(chan struct{}, max(n, 1)), kind} }

// turnPatience is how long a request waits for its turn.
const turnPatience = 5 * time.Second

// take waits for a turn, and gives what ends it, once.
func (t *turns) take(w http.ResponseWriter, ctx context.Context) (end func(), err error) {
	late := time.NewTimer(turnPatience)
	defer late.Stop()
	select {
	case t.free <- struct{}{}:
		return sync.OnceFunc(func() { <-t.free }), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-late.C:
		w.Header().Set("Retry-After", "5")
		return nil, &answer.Problem{Status: http.StatusTooManyRequests, Title: "Too Many Requests",
			Detail: fmt.Sprintf("%d %s are computed already, and none ended for %v; ask again later, or raise queries of %s", cap(t.free), t.kind, turnPatience, Name)}
	}
}

// openPatience is how long a request waits for the database to be opened.
const openPatience = 2 * time.Second

func (a *api) store(r *http.Request) (storage.Store, error) {
	ctx, cancel := context.WithTimeout(r.Context(), openPatience)
	defer cancel()
	return a.hub.Store(ctx)
}

// open waits for a request's turn and for the database; end gives the turn back.
func (a *api) open(w http.ResponseWriter, r *http.Request, t *turns) (s storage.Store, end func(), err error) {
	if end, err = t.take(w, r.Context()); err != nil {
		return nil, nil, err
	}
	if s, err = a.store(r); err != nil {
		end()
		return nil, nil, err
	}
	return s, end, nil
}

// fault says what a store's error is to who asked.
func (a *api) fault(w http.ResponseWriter, r *http.Request, s storage.Store, err error) error {
	var refused *storage.RefusedError
	var large *tooLarge
	switch {
	case errors.As(err, &refused):
		return &answer.Problem{Status: http.StatusBadRequest, Title: http.StatusText(http.StatusBadRequest), Detail: refused.Why, Line: refused.Line, Column: refused.Column}
	case errors.Is(err, storage.ErrNoTable):
		var names []string
		if tables, err := s.Tables(r.Context()); err == nil {
			for _, t := range tables {
				names = append(names, t.Name)
				for _, u := range t.Rollups {
					if u.Name == r.PathValue("name") {
						return answer.Missing("%s is a roll-up of dataset %s; ask for it by SQL: naru data query \"SELECT * FROM %s\"", u.Name, t.Name, u.Name)
					}
				}
			}
		}
		there := "no dataset has rows yet"
		if names != nil {
			there = "there are " + strings.Join(names, ", ")
		}
		return answer.Missing("no dataset %s has rows; %s (naru data stats)", r.PathValue("name"), there)
	case errors.Is(err, storage.ErrBusy):
		w.Header().Set("Retry-After", "30")
		return &answer.Problem{Status: http.StatusTooManyRequests, Title: http.StatusText(http.StatusTooManyRequests), Detail: err.Error()}
	case errors.As(err, &large):
		remedy := "ask for less, or export a file"
		if large.most == a.answerMax {
			remedy += ", or raise answer_max of " + Name
		}
		return &answer.Problem{Status: http.StatusRequestEntityTooLarge, Title: http.StatusText(http.StatusRequestEntityTooLarge), Detail: large.Error() + "; " + remedy}
	}
	return err
}

// ask has a store give rows in one of its turns, and answers with them.
func (a *api) ask(w http.ResponseWriter, r *http.Request, t *turns, f func(s storage.Store) (*storage.Result, error)) error {
	format, err := formatOf(r)
	if err != nil {
		return err
	}
	s, end, err := a.open(w, r, t)
	if err != nil {
		return err
	}
	defer end()
	result, err := f(s)
	if err != nil {
		return a.fault(w, r, s, err)
	}
	defer result.Close()
	out := a.spool()
	defer out.close()
	n, err := write(out, format, result)
	if err != nil {
		return a.fault(w, r, s, err)
	}
	if err := result.Close(); err != nil { // before the client takes its time
		return err
	}
	end()
	a.send(w, out, format, n, result.Truncated)
	return nil
}

// held is how many bytes an answer may have that is put together in memory.
func (a *api) held() int64 { return min(a.answerMax, heldMax) }

func (a *api) spool() *spool { return &spool{dir: a.env.Dir, most: a.answerMax} }

func write(out io.Writer, f *format, result *storage.Result) (n int, err error) {
	e, err := f.begin(out, result.Columns)
	if err != nil {
		return 0, err
	}
	for row, err := range result.Rows() {
		if err != nil {
			return n, err
		}
		if err := e.row(row); err != nil {
			return n, err
		}
		n++
	}
	return n, e.end()
}

func (a *api) send(w http.ResponseWriter, out *spool, f *format, rows int, truncated bool) {
	h := w.Header()
	h.Set("Content-Type", f.media)
	h.Set("Vary", "Accept")
	h.Set(rowsHeader, strconv.Itoa(rows))
	if truncated {
		h.Set(truncatedHeader, "true")
	}
	out.send(w)
}

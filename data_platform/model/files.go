package model

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/naru-platform/naru/component/book"
)

// ReadDir parses the files of a folder, by their names: *.yaml, *.yml and *.json that do not begin with a dot. Datasets come
// before pipelines. What is wrong with one file concerns no other; the errors are joined.
func ReadDir(dir string) ([]Document, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var docs []Document
	var errs []error
	for _, f := range list {
		file := filepath.Join(dir, f.Name())
		if f.IsDir() || strings.HasPrefix(f.Name(), ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)) {
			continue
		}
		raw, err := os.ReadFile(file)
		if err == nil {
			var of []Document
			of, err = Parse(file, raw)
			for _, d := range of {
				if i := slices.IndexFunc(docs, func(o Document) bool { return o.Kind() == d.Kind() && o.Name() == d.Name() }); i >= 0 {
					errs = append(errs, fmt.Errorf("%s:%d: %s %s is in %s already", file, d.Line, d.Kind(), d.Name(), docs[i].File))
					continue
				}
				docs = append(docs, d)
			}
		}
		errs = append(errs, err)
	}
	slices.SortStableFunc(docs, func(a, b Document) int { return strings.Compare(a.Kind(), b.Kind()) })
	return docs, errors.Join(errs...)
}

// Try tries a pipeline on no message in particular. A *Fault says that it cannot be done with any; another error that it could not be tried.
type Try func(ctx context.Context, d *Dataset, p *Pipeline) error

// Fault is why a pipeline cannot be done.
type Fault struct{ Text string }

// Error is the text.
func (f *Fault) Error() string { return f.Text }

// tried is why what stands in a file cannot be done.
type tried struct {
	text    string
	dataset *Dataset
	err     error
}

// try tries a document that is not in force as it is, and one that cannot be done only once.
func (b *Book) try(ctx context.Context, d *Document, try Try, known map[string]tried) error {
	p := d.Pipeline
	if p == nil {
		return nil
	}
	in := b.Set().Datasets[p.Dataset]
	if e, err := b.Entry(d.Kind(), d.Name()); in == nil || err == nil && !e.Deleted && e.YAML == d.Text {
		return nil
	}
	if was := known[d.Name()]; was.text == d.Text && was.dataset == in {
		return was.err
	}
	err := try(ctx, in, p)
	var no *Fault
	if errors.As(err, &no) {
		known[d.Name()] = tried{d.Text, in, err}
	}
	return err
}

// Files keeps what the files of a folder say in force, until ctx is done, by one process at a time; owner tells this one from
// others. What is wrong, also a pipeline that cannot be done, is logged once, and leaves in force what was. A document whose file is gone stays in force, and is
// free to be changed otherwise.
func (b *Book) Files(ctx context.Context, dir, owner string, try Try) {
	told, known := map[string]string{}, map[string]tried{}
	select {
	case <-b.synced:
	case <-ctx.Done():
		return
	}
	book.Keep(ctx, b.bus, "datasets/files", owner, func(ctx context.Context) {
		b.look(ctx, dir, told, func(d *Document) error { return b.try(ctx, d, try, known) })
	})
}

func (b *Book) look(ctx context.Context, dir string, told map[string]string, try func(d *Document) error) {
	tell := func(file string, err error) {
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != "" && text != told[file] && ctx.Err() == nil {
			b.log.Error("a file with datasets or pipelines is not in force as it is", "file", file, "error", err)
		}
		told[file] = text
	}
	docs, err := ReadDir(dir)
	tell(dir, err)
	for i := range docs {
		err := try(&docs[i])
		if err == nil {
			_, err = b.Put(ctx, &docs[i], Change{By: "file", File: docs[i].File})
		}
		tell(docs[i].File+" "+docs[i].Name(), err)
	}
	if err != nil || len(docs) == 0 && ctx.Err() != nil {
		return // what cannot be read may have the document of another file
	}
	for _, e := range b.Entries() {
		if e.File == "" || e.Deleted || filepath.Dir(e.File) != filepath.Clean(dir) ||
			slices.ContainsFunc(docs, func(d Document) bool { return d.Kind() == e.Kind && d.Name() == e.Name }) {
			continue
		}
		_, err := b.change(ctx, e.Kind, e.Name, Change{By: "file", Why: "its file is gone", File: freed}, func(*Entry, bool) (bool, error) { return true, nil })
		tell(e.File, err)
	}
}

// freed is the file of a change after which there is none.
const freed = "-"

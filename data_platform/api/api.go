// Package api answers by HTTP what datasets and pipelines there are, and takes changes of them.
package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/internal/answer"
)

// Name is the component's name.
const Name = "data_platform.api"

// Spec declares the component.
var Spec = component.Define(component.Spec{
	Name:  Name,
	Doc:   "what datasets and pipelines there are, and their changes, by HTTP",
	State: component.None,
}, Config{}, New)

// Config is the component's configuration; there is nothing to set.
type Config struct{}

type api struct{ book *model.Book }

// New builds the component.
func New(env component.Env, _ Config) (*component.Part, error) {
	a := &api{model.NewBook(env.Bus, env.Log, env.Now)}
	return &component.Part{Run: a.book.Serve, Routes: []component.Route{
		{Pattern: "GET /api/v1/data/models", Handler: answer.Func(a.list)},
		{Pattern: "GET /api/v1/data/models/{kind}/{name}", Handler: answer.Func(a.show)},
		{Pattern: "GET /api/v1/data/models/dataset/{name}/schema", Handler: answer.Func(a.schema)},
		{Pattern: "PUT /api/v1/data/models", Handler: answer.Func(a.put)},
		{Pattern: "DELETE /api/v1/data/models/{kind}/{name}", Handler: answer.Func(a.remove)},
	}}, nil
}

func (a *api) synced() error {
	select {
	case <-a.book.Synced():
		return nil
	default:
		return answer.Unavailable("%s is starting", Name)
	}
}

func (a *api) list(http.ResponseWriter, *http.Request) (any, error) {
	if err := a.synced(); err != nil {
		return nil, err
	}
	list := []model.Entry{}
	for _, e := range a.book.Entries() {
		if e.History = nil; !e.Deleted {
			list = append(list, e)
		}
	}
	return list, nil
}

func (a *api) show(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := a.synced(); err != nil {
		return nil, err
	}
	return a.book.Entry(r.PathValue("kind"), r.PathValue("name"))
}

func (a *api) schema(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := a.synced(); err != nil {
		return nil, err
	}
	if _, err := a.book.Entry(model.KindDataset, r.PathValue("name")); err != nil {
		return nil, err
	}
	d := a.book.Set().Datasets[r.PathValue("name")]
	if d == nil {
		return nil, answer.Unavailable("dataset %s is not in force here", r.PathValue("name"))
	}
	return d.JSONSchema(), nil
}

const bodyMax = 1 << 20

// put brings all documents of the body in force, one after the other, or with `dry` only says whether they would be.
func (a *api) put(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := a.synced(); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyMax))
	if err != nil {
		return nil, answer.Bad(fmt.Errorf("read the documents: %w; they may have %d bytes", err, bodyMax))
	}
	file := r.FormValue("file")
	if file == "" {
		file = "body"
	}
	docs, err := model.Parse(file, raw)
	if err != nil {
		return nil, answer.Bad(err)
	}
	changed := []model.Entry{}
	for i := range docs {
		d := &docs[i]
		if r.FormValue("dry") != "" {
			if p := d.Pipeline; p != nil && slices.ContainsFunc(docs[:i], func(o model.Document) bool { return o.Kind() == model.KindDataset && o.Name() == p.Dataset }) {
				continue // its dataset is in the file before it
			}
			if err := a.book.Dry(r.Context(), d); err != nil {
				return nil, answer.Conflict("%s:%d: %s", file, d.Line, err)
			}
			continue
		}
		e, err := a.book.Put(r.Context(), d, model.Change{By: by(r), Why: r.FormValue("why")})
		if err != nil {
			var p *answer.Problem
			if errors.As(err, &p) && i > 0 {
				return nil, &answer.Problem{Status: p.Status, Title: p.Title, Detail: fmt.Sprintf("%s (what stands before line %d of %s is in force)", p.Detail, d.Line, file)}
			}
			return nil, err
		}
		e.History = nil
		changed = append(changed, e)
	}
	return changed, nil
}

func (a *api) remove(_ http.ResponseWriter, r *http.Request) (any, error) {
	if err := a.synced(); err != nil {
		return nil, err
	}
	return a.book.Remove(r.Context(), r.PathValue("kind"), r.PathValue("name"), model.Change{By: by(r), Why: r.FormValue("why")})
}

func by(r *http.Request) string {
	if who := r.FormValue("by"); who != "" {
		return who
	}
	return "http"
}

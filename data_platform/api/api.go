// Package api answers by HTTP: what datasets and pipelines there are, and their changes; and their rows, the latest of a
// device, those of a time, over windows, by SQL that only reads, as a file, and in the words of Grafana.
//
// Here are the models; in datasets.go what tables there are, in rows.go what is asked of rows, in ask.go how that is answered, in format.go and
// spool.go how rows are written and held, in grafana.go the rest.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// Name is the component's name.
const Name = "data_platform.api"

// Config is the component's configuration.
type Config struct {
	// Queries is how many queries of SQL, aggregates and the like are computed at once.
	Queries int `json:"queries"`
	// Timeout is how long a query may take where it does not say, and TimeoutMax what it may say.
	Timeout    string `json:"timeout"`
	TimeoutMax string `json:"timeout_max"`
	// AnswerMax is how many bytes an answer may have.
	AnswerMax int64 `json:"answer_max"`
}

// With declares the component, which asks the hub's database.
func With(hub *storage.Hub, try model.Try) component.Spec {
	return component.Define(component.Spec{
		Name:  Name,
		Doc:   "what datasets and pipelines there are, their changes, and their rows, by HTTP",
		State: component.None,
	}, Config{Queries: 4, Timeout: "30s", TimeoutMax: "5m", AnswerMax: 256 << 20}, func(env component.Env, c Config) (*component.Part, error) {
		return build(env, c, hub, try)
	})
}

type api struct {
	env                 component.Env
	book                *model.Book
	hub                 *storage.Hub
	try                 model.Try
	timeout, timeoutMax time.Duration
	answerMax           int64
	heavy, light, files *turns
}

// lightMax is how many requests for a few rows are answered at once. With those of the queries they are fewer than the
// connections that the database may have, so that the one that loads finds its own.
const lightMax = 6

func build(env component.Env, c Config, hub *storage.Hub, try model.Try) (*component.Part, error) {
	a := &api{env: env, book: model.NewBook(env.Bus, env.Log, env.Now), hub: hub, try: try, answerMax: c.AnswerMax,
		heavy: newTurns(c.Queries, "queries"), light: newTurns(lightMax, "requests"), files: newTurns(1, "exports")}
	var err error
	if a.timeout, err = time.ParseDuration(c.Timeout); err != nil || a.timeout <= 0 {
		return nil, fmt.Errorf("timeout: %q: want a time such as 30s", c.Timeout)
	}
	if a.timeoutMax, err = time.ParseDuration(c.TimeoutMax); err != nil || a.timeoutMax < a.timeout {
		return nil, fmt.Errorf("timeout_max: %q: want a time such as 5m, and no less than timeout", c.TimeoutMax)
	}
	if c.Queries < 1 || c.Queries > queriesMax {
		return nil, fmt.Errorf("queries: %d: want 1 to %d", c.Queries, queriesMax)
	}
	if c.AnswerMax < 1<<20 {
		return nil, fmt.Errorf("answer_max: %d: want 1048576 at least", c.AnswerMax)
	}
	routes := []component.Route{
		{Pattern: "GET /api/v1/data/models", Handler: answer.Func(a.list)},
		{Pattern: "GET /api/v1/data/models/{kind}/{name}", Handler: answer.Func(a.show)},
		{Pattern: "GET /api/v1/data/models/dataset/{name}/schema", Handler: answer.Func(a.schema)},
		{Pattern: "GET /api/v1/data/models/asyncapi.json", Handler: answer.Func(a.asyncAPI)},
		{Pattern: "PUT /api/v1/data/models", Handler: answer.Func(a.put)},
		{Pattern: "DELETE /api/v1/data/models/{kind}/{name}", Handler: answer.Func(a.remove)},
	}
	return &component.Part{Run: a.run, Routes: append(append(routes, a.rows()...), a.grafana()...)}, nil
}

func (a *api) run(ctx context.Context, ready func()) error {
	if dir, err := a.env.Dir(); err == nil {
		storage.Sweep(dir, exportDir)
	}
	return a.book.Serve(ctx, ready)
}

// queriesMax leaves connections to the database for what loads.
const queriesMax = 8

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

// asyncAPI is what is said for the datasets in force, as an AsyncAPI document.
func (a *api) asyncAPI(http.ResponseWriter, *http.Request) (any, error) {
	if err := a.synced(); err != nil {
		return nil, err
	}
	var contracts []message.Contract
	set := a.book.Set()
	for _, name := range slices.Sorted(maps.Keys(set.Datasets)) {
		contracts = append(contracts, set.Datasets[name].Contract())
	}
	c, err := message.NewCatalog(contracts...)
	if err != nil {
		return nil, err
	}
	raw, err := catalog.AsyncAPI(c, "1")
	return json.RawMessage(raw), err
}

const bodyMax = 1 << 20

// put brings all documents of the body in force, one after the other, or with `dry` only says whether they would be. Nothing is
// changed where a pipeline's SQL fails with any row.
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
	if err := a.tries(r.Context(), file, docs); err != nil {
		return nil, err
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

// tries tries the pipelines of documents, with their datasets as they are there, or else in force.
func (a *api) tries(ctx context.Context, file string, docs []model.Document) error {
	for i := range docs {
		p := docs[i].Pipeline
		if p == nil {
			continue
		}
		d := a.book.Set().Datasets[p.Dataset]
		for _, o := range docs {
			if o.Dataset != nil && o.Dataset.Name == p.Dataset {
				d = o.Dataset
			}
		}
		if d == nil {
			continue // which is refused in its place
		}
		var no *model.Fault
		if err := a.try(ctx, d, p); err != nil && !errors.As(err, &no) {
			return err
		} else if err != nil {
			return answer.Conflict("%s:%d: %s; nothing was changed", file, docs[i].Line, err)
		}
	}
	return nil
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

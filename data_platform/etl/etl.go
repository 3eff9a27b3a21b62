// Package etl makes messages rows: of each dataset a child hears what is said for it, reads rows out of it as the model has
// them, has the pipeline's steps done, and loads what comes out in one transaction with its place in the log. So a message is
// one row, whatever dies in between, and a dataset that fails or whose pipeline is wrong keeps its own messages waiting, and
// no others.
//
// Here is the component with its children, in loader.go how a child decides the fates of many messages.
package etl

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/twins"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// Name is the component's name.
const Name = "data_platform.etl"

// storedEvery is how long after a fault the database is asked again what it has.
const storedEvery = 5 * time.Second

// Config is the component's configuration.
type Config struct {
	// Gather is for how long messages are gathered for one transaction, and GatherMax how many at most.
	Gather    string `json:"gather"`
	GatherMax int    `json:"gather_max"`
	// Memory is what the steps of all pipelines together may take.
	Memory string `json:"memory"`
	// Models is a folder with datasets and pipelines in files, *.yaml, *.yml and *.json; none where empty.
	Models string `json:"models"`
}

// With declares the component, which loads into the hub's database.
func With(hub *storage.Hub) component.Spec {
	return component.Define(component.Spec{
		Name:         Name,
		Doc:          "what is said for datasets becomes their rows, each message once",
		ChildrenHear: []message.Pattern{"data_platform.>"},
		Says:         []message.Pattern{serviceplatform.TwinWanted},
		Required:     true, // a reading that is not a row yet would be missing for good
	}, Config{Gather: "200ms", GatherMax: 8192, Memory: "256MiB"}, func(env component.Env, c Config) (*component.Part, error) {
		return build(env, c, hub)
	})
}

// etl is the running component.
type etl struct {
	env    component.Env
	conf   Config
	gather time.Duration
	hub    *storage.Hub
	book   *model.Book
	twins  *twins.Twins

	mu      sync.Mutex
	scratch *storage.Scratch // made when the first pipeline wants it

	testing chan struct{} // has room for one trial

	rows, duplicates, late *prometheus.CounterVec
	standings              standings
}

func build(env component.Env, c Config, hub *storage.Hub) (*component.Part, error) {
	gather, err := time.ParseDuration(c.Gather)
	switch {
	case err != nil || gather < 0 || gather > 10*time.Second:
		return nil, fmt.Errorf("gather: %q: want a time such as 50ms, 10s at most", c.Gather)
	case c.GatherMax < 1:
		return nil, fmt.Errorf("gather_max: %d: want one at least", c.GatherMax)
	}
	if c.Models != "" {
		if c.Models, err = filepath.Abs(c.Models); err != nil {
			return nil, fmt.Errorf("models: %w", err)
		}
	}
	e := &etl{env: env, conf: c, gather: gather, hub: hub, book: model.NewBook(env.Bus, env.Log, env.Now), twins: twins.New(env), testing: make(chan struct{}, 1), standings: standings{now: env.Now}}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"dataset"})
	}
	e.rows = counter("naru_etl_rows_total", "Rows that were loaded, by dataset.")
	e.duplicates = counter("naru_etl_duplicates_total", "Messages whose key was there already, by dataset.")
	e.late = counter("naru_etl_late_total", "Rows that came too late for the roll-ups, by dataset.")
	if env.Metrics != nil {
		env.Metrics.MustRegister(e.rows, e.duplicates, e.late, &e.standings)
	}
	return &component.Part{Run: e.run, Close: e.close, Routes: []component.Route{
		{Pattern: "POST /api/v1/data/etl/test", Handler: answer.Func(e.serveTest)},
	}}, nil
}

// run follows the table of datasets, and has a child for each of them.
func (e *etl) run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- e.book.Run(ctx) }()
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { e.twins.Run(ctx) })
	if e.conf.Models != "" {
		group.Go(func() { e.book.Files(ctx, e.conf.Models, e.env.Node, Tried) })
	}
	end := func(err error) error {
		cancel()
		<-done
		return err
	}
	select {
	case <-e.book.Synced():
	case err := <-done:
		cancel()
		return err
	}
	stored := e.stored(ctx)
	known := map[string]bool{}
	told := false
	for {
		news := e.book.News()
		if err := e.declare(known); err != nil {
			return end(err)
		}
		if !told {
			ready()
			told = true
		}
		select {
		case <-ctx.Done():
			return end(nil)
		case err := <-done:
			cancel()
			return err
		case <-news:
		case names := <-stored:
			maps.Copy(known, names)
			stored = nil
		}
	}
}

// stored gives, once the database is open and answers, the datasets that it has.
func (e *etl) stored(ctx context.Context) chan map[string]bool {
	c := make(chan map[string]bool, 1)
	ask := func() ([]storage.Table, error) {
		s, err := e.hub.Store(ctx)
		if err != nil {
			return nil, err
		}
		return s.Tables(ctx)
	}
	go func() {
		tables, err := ask()
		for ; err != nil && ctx.Err() == nil; tables, err = ask() {
			e.env.Log.Warn("ask which datasets are stored; trying again", "in", storedEvery, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(storedEvery):
			}
		}
		names := map[string]bool{}
		for _, t := range tables {
			names[t.Name] = true
		}
		c <- names
	}()
	return c
}

// declare declares the children: of the datasets in force, and of the known ones, which were in force or are stored still:
// what is on its way to them is to have a fate. Those in force are known from now on.
func (e *etl) declare(known map[string]bool) error {
	for name := range e.book.Set().Datasets {
		known[name] = true
	}
	var children []component.Child
	for _, name := range slices.Sorted(maps.Keys(known)) {
		doc := "what is said for dataset " + name + " becomes its rows"
		children = append(children, component.Child{Name: name, Doc: doc, Hears: []message.Pattern{message.Pattern(message.DataPlatform + "." + name + ".>")},
			Gather: e.gather, GatherMax: e.conf.GatherMax, Retry: component.Retry{Most: 5 * time.Second}, From: component.Oldest,
			Build: func(env component.Env) (*component.Part, error) {
				l := &loader{etl: e, env: env, name: name, sources: map[storage.Source]*source{}, stand: e.standings.of(name)}
				return &component.Part{HandleAll: l.handle}, nil
			}})
	}
	e.standings.keep(known)
	return e.env.Children(children)
}

// scratches is the one scratch of all pipelines, made when the first one wants it.
func (e *etl) scratches(ctx context.Context) (*storage.Scratch, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.scratch == nil {
		s, err := storage.NewScratch(context.WithoutCancel(ctx), storage.Options{Memory: e.conf.Memory})
		if err != nil {
			return nil, err
		}
		e.scratch = s
	}
	return e.scratch, nil
}

func (e *etl) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.scratch == nil {
		return nil
	}
	s := e.scratch
	e.scratch = nil
	return s.Close()
}

// Table is a dataset as the database has it.
func Table(d *model.Dataset) storage.Table {
	t := storage.Table{Name: d.Name, Key: slices.Clone(d.Key), Late: d.TakesLate(), Retention: d.Retention.Std()}
	for i := range d.Fields {
		t.Columns = append(t.Columns, storage.Column{Name: d.Fields[i].Name, Type: storage.Type(d.Fields[i].Type)})
	}
	for _, r := range d.Rollups {
		to := storage.Rollup{Name: r.Name, Every: r.Every.Std(), By: slices.Clone(r.By)}
		for i := range d.Fields {
			if f := r.Values[d.Fields[i].Name]; len(f) > 0 {
				to.Values = append(to.Values, storage.RollupValue{Column: d.Fields[i].Name, Functions: slices.Clone(f)})
			}
		}
		t.Rollups = append(t.Rollups, to)
	}
	return t
}

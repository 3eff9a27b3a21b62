package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
)

// Name is the component's.
const Name = "data_platform.storage"

// Config is the component's configuration.
type Config struct {
	// URL is a PostgreSQL database, `postgres://user@host/database`; without one it is DuckDB, in a file of its own.
	URL string `json:"url"`
	// PasswordFile holds the password for URL. It is read for each connection, so that it may change.
	PasswordFile string `json:"password_file"`
	// Schema is naru's own in that database.
	Schema string `json:"schema"`
	// Connections is how many there may be to that database; a third of them are for loading.
	Connections int `json:"connections"`
	// Memory is what DuckDB may take, such as `512MiB`.
	Memory string `json:"memory"`
	// Threads is how many processors DuckDB may use for one statement.
	Threads int `json:"threads"`
	// TrimEvery is how often rows beyond their retention are deleted.
	TrimEvery string `json:"trim_every"`
}

// Hub is where the components of one process find the database that the storage component has opened.
type Hub struct {
	mu     sync.Mutex
	store  Store
	opened chan struct{} // closed while store is there
	fault  error         // why it is not
}

// NewHub makes a hub whose database is not open yet.
func NewHub() *Hub { return &Hub{opened: make(chan struct{})} }

// Store waits until the database is open; where ctx ends before, the error tells what keeps it from being so.
func (h *Hub) Store(ctx context.Context) (Store, error) {
	for {
		h.mu.Lock()
		store, opened, fault := h.store, h.opened, h.fault
		h.mu.Unlock()
		if store != nil {
			return store, nil
		}
		select {
		case <-opened:
		case <-ctx.Done():
			return nil, answer.Unavailable("the database is not open: %v", cmp.Or(fault, errors.New("data_platform.storage is not running in this process, or is starting")))
		}
	}
}

// Set gives the hub a database, or with nil takes it away; for the component, and for tests without it.
func (h *Hub) Set(s Store, fault error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.store
	h.store, h.fault = s, fault
	switch {
	case was == nil && s != nil:
		close(h.opened)
	case was != nil && s == nil:
		h.opened = make(chan struct{})
	}
}

// With is the component that opens the hub's database, and deletes what is beyond its retention.
func With(h *Hub) component.Spec {
	return component.Define(component.Spec{
		Name: Name,
		Doc:  "Keeps the rows of datasets in DuckDB or PostgreSQL, for as long as their models say.",
	}, Config{Memory: "512MiB", Threads: 1, TrimEvery: "1m", Schema: "naru", Connections: 10}, func(e component.Env, c Config) (*component.Part, error) {
		if c.Threads < 1 {
			return nil, fmt.Errorf("threads: %d: want one at least", c.Threads)
		}
		every, err := time.ParseDuration(c.TrimEvery)
		if err != nil || every <= 0 {
			return nil, fmt.Errorf("trim_every: %q: want a time such as 1m", c.TrimEvery)
		}
		if c.URL != "" {
			o := c.postgres(e)
			if _, err := o.config(); err != nil {
				return nil, err
			}
		}
		return &component.Part{Run: func(ctx context.Context, ready func()) error { return run(ctx, ready, e, c, every, h) }}, nil
	})
}

func run(ctx context.Context, ready func(), e component.Env, c Config, every time.Duration, h *Hub) error {
	store, err := open(ctx, ready, e, c, h)
	if err != nil {
		h.Set(nil, err)
		return err
	}
	if store == nil { // the component stops
		return nil
	}
	defer store.Close()
	h.Set(store, nil)
	defer h.Set(nil, errors.New("data_platform.storage has stopped"))
	e.Log.Info("the database is open", "engine", store.Engine())
	ready()
	e.Fault("")
	tick, look := time.NewTicker(every), time.NewTicker(lookEvery)
	defer tick.Stop()
	defer look.Stop()
	fault := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			trim(ctx, e.Log, store, e.Now())
		case <-look.C:
			fault = lookAfter(ctx, e, store, fault)
		}
	}
}

const (
	openMost  = 5 * time.Second // between two tries to open a database whose server is away
	lookEvery = 5 * time.Second // for whether it is there still
)

// open opens the database. Where its server is away it waits, and says so: messages wait in the log meanwhile, and the
// rest of the process has its work. It gives nil where the component stops before.
func open(ctx context.Context, ready func(), e component.Env, c Config, h *Hub) (Store, error) {
	dir, err := e.Dir()
	if err != nil {
		return nil, err
	}
	if c.URL == "" {
		return OpenDuck(ctx, filepath.Join(dir, "data.duckdb"), Options{Memory: c.Memory, Threads: c.Threads})
	}
	o := c.postgres(e)
	o.Dir = filepath.Join(dir, "exports")
	ready()
	said := ""
	for wait := openMost / 16; ; wait = min(2*wait, openMost) {
		store, err := OpenPostgres(ctx, o)
		if err == nil {
			return store, nil
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		h.Set(nil, err)
		e.Fault(err.Error())
		if said != err.Error() {
			said = err.Error()
			e.Log.Warn("the database cannot be opened; it is tried again, and rows wait in the log meanwhile", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(wait):
		}
	}
}

func (c *Config) postgres(e component.Env) PostgresOptions {
	return PostgresOptions{URL: c.URL, PasswordFile: c.PasswordFile, Schema: c.Schema, Connections: c.Connections, Log: e.Log}
}

// lookAfter tells operators when a database's server goes away, and when it is back. It gives what is told now.
func lookAfter(ctx context.Context, e component.Env, s Store, told string) string {
	p, ok := s.(interface {
		Ping(ctx context.Context) error
	})
	if !ok {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	now := ""
	if err := p.Ping(ctx); err != nil {
		now = err.Error()
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return told
	}
	e.Fault(now)
	switch {
	case now != "" && told == "":
		e.Log.Warn("the database is away; rows wait in the log meanwhile", "error", now)
	case now == "" && told != "":
		e.Log.Info("the database is back", "engine", s.Engine())
	}
	return now
}

// trim keeps the retention of all tables. What fails is tried again the next time.
func trim(ctx context.Context, log *slog.Logger, s Store, now time.Time) {
	tables, err := s.Tables(ctx)
	if err != nil {
		log.Warn("keep retention", "error", err)
	}
	for _, t := range tables {
		if t.Retention == 0 {
			continue
		}
		before := now.Add(-t.Retention)
		if g, ok := s.(interface{ Grain(t *Table) time.Duration }); ok { // it forgets by the piece
			before = time.Unix(bucketOf(before, g.Grain(&t)), 0)
		}
		switch n, err := s.Trim(ctx, t.Name, before); {
		case err != nil && ctx.Err() == nil:
			log.Warn("keep retention", "dataset", t.Name, "error", err)
		case n > 0:
			log.Info("rows beyond their retention are deleted", "dataset", t.Name, "rows", n)
		}
	}
}

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
	// PasswordFile holds the password for URL.
	PasswordFile string `json:"password_file"`
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
	}, Config{Memory: "512MiB", Threads: 1, TrimEvery: "1m"}, func(e component.Env, c Config) (*component.Part, error) {
		if c.Threads < 1 {
			return nil, fmt.Errorf("threads: %d: want one at least", c.Threads)
		}
		every, err := time.ParseDuration(c.TrimEvery)
		if err != nil || every <= 0 {
			return nil, fmt.Errorf("trim_every: %q: want a time such as 1m", c.TrimEvery)
		}
		return &component.Part{Run: func(ctx context.Context, ready func()) error { return run(ctx, ready, e, c, every, h) }}, nil
	})
}

func run(ctx context.Context, ready func(), e component.Env, c Config, every time.Duration, h *Hub) error {
	store, err := open(ctx, e, c)
	if err != nil {
		h.Set(nil, err)
		return err
	}
	defer store.Close()
	h.Set(store, nil)
	defer h.Set(nil, errors.New("data_platform.storage has stopped"))
	e.Log.Info("the database is open", "engine", store.Engine())
	ready()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			trim(ctx, e.Log, store, e.Now())
		}
	}
}

func open(ctx context.Context, e component.Env, c Config) (Store, error) {
	if c.URL != "" {
		return nil, errors.New("url: PostgreSQL is not there yet; leave url out, and rows are kept in DuckDB")
	}
	dir, err := e.Dir()
	if err != nil {
		return nil, err
	}
	return OpenDuck(ctx, filepath.Join(dir, "data.duckdb"), Options{Memory: c.Memory, Threads: c.Threads})
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
		switch n, err := s.Trim(ctx, t.Name, now.Add(-t.Retention)); {
		case err != nil && ctx.Err() == nil:
			log.Warn("keep retention", "dataset", t.Name, "error", err)
		case n > 0:
			log.Info("rows beyond their retention are deleted", "dataset", t.Name, "rows", n)
		}
	}
}

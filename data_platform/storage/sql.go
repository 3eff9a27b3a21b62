// What DuckDB and PostgreSQL say alike.

package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// quote makes a name an identifier, and text a literal.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
func text(s string) string     { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func join(list []int) string {
	var b strings.Builder
	for i, n := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(n))
	}
	return b.String()
}

// names are the columns' names, as a list.
func (t *Table) names(of string) string {
	var list []string
	for _, c := range t.all() {
		list = append(list, of+quote(c.Name))
	}
	return strings.Join(list, ", ")
}

// tables is what was ensured, in memory; the database has it too.
type tables struct {
	mu     sync.Mutex
	byName map[string]*Table
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func (s *tables) read(ctx context.Context, q querier, d dialect) error {
	rows, err := q.QueryContext(ctx, "SELECT shape FROM "+d.own+"tables")
	if err != nil {
		return err
	}
	defer rows.Close()
	all := map[string]*Table{}
	for rows.Next() {
		var shape string
		t := new(Table)
		if err := rows.Scan(&shape); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(shape), t); err != nil {
			return fmt.Errorf("read what tables there are: %w", err)
		}
		all[t.Name] = t
	}
	s.mu.Lock()
	s.byName = all
	s.mu.Unlock()
	return rows.Err()
}

func (s *tables) get(name string) (*Table, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.byName[name]
	return t, ok
}

func (s *tables) put(t Table) {
	t.Columns, t.Key, t.Rollups = slices.Clone(t.Columns), slices.Clone(t.Key), slices.Clone(t.Rollups) // the caller's may change
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byName[t.Name] = &t
}

func (s *tables) list() (list []Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.byName {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b Table) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// owners tells for each name of a table or roll-up whose it is.
func (s *tables) owners() map[string]string {
	m := map[string]string{}
	for _, t := range s.list() {
		m[t.Name] = t.Name
		for _, r := range t.Rollups {
			m[r.Name] = t.Name
		}
	}
	return m
}

// dialect is what the engines say differently.
type dialect struct {
	own    string // what the names of naru's own tables begin with
	types  map[Type]string
	kept   map[string]string // how columns of the system are kept, by name, where that is said
	bucket func(every time.Duration, column string) string
	// The others may be nil, for what is plain.
	value  func(function string, c Column) string // what an aggregate of column t.c is
	equal  func(c Column) string                  // whether the column is equal in t and s, where it is part of a key
	again  string                                 // what else tells that a message is there
	create func(t *Table) []string                // statements that make a table of rows
	after  func(t *Table) []string                // statements once the table and its roll-ups are as they are to be
}

package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/duckdb/duckdb-go/v2"
)

// Scratch computes with rows in memory, by DuckDB's SQL, also where rows go to another database. It keeps nothing, and
// reaches neither files nor the network. Any number of goroutines may use it; they take turns.
type Scratch struct {
	mu sync.Mutex
	db *sql.DB
}

// NewScratch makes one.
func NewScratch(ctx context.Context, o Options) (*Scratch, error) {
	c, err := duckdb.NewConnector("", nil)
	if err != nil {
		return nil, err
	}
	if o.Memory == "" {
		o.Memory = "256MiB"
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(1)
	for _, s := range []string{
		"SET TimeZone = 'UTC'", "SET memory_limit = " + text(o.Memory), "SET threads = " + strconv.Itoa(max(o.Threads, 1)),
		"SET temp_directory = ''", "SET autoinstall_known_extensions = false", "SET autoload_known_extensions = false",
		"SET enable_external_access = false", "SET lock_configuration = true",
	} {
		if _, err := db.ExecContext(ctx, s); err != nil {
			return nil, errors.Join(fmt.Errorf("open DuckDB in memory: %s: %w", s, err), db.Close())
		}
	}
	return &Scratch{db: db}, nil
}

// Close ends it.
func (s *Scratch) Close() error { return s.db.Close() }

// StepError is a step that cannot be done.
type StepError struct {
	Step int // from 1
	Err  error
}

// Error tells which and why.
func (e *StepError) Error() string { return fmt.Sprintf("step %d: %v", e.Step, e.Err) }

// Unwrap gives the reason.
func (e *StepError) Unwrap() error { return e.Err }

// Steps does one SELECT after the other, each over the table `input`, which the first one finds as the rows with their
// system columns, and each other one as what the step before gave. The columns and rows are what the last one gives.
// What the steps are to blame for is a *StepError.
func (s *Scratch) Steps(ctx context.Context, columns []Column, rows []Row, steps []string) ([]Column, [][]any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.db.Conn(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	t := &Table{Name: "naru_input", Columns: columns}
	if _, err := c.ExecContext(ctx, "CREATE OR REPLACE TEMP TABLE naru_input ("+columnsOf(t, dialect{types: duckTypes})+")"); err != nil {
		return nil, nil, err
	}
	defer func() {
		_, _ = c.ExecContext(context.WithoutCancel(ctx), "DROP TABLE IF EXISTS naru_input")
	}()
	if err := appendRows(c, "temp", "naru_input", t, rows, false); err != nil {
		return nil, nil, err
	}
	chain := []string{"SELECT * FROM naru_input"}
	for i, step := range steps {
		if err := oneSelect(ctx, c, step); err != nil {
			return nil, nil, &StepError{i + 1, err}
		}
		step = strings.TrimRight(strings.TrimSpace(step), "; \n\t")
		chain = append(chain, "WITH input AS (\n"+chain[i]+"\n) SELECT * FROM (\n"+step+"\n)")
	}
	out, list, err := s.run(ctx, c, chain[len(steps)])
	if err == nil || ctx.Err() != nil {
		return out, list, err
	}
	for i := 1; i < len(steps); i++ { // to say which one it is
		if _, _, first := s.run(ctx, c, chain[i]); first != nil {
			return nil, nil, &StepError{i, first}
		}
	}
	return nil, nil, &StepError{len(steps), err}
}

// resultMax is how many rows the steps may make of a batch: an endless step must not take the memory of the process.
const resultMax = 1_000_000

func (s *Scratch) run(ctx context.Context, c *sql.Conn, statement string) ([]Column, [][]any, error) {
	rows, err := c.QueryContext(ctx, statement)
	if err != nil {
		return nil, nil, err
	}
	r, err := new(duck).result(rows, Limits{Rows: resultMax, Timeout: time.Hour}, func() error { return nil }, func(err error) error { return err })
	if err != nil {
		return nil, nil, err
	}
	var list [][]any
	for row, err := range r.Rows() {
		if err != nil {
			return nil, nil, err
		}
		list = append(list, append([]any(nil), row...))
	}
	if r.Truncated {
		return nil, nil, fmt.Errorf("it gives more than %d rows", resultMax)
	}
	return r.Columns, list, nil
}

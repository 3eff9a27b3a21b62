package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/duckdb/duckdb-go/v2"
)

// Scratch computes with rows in memory, by DuckDB's SQL, also where rows go to another database. It keeps nothing, and
// reaches neither files nor the network. Any number of goroutines may use it, side by side: one that computes for long keeps
// the others' memory small, and not them waiting.
type Scratch struct {
	options Options
	most    int // resultMax

	mu     sync.RWMutex // guards what follows
	db     *sql.DB      // made anew where DuckDB has given up on it
	share  int64        // of the process's memory
	closed bool
	plans  map[string]*plan // by columns and steps

	// turn is held by who has a statement done, and alone by a row that there was no memory for beside the others'.
	turn sync.RWMutex
}

// plansMax is how many plans are kept; where there are more, those of before are forgotten, and made again.
const plansMax = 256

// NewScratch makes one.
func NewScratch(ctx context.Context, o Options) (*Scratch, error) {
	if o.Memory == "" {
		o.Memory = "256MiB"
	}
	s := &Scratch{options: o, most: resultMax}
	return s, s.open(ctx)
}

func (s *Scratch) open(ctx context.Context) error {
	c, err := duckdb.NewConnector("", nil)
	if err != nil {
		return err
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(16)
	for _, statement := range []string{
		"SET TimeZone = 'UTC'", "SET memory_limit = " + text(s.options.Memory), "SET threads = " + strconv.Itoa(max(s.options.Threads, 1)),
		"SET temp_directory = ''", "SET autoinstall_known_extensions = false", "SET autoload_known_extensions = false",
		"SET enable_external_access = false", "SET lock_configuration = true",
	} {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return errors.Join(fmt.Errorf("open DuckDB in memory: %s: %w", statement, err), db.Close())
		}
	}
	if s.share == 0 {
		if s.share, err = share(ctx, db); err != nil {
			return errors.Join(err, db.Close())
		}
		allowPipelines(s.share)
	}
	s.db = db
	return nil
}

// Close ends it.
func (s *Scratch) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	allowPipelines(-s.share)
	s.share = 0
	return s.db.Close()
}

// anew replaces the database that gave up.
func (s *Scratch) anew(ctx context.Context, gone *sql.DB) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.db != gone {
		return
	}
	if err := s.open(context.WithoutCancel(ctx)); err == nil { // else the next one who meets it tries
		_ = gone.Close()
	}
}

// Steps are SELECTs, each over the table `input`: the first one finds there the rows with their system columns, each other
// one what the step before gave.
type Steps struct {
	Columns []Column // of the rows, behind the system columns
	SQL     []string
	Count   bool // whether Stepped.Counts is wanted; it costs the steps once more
}

// Stepped is what steps make of rows.
type Stepped struct {
	Columns []Column // of the last step
	Rows    [][]any  // JSON as a string
	// Failed are the rows that a step could not be done with, though it can be done with others. What is in Rows is of those.
	Failed []FailedRow
	// Counts are how many rows each step gives, without those that failed there or before.
	Counts []int
}

// FailedRow is a row that a step could not be done with.
type FailedRow struct {
	Row  int // its index
	Step int // from 1
	// Given is what the step found in the columns that it is about, for a person: `label is 'warm'`.
	Given string
	Err   error
}

// StepError is a step that cannot be done with any rows.
type StepError struct {
	Step int // from 1
	Err  error
}

// Error tells which and why.
func (e *StepError) Error() string { return fmt.Sprintf("step %d: %s", e.Step, oneLine(e.Err)) }

// Unwrap gives the reason.
func (e *StepError) Unwrap() error { return e.Err }

// oneLine leaves out where DuckDB draws the statement, which is not the one that a person wrote.
func oneLine(err error) string {
	s, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n\nLINE ")
	return strings.Join(strings.Fields(s), " ")
}

const (
	// resultMax is how many rows the steps may make of a batch: an endless step must not take the memory of the process.
	resultMax = 1_000_000
	// stepsMost is how long the steps may take: one that never ends would be no fault that anybody sees.
	stepsMost = time.Minute
)

var errTooMany = errors.New("it gives too many rows")

// Do does the steps. Where they cannot be done with all rows at once, the halves are tried, and so on: a row that fails alone
// is in Failed, and costs a few more rounds, at most two a row. What cannot be done with no row is a *StepError, as is what
// takes longer than a minute; other errors are the machine's.
func (s *Scratch) Do(ctx context.Context, steps Steps, rows []Row) (out *Stepped, err error) {
	err = piping(func() error { out, err = s.do(ctx, steps, rows); return err })
	return out, err
}

func (s *Scratch) do(ctx context.Context, steps Steps, rows []Row) (*Stepped, error) {
	s.mu.RLock()
	db := s.db
	s.mu.RUnlock()
	c, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	b := &bench{s: s, c: c, steps: steps, out: &Stepped{}}
	defer func() {
		_, _ = c.ExecContext(context.WithoutCancel(ctx), "DROP TABLE IF EXISTS naru_input")
	}()
	if err := b.lay(ctx, rows); err != nil {
		if wrong := (*StepError)(nil); errors.As(err, &wrong) {
			return nil, err
		}
		return nil, named(err)
	}
	if err = b.do(ctx, 0, len(rows)); err == nil && steps.Count {
		err = b.count(ctx)
	}
	if err != nil {
		if gaveUp(err) {
			s.anew(ctx, db)
		}
		return nil, err
	}
	return b.out, nil
}

// plan is steps that can be done, since they have been done with no row.
type plan struct {
	chain   []string // what each step gives, before it the rows; without what begins them, see of
	columns []Column // of the last step
	result  string   // what is selected from it: JSON as a text, since the driver would read it, and lose of its numbers
}

// bench is one doing of steps.
type bench struct {
	s     *Scratch
	c     *sql.Conn
	steps Steps
	plan  *plan
	out   *Stepped
}

// lay puts the rows on the bench.
func (b *bench) lay(ctx context.Context, rows []Row) error {
	t := &Table{Name: "naru_input", Columns: b.steps.Columns}
	columns := columnsOf(t, duckDialect)
	if _, err := b.c.ExecContext(ctx, "CREATE OR REPLACE TEMP TABLE naru_input (_row BIGINT, _again BOOLEAN, "+columns+")"); err != nil {
		return err
	}
	key := columns + "\x00" + strings.Join(b.steps.SQL, "\x00")
	b.s.mu.RLock()
	b.plan = b.s.plans[key]
	b.s.mu.RUnlock()
	if b.plan == nil {
		if err := b.prepare(ctx); err != nil {
			return err
		}
		b.s.mu.Lock()
		if len(b.s.plans) >= plansMax || b.s.plans == nil {
			b.s.plans = map[string]*plan{}
		}
		b.s.plans[key] = b.plan
		b.s.mu.Unlock()
	}
	b.out.Columns = b.plan.columns
	// Without memory the driver's appender has been seen to fall over. A batch is no larger than what is gathered.
	return exempt(func() error { return appendRows(b.c, "temp", "naru_input", t, rows, nil, true) })
}

// prepare makes one statement of the steps, and has it done with no row: what fails so is the steps' own.
func (b *bench) prepare(ctx context.Context) error {
	p := &plan{chain: []string{"SELECT * FROM naru_rows"}, result: "*"}
	b.plan = p
	for i, step := range b.steps.SQL {
		if err := inspectStep(ctx, b.c, step); err != nil {
			return &StepError{i + 1, err}
		}
		step = strings.TrimRight(strings.TrimSpace(step), "; \n\t")
		p.chain = append(p.chain, "WITH input AS (\n"+p.chain[i]+"\n) SELECT * FROM (\n"+step+"\n)")
	}
	var err error
	if p.columns, _, err = b.run(ctx, b.of(len(b.steps.SQL), 0, 0, "*")); err != nil {
		return b.blame(ctx, 0, 0, err)
	}
	rows, err := b.c.QueryContext(ctx, b.of(len(b.steps.SQL), 0, 0, "*"))
	if err != nil {
		return err
	}
	defer rows.Close()
	types, err := rows.ColumnTypes()
	if err != nil {
		return err
	}
	var texts []string
	for i, c := range p.columns {
		switch {
		case types[i].DatabaseTypeName() == "JSON":
			texts = append(texts, fmt.Sprintf("CAST(%[1]s AS VARCHAR) AS %[1]s", quote(c.Name)))
		case c.Type == JSON: // a list or a struct
			texts = append(texts, fmt.Sprintf("CAST(to_json(%[1]s) AS VARCHAR) AS %[1]s", quote(c.Name)))
		}
	}
	if texts != nil {
		p.result = "* REPLACE (" + strings.Join(texts, ", ") + ")"
	}
	return nil
}

// of is the statement of so many steps over the rows from (included) to (not).
func (b *bench) of(step, from, to int, what string) string {
	return fmt.Sprintf("WITH naru_rows AS (SELECT * EXCLUDE (_row, _again) FROM naru_input WHERE _row >= %d AND _row < %d) SELECT %s FROM (\n%s\n)", from, to, what, b.plan.chain[step])
}

func (b *bench) do(ctx context.Context, from, to int) error {
	last := len(b.steps.SQL)
	statement := b.of(last, from, to, b.plan.result)
	_, list, err := b.run(ctx, statement)
	if to-from == 1 && errors.Is(named(err), ErrMemory) {
		if list, err = b.alone(ctx, statement); errors.Is(err, ErrMemory) {
			return err
		}
	}
	switch {
	case err == nil:
		b.out.Rows = append(b.out.Rows, list...)
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case !ofRows(err):
		return b.blame(ctx, from, to, err)
	}
	if to-from > 1 {
		middle := (from + to) / 2
		if err := b.do(ctx, from, middle); err != nil {
			return err
		}
		return b.do(ctx, middle, to)
	}
	f := FailedRow{Row: from, Step: last, Err: err}
	for i := 1; i < last; i++ {
		if _, _, first := b.run(ctx, b.of(i, from, to, "*")); first != nil && ofRows(first) {
			f.Step, f.Err = i, first
			break
		}
	}
	f.Err = errors.New(oneLine(f.Err))
	f.Given = b.given(ctx, &f)
	b.out.Failed = append(b.out.Failed, f)
	return ctx.Err()
}

// alone has a row's statement done while no other is, since what it wants of memory the others may have had. Where it is
// still they that have it, elsewhere in the process, no row is to blame, and the error is an [ErrMemory].
func (b *bench) alone(ctx context.Context, statement string) ([][]any, error) {
	b.s.turn.Lock()
	defer b.s.turn.Unlock()
	_, list, err := b.execute(ctx, statement)
	if errors.Is(named(err), ErrMemory) && spare() < b.s.share/2 {
		return nil, named(err)
	}
	return list, err
}

// blame says which step it is that cannot be done.
func (b *bench) blame(ctx context.Context, from, to int, err error) error {
	step := len(b.steps.SQL)
	for i := 1; i < len(b.steps.SQL) && !gaveUp(err); i++ {
		if _, _, first := b.run(ctx, b.of(i, from, to, "*")); first != nil {
			step, err = i, first
			break
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &StepError{step, err}
}

const givenMax = 4 // columns that are shown of a row that fails

var word = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_]*`)

// given shows the row that a step failed with, in the columns that the error names, or else the step.
func (b *bench) given(ctx context.Context, f *FailedRow) string {
	columns, list, err := b.run(ctx, b.of(f.Step-1, f.Row, f.Row+1, "*"))
	if err != nil || len(list) == 0 {
		return ""
	}
	shown := func(in string) (parts []string) {
		named := map[string]bool{}
		for _, w := range word.FindAllString(in, -1) {
			named[strings.ToLower(w)] = true
		}
		for i, c := range columns {
			if named[strings.ToLower(c.Name)] && len(parts) < givenMax {
				parts = append(parts, c.Name+" is "+literal(list[0][i]))
			}
		}
		return parts
	}
	parts := shown(f.Err.Error())
	if len(parts) == 0 {
		parts = shown(b.steps.SQL[f.Step-1])
	}
	return strings.Join(parts, ", ")
}

// literal shows a value to a person, in one short line.
func literal(v any) string {
	s := ""
	switch v := v.(type) {
	case nil:
		return "null"
	case string:
		s = text(v)
	case time.Time:
		s = v.Format(time.RFC3339Nano)
	case []byte:
		return fmt.Sprintf("%d bytes", len(v))
	case interface{ MarshalJSON() ([]byte, error) }:
		raw, _ := v.MarshalJSON() // what cannot be shown is shown as nothing
		s = string(raw)
	default:
		s = fmt.Sprint(v)
	}
	if s = strings.Join(strings.Fields(s), " "); len(s) > 80 {
		s = strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

// count says how many rows each step gives, without those that failed there or before.
func (b *bench) count(ctx context.Context) error {
	failed := map[int][]int{}
	for _, f := range b.out.Failed {
		failed[f.Step] = append(failed[f.Step], f.Row)
	}
	for i := 1; i <= len(b.steps.SQL); i++ {
		if len(failed[i]) > 0 {
			if _, err := b.c.ExecContext(ctx, "DELETE FROM naru_input WHERE _row IN ("+join(failed[i])+")"); err != nil {
				return err
			}
		}
		_, list, err := b.run(ctx, b.of(i, 0, math.MaxInt32, "count(*)"))
		if err != nil {
			return b.blame(ctx, 0, math.MaxInt32, err)
		}
		n, _ := list[0][0].(int64)
		b.out.Counts = append(b.out.Counts, int(n))
	}
	return nil
}

// ofRows says that an error may be that of the rows that a statement was done with: it is worth while to try some of them.
func ofRows(err error) bool {
	if errors.Is(err, errTooMany) {
		return true
	}
	var e *duckdb.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Type {
	case duckdb.ErrorTypeIO, duckdb.ErrorTypeNetwork, duckdb.ErrorTypeInterrupt, duckdb.ErrorTypeConnection, duckdb.ErrorTypeTransaction,
		duckdb.ErrorTypeCatalog, duckdb.ErrorTypeParser, duckdb.ErrorTypeSyntax, duckdb.ErrorTypeBinder, duckdb.ErrorTypePermission:
		return false
	}
	return !gaveUp(err)
}

// gaveUp says that DuckDB answers nothing any more.
func gaveUp(err error) bool {
	var e *duckdb.Error
	return errors.As(err, &e) && (e.Type == duckdb.ErrorTypeFatal || e.Type == duckdb.ErrorTypeInternal || strings.Contains(e.Msg, "database has been invalidated"))
}

func (b *bench) run(ctx context.Context, statement string) ([]Column, [][]any, error) {
	b.s.turn.RLock()
	defer b.s.turn.RUnlock()
	return b.execute(ctx, statement)
}

func (b *bench) execute(ctx context.Context, statement string) ([]Column, [][]any, error) {
	bounded, cancel := context.WithTimeout(ctx, stepsMost)
	defer cancel()
	rows, err := b.c.QueryContext(bounded, statement)
	slow := func(err error) error {
		if err != nil && ctx.Err() == nil && bounded.Err() != nil {
			return fmt.Errorf("it takes longer than %v", stepsMost)
		}
		return err
	}
	if err != nil {
		return nil, nil, slow(err)
	}
	r, err := result(rows, nil, b.s.most, func() error { return nil }, slow)
	if err != nil {
		return nil, nil, slow(err)
	}
	var list [][]any
	for row, err := range r.Rows() {
		if err != nil {
			return nil, nil, err
		}
		list = append(list, append([]any(nil), row...))
	}
	if r.Truncated {
		return nil, nil, fmt.Errorf("%w: more than %d", errTooMany, b.s.most)
	}
	return r.Columns, list, nil
}

package storage

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/duckdb/duckdb-go/v2"

	"github.com/naru-platform/naru/internal/whole"
	"github.com/naru-platform/naru/message"
)

// Options bound what DuckDB takes of the machine.
type Options struct {
	Memory  string // `512MiB` where empty
	Threads int    // 1 where zero
}

// duck is a Store in one file of DuckDB. One transaction writes at a time; queries run beside it, in connections that
// may only read.
type duck struct {
	file    string
	options Options

	write  sync.Mutex   // one writer
	gate   sync.RWMutex // guards db, which is opened anew where DuckDB has given up on it
	db     *sql.DB
	closed bool
	broken error // why it has to be opened anew

	tables tables
}

// OpenDuck opens or makes a database in a file. A second process cannot open it at the same time.
func OpenDuck(ctx context.Context, file string, o Options) (Store, error) {
	if o.Memory == "" {
		o.Memory = "512MiB"
	}
	o.Threads = max(o.Threads, 1)
	file, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	d := &duck{file: file, options: o}
	if err := os.MkdirAll(d.exports(), 0o700); err != nil {
		return nil, err
	}
	if err := d.open(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// exports is the one folder that statements may reach; what is exported is written there and moved.
func (d *duck) exports() string { return filepath.Join(filepath.Dir(d.file), "exports") }

// Engine as in [Store].
func (d *duck) Engine() string { return "duckdb " + d.file }

// open opens the file, and shuts what a statement could reach of the machine.
func (d *duck) open(ctx context.Context) error {
	if strings.ContainsAny(d.file, "?'") {
		return fmt.Errorf("open %s: DuckDB takes no file whose path has ? or '", d.file)
	}
	c, err := duckdb.NewConnector(d.file, nil)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.file, err)
	}
	db := sql.OpenDB(c)
	db.SetMaxOpenConns(16)
	db.SetMaxIdleConns(4)
	for _, s := range []string{
		"SET TimeZone = 'UTC'",
		"SET memory_limit = " + text(d.options.Memory),
		"SET threads = " + strconv.Itoa(d.options.Threads),
		"SET preserve_insertion_order = false",
		"SET temp_directory = " + text(filepath.Join(filepath.Dir(d.file), "spill")),
		"SET autoinstall_known_extensions = false",
		"SET autoload_known_extensions = false",
		"SET allow_community_extensions = false",
		"SET allowed_directories = [" + text(d.exports()) + "]",
		"CREATE SCHEMA IF NOT EXISTS naru",
		`CREATE TABLE IF NOT EXISTS naru.tables (name VARCHAR PRIMARY KEY, shape VARCHAR NOT NULL)`,
		`CREATE TABLE IF NOT EXISTS naru.marks (consumer VARCHAR, log VARCHAR, generation BIGINT, partition BIGINT, sequence UBIGINT NOT NULL,
			idx BIGINT NOT NULL, fates VARCHAR NOT NULL, PRIMARY KEY (consumer, log, generation, partition))`,
		"SET enable_external_access = false",
		"SET lock_configuration = true",
	} {
		if _, err := db.ExecContext(ctx, s); err != nil {
			return errors.Join(fmt.Errorf("open %s: %s: %w", d.file, firstLine(s), err), db.Close())
		}
	}
	d.db = db
	return d.tables.read(ctx, db, duckDialect)
}

func firstLine(s string) string { l, _, _ := strings.Cut(s, "\n"); return l }

// use calls f with the database, opened anew where DuckDB had given up on it.
func (d *duck) use(ctx context.Context, f func(db *sql.DB) error) error {
	d.gate.RLock()
	if d.broken != nil && !d.closed {
		d.gate.RUnlock()
		if err := d.reopen(ctx); err != nil {
			return err
		}
		d.gate.RLock()
	}
	if d.closed {
		d.gate.RUnlock()
		return fmt.Errorf("%s is closed", d.file)
	}
	err := f(d.db)
	d.gate.RUnlock()
	var e *duckdb.Error
	if errors.As(err, &e) && (e.Type == duckdb.ErrorTypeFatal || e.Type == duckdb.ErrorTypeInternal || strings.Contains(e.Msg, "database has been invalidated")) {
		d.gate.Lock()
		d.broken = err
		d.gate.Unlock()
	}
	return err
}

func (d *duck) reopen(ctx context.Context) error {
	d.gate.Lock()
	defer d.gate.Unlock()
	if d.closed || d.broken == nil {
		return nil
	}
	if d.db != nil {
		_ = d.db.Close() // it was given up
		d.db = nil
	}
	if err := d.open(ctx); err != nil {
		return fmt.Errorf("open the database anew after %v: %w", d.broken, err)
	}
	d.broken = nil
	return nil
}

// Close as in [Store].
func (d *duck) Close() error {
	d.write.Lock()
	defer d.write.Unlock()
	d.gate.Lock()
	defer d.gate.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.db == nil {
		return nil
	}
	return d.db.Close()
}

// transact calls f in a transaction of a connection of its own, the only one that writes.
func (d *duck) transact(ctx context.Context, f func(c *sql.Conn) error) error {
	d.write.Lock()
	defer d.write.Unlock()
	return d.use(ctx, func(db *sql.DB) error {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.ExecContext(ctx, "BEGIN"); err != nil {
			return err
		}
		if err := f(c); err != nil {
			// Not with ctx: it may have ended, and the connection goes back.
			_, _ = c.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
			return err
		}
		if _, err = c.ExecContext(ctx, "COMMIT"); err != nil {
			_, _ = c.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
		return err
	})
}

var duckTypes = map[Type]string{Bool: "BOOLEAN", Int: "BIGINT", Double: "DOUBLE", Text: "VARCHAR", Time: "TIMESTAMPTZ", JSON: "JSON", Bytes: "BLOB", UUID: "UUID"}

var duckDialect = dialect{own: "naru.", types: duckTypes, bucket: duckBucket}

// Ensure as in [Store].
func (d *duck) Ensure(ctx context.Context, t Table) error {
	if err := t.Valid(); err != nil {
		return err
	}
	if have, ok := d.tables.get(t.Name); ok && same(have, &t) {
		return nil
	}
	err := d.transact(ctx, func(c *sql.Conn) error {
		run := func(s string) error { _, err := c.ExecContext(ctx, s); return err }
		have, _ := d.tables.get(t.Name)
		return ensure(have, &t, d.tables.owners(), duckDialect, run)
	})
	if err != nil {
		return fmt.Errorf("make table %s: %w", t.Name, err)
	}
	d.tables.put(t)
	return nil
}

func duckBucket(every time.Duration, column string) string {
	return fmt.Sprintf("time_bucket(INTERVAL '%d seconds', %s)", int64(every/time.Second), column)
}

// Tables as in [Store].
func (d *duck) Tables(context.Context) ([]Table, error) { return d.tables.list(), nil }

// Mark as in [Store].
func (d *duck) Mark(ctx context.Context, s Source) (m Mark, err error) {
	err = d.use(ctx, func(db *sql.DB) error {
		m, err = mark(ctx, db, s, duckDialect, "")
		return err
	})
	return m, err
}

// Load as in [Store].
func (d *duck) Load(ctx context.Context, b *Batch) (done Loaded, err error) {
	t, ok := d.tables.get(b.Table)
	if !ok {
		return done, fmt.Errorf("%w: %s", ErrNoTable, b.Table)
	}
	err = d.transact(ctx, func(c *sql.Conn) error {
		done = Loaded{}
		have, err := mark(ctx, c, b.Source, duckDialect, "")
		if err != nil {
			return err
		}
		if have.Sequence != b.From.Sequence || have.Index != b.From.Index {
			return ErrMoved
		}
		if len(b.Rows) > 0 {
			if err := d.rows(ctx, c, t, b, &done); err != nil {
				return err
			}
		}
		return setMark(ctx, c, b, &done, duckDialect)
	})
	if err != nil {
		return Loaded{}, fmt.Errorf("load into %s: %w", b.Table, err)
	}
	return done, nil
}

// rows appends the rows: straight to the table where none can be a duplicate, else by way of a table of the transaction.
func (d *duck) rows(ctx context.Context, c *sql.Conn, t *Table, b *Batch, done *Loaded) error {
	again := slices.ContainsFunc(b.Rows, func(r Row) bool { return r.Again })
	if len(t.Key) == 0 && !again {
		if err := appendRows(c, "", t.Name, t, b.Rows, false); err != nil {
			return err
		}
		done.Rows = len(b.Rows)
		return rollup(t, b.Rows, nil, done, duckDialect, func(s string, args ...any) error { _, err := c.ExecContext(ctx, s, args...); return err })
	}
	stage := []string{"ord BIGINT", "again BOOLEAN"}
	for _, col := range t.all() {
		stage = append(stage, quote(col.Name)+" "+duckTypes[col.Type])
	}
	if _, err := c.ExecContext(ctx, "CREATE OR REPLACE TEMP TABLE naru_stage ("+strings.Join(stage, ", ")+")"); err != nil {
		return err
	}
	if err := appendRows(c, "temp", "naru_stage", t, b.Rows, true); err != nil {
		return err
	}
	rows, err := c.QueryContext(ctx, duplicates(t, "naru_stage", duckDialect))
	if err != nil {
		return err
	}
	if done.Duplicates, err = ints(rows); err != nil {
		return err
	}
	insert := "INSERT INTO " + quote(t.Name) + " (" + t.names("") + ") SELECT " + t.names("") + " FROM naru_stage"
	if len(done.Duplicates) > 0 {
		insert += " WHERE ord NOT IN (" + join(done.Duplicates) + ")"
	}
	for _, s := range []string{insert, "DROP TABLE naru_stage"} {
		if _, err := c.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	done.Rows = len(b.Rows) - len(done.Duplicates)
	return rollup(t, b.Rows, done.Duplicates, done, duckDialect, func(s string, args ...any) error { _, err := c.ExecContext(ctx, s, args...); return err })
}

// appendRows appends within the transaction of the connection.
func appendRows(c *sql.Conn, catalog, table string, t *Table, rows []Row, staged bool) error {
	return c.Raw(func(raw any) error {
		a, err := duckdb.NewAppender(raw.(driver.Conn), catalog, "", table)
		if err != nil {
			return err
		}
		n := len(System)
		if staged {
			n += 2
		}
		row := make([]driver.Value, 0, n+len(t.Columns))
		for i := range rows {
			r := &rows[i]
			if len(r.Values) != len(t.Columns) {
				return errors.Join(fmt.Errorf("a row of %s has %d values for %d columns", t.Name, len(r.Values), len(t.Columns)), a.Clear(), a.Close())
			}
			row = row[:0]
			if staged {
				row = append(row, int64(i), r.Again)
			}
			row = append(row, r.Time, optional(r.Device), r.Subject, optional(r.Trace), duckdb.UUID(r.Message), r.Recorded)
			for j, v := range r.Values {
				if s, ok := v.(string); ok && t.Columns[j].Type == JSON {
					v = json.RawMessage(s)
				}
				row = append(row, v)
			}
			if err := a.AppendRow(row...); err != nil {
				return errors.Join(err, a.Clear(), a.Close())
			}
		}
		if err := a.Flush(); err != nil {
			return errors.Join(err, a.Clear(), a.Close())
		}
		return a.Close()
	})
}

func optional(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// Query as in [Store].
func (d *duck) Query(ctx context.Context, statement string, args []any, l Limits) (*Result, error) {
	return d.query(ctx, statement, args, l, true)
}

func (d *duck) query(ctx context.Context, statement string, args []any, l Limits, guarded bool) (*Result, error) {
	l = l.withDefaults()
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	var r *Result
	err := d.use(ctx, func(db *sql.DB) error {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		end := func() error {
			_, err := c.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
			cancel()
			return errors.Join(err, c.Close())
		}
		if guarded {
			if err := oneSelect(ctx, c, statement); err != nil {
				return errors.Join(err, c.Close())
			}
		}
		if _, err := c.ExecContext(ctx, "BEGIN TRANSACTION READ ONLY"); err != nil {
			return errors.Join(err, c.Close())
		}
		rows, err := c.QueryContext(ctx, statement, args...)
		if err != nil {
			_ = end()
			return d.asker(ctx, err, l, guarded)
		}
		r, err = d.result(rows, l, end, func(err error) error { return d.asker(ctx, err, l, guarded) })
		return err
	})
	if err != nil {
		cancel()
		return nil, err
	}
	return r, nil
}

func (l Limits) withDefaults() Limits {
	if l.Rows <= 0 {
		l.Rows = 100_000
	}
	if l.Timeout <= 0 {
		l.Timeout = 30 * time.Second
	}
	return l
}

// oneSelect refuses what is not one SELECT: the driver would execute all but the last of several. DuckDB's own parser is
// asked; the read-only transaction stands behind it.
func oneSelect(ctx context.Context, c *sql.Conn, statement string) error {
	var tree string
	if err := c.QueryRowContext(ctx, "SELECT CAST(json_serialize_sql($1::VARCHAR) AS VARCHAR)", statement).Scan(&tree); err != nil {
		return err
	}
	var parsed struct {
		Error      bool
		Type       string `json:"error_type"`
		Message    string `json:"error_message"`
		Position   string
		Statements []json.RawMessage
	}
	if err := json.Unmarshal([]byte(tree), &parsed); err != nil {
		return fmt.Errorf("read what DuckDB makes of the query: %w", err)
	}
	switch {
	case parsed.Error && parsed.Type == "parser" && parsed.Position != "":
		return refuse("%s, at byte %s of the query", parsed.Message, parsed.Position)
	case parsed.Error && parsed.Type == "parser":
		return refuse("%s", parsed.Message)
	case parsed.Error:
		return refuse("only SELECT is answered here: %s", parsed.Message)
	case len(parsed.Statements) != 1:
		return refuse("%d statements; want exactly one SELECT", len(parsed.Statements))
	}
	return nil
}

// asker tells the asker's mistakes from faults.
func (d *duck) asker(ctx context.Context, err error, l Limits, guarded bool) error {
	if ctx.Err() == context.DeadlineExceeded {
		return refuse("the query took longer than %v; ask for less, or raise the timeout", l.Timeout)
	}
	var e *duckdb.Error
	if !guarded || !errors.As(err, &e) {
		return err
	}
	switch e.Type {
	case duckdb.ErrorTypeFatal, duckdb.ErrorTypeInternal, duckdb.ErrorTypeIO:
		return err
	case duckdb.ErrorTypeOutOfMemory:
		return refuse("the query wants more memory than the database may take (%s); ask for less, or raise memory of %s", d.options.Memory, Name)
	}
	return &RefusedError{e.Msg}
}

// result wraps rows of the driver.
func (d *duck) result(rows *sql.Rows, l Limits, end func() error, explain func(error) error) (*Result, error) {
	r := &Result{}
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, errors.Join(err, rows.Close(), end())
	}
	row, into := make([]any, len(types)), make([]any, len(types))
	for i, t := range types {
		r.Columns = append(r.Columns, Column{t.Name(), typeOf(t.DatabaseTypeName())})
		into[i] = &row[i]
	}
	n := 0
	r.close = func() error { return errors.Join(rows.Close(), end()) }
	r.next = func() ([]any, error) {
		if !rows.Next() {
			if err := rows.Err(); err != nil {
				return nil, explain(err)
			}
			return nil, errEnd
		}
		if n++; n > l.Rows {
			r.Truncated = true
			return nil, errEnd
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		for i := range row {
			if row[i], err = plain(r.Columns[i].Type, row[i]); err != nil {
				return nil, err
			}
		}
		return row, nil
	}
	return r, nil
}

func typeOf(database string) Type {
	switch database {
	case "BOOLEAN":
		return Bool
	case "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT", "UHUGEINT":
		return Int
	case "FLOAT", "DOUBLE":
		return Double
	case "BLOB":
		return Bytes
	case "UUID":
		return UUID
	case "VARCHAR", "ENUM":
		return Text
	case "JSON":
		return JSON
	}
	switch {
	case strings.HasPrefix(database, "TIMESTAMP"), database == "DATE":
		return Time
	case strings.HasPrefix(database, "DECIMAL"):
		return Double
	case strings.HasSuffix(database, "]"), strings.HasPrefix(database, "STRUCT"), strings.HasPrefix(database, "MAP"), strings.HasPrefix(database, "UNION"):
		return JSON
	}
	return Text
}

// plain makes a value of the driver one of the seven that a Type says.
func plain(t Type, v any) (any, error) {
	switch x := v.(type) {
	case nil:
		return nil, nil
	case time.Time:
		return x.UTC(), nil
	case *big.Int:
		if x.IsInt64() {
			return x.Int64(), nil
		}
		return json.RawMessage(x.String()), nil // a number, though none of 64 bits
	case duckdb.Decimal:
		return x.Float64(), nil
	case duckdb.UUID:
		return message.ID(x).String(), nil
	case []byte:
		if t == UUID && len(x) == 16 {
			return message.ID(x).String(), nil
		}
		return slices.Clone(x), nil
	case int8:
		return int64(x), nil
	case int16:
		return int64(x), nil
	case int32:
		return int64(x), nil
	case uint8:
		return int64(x), nil
	case uint16:
		return int64(x), nil
	case uint32:
		return int64(x), nil
	case uint64:
		if x > 1<<63-1 {
			return json.RawMessage(strconv.FormatUint(x, 10)), nil
		}
		return int64(x), nil
	case float32:
		return float64(x), nil
	case bool, int64, float64, string:
		if t == JSON {
			b, err := json.Marshal(x)
			return json.RawMessage(b), err
		}
		return x, nil
	}
	if t == JSON {
		b, err := json.Marshal(tidy(v))
		return json.RawMessage(b), err
	}
	return fmt.Sprint(v), nil
}

// tidy makes nested values such as JSON can have.
func tidy(v any) any {
	switch x := v.(type) {
	case duckdb.OrderedMap:
		m := map[string]any{}
		keys, values := x.Keys(), x.Values()
		for i := range keys {
			m[fmt.Sprint(keys[i])] = tidy(values[i])
		}
		return m
	case map[string]any:
		m := map[string]any{}
		for k, e := range x {
			m[k] = tidy(e)
		}
		return m
	case []any:
		list := make([]any, len(x))
		for i := range x {
			list[i] = tidy(x[i])
		}
		return list
	case duckdb.Union:
		return tidy(x.Value)
	case duckdb.UUID:
		return message.ID(x).String()
	case duckdb.Decimal:
		return x.Float64()
	case time.Time:
		return x.UTC()
	}
	return v
}

// Latest as in [Store].
func (d *duck) Latest(ctx context.Context, table, device string) (*Result, error) {
	t, ok := d.tables.get(table)
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNoTable, table)
	}
	s, args := latest(t, device)
	return d.query(ctx, s, args, Limits{}, false)
}

// Range as in [Store].
func (d *duck) Range(ctx context.Context, table string, s Span) (*Result, error) {
	t, ok := d.tables.get(table)
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNoTable, table)
	}
	q, args, err := span(t, &s)
	if err != nil {
		return nil, err
	}
	return d.query(ctx, q, args, Limits{Rows: s.limit()}, false)
}

// Aggregate as in [Store].
func (d *duck) Aggregate(ctx context.Context, table string, a Aggregation) (*Result, error) {
	t, ok := d.tables.get(table)
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNoTable, table)
	}
	q, args, err := aggregate(t, &a, duckDialect)
	if err != nil {
		return nil, err
	}
	return d.query(ctx, q, args, Limits{Rows: a.limit()}, false)
}

// ByTrace as in [Store].
func (d *duck) ByTrace(ctx context.Context, trace string) (list []Traced, err error) {
	q, args := byTrace(d.tables.list(), trace)
	if q == "" {
		return nil, nil
	}
	r, err := d.query(ctx, q, args, Limits{}, false)
	if err != nil {
		return nil, err
	}
	return traced(r)
}

// Export as in [Store].
func (d *duck) Export(ctx context.Context, table string, from, to time.Time, file string) (n int64, err error) {
	t, ok := d.tables.get(table)
	if !ok {
		return 0, fmt.Errorf("%w: %s", ErrNoTable, table)
	}
	where, err := between(from, to)
	if err != nil {
		return 0, err
	}
	temporary, err := os.CreateTemp(d.exports(), "export-*.parquet")
	if err != nil {
		return 0, err
	}
	defer os.Remove(temporary.Name())
	if err := temporary.Close(); err != nil {
		return 0, err
	}
	err = d.use(ctx, func(db *sql.DB) error {
		res, err := db.ExecContext(ctx, fmt.Sprintf("COPY (SELECT * FROM %s%s ORDER BY \"time\") TO %s (FORMAT parquet, COMPRESSION zstd)", quote(t.Name), where, text(temporary.Name())))
		if err == nil {
			n, err = res.RowsAffected()
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("export %s: %w", table, err)
	}
	return n, move(temporary.Name(), file)
}

// move gives a file another place, also on another disk; it is there whole or not at all.
func move(from, to string) error {
	if os.Rename(from, to) == nil {
		return whole.Sync(filepath.Dir(to))
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".export-*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	if err := os.Rename(out.Name(), to); err != nil {
		return err
	}
	return whole.Sync(filepath.Dir(to))
}

// Trim as in [Store].
func (d *duck) Trim(ctx context.Context, table string, before time.Time) (n int64, err error) {
	t, ok := d.tables.get(table)
	if !ok {
		return 0, fmt.Errorf("%w: %s", ErrNoTable, table)
	}
	err = d.transact(ctx, func(c *sql.Conn) error {
		res, err := c.ExecContext(ctx, "DELETE FROM "+quote(t.Name)+" WHERE recorded < $1", before.UTC())
		if err != nil {
			return err
		}
		n, err = res.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("trim %s: %w", table, err)
	}
	if n > 0 { // what was deleted is given back to later rows by a checkpoint only; another one will do where this one cannot
		_ = d.use(ctx, func(db *sql.DB) error { _, _ = db.ExecContext(ctx, "CHECKPOINT"); return nil })
	}
	return n, nil
}

// Stats as in [Store].
func (d *duck) Stats(ctx context.Context, table string) (s Stats, err error) {
	t, ok := d.tables.get(table)
	if !ok {
		return s, fmt.Errorf("%w: %s", ErrNoTable, table)
	}
	err = d.use(ctx, func(db *sql.DB) error {
		s, err = stats(ctx, db, t)
		if err != nil {
			return err
		}
		return db.QueryRowContext(ctx, "SELECT count(DISTINCT block_id) * 262144 FROM pragma_storage_info("+text(t.Name)+") WHERE persistent").Scan(&s.Bytes)
	})
	return s, err
}

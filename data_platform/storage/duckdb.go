package storage

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/duckdb/duckdb-go/v2"
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
	share  int64 // of the process's memory
	closed bool
	broken error // why it has to be opened anew

	tables tables
	stuck  atomic.Int64 // queries that run on though nobody waits for them
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
	// The file is this process's alone from here on, and with it what lies beside it.
	Sweep(d.exports(), "*")
	Sweep(d.spill(), "*")
	return d, nil
}

// Sweep removes what a process that was killed has left half-done in a directory, where there is anything: an export may be as large as all rows.
// Nobody may be at work there. What cannot be removed stays.
func Sweep(dir string, patterns ...string) {
	for _, p := range patterns {
		names, err := filepath.Glob(filepath.Join(globbed(dir), p))
		if err != nil {
			continue
		}
		for _, name := range names {
			_ = os.RemoveAll(name)
		}
	}
}

// globbed is a path that stands for itself in a pattern.
func globbed(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// duckSpillMost is how much of the disk statements may take for what has no room in memory.
const duckSpillMost = "4GiB"

// duckLateMost is up to which LIMIT it is first found out which rows an ordered SELECT gives, and the other columns are read of these alone. It
// is above what a page of rows may have.
const duckLateMost = 20_000

// exports is the one folder that statements may reach; what is exported is written there and moved.
func (d *duck) exports() string { return filepath.Join(filepath.Dir(d.file), "exports") }

// spill is where statements put what has no room in memory.
func (d *duck) spill() string { return filepath.Join(filepath.Dir(d.file), "spill") }

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
		"SET late_materialization_max_rows = " + strconv.Itoa(duckLateMost),
		"SET temp_directory = " + text(d.spill()),
		"SET max_temp_directory_size = " + text(duckSpillMost),
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
	if err := d.tables.read(ctx, db, duckDialect); err != nil {
		return errors.Join(err, db.Close())
	}
	if d.share, err = share(ctx, db); err != nil {
		return errors.Join(err, db.Close())
	}
	allow(d.share)
	d.db = db
	return nil
}

// share is what a database may have of the process's memory: its own limit, and room for what is not counted there.
func share(ctx context.Context, db *sql.DB) (bytes int64, err error) {
	err = db.QueryRowContext(ctx, "SELECT CAST(parse_formatted_bytes(current_setting('memory_limit')) AS BIGINT)").Scan(&bytes)
	return bytes + bytes/4, err
}

// shut closes the database that is open.
func (d *duck) shut() error {
	if d.db == nil {
		return nil
	}
	err := d.db.Close()
	d.db = nil
	allow(-d.share)
	return err
}

func firstLine(s string) string { l, _, _ := strings.Cut(s, "\n"); return l }

// memoryError is an [ErrMemory], and what DuckDB said, whose advice on settings is not for who reads this.
type memoryError struct{ cause error }

func (e *memoryError) Error() string   { return ErrMemory.Error() + ": " + firstLine(e.cause.Error()) }
func (e *memoryError) Unwrap() []error { return []error{ErrMemory, e.cause} }

// outOfMemory is how DuckDB says it: what an appender fails with has no type, only words.
var outOfMemory = regexp.MustCompile(`(?i)(failed to|could not) (allocate|pin|resize) `)

// named gives an error for want of memory its name.
func named(err error) error {
	if err == nil {
		return nil
	}
	var e *duckdb.Error
	if errors.As(err, &e) && e.Type == duckdb.ErrorTypeOutOfMemory || outOfMemory.MatchString(err.Error()) {
		return &memoryError{err}
	}
	return err
}

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
	return named(err)
}

func (d *duck) reopen(ctx context.Context) error {
	d.gate.Lock()
	defer d.gate.Unlock()
	if d.closed || d.broken == nil {
		return nil
	}
	_ = d.shut() // it was given up
	if err := d.open(ctx); err != nil {
		return fmt.Errorf("open the database anew after %v: %w", d.broken, err)
	}
	d.broken = nil
	return nil
}

// closePatience is for how long Close waits for queries to end that were told to.
const closePatience = 10 * time.Second

// Close as in [Store].
func (d *duck) Close() error {
	d.write.Lock()
	defer d.write.Unlock()
	for late := time.Now().Add(closePatience); !d.gate.TryLock(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(late) {
			return fmt.Errorf("close %s: a query runs that cannot be stopped; what was committed is in the file", d.file)
		}
	}
	defer d.gate.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.shut()
}

// rollback ends a connection's transaction, also where ctx has ended. Where that fails, as it may for want of memory, the connection does
// not go back for others to find it in a transaction that is aborted.
func rollback(ctx context.Context, c *sql.Conn) error {
	_, err := c.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
	if err != nil {
		_ = c.Raw(func(any) error { return driver.ErrBadConn }) // says database/sql to close it
	}
	return err
}

// transact calls f in a transaction of a connection of its own, the only one that writes.
func (d *duck) transact(ctx context.Context, f func(c *sql.Conn) error) error {
	d.write.Lock()
	defer d.write.Unlock()
	work := func(db *sql.DB) error {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.ExecContext(ctx, "BEGIN"); err != nil {
			return err
		}
		if err := f(c); err != nil {
			_ = rollback(ctx, c) // what failed first is the reason
			return err
		}
		if _, err = c.ExecContext(ctx, "COMMIT"); err != nil {
			_ = rollback(ctx, c)
		}
		return err
	}
	return d.use(ctx, func(db *sql.DB) error { return exempt(func() error { return work(db) }) })
}

var duckTypes = map[Type]string{Bool: "BOOLEAN", Int: "BIGINT", Double: "DOUBLE", Text: "VARCHAR", Time: "TIMESTAMPTZ", JSON: "JSON", Bytes: "BLOB", UUID: "UUID"}

var duckDialect = dialect{own: "naru.", types: duckTypes, kept: duckKept, bucket: duckBucket}

// duckKept has ids kept as they are. Compressed they take 18 bytes a row less, and whoever asks for some rows of many waits nearly three times
// as long, since each value's whole vector is unpacked (docs/benchmarks.md).
var duckKept = map[string]string{"trace_id": "USING COMPRESSION 'uncompressed'", "message_id": "USING COMPRESSION 'uncompressed'"}

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

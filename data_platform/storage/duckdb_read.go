// What DuckDB gives of a dataset; queries that a person writes are in duckdb_query.go.

package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/naru-platform/naru/internal/whole"
)

// latestOfEach finds when each device was last heard first: DISTINCT ON would sort all columns of all rows.
func latestOfEach(t *Table) string {
	return "SELECT " + t.names("") + " FROM (SELECT t.*, row_number() OVER (PARTITION BY t.device ORDER BY t.recorded DESC, t.message_id DESC) AS _nth FROM " + quote(t.Name) +
		` t JOIN (SELECT device, max("time") AS newest FROM ` + quote(t.Name) + ` GROUP BY device) m ON t."time" = m.newest AND t.device IS NOT DISTINCT FROM m.device) WHERE _nth = 1 ORDER BY device`
}

// Latest as in [Store].
func (d *duck) Latest(ctx context.Context, table, device string) (*Result, error) {
	t, ok := d.tables.get(table)
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNoTable, table)
	}
	s, args := latest(t, device)
	if device == "" {
		s = latestOfEach(t)
	}
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

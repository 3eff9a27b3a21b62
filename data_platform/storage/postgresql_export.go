package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/duckdb/duckdb-go/v2"

	"github.com/naru-platform/naru/message"
)

// exportPiece is how many rows go to DuckDB at once.
const exportPiece = 10_000

const exportDir = "export-*" // what an export is made in; one that a killed process left is swept at the start

// Export as in [Store]: the rows go through a database of DuckDB in a file of its own, which has the room that they need and goes
// when it is done.
func (p *postgres) Export(ctx context.Context, table string, from, to time.Time, file string) (n int64, err error) {
	t, err := p.look(ctx, table)
	if err != nil {
		return 0, err
	}
	where, err := between(from, to)
	if err != nil {
		return 0, err
	}
	if p.options.Dir != "" {
		if err := os.MkdirAll(p.options.Dir, 0o700); err != nil {
			return 0, err
		}
	}
	dir, err := os.MkdirTemp(p.options.Dir, exportDir)
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	db, err := exporter(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	c, err := db.Conn(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	const staged = "naru_export"
	if _, err := c.ExecContext(ctx, "CREATE TABLE "+staged+" ("+columnsOf(t, duckDialect)+")"); err != nil {
		return 0, err
	}
	r, err := p.query(ctx, "SELECT "+t.names("")+" FROM "+quote(t.Name)+where, nil, Limits{Rows: math.MaxInt - 1, Timeout: 24 * time.Hour}, false)
	if err != nil {
		return 0, fmt.Errorf("export %s: %w", table, err)
	}
	defer r.Close()
	var piece []Row
	flush := func() error {
		n += int64(len(piece))
		err := appendRows(c, "", staged, t, piece, nil, false)
		piece = piece[:0]
		return err
	}
	for values, err := range r.Rows() {
		if err != nil {
			return 0, fmt.Errorf("export %s: %w", table, err)
		}
		x, err := rowOf(values)
		if err != nil {
			return 0, fmt.Errorf("export %s: %w", table, err)
		}
		if piece = append(piece, x); len(piece) == exportPiece {
			if err := flush(); err != nil {
				return 0, fmt.Errorf("export %s: %w", table, err)
			}
		}
	}
	if err := flush(); err != nil {
		return 0, fmt.Errorf("export %s: %w", table, err)
	}
	out := filepath.Join(dir, "out.parquet")
	if _, err := c.ExecContext(ctx, "COPY (SELECT * FROM "+staged+` ORDER BY "time") TO `+text(out)+" (FORMAT parquet, COMPRESSION zstd)"); err != nil {
		return 0, fmt.Errorf("export %s: %w", table, err)
	}
	return n, move(out, file)
}

func exporter(ctx context.Context, dir string) (*sql.DB, error) {
	if strings.ContainsAny(dir, "?'") {
		return nil, fmt.Errorf("export: DuckDB takes no folder whose path has ? or ', as %s has", dir)
	}
	c, err := duckdb.NewConnector(filepath.Join(dir, "rows.duckdb"), nil)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(c)
	for _, s := range []string{"SET TimeZone = 'UTC'", "SET memory_limit = '512MiB'", "SET threads = 1", "SET temp_directory = " + text(filepath.Join(dir, "spill")),
		"SET autoinstall_known_extensions = false", "SET autoload_known_extensions = false"} {
		if _, err := db.ExecContext(ctx, s); err != nil {
			return nil, errors.Join(fmt.Errorf("open DuckDB for an export: %s: %w", s, err), db.Close())
		}
	}
	return db, nil
}

// rowOf makes a row of its columns' values, which are copied.
func rowOf(v []any) (r Row, err error) {
	r.Time, _ = v[0].(time.Time)
	r.Device, _ = v[1].(string)
	r.Subject, _ = v[2].(string)
	r.Trace, _ = v[3].(string)
	r.Recorded, _ = v[5].(time.Time)
	id, _ := v[4].(string)
	if r.Message, err = message.ParseID(id); err != nil {
		return r, err
	}
	r.Values = append([]any{}, v[len(System):]...)
	for i, x := range r.Values {
		if j, ok := x.(json.RawMessage); ok {
			r.Values[i] = string(j)
		}
	}
	return r, nil
}

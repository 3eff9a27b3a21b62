// Rows on their way into DuckDB.

package storage

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/duckdb/duckdb-go/v2"
)

// Load as in [Store].
func (d *duck) Load(ctx context.Context, b *Batch) (done Loaded, err error) {
	t, ok := d.tables.get(b.Table)
	if !ok {
		return done, fmt.Errorf("%w: %s", ErrNoTable, b.Table)
	}
	load := func(refused []Refused) error {
		return d.transact(ctx, func(c *sql.Conn) error {
			done = Loaded{Refused: refused}
			if b.From.at(b.Upto) { // else setMark sees whether it is there
				have, err := mark(ctx, c, b.Source, duckDialect, "")
				if err != nil {
					return err
				}
				if !have.at(b.From) {
					return ErrMoved
				}
			}
			if len(b.Rows) > 0 {
				if err := d.rows(ctx, c, t, b, &done); err != nil {
					return err
				}
			}
			return setMark(ctx, c, b, &done, duckDialect)
		})
	}
	if err = load(nil); errors.As(err, new(*valueError)) {
		var refused []Refused
		if refused, err = d.sift(ctx, t, b.Rows); err == nil {
			err = load(refused)
		}
	}
	if err != nil {
		return Loaded{}, fmt.Errorf("load into %s: %w", b.Table, err)
	}
	return done, nil
}

// rows appends the rows: straight to the table where none can be a duplicate, else by way of a table of the transaction.
func (d *duck) rows(ctx context.Context, c *sql.Conn, t *Table, b *Batch, done *Loaded) error {
	again := slices.ContainsFunc(b.Rows, func(r Row) bool { return r.Again })
	without := refusedOf(b.Rows, done.Refused)
	if len(t.Key) == 0 && !again {
		if err := appendRows(c, "", t.Name, t, b.Rows, without, false); err != nil {
			return err
		}
		done.Rows = len(b.Rows) - len(without)
		return rollup(t, b.Rows, without, done, duckDialect, func(s string, args ...any) error { _, err := c.ExecContext(ctx, s, args...); return err })
	}
	stage := []string{"_ord BIGINT", "_again BOOLEAN"}
	for _, col := range t.all() {
		stage = append(stage, quote(col.Name)+" "+duckTypes[col.Type])
	}
	if _, err := c.ExecContext(ctx, "CREATE OR REPLACE TEMP TABLE naru_stage ("+strings.Join(stage, ", ")+")"); err != nil {
		return err
	}
	if err := appendRows(c, "temp", "naru_stage", t, b.Rows, without, true); err != nil {
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
		insert += " WHERE _ord NOT IN (" + join(done.Duplicates) + ")"
	}
	for _, s := range []string{insert, "DROP TABLE naru_stage"} {
		if _, err := c.ExecContext(ctx, s); err != nil {
			return err
		}
	}
	without = append(without, done.Duplicates...)
	done.Rows = len(b.Rows) - len(without)
	return rollup(t, b.Rows, without, done, duckDialect, func(s string, args ...any) error { _, err := c.ExecContext(ctx, s, args...); return err })
}

// valueError is a row with a value that DuckDB does not take.
type valueError struct {
	column Column
	value  any
	err    error
}

func (e *valueError) Error() string {
	_, why, ok := strings.Cut(e.err.Error(), ", col ")
	if ok {
		_, why, _ = strings.Cut(why, ": ")
	} else {
		why = e.err.Error()
	}
	return fmt.Sprintf("%s is %s, which DuckDB does not hold: %s", e.column.Name, sketch(e.value), why)
}

func (e *valueError) Unwrap() error { return e.err }

// inCol is where the driver's appender says which value it does not take.
var inCol = regexp.MustCompile(`, col (\d+): `)

// appendRow appends one row; values are those of the row before, to be used again.
func appendRow(a *duckdb.Appender, t *Table, r *Row, values []driver.Value) ([]driver.Value, error) {
	before := len(values)
	values = append(values, r.Time, optional(r.Device), r.Subject, optional(r.Trace), duckdb.UUID(r.Message), r.Recorded)
	for j, v := range r.Values {
		if s, ok := v.(string); ok && t.Columns[j].Type == JSON {
			v = json.RawMessage(s)
		}
		values = append(values, v)
	}
	err := a.AppendRow(values...)
	if err == nil {
		return values, nil
	}
	if m := inCol.FindStringSubmatch(err.Error()); m != nil && !strings.Contains(err.Error(), "cast error") { // another type is our mistake, and nobody's row
		if i, _ := strconv.Atoi(m[1]); i >= before && i < len(values) {
			err = &valueError{t.all()[i-before], values[i], err}
		}
	}
	return values, err
}

// sift finds the rows that DuckDB does not take, and adds none.
func (d *duck) sift(ctx context.Context, t *Table, rows []Row) (list []Refused, err error) {
	err = d.use(ctx, func(db *sql.DB) error {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		return withAppender(c, "", t.Name, func(a *duckdb.Appender) error {
			var values []driver.Value
			for i := range rows {
				values, err = appendRow(a, t, &rows[i], values[:0])
				var bad *valueError
				if errors.As(err, &bad) {
					list = append(list, Refused{i, bad.Error()})
				} else if err != nil {
					return err
				}
				if err := a.Clear(); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return list, err
}

// withAppender lends an appender to a table, within the transaction of the connection. What f has not flushed is not there.
func withAppender(c *sql.Conn, catalog, table string, f func(a *duckdb.Appender) error) error {
	return c.Raw(func(raw any) error {
		a, err := duckdb.NewAppender(raw.(driver.Conn), catalog, "", table)
		if err != nil {
			return err
		}
		if err := f(a); err != nil {
			return errors.Join(err, a.Clear(), a.Close())
		}
		return a.Close()
	})
}

// appendRows appends rows, without those at the indexes, which are in order.
func appendRows(c *sql.Conn, catalog, table string, t *Table, rows []Row, without []int, staged bool) error {
	return withAppender(c, catalog, table, func(a *duckdb.Appender) (err error) {
		values := make([]driver.Value, 0, 2+len(System)+len(t.Columns))
		for i := range rows {
			if len(without) > 0 && without[0] == i {
				without = without[1:]
				continue
			}
			r := &rows[i]
			if len(r.Values) != len(t.Columns) {
				return fmt.Errorf("a row of %s has %d values for %d columns", t.Name, len(r.Values), len(t.Columns))
			}
			values = values[:0]
			if staged {
				values = append(values, int64(i), r.Again)
			}
			if values, err = appendRow(a, t, r, values); err != nil {
				return err
			}
		}
		return a.Flush()
	})
}

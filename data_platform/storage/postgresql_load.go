// Rows on their way into PostgreSQL.

package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Load as in [Store].
func (p *postgres) Load(ctx context.Context, b *Batch) (done Loaded, err error) {
	t, ok := p.ensured.get(b.Table)
	if !ok {
		if t, ok = p.stored.get(b.Table); !ok {
			if t, err = p.look(ctx, b.Table); err != nil {
				return done, err
			}
		}
	}
	load := func(b *Batch, refused []Refused) error {
		for try := 0; ; try++ {
			done = Loaded{Refused: refused}
			err := p.cover(ctx, t, b.Rows)
			if err == nil {
				err = p.transact(ctx, loading, func(c *sql.Conn) error { return p.fill(ctx, c, t, b, &done) })
			}
			if code(err) != noPart || try > 0 {
				return err
			}
			p.forget(b.Table) // another process has dropped a part meanwhile
		}
	}
	if err = load(b, nil); ofRow(err) {
		refused, why := p.sift(ctx, t, b.Rows)
		if why != nil || len(refused) == 0 {
			err = errors.Join(err, why)
		} else {
			err = load(b, refused)
		}
	}
	if code(err) == readOnly {
		p.reset()
	}
	if err != nil {
		return Loaded{}, fmt.Errorf("load into %s: %w", b.Table, p.explain(p.blocked(ctx, err, b.Table)))
	}
	return done, nil
}

// fill loads within a transaction.
func (p *postgres) fill(ctx context.Context, c *sql.Conn, t *Table, b *Batch, done *Loaded) error {
	have, err := p.lockMark(ctx, c, b.Source)
	if err != nil {
		return err
	}
	if !have.at(b.From) {
		return ErrMoved
	}
	if len(b.Rows) > 0 {
		// Who looks for keys, or computes buckets anew, has to see what others load into the table; who only adds rows, that it
		// is not altered meanwhile.
		lock := " FOR SHARE"
		if len(t.Key) > 0 || len(t.Rollups) > 0 {
			lock = " FOR UPDATE"
		}
		var one int
		if err := c.QueryRowContext(ctx, "SELECT 1 FROM naru_tables WHERE name = $1"+lock, t.Name).Scan(&one); errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("%w: %s", ErrNoTable, t.Name)
		} else if err != nil {
			return err
		}
		without := refusedOf(b.Rows, done.Refused)
		if done.Duplicates, err = p.duplicates(ctx, c, t, b.Rows, without); err != nil {
			return err
		}
		without = append(without, done.Duplicates...)
		slices.Sort(without)
		if err := copyRows(ctx, c, t, b.Rows, without); err != nil {
			return err
		}
		done.Rows = len(b.Rows) - len(without)
		err = rollup(t, b.Rows, without, done, p.dialect, func(s string, args ...any) error { _, err := c.ExecContext(ctx, s, args...); return err })
		if err != nil {
			return err
		}
	}
	return setMark(ctx, c, b, done, p.dialect)
}

// lockMark reads how far a source was loaded, and holds others that load it back until the transaction ends.
func (p *postgres) lockMark(ctx context.Context, c *sql.Conn, s Source) (Mark, error) {
	// Without a row there is nothing to lock, and two first loads would both go on.
	var one int
	err := c.QueryRowContext(ctx, "SELECT 1 FROM naru_marks WHERE consumer = $1 AND log = $2 AND generation = $3 AND partition = $4 FOR UPDATE",
		s.Consumer, s.Log.String(), int64(s.Generation), int64(s.Partition)).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		_, err = c.ExecContext(ctx, "INSERT INTO naru_marks (consumer, log, generation, partition, sequence, idx, fates) VALUES ($1, $2, $3, $4, 0, 0, '[]') ON CONFLICT DO NOTHING",
			s.Consumer, s.Log.String(), int64(s.Generation), int64(s.Partition))
	}
	if err != nil {
		return Mark{}, err
	}
	return mark(ctx, c, s, p.dialect, " FOR UPDATE")
}

// duplicates finds the rows whose key is there already, or for Again whose message; without those at the indexes.
func (p *postgres) duplicates(ctx context.Context, c *sql.Conn, t *Table, rows []Row, without []int) ([]int, error) {
	var kept []int // the index of each that is looked at
	if len(without) > 0 {
		all := rows
		rows = nil
		for i := range all {
			if !slices.Contains(without, i) {
				rows, kept = append(rows, all[i]), append(kept, i)
			}
		}
	}
	again := slices.ContainsFunc(rows, func(r Row) bool { return r.Again })
	if len(t.Key) == 0 && !again {
		return nil, nil
	}
	// There are few rows in the stage and many in the table; how many, the planner does not know.
	if err := simple(ctx, c, "SET LOCAL enable_hashjoin TO off; SET LOCAL enable_mergejoin TO off; SET LOCAL enable_seqscan TO off"); err != nil {
		return nil, err
	}
	columns := slices.DeleteFunc(slices.Clone(System), func(c Column) bool { return c.Name == "time" || c.Name == "device" || c.Name == "subject" })
	for _, k := range t.Key {
		if col, ok := t.column(k); ok && !slices.Contains(columns, col) {
			columns = append(columns, col)
		}
	}
	names, arrays, args := []string{"_again"}, []string{"$1::boolean[]"}, []any{}
	flags := make([]bool, len(rows))
	for i := range rows {
		flags[i] = rows[i].Again
	}
	args = append(args, flags)
	for _, col := range columns {
		values, err := arrayOf(t, col, rows)
		if err != nil {
			return nil, err
		}
		args = append(args, values)
		names = append(names, quote(col.Name))
		kind, _, _ := strings.Cut(pgTypes[col.Type], " COLLATE")
		arrays = append(arrays, "$"+strconv.Itoa(len(args))+"::"+kind+"[]")
	}
	d := p.dialect
	if !slices.ContainsFunc(rows, func(r Row) bool { return r.Again && r.Trace == "" }) {
		d.again = " AND t.trace_id = s.trace_id" // which has an index
	}
	statement := "WITH s AS MATERIALIZED (SELECT " + strings.Join(names, ", ") + ", _nth - 1 AS _ord FROM unnest(" + strings.Join(arrays, ", ") +
		") WITH ORDINALITY AS u(" + strings.Join(names, ", ") + ", _nth)) " + duplicates(t, "s", d)
	found, err := c.QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, err
	}
	list, err := ints(found)
	if err != nil {
		return nil, err
	}
	if kept != nil {
		for i := range list {
			list[i] = kept[list[i]]
		}
	}
	return list, simple(ctx, c, "SET LOCAL enable_hashjoin TO on; SET LOCAL enable_mergejoin TO on; SET LOCAL enable_seqscan TO on")
}

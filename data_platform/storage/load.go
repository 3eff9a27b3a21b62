// What both engines do where rows are loaded: which are duplicates, and how far a source was loaded.

package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// duplicates selects `_ord` of the staged rows whose key is in the table, or in a row before; and those that come again
// though their message is there. No field's name begins with _, so the names of what is staged with them are free.
func duplicates(t *Table, stage string, d dialect) string {
	var parts []string
	if len(t.Key) > 0 {
		var equal, keys []string
		for _, k := range t.Key {
			if d.equal != nil {
				c, _ := t.column(k)
				equal = append(equal, d.equal(c))
			} else {
				equal = append(equal, "t."+quote(k)+" = s."+quote(k))
			}
			keys = append(keys, quote(k))
		}
		list := strings.Join(keys, ", ")
		whole := strings.Join(keys, " IS NOT NULL AND ") + " IS NOT NULL" // a key that lacks a part is equal to none
		parts = append(parts, "SELECT s._ord FROM "+stage+" s WHERE EXISTS (SELECT 1 FROM "+quote(t.Name)+" t WHERE "+strings.Join(equal, " AND ")+")",
			"SELECT _ord FROM (SELECT _ord, row_number() OVER (PARTITION BY "+list+" ORDER BY _ord) AS _nth FROM "+stage+" WHERE "+whole+") n WHERE _nth > 1")
	}
	parts = append(parts, "SELECT s._ord FROM "+stage+" s WHERE s._again AND EXISTS (SELECT 1 FROM "+quote(t.Name)+" t WHERE t.recorded = s.recorded AND t.message_id = s.message_id"+d.again+")")
	return strings.Join(parts, " UNION ") + " ORDER BY 1"
}

func ints(rows *sql.Rows) (list []int, err error) {
	defer rows.Close()
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		list = append(list, n)
	}
	return list, rows.Err()
}

// mark reads how far a source was loaded; lock is added to the SELECT.
func mark(ctx context.Context, q querier, s Source, d dialect, lock string) (m Mark, err error) {
	var fates string
	err = q.QueryRowContext(ctx, "SELECT CAST(sequence AS BIGINT), idx, fates FROM "+d.own+"marks WHERE consumer = $1 AND log = $2 AND generation = $3 AND partition = $4"+lock,
		s.Consumer, s.Log.String(), int64(s.Generation), int64(s.Partition)).Scan(&m.Sequence, &m.Index, &fates)
	if errors.Is(err, sql.ErrNoRows) {
		return Mark{}, nil
	}
	if err != nil {
		return Mark{}, err
	}
	if err := json.Unmarshal([]byte(fates), &m.Fates); err != nil {
		return Mark{}, fmt.Errorf("read the fates of %s: %w", s.Consumer, err)
	}
	return m, nil
}

// setMark moves the mark of a batch, if it does. It gives ErrMoved where the mark is not at From.
func setMark(ctx context.Context, e execer, b *Batch, done *Loaded, d dialect) error {
	if b.From.at(b.Upto) {
		return nil
	}
	fates := slices.Clone(b.Upto.Fates)
	for _, i := range done.Duplicates {
		if p := b.Rows[i].Position; !b.Rows[i].Again {
			fates = append(fates, Fate{Sequence: p.Sequence, Index: p.Index})
		}
	}
	for _, r := range done.Refused {
		if x := &b.Rows[r.Row]; !x.Again {
			fates = append(fates, r.Fate(x.Position))
		}
	}
	if fates == nil {
		fates = []Fate{}
	}
	list, err := json.Marshal(fates)
	if err != nil {
		return err
	}
	s := b.Source
	args := []any{s.Consumer, s.Log.String(), int64(s.Generation), int64(s.Partition), int64(b.Upto.Sequence), int64(b.Upto.Index), string(list)}
	// Not INSERT … ON CONFLICT: with it a small transaction of DuckDB takes half as much CPU again (BenchmarkLoadFew).
	moved, err := e.ExecContext(ctx, "UPDATE "+d.own+`marks SET sequence = $5, idx = $6, fates = $7
		WHERE consumer = $1 AND log = $2 AND generation = $3 AND partition = $4 AND sequence = $8 AND idx = $9`, append(args, int64(b.From.Sequence), int64(b.From.Index))...)
	if err != nil {
		return err
	}
	if n, err := moved.RowsAffected(); n > 0 || err != nil {
		return err
	}
	if b.From.Sequence != 0 || b.From.Index != 0 {
		return ErrMoved
	}
	made, err := e.ExecContext(ctx, "INSERT INTO "+d.own+"marks (consumer, log, generation, partition, sequence, idx, fates) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING", args...)
	if err != nil {
		return err
	}
	if n, err := made.RowsAffected(); n > 0 || err != nil {
		return err
	}
	return ErrMoved
}

// sketch shows a value to a person, in short.
func sketch(v any) string {
	s := fmt.Sprintf("%q", fmt.Sprint(v))
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}

// refusedOf are the indexes of the rows that are refused, and of those of the same messages, in order.
func refusedOf(rows []Row, refused []Refused) (list []int) {
	for i := range rows {
		for _, r := range refused {
			if x := &rows[r.Row]; i == r.Row || x.Message == rows[i].Message {
				list = append(list, i)
				break
			}
		}
	}
	return list
}

// optional is a text, or null where it is empty.
func optional(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// A table's parts: each holds what was recorded in one stretch of time.

package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"
)

// part is one of a table's: what was recorded from (included) to (not).
type part struct {
	name     string
	from, to time.Time
}

func (p *part) holds(t time.Time) bool { return !t.Before(p.from) && t.Before(p.to) }

// short makes a name of at most 63 bytes that begins with naru_, which no dataset's does.
func short(table, what, more string) string {
	name := "naru_" + table + "_" + what
	if more == "" && len(name) <= 63 {
		return name
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(table + "\x00" + what + "\x00" + more))
	sum := strconv.FormatUint(h.Sum64(), 36)
	return name[:min(len(name), 62-len(sum))] + "_" + sum
}

// Grain is how much a part of the table holds, by time: retention is kept by dropping parts, so a row may stay that much
// longer. It is an eighth of the retention at most, but for very short ones.
func (p *postgres) Grain(t *Table) time.Duration {
	const day = 24 * time.Hour
	if t.Retention == 0 {
		return 7 * day
	}
	for _, w := range []time.Duration{28 * day, 7 * day, day, 6 * time.Hour} {
		if w*8 <= t.Retention {
			return w
		}
	}
	return time.Hour
}

// cover makes the parts that the rows go to, where they are not there; and before it is needed the next one.
func (p *postgres) cover(ctx context.Context, t *Table, rows []Row) error {
	if len(rows) == 0 {
		return nil
	}
	newest := rows[0].Recorded
	for i := range rows {
		if rows[i].Recorded.After(newest) {
			newest = rows[i].Recorded
		}
	}
	ahead := newest.Add(min(p.Grain(t)/8, 6*time.Hour))
	p.mu.Lock()
	list, known := p.parts[t.Name]
	p.mu.Unlock()
	lack := func() (times []time.Time) {
		for i := range rows {
			r := rows[i].Recorded
			if !slices.ContainsFunc(list, func(p part) bool { return p.holds(r) }) {
				times = append(times, r)
			}
		}
		return times
	}
	missing := lack()
	next := !slices.ContainsFunc(list, func(p part) bool { return p.holds(ahead) })
	if known && len(missing) == 0 && !next {
		return nil
	}
	err := p.transact(ctx, altering, func(c *sql.Conn) (err error) {
		if _, err := c.ExecContext(ctx, "SELECT pg_advisory_xact_lock(hashtext('naru'), hashtext($1))", p.options.Schema+"."+t.Name); err != nil {
			return err
		}
		if list, err = readParts(ctx, c, t.Name); err != nil {
			return err
		}
		for _, at := range append(lack(), ahead) {
			if !slices.ContainsFunc(list, func(p part) bool { return p.holds(at) }) {
				made, err := p.makePart(ctx, c, t, at, list)
				if err != nil {
					return err
				}
				list = append(list, made)
			}
		}
		return nil
	})
	if err != nil && len(missing) == 0 && known && ctx.Err() == nil && code(err) != "" {
		p.options.Log.Warn("make a table's part ahead of time; it is tried again", "dataset", t.Name, "error", p.explain(err))
		return nil
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.parts[t.Name] = list
	p.mu.Unlock()
	return nil
}

func (p *postgres) forget(table string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.parts, table)
}

func readParts(ctx context.Context, q querier, table string) (list []part, err error) {
	rows, err := q.QueryContext(ctx, "SELECT name, since, until FROM naru_parts WHERE of = $1 ORDER BY since", table)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var x part
		if err := rows.Scan(&x.name, &x.from, &x.to); err != nil {
			return nil, err
		}
		list = append(list, x)
	}
	return list, rows.Err()
}

// makePart makes the part that holds a time: as wide as parts of the table are now, and no further than its neighbours,
// which may be of another width.
func (p *postgres) makePart(ctx context.Context, c *sql.Conn, t *Table, at time.Time, list []part) (part, error) {
	width := p.Grain(t)
	from := time.Unix(bucketOf(at, width), 0).UTC()
	made := part{from: from, to: from.Add(width)}
	for _, x := range list {
		if !x.to.After(at) && x.to.After(made.from) {
			made.from = x.to
		}
		if x.from.After(at) && x.from.Before(made.to) {
			made.to = x.from
		}
	}
	made.name = short(t.Name, made.from.UTC().Format("20060102t15"), made.from.UTC().Format(time.RFC3339)+" "+made.to.UTC().Format(time.RFC3339))
	// A table that is attached holds up nobody who reads or loads; one that is made as a part would.
	for _, s := range []string{
		"CREATE TABLE " + quote(made.name) + " (LIKE " + quote(t.Name) + " INCLUDING DEFAULTS INCLUDING STORAGE)",
		"ALTER TABLE " + quote(t.Name) + " ATTACH PARTITION " + quote(made.name) + " FOR VALUES FROM (" + moment(made.from) + ") TO (" + moment(made.to) + ")",
	} {
		if err := simple(ctx, c, s); err != nil {
			return made, fmt.Errorf("make the part from %s: %w", made.from.Format(time.RFC3339), err)
		}
	}
	_, err := c.ExecContext(ctx, "INSERT INTO naru_parts (of, name, since, until) VALUES ($1, $2, $3, $4)", t.Name, made.name, made.from, made.to)
	return made, err
}

func moment(t time.Time) string { return text(t.UTC().Format("2006-01-02 15:04:05.999999") + "+00") }

// Trim as in [Store]: parts that are over are dropped, each by itself, and of the one in which before lies the rows deleted.
func (p *postgres) Trim(ctx context.Context, table string, before time.Time) (n int64, err error) {
	t, err := p.look(ctx, table)
	if err != nil {
		return 0, err
	}
	var list []part
	if err := p.transact(ctx, nil, func(c *sql.Conn) (err error) { list, err = readParts(ctx, c, t.Name); return err }); err != nil {
		return 0, fmt.Errorf("trim %s: %w", table, p.explain(err))
	}
	var faults []error
	for _, x := range list {
		var gone int64
		switch {
		case !x.from.Before(before):
			continue
		case x.to.After(before):
			gone, err = p.deleteBefore(ctx, x, before)
		default:
			gone, err = p.drop(ctx, t, x)
		}
		n += gone
		if err != nil {
			faults = append(faults, fmt.Errorf("trim %s: %w", table, p.explain(p.blocked(ctx, err, t.Name))))
		}
	}
	return n, errors.Join(faults...)
}

func (p *postgres) deleteBefore(ctx context.Context, x part, before time.Time) (n int64, err error) {
	err = p.transact(ctx, loading, func(c *sql.Conn) error {
		res, err := c.ExecContext(ctx, "DELETE FROM "+quote(x.name)+" WHERE recorded < $1", before.UTC())
		if err == nil {
			n, err = res.RowsAffected()
		}
		return err
	})
	return n, err
}

func (p *postgres) drop(ctx context.Context, t *Table, x part) (n int64, err error) {
	// Counted before, since nobody can read the table while it is dropped.
	err = p.transact(ctx, nil, func(c *sql.Conn) error {
		return c.QueryRowContext(ctx, "SELECT count(*) FROM "+quote(x.name)).Scan(&n)
	})
	if err != nil {
		return 0, err
	}
	err = p.transact(ctx, altering, func(c *sql.Conn) error {
		if _, err := c.ExecContext(ctx, "SELECT pg_advisory_xact_lock(hashtext('naru'), hashtext($1))", p.options.Schema+"."+t.Name); err != nil {
			return err
		}
		if err := simple(ctx, c, "DROP TABLE "+quote(x.name)); err != nil {
			return err
		}
		_, err := c.ExecContext(ctx, "DELETE FROM naru_parts WHERE name = $1", x.name)
		return err
	})
	if err != nil {
		return 0, err
	}
	p.forget(t.Name)
	return n, nil
}

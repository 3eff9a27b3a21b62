// Tables as PostgreSQL has them: types, aggregates, keys, and what makes and changes them.

package storage

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"
)

// migrations make naru's own tables, one after the other; what was done once is not changed any more.
var migrations = []string{
	`CREATE TABLE naru_tables (name text COLLATE "C" PRIMARY KEY, shape text NOT NULL);
	CREATE TABLE naru_marks (consumer text COLLATE "C", log text COLLATE "C", generation bigint, partition bigint, sequence bigint NOT NULL, idx bigint NOT NULL,
		fates text NOT NULL, PRIMARY KEY (consumer, log, generation, partition)) WITH (fillfactor = 50);
	CREATE TABLE naru_parts (of text COLLATE "C", name text COLLATE "C" NOT NULL UNIQUE, since timestamptz, until timestamptz NOT NULL, PRIMARY KEY (of, since))`,
}

// migrate brings naru's own tables to this version. Of several processes that begin at once, one does.
func (p *postgres) migrate(ctx context.Context) error {
	err := p.transact(ctx, []string{"SET LOCAL statement_timeout TO " + milliseconds(loadMost)}, func(c *sql.Conn) error {
		if _, err := c.ExecContext(ctx, "SELECT pg_advisory_xact_lock(hashtext('naru'), hashtext($1))", p.options.Schema); err != nil {
			return err
		}
		var there bool
		if err := c.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)", p.options.Schema).Scan(&there); err != nil {
			return err
		}
		if !there { // with IF NOT EXISTS the right to make one would be asked for where it is there, too
			if err := simple(ctx, c, "CREATE SCHEMA "+quote(p.options.Schema)); err != nil {
				return err
			}
		}
		if err := simple(ctx, c, "CREATE TABLE IF NOT EXISTS naru_version (version int PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())"); err != nil {
			return err
		}
		var have int
		if err := c.QueryRowContext(ctx, "SELECT coalesce(max(version), 0) FROM naru_version").Scan(&have); err != nil {
			return err
		}
		if have > len(migrations) {
			return fmt.Errorf("the tables in schema %s are of version %d, made by a newer naru; this one knows %d: update it", p.options.Schema, have, len(migrations))
		}
		for i := have; i < len(migrations); i++ {
			if err := simple(ctx, c, migrations[i]); err != nil {
				return fmt.Errorf("bring the tables to version %d: %w", i+1, err)
			}
			if _, err := c.ExecContext(ctx, "INSERT INTO naru_version (version) VALUES ($1)", i+1); err != nil {
				return err
			}
		}
		return p.readStored(ctx, c)
	})
	if err != nil {
		return err
	}
	return p.makeReader(ctx)
}

var pgTypes = map[Type]string{Bool: "boolean", Int: "bigint", Double: "double precision", Text: `text COLLATE "C"`, Time: "timestamptz",
	JSON:  "json", // and not jsonb, which makes 1.0 of 1.00, forgets which of two names came last, and takes no \u0000
	Bytes: "bytea", UUID: "uuid"}

func pgBucket(every time.Duration, column string) string {
	return fmt.Sprintf("date_bin('%d seconds', %s, TIMESTAMPTZ '2000-01-03 00:00:00+00')", int64(every/time.Second), column)
}

// pgValue gives aggregates the types that DuckDB's have, and those that PostgreSQL lacks.
func pgValue(function string, c Column) string {
	of := "t." + quote(c.Name)
	switch {
	case function == "count":
		return "count(" + of + ")"
	case c.Type == Double && function == "sum":
		return "sum(" + bounded(of) + ")"
	case c.Type == Double && function == "avg":
		return "(sum(" + bounded(of) + ") / nullif(count(" + of + "), 0))"
	case c.Type == Int && function == "avg":
		return "avg(" + of + ")::double precision"
	case c.Type == Int && function == "sum":
		return "sum(" + of + ")::numeric(38, 0)"
	case c.Type == Bool && function == "min":
		return "bool_and(" + of + ")"
	case c.Type == Bool && function == "max":
		return "bool_or(" + of + ")"
	case c.Type == Bytes:
		return "decode(" + function + "(encode(" + of + `, 'hex') COLLATE "C"), 'hex')`
	case c.Type == JSON || c.Type == UUID:
		return function + "(" + of + `::text COLLATE "C")::` + pgTypes[c.Type]
	}
	return function + "(" + of + ")"
}

// bounded makes a double that a sum could overflow with infinite: PostgreSQL ends the statement where DuckDB gives infinity, and
// a device that says 1e308 twice would hold its dataset up. Its avg is not used, which overflows by the square.
func bounded(of string) string {
	return "CASE WHEN abs(" + of + ") < 1e290 THEN " + of + " ELSE " + of + " * double precision 'Infinity' END"
}

// hashed is a column of a key as its index has it: what may be long by its hash, since an index takes no more than 2.7 KB.
func hashed(of string, c Column) string {
	name := of + quote(c.Name)
	switch {
	case c.Type == Text && c.Name != "device" && c.Name != "trace_id":
		return "hashtextextended(" + name + ", 0)"
	case c.Type == Bytes:
		return "hashtextextended(encode(" + name + ", 'hex'), 0)"
	}
	return name
}

func pgEqual(c Column) string {
	equal := "t." + quote(c.Name) + " = s." + quote(c.Name)
	if h := hashed("t.", c); h != "t."+quote(c.Name) {
		return h + " = " + hashed("s.", c) + " AND " + equal
	}
	return equal
}

// create makes a table of parts by `recorded`, which the platform sets: retention counts from there, and what comes in goes
// to one part. By `time`, which a device sets, one wrong clock would want a part of 1970, and a late day would fill old parts.
func (p *postgres) create(t *Table) []string {
	name := quote(t.Name)
	return []string{
		"CREATE TABLE " + name + " (" + columnsOf(t, p.dialect) + ") PARTITION BY RANGE (recorded)",
		"CREATE INDEX ON " + name + ` (device, "time")`,
		"CREATE INDEX ON " + name + ` ("time", message_id)`,
		"CREATE INDEX ON " + name + " (trace_id)",
	}
}

// after makes the index of the key, and lets queries read.
func (p *postgres) after(t *Table) (list []string) {
	if len(t.Key) > 0 {
		var columns []string
		for _, k := range t.Key {
			c, _ := t.column(k)
			columns = append(columns, "("+hashed("", c)+")")
		}
		list = append(list, "CREATE INDEX IF NOT EXISTS "+quote(short(t.Name, "key", strings.Join(t.Key, ",")))+" ON "+quote(t.Name)+" ("+strings.Join(columns, ", ")+")")
	}
	names := []string{t.Name}
	for _, r := range t.Rollups {
		names = append(names, r.Name)
		list = append(list, "CREATE INDEX IF NOT EXISTS "+quote(short(r.Name, "time", ""))+" ON "+quote(r.Name)+` ("time")`)
	}
	if p.reader != "" {
		for _, n := range names {
			list = append(list, "GRANT SELECT ON "+quote(n)+" TO "+quote(p.reader))
		}
	}
	return list
}

// Ensure as in [Store].
func (p *postgres) Ensure(ctx context.Context, t Table) error {
	if err := t.Valid(); err != nil {
		return err
	}
	if have, ok := p.ensured.get(t.Name); ok && same(have, &t) {
		return nil
	}
	err := p.transact(ctx, altering, func(c *sql.Conn) error {
		// One process at a time, and none that loads into it meanwhile: in the order in which a load locks.
		if _, err := c.ExecContext(ctx, "SELECT pg_advisory_xact_lock(hashtext('naru'), hashtext($1))", p.options.Schema); err != nil {
			return err
		}
		if _, err := c.ExecContext(ctx, "SELECT 1 FROM naru_tables WHERE name = $1 FOR UPDATE", t.Name); err != nil {
			return err
		}
		if err := p.readStored(ctx, c); err != nil {
			return err
		}
		have, _ := p.stored.get(t.Name)
		if have != nil && same(have, &t) {
			return nil
		}
		return ensure(have, &t, p.stored.owners(), p.dialect, func(s string) error { return simple(ctx, c, s) })
	})
	if err != nil {
		return fmt.Errorf("make table %s: %w", t.Name, p.explain(p.blocked(ctx, err, t.Name)))
	}
	p.stored.put(t)
	p.ensured.put(t)
	return nil
}

// What DuckDB and PostgreSQL say alike.

package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/message"
)

// quote makes a name an identifier, and text a literal.
func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
func text(s string) string     { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func join(list []int) string {
	var b strings.Builder
	for i, n := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(n))
	}
	return b.String()
}

// names are the columns' names, as a list.
func (t *Table) names(of string) string {
	var list []string
	for _, c := range t.all() {
		list = append(list, of+quote(c.Name))
	}
	return strings.Join(list, ", ")
}

// tables is what was ensured, in memory; the database has it too.
type tables struct {
	mu     sync.Mutex
	byName map[string]*Table
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func (s *tables) read(ctx context.Context, q querier, d dialect) error {
	rows, err := q.QueryContext(ctx, "SELECT shape FROM "+d.own+"tables")
	if err != nil {
		return err
	}
	defer rows.Close()
	all := map[string]*Table{}
	for rows.Next() {
		var shape string
		t := new(Table)
		if err := rows.Scan(&shape); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(shape), t); err != nil {
			return fmt.Errorf("read what tables there are: %w", err)
		}
		all[t.Name] = t
	}
	s.mu.Lock()
	s.byName = all
	s.mu.Unlock()
	return rows.Err()
}

func (s *tables) get(name string) (*Table, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.byName[name]
	return t, ok
}

func (s *tables) put(t Table) {
	t.Columns, t.Key, t.Rollups = slices.Clone(t.Columns), slices.Clone(t.Key), slices.Clone(t.Rollups) // the caller's may change
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byName[t.Name] = &t
}

func (s *tables) list() (list []Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.byName {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b Table) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// owners tells for each name of a table or roll-up whose it is.
func (s *tables) owners() map[string]string {
	m := map[string]string{}
	for _, t := range s.list() {
		m[t.Name] = t.Name
		for _, r := range t.Rollups {
			m[r.Name] = t.Name
		}
	}
	return m
}

func same(a, b *Table) bool { return reflect.DeepEqual(*a, *b) }

// dialect is what the engines say differently.
type dialect struct {
	own    string // what the names of naru's own tables begin with
	types  map[Type]string
	kept   map[string]string // how columns of the system are kept, by name, where that is said
	bucket func(every time.Duration, column string) string
	// The others may be nil, for what is plain.
	value  func(function string, c Column) string // what an aggregate of column t.c is
	equal  func(c Column) string                  // whether the column is equal in t and s, where it is part of a key
	again  string                                 // what else tells that a message is there
	create func(t *Table) []string                // statements that make a table of rows
	after  func(t *Table) []string                // statements once the table and its roll-ups are as they are to be
}

// ensure brings a table from what it is, which is nil for none, to what it is to be.
func ensure(have, want *Table, owners map[string]string, d dialect, run func(string) error) error {
	for _, name := range append([]string{want.Name}, rollupNames(want)...) {
		if of := owners[name]; of != "" && of != want.Name {
			return fmt.Errorf("the name %s is taken by dataset %s", name, of)
		}
	}
	do := func(list ...string) error {
		for _, s := range list {
			if err := run(s); err != nil {
				return fmt.Errorf("%s: %w", firstLine(s), err)
			}
		}
		return nil
	}
	if have == nil {
		if err := do(creation(want, d)...); err != nil {
			return err
		}
	} else if err := alter(have, want, d, do); err != nil {
		return err
	}
	for _, r := range want.Rollups {
		if have != nil {
			if slices.ContainsFunc(have.Rollups, func(o Rollup) bool { return reflect.DeepEqual(o, r) }) {
				if err := do(widen(have, want, &r, d)...); err != nil {
					return err
				}
				continue
			}
			if err := do("DROP TABLE IF EXISTS " + quote(r.Name)); err != nil {
				return err
			}
		}
		if err := do("CREATE TABLE " + quote(r.Name) + " AS " + rolled(want, &r, "", d)); err != nil {
			return err
		}
	}
	if have != nil {
		for _, r := range have.Rollups {
			if !slices.Contains(rollupNames(want), r.Name) {
				if err := do("DROP TABLE IF EXISTS " + quote(r.Name)); err != nil {
					return err
				}
			}
		}
	}
	if d.after != nil {
		if err := do(d.after(want)...); err != nil {
			return err
		}
	}
	shape, err := json.Marshal(want)
	if err != nil {
		return err
	}
	return do("INSERT INTO " + d.own + "tables (name, shape) VALUES (" + text(want.Name) + ", " + text(string(shape)) + ") ON CONFLICT (name) DO UPDATE SET shape = excluded.shape")
}

// widen are the statements that widen the columns of a roll-up as those were that they are made of.
func widen(have, want *Table, r *Rollup, d dialect) (list []string) {
	widened := func(name string) bool {
		old, _ := have.column(name)
		c, _ := want.column(name)
		return old.Type == Int && c.Type == Double
	}
	add := func(column string) {
		list = append(list, "ALTER TABLE "+quote(r.Name)+" ALTER COLUMN "+quote(column)+" TYPE "+d.types[Double])
	}
	for _, b := range r.By {
		if widened(b) {
			add(b)
		}
	}
	for _, v := range r.Values {
		for _, f := range v.Functions {
			if f != "count" && f != "avg" && widened(v.Column) {
				add(v.Column + "_" + f)
			}
		}
	}
	return list
}

func rollupNames(t *Table) (list []string) {
	for _, r := range t.Rollups {
		list = append(list, r.Name)
	}
	return list
}

func creation(t *Table, d dialect) []string {
	if d.create != nil {
		return d.create(t)
	}
	return []string{"CREATE TABLE " + quote(t.Name) + " (" + columnsOf(t, d) + ")"}
}

func columnsOf(t *Table, d dialect) string {
	var list []string
	for _, c := range t.all() {
		s := quote(c.Name) + " " + d.types[c.Type]
		if c.Name != "device" && c.Name != "trace_id" && slices.Contains(System, c) {
			s += " NOT NULL"
		}
		if kept, ok := d.kept[c.Name]; ok {
			s += " " + kept
		}
		list = append(list, s)
	}
	return strings.Join(list, ", ")
}

// alter adds and widens columns. Columns that are wanted no more stay, and are null from then on: what is there is not
// thrown away because a model says less.
func alter(have, want *Table, d dialect, do func(...string) error) error {
	kept := slices.Clone(want.Columns)
	for _, old := range have.Columns {
		if _, ok := want.column(old.Name); !ok {
			return fmt.Errorf("column %s is in the table and not in the model any more; its values would be lost. Keep the field, or begin a new dataset", old.Name)
		}
	}
	for _, c := range kept {
		old, ok := have.column(c.Name)
		switch {
		case !ok:
			if err := do("ALTER TABLE " + quote(want.Name) + " ADD COLUMN " + quote(c.Name) + " " + d.types[c.Type]); err != nil {
				return err
			}
		case old.Type == c.Type:
		case old.Type == Int && c.Type == Double:
			if err := do("ALTER TABLE " + quote(want.Name) + " ALTER COLUMN " + quote(c.Name) + " TYPE " + d.types[c.Type]); err != nil {
				return err
			}
		default:
			return fmt.Errorf("column %s is %s in the table and %s in the model; only int becomes double. Begin a new dataset", c.Name, old.Type, c.Type)
		}
	}
	return nil
}

// rolled is the SELECT of a roll-up over the rows of a table.
func rolled(t *Table, r *Rollup, where string, d dialect) string {
	list, group := []string{d.bucket(r.Every, `t."time"`) + ` AS "time"`}, []string{"1"}
	for i, b := range r.By {
		list = append(list, "t."+quote(b))
		group = append(group, strconv.Itoa(i+2))
	}
	list = append(append(list, "count(*) AS rows"), values(t, r.Values, d)...)
	if t.Late > 0 {
		late := "t.recorded - t.\"time\" <= INTERVAL '" + strconv.FormatFloat(t.Late.Seconds(), 'f', -1, 64) + " seconds'"
		if where == "" {
			where = " WHERE " + late
		} else {
			where += " AND " + late
		}
	}
	return "SELECT " + strings.Join(list, ", ") + " FROM " + quote(t.Name) + " t" + where + " GROUP BY " + strings.Join(group, ", ")
}

func values(t *Table, list []RollupValue, d dialect) (out []string) {
	for _, v := range list {
		c, _ := t.column(v.Column)
		for _, f := range v.Functions {
			s := f + "(t." + quote(v.Column) + ")"
			if d.value != nil {
				s = d.value(f, c)
			}
			out = append(out, s+" AS "+quote(v.Column+"_"+f))
		}
	}
	return out
}

// rollup computes anew the buckets that rows fall into, and counts those that came too late.
func rollup(t *Table, rows []Row, but []int, done *Loaded, d dialect, run func(string, ...any) error) error {
	if len(t.Rollups) == 0 {
		return nil
	}
	skip := map[int]bool{}
	for _, i := range but {
		skip[i] = true
	}
	var times []time.Time
	for i := range rows {
		switch r := &rows[i]; {
		case skip[i]:
		case t.Late > 0 && r.Recorded.Sub(r.Time) > t.Late:
			done.Late++
		default:
			times = append(times, r.Time)
		}
	}
	for _, r := range t.Rollups {
		buckets := map[int64]bool{}
		for _, x := range times {
			buckets[bucketOf(x, r.Every)] = true
		}
		var starts []int64
		for b := range buckets {
			starts = append(starts, b)
		}
		slices.Sort(starts)
		// Neighbours are one range, so that a batch of one device's past is few statements.
		for i := 0; i < len(starts); {
			j := i + 1
			every := int64(r.Every / time.Second)
			for j < len(starts) && starts[j] == starts[j-1]+every {
				j++
			}
			from, to := time.Unix(starts[i], 0).UTC(), time.Unix(starts[j-1]+every, 0).UTC()
			if err := run("DELETE FROM "+quote(r.Name)+` WHERE "time" >= $1 AND "time" < $2`, from, to); err != nil {
				return err
			}
			if err := run("INSERT INTO "+quote(r.Name)+" "+rolled(t, &r, ` WHERE t."time" >= $1 AND t."time" < $2`, d), from, to); err != nil {
				return err
			}
			i = j
		}
	}
	return nil
}

// origin is where buckets are counted from: a Monday, as in both engines.
var origin = time.Date(2000, 1, 3, 0, 0, 0, 0, time.UTC).Unix()

func bucketOf(t time.Time, every time.Duration) int64 {
	e := int64(every / time.Second)
	n := t.Unix() - origin
	n -= ((n % e) + e) % e
	return n + origin
}

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
	// Not INSERT … ON CONFLICT: that is a join for DuckDB, and takes several times as long.
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

// latest is the newest row of a device.
func latest(t *Table, device string) (string, []any) {
	return "SELECT " + t.names("") + " FROM " + quote(t.Name) + ` WHERE device = $1 ORDER BY "time" DESC, recorded DESC LIMIT 1`, []any{device}
}

func (s *Span) limit() int {
	if s.Limit <= 0 {
		return 1000
	}
	return s.Limit
}

// where is the condition of a span.
func (s *Span) where() (string, []any) {
	var list []string
	var args []any
	add := func(condition string, v any) {
		args = append(args, v)
		list = append(list, condition+" $"+strconv.Itoa(len(args)))
	}
	if s.Device != "" {
		add("t.device =", s.Device)
	}
	if !s.From.IsZero() {
		add(`t."time" >=`, s.From.UTC())
	}
	if !s.To.IsZero() {
		add(`t."time" <`, s.To.UTC())
	}
	if !s.After.IsZero() {
		beyond := ">"
		if s.Newest {
			beyond = "<"
		}
		add(`t."time" `+beyond+"=", s.After.Time.UTC()) // said apart, since both engines find it by an index or by a block's bounds
		at := "$" + strconv.Itoa(len(args))
		args = append(args, s.After.Message.String())
		list = append(list, `(t."time" `+beyond+" "+at+" OR t.message_id "+beyond+" CAST($"+strconv.Itoa(len(args))+" AS UUID))")
	}
	if list == nil {
		return "", nil
	}
	return " WHERE " + strings.Join(list, " AND "), args
}

func span(t *Table, s *Span) (string, []any, error) {
	names := t.names("")
	if len(s.Columns) > 0 {
		var list []string
		for _, c := range s.Columns {
			if _, ok := t.column(c); !ok {
				return "", nil, refuse("dataset %s has no column %s; there are %s", t.Name, c, strings.ReplaceAll(names, `"`, ""))
			}
			list = append(list, quote(c))
		}
		names = strings.Join(list, ", ")
	}
	where, args := s.where()
	order := `t."time", t.message_id`
	if s.Newest {
		order = `t."time" DESC, t.message_id DESC`
	}
	return "SELECT " + names + " FROM " + quote(t.Name) + " t" + where + " ORDER BY " + order + " LIMIT " + strconv.Itoa(s.limit()+1), args, nil
}

func aggregate(t *Table, a *Aggregation, d dialect) (string, []any, error) {
	types := map[string]Type{}
	for _, c := range t.all() {
		types[c.Name] = c.Type
	}
	if err := t.validValues(a.Values, types); err != nil {
		return "", nil, refuse("dataset %s: %v", t.Name, err)
	}
	var list, group []string
	if a.Every > 0 {
		if a.Every%time.Second != 0 {
			return "", nil, refuse("buckets of %v: want whole seconds", a.Every)
		}
		list, group = append(list, d.bucket(a.Every, `t."time"`)+` AS "time"`), append(group, "1")
	}
	for _, b := range a.By {
		if types[b] == "" {
			return "", nil, refuse("dataset %s has no column %s", t.Name, b)
		}
		list = append(list, "t."+quote(b))
		group = append(group, strconv.Itoa(len(list)))
	}
	list = append(list, values(t, a.Values, d)...)
	where, args := a.where()
	s := "SELECT " + strings.Join(list, ", ") + " FROM " + quote(t.Name) + " t" + where
	if len(group) > 0 {
		order := slices.Clone(group)
		if a.Newest {
			order[0] += " DESC"
		}
		s += " GROUP BY " + strings.Join(group, ", ") + " ORDER BY " + strings.Join(order, ", ")
	}
	return s + " LIMIT " + strconv.Itoa(a.limit()+1), args, nil
}

func byTrace(all []Table, trace string) (string, []any) {
	var list []string
	for _, t := range all {
		list = append(list, "SELECT "+text(t.Name)+` AS dataset, "time", device, subject, message_id, recorded FROM `+quote(t.Name)+" WHERE trace_id = $1")
	}
	if list == nil {
		return "", nil
	}
	return strings.Join(list, " UNION ALL ") + " ORDER BY recorded, dataset", []any{trace}
}

func traced(r *Result) (list []Traced, err error) {
	for row, err := range r.Rows() {
		if err != nil {
			return nil, err
		}
		x := Traced{Dataset: row[0].(string), Time: row[1].(time.Time), Subject: row[3].(string), Recorded: row[5].(time.Time)}
		x.Device, _ = row[2].(string)
		if x.Message, err = message.ParseID(row[4].(string)); err != nil {
			return nil, err
		}
		list = append(list, x)
	}
	return list, nil
}

func between(from, to time.Time) (string, error) {
	var list []string
	for _, c := range []struct {
		condition string
		at        time.Time
	}{{`"time" >= `, from}, {`"time" < `, to}} {
		if !c.at.IsZero() {
			list = append(list, c.condition+"TIMESTAMPTZ "+text(c.at.UTC().Format("2006-01-02 15:04:05.999999")+"+00"))
		}
	}
	if !from.IsZero() && !to.IsZero() && !to.After(from) {
		return "", refuse("from %s to %s: nothing lies between", from.Format(time.RFC3339), to.Format(time.RFC3339))
	}
	if list == nil {
		return "", nil
	}
	return " WHERE " + strings.Join(list, " AND "), nil
}

func stats(ctx context.Context, q querier, t *Table) (s Stats, err error) {
	var oldest, newest, last sql.NullTime
	err = q.QueryRowContext(ctx, `SELECT count(*), min("time"), max("time"), max(recorded) FROM `+quote(t.Name)).Scan(&s.Rows, &oldest, &newest, &last)
	s.Oldest, s.Newest, s.Last = oldest.Time.UTC(), newest.Time.UTC(), last.Time.UTC()
	if s.Rows == 0 {
		s.Oldest, s.Newest, s.Last = time.Time{}, time.Time{}, time.Time{}
	}
	return s, err
}

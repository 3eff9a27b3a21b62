// What both engines are asked alike.

package storage

import (
	"context"
	"database/sql"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
)

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

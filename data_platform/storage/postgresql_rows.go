// What a row is to PostgreSQL: COPY's binary form, and arrays.

package storage

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"
)

// epoch is where PostgreSQL counts a time's microseconds from.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()

// copyHeader is COPY's signature, with no flags and nothing more.
var copyHeader = append([]byte("PGCOPY\n\xff\r\n\x00"), make([]byte, 8)...)

// copyRows copies the rows into the table, without those at the indexes, which are in order.
func copyRows(ctx context.Context, c *sql.Conn, t *Table, rows []Row, without []int) error {
	if len(without) == len(rows) {
		return nil
	}
	b := append(make([]byte, 0, 128*len(rows)), copyHeader...)
	for i := range rows {
		if len(without) > 0 && without[0] == i {
			without = without[1:]
			continue
		}
		var err error
		if b, err = appendCopy(b, t, &rows[i]); err != nil {
			return err
		}
	}
	b = append(b, 0xff, 0xff) // the end
	return c.Raw(func(raw any) error {
		_, err := raw.(*stdlib.Conn).Conn().PgConn().CopyFrom(ctx, bytes.NewReader(b), "COPY "+quote(t.Name)+" ("+t.names("")+") FROM STDIN (FORMAT binary)")
		return err
	})
}

// ofRow says whether an error may be one row's fault: its data, or its size.
func ofRow(err error) bool {
	c := code(err)
	return len(c) == 5 && (c[:2] == "22" || c[:2] == "54")
}

var inColumn = regexp.MustCompile(`column ([a-z0-9_]+)`)

// sift finds the rows that the table does not take, by halves, in a transaction that leaves nothing.
func (p *postgres) sift(ctx context.Context, t *Table, rows []Row) (list []Refused, err error) {
	if err := p.cover(ctx, t, rows); err != nil {
		return nil, err
	}
	nothing := errors.New("nothing is kept")
	err = p.transact(ctx, loading, func(c *sql.Conn) error {
		var try func(from, to int) error
		try = func(from, to int) error {
			if err := simple(ctx, c, "SAVEPOINT sift"); err != nil {
				return err
			}
			err := copyRows(ctx, c, t, rows[from:to], nil)
			if err == nil || !ofRow(err) {
				return err
			}
			if err := simple(ctx, c, "ROLLBACK TO sift"); err != nil {
				return err
			}
			if to-from > 1 {
				half := from + (to-from)/2
				return errors.Join(try(from, half), try(half, to))
			}
			var e *pgconn.PgError
			errors.As(err, &e)
			what := "a row"
			if m := inColumn.FindStringSubmatch(e.Where); m != nil {
				what = m[1]
				if i := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == m[1] }); i >= 0 && i < len(rows[from].Values) {
					what += " is " + sketch(rows[from].Values[i])
				}
			}
			list = append(list, Refused{from, what + ", which PostgreSQL does not hold: " + e.Message})
			return nil
		}
		if err := try(0, len(rows)); err != nil {
			return err
		}
		return nothing
	})
	if errors.Is(err, nothing) {
		err = nil
	}
	return list, err
}

func appendCopy(b []byte, t *Table, r *Row) ([]byte, error) {
	if len(r.Values) != len(t.Columns) {
		return nil, fmt.Errorf("a row of %s has %d values for %d columns", t.Name, len(r.Values), len(t.Columns))
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(System)+len(t.Columns)))
	b = appendInt(b, r.Time.UnixMicro()-epoch)
	b = appendOptional(b, r.Device)
	b = appendText(b, r.Subject)
	b = appendOptional(b, r.Trace)
	b = append(append(b, 0, 0, 0, 16), r.Message[:]...)
	b = appendInt(b, r.Recorded.UnixMicro()-epoch)
	for i, v := range r.Values {
		var ok bool
		if b, ok = appendValue(b, t.Columns[i].Type, v); !ok {
			return nil, fmt.Errorf("column %s is %s, and a row has %v (%T) for it", t.Columns[i].Name, t.Columns[i].Type, v, v)
		}
	}
	return b, nil
}

func appendInt(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0, 0, 0, 8), uint64(n))
}

func appendText[T string | []byte | json.RawMessage](b []byte, s T) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func appendOptional(b []byte, s string) []byte {
	if s == "" {
		return append(b, 0xff, 0xff, 0xff, 0xff)
	}
	return appendText(b, s)
}

// appendValue appends a value of a column's type, or none where it is nil.
func appendValue(b []byte, t Type, v any) ([]byte, bool) {
	switch v := v.(type) {
	case nil:
		return append(b, 0xff, 0xff, 0xff, 0xff), true
	case bool:
		if v {
			return append(b, 0, 0, 0, 1, 1), t == Bool
		}
		return append(b, 0, 0, 0, 1, 0), t == Bool
	case int64:
		if t == Double {
			return appendInt(b, int64(math.Float64bits(float64(v)))), true
		}
		return appendInt(b, v), t == Int
	case float64:
		return appendInt(b, int64(math.Float64bits(v))), t == Double
	case string:
		return appendText(b, v), t == Text || t == JSON
	case time.Time:
		return appendInt(b, v.UnixMicro()-epoch), t == Time
	case json.RawMessage:
		return appendText(b, v), t == JSON
	case []byte:
		return appendText(b, v), t == Bytes
	}
	return b, false
}

// arrayOf are the values of a column, as an array.
func arrayOf(t *Table, c Column, rows []Row) (any, error) {
	get := func(r *Row) any {
		switch c.Name {
		case "time":
			return r.Time
		case "device":
			return optional(r.Device)
		case "subject":
			return r.Subject
		case "trace_id":
			return optional(r.Trace)
		case "message_id":
			return r.Message
		case "recorded":
			return r.Recorded
		}
		for i := range t.Columns {
			if t.Columns[i].Name == c.Name && i < len(r.Values) {
				return r.Values[i]
			}
		}
		return nil
	}
	switch c.Type {
	case Bool:
		return array[bool](rows, c, get)
	case Int:
		return array[int64](rows, c, get)
	case Double:
		return array[float64](rows, c, get)
	case Text:
		return array[string](rows, c, get)
	case Time:
		return array[time.Time](rows, c, get)
	case Bytes:
		list := make([][]byte, len(rows))
		for i := range rows {
			list[i], _ = get(&rows[i]).([]byte)
		}
		return list, nil
	case UUID:
		list := make([]pgtype.UUID, len(rows))
		for i := range rows {
			list[i] = pgtype.UUID{Bytes: rows[i].Message, Valid: true}
		}
		return list, nil
	}
	return nil, fmt.Errorf("key: column %s is %s, and two of them cannot be compared", c.Name, c.Type)
}

func array[T any](rows []Row, c Column, get func(*Row) any) (any, error) {
	list := make([]*T, len(rows))
	for i := range rows {
		switch v := get(&rows[i]).(type) {
		case nil:
		case T:
			list[i] = &v
		default:
			return nil, fmt.Errorf("column %s is %s, and a row has %v (%T) for it", c.Name, c.Type, v, v)
		}
	}
	return list, nil
}

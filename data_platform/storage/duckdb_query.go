// Queries of DuckDB: what may be asked, and what the values of an answer are.

package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/duckdb/duckdb-go/v2"

	"github.com/naru-platform/naru/message"
)

// Query as in [Store].
func (d *duck) Query(ctx context.Context, statement string, args []any, l Limits) (*Result, error) {
	if n := d.stuck.Load(); n >= stuckMax {
		return nil, fmt.Errorf("%w: %d queries run beyond their time, and cannot be stopped where they are; they end by themselves, or with the process", ErrBusy, n)
	}
	type answered struct {
		r   *Result
		err error
	}
	done := make(chan answered, 1)
	l = l.withDefaults()
	go aside(func() {
		r, err := d.query(ctx, statement, args, l, true)
		done <- answered{r, err}
	})
	late := time.NewTimer(l.Timeout + stopPatience)
	defer late.Stop()
	gone := ctx.Done()
	for {
		select {
		case a := <-done:
			return a.r, a.err
		case <-gone:
			gone = nil
			late.Reset(stopPatience)
		case <-late.C:
			// DuckDB looks up from its work between vectors of rows, and some expressions take their time with one. Nobody waits
			// for that; it is counted as long as it runs.
			d.stuck.Add(1)
			go func() {
				if a := <-done; a.r != nil {
					_ = a.r.Close() // nobody reads it
				}
				d.stuck.Add(-1)
			}()
			return nil, refuse("the query took longer than %v, and cannot be stopped where it is; ask for less", l.Timeout)
		}
	}
}

const (
	// stopPatience is how long a query has to stop once it is told to.
	stopPatience = 3 * time.Second
	// stuckMax is how many queries may run on though nobody waits for them.
	stuckMax = 2
)

func (d *duck) query(ctx context.Context, statement string, args []any, l Limits, guarded bool) (*Result, error) {
	l = l.withDefaults()
	if err := readable(args); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	var r *Result
	err := d.use(ctx, func(db *sql.DB) error {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		fail := func(err error) error {
			return errors.Join(d.asker(ctx, err, l, guarded), c.Close())
		}
		if guarded {
			if err := inspect(ctx, c, statement, slices.Sorted(maps.Keys(d.tables.owners())), args); err != nil {
				return fail(err)
			}
		}
		if _, err := c.ExecContext(ctx, "BEGIN TRANSACTION READ ONLY"); err != nil {
			return fail(err)
		}
		end := func() error {
			err := rollback(ctx, c)
			cancel()
			if closed := c.Close(); err == nil {
				err = closed
			}
			return err
		}
		if guarded { // as it is, so that what the engine has against it says where
			if err := prepares(ctx, c, statement); err != nil {
				err = d.asker(ctx, err, l, guarded)
				_ = end()
				return err
			}
		}
		rows, exact, err := exactly(ctx, c, statement, args, l.Rows+1)
		if err != nil {
			err = d.asker(ctx, err, l, guarded)
			_ = end()
			return err
		}
		r, err = result(rows, exact, l.Rows, end, func(err error) error { return d.asker(ctx, err, l, guarded) })
		return err
	})
	if err != nil {
		cancel()
		return nil, err
	}
	return r, nil
}

func prepares(ctx context.Context, c *sql.Conn, statement string) error {
	s, err := c.PrepareContext(ctx, statement)
	if err != nil {
		return err
	}
	return s.Close()
}

// exactly executes a SELECT, and not further than so many rows. Columns of JSON are asked for as their text: the driver
// reads them as floating numbers, which have no room for large integers. exact says which ones these are.
func exactly(ctx context.Context, c *sql.Conn, statement string, args []any, limit int) (rows *sql.Rows, exact []bool, err error) {
	statement = strings.TrimRight(statement, "; \n\t\r")
	within := " FROM (\n" + statement + "\n) AS naru_query" // the line ends a comment
	rows, err = c.QueryContext(ctx, "SELECT *"+within+" LIMIT 0", args...)
	if err != nil {
		return nil, nil, err
	}
	types, err := rows.ColumnTypes()
	if err = errors.Join(err, rows.Close()); err != nil {
		return nil, nil, err
	}
	exact = make([]bool, len(types))
	var names, list []string
	for i, t := range types {
		name, from := quote(t.Name()), quote("c"+strconv.Itoa(i))
		names = append(names, from)
		switch database := t.DatabaseTypeName(); {
		case database == "JSON":
			exact[i], from = true, "CAST("+from+" AS VARCHAR)"
		case typeOf(database) == JSON && strings.Contains(database, "VARCHAR"): // which is what the driver calls JSON within others
			exact[i], from = true, "CAST(to_json("+from+") AS VARCHAR)"
		}
		list = append(list, from+" AS "+name)
	}
	rows, err = c.QueryContext(ctx, "SELECT "+strings.Join(list, ", ")+within+"("+strings.Join(names, ", ")+") LIMIT "+strconv.Itoa(limit), args...)
	return rows, exact, err
}

func (l Limits) withDefaults() Limits {
	if l.Rows <= 0 {
		l.Rows = 100_000
	}
	if l.Timeout <= 0 {
		l.Timeout = 30 * time.Second
	}
	return l
}

// parseSelect gives what DuckDB's own parser makes of a SELECT, and refuses what is not one: the driver would execute all but
// the last of several.
func parseSelect(ctx context.Context, c *sql.Conn, statement string) (json.RawMessage, error) {
	var tree string
	if err := c.QueryRowContext(ctx, "SELECT CAST(json_serialize_sql($1::VARCHAR) AS VARCHAR)", statement).Scan(&tree); err != nil {
		return nil, err
	}
	var parsed struct {
		Error      bool
		Type       string `json:"error_type"`
		Message    string `json:"error_message"`
		Position   string
		Statements []json.RawMessage
	}
	if err := json.Unmarshal([]byte(tree), &parsed); err != nil {
		return nil, fmt.Errorf("read what DuckDB makes of the query: %w", err)
	}
	switch {
	case parsed.Error && parsed.Type == "parser":
		if at, err := strconv.Atoi(parsed.Position); err == nil && at >= 0 && at <= len(statement) {
			return nil, refusedAt(statement, at, "%s", parsed.Message)
		}
		return nil, refuse("%s", parsed.Message)
	case parsed.Error && parsed.Type == "not implemented":
		return nil, refuse("only SELECT is answered here")
	case parsed.Error:
		return nil, refuse("only SELECT is answered here: %s", parsed.Message)
	case len(parsed.Statements) != 1:
		return nil, refuse("%d statements; want exactly one SELECT", len(parsed.Statements))
	}
	return parsed.Statements[0], nil
}

// unsupported is how the driver says that it cannot read a type.
const unsupported = "unsupported data type: "

// asker tells the asker's mistakes from faults.
func (d *duck) asker(ctx context.Context, err error, l Limits, guarded bool) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return refuse("the query took longer than %v; ask for less, or raise the timeout", l.Timeout)
	}
	if ctx.Err() != nil {
		return ctx.Err() // who asked has gone
	}
	var e *duckdb.Error
	if guarded && err != nil && strings.Contains(err.Error(), "empty name") {
		return refuse("a column of the result has parts without names, such as ROW(1, 2): name them, as in {'a': 1, 'b': 2}")
	}
	if guarded && err != nil {
		if _, kind, ok := strings.Cut(err.Error(), unsupported); ok {
			kind, _, _ = strings.Cut(kind, ":")
			return refuse("a column of the result is of type %s, which no answer has; cast it to JSON or VARCHAR", kind)
		}
	}
	if !guarded || !errors.As(err, &e) {
		return err
	}
	switch e.Type {
	case duckdb.ErrorTypeFatal, duckdb.ErrorTypeInternal, duckdb.ErrorTypeIO:
		return err
	case duckdb.ErrorTypeOutOfMemory:
		return refuse("the query wants more memory than there is for it (%s); ask for less, or raise memory of %s", d.options.Memory, Name)
	}
	return blamed(e.Msg)
}

var lineOf = regexp.MustCompile(`(?s)^(.*?)\s*\n\s*\nLINE (\d+): ([^\n]*)\n( *)\^\s*$`)

// blamed makes what DuckDB has against a statement short, with the place that it points at.
func blamed(msg string) error {
	if kind, rest, ok := strings.Cut(msg, " Error: "); ok && !strings.Contains(kind, " ") { // `Binder`
		msg = rest
	}
	if m := lineOf.FindStringSubmatch(msg); m != nil {
		line, err := strconv.Atoi(m[2])
		column := len(m[4]) - len("LINE : ") - len(m[2]) + 1
		if err == nil && column > 0 && !strings.HasPrefix(m[3], "...") { // it shortens long lines
			return &RefusedError{strings.Join(strings.Fields(m[1]), " "), line, column}
		}
		msg = m[1]
	}
	return &RefusedError{Why: strings.Join(strings.Fields(msg), " ")}
}

// result wraps rows of the driver; those of exact columns, where there are any, are texts of JSON.
func result(rows *sql.Rows, exact []bool, limit int, end func() error, explain func(error) error) (*Result, error) {
	r := &Result{}
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, errors.Join(err, rows.Close(), end())
	}
	if exact == nil {
		exact = make([]bool, len(types))
	}
	row, into := make([]any, len(types)), make([]any, len(types))
	for i, t := range types {
		column := Column{t.Name(), typeOf(t.DatabaseTypeName())}
		if exact[i] {
			column.Type = JSON
		}
		r.Columns = append(r.Columns, column)
		into[i] = &row[i]
	}
	n := 0
	r.close = func() error { return errors.Join(rows.Close(), end()) }
	r.next = func() ([]any, error) {
		if !rows.Next() {
			if err := rows.Err(); err != nil {
				return nil, explain(err)
			}
			return nil, errEnd
		}
		if n++; n > limit {
			r.Truncated = true
			return nil, errEnd
		}
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		for i := range row {
			if text, ok := row[i].(string); ok && exact[i] {
				row[i] = json.RawMessage(text)
			} else if row[i], err = plain(r.Columns[i].Type, row[i]); err != nil {
				return nil, err
			}
		}
		return row, nil
	}
	return r, nil
}

func typeOf(database string) Type {
	if strings.HasSuffix(database, "]") { // a list of whatever stands before
		return JSON
	}
	switch database {
	case "BOOLEAN":
		return Bool
	case "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT", "UHUGEINT", "BIGNUM":
		return Int
	case "FLOAT", "DOUBLE":
		return Double
	case "BLOB":
		return Bytes
	case "UUID":
		return UUID
	case "VARCHAR", "ENUM":
		return Text
	case "JSON":
		return JSON
	}
	switch {
	case strings.HasPrefix(database, "TIMESTAMP"), database == "DATE":
		return Time
	case strings.HasPrefix(database, "DECIMAL"):
		return Double
	case strings.HasPrefix(database, "STRUCT"), strings.HasPrefix(database, "MAP"), strings.HasPrefix(database, "UNION"):
		return JSON
	}
	return Text
}

// plain makes a value of the driver one of the seven that a Type says.
func plain(t Type, v any) (any, error) {
	switch x := v.(type) {
	case nil:
		return nil, nil
	case time.Time:
		if t == Text { // a time of day
			return x.Format("15:04:05.999999999"), nil
		}
		return x.UTC(), nil
	case *big.Int:
		if x.IsInt64() {
			return x.Int64(), nil
		}
		return json.RawMessage(x.String()), nil // a number, though none of 64 bits
	case duckdb.Decimal:
		return x.Float64(), nil
	case duckdb.UUID:
		return message.ID(x).String(), nil
	case []byte:
		if t == UUID && len(x) == 16 {
			return message.ID(x).String(), nil
		}
		return slices.Clone(x), nil
	case int8:
		return int64(x), nil
	case int16:
		return int64(x), nil
	case int32:
		return int64(x), nil
	case uint8:
		return int64(x), nil
	case uint16:
		return int64(x), nil
	case uint32:
		return int64(x), nil
	case uint64:
		if x > 1<<63-1 {
			return json.RawMessage(strconv.FormatUint(x, 10)), nil
		}
		return int64(x), nil
	case float32:
		return float64(x), nil
	case bool, int64, float64, string:
		if t != JSON {
			return x, nil
		}
	}
	if t == JSON {
		b, err := json.Marshal(tidy(v))
		return json.RawMessage(b), err
	}
	return fmt.Sprint(v), nil
}

// tidy makes nested values such as JSON can have.
func tidy(v any) any {
	switch x := v.(type) {
	case duckdb.OrderedMap:
		m := map[string]any{}
		keys, values := x.Keys(), x.Values()
		for i := range keys {
			m[fmt.Sprint(keys[i])] = tidy(values[i])
		}
		return m
	case map[string]any:
		m := map[string]any{}
		for k, e := range x {
			m[k] = tidy(e)
		}
		return m
	case []any:
		list := make([]any, len(x))
		for i := range x {
			list[i] = tidy(x[i])
		}
		return list
	case duckdb.Union:
		return tidy(x.Value)
	case duckdb.UUID:
		return message.ID(x).String()
	case duckdb.Decimal:
		return x.Float64()
	case time.Time:
		return tidyTime(x)
	case float64:
		return tidyNumber(x)
	case float32:
		return tidyNumber(float64(x))
	}
	return v
}

// tidyTime is a time as it stands in JSON, also one that is beyond what RFC 3339 writes.
func tidyTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// tidyNumber is a number, or where JSON has none a text: NaN, +Inf, -Inf.
func tidyNumber(x float64) any {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return strconv.FormatFloat(x, 'g', -1, 64)
	}
	return x
}

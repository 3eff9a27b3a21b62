// Queries of PostgreSQL: what may be asked, and what the values of an answer are.

package storage

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/naru-platform/naru/message"
)

const (
	rowMost    = 64 << 20               // bytes of one row of an answer
	sortMemory = "32MB"                 // of one step of a query
	spillMost  = "4GB"                  // of a query's temporary files
	closeMost  = 200 * time.Millisecond // for the end of a connection in which a query was given up
)

// makeReader makes the role that queries run as, which may read the datasets and nothing else. Where naru's user may make
// no role, and none was made for it, queries run as that user.
func (p *postgres) makeReader(ctx context.Context) error {
	role := p.options.Schema + "_reader"
	var exists, member, may, super bool
	c, err := p.loads.Acquire(ctx)
	if err != nil {
		return err
	}
	err = c.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1), coalesce((SELECT pg_has_role(current_user, oid, 'MEMBER') FROM pg_roles WHERE rolname = $1), false),
		rolcreaterole OR rolsuper, rolsuper FROM pg_roles WHERE rolname = current_user`, role).Scan(&exists, &member, &may, &super)
	c.Release()
	if err != nil {
		return err
	}
	if (!exists || !member) && may {
		err = p.transact(ctx, altering, func(c *sql.Conn) error {
			if !exists {
				if err := simple(ctx, c, "CREATE ROLE "+quote(role)+" NOLOGIN"); err != nil {
					return err
				}
			}
			return simple(ctx, c, "GRANT "+quote(role)+" TO CURRENT_USER")
		})
		switch code(err) {
		case "42710", "23505": // another process was first; it has done so for the same user
			err = nil
		case "42501":
			may, err = false, nil
		}
		if err != nil {
			return fmt.Errorf("make the role %s that queries run as: %w", role, err)
		}
		exists, member = may, may
	}
	if exists && member {
		p.reader = role
		err = p.transact(ctx, altering, func(c *sql.Conn) error {
			statements := "GRANT USAGE ON SCHEMA " + quote(p.options.Schema) + " TO " + quote(role)
			for name := range p.stored.owners() {
				statements += "; GRANT SELECT ON " + quote(name) + " TO " + quote(role)
			}
			return simple(ctx, c, statements)
		})
		if err != nil {
			return fmt.Errorf("let the role %s read: %w", role, err)
		}
	} else {
		p.options.Log.Warn("queries run as naru's own user, since it may make no role for them: have an administrator do CREATE ROLE "+quote(role)+" NOLOGIN; GRANT "+quote(role)+" TO that user",
			"database", p.place)
	}
	// Only some may bound temporary files, and by whether it works one sees who.
	p.temporary = p.transact(ctx, nil, func(c *sql.Conn) error { return simple(ctx, c, "SET LOCAL temp_file_limit TO '"+spillMost+"'") }) == nil
	return nil
}

// Query as in [Store].
func (p *postgres) Query(ctx context.Context, statement string, args []any, l Limits) (*Result, error) {
	return p.query(ctx, statement, args, l, true)
}

func (p *postgres) query(ctx context.Context, statement string, args []any, l Limits, guarded bool) (*Result, error) {
	l = l.withDefaults()
	if err := readable(args); err != nil {
		return nil, err
	}
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	c, err := p.asks.Acquire(ctx)
	if err != nil {
		cancel()
		if ctx.Err() == context.DeadlineExceeded && parent.Err() == nil {
			if p.asks.Stat().AcquiredConns() < p.asks.Config().MaxConns {
				return nil, refuse("the server made no connection for the query within %v; ask later, or raise the timeout", l.Timeout)
			}
			return nil, refuse("all %d connections for queries were busy for %v; ask later, or raise connections of %s", p.asks.Config().MaxConns, l.Timeout, Name)
		}
		return nil, p.explain(err)
	}
	q := &asked{p: p, c: c, ctx: ctx, cancel: cancel, limits: l, guarded: guarded, statement: statement}
	r, err := q.run(statement, args)
	if err != nil {
		err = q.fault(err)
		_ = q.end()
		return nil, err
	}
	return r, nil
}

// asked is one query under way.
type asked struct {
	p       *postgres
	c       *pgxpool.Conn
	ctx     context.Context //nolint:containedctx // it ends with the result, which outlives the call
	cancel  context.CancelFunc
	limits  Limits
	guarded bool
	prefix  int  // characters before the asker's statement
	broken  bool // the connection is in the middle of what is not read
	// statement is the asker's.
	statement string
}

// end gives the connection back, or away where it is not known what goes on in it.
func (q *asked) end() error {
	defer q.cancel()
	if q.c == nil {
		return nil
	}
	c := q.c
	q.c = nil
	defer c.Release() // a connection that is in a transaction, or closed, is not used again
	if q.ctx.Err() != nil || q.broken {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(q.ctx), closeMost)
		defer cancel()
		_ = c.Conn().Close(ctx) // it says goodbye, if it can
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(q.ctx), dialTimeout)
	defer cancel()
	_, err := c.Conn().PgConn().Exec(ctx, "ROLLBACK").ReadAll()
	return err
}

// The wrapping makes it a SELECT by the server's own grammar, whatever it is; a comment at its end ends with the line.
const wrapped, wrappedEnd = "SELECT * FROM (\n", "\n) naru_asked"

// formats are the types whose values come in binary; those of all others come as text.
var formats = pgx.QueryResultFormatsByOID{pgtype.BoolOID: 1, pgtype.Int2OID: 1, pgtype.Int4OID: 1, pgtype.Int8OID: 1, pgtype.Float4OID: 1, pgtype.Float8OID: 1,
	pgtype.TimestamptzOID: 1, pgtype.TimestampOID: 1, pgtype.DateOID: 1, pgtype.ByteaOID: 1, pgtype.UUIDOID: 1}

func (q *asked) run(statement string, args []any) (*Result, error) {
	settings := []string{"SET LOCAL transaction_read_only TO on", "SET LOCAL statement_timeout TO " + milliseconds(q.limits.Timeout)}
	if q.guarded {
		settings = append(settings, "SET LOCAL work_mem TO '"+sortMemory+"'")
		if q.p.temporary {
			settings = append(settings, "SET LOCAL temp_file_limit TO '"+spillMost+"'")
		}
		if q.p.reader != "" {
			settings = append(settings, "SET LOCAL ROLE "+quote(q.p.reader))
		}
	}
	conn := q.c.Conn().PgConn()
	if _, err := conn.Exec(q.ctx, q.p.begin(settings...)).ReadAll(); err != nil {
		return nil, err
	}
	if q.guarded {
		var err error
		if statement, err = q.guard(conn, statement); err != nil {
			return nil, err
		}
	}
	list := []any{pgx.QueryExecModeDescribeExec, formats}
	for _, a := range args {
		list = append(list, argument(a))
	}
	if q.guarded {
		if err := q.reads(statement, list); err != nil {
			return nil, err
		}
	}
	rows, err := q.c.Query(q.ctx, statement, list...)
	if err == nil && len(rows.FieldDescriptions()) == 0 {
		rows.Close()
		err = rows.Err()
	}
	if err != nil {
		return nil, err
	}
	return q.result(rows)
}

// argument is one as text, which the server reads as what the statement wants it to be.
func argument(a any) any {
	switch a := a.(type) {
	case nil, string, []byte:
		return a
	case bool:
		return strconv.FormatBool(a)
	case int:
		return strconv.Itoa(a)
	case int64:
		return strconv.FormatInt(a, 10)
	case float64:
		return strconv.FormatFloat(a, 'g', -1, 64)
	case time.Time:
		return a.UTC().Format("2006-01-02 15:04:05.999999") + "+00"
	}
	return fmt.Sprint(a)
}

// guard refuses what is not one SELECT, or calls what does more than to compute: naru's user may do more than read, and
// functions that lock, sleep, or set something are not held back by a transaction that only reads.
func (q *asked) guard(conn *pgconn.PgConn, statement string) (string, error) {
	if !utf8.ValidString(statement) || strings.IndexByte(statement, 0) >= 0 {
		return "", refuse("the query is no text in UTF-8")
	}
	// The server parses one statement, and does nothing of it.
	if _, err := conn.Prepare(q.ctx, "", statement, nil); err != nil {
		return "", err
	}
	inner := strings.TrimRight(statement, "; \t\r\n")
	all := wrapped + inner + wrappedEnd
	if _, err := conn.Prepare(q.ctx, "", all, nil); err != nil {
		var e *pgconn.PgError
		if errors.As(err, &e) && asker(e.Code) {
			return "", refuse("only one SELECT is answered here, which may begin with WITH: %s", e.Message)
		}
		return "", err
	}
	called, err := q.calls(conn, inner)
	if err != nil {
		return "", err
	}
	if called != "" {
		return "", refuse("the function %s is not called here: it may do more than compute. Where it is your own and does not, declare it STABLE or IMMUTABLE", called)
	}
	q.prefix = len(wrapped)
	return all + " LIMIT " + strconv.Itoa(q.limits.Rows+1), nil
}

var (
	words   = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_$]*`)
	escaped = regexp.MustCompile(`(?i)u&"`)
	opening = regexp.MustCompile(`^"?[\s\v]*\(`)
)

// telling are the names of functions that only read, and more than datasets: the server's state, settings, files, tables by name.
const telling = `^_?(pg|lo|dblink|has|txid|inet|row_security|binary_upgrade)_|_to_xml|^current_setting$|^(ts_stat|currval|lastval)$`

var tells = regexp.MustCompile(telling)

// harmless are functions that are held for such, or that the server calls volatile only since they answer differently each time.
var harmless = []string{"pg_typeof", "random", "clock_timestamp", "timeofday", "gen_random_uuid", "random_normal", "uuidv4", "uuidv7"}

// calls finds a function in a statement that the server holds for one that does something, by what it says of the
// function itself; empty where there is none. It looks at words and what stands around them, not at grammar: a text that
// looks like a call counts as one. (5.0).pg_sleep is a call, too.
func (q *asked) calls(conn *pgconn.PgConn, statement string) (string, error) {
	if escaped.MatchString(statement) {
		return "", refuse(`names written as U&"…" are not read here`)
	}
	comments := strings.Contains(statement, "--") || strings.Contains(statement, "/*")
	seen := map[string]bool{}
	var names []string
	for _, at := range words.FindAllStringIndex(statement, -1) {
		w := strings.ToLower(statement[at[0]:at[1]])
		if !seen[w] && (comments || opening.MatchString(statement[at[1]:]) || strings.HasSuffix(strings.TrimRight(statement[:at[0]], "\" \t\r\n\f\v"), ".")) { // a comment may stand between
			seen[w] = true
			names = append(names, w)
		}
	}
	if names == nil {
		return "", nil
	}
	rows, err := q.c.Query(q.ctx, "SELECT proname FROM pg_catalog.pg_proc WHERE proname = ANY($1) AND (provolatile = 'v' OR proname ~ $3) AND proname <> ALL($2) LIMIT 1",
		pgx.QueryExecModeDescribeExec, names, harmless, telling)
	if err != nil {
		return "", err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(found) == 0 {
		return "", err
	}
	return found[0], nil
}

// reads refuses what reads other tables than datasets and roll-ups, by the plan that the server makes. The role that queries run
// as may read no others; where there is none, naru's user may.
func (q *asked) reads(statement string, args []any) error {
	var raw []byte
	if err := q.c.QueryRow(q.ctx, "EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) "+statement, append([]any{args[0]}, args[2:]...)...).Scan(&raw); err != nil {
		return err
	}
	type node struct {
		Schema   string
		Relation string `json:"Relation Name"`
		Function string `json:"Function Name"` // that a view may call
		Plans    []json.RawMessage
	}
	var plans []struct{ Plan json.RawMessage }
	if err := json.Unmarshal(raw, &plans); err != nil {
		return fmt.Errorf("read the server's plan: %w", err)
	}
	var todo []json.RawMessage
	for _, p := range plans {
		todo = append(todo, p.Plan)
	}
	for len(todo) > 0 {
		var n node
		if err := json.Unmarshal(todo[0], &n); err != nil {
			return fmt.Errorf("read the server's plan: %w", err)
		}
		todo = append(todo[1:], n.Plans...)
		if n.Relation != "" && (n.Schema != q.p.options.Schema || slices.Contains(ownTables, n.Relation)) {
			return refuse("%s.%s is no dataset, and not read here", n.Schema, n.Relation)
		}
		if tells.MatchString(n.Function) {
			return refuse("what %s tells is not read here", n.Function)
		}
	}
	return nil
}

var ownTables = []string{"naru_tables", "naru_marks", "naru_parts", "naru_version"}

// asker says whether an error with the code is the asker's mistake.
func asker(code string) bool {
	if len(code) < 2 {
		return false
	}
	switch code {
	case "53200", "53400": // out of memory; more than a setting allows
		return true
	}
	switch code[:2] {
	case "0A", "21", "22", "25", "26", "2B", "2F", "34", "38", "39", "3B", "3F", "42", "44", "54", "P0":
		return true
	}
	return false
}

// fault tells the asker's mistakes from faults.
func (q *asked) fault(err error) error {
	var e *pgconn.PgError
	is := errors.As(err, &e)
	if is && e.Code == canceled && strings.Contains(e.Message, "timeout") || q.ctx.Err() == context.DeadlineExceeded {
		return refuse("the query took longer than %v; ask for less, or raise the timeout", q.limits.Timeout)
	}
	var long *pgproto3.ExceededMaxBodyLenErr
	if errors.As(err, &long) {
		q.broken = true
		return refuse("a row of the answer has more than %d MiB", rowMost>>20)
	}
	var refused *RefusedError
	if errors.As(err, &refused) || !q.guarded || !is || !asker(e.Code) {
		return q.p.explain(err)
	}
	text := e.Message
	if e.Hint != "" {
		text += ". " + e.Hint
	}
	if at := int(e.Position) - q.prefix; e.Position > 0 && at > 0 {
		if runes := []rune(q.statement); at <= len(runes)+1 {
			return refusedAt(q.statement, len(string(runes[:at-1])), "%s", text)
		}
	}
	return refuse("%s", text)
}

// result reads the rows as they come.
func (q *asked) result(rows pgx.Rows) (*Result, error) {
	r := &Result{}
	fields := rows.FieldDescriptions()
	types := q.c.Conn().TypeMap()
	for _, f := range fields {
		r.Columns = append(r.Columns, Column{f.Name, pgType(types, f)})
	}
	fields = append([]pgconn.FieldDescription(nil), fields...)
	row, n, whole := make([]any, len(fields)), 0, false
	r.close = func() error {
		if !whole { // what would come yet is not waited for
			q.cancel()
		}
		if !q.broken {
			rows.Close()
		}
		return q.end()
	}
	r.next = func() ([]any, error) {
		if !rows.Next() {
			whole = true
			if err := rows.Err(); err != nil {
				return nil, q.fault(err)
			}
			return nil, errEnd
		}
		if n++; n > q.limits.Rows {
			r.Truncated = true
			return nil, errEnd
		}
		for i, raw := range rows.RawValues() {
			var err error
			if row[i], err = pgPlain(types, fields[i], r.Columns[i].Type, raw); err != nil {
				return nil, fmt.Errorf("column %s of the answer: %w", r.Columns[i].Name, err)
			}
		}
		return row, nil
	}
	return r, nil
}

func pgType(types *pgtype.Map, f pgconn.FieldDescription) Type {
	switch f.DataTypeOID {
	case pgtype.BoolOID:
		return Bool
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.OIDOID:
		return Int
	case pgtype.Float4OID, pgtype.Float8OID:
		return Double
	case pgtype.NumericOID:
		if f.TypeModifier >= 4 && (f.TypeModifier-4)&0x7ff == 0 {
			return Int
		}
		return Double
	case pgtype.TimestamptzOID, pgtype.TimestampOID, pgtype.DateOID:
		return Time
	case pgtype.ByteaOID:
		return Bytes
	case pgtype.UUIDOID:
		return UUID
	case pgtype.JSONOID, pgtype.JSONBOID:
		return JSON
	}
	if t, ok := types.TypeForOID(f.DataTypeOID); ok {
		if _, ok := t.Codec.(*pgtype.ArrayCodec); ok {
			return JSON
		}
	}
	return Text
}

// pgPlain makes what came over the wire one of the values that a Type says.
func pgPlain(types *pgtype.Map, f pgconn.FieldDescription, t Type, raw []byte) (any, error) {
	if raw == nil {
		return nil, nil
	}
	if f.Format == pgtype.TextFormatCode {
		return pgText(types, f, t, raw)
	}
	wrong := func(n int) error {
		return fmt.Errorf("a value of type %d has %d bytes, and not %d", f.DataTypeOID, len(raw), n)
	}
	size := map[uint32]int{pgtype.BoolOID: 1, pgtype.Int2OID: 2, pgtype.Int4OID: 4, pgtype.DateOID: 4, pgtype.Float4OID: 4, pgtype.Int8OID: 8, pgtype.Float8OID: 8,
		pgtype.TimestamptzOID: 8, pgtype.TimestampOID: 8, pgtype.UUIDOID: 16}
	if n, ok := size[f.DataTypeOID]; ok && n != len(raw) {
		return nil, wrong(n)
	}
	switch f.DataTypeOID {
	case pgtype.BoolOID:
		return raw[0] != 0, nil
	case pgtype.Int2OID:
		return int64(int16(binary.BigEndian.Uint16(raw))), nil
	case pgtype.Int4OID:
		return int64(int32(binary.BigEndian.Uint32(raw))), nil
	case pgtype.Int8OID:
		return int64(binary.BigEndian.Uint64(raw)), nil
	case pgtype.Float4OID:
		return float64(math.Float32frombits(binary.BigEndian.Uint32(raw))), nil
	case pgtype.Float8OID:
		return math.Float64frombits(binary.BigEndian.Uint64(raw)), nil
	case pgtype.TimestamptzOID, pgtype.TimestampOID:
		n := int64(binary.BigEndian.Uint64(raw))
		if n == math.MaxInt64 || n == math.MinInt64 { // infinity: as far away as there is a time
			return time.UnixMicro(n).UTC(), nil
		}
		return time.Unix(n/1e6+epoch/1e6, n%1e6*1000).UTC(), nil // their sum may be more than 64 bits
	case pgtype.DateOID:
		n := int32(binary.BigEndian.Uint32(raw))
		if n == math.MaxInt32 || n == math.MinInt32 {
			return time.UnixMicro(int64(n) << 31).UTC(), nil
		}
		return time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, int(n)), nil
	case pgtype.UUIDOID:
		return message.ID(raw).String(), nil
	case pgtype.ByteaOID:
		return append([]byte{}, raw...), nil
	}
	return nil, fmt.Errorf("type %d came in a form that nobody asked for", f.DataTypeOID)
}

func pgText(types *pgtype.Map, f pgconn.FieldDescription, t Type, raw []byte) (any, error) {
	s := string(raw)
	switch t {
	case Int:
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return n, nil
		}
		if _, ok := new(big.Int).SetString(s, 10); ok {
			return json.RawMessage(s), nil // a number, though none of 64 bits
		}
		return nil, fmt.Errorf("%q is no whole number", s)
	case Double:
		d, err := strconv.ParseFloat(s, 64)
		if errors.Is(err, strconv.ErrRange) {
			err = nil // infinity, or nothing
		}
		return d, err
	case JSON:
		if f.DataTypeOID == pgtype.JSONOID || f.DataTypeOID == pgtype.JSONBOID {
			return json.RawMessage(s), nil
		}
		known, _ := types.TypeForOID(f.DataTypeOID)
		v, err := known.Codec.DecodeValue(types, f.DataTypeOID, f.Format, raw)
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(pgTidy(v))
		return json.RawMessage(b), err
	case Bytes:
		return hex.DecodeString(strings.TrimPrefix(s, `\x`))
	}
	return s, nil
}

// pgTidy makes the values of arrays such as JSON can have.
func pgTidy(v any) any {
	switch x := v.(type) {
	case []any:
		list := make([]any, len(x))
		for i := range x {
			list[i] = pgTidy(x[i])
		}
		return list
	case [16]byte:
		return message.ID(x).String()
	case pgtype.Numeric:
		if b, err := x.MarshalJSON(); err == nil {
			return json.RawMessage(b)
		}
		return nil
	case time.Time:
		return tidyTime(x)
	case pgtype.InfinityModifier:
		return x.String()
	case float64:
		return tidyNumber(x)
	case float32:
		return tidyNumber(float64(x))
	}
	return v
}

// Latest as in [Store].
func (p *postgres) Latest(ctx context.Context, table, device string) (*Result, error) {
	t, err := p.look(ctx, table)
	if err != nil {
		return nil, err
	}
	if device != "" {
		s, args := latest(t, device)
		return p.query(ctx, s, args, Limits{}, false)
	}
	// From device to device by the index: DISTINCT ON would read the whole table.
	name, row := quote(t.Name), `SELECT `+t.names("")+` FROM `+quote(t.Name)+` WHERE device `
	const newest = ` ORDER BY "time" DESC, recorded DESC LIMIT 1`
	return p.query(ctx, `WITH RECURSIVE d AS (
		(SELECT device FROM `+name+` WHERE device IS NOT NULL ORDER BY device LIMIT 1)
		UNION ALL SELECT (SELECT t.device FROM `+name+` t WHERE t.device > d.device ORDER BY t.device LIMIT 1) FROM d WHERE d.device IS NOT NULL)
		SELECT l.* FROM d CROSS JOIN LATERAL (`+row+`= d.device`+newest+`) l WHERE d.device IS NOT NULL
		UNION ALL SELECT * FROM (`+row+`IS NULL`+newest+`) n ORDER BY device`, nil, Limits{}, false)
}

// Range as in [Store].
func (p *postgres) Range(ctx context.Context, table string, s Span) (*Result, error) {
	t, err := p.look(ctx, table)
	if err != nil {
		return nil, err
	}
	q, args, err := span(t, &s)
	if err != nil {
		return nil, err
	}
	return p.query(ctx, q, args, Limits{Rows: s.limit()}, false)
}

// Aggregate as in [Store].
func (p *postgres) Aggregate(ctx context.Context, table string, a Aggregation) (*Result, error) {
	t, err := p.look(ctx, table)
	if err != nil {
		return nil, err
	}
	for _, b := range a.By {
		if c, ok := t.column(b); ok && c.Type == JSON {
			return nil, refuse("column %s is json, and PostgreSQL does not tell rows apart by it", b)
		}
	}
	q, args, err := aggregate(t, &a, p.dialect)
	if err != nil {
		return nil, err
	}
	return p.query(ctx, q, args, Limits{Rows: a.limit()}, false)
}

// ByTrace as in [Store].
func (p *postgres) ByTrace(ctx context.Context, trace string) (list []Traced, err error) {
	all, err := p.Tables(ctx)
	if err != nil {
		return nil, err
	}
	q, args := byTrace(all, trace)
	if q == "" {
		return nil, nil
	}
	r, err := p.query(ctx, q, args, Limits{}, false)
	if err != nil {
		return nil, err
	}
	return traced(r)
}

package storage

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sys/unix"
)

// PostgresOptions say where a database of PostgreSQL is, and what is taken of it.
type PostgresOptions struct {
	URL          string // `postgres://user@host/database?sslmode=verify-full`, as libpq reads it, without a password
	PasswordFile string // holds the password; read anew for each connection
	Schema       string // `naru` where empty
	Connections  int    // at most; 10 where zero, 3 at least
	Dir          string // where exports are prepared
	Log          *slog.Logger
}

// postgres is a Store in a schema of a database of PostgreSQL. Loads and queries have connections of their own, so that neither
// waits for the other.
type postgres struct {
	options PostgresOptions
	place   string // `host/database`, for a person
	dialect dialect

	loads, asks *pgxpool.Pool
	db, askDB   *sql.DB // over each
	reader      string  // the role that queries run as; empty where there is none
	temporary   bool    // whether a query's temporary files may be bounded

	stored  tables // as the database has them
	ensured tables // as this process loads them; others may have made them wider meanwhile

	mu    sync.Mutex
	parts map[string][]part // by table, as they were last seen
}

// What is waited for, and how long.
const (
	dialTimeout  = 5 * time.Second
	loadTimeout  = 30 * time.Second // a load, behind another
	lockTimeout  = 3 * time.Second  // what changes a table, behind who reads it: others wait behind it meanwhile
	silentMost   = 30 * time.Second // that a server may leave what was sent to it unacknowledged
	loadMost     = 10 * time.Minute // of one statement of a load
	versionLeast = 140000           // date_bin
)

// OpenPostgres opens a database, and makes naru's schema in it. It gives an error where the server cannot be reached; once
// open, a server that goes away and comes back is met again by itself.
func OpenPostgres(ctx context.Context, o PostgresOptions) (Store, error) {
	o.Schema = cmp.Or(o.Schema, "naru")
	if !nameForm.MatchString(o.Schema) || strings.HasPrefix(o.Schema, "pg_") || len(o.Schema) > 50 {
		return nil, fmt.Errorf("schema: %q: want small letters, digits and _, at most 50", o.Schema)
	}
	if o.Connections == 0 {
		o.Connections = 10
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c, err := o.config()
	if err != nil {
		return nil, err
	}
	if _, err := o.password(); err != nil {
		return nil, err
	}
	p := &postgres{options: o, parts: map[string][]part{}, ensured: tables{byName: map[string]*Table{}}}
	p.place = net.JoinHostPort(c.ConnConfig.Host, strconv.Itoa(int(c.ConnConfig.Port))) + "/" + c.ConnConfig.Database
	if strings.HasPrefix(c.ConnConfig.Host, "/") {
		p.place = c.ConnConfig.Host + "/" + c.ConnConfig.Database
	}
	p.dialect = dialect{own: "naru_", types: pgTypes, bucket: pgBucket, value: pgValue, equal: pgEqual, create: p.create, after: p.after}
	if err := p.pools(ctx, c); err != nil {
		return nil, p.explain(err)
	}
	if err := p.migrate(ctx); err != nil {
		p.loads.Close()
		p.asks.Close()
		return nil, p.explain(err)
	}
	return p, nil
}

// config reads the URL.
func (o *PostgresOptions) config() (*pgxpool.Config, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errors.New("url: want postgres://user@host/database") // what url.Parse says has the URL in it, and perhaps a password
	}
	if _, has := u.User.Password(); has || u.Query().Has("password") {
		return nil, errors.New("url: it has a password, which whoever sees the configuration would see; put it into a file, and name that with password_file")
	}
	if o.Connections < 3 {
		return nil, fmt.Errorf("connections: %d: want 3 at least", o.Connections)
	}
	c, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	conn := c.ConnConfig
	if conn.Database == "" {
		return nil, errors.New("url: it names no database: postgres://user@host/database")
	}
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = dialTimeout
	}
	if !u.Query().Has("target_session_attrs") {
		conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite // of several hosts the one that takes rows
	}
	conn.RuntimeParams["application_name"] = cmp.Or(conn.RuntimeParams["application_name"], "naru")
	dialer := &net.Dialer{Timeout: conn.ConnectTimeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		Control: func(network, _ string, raw syscall.RawConn) (err error) {
			if strings.HasPrefix(network, "tcp") { // a host that vanished is noticed also while something was sent to it
				_ = raw.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silentMost/time.Millisecond))
				})
			}
			return err
		}}
	conn.DialFunc = dialer.DialContext
	conn.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: 5 * time.Second}
	}
	c.BeforeConnect = func(_ context.Context, to *pgx.ConnConfig) error {
		password, err := o.password()
		if password != "" {
			to.Password = password
		}
		return err
	}
	return c, nil
}

// password is what the file holds now.
func (o *PostgresOptions) password() (string, error) {
	if o.PasswordFile == "" {
		return "", nil
	}
	b, err := os.ReadFile(o.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("password_file: %w", err)
	}
	s := strings.TrimRight(string(b), "\r\n")
	if s == "" {
		return "", fmt.Errorf("password_file: %s is empty", o.PasswordFile)
	}
	return s, nil
}

// pools opens both, and looks whether the server is one to work with.
func (p *postgres) pools(ctx context.Context, c *pgxpool.Config) (err error) {
	loads := c.Copy()
	loads.MaxConns = int32(max(p.options.Connections/3, 1))
	if p.loads, err = pgxpool.NewWithConfig(ctx, loads); err != nil {
		return err
	}
	asks := c.Copy()
	asks.MaxConns = int32(p.options.Connections) - loads.MaxConns
	asks.AfterConnect = func(_ context.Context, c *pgx.Conn) error {
		c.PgConn().Frontend().SetMaxBodyLen(rowMost)
		return nil
	}
	if p.asks, err = pgxpool.NewWithConfig(ctx, asks); err != nil {
		p.loads.Close()
		return err
	}
	if err := p.greet(ctx); err != nil {
		p.loads.Close()
		p.asks.Close()
		return err
	}
	p.db, p.askDB = stdlib.OpenDBFromPool(p.loads), stdlib.OpenDBFromPool(p.asks)
	return nil
}

func (p *postgres) greet(ctx context.Context) error {
	c, err := p.loads.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	var version int
	var encoding string
	if err := c.QueryRow(ctx, "SELECT current_setting('server_version_num')::int, current_setting('server_encoding')").Scan(&version, &encoding); err != nil {
		return err
	}
	if version < versionLeast {
		return fmt.Errorf("the server is PostgreSQL %d.%d; naru wants 14 at least", version/10000, version%10000)
	}
	if encoding != "UTF8" {
		return fmt.Errorf("the database's encoding is %s, which cannot hold each text; make one with createdb --encoding=UTF8 --template=template0", encoding)
	}
	conn := c.Conn().PgConn().Conn()
	if _, plain := conn.(*net.TCPConn); plain {
		if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
			p.options.Log.Warn("the connection to the database is not encrypted; put ?sslmode=verify-full into url", "database", p.place)
		}
	}
	return nil
}

// Engine as in [Store].
func (p *postgres) Engine() string { return "postgresql " + p.place }

// Close as in [Store].
func (p *postgres) Close() error {
	err := errors.Join(p.db.Close(), p.askDB.Close())
	p.loads.Close()
	p.asks.Close()
	return err
}

// Ping says whether the server answers, and takes rows.
func (p *postgres) Ping(ctx context.Context) error {
	c, err := p.loads.Acquire(ctx)
	if err != nil {
		if s := p.loads.Stat(); ctx.Err() != nil && s.AcquiredConns() == s.MaxConns() {
			return nil // they are all at work
		}
		return p.explain(err)
	}
	defer c.Release()
	var shut string
	if err := c.QueryRow(ctx, "SHOW transaction_read_only").Scan(&shut); err != nil {
		return p.explain(err)
	}
	if shut == "on" {
		p.reset()
		return p.explain(&pgconn.PgError{Severity: "ERROR", Code: readOnly, Message: "the server only reads"})
	}
	return nil
}

// reset gives up all connections once they are free: the server that they lead to is not the one any more that takes rows.
func (p *postgres) reset() {
	p.loads.Reset()
	p.asks.Reset()
}

// begin are the statements that each transaction begins with. They are sent as one, and hold for it only: a pooler may
// give the next one another connection of the server's.
func (p *postgres) begin(settings ...string) string {
	return strings.Join(append([]string{"BEGIN", "SET LOCAL search_path TO " + quote(p.options.Schema) + ", pg_temp", "SET LOCAL TimeZone TO 'UTC'",
		"SET LOCAL standard_conforming_strings TO on"}, settings...), "; ")
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(max(d.Milliseconds(), 1), 10) }

// loading are the settings of a transaction that loads, altering of one that changes a table.
var (
	loading = []string{"SET LOCAL lock_timeout TO " + milliseconds(loadTimeout), "SET LOCAL statement_timeout TO " + milliseconds(loadMost),
		"SET LOCAL idle_in_transaction_session_timeout TO " + milliseconds(time.Minute)} // a loader that froze does not hold the next one back
	altering = []string{"SET LOCAL lock_timeout TO " + milliseconds(lockTimeout), "SET LOCAL statement_timeout TO 0"}
)

// transact calls f in a transaction of a connection of its own, of those for loading.
func (p *postgres) transact(ctx context.Context, settings []string, f func(c *sql.Conn) error) error {
	return p.within(ctx, p.db, settings, f)
}

// reading is transact with a connection for queries, in a transaction that only reads.
func (p *postgres) reading(ctx context.Context, f func(c *sql.Conn) error) error {
	return p.within(ctx, p.askDB, []string{"SET LOCAL transaction_read_only TO on"}, f)
}

func (p *postgres) within(ctx context.Context, db *sql.DB, settings []string, f func(c *sql.Conn) error) error {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer c.Close() // what is in no state to go on is not used again
	if err := simple(ctx, c, p.begin(settings...)); err != nil {
		return err
	}
	if err := f(c); err != nil {
		// Not with ctx: it may have ended, and the locks go.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialTimeout)
		defer cancel()
		_ = simple(end, c, "ROLLBACK")
		return err
	}
	return simple(ctx, c, "COMMIT")
}

// simple sends statements as one, without arguments.
func simple(ctx context.Context, c *sql.Conn, statements string) error {
	return c.Raw(func(raw any) error {
		_, err := raw.(*stdlib.Conn).Conn().PgConn().Exec(ctx, statements).ReadAll()
		return err
	})
}

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

// readStored reads what tables there are, within a transaction.
func (p *postgres) readStored(ctx context.Context, q querier) error {
	return p.stored.read(ctx, q, p.dialect)
}

// look finds a table as the database has it now, which another process may have changed.
func (p *postgres) look(ctx context.Context, name string) (*Table, error) {
	if err := p.reading(ctx, func(c *sql.Conn) error { return p.readStored(ctx, c) }); err != nil {
		return nil, p.explain(err)
	}
	if t, ok := p.stored.get(name); ok {
		return t, nil
	}
	return nil, fmt.Errorf("%w: %s", ErrNoTable, name)
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

// Tables as in [Store].
func (p *postgres) Tables(ctx context.Context) ([]Table, error) {
	if err := p.reading(ctx, func(c *sql.Conn) error { return p.readStored(ctx, c) }); err != nil {
		return nil, p.explain(err)
	}
	return p.stored.list(), nil
}

// Mark as in [Store].
func (p *postgres) Mark(ctx context.Context, s Source) (m Mark, err error) {
	err = p.transact(ctx, nil, func(c *sql.Conn) error {
		m, err = mark(ctx, c, s, p.dialect, "")
		return err
	})
	return m, p.explain(err)
}

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

// Stats as in [Store].
func (p *postgres) Stats(ctx context.Context, table string) (s Stats, err error) {
	t, err := p.look(ctx, table)
	if err != nil {
		return s, err
	}
	err = p.reading(ctx, func(c *sql.Conn) error {
		if s, err = stats(ctx, c, t); err != nil {
			return err
		}
		return c.QueryRowContext(ctx, "SELECT coalesce(sum(pg_total_relation_size(relid)), 0)::bigint FROM pg_partition_tree(quote_ident($1)::regclass) WHERE isleaf", t.Name).Scan(&s.Bytes)
	})
	return s, p.explain(err)
}

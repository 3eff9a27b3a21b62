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
	if o.Dir != "" {
		Sweep(o.Dir, exportDir)
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

package storage

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/duckdb/duckdb-go/v2"

	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/internal/postgrestest"
	"github.com/naru-platform/naru/message"
)

// shared is the server of this package's tests; each test has a database of its own.
var shared = struct {
	sync.Mutex
	server    *postgrestest.Server
	dir       string
	databases atomic.Int64
}{}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.server != nil {
		shared.server.Kill()
		_ = os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

func postgresServer(t testing.TB) *postgrestest.Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		dir, err := os.MkdirTemp("", "naru-postgresql-*")
		if err != nil {
			t.Fatal(err)
		}
		shared.dir = dir
		shared.server = newServer(t, dir, "fsync = off")
	}
	return shared.server
}

func newServer(t testing.TB, dir string, settings ...string) *postgrestest.Server {
	t.Helper()
	s, err := postgrestest.New(dir, settings...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return s
}

// database makes one, with a user that is no superuser and owns it, and gives how it is reached.
func database(t testing.TB, s *postgrestest.Server, rights string) PostgresOptions {
	t.Helper()
	name := fmt.Sprintf("test%d", shared.databases.Add(1))
	if _, err := s.SQL("postgres", "CREATE ROLE "+name+" LOGIN PASSWORD 'secret of "+name+"' "+rights, "CREATE DATABASE "+name+" OWNER "+name); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte("secret of "+name+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return PostgresOptions{URL: s.URL(name, name), PasswordFile: secret, Schema: "naru_" + name, Dir: t.TempDir()}
}

func openPostgres(t testing.TB, o PostgresOptions) Store {
	t.Helper()
	s, err := OpenPostgres(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func init() {
	engines["postgresql"] = func(t *testing.T) func() Store {
		o := database(t, postgresServer(t), "CREATEROLE")
		return func() Store { t.Helper(); return openPostgres(t, o) }
	}
}

func refusedBy(t *testing.T, s Store, q string) {
	t.Helper()
	r, err := s.Query(t.Context(), q, nil, Limits{Timeout: 5 * time.Second})
	if err == nil {
		for _, e := range r.Rows() {
			err = e
		}
	}
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Errorf("%q: %v; want it refused", q, err)
	} else if strings.Contains(err.Error(), "took longer") {
		t.Errorf("%q ran until it was stopped", q)
	}
}

// The user that naru connects as is a superuser here, the worst there is.
func TestAQueryOfPostgreSQLReachesNothingElse(t *testing.T) {
	server := postgresServer(t)
	o := database(t, server, "SUPERUSER")
	s := openPostgres(t, o)
	defer s.Close()
	ensureTable(t, s, readings())
	load(t, s, 0, 5, row("d-1", 1))
	name := strings.TrimPrefix(o.Schema, "naru_")
	if _, err := server.SQL(name, "CREATE TABLE public.secrets (s text)", "INSERT INTO public.secrets VALUES ('x')", "CREATE EXTENSION dblink",
		"CREATE FUNCTION public.drop_all() RETURNS int LANGUAGE sql AS 'DELETE FROM "+o.Schema+".telemetry; SELECT 1'",
		"CREATE FUNCTION public.doubled(a bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 2 * a'", "SELECT lo_create(4711)"); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		// what is elsewhere
		"SELECT * FROM public.secrets", "SELECT * FROM naru_marks", "SELECT * FROM naru_tables", "SELECT * FROM pg_catalog.pg_authid", "SELECT * FROM pg_shadow",
		"SELECT pg_read_file('/etc/passwd')", "SELECT pg_read_binary_file('/etc/passwd')", "SELECT pg_ls_dir('/')", "SELECT * FROM pg_ls_logdir()", "SELECT pg_stat_file('/etc/passwd')",
		"SELECT lo_import('/etc/passwd')", "SELECT lo_get(4711)", "SELECT lo_unlink(4711)", "SELECT lo_export(4711, '/tmp/naru-must-not-be')",
		"COPY telemetry TO '/tmp/naru-must-not-be'", "COPY telemetry TO PROGRAM 'id'", "COPY telemetry TO STDOUT", "COPY telemetry FROM STDIN",
		"SELECT * FROM dblink('dbname=postgres', 'SELECT 1') AS t(a int)", "SELECT public.dblink_connect('dbname=postgres')",
		"SELECT * FROM pg_catalog.pg_class", "SELECT * FROM information_schema.tables", "SELECT relname FROM telemetry, pg_class", "SELECT (SELECT count(*) FROM pg_stat_activity)",
		"SELECT 1 WHERE EXISTS (SELECT 1 FROM pg_roles)", "WITH x AS MATERIALIZED (SELECT * FROM pg_settings) SELECT count(*) FROM x", "SELECT current_setting('data_directory')",
		"SELECT table_to_xml('" + o.Schema + ".naru_marks', true, true, '')", "SELECT database_to_xml(true, true, '')", "SELECT pg_stat_get_activity(NULL)", "SELECT pg_get_userbyid(10)", "SELECT pg_show_all_settings()",
		// the way back to the superuser
		"SELECT set_config('role', 'none', true), (SELECT s FROM public.secrets)", "SELECT set_config('role', 'none', false)", "SET ROLE none", "RESET ROLE", "SET SESSION AUTHORIZATION DEFAULT",
		"SELECT pg_catalog.set_config('role', 'none', true)", `SELECT "set_config"('role', 'none', true)`, `SELECT pg_catalog."set_config" ('role', 'none', true)`,
		"SELECT set_config /* ( */ ('role', 'none', true)", "SELECT set_config -- (\n('role', 'none', true)", "SELECT SET_CONFIG('role', 'none', true)",
		`SELECT U&"\0073et_config"('role', 'none', true)`, `SELECT u&"set!005fconfig" UESCAPE '!' ('role', 'none', true)`,
		"SELECT set_config('transaction_read_only', 'off', true)", "SET TRANSACTION READ WRITE", "SET LOCAL transaction_read_only TO off",
		"DO $$ BEGIN PERFORM set_config('role', 'none', true); DELETE FROM telemetry; END $$", "DO 'BEGIN DELETE FROM telemetry; END'",
		"SELECT query_to_xml('SELECT * FROM public.secrets', true, true, '')", "SELECT query_to_xml('SELECT set_config(''role'', ''none'', true)', true, true, '')",
		// what stays
		"SELECT pg_sleep(100)", "SELECT pg_sleep_for('1 min')", "SELECT pg_advisory_lock(1)", "SELECT pg_try_advisory_lock(1)", "SELECT pg_advisory_xact_lock(1)",
		"SELECT (100::float8).pg_sleep", "SELECT (g::int8).pg_advisory_lock FROM generate_series(1, 1000000) g", `SELECT (1::int8) . "pg_advisory_lock"`, "SELECT (1::int8)./* */pg_advisory_lock",
		"SELECT g.pg_sleep FROM (VALUES (1::float8)) AS g", "SELECT (1::int8).   pg_advisory_xact_lock", "SELECT ('data_directory'::text).current_setting",
		"SELECT nextval('x')", "SELECT pg_terminate_backend(1)", "SELECT pg_cancel_backend(1)", "SELECT pg_reload_conf()", "SELECT pg_switch_wal()", "SELECT pg_notify('a', 'b')",
		"SELECT public.drop_all()", "SELECT txid_current(), pg_logical_emit_message(true, 'a', 'b')", "SELECT pg_create_restore_point('x')", "SELECT pg_export_snapshot()",
		"LISTEN a", "NOTIFY a", "LOCK TABLE telemetry", "SELECT * FROM telemetry FOR UPDATE", "SELECT * FROM telemetry FOR SHARE", "SELECT * INTO x FROM telemetry", "CREATE TEMP TABLE x (a int)",
		"CREATE TABLE x AS SELECT * FROM telemetry", "PREPARE x AS SELECT 1", "EXECUTE x", "DECLARE c CURSOR FOR SELECT 1", "EXPLAIN ANALYZE DELETE FROM telemetry", "VACUUM", "ANALYZE telemetry",
		"TRUNCATE telemetry", "GRANT ALL ON telemetry TO public", "ALTER SYSTEM SET work_mem = '1GB'", "LOAD 'dblink'", "DISCARD ALL", "DEALLOCATE ALL", "BEGIN", "COMMIT", "COMMIT AND CHAIN", "ROLLBACK", "ABORT",
		"SAVEPOINT a", "PREPARE TRANSACTION 'x'", "SHOW data_directory", "CALL x()", "REFRESH MATERIALIZED VIEW x", "CLUSTER", "REINDEX TABLE telemetry", "IMPORT FOREIGN SCHEMA a FROM SERVER b INTO c",
		"MERGE INTO telemetry USING telemetry t ON true WHEN MATCHED THEN DELETE", "WITH a AS (SELECT 1), x AS (UPDATE telemetry SET seq = 1 RETURNING *) SELECT * FROM x",
		"SELECT 1) a, (SELECT 2", "SELECT 1) a; DELETE FROM telemetry; SELECT * FROM (SELECT 1", "SELECT 1; SELECT 2", "SELECT '\x00'", "SELECT '\xff'", "SELECT 1 --\n; DELETE FROM telemetry",
	} {
		refusedBy(t, s, q)
	}
	for q, answer := range map[string]any{
		"SELECT count(*) FROM telemetry; ": int64(1),
		"VALUES (1)":                       int64(1),
		"TABLE telemetry_count":            nil,
		"WITH x AS (SELECT 7 AS a) SELECT a FROM x -- the end":                   int64(7),
		"SELECT upper('set_config')":                                             "SET_CONFIG",
		"SELECT ('a'::text).upper":                                               "A",
		"SELECT '294276-12-31'::timestamp":                                       time.Date(294276, 12, 31, 0, 0, 0, 0, time.UTC),
		"SELECT ARRAY['infinity'::timestamptz, '2026-11-28 12:00:00+00']":        json.RawMessage(`["infinity","2026-11-28T12:00:00Z"]`),
		"SELECT ARRAY['NaN'::float4]":                                            json.RawMessage(`["NaN"]`),
		"SELECT public.doubled(21)":                                              int64(42),
		"SELECT count(*) FROM (SELECT random(), gen_random_uuid()) AS x":         int64(1),
		"SELECT max(seq) FILTER (WHERE seq > 0) FROM telemetry WHERE seq IN (1)": int64(1),
		"SELECT current_user":                                                    o.Schema + "_reader",
		"SHOW":                                                                   nil,
	} {
		if answer == nil {
			refusedBy(t, s, q)
			continue
		}
		want(t, q, all(t, s, q), [][]any{{answer}})
	}
	want(t, "rows", all(t, s, "SELECT count(*), min(seq) FROM telemetry"), [][]any{{int64(1), int64(1)}})
	if out, err := server.SQL(name, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "SELECT count(*) FROM pg_largeobject_metadata", "SELECT count(*) FROM public.secrets"); err != nil || out != "0\n1\n1" {
		t.Errorf("what is left: %q, %v", out, err)
	}
	if files, _ := filepath.Glob("/tmp/naru-must-not-be*"); files != nil {
		t.Errorf("a query has written %v", files)
	}
}

// failing opens a database that is not to be opened, and wants to be told what is wrong, where, and what to do.
func failing(t *testing.T, o PostgresOptions, words ...string) {
	t.Helper()
	s, err := OpenPostgres(t.Context(), o)
	if err == nil {
		_ = s.Close()
		t.Fatalf("%s was opened", o.URL)
	}
	told(t, err, o, words...)
}

func told(t *testing.T, err error, o PostgresOptions, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("nothing failed; want an error that says %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v: want it to say %q", err, w)
		}
	}
	if secret, err2 := o.password(); err2 == nil && secret != "" && strings.Contains(err.Error(), secret) {
		t.Errorf("it tells the password: %v", err)
	}
}

func TestPostgreSQLThatCannotBeOpenedSaysWhy(t *testing.T) {
	server := postgresServer(t)
	good := database(t, server, "")
	at := server.Address()
	with := func(change func(*PostgresOptions)) PostgresOptions { o := good; change(&o); return o }
	wrong := filepath.Join(t.TempDir(), "wrong")
	if err := os.WriteFile(wrong, []byte("not the right one"), 0o600); err != nil {
		t.Fatal(err)
	}
	failing(t, with(func(o *PostgresOptions) { o.PasswordFile = wrong }), at, "password", "password_file")
	failing(t, with(func(o *PostgresOptions) { o.PasswordFile = wrong + "not there" }), "password_file", "no such file")
	failing(t, with(func(o *PostgresOptions) { o.URL = strings.Replace(o.URL, "//", "//nobody", 1) }), at, "password")
	failing(t, with(func(o *PostgresOptions) { o.URL += "x" }), at, "x", "createdb")
	failing(t, with(func(o *PostgresOptions) { o.URL = "postgres://a@127.0.0.1:1/b" }), "127.0.0.1:1/b", "refused", "running")
	failing(t, with(func(o *PostgresOptions) { o.URL = "postgres://a:hidden@127.0.0.1:1/b" }), "password_file")
	failing(t, with(func(o *PostgresOptions) { o.URL = "postgres://a@127.0.0.1:1/b?password=hidden" }), "password_file")
	failing(t, with(func(o *PostgresOptions) { o.URL = "mysql://a@127.0.0.1/b" }), "postgres://")
	failing(t, with(func(o *PostgresOptions) { o.URL += "?sslmode=verify-full" }), "TLS")
	failing(t, with(func(o *PostgresOptions) { o.Schema = "Bad Name" }), "schema")
	name := strings.TrimPrefix(good.Schema, "naru_")
	if _, err := server.SQL("postgres", "CREATE DATABASE "+name+"l ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0 OWNER "+name); err != nil {
		t.Fatal(err)
	}
	failing(t, with(func(o *PostgresOptions) { o.URL += "l" }), "encoding", "LATIN1", "createdb")
	if _, err := server.SQL("postgres", "CREATE ROLE poor_"+name+" LOGIN PASSWORD 'secret of "+name+"'"); err != nil {
		t.Fatal(err)
	}
	failing(t, with(func(o *PostgresOptions) { o.URL = server.URL("poor_"+name, name) }), "permission denied", "docs/data.md")
	if _, err := server.SQL("postgres", "ALTER DATABASE "+name+" SET default_transaction_read_only = on"); err != nil {
		t.Fatal(err)
	}
	failing(t, good, "read only", "standby")
	if _, err := server.SQL("postgres", "ALTER DATABASE "+name+" RESET default_transaction_read_only"); err != nil {
		t.Fatal(err)
	}
	s := openPostgres(t, good)
	ensureTable(t, s, readings())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.SQL(name, "INSERT INTO "+good.Schema+".naru_version (version) VALUES (99)"); err != nil {
		t.Fatal(err)
	}
	failing(t, good, "version 99", "update it")
}

// A user that may make no role reads by its own rights, and still only reads.
func TestPostgreSQLWithoutARoleForQueriesOnlyReads(t *testing.T) {
	server := postgresServer(t)
	o := database(t, server, "")
	s := openPostgres(t, o)
	ensureTable(t, s, readings())
	load(t, s, 0, 5, row("d-1", 1))
	want(t, "user", all(t, s, "SELECT current_user, count(*) FROM telemetry"), [][]any{{strings.TrimPrefix(o.Schema, "naru_"), int64(1)}})
	if _, err := server.SQL(strings.TrimPrefix(o.Schema, "naru_"), "CREATE TABLE public.others (a int)", "GRANT SELECT ON public.others TO public"); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{"DELETE FROM telemetry", "SELECT set_config('transaction_read_only', 'off', true)", "WITH x AS (DELETE FROM telemetry RETURNING *) SELECT * FROM x",
		"SELECT * FROM naru_marks", "SELECT * FROM telemetry, naru_tables", "SELECT * FROM public.others"} {
		refusedBy(t, s, q)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// An administrator makes it.
	name := strings.TrimPrefix(o.Schema, "naru_")
	if _, err := server.SQL(name, "CREATE ROLE "+o.Schema+"_reader NOLOGIN", "GRANT "+o.Schema+"_reader TO "+name); err != nil {
		t.Fatal(err)
	}
	s = openPostgres(t, o)
	defer s.Close()
	want(t, "user", all(t, s, "SELECT current_user, count(*) FROM telemetry"), [][]any{{o.Schema + "_reader", int64(1)}})
	refusedBy(t, s, "SELECT * FROM naru_marks")
}

func TestPostgreSQLThatGoesAwayIsMetAgain(t *testing.T) {
	server := newServer(t, t.TempDir())
	t.Cleanup(server.Kill)
	o := database(t, server, "CREATEROLE")
	s := openPostgres(t, o)
	defer s.Close()
	ensureTable(t, s, readings())
	load(t, s, 0, 5, row("d-1", 1))
	for i, end := range []func(){server.Stop, server.Kill} {
		end()
		_, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{row("d-1", 2)}, Source: source, From: Mark{Sequence: uint64(5 + i)}, Upto: Mark{Sequence: uint64(6 + i)}})
		told(t, err, o, server.Address())
		if _, err = s.Query(t.Context(), "SELECT 1", nil, Limits{}); err == nil {
			t.Fatal("a server that is away answers")
		}
		if err := s.(*postgres).Ping(t.Context()); err == nil {
			t.Fatal("a server that is away is said to be there")
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 10 { // connections of before, each found broken once
			if err = s.(*postgres).Ping(t.Context()); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		load(t, s, uint64(5+i), uint64(6+i), row("d-1", 2+i))
	}
	want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(3)}})
}

// What the server says while naru loads is told with its remedy, the mark stands still, and what comes then is loaded.
func TestFaultsOfPostgreSQLHoldABatchBackAndLoseNothing(t *testing.T) {
	server := newServer(t, t.TempDir(), "fsync = off")
	t.Cleanup(server.Kill)
	o := database(t, server, "CREATEROLE")
	name := strings.TrimPrefix(o.Schema, "naru_")
	s := openPostgres(t, o)
	defer s.Close()
	table := readings()
	table.Key = []string{"device", "seq"}
	ensureTable(t, s, table)
	load(t, s, 0, 1, row("d-1", 1))
	admin := func(statements ...string) {
		t.Helper()
		if _, err := server.SQL(name, statements...); err != nil {
			t.Fatal(err)
		}
	}
	at := uint64(1)
	raise := func(code string) (do, undo func()) {
		return func() {
				admin("CREATE FUNCTION public.fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'as if' USING ERRCODE = '"+code+"'; END $$",
					"CREATE TRIGGER fault BEFORE INSERT ON "+o.Schema+".telemetry FOR EACH ROW EXECUTE FUNCTION public.fault()")
			}, func() {
				admin("DROP FUNCTION public.fault() CASCADE")
			}
	}
	setting := func(what string) (do, undo func()) {
		return func() { admin("ALTER SYSTEM SET "+what, "SELECT pg_reload_conf()") }, func() { admin("ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()") }
	}
	for _, c := range []faultCase{
		pair("a full disk", raise)("53100", "disk is full", "goes on by itself"),
		pair("no memory", raise)("53200", "memory"),
		pair("a deadlock", raise)("40P01", "tried again"),
		pair("a broken file", raise)("58030", "look at its log"),
		pair("a server that only reads", setting)("default_transaction_read_only = on", "takes no rows", "standby"),
	} {
		c.do()
		var err error
		for range 50 { // a setting comes to each session when it looks
			r := row("d-1", int(at)+1)
			if _, err = s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{r}, Source: source, From: Mark{Sequence: at}, Upto: Mark{Sequence: at + 1}}); err != nil {
				break
			}
			at++
		}
		told(t, err, o, append(c.words, server.Address())...)
		c.undo()
		var m Mark
		for range 50 {
			if m, err = s.Mark(t.Context(), source); err == nil {
				break
			}
		}
		if err != nil || m.Sequence != at {
			t.Errorf("%s: the mark is %v, %v; want %d", c.what, m, err, at)
		}
		for range 50 {
			if _, err = s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{row("d-1", int(at)+1)}, Source: source, From: Mark{Sequence: at}, Upto: Mark{Sequence: at + 1}}); err == nil {
				at++
				break
			}
		}
		if err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
	}
	want(t, "rows", all(t, s, "SELECT count(*), max(seq) FROM telemetry"), [][]any{{int64(at), int64(at)}})

	admin("ALTER ROLE "+name+" CONNECTION LIMIT 0", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '"+name+"'")
	var err error
	for range 20 { // connections of before, each found broken once
		if err = s.(*postgres).Ping(t.Context()); code(err) == "53300" {
			break
		}
	}
	told(t, err, o, "connection", "lower connections")
	admin("ALTER ROLE " + name + " CONNECTION LIMIT -1")
	load(t, s, at, at+1, row("d-1", int(at)+1))
}

// Of two servers the one that takes rows is used, and after a fail-over the other.
func TestPostgreSQLFailsOver(t *testing.T) {
	first := newServer(t, t.TempDir())
	t.Cleanup(first.Kill)
	o := database(t, first, "CREATEROLE")
	name := strings.TrimPrefix(o.Schema, "naru_")
	second, err := first.Standby()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Kill)
	if err := second.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	alone := o
	alone.URL = second.URL(name, name)
	failing(t, alone, second.Address(), "standby")
	o.URL = fmt.Sprintf("postgres://%s@%s,%s/%s", name, second.Address(), first.Address(), name)
	s := openPostgres(t, o)
	defer s.Close()
	ensureTable(t, s, readings())
	load(t, s, 0, 1, row("d-1", 1))
	until := func(done func() bool, what string) {
		t.Helper()
		for late := time.Now().Add(time.Minute); !done(); {
			if time.Now().After(late) {
				t.Fatal(what)
			}
		}
	}
	until(func() bool {
		n, err := second.SQL(name, "SELECT sequence FROM "+o.Schema+".naru_marks")
		return err == nil && n == "1"
	}, "the standby does not follow")
	first.Kill()
	if _, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{row("d-1", 2)}, Source: source, From: Mark{Sequence: 1}, Upto: Mark{Sequence: 2}}); err == nil {
		t.Fatal("loaded into a standby")
	}
	if _, err := second.SQL("postgres", "SELECT pg_promote()"); err != nil {
		t.Fatal(err)
	}
	until(func() bool { return s.(*postgres).Ping(t.Context()) == nil }, "the other server is not found")
	load(t, s, 1, 2, row("d-1", 2))
	want(t, "rows", all(t, s, "SELECT count(*), max(seq) FROM telemetry"), [][]any{{int64(2), int64(2)}})
}

type faultCase = struct {
	what     string
	do, undo func()
	words    []string
}

func pair(what string, make func(string) (do, undo func())) func(arg string, words ...string) faultCase {
	return func(arg string, words ...string) faultCase {
		do, undo := make(arg)
		return faultCase{what, do, undo, words}
	}
}

func TestARowOfAnAnswerHasALimit(t *testing.T) {
	s := openPostgres(t, database(t, postgresServer(t), ""))
	defer s.Close()
	r, err := s.Query(t.Context(), "SELECT repeat(repeat('x', 1000), 100000)", nil, Limits{Timeout: time.Minute})
	if err == nil {
		for _, e := range r.Rows() {
			err = e
		}
	}
	if err == nil || !strings.Contains(err.Error(), "64 MiB") {
		t.Errorf("a row of 100 MB: %v", err)
	}
	want(t, "next", all(t, s, "SELECT length(repeat('x', 1000000))"), [][]any{{int64(1000000)}})
}

// parts are what a table is made of, oldest first, with the rows of each.
func partsOf(t *testing.T, server *postgrestest.Server, o PostgresOptions, table string) string {
	t.Helper()
	out, err := server.SQL(strings.TrimPrefix(o.Schema, "naru_"), "SELECT to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24') || '+' || extract(epoch FROM until - since)::bigint FROM "+o.Schema+".naru_parts WHERE of = '"+table+"' ORDER BY since")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(out, "\n", ", ")
}

func TestRetentionOfPostgreSQLDropsParts(t *testing.T) {
	server := postgresServer(t)
	o := database(t, server, "")
	s := openPostgres(t, o)
	defer s.Close()
	table := readings()
	table.Retention = 10 * 24 * time.Hour
	ensureTable(t, s, table)
	const day = 24 * time.Hour
	at := func(d time.Duration) Row { r := row("d-1", 1); r.Recorded = noon.Add(d); return r }
	load(t, s, 0, 5, at(0), at(day), at(day+time.Hour), at(3*day))
	want(t, "parts", partsOf(t, server, o, "telemetry"), "2026-11-28 00+86400, 2026-11-29 00+86400, 2026-12-01 00+86400")
	load(t, s, 5, 6, at(3*day+11*time.Hour)) // the next one is made before its time
	want(t, "parts", partsOf(t, server, o, "telemetry"), "2026-11-28 00+86400, 2026-11-29 00+86400, 2026-12-01 00+86400, 2026-12-02 00+86400")
	// Retention that changes makes other parts from then on.
	table.Retention = 100 * day
	ensureTable(t, s, table)
	load(t, s, 6, 7, at(2*day), at(5*day), at(10*day))
	want(t, "parts", partsOf(t, server, o, "telemetry"), "2026-11-28 00+86400, 2026-11-29 00+86400, 2026-11-30 00+86400, 2026-12-01 00+86400, 2026-12-02 00+86400, 2026-12-03 00+345600, 2026-12-07 00+604800")
	n, err := s.Trim(t.Context(), "telemetry", noon.Add(day+30*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "trimmed", n, int64(2))
	want(t, "parts", partsOf(t, server, o, "telemetry")[:19], "2026-11-29 00+86400")
	want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(6)}})
	load(t, s, 7, 8, at(0)) // one that comes very late has its part again
	want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(7)}})
	// Of two processes, one does not know what the other has dropped.
	other := openPostgres(t, o)
	defer other.Close()
	if _, err := other.Trim(t.Context(), "telemetry", noon.Add(12*time.Hour)); err != nil {
		t.Fatal(err)
	}
	load(t, s, 8, 9, at(0))
	want(t, "rows", all(t, other, "SELECT count(*) FROM telemetry"), [][]any{{int64(7)}})
}

// Somebody reads a table for long: what would wait for him gives up, says who it is, and loads go on meanwhile.
func TestALongQueryDoesNotHoldLoadsUp(t *testing.T) {
	server := postgresServer(t)
	o := database(t, server, "")
	s := openPostgres(t, o)
	defer s.Close()
	ensureTable(t, s, readings())
	load(t, s, 0, 5, row("d-1", 1))
	r, err := s.(*postgres).query(t.Context(), "SELECT * FROM telemetry, generate_series(1, 1000000)", nil, Limits{Rows: 1 << 30, Timeout: time.Minute}, false)
	if err != nil {
		t.Fatal(err)
	}
	late := row("d-1", 2)
	late.Recorded = noon.Add(1000 * time.Hour)
	load(t, s, 5, 6, late) // which wants a part of its own
	wider := readings()
	wider.Columns = append(wider.Columns, Column{"bar", Double})
	told(t, s.Ensure(t.Context(), wider), o, server.Address(), "user test", "pg_cancel_backend")
	_, err = s.Trim(t.Context(), "telemetry", noon.Add(900*time.Hour))
	told(t, err, o, server.Address(), "pg_cancel_backend")
	load(t, s, 6, 7, row("d-1", 3))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	ensureTable(t, s, wider)
	if n, err := s.Trim(t.Context(), "telemetry", noon.Add(900*time.Hour)); err != nil || n != 2 {
		t.Fatalf("trimmed %d: %v", n, err)
	}
}

// The model lets no such row through; should one come all the same, it must not hold its dataset up for ever.
func TestARowThatPostgreSQLDoesNotHoldDiesAlone(t *testing.T) {
	for what, key := range map[string][]string{"plain": nil, "with a key": {"device", "seq"}} {
		t.Run(what, func(t *testing.T) {
			s := openPostgres(t, database(t, postgresServer(t), ""))
			defer s.Close()
			table := readings()
			table.Key = key
			table.Rollups = []Rollup{{Name: "telemetry_1m", Every: time.Minute, Values: []RollupValue{{"celsius", []string{"max"}}}}}
			ensureTable(t, s, table)
			nul, invalid, long, wide := row("d-1", 2), row("d-1", 4), row(strings.Repeat("abcdefghij", 100_000), 5), row("d-1", 6)
			nul.Values[2], invalid.Values[5] = "a\x00b", json.RawMessage(`{"a":"\xff"}`)
			noise := make([]byte, 0, 4000)
			for i := range uint64(500) { // what does not become small
				noise = binary.BigEndian.AppendUint64(noise, (i+1)*0x9e3779b97f4a7c15)
			}
			long.Device = hex.EncodeToString(noise)
			wide.Values[4] = time.Date(-5000, 1, 1, 0, 0, 0, 0, time.UTC)
			twin := row("d-1", 7) // of the message that nul is of
			twin.Message, twin.Position = nul.Message, nul.Position
			rows := []Row{row("d-1", 1), nul, row("d-1", 3), invalid, long, wide, twin, row("d-1", 3)}
			done := load(t, s, 0, 9, rows...)
			var refused []int
			for _, r := range done.Refused {
				refused = append(refused, r.Row)
				if r.Why == "" || len(r.Why) > 200 {
					t.Errorf("row %d: %q", r.Row, r.Why)
				}
			}
			want(t, "refused", refused, []int{1, 3, 4, 5})
			loaded, duplicates := 3, []int(nil)
			if key != nil {
				loaded, duplicates = 2, []int{7}
			}
			want(t, "rows", done.Rows, loaded)
			want(t, "duplicates", done.Duplicates, duplicates)
			want(t, "rows", all(t, s, "SELECT count(*), max(seq) FROM telemetry"), [][]any{{int64(loaded), int64(3)}})
			m, err := s.Mark(t.Context(), source)
			if err != nil {
				t.Fatal(err)
			}
			f, ok := m.Fate(nul.Position)
			if !ok || f.Reason != message.SchemaMismatch || !strings.Contains(f.Detail, `state is "a\x00b"`) {
				t.Errorf("the fate that is kept: %+v", f)
			}
		})
	}
}

func TestPostgreSQLKeepsJSONAsItCame(t *testing.T) {
	s := openPostgres(t, database(t, postgresServer(t), ""))
	defer s.Close()
	ensureTable(t, s, readings())
	var rows []Row
	var texts [][]any
	for i, text := range []string{`{"n":1.00,"n":1e400,"z":"\u0000","i":123456789012345678901234567890}`, `null`, `-0.0`, `"\u0000"`, strings.Repeat("[", 200) + strings.Repeat("]", 200)} {
		r := row("d-1", i)
		r.Values[5] = text
		rows, texts = append(rows, r), append(texts, []any{json.RawMessage(text)})
	}
	want(t, "loaded", load(t, s, 0, 5, rows...), Loaded{Rows: len(rows)})
	want(t, "JSON", all(t, s, `SELECT rest FROM telemetry ORDER BY "time"`), texts)
	file := filepath.Join(t.TempDir(), "out.parquet")
	if n, err := s.Export(t.Context(), "telemetry", time.Time{}, time.Time{}, file); err != nil || n != int64(len(rows)) {
		t.Fatalf("exported %d: %v", n, err)
	}
	c, err := duckdb.NewConnector("", nil)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	defer db.Close()
	for i := range rows {
		var text, id, kind string
		var at time.Time
		err := db.QueryRowContext(t.Context(), `SELECT CAST(rest AS VARCHAR), CAST(message_id AS VARCHAR), "time", typeof(message_id) FROM read_parquet($1) ORDER BY "time" LIMIT 1 OFFSET `+fmt.Sprint(i), file).Scan(&text, &id, &at, &kind)
		if err != nil || text != string(texts[i][0].(json.RawMessage)) || id != rows[i].Message.String() || !at.Equal(rows[i].Time) || kind != "UUID" {
			t.Errorf("row %d of the export: %s %s %s %v: %v", i, text, id, kind, at, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.(*postgres).options.Dir, "*")); left != nil {
		t.Errorf("an export leaves %v", left)
	}
}

func TestStorageWaitsForItsServer(t *testing.T) {
	dir := t.TempDir()
	server, err := postgrestest.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte(postgrestest.Password), 0o600); err != nil {
		t.Fatal(err)
	}
	rig, hub := componenttest.New(t), NewHub()
	rig.Config[Name] = json.RawMessage(fmt.Sprintf(`{"url": %q, "password_file": %q}`, server.URL(postgrestest.Owner, "postgres"), secret))
	rig.Start(With(hub))
	fault := func(has bool, word string) {
		t.Helper()
		rig.Until(func() bool {
			h := rig.Host.Health()[0]
			return h.State == "running" && (h.Fault != "") == has && strings.Contains(h.Fault, word)
		}, func() string { return fmt.Sprintf("%+v", rig.Host.Health()[0]) })
	}
	fault(true, server.Address())
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	_, err = hub.Store(ctx)
	cancel()
	if err == nil || !strings.Contains(err.Error(), server.Address()) {
		t.Errorf("who wants the database is told: %v", err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	fault(false, "")
	s, err := hub.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ensureTable(t, s, readings())
	load(t, s, 0, 5, row("d-1", 1))
	server.Kill()
	fault(true, "refused")
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	fault(false, "")
	want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(1)}})
}

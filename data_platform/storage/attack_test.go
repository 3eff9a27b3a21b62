package storage

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
)

// attacks are statements of an enemy, and what the refusal says.
var attacks = []struct{ statement, why string }{
	// Files and the network.
	{"SELECT * FROM read_csv('/etc/passwd')", "no table function read_csv"},
	{"SELECT * FROM read_csv_auto('/etc/passwd')", "no table function"},
	{"SELECT * FROM read_text('/etc/passwd')", "no table function"},
	{"SELECT * FROM read_blob('/etc/*')", "no table function"},
	{"SELECT * FROM read_json('http://127.0.0.1:1/x')", "no table function"},
	{"SELECT * FROM read_parquet('s3://bucket/x.parquet')", "no table function"},
	{"SELECT * FROM parquet_metadata('x.parquet')", "no table function"},
	{"SELECT * FROM sniff_csv('/etc/passwd')", "no table function"},
	{"SELECT * FROM read_duckdb('other.duckdb')", "no table function"},
	{"SELECT * FROM glob('/**')", "no table function"},
	{"SELECT (SELECT content FROM read_text('/etc/passwd'))", "no table function"},
	{"SELECT 1 WHERE EXISTS (FROM read_text('/etc/passwd'))", "no table function"},
	{"SELECT sum(1) OVER (ORDER BY (SELECT size FROM read_text('/etc/passwd')))", "no table function"},
	{"FROM '/etc/passwd'", "no dataset /etc/passwd"},
	{"FROM 'data.duckdb'", "no dataset"},
	{`SELECT * FROM "https://example.com/x.csv"`, "no dataset"},
	{"SELECT * FROM telemetry JOIN 'x.parquet' ON true", "no dataset x.parquet"},
	{"COPY telemetry TO '/tmp/naru-must-not-be'", "only SELECT"},
	{"COPY (SELECT 1) TO '/tmp/naru-must-not-be'", "only SELECT"},
	{"EXPORT DATABASE '/tmp/naru-must-not-be'", "only SELECT"},
	{"IMPORT DATABASE '/tmp'", "only SELECT"},
	{"ATTACH '/tmp/naru-must-not-be.db'", "only SELECT"},
	{"ATTACH ':memory:' AS m", "only SELECT"},
	{"INSTALL httpfs", "only SELECT"},
	{"LOAD '/tmp/x.duckdb_extension'", "only SELECT"},
	// What the process knows.
	{"SELECT getenv('HOME')", "no function getenv"},
	{"SELECT current_setting('temp_directory')", "no function current_setting"},
	{"SELECT getvariable('x')", "no function getvariable"},
	{"SELECT * FROM duckdb_secrets()", "no table function"},
	{"SELECT * FROM which_secret('s3://x', 's3')", "no table function"},
	{"SELECT * FROM duckdb_settings()", "no table function"},
	{"SELECT * FROM duckdb_logs", "no dataset duckdb_logs"},
	{"SELECT * FROM duckdb_prepared_statements()", "no table function"},
	{"SELECT current_query()", "no function current_query"},
	{"SELECT version()", "no function version"},
	{"PRAGMA database_list", "only"},
	{"PRAGMA enable_profiling='json'", "only SELECT"},
	{"CALL pragma_version()", "only SELECT"},
	{"SHOW ALL TABLES", "DESCRIBE or SUMMARIZE"},
	{"SHOW TABLES", "DESCRIBE or SUMMARIZE"},
	{"FROM (SHOW DATABASES)", ""},
	// naru's own tables, and those of the engine.
	{"SELECT * FROM naru.marks", "asked for by their names alone"},
	{`SELECT * FROM data.naru."tables"`, "asked for by their names alone"},
	{"SELECT * FROM main.telemetry", "asked for by their names alone"},
	{"SELECT * FROM information_schema.tables", "asked for by their names alone"},
	{"SELECT * FROM pg_catalog.pg_settings", "asked for by their names alone"},
	{"SELECT * FROM duckdb_tables", "no dataset duckdb_tables"},
	{"SELECT * FROM sqlite_master", "no dataset sqlite_master"},
	{"DESCRIBE naru.marks", "asked for by their names alone"},
	{"SUMMARIZE duckdb_settings", "no dataset"},
	{"SELECT * FROM query('SELECT * FROM naru.marks')", "no table function query"},
	{"SELECT * FROM query_table('naru.marks')", "no table function query_table"},
	{"SELECT * FROM pragma_storage_info('telemetry')", "no table function"},
	{"SELECT * FROM seq_scan('marks')", "no table function"},
	{"SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))", "no table function"},
	{"SELECT json_serialize_sql('SELECT 1')", "no function json_serialize_sql"},
	// Names of WITH that are somebody else's.
	{"WITH x AS (SELECT * FROM duckdb_tables) SELECT * FROM x", "no dataset duckdb_tables"},
	{"WITH duckdb_tables AS (SELECT * FROM duckdb_tables) SELECT * FROM duckdb_tables", "no dataset duckdb_tables"},
	{"WITH RECURSIVE duckdb_tables AS (SELECT table_name FROM duckdb_tables UNION ALL SELECT 'x' FROM duckdb_tables WHERE false) SELECT * FROM duckdb_tables", "no dataset duckdb_tables"},
	{"SELECT (WITH duckdb_tables AS (SELECT 1) SELECT 1) FROM duckdb_tables", "no dataset duckdb_tables"},
	{"SELECT * FROM (WITH sqlite_master AS (SELECT 1) FROM sqlite_master), sqlite_master", "no dataset sqlite_master"},
	{"WITH a AS (WITH duckdb_views AS (SELECT 1) FROM duckdb_views) SELECT * FROM duckdb_views", "no dataset duckdb_views"},
	{"WITH x AS (DELETE FROM telemetry RETURNING *) SELECT * FROM x", ""},
	// Changes.
	{"DROP TABLE telemetry", "only SELECT"},
	{"INSERT INTO telemetry SELECT * FROM telemetry", "only SELECT"},
	{"CREATE TABLE x AS SELECT 1", "only SELECT"},
	{"CREATE TEMP MACRO f(x) AS x", "only SELECT"},
	{"SET memory_limit = '100GB'", "only SELECT"},
	{"RESET ALL", "only SELECT"},
	{"SET VARIABLE x = 1", "only SELECT"},
	{"BEGIN", "only SELECT"},
	{"COMMIT; DROP TABLE telemetry", "only SELECT"},
	{"SELECT 1; DROP TABLE telemetry", ""},
	{"SELECT 1; SELECT 2", "2 statements"},
	{"SELECT 1) AS q; DROP TABLE telemetry; SELECT * FROM (SELECT 1", ""},
	{"SELECT 1\n) AS q LIMIT 0; DROP TABLE telemetry --", ""},
	{"SELECT 1 /* \n) ; DROP TABLE telemetry; /* */", ""},
	{"PREPARE p AS SELECT 1", "only SELECT"},
	{"EXECUTE p", "only SELECT"},
	{"EXPLAIN ANALYZE SELECT 1", "only SELECT"},
	{"SELECT nextval('s')", "no function nextval"},
	{"SELECT setseed(0.5)", "no function setseed"},
	{"SELECT write_log('x')", "no function write_log"},
	{"SELECT * FROM checkpoint()", "no table function"},
	{"SELECT * FROM enable_logging()", "no table function"},
	{"SELECT * FROM truncate_duckdb_logs()", "no table function"},
	{"SELECT * FROM enable_peg_parser()", "no table function"},
	// Time and memory, at once or bit by bit.
	{"SELECT sleep_ms(100000)", "cannot be stopped"},
	{"SELECT pg_sleep(100)", "cannot be stopped"},
	{"SELECT levenshtein(device, device) FROM telemetry", "cannot be stopped"},
	{"SELECT list_transform(range(1000000), lambda x: x + 1)", "cannot be stopped"},
	{"SELECT [x + 1 for x in range(1000000)]", "cannot be stopped"},
	{"SELECT repeat('x', 2000000000)", "at most 10000"},
	{"SELECT repeat('x', 10000 * i) FROM range(1000000) AS r(i)", "must be written out"},
	{"SELECT lpad('x', 2000000000, 'y')", "at most 10000"},
	{"SELECT printf('%2000000000d', 1)", "widths of at most 3 digits"},
	{"SELECT printf('%*d', 2000000000, 1)", "widths of at most 3 digits"},
	{"SELECT format('{:>2000000000}', 1)", "widths of at most 3 digits"},
	{"SELECT format('{:{}}', 1, 2000000000)", "widths of at most 3 digits"},
	{"SELECT regexp_replace(device, 'd', device || device) FROM telemetry", "written out"},
	{"SELECT device LIKE '%a%_b%c%d%e%f%g' FROM telemetry", "regexp_matches"},
	{"SELECT device LIKE subject FROM telemetry", "regexp_matches"},
	{"SELECT device ILIKE '%a%b%c%d' FROM telemetry", "regexp_matches"},
	{"SELECT device GLOB '*a*b*c*d' FROM telemetry", "regexp_matches"},
	{"SELECT len(range(1000000000))", "memory"},
	{"SELECT * FROM (SELECT unnest(range(1000000000)))", "memory"},
	{"WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r", "took longer"},
	{"WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r, range(1000)) SELECT count(*) FROM r", ""},
	{"WITH RECURSIVE r AS (SELECT 'xxxxxxxx' AS s, 0 AS n UNION ALL SELECT s || s, n + 1 FROM r WHERE n < 40) SELECT max(length(s || i)) FROM r, range(2048) AS q(i)", ""},
	{"SELECT count(*) FROM generate_series(1, 100000000) AS a(i), generate_series(1, 100000000) AS b(i) WHERE a.i % 7 = b.i % 5", "took longer"},
	{"SELECT * FROM range(1000000000) AS a(i), range(1000000000) AS b(j) ORDER BY i + j DESC LIMIT 5", ""},
	{"SELECT string_agg(repeat('x', 1000) || i, ',') FROM range(1000000000) AS r(i)", ""},
	{"SELECT count(DISTINCT i) FROM range(100000000000) AS r(i)", ""},
	{"SELECT list(i) FROM range(100000000000) AS r(i)", ""},
	{"SELECT 1 FROM " + strings.TrimSuffix(strings.Repeat("telemetry, ", 101), ", "), ""},
	{"WITH a0 AS NOT MATERIALIZED (SELECT 1 AS i)" + doubled(30) + " SELECT count(*) FROM a30", "names of WITH"},
	{"SELECT " + strings.Repeat("(", 5000) + "1" + strings.Repeat(")", 5000), "deep in each other"},
	{"SELECT " + strings.Repeat("[", 5000) + "1" + strings.Repeat("]", 5000), "deep in each other"},
	{"SELECT " + strings.Repeat("- ", 5000) + "1", "deep in each other"},
	{"SELECT " + strings.Repeat("NOT ", 5000) + "true", "stands 5000 times"},
	{"SELECT 1" + strings.Repeat("::INT", 5000), "stands 5000 times"},
	{"SELECT 1" + strings.Repeat(" UNION ALL SELECT 1", 3000), "stands 3000 times"},
	{"SELECT 1" + strings.Repeat(" + 1", 15000), ""},
	{"SELECT " + strings.Repeat("CASE WHEN true THEN ", 2000) + "1" + strings.Repeat(" END", 2000), "times"},
	{"SELECT '" + strings.Repeat("x", queryMax) + "'", "at most 65536"},
	{"SELECT 1\x00 FROM telemetry", "byte 0"},
	{"", ""},
	{";", ""},
	{"nonsense", ""},
	{"SELECT ROW(1, 2)", "name them"},
}

// doubled are names of WITH, each of which says the one before twice.
func doubled(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		b.WriteString(strings.NewReplacer("NEW", "a"+join([]int{i}), "OLD", "a"+join([]int{i - 1})).Replace(", NEW AS NOT MATERIALIZED (SELECT x.i FROM OLD x, OLD y)"))
	}
	return b.String()
}

// TestAnEnemyOfAQueryGetsNothing sends what an enemy would, while rows are loaded. Each is refused with a reason, nothing is
// changed, written or left running, and the loading is not held up by any.
func TestAnEnemyOfAQueryGetsNothing(t *testing.T) {
	dir := t.TempDir()
	s, err := OpenDuck(t.Context(), filepath.Join(dir, "data.duckdb"), Options{Memory: "128MiB"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ensureTable(t, s, readings())
	ctx, cancel := context.WithCancel(t.Context())
	loaded, slowest, again := make(chan int, 1), time.Duration(0), 0
	go func() {
		n := 0
		for ctx.Err() == nil {
			began := time.Now()
			_, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{row("d-1", n)}, Source: source, From: Mark{Sequence: uint64(n)}, Upto: Mark{Sequence: uint64(n + 1)}})
			slowest = max(slowest, time.Since(began))
			if err != nil && !errors.Is(err, ErrMemory) {
				t.Errorf("the neighbour's load: %v", err)
				break
			}
			if err != nil { // all memory is an enemy's for a moment; who loads asks how far it came, and tries again
				again++
				m, err := s.Mark(t.Context(), source)
				if err != nil && !errors.Is(err, ErrMemory) {
					t.Errorf("ask how far the neighbour came: %v", err)
					break
				}
				if err == nil {
					n = int(m.Sequence)
				}
				continue
			}
			n++
		}
		loaded <- n
	}()
	for _, a := range attacks {
		r, err := s.Query(t.Context(), a.statement, nil, Limits{Timeout: 500 * time.Millisecond})
		rows := 0
		if err == nil {
			for _, e := range r.Rows() {
				if err = e; err != nil {
					break
				}
				rows++
			}
		}
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.Contains(refused.Error(), a.why) {
			t.Errorf("%.200q: %d rows, %v; want it refused with %q", a.statement, rows, err, a.why)
		}
	}
	cancel()
	n := <-loaded
	t.Logf("%d attacks; meanwhile %d loads, the slowest in %v, %d tried again", len(attacks), n, slowest, again)
	m, err := s.Mark(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(m.Sequence)}})
	tables, err := s.Tables(t.Context())
	if err != nil || len(tables) != 1 {
		t.Errorf("tables %v, %v", tables, err)
	}
	for _, pattern := range []string{"/tmp/naru-must-not-be*", filepath.Join(dir, "exports", "*"), filepath.Join(dir, "*must*")} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 4 { // the file, its log, exports, spill
		t.Errorf("the folder of the database: %v, %v", entries, err)
	}
}

func TestAQueryEndsWithWhoAsked(t *testing.T) {
	s, err := OpenDuck(t.Context(), filepath.Join(t.TempDir(), "data.duckdb"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() // and would not, while it runs
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.Query(ctx, "SELECT count(*) FROM range(100000000000) AS a(i), range(100000000000) AS b(j)", nil, Limits{Timeout: time.Hour})
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("a query that nobody waits for: %v", err)
	}
	if n := s.(*duck).stuck.Load(); n != 0 {
		t.Errorf("%d queries run on", n)
	}
}

// TestHarmlessQueriesAreAnswered holds the guard to what people ask.
func TestHarmlessQueriesAreAnswered(t *testing.T) {
	s, err := OpenDuck(t.Context(), filepath.Join(t.TempDir(), "data.duckdb"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	table := readings()
	table.Rollups = []Rollup{{Name: "telemetry_1m", Every: time.Minute, By: []string{"device"}, Values: []RollupValue{{"celsius", []string{"avg", "max"}}}}}
	ensureTable(t, s, table)
	var rows []Row
	for i := range 100 {
		r := row("d-1", i)
		r.Position = bus.Position{Sequence: uint64(i)}
		rows = append(rows, r)
	}
	load(t, s, 0, 100, rows...)
	for _, q := range []string{
		"SELECT * FROM telemetry", "FROM telemetry", "TABLE telemetry", "SELECT * FROM Telemetry AS T WHERE T.device LIKE 'd-%' AND device NOT LIKE '%x%y%' AND device ILIKE 'D%'",
		"SELECT time_bucket(INTERVAL 1 MINUTE, time) AS t, device, avg(celsius), max(celsius), count(*) FILTER (WHERE open) FROM telemetry GROUP BY ALL ORDER BY ALL",
		"WITH hot AS (SELECT * FROM telemetry WHERE celsius > 3), cold AS (SELECT * FROM hot) SELECT count(*) FROM cold UNION ALL SELECT count(*) FROM hot",
		"WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r WHERE i < 10) SELECT sum(i) FROM r",
		"SELECT device, lag(celsius) OVER (PARTITION BY device ORDER BY time), row_number() OVER () FROM telemetry QUALIFY row_number() OVER () < 5",
		"SELECT r.time, m.celsius_avg FROM telemetry r LEFT JOIN telemetry_1m m ON m.device = r.device AND m.time = date_trunc('minute', r.time)",
		"SELECT a.device FROM telemetry a ASOF JOIN telemetry b ON a.device = b.device AND a.time >= b.time",
		"SELECT rest->>'n', rest->'n', json_extract(rest, '$.n') FROM telemetry", "SELECT key, value FROM telemetry, json_each(rest)",
		"SELECT unnest([1, 2]), {'a': 1}.a, [1, 2][1], MAP {'a': 1}", "SELECT * EXCLUDE (raw) REPLACE (celsius * 2 AS celsius) FROM telemetry", "SELECT COLUMNS('c.*') FROM telemetry",
		"SELECT quantile_cont(celsius, [0.5, 0.9]), median(celsius), stddev(celsius), arg_max(device, celsius), histogram(state) FROM telemetry",
		"SELECT * FROM generate_series(TIMESTAMPTZ '2026-11-28', TIMESTAMPTZ '2026-11-29', INTERVAL 1 HOUR) AS g(t)", "SELECT * FROM telemetry USING SAMPLE 10", "VALUES (1), (2)",
		"SELECT EXTRACT(hour FROM time), time AT TIME ZONE 'Asia/Seoul', strftime(time, '%H:%M'), now() - INTERVAL 1 DAY, current_date FROM telemetry", "DESCRIBE telemetry", "SUMMARIZE telemetry",
		"SELECT regexp_replace(subject, 'a', 'b', 'g'), lpad(device, 10, '0'), repeat('-', 20), printf('%.2f', celsius), format('{:>10}', device) FROM telemetry",
		"SELECT CASE WHEN celsius > 3 THEN 'hot' ELSE 'cold' END AS c, coalesce(state, '?'), seq::VARCHAR, TRY_CAST(state AS INT), seq IN (1, 2), seq BETWEEN 1 AND 3, md5(device) FROM telemetry",
		"SELECT device FROM telemetry EXCEPT SELECT 'x' INTERSECT SELECT device FROM telemetry", "SELECT 1 -- a comment with ; and )",
		"SELECT * FROM (PIVOT telemetry ON state IN ('ok') USING avg(celsius) GROUP BY device)", "SELECT list_sort([2, 1]), list_sum([1]), array_agg(seq ORDER BY seq DESC)[1] FROM telemetry",
	} {
		r, err := s.Query(t.Context(), q, nil, Limits{})
		if err == nil {
			for _, e := range r.Rows() {
				if err = e; err != nil {
					break
				}
			}
		}
		if err != nil {
			t.Errorf("%s: %v", q, err)
		}
	}
}

// TestEveryFunctionIsLookedAt fails when the engine has a function that is neither allowed nor refused on purpose: it is to be
// put into functions.txt, or among the refused here.
func TestEveryFunctionIsLookedAt(t *testing.T) {
	s, err := OpenDuck(t.Context(), filepath.Join(t.TempDir(), "data.duckdb"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	refused := map[string]bool{}
	for _, name := range strings.Fields(`can_cast_implicitly cast_to_type combine constant_or_null create_sort_key finalize format_pg_type get_block_size
		get_type is_histogram_other_bin json_deserialize_sql json_serialize_plan json_serialize_sql make_type map_to_pg_oid parse_duckdb_log_message remap_struct
		replace replace_type timetz_byte_comparable unpivot_list variant_bytes_to_variant variant_normalize variant_to_parquet_variant vector_type col_description
		current_catalog current_connection_id current_database current_query current_query_id current_role current_schema current_schemas current_setting
		current_transaction_id current_user getvariable in_search_path obj_description session_user shobj_description txid_current user version currval nextval
		setseed write_log icu_sort_key`) {
		refused[name] = true
	}
	r, err := s.(*duck).query(t.Context(), "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE function_type IN ('scalar', 'aggregate', 'macro')", nil, Limits{}, false)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, row := range collect(t, r) {
		name := row[0].(string)
		there[name] = true
		hidden := false
		for _, prefix := range []string{"__internal_", "icu_collate_", "has_", "inet_", "pg_"} {
			hidden = hidden || strings.HasPrefix(name, prefix)
		}
		if !computing()[name] && !refused[name] && !slow[name] && !hidden {
			t.Errorf("the function %s is neither in functions.txt nor refused", name)
		}
		if computing()[name] && (refused[name] || slow[name]) {
			t.Errorf("the function %s is allowed and refused", name)
		}
	}
	for name := range computing() {
		if !there[name] && name != "unnest" {
			t.Errorf("functions.txt has %s, which the engine has not", name)
		}
	}
}

// TestALoadWithoutMemoryIsNamed: a load for which there is no memory says so in a line, nothing of the batch is there, and what
// there is room for is loaded afterwards.
func TestALoadWithoutMemoryIsNamed(t *testing.T) {
	s, err := OpenDuck(t.Context(), filepath.Join(t.TempDir(), "data.duckdb"), Options{Memory: "4MiB"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ensureTable(t, s, readings())
	b := &Batch{Table: "telemetry", Source: source, Upto: Mark{Sequence: 1}}
	for i := range 100_000 {
		b.Rows = append(b.Rows, row("d-1", i))
	}
	_, err = s.Load(t.Context(), b)
	if !errors.Is(err, ErrMemory) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("a load for which there is no memory: %v", err)
	}
	want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(0)}})
	b.Rows = b.Rows[:1000]
	if _, err := s.Load(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(1000)}})
}

// TestEveryValueIsAnsweredOrRefused: a value that the asker can make is answered with a value of its column's type, or refused as the
// asker's; none is a fault.
func TestEveryValueIsAnsweredOrRefused(t *testing.T) {
	s, err := OpenDuck(t.Context(), filepath.Join(t.TempDir(), "data.duckdb"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range []struct {
		expression string
		want       any
	}{
		{"{'a': 'NaN'::DOUBLE, 'b': 'inf'::FLOAT}", json.RawMessage(`{"a":"NaN","b":"+Inf"}`)},
		{"[NULL, '-inf'::DOUBLE]", json.RawMessage(`[null,"-Inf"]`)},
		{"union_value(k := 'NaN'::DOUBLE)", json.RawMessage(`"NaN"`)},
		{"[TIMESTAMPTZ '2026-11-28 12:00:00+00']", json.RawMessage(`["2026-11-28T12:00:00Z"]`)},
		{"[TIMESTAMP '290000-01-01']", json.RawMessage(`["290000-01-01T00:00:00Z"]`)},
		{"[1.5::DECIMAL(4,1)]", json.RawMessage(`[1.5]`)},
		{"[DATE '2026-11-28']", json.RawMessage(`["2026-11-28T00:00:00Z"]`)},
		{"TIME '12:00:01.5'", "12:00:01.5"},
		{"1::BIGNUM", int64(1)},
		{"'x'::ENUM('x', 'y')", "x"},
	} {
		if got := all(t, s, "SELECT "+c.expression); !reflect.DeepEqual(got, [][]any{{c.want}}) {
			t.Errorf("%s: %s, want %s", c.expression, got, c.want)
		}
	}
	ensureTable(t, s, readings())
	var refused *RefusedError
	for statement, arg := range map[string]any{"SELECT '{\"a\":1}'::JSON::VARIANT": nil, "SELECT '\xff'": nil, "SELECT $1::VARCHAR": "\xff", "SELECT $1": "a\x00"} {
		var args []any
		if arg != nil {
			args = []any{arg}
		}
		r, err := s.Query(t.Context(), statement, args, Limits{})
		if err == nil {
			for _, e := range r.Rows() {
				err = cmp.Or(err, e)
			}
		}
		if !errors.As(err, &refused) {
			t.Errorf("%q with %q: %v", statement, args, err)
		}
	}
	if _, err := s.Latest(t.Context(), "telemetry", "\xff"); !errors.As(err, &refused) {
		t.Errorf("a device that is no text: %v", err)
	}
}

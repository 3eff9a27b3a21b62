package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// engines are the databases that the contract holds for. open gives one that is empty, and a way to open it again.
var engines = map[string]func(t *testing.T) (open func() Store){
	"duckdb": func(t *testing.T) func() Store {
		dir := t.TempDir()
		return func() Store {
			t.Helper()
			s, err := OpenDuck(t.Context(), filepath.Join(dir, "data.duckdb"), Options{})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	},
}

// each runs a test with each engine.
func each(t *testing.T, f func(t *testing.T, open func() Store)) {
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) { f(t, engine(t)) })
	}
}

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

func readings() Table {
	return Table{Name: "telemetry", Columns: []Column{{"seq", Int}, {"celsius", Double}, {"state", Text}, {"open", Bool}, {"at", Time}, {"rest", JSON}, {"raw", Bytes}}}
}

// row is the n-th row of a device, n seconds after noon.
func row(device string, n int, values ...any) Row {
	at := noon.Add(time.Duration(n) * time.Second)
	id := message.NewID(at.Add(time.Millisecond))
	if values == nil {
		values = []any{int64(n), float64(n) / 2, "ok", n%2 == 0, at, json.RawMessage(`{"n":1}`), []byte{1, 2}}
	}
	return Row{Time: at, Device: device, Subject: "device." + device + ".telemetry", Trace: strings.Repeat("ab", 16), Message: id, Recorded: id.Time().UTC().Truncate(time.Microsecond),
		Values: values, Position: bus.Position{Sequence: uint64(n), Index: 0}}
}

var source = Source{Consumer: "data_platform.etl/telemetry", Log: message.NewID(noon), Generation: 1}

func load(t *testing.T, s Store, from, to uint64, rows ...Row) Loaded {
	t.Helper()
	done, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: rows, Source: source, From: Mark{Sequence: from}, Upto: Mark{Sequence: to}})
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// all are the rows that a query gives.
func all(t *testing.T, s Store, sql string, args ...any) (list [][]any) {
	t.Helper()
	r, err := s.Query(t.Context(), sql, args, Limits{})
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return collect(t, r)
}

func collect(t *testing.T, r *Result) (list [][]any) {
	t.Helper()
	for row, err := range r.Rows() {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, append([]any(nil), row...))
	}
	return list
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: got %#v, want %#v", what, got, want)
	}
}

func ensureTable(t *testing.T, s Store, table Table) {
	t.Helper()
	if err := s.Ensure(t.Context(), table); err != nil {
		t.Fatal(err)
	}
}

func TestRowsAndTheirMarkAreOneAndOutliveTheProcess(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		ensureTable(t, s, readings())
		a, b := row("d-1", 1), row("d-2", 2)
		b.Values = make([]any, len(b.Values)) // all null
		fates := []Fate{{Sequence: 3, Index: 7, Reason: message.SchemaMismatch, Detail: "celsius"}, {Sequence: 3, Index: 8}}
		_, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{a, b}, Source: source, Upto: Mark{Sequence: 3, Index: 9, Fates: fates}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open()
		defer s.Close()
		ensureTable(t, s, readings())
		got := all(t, s, `SELECT * FROM telemetry ORDER BY "time"`)
		want(t, "rows", got, [][]any{
			{a.Time, "d-1", a.Subject, a.Trace, a.Message.String(), a.Recorded, int64(1), 0.5, "ok", false, a.Time, json.RawMessage(`{"n":1}`), []byte{1, 2}},
			{b.Time, "d-2", b.Subject, b.Trace, b.Message.String(), b.Recorded, nil, nil, nil, nil, nil, nil, nil},
		})
		m, err := s.Mark(t.Context(), source)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "mark", m, Mark{Sequence: 3, Index: 9, Fates: fates})
		other := source
		other.Partition = 1
		if m, err = s.Mark(t.Context(), other); err != nil || m.Sequence != 0 {
			t.Fatalf("the mark of a partition that nothing was loaded from: %v, %v", m, err)
		}
	})
}

func TestALoaderThatWasOvertakenLoadsNothing(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		ensureTable(t, s, readings())
		load(t, s, 0, 5, row("d-1", 1))
		_, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{row("d-1", 1)}, Source: source, Upto: Mark{Sequence: 4}})
		if !errors.Is(err, ErrMoved) {
			t.Fatalf("loaded behind another's mark: %v", err)
		}
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(1)}})
		_, err = s.Load(t.Context(), &Batch{Table: "nothing", Source: source})
		if !errors.Is(err, ErrNoTable) {
			t.Fatalf("loaded into no table: %v", err)
		}
	})
}

// What the model lets through is kept as it came, whatever the engine.
func TestExtremesAreKeptAsTheyCame(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		table := readings()
		table.Key = []string{"state", "raw"}
		table.Rollups = []Rollup{{Name: "telemetry_1m", Every: time.Minute, Values: []RollupValue{{"seq", []string{"sum", "avg", "max"}}, {"celsius", []string{"max", "count"}}, {"open", []string{"min", "max"}}}}}
		ensureTable(t, s, table)
		long, deep := strings.Repeat("장치", 50_000), strings.Repeat("[", 199)+strings.Repeat("]", 199)
		lists := [][]any{
			{int64(math.MaxInt64), math.MaxFloat64, long, true, time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC), json.RawMessage(`{"n":1}`), []byte{}},
			{int64(math.MinInt64 + 1), -1.5, "", false, time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), json.RawMessage(deep), []byte(long)},
			{int64(math.MaxInt64), math.Inf(1), " \t\n\r\u007f\u0001'\"\\\U0010ffff", true, noon, json.RawMessage(`[1]`), []byte{0, 255}},
			{int64(0), math.SmallestNonzeroFloat64, "x", nil, nil, json.RawMessage(`"text"`), nil},
		}
		var rows []Row
		for i, values := range lists {
			rows = append(rows, row("d-1", i, values...))
		}
		want(t, "loaded", load(t, s, 0, 5, rows...), Loaded{Rows: 4})
		got := all(t, s, `SELECT seq, celsius, state, open, "at", rest, raw FROM telemetry ORDER BY "time"`)
		want(t, "rows", got, lists)
		again := row("d-1", 9, lists[1]...)
		want(t, "of equal key", load(t, s, 5, 6, again), Loaded{Duplicates: []int{0}})
		rolled := all(t, s, "SELECT * FROM telemetry_1m")
		want(t, "roll-up", rolled, [][]any{{noon, int64(4), int64(math.MaxInt64), rolled[0][3], int64(math.MaxInt64), math.Inf(1), int64(4), false, true}})
		// Sums beyond what a double or an int holds are no reason for a batch not to be loaded.
		table.Rollups = append(table.Rollups, Rollup{Name: "telemetry_1h", Every: time.Hour, Values: []RollupValue{{"celsius", []string{"sum", "avg"}}, {"seq", []string{"sum"}}}})
		ensureTable(t, s, table)
		for i, values := range [][]any{{int64(math.MaxInt64), 1e308, "a", true, noon, nil, nil}, {int64(math.MaxInt64), 1e308, "b", true, noon, nil, nil}} {
			load(t, s, uint64(6+i), uint64(7+i), row("d-1", 10+i, values...))
		}
		rolled = all(t, s, "SELECT celsius_sum, celsius_avg, seq_sum FROM telemetry_1h")
		want(t, "sums", rolled, [][]any{{math.Inf(1), math.Inf(1), json.RawMessage("27670116110564327421")}})
	})
}

func TestOfTwoLoadersAtOnceOneLoads(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		ensureTable(t, s, readings())
		const rounds, loaders = 20, 3
		for round := range rounds {
			errs := make(chan error, loaders)
			for range loaders {
				go func() {
					_, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{row("d-1", round)}, Source: source, From: Mark{Sequence: uint64(round)}, Upto: Mark{Sequence: uint64(round + 1)}})
					errs <- err
				}()
			}
			won := 0
			for range loaders {
				switch err := <-errs; {
				case err == nil:
					won++
				case !errors.Is(err, ErrMoved):
					t.Fatal(err)
				}
			}
			want(t, "loaders that loaded", won, 1)
		}
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(rounds)}})
	})
}

// Loads of different partitions may be under way at once; keys and buckets hold all the same.
func TestLoadersOfDifferentPartitionsSeeEachOther(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		table := readings()
		table.Key = []string{"seq"}
		table.Rollups = []Rollup{{Name: "telemetry_1m", Every: time.Minute, Values: []RollupValue{{"seq", []string{"count"}}}}}
		ensureTable(t, s, table)
		const batches, partitions = 10, 3
		errs := make(chan error, partitions)
		for p := range partitions {
			go func() {
				from := source
				from.Partition = uint32(p)
				for i := range batches {
					_, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{row("d-1", i)}, Source: from, From: Mark{Sequence: uint64(i)}, Upto: Mark{Sequence: uint64(i + 1)}})
					if err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		for range partitions {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
		want(t, "rows", all(t, s, "SELECT count(*), count(DISTINCT seq) FROM telemetry"), [][]any{{int64(batches), int64(batches)}})
		want(t, "buckets", all(t, s, "SELECT rows, seq_count FROM telemetry_1m"), [][]any{{int64(batches), int64(batches)}})
	})
}

func TestARollupOfAWidenedColumnRoundsNothing(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		table := readings()
		table.Rollups = []Rollup{{Name: "telemetry_1m", Every: time.Minute, Values: []RollupValue{{"seq", []string{"min", "max", "sum", "avg"}}}}}
		ensureTable(t, s, table)
		load(t, s, 0, 5, row("d-1", 1))
		table.Columns[0].Type = Double
		ensureTable(t, s, table)
		r := row("d-1", 61)
		r.Values[0] = 2.5
		load(t, s, 5, 6, r)
		want(t, "roll-up", all(t, s, `SELECT * FROM telemetry_1m ORDER BY "time"`), [][]any{
			{noon, int64(1), 1.0, 1.0, 1.0, 1.0}, {noon.Add(time.Minute), int64(1), 2.5, 2.5, 2.5, 2.5}})
	})
}

func TestABatchThatFailsLeavesNothing(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		ensureTable(t, s, readings())
		bad := row("d-1", 2)
		bad.Values[1] = "no number"
		_, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{row("d-1", 1), bad}, Source: source, Upto: Mark{Sequence: 4}})
		if err == nil {
			t.Fatal("a text was loaded as a number")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Load(ctx, &Batch{Table: "telemetry", Rows: []Row{row("d-1", 1)}, Source: source, Upto: Mark{Sequence: 4}}); err == nil {
			t.Fatal("loaded though nobody waits")
		}
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(0)}})
		if m, err := s.Mark(t.Context(), source); err != nil || m.Sequence != 0 {
			t.Fatalf("mark %v, %v", m, err)
		}
		load(t, s, 0, 4, row("d-1", 1))
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(1)}})
	})
}

func TestOfEqualKeysTheFirstRowStays(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		table := readings()
		table.Key = []string{"device", "seq"}
		ensureTable(t, s, table)
		first := row("d-1", 1)
		want(t, "loaded", load(t, s, 0, 5, first, row("d-1", 2), row("d-2", 1)), Loaded{Rows: 3})
		again, twice, free := row("d-1", 1), row("d-1", 3), row("d-1", 4)
		free.Values[0] = nil
		free2 := free
		free2.Message = message.NewID(noon)
		done := load(t, s, 5, 9, again, row("d-1", 3), twice, free, free2)
		want(t, "loaded", done, Loaded{Rows: 3, Duplicates: []int{0, 2}})
		want(t, "rows", all(t, s, "SELECT count(*), count(DISTINCT message_id) FROM telemetry"), [][]any{{int64(6), int64(6)}})
		want(t, "first", all(t, s, "SELECT message_id FROM telemetry WHERE device = $1 AND seq = $2", "d-1", int64(1)), [][]any{{first.Message.String()}})
		m, err := s.Mark(t.Context(), source)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "fates", m.Fates, []Fate{{Sequence: 1}, {Sequence: 3}})
	})
}

func TestAMessageThatComesAgainIsOneRow(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		ensureTable(t, s, readings())
		r := row("d-1", 1)
		r.Again = true
		for i := range 2 {
			done, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{r}, Source: source})
			if err != nil || done.Rows != 1-i {
				t.Fatalf("time %d: %+v, %v", i, done, err)
			}
		}
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(1)}})
	})
}

// The model lets no such row through; should one come all the same, it must not hold its dataset up for ever.
func TestARowThatTheEngineDoesNotHoldDiesAlone(t *testing.T) {
	for what, key := range map[string][]string{"plain": nil, "with a key": {"device", "seq"}} {
		t.Run(what, func(t *testing.T) {
			each(t, func(t *testing.T, open func() Store) {
				s := open()
				defer s.Close()
				table := readings()
				table.Key = key
				table.Rollups = []Rollup{{Name: "telemetry_1m", Every: time.Minute, Values: []RollupValue{{"seq", []string{"sum"}}}}}
				ensureTable(t, s, table)
				far := time.Date(300000, 1, 1, 0, 0, 0, 0, time.UTC)
				late, broken, first := row("d-1", 2), row("d-1", 4), row("d-1", 5)
				late.Values[4], broken.Values[5], first.Time = far, json.RawMessage(`{"a":"\xff"}`), far
				twin := row("d-1", 6) // of the message that late is of
				twin.Message, twin.Position = late.Message, late.Position
				done := load(t, s, 0, 9, row("d-1", 1), late, row("d-1", 3), broken, first, twin, row("d-1", 7), row("d-1", 3))
				var refused []int
				for _, r := range done.Refused {
					refused = append(refused, r.Row)
				}
				want(t, "refused", refused, []int{1, 3, 4})
				rows, duplicates := 4, []int(nil)
				if key != nil {
					rows, duplicates = 3, []int{7}
				}
				want(t, "rows", done.Rows, rows)
				want(t, "duplicates", done.Duplicates, duplicates)
				want(t, "rows there", all(t, s, "SELECT count(*), count(DISTINCT seq) FROM telemetry WHERE seq IN (1, 3, 7) AND celsius IS NOT NULL"), [][]any{{int64(rows), int64(3)}})
				want(t, "roll-up", all(t, s, "SELECT rows FROM telemetry_1m"), [][]any{{int64(rows)}})
				m, err := s.Mark(t.Context(), source)
				if err != nil {
					t.Fatal(err)
				}
				for r, column := range map[*Row]string{&late: "at", &broken: "rest", &first: "time"} {
					if f, ok := m.Fate(r.Position); !ok || f.Reason != message.SchemaMismatch || !strings.HasPrefix(f.Detail, column) || !strings.Contains(f.Detail, "does not hold: ") {
						t.Errorf("the fate that is kept for %s: %+v", column, f)
					}
				}
				load(t, s, 9, 10, row("d-1", 8))
			})
		})
	}
}

// What a database of DuckDB says by itself while naru loads holds the batch back; the mark stands still, and what comes then is loaded.
func TestFaultsOfDuckDBHoldABatchBackAndLoseNothing(t *testing.T) {
	s := engines["duckdb"](t)()
	defer s.Close()
	table := readings()
	table.Key = []string{"device", "seq"}
	ensureTable(t, s, table)
	load(t, s, 0, 1, row("d-1", 1))
	admin := func(statement string) {
		t.Helper()
		if err := s.(*duck).use(t.Context(), func(db *sql.DB) error { _, err := db.ExecContext(t.Context(), statement); return err }); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range []struct{ do, undo, want string }{
		{"ALTER TABLE telemetry RENAME TO away", "ALTER TABLE away RENAME TO telemetry", "Table with name telemetry does not exist"},
		{"ALTER TABLE telemetry ADD COLUMN more INTEGER DEFAULT 1; ALTER TABLE telemetry ALTER COLUMN more SET NOT NULL", "ALTER TABLE telemetry DROP COLUMN more", "NOT NULL constraint failed: telemetry.more"},
		{"ALTER TABLE naru.marks RENAME TO away", "ALTER TABLE naru.away RENAME TO marks", "marks does not exist"},
	} {
		at := uint64(1 + i)
		admin(c.do)
		if i == 1 {
			admin("ALTER TABLE telemetry ALTER COLUMN more DROP DEFAULT")
		}
		_, err := s.Load(t.Context(), &Batch{Table: "telemetry", Rows: []Row{row("d-1", int(at)+1)}, Source: source, From: Mark{Sequence: at}, Upto: Mark{Sequence: at + 1}})
		if err == nil || !strings.Contains(err.Error(), "load into telemetry") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %s", c.do, err, c.want)
		}
		admin(c.undo)
		if m, err := s.Mark(t.Context(), source); err != nil || m.Sequence != at {
			t.Fatalf("%s: the mark is %v, %v; want %d", c.do, m, err, at)
		}
		load(t, s, at, at+1, row("d-1", int(at)+1))
	}
	want(t, "rows", all(t, s, "SELECT count(*), max(seq) FROM telemetry"), [][]any{{int64(4), int64(4)}})
}

// A field may be called as anything of ours that its values come by.
func TestNoNameOfAFieldIsInTheWay(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		names := []string{"ord", "again", "nth", "naru_row", "naru_again", "naru_stage", "naru_nth", "naru_query", "naru_tables", "naru_rows", "input", "t", "s", "u", "n", "m", "rows", "newest", "telemetry", "row", "name"}
		table := Table{Name: "telemetry", Key: []string{"device"}, Rollups: []Rollup{{Name: "telemetry_1m", Every: time.Minute, By: []string{"t", "s", "name"}, Values: []RollupValue{{"rows", []string{"max"}}}}}}
		var values []any
		for i, name := range names {
			table.Columns = append(table.Columns, Column{name, Int})
			values = append(values, int64(i))
			if name != "rows" {
				table.Key = append(table.Key, name)
			}
		}
		ensureTable(t, s, table)
		first, twin, other := row("d-1", 1, values...), row("d-1", 2, values...), row("d-2", 3, values...)
		first.Again = true
		want(t, "loaded", load(t, s, 0, 1, first, twin, other), Loaded{Rows: 2, Duplicates: []int{1}})
		want(t, "loaded again", load(t, s, 1, 2, first), Loaded{Duplicates: []int{0}})
		listed := `"` + strings.Join(names, `", "`) + `"`
		want(t, "asked", all(t, s, "SELECT "+listed+" FROM telemetry ORDER BY device"), [][]any{values, values})
		want(t, "roll-up", all(t, s, `SELECT t, s, name, rows, rows_max FROM telemetry_1m`), [][]any{{int64(11), int64(12), int64(20), int64(2), int64(16)}})
		for _, device := range []string{"", "d-2"} {
			r, err := s.Latest(t.Context(), "telemetry", device)
			if err != nil {
				t.Fatal(err)
			}
			got := collect(t, r)
			want(t, "latest", got[len(got)-1][len(System):], values)
		}
		r, err := s.Range(t.Context(), "telemetry", Span{Columns: names})
		if err != nil {
			t.Fatal(err)
		}
		want(t, "range", collect(t, r), [][]any{values, values})
		if r, err = s.Aggregate(t.Context(), "telemetry", Aggregation{By: []string{"t", "s"}, Values: []RollupValue{{"n", []string{"sum"}}}}); err != nil {
			t.Fatal(err)
		}
		want(t, "aggregate", collect(t, r)[0][:2], []any{int64(11), int64(12)})
		if found, err := s.ByTrace(t.Context(), first.Trace); err != nil || len(found) != 2 {
			t.Errorf("by trace: %v, %v", found, err)
		}
		if n, err := s.Export(t.Context(), "telemetry", time.Time{}, time.Time{}, filepath.Join(t.TempDir(), "out.parquet")); err != nil || n != 2 {
			t.Errorf("exported %d, %v", n, err)
		}
	})
}

func TestATableIsAlteredAndLosesNothing(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		ensureTable(t, s, readings())
		load(t, s, 0, 5, row("d-1", 1))
		wider := readings()
		wider.Columns[0].Type = Double
		wider.Columns = append(wider.Columns, Column{"bar", Double})
		ensureTable(t, s, wider)
		r := row("d-1", 2)
		r.Values[0] = 2.5
		r.Values = append(r.Values, 1013.0)
		load(t, s, 5, 6, r)
		want(t, "rows", all(t, s, `SELECT seq, bar FROM telemetry ORDER BY "time"`), [][]any{{1.0, nil}, {2.5, 1013.0}})
		for what, change := range map[string]func(*Table){
			"narrowed": func(t *Table) { t.Columns[0].Type = Text },
			"lost":     func(t *Table) { t.Columns = t.Columns[1:] },
		} {
			bad := wider
			bad.Columns = append([]Column(nil), wider.Columns...)
			change(&bad)
			if err := s.Ensure(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "seq") {
				t.Errorf("%s: %v", what, err)
			}
		}
		tables, err := s.Tables(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want(t, "tables", tables, []Table{wider})
	})
}

func TestRollupsAreWhatTheRowsSay(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		table := readings()
		table.Late = time.Hour
		table.Rollups = []Rollup{{Name: "telemetry_1m", Every: time.Minute, By: []string{"device"}, Values: []RollupValue{{"celsius", []string{"avg", "min", "max", "count"}}}}}
		ensureTable(t, s, table)
		load(t, s, 0, 5, row("d-1", 10), row("d-1", 20), row("d-2", 30), row("d-1", 70))
		late := row("d-1", 40)
		late.Recorded = late.Time.Add(30 * time.Minute)
		gone := row("d-1", 50)
		gone.Recorded = gone.Time.Add(2 * time.Hour)
		want(t, "late", load(t, s, 5, 6, late, gone), Loaded{Rows: 2, Late: 1})
		rolled := [][]any{
			{noon, "d-1", int64(3), (5.0 + 10 + 20) / 3, 5.0, 20.0, int64(3)},
			{noon, "d-2", int64(1), 15.0, 15.0, 15.0, int64(1)},
			{noon.Add(time.Minute), "d-1", int64(1), 35.0, 35.0, 35.0, int64(1)},
		}
		want(t, "roll-up", all(t, s, `SELECT * FROM telemetry_1m ORDER BY "time", device`), rolled)
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(6)}})
		// One that is declared later has all that there is; one that is left out goes.
		table.Rollups[0].Name = "telemetry_minutes"
		ensureTable(t, s, table)
		want(t, "new roll-up", all(t, s, `SELECT * FROM telemetry_minutes ORDER BY "time", device`), rolled)
		if _, err := s.Query(t.Context(), "SELECT * FROM telemetry_1m", nil, Limits{}); err == nil {
			t.Error("a roll-up that is not declared any more is there still")
		}
	})
}

func TestWhatReadsAnswers(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		ensureTable(t, s, readings())
		var rows []Row
		for i := range 10 {
			rows = append(rows, row("d-1", i), row("d-2", i))
		}
		other := row("d-3", 3)
		other.Trace = strings.Repeat("cd", 16)
		load(t, s, 0, 20, append(rows, other)...)

		r, err := s.Latest(t.Context(), "telemetry", "d-2")
		if err != nil {
			t.Fatal(err)
		}
		got := collect(t, r)
		if len(got) != 1 || got[0][6] != int64(9) || got[0][1] != "d-2" {
			t.Fatalf("latest of d-2: %v", got)
		}
		if r, err = s.Latest(t.Context(), "telemetry", ""); err != nil {
			t.Fatal(err)
		}
		if got = collect(t, r); len(got) != 3 || got[0][1] != "d-1" || got[0][6] != int64(9) || got[1][6] != int64(9) || got[2][6] != int64(3) {
			t.Fatalf("latest of all: %v", got)
		}
		r, err = s.Range(t.Context(), "telemetry", Span{Device: "d-1", From: noon.Add(2 * time.Second), To: noon.Add(8 * time.Second), Columns: []string{"seq"}, Newest: true, Limit: 3})
		if err != nil {
			t.Fatal(err)
		}
		want(t, "range", collect(t, r), [][]any{{int64(7)}, {int64(6)}, {int64(5)}})
		if !r.Truncated {
			t.Error("a range with more than its limit does not say so")
		}
		r, err = s.Aggregate(t.Context(), "telemetry", Aggregation{Every: 5 * time.Second, By: []string{"device"}, Values: []RollupValue{{"celsius", []string{"max"}}}, Span: Span{To: noon.Add(7 * time.Second)}})
		if err != nil {
			t.Fatal(err)
		}
		if got = collect(t, r); len(got) != 5 || got[0][2] != 2.0 {
			t.Fatalf("aggregate: %v", got)
		}
		found, err := s.ByTrace(t.Context(), other.Trace)
		if err != nil {
			t.Fatal(err)
		}
		want(t, "trace", found, []Traced{{"telemetry", other.Time, "d-3", other.Subject, other.Message, other.Recorded}})
		st, err := s.Stats(t.Context(), "telemetry")
		if err != nil || st.Rows != 21 || !st.Oldest.Equal(noon) || !st.Newest.Equal(noon.Add(9*time.Second)) {
			t.Fatalf("stats %+v, %v", st, err)
		}
		file := filepath.Join(t.TempDir(), "out.parquet")
		if n, err := s.Export(t.Context(), "telemetry", noon, noon.Add(5*time.Second), file); err != nil || n != 11 {
			t.Fatalf("exported %d rows: %v", n, err)
		}
		if n, err := s.Trim(t.Context(), "telemetry", noon.Add(5*time.Second)); err != nil || n != 11 {
			t.Fatalf("trimmed %d rows: %v", n, err)
		}
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(10)}})
	})
}

// TestRollupsOutliveTheirRows: retention takes rows and no windows, and what comes later for a window whose rows are gone is a row that does
// not count in it.
func TestRollupsOutliveTheirRows(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		table := readings()
		table.Late, table.Retention = time.Hour, 30*24*time.Hour
		table.Rollups = []Rollup{{Name: "telemetry_1m", Every: time.Minute, By: []string{"device"}, Values: []RollupValue{{"celsius", []string{"max", "count"}}}}}
		ensureTable(t, s, table)
		load(t, s, 0, 5, row("d-1", 1), row("d-1", 2), row("d-2", 3), row("d-1", 64))
		const windows = "SELECT device, rows, celsius_max, celsius_count FROM telemetry_1m ORDER BY \"time\", device"
		was := all(t, s, windows)
		if len(was) != 3 {
			t.Fatalf("windows %v", was)
		}
		if n, err := s.Trim(t.Context(), "telemetry", noon.Add(31*24*time.Hour)); err != nil || n != 4 {
			t.Fatalf("trimmed %d rows: %v", n, err)
		}
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(0)}})
		want(t, "windows", all(t, s, windows), was)
		late := row("d-1", 5)
		id := message.NewID(noon.Add(31 * 24 * time.Hour))
		late.Message, late.Recorded = id, id.Time().UTC().Truncate(time.Microsecond)
		if done := load(t, s, 5, 6, late); done.Rows != 1 || done.Late != 1 {
			t.Errorf("a late row: %+v", done)
		}
		want(t, "windows behind a late row", all(t, s, windows), was)
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(1)}})
	})
}

func TestPagesLeaveNothingOutAndGiveNothingTwice(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		ensureTable(t, s, readings())
		var rows []Row
		for i := range 60 { // times that are equal, and messages that are in no order
			r := row("d-"+fmt.Sprint(i%3), i/7)
			r.Message[15], r.Message[6] = byte(i), r.Message[6]&0xf0|byte(i*5%16)
			r.Values[0] = int64(i)
			rows = append(rows, r)
		}
		load(t, s, 0, 20, rows...)
		for _, newest := range []bool{false, true} {
			seen, span := map[any]bool{}, Span{Columns: []string{"time", "message_id", "seq", "device"}, Newest: newest, Limit: 7}
			var last Place
			for page := 0; ; page++ {
				r, err := s.Range(t.Context(), "telemetry", span)
				if err != nil {
					t.Fatal(err)
				}
				got := collect(t, r)
				for _, row := range got {
					id, err := message.ParseID(row[1].(string))
					if err != nil {
						t.Fatal(err)
					}
					at := Place{row[0].(time.Time), id}
					if c := at.Time.Compare(last.Time); page > 0 && (c < 0) != newest && c != 0 {
						t.Fatalf("newest %v: %v comes behind %v", newest, at, last)
					}
					last = at
					if seen[row[2]] {
						t.Fatalf("newest %v: row %v comes twice", newest, row)
					}
					seen[row[2]] = true
				}
				if !r.Truncated {
					break
				}
				if page == 2 { // what comes meanwhile and lies behind is no concern of the pages
					at := last
					late := row("d-9", 0)
					if late.Time = at.Time.Add(-time.Hour); newest {
						late.Time = at.Time.Add(time.Hour)
					}
					late.Values[0] = int64(1000 + page)
					load(t, s, 20, 20, late)
				}
				span.After = last
			}
			if len(seen) != 60 && !(newest && len(seen) == 61) {
				t.Errorf("newest %v: %d rows, want 60", newest, len(seen))
			}
		}
	})
}

func TestAQueryOnlyReads(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		ensureTable(t, s, readings())
		load(t, s, 0, 5, row("d-1", 1))
		for _, q := range []string{
			"DROP TABLE telemetry", "DELETE FROM telemetry", "INSERT INTO telemetry SELECT * FROM telemetry", "UPDATE telemetry SET seq = 2", "CREATE TABLE x (a int)",
			"SELECT 1; DROP TABLE telemetry", "DROP TABLE telemetry; SELECT 1", "DROP TABLE telemetry; SELECT 1;", "COMMIT; DROP TABLE telemetry", "SELECT 1) ; DROP TABLE telemetry; SELECT (1",
			"SET memory_limit = '10GB'", "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE", "COPY telemetry TO '/tmp/naru-must-not-be'", "ATTACH '/tmp/naru-must-not-be.db'", "INSTALL httpfs", "LOAD httpfs",
			"SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM '/etc/passwd'", "SELECT * FROM read_csv('/etc/passwd')", "SELECT pg_read_file('/etc/passwd')", "SELECT * FROM glob('/*')",
			"PRAGMA database_list", "CHECKPOINT", "EXPORT DATABASE '/tmp/naru-must-not-be'", "", "nonsense", "SELECT nothing FROM telemetry", "SELECT * FROM nowhere",
			"WITH x AS (DELETE FROM telemetry RETURNING *) SELECT * FROM x", "SELECT set_config('transaction_read_only', 'off', true)", "CALL pragma_version()",
		} {
			r, err := s.Query(t.Context(), q, nil, Limits{})
			if err == nil {
				for _, e := range r.Rows() {
					err = e
				}
			}
			var refused *RefusedError
			if !errors.As(err, &refused) {
				t.Errorf("%q: %v; want it refused", q, err)
			}
		}
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(1)}})
		want(t, "semicolon", all(t, s, "SELECT 'a;b' ; "), [][]any{{"a;b"}})
	})
}

func TestAQueryHasLimits(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		defer s.Close()
		r, err := s.Query(t.Context(), "SELECT 1 FROM generate_series(1, 10) AS g(i)", nil, Limits{Rows: 3})
		if err != nil {
			t.Fatal(err)
		}
		if got := collect(t, r); len(got) != 3 || !r.Truncated {
			t.Fatalf("%d rows, truncated %v", len(got), r.Truncated)
		}
		r, err = s.Query(t.Context(), "SELECT count(*) FROM generate_series(1, 100000000) AS a(i), generate_series(1, 100000000) AS b(i) WHERE a.i % 7 = b.i % 5", nil, Limits{Timeout: 2 * time.Second}) // a connection may have to be made first
		if err == nil {
			for _, e := range r.Rows() {
				err = e
			}
		}
		if err == nil || !strings.Contains(err.Error(), "took longer than") {
			t.Fatalf("a query without end ended with: %v", err)
		}
		want(t, "next", fmt.Sprint(all(t, s, "SELECT 1 + 1")), "[[2]]")
	})
}

// A connection whose transaction cannot be ended is used no more.
func TestAConnectionThatCannotRollBackIsNotUsedAgain(t *testing.T) {
	s := engines["duckdb"](t)()
	defer s.Close()
	err := s.(*duck).use(t.Context(), func(db *sql.DB) error {
		c, err := db.Conn(t.Context())
		if err != nil {
			return err
		}
		if err := rollback(t.Context(), c); err == nil { // there is none: it fails, as for want of memory
			t.Error("a transaction that was never begun was rolled back")
		}
		if err := c.Close(); !errors.Is(err, sql.ErrConnDone) {
			t.Errorf("the connection goes back: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestWhatAKilledProcessLeftGoes: an export and what was spilled are of no use to who comes next, and may fill the disk.
func TestWhatAKilledProcessLeftGoes(t *testing.T) {
	each(t, func(t *testing.T, open func() Store) {
		s := open()
		ensureTable(t, s, readings())
		load(t, s, 0, 1, row("d-1", 1))
		var left []string
		switch x := s.(type) {
		case *duck:
			left = []string{filepath.Join(x.exports(), "export-1.parquet"), filepath.Join(x.spill(), "duckdb_temp_storage_DEFAULT-0.tmp")}
		case *postgres:
			left = []string{filepath.Join(x.options.Dir, "export-1", "rows.duckdb")}
		}
		s.Close()
		for _, file := range left {
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s = open()
		defer s.Close()
		for _, file := range left {
			if _, err := os.Stat(file); !os.IsNotExist(err) {
				t.Errorf("%s: %v; want none", file, err)
			}
		}
		want(t, "rows", all(t, s, "SELECT count(*) FROM telemetry"), [][]any{{int64(1)}})
	})
}

func TestSweepKnowsAFolderByItsName(t *testing.T) {
	top := t.TempDir()
	for _, name := range []string{`a[b]*\?`, "ab"} {
		for _, file := range []string{"export-1", "other"} {
			if err := os.MkdirAll(filepath.Join(top, name, file), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	Sweep(filepath.Join(top, `a[b]*\?`), "export-*")
	if left, err := filepath.Glob(filepath.Join(top, "*", "*")); err != nil || len(left) != 3 {
		t.Errorf("left are %v, %v", left, err)
	}
}

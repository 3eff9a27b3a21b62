package storage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/message"
)

func newScratch(t *testing.T) *Scratch {
	s, err := NewScratch(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var scratchColumns = []Column{{"n", Int}, {"label", Text}}

// scratchRows are rows with a number and a label; what is bad says the label `bad`.
func scratchRows(n int, bad ...int) []Row {
	rows := make([]Row, n)
	for i := range rows {
		now := time.Unix(1_700_000_000, int64(i)*1000).UTC()
		rows[i] = Row{Time: now, Device: "d", Subject: "s", Trace: strings.Repeat("0", 31) + "1", Message: message.NewID(now), Recorded: now, Values: []any{int64(i), fmt.Sprint(i)}}
	}
	for _, i := range bad {
		rows[i].Values[1] = "bad"
	}
	return rows
}

func TestScratchTakesFieldsOfAnyName(t *testing.T) {
	s := newScratch(t)
	columns := []Column{{"naru_row", Int}, {"naru_again", Text}, {"ord", Int}, {"again", Bool}, {"naru_input", Int}, {"input", Int}}
	rows := scratchRows(3)
	for i := range rows {
		rows[i].Values = []any{int64(7), "x", int64(8), true, int64(9), int64(i)}
	}
	out, err := s.Do(t.Context(), Steps{Columns: columns, SQL: []string{"SELECT * FROM input WHERE input <> 1"}}, rows)
	if err != nil || len(out.Rows) != 2 || len(out.Columns) != len(System)+len(columns) {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestScratchTellsRowsThatFailFromThoseThatDoNot(t *testing.T) {
	s := newScratch(t)
	steps := Steps{Columns: scratchColumns, Count: true, SQL: []string{
		"SELECT * FROM input WHERE n <> 3", "SELECT message_id, n, CAST(label AS INTEGER) + 1 AS label FROM input;", "SELECT * FROM input WHERE label > 1"}}
	for _, c := range []struct {
		n   int
		bad []int
	}{{1, nil}, {1, []int{0}}, {10, []int{0, 9}}, {10, []int{4, 5, 6}}, {7, []int{0, 1, 2, 3, 4, 5, 6}}, {1000, []int{500}}, {0, nil}} {
		out, err := s.Do(t.Context(), steps, scratchRows(c.n, c.bad...))
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		want := map[int64]bool{}
		for i := range c.n {
			want[int64(i)] = i != 3 && i != 0
		}
		for _, i := range c.bad {
			delete(want, int64(i))
		}
		rows := 0
		for _, ok := range want {
			if ok {
				rows++
			}
		}
		failed := 0
		for _, i := range c.bad {
			if i != 3 { // the first step leaves it out before the second one fails with it
				failed++
			}
		}
		if len(out.Rows) != rows || len(out.Failed) != failed || len(out.Columns) != 3 || out.Counts[2] != rows {
			t.Errorf("%d rows of which %v are bad: %d came out, %d failed, counts %v", c.n, c.bad, len(out.Rows), len(out.Failed), out.Counts)
		}
		for _, row := range out.Rows {
			if !want[row[1].(int64)] || row[2].(int64) != row[1].(int64)+1 {
				t.Errorf("%+v: row %v", c, row)
			}
		}
		for _, f := range out.Failed {
			if f.Step != 2 || f.Given != "label is 'bad'" || !strings.Contains(f.Err.Error(), "INT32") || strings.Contains(f.Err.Error(), "\n") {
				t.Errorf("%+v: failed %+v", c, f)
			}
		}
	}
}

func TestScratchBlamesNoRowForAStepThatCannotBeDone(t *testing.T) {
	s := newScratch(t)
	for _, c := range []struct {
		name, want string
		step       int
		sql        []string
	}{
		{"a column that is not there", "nothing", 2, []string{"SELECT * FROM input", "SELECT nothing FROM input"}},
		{"no SQL", "syntax", 1, []string{"SELECT FROM WHERE", "SELECT * FROM input"}},
		{"two statements", "exactly one SELECT", 1, []string{"SELECT 1; SELECT 2"}},
		{"a file", "", 1, []string{"SELECT * FROM read_csv('/etc/passwd')"}},
		{"fails with no row as well", "no sense", 1, []string{"SELECT *, error('no sense') FROM (SELECT count(*) FROM input)"}},
		{"an argument", "", 1, []string{"SELECT $1 FROM input"}},
	} {
		out, err := s.Do(t.Context(), Steps{Columns: scratchColumns, SQL: c.sql}, scratchRows(5, 2))
		var step *StepError
		if !errors.As(err, &step) || step.Step != c.step || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v", c.name, out, err)
		}
	}
}

// TestScratchKeepsOneFromHoldingUpAnother: a step that does not end concerns its own dataset.
func TestScratchKeepsOneFromHoldingUpAnother(t *testing.T) {
	s := newScratch(t)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		_, err := s.Do(ctx, Steps{Columns: scratchColumns, SQL: []string{"SELECT sum(a.range * b.range) FROM input, range(10000000) a, range(10000000) b"}}, scratchRows(3))
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the endless one: %v", err)
		}
	})
	for range 20 {
		out, err := s.Do(t.Context(), Steps{Columns: scratchColumns, SQL: []string{"SELECT * FROM input"}}, scratchRows(100))
		if err != nil || len(out.Rows) != 100 {
			t.Fatalf("%+v, %v", out, err)
		}
	}
	cancel()
	group.Wait()
}

func TestScratchTakesARowThatMakesTooManyForOneThatFails(t *testing.T) {
	s := newScratch(t)
	s.most = 1000
	rows := scratchRows(4)
	rows[2].Values[0] = int64(2000)
	out, err := s.Do(t.Context(), Steps{Columns: scratchColumns, SQL: []string{"SELECT message_id, n, unnest(range(n)) AS label FROM input"}}, rows)
	if err != nil || len(out.Failed) != 1 || out.Failed[0].Row != 2 || len(out.Rows) != 0+1+3 {
		t.Errorf("%+v, %v", out, err)
	}
}

// TestScratchKeepsJSONAsItIs: numbers and the order of names are what they were, and what a step makes of lists and structs is JSON.
func TestScratchKeepsJSONAsItIs(t *testing.T) {
	s := newScratch(t)
	rows := scratchRows(2)
	const odd = `{"z":12345678901234567890,"a":1.0,"n":null,"s":"\u00e4"}`
	rows[0].Values, rows[1].Values = []any{odd}, []any{nil}
	steps := Steps{Columns: []Column{{"rest", JSON}}, SQL: []string{"SELECT *, [1, 2] AS list, {'a': rest} AS made, rest->'z' AS z, NULL::JSON AS none, '\"x\"'::JSON AS x FROM input"}}
	for range 2 { // the second one by a plan that is known
		out, err := s.Do(t.Context(), steps, rows)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]any{}
		for i, c := range out.Columns {
			got[c.Name] = out.Rows[0][i]
			if i >= len(System) && c.Type != JSON {
				t.Errorf("column %+v", c)
			}
		}
		for name, want := range map[string]any{"rest": odd, "list": "[1,2]", "made": `{"a":` + strings.Replace(odd, `\u00e4`, "ä", 1) + `}`, "z": "12345678901234567890", "none": nil, "x": `"x"`} {
			if got[name] != want {
				t.Errorf("%s: %v; want %v", name, got[name], want)
			}
		}
		if out.Rows[1][len(System)] != nil {
			t.Errorf("null is %v", out.Rows[1][len(System)])
		}
	}
}

// TestAStepComputesAndDoesNothingElse: a step that sets, reads or reaches anything but its input is refused, and the next pipeline's is done.
func TestAStepComputesAndDoesNothingElse(t *testing.T) {
	s := newScratch(t)
	for _, c := range []struct{ step, why string }{
		// This one had DuckDB refuse all that came after it, and end the process when a connection was closed.
		{"SELECT i.* FROM input i, enable_logging('QueryLog', storage = 'file', storage_config = {'path': '/tmp/naru-must-not-be'})", "no table function enable_logging"},
		{"SELECT i.* FROM input i, force_checkpoint()", "no table function force_checkpoint"},
		{"SELECT i.* FROM input i, query('SELECT 1')", "no table function query"},
		{"SELECT i.* FROM input i, duckdb_settings()", "no table function duckdb_settings"},
		{"SELECT i.* FROM input i, read_text('/etc/passwd')", "no table function read_text"},
		{"SELECT i.* FROM input i, '/etc/passwd'", "a step reads input"},
		{"SELECT * FROM naru_input", "a step reads input"},
		{"SELECT * REPLACE (current_setting('memory_limit') AS label) FROM input", "no function current_setting"},
		{"SELECT * REPLACE (write_log('x') AS label) FROM input", "no function write_log"},
		{"SELECT * FROM input WHERE sleep_ms(1) IS NULL", "sleep_ms computes nothing"},
		{"SELECT * REPLACE ($1 AS label) FROM input", "a step has no parameters"},
		{"SELECT * FROM input; DROP TABLE naru_input", "only SELECT"},
		{"SELECT * FROM input) SELECT 1 --", "syntax error"},
	} {
		_, err := s.Do(t.Context(), Steps{Columns: scratchColumns, SQL: []string{c.step}}, scratchRows(2))
		var wrong *StepError
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want it refused with %q", c.step, err, c.why)
		}
	}
	out, err := s.Do(t.Context(), Steps{Columns: scratchColumns, SQL: []string{
		"SELECT * REPLACE (replace(label, '1', list_sum(list_transform([1, 2], lambda x: x * 2))::VARCHAR) AS label) FROM input WHERE label LIKE label AND levenshtein(label, 'x') > 0",
	}}, scratchRows(2))
	if err != nil || len(out.Rows) != 2 {
		t.Errorf("what only takes its time: %+v, %v", out, err)
	}
}

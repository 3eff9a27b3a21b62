//go:build long

package e2e

import (
	"database/sql"
	"encoding/csv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	_ "github.com/duckdb/duckdb-go/v2" // reads Parquet, and is not the one in the process
)

// TestAReadingIsARowThatAnybodyCanAskFor starts the platform with simulated devices, and asks for their readings in each of
// the ways there are: what one gives is what another gives, and a trace ends at its row.
func TestAReadingIsARowThatAnybodyCanAskFor(t *testing.T) {
	p := newPlatform(t, "--sim", "3")
	p.start()
	up := time.Now()
	var counted []struct{ N int64 }
	for late := up.Add(time.Minute); ; {
		if out, code := p.naru("data", "query", "-o", "json", "SELECT count(*) AS n FROM telemetry"); code == 0 {
			if !strings.HasPrefix(out, `[{"n":`) || !strings.HasSuffix(out, "}]\n") {
				t.Fatalf("count: %q", out)
			}
			p.json(&counted, "data", "query", "SELECT count(*) AS n FROM telemetry")
			if counted[0].N >= 10 {
				break
			}
		}
		if time.Now().After(late) {
			t.Fatalf("no rows after a minute:\n%s", p.out)
		}
	}
	var lag []struct{ Device, Trace string }
	p.json(&lag, "data", "query", "SELECT device, trace_id AS trace FROM telemetry ORDER BY time LIMIT 1")

	var trace struct {
		Rows []struct{ Dataset, Device string }
	}
	p.json(&trace, "trace", lag[0].Trace)
	if len(trace.Rows) != 1 || trace.Rows[0].Dataset != "telemetry" || trace.Rows[0].Device != lag[0].Device {
		t.Errorf("the trace of a reading has the rows %+v", trace.Rows)
	}
	if out, _ := p.naru("trace", lag[0].Trace); !strings.Contains(out, "row of dataset telemetry") {
		t.Errorf("naru trace does not end at the row:\n%s", out)
	}

	// The same rows, up to a time that is over, in each format.
	var stats struct {
		Columns []struct{ Name string }
		Stats   struct{ Rows int64 }
	}
	p.json(&stats, "data", "stats", "telemetry")
	cut := time.Now().UTC().Format(time.RFC3339Nano)
	count := "SELECT count(*) AS n, sum(seq) AS s FROM telemetry WHERE time < $1"
	var want []struct{ N, S int64 }
	p.json(&want, "data", "query", "--arg", cut, count)
	if want[0].N < stats.Stats.Rows/2 {
		t.Fatalf("%+v of %+v", want, stats)
	}

	out, code := p.naru("data", "show", "telemetry", "--until", cut, "-n", "100000", "-o", "csv")
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if code != 0 || err != nil || int64(len(rows)-1) != want[0].N || len(rows[0]) != len(stats.Columns) {
		t.Errorf("CSV: %d rows, exit code %d, %v; want %d", len(rows)-1, code, err, want[0].N)
	}

	out, _ = p.naru("data", "query", "--arg", cut, "-o", "arrow", "SELECT seq FROM telemetry WHERE time < $1")
	r, err := ipc.NewReader(strings.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	var n, sum int64
	for r.Next() {
		seq := r.RecordBatch().Column(0).(*array.Int64)
		for i := range seq.Len() {
			n, sum = n+1, sum+seq.Value(i)
		}
	}
	if r.Err() != nil || n != want[0].N || sum != want[0].S {
		t.Errorf("Arrow: %d rows with the sum %d, %v; want %+v", n, sum, r.Err(), want)
	}

	file := filepath.Join(t.TempDir(), "telemetry.parquet")
	if out, code := p.naru("data", "export", "telemetry", file, "--until", cut); code != 0 {
		t.Fatalf("export: %s", out)
	}
	db, err := sql.Open("duckdb", "")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(t.Context(), "SELECT count(*), sum(seq)::BIGINT FROM read_parquet($1)", file).Scan(&n, &sum); err != nil || n != want[0].N || sum != want[0].S {
		t.Errorf("Parquet: %d rows with the sum %d, %v; want %+v", n, sum, err, want)
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Errorf("beside the file: %v, %v", entries, err)
	}

	var latest []struct {
		Device string
		Seq    int64
	}
	p.json(&latest, "data", "latest", "telemetry")
	if len(latest) != 3 {
		t.Errorf("the latest of each device: %+v", latest)
	}
	if out, code := p.naru("data", "query", "SELECT nothing FROM telemetry"); code != 1 || !strings.Contains(out, "line 1, column 8") {
		t.Errorf("a query that is wrong: %d %s", code, out)
	}
	var ages []struct{ Slowest, Median float64 }
	p.json(&ages, "data", "query", "SELECT max(d) AS slowest, median(d) AS median FROM (SELECT epoch(recorded - time) AS d FROM telemetry)")
	t.Logf("%d rows; from a reading to its record %s", want[0].N, strconv.FormatFloat(ages[0].Slowest, 'f', 3, 64)+" s at most")
	p.stop()
}

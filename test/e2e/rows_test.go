//go:build long

package e2e

import (
	"database/sql"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	_ "github.com/duckdb/duckdb-go/v2" // reads Parquet, and is not the one in the process

	"github.com/naru-platform/naru/data_platform/etl"
	"github.com/naru-platform/naru/message"
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

// TestATrialShowsWhatAPipelineWouldDo tries examples/engine.yaml with the real binary: on a file of samples without a platform, and on what
// devices have said to one that has never heard of it. Nothing is written by that; then the document is applied, and what comes is what was shown.
func TestATrialShowsWhatAPipelineWouldDo(t *testing.T) {
	const engine = "../../examples/engine.yaml"
	payload := func(n int) []byte {
		switch n % 5 {
		case 1: // is dropped by the pipeline's step
			return fmt.Appendf(nil, `{"seq":%d,"state":"idle"}`, n)
		case 2: // is dead
			return fmt.Appendf(nil, `{"seq":%d,"oil":{"celsius":900}}`, n)
		}
		return fmt.Appendf(nil, `{"seq":%d,"oil":{"celsius":%d.5},"maker":"x"}`, n, n%100)
	}
	count := func(n int) (rows, dropped, dead int) {
		for i := range n {
			switch i % 5 {
			case 1:
				dropped++
			case 2:
				dead++
			default:
				rows++
			}
		}
		return rows, dropped, dead
	}
	look := func(what string, got etl.Trial, n int) {
		t.Helper()
		rows, dropped, dead := count(n)
		if got.Messages != n || got.Rows != rows || got.Dropped != dropped || got.Dead != dead || got.Fault != "" || len(got.Out) != rows {
			t.Errorf("%s: %d messages, %d rows, %d dropped, %d dead, %q; want %d, %d, %d, %d", what, got.Messages, got.Rows, got.Dropped, got.Dead, got.Fault, n, rows, dropped, dead)
		}
		for _, l := range got.Letters {
			if l.Reason != message.SchemaMismatch || !strings.Contains(l.Detail, "celsius") || !strings.Contains(l.Detail, "900") || !strings.Contains(l.Detail, "150") {
				t.Errorf("%s: the letter of %s says %s: %s", what, l.Where, l.Reason, l.Detail)
			}
		}
	}
	samples := filepath.Join(t.TempDir(), "samples.jsonl")
	var lines []byte
	for n := range 50 {
		lines = append(append(lines, payload(n)...), '\n')
	}
	if err := os.WriteFile(samples, lines, 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t)
	var got etl.Trial
	if code := p.json(&got, "data", "etl", "test", engine, "--input", samples); code != 0 {
		t.Errorf("on samples: exit code %d", code)
	}
	look("on samples", got, 50)

	p.start()
	s := newSender("d-1", p.plain)
	s.topic = "telemetry/engine"
	say := func(more int) {
		stop, over, enough := make(chan struct{}), make(chan struct{}), s.next+more
		s.payload = func(n int) []byte {
			if n == enough {
				close(stop)
			}
			return payload(n)
		}
		go func() { s.run(stop); close(over) }()
		select {
		case <-over: // all are acknowledged
		case <-time.After(time.Minute):
			t.Fatalf("%d messages are acknowledged\n%s", s.count.Load(), p.out)
		}
	}
	say(50)
	said := len(s.acked)
	got = etl.Trial{}
	p.json(&got, "data", "etl", "test", engine, "--since", "1h", "--limit", "100000")
	look("on recorded messages", got, said)
	if out, code := p.naru("data", "query", "SELECT count(*) FROM engine"); code != 1 || !strings.Contains(out, "engine") {
		t.Errorf("after a trial there is a dataset: %d %s", code, out)
	}
	if dead := p.settledDead(); dead != 0 {
		t.Errorf("a trial has made %d dead letters", dead)
	}

	p.ok("data", "apply", engine, "--why", "a test")
	say(50)
	rows, _, dead := count(s.next)
	before, _, deadBefore := count(said)
	var counted []struct{ N int }
	for late := time.Now().Add(time.Minute); ; {
		out, code := p.naru("data", "query", "-o", "json", "SELECT count(*) AS n FROM engine")
		if code == 0 && json.Unmarshal([]byte(out), &counted) == nil && counted[0].N == rows-before {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("the rows are %+v, and %d were to come: %s", counted, rows-before, out)
		}
	}
	if n := p.settledDead(); n != uint64(dead-deadBefore) {
		t.Errorf("%d messages are dead, and %d were to be", n, dead-deadBefore)
	}
	p.stop()
}

// settledDead is how many messages are dead once nothing waits.
func (p *platform) settledDead() (n uint64) {
	p.t.Helper()
	for _, l := range p.settled(0) {
		n += l.Dead
	}
	return n
}

package storage

import (
	"flag"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

var askRows = flag.Int("ask-rows", 10_000_000, "how many rows the benchmarks of questions ask of")

// BenchmarkAskOfMany asks DuckDB of many rows: a thousand devices, a reading every ten seconds each.
func BenchmarkAskOfMany(b *testing.B) {
	file := filepath.Join(b.TempDir(), "data.duckdb")
	s, err := OpenDuck(b.Context(), file, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if err := s.Ensure(b.Context(), Table{Name: "telemetry", Columns: []Column{{"seq", Int}, {"celsius", Double}, {"state", Text}}}); err != nil {
		b.Fatal(err)
	}
	const devices, batch = 1000, 8192 // as many rows as are loaded at once at most, where much is to be caught up with
	began, trace := time.Now(), ""
	rows := make([]Row, 0, batch)
	for n := 0; n < *askRows; {
		rows = rows[:0]
		for ; len(rows) < batch && n < *askRows; n++ {
			at := noon.Add(time.Duration(n/devices) * 10 * time.Second).Add(time.Duration(n%devices) * time.Millisecond)
			id := message.NewID(at)
			trace = message.TraceID(message.NewID(at)).String()
			rows = append(rows, Row{Time: at, Device: fmt.Sprintf("d-%d", n%devices), Subject: "data_platform.telemetry.d.telemetry", Trace: trace, Message: id, Recorded: at.Add(3 * time.Millisecond),
				Values: []any{int64(n / devices), 20 + float64(n%100)/10, "ok"}, Position: bus.Position{Sequence: uint64(n)}})
		}
		if _, err := s.Load(b.Context(), &Batch{Table: "telemetry", Rows: rows}); err != nil {
			b.Fatal(err)
		}
	}
	stats, err := s.Stats(b.Context(), "telemetry")
	if err != nil {
		b.Fatal(err)
	}
	loading := time.Since(began)
	b.Run("load", func(b *testing.B) { // was done; here is only told what it came to
		for b.Loop() {
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(stats.Bytes)/float64(stats.Rows), "bytes/row")
		b.ReportMetric(float64(stats.Rows)/loading.Seconds(), "rows/s")
	})
	last := stats.Newest
	day := Span{Device: "d-7", From: last.Add(-24 * time.Hour), Limit: 10_000}
	for _, c := range []struct {
		name string
		ask  func() (*Result, error)
	}{
		{"latest-of-a-device", func() (*Result, error) { return s.Latest(b.Context(), "telemetry", "d-7") }},
		{"latest-of-each", func() (*Result, error) { return s.Latest(b.Context(), "telemetry", "") }},
		{"day-of-a-device", func() (*Result, error) { return s.Range(b.Context(), "telemetry", day) }},
		{"newest-100", func() (*Result, error) {
			return s.Range(b.Context(), "telemetry", Span{Newest: true, Limit: 100})
		}},
		{"hourly-average-of-each-for-a-day", func() (*Result, error) {
			return s.Aggregate(b.Context(), "telemetry", Aggregation{Every: time.Hour, By: []string{"device"}, Values: []RollupValue{{"celsius", []string{"avg"}}}, Span: Span{From: day.From, Limit: 100_000}})
		}},
		{"average-of-each-of-all-rows", func() (*Result, error) {
			return s.Aggregate(b.Context(), "telemetry", Aggregation{By: []string{"device"}, Values: []RollupValue{{"celsius", []string{"avg"}}}, Span: Span{Limit: 100_000}})
		}},
		{"count", func() (*Result, error) { return s.Query(b.Context(), "SELECT count(*) FROM telemetry", nil, Limits{}) }},
		{"count-where", func() (*Result, error) {
			return s.Query(b.Context(), "SELECT count(*) FROM telemetry WHERE celsius > 25", nil, Limits{})
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				r, err := c.ask()
				if err != nil {
					b.Fatal(err)
				}
				for _, err := range r.Rows() {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			b.ReportMetric(float64(n)/float64(b.N), "rows")
		})
	}
	b.Run("trace", func(b *testing.B) {
		for b.Loop() {
			if list, err := s.ByTrace(b.Context(), trace); err != nil || len(list) != 1 {
				b.Fatal(list, err)
			}
		}
	})
}

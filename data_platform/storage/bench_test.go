package storage

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// durable are engines as they are in production: what was loaded is on disk.
var durable = []struct {
	name string
	open func(b *testing.B) Store
}{
	{"duckdb", func(b *testing.B) Store {
		s, err := OpenDuck(b.Context(), filepath.Join(b.TempDir(), "data.duckdb"), Options{})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}},
	{"postgresql", func(b *testing.B) Store {
		server := newServer(b, b.TempDir(), "shared_buffers = 1GB", "max_wal_size = 4GB")
		b.Cleanup(server.Kill)
		return openPostgres(b, database(b, server, "CREATEROLE"))
	}},
}

const (
	benchBatch   = 5000
	benchDevices = 1000
)

// benchRows are a batch of readings, one of each device each ten seconds.
func benchRows(batch int) []Row {
	rows := make([]Row, benchBatch)
	for i := range rows {
		n := batch*benchBatch + i
		at := noon.Add(time.Duration(n/benchDevices) * 10 * time.Second).Add(time.Duration(n%benchDevices) * time.Millisecond)
		id := message.NewID(at)
		device := fmt.Sprintf("pump-%04d", n%benchDevices)
		rows[i] = Row{Time: at, Device: device, Subject: "device." + device + ".telemetry", Trace: fmt.Sprintf("%016x%016x", uint64(at.UnixMicro()), uint64(n+1)*0x9e3779b97f4a7c15), Message: id,
			Recorded: id.Time().UTC().Truncate(time.Microsecond), Values: []any{int64(n / benchDevices), 20 + float64(n%97)/8, "running", n%2 == 0, nil, nil, nil}}
		if n%10 == 0 {
			rows[i].Values[5] = json.RawMessage(`{"firmware":"1.4.2"}`)
		}
	}
	return rows
}

func benchTable(keyed, rolled bool) Table {
	t := readings()
	if keyed {
		t.Key = []string{"device", "seq"}
	}
	if rolled {
		t.Rollups = []Rollup{{Name: "telemetry_1m", Every: time.Minute, By: []string{"device"}, Values: []RollupValue{{"celsius", []string{"avg", "min", "max"}}}}}
	}
	return t
}

// BenchmarkLoad loads batches of 5000 readings, each with its mark in one durable transaction.
func BenchmarkLoad(b *testing.B) {
	for _, engine := range durable {
		for _, kind := range []struct {
			name          string
			keyed, rolled bool
		}{{name: "plain"}, {"key", true, false}, {"rollup", false, true}} {
			b.Run(engine.name+"/"+kind.name, func(b *testing.B) {
				s := engine.open(b)
				defer s.Close()
				if err := s.Ensure(b.Context(), benchTable(kind.keyed, kind.rolled)); err != nil {
					b.Fatal(err)
				}
				b.ResetTimer()
				for i := range b.N {
					b.StopTimer()
					rows := benchRows(i)
					b.StartTimer()
					done, err := s.Load(b.Context(), &Batch{Table: "telemetry", Rows: rows, Source: source, From: Mark{Sequence: uint64(i)}, Upto: Mark{Sequence: uint64(i + 1)}})
					if err != nil || done.Rows != benchBatch {
						b.Fatal(done.Rows, err)
					}
				}
				b.StopTimer()
				b.ReportMetric(float64(b.N)*benchBatch/b.Elapsed().Seconds(), "rows/s")
				st, err := s.Stats(b.Context(), "telemetry")
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(st.Bytes)/float64(st.Rows), "B/row")
			})
		}
	}
}

// BenchmarkAsk asks a table of a million readings, after they were loaded.
func BenchmarkAsk(b *testing.B) {
	const batches = 200
	for _, engine := range durable {
		s := engine.open(b)
		if err := s.Ensure(b.Context(), benchTable(false, false)); err != nil {
			b.Fatal(err)
		}
		var last Row
		for i := range batches {
			rows := benchRows(i)
			last = rows[len(rows)/2]
			if _, err := s.Load(b.Context(), &Batch{Table: "telemetry", Rows: rows, Source: source, From: Mark{Sequence: uint64(i)}, Upto: Mark{Sequence: uint64(i + 1)}}); err != nil {
				b.Fatal(err)
			}
		}
		hour := Span{From: last.Time.Add(-time.Hour), To: last.Time, Limit: 100_000}
		for _, q := range []struct {
			name string
			ask  func() (*Result, error)
		}{
			{"latest of a device", func() (*Result, error) { return s.Latest(b.Context(), "telemetry", "pump-0500") }},
			{"latest of 1000 devices", func() (*Result, error) { return s.Latest(b.Context(), "telemetry", "") }},
			{"an hour of a device", func() (*Result, error) {
				of := hour
				of.Device = "pump-0500"
				return s.Range(b.Context(), "telemetry", of)
			}},
			{"newest 1000 of all", func() (*Result, error) { return s.Range(b.Context(), "telemetry", Span{Newest: true}) }},
			{"minutes of an hour of all", func() (*Result, error) {
				return s.Aggregate(b.Context(), "telemetry", Aggregation{Span: hour, Every: time.Minute, Values: []RollupValue{{"celsius", []string{"avg", "max"}}}})
			}},
			{"minutes of all", func() (*Result, error) {
				return s.Aggregate(b.Context(), "telemetry", Aggregation{Span: Span{Limit: 100_000}, Every: time.Minute, Values: []RollupValue{{"celsius", []string{"avg", "max"}}}})
			}},
			{"trace", func() (*Result, error) {
				_, err := s.ByTrace(b.Context(), last.Trace)
				return nil, err
			}},
		} {
			b.Run(engine.name+"/"+q.name, func(b *testing.B) {
				for b.Loop() {
					r, err := q.ask()
					if err != nil {
						b.Fatal(err)
					}
					if r == nil {
						continue
					}
					n := 0
					for _, err := range r.Rows() {
						if n++; err != nil {
							b.Fatal(err)
						}
					}
					if n == 0 {
						b.Fatal("no rows")
					}
				}
			})
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoadFew loads what a small fleet says between two loads: what a transaction takes, whatever is in it.
func BenchmarkLoadFew(b *testing.B) {
	for _, engine := range durable {
		b.Run(engine.name, func(b *testing.B) {
			s := engine.open(b)
			defer s.Close()
			if err := s.Ensure(b.Context(), benchTable(false, false)); err != nil {
				b.Fatal(err)
			}
			rows := benchRows(0)
			began := componenttest.CPU(b)
			b.ResetTimer()
			for i := range b.N {
				_, err := s.Load(b.Context(), &Batch{Table: "telemetry", Rows: rows[i%2000*2 : i%2000*2+2], Source: source, From: Mark{Sequence: uint64(i)}, Upto: Mark{Sequence: uint64(i + 1)}})
				if err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(componenttest.CPU(b)-began)/float64(time.Microsecond)/float64(b.N), "cpu-µs/load")
		})
	}
}

package etl

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/data_platform/model"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/message"
)

// doneTx is a commit that succeeds at once.
type doneTx struct{ component.Tx }

func (doneTx) After(f func()) { f() }

// BenchmarkLoad is what a dataset's child does with what it has gathered: payloads become rows, a pipeline's steps are done, and
// all is loaded into DuckDB with its place, in groups of 8192 and of 512 messages.
func BenchmarkLoad(b *testing.B) {
	const three = "pipeline: p\ndataset: telemetry\nsteps:\n" +
		"  - sql: SELECT * FROM input WHERE celsius IS NOT NULL\n" +
		"  - sql: SELECT * REPLACE (round((celsius - 32) / 1.8, 3) AS celsius) FROM input\n" +
		"  - sql: SELECT * REPLACE (coalesce(state, 'unknown') AS state) FROM input\n"
	for _, c := range []struct {
		name, yaml string
		twins      bool
	}{{"plain", "", false}, {"three_steps", three, false}, {"three_steps_and_twins", three + "enrich: {twin: [/reported/site]}\n", true}} {
		for _, group := range []int{512, 8192} {
			b.Run(fmt.Sprintf("%s/%d", c.name, group), func(b *testing.B) { benchLoad(b, c.yaml, c.twins, group) })
		}
	}
}

func benchLoad(b *testing.B, yaml string, twins bool, group int) {
	store, err := storage.OpenDuck(b.Context(), filepath.Join(b.TempDir(), "data.duckdb"), storage.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	docs := model.BuiltIn()
	d := docs[0].Dataset
	var p *model.Pipeline
	if yaml != "" {
		if twins {
			yaml = strings.Replace(yaml, "SELECT * REPLACE (coalesce", "SELECT * EXCLUDE (twin_site) REPLACE (twin_site->>'$' AS kind, coalesce", 1)
		}
		of, err := model.Parse("bench", []byte(yaml))
		if err != nil {
			b.Fatal(err)
		}
		p = of[0].Pipeline
	}
	e := &etl{conf: Config{Memory: "256MiB"}, env: component.Env{Now: time.Now, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}}
	counter := func() *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x"}, []string{"dataset"})
	}
	e.rows, e.duplicates, e.late = counter(), counter(), counter()
	defer e.close()
	if err := store.Ensure(b.Context(), Table(d)); err != nil {
		b.Fatal(err)
	}
	l := &loader{etl: e, env: component.Env{Now: time.Now, Spec: component.Spec{Name: Name + "/telemetry"}}, name: "telemetry", sources: map[storage.Source]*source{}, stand: &standing{}}
	l.pipe = NewPipe(d, p, e.scratches)
	documents := map[string][]byte{}
	l.pipe.Twins = func(context.Context, []string) (map[string][]byte, error) { return documents, nil }
	now := time.Now()
	in := make([]component.Heard, group)
	log := message.NewID(now)
	for i := range in {
		device := fmt.Sprintf("d-%d", i%1000)
		documents[device] = []byte(`{"state":{"reported":{"site":"hall 7","firmware":"1.2.3"},"desired":{"interval":10}},"metadata":{},"version":4,"timestamp":1}`)
		in[i].Message = &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Device: device, Subject: message.Subject("data_platform.telemetry." + device + ".telemetry"),
			ContentType: "application/json", Data: fmt.Appendf(nil, `{"seq": %d, "kind": "thermometer", "celsius": %d.5, "ts": %q, "battery": 0.87, "rssi": -61}`, i, i%100, now.UTC().Format(time.RFC3339Nano))}
	}
	sequence := uint64(0)
	b.ReportAllocs()
	began := componenttest.CPU(b)
	for b.Loop() {
		for i := range in {
			in[i].Position = bus.Position{Log: log, Generation: 1, Sequence: sequence + 1, Index: uint32(i)}
		}
		sequence++
		if _, err := l.loadInto(b.Context(), doneTx{}, store, d, in); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N*group)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64((componenttest.CPU(b)-began).Microseconds())/float64(b.N*group), "cpu-µs/row") // which tells more on a machine that is not quiet
}

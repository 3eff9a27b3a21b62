package worker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/worker"
)

// BenchmarkNeighbourOfAFaultyWorker measures how long a message takes from the log to a worker that is well, at 500 messages a
// second of 200 devices, while another worker that hears the same is well too, hangs, answers 500, answers garbage, or drops the
// connection at one message in a hundred.
//
//	go test -run '^$' -bench NeighbourOfAFaultyWorker -benchtime 5000x ./service_platform/worker
func BenchmarkNeighbourOfAFaultyWorker(b *testing.B) {
	for _, f := range []struct {
		name   string
		handle http.HandlerFunc
	}{
		{"that-is-well", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }},
		{"that-hangs", func(_ http.ResponseWriter, q *http.Request) {
			_, _ = io.Copy(io.Discard, q.Body) // so that the end of the call is seen
			<-q.Context().Done()
		}},
		{"that-answers-500", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }},
		{"that-answers-garbage", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }},
		{"that-dies-of-one-in-a-hundred", func(w http.ResponseWriter, q *http.Request) {
			if data, _ := io.ReadAll(q.Body); strings.HasSuffix(string(data), ",7,") { // what there is
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusNoContent)
		}},
	} {
		b.Run(f.name, func(b *testing.B) { neighbour(b, f.handle) })
	}
}

func neighbour(b *testing.B, faulty http.HandlerFunc) {
	bu, err := nats.Open(b.Context(), nats.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer bu.Close()
	host := &component.Host{Bus: bu, Catalog: catalog.Default(), Dir: b.TempDir(), Node: "n1", Specs: []component.Spec{worker.Spec}, Log: slog.New(slog.DiscardHandler),
		Config: map[string]json.RawMessage{worker.Name: json.RawMessage(`{"allow":["127.0.0.0/8"]}`)}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}()
	s := httptest.NewServer(host.Handler(func(*http.Request) bool { return true }))
	defer s.Close()
	var mu sync.Mutex
	took := make([]time.Duration, 0, b.N)
	began := time.Now()
	add := func(name string, h http.HandlerFunc) {
		server := httptest.NewServer(h)
		b.Cleanup(server.Close)
		raw, err := json.Marshal(worker.Record{Name: name, Hears: hears, URL: server.URL, Concurrency: 32})
		if err != nil {
			b.Fatal(err)
		}
		wait(b, func() bool {
			q, err := http.NewRequest("PUT", s.URL+"/api/v1/workers/"+name, strings.NewReader(string(raw)))
			if err != nil {
				b.Fatal(err)
			}
			res, err := http.DefaultClient.Do(q)
			if err != nil {
				return false
			}
			defer res.Body.Close()
			return res.StatusCode == http.StatusOK
		})
	}
	add("faulty", faulty)
	add("well", func(w http.ResponseWriter, q *http.Request) {
		data, _ := io.ReadAll(q.Body) // what there is
		at, _, _ := strings.Cut(string(data), ",")
		sent, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			b.Error(err)
		}
		mu.Lock()
		took = append(took, time.Since(began)-time.Duration(sent))
		mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	})
	log, err := bu.Log(b.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		b.Fatal(err)
	}
	door, err := log.Appender(b.Context(), bus.AppenderOptions{Name: "bench", Owner: message.NewID(time.Now())})
	if err != nil {
		b.Fatal(err)
	}
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	b.ResetTimer()
	for i := range b.N {
		<-pace.C
		m := telemetry(fmt.Sprint("d-", i%200), fmt.Sprintf("%d,%d,", time.Since(began), i%100))
		if err := door.Append(b.Context(), m, nil, 0); err != nil {
			b.Fatal(err)
		}
	}
	wait(b, func() bool { mu.Lock(); defer mu.Unlock(); return len(took) >= b.N })
	b.StopTimer()
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	if err := door.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}

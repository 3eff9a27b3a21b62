package worker_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/worker"
)

// neighbourRounds are as many comparisons. What else the machine does changes from minute to minute, so the kinds of neighbours take turns
// of some seconds, and each is held against the one that is well in the same round.
const neighbourRounds = 7

// BenchmarkNeighbourOfAFaultyWorker measures how long a message takes from the log to a worker that is well, at 500 messages a
// second of 200 devices, while another worker that hears the same is well too, hangs, answers 500, answers garbage, or drops the
// connection at one message in a hundred. b.N messages are said in each turn. Of each kind it tells the medians, over the
// rounds, of p50 and p99, and of p99 as a multiple of that beside one that is well.
//
//	go test -run '^$' -bench NeighbourOfAFaultyWorker -benchtime 1500x ./service_platform/worker
func BenchmarkNeighbourOfAFaultyWorker(b *testing.B) {
	kinds := []struct {
		name   string
		handle http.HandlerFunc
	}{
		{"well", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }},
		{"hangs", func(_ http.ResponseWriter, q *http.Request) {
			_, _ = io.Copy(io.Discard, q.Body) // so that the end of the call is seen
			<-q.Context().Done()
		}},
		{"500", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }},
		{"garbage", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }},
		{"dies", func(w http.ResponseWriter, q *http.Request) {
			if data, _ := io.ReadAll(q.Body); strings.HasSuffix(string(data), ",7,") { // what there is
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusNoContent)
		}},
	}
	s := newStage(b)
	var mu sync.Mutex
	var took []time.Duration
	began := time.Now()
	well := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
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
	}))
	b.Cleanup(well.Close)
	s.add(worker.Record{Name: "well", Hears: hears, URL: well.URL, Concurrency: 32})
	turn := func(name string, handle http.HandlerFunc) (p50, p99 float64) {
		other := httptest.NewServer(handle)
		defer other.Close()
		s.add(worker.Record{Name: name, Hears: hears, URL: other.URL, Concurrency: 32})
		mu.Lock()
		took = took[:0]
		mu.Unlock()
		pace := time.NewTicker(2 * time.Millisecond)
		defer pace.Stop()
		for i := range b.N {
			<-pace.C
			s.says(i%200, fmt.Sprintf("%d,%d,", time.Since(began), i%100))
		}
		wait(b, func() bool { mu.Lock(); defer mu.Unlock(); return len(took) >= b.N })
		s.ask("DELETE", "/api/v1/workers/"+name+"?force=true", nil)
		other.CloseClientConnections()
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(took)
		return took[len(took)/2].Seconds() * 1000, took[len(took)*99/100].Seconds() * 1000
	}
	median := func(list []float64) float64 { return slices.Sorted(slices.Values(list))[len(list)/2] }
	p50, p99, ratio := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for round := range neighbourRounds {
		for i := range kinds {
			k := kinds[(i+round)%len(kinds)] // each comes behind each other one
			half, most := turn(fmt.Sprintf("%s-%d", k.name, round), k.handle)
			p50[k.name], p99[k.name] = append(p50[k.name], half), append(p99[k.name], most)
		}
		for _, k := range kinds {
			ratio[k.name] = append(ratio[k.name], p99[k.name][round]/p99["well"][round])
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, k := range kinds {
		b.ReportMetric(median(p50[k.name]), k.name+"-p50-ms")
		b.ReportMetric(median(p99[k.name]), k.name+"-p99-ms")
		if i > 0 {
			b.ReportMetric(median(ratio[k.name]), k.name+"-p99-times")
		}
	}
}

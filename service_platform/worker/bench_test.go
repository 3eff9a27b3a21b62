package worker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/worker"
	"github.com/naru-platform/naru/service_platform/worker/sdk"
)

// payload is what each message holds.
const payload = `{"celsius":31}`

// stage is a process with workers on the real engine, and a door to the log of devices.
type stage struct {
	b    *testing.B
	url  string
	host *component.Host
	door bus.Appender
}

func newStage(b *testing.B) *stage {
	bu, err := nats.Open(b.Context(), nats.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { bu.Close() })
	host := &component.Host{Bus: bu, Catalog: catalog.Default(), Dir: b.TempDir(), Node: "n1", Specs: []component.Spec{worker.Spec}, Log: slog.New(slog.DiscardHandler),
		Config: map[string]json.RawMessage{worker.Name: json.RawMessage(`{"allow":["127.0.0.0/8"]}`)}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	s := httptest.NewServer(host.Handler(func(*http.Request) bool { return true }))
	b.Cleanup(s.Close)
	log, err := bu.Log(b.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		b.Fatal(err)
	}
	door, err := log.Appender(b.Context(), bus.AppenderOptions{Name: "bench", Owner: message.NewID(time.Now())})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := door.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return &stage{b, s.URL, host, door}
}

// ask asks the platform, until it answers well.
func (s *stage) ask(method, path string, in any) {
	raw, err := json.Marshal(in)
	if err != nil {
		s.b.Fatal(err)
	}
	wait(s.b, func() bool {
		q, err := http.NewRequest(method, s.url+path, strings.NewReader(string(raw)))
		if err != nil {
			s.b.Fatal(err)
		}
		res, err := http.DefaultClient.Do(q)
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// add adds a worker. It hears what is said from now on.
func (s *stage) add(rec worker.Record) { s.ask("PUT", "/api/v1/workers/"+rec.Name, rec) }

// says appends a message of the device of that number.
func (s *stage) says(device int, data string) {
	if err := s.door.Append(s.b.Context(), telemetry(fmt.Sprint("d-", device), data), nil, 0); err != nil {
		s.b.Fatal(err)
	}
}

// worked measures b.N messages of 200 devices from the log to their committed fate at a worker.
func worked(b *testing.B, rec worker.Record, begin func(url string)) {
	s := newStage(b)
	s.add(rec)
	if begin != nil {
		begin(s.url)
	}
	handled := func() (n uint64) {
		for _, r := range s.host.Peers().Reports() {
			if r.Consumer == worker.Name+"/"+rec.Name && r.Log == message.Device {
				n = r.Outcomes[component.Handled].Count
			}
		}
		return n
	}
	b.ResetTimer()
	for i := range b.N {
		s.says(i%200, payload)
	}
	wait(b, func() bool { return handled() == uint64(b.N) })
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func wait(b *testing.B, happened func() bool) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(5 * time.Minute)
	defer late.Stop()
	for !happened() {
		select {
		case <-tick.C:
		case <-late.C:
			b.Fatal("it does not happen")
		}
	}
}

func BenchmarkWorkerOverHTTP(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	defer s.Close()
	worked(b, worker.Record{Name: "w", Hears: hears, URL: s.URL, Concurrency: 32}, nil)
}

func BenchmarkWorkerOverSDK(b *testing.B) {
	worked(b, worker.Record{Name: "w", Hears: hears, Concurrency: 128}, func(url string) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			done <- sdk.Run(ctx, "w", func(context.Context, *sdk.Call) error { return nil }, sdk.Options{URLs: []string{url}, Concurrency: 128})
		}()
		b.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
		})
	})
}

// BenchmarkBareHTTPHandler is what an HTTP worker is held against: as many calls at once, and nothing else.
func BenchmarkBareHTTPHandler(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	defer s.Close()
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	var left atomic.Int64
	left.Store(int64(b.N))
	ends := make(chan error, 32)
	b.ResetTimer()
	for range 32 {
		go func() {
			for left.Add(-1) >= 0 {
				res, err := c.Post(s.URL, "application/json", strings.NewReader(payload))
				if err != nil {
					ends <- err
					return
				}
				res.Body.Close()
			}
			ends <- nil
		}()
	}
	for range 32 {
		if err := <-ends; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkNATSConsumer is what an SDK worker is held against: a durable pull consumer that acknowledges each message.
func BenchmarkNATSConsumer(b *testing.B) {
	server, err := natsserver.NewServer(&natsserver.Options{Port: -1, Host: "127.0.0.1", JetStream: true, StoreDir: b.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		b.Fatal(err)
	}
	server.Start()
	defer server.Shutdown()
	wait(b, func() bool { return server.ReadyForConnections(time.Millisecond) })
	nc, err := natsgo.Connect(server.ClientURL())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	stream, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}})
	if err != nil {
		b.Fatal(err)
	}
	consumer, err := stream.CreateConsumer(b.Context(), jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 1024})
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		if _, err := js.PublishAsync(fmt.Sprint("s.", i%200), []byte(payload), jetstream.WithStallWait(time.Minute)); err != nil {
			b.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-b.Context().Done():
		b.Fatal("not published")
	}
	var n atomic.Int64
	b.ResetTimer()
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		if m.Ack() == nil {
			n.Add(1)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	defer consuming.Stop()
	wait(b, func() bool { return n.Load() == int64(b.N) })
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

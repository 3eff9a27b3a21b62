package nats

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// open starts an embedded engine on a directory.
func open(t testing.TB, dir string) *Bus {
	t.Helper()
	b, err := Open(t.Context(), Options{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func say(subject string, n int) *message.Message {
	now := time.Now()
	return &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Subject: message.Subject(subject), Device: "d-1", Data: fmt.Appendf(nil, "%d", n)}
}

// gather is a completion that counts, and lets a test wait for a number.
type gather struct {
	mu   sync.Mutex
	got  []uint64
	errs []error
	more chan struct{}
}

func newGather() *gather { return &gather{more: make(chan struct{}, 1)} }

func (g *gather) Appended(token uint64, _ bus.Position, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.got = append(g.got, token)
	if err != nil {
		g.errs = append(g.errs, err)
	}
}

func (g *gather) Settled() {
	select {
	case g.more <- struct{}{}:
	default:
	}
}

func (g *gather) tokens() []uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.got)
}

func (g *gather) wait(t testing.TB, n int) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		g.mu.Lock()
		have := len(g.got)
		g.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-g.more:
		case <-timeout:
			t.Fatalf("%d of %d appends were settled", have, n)
		}
	}
}

func read(t testing.TB, l bus.Log, from bus.Position, n int) (list []*message.Message) {
	t.Helper()
	if from.Generation == 0 {
		from.Generation = 1
	}
	r, err := l.Reader(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(list) < n {
		s, err := r.Next(ctx)
		if err != nil {
			t.Fatalf("after %d of %d messages: %v", len(list), n, err)
		}
		if s.Err != nil {
			t.Fatal(s.Err)
		}
		var m message.Message
		c := s.Batch.Cursor()
		for c.Next(&m) {
			list = append(list, m.Clone())
		}
		if c.Err() != nil {
			t.Fatal(c.Err())
		}
	}
	return list
}

func TestLogGivesBackWhatWasAppendedAcrossRestarts(t *testing.T) {
	dir := t.TempDir()
	total := 0
	for start := range 3 {
		b := open(t, dir)
		l, err := b.Log(t.Context(), "device", bus.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Appender(t.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(time.Now())})
		if err != nil {
			t.Fatal(err)
		}
		g := newGather()
		for i := range 1000 {
			if err := a.Append(t.Context(), say("device.d-1.telemetry", total+i), g, uint64(i)); err != nil {
				t.Fatal(err)
			}
		}
		g.wait(t, 1000)
		for i, token := range g.got {
			if token != uint64(i) {
				t.Fatalf("start %d: completion %d has token %d", start, i, token)
			}
		}
		total += 1000
		if err := a.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i, m := range read(t, l, bus.Position{}, total) {
			if string(m.Data) != fmt.Sprint(i) {
				t.Fatalf("start %d: message %d is %q", start, i, m.Data)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// window is the shape of a broker: many goroutines, each with a window.
type window struct {
	slots chan struct{}
}

func (w *window) Appended(_ uint64, _ bus.Position, err error) {
	if err != nil {
		panic(err)
	}
	w.slots <- struct{}{}
}
func (w *window) Settled() {}

func benchmarkAppend(b *testing.B, publishers, size int) {
	eng := open(b, b.TempDir())
	l, err := eng.Log(b.Context(), "device", bus.LogOptions{})
	if err != nil {
		b.Fatal(err)
	}
	a, err := l.Appender(b.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(time.Now())})
	if err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, 200)
	b.ResetTimer()
	var group sync.WaitGroup
	for range publishers {
		group.Go(func() {
			w := &window{slots: make(chan struct{}, size)}
			for range size {
				w.slots <- struct{}{}
			}
			for range b.N / publishers {
				<-w.slots
				now := time.Now()
				m := message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Subject: "device.d-1.telemetry", Device: "d-1", Data: payload}
				if err := a.Append(b.Context(), &m, w, 0); err != nil {
					panic(err)
				}
			}
			for range size {
				<-w.slots
			}
		})
	}
	group.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func BenchmarkAppend50x100(b *testing.B) { benchmarkAppend(b, 50, 100) }
func BenchmarkAppend1x1(b *testing.B)    { benchmarkAppend(b, 1, 1) }

func TestALogIsCreatedWithTheConfiguredPartitions(t *testing.T) {
	dir := t.TempDir()
	for _, configured := range []int{4, 2} { // the second time it is there
		b, err := Open(t.Context(), Options{Dir: dir, Partitions: map[string]int{"device": configured}})
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]int{"device": 4, "operator": 1} {
			l, err := b.Log(t.Context(), name, bus.LogOptions{})
			if err != nil {
				t.Fatal(err)
			}
			info, err := l.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if n := len(info.Generations[0].Partitions); n != want {
				t.Errorf("log %s has %d partitions; want %d", name, n, want)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A wrong address is told as one: what the connection met, not what became of the first request.
func TestOpenSaysThatNobodyAnswersAndWhy(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = Open(ctx, Options{URL: "nats://naru:secret@" + nobody.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "nobody answers at nats://naru:xxxxx@"+nobody.Addr().String()) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("it says %v", err)
	}
}

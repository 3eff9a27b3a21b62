package journal

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// BenchmarkLookup finds messages and traces among many, as `naru trace` asks for them. What the log holds is made anew each
// time it is read, always the same, so that a hundred million messages need no disk; the journal that indexes and searches
// them is the real one, with its store, in the real host.
//
//	NARU_LOOKUP_MESSAGES=100000000 NARU_LOOKUP_HOURS=168 go test -run '^$' -bench Lookup -benchtime 300x -timeout 2h ./operator/journal
func BenchmarkLookup(b *testing.B) {
	number := func(name string, otherwise float64) float64 {
		if text := os.Getenv(name); text != "" {
			v, err := strconv.ParseFloat(text, 64)
			if err != nil || v <= 0 {
				b.Fatalf("%s=%s: want a number above zero", name, text)
			}
			return v
		}
		return otherwise
	}
	const perBatch = 100
	messages := number("NARU_LOOKUP_MESSAGES", 1e6)
	long := time.Duration(number("NARU_LOOKUP_HOURS", 168) * float64(time.Hour))
	made := &madeLog{batches: uint64(messages) / perBatch, perBatch: perBatch, begin: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)}
	made.every = long / time.Duration(made.batches)
	now := func() time.Time { return made.begin.Add(long) }
	engine := mem.New(mem.Options{Now: now})
	defer engine.Close()
	dir := b.TempDir()
	host := &component.Host{Bus: madeBus{engine, made}, Catalog: catalog.Default(), Dir: dir, Node: "n1", Now: now, Specs: []component.Spec{Spec},
		Log: slog.New(slog.NewTextHandler(b.Output(), &slog.HandlerOptions{Level: slog.LevelError}))}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx) }()
	defer func() { cancel(); <-done }()
	began := time.Now()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for indexed := false; !indexed; <-tick.C {
		for _, r := range host.Peers().Reports() {
			indexed = indexed || r.Log == message.Device && r.Position.Sequence >= made.batches
		}
	}
	b.Logf("%.0f messages over %s in %d batches were indexed in %s", messages, long, made.batches, time.Since(began).Round(time.Second))

	h := host.Handler(func(*http.Request) bool { return true })
	r := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct {
		name  string
		found int
		path  func() string
	}{
		{"message", http.StatusOK, func() string { return "messages/" + made.any(r, false).ID.String() }},
		{"trace", http.StatusOK, func() string { return "traces/" + made.any(r, false).Trace.ID.String() }},
		{"foreign-trace", http.StatusOK, func() string { return "traces/" + made.any(r, true).Trace.ID.String() }},
		{"no-such-trace", http.StatusNotFound, func() string { return "traces/" + foreignTrace(r).String() }},
	} {
		b.Run(c.name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				path := c.path()
				began := time.Now()
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/"+path, nil))
				took = append(took, time.Since(began))
				if w.Code != c.found {
					b.Fatalf("%s: %d %s", path, w.Code, w.Body)
				}
			}
			slices.Sort(took)
			at := func(q float64) float64 { return took[min(int(q*float64(len(took))), len(took)-1)].Seconds() * 1e3 }
			b.ReportMetric(at(.5), "p50-ms")
			b.ReportMetric(at(.99), "p99-ms")
		})
	}
}

// madeBus is an engine whose log of devices is made.
type madeBus struct {
	bus.Bus
	log *madeLog
}

func (b madeBus) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	real, err := b.Bus.Log(ctx, name, o)
	if err != nil || name != message.Device {
		return real, err
	}
	l := *b.log
	l.Log = real
	return &l, nil
}

// madeLog has batches of which the same number gives the same batch.
type madeLog struct {
	bus.Log
	batches  uint64
	perBatch int
	begin    time.Time
	every    time.Duration
}

// make makes the messages of a batch: their ids and traces from its time on, a tenth of the traces foreign.
func (l *madeLog) make(seq uint64) []message.Message {
	r := rand.New(rand.NewPCG(seq, 1))
	list := make([]message.Message, l.perBatch)
	at := l.begin.Add(time.Duration(seq) * l.every)
	for i := range list {
		ms := uint64(at.UnixMilli()) + uint64(i/20)
		m := &list[i]
		binary.BigEndian.PutUint64(m.ID[:], ms<<16|0x7000|uint64(i))
		binary.BigEndian.PutUint64(m.ID[8:], r.Uint64()&^(3<<62)|2<<62)
		if i%10 == 0 {
			m.Trace.ID = foreignTrace(r)
		} else {
			binary.BigEndian.PutUint64(m.Trace.ID[:], ms<<16|r.Uint64()>>48)
			binary.BigEndian.PutUint64(m.Trace.ID[8:], r.Uint64())
		}
		binary.BigEndian.PutUint64(m.Trace.Span[:], r.Uint64()|1)
		m.Device = fmt.Sprintf("d-%d", r.IntN(20_000))
		m.Subject = message.NewSubject("device", m.Device, "telemetry")
		m.Data = []byte(`{"temperature":21.4,"humidity":40}`)
	}
	return list
}

func foreignTrace(r *rand.Rand) (id message.TraceID) {
	binary.BigEndian.PutUint64(id[:], r.Uint64()|1<<63) // not a time that was yet
	binary.BigEndian.PutUint64(id[8:], r.Uint64())
	return id
}

// any is one of the messages, with a trace of the kind asked for.
func (l *madeLog) any(r *rand.Rand, foreign bool) *message.Message {
	i := 10 * r.IntN(l.perBatch/10)
	if !foreign {
		i++
	}
	return &l.make(1 + r.Uint64N(l.batches))[i]
}

func (l *madeLog) stored(seq uint64) (bus.Stored, error) {
	var build message.Builder
	build.Reset(message.Header{}, l.perBatch*256)
	list := l.make(seq)
	for i := range list {
		build.Add(&list[i])
	}
	// The sum of all ids before this batch is not known here; the journal does not ask for it.
	b, err := message.ParseBatch(build.Seal(seq, (seq-1)*uint64(l.perBatch), 0, message.ID{1}))
	return bus.Stored{Position: bus.Position{Log: l.ID(), Generation: 1, Sequence: seq, Index: uint32(l.perBatch - 1)}, Appender: "made", Batch: b}, err
}

func (l *madeLog) Info(ctx context.Context) (bus.LogInfo, error) {
	info, err := l.Log.Info(ctx)
	if err == nil {
		p := &info.Generations[0].Partitions[0]
		p.First, p.Last = 1, l.batches
	}
	return info, err
}

func (l *madeLog) Fetch(_ context.Context, at bus.Position) (bus.Stored, error) {
	return l.stored(at.Sequence)
}

func (l *madeLog) Reader(_ context.Context, from bus.Position) (bus.Reader, error) {
	return &madeReader{l, from.Sequence, make(chan struct{})}, nil
}

type madeReader struct {
	l      *madeLog
	at     uint64
	closed chan struct{}
}

func (r *madeReader) Next(ctx context.Context) (bus.Stored, error) {
	if r.at >= r.l.batches {
		select {
		case <-ctx.Done():
			return bus.Stored{}, ctx.Err()
		case <-r.closed:
			return bus.Stored{}, bus.ErrClosed
		}
	}
	r.at++
	return r.l.stored(r.at)
}

func (r *madeReader) Close() { close(r.closed) }

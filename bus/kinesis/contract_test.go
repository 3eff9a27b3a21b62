package kinesis

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/bustest"
	"github.com/naru-platform/naru/bus/mem"
)

// led is a bus whose log is appended to where it is, and read from its copy in Kinesis, with one token: then a batch makes one
// record, and a sequence is the source's times 256.
type led struct {
	*Bus
	mu   sync.Mutex
	log  *ledLog
	stop context.CancelFunc
	over chan struct{}
}

type ledLog struct {
	bus.Log // the source
	far     *Log
}

func (b *led) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	source, err := b.Bus.Log(ctx, name, o)
	if err != nil {
		return nil, err
	}
	far, err := b.Kinesis(ctx)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.log == nil {
		b.log = &ledLog{source, far}
		b.over = make(chan struct{})
		ctx, b.stop = context.WithCancel(context.Background())
		info, err := source.Info(ctx)
		if err != nil {
			return nil, err
		}
		var all sync.WaitGroup
		turn := make(chan struct{}, 1) // Append is for one goroutine
		st := newStore()
		for _, p := range info.Generations[0].Partitions {
			all.Go(func() { b.log.copy(ctx, p.Number, st, turn) })
		}
		go func() { all.Wait(); close(b.over) }()
	}
	return b.log, nil
}

func (b *led) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		b.stop()
		<-b.over
		b.stop = nil
	}
	return b.Bus.Close()
}

// copy copies a partition until ctx is done.
func (l *ledLog) copy(ctx context.Context, part uint32, st *store, turn chan struct{}) {
	r, err := l.Log.Reader(ctx, bus.Position{Generation: 1, Partition: part})
	if err != nil {
		return
	}
	defer r.Close()
	for {
		s, err := r.Next(ctx)
		if err != nil {
			return
		}
		for {
			turn <- struct{}{}
			committed, err := l.far.Append(ctx, st, s)
			if err == nil {
				st.commit()
				committed()
			}
			<-turn
			if err == nil {
				break
			}
			if pause(ctx, backOffMin) != nil {
				return
			}
		}
	}
}

// caught waits until a partition is copied up to a sequence.
func (l *ledLog) caught(ctx context.Context, part uint32, seq uint64) error {
	for {
		l.far.mu.Lock()
		c := l.far.copied[sourcePart{1, part}]
		l.far.mu.Unlock()
		if seq == 0 || c != nil && c.Upto >= seq {
			return nil
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

func (l *ledLog) Info(ctx context.Context) (bus.LogInfo, error) {
	info, err := l.Log.Info(ctx)
	if err != nil {
		return info, err
	}
	for _, p := range info.Generations[0].Partitions {
		if err := l.caught(ctx, p.Number, p.Last); err != nil {
			return info, err
		}
	}
	far, err := l.far.Info(ctx)
	if err != nil {
		return info, err
	}
	for i := range far.Generations[0].Partitions {
		p := &far.Generations[0].Partitions[i]
		p.First, p.Last = max(origin(p.First), 1), origin(p.Last)
	}
	far.ID, far.Name = info.ID, info.Name
	return far, nil
}

// near makes what was read look as in the source.
func (l *ledLog) near(s bus.Stored) bus.Stored {
	s.Position.Log, s.Position.Sequence = l.Log.ID(), origin(s.Position.Sequence)
	return s
}

func (l *ledLog) Fetch(ctx context.Context, at bus.Position) (bus.Stored, error) {
	if _, err := l.Log.Fetch(ctx, at); err != nil {
		return bus.Stored{}, err
	}
	if err := l.caught(ctx, at.Partition, at.Sequence); err != nil {
		return bus.Stored{}, err
	}
	at.Sequence <<= chunkBits
	s, err := l.far.Fetch(ctx, at)
	return l.near(s), err
}

func (l *ledLog) Reader(ctx context.Context, from bus.Position) (bus.Reader, error) {
	from.Log = l.far.ID()
	from.Sequence <<= chunkBits
	r, err := l.far.Reader(ctx, from)
	if err != nil {
		return nil, err
	}
	return &ledReader{r, l}, nil
}

type ledReader struct {
	bus.Reader
	l *ledLog
}

func (r *ledReader) Next(ctx context.Context) (bus.Stored, error) {
	s, err := r.Reader.Next(ctx)
	return r.l.near(s), err
}

// TestKeepsThePromisesOfACopy reads what the suite appends from a Kinesis of our own.
func TestKeepsThePromisesOfACopy(t *testing.T) { promisesOfACopy(t, false) }

// TestKeepsThePromisesOfAnAggregatedCopy does so with records in the form of the Kinesis Producer Library.
func TestKeepsThePromisesOfAnAggregatedCopy(t *testing.T) { promisesOfACopy(t, true) }

func promisesOfACopy(t *testing.T, aggregate bool) {
	f := bustest.Features{Bubble: true, Copied: true, SetDown: true, LoseAcks: true, SetSpace: true}
	bustest.Run(t, f, func(t *testing.T) bustest.Engine {
		k := newFake(3)
		inner := mem.New(mem.Options{})
		b := openLed(t, inner, Options{HTTP: k, Config: Config{Aggregate: aggregate}})
		return bustest.Engine{Bus: b,
			SetDown: func(down bool) {
				inner.SetDown(down)
				k.set(func() { k.down = down })
			},
			LoseAcks: func(n int) {
				inner.LoseAcks(n)
				k.set(func() { k.lose = n })
			},
			SetSpace: func(s bus.Space) { inner.SetSpace(s) }}
	})
}

func openLed(t *testing.T, inner *mem.Bus, o Options) *led {
	t.Helper()
	o.Stream = cmp.Or(o.Stream, "suite")
	o.Region, o.Source, o.Log, o.Tokens = "eu-north-1", "suite", slog.New(slog.DiscardHandler), 1
	o.Credentials = credentials.NewStaticCredentialsProvider("id", "secret", "")
	b, err := Over(t.Context(), inner, o)
	if err != nil {
		t.Fatal(err)
	}
	l := &led{Bus: b}
	t.Cleanup(func() { l.Close() })
	return l
}

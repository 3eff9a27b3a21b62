package nats

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Log is a log on JetStream.
type Log struct {
	b    *Bus
	name string

	mu   sync.Mutex
	meta logMeta
	rev  uint64
}

// logMeta is what is kept of a log, as JSON in the bucket of logs under the log's name.
type logMeta struct {
	ID          message.ID `json:"id"`
	Generations []genMeta  `json:"generations"`
	// Next is how many partitions the generation will have that is being opened; 0 where none is. Whoever finds it
	// finishes what another began.
	Next int `json:"next,omitempty"`
}

type genMeta struct {
	Number  uint32   `json:"number"`
	Sealed  bool     `json:"sealed"`
	Gone    bool     `json:"gone,omitempty"` // trimmed to its end, and deleted
	Trimmed []uint64 `json:"trimmed"`        // per partition, the sequence up to which it was trimmed
}

func (m *logMeta) open() *genMeta { return &m.Generations[len(m.Generations)-1] }

// find gives a generation and checks the partition; nil where there is none of that number.
func (m *logMeta) find(gen, part uint32) *genMeta {
	for i := range m.Generations {
		if g := &m.Generations[i]; g.Number == gen && int(part) < len(g.Trimmed) {
			return g
		}
	}
	return nil
}

// streamName and the subjects are where batches are stored; they are for ever.
func streamName(log string, gen, part uint32) string {
	return fmt.Sprintf("NARU_%s_g%d_p%d", log, gen, part)
}

func rowSubject(log string, gen, part uint32, row string) string {
	return fmt.Sprintf("naru.log.%s.g%d.p%d.%s", log, gen, part, row)
}

// tailSubject is where the engine tells of every batch, without its bytes.
func tailSubject(log string, gen, part uint32) string {
	return fmt.Sprintf("naru.tail.%s.g%d.p%d", log, gen, part)
}

// Log opens a log, and creates it where there is none.
func (b *Bus) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	if !word(name) || o.Partitions < 0 {
		return nil, fmt.Errorf("open log %q with %d partitions: want a name of letters, digits, - and _, and at least one", name, o.Partitions)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.logs[name]; l != nil {
		return l, nil
	}
	l := &Log{b: b, name: name}
	b.mu.Unlock()
	err := b.patiently(ctx, openPatience, func(ctx context.Context) error {
		return l.openOrCreate(ctx, max(cmp.Or(o.Partitions, b.o.Partitions[name]), 1))
	})
	b.mu.Lock()
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, b.closed(err))
	}
	if other := b.logs[name]; other != nil {
		return other, nil
	}
	b.logs[name] = l
	return l, nil
}

func (l *Log) openOrCreate(ctx context.Context, partitions int) error {
	err := l.reload(ctx)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		m := logMeta{ID: message.NewID(l.b.now()), Generations: []genMeta{{Number: 1, Trimmed: make([]uint64, partitions)}}}
		data, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if _, err := l.b.meta().Create(ctx, l.name, data); err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
			return err
		}
		if err := l.reload(ctx); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	// The streams are made after the list says that they are there; whoever finds the list makes those that lack.
	m := l.snapshot()
	for _, g := range m.Generations {
		if !g.Gone {
			continue
		}
		for part := range g.Trimmed { // whoever found that it is finished may have died before this
			if err := l.b.js().DeleteStream(ctx, streamName(l.name, g.Number, uint32(part))); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
				return err
			}
		}
	}
	if want, n := l.b.o.Partitions[l.name], len(m.open().Trimmed); want > 0 && want != n {
		l.b.log.Info("a log has other partitions than it would be created with", "log", l.name, "partitions", n, "configured", want,
			"look", fmt.Sprintf("naru log repartition %s --partitions %d", l.name, want))
	}
	for part := range m.open().Trimmed {
		if err := l.createStream(ctx, m.open().Number, uint32(part)); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) createStream(ctx context.Context, gen, part uint32) error {
	_, err := l.b.js().CreateStream(ctx, jetstream.StreamConfig{
		Name: streamName(l.name, gen, part), Subjects: []string{rowSubject(l.name, gen, part, "*")},
		Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
		Replicas: l.b.o.Replicas, AllowDirect: true, Duplicates: 100 * time.Millisecond,
		MaxMsgSize: -1, MaxMsgs: -1, MaxBytes: -1,
		RePublish: &jetstream.RePublish{
			Source: rowSubject(l.name, gen, part, "*"), Destination: tailSubject(l.name, gen, part), HeadersOnly: true,
		},
	})
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil
	}
	return err
}

// reload reads the list of generations.
func (l *Log) reload(ctx context.Context) error {
	e, err := l.b.meta().Get(ctx, l.name)
	if err != nil {
		return err
	}
	var m logMeta
	if err := json.Unmarshal(e.Value(), &m); err != nil {
		return fmt.Errorf("the record of log %s is damaged: %w", l.name, err)
	}
	if len(m.Generations) == 0 {
		return fmt.Errorf("the record of log %s is damaged: it has no generation", l.name)
	}
	l.keep(m, e.Revision())
	return nil
}

// keep remembers the newest list; a replica may give an older one.
func (l *Log) keep(m logMeta, rev uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rev > l.rev {
		l.meta, l.rev = m, rev
	}
}

func (l *Log) snapshot() logMeta {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.meta
	m.Generations = slices.Clone(m.Generations)
	for i := range m.Generations {
		m.Generations[i].Trimmed = slices.Clone(m.Generations[i].Trimmed)
	}
	return m
}

// change rewrites the list of generations, again where another did so meanwhile. f says whether there is anything to
// change.
func (l *Log) change(ctx context.Context, f func(*logMeta) bool) error {
	for {
		if err := l.reload(ctx); err != nil {
			return err
		}
		l.mu.Lock()
		rev := l.rev
		l.mu.Unlock()
		m := l.snapshot()
		if !f(&m) {
			return nil
		}
		data, err := json.Marshal(m)
		if err != nil {
			return err
		}
		rev, err = l.b.meta().Update(ctx, l.name, data, rev)
		if err == nil {
			l.keep(m, rev)
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) && !isCode(err, codeWrongSequence, codeWrongSequenceConst) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(jitter(offerAgainMin)):
		}
	}
}

// Name is the log's name.
func (l *Log) Name() string { return l.name }

// ID is the log's identity.
func (l *Log) ID() message.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.meta.ID
}

// MaxMessage as the bus's.
func (l *Log) MaxMessage() int { return l.b.MaxMessage() }

// Info asks the engine.
func (l *Log) Info(ctx context.Context) (bus.LogInfo, error) {
	if err := l.reload(ctx); err != nil {
		return bus.LogInfo{}, fmt.Errorf("log %s: %w", l.name, l.b.closed(err))
	}
	m := l.snapshot()
	info := bus.LogInfo{ID: m.ID, Name: l.name}
	for _, g := range m.Generations {
		if g.Gone {
			continue
		}
		gen := bus.Generation{Number: g.Number, Sealed: g.Sealed}
		for part, trimmed := range g.Trimmed {
			si, err := l.streamInfo(ctx, g.Number, uint32(part))
			if err != nil {
				return info, fmt.Errorf("log %s: %w", l.name, l.b.closed(err))
			}
			gen.Partitions = append(gen.Partitions, bus.Partition{
				Number: uint32(part), First: min(max(si.State.FirstSeq, trimmed+1), si.State.LastSeq+1), Last: si.State.LastSeq, Bytes: si.State.Bytes,
			})
		}
		info.Generations = append(info.Generations, gen)
	}
	return info, nil
}

func (l *Log) streamInfo(ctx context.Context, gen, part uint32) (*jetstream.StreamInfo, error) {
	s, err := l.b.js().Stream(ctx, streamName(l.name, gen, part))
	if err != nil {
		return nil, err
	}
	return s.CachedInfo(), nil
}

// Fetch reads one batch.
func (l *Log) Fetch(ctx context.Context, at bus.Position) (bus.Stored, error) {
	if s, ok := l.feed(at.Generation, at.Partition).get(at.Sequence); ok {
		return s, nil
	}
	wrap := func(err error) error {
		return fmt.Errorf("batch %s/%d/%d/%d: %w", l.name, at.Generation, at.Partition, at.Sequence, l.b.closed(err))
	}
	m, err := l.direct(ctx, at.Generation, at.Partition, at.Sequence)
	if errors.Is(err, natsgo.ErrNoResponders) {
		if rerr := l.reload(ctx); rerr != nil {
			return bus.Stored{}, wrap(rerr)
		}
		meta := l.snapshot()
		if g := meta.find(at.Generation, at.Partition); g == nil || g.Gone {
			err = bus.ErrNotFound
		}
	}
	if errors.Is(err, bus.ErrNotFound) && l.b.o.Replicas > 1 {
		m, err = l.at(ctx, at.Generation, at.Partition, at.Sequence) // the replica may be behind
	}
	if err != nil {
		return bus.Stored{}, wrap(err)
	}
	return l.stored(at.Generation, at.Partition, m), nil
}

// stored makes a batch of a message; one that cannot be read says why.
func (l *Log) stored(gen, part uint32, r raw) bus.Stored {
	s := bus.Stored{
		Position: bus.Position{Log: l.ID(), Generation: gen, Partition: part, Sequence: r.seq},
		Appender: lastToken(r.subject),
	}
	if s.Batch, s.Err = message.ParseBatch(r.data); s.Err == nil && s.Batch.Count > 0 {
		s.Position.Index = s.Batch.Count - 1
	}
	return s
}

func lastToken(subject string) string {
	for i := len(subject) - 1; i >= 0; i-- {
		if subject[i] == '.' {
			return subject[i+1:]
		}
	}
	return subject
}

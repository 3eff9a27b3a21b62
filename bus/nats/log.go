package nats

import (
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
}

type genMeta struct {
	Number  uint32   `json:"number"`
	Sealed  bool     `json:"sealed"`
	Trimmed []uint64 `json:"trimmed"` // per partition, the sequence up to which it was trimmed
}

func (m *logMeta) open() *genMeta { return &m.Generations[len(m.Generations)-1] }

func (m *logMeta) find(n uint32) *genMeta {
	for i := range m.Generations {
		if m.Generations[i].Number == n {
			return &m.Generations[i]
		}
	}
	return nil
}

// streamName and rowSubject are where batches are stored; both are for ever.
func streamName(log string, gen, part uint32) string {
	return fmt.Sprintf("NARU_%s_g%d_p%d", log, gen, part)
}

func rowSubject(log string, gen, part uint32, row string) string {
	return fmt.Sprintf("naru.log.%s.g%d.p%d.%s", log, gen, part, row)
}

func tailSubject(log string, gen, part uint32) string {
	return fmt.Sprintf("naru.tail.%s.g%d.p%d", log, gen, part)
}

// Log opens a log, and creates it where there is none.
func (b *Bus) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	b.mu.Lock()
	if l := b.logs[name]; l != nil {
		b.mu.Unlock()
		return l, nil
	}
	b.mu.Unlock()
	l := &Log{b: b, name: name}
	err := b.patiently(ctx, 30*time.Second, func(ctx context.Context) error { return l.openOrCreate(ctx, max(o.Partitions, 1)) })
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, b.closed(err))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
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
		raw, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if _, err := l.b.meta.Create(ctx, l.name, raw); err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
			return err
		}
		err = l.reload(ctx)
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	// The streams are made after the list says that they are there; whoever finds the list makes those that lack.
	m := l.snapshot()
	for part := range m.open().Trimmed {
		if err := l.createStream(ctx, m.open().Number, uint32(part)); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) createStream(ctx context.Context, gen, part uint32) error {
	_, err := l.b.js.CreateStream(ctx, jetstream.StreamConfig{
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
	e, err := l.b.meta.Get(ctx, l.name)
	if err != nil {
		return err
	}
	var m logMeta
	if err := json.Unmarshal(e.Value(), &m); err != nil || len(m.Generations) == 0 {
		return fmt.Errorf("the record of log %s is damaged: %w", l.name, err)
	}
	l.mu.Lock()
	l.meta, l.rev = m, e.Revision()
	l.mu.Unlock()
	return nil
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
		m := l.snapshot()
		l.mu.Lock()
		rev := l.rev
		l.mu.Unlock()
		if !f(&m) {
			return nil
		}
		raw, err := json.Marshal(m)
		if err != nil {
			return err
		}
		rev, err = l.b.meta.Update(ctx, l.name, raw, rev)
		if err == nil {
			l.mu.Lock()
			l.meta, l.rev = m, rev
			l.mu.Unlock()
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) && !isCode(err, codeWrongSequence, codeWrongSequenceConst) {
			return err
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
	s, err := l.b.js.Stream(ctx, streamName(l.name, gen, part))
	if err != nil {
		return nil, err
	}
	return s.CachedInfo(), nil
}

// Fetch reads one batch.
func (l *Log) Fetch(ctx context.Context, at bus.Position) (bus.Stored, error) {
	f := l.feed(at.Generation, at.Partition)
	if s, ok := f.get(at.Sequence); ok {
		return s, nil
	}
	m, err := l.direct(ctx, at.Generation, at.Partition, fmt.Sprintf(`{"seq":%d}`, at.Sequence))
	if err != nil {
		return bus.Stored{}, fmt.Errorf("batch %s/%d/%d/%d: %w", l.name, at.Generation, at.Partition, at.Sequence, l.b.closed(err))
	}
	return l.stored(at.Generation, at.Partition, m), nil
}

// raw is a message of a stream.
type raw struct {
	seq     uint64
	subject string
	data    []byte
}

// direct asks any replica for one message.
func (l *Log) direct(ctx context.Context, gen, part uint32, request string) (raw, error) {
	ctx, cancel := context.WithTimeout(ctx, requestWait)
	defer cancel()
	m, err := l.b.nc.RequestWithContext(ctx, "$JS.API.DIRECT.GET."+streamName(l.name, gen, part), []byte(request))
	if err != nil {
		return raw{}, err
	}
	return parseDirect(m)
}

func parseDirect(m *natsgo.Msg) (raw, error) {
	switch m.Header.Get("Status") {
	case "":
	case "404":
		return raw{}, bus.ErrNotFound
	default:
		return raw{}, fmt.Errorf("status %s %s", m.Header.Get("Status"), m.Header.Get("Description"))
	}
	r := raw{subject: m.Header.Get("Nats-Subject"), data: m.Data}
	if _, err := fmt.Sscan(m.Header.Get("Nats-Sequence"), &r.seq); err != nil {
		return raw{}, fmt.Errorf("answer without a sequence: %w", err)
	}
	return r, nil
}

// leader asks the stream's leader, which a fenced write must believe rather than a replica.
func (l *Log) leader(ctx context.Context, gen, part uint32, subject string) (raw, error) {
	ctx, cancel := context.WithTimeout(ctx, requestWait)
	defer cancel()
	req, err := json.Marshal(map[string]string{"last_by_subj": subject})
	if err != nil {
		return raw{}, err
	}
	m, err := l.b.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+streamName(l.name, gen, part), req)
	if err != nil {
		return raw{}, err
	}
	var answer struct {
		Error   *apiError `json:"error"`
		Message struct {
			Subject string `json:"subject"`
			Seq     uint64 `json:"seq"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return raw{}, err
	}
	if answer.Error != nil {
		if answer.Error.ErrCode == codeNoMessage {
			return raw{}, bus.ErrNotFound
		}
		return raw{}, answer.Error
	}
	return raw{answer.Message.Seq, answer.Message.Subject, answer.Message.Data}, nil
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

// Trim deletes up to the position, but keeps the last batch of each row.
func (l *Log) Trim(ctx context.Context, upTo bus.Position) error {
	si, err := l.streamInfo(ctx, upTo.Generation, upTo.Partition)
	if err != nil {
		return fmt.Errorf("trim %s: %w", l.name, l.b.closed(err))
	}
	seq := min(upTo.Sequence, si.State.LastSeq)
	gone := false
	// The list says so first: a reader that meets a gap then knows why.
	err = l.change(ctx, func(m *logMeta) bool {
		gone = false
		g := m.find(upTo.Generation)
		if g == nil || int(upTo.Partition) >= len(g.Trimmed) {
			return false
		}
		if g.Sealed && seq >= si.State.LastSeq {
			seq = si.State.LastSeq
		}
		changed := seq > g.Trimmed[upTo.Partition]
		g.Trimmed[upTo.Partition] = max(g.Trimmed[upTo.Partition], seq)
		return changed
	})
	if err != nil {
		return fmt.Errorf("trim %s: %w", l.name, l.b.closed(err))
	}
	if gone, err = l.dropFinished(ctx, upTo.Generation); err != nil || gone {
		return err
	}
	s, err := l.b.js.Stream(ctx, streamName(l.name, upTo.Generation, upTo.Partition))
	if err != nil {
		return fmt.Errorf("trim %s: %w", l.name, l.b.closed(err))
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(">"))
	if err != nil {
		return fmt.Errorf("trim %s: %w", l.name, l.b.closed(err))
	}
	if info.Config.Sealed {
		return nil // a sealed generation goes whole, when all of it is trimmed
	}
	for subject := range info.State.Subjects {
		last, err := l.leader(ctx, upTo.Generation, upTo.Partition, subject)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("trim %s: %w", l.name, l.b.closed(err))
		}
		if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(min(seq+1, last.seq))); err != nil {
			return fmt.Errorf("trim %s: %w", l.name, l.b.closed(err))
		}
	}
	return nil
}

// dropFinished removes a sealed generation of which every partition is trimmed to its end.
func (l *Log) dropFinished(ctx context.Context, gen uint32) (bool, error) {
	m := l.snapshot()
	g := m.find(gen)
	if g == nil {
		return true, nil
	}
	if !g.Sealed || len(m.Generations) == 1 {
		return false, nil
	}
	for part, trimmed := range g.Trimmed {
		si, err := l.streamInfo(ctx, gen, uint32(part))
		if err != nil {
			return false, err
		}
		if trimmed < si.State.LastSeq {
			return false, nil
		}
	}
	err := l.change(ctx, func(m *logMeta) bool {
		n := len(m.Generations)
		m.Generations = slices.DeleteFunc(m.Generations, func(g genMeta) bool { return g.Number == gen })
		return len(m.Generations) != n
	})
	if err != nil {
		return false, err
	}
	for part := range g.Trimmed {
		if err := l.b.js.DeleteStream(ctx, streamName(l.name, gen, uint32(part))); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return true, err
		}
	}
	return true, nil
}

// Repartition seals the open generation and opens the next.
func (l *Log) Repartition(ctx context.Context, n int) error {
	if n < 1 {
		return fmt.Errorf("repartition %s: %d partitions", l.name, n)
	}
	if err := l.reload(ctx); err != nil {
		return l.b.closed(err)
	}
	m := l.snapshot()
	old := *m.open()
	next := old.Number + 1
	// The new streams first, then the seals, then the list: until the list says so, appenders that find the old
	// generation sealed wait for the new one.
	for part := range n {
		if err := l.createStream(ctx, next, uint32(part)); err != nil {
			return fmt.Errorf("repartition %s: %w", l.name, l.b.closed(err))
		}
	}
	for part := range old.Trimmed {
		s, err := l.b.js.Stream(ctx, streamName(l.name, old.Number, uint32(part)))
		if err != nil {
			return fmt.Errorf("repartition %s: %w", l.name, l.b.closed(err))
		}
		c := s.CachedInfo().Config
		if c.Sealed {
			continue
		}
		c.Sealed = true
		if _, err := l.b.js.UpdateStream(ctx, c); err != nil {
			return fmt.Errorf("repartition %s: seal: %w", l.name, l.b.closed(err))
		}
	}
	return l.change(ctx, func(m *logMeta) bool {
		if m.open().Number != old.Number {
			return false
		}
		m.open().Sealed = true
		m.Generations = append(m.Generations, genMeta{Number: next, Trimmed: make([]uint64, n)})
		return true
	})
}

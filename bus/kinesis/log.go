package kinesis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	aws_kinesis "github.com/aws/aws-sdk-go-v2/service/kinesis"
	"github.com/aws/aws-sdk-go-v2/service/kinesis/types"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Table is the bus table with what processes know of Kinesis logs, under the log's name: `meta`, what the log is;
// `copied/<generation>/<partition>`, how far a partition of the source was copied, and what that came to; `anchor/…` and
// `first/…` of each partition of the Kinesis log.
const Table = "naru_kinesis"

// Log is a log in a stream. All methods may be called by any number of goroutines, except Append.
type Log struct {
	b      *Bus
	o      Options
	client *aws_kinesis.Client
	name   string
	source bus.Log
	tokens int
	table  bus.Table
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	synced chan struct{} // closed when all of the table was told

	mu      sync.Mutex // guards what follows
	meta    meta
	entries map[string]bus.Entry // of the table, without the log's name
	copied  map[sourcePart]*copied
	touched map[sourcePart]bool // in copied, and not in the table yet
	met     bool                // the stream is there, and the one that was known
	shards  shardMap
	warned  time.Time   // when trouble was told aloud
	latest  bus.LogInfo // as it was asked last, for readers that wait
	asked   time.Time
}

// meta is what a log is.
type meta struct {
	ID     message.ID `json:"id"`
	Tokens int        `json:"tokens"`
	Stream string     `json:"stream"`
	// Created is when the stream was made, in Unix milliseconds: one that was made anew is another log.
	Created int64 `json:"created"`
}

type sourcePart struct{ gen, part uint32 }

// copied is how far a partition of the source was copied.
type copied struct {
	Upto uint64         `json:"upto"` // sequence in the source
	Rows map[uint32]row `json:"rows"` // by partition of the Kinesis log
}

var _ bus.Copier = (*Log)(nil)

func openLog(ctx context.Context, b *Bus) (*Log, error) {
	l := &Log{b: b, o: b.o, client: b.client, name: bus.CopyName(b.o.Source), synced: make(chan struct{}),
		entries: map[string]bus.Entry{}, copied: map[sourcePart]*copied{}, touched: map[sourcePart]bool{}}
	l.shards.init()
	var err error
	if l.source, err = b.Bus.Log(ctx, b.o.Source, bus.LogOptions{}); err != nil {
		return nil, err
	}
	if l.table, err = b.Bus.Table(ctx, Table, bus.TableOptions{}); err != nil {
		return nil, err
	}
	if err := l.begin(ctx); err != nil {
		return nil, err
	}
	l.tokens = l.meta.Tokens
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.work.Go(l.watch)
	return l, nil
}

// begin reads what the log is, or begins it.
func (l *Log) begin(ctx context.Context) error {
	for {
		e, err := l.table.Get(ctx, l.key("meta"))
		if errors.Is(err, bus.ErrNotFound) {
			m := meta{ID: message.NewID(l.o.Now()), Tokens: l.o.Tokens, Stream: l.o.Stream}
			if m.Tokens == 0 {
				m.Tokens = tokensDefault
			}
			raw, err := json.Marshal(m)
			if err != nil {
				return err
			}
			if _, err := l.table.Update(ctx, l.key("meta"), raw, 0); err != nil && !errors.Is(err, bus.ErrConflict) {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if err := json.Unmarshal(e.Value, &l.meta); err != nil || l.meta.Tokens < 1 {
			return fmt.Errorf("what is kept of the log is damaged: %v", err)
		}
		if l.o.Tokens != 0 && l.o.Tokens != l.meta.Tokens {
			return fmt.Errorf("bus.kinesis.tokens is %d, and the log was begun with %d, which its order depends on: set it back", l.o.Tokens, l.meta.Tokens)
		}
		return nil
	}
}

func (l *Log) key(rest string) string { return l.name + "/" + rest }

// watch keeps what the table says at hand.
func (l *Log) watch() {
	for l.ctx.Err() == nil {
		var once sync.Once
		err := l.table.Watch(l.ctx, l.key(""), func(e bus.Entry) {
			l.mu.Lock()
			defer l.mu.Unlock()
			key := strings.TrimPrefix(e.Key, l.key(""))
			if old, ok := l.entries[key]; ok && old.Revision > e.Revision {
				return
			}
			l.entries[key] = e
			if key == "meta" {
				var m meta
				if json.Unmarshal(e.Value, &m) == nil && !m.ID.IsZero() {
					l.meta = m
				}
			}
			l.takeCopied(key, e.Value)
		}, func() {
			once.Do(func() {
				select {
				case <-l.synced:
				default:
					close(l.synced)
				}
			})
		})
		if l.ctx.Err() == nil {
			l.o.Log.Debug("watch what is known of Kinesis", "log", l.name, "error", err)
			_ = pause(l.ctx, time.Second)
		}
	}
}

// takeCopied takes what a process that copies has said. l.mu is held.
func (l *Log) takeCopied(key string, value []byte) {
	var at sourcePart
	if _, err := fmt.Sscanf(key, "copied/%d/%d", &at.gen, &at.part); err != nil || len(value) == 0 {
		return
	}
	var c copied
	if json.Unmarshal(value, &c) == nil && (l.copied[at] == nil || l.copied[at].Upto < c.Upto) {
		l.copied[at] = &c
	}
}

// known waits until what the table says is at hand.
func (l *Log) known(ctx context.Context) error {
	select {
	case <-l.synced:
		return nil
	case <-l.ctx.Done():
		return bus.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *Log) close() {
	l.mu.Lock()
	l.cancel() // under the lock: nobody begins work behind it
	l.mu.Unlock()
	l.work.Wait()
}

// contact makes sure, once, that the stream is there and the one that was known. Where it may, it makes the stream.
func (l *Log) contact(ctx context.Context) error {
	l.mu.Lock()
	met := l.met
	l.mu.Unlock()
	if met {
		return nil
	}
	try, cancel := context.WithTimeout(ctx, putWait)
	defer cancel()
	out, err := l.client.DescribeStreamSummary(try, &aws_kinesis.DescribeStreamSummaryInput{StreamName: &l.o.Stream})
	if hasCode(err, "ResourceNotFoundException") {
		if l.o.Shards == 0 {
			return fmt.Errorf("there is no stream %s in %s: make it, or let naru make it by bus.kinesis.shards", l.o.Stream, l.where())
		}
		_, err := l.client.CreateStream(try, &aws_kinesis.CreateStreamInput{StreamName: &l.o.Stream, ShardCount: aws.Int32(int32(l.o.Shards))})
		if err != nil && !hasCode(err, "ResourceInUseException") {
			return fmt.Errorf("make the stream %s: %w", l.o.Stream, plain(err))
		}
		return fmt.Errorf("the stream %s is being made", l.o.Stream)
	}
	if err != nil {
		return fmt.Errorf("ask for the stream %s: %w", l.o.Stream, plain(err))
	}
	d := out.StreamDescriptionSummary
	if d.StreamStatus != types.StreamStatusActive && d.StreamStatus != types.StreamStatusUpdating {
		return fmt.Errorf("the stream %s is %s", l.o.Stream, strings.ToLower(string(d.StreamStatus)))
	}
	if err := l.recognise(ctx, aws.ToTime(d.StreamCreationTimestamp).UnixMilli()); err != nil {
		return err
	}
	l.mu.Lock()
	l.met = true
	l.mu.Unlock()
	return nil
}

func (l *Log) where() string {
	if l.o.Endpoint != "" {
		return l.o.Endpoint
	}
	return l.client.Options().Region
}

// recognise holds the stream against the one that was known. One that was made anew is another log: its readers end.
func (l *Log) recognise(ctx context.Context, created int64) error {
	for {
		e, err := l.table.Get(ctx, l.key("meta"))
		if err != nil {
			return err
		}
		var m meta
		if err := json.Unmarshal(e.Value, &m); err != nil {
			return fmt.Errorf("what is kept of log %s is damaged: %w", l.name, err)
		}
		if m.Created == created && m.Stream == l.o.Stream {
			return nil
		}
		if m.Created != 0 {
			l.o.Log.Error("the Kinesis stream is another one than before; what was in the former and not read is lost to its readers",
				"stream", l.o.Stream, "before", m.Stream)
			m.ID = message.NewID(l.o.Now())
		}
		m.Created, m.Stream = created, l.o.Stream
		raw, err := json.Marshal(m)
		if err != nil {
			return err
		}
		_, err = l.table.Update(ctx, l.key("meta"), raw, e.Revision)
		if err == nil {
			l.mu.Lock()
			l.meta = m
			l.mu.Unlock()
			return nil
		}
		if !errors.Is(err, bus.ErrConflict) {
			return err
		}
	}
}

// Name is the log's name.
func (l *Log) Name() string { return l.name }

// Source is the log that is copied.
func (l *Log) Source() string { return l.o.Source }

// ID is the log's identity: another one where the stream was made anew.
func (l *Log) ID() message.ID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.meta.ID
}

// MaxMessage is the source's: what is larger than a record comes in pieces.
func (l *Log) MaxMessage() int { return l.source.MaxMessage() }

// hash is the hash key of a partition.
func (l *Log) hash(part uint32) *big.Int { return hashKey(part%uint32(l.tokens), l.tokens) }

// Info says what is known here of the log: its generations are the source's, each partition of it with its tokens.
func (l *Log) Info(ctx context.Context) (bus.LogInfo, error) {
	info, err := l.source.Info(ctx)
	if err != nil {
		return info, err
	}
	if err := l.known(ctx); err != nil {
		return info, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := bus.LogInfo{ID: l.meta.ID, Name: l.name}
	for _, g := range info.Generations {
		n := bus.Generation{Number: g.Number, Sealed: g.Sealed}
		for _, p := range g.Partitions {
			c := l.copied[sourcePart{g.Number, p.Number}]
			n.Sealed = n.Sealed && (p.Last == 0 || c != nil && c.Upto >= p.Last)
			for token := range uint32(l.tokens) {
				part := p.Number*uint32(l.tokens) + token
				one := bus.Partition{Number: part, First: 1}
				if c != nil {
					one.Last = c.Rows[part].Last
				}
				if first := l.first(g.Number, part); first > 0 {
					one.First = min(first, one.Last+1)
				}
				n.Partitions = append(n.Partitions, one)
			}
		}
		out.Generations = append(out.Generations, n)
	}
	return out, nil
}

// lately is Info as it was a moment ago: many readers ask.
func (l *Log) lately(ctx context.Context) (bus.LogInfo, error) {
	l.mu.Lock()
	info, fresh := l.latest, !l.asked.IsZero() && l.o.Now().Sub(l.asked) < lookEvery/2
	l.mu.Unlock()
	if fresh {
		return info, nil
	}
	info, err := l.Info(ctx)
	if err == nil {
		l.mu.Lock()
		l.latest, l.asked = info, l.o.Now()
		l.mu.Unlock()
	}
	return info, err
}

// first is the sequence of the oldest record that a reader found in a partition, where the ones before were gone. l.mu is
// held.
func (l *Log) first(gen, part uint32) (seq uint64) {
	if e, ok := l.entries[fmt.Sprintf("first/%d/%d", gen, part)]; ok && !e.Deleted {
		_ = json.Unmarshal(e.Value, &seq)
	}
	return seq
}

// Reached as in [bus.Copy].
func (l *Log) Reached(ctx context.Context, p bus.Position) (bus.Position, error) {
	if err := l.known(ctx); err != nil {
		return p, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	at := sourcePart{p.Generation, p.Partition / uint32(l.tokens)}
	reached := bus.Position{Log: l.source.ID(), Generation: at.gen, Partition: at.part}
	if p.Sequence > 0 {
		reached.Sequence = origin(p.Sequence) - 1 // more of that batch may follow
	}
	if c := l.copied[at]; c != nil && p.Sequence >= c.Rows[p.Partition].Last {
		reached.Sequence = c.Upto
	}
	return reached, nil
}

// Read as in [bus.Copy].
func (l *Log) Read(ctx context.Context, at bus.Position) (bus.Stored, error) {
	return l.source.Fetch(ctx, at)
}

// Written as in [bus.Copy].
func (l *Log) Written(ctx context.Context, generation, partition uint32) (map[string]uint64, error) {
	if err := l.known(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[string]uint64{}
	if c := l.copied[sourcePart{generation, partition / uint32(l.tokens)}]; c != nil {
		for name, r := range c.Rows[partition].Rows {
			counts[name] = r.Running
		}
	}
	return counts, nil
}

// note makes what says that a batch of the source was copied, once that is committed: with what is set in st.
func (l *Log) note(st bus.State, s bus.Stored) (committed func(), err error) {
	at := sourcePart{s.Position.Generation, s.Position.Partition}
	rows := map[uint32]row{}
	for token := range uint32(l.tokens) {
		part := at.part*uint32(l.tokens) + token
		r, err := readRow(st, at.gen, part)
		if err != nil {
			return nil, err
		}
		if r.Last > 0 {
			rows[part] = *r
		}
	}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if c := l.copied[at]; c == nil || c.Upto < s.Position.Sequence {
			l.copied[at] = &copied{s.Position.Sequence, rows}
			l.touched[at] = true
		}
	}, nil
}

// Tell as in [bus.Copier].
func (l *Log) Tell(ctx context.Context) error {
	l.mu.Lock()
	news := map[string][]byte{}
	for at := range l.touched {
		raw, err := json.Marshal(l.copied[at])
		if err != nil {
			l.mu.Unlock()
			return err
		}
		news[fmt.Sprintf("copied/%d/%d", at.gen, at.part)] = raw
	}
	clear(l.touched)
	l.mu.Unlock()
	for key, raw := range news {
		if _, err := l.table.Put(ctx, l.key(key), raw); err != nil {
			var at sourcePart
			_, _ = fmt.Sscanf(key, "copied/%d/%d", &at.gen, &at.part)
			l.mu.Lock()
			l.touched[at] = true
			l.mu.Unlock()
			return err
		}
	}
	return nil
}

func (l *Log) refuse(what string) error {
	return fmt.Errorf("%s log %s: %w: %s", what, l.name, bus.ErrCopy, l.o.Source)
}

// Appender is refused.
func (l *Log) Appender(context.Context, bus.AppenderOptions) (bus.Appender, error) {
	return nil, l.refuse("append to")
}

// Writer is refused.
func (l *Log) Writer(context.Context, bus.WriterOptions) (bus.Writer, error) {
	return nil, l.refuse("write to")
}

// Fence is refused.
func (l *Log) Fence(context.Context, string, message.ID) ([]bus.Position, error) {
	return nil, l.refuse("fence a row of")
}

// Trim is refused: what is kept is for the stream's retention period to say.
func (l *Log) Trim(context.Context, bus.Position) error { return l.refuse("trim") }

// Repartition is refused: the log has the source's generations.
func (l *Log) Repartition(context.Context, int) error { return l.refuse("repartition") }

// Fetch reads one batch. It begins to read at the nearest anchor, which may be far: it is for few.
func (l *Log) Fetch(ctx context.Context, at bus.Position) (bus.Stored, error) {
	wrap := func(err error) (bus.Stored, error) {
		return bus.Stored{}, fmt.Errorf("batch %s/%d/%d/%d: %w", l.name, at.Generation, at.Partition, at.Sequence, err)
	}
	if err := l.known(ctx); err != nil {
		return wrap(err)
	}
	l.mu.Lock()
	c := l.copied[sourcePart{at.Generation, at.Partition / uint32(l.tokens)}]
	there := c != nil && at.Sequence <= c.Rows[at.Partition].Last
	l.mu.Unlock()
	if at.Sequence == 0 || !there {
		return wrap(bus.ErrNotFound)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchMost)
	defer cancel()
	from := at
	from.Sequence--
	r := l.newReader(from)
	r.looking = true
	defer r.Close()
	for {
		s, err := r.Next(ctx)
		switch {
		case err != nil:
			return wrap(err)
		case s.Position.Sequence == at.Sequence:
			return s, nil
		case s.Position.Sequence > at.Sequence:
			return wrap(bus.ErrNotFound)
		}
	}
}

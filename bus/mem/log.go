package mem

import (
	"context"
	"fmt"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// logData is a stored log.
type logData struct {
	id      message.ID
	name    string
	gens    []*generation // by number; those that have disappeared stay as their rows' last marks
	changed bell          // an append, a trim, a new generation
}

type generation struct {
	number uint32
	sealed bool
	gone   bool
	parts  []*partition
}

type partition struct {
	first, last uint64 // first begins the unbroken run that leads to last
	trimmed     uint64
	bytes       uint64
	batches     map[uint64]*batch
	rows        map[string]rowHead
}

// batch is a stored batch.
type batch struct {
	row    string
	raw    []byte
	stored bus.Stored // as readers get it
}

// rowHead is the newest batch of a row.
type rowHead struct {
	sequence uint64
	header   message.Header
}

// Log as in [bus.Bus].
func (b *Bus) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	if err := b.enter(ctx); err != nil {
		return nil, fmt.Errorf("open log %s: %w", name, err)
	}
	defer b.e.mu.Unlock()
	d := b.e.logs[name]
	if d == nil {
		if name == "" || o.Partitions < 0 {
			return nil, fmt.Errorf("open log %q with %d partitions: it needs a name and at least one", name, o.Partitions)
		}
		d = &logData{id: message.NewID(b.e.now()), name: name}
		d.open(max(1, o.Partitions))
		b.e.logs[name] = d
	}
	return &logHandle{b: b, d: d}, nil
}

// logHandle is a log by way of one handle of the bus.
type logHandle struct {
	b *Bus
	d *logData
}

func (l *logHandle) Name() string    { return l.d.name }
func (l *logHandle) ID() message.ID  { return l.d.id }
func (l *logHandle) MaxMessage() int { return l.b.MaxMessage() }

func (l *logHandle) Info(ctx context.Context) (bus.LogInfo, error) {
	if err := l.b.enter(ctx); err != nil {
		return bus.LogInfo{}, fmt.Errorf("info of log %s: %w", l.d.name, err)
	}
	defer l.b.e.mu.Unlock()
	info := bus.LogInfo{ID: l.d.id, Name: l.d.name}
	for _, g := range l.d.gens {
		if g.gone {
			continue
		}
		out := bus.Generation{Number: g.number, Sealed: g.sealed}
		for i, p := range g.parts {
			out.Partitions = append(out.Partitions, bus.Partition{Number: uint32(i), First: p.first, Last: p.last, Bytes: p.bytes})
		}
		info.Generations = append(info.Generations, out)
	}
	return info, nil
}

func (l *logHandle) Fetch(ctx context.Context, at bus.Position) (bus.Stored, error) {
	if err := l.b.enter(ctx); err != nil {
		return bus.Stored{}, fmt.Errorf("fetch %s: %w", l.place(at), err)
	}
	defer l.b.e.mu.Unlock()
	_, p, err := l.d.find(at)
	if err != nil {
		return bus.Stored{}, fmt.Errorf("fetch %s: %w", l.place(at), err)
	}
	s, ok := p.batches[at.Sequence]
	if !ok {
		return bus.Stored{}, fmt.Errorf("fetch %s: %w; the log has %d to %d", l.place(at), bus.ErrNotFound, p.first, p.last)
	}
	return s.stored, nil
}

func (l *logHandle) Trim(ctx context.Context, upTo bus.Position) error {
	if err := l.b.enter(ctx); err != nil {
		return fmt.Errorf("trim %s: %w", l.place(upTo), err)
	}
	defer l.b.e.mu.Unlock()
	g, p, err := l.d.find(upTo)
	if err != nil {
		return fmt.Errorf("trim %s: %w", l.place(upTo), err)
	}
	p.trim(min(upTo.Sequence, p.last))
	g.leave()
	l.d.changed.ring()
	return nil
}

func (l *logHandle) Repartition(ctx context.Context, n int) error {
	if n < 1 {
		return fmt.Errorf("repartition log %s into %d: it needs at least one partition", l.d.name, n)
	}
	if err := l.b.enter(ctx); err != nil {
		return fmt.Errorf("repartition log %s: %w", l.d.name, err)
	}
	defer l.b.e.mu.Unlock()
	l.d.newest().sealed = true
	l.d.open(n)
	l.d.changed.ring()
	return nil
}

// place names a position for a person.
func (l *logHandle) place(p bus.Position) string {
	return fmt.Sprintf("log %s, generation %d, partition %d, sequence %d", l.d.name, p.Generation, p.Partition, p.Sequence)
}

// open begins a generation.
func (d *logData) open(n int) {
	g := &generation{number: uint32(len(d.gens) + 1)}
	for range n {
		g.parts = append(g.parts, &partition{first: 1, batches: map[uint64]*batch{}, rows: map[string]rowHead{}})
	}
	d.gens = append(d.gens, g)
}

func (d *logData) newest() *generation { return d.gens[len(d.gens)-1] }

// find gives generation and partition of a position, whose generation may have disappeared.
func (d *logData) find(at bus.Position) (*generation, *partition, error) {
	if at.Generation < 1 || int(at.Generation) > len(d.gens) {
		return nil, nil, fmt.Errorf("generation %d: %w; there are 1 to %d", at.Generation, bus.ErrNotFound, len(d.gens))
	}
	g := d.gens[at.Generation-1]
	if int(at.Partition) >= len(g.parts) {
		return nil, nil, fmt.Errorf("partition %d: %w; there are %d", at.Partition, bus.ErrNotFound, len(g.parts))
	}
	return g, g.parts[at.Partition], nil
}

// store appends the bytes of a batch to a partition.
func (d *logData) store(g *generation, partition uint32, row string, raw []byte) bus.Position {
	p := g.parts[partition]
	p.last++
	at := bus.Position{Log: d.id, Generation: g.number, Partition: partition, Sequence: p.last}
	s := &batch{row: row, raw: raw}
	s.stored = read(at, row, raw)
	p.batches[p.last] = s
	p.bytes += uint64(len(raw))
	p.rows[row] = rowHead{sequence: p.last, header: s.stored.Batch.Header}
	d.changed.ring()
	return s.stored.Position
}

// read parses stored bytes as a reader gets them.
func read(at bus.Position, row string, raw []byte) bus.Stored {
	b, err := message.ParseBatch(raw)
	at.Index = 0
	if b.Count > 0 {
		at.Index = b.Count - 1
	}
	return bus.Stored{Position: at, Appender: row, Batch: b, Err: err}
}

// trim deletes up to a sequence all but the rows' last batches.
func (p *partition) trim(upTo uint64) {
	p.trimmed = max(p.trimmed, upTo)
	for n, s := range p.batches {
		if n <= upTo && p.rows[s.row].sequence != n {
			p.bytes -= uint64(len(s.raw))
			delete(p.batches, n)
		}
	}
	for p.first = p.last + 1; p.batches[p.first-1] != nil; p.first-- {
	}
}

// leave lets a sealed generation go that was trimmed to its end. Its rows' last places are kept: a writer that comes
// back must still find where its work was left.
func (g *generation) leave() {
	if !g.sealed {
		return
	}
	for _, p := range g.parts {
		if p.trimmed < p.last {
			return
		}
	}
	g.gone = true
	for _, p := range g.parts {
		p.batches, p.bytes, p.first = nil, 0, p.last+1
	}
}

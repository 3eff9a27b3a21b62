package mem

import (
	"bytes"
	"fmt"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// SetDown takes the engine away, for all handles, or brings it back. While it is away appends are not confirmed and
// everything else waits, except Status.
func (b *Bus) SetDown(down bool) {
	e := b.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.down == down {
		return
	}
	e.down, e.since = down, e.now()
	e.ringAll()
}

// Sleep keeps this handle from renewing its leases, and from being told that they are lost, as in a process that is
// stopped for a while; false wakes it.
func (b *Bus) Sleep(asleep bool) { b.asleep.Store(asleep) }

// SetSpace says what is left to write on. The doors are shut where s.Free is below s.Low, or s.Shut says so.
func (b *Bus) SetSpace(s bus.Space) {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	s.Shut = s.Shut || s.Free < s.Low
	b.e.space = s
}

// LoseAcks makes the next n batches be stored without their writers hearing of it, so that they are offered again.
func (b *Bus) LoseAcks(n int) {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	b.e.loseAcks = n
}

// CorruptBatch flips the bits of one byte of a stored batch, in the newest generation that has it.
func (b *Bus) CorruptBatch(log string, partition uint32, sequence uint64, offset int) error {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	d := b.e.logs[log]
	if d == nil {
		return fmt.Errorf("corrupt log %s: %w", log, bus.ErrNotFound)
	}
	for i := len(d.gens) - 1; i >= 0; i-- {
		g := d.gens[i]
		if int(partition) >= len(g.parts) {
			continue
		}
		s := g.parts[partition].batches[sequence]
		if s == nil {
			continue
		}
		if offset < 0 || offset >= len(s.raw) {
			return fmt.Errorf("corrupt log %s, sequence %d: the batch has no byte %d, only %d", log, sequence, offset, len(s.raw))
		}
		raw := bytes.Clone(s.raw) // readers may hold the old bytes
		raw[offset] ^= 0xff
		at := bus.Position{Log: d.id, Generation: g.number, Partition: partition, Sequence: sequence}
		s.raw, s.stored = raw, read(at, s.row, raw)
		return nil
	}
	return fmt.Errorf("corrupt log %s, partition %d, sequence %d: %w", log, partition, sequence, bus.ErrNotFound)
}

// Steal writes a batch to a row as another owner would, in the open generation, behind whatever is there.
func (b *Bus) Steal(log, row string, partition uint32, owner message.ID, messages ...*message.Message) (bus.Position, error) {
	b.e.mu.Lock()
	defer b.e.mu.Unlock()
	d := b.e.logs[log]
	if d == nil || int(partition) >= len(d.newest().parts) {
		return bus.Position{}, fmt.Errorf("steal row %s of log %s, partition %d: %w", row, log, partition, bus.ErrNotFound)
	}
	var m message.Builder
	m.Reset(message.Header{}, 0)
	for _, one := range messages {
		m.Add(one)
	}
	pl := placeOf(row, d.newest(), partition)
	return d.store(pl.gen, partition, row, bytes.Clone(m.Seal(pl.number, pl.running, pl.sum, owner))), nil
}

// ringAll wakes everyone to look again.
func (e *engine) ringAll() {
	e.up.ring()
	for _, d := range e.logs {
		d.changed.ring()
	}
	for _, q := range e.queues {
		q.changed.ring()
	}
	for _, t := range e.tables {
		t.changed.ring()
	}
}

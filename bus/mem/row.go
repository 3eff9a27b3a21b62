package mem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// retryAfter is how long an unconfirmed batch waits before it is offered again.
const retryAfter = 100 * time.Millisecond

// errSealed says that the generation takes nothing more, and the next one does.
var errSealed = errors.New("generation is sealed")

// row is one owner's way of writing behind a name.
type row struct {
	b        *Bus
	d        *logData
	name     string
	owner    message.ID
	standing func() bool
	patience time.Duration
}

// place is where the owner believes the row to end in one partition.
type place struct {
	gen          *generation
	partition    uint32
	sequence     uint64
	number       uint64 // of the next batch
	running, sum uint64 // before it
}

func newRow(l *logHandle, name string, owner message.ID, standing func() bool, patience time.Duration) (row, error) {
	switch {
	case !word(name):
		return row{}, fmt.Errorf("row %q of log %s: a name is one word of letters, digits, - and _", name, l.d.name)
	case owner.IsZero():
		return row{}, fmt.Errorf("row %s of log %s: its owner has no id, so nobody could be told apart", name, l.d.name)
	}
	if patience == 0 {
		patience = time.Minute
	}
	return row{b: l.b, d: l.d, name: name, owner: owner, standing: standing, patience: patience}, nil
}

// placeOf is a row's true end in a partition. The caller holds the engine's lock.
func placeOf(name string, g *generation, partition uint32) place {
	pl := place{gen: g, partition: partition, number: 1}
	if h, ok := g.parts[partition].rows[name]; ok {
		pl.follow(h)
	}
	return pl
}

func (pl *place) follow(h rowHead) {
	pl.sequence, pl.number = h.sequence, h.header.Number+1
	pl.running, pl.sum = h.header.Running+uint64(h.header.Count), h.header.RunningSum+h.header.IDSum
}

// write offers the batch until it is stored behind pl, exactly once, and moves pl behind it. It gives errSealed where
// the row must go on in the next generation.
func (r *row) write(ctx context.Context, pl *place, b *message.Builder) (bus.Position, error) {
	e := r.b.e
	began := e.now()
	patience := time.NewTimer(r.patience)
	defer patience.Stop()
	raw := b.Seal(pl.number, pl.running, pl.sum, r.owner)
	for {
		if r.b.isClosed() {
			return bus.Position{}, bus.ErrClosed
		}
		e.mu.Lock()
		if e.down {
			back := e.up.heard()
			e.mu.Unlock()
			if err := r.pause(ctx, patience, back, nil); err != nil {
				return bus.Position{}, err
			}
			continue
		}
		p := pl.gen.parts[pl.partition]
		// Asked before whether the generation is sealed: a row that another owner continued must not be left behind.
		if h := p.rows[r.name]; h.sequence != pl.sequence {
			if s := r.stored(p, pl.sequence, raw); s != nil {
				// Behind this batch, not at the row's end: who wrote there since is met by the next batch.
				pl.follow(rowHead{sequence: s.stored.Position.Sequence, header: s.stored.Batch.Header})
				e.latency = e.now().Sub(began)
				e.mu.Unlock()
				return s.stored.Position, nil
			}
			e.mu.Unlock()
			if h.header.Owner != r.owner && !r.standing() {
				return bus.Position{}, message.Rejectf(message.Fenced, "row %s of log %s was continued by owner %s at sequence %d",
					r.name, r.d.name, h.header.Owner, h.sequence)
			}
			pl.follow(h)
			raw = b.Seal(pl.number, pl.running, pl.sum, r.owner)
			continue
		}
		if pl.gen.sealed {
			e.mu.Unlock()
			return bus.Position{}, errSealed
		}
		at := r.d.store(pl.gen, pl.partition, r.name, bytes.Clone(raw))
		if e.loseAcks > 0 {
			e.loseAcks--
			e.mu.Unlock()
			again := time.NewTimer(retryAfter)
			err := r.pause(ctx, patience, nil, again.C)
			again.Stop()
			if err != nil {
				return bus.Position{}, err
			}
			continue
		}
		pl.follow(p.rows[r.name])
		e.latency = e.now().Sub(began)
		e.mu.Unlock()
		return at, nil
	}
}

// pause waits before the batch is offered again, as long as patience lasts.
func (r *row) pause(ctx context.Context, patience *time.Timer, bell <-chan struct{}, again <-chan time.Time) error {
	select {
	case <-bell:
		return nil
	case <-again:
		return nil
	case <-patience.C:
		return message.Rejectf(message.BusUnavailable, "log %s did not confirm a batch within %s", r.d.name, r.patience)
	case <-ctx.Done():
		return ctx.Err()
	case <-r.b.closed:
		return bus.ErrClosed
	}
}

// stored looks behind a sequence for a batch of these bytes: the confirmation of an earlier offer may have been lost,
// and another owner may have written since.
func (r *row) stored(p *partition, behind uint64, raw []byte) *batch {
	for n := behind + 1; n <= p.last; n++ {
		if s := p.batches[n]; s != nil && s.row == r.name && bytes.Equal(s.raw, raw) {
			return s
		}
	}
	return nil
}

// next is the generation behind g. It is there: g was sealed by opening it.
func (r *row) next(g *generation) *generation {
	r.b.e.mu.Lock()
	defer r.b.e.mu.Unlock()
	return r.d.gens[g.number]
}

func word(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if !(c >= 'a' && c <= 'z' || s[i] >= '0' && s[i] <= '9' || s[i] == '-' || s[i] == '_') {
			return false
		}
	}
	return s != ""
}

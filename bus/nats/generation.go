package nats

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Trim deletes up to the position, but keeps the last batch of each row.
func (l *Log) Trim(ctx context.Context, upTo bus.Position) error {
	if err := l.trim(ctx, upTo.Generation, upTo.Partition, upTo.Sequence); err != nil {
		return fmt.Errorf("trim %s/%d/%d to %d: %w", l.name, upTo.Generation, upTo.Partition, upTo.Sequence, l.b.closed(err))
	}
	return nil
}

func (l *Log) trim(ctx context.Context, gen, part uint32, seq uint64) error {
	if err := l.reload(ctx); err != nil {
		return err
	}
	m := l.snapshot()
	switch g := m.find(gen, part); {
	case g == nil:
		return bus.ErrNotFound
	case g.Gone:
		return nil
	}
	s, err := l.b.js().Stream(ctx, streamName(l.name, gen, part))
	if err != nil {
		return err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(">"))
	if err != nil {
		return err
	}
	seq = min(seq, info.State.LastSeq)
	// The list says so first: a reader that meets a gap then knows why.
	err = l.change(ctx, func(m *logMeta) bool {
		g := m.find(gen, part)
		if g == nil || g.Gone || seq <= g.Trimmed[part] {
			return false
		}
		g.Trimmed[part] = seq
		return true
	})
	if err != nil {
		return err
	}
	l.feed(gen, part).forget(seq)
	if info.Config.Sealed {
		return l.dropFinished(ctx, gen) // a sealed generation goes whole, when all of it is trimmed
	}
	for subject := range info.State.Subjects {
		last, err := l.lastOf(ctx, gen, part, subject)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(min(seq+1, last.seq))); err != nil {
			return err
		}
	}
	return nil
}

// dropFinished deletes a sealed generation of which every partition is trimmed to its end. Where consumers left their
// work is kept.
func (l *Log) dropFinished(ctx context.Context, gen uint32) error {
	m := l.snapshot()
	g := m.find(gen, 0)
	if g == nil || !g.Sealed {
		return nil
	}
	for part, trimmed := range g.Trimmed {
		si, err := l.streamInfo(ctx, gen, uint32(part))
		if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return err
		}
		if err == nil && trimmed < si.State.LastSeq {
			return nil
		}
	}
	for part := range g.Trimmed {
		if err := l.keepMarks(ctx, gen, uint32(part)); err != nil {
			return err
		}
	}
	err := l.change(ctx, func(m *logMeta) bool {
		g := m.find(gen, 0)
		if g == nil || g.Gone {
			return false
		}
		g.Gone = true
		return true
	})
	if err != nil {
		return err
	}
	for part := range g.Trimmed {
		if err := l.b.js().DeleteStream(ctx, streamName(l.name, gen, uint32(part))); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return err
		}
		l.feed(gen, uint32(part)).forget(g.Trimmed[part])
	}
	return nil
}

// markKey is where a row's last mark is kept beside the list of logs when its generation goes.
func markKey(log, row string) string { return log + ".mark." + row }

// keepMarks keeps the last marks of a partition's derived rows.
func (l *Log) keepMarks(ctx context.Context, gen, part uint32) error {
	s, err := l.b.js().Stream(ctx, streamName(l.name, gen, part))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil // another process was faster
	}
	if err != nil {
		return err
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(">"))
	if err != nil {
		return err
	}
	for subject := range info.State.Subjects {
		last, err := l.lastOf(ctx, gen, part, subject)
		if err != nil {
			return err
		}
		b, err := message.ParseBatch(last.data)
		if err != nil || !b.Derived {
			continue // an appender's row begins anew in each generation
		}
		// An empty batch in its place: what the row has counted, and nothing of the messages.
		var kept message.Builder
		kept.Reset(b.Header, 0)
		data := kept.Seal(b.Number, b.Running+uint64(b.Count), b.RunningSum+b.IDSum, b.Owner)
		if _, err := l.b.meta().Put(ctx, markKey(l.name, lastToken(subject)), data); err != nil {
			return err
		}
	}
	return nil
}

// keptMark gives a row's last mark from a generation that has disappeared.
func (l *Log) keptMark(ctx context.Context, row string) (message.Header, bool, error) {
	e, err := l.b.meta().Get(ctx, markKey(l.name, row))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return message.Header{}, false, nil
	}
	if err != nil {
		return message.Header{}, false, err
	}
	b, err := message.ParseBatch(e.Value())
	return b.Header, err == nil, err
}

// Repartition seals the open generation and opens the next.
func (l *Log) Repartition(ctx context.Context, n int) error {
	if n < 1 {
		return fmt.Errorf("repartition log %s into %d: it needs at least one partition", l.name, n)
	}
	err := l.repartition(ctx, n)
	if err != nil {
		return fmt.Errorf("repartition log %s into %d: %w", l.name, n, l.b.closed(err))
	}
	return nil
}

func (l *Log) repartition(ctx context.Context, n int) error {
	// What another left half done comes first.
	for ours := false; !ours; {
		if err := l.reload(ctx); err != nil {
			return err
		}
		if err := l.finishNext(ctx); err != nil {
			return err
		}
		err := l.change(ctx, func(m *logMeta) bool {
			if ours = m.Next == 0; ours {
				m.Next = n
			}
			return ours
		})
		if err != nil {
			return err
		}
	}
	return l.finishNext(ctx)
}

// finishNext opens the generation that the list announces, if it does: first its streams, then the seals, then the list.
// Any number of processes may do so at once.
func (l *Log) finishNext(ctx context.Context) error {
	m := l.snapshot()
	if m.Next == 0 {
		return nil
	}
	old := *m.open()
	next := old.Number + 1
	for part := range m.Next {
		if err := l.createStream(ctx, next, uint32(part)); err != nil {
			return err
		}
	}
	for part := range old.Trimmed {
		if err := l.seal(ctx, old.Number, uint32(part)); err != nil {
			return err
		}
	}
	err := l.change(ctx, func(now *logMeta) bool {
		if now.open().Number != old.Number || now.Next != m.Next {
			return false
		}
		now.open().Sealed = true
		now.Generations = append(now.Generations, genMeta{Number: next, Trimmed: make([]uint64, m.Next)})
		now.Next = 0
		return true
	})
	for part := range old.Trimmed {
		l.feed(old.Number, uint32(part)).seal() // readers at the end hear of the seal
	}
	return err
}

func (l *Log) seal(ctx context.Context, gen, part uint32) error {
	s, err := l.b.js().Stream(ctx, streamName(l.name, gen, part))
	if err != nil {
		return err
	}
	c := s.CachedInfo().Config
	if c.Sealed {
		return nil
	}
	c.Sealed = true
	_, err = l.b.js().UpdateStream(ctx, c)
	if err != nil { // another process may have been faster, and what is sealed takes no change
		if s, again := l.b.js().Stream(ctx, streamName(l.name, gen, part)); again == nil && s.CachedInfo().Config.Sealed {
			return nil
		}
	}
	return err
}

// after gives the open generation, if it is a later one than gen. A repartition that its process left half done is
// finished on the way.
func (l *Log) after(ctx context.Context, gen uint32) (*genMeta, error) {
	if err := l.reload(ctx); err != nil {
		return nil, err
	}
	m := l.snapshot()
	if m.open().Number <= gen && m.Next > 0 {
		if err := l.finishNext(ctx); err != nil {
			return nil, err
		}
		m = l.snapshot()
	}
	if g := m.open(); g.Number > gen {
		return g, nil
	}
	return nil, fmt.Errorf("log %s: the generation after %d is not there yet", l.name, gen)
}

// passed says whether a generation is over.
func (l *Log) passed(ctx context.Context, gen uint32) (bool, error) {
	if err := l.reload(ctx); err != nil {
		return false, err
	}
	m := l.snapshot()
	return m.open().Number > gen, nil
}

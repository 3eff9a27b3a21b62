package bustest

import (
	"context"
	"errors"
	"fmt"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

func reading() []promise {
	return []promise{
		{"a reader begins at the beginning or behind a position", Features{}, readsFrom},
		{"a reader at the tail waits and wakes", Features{}, waitsAndWakes},
		{"a reader beyond the end is told the log is truncated", Features{}, beyondEnd},
		{"closing ends a waiting reader", Features{}, readerCloses},
		{"fetch finds what is there and says what is not", Features{}, fetches},
		{"a reader waits while the engine is away", Features{SetDown: true}, readerWaitsOut},
		{"a corrupt batch is given with its fault and the next one read", Features{Corrupt: true}, corrupt},
	}
}

// fill appends batches of one message each, in partition 0 of a log with one.
func (s *scene) fill(a bus.Appender, n int) (list []bus.Position) {
	s.Helper()
	for range n {
		list = append(list, s.append(a, s.message("d")))
	}
	return list
}

// next reads a batch and fails where it is not the one at that sequence.
func (s *scene) next(r bus.Reader, sequence uint64) bus.Stored {
	s.Helper()
	b, err := r.Next(s.ctx)
	s.must(err)
	if b.Position.Sequence != sequence {
		s.Fatalf("read sequence %d, want %d", b.Position.Sequence, sequence)
	}
	return b
}

type stored struct {
	bus.Stored
	err error
}

// later reads the next batch in the background.
func (s *scene) later(r bus.Reader) chan stored {
	c := make(chan stored, 1)
	go func() {
		b, err := r.Next(s.ctx)
		c <- stored{b, err}
	}()
	return c
}

func readsFrom(s *scene) {
	l := s.log(1)
	at := s.fill(s.appender(l, bus.AppenderOptions{}), 5)
	r := s.reader(l, bus.Position{Generation: 1})
	for n := range uint64(5) {
		s.next(r, n+1)
	}
	r = s.reader(l, at[2])
	s.next(r, 4)
	s.next(r, 5)
}

func waitsAndWakes(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	at := s.fill(a, 1)
	r := s.reader(l, at[0]) // behind the last one
	brief, cancel := s.brief()
	defer cancel()
	if b, err := r.Next(brief); !errors.Is(err, context.DeadlineExceeded) {
		s.Fatalf("at the tail: %+v, %v", b, err)
	}
	got := s.later(r)
	s.fill(a, 1)
	b := <-got
	s.must(b.err)
	if b.Position.Sequence != 2 {
		s.Fatalf("woke with sequence %d, want 2", b.Position.Sequence)
	}
	s.fill(a, 2)
	s.next(r, 3)
	s.next(r, 4)
}

func beyondEnd(s *scene) {
	l := s.log(1)
	at := s.fill(s.appender(l, bus.AppenderOptions{}), 2)[1]
	at.Sequence++
	_, err := l.Reader(s.ctx, at)
	s.is(err, bus.ErrTruncated, "one beyond the end")
	_, err = l.Reader(s.ctx, bus.Position{Generation: 2, Sequence: 1})
	s.is(err, bus.ErrTruncated, "in a generation beyond the end")
}

func readerCloses(s *scene) {
	l := s.log(1)
	r := s.reader(l, bus.Position{Generation: 1})
	got := s.later(r)
	r.Close()
	s.is((<-got).err, bus.ErrClosed, "a reader that waits")
	_, err := r.Next(s.ctx)
	s.is(err, bus.ErrClosed, "a reader that is closed")
	r.Close()
}

func fetches(s *scene) {
	l := s.log(1)
	at := s.fill(s.appender(l, bus.AppenderOptions{}), 3)
	b, err := l.Fetch(s.ctx, at[1])
	s.must(err)
	if b.Position != at[1] || b.Appender != "broker" || b.Batch.Number != 2 {
		s.Errorf("fetched %+v in row %s, number %d", b.Position, b.Appender, b.Batch.Number)
	}
	beyond := at[2]
	beyond.Sequence++
	_, err = l.Fetch(s.ctx, beyond)
	s.is(err, bus.ErrNotFound, "beyond the end")
}

func readerWaitsOut(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	r := s.reader(l, s.fill(a, 1)[0])
	s.SetDown(true)
	got := s.later(r)
	s.pass(moment)
	select {
	case b := <-got:
		s.Fatalf("while the engine is away: %+v, %v", b.Stored, b.err)
	default:
	}
	s.SetDown(false)
	s.fill(a, 1)
	b := <-got
	s.must(b.err)
	if b.Position.Sequence != 2 {
		s.Fatalf("read sequence %d, want 2", b.Position.Sequence)
	}
}

func corrupt(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	at := s.fill(a, 3)
	s.Corrupt(l.Name(), 2)
	broken := func(b bus.Stored, what string) {
		s.Helper()
		var fault *message.CorruptError
		if !errors.As(b.Err, &fault) || b.Batch.Count != 0 || b.Position.Sequence != 2 || b.Appender != "broker" {
			s.Fatalf("%s: the corrupt batch is given at %+v in row %q with error %v and %d messages", what, b.Position, b.Appender, b.Err, b.Batch.Count)
		}
	}
	r := s.reader(l, bus.Position{Generation: 1})
	s.must(s.next(r, 1).Err)
	broken(s.next(r, 2), "reader")
	b := s.next(r, 3)
	s.must(b.Err)
	if b.Batch.Running != 2 {
		s.Errorf("the batch behind says %d messages before it, want 2", b.Batch.Running)
	}
	b, err := l.Fetch(s.ctx, at[1])
	s.must(err)
	broken(b, "fetch")
	s.fill(a, 1)
	s.must(s.next(r, 4).Err)
}

func trimming() []promise {
	return []promise{
		{"trim deletes up to a position and keeps each row's last mark", Features{}, trimKeepsMarks},
		{"a reader from what was trimmed is told it is purged", Features{}, purged},
		{"a writer goes on from a mark that trim kept", Features{}, markKept},
	}
}

// first fails where a partition does not begin at a sequence.
func (s *scene) first(l bus.Log, want uint64) {
	s.Helper()
	info, err := l.Info(s.ctx)
	s.must(err)
	if p := info.Generations[0].Partitions[0]; p.First != want {
		s.Fatalf("the partition goes from %d to %d, want it to begin at %d", p.First, p.Last, want)
	}
}

func trimKeepsMarks(s *scene) {
	l := s.log(1)
	idle := s.fill(s.appender(l, bus.AppenderOptions{Name: "idle"}), 3)
	busy := s.appender(l, bus.AppenderOptions{Name: "busy"})
	at := s.fill(busy, 5)[2] // sequences 4 to 8
	s.first(l, 1)
	s.must(l.Trim(s.ctx, at))
	s.first(l, 7)
	s.next(s.reader(l, bus.Position{Generation: 1}), 7) // what lies alone before is a mark, not the log
	s.next(s.reader(l, at), 7)
	for _, gone := range []bus.Position{idle[0], idle[1], at} {
		_, err := l.Fetch(s.ctx, gone)
		s.is(err, bus.ErrNotFound, fmt.Sprintf("sequence %d, trimmed", gone.Sequence))
	}
	if b, err := l.Fetch(s.ctx, idle[2]); err != nil || b.Batch.Number != 3 {
		s.Errorf("the idle row's last mark is %+v, %v", b.Batch.Header, err)
	}
	again := s.append(s.appender(l, bus.AppenderOptions{Name: "idle"}), s.message("d"))
	b, err := l.Fetch(s.ctx, again)
	s.must(err)
	if b.Batch.Number != 4 || b.Batch.Running != 3 {
		s.Errorf("the idle row goes on with number %d behind %d messages; want 4 behind 3", b.Batch.Number, b.Batch.Running)
	}
}

func purged(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	at := s.fill(a, 5)
	slow := s.reader(l, bus.Position{Generation: 1})
	s.next(slow, 1)
	s.must(l.Trim(s.ctx, at[3]))
	_, err := l.Reader(s.ctx, at[2])
	s.is(err, bus.ErrPurged, "one batch before the oldest is missing")
	s.next(s.reader(l, at[3]), 5)
	// The slow reader may have read ahead, but must not leap.
	for want := uint64(2); ; want++ {
		b, err := slow.Next(s.ctx)
		if err != nil {
			s.is(err, bus.ErrPurged, "a reader that was overtaken")
			break
		}
		if b.Position.Sequence != want {
			s.Fatalf("a reader that was overtaken leapt to %d, want %d or an error", b.Position.Sequence, want)
		}
		if want == 5 {
			break
		}
	}
}

func markKept(s *scene) {
	l := s.log(1)
	s.write(s.writer(l, bus.WriterOptions{}), source(9), "nine", s.message("d"))
	at := s.fill(s.appender(l, bus.AppenderOptions{}), 3)
	s.must(l.Trim(s.ctx, at[1]))
	w := s.writer(l, bus.WriterOptions{})
	s.marked(w, source(9), "nine")
	p := s.write(w, source(10), "ten", s.message("d"))
	b, err := l.Fetch(s.ctx, p)
	s.must(err)
	if b.Batch.Number != 2 || b.Batch.Running != 1 {
		s.Errorf("the row goes on with number %d behind %d messages; want 2 behind 1", b.Batch.Number, b.Batch.Running)
	}
}

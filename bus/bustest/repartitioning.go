package bustest

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

func repartitioning() []promise {
	return []promise{
		{"a sealed generation ends its readers", Features{}, sealedEnds},
		{"appenders go over to the next generation and keep each key's order", Features{}, goOver},
		{"a writer goes over and keeps its place", Features{}, writerGoesOver},
		{"an owner that was overtaken does not slip through a seal", Features{}, noSlip},
		{"a sealed generation trimmed to its end disappears", Features{}, disappears},
		{"a writer's place outlives its generation", Features{}, placeOutlives},
	}
}

// drain reads a sealed partition to its end.
func (s *scene) drain(l bus.Log, generation, partition uint32) (list []bus.Stored) {
	s.Helper()
	r := s.reader(l, bus.Position{Generation: generation, Partition: partition})
	defer r.Close()
	for {
		b, err := r.Next(s.ctx)
		if errors.Is(err, bus.ErrSealed) {
			s.addUp(list)
			return list
		}
		s.must(err)
		list = append(list, b)
	}
}

func sealedEnds(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	r := s.reader(l, s.fill(a, 1)[0])
	got := s.later(r)
	s.must(l.Repartition(s.ctx, 2))
	s.is((<-got).err, bus.ErrSealed, "a reader that waits at the tail")
	if n := len(s.drain(l, 1, 0)); n != 1 {
		s.Errorf("the sealed generation has %d batches, want 1", n)
	}
	info, err := l.Info(s.ctx)
	s.must(err)
	if g := info.Generations; len(g) != 2 || !g[0].Sealed || g[1].Sealed || g[1].Number != 2 || len(g[1].Partitions) != 2 {
		s.Errorf("the generations are %+v", g)
	}
	if p := s.append(a, s.message("d")); p.Generation != 2 || p.Partition != bus.PartitionOf("d", 2) {
		s.Errorf("what is appended next is at %+v", p)
	}
}

func goOver(s *scene) {
	const n = 300
	l := s.log(2)
	a := s.appender(l, bus.AppenderOptions{})
	told := newFates(n)
	want := map[string][]message.ID{}
	for i := range n {
		if i == n/2 {
			s.wait(told, 1)
			s.must(l.Repartition(s.ctx, 3))
		}
		m := s.message(fmt.Sprint("d-", i%11))
		want[m.Device] = append(want[m.Device], m.ID)
		s.must(a.Append(s.ctx, m, told, uint64(i)))
	}
	for _, f := range s.wait(told, n-1) {
		s.must(f.err)
	}
	got := map[string][]message.ID{}
	keep := func(list []bus.Stored) {
		for _, m := range s.messages(list) {
			got[m.Device] = append(got[m.Device], m.ID)
		}
	}
	for p := range uint32(2) {
		keep(s.drain(l, 1, p))
	}
	for _, list := range s.all(l, 2) {
		keep(list)
	}
	if !reflect.DeepEqual(got, want) {
		s.Error("the keys' messages are not those that were sent, in their order")
	}
}

func writerGoesOver(s *scene) {
	l := s.log(1)
	w := s.writer(l, bus.WriterOptions{})
	s.write(w, source(1), "one", s.message("d"))
	s.must(l.Repartition(s.ctx, 3))
	s.marked(s.writer(l, bus.WriterOptions{}), source(1), "one")
	if p := s.write(w, source(2), "two", s.message("d")); p.Generation != 2 || p.Sequence != 1 {
		s.Errorf("the second batch is at %+v", p)
	}
	s.marked(s.writer(l, bus.WriterOptions{}), source(2), "two")
}

func noSlip(s *scene) {
	l := s.log(1)
	old := s.writer(l, bus.WriterOptions{})
	door := s.appender(l, bus.AppenderOptions{Standing: func() bool { return false }})
	s.fill(door, 1)
	s.write(s.writer(l, bus.WriterOptions{}), source(1), "fresh")
	s.fill(s.appender(l, bus.AppenderOptions{}), 1)
	s.must(l.Repartition(s.ctx, 1))
	_, err := old.Write(s.ctx, source(1), []byte("old"), nil)
	s.refused(err, message.Fenced, "a writer")
	_, err = bus.AppendSync(s.ctx, door, s.message("d"))
	s.refused(err, message.Fenced, "an appender")
}

func disappears(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	at := s.fill(a, 3)
	s.must(l.Repartition(s.ctx, 1))
	s.fill(a, 1) // the row has a newer mark now
	s.must(l.Trim(s.ctx, at[2]))
	info, err := l.Info(s.ctx)
	s.must(err)
	if len(info.Generations) != 1 || info.Generations[0].Number != 2 {
		s.Fatalf("the generations are %+v, want the second alone", info.Generations)
	}
	_, err = l.Reader(s.ctx, at[0])
	s.is(err, bus.ErrPurged, "a reader that had not finished the generation")
	// One that had finished it has missed nothing.
	_, err = s.reader(l, at[2]).Next(s.ctx)
	s.is(err, bus.ErrSealed, "a reader that had finished the generation")
	s.fill(a, 1)
	s.batches(l, 2, 0, 2)
}

func placeOutlives(s *scene) {
	l := s.log(1)
	p := s.write(s.writer(l, bus.WriterOptions{}), source(5), "five", s.message("d"))
	s.must(l.Repartition(s.ctx, 1))
	s.must(l.Trim(s.ctx, p))
	w := s.writer(l, bus.WriterOptions{})
	s.marked(w, source(5), "five")
	s.write(w, source(6), "six")
	s.marked(w, source(6), "six")
}

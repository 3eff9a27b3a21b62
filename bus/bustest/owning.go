package bustest

import (
	"reflect"
	"sync"
	"sync/atomic"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

func owning() []promise {
	return []promise{
		{"running counts add up across owners", Features{}, countsAcrossOwners},
		{"running counts add up across restarts", Features{Reopen: true}, countsAcrossRestarts},
		{"the owner without standing is fenced", Features{}, fenced},
		{"of two owners nothing acknowledged is lost or doubled", Features{}, contest},
		{"a batch stored behind a lost confirmation is found under another owner's", Features{LoseAcks: true}, lostAckThenOther},
		{"a writer goes on from its last mark", Features{}, writerResumes},
		{"a writer goes on from its last mark after a restart", Features{Reopen: true}, writerResumesAfterRestart},
		{"an empty batch leaves a mark", Features{}, emptyMark},
		{"a writer without standing is fenced and has written nothing", Features{}, writerFenced},
		{"a batch that is too large is refused and nothing written", Features{}, batchTooLarge},
	}
}

func countsAcrossOwners(s *scene) {
	l := s.log(1)
	first := s.appender(l, bus.AppenderOptions{Name: "a"})
	s.append(first, s.message("d"))
	s.append(s.appender(l, bus.AppenderOptions{Name: "b"}), s.message("d"))
	s.append(first, s.message("d"))
	s.must(first.Close(s.ctx))
	second := s.appender(l, bus.AppenderOptions{Name: "a", Standing: func() bool {
		s.Error("standing was asked though nobody wrote since the row was opened")
		return true
	}})
	s.append(second, s.message("d"))
	list := s.batches(l, 1, 0, 4)
	if h := list[3].Batch.Header; h.Number != 3 || h.Running != 2 || h.Owner == list[0].Batch.Owner {
		s.Errorf("the second owner's batch says %+v", h)
	}
}

func countsAcrossRestarts(s *scene) {
	l := s.log(1)
	id := l.ID()
	s.append(s.appender(l, bus.AppenderOptions{}), s.message("d"))
	s.Bus = s.Reopen()
	if l = s.log(9); l.ID() != id {
		s.Errorf("the log has id %s after a restart, had %s", l.ID(), id)
	}
	p := s.append(s.appender(l, bus.AppenderOptions{}), s.message("d"))
	if p.Partition != 0 || p.Sequence != 2 {
		s.Errorf("the second message is at %+v", p)
	}
	s.batches(l, 1, 0, 2)
}

func fenced(s *scene) {
	l := s.log(1)
	old := s.appender(l, bus.AppenderOptions{Standing: func() bool { return false }})
	first := s.message("d")
	s.append(old, first)
	fresh := s.appender(l, bus.AppenderOptions{})
	second := s.message("d")
	s.append(fresh, second)
	for range 2 {
		_, err := bus.AppendSync(s.ctx, old, s.message("d"))
		s.refused(err, message.Fenced, "the old owner")
	}
	third := s.message("d")
	s.append(fresh, third)
	s.exactly(l, 1, []message.ID{first.ID, second.ID, third.ID})
}

func contest(s *scene) {
	const n = 300
	l := s.log(1)
	var standing atomic.Bool
	standing.Store(true)
	old := s.appender(l, bus.AppenderOptions{Standing: standing.Load})
	fresh := s.appender(l, bus.AppenderOptions{})
	var both sync.WaitGroup
	acknowledged := make([]map[message.ID]bus.Position, 2)
	sent := [2][]*message.Message{}
	for i := range 2 * n {
		sent[i%2] = append(sent[i%2], s.message("d"))
	}
	for i, a := range []bus.Appender{old, fresh} {
		acknowledged[i] = map[message.ID]bus.Position{}
		both.Go(func() {
			for j, m := range sent[i] {
				if i == 0 && j == n/2 {
					standing.Store(false)
				}
				p, err := bus.AppendSync(s.ctx, a, m)
				if err == nil {
					acknowledged[i][m.ID] = p
				} else if r := message.ReasonOf(err, 0); i == 1 || r != message.Fenced {
					s.Errorf("owner %d: %v", i, err)
				}
			}
		})
	}
	both.Wait()
	if len(acknowledged[1]) != n {
		s.Errorf("the owner with standing had %d of %d acknowledged", len(acknowledged[1]), n)
	}
	found := map[message.ID]bus.Position{}
	for _, m := range s.messages(s.all(l, 1)[0]) {
		if was, twice := found[m.ID]; twice {
			s.Fatalf("message %s is at %+v and at %+v", m.ID, was, m.at)
		}
		found[m.ID] = m.at
	}
	for i := range acknowledged {
		for id, at := range acknowledged[i] {
			if found[id] != at {
				s.Fatalf("message %s was acknowledged at %+v and is at %+v", id, at, found[id])
			}
		}
	}
}

func lostAckThenOther(s *scene) {
	l := s.log(1)
	old := s.appender(l, bus.AppenderOptions{})
	fresh := s.appender(l, bus.AppenderOptions{})
	s.LoseAcks(1)
	told := newFates(1)
	first, second, third := s.message("d"), s.message("d"), s.message("d")
	s.must(old.Append(s.ctx, first, told, 0))
	s.batches(l, 1, 0, 1) // it is stored, and its owner does not know yet
	s.append(fresh, second)
	f := s.wait(told, 1)[0]
	s.must(f.err)
	if f.at.Sequence != 1 {
		s.Errorf("the first message is said to be at %+v", f.at)
	}
	s.append(old, third)
	s.exactly(l, 1, []message.ID{first.ID, second.ID, third.ID})
}

func source(sequence uint64) bus.Position {
	return bus.Position{Log: message.ID{1, 2, 3}, Generation: 2, Partition: 3, Sequence: sequence, Index: 5}
}

// marked fails where the newest header is not the one that was written.
func (s *scene) marked(w bus.Writer, from bus.Position, mark string) {
	s.Helper()
	h, ok, err := w.Last(s.ctx)
	s.must(err)
	if !ok || !h.Derived || bus.PositionOf(h.Source) != from || string(h.Mark) != mark {
		s.Fatalf("the row's last batch says %v, %+v, want source %+v and mark %q", ok, h, from, mark)
	}
}

func (s *scene) write(w bus.Writer, from bus.Position, mark string, messages ...*message.Message) bus.Position {
	s.Helper()
	p, err := w.Write(s.ctx, from, []byte(mark), messages)
	s.must(err)
	return p
}

func writerResumes(s *scene) {
	l := s.log(2)
	w := s.writer(l, bus.WriterOptions{})
	if h, ok, err := w.Last(s.ctx); err != nil || ok {
		s.Fatalf("an empty row's last batch is %+v, %v, %v", h, ok, err)
	}
	m := []*message.Message{s.message("a"), s.message("b"), s.message("c")}
	p := s.write(w, source(7), "seven", m...)
	s.marked(w, source(7), "seven")
	next := s.writer(l, bus.WriterOptions{}) // another owner, who asks before it works
	s.marked(next, source(7), "seven")
	s.write(next, source(8), "eight", s.message("d"))
	s.marked(next, source(8), "eight")
	list := s.batches(l, 1, p.Partition, 2)
	got := s.messages(list)
	if len(got) != 4 || !reflect.DeepEqual(got[1].Message, m[1]) || list[0].Position != p {
		s.Errorf("the row holds %d messages, the first batch is at %+v, want 4 and %+v", len(got), list[0].Position, p)
	}
}

func writerResumesAfterRestart(s *scene) {
	w := s.writer(s.log(1), bus.WriterOptions{})
	s.write(w, source(7), "seven", s.message("d"))
	s.Bus = s.Reopen()
	w = s.writer(s.log(1), bus.WriterOptions{})
	s.marked(w, source(7), "seven")
	s.write(w, source(8), "", s.message("d"))
	s.batches(s.log(1), 1, 0, 2)
}

func emptyMark(s *scene) {
	l := s.log(1)
	w := s.writer(l, bus.WriterOptions{})
	s.write(w, source(1), "one", s.message("d"))
	p := s.write(w, source(2), "two")
	if p.Index != 0 || p.Sequence != 2 {
		s.Errorf("the empty batch is at %+v", p)
	}
	s.marked(w, source(2), "two")
	s.write(w, source(3), "three", s.message("d"))
	if list := s.batches(l, 1, 0, 3); list[1].Batch.Count != 0 {
		s.Errorf("the empty batch has %d messages", list[1].Batch.Count)
	}
}

func writerFenced(s *scene) {
	l := s.log(1)
	old := s.writer(l, bus.WriterOptions{})
	s.write(old, source(1), "old")
	fresh := s.writer(l, bus.WriterOptions{})
	s.marked(fresh, source(1), "old")
	s.write(fresh, source(2), "fresh")
	_, err := old.Write(s.ctx, source(2), []byte("old"), []*message.Message{s.message("d")})
	s.refused(err, message.Fenced, "the old owner")
	s.marked(fresh, source(2), "fresh")
	s.write(fresh, source(3), "fresh")
	s.batches(l, 1, 0, 3)
	if info, err := l.Info(s.ctx); err != nil || info.Generations[0].Partitions[0].Last != 3 {
		s.Errorf("the log is %+v, %v; want 3 batches", info, err)
	}
}

func batchTooLarge(s *scene) {
	l := s.log(1)
	w := s.writer(l, bus.WriterOptions{})
	s.write(w, source(1), string(make([]byte, w.MaxBatch()-message.BatchOverhead))) // the largest
	_, err := w.Write(s.ctx, source(2), make([]byte, w.MaxBatch()-message.BatchOverhead+1), nil)
	s.refused(err, message.MessageTooLarge, "one byte more")
	s.write(w, source(2), "two")
	s.batches(l, 1, 0, 2)
}

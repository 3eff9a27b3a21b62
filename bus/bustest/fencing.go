package bustest

import (
	"sync/atomic"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

func fencing() []promise {
	return []promise{
		{"a fenced row refuses who has lost his standing, in every partition", Features{}, fencedEverywhere},
		{"a fenced row refuses who crosses into the next generation", Features{}, fencedAcrossSeal},
		{"a fence keeps a writer's mark", Features{}, fenceKeepsMark},
		{"who stands goes on behind a fence", Features{}, standsBehindFence},
		{"what is acknowledged lies before the fence", Features{}, fenceUnderWay},
	}
}

func (s *scene) fence(l bus.Log, row string) []bus.Position {
	s.Helper()
	list, err := l.Fence(s.ctx, row, owner())
	s.must(err)
	return list
}

// fencedEverywhere fences a row that has batches in one partition, and none in the others.
func fencedEverywhere(s *scene) {
	l := s.log(3)
	old := s.appender(l, bus.AppenderOptions{Standing: func() bool { return false }})
	first := s.message("d-0")
	s.append(old, first)
	neighbour := s.appender(l, bus.AppenderOptions{Name: "neighbour", Standing: func() bool { return false }})
	if list := s.fence(l, "broker"); len(list) != 3 || list[0].Sequence == 0 || list[0].Log != l.ID() {
		s.Fatalf("the fences are at %+v, want one in each of 3 partitions", list)
	}
	for i := range 9 { // an appender that was refused takes nothing more, so each partition is met by one of its own
		again := s.appender(l, bus.AppenderOptions{Name: "other", Standing: func() bool { return false }})
		s.fence(l, "other")
		_, err := bus.AppendSync(s.ctx, again, s.message(string(rune('a'+i))))
		s.refused(err, message.Fenced, "an owner that has written nothing yet")
	}
	_, err := bus.AppendSync(s.ctx, old, s.message("d-0"))
	s.refused(err, message.Fenced, "the old owner")
	second := s.message("d-0")
	s.append(neighbour, second)
	s.exactly(l, 1, []message.ID{first.ID, second.ID})
}

func fencedAcrossSeal(s *scene) {
	l := s.log(1)
	old := s.appender(l, bus.AppenderOptions{Standing: func() bool { return false }})
	s.append(old, s.message("d"))
	w := s.writer(l, bus.WriterOptions{Name: "writer"})
	s.write(w, source(1), "one", s.message("d"))
	s.fence(l, "broker")
	s.fence(l, "writer")
	s.must(l.Repartition(s.ctx, 2))
	_, err := bus.AppendSync(s.ctx, old, s.message("d"))
	s.refused(err, message.Fenced, "the appender")
	_, err = w.Write(s.ctx, source(2), nil, []*message.Message{s.message("d")})
	s.refused(err, message.Fenced, "the writer")
	s.marked(s.writer(l, bus.WriterOptions{Name: "writer"}), source(1), "one")
	s.fence(l, "writer")
	s.marked(s.writer(l, bus.WriterOptions{Name: "writer"}), source(1), "one")
}

func fenceKeepsMark(s *scene) {
	l := s.log(2)
	s.write(s.writer(l, bus.WriterOptions{}), source(7), "seven", s.message("d"))
	s.fence(l, "derived")
	next := s.writer(l, bus.WriterOptions{})
	s.marked(next, source(7), "seven")
	s.write(next, source(8), "eight", s.message("d"))
	s.marked(next, source(8), "eight")
}

func standsBehindFence(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	first, second := s.message("d"), s.message("d")
	s.append(a, first)
	s.fence(l, "broker")
	s.append(a, second)
	s.exactly(l, 1, []message.ID{first.ID, second.ID})
	s.batches(l, 1, 0, 3)
}

// fenceUnderWay fences a row that is written to all the time.
func fenceUnderWay(s *scene) {
	const n = 500
	l := s.log(1)
	var standing atomic.Bool
	standing.Store(true)
	a := s.appender(l, bus.AppenderOptions{Standing: standing.Load})
	told := newFates(n)
	for i := range n {
		if i == n/2 {
			s.wait(told, 1)
			standing.Store(false)
			defer func(at []bus.Position) {
				for _, f := range s.wait(told, n-1) {
					if f.err == nil && f.at.Sequence > at[0].Sequence {
						s.Errorf("a message was stored at %d, behind the fence at %d", f.at.Sequence, at[0].Sequence)
					}
				}
			}(s.fence(l, "broker"))
		}
		if err := a.Append(s.ctx, s.message("d"), told, 0); err != nil {
			told <- fate{err: err}
		}
	}
}

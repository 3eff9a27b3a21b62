package bustest

import (
	"bytes"
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

func appending() []promise {
	return []promise{
		{"an appended message is read back equal", Features{}, readBackEqual},
		{"append takes a copy", Features{}, takesCopy},
		{"a message is acknowledged only after it is stored", Features{}, storedFirst},
		{"order is kept per key over partitions", Features{}, orderPerKey},
		{"completions come in the order of the appends and then settle", Features{}, completionsInOrder},
		{"what arrives while a batch is written makes the next batch", Features{}, naturalBatching},
		{"a message that is too large is refused by name", Features{}, tooLarge},
		{"doors are shut when space is low and what is inside goes on", Features{SetSpace: true}, doorsShut},
		{"a lost confirmation is made good without a duplicate", Features{LoseAcks: true}, lostAck},
		{"an engine that is away is waited for and nothing acknowledged", Features{SetDown: true}, awayAndBack},
		{"patience ends as bus_unavailable", Features{SetDown: true}, patienceEnds},
		{"close writes what is pending", Features{}, closeWrites},
		{"closing the bus ends appends under way", Features{SetDown: true}, busClosed},
	}
}

func readBackEqual(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{Name: "node-1_a"})
	want := s.message("d")
	p := s.append(a, want)
	if p.Log != l.ID() || p.Generation != 1 || p.Partition != 0 || p.Sequence != 1 || p.Index != 0 {
		s.Errorf("the first message is at %+v", p)
	}
	b := s.batches(l, 1, 0, 1)
	if b[0].Appender != "node-1_a" {
		s.Errorf("the batch is in row %q", b[0].Appender)
	}
	if got := s.messages(b)[0]; !reflect.DeepEqual(got.Message, want) || got.at != p {
		s.Errorf("read %+v at %+v\nwant %+v at %+v", got.Message, got.at, want, p)
	}
}

func takesCopy(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	m, told := s.message("d"), newFates(1)
	want := bytes.Clone(m.Data)
	s.must(a.Append(s.ctx, m, told, 0))
	copy(m.Data, "overwritten by its owner")
	s.must(s.wait(told, 1)[0].err)
	if got := s.messages(s.batches(l, 1, 0, 1))[0].Data; !bytes.Equal(got, want) {
		s.Errorf("stored %q, want %q", got, want)
	}
}

// looking is a completion that looks for the message the moment it is told.
type looking struct {
	fates
	ctx context.Context
	l   bus.Log
	ids []message.ID
}

func (k looking) Appended(token uint64, at bus.Position, err error) {
	if err == nil {
		err = k.find(token, at)
	}
	k.fates.Appended(token, at, err)
}

func (k looking) find(token uint64, at bus.Position) error {
	b, err := k.l.Fetch(k.ctx, at)
	if err != nil {
		return err
	}
	c := b.Batch.Cursor()
	for range at.Index {
		c.NextID()
	}
	if id, _ := c.NextID(); id != k.ids[token] {
		return fmt.Errorf("message %s is not at %+v, where it was acknowledged, but %s", k.ids[token], at, id)
	}
	return nil
}

func storedFirst(s *scene) {
	const n = 200
	l := s.log(2)
	a := s.appender(l, bus.AppenderOptions{})
	k := looking{fates: newFates(n), ctx: s.ctx, l: l}
	list := make([]*message.Message, n)
	for i := range list {
		list[i] = s.message(fmt.Sprint("d-", i%7))
		k.ids = append(k.ids, list[i].ID)
	}
	to := &k // a pointer, which can be told from others
	for i, m := range list {
		s.must(a.Append(s.ctx, m, to, uint64(i)))
	}
	for _, f := range s.wait(k.fates, n) {
		s.must(f.err)
	}
}

func orderPerKey(s *scene) {
	const senders, each, partitions = 8, 100, 4
	l := s.log(partitions)
	a := s.appender(l, bus.AppenderOptions{})
	told := newFates(senders * each)
	sent := make([][]*message.Message, senders)
	for g := range sent {
		for i := range each {
			sent[g] = append(sent[g], s.message(fmt.Sprintf("d-%d-%d", g, 2*i/each)))
		}
	}
	var all sync.WaitGroup
	for g := range sent {
		all.Go(func() {
			for i, m := range sent[g] {
				if err := a.Append(s.ctx, m, told, uint64(g*each+i)); err != nil {
					s.Error(err)
				}
			}
		})
	}
	all.Wait()
	for _, f := range s.wait(told, senders*each) {
		s.must(f.err)
	}
	byKey := map[string][]message.ID{}
	for _, list := range sent {
		for _, m := range list {
			byKey[m.Key()] = append(byKey[m.Key()], m.ID)
		}
	}
	got := map[string][]message.ID{}
	for partition, list := range s.all(l, 1) {
		for _, m := range s.messages(list) {
			if want := bus.PartitionOf(m.Key(), partitions); want != uint32(partition) {
				s.Fatalf("key %s is in partition %d, want %d", m.Key(), partition, want)
			}
			got[m.Key()] = append(got[m.Key()], m.ID)
		}
	}
	if !reflect.DeepEqual(got, byKey) {
		s.Error("the keys' messages are not those that were sent, in their order")
	}
}

func completionsInOrder(s *scene) {
	const n = 500
	l := s.log(3)
	a := s.appender(l, bus.AppenderOptions{})
	told := newFates(n)
	for i := range n {
		s.must(a.Append(s.ctx, s.message(fmt.Sprint("d-", i/10%17)), told, uint64(i)))
	}
	last := map[uint32]fate{}
	for _, f := range s.wait(told, n) {
		s.must(f.err)
		if was, ok := last[f.at.Partition]; ok {
			after := f.at.Sequence > was.at.Sequence || f.at.Sequence == was.at.Sequence && f.at.Index == was.at.Index+1
			if f.token < was.token || !after {
				s.Fatalf("partition %d: token %d at %d/%d was completed after token %d at %d/%d", f.at.Partition,
					f.token, f.at.Sequence, f.at.Index, was.token, was.at.Sequence, was.at.Index)
			}
		}
		last[f.at.Partition] = f
	}
	select {
	case f := <-told:
		if !f.settled {
			s.Fatalf("told %+v after the last message", f)
		}
	case <-s.ctx.Done():
		s.Fatal("the completion was never settled")
	}
}

func naturalBatching(s *scene) {
	const n = 2000
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	most := n - 1 // without a hand on the engine it may keep pace for a while
	if s.f.SetDown {
		s.SetDown(true)
		most = n / 100
	}
	told := newFates(n)
	for i := range n {
		s.must(a.Append(s.ctx, s.message("d"), told, uint64(i)))
	}
	if s.f.SetDown {
		s.SetDown(false)
	}
	fates := s.wait(told, n)
	if got := fates[n-1].at.Sequence; got > uint64(most) {
		s.Errorf("%d messages made %d batches, want at most %d", n, got, most)
	}
}

func tooLarge(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	if l.MaxMessage() != s.Bus.MaxMessage() || l.MaxMessage() < 64<<10 {
		s.Fatalf("the log takes messages up to %d bytes, the bus up to %d", l.MaxMessage(), s.Bus.MaxMessage())
	}
	m := s.message("d")
	m.Data = make([]byte, l.MaxMessage()-1000)
	m.Data = make([]byte, len(m.Data)+l.MaxMessage()-len(message.AppendRecord(nil, m)))
	s.append(a, m) // the largest
	m = m.Clone()
	m.ID, m.Data = message.NewID(time.Now()), append(m.Data, 0)
	told := newFates(1)
	s.refused(a.Append(s.ctx, m, told, 0), message.MessageTooLarge, "one byte more")
	s.append(a, s.message("d"))
	s.silent(told, "the refused message")
	s.batches(l, 1, 0, 2)
}

func doorsShut(s *scene) {
	l := s.log(1)
	door := s.appender(l, bus.AppenderOptions{Name: "door", Door: true})
	inside := s.appender(l, bus.AppenderOptions{Name: "inside"})
	w := s.writer(l, bus.WriterOptions{})
	s.SetSpace(bus.Space{Free: 10, Total: 100, Low: 20, Shut: true})
	if st := s.Bus.Status(s.ctx); !st.Space.Shut {
		s.Errorf("status says %+v", st)
	}
	s.refused(door.Append(s.ctx, s.message("d"), nil, 0), message.StorageLow, "at the door")
	s.append(inside, s.message("d"))
	_, err := w.Write(s.ctx, bus.Position{}, nil, []*message.Message{s.message("d")})
	s.must(err)
	s.SetSpace(bus.Space{Free: 90, Total: 100, Low: 20})
	s.append(door, s.message("d"))
	s.batches(l, 1, 0, 3)
}

func lostAck(s *scene) {
	const n = 10
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	s.LoseAcks(3)
	var want []message.ID
	for range n {
		m := s.message("d")
		want = append(want, m.ID)
		s.append(a, m)
	}
	s.exactly(l, 1, want)
}

// exactly fails where a generation holds other messages than these, in this order.
func (s *scene) exactly(l bus.Log, generation uint32, want []message.ID) {
	s.Helper()
	var got []message.ID
	for _, list := range s.all(l, generation) {
		for _, m := range s.messages(list) {
			got = append(got, m.ID)
		}
	}
	if !reflect.DeepEqual(got, want) {
		s.Errorf("the log holds %d messages, want %d, or they are others:\n%v\n%v", len(got), len(want), got, want)
	}
}

func awayAndBack(s *scene) {
	const n = 20
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	first := s.message("d")
	s.append(a, first)
	want := []message.ID{first.ID}
	s.SetDown(true)
	told := newFates(n)
	for i := range n {
		m := s.message("d")
		want = append(want, m.ID)
		s.must(a.Append(s.ctx, m, told, uint64(i)))
	}
	s.silent(told, "while the engine is away")
	if st := s.Bus.Status(s.ctx); st.Up {
		s.Errorf("status says %+v while the engine is away", st)
	}
	s.SetDown(false)
	for _, f := range s.wait(told, n) {
		s.must(f.err)
	}
	s.exactly(l, 1, want)
}

func patienceEnds(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{Patience: moment})
	s.SetDown(true)
	_, err := bus.AppendSync(s.ctx, a, s.message("d"))
	s.refused(err, message.BusUnavailable, "after patience has ended")
	s.SetDown(false)
	s.append(s.appender(l, bus.AppenderOptions{}), s.message("d")) // with the usual patience: the engine takes its time to come back
}

func closeWrites(s *scene) {
	const n = 100
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	told := newFates(n)
	var want []message.ID
	for i := range n {
		m := s.message("d")
		want = append(want, m.ID)
		s.must(a.Append(s.ctx, m, told, uint64(i)))
	}
	s.must(a.Close(s.ctx))
	for done := 0; done < n; {
		select {
		case f := <-told:
			s.must(f.err)
			if !f.settled {
				done++
			}
		default:
			s.Fatalf("close returned when %d of %d completions were told", done, n)
		}
	}
	s.is(a.Append(s.ctx, s.message("d"), nil, 0), bus.ErrClosed, "append after close")
	s.exactly(l, 1, want)
}

func busClosed(s *scene) {
	l := s.log(1)
	a := s.appender(l, bus.AppenderOptions{})
	s.SetDown(true)
	told := newFates(1)
	s.must(a.Append(s.ctx, s.message("d"), told, 0))
	s.must(s.Bus.Close())
	s.is(s.wait(told, 1)[0].err, bus.ErrClosed, "an append under way when the bus was closed")
	s.is(a.Append(s.ctx, s.message("d"), nil, 0), bus.ErrClosed, "append after the bus was closed")
}

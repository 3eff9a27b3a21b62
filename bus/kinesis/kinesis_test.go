package kinesis

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/message"
)

// store is a copier's state: what is set counts once it is committed.
type store struct{ kept, fresh map[string][]byte }

func newStore() *store { return &store{map[string][]byte{}, map[string][]byte{}} }

func (s *store) Get(key []byte) ([]byte, error) {
	if v, ok := s.fresh[string(key)]; ok {
		return v, nil
	}
	return s.kept[string(key)], nil
}
func (s *store) Set(key, value []byte) { s.fresh[string(key)] = value }
func (s *store) commit()               { maps.Copy(s.kept, s.fresh); clear(s.fresh) }
func (s *store) clone() *store         { return &store{maps.Clone(s.kept), map[string][]byte{}} }

// scene is a source, a fake and the Kinesis log over them.
type scene struct {
	*testing.T
	f      *fake
	inner  *mem.Bus
	b      *Bus
	l      *Log
	source bus.Log
	door   bus.Appender
	st     *store
	copied bus.Position
	n      int
}

func newScene(t *testing.T, shards int, o Options) *scene {
	s := &scene{T: t, f: newFake(shards), inner: mem.New(mem.Options{MaxBatch: 8 << 20}), st: newStore()}
	o.Stream, o.Region, o.Source, o.Log = "s", "eu-north-1", "data_platform", slog.New(slog.DiscardHandler)
	if o.Endpoint == "" {
		o.HTTP = s.f
	}
	o.Credentials = credentials.NewStaticCredentialsProvider("id", "secret", "")
	var err error
	s.b, err = Over(t.Context(), s.inner, o)
	s.must(err)
	t.Cleanup(func() { s.b.Close() })
	s.source, err = s.b.Log(t.Context(), "data_platform", bus.LogOptions{})
	s.must(err)
	s.l, err = s.b.Kinesis(t.Context())
	s.must(err)
	s.door, err = s.source.Appender(t.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(time.Now())})
	s.must(err)
	return s
}

func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) message(device string) *message.Message {
	s.n++
	return &message.Message{ID: message.NewID(time.Now()), Subject: message.NewSubject("data_platform", "t", device), Device: device, Data: fmt.Appendf(nil, "%d", s.n)}
}

// say appends messages of so many devices in turn, a batch each, and gives their ids by device.
func (s *scene) say(n, devices int) map[string][]message.ID {
	s.Helper()
	ids := map[string][]message.ID{}
	for i := range n {
		m := s.message(fmt.Sprint("d-", i%devices))
		s.tell(m)
		ids[m.Device] = append(ids[m.Device], m.ID)
	}
	return ids
}

func (s *scene) tell(m *message.Message) {
	s.Helper()
	_, err := bus.AppendSync(s.Context(), s.door, m)
	s.must(err)
}

// copy copies what the source has behind what was copied.
func (s *scene) copy() {
	s.Helper()
	s.must(s.copyWith(s.st, &s.copied, true))
}

func (s *scene) copyWith(st *store, from *bus.Position, patient bool) error {
	info, err := s.source.Info(s.Context())
	if err != nil {
		return err
	}
	p := info.Generations[0].Partitions[0]
	from.Generation = 1
	r, err := s.source.Reader(s.Context(), *from)
	if err != nil {
		return err
	}
	defer r.Close()
	for from.Sequence < p.Last {
		b, err := r.Next(s.Context())
		if err != nil {
			return err
		}
		var committed func()
		for {
			var err error
			if committed, err = s.l.Append(s.Context(), st, b); err == nil {
				break
			}
			if !patient {
				return err
			}
		}
		st.commit()
		*from = b.Position
		committed()
	}
	return nil
}

// read reads all partitions, each from a place, until n messages were read, and gives them by device.
func (s *scene) read(n int, from map[uint32]bus.Position) map[string][]message.ID {
	s.Helper()
	ids := map[string][]message.ID{}
	type one struct {
		b   bus.Stored
		err error
	}
	all := make(chan one)
	ctx, cancel := context.WithTimeout(s.Context(), 10*time.Minute)
	defer cancel()
	for part := range uint32(s.l.tokens) {
		at, ok := from[part]
		if !ok {
			at = bus.Position{Generation: 1, Partition: part}
		}
		r, err := s.l.Reader(ctx, at)
		s.must(err)
		defer r.Close()
		go func() {
			for {
				b, err := r.Next(ctx)
				select {
				case all <- one{b, err}:
				case <-ctx.Done():
					return
				}
				if err != nil {
					return
				}
			}
		}()
	}
	running := map[uint32]uint64{}
	for got := 0; got < n; {
		x := <-all
		s.must(x.err)
		s.must(x.b.Err)
		if was, ok := running[x.b.Position.Partition]; ok && x.b.Batch.Running != was {
			s.Fatalf("partition %d: a batch says that %d messages are before it, and there were %d", x.b.Position.Partition, x.b.Batch.Running, was)
		}
		running[x.b.Position.Partition] = x.b.Batch.Running + uint64(x.b.Batch.Count)
		if from != nil {
			from[x.b.Position.Partition] = x.b.Position
		}
		c := x.b.Batch.Cursor()
		var m message.Message
		for c.Next(&m) {
			ids[m.Device] = append(ids[m.Device], m.ID)
			got++
		}
		s.must(c.Err())
	}
	return ids
}

func (s *scene) same(got, want map[string][]message.ID) {
	s.Helper()
	if !maps.EqualFunc(got, want, func(a, b []message.ID) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
		s.Errorf("read other messages than were said, or in another order:\n%v\n%v", got, want)
	}
}

func TestCopyIsReadOnceAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 3, Options{Config: Config{Tokens: 8}})
		want := s.say(300, 20)
		s.copy()
		s.same(s.read(300, nil), want)
		if s.f.most != 1 {
			t.Errorf("%d records of one partition were under way at once", s.f.most)
		}
	})
}

func TestPutOutlivesWhatKinesisDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2, Options{Config: Config{Tokens: 4}})
		want := s.say(200, 11)
		s.f.set(func() {
			s.f.refuse, s.f.lose = 30, 5
			s.f.deny["PutRecords"] = []string{"ProvisionedThroughputExceededException", "InternalFailure", "LimitExceededException"}
		})
		s.copy()
		if n := len(s.f.all()); n <= 200 {
			t.Errorf("%d records are in the stream; want some twice, since answers were lost", n)
		}
		s.same(s.read(200, nil), want)
	})
}

func TestPutGivesUpWithTheFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 2}})
		want := s.say(5, 3)
		s.f.set(func() { s.f.down = true })
		if err := s.copyWith(s.st, &s.copied, false); err == nil {
			t.Fatal("copied while Kinesis was away")
		}
		if s.copied.Sequence != 0 || len(s.st.kept) != 0 {
			t.Errorf("what was not put counts as copied: %v", s.copied)
		}
		s.f.set(func() { s.f.down = false })
		s.copy()
		s.same(s.read(5, nil), want)
	})
}

func TestALargeBatchGetsThroughANarrowStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 16}})
		w, err := s.source.Writer(t.Context(), bus.WriterOptions{Name: "door", Owner: message.NewID(time.Now())})
		s.must(err)
		want := map[string][]message.ID{}
		var batch []*message.Message
		for i := range 14 { // 7 MB, of which the stream takes one a second
			m := s.message(fmt.Sprint("d-", i))
			m.Data = make([]byte, 500_000)
			batch, want[m.Device] = append(batch, m), []message.ID{m.ID}
		}
		_, err = w.Write(t.Context(), bus.Position{}, nil, batch)
		s.must(err)
		s.f.set(func() { s.f.rate, s.f.asOf = 1<<20, time.Now() })
		s.must(s.copyWith(s.st, &s.copied, false))
		s.same(s.read(14, nil), want)
	})
}

func TestCopyMadeTwiceHasTheSameBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2, Options{Config: Config{Tokens: 4}})
		want := s.say(50, 7)
		before, at := s.st.clone(), s.copied
		s.copy()
		first := map[string]string{}
		for _, r := range s.f.all() {
			first[r.key] = string(r.data)
		}
		want = add(want, s.say(50, 7))
		s.must(s.copyWith(before, &at, true)) // another process, which had not heard of it
		for _, r := range s.f.all() {
			if was, ok := first[r.key]; ok && was != string(r.data) {
				t.Fatalf("record %s was put with other bytes", r.key)
			}
		}
		s.copy() // and the first one does the rest, too
		s.same(s.read(100, nil), want)
	})
}

func add(a, b map[string][]message.ID) map[string][]message.ID {
	for k, v := range b {
		a[k] = append(a[k], v...)
	}
	return a
}

func TestReaderRenewsExpiredIterators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 2}})
		r, err := s.l.Reader(t.Context(), bus.Position{Generation: 1, Partition: bus.PartitionOf("d-0", 2)})
		s.must(err)
		defer r.Close()
		for range 5 {
			s.say(1, 1)
			s.copy()
			b, err := r.Next(t.Context())
			s.must(err)
			s.must(b.Err)
			s.f.set(func() {
				s.f.epoch++
				s.f.deny["GetRecords"] = []string{"ProvisionedThroughputExceededException", "InternalFailure"}
			})
		}
	})
}

func TestReshardKeepsOrder(t *testing.T) {
	for _, live := range []bool{false, true} {
		t.Run(fmt.Sprint("live=", live), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newScene(t, 2, Options{Config: Config{Tokens: 8}})
				want := map[string][]message.ID{}
				got := make(chan map[string][]message.ID, 1)
				if live {
					go func() { got <- s.read(400, nil) }()
				}
				for i := range 4 {
					want = add(want, s.say(100, 20))
					s.copy()
					switch i {
					case 0:
						s.f.split(0)
						s.f.set(func() { s.f.lose = 3 }) // so that records are in the parent and in a child
					case 1:
						s.f.split(1)
					case 2:
						s.f.merge(3, 4)
						s.f.merge(2, 6)
					}
				}
				if !live {
					go func() { got <- s.read(400, nil) }()
				}
				s.same(<-got, want)
			})
		})
	}
}

func TestReaderBeginsInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 2, Options{Config: Config{Tokens: 4}})
		at := map[uint32]bus.Position{}
		s.say(2000, 9)
		s.copy()
		s.read(2000, at)
		for range 3 { // anchors are left as time goes by
			time.Sleep(anchorEvery)
			s.say(30, 9)
			s.copy()
			s.read(30, at)
			time.Sleep(anchorIdle)
		}
		// A reader that lives long leaves anchors.
		part := bus.PartitionOf("d-0", 4)
		r, err := s.l.Reader(t.Context(), bus.Position{Generation: 1, Partition: part})
		s.must(err)
		for {
			b, err := r.Next(t.Context())
			s.must(err)
			if b.Position.Sequence == at[part].Sequence {
				break
			}
		}
		brief, cancel := context.WithTimeout(t.Context(), 2*anchorIdle)
		if _, err := r.Next(brief); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		cancel()
		r.Close()
		want := s.say(40, 9)
		s.copy()
		reads := s.f.count("GetRecords")
		delete(want, "")
		r, err = s.l.Reader(t.Context(), at[part])
		s.must(err)
		defer r.Close()
		if _, err := r.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := s.f.count("GetRecords") - reads; n > 5 {
			t.Errorf("it took %d reads to come to the place; want an anchor near it", n)
		}
		s.same(s.read(40, at), want)
	})
}

func TestReaderTellsWhatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 1}})
		s.say(10, 1)
		s.copy()
		slow, err := s.l.Reader(t.Context(), bus.Position{Generation: 1})
		s.must(err)
		defer slow.Close()
		first, err := slow.Next(t.Context())
		s.must(err)
		s.f.purge(0, 5)
		r, err := s.l.Reader(t.Context(), first.Position)
		s.must(err)
		defer r.Close()
		if _, err := r.Next(t.Context()); !errors.Is(err, bus.ErrPurged) {
			t.Fatalf("got error %v behind a place that is gone, want ErrPurged", err)
		}
		if _, err := r.Next(t.Context()); !errors.Is(err, bus.ErrPurged) {
			t.Fatalf("got error %v the second time, want ErrPurged", err)
		}
		r, err = s.l.Reader(t.Context(), bus.Position{Generation: 1})
		s.must(err)
		defer r.Close()
		b, err := r.Next(t.Context())
		s.must(err)
		if b.Batch.Number != 6 {
			t.Errorf("the oldest record is number %d, want 6", b.Batch.Number)
		}
		synctest.Wait()
		info, err := s.l.Info(t.Context())
		s.must(err)
		if p := info.Generations[0].Partitions[0]; p.First != b.Position.Sequence || p.Last != 10<<chunkBits {
			t.Errorf("the partition is %+v, want it to begin at %d", p, b.Position.Sequence)
		}
		for seq := uint64(2); seq <= 10; seq++ { // what was at hand may still come; nothing is left out
			b, err := slow.Next(t.Context())
			if errors.Is(err, bus.ErrPurged) {
				break
			}
			s.must(err)
			if b.Position.Sequence != seq<<chunkBits {
				t.Fatalf("read %d, want %d or an error", b.Position.Sequence, seq<<chunkBits)
			}
		}
	})
}

func TestLargeMessagesComeInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 2}})
		want := s.say(3, 1)
		big := s.message("d-0")
		big.Data = make([]byte, 3<<20)
		for i := range big.Data {
			big.Data[i] = byte(rand.Uint32())
		}
		_, err := bus.AppendSync(t.Context(), s.door, big)
		s.must(err)
		want["d-0"] = append(want["d-0"], big.ID)
		want = add(want, s.say(3, 1))
		s.f.set(func() { s.f.lose = 4 }) // pieces twice
		s.copy()
		s.same(s.read(7, nil), want)
	})
}

func TestManyMessagesOfATokenMakeManyRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 2}, RecordMax: 4096})
		want := map[string][]message.ID{}
		var list []*message.Message
		for i := range 200 {
			m := s.message(fmt.Sprint("d-", i%3))
			m.Data = make([]byte, 100)
			list = append(list, m)
			want[m.Device] = append(want[m.Device], m.ID)
		}
		w, err := s.source.Writer(t.Context(), bus.WriterOptions{Name: "w", Owner: message.NewID(time.Now())})
		s.must(err)
		_, err = w.Write(t.Context(), bus.Position{}, nil, list)
		s.must(err)
		s.copy()
		if n := len(s.f.all()); n < 6 {
			t.Errorf("200 messages made %d records of 4 KiB", n)
		}
		s.same(s.read(200, nil), want)
	})
}

// readsBroken reads three records, of which some are broken on their way: those are given in their places, with an error.
func readsBroken(t *testing.T, broken func(seq uint64) bool) *scene {
	s := newScene(t, 1, Options{Config: Config{Tokens: 1}})
	s.f.change = func(data []byte, key string) []byte {
		if p, _ := parsePlace(key); broken(p.seq) {
			data[len(data)-1] ^= 1
		}
		return data
	}
	s.say(3, 1)
	s.copy()
	r, err := s.l.Reader(t.Context(), bus.Position{Generation: 1})
	s.must(err)
	defer r.Close()
	for seq := uint64(1); seq <= 3; seq++ {
		b, err := r.Next(t.Context())
		s.must(err)
		if b.Position.Sequence != seq<<chunkBits || (b.Err != nil) != broken(seq<<chunkBits) {
			t.Errorf("read %d with error %v", b.Position.Sequence, b.Err)
		}
	}
	return s
}

func TestUnreadableRecordIsGivenInItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		readsBroken(t, func(seq uint64) bool { return seq == 2<<chunkBits })
	})
}

func TestUnreadableLastRecordIsGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := readsBroken(t, func(seq uint64) bool { return seq >= 2<<chunkBits })
		b, err := s.l.Fetch(t.Context(), bus.Position{Generation: 1, Sequence: 3 << chunkBits})
		if err != nil || b.Err == nil {
			t.Errorf("fetched it as %v, %v", b.Err, err)
		}
	})
}

// TestRecordThatSaysItIsOursTakesNothingAway: somebody else writes records whose keys say that they are ours, of batches that will never be, of
// one that will be, and of one that is behind them in the stream. All messages are read, once.
func TestRecordThatSaysItIsOursTakesNothingAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 1}})
		var said strings.Builder
		s.l.o.Log = slog.New(slog.NewTextHandler(&said, nil))
		forge := func(seqs ...uint64) {
			s.f.set(func() {
				for _, seq := range seqs {
					s.f.next++
					p := place{source: s.source.ID(), gen: 1, seq: seq, pieces: 1}
					shard := s.f.shards[0]
					shard.records = append(shard.records, fakeRecord{fmt.Sprint(s.f.next), p.String(), []byte("garbage")})
				}
			})
		}
		want := s.say(2, 1)
		s.copy()
		forge(1<<63, 3<<chunkBits, 5<<chunkBits)
		want = add(want, s.say(3, 1))
		s.copy()
		forge(1<<62, 7<<chunkBits)
		s.same(s.read(5, nil), want)
		late := map[uint32]bus.Position{0: {Generation: 1, Sequence: 5 << chunkBits}}
		want = s.say(2, 1)
		s.copy()
		s.same(s.read(2, late), want)
		s.b.Close() // so that nobody writes there any more
		if n := strings.Count(said.String(), "so it is passed over"); n < 2 || !strings.Contains(said.String(), "sequence=903") {
			t.Errorf("it is told as\n%s", said.String())
		}
	})
}

func TestReaderGoesOnWhereNoIteratorCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 1}})
		s.f.cut = 3
		r, err := s.l.Reader(t.Context(), bus.Position{Generation: 1})
		s.must(err)
		defer r.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for seq := uint64(1); seq <= 5; seq++ {
			s.say(1, 1)
			s.copy()
			b, err := r.Next(ctx)
			s.must(err)
			if b.Position.Sequence != seq<<chunkBits {
				t.Fatalf("read %d, want %d", b.Position.Sequence, seq<<chunkBits)
			}
		}
	})
}

func TestStreamMadeAnewIsAnotherLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 1}})
		s.say(3, 1)
		s.copy()
		at := map[uint32]bus.Position{}
		s.read(3, at)
		id := s.l.ID()
		s.f.set(func() {
			s.f.none, s.f.created, s.f.shards = true, s.f.created.Add(time.Hour), nil
			s.f.add(bigZero(), lastKey())
		})
		s.say(1, 1)
		if err := s.copyWith(s.st, &s.copied, false); err == nil {
			t.Fatal("copied into a stream that is not there")
		}
		s.f.set(func() { s.f.none = false })
		s.copy()
		if s.l.ID() == id {
			t.Error("a stream that was made anew is taken for the former one")
		}
		if _, err := s.l.Reader(t.Context(), at[0]); !errors.Is(err, bus.ErrTruncated) {
			t.Errorf("got error %v for a place in the former stream, want ErrTruncated", err)
		}
	})
}

func TestEndpointIsAnAddressWithoutASecret(t *testing.T) {
	for endpoint, good := range map[string]bool{"": true, "http://127.0.0.1:4568": true, "https://kinesis.example": true,
		"http://u:sesame@127.0.0.1:4568": false, "http://u:sesame@%zz": false, "127.0.0.1:4568": false, "ftp://x": false} {
		err := Config{Stream: "s", Endpoint: endpoint}.Check()
		if (err == nil) != good || err != nil && strings.Contains(err.Error(), "sesame") {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}

func TestTokensCannotChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 4}})
		o := s.b.o
		o.Tokens = 8
		b, err := Over(t.Context(), s.inner, o)
		s.must(err)
		if _, err := b.Log(t.Context(), "data_platform.kinesis", bus.LogOptions{}); err == nil {
			t.Error("another number of tokens was taken")
		}
		o.Tokens = 0
		b, err = Over(t.Context(), s.inner, o)
		s.must(err)
		l, err := b.Kinesis(t.Context())
		s.must(err)
		defer l.close()
		if l.tokens != 4 {
			t.Errorf("%d tokens, want the 4 it was begun with", l.tokens)
		}
	})
}

func TestCopyCannotBeWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{})
		_, err := s.l.Appender(t.Context(), bus.AppenderOptions{})
		errs := []error{err, s.l.Trim(t.Context(), bus.Position{}), s.l.Repartition(t.Context(), 2)}
		_, err = s.l.Writer(t.Context(), bus.WriterOptions{})
		errs = append(errs, err)
		_, err = s.l.Fence(t.Context(), "x", message.ID{})
		for _, err := range append(errs, err) {
			if !errors.Is(err, bus.ErrCopy) {
				t.Errorf("got error %v, want ErrCopy", err)
			}
		}
	})
}

func TestGenerationEndsWhenItIsCopied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 1}})
		s.say(2, 1)
		r, err := s.l.Reader(t.Context(), bus.Position{Generation: 1})
		s.must(err)
		defer r.Close()
		s.must(s.source.Repartition(t.Context(), 2))
		brief, cancel := context.WithTimeout(t.Context(), time.Minute)
		if _, err := r.Next(brief); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v before anything was copied", err)
		}
		cancel()
		s.copy()
		for range 2 {
			_, err := r.Next(t.Context())
			s.must(err)
		}
		if _, err := r.Next(t.Context()); !errors.Is(err, bus.ErrSealed) {
			t.Errorf("got error %v at the end, want ErrSealed", err)
		}
	})
}

func TestReaderFarBehindKeepsNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 1}})
		s.say(3000, 1)
		s.copy()
		at := map[uint32]bus.Position{}
		s.read(3000, at)
		live, err := s.l.Reader(t.Context(), at[0])
		s.must(err)
		defer live.Close()
		next := func() {
			t.Helper()
			s.say(1, 1)
			s.copy()
			_, err := live.Next(t.Context())
			s.must(err)
		}
		next()
		behind, err := s.l.Reader(t.Context(), bus.Position{Generation: 1})
		s.must(err)
		defer behind.Close()
		_, err = behind.Next(t.Context())
		s.must(err)
		for range 5 {
			began := time.Now()
			if next(); time.Since(began) > 3*readEvery {
				t.Errorf("who is at the end waited %s for one far behind", time.Since(began))
			}
		}
		for range 3005 {
			_, err = behind.Next(t.Context())
			s.must(err)
		}
		next() // both read together now
		reads := s.f.count("GetRecords")
		time.Sleep(time.Minute)
		s.l.mu.Lock()
		lanes := len(s.l.shards.byID["shardId-000000000000"].lanes)
		s.l.mu.Unlock()
		if n := s.f.count("GetRecords") - reads; lanes != 1 || n > int(time.Minute/readEvery)+1 {
			t.Errorf("%d lanes read %d times in a minute; want one, that keeps what Kinesis allows", lanes, n)
		}
	})
}

func TestFetchFindsWhatIsThereAndEndsWhereItIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, 1, Options{Config: Config{Tokens: 1}})
		s.say(100, 1)
		s.copy()
		b, err := s.l.Fetch(t.Context(), bus.Position{Generation: 1, Sequence: 77 << chunkBits})
		s.must(err)
		if b.Batch.Number != 77 {
			t.Errorf("fetched number %d, want 77", b.Batch.Number)
		}
		s.f.purge(0, 100)
		for _, seq := range []uint64{1, 77 << chunkBits, 100 << chunkBits, 101 << chunkBits} {
			if _, err := s.l.Fetch(t.Context(), bus.Position{Generation: 1, Sequence: seq}); !errors.Is(err, bus.ErrNotFound) {
				t.Errorf("got error %v for %d, which is gone; want ErrNotFound", err, seq)
			}
		}
		s.f.set(func() { s.f.down = true })
		if _, err := s.l.Fetch(t.Context(), bus.Position{Generation: 1, Sequence: 100 << chunkBits}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got error %v while Kinesis is away, want that it took too long", err)
		}
	})
}

func BenchmarkRegroup(b *testing.B) {
	var list message.Builder
	list.Reset(message.Header{}, 1<<20)
	for i := range 1000 {
		list.Add(&message.Message{ID: message.NewID(time.Now()), Subject: message.NewSubject("data_platform", "t", "d"), Device: fmt.Sprint("d-", i%200), Data: make([]byte, 200)})
	}
	raw := list.Seal(1, 0, 0, message.NewID(time.Now()))
	batch, err := message.ParseBatch(raw)
	if err != nil {
		b.Fatal(err)
	}
	s := bus.Stored{Position: bus.Position{Log: message.NewID(time.Now()), Generation: 1, Sequence: 1}, Appender: "door", Batch: batch}
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := regroup(newStore(), &s, 16, 1<<20, false); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

package nats

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

func openLog(t testing.TB, b *Bus) *Log {
	t.Helper()
	l, err := b.Log(t.Context(), "device", bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return l.(*Log)
}

func openAppender(t testing.TB, l *Log, name string) bus.Appender {
	t.Helper()
	a, err := l.Appender(t.Context(), bus.AppenderOptions{Name: name, Owner: message.NewID(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func appendOne(t testing.TB, a bus.Appender, n int) bus.Position {
	t.Helper()
	p, err := bus.AppendSync(t.Context(), a, say("device.d-1.telemetry", n))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestBatchThatTheServerRefusesIsGivenAsCorrupt flips a byte on the disk, which the server's checksum notices: it says
// that there is no such message, and the reader must neither stop nor leap over it.
func TestBatchThatTheServerRefusesIsGivenAsCorrupt(t *testing.T) {
	s := &stand{t: t, dir: t.TempDir()}
	l := openLog(t, s.open())
	a := openAppender(t, l, "door")
	for n := range 3 {
		appendOne(t, a, n)
	}
	m, err := l.direct(t.Context(), 1, 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	s.setDown(true)
	s.patch(streamName("device", 1, 0), m, false)
	l.feed(1, 0).forget(3)
	s.setDown(false)
	r, err := l.Reader(t.Context(), bus.Position{Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for want := uint64(1); want <= 3; want++ {
		got, err := r.Next(ctx)
		if err != nil || got.Position.Sequence != want {
			t.Fatalf("want sequence %d, got %+v, %v", want, got.Position, err)
		}
		var fault *message.CorruptError
		if errors.As(got.Err, &fault) != (want == 2) {
			t.Fatalf("sequence %d is given with error %v", want, got.Err)
		}
	}
	// And the door goes on.
	if p := appendOne(t, a, 3); p.Sequence != 4 {
		t.Fatalf("the next batch is at %d, want 4", p.Sequence)
	}
}

// TestReaderIsToldWhenTheLogIsCutOff loses the end of the log while the server is away, as a disk can that lied about
// its syncs: what was read already must be missed aloud, and what is written next must be read.
func TestReaderIsToldWhenTheLogIsCutOff(t *testing.T) {
	s := &stand{t: t, dir: t.TempDir()}
	l := openLog(t, s.open())
	a := openAppender(t, l, "door")
	for n := range 3 {
		appendOne(t, a, n)
	}
	readers := make([]bus.Reader, 2) // one that has read batch 1, one that has read all
	for i, from := range []uint64{1, 3} {
		r, err := l.Reader(t.Context(), bus.Position{Generation: 1, Sequence: from})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		readers[i] = r
	}
	s.setDown(true)
	blocks, err := filepath.Glob(filepath.Join(s.dir, "jetstream", "*", "streams", streamName("device", 1, 0), "msgs", "1.blk"))
	if err != nil || len(blocks) != 1 {
		t.Fatal(blocks, err)
	}
	info, err := os.Stat(blocks[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(blocks[0], info.Size()/3); err != nil { // behind the first of three equal records
		t.Fatal(err)
	}
	s.loseIndex(streamName("device", 1, 0))
	s.setDown(false)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := readers[1].Next(ctx); !errors.Is(err, bus.ErrTruncated) {
		t.Fatalf("the reader beyond the end says %v, want ErrTruncated", err)
	}
	if p := appendOne(t, a, 9); p.Sequence != 2 {
		t.Fatalf("the log was not cut off: the next batch is at %d; this tests nothing", p.Sequence)
	}
	got, err := readers[0].Next(ctx)
	if err != nil || got.Err != nil || got.Position.Sequence != 2 {
		t.Fatalf("the reader before the end reads %+v, %v", got.Position, err)
	}
	var first message.Message
	if c := got.Batch.Cursor(); !c.Next(&first) || string(first.Data) != "9" {
		t.Fatalf("it reads %q, which is no more in the log", first.Data)
	}
}

// TestDoorOpensBehindARowWhoseLastBatchIsGarbage is for a row whose account is lost: it must not stay shut for ever.
func TestDoorOpensBehindARowWhoseLastBatchIsGarbage(t *testing.T) {
	b := open(t, t.TempDir())
	l := openLog(t, b)
	a := openAppender(t, l, "door")
	appendOne(t, a, 0)
	if err := a.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.nc().Request(rowSubject("device", 1, 0, "door"), []byte("garbage"), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	p := appendOne(t, openAppender(t, l, "door"), 1)
	got, err := l.Fetch(t.Context(), p)
	if err != nil || p.Sequence != 3 || got.Batch.Number != 3 || got.Batch.Running != 1 {
		t.Fatalf("the row goes on at %d with number %d behind %d messages (%v); want 3, 3, 1", p.Sequence, got.Batch.Number, got.Batch.Running, err)
	}
	bad, err := l.Fetch(t.Context(), bus.Position{Generation: 1, Sequence: 2})
	var fault *message.CorruptError
	if err != nil || !errors.As(bad.Err, &fault) {
		t.Fatalf("the garbage is given as %+v, %v", bad, err)
	}
}

// TestARowsAccountIsFoundHoweverBusyItsNeighboursAre has more between the row's batches than anybody would walk through.
func TestARowsAccountIsFoundHoweverBusyItsNeighboursAre(t *testing.T) {
	b := open(t, t.TempDir())
	l := openLog(t, b)
	a := openAppender(t, l, "door")
	appendOne(t, a, 0)
	appendOne(t, a, 1)
	if err := a.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 1500 {
		if err := b.nc().Publish(rowSubject("device", 1, 0, "neighbour"), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := b.nc().Request(rowSubject("device", 1, 0, "door"), []byte("garbage"), 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	p := appendOne(t, openAppender(t, l, "door"), 2)
	got, err := l.Fetch(t.Context(), p)
	if err != nil || got.Batch.Number != 5 || got.Batch.Running != 2 {
		t.Fatalf("the row goes on with number %d behind %d messages (%v); want 5 and 2", got.Batch.Number, got.Batch.Running, err)
	}
}

// TestWhatADroppedGenerationLeftIsDeletedAtTheNextOpening is for a process that died between the two.
func TestWhatADroppedGenerationLeftIsDeletedAtTheNextOpening(t *testing.T) {
	b := open(t, t.TempDir())
	l := openLog(t, b)
	if err := l.Repartition(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if err := l.change(t.Context(), func(m *logMeta) bool { m.find(1, 0).Gone = true; return true }); err != nil {
		t.Fatal(err)
	}
	if err := l.openOrCreate(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := b.js().Stream(t.Context(), streamName("device", 1, 0)); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("the stream of the dropped generation: %v", err)
	}
}

// TestLostConfirmationOffersTheSameBytes watches what goes to the engine while no answer comes back.
func TestLostConfirmationOffersTheSameBytes(t *testing.T) {
	b := open(t, t.TempDir())
	l := openLog(t, b)
	a := openAppender(t, l, "door")
	real := b.nc().RequestMsgWithContext
	var offers []string
	b.request = func(ctx context.Context, m *natsgo.Msg) (*natsgo.Msg, error) {
		if m.Subject != rowSubject("device", 1, 0, "door") {
			return real(ctx, m)
		}
		offers = append(offers, m.Header.Get("Nats-Expected-Last-Subject-Sequence")+string(m.Data))
		if len(offers) < 3 {
			return nil, natsgo.ErrTimeout // did not even arrive
		}
		answer, err := real(ctx, m)
		if len(offers) == 3 {
			return nil, natsgo.ErrTimeout
		}
		return answer, err
	}
	if p := appendOne(t, a, 0); p.Sequence != 1 {
		t.Fatalf("stored at %d, want 1", p.Sequence)
	}
	for i, o := range offers {
		if o != offers[0] {
			t.Fatalf("offer %d is another than the first", i)
		}
	}
	if len(offers) != 4 {
		t.Fatalf("%d offers, want 4", len(offers))
	}
}

// TestReaderThatFallsBehindTheRingReadsTheLog makes the ring forget, and reads from the beginning.
func TestReaderThatFallsBehindTheRingReadsTheLog(t *testing.T) {
	b := open(t, t.TempDir())
	l := openLog(t, b)
	a := openAppender(t, l, "door")
	for n := range 200 {
		appendOne(t, a, n)
		if n == 150 {
			l.feed(1, 0).forget(151)
		}
	}
	if _, ok := l.feed(1, 0).get(1); ok {
		t.Fatal("the ring did not forget; this tests nothing")
	}
	if _, ok := l.feed(1, 0).get(200); !ok {
		t.Fatal("the ring does not hold what was written last; this tests nothing")
	}
	for n, m := range read(t, l, bus.Position{}, 200) {
		if string(m.Data) != string(say("x", n).Data) {
			t.Fatalf("message %d is %q", n, m.Data)
		}
	}
}

// batchOf is a batch with a mark of so many bytes.
func batchOf(t *testing.T, seq uint64, size int) bus.Stored {
	t.Helper()
	var builder message.Builder
	builder.Reset(message.Header{Mark: make([]byte, size)}, 0)
	b, err := message.ParseBatch(builder.Seal(seq, 0, 0, message.ID{1}))
	if err != nil {
		t.Fatal(err)
	}
	return bus.Stored{Position: bus.Position{Sequence: seq}, Batch: b}
}

func TestRingIsBounded(t *testing.T) {
	f := &feed{ring: map[uint64]bus.Stored{}, woken: make(chan struct{})}
	for seq := uint64(1); seq <= 100; seq++ {
		f.put(batchOf(t, seq, 1<<20))
		if f.bytes > ringBytes {
			t.Fatalf("the ring holds %d bytes, more than %d", f.bytes, ringBytes)
		}
	}
	if _, ok := f.get(100); !ok || len(f.ring) != len(f.order) || len(f.ring) < 8 {
		t.Fatalf("the ring holds %d batches in %d places", len(f.ring), len(f.order))
	}
}

// TestRingForgetsWhatIsOld: a log in which little is said fills no memory with what everybody has read.
func TestRingForgetsWhatIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &feed{ring: map[uint64]bus.Stored{}, woken: make(chan struct{})}
		for seq := uint64(1); seq <= 100; seq++ {
			f.put(batchOf(t, seq, 100))
			time.Sleep(time.Second)
		}
		const held = uint64(ringAge/time.Second) + 1
		_, first := f.get(100 - held)
		_, oldest := f.get(101 - held)
		if first || !oldest || len(f.ring) != int(held) || len(f.order) != int(held) {
			t.Errorf("the ring holds %d batches in %d places, want the last %d", len(f.ring), len(f.order), held)
		}
	})
}

// TestListeningWantsTLSAndCredentials: nobody opens the store to the network by mistake.
func TestListeningWantsTLSAndCredentials(t *testing.T) {
	for _, o := range []Options{
		{Listen: "127.0.0.1:0"},
		{Listen: "127.0.0.1:0", User: "u", Password: "p"},
	} {
		o.Dir = t.TempDir()
		if b, err := Open(t.Context(), o); err == nil {
			b.Close()
			t.Errorf("%+v was opened", o)
		}
	}
}

func TestBrokenServerIsStartedAgainEverMoreRarely(t *testing.T) {
	var d doctor
	now := time.Unix(0, 0)
	var restarts []time.Duration
	for range 60 * 60 {
		if d.restart(now, true, false) {
			restarts = append(restarts, now.Sub(time.Unix(0, 0)))
		}
		now = now.Add(time.Second)
	}
	if len(restarts) < 5 || len(restarts) > 25 || restarts[0] != restartAfter {
		t.Fatalf("in an hour it was started again at %v", restarts)
	}
	d = doctor{}
	for range 600 {
		if d.restart(now, true, true) {
			t.Fatal("it was started again on a full disk")
		}
		now = now.Add(time.Second)
	}
	if !d.restart(now, true, false) {
		t.Fatal("it was not started again when there was space")
	}
}

// TestOvertakenInOnePartitionIsFencedInAll: the seal is met in one partition, and the other owner was in another, where
// nothing of ours was pending.
func TestOvertakenInOnePartitionIsFencedInAll(t *testing.T) {
	b := open(t, t.TempDir())
	l, err := b.Log(t.Context(), "device", bus.LogOptions{Partitions: 2})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[uint32]string{}
	for i := 0; len(keys) < 2; i++ {
		k := string(rune('a' + i))
		keys[bus.PartitionOf(k, 2)] = k
	}
	to := func(part uint32) *message.Message {
		m := say("device.x.telemetry", 0)
		m.Device = keys[part]
		return m
	}
	old, err := l.Appender(t.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(time.Now()), Standing: func() bool { return false }})
	if err != nil {
		t.Fatal(err)
	}
	fresh := openAppender(t, l.(*Log), "door")
	if _, err := bus.AppendSync(t.Context(), fresh, to(1)); err != nil {
		t.Fatal(err)
	}
	if err := l.Repartition(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.AppendSync(t.Context(), old, to(0)); message.ReasonOf(err, 0) != message.Fenced {
		t.Fatalf("the owner that was overtaken is told %v, want fenced", err)
	}
}

// Package bustest holds an engine to the promises of package bus. Every engine's own tests call [Run].
package bustest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// Engine is a fresh, empty engine and the faults that can be made in it; nil where it cannot. Whoever opens it closes
// it with t.Cleanup, and every bus that Reopen gave.
type Engine struct {
	Bus bus.Bus
	// Reopen closes Bus as the end of a process does, and opens the same data anew.
	Reopen func() bus.Bus
	// SetDown takes the engine away or brings it back.
	SetDown func(down bool)
	// LoseAcks makes the next n batches be stored without a confirmation.
	LoseAcks func(n int)
	// Corrupt changes a byte of a stored batch in partition 0 of a log, so that it cannot be read any more.
	Corrupt func(log string, sequence uint64)
	// SetSpace says what is left to write on.
	SetSpace func(bus.Space)
}

// Features say which of an Engine's faults must be there. Promises that can only be seen with others are not tested.
type Features struct {
	// Bubble runs each promise in a bubble of testing/synctest, where time passes by itself. It is for an engine that
	// lives in this process's memory alone.
	Bubble bool
	// Copied says that the log is read from a copy (bus.Copy) of another engine's, whose promises about writing and keeping
	// are seen with that engine: rows and their owners, fences, trimming, generations, queues, tables, leases. A copy knows
	// no end that must not be passed, since it may lie behind its source.
	Copied                                       bool
	Reopen, SetDown, LoseAcks, Corrupt, SetSpace bool
}

func (f Features) missing(has Features) (names []string) {
	for _, x := range []struct {
		name      string
		want, has bool
	}{
		{"Reopen", f.Reopen, has.Reopen}, {"SetDown", f.SetDown, has.SetDown}, {"LoseAcks", f.LoseAcks, has.LoseAcks},
		{"Corrupt", f.Corrupt, has.Corrupt}, {"SetSpace", f.SetSpace, has.SetSpace},
	} {
		if x.want && !x.has {
			names = append(names, x.name)
		}
	}
	return names
}

// beyondCopies are promises about appending and reading that a copy does not make.
var beyondCopies = []string{"a reader beyond the end is told the log is truncated"}

// promises are all of them, or those of a copy.
func (f Features) promises() []promise {
	if f.Copied {
		return slices.DeleteFunc(slices.Concat(appending(), reading()), func(p promise) bool { return slices.Contains(beyondCopies, p.name) })
	}
	return slices.Concat(appending(), owning(), reading(), trimming(), repartitioning(), queueing(), tabling(), leasing(), fencing(), asking())
}

// promise is one sentence of the contract and how it is seen.
type promise struct {
	name  string
	needs Features
	see   func(s *scene)
}

// Run tests every promise on an engine of its own, in a subtest named as the promise.
func Run(t *testing.T, f Features, open func(t *testing.T) Engine) {
	for _, p := range f.promises() {
		if p.needs.missing(f) != nil {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			see := func(t *testing.T) {
				e := open(t)
				has := Features{Reopen: e.Reopen != nil, SetDown: e.SetDown != nil, LoseAcks: e.LoseAcks != nil, Corrupt: e.Corrupt != nil, SetSpace: e.SetSpace != nil}
				if lacks := f.missing(has); lacks != nil {
					t.Fatalf("the engine promises faults that it does not offer: %v", lacks)
				}
				// Long enough for a slow engine; where it passes, a promise is broken.
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				p.see(&scene{T: t, Engine: e, ctx: ctx, f: f})
			}
			if f.Bubble {
				synctest.Test(t, see)
			} else {
				see(t)
			}
		})
	}
}

// moment is how long nothing must happen to be believed that it does not.
const moment = 300 * time.Millisecond

// scene is one promise's test.
type scene struct {
	*testing.T
	Engine
	ctx context.Context
	f   Features
	n   int // messages minted
}

// must stops the test at an error.
func (s *scene) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// is stops the test where err is not the wanted one.
func (s *scene) is(err, want error, what string) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Fatalf("%s: got error %v, want %v", what, err, want)
	}
}

// refused stops the test where err is not a rejection for the reason.
func (s *scene) refused(err error, r message.Reason, what string) {
	s.Helper()
	var is *message.Rejection
	if !errors.As(err, &is) || is.Reason != r {
		s.Fatalf("%s: got error %v, want a rejection of reason %s", what, err, r)
	}
}

// pass lets time go by, where a promise is about time.
func (s *scene) pass(d time.Duration) { <-time.After(d) }

// brief is a context for what should not happen.
func (s *scene) brief() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.ctx, moment)
}

func (s *scene) log(partitions int) bus.Log {
	s.Helper()
	l, err := s.Bus.Log(s.ctx, "suite", bus.LogOptions{Partitions: partitions})
	s.must(err)
	return l
}

func owner() message.ID { return message.NewID(time.Now()) }

func (s *scene) appender(l bus.Log, o bus.AppenderOptions) bus.Appender {
	s.Helper()
	if o.Name == "" {
		o.Name = "broker"
	}
	if o.Owner.IsZero() {
		o.Owner = owner()
	}
	a, err := l.Appender(s.ctx, o)
	s.must(err)
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		a.Close(ctx)
	})
	return a
}

func (s *scene) writer(l bus.Log, o bus.WriterOptions) bus.Writer {
	s.Helper()
	if o.Name == "" {
		o.Name = "derived"
	}
	if o.Owner.IsZero() {
		o.Owner = owner()
	}
	w, err := l.Writer(s.ctx, o)
	s.must(err)
	s.Cleanup(func() { w.Close() })
	return w
}

func (s *scene) reader(l bus.Log, from bus.Position) bus.Reader {
	s.Helper()
	r, err := l.Reader(s.ctx, from)
	s.must(err)
	s.Cleanup(r.Close)
	return r
}

// message mints a message of a device, with all fields set.
func (s *scene) message(device string) *message.Message {
	now := time.Now()
	s.n++
	return &message.Message{
		ID: message.NewID(now), Trace: message.NewTrace(now), Cause: message.NewID(now), Subject: message.NewSubject("device", device, "telemetry"),
		Source: "naru://suite", Type: "device.telemetry.v1", Device: device, Time: time.Unix(0, now.UnixNano()),
		ContentType: "application/json", Schema: "https://example.org/s", Depth: 1, QoS: 1, Retain: true, Text: true,
		ReplyTo: "device.suite.reply", Correlation: []byte{1}, Properties: message.Properties(nil).Add("n", fmt.Sprint(s.n)), Data: fmt.Appendf(nil, `{"n":%d}`, s.n),
	}
}

// append appends one message and gives its place.
func (s *scene) append(a bus.Appender, m *message.Message) bus.Position {
	s.Helper()
	p, err := bus.AppendSync(s.ctx, a, m)
	s.must(err)
	return p
}

// fate is what a completion was told.
type fate struct {
	token   uint64
	at      bus.Position
	err     error
	settled bool
}

// fates is a completion that remembers.
type fates chan fate

func newFates(n int) fates { return make(fates, 2*n+1) }

func (f fates) Appended(token uint64, at bus.Position, err error) {
	f <- fate{token: token, at: at, err: err}
}
func (f fates) Settled() { f <- fate{settled: true} }

// wait gives the fates of n messages in the order they were told.
func (s *scene) wait(f fates, n int) (list []fate) {
	s.Helper()
	for len(list) < n {
		select {
		case one := <-f:
			if !one.settled {
				list = append(list, one)
			}
		case <-s.ctx.Done():
			s.Fatalf("%d of %d messages were completed", len(list), n)
		}
	}
	return list
}

// silent fails where a completion is told something for a moment.
func (s *scene) silent(f fates, why string) {
	s.Helper()
	select {
	case one := <-f:
		s.Fatalf("%s: a completion was told %+v", why, one)
	case <-time.After(moment):
	}
}

// batches reads so many batches of a partition from its beginning, and checks their rows.
func (s *scene) batches(l bus.Log, generation, partition uint32, n int) []bus.Stored {
	s.Helper()
	r := s.reader(l, bus.Position{Generation: generation, Partition: partition})
	defer r.Close()
	list := make([]bus.Stored, 0, n)
	for range n {
		b, err := r.Next(s.ctx)
		s.must(err)
		list = append(list, b)
	}
	s.addUp(list)
	return list
}

// all reads what a generation holds now, by partition.
func (s *scene) all(l bus.Log, generation uint32) [][]bus.Stored {
	s.Helper()
	info, err := l.Info(s.ctx)
	s.must(err)
	for _, g := range info.Generations {
		if g.Number == generation {
			list := make([][]bus.Stored, len(g.Partitions))
			for i, p := range g.Partitions {
				list[i] = s.batches(l, generation, p.Number, int(p.Last+1-p.First))
			}
			return list
		}
	}
	s.Fatalf("log %s has no generation %d: %+v", l.Name(), generation, info)
	return nil
}

// placed is a message and where it was found.
type placed struct {
	*message.Message
	at bus.Position
}

// messages are those of batches, each in its place.
func (s *scene) messages(list []bus.Stored) (out []placed) {
	s.Helper()
	for _, b := range list {
		s.must(b.Err)
		c, at := b.Batch.Cursor(), b.Position
		for {
			var m message.Message
			at.Index = uint32(c.Index())
			if !c.Next(&m) {
				break
			}
			out = append(out, placed{m.Clone(), at})
		}
		s.must(c.Err())
	}
	return out
}

// addUp checks that each row's batches are numbered without a gap, and that running counts and sums are true.
func (s *scene) addUp(list []bus.Stored) {
	s.Helper()
	type account struct{ number, count, sum uint64 }
	rows := map[string]account{}
	for i, b := range list {
		s.must(b.Err)
		if i > 0 && b.Position.Sequence != list[i-1].Position.Sequence+1 {
			s.Fatalf("sequence %d follows %d", b.Position.Sequence, list[i-1].Position.Sequence)
		}
		if want := max(b.Batch.Count, 1) - 1; b.Position.Index != want {
			s.Fatalf("a batch of %d has index %d", b.Batch.Count, b.Position.Index)
		}
		h, is := b.Batch.Header, rows[b.Appender]
		if h.Number != is.number+1 || h.Running != is.count || h.RunningSum != is.sum {
			s.Fatalf("row %s at sequence %d says number %d, running %d, sum %x; want %d, %d, %x", b.Appender, b.Position.Sequence,
				h.Number, h.Running, h.RunningSum, is.number+1, is.count, is.sum)
		}
		rows[b.Appender] = account{h.Number, is.count + uint64(h.Count), is.sum + h.IDSum}
	}
}

package component_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// Whoever hears the log that he writes into has it hardest with a new generation: what he says of the old one goes into
// the new one, which he does not read before the old one is finished, with partitions in it that nobody ever wrote to.
func TestAComponentThatHearsWhatItSaysGoesOverToNewPartitions(t *testing.T) {
	engines := map[string]func(t *testing.T) bus.Bus{
		"mem": func(*testing.T) bus.Bus { return mem.New(mem.Options{}) },
		"nats": func(t *testing.T) bus.Bus {
			b, err := nats.Open(t.Context(), nats.Options{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			return b
		},
	}
	states := map[string]func(*component.Spec){
		"derived": func(s *component.Spec) { s.State, s.Into = component.Derived, message.Device },
		"local":   func(s *component.Spec) { s.State = component.Local },
	}
	for engine, open := range engines {
		for state, of := range states {
			t.Run(engine+" "+state, func(t *testing.T) { goesOver(t, open(t), of) })
		}
	}
}

func goesOver(t *testing.T, b bus.Bus, state func(*component.Spec)) {
	const devices, rounds, each = 6, 5, 21
	next := map[string]int{} // the number of each device's next message
	answer := of(func(_ context.Context, tx component.Tx, m *message.Message) error {
		if m.Subject.Token(2) != "telemetry" {
			return nil // its own
		}
		return tx.Say(&message.Message{Subject: message.NewSubject("device", m.Device, "event", "seen"), ContentType: "text/plain", Data: bytes.Clone(m.Data)})
	}, state, func(s *component.Spec) { s.Says = []message.Pattern{"device.*.event.*"} })
	ctx, cancel := context.WithCancel(context.Background())
	host := &component.Host{Bus: b, Catalog: catalog.Default(), Dir: t.TempDir(), Node: "n1", Specs: []component.Spec{answer},
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	l, err := b.Log(ctx, message.Device, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	door, err := l.Appender(ctx, bus.AppenderOptions{Name: "door", Owner: message.NewID(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	for round := range rounds {
		for n := range each {
			for d := range devices {
				if _, err := bus.AppendSync(ctx, door, reading(fmt.Sprint("d", d), strconv.Itoa(round*each+n))); err != nil {
					t.Fatal(err)
				}
			}
			if n == each/2 {
				if err := l.Repartition(ctx, 1+(round+1)%4*2); err != nil { // 3, 5, 7, 1, 3: more than there are devices
					t.Fatal(err)
				}
			}
		}
	}
	const all = 2 * devices * rounds * each // and what it says itself
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for n := uint64(0); n != all; {
		select {
		case <-tick.C:
		case <-late:
			info, _ := l.Info(ctx)
			t.Fatalf("%d of %d messages are finished; the log is %+v", n, all, info)
		}
		n = 0
		for _, rep := range host.Peers().Reports() {
			if owed, f := componenttest.Balance(rep); rep.Consumer == worker && owed == f {
				n += f.Count - rep.Waiting.Count
			}
		}
	}
	said := readAll(t, l) // rows lie in partitions by their own names; ids are in the order in which they were minted
	slices.SortFunc(said, func(a, b *message.Message) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	for _, m := range said {
		if m.Subject.Token(2) != "event" {
			continue
		}
		if n, _ := strconv.Atoi(string(m.Data)); n != next[m.Device] {
			t.Fatalf("of %s came %d where %d was next", m.Device, n, next[m.Device])
		}
		next[m.Device]++
	}
	for d := range devices {
		if n := next[fmt.Sprint("d", d)]; n != rounds*each {
			t.Errorf("it said %d messages of d%d; want %d", n, d, rounds*each)
		}
	}
}

// readAll gives a log's messages.
func readAll(t *testing.T, l bus.Log) (list []*message.Message) {
	info, err := l.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range info.Generations {
		for _, p := range g.Partitions {
			for seq := p.First; seq <= p.Last; seq++ {
				s, err := l.Fetch(t.Context(), bus.Position{Generation: g.Number, Partition: p.Number, Sequence: seq})
				if err != nil || s.Err != nil {
					t.Fatal(err, s.Err)
				}
				var m message.Message
				for c := s.Batch.Cursor(); c.Next(&m); {
					list = append(list, m.Clone())
				}
			}
		}
	}
	return list
}

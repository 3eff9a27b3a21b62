package retention

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// floors is a retention that is asked how far it would trim.
type floors struct {
	*testing.T
	r     *Retention
	bus   bus.Bus
	marks bus.Table
	id    message.ID
	now   time.Time
	said  bytes.Buffer
}

func newFloors(t *testing.T) *floors {
	t.Helper()
	f := &floors{T: t, now: time.Date(2026, 11, 28, 3, 0, 0, 0, time.UTC)}
	clock := func() time.Time { return f.now }
	f.bus = mem.New(mem.Options{Now: clock})
	t.Cleanup(func() { _ = f.bus.Close() })
	log, err := f.bus.Log(t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.id = log.ID()
	if f.marks, err = f.bus.Table(t.Context(), component.RequiredTable, bus.TableOptions{}); err != nil {
		t.Fatal(err)
	}
	f.r = &Retention{env: component.Env{Now: clock, Log: slog.New(slog.NewTextHandler(&f.said, nil))}, since: map[string]time.Time{}, told: map[string]time.Time{}}
	f.silence()
	return f
}

// silence makes all consumers be away.
func (f *floors) silence() { f.r.env.Peers = component.NewPeers() }

// report has a consumer say where it is, as every required one does.
func (f *floors) report(consumer string, p bus.Position) {
	f.now = f.now.Add(time.Second)
	f.r.env.Peers.Add(component.Report{Checkpoint: component.Checkpoint{Consumer: consumer, Log: message.Device, Position: p}, Required: true, At: f.now})
}

// mark notes how far a consumer has come, as was done when it was heard of.
func (f *floors) mark(consumer string, p bus.Position) {
	f.Helper()
	raw, err := json.Marshal(p)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := f.marks.Put(f.Context(), message.Device+"/1/0/"+consumer, raw); err != nil {
		f.Fatal(err)
	}
}

func (f *floors) at(gen, part uint32, upto uint64) bus.Position {
	return bus.Position{Log: f.id, Generation: gen, Partition: part, Sequence: upto}
}

// upto is how far it would trim.
func (f *floors) upto(gen, part uint32) uint64 {
	f.Helper()
	newest, err := newestOf(f.Context(), f.marks, message.Device, f.id)
	if err != nil {
		f.Fatal(err)
	}
	got, err := f.r.floor(f.Context(), f.marks, newest, message.Device, f.at(gen, part, 0))
	if err != nil {
		f.Fatal(err)
	}
	return got
}

func (f *floors) wants(gen, part uint32, want uint64) {
	f.Helper()
	if got := f.upto(gen, part); got != want {
		f.Errorf("of generation %d, partition %d it would trim up to %d; want %d", gen, part, got, want)
	}
}

// TestRetentionKeepsALaterGenerationForWhoIsInAnEarlierOne has the log divided anew while a required consumer is paused or away.
func TestRetentionKeepsALaterGenerationForWhoIsInAnEarlierOne(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprint("away=", away), func(t *testing.T) {
			f := newFloors(t)
			f.report("operator.fast", f.at(1, 0, 9))
			f.report("operator.slow", f.at(1, 0, 4))
			f.wants(1, 0, 4)
			if away {
				f.silence()
			}
			f.report("operator.fast", f.at(2, 0, 7))
			f.report("operator.late", f.at(2, 0, 6)) // begins with what comes next
			f.report("operator.late", f.at(2, 1, 6))
			f.wants(1, 0, 4) // and not for who began later
			f.wants(2, 0, 0)
			f.wants(2, 1, 0) // nor what is elsewhere in its generation for who has not come to it
			f.now = f.now.Add(tellAfter)
			f.wants(2, 0, 0)
			if got := strings.Contains(f.said.String(), "naru ledger forget operator.slow"); got != away {
				t.Errorf("it says %q; that the slow one is away: %v", &f.said, away)
			}

			f.report("operator.slow", f.at(2, 0, 5)) // it goes over
			f.wants(2, 0, 5)
			f.wants(2, 1, 0)
			f.report("operator.slow", f.at(2, 1, 3))
			f.wants(2, 1, 0) // the fast one has said nothing of it
			f.report("operator.fast", f.at(2, 1, 8))
			f.wants(2, 1, 3)
			f.report("operator.slow", f.at(3, 0, 1)) // who is beyond a generation holds nothing of what it never told of
			f.report("operator.fast", f.at(3, 0, 2))
			f.report("operator.late", f.at(3, 0, 3))
			f.wants(2, 2, 0) // nobody is known there
			f.report("operator.other", f.at(2, 2, 4))
			f.wants(2, 2, 4)
		})
	}
}

// TestRetentionKeepsNoLaterGenerationForWhoIsForgotten is how what is kept for a consumer that went for good comes free.
func TestRetentionKeepsNoLaterGenerationForWhoIsForgotten(t *testing.T) {
	f := newFloors(t)
	f.report("operator.gone", f.at(1, 0, 4))
	f.wants(1, 0, 4)
	f.silence()
	f.report("operator.fast", f.at(2, 0, 7))
	f.wants(2, 0, 0)
	f.r.env.Peers.Add(component.Report{Checkpoint: component.Checkpoint{Consumer: "operator.gone"}, Forgotten: true, At: f.now})
	f.wants(2, 0, 7)
	if err := f.r.env.Peers.Forget(t.Context(), f.bus, "operator.gone", f.now); err != nil {
		t.Fatal(err)
	}
	f.r.env.Peers = component.NewPeers() // and later, when that it was forgotten is no longer known
	f.wants(2, 0, 7)
}

// TestRetentionKeepsTheMarkOfWhoStandsStillAndHasNotRead has a consumer's new worker stand still before its first batch.
func TestRetentionKeepsTheMarkOfWhoStandsStillAndHasNotRead(t *testing.T) {
	f := newFloors(t)
	stands := bus.Position{Generation: 1}
	f.report("operator.fast", f.at(1, 0, 9))
	f.report("operator.slow", f.at(1, 0, 4))
	f.wants(1, 0, 4)
	f.report("operator.slow", stands)
	f.wants(1, 0, 4)
	f.silence()
	f.wants(1, 0, 4) // the mark is what it was
	f.report("operator.new", stands)
	f.wants(1, 0, 0) // there never was one
	f.report("operator.new", f.at(1, 0, 2))
	f.wants(1, 0, 2)
	f.mark("operator.old", stands)
	f.wants(1, 0, 0) // as it was noted once
	e, err := f.marks.Get(t.Context(), message.Device+"/1/0/operator.slow")
	var p bus.Position
	if err != nil || json.Unmarshal(e.Value, &p) != nil || p != f.at(1, 0, 4) {
		t.Errorf("its mark is %s (%v); want that it is at batch 4", e.Value, err)
	}
}

// TestRetentionAdvisesToForgetOnlyWhoStaysAway is for who reads the advice to forget a consumer at three in the morning, and may follow it: it
// is of those that stay away, and not of all that a platform has at the moment it starts.
func TestRetentionAdvisesToForgetOnlyWhoStaysAway(t *testing.T) {
	f := newFloors(t)
	for _, consumer := range []string{"operator.back", "operator.beyond", "operator.gone"} {
		f.mark(consumer, f.at(1, 0, 0))
	}
	look := func(d time.Duration) string {
		t.Helper()
		f.now = f.now.Add(d)
		f.said.Reset()
		f.upto(1, 0)
		return f.said.String()
	}
	for _, d := range []time.Duration{0, tellAfter - 3*time.Second} {
		if got := look(d); got != "" {
			t.Fatalf("%s after the start it says %s", d, got)
		}
	}
	f.report("operator.back", f.at(1, 0, 0))
	f.report("operator.beyond", f.at(2, 0, 0))
	if got := look(time.Second); !strings.Contains(got, "naru ledger forget operator.gone") || strings.Count(got, "naru ledger forget") != 1 {
		t.Errorf("it says %q; want the advice for operator.gone alone", got)
	}
	if got := look(time.Second); got != "" {
		t.Errorf("it says again %q", got)
	}
}

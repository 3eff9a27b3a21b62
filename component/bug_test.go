package component_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
)

// buggy is a bus with a bug that shows so many times: where a log is read, or written by one who derives.
type buggy struct {
	bus.Bus
	reads, writes *atomic.Int64
}

type buggyLog struct {
	bus.Log
	b buggy
}

func (b buggy) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	l, err := b.Bus.Log(ctx, name, o)
	return buggyLog{l, b}, err
}

func (l buggyLog) Reader(ctx context.Context, from bus.Position) (bus.Reader, error) {
	if l.b.reads.Add(-1) >= 0 {
		panic("a bug where the log is read")
	}
	return l.Log.Reader(ctx, from)
}

func (l buggyLog) Writer(ctx context.Context, o bus.WriterOptions) (bus.Writer, error) {
	if l.b.writes.Add(-1) >= 0 {
		panic("a bug where the log is written")
	}
	return l.Log.Writer(ctx, o)
}

// TestABugBesideTheHandlersEndsNoProcess has the runner's own goroutines meet one.
func TestABugBesideTheHandlersEndsNoProcess(t *testing.T) {
	for _, c := range []struct {
		name          string
		reads, writes int64
		spec          component.Spec
	}{{"read", 2, 0, of(fine)}, {"derive", 0, 2, of(echo, derived)}, {"read to derive", 2, 0, of(echo, derived)}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := componenttest.New(t)
				defer r.Close()
				b := buggy{reads: new(atomic.Int64), writes: new(atomic.Int64)}
				b.reads.Store(c.reads)
				b.writes.Store(c.writes)
				r.Over = func(inner bus.Bus) bus.Bus { b.Bus = inner; return b }
				for i := range 5 {
					r.Say(reading("d", fmt.Sprint(i)))
				}
				r.Start(c.spec)
				if rep := r.Settled(worker, "device"); rep.Outcomes[component.Handled].Count != 5 {
					t.Errorf("handled are %+v; want 5", rep.Outcomes)
				}
				r.Stop()
				if b.reads.Load() >= 0 || c.writes > 0 && b.writes.Load() >= 0 {
					t.Error("the bug was not met")
				}
			})
		})
	}
}

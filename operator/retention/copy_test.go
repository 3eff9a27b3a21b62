package retention

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// tenfold is a copy whose sequences are the source's times ten.
type tenfold struct {
	bus.Copy
	source bus.Log
}

func (c tenfold) Source() string { return message.DataPlatform }

func (c tenfold) Reached(_ context.Context, p bus.Position) (bus.Position, error) {
	return bus.Position{Log: c.source.ID(), Generation: 1, Sequence: p.Sequence / 10}, nil
}

type withCopy struct {
	bus.Bus
	c tenfold
}

func (b withCopy) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	if name == bus.CopyName(message.DataPlatform) {
		return b.c, nil
	}
	return b.Bus.Log(ctx, name, o)
}

func TestRetentionKeepsWhatIsNotReadFromTheCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTrims(t, "data_platform.t.d")
		defer r.Close()
		r.Over = func(b bus.Bus) bus.Bus { return withCopy{b, tenfold{source: r.log}} }
		r.Start(Spec)
		report := func(consumer, log string, part uint32, upto uint64) {
			r.Host.Peers().Add(component.Report{Checkpoint: component.Checkpoint{Consumer: consumer, Log: log,
				Position: bus.Position{Log: message.NewID(time.Now()), Generation: 1, Partition: part, Sequence: upto}}, Required: true, Child: true, At: time.Now()})
		}
		copied := bus.CopyName(message.DataPlatform)
		r.Host.Peers().Add(component.Report{Checkpoint: component.Checkpoint{Consumer: "data_platform.pump", Log: message.DataPlatform,
			Position: bus.Position{Log: r.log.ID(), Generation: 1, Sequence: 8}}, Required: true, At: time.Now()})
		report("data_platform.etl/t", copied, 0, 80)
		report("data_platform.etl/t", copied, 1, 40)
		r.await(5)
		report("data_platform.etl/t", copied, 1, 60)
		r.await(7)
		r.Stop()
		r.Start(Spec) // who reads the copy is not heard of, and has its marks
		r.Host.Peers().Add(component.Report{Checkpoint: component.Checkpoint{Consumer: "data_platform.pump", Log: message.DataPlatform,
			Position: bus.Position{Log: r.log.ID(), Generation: 1, Sequence: 9}}, Required: true, At: time.Now()})
		marks, err := component.Marks(t.Context(), r.Bus, "data_platform.etl/t")
		if err != nil || len(marks) != 2 {
			t.Fatalf("its marks are %v, %v; want two", marks, err)
		}
		time.Sleep(time.Minute)
		r.await(7)
		if err := r.Host.Peers().Forget(t.Context(), r.Bus, "data_platform.etl/t", time.Now()); err != nil {
			t.Fatal(err)
		}
		r.await(9)
		r.Stop()
	})
}

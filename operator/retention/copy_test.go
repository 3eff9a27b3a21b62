package retention

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
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
		r := componenttest.New(t)
		defer r.Close()
		r.Config[Spec.Name] = json.RawMessage(`{"max_age":"1s","every":"1s"}`)
		for i := range 9 {
			r.Say(componenttest.Message("data_platform.t.d", "d", fmt.Sprint(i)))
		}
		log, err := r.Bus.Log(t.Context(), message.DataPlatform, bus.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		r.Over = func(b bus.Bus) bus.Bus { return withCopy{b, tenfold{source: log}} }
		var first uint64
		await := func(want uint64) {
			t.Helper()
			r.Until(func() bool {
				info, err := log.Info(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				first = info.Generations[0].Partitions[0].First
				return first == want
			}, func() string { return fmt.Sprintf("the log begins at %d; want %d", first, want) })
		}
		r.Start(Spec)
		report := func(consumer, log string, part uint32, upto uint64) {
			r.Host.Peers().Add(component.Report{Checkpoint: component.Checkpoint{Consumer: consumer, Log: log,
				Position: bus.Position{Log: message.NewID(time.Now()), Generation: 1, Partition: part, Sequence: upto}}, Required: true, Child: true, At: time.Now()})
		}
		copied := bus.CopyName(message.DataPlatform)
		r.Host.Peers().Add(component.Report{Checkpoint: component.Checkpoint{Consumer: "data_platform.pump", Log: message.DataPlatform,
			Position: bus.Position{Log: log.ID(), Generation: 1, Sequence: 8}}, Required: true, At: time.Now()})
		report("data_platform.etl/t", copied, 0, 80)
		report("data_platform.etl/t", copied, 1, 40)
		await(5)
		report("data_platform.etl/t", copied, 1, 60)
		await(7)
		r.Stop()
		r.Start(Spec) // who reads the copy is not heard of, and has its marks
		r.Host.Peers().Add(component.Report{Checkpoint: component.Checkpoint{Consumer: "data_platform.pump", Log: message.DataPlatform,
			Position: bus.Position{Log: log.ID(), Generation: 1, Sequence: 9}}, Required: true, At: time.Now()})
		marks, err := component.Marks(t.Context(), r.Bus, "data_platform.etl/t")
		if err != nil || len(marks) != 2 {
			t.Fatalf("its marks are %v, %v; want two", marks, err)
		}
		time.Sleep(time.Minute)
		await(7)
		if err := r.Host.Peers().Forget(t.Context(), r.Bus, "data_platform.etl/t", time.Now()); err != nil {
			t.Fatal(err)
		}
		await(9)
		r.Stop()
	})
}

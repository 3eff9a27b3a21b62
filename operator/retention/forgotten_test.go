package retention

import (
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

func TestRetentionKeepsNothingForAConsumerThatIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		r.Config[Spec.Name] = json.RawMessage(`{"max_age":"1s","every":"1s"}`)
		for i := range 9 {
			r.Say(componenttest.Message("device.d.telemetry", "d", fmt.Sprint(i)))
		}
		log, err := r.Bus.Log(t.Context(), message.Device, bus.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
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
		report := func(consumer string, upto uint64) {
			r.Host.Peers().Add(component.Report{Checkpoint: component.Checkpoint{Consumer: consumer, Log: message.Device,
				Position: bus.Position{Log: log.ID(), Generation: 1, Sequence: upto}}, Required: true, Child: true, At: time.Now()})
		}
		report("operator.mother/slow", 4)
		report("operator.mother/fast", 8)
		await(5)
		r.Host.Peers().Add(component.Report{Checkpoint: component.Checkpoint{Consumer: "operator.mother/slow"}, Forgotten: true, At: time.Now()})
		await(9)
		r.Stop()
	})
}

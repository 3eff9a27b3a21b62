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

// trims is a retention that runs beside a log of nine messages, each a batch and soon old.
type trims struct {
	*componenttest.Rig
	t   *testing.T
	log bus.Log
}

func newTrims(t *testing.T, subject message.Subject) *trims {
	t.Helper()
	r := &trims{componenttest.New(t), t, nil}
	r.Config[Spec.Name] = json.RawMessage(`{"max_age":"1s","every":"1s"}`)
	for i := range 9 {
		r.Say(componenttest.Message(subject, "d", fmt.Sprint(i)))
	}
	var err error
	if r.log, err = r.Bus.Log(t.Context(), subject.Namespace(), bus.LogOptions{}); err != nil {
		t.Fatal(err)
	}
	return r
}

// await waits until the log begins at a batch.
func (r *trims) await(want uint64) {
	r.t.Helper()
	var first uint64
	r.Until(func() bool {
		info, err := r.log.Info(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		first = info.Generations[0].Partitions[0].First
		return first == want
	}, func() string { return fmt.Sprintf("the log begins at %d; want %d", first, want) })
}

func TestRetentionKeepsNothingForAConsumerThatIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTrims(t, "device.d.telemetry")
		defer r.Close()
		r.Start(Spec)
		report := func(consumer string, upto uint64) {
			r.Host.Peers().Add(component.Report{Checkpoint: component.Checkpoint{Consumer: consumer, Log: message.Device,
				Position: bus.Position{Log: r.log.ID(), Generation: 1, Sequence: upto}}, Required: true, Child: true, At: time.Now()})
		}
		report("operator.mother/slow", 4)
		report("operator.mother/fast", 8)
		r.await(5)
		r.Host.Peers().Add(component.Report{Checkpoint: component.Checkpoint{Consumer: "operator.mother/slow"}, Forgotten: true, At: time.Now()})
		r.await(9)
		r.Stop()
	})
}

package component_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

func TestMoreParkedThanAPositionHoldsIsWaitedForInTheMiddleOfABatch(t *testing.T) {
	for _, parallel := range []int{1, 4} {
		r := componenttest.New(t) // its engine takes batches of 1 MiB
		var tries atomic.Int64
		spec := of(func(ctx context.Context, tx component.Tx, m *message.Message) error {
			if string(m.Data) == "first" && tries.Add(1) <= 7000 {
				return errors.New("not yet, and this is said at some length, so that each of them takes its room in the position of the batch, up to where it is cut")
			}
			return echo(ctx, tx, m)
		}, derived, func(s *component.Spec) {
			s.Parallel, s.Retry = parallel, component.Retry{First: time.Millisecond, Most: time.Millisecond, Attempts: 1000, ParkedMax: 100_000}
		})
		var batch []*message.Message
		for i := range 3500 {
			batch = append(batch, reading(fmt.Sprint("d", i), "first"), reading(fmt.Sprint("d", i), "second"))
		}
		together(t, r, batch)
		r.Start(spec)
		rep := r.Settled(worker, "device")
		if n := rep.Outcomes[component.Handled].Count; n != 7000 {
			t.Errorf("with %d at a time %d messages are handled; want 7000", parallel, n)
		}
		r.Stop()
		last := map[string]string{}
		for _, m := range r.Said(worker) {
			if want := map[string]string{"": "first", "first": "second"}[last[m.Device]]; string(m.Data) != want {
				t.Fatalf("of %s came %s where %s was next", m.Device, m.Data, want)
			}
			last[m.Device] = string(m.Data)
		}
	}
}

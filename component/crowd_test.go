package component_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
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
		var well atomic.Bool
		spec := of(func(ctx context.Context, tx component.Tx, m *message.Message) error {
			if string(m.Data) == "first" && !well.Load() {
				return errors.New("not yet, and this is said at some length, so that each of them takes its room in the position of the batch, up to where it is cut")
			}
			return echo(ctx, tx, m)
		}, derived, func(s *component.Spec) {
			s.Parallel, s.Retry = parallel, component.Retry{First: 20 * time.Millisecond, Most: 20 * time.Millisecond, Attempts: 1000, ParkedMax: 100_000}
		})
		var batch []*message.Message
		for _, data := range []string{"first", "second"} {
			for i := range 3500 {
				batch = append(batch, reading(fmt.Sprint("d", i), data))
			}
		}
		together(t, r, batch)
		r.Start(spec)
		r.Until(func() bool {
			return slices.ContainsFunc(r.Host.Peers().Reports(), func(rep component.Report) bool { return strings.Contains(rep.Fault, "as many as fit") })
		}, func() string { return "nobody is told that too many are parked" })
		well.Store(true)
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

func TestWhatShardsLeftOutInACrowdedBatchIsHandledInItsPlace(t *testing.T) {
	for _, parallel := range []int{1, 4} {
		r := componenttest.New(t)
		var failed sync.Map
		spec := of(func(_ context.Context, _ component.Tx, m *message.Message) error {
			if _, again := failed.LoadOrStore(m.ID, true); !again && string(m.Data) == "first" {
				return errors.New("what it depends on is away, and this is said at some length, so that each takes its whole room in the position of the batch")
			}
			return nil
		}, derived, func(s *component.Spec) {
			s.Parallel, s.Retry = parallel, component.Retry{First: time.Millisecond}
		})
		var batch []*message.Message
		for i := range 3500 {
			batch = append(batch, reading(fmt.Sprint("d", i), "first"))
		}
		batch = append(batch, reading("d0", "second"), reading("d1", "second")) // behind those that are parked, and by then are not
		together(t, r, batch)
		r.Start(spec)
		if rep := r.Settled(worker, "device"); rep.Outcomes[component.Handled].Count != 3502 {
			t.Errorf("with %d at a time outcomes are %+v", parallel, rep.Outcomes)
		}
		families, err := r.Host.Metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "naru_component_restarts_total" && f.GetMetric()[0].GetCounter().GetValue() > 0 {
				t.Errorf("with %d at a time it fell over and was started again", parallel)
			}
		}
		r.Stop()
	}
}

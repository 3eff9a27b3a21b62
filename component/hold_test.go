package component_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// batches makes a component of a batch's handler.
func batches(h func(context.Context, component.Tx, string, bus.Stored) error) component.Spec {
	return component.Define(component.Spec{Name: worker, Doc: "works", Hears: []message.Pattern{">"}, State: component.Local,
		Retry: component.Retry{First: 50 * time.Millisecond, Most: 50 * time.Millisecond}}, struct{}{},
		func(component.Env, struct{}) (*component.Part, error) { return &component.Part{HandleBatch: h}, nil })
}

// TestABatchThatFailsHoldsItsPartitionAndNoOther, and the partition's order is kept.
func TestABatchThatFailsHoldsItsPartitionAndNoOther(t *testing.T) {
	r := componenttest.New(t)
	var mended atomic.Bool
	var order []string // of the worker's goroutine
	r.Start(batches(func(_ context.Context, _ component.Tx, log string, s bus.Stored) error {
		var m message.Message
		c := s.Batch.Cursor()
		for c.Next(&m) {
			if log == "device" && string(m.Data) == "2" && !mended.Load() {
				return errors.New("what it depends on is away")
			}
			order = append(order, log+" "+string(m.Data))
		}
		return c.Err()
	}))
	for i := range 6 {
		r.Say(reading("d", fmt.Sprint(i)))
	}
	rep := r.Await(worker, "device", func(rep component.Report) bool { return strings.Contains(rep.Fault, "attempt 3") })
	if rep.Position.Sequence != 2 {
		t.Errorf("it stands at batch %d; want 2, before the one that fails", rep.Position.Sequence)
	}
	for i := range 6 {
		r.Say(componenttest.Message("service_platform.x.y", "d", fmt.Sprint(i)))
	}
	r.Settled(worker, "service_platform") // though the other one stands
	rep = r.Await(worker, "device", func(component.Report) bool { return true })
	if owed, finished := componenttest.Balance(rep); owed != finished || rep.Position.Sequence != 2 || rep.Fault == "" {
		t.Errorf("standing still at %d (%s): accepted %+v, finished %+v", rep.Position.Sequence, rep.Fault, owed, finished)
	}
	mended.Store(true)
	rep = r.Settled(worker, "device")
	if owed, finished := componenttest.Balance(rep); owed != finished || rep.Outcomes[component.Handled].Count != 6 || rep.Fault != "" {
		t.Errorf("gone on: accepted %+v, finished %+v, %+v", owed, finished, rep)
	}
	r.Stop()
	for _, log := range []string{"device", "service_platform"} {
		var got []string
		for _, o := range order {
			if l, data, _ := strings.Cut(o, " "); l == log {
				got = append(got, data)
			}
		}
		if want := []string{"0", "1", "2", "3", "4", "5"}; !slices.Equal(got, want) {
			t.Errorf("of %s were handled %q; want %q", log, got, want)
		}
	}
}

// TestWhatIsHeldIsReadAgainByTheNextProcess: it stops while a partition is held, and nothing is left out.
func TestWhatIsHeldIsReadAgainByTheNextProcess(t *testing.T) {
	r := componenttest.New(t)
	var mended atomic.Bool
	spec := batches(func(_ context.Context, _ component.Tx, _ string, s bus.Stored) error {
		if s.Position.Sequence == 2 && !mended.Load() {
			return errors.New("not yet")
		}
		return nil
	})
	r.Start(spec)
	for i := range 4 {
		r.Say(reading("d", fmt.Sprint(i)))
	}
	r.Await(worker, "device", func(rep component.Report) bool { return strings.Contains(rep.Fault, "attempt 2") })
	r.Stop()
	mended.Store(true)
	r.Start(spec)
	rep := r.Settled(worker, "device")
	if owed, finished := componenttest.Balance(rep); owed != finished || rep.Outcomes[component.Handled].Count != 4 {
		t.Errorf("accepted %+v, finished %+v", owed, finished)
	}
}

func TestTooMuchParkedOfOneLogHoldsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var mended atomic.Bool
		r.Start(of(func(_ context.Context, _ component.Tx, m *message.Message) error {
			if m.Subject.Namespace() == "device" && !mended.Load() {
				return errors.New("what it depends on is away")
			}
			return nil
		}, func(s *component.Spec) {
			s.Hears = []message.Pattern{">"}
			s.Retry = component.Retry{First: time.Second, Most: time.Second, Attempts: 1000, ParkedMax: 3}
		}))
		for i := range 10 {
			r.Say(reading("d", fmt.Sprint(i))) // of one key
		}
		r.Await(worker, "device", func(rep component.Report) bool { return strings.Contains(rep.Fault, "the limit is 3") })
		for i := range 10 {
			r.Say(componenttest.Message("service_platform.x.y", "d", fmt.Sprint(i)))
		}
		if rep := r.Settled(worker, "service_platform"); rep.Outcomes[component.Handled].Count != 10 || rep.Fault != "" {
			t.Errorf("the other log: %+v", rep)
		}
		mended.Store(true)
		if rep := r.Settled(worker, "device"); rep.Outcomes[component.Handled].Count != 10 || rep.Fault != "" {
			t.Errorf("gone on: %+v", rep)
		}
		r.Stop()
	})
}

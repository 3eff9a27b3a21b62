package component_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

type allHandler = func(ctx context.Context, tx component.Tx, log string, in []component.Heard) ([]error, error)

func loading(h allHandler, change func(*component.Spec)) component.Spec {
	s := component.Spec{Name: worker, Doc: "loads", Hears: []message.Pattern{">"}, State: component.Local, Retry: component.Retry{First: 10 * time.Millisecond, Most: 10 * time.Millisecond}}
	if change != nil {
		change(&s)
	}
	return component.Define(s, struct{}{}, func(component.Env, struct{}) (*component.Part, error) { return &component.Part{HandleAll: h}, nil })
}

// TestAGroupThatFailsHoldsItsPartitionAndNoOther, and when it goes on the order is kept, nothing being left out or done twice.
func TestAGroupThatFailsHoldsItsPartitionAndNoOther(t *testing.T) {
	for _, gather := range []time.Duration{0, 5 * time.Millisecond} {
		r := componenttest.New(t)
		var away atomic.Bool
		away.Store(true)
		var order []string
		r.Start(loading(func(_ context.Context, _ component.Tx, log string, in []component.Heard) ([]error, error) {
			if log == "device" && away.Load() {
				return nil, errors.New("the database is away")
			}
			for _, h := range in {
				if h.Position.Log.IsZero() || h.Position.Sequence == 0 || h.Again {
					return nil, fmt.Errorf("heard at %+v", h)
				}
				order = append(order, log+" "+string(h.Message.Data))
			}
			return make([]error, len(in)), nil
		}, func(s *component.Spec) { s.Gather, s.GatherMax = gather, 4 }))
		var want []string
		for i := range 20 {
			r.Say(reading("d", fmt.Sprint(i)))
			want = append(want, fmt.Sprintf("device %d", i))
		}
		rep := r.Await(worker, "device", func(rep component.Report) bool { return strings.Contains(rep.Fault, "attempt 3") })
		if owed, finished := componenttest.Balance(rep); owed != finished || rep.Position.Sequence != 0 {
			t.Errorf("standing still at %d: accepted %+v, finished %+v", rep.Position.Sequence, owed, finished)
		}
		r.Say(componenttest.Message("service_platform.x.y", "d", "other"))
		r.Settled(worker, "service_platform")
		away.Store(false)
		rep = r.Settled(worker, "device")
		if owed, finished := componenttest.Balance(rep); owed != finished || rep.Outcomes[component.Handled].Count != 20 || rep.Fault != "" {
			t.Errorf("gone on: accepted %+v, finished %+v, %q", owed, finished, rep.Fault)
		}
		r.Stop()
		got := slices.DeleteFunc(order, func(s string) bool { return !strings.HasPrefix(s, "device") })
		if !slices.Equal(got, want) {
			t.Errorf("loaded %q; want %q", got, want)
		}
	}
}

func TestWrongNumbersOfFatesDecideNothing(t *testing.T) {
	r := componenttest.New(t)
	var mended atomic.Bool
	r.Start(loading(func(_ context.Context, _ component.Tx, _ string, in []component.Heard) ([]error, error) {
		if !mended.Load() {
			return make([]error, len(in)+1), nil
		}
		return make([]error, len(in)), nil
	}, nil))
	r.Say(reading("d", "1"))
	r.Await(worker, "device", func(rep component.Report) bool { return strings.Contains(rep.Fault, "decided 2 fates of 1") })
	mended.Store(true)
	r.Settled(worker, "device")
}

// TestAnyErrorOfAGroupIsADeath, and no message is tried again.
func TestAnyErrorOfAGroupIsADeath(t *testing.T) {
	r := componenttest.New(t)
	r.Start(loading(func(_ context.Context, _ component.Tx, _ string, in []component.Heard) ([]error, error) {
		fates := make([]error, len(in))
		for i := range in {
			if string(in[i].Message.Data) == "bad" {
				fates[i] = errors.New("no rejection")
			}
		}
		return fates, nil
	}, nil))
	r.Say(reading("d", "1"), reading("d", "bad"), reading("d", "2"))
	rep := r.Settled(worker, "device")
	if rep.Outcomes[component.Dead].Count != 1 || rep.Outcomes[component.Handled].Count != 2 {
		t.Errorf("%+v", rep.Outcomes)
	}
}

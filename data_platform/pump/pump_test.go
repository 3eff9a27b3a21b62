package pump_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/data_platform/pump"
	"github.com/naru-platform/naru/message"
)

// far is what is copied into: it takes batches, or does not.
type far struct {
	bus.Copier
	mu        sync.Mutex
	fault     error
	tries     int
	got       []string // the messages' data, as they came
	committed uint64
	told      int
}

func (f *far) Append(_ context.Context, st bus.State, s bus.Stored) (func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tries++; f.fault != nil {
		return nil, f.fault
	}
	st.Set([]byte("last"), fmt.Append(nil, s.Position.Sequence))
	c := s.Batch.Cursor()
	for m := (message.Message{}); c.Next(&m); {
		f.got = append(f.got, string(m.Data))
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.committed = s.Position.Sequence
	}, c.Err()
}

func (f *far) Tell(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told++
	return nil
}

func (f *far) set(fault error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// over is a bus with the copy on it.
type over struct {
	bus.Bus
	f *far
}

func (o over) Log(ctx context.Context, name string, l bus.LogOptions) (bus.Log, error) {
	if name == bus.CopyName(message.DataPlatform) {
		return o.f, nil
	}
	return o.Bus.Log(ctx, name, l)
}

func say(r *componenttest.Rig, from, to int) (data []string) {
	for i := from; i < to; i++ {
		d := fmt.Sprint(i)
		r.Say(componenttest.Message("data_platform.t.d", "d", d))
		data = append(data, d)
	}
	return data
}

func TestPumpStandsStillWithTheFaultAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, f := componenttest.New(t), &far{}
		defer r.Close()
		r.Over = func(b bus.Bus) bus.Bus { return over{b, f} }
		r.Start(pump.Spec)
		r.Running(pump.Name)
		want := say(r, 0, 10)
		r.Settled(pump.Name, message.DataPlatform)

		f.set(errors.New("ProvisionedThroughputExceededException: Rate exceeded"))
		want = append(want, say(r, 10, 20)...)
		r.Await(pump.Name, message.DataPlatform, func(rep component.Report) bool { return strings.Contains(rep.Fault, "Rate exceeded") })
		before := f.tries
		r.Until(func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.tries > before+3 }, func() string { return "it is not tried again" })
		r.Stop()
		f.set(nil)
		r.Start(pump.Spec)
		rep := r.Settled(pump.Name, message.DataPlatform)
		if rep.Fault != "" || rep.Outcomes[component.Handled].Count != 20 || !rep.Required {
			t.Errorf("at the end it reports %+v", rep)
		}
		if !slices.Equal(f.got, want) {
			t.Errorf("copied %v, want %v", f.got, want)
		}
		r.Until(func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.told > 0 }, func() string { return "nobody is told" })
		if f.committed != rep.Position.Sequence {
			t.Errorf("told that %d is committed, and it is %d", f.committed, rep.Position.Sequence)
		}
	})
}

func TestPumpSaysThatThereIsNothingToCopyInto(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		r.Over = func(b bus.Bus) bus.Bus { return b }
		r.Start(pump.Spec)
		r.Until(func() bool {
			h := r.Host.Health()
			return h[0].State == "failed" && strings.Contains(h[0].Fault, "bus.kinesis")
		}, func() string { return fmt.Sprint(r.Host.Health()) })
	})
}

package component_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// copied is a log that says that it is a copy; the engine for tests keeps it as any other.
type copied struct {
	bus.Log
	source bus.Log
}

func (c copied) Source() string { return c.source.Name() }
func (c copied) Reached(_ context.Context, p bus.Position) (bus.Position, error) {
	p.Log = c.source.ID()
	return p, nil
}
func (c copied) Read(ctx context.Context, at bus.Position) (bus.Stored, error) {
	return c.source.Fetch(ctx, at)
}
func (c copied) Written(ctx context.Context, _, _ uint32) (map[string]uint64, error) {
	info, err := c.Info(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]uint64{"door": info.Generations[0].Partitions[0].Last}, nil
}

type withCopy struct{ bus.Bus }

func (b withCopy) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	l, err := b.Bus.Log(ctx, name, o)
	if err != nil || name != bus.CopyName(message.Device) {
		return l, err
	}
	source, err := b.Bus.Log(ctx, message.Device, o)
	return copied{l, source}, err
}

// TestCopyIsReadInPlaceOfItsSource has a component and a child read a copy instead of the log, and another one both.
func TestCopyIsReadInPlaceOfItsSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFamily(t)
		defer f.r.Close()
		f.r.Over = func(b bus.Bus) bus.Bus { return withCopy{b} }
		var mu sync.Mutex
		heard := map[string][]string{}
		hold := make(chan struct{})
		part := func(who string, wait bool) func(component.Env) (*component.Part, error) {
			return func(component.Env) (*component.Part, error) {
				return &component.Part{Handle: func(ctx context.Context, _ component.Tx, m *message.Message) error {
					if wait {
						select {
						case <-hold:
						case <-ctx.Done():
							return ctx.Err()
						}
					}
					mu.Lock()
					defer mu.Unlock()
					heard[who] = append(heard[who], string(m.Data))
					return nil
				}}, nil
			}
		}
		name := bus.CopyName(message.Device)
		f.spec.Instead = map[string]string{message.Device: name}
		f.set = []component.Child{{Name: "c", Hears: []message.Pattern{"device.*.telemetry"}, Build: part("child", true)}}
		both := component.Define(component.Spec{Name: "operator.both", Doc: "reads both", Hears: []message.Pattern{"device.>"}, Also: []string{name}, State: component.Local},
			struct{}{}, func(e component.Env, _ struct{}) (*component.Part, error) { return part("both", false)(e) })
		f.r.Say(componenttest.Message("device.d.telemetry", "d", "near"))
		l, err := f.r.Bus.Log(t.Context(), name, bus.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		door, err := l.Appender(t.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(time.Now())})
		if err != nil {
			t.Fatal(err)
		}
		for _, data := range []string{"far", "farther"} {
			if _, err := bus.AppendSync(t.Context(), door, componenttest.Message("device.d.telemetry", "d", data)); err != nil {
				t.Fatal(err)
			}
		}
		f.r.Start(f.spec, both)
		f.r.Settled("operator.both", message.Device)
		f.r.Settled("operator.both", name)
		f.r.Until(func() bool {
			return slices.ContainsFunc(f.r.Host.Health(), func(h component.Health) bool {
				b := h.Behind[name]
				return h.Name == mother+"/c" && b.Messages == 2 && !b.Oldest.IsZero()
			})
		}, func() string { return "the child is not told to be two messages behind in the copy" })
		close(hold)
		if r := f.r.Settled(mother+"/c", name); r.Outcomes[component.Handled].Count != 2 {
			t.Errorf("the child reports %+v", r.Outcomes)
		}
		f.r.Stop()
		slices.Sort(heard["both"])
		if !slices.Equal(heard["child"], []string{"far", "farther"}) || !slices.Equal(heard["both"], []string{"far", "farther", "near"}) {
			t.Errorf("heard %v", heard)
		}
		if err := door.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

package component_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

const mother = "service_platform.mother"

// family is a component whose children a test declares.
type family struct {
	r    *componenttest.Rig
	spec component.Spec

	mu  sync.Mutex
	set []component.Child
	env component.Env
	on  chan struct{} // something of the set has changed
}

func newFamily(t *testing.T, set ...component.Child) *family {
	f := &family{r: componenttest.New(t), set: set, on: make(chan struct{}, 1)}
	f.spec = component.Define(component.Spec{Name: mother, Doc: "has children", ChildrenHear: []message.Pattern{"device.*.telemetry", "3rd_party.>"},
		Says: []message.Pattern{"service_platform.mother.*"}}, struct{}{}, func(env component.Env, _ struct{}) (*component.Part, error) {
		return &component.Part{Run: func(ctx context.Context, ready func()) error {
			for {
				f.mu.Lock()
				f.env = env
				set := slices.Clone(f.set)
				f.mu.Unlock()
				if err := env.Children(set); err != nil {
					return err
				}
				ready()
				select {
				case <-f.on:
				case <-ctx.Done():
					return nil
				}
			}
		}}, nil
	})
	return f
}

// declare changes the set.
func (f *family) declare(set ...component.Child) {
	f.mu.Lock()
	f.set = set
	f.mu.Unlock()
	f.on <- struct{}{}
}

func (f *family) forget(t *testing.T, name string) error {
	t.Helper()
	f.mu.Lock()
	env := f.env
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return env.Forget(ctx, name)
}

func (f *family) state(name string) string {
	for _, h := range f.r.Host.Health() {
		if h.Name == mother+"/"+name {
			return h.State
		}
	}
	return ""
}

// gone waits until nothing of a child runs.
func (f *family) gone(name string) {
	f.r.Until(func() bool { return f.state(name) == "" }, func() string { return name + " is " + f.state(name) })
}

// heard is what a child's handler was given, in any of its lives.
type heard struct {
	mu   sync.Mutex
	list []string
}

func (h *heard) add(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = append(h.list, s)
}

func (h *heard) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.list)
}

// child calls for telemetry and says what it was given.
func child(name, version string, call outside, change ...func(*component.Child)) component.Child {
	c := component.Child{Name: name, Version: version, Hears: []message.Pattern{"device.*.telemetry"}, Calls: 4,
		Retry: component.Retry{First: time.Second, Most: time.Second, Attempts: 3},
		Build: func(component.Env) (*component.Part, error) { return &component.Part{Call: call}, nil }}
	for _, f := range change {
		f(&c)
	}
	return c
}

// echoes says what it is given, with the child's name before it.
func echoes(name string, h *heard) outside {
	return func(_ context.Context, m *message.Message, _ component.Try) ([]*message.Message, error) {
		h.add(string(m.Data))
		if string(m.Data) == "poison" {
			return nil, message.Rejectf(message.NotDecodable, "%s does not like it", name)
		}
		return []*message.Message{{Subject: "service_platform.mother.said", Data: []byte(name + " " + string(m.Data))}}, nil
	}
}

func TestChildrenAreConsumersOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a, b heard
		f := newFamily(t, child("a", "1", echoes("a", &a)), child("b", "1", echoes("b", &b), func(c *component.Child) {
			c.Hears = []message.Pattern{"device.d2.telemetry", "3rd_party.weather"}
		}))
		defer f.r.Close()
		f.r.Start(f.spec)
		outside := componenttest.Message("3rd_party.weather", "", "rain")
		f.r.Say(reading("d1", "1"), reading("d2", "2"), reading("d2", "poison"), outside)
		for _, name := range []string{"a", "b"} {
			rep := f.r.Settled(mother+"/"+name, "device")
			if !rep.Child || rep.Waiting.Count != 0 {
				t.Errorf("%s reports %+v", name, rep)
			}
			if _, dead := f.r.Buried(mother+"/"+name, 1); len(dead) != 1 || dead[0].Component != mother+"/"+name || !strings.Contains(dead[0].Detail, name+" does not") {
				t.Errorf("%s has the dead letters %+v", name, dead)
			}
			f.r.Running(mother + "/" + name)
		}
		f.r.Settled(mother+"/b", "3rd_party")
		f.r.Stop()
		said := func(name string) (list []string) {
			for _, m := range f.r.Said(mother + "/" + name) {
				list = append(list, string(m.Data))
				if m.Depth != 1 || m.Cause.IsZero() {
					t.Errorf("%q does not follow from what was heard", m.Data)
				}
			}
			slices.Sort(list)
			return list
		}
		if got := said("a"); !slices.Equal(got, []string{"a 1", "a 2"}) {
			t.Errorf("a said %q", got)
		}
		if got := said("b"); !slices.Equal(got, []string{"b 2", "b rain"}) {
			t.Errorf("b said %q", got)
		}
	})
}

func TestAChangedChildGoesOnWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var first, second heard
		f := newFamily(t, child("a", "1", echoes("first", &first)))
		defer f.r.Close()
		f.r.Start(f.spec)
		f.r.Say(reading("d", "1"))
		f.r.Settled(mother+"/a", "device")
		f.declare(child("a", "1", echoes("never", &second))) // the same version: nothing is to be done
		synctest.Wait()
		f.r.Say(reading("d", "2"))
		f.r.Settled(mother+"/a", "device")
		f.declare(child("a", "2", echoes("second", &second)))
		f.r.Until(func() bool {
			f.r.Say(reading("d", "3"))
			return len(second.all()) > 0
		}, func() string { return "the changed child is given nothing" })
		rep := f.r.Settled(mother+"/a", "device")
		all := append(first.all(), second.all()...)
		if got := first.all(); !slices.Equal(got[:2], []string{"1", "2"}) || slices.Contains(second.all(), "1") || slices.Contains(second.all(), "2") || uint64(len(all)) != rep.Outcomes[component.Handled].Count {
			t.Errorf("the first version was given %q, the second %q; handled are %d", got, second.all(), rep.Outcomes[component.Handled].Count)
		}
	})
}

func TestAChildThatIsLeftOutStopsAndKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a heard
		f := newFamily(t, child("a", "1", echoes("a", &a)))
		defer f.r.Close()
		f.r.Start(f.spec)
		f.r.Say(reading("d", "1"))
		f.r.Settled(mother+"/a", "device")
		f.declare()
		f.gone("a")
		f.r.Say(reading("d", "2"))
		f.r.Stop() // also over the death of the process
		f.r.Start(f.spec)
		f.r.Running(mother)
		synctest.Wait()
		if got := a.all(); len(got) != 1 {
			t.Errorf("it is left out and was given %q", got)
		}
		f.declare(child("a", "1", echoes("a", &a)))
		f.r.Settled(mother+"/a", "device")
		if got := a.all(); !slices.Equal(got, []string{"1", "2"}) {
			t.Errorf("it was given %q; want each once", got)
		}
	})
}

func TestAForgottenChildIsOwedNothingAndBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a heard
		f := newFamily(t, child("a", "1", echoes("a", &a)))
		defer f.r.Close()
		f.r.Start(f.spec)
		f.r.Say(reading("d", "1"))
		f.r.Settled(mother+"/a", "device")
		if err := f.forget(t, "a"); err == nil || !strings.Contains(err.Error(), "not declared any more") {
			t.Errorf("a child that runs is forgotten: %v", err)
		}
		f.declare()
		f.gone("a")
		for range 2 { // it may be repeated
			if err := f.forget(t, "a"); err != nil {
				t.Fatal(err)
			}
		}
		for _, rep := range f.r.Host.Peers().Reports() {
			if rep.Consumer == mother+"/a" {
				t.Errorf("a report is left: %+v", rep)
			}
		}
		if f.r.Host.Peers().Forgotten()[mother+"/a"].IsZero() {
			t.Error("operators are not told")
		}
		f.declare(child("a", "1", echoes("a", &a)))
		rep := f.r.Settled(mother+"/a", "device")
		if got := a.all(); !slices.Equal(got, []string{"1", "1"}) || rep.Outcomes[component.Handled].Count != 1 {
			t.Errorf("it was given %q and reports %+v; want it to begin anew", got, rep)
		}
	})
}

func TestWhatGoesWrongInOneChildConcernsNoOther(t *testing.T) {
	well := func(context.Context, *message.Message, component.Try) ([]*message.Message, error) { return nil, nil }
	for name, bad := range map[string]component.Child{
		"cannot be built": child("bad", "1", nil, func(c *component.Child) {
			c.Build = func(component.Env) (*component.Part, error) { return nil, errors.New("no such thing") }
		}),
		"panics when built": child("bad", "1", nil, func(c *component.Child) {
			c.Build = func(component.Env) (*component.Part, error) { panic("a bug") }
		}),
		"runs and fails": child("bad", "1", nil, func(c *component.Child) {
			c.Build = func(component.Env) (*component.Part, error) {
				return &component.Part{Call: well, Run: func(context.Context, func()) error { return errors.New("it broke") }}, nil
			}
		}),
		"hangs": child("bad", "1", func(ctx context.Context, _ *message.Message, _ component.Try) ([]*message.Message, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}),
		"is full": child("bad", "1", func(context.Context, *message.Message, component.Try) ([]*message.Message, error) {
			return nil, errors.New("not now")
		}, func(c *component.Child) {
			c.Retry = component.Retry{First: time.Hour, Most: time.Hour, Attempts: 100, ParkedMax: 2}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var a heard
				f := newFamily(t, bad, child("good", "1", echoes("good", &a)))
				defer f.r.Close()
				f.r.Start(f.spec)
				want := []string{}
				for i := range 20 {
					f.r.Say(reading(fmt.Sprint("d", i), fmt.Sprint(i)))
					want = append(want, fmt.Sprint(i))
				}
				rep := f.r.Settled(mother+"/good", "device")
				got := a.all()
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) || rep.Fault != "" {
					t.Errorf("the other one was given %q, with fault %q", got, rep.Fault)
				}
				for _, h := range f.r.Host.Health() {
					if (h.Name == mother || h.Name == mother+"/good") && (h.State != "running" || h.Restarts > 0) {
						t.Errorf("%s is %s %s", h.Name, h.State, h.Fault)
					}
				}
				for _, rep := range f.r.Host.Peers().Reports() {
					if owed, finished := componenttest.Balance(rep); owed != finished {
						t.Errorf("%s: accepted %+v, finished %+v", rep.Consumer, owed, finished)
					}
				}
			})
		})
	}
}

func TestAPausedChildStaysAConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a heard
		var env component.Env
		f := newFamily(t, child("a", "1", nil, func(c *component.Child) {
			c.Build = func(e component.Env) (*component.Part, error) {
				env = e
				env.Calls(0)
				return &component.Part{Call: echoes("a", &a)}, nil
			}
		}))
		defer f.r.Close()
		f.r.Start(f.spec)
		f.r.Say(reading("d", "1"))
		f.r.Await(mother+"/a", "device", func(rep component.Report) bool { return rep.Waiting.Count == 1 })
		if got := a.all(); len(got) > 0 {
			t.Errorf("it makes no calls and was given %q", got)
		}
		env.Calls(4)
		f.r.Settled(mother+"/a", "device")
		if got := a.all(); !slices.Equal(got, []string{"1"}) {
			t.Errorf("it was given %q", got)
		}
	})
}

func TestADeadLetterGoesBackToItsChildAndNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a, b heard
		var well bool
		sick := func(h *heard) outside {
			return func(_ context.Context, m *message.Message, _ component.Try) ([]*message.Message, error) {
				h.add(string(m.Data))
				if !well {
					return nil, message.Rejectf(message.NotDecodable, "not yet")
				}
				return nil, nil
			}
		}
		f := newFamily(t, child("a", "1", sick(&a)), child("b", "1", sick(&b)))
		defer f.r.Close()
		f.r.Start(f.spec)
		f.r.Say(reading("d", "1"))
		f.r.Settled(mother+"/a", "device")
		f.r.Settled(mother+"/b", "device")
		letters, dead := f.r.Buried(mother+"/a", 1)
		synctest.Wait()
		well = true
		data, err := json.Marshal(operator.Retry{Letter: letters[0].ID, Consumer: mother + "/a", Log: dead[0].Log, Position: dead[0].Position, Original: dead[0].Original})
		if err != nil {
			t.Fatal(err)
		}
		subject := operator.RetrySubject(mother + "/a")
		if err := subject.Valid(); err != nil {
			t.Fatal(err)
		}
		f.r.Say(componenttest.Message(subject, "", string(data)))
		rep := f.r.Await(mother+"/a", "device", func(rep component.Report) bool { return rep.Outcomes[component.Handled].Count == 1 })
		if owed, finished := componenttest.Balance(rep); owed != finished || rep.Outcomes[component.Dead].Count != 0 {
			t.Errorf("accepted %+v, finished %+v, dead %+v", owed, finished, rep.Outcomes[component.Dead])
		}
		if !slices.Equal(a.all(), []string{"1", "1"}) || !slices.Equal(b.all(), []string{"1"}) {
			t.Errorf("a was given %q, b %q", a.all(), b.all())
		}
	})
}

func TestASetOfChildrenIsTakenWholeOrNotAtAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a heard
		good := child("a", "1", echoes("a", &a))
		f := newFamily(t, good)
		defer f.r.Close()
		f.r.Start(f.spec)
		f.r.Running(mother + "/a")
		for want, bad := range map[string]component.Child{
			"small letters":        child("A b", "1", echoes("x", &a)),
			"declared twice":       good,
			"want what it hears":   {Name: "x", Hears: []message.Pattern{"device.*.telemetry"}},
			"does not declare":     child("x", "1", echoes("x", &a), func(c *component.Child) { c.Hears = []message.Pattern{"device.>"} }),
			"pattern \"device..\"": child("x", "1", echoes("x", &a), func(c *component.Child) { c.Hears = []message.Pattern{"device.."} }),
		} {
			f.mu.Lock()
			env := f.env
			f.mu.Unlock()
			if err := env.Children([]component.Child{good, bad}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("it is told %v; want it to say %q", err, want)
			}
		}
		synctest.Wait()
		if f.state("a") != "running" || f.state("x") != "" {
			t.Errorf("a is %q, x is %q", f.state("a"), f.state("x"))
		}
	})
}

func TestADeletedReportIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a heard
		f := newFamily(t, child("a", "1", echoes("a", &a)))
		other := componenttest.New(t)
		other.Bus.Close()
		other.Bus, other.Node = f.r.Bus, "n2"
		defer f.r.Close()
		f.r.Start(f.spec)
		other.Start(component.Define(component.Spec{Name: "operator.watch", Doc: "watches"}, struct{}{}, func(component.Env, struct{}) (*component.Part, error) {
			return &component.Part{}, nil
		}))
		defer other.Stop()
		f.r.Say(reading("d", "1"))
		f.r.Settled(mother+"/a", "device")
		knows := func() bool {
			return slices.ContainsFunc(other.Host.Peers().Reports(), func(r component.Report) bool { return r.Consumer == mother+"/a" })
		}
		other.Until(knows, func() string { return "another process does not hear of the child" })
		f.declare()
		f.gone("a")
		if err := f.forget(t, "a"); err != nil {
			t.Fatal(err)
		}
		other.Until(func() bool { return !knows() }, func() string { return "another process does not hear that the child is forgotten" })
	})
}

// A child that began with what was said then stays where its place is: in another process it would begin anew, and what was
// said meanwhile would be nobody's.
func TestAChildThatBeganWithTheNewestGoesOnWhereItsPlaceIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var here, there heard
		of := func(h *heard) component.Child {
			c := child("a", "1", echoes("a", h))
			c.From = component.Newest
			return c
		}
		f := newFamily(t, of(&here))
		defer f.r.Close()
		f.r.Start(f.spec)
		f.r.Until(func() bool { return f.state("a") == "running" }, func() string { return "it is " + f.state("a") })
		f.r.Say(reading("d", "1"))
		f.r.Settled(mother+"/a", "device")

		other := newFamily(t, of(&there))
		other.r.Bus.Close()
		other.r.Bus, other.r.Node = f.r.Bus.Reopen(), "n2"
		defer other.r.Close()
		other.r.Start(other.spec)
		f.r.Stop()
		f.r.Say(reading("d", "2"))
		<-time.After(time.Minute)
		for _, h := range other.r.Host.Health() {
			if h.Name == mother+"/a" && (h.State != "standby" || !strings.Contains(h.Fault, "node n1")) {
				t.Errorf("in the other process it is %s: %s", h.State, h.Fault)
			}
		}
		f.r.Start(f.spec)
		f.r.Until(func() bool { return len(here.all()) == 2 }, func() string { return fmt.Sprintf("%d are heard", len(here.all())) })
		if len(there.all()) != 0 {
			t.Errorf("the other process heard %d", len(there.all()))
		}
		other.declare()
		f.declare()
		f.gone("a")
		if err := f.forget(t, "a"); err != nil {
			t.Fatal(err)
		}
		f.r.Stop()
		other.declare(of(&there)) // forgotten, it may begin anywhere
		other.r.Until(func() bool { return other.state("a") == "running" }, func() string { return "it is " + other.state("a") })
	})
}

// homesick is a bus on which no home can be written down, as where the process is killed just before.
type homesick struct{ bus.Bus }

func (h homesick) Table(ctx context.Context, name string, o bus.TableOptions) (bus.Table, error) {
	t, err := h.Bus.Table(ctx, name, o)
	if name == "naru_homes" && err == nil {
		return homesickTable{t}, nil
	}
	return t, err
}

type homesickTable struct{ bus.Table }

func (homesickTable) Put(context.Context, string, []byte) (uint64, error) {
	return 0, errors.New("killed")
}

// Whoever gets the name of one whose forgetting was broken off is not given what was said for the one before.
func TestAChildOfAForgottenOnesNameBeginsAnewWhereverForgettingBrokeOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h heard
		a := child("a", "1", echoes("a", &h))
		a.From = component.Newest
		f := newFamily(t, a)
		defer f.r.Close()
		f.r.Over = func(b bus.Bus) bus.Bus { return homesick{b} }
		runs := func() {
			f.r.Until(func() bool { return f.state("a") == "running" }, func() string { return "it is " + f.state("a") })
		}
		f.r.Start(f.spec)
		runs()
		f.r.Say(reading("d", "1"))
		f.r.Settled(mother+"/a", "device")
		f.declare()
		f.gone("a")
		f.r.Say(reading("d", "2"))
		if err := f.forget(t, "a"); err == nil {
			t.Fatal("it was forgotten, though the process was killed")
		}
		f.r.Stop()
		f.r.Over = nil
		f.set = []component.Child{a}
		f.r.Start(f.spec)
		runs()
		f.r.Say(reading("d", "3"))
		f.r.Until(func() bool { return slices.Contains(h.all(), "3") }, func() string { return fmt.Sprintf("it heard %q", h.all()) })
		if got := h.all(); !slices.Equal(got, []string{"1", "3"}) {
			t.Errorf("it heard %q; 2 was said for the one before", got)
		}
	})
}

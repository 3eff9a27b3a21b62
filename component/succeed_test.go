package component_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// own is a component of each node, and what it can reach.
func own(env *component.Env) component.Spec {
	return component.Define(component.Spec{Name: worker, Doc: "works", Hears: []message.Pattern{"device.>"}, State: component.Local, PerNode: true,
		Says: []message.Pattern{"service_platform.worker.*", "device.*.telemetry"}}, struct{}{},
		func(e component.Env, _ struct{}) (*component.Part, error) {
			*env = e
			return &component.Part{Handle: fine, Lease: 3 * time.Second}, nil
		})
}

// say has a change say something, and gives what became of it.
func say(t *testing.T, env *component.Env, data string) (told chan error, err error) {
	t.Helper()
	told = make(chan error, 1)
	return told, env.Change(t.Context(), func(tx component.Tx) error {
		err := tx.Say(&message.Message{Subject: "service_platform.worker.x", Data: []byte(data)})
		tx.Said(func(err error) { told <- err })
		return err
	})
}

// A process sleeps past its lease, another one takes its place, and the first wakes up: nothing more of it arrives.
func TestASuccessorIsBehindAllThatTheFormerProcessSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := componenttest.New(t)
		defer a.Close()
		b := joined(t, a, "n2")
		defer b.Close()
		var first, second component.Env
		a.Start(own(&first))
		b.Start(own(&second))
		a.Running(worker)
		b.Running(worker)
		if _, err := second.Succeed(t.Context(), "n1"); !errors.Is(err, bus.ErrHeld) {
			t.Fatalf("a process that is there is succeeded: %v", err)
		}
		door, err := first.Door(t.Context(), message.Device)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bus.AppendSync(t.Context(), door, reading("d", "before")); err != nil {
			t.Fatal(err)
		}
		if told, err := say(t, &first, "before"); err != nil || <-told != nil {
			t.Fatal("what a change says does not arrive")
		}
		a.Bus.Sleep(true)
		<-time.After(3100 * time.Millisecond)
		s, err := second.Succeed(t.Context(), "n1")
		if err != nil {
			t.Fatal(err)
		}
		if !s.Held() || len(s.Fences) != 4 { // two rows in each of two logs
			t.Errorf("the succession is held: %v, with fences at %+v", s.Held(), s.Fences)
		}
		if _, err := bus.AppendSync(t.Context(), door, reading("d", "after")); message.ReasonOf(err, 0) != message.Fenced {
			t.Errorf("an append behind the fence gives %v", err)
		}
		if told, err := say(t, &first, "after"); err == nil && message.ReasonOf(<-told, 0) != message.Fenced {
			t.Error("what the former process said behind the fence arrived")
		}
		a.Bus.Sleep(false)
		<-time.After(time.Minute)
		if h := a.Host.Health()[0]; h.State != "standby" {
			t.Errorf("the former process is %s (%s) while another one has its place", h.State, h.Fault)
		}
		if err := s.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.Running(worker)
		var said []string
		for _, m := range append(a.Read(message.Device), a.Read(message.ServicePlatform)...) {
			said = append(said, string(m.Data))
		}
		if want := []string{"before", "before", "after"}; !slices.Equal(said, want) {
			t.Errorf("the logs have %q, want %q: what was committed and not said is said when the process has its place again", said, want)
		}
	})
}

// What cannot be said by this process is not waited for for ever.
func TestWhatIsLeftToBeSaidIsToldAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var env component.Env
		r.Start(own(&env))
		r.Running(worker)
		told, err := say(t, &env, "1")
		if err != nil || <-told != nil {
			t.Fatal("what a change says does not arrive")
		}
		r.Bus.SetDown(true)
		if told, err = say(t, &env, "2"); err != nil {
			t.Fatal(err)
		}
		r.Stop()
		if err := <-told; err == nil {
			t.Error("what was not said is told to be")
		}
		r.Bus.SetDown(false)
	})
}

func TestAHandlerKnowsHowFarItHasHeard(t *testing.T) {
	r := componenttest.New(t)
	var heard [][]bus.Position
	r.Start(of(func(_ context.Context, tx component.Tx, _ *message.Message) error {
		heard = append(heard, tx.Heard())
		return nil
	}))
	r.Say(reading("a", "1"))
	r.Say(reading("a", "2"))
	rep := r.Settled(worker, "device")
	r.Stop()
	if len(heard) != 2 || len(heard[0]) != 0 || len(heard[1]) != 1 || heard[1][0].Sequence != 1 || heard[1][0].Log != rep.Position.Log {
		t.Errorf("the handler had heard %+v", heard)
	}
}

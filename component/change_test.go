package component

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// While a commit is under way, changes wait; the next commit carries all of them, and none is told before it.
func TestChangesThatWaitAtTheSameTimeShareACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var env Env
		spec := Define(Spec{Name: "operator.kept", Doc: "keeps", Hears: []message.Pattern{"device.>"}, State: Local, PerNode: true, Lazy: true},
			struct{}{}, func(e Env, _ struct{}) (*Part, error) {
				env = e
				return &Part{Handle: func(context.Context, Tx, *message.Message) error { return nil }}, nil
			})
		var commits, told atomic.Int64
		reached := make(chan struct{})
		var hold atomic.Pointer[chan struct{}]
		host := &Host{Bus: r.bus, Catalog: catalog.Default(), Dir: r.dir, Node: "n1", Specs: []Spec{spec}, crash: func(at string) error {
			if h := hold.Load(); h != nil && at == "before the commit" {
				if commits.Add(1) == 1 {
					close(reached)
				}
				<-*h
			}
			return nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- host.Run(ctx) }()
		synctest.Wait()
		change := func() {
			if err := env.Change(t.Context(), func(tx Tx) error { tx.Set([]byte("k"), []byte("v")); return nil }); err != nil {
				t.Error(err)
			}
			told.Add(1)
		}
		change() // the component runs
		gate := make(chan struct{})
		hold.Store(&gate)
		var group sync.WaitGroup
		group.Go(change)
		<-reached
		for range 200 {
			group.Go(change)
		}
		synctest.Wait()
		if n := told.Load(); n != 1 {
			t.Errorf("%d changes were told to be committed before they were", n-1)
		}
		close(gate)
		group.Wait()
		if n := commits.Load(); n > 3 {
			t.Errorf("200 changes that waited at the same time took %d commits; want 1", n-1)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Who asks for a change and goes away must not find what it works on changed behind his back.
func TestAChangeIsNotAtWorkAnyMoreWhenItsCallerIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var env Env
		spec := Define(Spec{Name: "operator.kept", Doc: "keeps", Hears: []message.Pattern{"device.>"}, State: Local}, struct{}{}, func(e Env, _ struct{}) (*Part, error) {
			env = e
			return &Part{Handle: func(context.Context, Tx, *message.Message) error { return nil }}, nil
		})
		r.start(spec)
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		began, goOn := make(chan struct{}), make(chan struct{})
		var ended atomic.Bool
		var group sync.WaitGroup
		group.Go(func() {
			err := env.Change(ctx, func(Tx) error {
				close(began)
				<-goOn
				ended.Store(true)
				return nil
			})
			if !ended.Load() {
				t.Error("the caller is answered while the change is at work")
			}
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		<-began
		cancel()
		synctest.Wait()
		close(goOn)
		group.Wait()
		r.stop()
		r.bus.Close()
	})
}

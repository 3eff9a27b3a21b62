package component

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// twins is a component with two children that take all telemetry.
func twins(built *atomic.Int64) Spec {
	hears := []message.Pattern{"device.*.telemetry"}
	return Define(Spec{Name: "operator.mother", Doc: "has two children", ChildrenHear: hears}, struct{}{},
		func(env Env, _ struct{}) (*Part, error) {
			return &Part{Run: func(ctx context.Context, ready func()) error {
				var set []Child
				for _, name := range []string{"bad", "good"} {
					set = append(set, Child{Name: name, Hears: hears, Build: func(Env) (*Part, error) {
						if name == "bad" {
							built.Add(1)
						}
						return &Part{Handle: func(_ context.Context, tx Tx, m *message.Message) error {
							tx.Set([]byte(m.ID.String()), m.Data)
							return nil
						}}, nil
					}})
				}
				err := env.Children(set)
				if err == nil {
					ready()
					<-ctx.Done()
				}
				return err
			}}, nil
		})
}

func TestABrokenDiskUnderAChildConcernsNoOther(t *testing.T) {
	r := newRig(t)
	fs := &small{FS: vfs.NewMem(), below: "children/bad", left: 1 << 40}
	var built atomic.Int64
	r.host = &Host{Bus: r.bus, Catalog: catalog.Default(), Dir: r.dir, Node: "n1", Specs: []Spec{twins(&built)}, fs: fs}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.host.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	r.say(reading("d", "1"))
	all := func(n uint64) func(Report) bool { return func(rep Report) bool { return total(rep) == n } }
	r.await("operator.mother/bad", "device", all(1))
	r.await("operator.mother/good", "device", all(1))
	fs.order(func(string, string) error { return errors.New("no disk is there any more") })
	for i := range 50 {
		r.say(reading("d", fmt.Sprint(i)))
	}
	r.await("operator.mother/good", "device", all(51))
	late, tick := time.After(60*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	health := func(name string) Health {
		for _, h := range r.host.Health() {
			if h.Name == name {
				return h
			}
		}
		return Health{}
	}
	for h := health("operator.mother/bad"); !strings.Contains(h.Fault, "no disk") && h.Restarts == 0; h = health("operator.mother/bad") {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("the child with the broken disk is %s %s", h.State, h.Fault)
		}
	}
	for _, name := range []string{"operator.mother", "operator.mother/good"} {
		if h := health(name); h.State != "running" || h.Restarts > 0 {
			t.Errorf("%s is %s %s", name, h.State, h.Fault)
		}
	}
	fs.order(nil) // the disk is there again
	rep := r.await("operator.mother/bad", "device", all(51))
	if a, f := owed(rep); a != f {
		t.Errorf("accepted %+v, finished %+v", a, f)
	}
}

func TestAChildThatDidNotStopIsNotStartedTwice(t *testing.T) {
	var built atomic.Int64
	host := &Host{Bus: newRig(t).bus, Catalog: catalog.Default(), Dir: t.TempDir(), Node: "n1", Specs: []Spec{twins(&built)}}
	host.init()
	c := &Child{Name: "bad", Hears: []message.Pattern{"device.*.telemetry"}, Build: func(Env) (*Part, error) { built.Add(1); return nil, nil }}
	first := host.runs[0].bear(c)
	first.stuck = true // as it is left where its handlers did not return in time
	second := host.runs[0].bear(c)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { second.supervise(ctx); close(done) }()
	late, tick := time.After(60*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	state := func() Health {
		second.mu.Lock()
		defer second.mu.Unlock()
		return second.health
	}
	for state().State != "failed" {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("it is %+v", state())
		}
	}
	cancel()
	<-done
	if built.Load() != 0 || !strings.Contains(state().Fault, "twice") {
		t.Errorf("it was built %d times, and its fault is %q", built.Load(), state().Fault)
	}
}

package componenttest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
)

// echo answers each reading, keeps a count, and cannot stand poison.
func echo(change func(*component.Spec, *component.Part, component.Env)) component.Spec {
	s := component.Spec{Name: "service_platform.echo", Doc: "answers each reading", Hears: []message.Pattern{"device.*.telemetry"},
		Takes: []message.Pattern{"device.*.command.>"}, Says: []message.Pattern{"service_platform.echo.*"}, State: component.Local}
	part := func(env component.Env) *component.Part {
		handle := func(_ context.Context, tx component.Tx, m *message.Message) error {
			if string(m.Data) == "poison" {
				return message.Rejectf(message.NotDecodable, "it is poison")
			}
			n, err := tx.Get([]byte("count"))
			if err != nil {
				return err
			}
			tx.Set([]byte("count"), append(n, '1'))
			return tx.Say(&message.Message{Subject: "service_platform.echo.said", Data: append(n, m.Data...)})
		}
		return &component.Part{Handle: handle, Take: func(_ context.Context, tx component.Tx, m *message.Message, _ int) error {
			if string(m.Data) == "poison" {
				return message.Rejectf(message.NotDecodable, "it is poison")
			}
			return tx.Say(&message.Message{Subject: "service_platform.echo.taken", Data: m.Data})
		}}
	}
	if change != nil {
		change(&s, part(component.Env{}), component.Env{})
	}
	return component.Define(s, struct{}{}, func(env component.Env, _ struct{}) (*component.Part, error) {
		p := part(env)
		if change != nil {
			change(&component.Spec{}, p, env)
		}
		return p, nil
	})
}

func readings() (list []*message.Message) {
	for i := range 5 {
		list = append(list, Message("device.d-1.telemetry", "d-1", strings.Repeat("x", i)))
	}
	return append(list, Message("device.d-1.command.on.1", "d-1", "on"))
}

func poison() *message.Message { return Message("device.d-1.telemetry", "d-1", "poison") }

func TestGoodComponentKeepsThePromises(t *testing.T) {
	Promises(t, Case{Spec: echo(nil), Good: readings, Poison: poison})
}

func TestPoisonInTheQueueIsBuriedOnce(t *testing.T) {
	buries(t, Case{Spec: echo(nil), Poison: func() *message.Message { return Message("device.d-1.command.on.2", "d-1", "poison") }})
}

// verdict takes what a promise complains about, in place of the test.
type verdict struct {
	testing.TB
	mu   sync.Mutex
	said []string
}

// Error takes a complaint.
func (v *verdict) Error(args ...any) { v.add(fmt.Sprint(args...)) }

// Errorf takes a complaint.
func (v *verdict) Errorf(f string, args ...any) { v.add(fmt.Sprintf(f, args...)) }

func (v *verdict) add(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.said = append(v.said, s)
}

func TestPromisesSeeABrokenComponent(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	for name, c := range map[string]struct {
		spec    component.Spec
		promise func(testing.TB, Case)
		want    string
	}{
		"a name of one word": {echo(func(s *component.Spec, _ *component.Part, _ component.Env) { s.Name = "echo" }), declares, "<namespace>.<component>"},
		"a build that opens its directory": {echo(func(_ *component.Spec, _ *component.Part, env component.Env) {
			if env.Dir != nil {
				_, _ = env.Dir()
			}
		}), built, "directory"},
		"a build that opens a log": {echo(func(_ *component.Spec, _ *component.Part, env component.Env) {
			if env.Bus != nil {
				_, _ = env.Bus.Log(context.Background(), "device", bus.LogOptions{})
			}
		}), built, "opened a log"},
		"a build that leaves a goroutine": {echo(func(_ *component.Spec, _ *component.Part, env component.Env) {
			if env.Bus != nil {
				go func() { <-release }()
			}
		}), built, "goroutines are left"},
	} {
		t.Run(name, func(t *testing.T) {
			v := &verdict{TB: t}
			c.promise(v, Case{Spec: c.spec})
			if all := strings.Join(v.said, "; "); !strings.Contains(all, c.want) {
				t.Errorf("the promise said %q; want %q", all, c.want)
			}
		})
	}
}

func TestRigRunsInABubbleWhereBackOffTakesNoTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := component.Define(component.Spec{Name: "service_platform.slow", Doc: "fails for an hour", Hears: []message.Pattern{"device.>"},
			State: component.Local, Retry: component.Retry{First: time.Minute, Most: 10 * time.Minute, Attempts: 20}}, struct{}{},
			func(env component.Env, _ struct{}) (*component.Part, error) {
				return &component.Part{Handle: func(_ context.Context, tx component.Tx, m *message.Message) error {
					if tx.Now().Sub(m.Recorded()) < time.Hour {
						return errors.New("not yet")
					}
					return nil
				}}, nil
			})
		r := New(t)
		defer r.Close()
		r.Start(slow)
		m := Message("device.d-1.telemetry", "d-1", "x")
		r.Say(m)
		<-time.After(2 * time.Hour) // of the bubble
		rep := r.Settled("service_platform.slow", "device")
		if rep.Outcomes[component.Handled].Count != 1 {
			t.Errorf("outcomes are %+v", rep.Outcomes)
		}
	})
}

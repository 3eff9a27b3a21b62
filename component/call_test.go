package component_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/operator"
)

type outside = func(context.Context, *message.Message, component.Try) ([]*message.Message, error)

// calling makes a component of a call.
func calling(call outside, change ...func(*component.Spec, *component.Part)) component.Spec {
	s := component.Spec{Name: worker, Doc: "calls", Hears: []message.Pattern{"device.*.telemetry"}, Says: []message.Pattern{"service_platform.worker.*"},
		State: component.Local, Calls: 4, Retry: component.Retry{First: time.Second, Most: time.Second, Attempts: 3}}
	for _, f := range change {
		f(&s, &component.Part{})
	}
	return component.Define(s, struct{}{}, func(component.Env, struct{}) (*component.Part, error) {
		p := &component.Part{Call: call}
		for _, f := range change {
			f(&component.Spec{}, p)
		}
		return p, nil
	})
}

func speaks(data string) []*message.Message {
	return []*message.Message{{Subject: "service_platform.worker.said", Data: []byte(data)}}
}

// told is what a component said, by data.
func told(r *componenttest.Rig) (list []string) {
	for _, m := range r.Said(worker) {
		list = append(list, string(m.Data))
	}
	return list
}

func outcomes(rep component.Report) map[string]uint64 {
	list := map[string]uint64{}
	for k, s := range rep.Outcomes {
		list[k] = s.Count
	}
	return list
}

func TestCallKeepsThePromises(t *testing.T) {
	echo := func(_ context.Context, m *message.Message, _ component.Try) ([]*message.Message, error) {
		if string(m.Data) == "poison" {
			return nil, message.Rejectf(message.NotDecodable, "it is poison")
		}
		return speaks("echo " + string(m.Data)), nil
	}
	componenttest.Promises(t, componenttest.Case{Spec: calling(echo), Poison: func() *message.Message { return reading("d", "poison") },
		Good: func() (list []*message.Message) {
			for i := range 20 {
				list = append(list, reading(fmt.Sprint("d", i%3), strings.Repeat("x", i)))
			}
			return list
		}})
}

func TestCallsEndIsTheMessagesFate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var mu sync.Mutex
		tries := map[string][]component.Try{}
		r.Start(calling(func(_ context.Context, m *message.Message, try component.Try) ([]*message.Message, error) {
			mu.Lock()
			tries[string(m.Data)] = append(tries[string(m.Data)], try)
			mu.Unlock()
			switch string(m.Data) {
			case "reject":
				return speaks("reject"), message.Rejectf(message.SchemaMismatch, "/celsius: want number")
			case "skip":
				return speaks("skip"), component.ErrNotMatched
			case "panic":
				panic("a bug")
			case "flaky":
				if try.N < 3 {
					return speaks("this is not said"), errors.New("not yet")
				}
			case "never":
				return speaks("never, at " + fmt.Sprint(try.N, try.Last)), errors.New("never")
			case "undeclared":
				return append(speaks("half"), &message.Message{Subject: "device.d.telemetry"}), nil
			case "dies undeclared":
				return []*message.Message{{Subject: "device.d.telemetry"}}, message.Rejectf(message.NotDecodable, "it is poison")
			}
			return speaks(string(m.Data)), nil
		}))
		began := time.Now()
		var ms []*message.Message
		for _, data := range []string{"fine", "reject", "skip", "panic", "flaky", "never", "undeclared", "dies undeclared"} {
			ms = append(ms, reading(data[:3], data)) // each device its own
		}
		r.Say(ms...)
		rep := r.Settled(worker, "device")
		if want := map[string]uint64{component.Handled: 2, component.NotMatched: 1, component.Dead: 5}; !maps.Equal(outcomes(rep), want) {
			t.Errorf("outcomes are %v; want %v", outcomes(rep), want)
		}
		r.Stop()
		said := told(r)
		slices.Sort(said)
		if want := []string{"fine", "flaky", "never, at 3 true", "reject", "skip"}; !slices.Equal(said, want) {
			t.Errorf("it said %q; want %q", said, want)
		}
		for _, m := range r.Said(worker) {
			if i := slices.IndexFunc(ms, func(g *message.Message) bool { return g.ID == m.Cause }); i < 0 || m.Trace.ID != ms[i].Trace.ID || m.Depth != 1 || m.Device != ms[i].Device {
				t.Errorf("%q does not follow from what was heard: %+v", m.Data, m)
			}
		}
		_, dead := r.Buried(worker, 5)
		reasons := map[string]string{}
		for _, d := range dead {
			m, err := d.Message()
			if err != nil {
				t.Fatal(err)
			}
			reasons[string(m.Data)] = fmt.Sprint(d.Reason, " ", d.Attempts)
			if string(m.Data) == "dies undeclared" && !strings.Contains(d.Detail, "does not declare") {
				t.Errorf("nobody is told that what it said was refused: %s", d.Detail)
			}
		}
		if want := map[string]string{"reject": "schema_mismatch 1", "panic": "handler_panic 3", "never": "retries_exhausted 3", "undeclared": "undeclared 1", "dies undeclared": "not_decodable 1"}; !maps.Equal(reasons, want) {
			t.Errorf("they died of %v; want %v", reasons, want)
		}
		if got := tries["never"]; len(got) != 3 || got[0].N != 1 || got[0].Last || !got[2].Last || !got[2].First.Equal(got[0].First) || got[0].First.Before(began) {
			t.Errorf("it was told to be at its tries %+v", got)
		}
	})
}

func TestCallsOfAKeyComeOneAfterTheOtherAndASlowOneDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var mu sync.Mutex
		now, most, all := map[string]int{}, 0, 0
		ended := map[string]time.Duration{}
		order := map[string][]string{}
		began := time.Now()
		r.Start(calling(func(_ context.Context, m *message.Message, _ component.Try) ([]*message.Message, error) {
			mu.Lock()
			now[m.Device]++
			all++
			if now[m.Device] > 1 {
				t.Errorf("%s is called for %d times at once", m.Device, now[m.Device])
			}
			most = max(most, all)
			order[m.Device] = append(order[m.Device], string(m.Data))
			mu.Unlock()
			wait := 10 * time.Millisecond
			if m.Device == "slow" {
				wait = 5 * time.Second
			}
			<-time.After(wait)
			mu.Lock()
			defer mu.Unlock()
			all--
			now[m.Device]--
			ended[string(m.Data)] = time.Since(began)
			return nil, nil
		}))
		var ms []*message.Message
		want := map[string][]string{}
		for i := range 40 {
			for _, d := range []string{"slow", "a", "b", "c", "d", "e"} {
				if d == "slow" && i > 2 {
					continue
				}
				data := fmt.Sprint(d, i)
				ms, want[d] = append(ms, reading(d, data)), append(want[d], data)
			}
		}
		r.Say(ms...)
		r.Settled(worker, "device")
		r.Stop()
		if most != 4 {
			t.Errorf("%d were called for at once; want 4", most)
		}
		if !maps.EqualFunc(order, want, slices.Equal) {
			t.Errorf("order was %v", order)
		}
		if at := ended["e39"]; at > 3*time.Second {
			t.Errorf("the last of the quick ones ended after %s: a slow one held it back", at)
		}
		if at := ended["slow2"]; at < 15*time.Second {
			t.Errorf("the third slow one ended after %s", at)
		}
	})
}

func TestCallsKeepTheOrderOfTheKeyThatIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var mu sync.Mutex
		var order []string
		r.Start(calling(func(_ context.Context, m *message.Message, try component.Try) ([]*message.Message, error) {
			if string(m.Data) == "1" && try.N == 1 {
				return nil, errors.New("not yet")
			}
			mu.Lock()
			defer mu.Unlock()
			order = append(order, string(m.Data))
			return nil, nil
		}, func(_ *component.Spec, p *component.Part) {
			p.Key = func(*message.Message) string { return "all" }
		}))
		r.Say(reading("a", "1"), reading("b", "2"), reading("c", "3"))
		r.Settled(worker, "device")
		r.Stop()
		if want := []string{"1", "2", "3"}; !slices.Equal(order, want) {
			t.Errorf("they were called for in the order %q; want %q", order, want)
		}
	})
}

func TestCallIsTriedAgainWhenTheOtherSideWishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var at []time.Time
		r.Start(calling(func(_ context.Context, _ *message.Message, try component.Try) ([]*message.Message, error) {
			if at = append(at, time.Now()); !try.First.Equal(at[0]) {
				t.Errorf("it is told to have been tried first at %s; want %s", try.First, at[0])
			}
			switch len(at) {
			case 1:
				return nil, &component.RetryAfter{Err: errors.New("busy"), After: 40 * time.Second}
			case 2, 3, 4, 5:
				if try.N != 2 {
					t.Errorf("it is told to be try %d; want 2", try.N)
				}
				return nil, fmt.Errorf("call: %w", &component.RetryAfter{Err: errors.New("nobody is there"), Uncounted: true})
			}
			return nil, nil
		}))
		r.Say(reading("a", "1"))
		r.Await(worker, "device", func(rep component.Report) bool {
			return len(rep.Exceptions) == 1 && rep.Exceptions[0].Attempts == 1 && rep.Exceptions[0].Detail == "busy" && rep.Waiting.Count == 1
		})
		<-time.After(10 * time.Minute)
		rep := r.Settled(worker, "device")
		if len(at) != 6 || at[1].Sub(at[0]) < 40*time.Second || at[1].Sub(at[0]) > 41*time.Second || rep.Outcomes[component.Handled].Count != 1 {
			t.Errorf("it was called for at %v; outcomes are %v", at, outcomes(rep))
		}
	})
}

// What nobody was there for has been tried all the same, since the first time.
func TestTriesThatDoNotCountHaveAFirstOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var first time.Time
		r.Start(calling(func(_ context.Context, _ *message.Message, try component.Try) ([]*message.Message, error) {
			if first.IsZero() {
				first = try.First
			}
			if !try.First.Equal(first) || try.N != 1 {
				t.Errorf("it is told to be try %d, the first at %s; want 1 and %s", try.N, try.First, first)
			}
			if time.Since(first) > 10*time.Second {
				return nil, nil
			}
			return nil, &component.RetryAfter{Err: errors.New("nobody is there"), Uncounted: true}
		}))
		r.Say(reading("a", "1"))
		if rep := r.Settled(worker, "device"); rep.Outcomes[component.Handled].Count != 1 {
			t.Errorf("outcomes are %v", outcomes(rep))
		}
	})
}

func TestCallsStandInTheirQueueAndNoMoreIsTakenThanMayBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		release := make(chan struct{})
		r.Start(calling(func(context.Context, *message.Message, component.Try) ([]*message.Message, error) {
			<-release
			return nil, nil
		}, func(s *component.Spec, _ *component.Part) { s.Retry.ParkedMax = 6 }))
		for i := range 10 {
			r.Say(reading(fmt.Sprint(i), fmt.Sprint(i)))
		}
		<-time.After(10 * time.Second)
		rep := r.Await(worker, "device", func(rep component.Report) bool { return rep.Waiting.Count == 6 })
		if owed, finished := componenttest.Balance(rep); owed != finished || rep.Position.Sequence != 6 || rep.Fault != "" {
			t.Errorf("at batch %d, accepted %+v, finished %+v, fault %q", rep.Position.Sequence, owed, finished, rep.Fault)
		}
		under := 0
		for _, e := range rep.Exceptions {
			if !e.Calling.IsZero() {
				under++
			}
		}
		if len(rep.Exceptions) != 6 || under == 0 {
			t.Errorf("%d are told to be in its hands, %d of them called for", len(rep.Exceptions), under)
		}
		if n := gauge(t, r, "naru_lag_messages"); n != 10 {
			t.Errorf("it is told to be %g messages behind; want 10", n)
		}
		if n := gauge(t, r, "naru_calls"); n != 4 {
			t.Errorf("%g calls are told to be under way; want 4", n)
		}
		if n := gauge(t, r, "naru_parked_messages"); n != 0 {
			t.Errorf("%g are told to be tried again; want none", n)
		}
		close(release)
		r.Settled(worker, "device")
		r.Stop()
	})
}

func TestCallsAreHeldBackAndGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var mu sync.Mutex
		n, most := 0, 0
		var order []string
		var env component.Env
		spec := component.Define(component.Spec{Name: worker, Doc: "calls", Hears: []message.Pattern{"device.>"}, State: component.Local, Calls: 8}, struct{}{},
			func(e component.Env, _ struct{}) (*component.Part, error) {
				env = e
				return &component.Part{Call: func(_ context.Context, m *message.Message, _ component.Try) ([]*message.Message, error) {
					mu.Lock()
					order = append(order, m.Device)
					n++
					most = max(most, n)
					mu.Unlock()
					<-time.After(time.Second)
					mu.Lock()
					n--
					mu.Unlock()
					return nil, nil
				}}, nil
			})
		r.Start(spec)
		r.Running(worker)
		env.Calls(0)
		for i := range 6 {
			r.Say(reading(fmt.Sprint(i), "x"))
		}
		<-time.After(time.Hour)
		if most != 0 {
			t.Errorf("%d calls were made while none may be", most)
		}
		env.Calls(1)
		r.Settled(worker, "device")
		if want := []string{"0", "1", "2", "3", "4", "5"}; most != 1 || !slices.Equal(order, want) {
			t.Errorf("%d calls were made at once, for %v; want 1, and %v", most, order, want)
		}
		env.Calls(100)
		for i := range 20 {
			r.Say(reading(fmt.Sprint(i), "x"))
		}
		r.Settled(worker, "device")
		if most != 8 {
			t.Errorf("%d calls were made at once; want 8, as declared", most)
		}
	})
}

func TestStoppingEndsCallsAndTheNextStartMakesThemAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var mu sync.Mutex
		var seen []string
		stubborn := true
		call := func(ctx context.Context, m *message.Message, try component.Try) ([]*message.Message, error) {
			mu.Lock()
			seen = append(seen, fmt.Sprint(string(m.Data), " ", m.ID, " ", try.N))
			hang := stubborn
			mu.Unlock()
			if !hang {
				return speaks(string(m.Data)), nil
			}
			<-ctx.Done()
			if string(m.Data) == "ends well" {
				return speaks(string(m.Data)), nil
			}
			return speaks("not this"), message.Reject(message.HandlerError, ctx.Err())
		}
		r.Start(calling(call))
		a, b, c := reading("a", "ends well"), reading("b", "ends badly"), reading("b", "is behind")
		r.Say(a, b, c)
		r.Await(worker, "device", func(rep component.Report) bool { return rep.Waiting.Count == 3 })
		r.Stop()
		stubborn = false
		r.Start(calling(call))
		rep := r.Settled(worker, "device")
		r.Stop()
		if rep.Outcomes[component.Handled].Count != 3 || len(rep.Outcomes) != 1 {
			t.Errorf("outcomes are %v", outcomes(rep))
		}
		slices.Sort(seen)
		want := []string{fmt.Sprint("ends badly ", b.ID, " 1"), fmt.Sprint("ends badly ", b.ID, " 1"), fmt.Sprint("ends well ", a.ID, " 1"), fmt.Sprint("is behind ", c.ID, " 1")}
		if !slices.Equal(seen, want) {
			t.Errorf("calls were %q; want %q", seen, want)
		}
		if said, want := told(r), []string{"ends well", "ends badly", "is behind"}; !slices.Equal(said, want) {
			t.Errorf("it said %q; want %q", said, want)
		}
	})
}

// A consumer of which every message dies, one after the other, writes its letters together: its neighbours share the disk.
func TestDeadLettersOfCallsAreWrittenTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		r := componenttest.New(t)
		defer r.Close()
		r.Start(calling(func(_ context.Context, m *message.Message, _ component.Try) ([]*message.Message, error) {
			<-time.After(2 * time.Millisecond)
			return nil, message.Rejectf(message.NotDecodable, "garbage")
		}, func(s *component.Spec, _ *component.Part) { s.Calls = 1 }))
		last := func() uint64 {
			l, err := r.Bus.Log(t.Context(), message.Operator, bus.LogOptions{})
			if err != nil {
				t.Fatal(err)
			}
			info, err := l.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return info.Generations[0].Partitions[0].Last
		}
		before := last()
		for i := range n {
			r.Say(reading(fmt.Sprint("d", i), "x"))
		}
		r.Buried(worker, n)
		if batches := last() - before; batches > n/10 {
			t.Errorf("%d letters took %d batches", n, batches)
		}
	})
}

func TestADeadMessageIsCalledForAgainWhenItsLetterIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		well := false
		spec := calling(func(_ context.Context, m *message.Message, _ component.Try) ([]*message.Message, error) {
			if !well {
				return nil, message.Rejectf(message.NotDecodable, "not yet")
			}
			return speaks(string(m.Data)), nil
		})
		r.Start(spec)
		r.Say(reading("a", "1"), reading("b", "2"))
		r.Settled(worker, "device")
		letters, dead := r.Buried(worker, 2)
		well = true
		want := map[string]uint64{component.Handled: 1, component.Dead: 1}
		for range 2 {
			data, err := json.Marshal(operator.Retry{Letter: letters[0].ID, Consumer: worker, Log: dead[0].Log, Position: dead[0].Position, Original: dead[0].Original})
			if err != nil {
				t.Fatal(err)
			}
			r.Say(componenttest.Message(operator.RetrySubject(worker), "", string(data)))
			rep := r.Await(worker, "device", func(rep component.Report) bool { return maps.Equal(alive(outcomes(rep)), want) })
			if owed, finished := componenttest.Balance(rep); owed != finished {
				t.Errorf("accepted %+v, finished %+v", owed, finished)
			}
			want = map[string]uint64{component.Handled: 2}
			letters, dead = letters[1:], dead[1:]
		}
		r.Stop()
		if got := told(r); len(got) != 4 || !slices.Contains(got, "1") || !slices.Contains(got, "2") { // and what became of each retry
			t.Errorf("it said %q", got)
		}
	})
}

// alive leaves out outcomes that are nothing.
func alive(list map[string]uint64) map[string]uint64 {
	maps.DeleteFunc(list, func(_ string, n uint64) bool { return n == 0 })
	return list
}

func TestAMutantInCallsUnbalancesTheAccount(t *testing.T) {
	for name, times := range map[string]int{"skips one message": 0, "repeats one message": 2} {
		t.Run(name, func(t *testing.T) {
			r := componenttest.New(t)
			host := &component.Host{Bus: r.Bus, Catalog: catalog.Default(), Dir: t.TempDir(), Node: "n1",
				Specs: []component.Spec{calling(func(context.Context, *message.Message, component.Try) ([]*message.Message, error) { return nil, nil })},
				Mutant: func(_ string, index int) int {
					if index == 0 {
						return times
					}
					return 1
				}}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- host.Run(ctx) }()
			defer func() { cancel(); <-done }()
			r.Host = host
			r.Say(reading("a", "ok"))
			rep := r.Await(worker, "device", func(rep component.Report) bool {
				owed, _ := componenttest.Balance(rep)
				return owed.Count == 1 && rep.Waiting.Count == 0
			})
			if owed, finished := componenttest.Balance(rep); owed == finished {
				t.Errorf("accepted %+v equals finished %+v: the mutant was not seen", owed, finished)
			}
		})
	}
}

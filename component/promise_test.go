package component_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

const worker = "operator.worker"

type handler = func(context.Context, component.Tx, *message.Message) error

// of makes a component of a handler.
func of(h handler, change ...func(*component.Spec)) component.Spec {
	s := component.Spec{Name: worker, Doc: "works", Hears: []message.Pattern{"device.>"}, Says: []message.Pattern{"service_platform.worker.*"}, State: component.Local}
	for _, f := range change {
		f(&s)
	}
	return component.Define(s, struct{}{}, func(component.Env, struct{}) (*component.Part, error) { return &component.Part{Handle: h}, nil })
}

func fine(context.Context, component.Tx, *message.Message) error { return nil }

func reading(device, data string) *message.Message {
	return componenttest.Message(message.NewSubject("device", device, "telemetry"), device, data)
}

func log(t *testing.T, r *componenttest.Rig) bus.Log {
	l, err := r.Bus.Log(t.Context(), "device", bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// gauge is the worker's value on the device log.
func gauge(t *testing.T, r *componenttest.Rig, name string) float64 {
	families, err := r.Host.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

// alarms are the names of those raised.
func alarms(r *componenttest.Rig) (names []string) {
	for _, m := range r.Read("operator") {
		if m.Subject.Token(1) == "alarm" {
			names = append(names, m.Subject.Token(2))
		}
	}
	return names
}

func TestWhatWasTrimmedUnreadIsDeadAndAnAlarm(t *testing.T) {
	r := componenttest.New(t)
	r.Start(of(fine))
	r.Say(reading("a", "read"))
	r.Settled(worker, "device")
	r.Stop()
	r.Say(reading("a", "missed"), reading("a", "missed too"), reading("a", "kept, since the row ends here"))
	if err := log(t, r).Trim(t.Context(), bus.Position{Generation: 1, Sequence: 3}); err != nil {
		t.Fatal(err)
	}
	r.Start(of(fine))
	rep := r.Settled(worker, "device")
	if rep.Outcomes[component.Dead].Count != 2 || rep.Outcomes[component.Handled].Count != 2 {
		t.Errorf("outcomes are %+v; want 2 dead and 2 handled", rep.Outcomes)
	}
	r.Stop()
	if names := alarms(r); !slices.Equal(names, []string{"retention_exceeded"}) {
		t.Errorf("alarms are %v", names)
	}
}

func TestALogThatIsNotTheOneReadStandsStillWithAnAlarm(t *testing.T) {
	r, other := componenttest.New(t), componenttest.New(t)
	r.Start(of(fine))
	r.Say(reading("a", "1"))
	r.Settled(worker, "device")
	r.Stop()
	other.Dir = r.Dir // the same component, on a bus that was begun anew
	other.Say(reading("a", "2"))
	var handled atomic.Int32
	other.Start(of(func(context.Context, component.Tx, *message.Message) error { handled.Add(1); return nil }))
	other.Await(worker, "device", func(rep component.Report) bool { return strings.HasPrefix(rep.Fault, "log_truncated") })
	other.Until(func() bool { return len(alarms(other)) > 0 }, func() string { return "no alarm was raised" })
	if names := alarms(other); names[0] != "log_truncated" || handled.Load() > 0 {
		t.Errorf("alarms are %v, and %d messages were handled", names, handled.Load())
	}
}

func TestNewestBeginsOnceAndLeavesNothingOutAfterwards(t *testing.T) {
	newest := func(s *component.Spec) { s.From = component.Newest }
	r := componenttest.New(t)
	r.Say(reading("a", "old"))
	var mu sync.Mutex
	var seen []string
	spec := of(func(_ context.Context, _ component.Tx, m *message.Message) error {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, string(m.Data))
		return nil
	}, newest)
	r.Start(spec)
	r.Await(worker, "device", func(rep component.Report) bool { return rep.Began == 1 })
	r.Stop()
	r.Say(reading("a", "while away"))
	if err := log(t, r).Repartition(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	r.Say(reading("a", "next generation"))
	r.Start(spec)
	r.Await(worker, "device", func(rep component.Report) bool {
		return rep.Position.Generation == 2 && rep.Outcomes[component.Handled].Count == 1
	})
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"while away", "next generation"}; !slices.Equal(seen, want) {
		t.Errorf("it saw %q; want %q", seen, want)
	}
}

func TestAKeyParkedInOneGenerationHoldsTheNextBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var seen []string
		r.Start(of(func(_ context.Context, tx component.Tx, m *message.Message) error {
			if string(m.Data) == "first" && tx.Now().Sub(m.Recorded()) < time.Minute {
				return errors.New("not yet")
			}
			seen = append(seen, string(m.Data))
			return nil
		}, func(s *component.Spec) { s.Retry.Attempts = 100 }))
		r.Say(reading("a", "first"))
		r.Await(worker, "device", func(rep component.Report) bool { return rep.Waiting.Count == 1 })
		if err := log(t, r).Repartition(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		r.Say(reading("a", "second"), reading("b", "other"))
		<-time.After(5 * time.Minute)
		r.Stop()
		if want := []string{"other", "first", "second"}; !slices.Equal(seen, want) {
			t.Errorf("it handled %q; want %q", seen, want)
		}
	})
}

func TestTooMuchParkedStandsStillAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var mended atomic.Bool
		var handled []string
		r.Start(of(func(_ context.Context, _ component.Tx, m *message.Message) error {
			if !mended.Load() {
				return errors.New("what it depends on is away")
			}
			handled = append(handled, string(m.Data))
			return nil
		}, func(s *component.Spec) {
			s.Retry = component.Retry{First: time.Second, Most: time.Second, Attempts: 1000, ParkedMax: 3}
		}))
		for i := range 10 {
			r.Say(reading(fmt.Sprint(i), fmt.Sprint(i)))
		}
		rep := r.Await(worker, "device", func(rep component.Report) bool { return rep.Fault != "" })
		<-time.After(10 * time.Second)
		if rep = r.Await(worker, "device", func(component.Report) bool { return true }); rep.Waiting.Count != 3 || rep.Position.Sequence != 3 {
			t.Errorf("%d are parked at batch %d; want 3 at 3", rep.Waiting.Count, rep.Position.Sequence)
		}
		if owed, finished := componenttest.Balance(rep); owed != finished {
			t.Errorf("standing still: accepted %+v, finished %+v", owed, finished)
		}
		if n, age := gauge(t, r, "naru_lag_messages"), gauge(t, r, "naru_lag_seconds"); n != 10 || age < 5 || age > 11 {
			t.Errorf("it is %g messages and %g s behind; want 10, and the time that has passed", n, age)
		}
		mended.Store(true)
		r.Settled(worker, "device")
		<-time.After(10 * time.Second)
		if n, age := gauge(t, r, "naru_lag_messages"), gauge(t, r, "naru_lag_seconds"); n != 0 || age != 0 {
			t.Errorf("when all is done it is %g messages and %g s behind", n, age)
		}
		r.Await(worker, "device", func(rep component.Report) bool { return rep.Fault == "" })
		r.Stop()
		if len(handled) != 10 {
			t.Errorf("handled %q", handled)
		}
	})
}

func TestABatchThatIsTriedAgainKeepsTheAccountBalanced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		var mended atomic.Bool
		r.Start(component.Define(component.Spec{Name: worker, Doc: "works", Hears: []message.Pattern{"device.>"}, State: component.Local}, struct{}{},
			func(component.Env, struct{}) (*component.Part, error) {
				return &component.Part{HandleBatch: func(_ context.Context, _ component.Tx, _ string, s bus.Stored) error {
					if s.Position.Sequence == 2 && !mended.Load() {
						return errors.New("not yet")
					}
					return nil
				}}, nil
			}))
		r.Say(reading("a", "1"), reading("a", "2"), reading("a", "3"))
		rep := r.Await(worker, "device", func(rep component.Report) bool { return rep.Fault != "" && rep.Position.Sequence == 1 })
		if owed, finished := componenttest.Balance(rep); owed != finished || owed.Count != 1 {
			t.Errorf("standing still: accepted %+v, finished %+v", owed, finished)
		}
		mended.Store(true)
		r.Settled(worker, "device")
	})
}

func TestAQueuedMessageIsTakenOnceTriedAgainAndBuried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		tries := map[string]int{}
		spec := component.Define(component.Spec{Name: worker, Doc: "works", Takes: []message.Pattern{"device.*.command.>"},
			Says: []message.Pattern{"service_platform.worker.*"}, State: component.Local, Retry: component.Retry{First: time.Second, Attempts: 4}}, struct{}{},
			func(component.Env, struct{}) (*component.Part, error) {
				return &component.Part{Take: func(_ context.Context, tx component.Tx, m *message.Message, attempt int) error {
					tries[string(m.Data)]++
					switch string(m.Data) {
					case "slow":
						<-time.After(5 * time.Second)
					case "flaky":
						if attempt < 3 {
							return errors.New("not yet")
						}
					case "never":
						return errors.New("never")
					}
					return tx.Say(&message.Message{Subject: "service_platform.worker.took", Data: m.Data})
				}}, nil
			})
		command := func(data string) *message.Message {
			return componenttest.Message(message.NewSubject("device", "d-1", "command", "on", data), "d-1", data)
		}
		late := command("late")
		late.Expires = time.Now().Add(2 * time.Second)
		r.Put(command("slow"), late, command("fine"), command("flaky"), command("never"))
		r.Start(spec)
		<-time.After(time.Minute)
		r.Stop()
		var said []string
		for _, m := range r.Said(worker) {
			said = append(said, string(m.Data))
		}
		if want := []string{"slow", "fine", "flaky"}; !slices.Equal(said, want) {
			t.Errorf("it took %q; want %q", said, want)
		}
		_, dead := r.Dead(worker)
		if len(dead) != 2 || dead[0].Reason != message.Expired || dead[1].Reason != message.RetriesExhausted || dead[1].Attempts != 4 ||
			tries["never"] != 4 || tries["fine"] != 1 || tries["late"] != 0 {
			t.Errorf("dead: %+v; tries: %v", dead, tries)
		}
	})
}

func TestStoppingFinishesWhatIsUnderWay(t *testing.T) {
	for within, want := range map[time.Duration]int{10 * time.Second: 1, time.Minute: 0} {
		synctest.Test(t, func(t *testing.T) {
			r := componenttest.New(t)
			defer r.Close()
			entered := make(chan struct{})
			r.Start(of(func(ctx context.Context, tx component.Tx, m *message.Message) error {
				close(entered)
				select {
				case <-time.After(within):
				case <-ctx.Done():
					return ctx.Err()
				}
				return tx.Say(&message.Message{Subject: "service_platform.worker.did"})
			}))
			r.Say(reading("a", "1"))
			<-entered
			began := time.Now()
			r.Stop()
			if took := time.Since(began); took > 23*time.Second {
				t.Errorf("it took %s to stop", took)
			}
			if said := r.Said(worker); len(said) != want {
				t.Errorf("with a handler of %s it said %d messages; want %d", within, len(said), want)
			}
		})
	}
}

func TestOutboxFitsItsBatchesToTheEngine(t *testing.T) {
	r := componenttest.New(t)
	large := strings.Repeat("x", 300<<10)
	r.Start(of(func(_ context.Context, tx component.Tx, m *message.Message) error {
		for range 5 {
			if err := tx.Say(&message.Message{Subject: "service_platform.worker.large", Data: []byte(large)}); err != nil {
				return err
			}
		}
		return nil
	}))
	r.Say(reading("a", "1"))
	r.Settled(worker, "device")
	r.Stop()
	if n := len(r.Said(worker)); n != 5 {
		t.Errorf("%d of 5 were said", n)
	}
}

func TestWhatIsTooLargeToBeSaidIsItsMessagesFate(t *testing.T) {
	r := componenttest.New(t)
	r.Start(of(func(_ context.Context, tx component.Tx, m *message.Message) error {
		if string(m.Data) == "say" {
			return tx.Say(&message.Message{Subject: "service_platform.worker.huge", Data: make([]byte, 2<<20)})
		}
		return message.Rejectf(message.SchemaMismatch, "it is large")
	}))
	large := reading("b", strings.Repeat("x", 1<<20-4096)) // in JSON it does not fit into a dead letter
	r.Say(reading("a", "say"), large)
	r.Settled(worker, "device")
	r.Stop()
	letters, dead := r.Dead(worker)
	if len(dead) != 2 || dead[0].Reason != message.MessageTooLarge || dead[1].Reason != message.SchemaMismatch || letters[1].Cause != large.ID {
		t.Fatalf("dead letters: %d", len(dead))
	}
	if m, err := dead[1].Message(); err != nil || m.ID != large.ID || !strings.Contains(dead[1].Detail, "in the log at its position") {
		t.Errorf("the letter has %v (%v) and says %q", m, err, dead[1].Detail)
	}
}

func TestASecondOwnerWaitsAndTakesOver(t *testing.T) {
	r := componenttest.New(t)
	r.Start(of(fine))
	r.Say(reading("a", "1"))
	r.Settled(worker, "device")
	second := &component.Host{Bus: r.Bus.Reopen(), Catalog: r.Host.Catalog, Dir: t.TempDir(), Node: "n2", Specs: []component.Spec{of(fine)}}
	defer second.Bus.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- second.Run(ctx) }()
	state := func(want string) {
		r.Until(func() bool { return second.Health()[0].State == want }, func() string { return "it is " + second.Health()[0].State + ", not " + want })
	}
	state("standby")
	r.Stop()
	state("running")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRoutesOfOneComponentDoNotHurtAnothers(t *testing.T) {
	route := func(name, pattern string, h http.HandlerFunc) component.Spec {
		return component.Define(component.Spec{Name: name, Doc: "answers"}, struct{}{}, func(component.Env, struct{}) (*component.Part, error) {
			return &component.Part{Routes: []component.Route{{Pattern: pattern, Handler: h, Public: true}}}, nil
		})
	}
	r := componenttest.New(t)
	r.Start(route("operator.good", "GET /good", func(http.ResponseWriter, *http.Request) {}),
		route("operator.bad", "GET /bad", func(http.ResponseWriter, *http.Request) { panic("a bug") }),
		route("operator.worse", "no pattern at all", nil))
	r.Running("operator.good")
	r.Running("operator.bad")
	r.Until(func() bool { return r.Host.Health()[2].State == "failed" }, func() string { return "the malformed route was not seen" })
	h := r.Host.Handler(func(*http.Request) bool { return false })
	for path, want := range map[string]int{"/good": http.StatusOK, "/bad": http.StatusInternalServerError} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("GET %s gives %d; want %d", path, w.Code, want)
		}
	}
}

func TestDeadLettersOfDeadLettersEnd(t *testing.T) {
	r := componenttest.New(t)
	r.Start(of(func(context.Context, component.Tx, *message.Message) error {
		return message.Rejectf(message.NotDecodable, "it can handle nothing")
	}, func(s *component.Spec) { s.Hears = []message.Pattern{"device.>", "operator.dead.>"} }))
	r.Say(reading("a", "1"))
	r.Await(worker, "operator", func(rep component.Report) bool {
		return rep.Outcomes[component.Dead].Count == message.DepthMax
	})
	r.Settled(worker, "operator")
	r.Stop()
	if _, dead := r.Dead(worker); len(dead) != message.DepthMax || dead[0].Component != worker {
		t.Errorf("%d dead letters; want %d", len(dead), message.DepthMax)
	}
}

func TestAGenerationThatVanishedUnreadIsAnAlarm(t *testing.T) {
	r := componenttest.New(t)
	r.Start(of(fine))
	r.Say(reading("a", "read"))
	r.Settled(worker, "device")
	r.Stop()
	r.Say(reading("a", "missed"))
	l := log(t, r)
	if err := errors.Join(l.Repartition(t.Context(), 1), l.Trim(t.Context(), bus.Position{Generation: 1, Sequence: 2})); err != nil {
		t.Fatal(err)
	}
	r.Say(reading("a", "next"))
	for range 2 { // the second process does not raise it again
		r.Start(of(fine))
		r.Settled(worker, "device")
		r.Stop()
	}
	if names := alarms(r); !slices.Equal(names, []string{"retention_exceeded"}) {
		t.Errorf("alarms are %v", names)
	}
}

func TestAStoreBegunAnewIsNotTakenForTheOneThatWasLost(t *testing.T) {
	r := componenttest.New(t)
	spec := of(func(_ context.Context, tx component.Tx, m *message.Message) error {
		return tx.Say(&message.Message{Subject: "service_platform.worker.said", Data: m.Data})
	})
	r.Start(spec)
	r.Say(reading("a", "1"), reading("a", "2"), reading("a", "3"))
	r.Settled(worker, "device")
	r.Stop()
	r.Dir = t.TempDir()
	r.FailBefore(1) // so that it starts with something in its outbox, whose numbers were used before
	r.Start(spec)
	r.Settled(worker, "device")
	r.Until(func() bool { return r.Faults() == 1 }, func() string { return "its outbox did not fail" })
	r.Until(func() bool { return len(r.Said(worker)) == 6 }, func() string {
		return fmt.Sprintf("it said %d messages; want 3 with the first store and 3 with the second", len(r.Said(worker)))
	})
}

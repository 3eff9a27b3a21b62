package component_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"github.com/naru-platform/naru/message/operator"
	"slices"
	"strconv"
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

func derived(s *component.Spec) { s.State, s.Into = component.Derived, message.ServicePlatform }

// echo says what it hears.
func echo(_ context.Context, tx component.Tx, m *message.Message) error {
	return tx.Say(&message.Message{Subject: message.NewSubject("service_platform", "worker", m.Device), Data: bytes.Clone(m.Data)})
}

// joined makes another process on the same bus.
func joined(t *testing.T, r *componenttest.Rig, node string) *componenttest.Rig {
	other := componenttest.New(t)
	if err := other.Bus.Close(); err != nil {
		t.Fatal(err)
	}
	other.Bus, other.Node = r.Bus.Reopen(), node
	return other
}

// inOrder holds what the worker said against what each device sent, once and in order.
func inOrder(t *testing.T, r *componenttest.Rig, devices, each int) {
	t.Helper()
	next := map[string]int{}
	for _, m := range r.Said(worker) {
		n, err := strconv.Atoi(string(m.Data))
		if err != nil {
			t.Fatal(err)
		}
		if n != next[m.Device] {
			t.Fatalf("of %s came %d where %d was next", m.Device, n, next[m.Device])
		}
		next[m.Device]++
	}
	for i := range devices {
		if d := fmt.Sprint("d", i); next[d] != each {
			t.Errorf("of %s came %d messages; want %d", d, next[d], each)
		}
	}
}

// finished counts the fates at the worker over all partitions, by what it reported last.
func finished(r *componenttest.Rig) (n uint64) {
	for _, rep := range r.Host.Peers().Reports() {
		if rep.Consumer == worker {
			_, f := componenttest.Balance(rep)
			n += f.Count - rep.Waiting.Count
		}
	}
	return n
}

func holds(r *componenttest.Rig) int { return r.Host.Health()[0].Holds }

func TestPartitionsSpreadOverProcessesAndComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := componenttest.New(t)
		if _, err := a.Bus.Log(t.Context(), "device", bus.LogOptions{Partitions: 4}); err != nil {
			t.Fatal(err)
		}
		sent := 0
		say := func(n int) {
			for range n {
				for i := range 8 {
					a.Say(reading(fmt.Sprint("d", i), strconv.Itoa(sent)))
				}
				sent++
			}
		}
		spec := of(echo, derived)
		a.Start(spec)
		say(3)
		a.Until(func() bool { return holds(a) == 4 }, func() string { return "the first process does not take all" })
		b := joined(t, a, "n2")
		b.Start(spec)
		a.Until(func() bool { return holds(a) == 2 && holds(b) == 2 }, func() string {
			return fmt.Sprintf("they hold %d and %d of 4 partitions", holds(a), holds(b))
		})
		say(3)
		a.Until(func() bool { return finished(a) == uint64(8*sent) }, func() string { return "not all is handled by both" })
		b.Stop()
		say(3)
		a.Until(func() bool { return holds(a) == 4 && finished(a) == uint64(8*sent) }, func() string {
			return fmt.Sprintf("after the other has left it holds %d, and %d of %d messages are handled", holds(a), finished(a), 8*sent)
		})
		for _, rep := range a.Host.Peers().Reports() {
			if owed, f := componenttest.Balance(rep); owed != f {
				t.Errorf("partition %d: accepted %+v, finished %+v", rep.Position.Partition, owed, f)
			}
		}
		inOrder(t, a, 8, sent)
		b.Close()
		a.Close()
	})
}

func TestAPartitionGoesOnForHoursWithoutAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		defer r.Close()
		r.Start(of(echo, derived))
		for i := range 5 {
			r.Say(reading("d0", strconv.Itoa(i)))
			r.Settled(worker, "device")
			time.Sleep(2 * time.Hour) // with nothing to do, and longer than between two looks for what can be forgotten
		}
		r.Stop()
		inOrder(t, r, 1, 5)
		families, err := r.Host.Metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "naru_component_restarts_total" {
				t.Errorf("it was started anew: %v", f.GetMetric())
			}
		}
	})
}

func TestAnOwnerThatSleptPastItsLeaseHarmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := componenttest.New(t)
		asleep, wake := make(chan struct{}), make(chan struct{})
		var once sync.Once
		a.Start(of(func(ctx context.Context, tx component.Tx, m *message.Message) error {
			if string(m.Data) == "1" {
				once.Do(func() {
					close(asleep)
					<-wake // for longer than its lease, as in a process that was stopped
				})
			}
			return echo(ctx, tx, m)
		}, derived))
		a.Say(reading("d0", "0"))
		a.Settled(worker, "device")
		a.Say(reading("d0", "1"))
		<-asleep
		a.Bus.Sleep(true)
		b := joined(t, a, "n2")
		b.Start(of(echo, derived))
		b.Until(func() bool { return holds(b) == 1 }, func() string { return "nobody takes over" })
		a.Say(reading("d0", "2"))
		b.Until(func() bool { return finished(b) == 3 }, func() string { return "the new owner does not go on" })
		a.Bus.Sleep(false)
		close(wake)
		<-time.After(time.Minute) // of the bubble's: the former owner wakes, and tries to commit
		a.Say(reading("d0", "3"))
		b.Until(func() bool { return finished(b) == 4 }, func() string { return "nobody goes on after the former owner woke" })
		inOrder(t, b, 1, 4)
		b.Close()
		a.Close()
	})
}

func TestWhatIsParkedOutlivesItsOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		var well atomic.Bool
		slow := func(s *component.Spec) {
			derived(s)
			s.Retry = component.Retry{First: time.Second, Most: time.Second, Attempts: 1000}
		}
		spec := of(func(ctx context.Context, tx component.Tx, m *message.Message) error {
			if m.Device == "d0" && !well.Load() {
				return errors.New("not now")
			}
			return echo(ctx, tx, m)
		}, slow)
		r.Start(spec)
		r.Say(reading("d0", "0"), reading("d1", "0"), reading("d0", "1"), reading("d1", "1"))
		rep := r.Await(worker, "device", func(rep component.Report) bool { return rep.Waiting.Count == 2 && rep.Position.Sequence == 4 })
		if rep.Needed != 1 || len(rep.Exceptions) != 2 || rep.Exceptions[0].Detail != "not now" {
			t.Errorf("its report is %+v", rep)
		}
		r.Stop()
		r.Start(spec)
		r.Say(reading("d0", "2"), reading("d1", "2"))
		r.Await(worker, "device", func(rep component.Report) bool { return rep.Waiting.Count == 3 && rep.Position.Sequence == 6 })
		well.Store(true)
		if rep := r.Settled(worker, "device"); rep.Needed != 0 || rep.Outcomes[component.Handled].Count != 6 {
			t.Errorf("its report is %+v", rep)
		}
		inOrder(t, r, 2, 3)
		r.Close()
	})
}

func TestWhatWasParkedAndTrimmedIsDeadAndAnAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		spec := of(func(ctx context.Context, tx component.Tx, m *message.Message) error {
			if m.Device == "d0" {
				return errors.New("never")
			}
			return echo(ctx, tx, m)
		}, func(s *component.Spec) {
			derived(s)
			s.Retry = component.Retry{First: time.Hour, Most: time.Hour}
		})
		r.Start(spec)
		r.Say(reading("d0", "0"), reading("d1", "0"))
		r.Await(worker, "device", func(rep component.Report) bool { return rep.Waiting.Count == 1 && rep.Position.Sequence == 2 })
		r.Stop()
		if err := log(t, r).Trim(t.Context(), bus.Position{Generation: 1, Sequence: 1}); err != nil {
			t.Fatal(err)
		}
		r.Start(spec)
		r.Say(reading("d1", "1"))
		if rep := r.Settled(worker, "device"); rep.Outcomes[component.Dead].Count != 1 || rep.Outcomes[component.Handled].Count != 2 {
			t.Errorf("outcomes are %+v", rep.Outcomes)
		}
		if names := alarms(r); !slices.Equal(names, []string{"retention_exceeded"}) {
			t.Errorf("alarms are %v", names)
		}
		r.Close()
	})
}

func TestKeysThatMoveWithANewGenerationKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		var well atomic.Bool
		spec := of(func(ctx context.Context, tx component.Tx, m *message.Message) error {
			if m.Device == "d0" && !well.Load() {
				return errors.New("not now")
			}
			return echo(ctx, tx, m)
		}, func(s *component.Spec) {
			derived(s)
			s.Retry = component.Retry{First: time.Second, Most: time.Second, Attempts: 1000}
		})
		r.Start(spec)
		for i := range 6 {
			r.Say(reading(fmt.Sprint("d", i), "0"))
		}
		r.Await(worker, "device", func(rep component.Report) bool { return rep.Waiting.Count == 1 && rep.Position.Sequence == 6 })
		if err := log(t, r).Repartition(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		for i := range 6 {
			r.Say(reading(fmt.Sprint("d", i), "1"))
		}
		r.Stop()
		r.Start(spec)
		<-time.After(10 * time.Second) // of the bubble's
		if n := finished(r); n != 5 {
			t.Errorf("%d messages are finished while one of the old generation is parked; want 5", n)
		}
		well.Store(true)
		r.Until(func() bool { return finished(r) == 12 }, func() string { return fmt.Sprintf("%d of 12 messages are finished", finished(r)) })
		inOrder(t, r, 6, 2)
		r.Close()
	})
}

func TestAllProcessesOfAComponentBeginWithTheSameNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		spec := of(echo, derived, func(s *component.Spec) { s.From = component.Newest })
		r.Say(reading("d0", "old"))
		r.Start(spec)
		r.Running(worker)
		r.Await(worker, "device", func(rep component.Report) bool { return rep.Began == 1 })
		r.Stop()
		r.Say(reading("d0", "0"))
		if err := log(t, r).Repartition(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		r.Say(reading("d0", "1"))
		other := joined(t, r, "n2")
		other.Start(spec)
		other.Until(func() bool { return finished(other) == 2 }, func() string { return fmt.Sprintf("%d messages are finished", finished(other)) })
		inOrder(t, other, 1, 2)
		other.Close()
		r.Close()
	})
}

func TestABatchThatYieldsMoreThanABatchIsWrittenInSeveral(t *testing.T) {
	r := componenttest.New(t) // its engine takes batches of 1 MiB
	spec := of(func(_ context.Context, tx component.Tx, m *message.Message) error {
		if len(m.Data) > 100 {
			for range 9 {
				if err := tx.Say(&message.Message{Subject: "service_platform.worker.x", Data: make([]byte, 200_000)}); err != nil {
					return err
				}
			}
		}
		return tx.Say(&message.Message{Subject: message.NewSubject("service_platform", "worker", m.Device), Data: append(bytes.Clone(m.Data), make([]byte, 50_000)...)})
	}, derived)
	var batch []*message.Message
	for i := range 100 {
		batch = append(batch, reading("d0", strconv.Itoa(i)))
	}
	batch = append(batch, reading("d0", strings.Repeat("too much", 20)), reading("d0", "100"))
	together(t, r, batch)
	r.Start(spec)
	rep := r.Settled(worker, "device")
	if rep.Outcomes[component.Handled].Count != 101 || rep.Outcomes[component.Dead].Count != 1 {
		t.Errorf("outcomes are %+v", rep.Outcomes)
	}
	if _, dead := r.Dead(worker); len(dead) != 1 || dead[0].Reason != message.MessageTooLarge {
		t.Errorf("dead letters are %+v", dead)
	}
	said := r.Said(worker)
	if len(said) != 101 {
		t.Fatalf("it said %d messages; want 101", len(said))
	}
	for i, m := range said {
		if s := string(bytes.TrimRight(m.Data, "\x00")); s != strconv.Itoa(i) {
			t.Fatalf("message %d is %q", i, s)
		}
	}
}

// together appends messages as one batch.
func together(t *testing.T, r *componenttest.Rig, ms []*message.Message) {
	l := log(t, r)
	w, err := l.Writer(t.Context(), bus.WriterOptions{Name: "door", Owner: message.NewID(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(t.Context(), bus.Position{}, nil, ms); err != nil {
		t.Fatal(err)
	}
}

// A handler may do without what was refused: it takes no room from what comes after.
func TestWhatIsRefusedTakesNoRoom(t *testing.T) {
	r := componenttest.New(t) // its engine takes batches of 1 MiB
	r.Start(of(func(_ context.Context, tx component.Tx, m *message.Message) error {
		of := func(size int) *message.Message {
			return &message.Message{Subject: "service_platform.worker.x", Data: make([]byte, size)}
		}
		if err := tx.Say(of(600_000)); err != nil {
			return err
		}
		if err := tx.Say(of(600_000)); message.ReasonOf(err, 0) != message.MessageTooLarge {
			return message.Rejectf(message.HandlerError, "a second large message gives %v", err)
		}
		return tx.Say(of(100_000))
	}, derived))
	r.Say(reading("d0", "0"))
	rep := r.Settled(worker, "device")
	if n := len(r.Said(worker)); rep.Outcomes[component.Handled].Count != 1 || n != 2 {
		t.Errorf("%d of 2 messages were said; outcomes are %+v", n, rep.Outcomes)
	}
}

func TestAComponentThatHearsItselfComesToRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		r.Start(of(func(ctx context.Context, tx component.Tx, m *message.Message) error {
			if m.Subject.Namespace() != "device" {
				return component.ErrNotMatched
			}
			return echo(ctx, tx, m)
		}, derived, func(s *component.Spec) { s.Hears = append(s.Hears, "service_platform.>") }))
		r.Say(reading("d0", "0"))
		r.Settled(worker, "service_platform")
		<-time.After(time.Minute) // of the bubble's
		own, err := r.Bus.Log(t.Context(), "service_platform", bus.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		info, err := own.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := info.Generations[0].Partitions[0].Last; n > 4 {
			t.Errorf("one message led to %d batches within a minute", n)
		}
		r.Close()
	})
}

func TestAHandlerWithoutStateThatWritesIsToldSo(t *testing.T) {
	r := componenttest.New(t)
	r.Start(of(func(_ context.Context, tx component.Tx, m *message.Message) error {
		tx.Set([]byte("k"), m.Data)
		return nil
	}, derived))
	r.Say(reading("d0", "0"))
	r.Settled(worker, "device")
	if _, dead := r.Dead(worker); len(dead) != 1 || dead[0].Reason != message.Undeclared || !strings.Contains(dead[0].Detail, "no keys") {
		t.Errorf("dead letters are %+v", dead)
	}
}

func TestHandlingByKeyAtTheSameTimeIsAsIfOneHadDoneItAll(t *testing.T) {
	for _, state := range []component.State{component.Local, component.Derived} {
		synctest.Test(t, func(t *testing.T) { // where a busy machine costs nobody a lease
			r := componenttest.New(t)
			defer r.Close()
			var at, most, blocked atomic.Int32
			var met sync.WaitGroup
			met.Add(2)
			failed, next := map[string]bool{}, map[string]int{}
			var mu sync.Mutex
			spec := of(func(ctx context.Context, tx component.Tx, m *message.Message) error {
				mu.Lock()
				most.Store(max(most.Load(), at.Add(1)))
				mu.Unlock()
				defer at.Add(-1)
				if blocked.Add(1) <= 2 { // two keys are handled at the same time, or this waits for ever
					met.Done()
					met.Wait()
				}
				mu.Lock()
				if n := strconv.Itoa(next[m.Device]); n != string(m.Data) {
					t.Errorf("%s of %s was handled where %s was next", m.Data, m.Device, n)
				}
				first := string(m.Data) == "5" && !failed[m.Device]
				failed[m.Device] = failed[m.Device] || first
				if !first {
					next[m.Device]++
				}
				mu.Unlock()
				if first {
					return errors.New("not at first")
				}
				if state == component.Local {
					v, err := tx.Get([]byte(m.Device))
					if err != nil {
						return err
					}
					n, _ := strconv.Atoi(string(v)) // nothing is zero
					if strconv.Itoa(n) != string(m.Data) {
						return message.Rejectf(message.HandlerError, "%s came where %d was next", m.Data, n)
					}
					tx.Set([]byte(m.Device), strconv.AppendInt(nil, int64(n+1), 10))
				}
				return echo(ctx, tx, m)
			}, func(s *component.Spec) {
				s.Parallel, s.State = 4, state
				if state == component.Derived {
					s.Into = message.ServicePlatform
				}
				s.Retry = component.Retry{First: time.Millisecond}
			})
			var batch []*message.Message
			for i := range 40 {
				for d := range 15 { // of no common divisor with the shards, so that a key has no place of its own
					batch = append(batch, reading(fmt.Sprint("d", d), strconv.Itoa(i)))
				}
			}
			together(t, r, batch)
			r.Start(spec)
			if rep := r.Settled(worker, "device"); rep.Outcomes[component.Handled].Count != 600 {
				t.Errorf("outcomes are %+v", rep.Outcomes)
			}
			r.Stop() // and what it said is said
			inOrder(t, r, 15, 40)
			if most.Load() < 2 {
				t.Error("never were two handled at the same time")
			}
		})
	}
}

func TestAChangeFromOutsideIsCommittedWhenItReturns(t *testing.T) {
	r := componenttest.New(t)
	var env component.Env
	spec := component.Define(component.Spec{Name: worker, Doc: "works", Hears: []message.Pattern{"device.>"}, Says: []message.Pattern{"service_platform.worker.*"},
		State: component.Local, PerNode: true, Lazy: true}, struct{}{}, func(e component.Env, _ struct{}) (*component.Part, error) {
		env = e
		return &component.Part{Handle: fine}, nil
	})
	r.Start(spec)
	r.Running(worker)
	told := make(chan struct{})
	if err := env.Change(t.Context(), func(tx component.Tx) error {
		tx.Set([]byte("k"), []byte("v"))
		tx.After(func() { close(told) })
		return tx.Say(&message.Message{Subject: "service_platform.worker.x", Data: []byte("changed")})
	}); err != nil {
		t.Fatal(err)
	}
	<-told
	if err := env.Change(t.Context(), func(tx component.Tx) error {
		tx.Set([]byte("k"), []byte("other"))
		return errors.New("not this one")
	}); err == nil || err.Error() != "not this one" {
		t.Errorf("a change that fails gives %v", err)
	}
	if err := env.View(func(v component.View) error {
		got, err := v.Get([]byte("k"))
		if string(got) != "v" {
			t.Errorf("k is %q", got)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	r.Say(reading("d0", "0"))
	r.Settled(worker+"/n1", "device")
	r.Stop()
	if err := env.Change(t.Context(), func(component.Tx) error { return nil }); err == nil {
		t.Error("a component that has stopped makes changes")
	}
	if said := r.Said(worker); len(said) != 1 || string(said[0].Data) != "changed" {
		t.Errorf("it said %v", said)
	}
}

func TestEachProcessOfAPerNodeComponentHearsAll(t *testing.T) {
	a := componenttest.New(t)
	spec := of(fine, func(s *component.Spec) { s.PerNode = true })
	b := joined(t, a, "n2")
	a.Start(spec)
	b.Start(spec)
	a.Say(reading("d0", "0"), reading("d1", "0"))
	for rig, name := range map[*componenttest.Rig]string{a: worker + "/n1", b: worker + "/n2"} {
		if rep := rig.Settled(name, "device"); rep.Outcomes[component.Handled].Count != 2 {
			t.Errorf("%s: %+v", name, rep.Outcomes)
		}
	}
}

// TestADeadMessageOfASpreadComponentGoesBackToItsPartition also where the partition was finished long ago, the process is
// another one, and the queue gives the letter twice.
func TestADeadMessageOfASpreadComponentGoesBackToItsPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := componenttest.New(t)
		var well atomic.Int32 // 0 it dies, 1 it fails, 2 it is handled
		spec := of(func(ctx context.Context, tx component.Tx, m *message.Message) error {
			switch {
			case well.Load() == 0:
				return message.Rejectf(message.NotDecodable, "not yet")
			case well.Load() == 1:
				return errors.New("fails")
			}
			return echo(ctx, tx, m)
		}, derived, func(s *component.Spec) {
			s.Retry = component.Retry{First: time.Second, Most: time.Second, Attempts: 1000}
		})
		r.Start(spec)
		r.Say(reading("d0", "0"), reading("d0", "1"))
		r.Settled(worker, "device")
		letters, dead := r.Dead(worker)
		if len(dead) != 2 {
			t.Fatalf("%d are dead; want 2", len(dead))
		}
		retry := func(i int) *message.Message {
			data, err := json.Marshal(operator.Retry{Letter: letters[i].ID, Consumer: worker, Log: dead[i].Log, Position: dead[i].Position, Original: dead[i].Original})
			if err != nil {
				t.Fatal(err)
			}
			return componenttest.Message(operator.RetrySubject(worker), "", string(data))
		}
		fates := func(handled, waiting, left uint64) {
			t.Helper()
			rep := r.Await(worker, "device", func(rep component.Report) bool {
				return rep.Position.Generation == 1 && rep.Outcomes[component.Handled].Count == handled && rep.Waiting.Count == waiting && rep.Outcomes[component.Dead].Count == left
			})
			if owed, f := componenttest.Balance(rep); owed != f {
				t.Errorf("accepted %+v, finished %+v", owed, f)
			}
		}
		// One is taken back, fails, and waits; the process that takes over has it from the mark alone.
		well.Store(1)
		first := retry(0)
		r.Say(first)
		fates(0, 1, 1)
		r.Stop()
		well.Store(2)
		r.Start(spec)
		fates(1, 0, 1)
		<-time.After(3 * time.Minute) // the queue knows the retry's id no more, and gives it again
		r.Say(first)
		<-time.After(time.Minute)
		fates(1, 0, 1)
		// The other one goes back to a generation that is sealed, finished and trimmed to its end.
		if err := log(t, r).Repartition(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute)
		if err := log(t, r).Trim(t.Context(), bus.Position{Generation: 1, Sequence: 2}); err != nil {
			t.Fatal(err)
		}
		r.Say(retry(1))
		fates(2, 0, 0)
		r.Say(retry(1)) // it is dead no more
		<-time.After(time.Minute)
		var results, said []string
		for _, m := range r.Said(worker) {
			if m.Subject != operator.RetriedSubject(worker) {
				said = append(said, string(m.Data))
				continue
			}
			var x operator.Retried
			if err := json.Unmarshal(m.Data, &x); err != nil {
				t.Fatal(err)
			}
			results = append(results, x.Result)
		}
		if want := []string{"handled", "handled", "refused"}; !slices.Equal(results, want) {
			t.Errorf("the retries ended as %q; want %q", results, want)
		}
		if want := []string{"0", "1"}; !slices.Equal(said, want) {
			t.Errorf("it said %q; want %q", said, want)
		}
		r.Close()
	})
}

package component

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/operator"
)

// rig is a host on the engine in memory.
type rig struct {
	t    *testing.T
	bus  *mem.Bus
	dir  string
	host *Host
	now  func() time.Time // the next process's clock
	fs   vfs.FS           // and its file system; nil is the machine's
	stop func()
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, bus: mem.New(mem.Options{}), dir: t.TempDir(), stop: func() {}}
	t.Cleanup(func() { r.stop(); r.bus.Close() })
	return r
}

// start runs the specs, as a process of its own would.
func (r *rig) start(specs ...Spec) {
	r.t.Helper()
	r.host = &Host{Bus: r.bus, Catalog: catalog.Default(), Dir: r.dir, Node: "n1", Specs: specs, Now: r.now, fs: r.fs,
		Log: slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	host := r.host
	go func() { done <- host.Run(ctx) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				r.t.Error(err)
			}
		})
	}
}

// say appends messages of devices, each on disk when it returns.
func (r *rig) say(ms ...*message.Message) {
	r.t.Helper()
	l, err := r.bus.Log(r.t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	a, err := l.Appender(r.t.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(time.Now())})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, m := range ms {
		if _, err := bus.AppendSync(r.t.Context(), a, m); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := a.Close(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func reading(device, data string) *message.Message {
	now := time.Now()
	return &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Device: device,
		Subject: message.NewSubject("device", device, "telemetry"), Data: []byte(data)}
}

// await waits until the consumer's report on a log satisfies f.
func (r *rig) await(consumer, log string, f func(Report) bool) Report {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	var last Report
	for {
		for _, rep := range r.host.Peers().Reports() {
			if rep.Consumer == consumer && rep.Log == log {
				if last = rep; f(rep) {
					return rep
				}
			}
		}
		select {
		case <-tick.C:
		case <-timeout:
			r.t.Fatalf("%s on %s: not as awaited; the last report is %+v", consumer, log, last)
		}
	}
}

// read gives all messages of a log.
func (r *rig) read(log string) (list []*message.Message) {
	r.t.Helper()
	l, err := r.bus.Log(r.t.Context(), log, bus.LogOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := l.Info(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	p := info.Generations[0].Partitions[0]
	reader, err := l.Reader(r.t.Context(), bus.Position{Generation: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	defer reader.Close()
	for seq := p.First; seq <= p.Last; seq++ {
		s, err := reader.Next(r.t.Context())
		if err != nil || s.Err != nil {
			r.t.Fatal(err, s.Err)
		}
		var m message.Message
		for c := s.Batch.Cursor(); c.Next(&m); {
			list = append(list, m.Clone())
		}
	}
	return list
}

// owed is what the headers say was accepted, and finished what the outcomes say became of it.
func owed(r Report) (owed, finished Sum) {
	for _, row := range r.Rows {
		owed = owed.Plus(row.Upto.Minus(row.Start))
	}
	finished = r.Waiting
	for _, s := range r.Outcomes {
		finished = finished.Plus(s)
	}
	return owed, finished
}

func total(r Report) uint64 { _, f := owed(r); return f.Count }

var fast = Retry{First: time.Millisecond, Most: 4 * time.Millisecond, Attempts: 3}

// scripted is a component whose handler does what the message's data says.
func scripted(seen func(*message.Message), tries *sync.Map) Spec {
	return Define(Spec{Name: "operator.scripted", Doc: "does what it is told", Hears: []message.Pattern{"device.*.telemetry"},
		Says: []message.Pattern{"service_platform.scripted.*"}, State: Local, Retry: fast},
		struct{}{}, func(env Env, _ struct{}) (*Part, error) {
			return &Part{Handle: func(_ context.Context, tx Tx, m *message.Message) error {
				n, _ := tries.LoadOrStore(m.ID, new(int))
				*n.(*int)++
				word, rest, _ := strings.Cut(string(m.Data), " ")
				tx.Set([]byte("last"), m.Data)
				switch word {
				case "skip":
					return ErrNotMatched
				case "reject":
					return message.Rejectf(message.SchemaMismatch, "/celsius: want number")
				case "panic":
					panic("a bug")
				case "flaky":
					if *n.(*int) < 3 {
						return errors.New("not yet")
					}
				case "fail":
					return errors.New("never")
				case "undeclared":
					return tx.Say(&message.Message{Subject: "device.d.telemetry"})
				case "say":
					if err := tx.Say(&message.Message{Subject: "service_platform.scripted.said", Data: []byte(rest)}); err != nil {
						return err
					}
				}
				if seen != nil {
					seen(m)
				}
				return nil
			}}, nil
		})
}

func TestRunnerGivesEveryMessageAFate(t *testing.T) {
	r := newRig(t)
	var tries sync.Map
	r.start(scripted(nil, &tries))
	other := reading("d-9", "not heard")
	other.Subject = "device.d-9.event.x"
	ms := []*message.Message{reading("d-1", "ok"), reading("d-2", "skip"), reading("d-3", "reject"), reading("d-4", "panic"),
		reading("d-5", "flaky"), reading("d-6", "fail"), reading("d-7", "undeclared"), other, reading("d-8", "say hello")}
	r.say(ms...)
	rep := r.await("operator.scripted", "device", func(rep Report) bool { return total(rep) == uint64(len(ms)) && rep.Waiting.Count == 0 })
	want := map[string]uint64{Handled: 3, NotMatched: 1, NotHeard: 1, Dead: 4}
	got := map[string]uint64{}
	for k, s := range rep.Outcomes {
		got[k] = s.Count
	}
	if !maps.Equal(got, want) {
		t.Errorf("outcomes are %v; want %v", got, want)
	}
	if o, f := owed(rep); o != f {
		t.Errorf("accepted %+v, finished %+v", o, f)
	}
	r.stop()

	reasons := map[message.ID]message.Reason{}
	for _, m := range r.read("operator") {
		var d operator.Dead
		if err := json.Unmarshal(m.Data, &d); err != nil {
			t.Fatal(err)
		}
		original, err := d.Message()
		if err != nil {
			t.Fatal(err)
		}
		if m.Cause != original.ID || m.Trace.ID != original.Trace.ID {
			t.Errorf("dead letter of %s has cause %s and trace %s", original.ID, m.Cause, m.Trace.ID)
		}
		if _, twice := reasons[original.ID]; twice {
			t.Errorf("%s died twice", original.ID)
		}
		reasons[original.ID] = d.Reason
	}
	for i, reason := range map[int]message.Reason{2: message.SchemaMismatch, 3: message.HandlerPanic, 5: message.RetriesExhausted, 6: message.Undeclared} {
		if reasons[ms[i].ID] != reason {
			t.Errorf("%q died of %s; want %s", ms[i].Data, reasons[ms[i].ID], reason)
		}
	}
	said := r.read("service_platform")
	if len(said) != 1 || string(said[0].Data) != "hello" || said[0].Cause != ms[8].ID || said[0].Trace.ID != ms[8].Trace.ID || said[0].Depth != 1 {
		t.Errorf("said %+v", said)
	}
}

func TestRunnerParksAKeyAndLetsOthersPass(t *testing.T) {
	r := newRig(t)
	var tries sync.Map
	var mu sync.Mutex
	var order []string
	r.start(scripted(func(m *message.Message) { mu.Lock(); defer mu.Unlock(); order = append(order, string(m.Data)) }, &tries))
	r.say(reading("a", "flaky a1"), reading("a", "ok a2"), reading("b", "ok b1"), reading("a", "ok a3"))
	r.await("operator.scripted", "device", func(rep Report) bool { return total(rep) == 4 && rep.Waiting.Count == 0 })
	mu.Lock()
	defer mu.Unlock()
	at := func(s string) int { return slices.Index(order, s) }
	if !(at("flaky a1") < at("ok a2") && at("ok a2") < at("ok a3")) {
		t.Errorf("the key's order was lost: %q", order)
	}
	if len(order) != 4 {
		t.Errorf("handled %q", order)
	}
}

func TestRunnerLeavesNothingOfAFailedHandler(t *testing.T) {
	r := newRig(t)
	var tries sync.Map
	r.start(scripted(nil, &tries))
	r.say(reading("a", "ok kept"), reading("b", "reject dropped"))
	r.await("operator.scripted", "device", func(rep Report) bool { return total(rep) == 2 })
	var last string
	for _, run := range r.host.runs {
		if err := run.view(func(v View) error {
			b, err := v.Get([]byte("last"))
			last = string(b)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if last != "ok kept" {
		t.Errorf("the store has %q; the rejected handler left its mark", last)
	}
}

// counting keeps a count per device, and says each new one.
func counting() Spec {
	return Define(Spec{Name: "operator.counting", Doc: "counts", Hears: []message.Pattern{"device.*.telemetry"},
		Says: []message.Pattern{"service_platform.count.*"}, State: Local},
		struct{}{}, func(env Env, _ struct{}) (*Part, error) {
			return &Part{Handle: func(_ context.Context, tx Tx, m *message.Message) error {
				v, err := tx.Get([]byte(m.Device))
				if err != nil {
					return err
				}
				n := 0
				fmt.Sscan(string(v), &n)
				tx.Set([]byte(m.Device), fmt.Append(nil, n+1))
				return tx.Say(&message.Message{Subject: message.NewSubject("service_platform", "count", m.Device), Data: fmt.Append(nil, n+1)})
			}}, nil
		})
}

func TestRunnerLosesAndDoublesNoEffectAcrossRestarts(t *testing.T) {
	r := newRig(t)
	const rounds, each = 8, 50
	sent := 0
	for round := range rounds {
		r.start(counting())
		var ms []*message.Message
		for range each {
			ms = append(ms, reading("d", fmt.Sprint(sent)))
			sent++
		}
		r.say(ms...)
		if round%2 == 0 { // half of the stops fall into the middle of the work
			r.await("operator.counting", "device", func(rep Report) bool { return total(rep) > uint64(round*each) })
		}
		r.stop()
	}
	r.start(counting())
	r.await("operator.counting", "device", func(rep Report) bool { return total(rep) == rounds*each })
	r.stop()
	said := r.read("service_platform")
	if len(said) != rounds*each {
		t.Errorf("%d consequences for %d messages", len(said), rounds*each)
	}
	for i, m := range said {
		if string(m.Data) != fmt.Sprint(i+1) {
			t.Fatalf("consequence %d says %s", i, m.Data)
		}
	}
}

func TestOutboxSkipsWhatIsAlreadyThere(t *testing.T) {
	// The process dies after a consequence was appended and before it was struck off: it is there once all the same.
	r := newRig(t)
	r.start(counting())
	r.say(reading("d", "1"), reading("d", "2"))
	r.await("operator.counting", "device", func(rep Report) bool { return total(rep) == 2 })
	r.stop()
	s, err := openStore(t.Context(), nil, r.dir+"/operator.counting", slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	again := r.read("service_platform")
	var left []said
	for i, m := range again {
		e := newSaid(m)
		e.number = uint64(i + 1)
		left = append(left, e)
	}
	unsaid := *again[0]
	unsaid.ID, unsaid.Data = message.NewID(time.Now()), []byte("2b")
	e := newSaid(&unsaid)
	e.number = uint64(len(again) + 1)
	if err := s.setOutbox(append(left, e)); err != nil {
		t.Fatal(err)
	}
	if err := s.commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.close(func() {}); err != nil {
		t.Fatal(err)
	}
	r.start(counting())
	r.say(reading("d", "3"))
	r.await("operator.counting", "device", func(rep Report) bool { return total(rep) == 3 })
	r.stop()
	var data []string
	for _, m := range r.read("service_platform") {
		data = append(data, string(m.Data))
	}
	if want := []string{"1", "2", "2b", "3"}; !slices.Equal(data, want) {
		t.Errorf("said %v; want %v", data, want)
	}
	if s, err = openStore(t.Context(), nil, r.dir+"/operator.counting", slog.New(slog.DiscardHandler), nil); err != nil {
		t.Fatal(err)
	}
	if left, err := s.outbox(); err != nil || len(left) > 0 {
		t.Errorf("%d entries are left to be said, %v", len(left), err)
	}
	if err := s.close(func() {}); err != nil {
		t.Fatal(err)
	}
}

func TestMutantUnbalancesTheCheckpoint(t *testing.T) {
	for name, mutant := range map[string]func(string, int) int{
		"skips one message":   func(_ string, i int) int { return map[bool]int{true: 0, false: 1}[i == 0] },
		"repeats one message": func(_ string, i int) int { return map[bool]int{true: 2, false: 1}[i == 0] },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			var tries sync.Map
			r.host = &Host{Bus: r.bus, Catalog: catalog.Default(), Dir: r.dir, Node: "n1", Specs: []Spec{scripted(nil, &tries)}, Mutant: mutant}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- r.host.Run(ctx) }()
			defer func() { cancel(); <-done }()
			r.say(reading("a", "ok"))
			rep := r.await("operator.scripted", "device", func(rep Report) bool { return rep.Position.Sequence > 0 })
			if o, f := owed(rep); o == f {
				t.Errorf("accepted %+v equals finished %+v: the mutant was not seen", o, f)
			}
		})
	}
}

func TestRunnerCountsWhatAnUnreadableBatchHeld(t *testing.T) {
	r := newRig(t)
	r.say(reading("a", "ok 1"))
	r.say(reading("b", "ok 2"), reading("b", "ok 3"))
	if err := r.bus.CorruptBatch("device", 0, 2, 140); err != nil {
		t.Fatal(err)
	}
	var tries sync.Map
	r.start(scripted(nil, &tries))
	rep := r.await("operator.scripted", "device", func(rep Report) bool { return rep.Position.Sequence == 3 })
	if rep.Outcomes[Unreadable].Count != 1 || rep.Outcomes[Handled].Count != 2 || rep.UnreadableBatches != 1 {
		t.Errorf("outcomes %+v, %d unreadable batches", rep.Outcomes, rep.UnreadableBatches)
	}
	if o, f := owed(rep); o != f {
		t.Errorf("accepted %+v, finished %+v", o, f)
	}
}

func TestRunnerStartsAFailedComponentAgainAndLeavesItsNeighbours(t *testing.T) {
	r := newRig(t)
	starts := make(chan struct{}, 10)
	bad := Define(Spec{Name: "operator.bad", Doc: "panics"}, struct{}{}, func(Env, struct{}) (*Part, error) {
		return &Part{Run: func(ctx context.Context, ready func()) error {
			ready()
			starts <- struct{}{}
			if len(starts) < 2 {
				panic("a bug")
			}
			<-ctx.Done()
			return nil
		}}, nil
	})
	var tries sync.Map
	r.start(bad, scripted(nil, &tries))
	r.say(reading("a", "ok"))
	r.await("operator.scripted", "device", func(rep Report) bool { return total(rep) == 1 })
	for range 2 {
		select {
		case <-starts:
		case <-time.After(time.Minute):
			t.Fatal("it was not started again")
		}
	}
}

func TestConfigurationNamesTheUnknownKeyAndTheNearest(t *testing.T) {
	type config struct {
		Listen string `json:"listen"`
		Max    int    `json:"max_bytes"`
		Rules  []struct {
			Limits map[string]struct {
				Rate int `json:"rate"`
			} `json:"limits"`
		} `json:"rules"`
	}
	if err := decodeStrict(json.RawMessage(`{"rules":[{},{"limits":{"a":{"rat":1}}}]}`), &config{}); err == nil ||
		err.Error() != `in rules[1].limits.a: there is no setting "rat"; did you mean "rate"?` {
		t.Errorf("said %v", err)
	}
	if err := decodeStrict(json.RawMessage(`{"listen":"x","rules":[{"limits":{"a":{"rate":1}}}]}`), &config{}); err != nil {
		t.Error(err)
	}
	err := decodeStrict(json.RawMessage(`{"lisen":"x"}`), &config{})
	if err == nil || !strings.Contains(err.Error(), `"lisen"`) || !strings.Contains(err.Error(), `"listen"`) {
		t.Errorf("said %v", err)
	}
}

// What was parked by a clock that was ahead is tried again by the one that is right, and not when that has caught up.
func TestWhatAClockParkedThatWasAheadIsTriedAgain(t *testing.T) {
	for _, state := range []State{Local, Derived} {
		t.Run(fmt.Sprint(state), func(t *testing.T) {
			spec := func(fault error) Spec {
				s := Spec{Name: "operator.late", Doc: "comes late", Hears: []message.Pattern{"device.*.telemetry"}, State: state, Retry: Retry{First: time.Millisecond, Most: time.Millisecond, Attempts: 1 << 40}}
				if state == Derived {
					s.Into = message.ServicePlatform
				}
				return Define(s, struct{}{}, func(Env, struct{}) (*Part, error) {
					return &Part{Handle: func(context.Context, Tx, *message.Message) error { return fault }}, nil
				})
			}
			r := newRig(t)
			r.now = func() time.Time { return time.Now().Add(365 * 24 * time.Hour) }
			r.start(spec(errors.New("not yet")))
			r.say(reading("d", "1"))
			r.await("operator.late", "device", func(rep Report) bool { return rep.Waiting.Count == 1 })
			r.stop()
			r.now = nil
			r.start(spec(nil))
			r.await("operator.late", "device", func(rep Report) bool { return rep.Outcomes[Handled].Count == 1 && rep.Waiting.Count == 0 })
		})
	}
}

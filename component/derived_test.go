package component

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
)

// echoing says each message again in its own log and in another one, as a component without a state of its own. What
// ends in 3 is dead, and what ends in 7 fails at first, in each life anew.
func echoing() Spec {
	return Define(Spec{Name: "operator.echoing", Doc: "echoes", Hears: []message.Pattern{"device.*.telemetry"},
		Says: []message.Pattern{"service_platform.echo.*", "data_platform.echo.*"}, State: Derived, Into: message.ServicePlatform,
		Retry: Retry{First: time.Millisecond, Most: time.Millisecond, Attempts: 100}},
		struct{}{}, func(Env, struct{}) (*Part, error) {
			failed := make(chan map[message.ID]bool, 1)
			failed <- map[message.ID]bool{}
			return &Part{Handle: func(_ context.Context, tx Tx, m *message.Message) error {
				switch last := m.Data[len(m.Data)-1]; last {
				case '3':
					return message.Rejectf(message.SchemaMismatch, "it ends in 3")
				case '7':
					f := <-failed
					before := f[m.ID]
					f[m.ID] = true
					failed <- f
					if !before {
						return errors.New("not at first")
					}
				}
				return errors.Join(tx.Say(&message.Message{Subject: "service_platform.echo.d", Data: m.Data}),
					tx.Say(&message.Message{Subject: "data_platform.echo.d", Data: m.Data}))
			}}, nil
		})
}

func TestWhatIsDerivedIsSaidOnceInEachLogWhereverTheProcessDies(t *testing.T) {
	r := newRig(t)
	boundaries := []string{"before the commit", "after the commit", "after the append", "after striking off"}
	sent := 0
	for n := range 60 {
		l := &life{want: boundaries[n%4], left: n/4%3 + 1, fs: vfs.NewCrashableMem(), died: make(chan struct{})}
		l.live(t, r, &Host{Specs: []Spec{echoing()}}, 20*time.Second, func() {
			r.say(reading("d", fmt.Sprint(sent)))
			sent++
		})
	}
	r.start(echoing())
	rep := r.await("operator.echoing", "device", func(rep Report) bool { return total(rep) == uint64(sent) && rep.Waiting.Count == 0 })
	r.stop()
	if o, f := owed(rep); o != f {
		t.Errorf("accepted %+v, finished %+v", o, f)
	}
	var want []string
	for i := range sent {
		if i%10 != 3 {
			want = append(want, fmt.Sprint(i))
		}
	}
	for _, log := range []string{message.ServicePlatform, message.DataPlatform} {
		var said []string
		for _, m := range r.read(log) {
			said = append(said, string(m.Data))
		}
		if !slices.Equal(said, want) {
			t.Errorf("in %s it said\n%q\nand should have said\n%q", log, said, want)
		}
	}
	dead := map[string]int{}
	for _, m := range r.read(message.Operator) {
		if m.Subject == operator.DeadSubject("operator.echoing") {
			dead[m.Cause.String()]++
		}
	}
	if len(dead) != sent-len(want) {
		t.Errorf("%d messages have dead letters; want %d", len(dead), sent-len(want))
	}
	for id, n := range dead {
		if n != 1 {
			t.Errorf("%s has %d dead letters", id, n)
		}
	}
}

func TestACommitInTheMiddleOfABatchIsNotDoneAgain(t *testing.T) {
	const messages = 200 // 10 MB are said of them: a batch has 1 MiB, and a commit in a store a few
	for name, c := range map[string]struct {
		state State
		into  string
	}{"derived": {Derived, message.ServicePlatform}, "local": {Local, ""}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			spec := Define(Spec{Name: "operator.loud", Doc: "is loud", Hears: []message.Pattern{"device.*.telemetry"}, Says: []message.Pattern{"service_platform.loud.*"},
				State: c.state, Into: c.into}, struct{}{}, func(Env, struct{}) (*Part, error) {
				return &Part{Handle: func(_ context.Context, tx Tx, m *message.Message) error {
					count := m.Data
					if c.state == Local { // each takes effect once
						before, err := tx.Get([]byte("n"))
						if err != nil {
							return err
						}
						tx.Set([]byte("n"), append(before, 1))
						count = fmt.Append(nil, len(before))
					}
					return tx.Say(&message.Message{Subject: "service_platform.loud.d", Data: append(slices.Clone(count), make([]byte, 50_000)...)})
				}}, nil
			})
			log, err := r.bus.Log(t.Context(), message.Device, bus.LogOptions{})
			if err != nil {
				t.Fatal(err)
			}
			w, err := log.Writer(t.Context(), bus.WriterOptions{Name: "door", Owner: message.NewID(time.Now())})
			if err != nil {
				t.Fatal(err)
			}
			var batch []*message.Message
			for i := range messages {
				batch = append(batch, reading("d", fmt.Sprint(i)))
			}
			if _, err := w.Write(t.Context(), bus.Position{}, nil, batch); err != nil {
				t.Fatal(err)
			}
			fs := vfs.NewCrashableMem()
			for n, boundary := range []string{"after the commit", "before the commit", "after the commit"} {
				l := &life{want: boundary, left: n/2 + 1, fs: fs, died: make(chan struct{})}
				l.live(t, r, &Host{Specs: []Spec{spec}, fs: fs}, 20*time.Second, func() {})
				fs = l.fs
			}
			r.fs = fs
			r.start(spec)
			rep := r.await("operator.loud", "device", func(rep Report) bool { return total(rep) == messages })
			r.stop()
			if o, f := owed(rep); o != f || rep.Within != nil {
				t.Errorf("accepted %+v, finished %+v, and it stands in the middle of %+v", o, f, rep.Within)
			}
			said := r.read(message.ServicePlatform)
			if len(said) != messages {
				t.Errorf("it said %d; want %d", len(said), messages)
			}
			for i, m := range said {
				if s := string(bytes.TrimRight(m.Data, "\x00")); s != fmt.Sprint(i) {
					t.Fatalf("it said %s where %d was next", s, i)
				}
			}
		})
	}
}

func TestAMarkIsReadAsItWasWritten(t *testing.T) {
	raw, err := someMark(t).encode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseMark(raw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.encode()
	if err != nil || !slices.Equal(raw, again) {
		t.Errorf("it was written as\n%x\nand is read as\n%x (%v)", raw, again, err)
	}
	for n := range raw {
		if _, err := parseMark(raw[:n]); err == nil {
			t.Errorf("the first %d of its %d bytes are taken for a mark", n, len(raw))
		}
	}
}

func FuzzParseMark(f *testing.F) {
	raw, err := someMark(f).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{markVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMark(b)
		if err != nil {
			return
		}
		if _, err := m.encode(); err != nil {
			t.Errorf("it can be read, but not be written: %v", err)
		}
	})
}

func someMark(t testing.TB) *mark {
	now := time.Unix(1_700_000_000, 0)
	x := reading("a", "1")
	c := &Checkpoint{Consumer: "operator.echoing", Log: "device", Outcomes: map[string]Sum{Handled: {3, 4}}, Rows: map[string]Row{"door": {Upto: Sum{3, 4}}}}
	return &mark{birth: message.NewID(now), next: 7, point: c, away: []said{{number: 6, m: x, record: message.AppendRecord(nil, x)}},
		parked: []*parked{{m: x, attempts: 2, first: now, next: now.Add(time.Second), reason: message.HandlerError, detail: "not now"}}}
}

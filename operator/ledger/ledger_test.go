package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// worker is a consumer to be audited.
var worker = component.Define(component.Spec{Name: "operator.worker", Doc: "handles everything", Hears: []message.Pattern{"device.>"}, State: component.Local},
	struct{}{}, func(component.Env, struct{}) (*component.Part, error) {
		return &component.Part{Handle: func(context.Context, component.Tx, *message.Message) error { return nil }}, nil
	})

type rig struct {
	t    *testing.T
	bus  *mem.Bus
	host *component.Host
	stop func()
}

func start(t *testing.T, b *mem.Bus, dir string, mutant func(string, int) int, specs ...component.Spec) *rig {
	t.Helper()
	if specs == nil {
		specs = []component.Spec{worker, Spec}
	}
	r := &rig{t: t, bus: b, host: &component.Host{Bus: b, Catalog: catalog.Default(), Dir: dir, Node: "n1", Mutant: mutant,
		Specs: specs, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.host.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return r
}

func (r *rig) say(n int) {
	r.t.Helper()
	r.append("door", n)
}

// append writes messages to a row, each in a batch of its own.
func (r *rig) append(row string, n int) {
	r.t.Helper()
	l, err := r.bus.Log(r.t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	a, err := l.Appender(r.t.Context(), bus.AppenderOptions{Name: row, Owner: message.NewID(time.Now())})
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range n {
		now := time.Now()
		m := &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Device: fmt.Sprint(i % 7), Subject: "device.d.telemetry", Data: []byte("x")}
		if _, err := bus.AppendSync(r.t.Context(), a, m); err != nil {
			r.t.Fatal(err)
		}
	}
}

// await asks the ledger as an operator does, until the worker's line satisfies f.
func (r *rig) await(f func(Line) bool) Line {
	r.t.Helper()
	h := r.host.Handler(func(*http.Request) bool { return true })
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	var last string
	for {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/ledger", nil))
		last = w.Body.String()
		var lines []Line
		if w.Code == http.StatusOK && json.Unmarshal(w.Body.Bytes(), &lines) == nil {
			if i := slices.IndexFunc(lines, func(l Line) bool { return l.Consumer == "operator.worker" && l.Log == "device" }); i >= 0 && f(lines[i]) {
				return lines[i]
			}
		}
		select {
		case <-tick.C:
		case <-timeout:
			r.t.Fatalf("not as awaited: %s", last)
		}
	}
}

// awaitAccount waits until the ledger has read so many batches of devices.
func (r *rig) awaitAccount(batches uint64) {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(time.Minute)
	for {
		for _, rep := range r.host.Peers().Reports() {
			if rep.Consumer == Spec.Name && rep.Log == message.Device && rep.Position.Sequence >= batches {
				return
			}
		}
		select {
		case <-tick.C:
		case <-timeout:
			r.t.Fatal("the ledger does not read")
		}
	}
}

func TestLedgerBalancesAcrossRestarts(t *testing.T) {
	b, dir := mem.New(mem.Options{}), t.TempDir()
	defer b.Close()
	for round := range 3 {
		r := start(t, b, dir, nil)
		r.say(20)
		want := uint64(20 * (round + 1))
		l := r.await(func(l Line) bool { return l.Accepted == want && l.Waiting == 0 })
		if !l.Balanced || l.Handled != want || l.Dead != 0 {
			t.Errorf("round %d: %+v", round, l)
		}
		r.stop()
	}
}

func TestLedgerGoesRedWhenAMutantSkipsOrRepeatsOneMessage(t *testing.T) {
	for name, times := range map[string]int{"skips": 0, "repeats": 2} {
		t.Run(name, func(t *testing.T) {
			b := mem.New(mem.Options{})
			defer b.Close()
			n := 0
			r := start(t, b, t.TempDir(), func(component string, i int) int {
				if component == "operator.worker" && i >= 0 {
					if n++; n == 7 {
						return times
					}
				}
				return 1
			})
			defer r.stop()
			r.say(20)
			l := r.await(func(l Line) bool { return !l.Balanced })
			if l.Fault == "" {
				t.Error("the ledger does not say what is wrong")
			}
			// And an alarm is on the operator's log.
			log, err := b.Log(t.Context(), message.Operator, bus.LogOptions{})
			if err != nil {
				t.Fatal(err)
			}
			reader, err := log.Reader(t.Context(), bus.Position{Generation: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			s, err := reader.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var m message.Message
			if c := s.Batch.Cursor(); !c.Next(&m) || m.Subject != "operator.alarm.ledger_unbalanced" {
				t.Errorf("the first alarm is %q", m.Subject)
			}
		})
	}
}

func TestLedgerGoesRedWhenOneMessageIsCountedInPlaceOfAnother(t *testing.T) {
	b := mem.New(mem.Options{})
	defer b.Close()
	n := 0
	r := start(t, b, t.TempDir(), func(component string, i int) int {
		if component == "operator.worker" && i >= 0 {
			switch n++; n {
			case 5:
				return 0
			case 6:
				return 2 // as many as there should be, and not the same ones
			}
		}
		return 1
	})
	defer r.stop()
	r.say(20)
	l := r.await(func(l Line) bool { return !l.Balanced && l.Waiting == 0 })
	if l.Accepted != 20 || l.Handled != 20 {
		t.Errorf("the counts agree, and only the ids do not: %+v", l)
	}
}

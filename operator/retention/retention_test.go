package retention

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
)

// TestRetentionTakesNothingYoungForOldWhereNoAgeIsSaid has a search for the first young batch meet batches without messages,
// as each fence leaves one behind, wherever it looks first.
func TestRetentionTakesNothingYoungForOldWhereNoAgeIsSaid(t *testing.T) {
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	b := mem.New(mem.Options{Now: func() time.Time { return now }})
	defer b.Close()
	log, err := b.Log(t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := &Retention{env: component.Env{Now: func() time.Time { return now }}, maxAge: time.Hour}
	say := func() {
		t.Helper()
		door, err := log.Appender(t.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(now)})
		if err != nil {
			t.Fatal(err)
		}
		m := &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Subject: "device.d.telemetry", Device: "d"}
		if _, err := bus.AppendSync(t.Context(), door, m); err != nil {
			t.Fatal(err)
		}
	}
	fences := func(n int) {
		t.Helper()
		for range n {
			if _, err := log.Fence(t.Context(), "gone", message.NewID(now)); err != nil {
				t.Fatal(err)
			}
		}
	}
	wants := func(first, floor, want uint64) {
		t.Helper()
		info, err := log.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p := info.Generations[0].Partitions[0]
		p.First = first
		at := bus.Position{Log: info.ID, Generation: 1, Partition: p.Number}
		if got, err := r.target(t.Context(), log, at, p, min(floor, p.Last)); err != nil || got != want {
			t.Errorf("of %d to %d it would trim up to %d (%v); want %d", first, min(floor, p.Last), got, err, want)
		}
	}
	for range 4 { // 1 and 10 and 19 and 28 are messages
		say()
		fences(8)
	}
	for floor := uint64(1); floor <= 36; floor++ {
		wants(1, floor, 0)
	}
	now = now.Add(2 * time.Hour) // all of it is old
	say()                        // but 37
	fences(3)
	wants(1, 40, 28)
	wants(1, 12, 10)
	fences(2 * probeMost)
	now = now.Add(2 * time.Hour)
	say()
	wants(1, 1000, 37)
	wants(38, 1000, 37+probeMost) // what is behind so many is found in the end
}

// TestRetentionTrimsWhatIsOldAndFinishedAndNothingElse lets a required consumer stop at the sixth of ten batches.
func TestRetentionTrimsWhatIsOldAndFinishedAndNothingElse(t *testing.T) {
	var now atomic.Int64
	now.Store(time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC).UnixNano())
	clock := func() time.Time { return time.Unix(0, now.Load()) }
	b := mem.New(mem.Options{Now: clock})
	defer b.Close()
	log, err := b.Log(t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	door, err := log.Appender(t.Context(), bus.AppenderOptions{Name: "door", Owner: message.NewID(clock())})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		m := &message.Message{ID: message.NewID(clock()), Trace: message.NewTrace(clock()), Subject: "device.d.telemetry", Device: "d"}
		if _, err := bus.AppendSync(t.Context(), door, m); err != nil {
			t.Fatal(err)
		}
	}
	var goOn atomic.Bool
	slow := component.Define(component.Spec{Name: "operator.slow", Doc: "stops at the sixth", Hears: []message.Pattern{"device.>"}, State: component.Local, Required: true,
		Retry: component.Retry{First: time.Millisecond, Most: 5 * time.Millisecond}},
		struct{}{}, func(component.Env, struct{}) (*component.Part, error) {
			return &component.Part{HandleBatch: func(_ context.Context, _ component.Tx, _ string, s bus.Stored) error {
				if s.Position.Sequence == 6 && !goOn.Load() {
					return errors.New("not yet")
				}
				return nil
			}}, nil
		})
	host := &component.Host{Bus: b, Catalog: catalog.Default(), Dir: t.TempDir(), Node: "n1", Now: clock, Specs: []component.Spec{slow, Spec},
		Log:    slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError})),
		Config: map[string]json.RawMessage{"operator.retention": json.RawMessage(`{"max_age":"1h","every":"1s"}`)}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- host.Run(ctx) }()
	defer func() { cancel(); <-done }()

	await := func(first uint64) {
		t.Helper()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		timeout := time.After(time.Minute)
		for {
			info, err := log.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			switch at := info.Generations[0].Partitions[0].First; {
			case at == first:
				return
			case at > first:
				t.Fatalf("the log begins at %d; nobody had finished more than %d", at, first-1)
			}
			select {
			case <-tick.C:
			case <-timeout:
				t.Fatalf("the log does not begin at %d: %+v", first, info.Generations)
			}
		}
	}
	await(1) // all of it is young
	now.Add(int64(2 * time.Hour))
	await(6) // old, and finished up to the fifth
	goOn.Store(true)
	info, err := log.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if last := info.Generations[0].Partitions[0].Last; last != 10 {
		t.Fatalf("the log ends at %d", last)
	}
	await(10) // the row's last batch stays: it marks where its owner is
}

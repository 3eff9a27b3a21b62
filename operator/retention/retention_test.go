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
		timeout := time.After(20 * time.Second)
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

package session

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/componenttest"
)

// counted is a bus that counts what is read of its logs.
type counted struct {
	bus.Bus
	fetched, readers atomic.Int64
}

func (c *counted) Log(ctx context.Context, name string, o bus.LogOptions) (bus.Log, error) {
	l, err := c.Bus.Log(ctx, name, o)
	return &countedLog{l, c}, err
}

type countedLog struct {
	bus.Log
	of *counted
}

func (l *countedLog) Fetch(ctx context.Context, at bus.Position) (bus.Stored, error) {
	l.of.fetched.Add(1)
	return l.Log.Fetch(ctx, at)
}

func (l *countedLog) Reader(ctx context.Context, after bus.Position) (bus.Reader, error) {
	l.of.readers.Add(1)
	return l.Log.Reader(ctx, after)
}

// TestANarrowSessionThatWasAwayReadsWhatItIsOwedAndNoMore has much said while a client is away, and little of it for the
// client: when it comes back, to a process that has begun anew, so many batches are read as hold something for it.
func TestANarrowSessionThatWasAwayReadsWhatItIsOwedAndNoMore(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	x, epoch, _, _ := r.connect("narrow", false, 3600)
	r.subscribe(x, &Subscription{Filter: "device/d/alarm", QoS: 1})
	if _, err := x.Disconnect(t.Context(), epoch, nil); err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 300 {
		if i%60 == 7 {
			r.publish("device/d/alarm", fmt.Sprint(i), 1)
			want = append(want, fmt.Sprintf("%d %d q1 again false", len(want)+2, i))
			continue
		}
		r.publish("device/d/telemetry", fmt.Sprint(i), 1)
	}
	r = r.again(wide)
	c := &counted{Bus: r.store.env.Bus}
	r.store.env.Bus = c
	x, _, present, _ := r.connect("narrow", false, 3600)
	if !present {
		t.Fatal("the session is gone")
	}
	if got := r.owed(x, 0); !slices.Equal(got, want) {
		t.Errorf("it is owed %q; want %q", got, want)
	}
	if n := c.fetched.Load(); n != int64(len(want)) || c.readers.Load() != 0 {
		t.Errorf("for %d messages of 300, each in a batch of its own, %d batches were fetched, and %d readers opened", len(want), n, c.readers.Load())
	}
}

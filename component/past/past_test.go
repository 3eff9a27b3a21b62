package past_test

import (
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/component/past"
	"github.com/naru-platform/naru/message"
)

// TestSeekFindsWhereATimeBegins finds the place in a long log by few questions, also where it was trimmed.
func TestSeekFindsWhereATimeBegins(t *testing.T) {
	r := componenttest.New(t)
	l, err := r.Bus.Log(t.Context(), "device", bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now().Add(-24 * time.Hour)
	const each = time.Minute
	for i := range 1000 {
		m := componenttest.Message("device.d-1.telemetry", "d-1", `{}`)
		m.ID = message.NewID(begin.Add(time.Duration(i) * each))
		r.Say(m)
	}
	at := func() bus.Partition {
		info, err := l.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.Generations[0].Partitions[0]
	}
	if err := l.Trim(t.Context(), bus.Position{Log: l.ID(), Generation: 1, Sequence: 100}); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 99, 100, 101, 500, 999, 1000, 5000} {
		got, err := past.Seek(t.Context(), l, 1, at(), begin.Add(time.Duration(i)*each+time.Second))
		// The i-th message has sequence i+1. Those of the two minutes before may be late.
		want := uint64(min(max(i-1, 100), 1000))
		if err != nil || got > want || got+3 < want {
			t.Errorf("message %d: behind %d (%v), want about %d", i, got, err, want)
		}
	}
}

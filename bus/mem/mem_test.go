package mem_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/message"
)

func mint(subject message.Subject, device string) *message.Message {
	now := time.Now()
	return &message.Message{ID: message.NewID(now), Trace: message.NewTrace(now), Subject: subject, Device: device, Data: []byte("21.5")}
}

// A batch whose confirmation was lost, and behind which another owner has written since, is found and not written twice.
func TestLostAckIsFoundBehindAnotherOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := mem.New(mem.Options{})
		defer b.Close()
		l, err := b.Log(t.Context(), "device", bus.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		asked := 0
		a, err := l.Appender(t.Context(), bus.AppenderOptions{Name: "broker", Owner: message.NewID(time.Now()), Standing: func() bool { asked++; return true }})
		if err != nil {
			t.Fatal(err)
		}
		b.LoseAcks(1)
		done := make(chan bus.Position, 1)
		go func() {
			p, err := bus.AppendSync(t.Context(), a, mint("device.d.telemetry", "d"))
			if err != nil {
				t.Error(err)
			}
			done <- p
		}()
		synctest.Wait() // stored, unconfirmed, about to be offered again
		if _, err := b.Steal("device", "broker", 0, message.NewID(time.Now()), mint("device.e.telemetry", "e")); err != nil {
			t.Fatal(err)
		}
		if p := <-done; p.Sequence != 1 || asked != 0 {
			t.Errorf("the first message is at %d and standing was asked %d times; want its place, and not asked", p.Sequence, asked)
		}
		p, err := bus.AppendSync(t.Context(), a, mint("device.d.telemetry", "d"))
		if err != nil || p.Sequence != 3 || asked != 1 {
			t.Errorf("the second message is at %d (%v), standing was asked %d times; want 3 and once", p.Sequence, err, asked)
		}
		s, err := l.Fetch(t.Context(), p)
		if err != nil || s.Batch.Number != 3 || s.Batch.Running != 2 {
			t.Errorf("third batch: %v, number %d, running %d", err, s.Batch.Number, s.Batch.Running)
		}
	})
}

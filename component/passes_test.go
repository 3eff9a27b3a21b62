package component

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/naru-platform/naru/message"
)

// TestABatchThatConcernsNothingIsPassedWithItsAccount, from the next batch on, and no longer: what is passed is counted to the last message, over
// restarts, and never handled.
func TestABatchThatConcernsNothingIsPassedWithItsAccount(t *testing.T) {
	for _, state := range []State{Derived, Local} {
		t.Run(fmt.Sprint(state), func(t *testing.T) {
			r := newRig(t)
			var idle atomic.Bool
			var seen atomic.Int64
			s := Spec{Name: "operator.choosy", Doc: "is choosy", Hears: []message.Pattern{"device.>"}, Says: []message.Pattern{"service_platform.choosy.*"}, State: state}
			if state == Derived {
				s.Into = message.ServicePlatform
			}
			spec := Define(s, struct{}{}, func(Env, struct{}) (*Part, error) {
				return &Part{
					Handle: func(_ context.Context, tx Tx, m *message.Message) error {
						seen.Add(1)
						return tx.Say(&message.Message{Subject: "service_platform.choosy.d", Data: m.Data})
					},
					Passes: func(log string) bool { return log == message.Device && idle.Load() },
				}, nil
			})
			r.start(spec)
			sent, handled := uint64(0), uint64(0)
			for turn := range 6 {
				idle.Store(turn%2 == 1)
				for range 10 {
					r.say(reading("d", fmt.Sprint(sent)))
					sent++
				}
				if turn%2 == 0 {
					handled += 10
				}
				rep := r.await("operator.choosy", "device", func(rep Report) bool { return total(rep) == sent })
				if o, f := owed(rep); o != f || rep.Outcomes[Handled].Count != handled || rep.Outcomes[NotMatched].Count != sent-handled {
					t.Errorf("after %d messages: accepted %+v, finished %+v, %+v", sent, o, f, rep.Outcomes)
				}
				if turn == 3 {
					r.stop()
					r.start(spec)
				}
			}
			r.stop()
			if n := len(r.read(message.ServicePlatform)); seen.Load() != int64(handled) || n != int(handled) {
				t.Errorf("%d messages were handled and %d said, and %d were to be", seen.Load(), n, handled)
			}
		})
	}
}

package component

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/operator"
)

// world is what is outside, and does not die with the process: who was called for, how often, and in which order.
type world struct {
	mu    sync.Mutex
	calls map[message.ID]int
	last  map[string]int // by key, the number that was called for last
	wrong []string
}

func (o *world) called(m *message.Message) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	fmt.Sscan(string(m.Data), &n)
	if before, ok := o.last[m.Device]; ok && n < before && o.calls[m.ID] == 0 {
		o.wrong = append(o.wrong, fmt.Sprintf("%s: %d is called for for the first time after %d", m.Device, n, before))
	}
	o.last[m.Device] = max(n, o.last[m.Device])
	o.calls[m.ID]++
	return o.calls[m.ID]
}

// outward calls for each message. What ends in 3 is dead, and what ends in 7 fails at first.
func outward(o *world) Spec {
	return Define(Spec{Name: "operator.outward", Doc: "calls", Hears: []message.Pattern{"device.*.telemetry"},
		Says: []message.Pattern{"service_platform.count.*"}, State: Local, Calls: 3, Retry: Retry{First: time.Millisecond, Most: time.Millisecond, Attempts: 100, ParkedMax: 50}},
		struct{}{}, func(env Env, _ struct{}) (*Part, error) {
			return &Part{Call: func(ctx context.Context, m *message.Message, _ Try) ([]*message.Message, error) {
				n := o.called(m)
				said := []*message.Message{{Subject: "service_platform.count.d", Data: m.Data}}
				switch last := m.Data[len(m.Data)-1]; {
				case last == '3':
					return said, message.Rejectf(message.SchemaMismatch, "it ends in 3")
				case last == '7' && n == 1:
					return said, errors.New("not at first")
				case last == '5': // long enough to be parked on disk
					if err := pause(ctx, 3*time.Millisecond); err != nil {
						return said, err
					}
				}
				return said, nil
			}}, nil
		})
}

// withChild is a component of no handlers whose one child is another component.
func withChild(of Spec) Spec {
	return Define(Spec{Name: "operator.mother", Doc: "has a child", ChildrenHear: of.Hears, Says: of.Says}, struct{}{},
		func(env Env, _ struct{}) (*Part, error) {
			return &Part{Run: func(ctx context.Context, ready func()) error {
				err := env.Children([]Child{{Name: "outward", Hears: of.Hears, Calls: of.Calls, Retry: of.Retry,
					Build: func(env Env) (*Part, error) { return of.Build(env, nil) }}})
				if err == nil {
					ready()
					<-ctx.Done()
				}
				return err
			}}, nil
		})
}

func TestNoCallIsLostAndNothingSaidTwiceWhereverTheProcessDies(t *testing.T) {
	t.Run("component", func(t *testing.T) {
		o := &world{calls: map[message.ID]int{}, last: map[string]int{}}
		dyingInCalls(t, o, outward(o), "operator.outward", 60)
	})
	t.Run("child", func(t *testing.T) {
		o := &world{calls: map[message.ID]int{}, last: map[string]int{}}
		dyingInCalls(t, o, withChild(outward(o)), "operator.mother/outward", 24)
	})
}

// dyingInCalls has a process die again and again, and looks at what became of all messages at a consumer.
func dyingInCalls(t *testing.T, o *world, spec Spec, consumer string, lives int) {
	r := newRig(t)
	fs := vfs.NewCrashableMem()
	boundaries := []string{"before the commit", "after the commit", "after the append", "after striking off"}
	sent := 0
	var all []*message.Message
	for n := range lives {
		l := &life{want: boundaries[n%4], left: n/4%5 + 1, fs: fs, died: make(chan struct{})}
		l.live(t, r, &Host{Specs: []Spec{spec}, fs: fs}, 20*time.Second, func() {
			m := reading(fmt.Sprint("d", sent%7), fmt.Sprint(sent))
			all = append(all, m)
			r.say(m)
			sent++
		})
		fs = l.fs
	}

	r.host = &Host{Bus: r.bus, Catalog: catalog.Default(), Dir: r.dir, Node: "n1", Specs: []Spec{spec}, fs: fs}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.host.Run(ctx) }()
	rep := r.await(consumer, "device", func(rep Report) bool { return total(rep) == uint64(sent) && rep.Waiting.Count == 0 })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if a, f := owed(rep); a != f {
		t.Errorf("accepted %+v, finished %+v", a, f)
	}
	if len(o.wrong) > 0 {
		t.Errorf("out of order: %s", strings.Join(o.wrong, "; "))
	}
	said, dead := map[message.ID]int{}, map[message.ID]int{}
	last := map[string]int{}
	for _, m := range r.read("service_platform") {
		said[m.Cause]++
		n := 0
		fmt.Sscan(string(m.Data), &n)
		if n < last[m.Device] {
			t.Errorf("of %s, %d was said after %d", m.Device, n, last[m.Device])
		}
		last[m.Device] = n
	}
	for _, m := range r.read("operator") {
		if m.Subject == operator.DeadSubject(consumer) {
			dead[m.Cause]++
		}
	}
	again := 0
	for _, m := range all {
		poison := m.Data[len(m.Data)-1] == '3'
		if said[m.ID] != 1 || poison != (dead[m.ID] == 1) || dead[m.ID] > 1 || o.calls[m.ID] == 0 {
			t.Errorf("%s was called for %d times, said %d times and died %d times", m.Data, o.calls[m.ID], said[m.ID], dead[m.ID])
		}
		if o.calls[m.ID] > 1 {
			again++
		}
	}
	if len(all) < lives || again < lives/4 {
		t.Errorf("%d messages, of which %d were called for again: the test did not meet what it is for", len(all), again)
	}
}

package x509

import (
	"context"
	"encoding/json"
	"hash/maphash"
	"sync"
	"time"

	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

const (
	tellers   = 16
	tellAgain = 5 * time.Second // after a fact could not be said
)

// teller says the facts that the registry keeps as unsaid. A fact may be said twice, under the same id; none is lost.
type teller struct {
	s     *service
	o     *opened
	locks [tellers]sync.Mutex // one device's facts are said in their order
	seed  maphash.Seed

	mu    sync.Mutex
	todo  map[string]bool
	woken chan struct{}
}

func newTeller(s *service, o *opened) *teller {
	return &teller{s: s, o: o, seed: maphash.MakeSeed(), todo: map[string]bool{}, woken: make(chan struct{}, 1)}
}

// later has a device's facts said by run.
func (t *teller) later(device string) {
	t.mu.Lock()
	t.todo[device] = true
	t.mu.Unlock()
	select {
	case t.woken <- struct{}{}:
	default:
	}
}

// run says what other processes changed, and what could not be said or was not said before a restart.
func (t *teller) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.woken:
		}
		t.mu.Lock()
		todo := t.todo
		t.todo = map[string]bool{}
		t.mu.Unlock()
		var failed []string
		for id := range todo {
			if ctx.Err() != nil {
				return
			}
			if err := t.tell(ctx, id); err != nil {
				t.s.env.Log.Error("a change of a device could not be said; trying again", "device", id, "error", err)
				failed = append(failed, id)
			}
		}
		if len(failed) > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(tellAgain):
			}
			for _, id := range failed {
				t.later(id)
			}
		}
	}
}

// tell says what is unsaid of a device, in order.
func (t *teller) tell(ctx context.Context, device string) error {
	lock := &t.locks[maphash.String(t.seed, device)%tellers]
	lock.Lock()
	defer lock.Unlock()
	facts, err := t.o.registry.unsaid(ctx, device)
	if err != nil {
		return err
	}
	for i, f := range facts {
		if err := t.s.say(ctx, f); err != nil {
			_ = t.o.registry.settle(ctx, device, facts[:i]) // said once more otherwise
			return err
		}
	}
	return t.o.registry.settle(ctx, device, facts)
}

// say tells the platform what changed.
func (s *service) say(ctx context.Context, f Fact) error {
	data, err := json.Marshal(f.Of)
	if err != nil {
		return err
	}
	return s.env.Say(ctx, &message.Message{
		ID:          f.ID,
		Subject:     serviceplatform.DeviceChangedSubject(f.Of.Device),
		Device:      f.Of.Device,
		Time:        f.At,
		ContentType: "application/json",
		Data:        data,
	})
}

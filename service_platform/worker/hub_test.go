package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

// started has a hub make a call, and gives its end.
func started(ctx context.Context, h *hub, key string) <-chan ended {
	end := make(chan ended, 1)
	go func() {
		r, err := h.do(ctx, key, wire.Call{Timeout: 30 * time.Second, Message: wire.Message{ID: key}})
		end <- ended{r, err}
	}()
	synctest.Wait()
	return end
}

func elapse(d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	<-ctx.Done()
	synctest.Wait()
}

func hubbed(t *testing.T, f func(t *testing.T, h *hub)) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(time.Now, func() {})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { h.sweep(ctx); close(done) }()
		f(t, h)
		cancel()
		<-done
	})
}

func join(t *testing.T, h *hub, name string, room int) *instance {
	t.Helper()
	i, err := h.join(name, room)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func poll(t *testing.T, h *hub, i *instance, has ...uint64) []wire.Call {
	t.Helper()
	calls, err := h.poll(t.Context(), i.id, has, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

func TestNothingOfAnInstancePastItsLeaseIsAccepted(t *testing.T) {
	hubbed(t, func(t *testing.T, h *hub) {
		a := join(t, h, "a", 4)
		end := started(t.Context(), h, "k")
		calls := poll(t, h, a)
		if len(calls) != 1 {
			t.Fatalf("it is given %d calls", len(calls))
		}
		elapse(leaseTime + time.Second) // it is paused
		if e := <-end; !errors.Is(e.err, errLost) {
			t.Errorf("its call ends with %+v; want it to be counted as an attempt", e)
		}
		err := h.results(a.id, []wire.Result{{Number: calls[0].Number, End: wire.Done}})
		if err == nil || !strings.Contains(err.Error(), "not known any more") {
			t.Errorf("its result is taken: %v", err)
		}
		if _, err := h.poll(t.Context(), a.id, nil, 1); err == nil {
			t.Error("it is given work")
		}
		b := join(t, h, "b", 4)
		again := started(t.Context(), h, "k")
		calls = poll(t, h, b)
		if err := h.results(b.id, []wire.Result{{Number: calls[0].Number, End: wire.Done}}); err != nil {
			t.Fatal(err)
		}
		if e := <-again; e.err != nil || e.result.End != wire.Done {
			t.Errorf("the other one's ends with %+v", e)
		}
	})
}

func TestCallsThatDidNotArriveAreGivenAgain(t *testing.T) {
	hubbed(t, func(t *testing.T, h *hub) {
		a := join(t, h, "a", 4)
		end := started(t.Context(), h, "k")
		first := poll(t, h, a)
		second := poll(t, h, a) // the answer to the first was lost
		if len(first) != 1 || len(second) != 1 || first[0].Number != second[0].Number {
			t.Fatalf("given %+v, then %+v", first, second)
		}
		if third := poll(t, h, a, second[0].Number); len(third) != 0 {
			t.Errorf("given once more although it has it: %+v", third)
		}
		if err := h.results(a.id, []wire.Result{{Number: second[0].Number, End: wire.Done}, {Number: 999, End: wire.Done}}); err != nil {
			t.Fatal(err)
		}
		if e := <-end; e.err != nil {
			t.Error(e.err)
		}
	})
}

// An instance that never says what it has in its hands is given it again and again, but not for ever.
func TestACallThatIsGivenAgainKeepsItsTimeLimit(t *testing.T) {
	hubbed(t, func(t *testing.T, h *hub) {
		a := join(t, h, "a", 4)
		end := started(t.Context(), h, "k") // with 30 s
		poll(t, h, a)
		var left time.Duration
		for range 10 {
			elapse(2 * time.Second)
			if calls := poll(t, h, a); len(calls) == 1 {
				left = calls[0].Timeout
			}
		}
		if left <= 0 || left > 11*time.Second {
			t.Errorf("after 20 of 30 seconds it has %s", left)
		}
		for range 6 {
			elapse(2 * time.Second)
			poll(t, h, a)
		}
		select {
		case e := <-end:
			if e.err == nil || !strings.Contains(e.err.Error(), "did not answer within") {
				t.Errorf("its call ends with %+v", e)
			}
		default:
			t.Error("its call never ends")
		}
	})
}

// What does not fit into an answer would be lost on the way each time, and hold up all that is behind it.
func TestACallThatNoAnswerHoldsDiesAlone(t *testing.T) {
	hubbed(t, func(t *testing.T, h *hub) {
		a := join(t, h, "a", 4)
		do := func(m wire.Message) <-chan ended {
			c := make(chan ended, 1)
			go func() {
				r, err := h.do(t.Context(), m.ID, wire.Call{Timeout: time.Minute, Message: m})
				c <- ended{r, err}
			}()
			synctest.Wait()
			return c
		}
		large := do(wire.Message{ID: "large", Data: make([]byte, 1<<20), ContentType: strings.Repeat("<", 60<<10)})
		do(wire.Message{ID: "next"})
		if calls := poll(t, h, a); len(calls) != 1 || calls[0].Message.ID != "next" {
			t.Errorf("it is given %d calls", len(calls))
		}
		var no *message.Rejection
		if e := <-large; !errors.As(e.err, &no) || no.Reason != message.MessageTooLarge {
			t.Errorf("the large one ends with %v", e.err)
		}
	})
}

// All instances of a worker are told in one message.
func TestAnInstancesNameIsShownAsFarAsThereIsRoom(t *testing.T) {
	hubbed(t, func(t *testing.T, h *hub) {
		join(t, h, strings.Repeat("ü", 30<<10), 4)
		if name := h.shown()[0].Name; len(name) > 300 || !strings.HasPrefix(name, "üüü") || !utf8.ValidString(name) {
			t.Errorf("its name is %d bytes: %.20q…", len(name), name)
		}
	})
}

func TestAKeyStaysWithItsInstanceAndMovesOnlyWhereItMust(t *testing.T) {
	hubbed(t, func(t *testing.T, h *hub) {
		of := func() map[string]string {
			h.mu.Lock()
			defer h.mu.Unlock()
			got := map[string]string{}
			for n := range 300 {
				x := &handed{key: fmt.Sprint("d-", n)}
				h.place(x)
				got[x.key] = x.at.name
				x.at.queue = nil
			}
			return got
		}
		join(t, h, "a", 1)
		join(t, h, "b", 1)
		c := join(t, h, "c", 1)
		three := of()
		share := map[string]int{}
		for _, who := range three {
			share[who]++
		}
		for who, n := range share {
			if n < 50 || n > 150 {
				t.Errorf("%s has %d of 300 keys", who, n)
			}
		}
		h.leave(c.id)
		for key, who := range of() {
			if three[key] != "c" && three[key] != who {
				t.Errorf("%s was %s's and is %s's, though c left", key, three[key], who)
			}
		}
	})
}

func TestAnInstanceHasNoMoreInItsHandsThanItTakes(t *testing.T) {
	hubbed(t, func(t *testing.T, h *hub) {
		a := join(t, h, "a", 2)
		var ends []<-chan ended
		for i := range 5 {
			ends = append(ends, started(t.Context(), h, fmt.Sprint(i)))
		}
		var has []uint64
		for _, c := range poll(t, h, a) {
			has = append(has, c.Number)
		}
		if len(has) != 2 {
			t.Fatalf("it has %d", len(has))
		}
		if more := poll(t, h, a, has...); len(more) != 0 {
			t.Errorf("it is given %d more", len(more))
		}
		if err := h.results(a.id, []wire.Result{{Number: has[0], End: wire.Done}}); err != nil {
			t.Fatal(err)
		}
		<-ends[0]
		if more := poll(t, h, a, has[1]); len(more) != 1 {
			t.Errorf("one has ended, and it is given %d", len(more))
		}
		h.leave(a.id)
		for n, end := range ends[1:] {
			if n < 2 {
				var again *component.RetryAfter
				if e := <-end; !errors.As(e.err, &again) || !again.Uncounted {
					t.Errorf("it left in peace, and its call ends with %+v; want no attempt", e)
				}
			}
		}
	})
}

func TestACallHasATimeLimitFromWhenItIsGiven(t *testing.T) {
	hubbed(t, func(t *testing.T, h *hub) {
		a := join(t, h, "a", 1)
		end := started(t.Context(), h, "k")
		for range 20 { // it waits for longer than the limit, and is not given yet
			h.mu.Lock()
			_, err := h.heard(a.id)
			h.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			elapse(3 * time.Second)
		}
		select {
		case e := <-end:
			t.Fatalf("it ended before it was given: %+v", e)
		default:
		}
		calls := poll(t, h, a)
		for range 11 {
			if got := poll(t, h, a, calls[0].Number); len(got) > 0 {
				t.Fatal("given twice")
			}
		}
		e := <-end
		var f *failure
		if !errors.As(e.err, &f) || f.kind != "timeout" {
			t.Errorf("it ends with %+v", e)
		}
		if err := h.results(a.id, []wire.Result{{Number: calls[0].Number, End: wire.Done}}); err != nil {
			t.Errorf("a late result: %v", err) // is nobody's, and no fault of the instance
		}
	})
}

func TestAWorkerSaysOnlyWhatIsItsOwn(t *testing.T) {
	for s, ok := range map[message.Subject]bool{
		"device.d.command.blink.c1": true, "device.d.twin.update": true, "data_platform.x": true, "3rd_party.x": true, "my.topic": true,
		"service_platform.worker.me.result": true, "service_platform.worker.other.invoke": true,
		"device.d.presence": false, "device.d.twin.accepted": false, "operator.alarm.x": false, "service_platform.x509.device.d": false,
		"service_platform.worker.other.result": false, "$SYS.x": false, "service_platform.command.ended.d": false,
	} {
		if err := mayReach(s, "me"); (err == nil) != ok {
			t.Errorf("%s: %v; want allowed %v", s, err, ok)
		}
	}
}

func TestACallThatTookTooLongMakesRoomAtOnce(t *testing.T) {
	hubbed(t, func(t *testing.T, h *hub) {
		a := join(t, h, "a", 1)
		slow := started(t.Context(), h, "k")
		has := poll(t, h, a)[0].Number
		next := started(t.Context(), h, "l")
		elapse(time.Second) // so that no question ends when the call does
		given := make(chan time.Time, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { // it asks again and again, as an instance does
			for {
				calls, err := h.poll(ctx, a.id, []uint64{has}, 1<<20)
				if err != nil {
					return
				}
				if len(calls) > 0 {
					given <- time.Now()
					return
				}
			}
		}()
		if e := <-slow; e.err == nil {
			t.Fatal("a call that hangs has ended well")
		}
		over := time.Now()
		if late := (<-given).Sub(over); late > 100*time.Millisecond {
			t.Errorf("what waited behind a call that took too long was given %s after its end", late)
		}
		h.leave(a.id)
		<-next
	})
}

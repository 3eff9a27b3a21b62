package session

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

func TestAHandshakeThatHasBegunOutlivesTheLimitWhileItsClientIsThere(t *testing.T) {
	l := wide
	l.Messages = 2
	r := start(t, componenttest.New(t), l)
	x, epoch, _, _ := r.connect("a", true, 100)
	r.subscribe(x, &Subscription{Filter: "device/d/#", QoS: 2})
	r.publish("device/d/t", "1", 2)
	r.publish("device/d/t", "2", 2)
	if err := x.Settle(t.Context(), Settled{Sent: 2, Released: []uint64{1}}); err != nil { // both sent, and PUBREC came for the first
		t.Fatal(err)
	}
	r.publish("device/d/t", "3", 2)
	want(t, "owed in spite of the limit", r.owed(x, 0), "2 released", "3 2 q2 again true")
	if _, err := x.Disconnect(t.Context(), epoch, nil); err != nil {
		t.Fatal(err)
	}
	r.publish("device/d/t", "4", 2)
	want(t, "owed once its client has gone", r.owed(x, 0), "2 released", "5 4 q2 again false")
}

func TestASharedSubscriptionAndAnOwnOneGiveACopyEach(t *testing.T) {
	for _, first := range []string{"shared", "own"} {
		t.Run(first+" first", func(t *testing.T) {
			r := start(t, componenttest.New(t), wide)
			x, _, _, c := r.connect("a", true, 0)
			list := []*Subscription{{Filter: "$share/g/device/d/#", Share: "g", QoS: 0}, {Filter: "device/d/#", QoS: 0}}
			if first == "own" {
				slices.Reverse(list)
			}
			r.subscribe(x, list...)
			r.publish("device/d/t", "1", 0)
			want(t, "heard", c.heard(), "1 q0 rfalse []", "1 q0 rfalse []")
		})
	}
}

func TestTheOldestGoWhereTheRestWouldBeTooManyBytes(t *testing.T) {
	l := wide
	l.Bytes = 10
	r := start(t, componenttest.New(t), l)
	x, _, _, _ := r.connect("a", false, 60)
	r.subscribe(x, &Subscription{Filter: "device/#", QoS: 1})
	r.publish("device/d/t", "12345", 1)
	r.publish("device/d/t", "67890", 1)
	r.publish("device/d/t", "x", 1)
	want(t, "owed", r.owed(x, 0), "3 67890 q1 again false", "4 x q1 again false")
	r.publish("device/d/t", strings.Repeat("y", 11), 1)
	if list := r.owed(x, 0); len(list) != 1 || !strings.HasPrefix(list[0], "5 yyy") {
		t.Errorf("owed: %q; want the newest, however large", list)
	}
}

func TestNoMoreIsRetainedThanTheLimitAndItsOwnerIsTold(t *testing.T) {
	l := wide
	l.Retained = 1
	r := start(t, componenttest.New(t), l)
	r.publish("device/d/1", "kept", 1, retained)
	r.publish("device/d/2", "too many", 1, retained)
	r.publish("device/d/1", "replaced", 1, retained)
	x, _, _, c := r.connect("a", true, 0)
	r.subscribe(x, &Subscription{Filter: "device/#", QoS: 0})
	want(t, "retained", c.heard(), "replaced q0 rtrue []")
	want(t, "told", r.told, " session_limit")
	r.publish("device/d/1", "", 1, retained)
	r.publish("device/d/2", "has room now", 1, retained)
	y, _, _, c := r.connect("b", true, 0)
	r.subscribe(y, &Subscription{Filter: "device/#", QoS: 0})
	want(t, "retained after one has gone", c.heard(), "has room now q0 rtrue []")
}

func TestASessionResumedWithoutExpiryEndsWithThatConnection(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	x, epoch, _, _ := r.connect("a", false, 60)
	r.subscribe(x, &Subscription{Filter: "device/#", QoS: 1})
	if _, err := x.Disconnect(t.Context(), epoch, nil); err != nil {
		t.Fatal(err)
	}
	r.publish("device/d/t", "1", 1)
	x, epoch, present, _ := r.connect("a", false, 0)
	if !present {
		t.Error("the session was not there")
	}
	want(t, "owed", r.owed(x, 0), "2 1 q1 again false")
	if ends, err := x.Disconnect(t.Context(), epoch, nil); !ends || err != nil {
		t.Errorf("the session ends: %t (%v); want true", ends, err)
	}
	if r = r.again(wide); len(r.store.List()) != 0 {
		t.Errorf("after a start there is %+v", r.store.List())
	}
}

func TestWhatAFormerConnectionSaysLateChangesNothing(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	x, former, _, _ := r.connect("a", false, 60)
	_, epoch, _, _ := r.connect("a", false, 60)
	id := message.NewID(time.Now())
	if !x.Receive(epoch, 7, id) {
		t.Fatal("the connection's own message is refused")
	}
	known, err := x.Release(t.Context(), former, []uint16{7})
	if message.ReasonOf(err, 0) != message.TakenOver || known[0] || x.Received(7) == Unknown {
		t.Errorf("its PUBREL gives %v %v, and the message of the one that followed is %v", known, err, x.Received(7))
	}
	last := uint32(0)
	if ends, err := x.Disconnect(t.Context(), former, &last); ends || err != nil {
		t.Error(ends, err)
	}
	if list := r.store.List(); len(list) != 1 || !list[0].Connected || list[0].ExpirySeconds != 60 {
		t.Errorf("its DISCONNECT left %+v", list)
	}
}

// A queue's number is its packet identifier modulo 65,535: what would share one with a message that is still owed waits.
func TestIdentifiersThatAreOwedAreNotGivenAgain(t *testing.T) {
	l := wide
	l.Messages, l.Bytes = 70000, 1<<30
	r := start(t, componenttest.New(t), l)
	x, _, _, _ := r.connect("a", false, 60)
	r.subscribe(x, &Subscription{Filter: "device/#", QoS: 1})
	r.publish("device/d/t", "first", 1)
	r.store.mu.Lock()
	x.next = 65536 // as if all between had been acknowledged
	r.store.mu.Unlock()
	r.publish("device/d/t", "waits", 1)
	want(t, "owed", r.owed(x, 0), "2 first q1 again false")
	if err := x.Settle(t.Context(), Settled{Sent: 1, Done: []uint64{1}}); err != nil {
		t.Fatal(err)
	}
	want(t, "owed once the first is settled", r.owed(x, 1), "2 waits q1 again false")
}

func TestASubscriptionWaitsForWhatIsStoredAndNotHeardYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, componenttest.New(t), wide)
		x, _, _, c := r.connect("a", true, 0)
		log, err := r.Bus.Log(t.Context(), "device", bus.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		info, err := log.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.store.Stored(bus.Position{Log: info.ID, Generation: 1, Sequence: 1}) // its PUBACK has gone out
		done := make(chan struct{})
		go func() { defer close(done); r.subscribe(x, &Subscription{Filter: "device/#", QoS: 0}) }()
		synctest.Wait()
		select {
		case <-done:
			t.Error("SUBACK went before what was acknowledged had been heard")
		default:
		}
		r.publish("device/d/t", "kept", 1, retained)
		<-done
		want(t, "heard", c.heard(), "kept q0 rtrue []")
		began := time.Now()
		r.store.Stored(bus.Position{Log: info.ID, Generation: 1, Sequence: 1000}) // which nobody will hear
		r.subscribe(x, &Subscription{Filter: "device/d/#", QoS: 0})
		if took := time.Since(began); took != catchUpMost {
			t.Errorf("a subscription waits for %s; want %s at most", took, catchUpMost)
		}
		r.Close()
	})
}

func TestOverlappingSubscriptionsGiveTheHighestQoS(t *testing.T) {
	for i, qos := range [][2]byte{{1, 2}, {2, 1}} {
		r := start(t, componenttest.New(t), wide)
		x, _, _, _ := r.connect("a", false, 60)
		r.subscribe(x, &Subscription{Filter: "device/d/#", QoS: qos[0]}, &Subscription{Filter: "device/+/t", QoS: qos[1]})
		r.publish("device/d/t", "m", 2)
		want(t, fmt.Sprint("case ", i), r.owed(x, 0), "2 m q2 again false")
	}
}

func TestAnExpiredMessageThatWasBegunGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, componenttest.New(t), wide)
		x, _, _, _ := r.connect("a", false, 60)
		r.subscribe(x, &Subscription{Filter: "device/#", QoS: 2})
		soon := func(m *message.Message) { m.Expires = time.Now().Add(time.Second) }
		r.publish("device/d/t", "begun", 2, soon)
		if err := x.Settle(t.Context(), Settled{Sent: 1}); err != nil {
			t.Fatal(err)
		}
		r.publish("device/d/t", "late", 2, soon)
		<-time.After(2 * time.Second)
		want(t, "owed", r.owed(x, 0), "2 begun q2 again true")
		r.Close()
	})
}

func TestWhoWasConnectedAtACrashIsGoneSinceTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, componenttest.New(t), wide)
		r.connect("a", false, 60)
		r = r.again(wide)
		r.connect("b", false, 60)
		<-time.After(61 * time.Second)
		if gone, err := r.store.Expire(t.Context()); len(gone) != 1 || gone[0].ClientID != "a" || err != nil {
			t.Errorf("sessions that ended: %v %v; want that of a", gone, err)
		}
		r.Close()
	})
}

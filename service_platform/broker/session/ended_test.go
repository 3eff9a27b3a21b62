package session

import (
	"fmt"
	"testing"
	"time"

	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

// A message carries its session, not only the session's name: heard late, it must not make the first message of the next
// session with the same identifier look as if it had come already, which would be acknowledged and dropped.
func TestAMessageOfTheSessionBeforeTakesNoIdentifierOfTheNext(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	before, _, _, _ := r.connect("d", true, 3600)
	m := componenttest.Message("device.d.x", "d", "1")
	m.QoS, m.Client, m.Packet = 2, before.Name(), 5
	before.Receive(before.epoch, 5, m.ID)
	before.Stored(5, m.ID) // PUBREC went out; the log has not been heard so far
	next, _, _, _ := r.connect("d", true, 3600)
	r.Say(m)
	r.Settled(name+"/n1", "device")
	if got := next.Received(5); got != Unknown {
		t.Errorf("packet 5 of the next session is %v", got)
	}
}

func TestNothingComesBackOfASessionThatEnded(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	old, _, _, _ := r.connect("d", true, 3600)
	fresh, epoch, _, _ := r.connect("d", true, 3600)
	share := func() []*Subscription {
		select_, err := message.FromFilter("device/d/x")
		if err != nil {
			t.Fatal(err)
		}
		return []*Subscription{{Filter: "$share/g/device/d/x", Share: "g", QoS: 1, Select: select_}}
	}
	if _, err := fresh.Subscribe(t.Context(), share()); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Subscribe(t.Context(), share()); message.ReasonOf(err, 0) != message.TakenOver { // it was under way
		t.Errorf("a former connection's SUBSCRIBE gives %v", err)
	}
	if _, err := old.Unsubscribe(t.Context(), []string{"x"}); message.ReasonOf(err, 0) != message.TakenOver {
		t.Errorf("its UNSUBSCRIBE gives %v", err)
	}
	if _, err := fresh.Disconnect(t.Context(), epoch, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		r.publish("device/d/x", fmt.Sprint(i), 1)
	}
	if got := r.owed(fresh, 0); len(got) != 6 {
		t.Errorf("the only member of its group is owed %d of 6: %q", len(got), got)
	}
	r = r.again(wide)
	x, _, present, _ := r.connect("d", false, 3600)
	if !present || x.rec.ID != fresh.rec.ID || len(r.store.List()) != 1 {
		t.Errorf("after a start the client has session %s of %+v; want %s", x.rec.ID, r.store.List(), fresh.rec.ID)
	}
}

func TestRetainedMessagesThatExpiredGiveUpTheirPlaces(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	for i := range wide.Retained {
		r.publish(fmt.Sprintf("device/e/%d", i), "x", 1, retained, func(m *message.Message) { m.Expires = time.Now().Add(-time.Hour) })
	}
	r.publish("device/d/state", "on", 1, retained)
	x, _, _, c := r.connect("a", true, 0)
	r.subscribe(x, &Subscription{Filter: "device/d/#"})
	want(t, "retained", c.heard(), "on q0 rtrue []")
}

// [MQTT-4.7.2-1], also where a group's name stands before the filter.
func TestASharedWildcardDoesNotSeeADollarBelowAMountPoint(t *testing.T) {
	s := &Subscription{Filter: "$share/g/#", Share: "g", Hidden: 2}
	if s.sees("3rd_party.legacy.$SYS.secret") || !s.sees("3rd_party.legacy.a.$b") {
		t.Error("what begins with $ is seen, or what does not is hidden")
	}
}

func TestWhatWasSentAndNotAcknowledgedIsSentAgainAsADuplicate(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	x, epoch, _, _ := r.connect("d", true, 3600)
	r.subscribe(x, &Subscription{Filter: "device/d/x", QoS: 1})
	r.publish("device/d/x", "sent", 1)
	x.Sent(epoch, 1)
	r.publish("device/d/x", "not sent", 1)
	x, epoch, _, _ = r.connect("d", false, 3600)
	want(t, "owed to the next connection", r.owed(x, 0), "2 sent q1 again true", "3 not sent q1 again false")
	if _, err := x.Disconnect(t.Context(), epoch, nil); err != nil {
		t.Fatal(err)
	}
	r = r.again(wide)
	x, _, _, _ = r.connect("d", false, 3600)
	want(t, "owed after a start", r.owed(x, 0), "2 sent q1 again true", "3 not sent q1 again false")
}

// Nobody need come for a session to be known, and to end.
func TestSessionsAreKnownBeforeAnybodyComes(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	r.connect("d", true, 3600)
	r = r.again(wide)
	if err := r.store.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list := r.store.List(); len(list) != 1 || list[0].ClientID != "d" {
		t.Errorf("after a start the sessions are %+v", list)
	}
}

package session

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/message"
)

const name = "service_platform.keeper"

// rig runs a store as a broker does.
type rig struct {
	*componenttest.Rig
	t     *testing.T
	store *Store

	mu   sync.Mutex
	told []string
}

var wide = Limits{Expiry: 24 * time.Hour, Messages: 1000, Bytes: 1 << 20, Subscriptions: 10, Sessions: 10, Retained: 10}

func start(t *testing.T, r *componenttest.Rig, l Limits) *rig {
	x := &rig{Rig: r, t: t}
	r.Start(component.Define(component.Spec{Name: name, Doc: "keeps", Hears: []message.Pattern{"device.>", "service_platform.>"}, State: component.Local, PerNode: true},
		struct{}{}, func(env component.Env, _ struct{}) (*component.Part, error) {
			x.store = New(env, l, func(w Who, r message.Reason, err error) {
				x.mu.Lock()
				defer x.mu.Unlock()
				x.told = append(x.told, w.ClientID+" "+r.String())
			})
			return &component.Part{HandleBatch: x.store.Hear}, nil
		}))
	r.Running(name)
	return x
}

// again is the process that starts again.
func (r *rig) again(l Limits) *rig {
	r.Stop()
	return start(r.t, r.Rig, l)
}

// client is a connection.
type client struct {
	mu    sync.Mutex
	got   []string
	woken int
	over  bool
	busy  bool
}

func (c *client) Deliver(m *message.Message, o Options) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = append(c.got, fmt.Sprintf("%s q%d r%t %v", m.Data, o.QoS, o.Retain, o.IDs))
}
func (c *client) Wake()        { c.mu.Lock(); defer c.mu.Unlock(); c.woken++ }
func (c *client) Deleted()     { c.TakenOver() }
func (c *client) Busy() bool   { c.mu.Lock(); defer c.mu.Unlock(); return c.busy }
func (c *client) HungUp() bool { return false }
func (c *client) TakenOver()   { c.mu.Lock(); defer c.mu.Unlock(); c.over = true }

func (c *client) heard() []string { c.mu.Lock(); defer c.mu.Unlock(); return slices.Clone(c.got) }

func (r *rig) connect(id string, clean bool, expiry uint32) (*Session, uint64, bool, *client) {
	r.t.Helper()
	c := new(client)
	x, epoch, present, err := r.store.Connect(r.t.Context(), Who{Identity: id, ClientID: id}, Caps{}, clean, expiry, c)
	if err != nil {
		r.t.Fatal(err)
	}
	return x, epoch, present, c
}

func (r *rig) subscribe(x *Session, list ...*Subscription) {
	r.t.Helper()
	for _, s := range list {
		f := s.Filter
		if s.Share != "" {
			f = strings.TrimPrefix(f, "$share/"+s.Share+"/")
		}
		var err error
		if s.Select, err = message.FromFilter(f); err != nil {
			r.t.Fatal(err)
		}
	}
	failed, err := x.Subscribe(r.t.Context(), list)
	if err = errors.Join(append(failed, err)...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) publish(topic, data string, qos byte, change ...func(*message.Message)) *message.Message {
	s, err := message.FromTopic(topic)
	if err != nil {
		r.t.Fatal(err)
	}
	m := componenttest.Message(s, "d", data)
	m.QoS = qos
	for _, f := range change {
		f(m)
	}
	r.Say(m)
	r.Settled(name+"/n1", "device")
	return m
}

func retained(m *message.Message) { m.Retain = true }

// owed is what a session is owed, as text.
func (r *rig) owed(x *Session, behind uint64) (list []string) {
	r.t.Helper()
	all, _, err := x.Behind(r.t.Context(), behind, 100)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, o := range all {
		if o.Released {
			list = append(list, fmt.Sprintf("%d released", o.Packet))
			continue
		}
		list = append(list, fmt.Sprintf("%d %s q%d again %t", o.Packet, o.Message.Data, o.QoS, o.Again))
	}
	return list
}

func want(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestWhatASessionIsOwedOutlivesConnectionAndProcess(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	x, epoch, present, _ := r.connect("a", false, 60)
	if present {
		t.Error("a new session was there before")
	}
	r.subscribe(x, &Subscription{Filter: "device/d/#", QoS: 2})
	r.publish("device/d/x", "1", 1)
	r.publish("device/d/x", "zero is not kept", 0)
	if _, err := x.Disconnect(t.Context(), epoch, nil); err != nil {
		t.Fatal(err)
	}
	r.publish("device/d/x", "2", 2)
	r.publish("device/other/x", "not wanted", 1)
	r = r.again(wide)
	x, _, present, c := r.connect("a", false, 60)
	if !present {
		t.Fatal("the session is gone")
	}
	want(t, "owed", r.owed(x, 0), "2 1 q1 again false", "3 2 q2 again false")
	if err := x.Settle(t.Context(), Settled{Sent: 2, Released: []uint64{2}}); err != nil {
		t.Fatal(err)
	}
	r.publish("device/d/x", "3", 1)
	want(t, "owed behind what was sent", r.owed(x, 2), "4 3 q1 again false")
	r.Until(func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.woken > 0 }, func() string { return "nobody was woken" })
	r = r.again(wide)
	x, _, _, _ = r.connect("a", false, 60)
	want(t, "owed after PUBREC", r.owed(x, 0), "2 1 q1 again true", "3 released", "4 3 q1 again true") // all may have been sent
	if err := x.Settle(t.Context(), Settled{Sent: 3, Done: []uint64{1, 2, 3}}); err != nil {
		t.Fatal(err)
	}
	r = r.again(wide)
	x, _, _, _ = r.connect("a", false, 60)
	want(t, "owed after all", r.owed(x, 0))
	r.publish("device/d/x", "4", 1)
	want(t, "numbers go on", r.owed(x, 0), "5 4 q1 again false")
	x, _, present, _ = r.connect("a", true, 60)
	if present || len(r.owed(x, 0)) > 0 || len(x.Subscriptions()) > 0 {
		t.Error("a clean start left something")
	}
}

func TestASessionWithoutExpiryIsOwedNothingAndHearsNow(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	x, epoch, _, c := r.connect("a", true, 0)
	r.subscribe(x, &Subscription{Filter: "device/+/x", QoS: 1, ID: 7}, &Subscription{Filter: "device/d/#", QoS: 2, ID: 8, AsPublished: true})
	r.publish("device/d/x", "1", 2)
	r.publish("device/d/y", "2", 0, retained)
	want(t, "heard", c.heard(), "1 q2 rfalse [7 8]", "2 q0 rtrue [8]")
	r.connect("a", true, 0)
	if !c.over {
		t.Error("the former connection was not told")
	}
	if _, err := x.Disconnect(t.Context(), epoch, nil); err != nil {
		t.Fatal(err)
	}
	if list := r.store.List(); len(list) != 1 || !list[0].Connected {
		t.Errorf("sessions are %+v: the old connection's end was taken for the new one's", list)
	}
}

func TestRetainedMessagesGoToNewSubscriptionsByTheirHandling(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	r.publish("device/d/x", "old", 1, retained)
	r.publish("device/d/x", "kept", 1, retained)
	r.publish("device/d/y", "gone", 1, retained)
	r.publish("device/d/y", "", 1, retained)
	r.publish("device/d/z", "expired", 1, retained, func(m *message.Message) { m.Expires = time.Now().Add(-time.Second) })
	r = r.again(wide)
	x, _, _, c := r.connect("a", true, 0)
	r.subscribe(x, &Subscription{Filter: "device/d/+", QoS: 1})
	want(t, "heard", c.heard(), "kept q1 rtrue []")
	r.subscribe(x, &Subscription{Filter: "device/d/+", QoS: 0, Retained: 1})
	r.subscribe(x, &Subscription{Filter: "device/#", QoS: 0, Retained: 2})
	want(t, "heard with handling 1 of an old, and 2 of a new subscription", c.heard(), "kept q1 rtrue []")
	kept, _, _, _ := r.connect("b", false, 60)
	r.subscribe(kept, &Subscription{Filter: "#", QoS: 1, Retained: 1})
	want(t, "owed", r.owed(kept, 0), "2 kept q1 again false")
}

func TestOneOfAGroupHearsEachMessage(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	a, _, _, ca := r.connect("a", true, 0)
	b, epoch, _, _ := r.connect("b", false, 60)
	for _, x := range []*Session{a, b} {
		r.subscribe(x, &Subscription{Filter: "$share/g/device/#", Share: "g", QoS: 1})
	}
	for i := range 4 {
		r.publish("device/d/x", fmt.Sprint(i), 1)
	}
	if n := len(ca.heard()); n != 2 || len(r.owed(b, 0)) != 2 {
		t.Errorf("of 4 messages one heard %d, the other %d", n, len(r.owed(b, 0)))
	}
	if _, err := b.Disconnect(t.Context(), epoch, nil); err != nil {
		t.Fatal(err)
	}
	r.publish("device/d/x", "4", 1)
	if n := len(ca.heard()); n != 3 {
		t.Errorf("the one that is there heard %d; want 3", n)
	}
	if _, err := a.Unsubscribe(t.Context(), []string{"$share/g/device/#"}); err != nil {
		t.Fatal(err)
	}
	r.publish("device/d/x", "5", 1)
	if n := len(r.owed(b, 0)); n != 3 {
		t.Errorf("the session of the one that is away keeps %d; want 3", n)
	}
}

func TestAQoS2MessageIsKnownUntilItsReleaseAlsoAfterACrash(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	x, _, _, _ := r.connect("a", false, 60)
	from := func(packet uint16) func(*message.Message) {
		return func(m *message.Message) { m.Client, m.Packet = x.Name(), packet }
	}
	first := r.publish("device/d/x", "1", 2, from(7))
	r = r.again(wide)
	x, _, _, _ = r.connect("a", false, 60)
	if x.Received(7) != Known || x.received[7] != first.ID {
		t.Errorf("after a crash packet 7 is %v", x.Received(7))
	}
	if known, err := x.Release(t.Context(), x.epoch, []uint16{7}); !known[0] || err != nil {
		t.Fatal(known, err)
	}
	if known, err := x.Release(t.Context(), x.epoch, []uint16{7}); known[0] || err != nil {
		t.Error("a second release finds something", err)
	}
	// The release overtakes the log: the message is heard after it.
	m := componenttest.Message("device.d.x", "d", "2")
	m.QoS, m.Client, m.Packet = 2, x.Name(), 8
	if !x.Receive(x.epoch, 8, m.ID) || x.Receive(x.epoch-1, 9, m.ID) || x.Received(9) != Unknown {
		t.Error("a former connection's message counts, or this one's does not")
	}
	if known, err := x.Release(t.Context(), x.epoch, []uint16{8}); !known[0] || err != nil {
		t.Fatal(known, err)
	}
	r = r.again(wide)
	r.Say(m)
	r.Settled(name+"/n1", "device")
	x, _, _, _ = r.connect("a", false, 60)
	if x.Received(8) != Unknown {
		t.Error("a message that was released before the log was heard is known again")
	}
}

func TestSessionsEndWhenTheirTimeHasPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := start(t, componenttest.New(t), wide)
		x, epoch, _, _ := r.connect("a", false, 60)
		r.subscribe(x, &Subscription{Filter: "device/#", QoS: 1})
		if _, err := x.Disconnect(t.Context(), epoch, nil); err != nil {
			t.Fatal(err)
		}
		r.publish("device/d/x", "1", 1)
		<-time.After(59 * time.Second)
		if gone, err := r.store.Expire(t.Context()); len(gone) != 0 || err != nil {
			t.Error(gone, err)
		}
		<-time.After(2 * time.Second)
		if gone, err := r.store.Expire(t.Context()); len(gone) != 1 || err != nil {
			t.Error(gone, err)
		}
		want(t, "told", r.told, "a session_expired")
		r.told = nil
		for _, clean := range []bool{false, true} { // too late, though nobody has looked yet; and in time, but to begin anew
			x, epoch, present, _ := r.connect("a", clean, 60)
			if present {
				t.Error("the session is there still")
			}
			r.subscribe(x, &Subscription{Filter: "device/#", QoS: 1})
			if _, err := x.Disconnect(t.Context(), epoch, nil); err != nil {
				t.Fatal(err)
			}
			r.publish("device/d/x", "1", 1)
			if !clean {
				<-time.After(61 * time.Second)
			}
		}
		r.connect("a", true, 60)
		want(t, "told", r.told, "a session_expired", "a session_expired")
		r.Close()
	})
}

func TestBeyondItsLimitsTheOldestOfASessionDie(t *testing.T) {
	l := wide
	l.Messages, l.Retained, l.Sessions, l.Subscriptions = 2, 1, 1, 1
	r := start(t, componenttest.New(t), l)
	x, _, _, _ := r.connect("a", false, 60)
	r.subscribe(x, &Subscription{Filter: "device/#", QoS: 1})
	for i := range 3 {
		r.publish("device/d/x", fmt.Sprint(i), 1)
	}
	want(t, "owed", r.owed(x, 0), "3 1 q1 again false", "4 2 q1 again false")
	want(t, "told", r.told, "a session_limit")
	if _, _, _, err := r.store.Connect(t.Context(), Who{ClientID: "b"}, Caps{}, false, 60, new(client)); message.ReasonOf(err, 0) != message.SessionLimit {
		t.Errorf("a session beyond the limit gives %v", err)
	}
	failed, err := x.Subscribe(t.Context(), []*Subscription{{Filter: "other"}})
	if err != nil || message.ReasonOf(failed[0], 0) != message.SessionLimit {
		t.Errorf("a subscription beyond the limit gives %v %v", failed, err)
	}
}

func TestNothingIsKeptOfADeletedDevice(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	x, epoch, _, _ := r.connect("d", false, 60)
	r.subscribe(x, &Subscription{Filter: "device/d/#", QoS: 1})
	if _, err := x.Disconnect(t.Context(), epoch, nil); err != nil {
		t.Fatal(err)
	}
	other, _, _, _ := r.connect("e", false, 60)
	r.subscribe(other, &Subscription{Filter: "device/#", QoS: 1})
	r.publish("device/d/x", "kept", 1, retained)
	r.publish("device/dd/x", "another's", 1, retained)
	for _, change := range []string{"disabled", "deleted"} {
		m := componenttest.Message("service_platform.x509.device.d", "d", `{"device":"d","change":"`+change+`","by":"test"}`)
		r.Say(m)
		r.Settled(name+"/n1", "service_platform")
		if got := len(r.store.List()); change == "disabled" && got != 2 || change == "deleted" && got != 1 {
			t.Errorf("after it was %s there are %d sessions", change, got)
		}
	}
	_, _, present, _ := r.connect("d", false, 60)
	fresh, _, _, c := r.connect("f", true, 0)
	r.subscribe(fresh, &Subscription{Filter: "device/#", QoS: 1})
	want(t, "retained", c.heard(), "another's q1 rtrue []")
	if present {
		t.Error("its session is there still")
	}
}

func TestWillsAreThereAfterACrash(t *testing.T) {
	r := start(t, componenttest.New(t), wide)
	w := Will{ID: message.NewID(time.Now()), Session: message.NewID(time.Now()), Delay: time.Minute, Message: componenttest.Message("device.d.x", "d", "bye")}
	if err := r.store.KeepWill(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	r = r.again(wide)
	list, err := r.store.Wills()
	if err != nil || len(list) != 1 || list[0].Delay != time.Minute || string(list[0].Message.Data) != "bye" || list[0].Session != w.Session {
		t.Errorf("wills are %+v %v", list, err)
	}
	if err := r.store.MarkOnline(t.Context(), map[string]bool{"a": true, "b": true}); err != nil {
		t.Fatal(err)
	}
	if err := r.store.MarkOnline(t.Context(), map[string]bool{"a": false}); err != nil {
		t.Fatal(err)
	}
	online, err := r.store.Online()
	if err != nil {
		t.Fatal(err)
	}
	want(t, "online", online, "b")
	if err := r.store.DropWill(t.Context(), w.ID); err != nil {
		t.Fatal(err)
	}
	if list, err := r.store.Wills(); err != nil || len(list) != 0 {
		t.Errorf("wills are %+v %v", list, err)
	}
}

func FuzzParseItem(f *testing.F) {
	f.Add((&item{kind: itemRef, o: Options{QoS: 1, IDs: []uint32{1, 2}}, log: "device", size: 3}).encode())
	f.Add((&item{kind: itemInline, o: Options{QoS: 2, Retain: true}, record: []byte("record")}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := parseItem(b)
		if err != nil {
			return
		}
		again, err := parseItem(i.encode())
		if err != nil || again.kind != i.kind || again.o.QoS != i.o.QoS || !slices.Equal(again.o.IDs, i.o.IDs) || again.at != i.at || again.log != i.log {
			t.Errorf("%+v is read again as %+v (%v)", i, again, err)
		}
	})
}

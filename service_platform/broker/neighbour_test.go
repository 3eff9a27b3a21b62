package broker

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// town is several brokers on one bus, each with an open listener beside the devices'.
type town struct {
	t     *testing.T
	nodes []*rig
	addr  []string
}

func newTown(t *testing.T, n int, change ...func(*Config)) *town {
	t.Helper()
	w := &town{t: t}
	engine := mem.New(mem.Options{})
	for i := range n {
		on := engine
		if i > 0 {
			on = engine.Reopen()
		}
		w.add(on, change...)
	}
	return w
}

// add begins one more node.
func (w *town) add(on *mem.Bus, change ...func(*Config)) {
	w.t.Helper()
	conf, addr := open(w.t)
	w.nodes = append(w.nodes, newNode(w.t, on, fmt.Sprint("n", len(w.nodes)+1), catalog.Default(), func(c *Config) {
		conf(c)
		c.Cluster = "on"
		for _, f := range change {
			f(c)
		}
	}))
	w.addr = append(w.addr, addr)
}

// at connects a client to a node.
func (w *town) at(node int, c packet.Connect) (*peer, packet.Connack) {
	w.t.Helper()
	p := w.nodes[node].dial(w.addr[node])
	return p, p.connect(c)
}

// publisher is a client at a node that is nobody else's concern.
func (w *town) publisher(node int) *peer {
	w.t.Helper()
	p, _ := w.at(node, packet.Connect{Version: packet.V5, CleanStart: true, ClientID: fmt.Sprint("pub-", node)})
	return p
}

func TestASessionGoesOnAtAnotherNode(t *testing.T) {
	w := newTown(t, 2)
	sub, _ := w.at(0, keeping("sub", false, 3600))
	sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 2})
	first, second := w.publisher(0), w.publisher(1)
	first.send(publish("a/b", "1", 2, 1))
	sub.take()
	second.send(publish("a/b", "2", 1, 1))
	sub.take()
	// One handshake is half done, one message has not been answered, and more is to come.
	first.send(publish("a/b", "3", 2, 2))
	third := sub.hear()
	sub.write((&packet.Ack{Type: packet.PUBREC, ID: third.ID}).Append(nil, packet.V5))
	sub.answer(packet.PUBREL, third.ID)
	first.send(publish("a/b", "4", 1, 3))
	fourth := sub.hear()
	sub.Close()
	first.send(publish("a/b", "5", 1, 4))
	second.send(publish("a/b", "6", 2, 2))
	for round := range 4 { // there and back
		var ack packet.Connack
		if sub, ack = w.at((round+1)%2, keeping("sub", false, 3600)); !ack.SessionPresent {
			t.Fatalf("round %d: the session is not present at the other node", round)
		}
		if h, body := sub.next(); h.Type != packet.PUBREL || uint16(body[0])<<8|uint16(body[1]) != third.ID {
			t.Fatalf("round %d: %s %x came; want PUBREL of %d", round, h.Type, body, third.ID)
		}
		if m := sub.hear(); m.ID != fourth.ID || !m.Dup || string(m.Payload) != "4" {
			t.Errorf("round %d: message %d %q came, again %v; want %d again", round, m.ID, m.Payload, m.Dup, fourth.ID)
		}
		for _, want := range []string{"5", "6"} {
			if m := sub.hear(); string(m.Payload) != want {
				t.Errorf("round %d: %q came; want %s", round, m.Payload, want)
			}
		}
		sub.Close()
	}
	sub, _ = w.at(0, keeping("sub", false, 3600))
	sub.answer(packet.PUBREL, third.ID)
	sub.write((&packet.Ack{Type: packet.PUBCOMP, ID: third.ID}).Append(nil, packet.V5))
	for _, want := range []string{"a/b 4 q1 rfalse dtrue", "a/b 5 q1 rfalse dtrue", "a/b 6 q2 rfalse dtrue"} {
		if got := sub.take(); got != want {
			t.Errorf("%s came; want %s", got, want)
		}
	}
	second.send(publish("a/b", "7", 1, 3))
	if got := sub.take(); got != "a/b 7 q1 rfalse dfalse" {
		t.Errorf("%s came at the end", got)
	}
	sub.nothing()
}

func TestAClientIsConnectedOnceInTheTown(t *testing.T) {
	w := newTown(t, 3)
	for _, expiry := range []uint32{0, 3600} {
		id := fmt.Sprint("c", expiry)
		var before *peer
		for round := range 6 {
			p, ack := w.at(round%3, keeping(id, false, expiry))
			if ack.Code != 0 || ack.SessionPresent != (expiry > 0 && round > 0) {
				t.Fatalf("round %d: CONNACK is %+v", round, ack)
			}
			if before != nil {
				before.closed(packet.SessionTakenOver)
			}
			before = p
			p.nothing()
		}
	}
}

func TestACleanStartElsewhereEndsTheSession(t *testing.T) {
	w := newTown(t, 2)
	sub, _ := w.at(0, keeping("sub", false, 3600))
	sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 1})
	pub := w.publisher(0)
	sub.Close()
	pub.send(publish("a/b", "1", 1, 1))
	sub, ack := w.at(1, keeping("sub", true, 3600))
	if ack.SessionPresent {
		t.Error("a session is present that was not wanted")
	}
	pub.send(publish("a/b", "2", 1, 2))
	sub.nothing()
	sub.Close()
	sub, ack = w.at(0, keeping("sub", false, 3600))
	if !ack.SessionPresent {
		t.Error("the session of the clean start is not there")
	}
	sub.nothing()
}

func TestAQoS2MessageIsStoredOnceThoughItIsSentAgainAtAnotherNode(t *testing.T) {
	w := newTown(t, 2)
	sub := w.publisher(1)
	sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 0})
	for i := range 20 {
		p, _ := w.at(i%2, keeping("p", i == 0, 3600))
		m := publish("a/b", fmt.Sprint(i), 2, 7)
		p.write(m.Append(nil, packet.V5))
		if i%3 > 0 {
			p.answer(packet.PUBREC, 7)
		}
		p, ack := w.at((i+1)%2, keeping("p", false, 3600)) // whatever was on its way
		if !ack.SessionPresent {
			t.Fatal("the session is not there")
		}
		m.Dup = true
		p.write(m.Append(nil, packet.V5))
		p.answer(packet.PUBREC, 7)
		p.write((&packet.Ack{Type: packet.PUBREL, ID: 7}).Append(nil, packet.V5))
		p.answer(packet.PUBCOMP, 7)
		if got := sub.take(); got != fmt.Sprintf("a/b %d q0 rfalse dfalse", i) {
			t.Fatalf("%s came; want %d", got, i)
		}
	}
	sub.nothing()
}

// What comes while a session goes to and fro is neither lost nor doubled, and stays in order.
func TestNothingIsLostOrDoubledWhileASessionMoves(t *testing.T) {
	w := newTown(t, 2)
	sub, _ := w.at(0, keeping("sub", false, 3600))
	sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 2})
	const n = 400
	var group sync.WaitGroup
	for i := range 2 {
		pub := w.publisher(i)
		group.Go(func() {
			for j := range n {
				m := publish("a/"+fmt.Sprint(i), fmt.Sprint(j), 2, uint16(j+1))
				pub.send(m)
			}
		})
	}
	got := map[string][]string{}
	open := map[uint16]bool{} // whose PUBREC was said, and which are the client's
	take := func(h packet.Header, body []byte) {
		switch h.Type {
		case packet.PUBLISH:
			var m packet.Publish
			if err := m.Decode(h, body, packet.V5); err != nil {
				t.Fatal(err)
			}
			if !open[m.ID] {
				open[m.ID] = true
				got[m.Topic] = append(got[m.Topic], string(m.Payload))
			}
			_, _ = sub.Write((&packet.Ack{Type: packet.PUBREC, ID: m.ID}).Append(nil, packet.V5))
		case packet.PUBREL:
			id := uint16(body[0])<<8 | uint16(body[1])
			delete(open, id)
			_, _ = sub.Write((&packet.Ack{Type: packet.PUBCOMP, ID: id}).Append(nil, packet.V5))
		}
	}
	count := func() int { return len(got["a/0"]) + len(got["a/1"]) }
	for at, moved := 0, 0; count() < 2*n; {
		h, body, err := sub.try(45 * time.Second)
		if err != nil {
			t.Fatalf("%d of %d messages came, and then: %v", count(), 2*n, err)
		}
		take(h, body)
		if count() > 40*(moved+1) {
			moved++
			at = 1 - at
			var ack packet.Connack
			if sub, ack = w.at(at, keeping("sub", false, 3600)); !ack.SessionPresent {
				t.Fatal("the session is not there")
			}
		}
	}
	group.Wait()
	for topic, list := range got {
		var want []string
		for j := range n {
			want = append(want, fmt.Sprint(j))
		}
		for j := range want {
			if j == len(list) || list[j] != want[j] {
				t.Errorf("on %s came %v behind %d; want %d", topic, list[j:min(j+5, len(list))], j-1, j)
				break
			}
		}
	}
}

// kill ends a node as SIGKILL does: nothing that it still does gets anywhere.
func (w *town) kill(node int) {
	w.t.Helper()
	if err := w.nodes[node].bus.Close(); err != nil {
		w.t.Fatal(err)
	}
	stop, stopped := w.nodes[node].stop, make(chan struct{})
	go func() { stop(); close(stopped) }()
	w.t.Cleanup(func() { <-stopped })
}

// inTime connects a client to a node, however often it is refused, and wants that to succeed within five seconds of an event.
func (w *town) inTime(node int, since time.Time, c packet.Connect) (*peer, packet.Connack) {
	w.t.Helper()
	p, ack := w.at(node, c)
	if took := time.Since(since); ack.Code != 0 || took > 5*time.Second {
		w.t.Fatalf("CONNACK is %+v after %s", ack, took)
	} else {
		w.t.Logf("CONNACK came %s after the node was gone", took.Round(10*time.Millisecond))
	}
	return p, ack
}

func TestANeighbourGoesOnWithTheSessionsOfANodeThatIsGone(t *testing.T) {
	w := newTown(t, 3)
	pub := w.publisher(2)
	sub, _ := w.at(0, keeping("sub", false, 3600))
	sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 2})
	away, _ := w.at(0, keeping("away", false, 3600))
	away.subscribe(packet.Subscription{Filter: "a/#", QoS: 1})
	away.Close()
	pub.send(publish("a/b", "1", 2, 1))
	first := sub.hear()
	sub.write((&packet.Ack{Type: packet.PUBREC, ID: first.ID}).Append(nil, packet.V5))
	sub.answer(packet.PUBREL, first.ID)
	pub.send(publish("a/b", "2", 1, 2))
	second := sub.hear()
	out := publish("out", "x", 2, 9) // received, and not released
	sub.write(out.Append(nil, packet.V5))
	sub.answer(packet.PUBREC, 9)
	w.kill(0)
	gone := time.Now()
	pub.send(publish("a/b", "3", 1, 3)) // nobody has the session now
	sub, ack := w.inTime(1, gone, keeping("sub", false, 3600))
	if !ack.SessionPresent {
		t.Fatal("the session has died with its node")
	}
	sub.answer(packet.PUBREL, first.ID)
	if m := sub.hear(); m.ID != second.ID || !m.Dup || string(m.Payload) != "2" {
		t.Errorf("%q came as %d, again %v; want 2 as %d again", m.Payload, m.ID, m.Dup, second.ID)
	}
	if m := sub.hear(); string(m.Payload) != "3" || m.Dup {
		t.Errorf("%q came, again %v; want 3", m.Payload, m.Dup)
	}
	hears := w.publisher(1)
	hears.subscribe(packet.Subscription{Filter: "out", QoS: 0})
	out.Dup = true
	sub.write(out.Append(nil, packet.V5))
	sub.answer(packet.PUBREC, 9)
	sub.write((&packet.Ack{Type: packet.PUBREL, ID: 9}).Append(nil, packet.V5))
	sub.answer(packet.PUBCOMP, 9)
	hears.nothing()
	pub.send(publish("a/b", "4", 1, 4))
	away, _ = w.at(2, keeping("away", false, 3600))
	for _, want := range []string{"1", "2", "3", "4"} {
		if m := away.hear(); string(m.Payload) != want {
			t.Errorf("the client that was away got %q; want %s", m.Payload, want)
		}
	}
	away.nothing()
}

func TestWillsAndPresenceSurviveTheirNode(t *testing.T) {
	w := newTown(t, 3)
	watch := w.publisher(2)
	watch.subscribe(packet.Subscription{Filter: "will/#", QoS: 1})
	for id, delay := range map[string]uint32{"now": 0, "soon": 1, "back": 60, "late": 120} {
		w.at(0, withWill(id, delay, 0))
	}
	clean := withWill("clean", 90, 0) // its session ends with its connection, and so does its delay
	clean.Properties.Set(packet.SessionExpiry, 0)
	w.at(0, clean)
	bye, _ := w.at(0, withWill("bye", 0, 0))
	bye.leaves()
	for i := range 6 {
		w.nodes[0].raw().connect(keeping(fmt.Sprint("d-", i), true, 3600))
	}
	w.nodes[0].told(6)
	w.kill(0)
	gone := time.Now()
	w.inTime(1, gone, keeping("back", false, 3600)) // without a will
	for i := range 3 {
		w.nodes[1+i%2].raw().connect(keeping(fmt.Sprint("d-", i), false, 3600))
	}
	got := map[string]bool{}
	for range 3 {
		m := watch.hear()
		got[m.Topic] = true
		watch.write((&packet.Ack{Type: packet.PUBACK, ID: m.ID}).Append(nil, packet.V5))
	}
	if !got["will/now"] || !got["will/soon"] || !got["will/clean"] {
		t.Errorf("wills came on %v", got)
	}
	watch.nothing()
	want := func(last map[string]device.Presence) string {
		for i := range 6 {
			if p := last[fmt.Sprint("d-", i)]; p.Online != (i < 3) || p.Node == "n1" || !p.Online && p.Reason != message.ConnectionLost {
				return fmt.Sprintf("d-%d: %+v", i, p)
			}
		}
		return ""
	}
	w.nodes[1].eventually(func() string { return want(w.nodes[1].lastPresence()) })
}

// told waits until something was told of the presence of so many devices.
func (r *rig) told(n int) {
	r.t.Helper()
	r.eventually(func() string {
		if last := r.lastPresence(); len(last) < n {
			return fmt.Sprintf("the presence of %d devices was told; want %d", len(last), n)
		}
		return ""
	})
}

// eventually waits until nothing is wrong any more.
func (r *rig) eventually(wrong func() string) {
	r.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(45 * time.Second); ; <-tick.C {
		what := wrong()
		if what == "" {
			return
		}
		if time.Now().After(until) {
			r.t.Fatal(what)
		}
	}
}

// A node that sleeps past its lease is fenced: what it still does reaches nobody, and when it wakes up it has what the others
// have made of its sessions.
func TestANodeThatWasTakenForGoneComesBackAsAFollower(t *testing.T) {
	w := newTown(t, 2)
	pub := w.publisher(1)
	sub, _ := w.at(0, keeping("sub", false, 3600))
	sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 2})
	idle, _ := w.at(0, keeping("idle", false, 3600))
	idle.subscribe(packet.Subscription{Filter: "a/#", QoS: 1})
	pub.send(publish("a/b", "1", 2, 1))
	first := sub.hear()
	w.nodes[0].bus.Sleep(true)
	w.nodes[1].eventually(func() string { // the neighbour has taken its place
		for _, s := range w.nodes[1].sessions() {
			if s.ClientID == "idle" {
				return ""
			}
		}
		return "the neighbour has not taken the place of the node that sleeps"
	})
	// The client is still connected to the sleeping node, and goes on with its handshakes.
	sub.write((&packet.Ack{Type: packet.PUBREC, ID: first.ID}).Append(nil, packet.V5))
	sub.write(func() []byte { m := publish("lost", "x", 1, 5); return m.Append(nil, packet.V5) }())
	for {
		h, body, err := sub.try(10 * time.Second)
		if err != nil {
			break
		}
		if h.Type == packet.PUBACK || h.Type == packet.PUBREL {
			t.Errorf("a node that was fenced said %s %x", h.Type, body)
		}
	}
	w.nodes[0].bus.Sleep(false)
	pub.send(publish("a/b", "2", 1, 2))
	sub, ack := w.at(1, keeping("sub", false, 3600))
	if !ack.SessionPresent {
		t.Error("the session has been lost on the way")
	}
	if m := sub.hear(); m.ID != first.ID || !m.Dup {
		t.Errorf("%q came as %d, again %v; want 1 as %d again", m.Payload, m.ID, m.Dup, first.ID)
	}
	sub.write((&packet.Ack{Type: packet.PUBREC, ID: first.ID}).Append(nil, packet.V5))
	if m := sub.hear(); string(m.Payload) != "2" {
		t.Errorf("%q came; want 2", m.Payload)
	}
	w.nodes[0].restarted(1)
	for _, id := range []string{"idle", "sub"} {
		p, ack := w.at(0, keeping(id, false, 3600))
		if !ack.SessionPresent {
			t.Errorf("the node that came back does not know the session of %s", id)
		}
		if id == "sub" {
			p.answer(packet.PUBREL, first.ID)
			p.write((&packet.Ack{Type: packet.PUBCOMP, ID: first.ID}).Append(nil, packet.V5))
		} else if m := p.hear(); string(m.Payload) != "1" {
			t.Errorf("%s got %q first; want 1", id, m.Payload)
		}
		if m := p.hear(); string(m.Payload) != "2" {
			t.Errorf("%s got %q; want 2", id, m.Payload)
		}
		p.nothing()
	}
}

// sessions are those that the node's broker shows.
func (r *rig) sessions() (list []session.Show) {
	r.t.Helper()
	answer := httptest.NewRecorder()
	r.host.Handler(func(*http.Request) bool { return true }).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/api/v1/broker/sessions", nil))
	if err := json.Unmarshal(answer.Body.Bytes(), &list); err != nil && answer.Code == http.StatusOK {
		r.t.Fatal(err)
	}
	return list
}

// restarted waits until the broker has been started again so often, and lets clients in.
func (r *rig) restarted(times int) {
	r.t.Helper()
	r.eventually(func() string {
		if h := r.host.Health()[0]; h.State != "running" || h.Restarts < times {
			return "the broker is " + h.State + " " + h.Fault
		}
		return ""
	})
}

// trim forgets what the logs hold, as retention does.
func (w *town) trim() {
	w.t.Helper()
	for _, name := range []string{message.Device, message.ThirdParty, message.ServicePlatform} {
		log, err := w.nodes[0].bus.Log(w.t.Context(), name, bus.LogOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		info, err := log.Info(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		last := info.Generations[0].Partitions[0].Last
		if err := log.Trim(w.t.Context(), bus.Position{Generation: 1, Sequence: last}); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestANodeThatJoinsHasWhatTheOthersKeep(t *testing.T) {
	w := newTown(t, 2)
	pub := w.publisher(1)
	for i := range 5 {
		m := publish(fmt.Sprint("r/", i), "kept", 1, 1)
		m.Retain = true
		pub.send(m)
	}
	none := publish("r/0", "", 1, 1)
	none.Retain = true
	pub.send(none)
	for i := range 2 {
		sub, _ := w.at(i, keeping(fmt.Sprint("sub-", i), false, 3600))
		sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 1})
		sub.Close()
	}
	w.at(0, withWill("d", 0, 0))
	w.trim()
	pub.send(publish("a/b", "1", 1, 2))
	w.add(w.nodes[0].bus.Reopen())
	pub.send(publish("a/b", "2", 1, 3))
	watch := w.publisher(2)
	watch.subscribe(packet.Subscription{Filter: "will/#", QoS: 0})
	w.kill(0)
	w.kill(1)
	gone := time.Now()
	for i := range 2 {
		sub, ack := w.at(2, keeping(fmt.Sprint("sub-", i), false, 3600))
		if !ack.SessionPresent {
			t.Fatalf("the node that has joined does not know the session of node %d", i+1)
		}
		for _, want := range []string{"1", "2"} {
			if m := sub.hear(); string(m.Payload) != want {
				t.Errorf("%q came; want %s", m.Payload, want)
			}
		}
		sub.Close()
	}
	t.Logf("both nodes were followed within %s", time.Since(gone).Round(10*time.Millisecond))
	if m := watch.hear(); m.Topic != "will/d" {
		t.Errorf("%s came; want the will", m.Topic)
	}
	watch.subscribe(packet.Subscription{Filter: "r/#", QoS: 0})
	got := map[string]bool{}
	for range 4 {
		got[watch.hear().Topic] = true
	}
	watch.nothing()
	if len(got) != 4 || got["r/0"] {
		t.Errorf("the retained messages are on %v", got)
	}
}

// A node whose disk is lost comes back under its name: those that have copies have gone on with what was its own.
func TestANodeThatLostItsDiskLosesNobodysSession(t *testing.T) {
	for _, alone := range []bool{false, true} {
		w := newTown(t, 1)
		if !alone {
			w.add(w.nodes[0].bus.Reopen())
		}
		sub, _ := w.at(0, keeping("sub", false, 3600))
		sub.subscribe(packet.Subscription{Filter: "a/#", QoS: 1})
		w.at(0, withWill("d", 0, 0))
		sub.Close()
		pub := w.publisher(0)
		pub.send(publish("a/b", "1", 1, 1))
		old := w.nodes[0]
		fresh := old.bus.Reopen()
		w.kill(0)
		if !alone {
			pub = w.publisher(1)
			pub.send(publish("a/b", "2", 1, 2))
		}
		// At once, before anybody could take it for gone.
		old.bus, old.dir = fresh, t.TempDir()
		old.start(catalog.Default())
		watch := w.publisher(0)
		watch.subscribe(packet.Subscription{Filter: "will/#", QoS: 0})
		if alone {
			watch.send(publish("a/b", "2", 1, 1))
		}
		sub, ack := w.at(0, keeping("sub", false, 3600))
		if !ack.SessionPresent {
			t.Fatal("the session has died with the disk")
		}
		for _, want := range []string{"1", "2"} {
			if m := sub.hear(); string(m.Payload) != want {
				t.Errorf("%q came; want %s", m.Payload, want)
			}
		}
		sub.nothing()
	}
}

package broker

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

func TestTurnsWaitLongerEachTimeAndAreForgotten(t *testing.T) {
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	x := newTurns()
	var waits []time.Duration
	for i := range 14 {
		d, _ := x.wait("k", fmt.Sprintf("192.0.2.%d:1", i%2), now)
		waits = append(waits, d)
		x.note("k", now)
		now = now.Add(d + time.Millisecond)
	}
	if got := fmt.Sprint(waits); got != "[0s 0s 0s 0s 0s 250ms 500ms 1s 2s 4s 5s 5s 5s 5s]" {
		t.Errorf("they wait %s", got)
	}
	d, from := x.wait("k", "192.0.2.9:1", now)
	if d != turnMost || strings.Join(from, " ") != "192.0.2.1 192.0.2.0 192.0.2.9" {
		t.Errorf("the next one waits %s, after those from %v", d, from)
	}
	if d, _ := x.wait("other", "192.0.2.1:1", now); d != 0 {
		t.Errorf("another client waits %s", d)
	}
	if d, _ := x.wait("k", "192.0.2.1:1", now.Add(turnSteps*turnForgotten)); d != 0 {
		t.Errorf("when it has been quiet for long, the first one still waits %s", d)
	}
	if x.wait("k", "", now.Add((turnsFree+turnSteps)*turnForgotten)); len(x.all) != 0 {
		t.Error("it is remembered for ever")
	}
}

func TestTurnsRememberNoMoreThanSoMany(t *testing.T) {
	now := time.Now()
	x := newTurns()
	for i := range turnsKept + 10 {
		x.note(fmt.Sprint(i), now)
	}
	if len(x.all) > turnsKept {
		t.Errorf("%d client ids are remembered", len(x.all))
	}
}

// fight has two clients take a client id from each other, and wants them to be slowed down and named. at connects the one
// or the other.
func fight(t *testing.T, at func(i int) *peer) {
	t.Helper()
	began := time.Now()
	var last *peer
	for i := range turnsFree + 5 {
		p := at(i)
		if last != nil {
			last.closed(packet.SessionTakenOver)
		}
		last = p
	}
	if took, least := time.Since(began), (1+2+4)*turnFirst; took < least {
		t.Errorf("they took it from each other within %s; want them to be held up for %s at least", took, least)
	}
	last.nothing()
}

func TestClientsThatTakeOneIDInTurnsAreSlowedDownAndNamed(t *testing.T) {
	conf, addr := open(t)
	w := &rig{turns: newTurns()}
	r := newRigWith(t, w, conf)
	fight(t, func(i int) *peer {
		p := r.dial(addr)
		p.connect(keeping("x", false, uint32(3600*(i%2))))
		return p
	})
	if x := r.refusedAs(message.TakenOver, "in turns"); x.ClientID != "x" || !strings.Contains(x.Detail, "in turns, from 127.0.0.1") {
		raw, _ := json.Marshal(x)
		t.Errorf("what is told of it is %s", raw)
	}
	// Who hangs up while he waits takes nobody's place, and another client does not wait.
	holder := r.dial(addr)
	holder.connect(keeping("x", false, 0))
	p := r.dial(addr)
	p.hello(keeping("x", false, 0))
	p.Close()
	began := time.Now()
	r.dial(addr).connect(keeping("y", true, 0))
	if took := time.Since(began); took > turnMost {
		t.Errorf("another client waited %s", took)
	}
	holder.nothing()
}

func TestClientsThatTakeOneIDInTurnsAreSlowedDownAcrossNodes(t *testing.T) {
	w := newTown(t, 2)
	for _, n := range w.nodes {
		n.b.turns.mu.Lock()
		n.b.turns.free = turnsFree
		n.b.turns.mu.Unlock()
	}
	fight(t, func(i int) *peer {
		p, ack := w.at(i%2, keeping("x", false, 3600))
		if ack.Code != 0 {
			t.Fatalf("CONNACK is %+v", ack)
		}
		return p
	})
	w.nodes[0].refusedAs(message.TakenOver, "in turns")
}

// A device that closes and comes again fights with nobody, however late its old connection is read to its end.
func TestClientThatHasClosedIsTakenFromNobody(t *testing.T) {
	slow := Rate{Messages: 0.001, Burst: "1ms"} // so that what is behind the second message is not read
	conf, addr := open(t, func(l *Listener) { l.PublishRate = &slow })
	r := newRigWith(t, &rig{turns: newTurns()}, conf)
	for i := range turnsFree + 3 {
		p := r.dial(addr)
		p.connect(keeping("x", false, uint32(3600*(i%2))))
		for id := range uint16(8) {
			m := publish("a", "held back", 1, id+1)
			p.write(m.Append(nil, packet.V5))
		}
		p.Close()
	}
	r.b.turns.mu.Lock()
	defer r.b.turns.mu.Unlock()
	if x := r.b.turns.all; len(x) > 0 {
		t.Errorf("%v is noted as taken", x)
	}
}

//go:build long

package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// speaker publishes numbers with QoS 2, through whatever happens to its connections.
type speaker struct {
	id   string
	n    int  // the one under way
	rec  bool // its PUBREC came
	sent bool
}

func (s *speaker) live(w *wire, most int, stop <-chan struct{}) error {
	defer w.Close()
	for s.n < most {
		select {
		case <-stop:
			most = s.n + 1 // the one under way is finished
		default:
		}
		id := uint16(s.n%100 + 1)
		var b []byte
		if s.rec {
			b = (&packet.Ack{Type: packet.PUBREL, ID: id}).Append(nil, packet.V5)
		} else {
			p := packet.Publish{Topic: "numbers/" + s.id, Payload: []byte(fmt.Sprint(s.n)), QoS: 2, ID: id, Dup: s.sent}
			b, s.sent = p.Append(nil, packet.V5), true
		}
		if err := w.say(b); err != nil {
			return err
		}
		h, body, err := w.next()
		if err != nil {
			return err
		}
		var a packet.Ack
		if err := a.Decode(h, body, packet.V5); err != nil {
			return err
		}
		switch {
		case h.Type == packet.PUBREC && a.ID == id && !a.Code.Failed():
			s.rec = true
		case h.Type == packet.PUBCOMP && a.ID == id:
			s.n, s.rec, s.sent = s.n+1, false, false
		default:
			return fmt.Errorf("%s of %d with %s", h.Type, a.ID, a.Code)
		}
	}
	return nil
}

// hearer takes what comes with QoS 2, each identifier once until its PUBREL.
type hearer struct {
	open map[uint16]bool
	mu   sync.Mutex
	got  map[string]int
	last map[string]int
	bad  []string
}

func newHearer() *hearer {
	return &hearer{open: map[uint16]bool{}, got: map[string]int{}, last: map[string]int{}}
}

func (s *hearer) live(w *wire) error {
	defer w.Close()
	for {
		h, body, err := w.next()
		if err != nil {
			return err
		}
		switch h.Type {
		case packet.PUBLISH:
			var m packet.Publish
			if err := m.Decode(h, body, packet.V5); err != nil {
				return err
			}
			if !s.open[m.ID] {
				s.open[m.ID] = true
				s.take(m.Topic, string(m.Payload))
			}
			err = w.say((&packet.Ack{Type: packet.PUBREC, ID: m.ID}).Append(nil, packet.V5))
		case packet.PUBREL:
			var a packet.Ack
			if err := a.Decode(h, body, packet.V5); err != nil {
				return err
			}
			delete(s.open, a.ID)
			err = w.say((&packet.Ack{Type: packet.PUBCOMP, ID: a.ID}).Append(nil, packet.V5))
		}
		if err != nil {
			return err
		}
	}
}

func (s *hearer) take(topic, data string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got[topic+" "+data]++
	var n int
	if _, err := fmt.Sscan(data, &n); err != nil {
		return
	}
	if last, ok := s.last[topic]; ok && n != last+1 {
		s.bad = append(s.bad, fmt.Sprintf("%s: %d came after %d", topic, n, last))
	}
	s.last[topic] = n
}

func (s *hearer) count() int { s.mu.Lock(); defer s.mu.Unlock(); return len(s.got) }

// heard waits until so many messages have come.
func heard(t *testing.T, who string, h *hearer, want int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(2 * time.Minute); h.count() < want; {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s has heard %d of %d messages", who, h.count(), want)
		}
	}
}

// TestQoS2WillsAndBacklogsOutliveKillsOfTheNode kills the real process in the middle of handshakes, while one session's client
// is there, another one's is away all the time, and clients with wills are connected that never come back.
func TestQoS2WillsAndBacklogsOutliveKillsOfTheNode(t *testing.T) {
	const speakers, kills, willing = 4, 5, 3
	p := plainBroker(t)
	away := mustDialWire(t, p.mqtt, "away", false)
	away.subscribe(t, "#", 2)
	if err := away.say((&packet.Disconnect{}).Append(nil, packet.V5)); err != nil {
		t.Fatal(err)
	}
	here := newHearer()
	first := mustDialWire(t, p.mqtt, "here", false)
	first.subscribe(t, "#", 2)

	stop, over := make(chan struct{}), make(chan struct{})
	comeBack := func(id string, live func(*wire) error) {
		for {
			if w, _, err := dialWire(p.mqtt, id, false); err == nil {
				if live(w) == nil {
					return
				}
			}
			pause := time.NewTimer(10 * time.Millisecond) // the node is down
			select {
			case <-over:
				pause.Stop()
				return
			case <-pause.C:
			}
		}
	}
	var speaking, hearing sync.WaitGroup
	hearing.Go(func() {
		_ = here.live(first)
		comeBack("here", here.live)
	})
	all := make([]*speaker, speakers)
	for i := range all {
		s := &speaker{id: fmt.Sprint(i)}
		all[i] = s
		speaking.Go(func() { comeBack("speaker-"+s.id, func(w *wire) error { return s.live(w, 1<<30, stop) }) })
	}
	dice := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	wills := map[string]int{}
	for k := range kills {
		for i := range willing {
			word := fmt.Sprintf("%d-%d", k, i)
			wills["wills/"+word+" gone"] = 1
			mustDialWire(t, p.mqtt, "dying-"+word, true, func(c *packet.Connect) {
				c.Will = &packet.Will{Topic: "wills/" + word, Payload: []byte("gone"), QoS: 2}
			})
		}
		heard(t, "who is there", here, here.count()+20+dice.IntN(150)) // under load, at any moment
		p.kill()
		p.start()
	}
	close(stop)
	speaking.Wait()
	want := len(wills)
	for _, s := range all {
		want += s.n
	}
	heard(t, "who was there", here, want)
	// Now the one that was away.
	late := newHearer()
	w, present, err := dialWire(p.mqtt, "away", false)
	if err != nil || !present {
		t.Fatal(errors.Join(err, fmt.Errorf("session present: %v", present)))
	}
	hearing.Go(func() { _ = late.live(w) })
	heard(t, "who was away", late, want)
	close(over)
	p.settled(0)
	p.stop() // ends the hearers
	hearing.Wait()
	for who, h := range map[string]*hearer{"who was there": here, "who was away": late} {
		if h.count() != want {
			t.Errorf("%s has heard %d messages; want %d", who, h.count(), want)
		}
		for what, times := range h.got {
			if times != 1 {
				t.Errorf("%s has heard %s %d times", who, what, times)
			}
		}
		for will := range wills {
			if h.got[will] == 0 {
				t.Errorf("%s has not heard %s", who, will)
			}
		}
		for _, b := range h.bad {
			t.Errorf("%s: %s", who, b)
		}
	}
	t.Logf("%d messages of QoS 2 and %d wills through %d kills", want-len(wills), len(wills), kills)
}

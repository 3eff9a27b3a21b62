package broker

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// link is a connection whose errors are its client's to handle.
type link struct {
	net.Conn
	r *bufio.Reader
}

func (l *link) next() (h packet.Header, body []byte, err error) {
	_ = l.SetReadDeadline(time.Now().Add(60 * time.Second))
	var buf []byte
	for {
		h, start, total, _, err := packet.Frame(buf, 0)
		if err != nil {
			return h, nil, err
		}
		if total > 0 {
			return h, buf[start:total], nil
		}
		b, err := l.r.ReadByte()
		if err != nil {
			return h, nil, err
		}
		buf = append(buf, b)
	}
}

// dialKept connects a session that is kept, however often that takes.
func dialKept(addr, id string, stop <-chan struct{}) (*link, error) {
	for {
		select {
		case <-stop:
			return nil, errors.New("stopped")
		default:
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			again(stop)
			continue
		}
		l := &link{c, bufio.NewReader(c)}
		hello := keeping(id, false, 3600)
		_, err = l.Write(hello.Append(nil))
		if err == nil {
			var h packet.Header
			var body []byte
			if h, body, err = l.next(); err == nil && h.Type == packet.CONNACK && body[1] == 0 {
				return l, nil
			}
		}
		c.Close()
		again(stop)
	}
}

// again waits a moment before a client tries once more.
func again(stop <-chan struct{}) {
	select {
	case <-stop:
	case <-time.After(5 * time.Millisecond):
	}
}

// pub publishes numbers with QoS 2 through whatever happens to its connections.
type pub struct {
	id   string
	n    int  // the one under way
	rec  bool // its PUBREC came
	sent bool
}

func (p *pub) live(l *link, total int, r *rand.Rand) error {
	defer l.Close()
	for p.n < total {
		id := uint16(p.n%50 + 1)
		if p.rec {
			if _, err := l.Write((&packet.Ack{Type: packet.PUBREL, ID: id}).Append(nil, packet.V5)); err != nil {
				return err
			}
		} else {
			m := packet.Publish{Topic: "soak/" + p.id, Payload: []byte(fmt.Sprint(p.n)), QoS: 2, ID: id, Dup: p.sent}
			p.sent = true
			if _, err := l.Write(m.Append(nil, packet.V5)); err != nil {
				return err
			}
		}
		if r.IntN(20) == 0 {
			return errors.New("it goes away in the middle")
		}
		h, body, err := l.next()
		if err != nil {
			return err
		}
		var a packet.Ack
		if err := a.Decode(h, body, packet.V5); err != nil {
			return err
		}
		switch {
		case h.Type == packet.PUBREC && a.ID == id && !a.Code.Failed():
			p.rec = true
		case h.Type == packet.PUBCOMP && a.ID == id:
			p.n, p.rec, p.sent = p.n+1, false, false
		default:
			return fmt.Errorf("%s of %d with %s", h.Type, a.ID, a.Code)
		}
	}
	return nil
}

// sub takes what comes, each identifier once until its PUBREL.
type sub struct {
	open map[uint16]bool
	mu   sync.Mutex
	got  map[string]int
	last map[string]int
	bad  []string
}

func (s *sub) live(l *link, r *rand.Rand) error {
	defer l.Close()
	for {
		h, body, err := l.next()
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
			_, err = l.Write((&packet.Ack{Type: packet.PUBREC, ID: m.ID}).Append(nil, packet.V5))
		case packet.PUBREL:
			var a packet.Ack
			if err := a.Decode(h, body, packet.V5); err != nil {
				return err
			}
			delete(s.open, a.ID)
			_, err = l.Write((&packet.Ack{Type: packet.PUBCOMP, ID: a.ID}).Append(nil, packet.V5))
		}
		if err != nil {
			return err
		}
		if r.IntN(60) == 0 {
			return errors.New("it goes away")
		}
	}
}

func (s *sub) take(topic, data string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got[topic+" "+data]++
	var n int
	fmt.Sscan(data, &n)
	if last, ok := s.last[topic]; ok && n != last+1 {
		s.bad = append(s.bad, fmt.Sprintf("%s: %d came after %d", topic, n, last))
	}
	s.last[topic] = n
}

// TestQoS2IsExactlyOnceThroughBrokenConnectionsAndKills lets clients come and go in the middle of handshakes, and kills
// the broker among it.
func TestQoS2IsExactlyOnceThroughBrokenConnectionsAndKills(t *testing.T) {
	const pubs, subs, each = 4, 3, 250
	conf, addr := open(t)
	r := newRig(t, conf)
	stop := make(chan struct{})
	var subscribed, publishing, listening sync.WaitGroup
	all := make([]*sub, subs)
	for i := range all {
		s := &sub{open: map[uint16]bool{}, got: map[string]int{}, last: map[string]int{}}
		all[i] = s
		subscribed.Add(1)
		listening.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(i), 1))
			for first := true; ; first = false {
				l, err := dialKept(addr, fmt.Sprint("sub-", i), stop)
				if err != nil {
					return
				}
				if first { // granted before anybody speaks
					if _, err := l.Write((&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "soak/#", QoS: 2}}}).Append(nil, packet.V5)); err == nil {
						_, _, _ = l.next()
					}
					subscribed.Done()
				}
				_ = s.live(l, dice) // whatever ended it, it comes back
			}
		})
	}
	subscribed.Wait()
	for i := range pubs {
		publishing.Go(func() {
			dice := rand.New(rand.NewPCG(uint64(i), 2))
			p := &pub{id: fmt.Sprint(i)}
			for p.n < each {
				l, err := dialKept(addr, fmt.Sprint("pub-", i), stop)
				if err != nil {
					return
				}
				_ = p.live(l, each, dice) // whatever ended it, it comes back
			}
		})
	}
	done := make(chan struct{})
	go func() { publishing.Wait(); close(done) }()
	for range 3 {
		select {
		case <-done:
		case <-time.After(150 * time.Millisecond):
		}
		if err := r.bus.Close(); err != nil { // as a process that is killed, for all that is written
			t.Error(err)
		}
		r.stop()
		r.bus = r.bus.Reopen()
		r.start(catalog.Default())
	}
	late := time.After(60 * time.Second)
	select {
	case <-done:
	case <-late:
		t.Error("not all is published")
	}
	complete := func() bool {
		for _, s := range all {
			s.mu.Lock()
			n := len(s.got)
			s.mu.Unlock()
			if n < pubs*each {
				return false
			}
		}
		return true
	}
	for tick := time.NewTicker(5 * time.Millisecond); !complete(); {
		select {
		case <-tick.C:
		case <-late:
			for i, s := range all {
				s.mu.Lock()
				t.Errorf("subscriber %d has %d of %d messages", i, len(s.got), pubs*each)
				s.mu.Unlock()
			}
			close(stop)
			r.stop()
			listening.Wait()
			return
		}
	}
	close(stop)
	r.stop()
	listening.Wait()
	for i, s := range all {
		for what, times := range s.got {
			if times != 1 {
				t.Errorf("subscriber %d has %s %d times", i, what, times)
			}
		}
		for _, b := range s.bad {
			t.Errorf("subscriber %d: %s", i, b)
		}
	}
}

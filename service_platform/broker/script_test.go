package broker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus/mem"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/porttest"
	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// A script is what several clients do with their connections, legal and illegal, read off bytes: so a fuzzer changes it,
// and a number makes one. It is played against a real broker, which has to be as well after it as before, and so has a
// neighbour that had nothing to do with it.

// scriptPatience is how long something that has to come may take on a busy machine.
const scriptPatience = 60 * time.Second

// tape is what a script is read off; at its end there are zeros.
type tape struct{ b []byte }

func (t *tape) byte() (b byte) {
	if len(t.b) > 0 {
		b, t.b = t.b[0], t.b[1:]
	}
	return b
}

func (t *tape) pick(n int) int { return int(t.byte()) % n }

func (t *tape) bytes(n int) []byte {
	b := t.b[:min(n, len(t.b))]
	t.b = t.b[len(b):]
	return b
}

var (
	scriptTopics = []string{"a", "a/b", "a/b/c", "b", "a/b/", "$SYS/x", "$share/g/a", "#", "", "a/+", "$aws/things/a/shadow/update", strings.Repeat("x/", 200)}
	scriptWishes = []string{"a/#", "+/b", "#", "a/b", "$share/g/a/#", "$share/g/+", "$SYS/#", "a#", "$share/g", "", "$aws/things/+/shadow/#", strings.Repeat("+/", 200)}
)

// player is one connection of a script.
type player struct {
	net.Conn
	v     packet.Version
	last  []byte
	torn  bool // what it has said may not be packets: what follows may be taken for the rest of something, and nothing is owed for it
	pong  chan struct{}
	fault string
	done  chan struct{} // closed when the broker says nothing more
}

// read takes what comes. A polite client answers it.
func (p *player) read(polite bool) {
	defer close(p.done)
	l := &link{p.Conn, bufio.NewReader(p.Conn)}
	for {
		h, body, err := l.next()
		if err != nil {
			return
		}
		var m packet.Publish
		var a packet.Ack
		switch {
		case h.Type == packet.PINGRESP:
			select {
			case p.pong <- struct{}{}:
			default:
			}
		case !polite:
		case h.Type == packet.PUBLISH && m.Decode(h, body, p.v) == nil && m.QoS == 1:
			_, _ = p.Write((&packet.Ack{Type: packet.PUBACK, ID: m.ID}).Append(nil, p.v))
		case h.Type == packet.PUBLISH && m.QoS == 2:
			_, _ = p.Write((&packet.Ack{Type: packet.PUBREC, ID: m.ID}).Append(nil, p.v))
		case h.Type == packet.PUBREL && a.Decode(h, body, p.v) == nil:
			_, _ = p.Write((&packet.Ack{Type: packet.PUBCOMP, ID: a.ID}).Append(nil, p.v))
		}
	}
}

// next writes the next thing that the script has the client say; false where the client goes.
func (p *player) next(t *tape) bool {
	id := uint16(t.pick(5))
	say := func(b []byte) bool {
		p.last = bytes.Clone(b)
		_, err := p.Write(b)
		return err == nil
	}
	switch t.pick(16) {
	case 0, 1, 2:
		m := packet.Publish{Topic: scriptTopics[t.pick(len(scriptTopics))], QoS: byte(t.pick(3)), Payload: t.bytes(t.pick(20))}
		flags := t.byte()
		m.Retain, m.Dup = flags&1 != 0, flags&2 != 0 && m.QoS > 0
		if m.QoS > 0 {
			m.ID = max(id, 1)
		}
		if p.v == packet.V5 && flags&4 != 0 {
			m.Properties.Set(packet.TopicAlias, uint32(t.pick(4)))
		}
		if p.v == packet.V5 && flags&8 != 0 {
			m.Properties.Set(packet.MessageExpiry, uint32(t.pick(3)))
		}
		return say(m.Append(nil, p.v))
	case 3, 4:
		s := packet.Subscribe{ID: max(id, 1)}
		for range 1 + t.pick(3) {
			s.Subscriptions = append(s.Subscriptions, packet.Subscription{Filter: scriptWishes[t.pick(len(scriptWishes))], QoS: byte(t.pick(3))})
		}
		return say(s.Append(nil, p.v))
	case 5:
		return say((&packet.Unsubscribe{ID: max(id, 1), Filters: []string{scriptWishes[t.pick(len(scriptWishes))]}}).Append(nil, p.v))
	case 6, 7, 8:
		kind := []packet.Type{packet.PUBACK, packet.PUBREC, packet.PUBREL, packet.PUBCOMP}[t.pick(4)]
		return say((&packet.Ack{Type: kind, ID: max(id, 1)}).Append(nil, p.v))
	case 9: // waits until all before it was handled
		if !say(packet.AppendPingreq(nil)) {
			return false
		}
		if p.torn {
			return true
		}
		late := time.NewTimer(scriptPatience)
		defer late.Stop()
		select {
		case <-p.pong:
			return true
		case <-late.C:
			p.fault = "PINGREQ was not answered"
		case <-p.done:
		}
		return false
	case 10:
		_ = say((&packet.Disconnect{}).Append(nil, p.v))
		return false
	case 11: // bytes of its own
		p.torn = true
		return say(t.bytes(1 + t.pick(40)))
	case 12: // what it said last, with a byte changed
		p.torn = true
		b := bytes.Clone(p.last)
		if len(b) > 0 {
			b[t.pick(len(b))] ^= 1 << t.pick(8)
		}
		return say(b)
	case 13: // a packet that does not end
		_, _ = p.Write(p.last[:min(len(p.last), 1+t.pick(10))])
		return false
	case 14: // gone without a word, and with what is under way
		_ = p.Conn.(*net.TCPConn).SetLinger(0)
		return false
	default:
		return say(scriptHello(t, p.v)) // a second CONNECT
	}
}

func scriptHello(t *tape, v packet.Version) []byte {
	c := packet.Connect{Version: v, ClientID: []string{"s-0", "s-1", "s-2", ""}[t.pick(4)], KeepAlive: uint16(t.pick(3) * 100)}
	flags := t.byte()
	c.CleanStart = flags&1 != 0 || c.ClientID == ""
	if flags&2 != 0 {
		c.Will = &packet.Will{Topic: scriptTopics[t.pick(len(scriptTopics))], QoS: byte(t.pick(3)), Payload: []byte("will"), Retain: flags&4 != 0}
	}
	if v == packet.V5 {
		c.Properties.Set(packet.SessionExpiry, uint32(t.pick(2)*60))
		c.Properties.Set(packet.ReceiveMaximum, uint32(1+t.pick(3)))
		if flags&8 != 0 {
			c.Properties.Set(packet.MaximumPacketSize, uint32(20+t.pick(100)))
		}
	}
	return c.Append(nil)
}

// theatre is a broker with a neighbour.
type theatre struct {
	addr  string
	host  *component.Host
	b     *Broker
	near  *link
	round int
	base  int // goroutines
}

func newTheatre(t testing.TB) *theatre {
	x := &theatre{addr: porttest.Addr(t)}
	c := Defaults
	c.Listen, c.SysInterval = "", "0s"
	c.Listeners = []Listener{{Name: "open", Address: x.addr, Protocol: "mqtt", Auth: "none", Policy: "open", Mount: "3rd_party.legacy"}}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	spec := component.Define(With(nil), Defaults, func(env component.Env, c Config) (*component.Part, error) {
		b, err := build(env, c, nil)
		if err != nil {
			return nil, err
		}
		x.b = b
		return b.part(), nil
	})
	on := mem.New(mem.Options{})
	x.host = &component.Host{Bus: on, Catalog: catalog.Default(), Dir: t.TempDir(), Node: "n1", Specs: []component.Spec{spec},
		Config: map[string]json.RawMessage{"service_platform.broker": raw}, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.host.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; on.Close() })
	x.wait(t, "the broker does not start", func() bool { return x.host.Health()[0].State == "running" })
	if x.near, err = dialKept(x.addr, "neighbour-of-all", nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.near.Close() })
	if _, err := x.near.Write((&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "neighbour-of-all/#", QoS: 2}}}).Append(nil, packet.V5)); err != nil {
		t.Fatal(err)
	}
	if h, _, err := x.near.next(); err != nil || h.Type != packet.SUBACK {
		t.Fatal(h.Type, err)
	}
	if err := x.greet(); err != nil {
		t.Fatal(err)
	}
	x.base = runtime.NumGoroutine()
	return x
}

func (x *theatre) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(scriptPatience); !ok(); {
		select {
		case <-tick.C:
		case <-late:
			buf := make([]byte, 1<<20)
			t.Fatalf("%s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
}

// greet has the neighbour say something to itself with QoS 1 and 2, and wants every packet that belongs to it, and no other.
func (x *theatre) greet() error {
	x.round++
	var b []byte
	for qos := byte(1); qos <= 2; qos++ {
		m := packet.Publish{Topic: "neighbour-of-all/x", Payload: []byte(fmt.Sprint(x.round, " ", qos)), QoS: qos, ID: uint16(qos)}
		b = m.Append(b, packet.V5)
	}
	if _, err := x.near.Write(b); err != nil {
		return err
	}
	want := []string{"PUBACK 1", "PUBREC 2", "PUBCOMP 2", fmt.Sprintf("PUBLISH %d 1", x.round), fmt.Sprintf("PUBLISH %d 2", x.round), "PUBREL"}
	for len(want) > 0 {
		h, body, err := x.near.next()
		if err != nil {
			return fmt.Errorf("round %d: %q have not come: %w", x.round, want, err)
		}
		var got string
		var answer []byte
		if h.Type == packet.PUBLISH {
			var m packet.Publish
			if err := m.Decode(h, body, packet.V5); err != nil {
				return err
			}
			got = "PUBLISH " + string(m.Payload)
			kind := packet.PUBACK
			if m.QoS == 2 {
				kind = packet.PUBREC
			}
			answer = (&packet.Ack{Type: kind, ID: m.ID}).Append(nil, packet.V5)
		} else {
			var a packet.Ack
			if err := a.Decode(h, body, packet.V5); err != nil {
				return err
			}
			got = fmt.Sprintf("%s %d", h.Type, a.ID)
			switch h.Type {
			case packet.PUBREC:
				answer = (&packet.Ack{Type: packet.PUBREL, ID: a.ID}).Append(nil, packet.V5)
			case packet.PUBREL:
				got, answer = "PUBREL", (&packet.Ack{Type: packet.PUBCOMP, ID: a.ID}).Append(nil, packet.V5)
			}
		}
		i := slices.Index(want, got)
		if i < 0 {
			return fmt.Errorf("round %d: %s came; want %q", x.round, got, want)
		}
		want = slices.Delete(want, i, i+1)
		if len(answer) > 0 {
			if _, err := x.near.Write(answer); err != nil {
				return err
			}
		}
	}
	return nil
}

// play plays a script, and wants the broker and the neighbour to be well after it.
func (x *theatre) play(t testing.TB, script []byte) {
	t.Helper()
	s := &tape{script[:min(len(script), 1024)]}
	var here [3]*player
	var all sync.WaitGroup
	for range 100 {
		if len(s.b) == 0 {
			break
		}
		i := s.pick(len(here))
		p := here[i]
		if p == nil {
			c, err := net.Dial("tcp", x.addr)
			if err != nil {
				t.Fatal(err)
			}
			p = &player{Conn: c, v: packet.V311, pong: make(chan struct{}, 1), done: make(chan struct{})}
			how := s.byte()
			if how&1 != 0 {
				p.v = packet.V5
			}
			here[i] = p
			all.Go(func() { p.read(how&2 != 0) })
			if how&0xf0 != 0xf0 { // few begin with something else
				p.last = scriptHello(s, p.v)
				_, _ = p.Write(p.last)
			}
			continue
		}
		if !p.next(s) {
			p.Close()
			here[i] = nil
		}
		if p.fault != "" {
			t.Fatal(p.fault)
		}
	}
	for _, p := range here {
		if p != nil {
			p.Close()
		}
	}
	all.Wait()
	x.wait(t, "connections are held that their clients have closed", func() bool {
		x.b.mu.Lock()
		defer x.b.mu.Unlock()
		return len(x.b.all) == 1
	})
	if err := x.greet(); err != nil {
		t.Fatalf("the neighbour: %v", err)
	}
	x.wait(t, "goroutines are left", func() bool { return runtime.NumGoroutine() <= x.base+10 }) // a few of the host's own come and go
	if h := x.host.Health()[0]; h.State != "running" || h.Restarts != 0 {
		t.Fatalf("the broker is %s, started %d times again: %s", h.State, h.Restarts, h.Fault)
	}
}

// scriptOf makes one from a number.
func scriptOf(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, 40+r.IntN(400))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func FuzzConnectionScripts(f *testing.F) {
	x := newTheatre(f)
	for seed := range uint64(20) {
		f.Add(scriptOf(seed))
	}
	f.Fuzz(func(t *testing.T, script []byte) { x.play(t, script) })
}

// TestNoScriptHarmsANeighbour plays scripts that a generator makes, and wants them to have got somewhere: to sessions,
// handshakes of every QoS, and refusals.
func TestNoScriptHarmsANeighbour(t *testing.T) {
	x := newTheatre(t)
	for seed := range uint64(60) {
		x.play(t, scriptOf(1000+seed))
	}
	m := x.b.metrics
	for qos := range m.from {
		if in, out := valueOf(m.from[qos]), valueOf(m.to[qos]); in < 1 || out < 1 {
			t.Errorf("at QoS %d the scripts have said %g messages and were sent %g", qos, in, out)
		}
	}
	if n := x.b.store.Counts(); n.Sessions < 2 || n.Retained < 1 {
		t.Errorf("the scripts have left %+v", n)
	}
	var told int
	x.b.refusals.mu.Lock()
	for _, o := range x.b.refusals.open {
		told += int(o.Count)
	}
	told += len(x.b.refusals.recent)
	x.b.refusals.mu.Unlock()
	if told < 1 {
		t.Errorf("only %d refusals", told)
	}
}

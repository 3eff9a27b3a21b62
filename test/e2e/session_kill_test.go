//go:build long

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// once is a client whose session outlives its connections, and that keeps the handshakes of QoS 2 as it should: what it
// has got, and what it has said, it counts once. It goes from node to node as it is told, or as connections end.
type once struct {
	t     *testing.T
	id    string
	addrs []string
	will  string // its payload, on will/<id>; none where empty

	mu   sync.Mutex
	conn net.Conn
	at   int // of addrs
	seen bool
	got  map[string]int

	open map[uint16]bool // identifiers of what came and was not released
	next int             // to be said
	out  map[uint16]string
	rel  map[uint16]bool // of out: PUBREC came
	done int
	most int // at once
}

func newOnce(t *testing.T, id string, addrs []string) *once {
	return &once{t: t, id: id, addrs: addrs, got: map[string]int{}, open: map[uint16]bool{}, out: map[uint16]string{}, rel: map[uint16]bool{}, most: 10}
}

// connect comes to the node where the client is to be. A session that it had must be there.
func (c *once) connect() error {
	c.mu.Lock()
	at, seen := c.at, c.seen
	c.mu.Unlock()
	addr := c.addrs[at]
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	hello := packet.Connect{Version: packet.V5, CleanStart: false, ClientID: c.id, KeepAlive: 600}
	hello.Properties.Set(packet.SessionExpiry, 3600)
	if c.will != "" {
		hello.Will = &packet.Will{QoS: 1, Topic: "will/" + c.id, Payload: []byte(c.will)}
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	var head [4]byte
	if _, err = conn.Write(hello.Append(nil)); err == nil {
		_, err = io.ReadFull(conn, head[:])
	}
	if err != nil {
		conn.Close()
		return err
	}
	if head[0] != byte(packet.CONNACK)<<4 || head[3] != 0 || head[1] > 127 {
		conn.Close()
		return fmt.Errorf("CONNACK is %x", head)
	}
	if _, err := io.CopyN(io.Discard, conn, int64(head[1])-2); err != nil {
		conn.Close()
		return err
	}
	if seen && head[2] != 1 {
		c.t.Errorf("%s: its session is not there", c.id)
	}
	_ = conn.SetDeadline(time.Time{})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = true
	if c.at != at {
		conn.Close()
		return errOver // it was moved meanwhile
	}
	c.conn = conn
	return nil
}

// subscribe does so, on a connection that nobody reads yet.
func (c *once) subscribe(filters ...string) {
	c.t.Helper()
	s := packet.Subscribe{ID: 65535}
	for _, f := range filters {
		s.Subscriptions = append(s.Subscriptions, packet.Subscription{Filter: f, QoS: 2})
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	var head [2]byte
	if _, err := c.conn.Write(s.Append(nil, packet.V5)); err != nil {
		c.t.Fatal(err)
	}
	if _, err := io.ReadFull(c.conn, head[:]); err != nil || head[0] != byte(packet.SUBACK)<<4 {
		c.t.Fatalf("SUBSCRIBE was answered with %x (%v)", head, err)
	}
	if _, err := io.CopyN(io.Discard, c.conn, int64(head[1])); err != nil {
		c.t.Fatal(err)
	}
	_ = c.conn.SetReadDeadline(time.Time{})
}

// move has the client come to a node from now on, and ends its connection.
func (c *once) move(at int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
	if c.conn != nil {
		c.conn.Close()
	}
}

// run keeps the client connected, and says numbers for as long as says lasts, until stop is closed.
func (c *once) run(stop, says <-chan struct{}) {
	for {
		c.mu.Lock()
		conn := c.conn
		c.mu.Unlock()
		select {
		case <-stop: // before a connection that came while it was closed: nobody would end that one
			if conn != nil {
				conn.Close()
			}
			return
		default:
		}
		if conn != nil {
			c.converse(conn, says)
			conn.Close()
		}
		if c.connect() != nil {
			t := time.NewTimer(50 * time.Millisecond) // the node is down
			<-t.C
		}
	}
}

var errOver = errors.New("over")

// converse speaks on one connection until it ends.
func (c *once) converse(conn net.Conn, says <-chan struct{}) {
	w := bufio.NewWriter(conn)
	ack := func(kind packet.Type, id uint16) {
		_, _ = w.Write((&packet.Ack{Type: kind, ID: id}).Append(nil, packet.V5))
	}
	say := func(id uint16, dup bool) {
		p := packet.Publish{QoS: 2, Dup: dup, ID: id, Topic: "a/" + c.id, Payload: []byte(c.out[id])}
		_, _ = w.Write(p.Append(nil, packet.V5))
	}
	c.mu.Lock()
	for n := max(0, c.next-c.most); n < c.next; n++ { // in the order in which it was said
		switch id := uint16(n%65535) + 1; {
		case c.rel[id]:
			ack(packet.PUBREL, id)
		case c.out[id] != "":
			say(id, true)
		}
	}
	c.mu.Unlock()
	var buf []byte
	chunk := make([]byte, 4096)
	for {
		c.mu.Lock()
		talking := false
		select {
		case <-says:
		default:
			talking = says != nil
		}
		for talking && len(c.out) < c.most && c.out[uint16((c.next-c.most+65535)%65535)+1] == "" {
			id := uint16(c.next%65535) + 1
			c.out[id] = fmt.Sprint(c.id, " ", c.next)
			c.next++
			say(id, false)
		}
		c.mu.Unlock()
		if w.Flush() != nil {
			return
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := conn.Read(chunk)
		buf = append(buf, chunk[:n]...)
		if ne := net.Error(nil); err != nil && !(errors.As(err, &ne) && ne.Timeout()) {
			return
		}
		for {
			h, start, total, _, ferr := packet.Frame(buf, 0)
			if ferr != nil {
				c.t.Errorf("%s: %v", c.id, ferr)
				return
			}
			if total == 0 {
				break
			}
			if err := c.take(h, buf[start:total], ack); err != nil {
				_ = w.Flush()
				return
			}
			buf = buf[total:]
		}
	}
}

// take takes a packet.
func (c *once) take(h packet.Header, body []byte, ack func(packet.Type, uint16)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.Type == packet.PUBLISH {
		var m packet.Publish
		if err := m.Decode(h, body, packet.V5); err != nil {
			c.t.Errorf("%s: %v", c.id, err)
			return err
		}
		if m.QoS != 2 || !c.open[m.ID] {
			c.got[strings.TrimPrefix(m.Topic, "a/")+" "+string(m.Payload)]++
		}
		switch m.QoS {
		case 1:
			ack(packet.PUBACK, m.ID)
		case 2:
			c.open[m.ID] = true
			ack(packet.PUBREC, m.ID)
		}
		return nil
	}
	if h.Type == packet.DISCONNECT || len(body) < 2 {
		return errOver
	}
	id := uint16(body[0])<<8 | uint16(body[1])
	switch {
	case h.Type == packet.PUBREL:
		delete(c.open, id)
		ack(packet.PUBCOMP, id)
	case h.Type == packet.PUBREC && c.out[id] != "":
		if len(body) > 2 && body[2] >= 0x80 {
			c.t.Errorf("%s: %q was refused with %#x", c.id, c.out[id], body[2])
			return errOver
		}
		c.rel[id] = true
		ack(packet.PUBREL, id)
	case h.Type == packet.PUBCOMP && c.rel[id]:
		delete(c.out, id)
		delete(c.rel, id)
		c.done++
	}
	return nil
}

// await waits for a condition of a client.
func (c *once) await(what string, ok func() bool) {
	c.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(3 * time.Minute); ; {
		c.mu.Lock()
		yes := ok()
		c.mu.Unlock()
		if yes {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			c.t.Fatalf("%s: %s did not come true", c.id, what)
		}
	}
}

// reaches connects to the node that the client is to be at, however often it takes, and says how long it took.
func (c *once) reaches() time.Duration {
	c.t.Helper()
	began := time.Now()
	for {
		err := c.connect()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > 3*time.Minute {
			c.t.Fatalf("%s does not get in: %v", c.id, err)
		}
		t := time.NewTimer(20 * time.Millisecond)
		<-t.C
	}
}

// TestSessionsOutliveTheNodesTheyAreAt kills and stops each of two brokers while clients in the middle of QoS 2 handshakes
// come from there to the other one, with wills pending and a session that is away.
func TestSessionsOutliveTheNodesTheyAreAt(t *testing.T) {
	n := &node{Name: "bus", Dir: t.TempDir(), Port: port(t)}
	n.start(t)
	t.Cleanup(n.kill)
	url := fmt.Sprintf("nats://127.0.0.1:%d", n.Port)
	var brokers []*platform
	var addrs []string
	for range 2 {
		p := configured(t, url, "bus:\n  replicas: 1\nservice_platform.broker:\n  cluster: auto\n  listen: ''\n  listeners:\n"+
			"    - {name: open, address: '127.0.0.1:1883', protocol: mqtt, auth: none, policy: open, mount: 3rd_party.town}\n", "service_platform.broker")
		p.start()
		brokers, addrs = append(brokers, p), append(addrs, p.mqtt)
	}
	proof := configured(t, url, "bus:\n  replicas: 1\n", "operator.journal", "operator.ledger")
	proof.start()
	defer func() {
		if t.Failed() {
			t.Logf("first:\n%s\nsecond:\n%s", brokers[0].out, brokers[1].out)
		}
	}()

	away := newOnce(t, "away", addrs) // comes back at the end
	away.reaches()
	away.subscribe("a/#")
	away.conn.Close()
	ear := newOnce(t, "ear", addrs)
	ear.reaches()
	ear.subscribe("a/#", "will/#")
	mouth := newOnce(t, "mouth", addrs)
	mouth.at = 1
	mouth.reaches()
	stop, silent := make(chan struct{}), make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() { ear.run(stop, nil) })
	group.Go(func() { mouth.run(stop, silent) })
	goesOn := func() {
		t.Helper()
		want := 0
		mouth.mu.Lock()
		want = mouth.done + 30
		mouth.mu.Unlock()
		mouth.await("more is said", func() bool { return mouth.done >= want })
	}

	const rounds = 4
	for round := range rounds {
		goesOn()
		victim := round / 2 % 2
		dying := newOnce(t, fmt.Sprint("dying-", round), addrs)
		dying.will, dying.at = fmt.Sprint("gone-", round), victim
		dying.reaches()
		defer dying.conn.Close()
		// The clients change places in this moment: one of them comes from the node that ends, and one goes there.
		ear.move(1 - victim)
		mouth.move(victim)
		stopped := round%2 == 1
		if stopped {
			if err := brokers[victim].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		} else {
			brokers[victim].kill()
		}
		mover := newOnce(t, dying.id, addrs) // the client of the node that is gone, at the other one
		mover.at, mover.seen = 1-victim, true
		took := mover.reaches()
		t.Logf("round %d: the client of a node that is gone (stopped %t) was let in by the other one %s later", round, stopped, took.Round(10*time.Millisecond))
		if took > 30*time.Second { // five where there is a processor to run on
			t.Errorf("it took %s", took)
		}
		mover.conn.Close()
		mouth.move(1 - victim)
		goesOn()
		will := fmt.Sprintf("will/dying-%d gone-%d", round, round)
		ear.await("the will of "+dying.id, func() bool { return ear.got[will] > 0 })
		if stopped {
			if err := brokers[victim].cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		} else {
			brokers[victim].start()
		}
		probe := newOnce(t, fmt.Sprint("probe-", round), addrs)
		probe.at = victim
		probe.reaches()
		probe.conn.Close()
	}
	close(silent)
	mouth.await("all is done", func() bool { return len(mouth.out) == 0 })
	all := mouth.next
	has := func(c *once) func() bool {
		return func() bool {
			n := 0
			for k := range c.got {
				if strings.HasPrefix(k, "mouth ") {
					n++
				}
			}
			return n == all
		}
	}
	ear.await("all that was said is heard", has(ear))
	group.Go(func() { away.run(stop, nil) })
	away.await("all that was said while it was away is heard", has(away))
	close(stop)
	ear.move(0)
	mouth.move(0)
	away.move(0)
	group.Wait()
	for _, c := range []*once{ear, away} {
		for k, n := range c.got {
			if n != 1 {
				t.Errorf("%s has %q %d times", c.id, k, n)
			}
		}
	}
	if want := all + rounds; len(ear.got) != want {
		t.Errorf("%d different messages came; want %d numbers and %d wills", len(ear.got), all, rounds)
	}
	t.Logf("%d messages of QoS 2 went through %d deaths", all, rounds)
	b, err := nats.Open(t.Context(), nats.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	stored := map[string]int{}
	eachStored(t, b, message.ThirdParty, func(m *message.Message) { stored[string(m.Subject)+" "+string(m.Data)]++ })
	for k, n := range stored {
		if n != 1 {
			t.Errorf("%q is stored %d times", k, n)
		}
	}
	if len(stored) != all+rounds {
		t.Errorf("%d different messages are stored; want %d", len(stored), all+rounds)
	}
	for _, l := range proof.settled(0) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
}

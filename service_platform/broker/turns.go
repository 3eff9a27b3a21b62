package broker

import (
	"io"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// turns slows down clients that take one client id from each other: each comes again as soon as the other has thrown it
// out, and both do nothing else. A client may take its own place a few times, since it mostly knows before we do that its
// old connection is gone; one that its client has closed, though we have not read so far, is not taken at all. From then
// on each one waits longer for its CONNACK, and who is in stays for that long. It counts what it sees here, and what the
// other nodes tell of theirs.
type turns struct {
	free        int           // take-overs that are nobody's concern
	first, most time.Duration // the waiting, doubled each time

	mu  sync.Mutex
	all map[string]*turn // by the session's key
}

// turn is what is known of one client id.
type turn struct {
	taken float64 // take-overs, less one for each turnForgotten of quiet
	at    time.Time
	from  []string // where they came from last
}

const (
	turnsFree     = 4
	turnFirst     = 250 * time.Millisecond
	turnMost      = 5 * time.Second // half of what clients give a server, and of connect_timeout
	turnForgotten = 10 * time.Second
	turnSteps     = 8       // that count beyond free: a fight that is over is forgotten soon
	turnsKept     = 100_000 // client ids; beyond, who is quiet is forgotten, and then the rest
	turnPlaces    = 4       // addresses that are named
)

func newTurns() *turns {
	return &turns{free: turnsFree, first: turnFirst, most: turnMost, all: map[string]*turn{}}
}

// note notes that a connection was taken over.
func (t *turns) note(key string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.all[key]
	if x == nil {
		if len(t.all) >= turnsKept {
			t.sweep(now)
		}
		x = &turn{at: now}
		t.all[strings.Clone(key)] = x
	}
	x.taken = min(x.left(now)+1, float64(t.free+turnSteps))
	x.at = now
}

// left is how much of it counts by now.
func (x *turn) left(now time.Time) float64 {
	return max(0, x.taken-float64(now.Sub(x.at))/float64(turnForgotten))
}

func (x *turn) place(from string) {
	if host, _, err := net.SplitHostPort(from); err == nil {
		from = host
	}
	if from == "" || slices.Contains(x.from, from) {
		return
	}
	if len(x.from) == turnPlaces {
		x.from = x.from[1:]
	}
	x.from = append(x.from, strings.Clone(from))
}

// wait is for how long a connection from an address waits, and where those have come from that take the client id in turns.
func (t *turns) wait(key, from string, now time.Time) (time.Duration, []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.all[key]
	if x == nil {
		return 0, nil
	}
	n := int(math.Ceil(x.left(now))) - t.free
	if n <= 0 {
		if x.left(now) == 0 {
			delete(t.all, key)
		}
		return 0, nil
	}
	x.place(from)
	return min(t.first<<(n-1), t.most), slices.Clone(x.from)
}

// sweep makes room. t.mu is held.
func (t *turns) sweep(now time.Time) {
	for key, x := range t.all {
		if x.left(now) == 0 {
			delete(t.all, key)
		}
	}
	for key := range t.all {
		if len(t.all) < turnsKept {
			return
		}
		delete(t.all, key)
	}
}

// waitTurn has a connection wait, where its client id is being taken in turns. It is named to operators, once for each time
// that it waits.
func (c *conn) waitTurn(who session.Who) error {
	began := time.Now()
	d, from := c.b.turns.wait(who.Key(), c.addr, began)
	if d == 0 {
		return nil
	}
	err := &denied{message.Rejectf(message.TakenOver, "connections with client id %q take it from each other in turns, from %s; this one waits %s for its CONNACK",
		readable(who.ClientID), strings.Join(from, " and "), d), "turns"} // told apart from a connection that was taken over once
	c.b.refusals.add(refusal{reason: message.TakenOver, detail: err, device: c.device, client: who.ClientID, address: c.addr})
	c.recordRefusal(who.ClientID, "turns", err)
	defer func() { c.by = c.by.Add(time.Since(began)) }()
	over := time.NewTimer(d)
	defer over.Stop()
	look := time.NewTicker(turnFirst) // who has closed gains nothing by having come
	defer look.Stop()
	for {
		select {
		case <-over.C:
			return nil
		case <-c.cut:
			return errEnded
		case <-look.C:
			if c.HungUp() {
				return io.EOF
			}
		}
	}
}

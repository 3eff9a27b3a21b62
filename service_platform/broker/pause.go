package broker

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// A connection may have to wait before its next packet is read: for room in the appender while the engine is away, for its
// rate, or for its acknowledgements. Nobody times it out meanwhile, neither do we nor, as far as we can, does the client:
// the wait is made of pauses, and between them a PINGREQ that has come is answered. Stop and take-over end it.

// pauseMax is how long a pause is: a client waits that much longer for PINGRESP.
const pauseMax = time.Second

// aheadTime is for looking whether something has come.
const aheadTime = time.Millisecond

// whileHere is a context that lasts until the connection is ended or, once somebody waits for it, a pause is over. One that
// nobody waits for costs nothing.
type whileHere struct{ c *conn }

// pausing is a pause under way.
type pausing struct {
	once sync.Once
	over chan struct{}
}

func (p *pausing) end() { p.once.Do(func() { close(p.over) }) }

// Deadline is none that is known before.
func (whileHere) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value is none.
func (whileHere) Value(any) any { return nil }

// Done begins a pause.
func (w whileHere) Done() <-chan struct{} {
	p := w.c.pausing.Load()
	if p == nil {
		p = &pausing{over: make(chan struct{})}
		w.c.pausing.Store(p)
		time.AfterFunc(pauseMax, p.end)
	}
	if w.c.isCut() { // who cuts it off has seen no pause, perhaps
		p.end()
	}
	return p.over
}

// Err says why it is over.
func (w whileHere) Err() error {
	if w.c.isCut() {
		return context.Canceled
	}
	if p := w.c.pausing.Load(); p != nil {
		select {
		case <-p.over:
			return context.DeadlineExceeded
		default:
		}
	}
	return nil
}

func (c *conn) isCut() bool {
	select {
	case <-c.cut:
		return true
	default:
		return false
	}
}

// cutOff tells who waits on the connection's behalf that it has been ended. c.mu is held.
func (c *conn) cutOff() {
	if c.isCut() {
		return
	}
	close(c.cut)
	if p := c.pausing.Load(); p != nil {
		p.end()
	}
}

// put gives the message in hand to a log, which takes its time where it has too much in hand already.
func (c *conn) put(door bus.Appender, token uint64) error {
	for {
		c.pausing.Store(nil)
		err := door.Append(whileHere{c}, &c.scratch.msg, c, token)
		if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if c.isCut() {
			c.takeBack(token)
			return errEnded
		}
		c.ahead()
	}
}

// takeBack forgets the newest message, which nobody has taken: the client sends it again.
func (c *conn) takeBack(token uint64) {
	if token == noAck {
		c.b.refusals.add(refusal{reason: message.QoS0NotStored, detail: errEnded, device: c.device, client: c.clientID, address: c.addr})
		return
	}
	c.notReceived(token)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acks.unpush()
	c.free.Broadcast()
}

// pause waits until a moment, and gives errEnded where the connection is ended before.
func (c *conn) pause(until time.Time) error {
	for {
		left := time.Until(until)
		if left <= 0 {
			return nil
		}
		t := time.NewTimer(min(left, pauseMax))
		select {
		case <-t.C:
		case <-c.cut:
			t.Stop()
			return errEnded
		}
		if left > pauseMax {
			c.ahead()
		}
	}
}

// waitForAck waits until an acknowledgement has gone out, or the connection was ended, or for a pause. c.mu is held.
func (c *conn) waitForAck() {
	began := time.Now()
	t := time.AfterFunc(pauseMax, func() { c.mu.Lock(); defer c.mu.Unlock(); c.free.Broadcast() })
	c.free.Wait()
	t.Stop()
	if time.Since(began) >= pauseMax && !c.isCut() {
		c.mu.Unlock()
		c.ahead()
		c.mu.Lock()
	}
}

// ahead answers PINGREQ behind the packet in hand, as far as it can be seen: what there is room for is read.
func (c *conn) ahead() {
	s := c.scratch
	if _, web := c.sock.(*webWire); !web && s.end < len(s.data) { // a WebSocket ends when its time is over
		c.parked = time.Time{}
		if c.src.SetReadDeadline(time.Now().Add(aheadTime)) == nil && !c.over() {
			n, _ := c.src.Read(s.data[s.end:]) // who reads next hears of what has ended it
			s.end += n
		}
	}
	for at := s.next; ; {
		h, _, total, _, err := packet.Frame(s.data[at:s.end], c.packetLimit())
		if err != nil || total == 0 {
			return
		}
		if h.Type != packet.PINGREQ || total != len(packet.AppendPingreq(nil)) {
			at += total
			continue
		}
		s.end = at + copy(s.data[at:], s.data[at+total:s.end])
		if c.send(packet.AppendPingresp(nil)) != nil {
			return
		}
	}
}

package broker

import (
	"io"
	"time"

	"github.com/naru-platform/naru/message"
)

const (
	drainPatience = 5 * time.Second // for what was taken to reach the disk
	lastWords     = time.Second     // for a client to take its acknowledgements and close
)

// goodbye stops the reading of all connections, and only then waits: each acknowledges what it had taken, says that the
// broker stops and ends, all at the same time. Broker.group says when the last has gone.
func (b *Broker) goodbye() {
	b.mu.Lock()
	var list []*conn
	for c := range b.all {
		list = append(list, c)
	}
	b.mu.Unlock()
	for _, c := range list {
		c.halt()
	}
}

// halt stops the reading. The connection's goroutine does the rest; see settleAtStop.
func (c *conn) halt() {
	c.mu.Lock()
	c.halted = true
	c.cutOff()
	c.free.Broadcast()
	c.mu.Unlock()
	_ = c.sock.SetReadDeadline(time.Now()) // wakes the reader
}

// settleAtStop says whether the connection ended because the broker stops, and then waits until what the client was
// owed has been sent, says DISCONNECT, and gives the client a moment to close: bytes that it had sent on and nobody read
// would otherwise reset the connection, and what was just written might never be read.
func (c *conn) settleAtStop() bool {
	c.mu.Lock()
	halted := c.halted && !c.ended && !c.bye
	c.mu.Unlock()
	if !halted {
		return false
	}
	c.drain(time.Now().Add(drainPatience))
	c.end(message.ServerStopping, nil)
	if c.joined {
		_ = c.sock.SetReadDeadline(time.Now().Add(lastWords))
		_, _ = io.Copy(io.Discard, c.sock)
	}
	return true
}

// drain waits until what was received is acknowledged.
func (c *conn) drain(until time.Time) {
	stop := time.AfterFunc(time.Until(until), func() { c.mu.Lock(); defer c.mu.Unlock(); c.free.Broadcast() })
	defer stop.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.acks.len() > 0 && !c.ended && time.Now().Before(until) {
		c.free.Wait()
	}
}

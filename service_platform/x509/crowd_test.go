package x509

import (
	"crypto/elliptic"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

// callers is a listener of connections that come from where a test says.
type callers chan net.Conn

func (c callers) Accept() (net.Conn, error) {
	select {
	case conn := <-c:
		return conn, nil
	default: // nobody else comes
		return nil, net.ErrClosed
	}
}
func (callers) Close() error   { return nil }
func (callers) Addr() net.Addr { return &net.TCPAddr{} }

// caller is a connection from an address that says whether it was closed.
type caller struct {
	net.Conn
	from   string
	closed bool
}

func (c *caller) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.from))
}
func (c *caller) Close() error { c.closed = true; return nil }

// Who holds connections open loses the idle ones as others come, and never those of another address; one that asks for
// something is let finish.
func TestIdleConnectionsMakeRoomForOthers(t *testing.T) {
	in := make(callers, 64)
	c := newCrowd(in, 6, 3)
	come := func(from string) (*caller, net.Conn) {
		one := &caller{from: from}
		in <- one
		m, err := c.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return one, m
	}
	other, _ := come("192.0.2.9:1")
	first, m := come("192.0.2.7:1")
	c.state(m, http.StateActive)
	second, _ := come("192.0.2.7:2")
	come("192.0.2.7:3")
	come("192.0.2.7:4")
	if first.closed || !second.closed || other.closed {
		t.Errorf("busy %v, idle %v, of another address %v", first.closed, second.closed, other.closed)
	}
	for _, from := range []string{"[2001:db8::1]:1", "[2001:db8::2]:1"} { // one customer
		come(from)
	}
	if c.all != 6 {
		t.Fatalf("%d are taken", c.all)
	}
	if come("198.51.100.1:1"); c.all != 6 || other.closed || len(c.from[netip.MustParsePrefix("192.0.2.7/32")]) != 2 {
		t.Errorf("all: %d; the address with most has %d", c.all, len(c.from[netip.MustParsePrefix("192.0.2.7/32")]))
	}
	for _, list := range c.from {
		for _, m := range list {
			c.state(m, http.StateActive)
		}
	}
	late := &caller{from: "198.51.100.2:1"}
	in <- late
	if _, err := c.Accept(); !errors.Is(err, net.ErrClosed) || !late.closed {
		t.Errorf("where all are busy: %v, closed %v", err, late.closed)
	}
	_ = m.Close()
	_ = m.Close() // gives its place back once
	if c.all != 5 {
		t.Errorf("%d are taken", c.all)
	}
}

// Six hundred connections of one address that say nothing keep no device out, not even one behind the same address.
func TestManyIdleConnectionsDoNotStarveAnEnrolment(t *testing.T) {
	a := newArena(t)
	token, key := a.token("d-9"), ecKey(t, elliptic.P256())
	var idle []net.Conn
	for range 600 {
		c, err := net.Dial("tcp", a.s.open.Load().estAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	// They are taken in order, so the first has been thrown out long before its time is over; that it is over by then only
	// where nobody throws it out, a minute says.
	if status, text := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: csrText(t, key, "d-9")}); status != 200 {
		t.Fatal(status, text)
	}
	_ = idle[0].SetReadDeadline(time.Now().Add(patience))
	if _, err := idle[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !isReset(err) {
		t.Errorf("the oldest idle connection: %v", err)
	}
	open := 0
	for _, c := range idle[1:] {
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond)) // whether it is closed already
		if _, err := c.Read(make([]byte, 1)); errors.As(err, new(net.Error)) && !isReset(err) {
			open++
		}
	}
	if open > estOfOne {
		t.Errorf("%d idle connections of one address are left", open)
	}
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}

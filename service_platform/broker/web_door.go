package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/naru-platform/naru/message"
)

// webDoor is what HTTP is served at. Its connections have been through their TLS handshake, in their turn, and are counted
// among max_connections from when they come.
type webDoor struct {
	net.Listener
	b    *Broker
	tc   *tls.Config // nil without TLS
	in   chan net.Conn
	shut chan struct{}
	once sync.Once
}

// caller is a connection of HTTP. It is counted until it is closed, or is a client's.
type caller struct {
	*net.TCPConn
	b *Broker
}

func (g *caller) Close() error {
	g.b.mu.Lock()
	delete(g.b.callers, g)
	g.b.mu.Unlock()
	return g.TCPConn.Close()
}

func (g *caller) extend(until time.Time) error { return g.SetDeadline(until) }

func (g *caller) hungUp() bool {
	s, err := newSock(g.TCPConn)
	return err == nil && s.hungUp()
}

type callerKey struct{}

// withCaller has a request know its connection.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn().(*visitor).visiting
	}
	return context.WithValue(ctx, callerKey{}, c)
}

// Accept gives the next one that is through.
func (d *webDoor) Accept() (net.Conn, error) {
	select {
	case c := <-d.in:
		return c, nil
	case <-d.shut:
		return nil, net.ErrClosed
	}
}

// Close ends the handshakes, too. The server calls it as well.
func (d *webDoor) Close() error {
	err := d.Listener.Close()
	d.once.Do(func() { close(d.shut) })
	d.b.mu.Lock()
	list := make([]*caller, 0, len(d.b.callers))
	for g := range d.b.callers {
		list = append(list, g)
	}
	d.b.mu.Unlock()
	for _, g := range list {
		_ = g.Close()
	}
	return err
}

func (d *webDoor) take() {
	d.b.eachOf(d.Listener, func(nc *net.TCPConn) {
		g := &caller{nc, d.b}
		d.b.mu.Lock()
		full := d.b.stop.Load() || len(d.b.all)+len(d.b.callers) >= d.b.conf.MaxConnections
		if !full {
			d.b.callers[g] = struct{}{}
		}
		d.b.mu.Unlock()
		if full {
			_ = nc.Close()
			d.b.full(nc.RemoteAddr().String())
			return
		}
		d.b.group.Go(func() { d.open(g) })
	})
}

// open leads a caller in.
func (d *webDoor) open(g *caller) {
	since := d.b.env.Now()
	err := d.b.waitConnectRate(d.shut)
	var c net.Conn = g
	if err == nil && d.tc != nil {
		until := time.Now().Add(d.b.timeout)
		_ = g.SetDeadline(until) // also for writing, which may block here
		var t *tls.Conn
		var v *visitor
		t, v, err = d.b.handshake(g, d.tc, since, until, d.shut)
		v.over()
		c = t
		_ = g.SetDeadline(noDeadline)
	}
	if err != nil {
		_ = g.Close()
		if !errors.Is(err, errEnded) {
			d.b.refusals.add(refusal{reason: message.ReasonOf(err, message.HandshakeFailed), detail: err, address: g.RemoteAddr().String()})
		}
		return
	}
	select {
	case d.in <- c:
	case <-d.shut:
		_ = g.Close()
	}
}

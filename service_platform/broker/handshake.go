package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/naru-platform/naru/message"
)

// secure goes through a connection's TLS handshake, and asks who its certificate belongs to. admitted is why the client is
// not let in though the handshake is over: CONNACK tells it.
func (c *conn) secure(s *sock, tc *tls.Config) (admitted, err error) {
	t, v, err := c.b.handshake(s, tc, c.since, c.by, c.cut)
	defer v.over()
	if err != nil {
		step := "handshake"
		if message.ReasonOf(err, 0) == message.ConnectionLimit {
			step = "rate_limit"
		}
		c.recordRefusal("", step, err)
		return nil, err
	}
	c.by = v.until
	c.src = newTLSSource(t)
	if c.in.Auth != byCertificate {
		return nil, nil
	}
	ctx, cancel := context.WithDeadline(context.Background(), c.by)
	defer cancel()
	if admitted = c.admit509(ctx, t.ConnectionState()); c.leaf == nil {
		c.recordRefusal("", "handshake", admitted)
		return nil, admitted
	}
	return admitted, nil
}

// visitor is a connection in its handshake, as TLS sees it: when bytes have come it waits for a place at the turnstile,
// and it gives that back before it waits for more. The time it stands in line is not its client's: the deadline moves.
type visitor struct {
	visiting
	*visit // nil once it is over
}

// visiting is a connection that can go through a handshake.
type visiting interface {
	net.Conn
	// extend moves the deadline of what may block.
	extend(until time.Time) error
	// hungUp says whether the client has closed, though there may still be something to be read.
	hungUp() bool
}

type visit struct {
	gate   *turnstile
	since  time.Time
	until  time.Time // the deadline
	cut    <-chan struct{}
	inside bool
	again  bool
}

func (v *visitor) Read(b []byte) (int, error) {
	if v.visit == nil {
		return v.visiting.Read(b)
	}
	v.leave()
	n, err := v.visiting.Read(b)
	if err != nil {
		return n, err
	}
	return n, v.enter(v.visiting)
}

// leave gives the place back.
func (v *visit) leave() {
	if v.inside {
		v.inside = false
		v.gate.leave()
	}
}

// enter takes a place, for a client that is still there when its turn comes.
func (v *visit) enter(nc visiting) error {
	waited, err := v.gate.enter(v.since, v.again, v.cut)
	if err != nil {
		return err
	}
	v.inside, v.again = true, true
	if waited == 0 {
		return nil
	}
	if nc.hungUp() {
		return errHungUp
	}
	v.until = v.until.Add(waited)
	if err := nc.extend(v.until); err != nil {
		return err
	}
	select {
	case <-v.cut: // the deadline just set may have replaced the one that was to wake us
		return errEnded
	default:
		return nil
	}
}

// over ends the visit.
func (v *visitor) over() {
	if v.visit != nil {
		v.leave()
		v.visit = nil
	}
}

// handshake gives the connection inside TLS, and the visit, which the caller ends: the place at the turnstile is kept for
// what the certificate is asked for. There is no deadline but the connection's own, which moves, and writing does not block.
func (b *Broker) handshake(nc visiting, tc *tls.Config, since, until time.Time, cut <-chan struct{}) (*tls.Conn, *visitor, error) {
	v := &visitor{nc, &visit{gate: b.gate, since: since, until: until, cut: cut}}
	t := tls.Server(v, tc)
	if err := t.Handshake(); err != nil {
		return nil, v, handshakeError(err)
	}
	outcome := "full"
	if t.ConnectionState().DidResume {
		outcome = "resumed"
	}
	b.metrics.handshakes.WithLabelValues(outcome).Inc()
	return t, v, nil
}

func handshakeError(err error) error {
	var known *message.Rejection
	switch {
	case errors.Is(err, errEnded), errors.As(err, &known):
		return err
	case timedOut(err):
		return message.Reject(message.SlowHandshake, err)
	case errors.Is(err, io.EOF):
		return message.Reject(message.HandshakeFailed, err)
	}
	return message.Reject(handshakeReason(err), err)
}

func handshakeReason(err error) message.Reason {
	if err.Error() == "tls: client didn't provide a certificate" {
		return message.CertMissing
	}
	return message.HandshakeFailed
}

// errHungUp is of a client that did not wait for its turn.
var errHungUp = message.Rejectf(message.HandshakeFailed, "the client went while it waited for its turn")

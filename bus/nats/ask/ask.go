// Package ask asks the processes of a platform over its NATS, from a program that is none of them: it needs to know neither
// logs nor tables. An account for it may publish on the subjects that [Subject] gives, and subscribe to _INBOX.>.
package ask

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/naru-platform/naru/bus"
)

// Subject is where a name is asked on NATS.
func Subject(name string) string { return "naru.ask." + name }

// Options say where the platform's NATS is.
type Options struct {
	URL            string // nats://a:4222,nats://b:4222
	User, Password string
	CredsFile      string
	TLS            *tls.Config // also where the URL says tls://
	Name           string      // of the connection, for people
}

// Client asks. It is safe for concurrent use, and connects again by itself.
type Client struct {
	nc        *natsgo.Conn
	connected atomic.Pointer[context.Context] // done when the connection is lost
	cut       context.CancelFunc              // of connected; the connection's callbacks own it
}

// Dial connects.
func Dial(o Options) (*Client, error) {
	c := &Client{}
	c.begin()
	opts := []natsgo.Option{natsgo.Name(o.Name), natsgo.MaxReconnects(-1), natsgo.ReconnectWait(100 * time.Millisecond), natsgo.ReconnectBufSize(-1),
		natsgo.PingInterval(10 * time.Second), natsgo.MaxPingsOutstanding(2), natsgo.RetryOnFailedConnect(true), natsgo.IgnoreAuthErrorAbort(),
		natsgo.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		natsgo.DisconnectErrHandler(func(*natsgo.Conn, error) { c.cut() }), natsgo.ReconnectHandler(func(*natsgo.Conn) { c.begin() })}
	if o.User != "" {
		opts = append(opts, natsgo.UserInfo(o.User, o.Password))
	}
	if o.CredsFile != "" {
		opts = append(opts, natsgo.UserCredentials(o.CredsFile))
	}
	if o.TLS != nil {
		opts = append(opts, natsgo.Secure(o.TLS))
	}
	var err error
	if c.nc, err = natsgo.Connect(o.URL, opts...); err != nil {
		return nil, fmt.Errorf("connect to the platform's bus: %w", err)
	}
	return c, nil
}

// begin begins a new connection's time.
func (c *Client) begin() {
	connected, cut := context.WithCancel(context.Background())
	c.cut = cut
	c.connected.Store(&connected)
}

// Ask asks on a name, no longer than ctx and the connection last. It is bus.ErrNobody where nobody answers there.
func (c *Client) Ask(ctx context.Context, name string, question []byte) ([]byte, error) {
	return Over(ctx, *c.connected.Load(), c.nc.RequestMsgWithContext, name, question)
}

// Most is how many bytes a question or an answer may have; 0 while there is no connection yet.
func (c *Client) Most() int { return int(c.nc.MaxPayload()) }

// Close ends the connection.
func (c *Client) Close() { c.nc.Close() }

// errLost says that the connection was lost with the question.
var errLost = errors.New("the connection was lost")

// Over asks with a connection's request, while connected is not done.
func Over(ctx, connected context.Context, request func(context.Context, *natsgo.Msg) (*natsgo.Msg, error), name string, question []byte) ([]byte, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(connected, cancel)()
	m, err := request(ctx, &natsgo.Msg{Subject: Subject(name), Data: question})
	switch {
	case errors.Is(err, natsgo.ErrNoResponders):
		return nil, fmt.Errorf("ask %s: %w", name, bus.ErrNobody)
	case err != nil && connected.Err() != nil:
		return nil, fmt.Errorf("ask %s: %w", name, errLost)
	case err != nil:
		return nil, fmt.Errorf("ask %s: %w", name, err)
	}
	return m.Data, nil
}

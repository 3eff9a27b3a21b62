// Package ask asks the processes of a platform over its NATS, from a program that is none of them: it needs to know neither
// logs nor tables. An account for it may publish on the subjects that [Subject] gives, and subscribe to _INBOX.>.
package ask

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
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
	url  string
	opts []natsgo.Option
	line atomic.Pointer[line]

	mu     sync.Mutex // held while another line is opened
	opened time.Time
	closed bool
}

// line is a connection. One that broke comes back by itself; one that the server has ended for good, with an error of the
// protocol, is replaced.
type line struct {
	nc        *natsgo.Conn
	connected atomic.Pointer[context.Context] // done when the connection is lost
	cut       context.CancelFunc              // of connected; the connection's callbacks own it
}

// Dial connects.
func Dial(o Options) (*Client, error) {
	c := &Client{url: o.URL, opts: []natsgo.Option{natsgo.Name(o.Name), natsgo.MaxReconnects(-1), natsgo.ReconnectWait(100 * time.Millisecond), natsgo.ReconnectBufSize(-1),
		natsgo.PingInterval(10 * time.Second), natsgo.MaxPingsOutstanding(2), natsgo.RetryOnFailedConnect(true), natsgo.IgnoreAuthErrorAbort(),
		natsgo.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond)}}
	if o.User != "" {
		c.opts = append(c.opts, natsgo.UserInfo(o.User, o.Password))
	}
	if o.CredsFile != "" {
		c.opts = append(c.opts, natsgo.UserCredentials(o.CredsFile))
	}
	if o.TLS != nil {
		c.opts = append(c.opts, natsgo.Secure(o.TLS))
	}
	if err := c.open(); err != nil {
		return nil, fmt.Errorf("connect to the platform's bus: %w", err)
	}
	return c, nil
}

func (c *Client) open() (err error) {
	l := &line{}
	l.begin()
	if l.nc, err = natsgo.Connect(c.url, append([]natsgo.Option{natsgo.DisconnectErrHandler(func(*natsgo.Conn, error) { l.cut() }),
		natsgo.ReconnectHandler(func(*natsgo.Conn) { l.begin() })}, c.opts...)...); err == nil {
		c.line.Store(l)
		c.opened = time.Now()
	}
	return err
}

// begin begins a new connection's time.
func (l *line) begin() {
	connected, cut := context.WithCancel(context.Background())
	l.cut = cut
	l.connected.Store(&connected)
}

// reopenRarely is how soon after a line was opened another is: whatever ended it may do so again at once.
const reopenRarely = time.Second

// use gives the line to ask by, another where the one before is over.
func (c *Client) use() *line {
	if l := c.line.Load(); !l.nc.IsClosed() {
		return l
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.line.Load(); !c.closed && l.nc.IsClosed() && time.Since(c.opened) >= reopenRarely {
		_ = c.open() // else the one that is over says so to who asks, and who asks next tries again
	}
	return c.line.Load()
}

// Ask asks on a name, no longer than ctx and the connection last. It is bus.ErrNobody where nobody answers there.
func (c *Client) Ask(ctx context.Context, name string, question []byte) ([]byte, error) {
	l := c.use()
	return Over(ctx, *l.connected.Load(), l.nc.RequestMsgWithContext, name, question)
}

// Most is how many bytes a question or an answer may have; 0 while there is no connection yet.
func (c *Client) Most() int { return int(c.line.Load().nc.MaxPayload()) }

// Close ends the connection.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.line.Load().nc.Close()
}

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

// Package sdk is the client for devices: it connects to naru with a device's certificate, publishes with at least once
// and a trace, takes commands, and knows its twins. It speaks MQTT 5 over TLS and is one goroutine per device while nothing is
// subscribed, so that a gateway or a simulator may hold thousands of clients.
//
// A message is acknowledged when the platform has it on disk, and not before. What is not acknowledged is sent again
// after every reconnect, in order, until it is.
package sdk

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// Options are how a client connects. Server, a certificate and a CA are wanted.
type Options struct {
	// Server is the platform's address, `host:port`; its certificate must be for this host.
	Server string
	// Device is the device's id; the common name of its certificate where empty.
	Device string
	// Certificate is the device's certificate and key; where it is empty, CertFile and KeyFile name PEM files.
	Certificate       tls.Certificate
	CertFile, KeyFile string
	// CA is the PEM of the roots that the server's certificate is trusted by; where it is empty, CAFile names a file.
	CA     []byte
	CAFile string
	// KeepAlive is how long the connection may be silent; 60 s where zero. A dead one is noticed within twice that.
	KeepAlive time.Duration
	// SessionExpiry is how long the platform keeps commands for the device while it is away; 24 h where zero.
	SessionExpiry time.Duration
	// Window is how many messages may wait for their acknowledgement; Publish blocks beyond it. 64 where zero.
	Window int
	// Log is told of connections that come and go; nil for silence.
	Log *slog.Logger
	// Dial opens the connection in place of TLS to Server, for tests and proxies.
	Dial func(ctx context.Context) (net.Conn, error)
}

const (
	windowDefault = 64
	keepAlive     = time.Minute
	sessionExpiry = 24 * time.Hour
	dialPatience  = 15 * time.Second
	writePatience = 10 * time.Second
	packetMax     = 1 << 20 // of what the platform may send
	receiveMax    = 16      // commands under way at once
	inboxMax      = 256     // QoS 0 messages beyond it are dropped, as QoS 0 allows
)

// ErrClosed is what calls get once the client is closed. A message that was under way may have been stored.
var ErrClosed = errors.New("the client is closed")

// RefusedError is a final no of the platform: sending the same again would not help.
type RefusedError struct {
	What string // connect, publish or subscribe
	Code packet.ReasonCode
	Text string // the platform's own words, such as `acl_denied: …`
}

// Error says what was refused and why.
func (e *RefusedError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("%s refused: %s", e.What, e.Code)
	}
	return fmt.Sprintf("%s refused: %s (%s)", e.What, e.Code, e.Text)
}

// Client is a device's connection, which comes back by itself. All methods may be called by any number of goroutines.
type Client struct {
	o      Options
	dial   func(ctx context.Context) (net.Conn, error)
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	window chan struct{}
	all    sync.WaitGroup

	sent, acked, connects atomic.Uint64
	failed                atomic.Pointer[error] // the last try to connect

	mu      sync.Mutex // guards what follows, and writing
	conn    net.Conn   // nil while away
	era     int        // counts connections
	ready   bool       // CONNACK has come
	max     int        // messages the server lets be under way
	flying  int        // messages under way on this connection
	queue   []*outgoing
	ids     map[uint16]*outgoing
	subs    []*subscription
	lastID  uint16
	buf     []byte
	closed  bool
	idle    chan struct{} // not nil while Close waits; closed when the queue is empty
	wake    chan struct{} // to the dispatcher
	inbox   []incoming
	serving bool
	done    map[string]reply // answered commands, so that a repeated one is not carried out twice
	order   []string
	twins   map[string]*Twin      // by name
	asked   map[string]chan asked // by correlation
}

// Stats are counts since Connect.
type Stats struct {
	Sent       uint64 // PUBLISH packets written, repetitions among them
	Acked      uint64 // messages the platform has
	Reconnects uint64
}

// Stats gives the counts.
func (c *Client) Stats() Stats {
	return Stats{c.sent.Load(), c.acked.Load(), max(c.connects.Load(), 1) - 1}
}

// Device is the device's id.
func (c *Client) Device() string { return c.o.Device }

// Connect returns once the platform has let the device in. It tries again until ctx is done, except after a refusal
// that is final, which is a *RefusedError. Later it reconnects by itself, for as long as the client is not closed.
func Connect(ctx context.Context, o Options) (*Client, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	c := &Client{o: o, dial: o.Dial, window: make(chan struct{}, o.Window), ids: map[uint16]*outgoing{},
		wake: make(chan struct{}, 1), done: map[string]reply{}, twins: map[string]*Twin{}, asked: map[string]chan asked{}}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	first := make(chan error, 1)
	c.all.Go(func() { c.run(first) })
	select {
	case err := <-first:
		if err == nil {
			return c, nil
		}
		c.end()
		return nil, fmt.Errorf("connect %s to %s: %w", o.Device, o.Server, err)
	case <-ctx.Done():
		c.end()
		if failed := c.failed.Load(); failed != nil {
			return nil, fmt.Errorf("connect %s to %s: %w; the last try failed: %w", o.Device, o.Server, context.Cause(ctx), *failed)
		}
		return nil, fmt.Errorf("connect %s to %s: %w", o.Device, o.Server, context.Cause(ctx))
	}
}

// Close waits until what is under way is acknowledged, or ctx is done, says goodbye and ends. Publish gives ErrClosed
// from now on.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	var idle chan struct{}
	if len(c.queue) > 0 {
		if c.idle == nil {
			c.idle = make(chan struct{})
		}
		idle = c.idle
	}
	c.mu.Unlock()
	var err error
	if idle != nil {
		select {
		case <-idle:
		case <-ctx.Done():
			err = fmt.Errorf("close %s with messages under way: %w", c.o.Device, context.Cause(ctx))
		}
	}
	c.mu.Lock()
	if c.ready {
		d := packet.Disconnect{Code: packet.Success}
		_ = c.write(d.Append(c.buf[:0], packet.V5))
	}
	c.mu.Unlock()
	c.end()
	return err
}

// end stops everything and fails what is still waiting.
func (c *Client) end() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.drop(ErrClosed)
	c.all.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.queue {
		m.finish(ErrClosed)
		<-c.window
	}
	c.queue = nil
	for _, s := range c.subs {
		s.finish(ErrClosed)
	}
}

func (o *Options) complete() error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Window <= 0 {
		o.Window = windowDefault
	}
	if o.KeepAlive <= 0 {
		o.KeepAlive = keepAlive
	}
	o.KeepAlive = min(max(o.KeepAlive, time.Second), 65535*time.Second) // §3.1.2.10: whole seconds in 16 bits
	if o.SessionExpiry <= 0 {
		o.SessionExpiry = sessionExpiry
	}
	if o.Dial == nil {
		if err := o.useTLS(); err != nil {
			return err
		}
	}
	if o.Device == "" {
		return errors.New("sdk: Options.Device is wanted, or a certificate with a common name")
	}
	if strings.ContainsAny(o.Device, "/+#\x00") {
		return fmt.Errorf("sdk: device id %q has a character of MQTT's own grammar", o.Device)
	}
	return nil
}

func (o *Options) useTLS() (err error) {
	host, _, err := net.SplitHostPort(o.Server)
	if err != nil {
		return fmt.Errorf("sdk: Options.Server %q: %w; write host:port", o.Server, err)
	}
	if len(o.Certificate.Certificate) == 0 {
		if o.Certificate, err = tls.LoadX509KeyPair(o.CertFile, o.KeyFile); err != nil {
			return fmt.Errorf("sdk: read the device's certificate: %w", err)
		}
	}
	if o.Device == "" {
		leaf, err := x509.ParseCertificate(o.Certificate.Certificate[0])
		if err != nil {
			return fmt.Errorf("sdk: read the device's certificate: %w", err)
		}
		o.Device = leaf.Subject.CommonName
	}
	if len(o.CA) == 0 {
		if o.CA, err = os.ReadFile(o.CAFile); err != nil {
			return fmt.Errorf("sdk: read the platform's CA: %w", err)
		}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(o.CA) {
		return errors.New("sdk: Options.CA holds no PEM certificate")
	}
	d := &tls.Dialer{
		NetDialer: &net.Dialer{Timeout: dialPatience},
		Config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: host,
			Certificates: []tls.Certificate{o.Certificate}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}, // coming back costs less
	}
	server := o.Server
	o.Dial = func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", server) }
	return nil
}

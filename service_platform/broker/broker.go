// Package broker is the door for devices: MQTT 3.1.1 and 5 over mutual TLS. It says PUBACK only when the log has the
// message on disk, and hands messages to live subscribers after that.
//
// There is one goroutine per connection, which reads; it never waits for the disk. Acknowledgements are written by
// whoever settles an append, in the order in which the messages came. What is not here yet is refused by name: QoS 2,
// retained messages, sessions that outlive their connection, shared subscriptions.
package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
)

// Admission decides who may come in. service_platform/x509 has one.
type Admission interface {
	// ServerTLS is the listener's configuration: it wants a certificate of every client, and leaves judging it to Admit.
	ServerTLS() (*tls.Config, error)
	// Admit gives the device that a certificate belongs to, or a *message.Rejection.
	Admit(ctx context.Context, leaf *x509.Certificate, intermediates []*x509.Certificate) (device string, err error)
	// OnChange has f called when certificates of a device stop being accepted.
	OnChange(f func(device string))
}

// Config is the broker's configuration.
type Config struct {
	// Listen is the address for devices, mutual TLS; empty for none.
	Listen string `json:"listen"`
	// Plain is an address without TLS, where the client id is taken for the device's name. It must be a loopback
	// address; it is for benchmarks and for a local proxy that has checked who comes.
	Plain string `json:"plain"`
	// MaxMessageBytes is the largest payload.
	MaxMessageBytes int `json:"max_message_bytes"`
	// ConnectTimeout is how long a client may take from its first byte to the last of its CONNECT.
	ConnectTimeout string `json:"connect_timeout"`
	// ReceiveMaximum is how many QoS 1 messages of a client may be unacknowledged.
	ReceiveMaximum int `json:"receive_maximum"`
	// MaxConnections is how many clients may be connected.
	MaxConnections int `json:"max_connections"`
	// KeepAliveMax is the longest keep alive: an MQTT 5 client that asks for a longer one, or for none, is told this one
	// (Server Keep Alive, MQTT 5 §3.2.2.3.14). "0s" lets clients choose. MQTT 3.1.1 has no word for it. Whole seconds,
	// at most 65535.
	KeepAliveMax string `json:"keep_alive_max"`
	// RefusalsKept is how many refusals are remembered for the operator.
	RefusalsKept int `json:"refusals_kept"`
}

// Defaults is the configuration where nothing is said.
var Defaults = Config{Listen: "127.0.0.1:8883", MaxMessageBytes: 256 << 10, ConnectTimeout: "10s", ReceiveMaximum: 1024,
	MaxConnections: 200_000, KeepAliveMax: "1h", RefusalsKept: 1000}

// With declares the broker with the one that admits.
func With(a Admission) component.Spec {
	return component.Define(component.Spec{
		Name: "service_platform.broker",
		Doc:  "the door for devices: MQTT 3.1.1 and 5 over mutual TLS, acknowledged when on disk",
		Says: []message.Pattern{"device.>", "operator.refused.*.*"},
	}, Defaults, func(env component.Env, c Config) (*component.Part, error) { return New(env, c, a) })
}

// Broker is the running component.
type Broker struct {
	env       component.Env
	conf      Config
	admission Admission
	timeout   time.Duration
	metrics   *metrics
	refusals  *refusals
	fan       *fan
	expiry    *expiry

	keepAliveMax time.Duration

	doors   sync.Map // log name -> bus.Appender
	stop    atomic.Bool
	mu      sync.Mutex
	clients map[string]*conn              // by client id
	all     map[*conn]struct{}            // every connection, also before its CONNECT
	devices map[string]map[*conn]struct{} // by device
	group   sync.WaitGroup
	addrs   []net.Addr
}

// New builds the broker.
func New(env component.Env, c Config, a Admission) (*component.Part, error) {
	longest, kerr := time.ParseDuration(c.KeepAliveMax)
	timeout, err := time.ParseDuration(c.ConnectTimeout)
	switch {
	case kerr != nil || longest < 0 || longest%time.Second != 0 || longest > 65535*time.Second:
		return nil, fmt.Errorf("keep_alive_max %q: want whole seconds up to 65535s, such as 1h; 0s for no limit", c.KeepAliveMax)
	case err != nil || timeout <= 0:
		return nil, fmt.Errorf("connect_timeout %q: want a duration such as 10s", c.ConnectTimeout)
	case c.ReceiveMaximum < 1 || c.ReceiveMaximum > 65535:
		return nil, fmt.Errorf("receive_maximum is %d; want 1 to 65535", c.ReceiveMaximum)
	case c.MaxMessageBytes < 1:
		return nil, fmt.Errorf("max_message_bytes is %d; want at least 1", c.MaxMessageBytes)
	case c.Listen == "" && c.Plain == "":
		return nil, errors.New("neither listen nor plain is set: nobody could connect")
	}
	if c.Plain != "" {
		host, _, err := net.SplitHostPort(c.Plain)
		if err != nil {
			return nil, fmt.Errorf("plain %q: %w", c.Plain, err)
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("plain %q is not a loopback address, and without TLS nobody's name can be trusted from elsewhere; use listen", c.Plain)
		}
	}
	b := &Broker{env: env, conf: c, admission: a, timeout: timeout, keepAliveMax: longest, clients: map[string]*conn{}, all: map[*conn]struct{}{},
		devices: map[string]map[*conn]struct{}{}, metrics: newMetrics(env.Metrics)}
	b.refusals = newRefusals(b, c.RefusalsKept)
	b.fan = newFan(b)
	b.expiry = &expiry{b: b}
	return &component.Part{Run: b.run, Routes: []component.Route{
		{Pattern: "GET /api/v1/broker/connections", Handler: answer.Func(b.serveConnections)},
		{Pattern: "GET /api/v1/broker/refusals", Handler: answer.Func(b.refusals.serve)},
	}}, nil
}

func (b *Broker) run(ctx context.Context, ready func()) error {
	// The door is opened before anybody comes.
	for _, ns := range []string{message.Device} {
		if _, err := b.door(ctx, ns); err != nil {
			return err
		}
	}
	var listeners []net.Listener
	serve := func(addr string, tc *tls.Config) error {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("listen for devices: %w", err)
		}
		listeners = append(listeners, l)
		b.mu.Lock()
		b.addrs = append(b.addrs, l.Addr())
		b.mu.Unlock()
		b.env.Log.Info("listening for devices", "address", l.Addr().String(), "tls", tc != nil)
		b.group.Go(func() { b.accept(l, tc) })
		return nil
	}
	defer func() {
		b.stop.Store(true)
		for _, l := range listeners {
			_ = l.Close() // ends accept
		}
		b.goodbye()
		b.group.Wait()
	}()
	if b.conf.Plain != "" {
		if err := serve(b.conf.Plain, nil); err != nil {
			return err
		}
	}
	if b.conf.Listen != "" {
		if b.admission == nil {
			return errors.New("listen is set and nobody decides who may come in")
		}
		tc, err := b.admission.ServerTLS()
		if err != nil {
			return err
		}
		tc = tc.Clone()
		tc.NextProtos = []string{"mqtt", "x-amzn-mqtt-ca"}
		if err := serve(b.conf.Listen, tc); err != nil {
			return err
		}
		b.admission.OnChange(b.recheck)
	}
	b.group.Go(func() { b.refusals.run(ctx) })
	b.group.Go(func() { b.fan.run(ctx) })
	b.group.Go(func() { b.expiry.run(ctx) })
	ready()
	<-ctx.Done()
	return nil
}

// door is the appender of a log.
func (b *Broker) door(ctx context.Context, log string) (bus.Appender, error) {
	if a, ok := b.doors.Load(log); ok {
		return a.(bus.Appender), nil
	}
	a, err := b.env.Door(ctx, log)
	if err == nil {
		b.doors.Store(log, a)
	}
	return a, err
}

func (b *Broker) accept(l net.Listener, tc *tls.Config) {
	for {
		nc, err := l.Accept()
		if err != nil {
			if b.stop.Load() {
				return
			}
			b.env.Log.Warn("accept", "error", err) // out of descriptors, most likely
			time.Sleep(100 * time.Millisecond)
			continue
		}
		c := b.newConn(nc)
		if c == nil {
			_ = nc.Close()
			continue
		}
		b.group.Go(func() { c.serve(tc) })
	}
}

// newConn takes a connection in, unless there are too many.
func (b *Broker) newConn(nc net.Conn) *conn {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	s, err := newSock(tcp)
	if err != nil {
		return nil
	}
	c := &conn{b: b, sock: s, since: b.env.Now(), addr: nc.RemoteAddr().String()}
	c.free = sync.NewCond(&c.mu)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop.Load() || len(b.all) >= b.conf.MaxConnections {
		return nil
	}
	b.all[c] = struct{}{}
	b.metrics.connections.Set(float64(len(b.all)))
	return c
}

// enter makes a connection its client id's; the one before goes.
func (b *Broker) enter(c *conn) {
	b.mu.Lock()
	old := b.clients[c.clientID]
	b.clients[c.clientID] = c
	if b.devices[c.device] == nil {
		b.devices[c.device] = map[*conn]struct{}{}
	}
	b.devices[c.device][c] = struct{}{}
	b.mu.Unlock()
	b.expiry.note(c)
	if old != nil {
		old.end(message.TakenOver, nil)
	}
}

// leave forgets a connection; last says that the client id is nobody's now.
func (b *Broker) leave(c *conn) (last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.all, c)
	b.metrics.connections.Set(float64(len(b.all)))
	if c.clientID != "" && b.clients[c.clientID] == c {
		delete(b.clients, c.clientID)
		last = true
	}
	if d := b.devices[c.device]; d != nil {
		if delete(d, c); len(d) == 0 {
			delete(b.devices, c.device)
		}
	}
	return last
}

// recheck closes connections of a device that are no longer admitted.
func (b *Broker) recheck(device string) {
	b.mu.Lock()
	var list []*conn
	for c := range b.devices[device] {
		list = append(list, c)
	}
	b.mu.Unlock()
	for _, c := range list {
		if c.leaf == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := b.admission.Admit(ctx, c.leaf, c.chain)
		cancel()
		if err != nil {
			c.end(message.ReasonOf(err, message.CertUnregistered), err)
		}
	}
}

// Connection is a client as operators see it.
type Connection struct {
	ClientID      string    `json:"client_id"`
	Device        string    `json:"device"`
	Address       string    `json:"address"`
	Since         time.Time `json:"since"`
	Version       string    `json:"version"`
	TLS           bool      `json:"tls"`
	KeepAlive     int       `json:"keep_alive_seconds"`
	InFlight      int       `json:"in_flight"`
	Subscriptions []string  `json:"subscriptions,omitempty"`
	Received      uint64    `json:"received"`
	Sent          uint64    `json:"sent"`
}

func (b *Broker) serveConnections(_ http.ResponseWriter, r *http.Request) (any, error) {
	b.mu.Lock()
	var list []*conn
	for _, c := range b.clients {
		list = append(list, c)
	}
	b.mu.Unlock()
	out := []Connection{}
	for _, c := range list {
		if d := r.URL.Query().Get("device"); d == "" || d == c.device {
			out = append(out, c.show())
		}
	}
	slices.SortFunc(out, func(a, b Connection) int { return a.Since.Compare(b.Since) })
	return out, nil
}

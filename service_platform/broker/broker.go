// Package broker is the door for devices and other clients: MQTT 3.1.1 and 5 over mutual TLS, TLS with passwords, plain
// TCP on loopback, and WebSocket. It says PUBACK and PUBREC only when the log has the message on disk, and hands messages
// on after that.
//
// There is one goroutine per connection, which reads; it never waits for the disk on behalf of a PUBLISH.
// Acknowledgements are written by whoever settles an append, in the order in which the messages came. What is owed to
// clients beyond their connections is kept by package session, which hears the logs as the component's handler.
//
// Locks are taken in this order: conn.out, then one of the session store's mutex, conn.mu and Broker.mu, of which nobody holds
// two; then those of the leaves (a socket's, refusals, turns, wills), which call nobody. The store asks Client.Busy and
// Client.HungUp under its own mutex, so these take neither conn.out nor conn.mu; all its other calls of a Client come without it.
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

	"golang.org/x/time/rate"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/policy"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// Admission decides who may come in. service_platform/x509 has one.
type Admission interface {
	// ServerTLS is the listener's configuration: it wants a certificate of every client, and leaves judging it to Admit.
	ServerTLS() (*tls.Config, error)
	// Admit gives the device that a certificate belongs to, or a *message.Rejection.
	Admit(ctx context.Context, leaf *x509.Certificate, intermediates []*x509.Certificate) (device string, err error)
	// OnChange has f called when certificates of a device stop being accepted, or what policies ask of it has changed, until
	// stop is called.
	OnChange(f func(device string)) (stop func())
}

// Config is the broker's configuration.
type Config struct {
	// Listen is the address for devices, mutual TLS; empty for none.
	Listen string `json:"listen"`
	// Envelope is that listener's: CloudEvents attributes and the trace are added to what its MQTT 5 clients are sent.
	Envelope bool `json:"envelope"`
	// Plain is an address without TLS, where the client id is taken for the device's name. It must be a loopback
	// address; it is for benchmarks and for a local proxy that has checked who comes.
	Plain string `json:"plain"`
	// Listeners are further addresses, each with its own ways and policy.
	Listeners []Listener `json:"listeners"`
	// Policies are what clients may do, by name, beside the built-in device and open; see docs/mqtt.md.
	Policies map[string]policy.Policy `json:"policies"`
	// MaxMessageBytes is the largest payload.
	MaxMessageBytes int `json:"max_message_bytes"`
	// ConnectTimeout is how long a client may take from its first byte to the last of its CONNECT.
	ConnectTimeout string `json:"connect_timeout"`
	// ReceiveMaximum is how many messages of QoS 1 and 2 of a client may be unacknowledged.
	ReceiveMaximum int `json:"receive_maximum"`
	// MaxConnections is how many clients may be connected.
	MaxConnections int `json:"max_connections"`
	// ConnectRate is how many connections a second are begun with; zero for as many as come. The rest wait for their turn.
	ConnectRate float64 `json:"connect_rate"`
	// ConnectsWaitingMax is how many connections may wait for their TLS handshake or password to be looked at, while others
	// are, and ConnectWait for how long. ConnectTimeout does not count while they wait.
	ConnectsWaitingMax int    `json:"connects_waiting_max"`
	ConnectWait        string `json:"connect_wait"`
	// PublishRate is how fast one client may publish, by its identity; listeners may have their own.
	PublishRate Rate `json:"publish_rate"`
	// KeepAliveMax is the longest keep alive: an MQTT 5 client that asks for a longer one, or for none, is told this one
	// (Server Keep Alive, MQTT 5 §3.2.2.3.14). "0s" lets clients choose. MQTT 3.1.1 has no word for it. Whole seconds,
	// at most 65535.
	KeepAliveMax string `json:"keep_alive_max"`
	// RefusalsKept is how many refusals are remembered for the operator.
	RefusalsKept int `json:"refusals_kept"`
	// SessionExpiryMax is the longest a session outlives its connection; also how long one of MQTT 3.1.1 does.
	SessionExpiryMax string `json:"session_expiry_max"`
	// SessionMessagesMax and SessionBytesMax bound what waits for one session; beyond them its oldest messages die.
	SessionMessagesMax int   `json:"session_messages_max"`
	SessionBytesMax    int64 `json:"session_bytes_max"`
	// SubscriptionsMax is how many subscriptions a session may have.
	SubscriptionsMax int `json:"subscriptions_max"`
	// SessionsMax is how many sessions that outlive their connections are kept.
	SessionsMax int `json:"sessions_max"`
	// RetainedMax is how many retained messages are kept.
	RetainedMax int `json:"retained_max"`
	// SysInterval is how often the $SYS topics are told anew; "0s" for no such topics.
	SysInterval string `json:"sys_interval"`
	// TCPTimeout is how long a client's machine may answer nothing at all, asked by TCP, before its connection is given up:
	// a half-open one, also where the client's keep alive is 0. So long may a client leave unread what it was sent, too.
	TCPTimeout string `json:"tcp_timeout"`
	// Cluster says whether other brokers share the bus: "on", and clients may connect to any of them, or "off". The
	// process says "on" for "auto" where others can join the bus; else "auto" is "off". It is the same at all of them.
	Cluster string `json:"cluster"`
}

// Defaults is the configuration where nothing is said.
var Defaults = Config{Listen: "127.0.0.1:8883", MaxMessageBytes: 256 << 10, ConnectTimeout: "10s", ReceiveMaximum: 1024,
	MaxConnections: 200_000, ConnectsWaitingMax: 20_000, ConnectWait: "1m", KeepAliveMax: "1h", RefusalsKept: 1000, SessionExpiryMax: "168h", SessionMessagesMax: 100_000,
	SessionBytesMax: 256 << 20, SubscriptionsMax: 256, SessionsMax: 200_000, RetainedMax: 100_000, SysInterval: "10s", TCPTimeout: "3m", Cluster: "auto"}

// With declares the broker with the one that admits.
func With(a Admission) component.Spec {
	return component.Define(component.Spec{
		Name: "service_platform.broker",
		Doc:  "the door for devices and other clients: MQTT 3.1.1 and 5, acknowledged when on disk",
		Says: []message.Pattern{"device.>", "3rd_party.>", "$aws.rules.>", "operator.refused.*.*", "operator.dead.service_platform.broker", "service_platform.broker.session.*", "service_platform.broker.receipt.*"},
		// What clients can subscribe to. Each node hears all of it for the sessions that are its own.
		Hears: []message.Pattern{"device.>", "service_platform.>", "data_platform.>", "3rd_party.>"},
		State: component.Local, PerNode: true, Lazy: true,
	}, Defaults, func(env component.Env, c Config) (*component.Part, error) { return New(env, c, a) })
}

// Broker is the running component.
type Broker struct {
	env       component.Env
	conf      Config
	admission Admission
	keeper    Doorkeeper // the admission, where it is one
	timeout   time.Duration
	metrics   *metrics
	refusals  *refusals
	entrances []*entrance
	policies  *policy.Set
	store     *session.Store
	online    online
	expiry    *expiry
	clustered bool // it has neighbours
	roster    *roster
	sys       *sys

	keepAliveMax time.Duration
	tcpTimeout   time.Duration
	pacePublish  *pace
	allowances   allowances
	gate         *turnstile
	connectRate  *rate.Limiter
	turns        *turns
	wills        *wills

	doors         sync.Map // log name -> bus.Appender
	stop          atomic.Bool
	halting       chan struct{} // closed with it
	changes       atomic.Uint64 // of what is admitted, as far as told
	mu            sync.Mutex
	clients       map[string]*conn              // by their sessions' names
	connectedMost int                           // of them at once
	all           map[*conn]struct{}            // every connection, also before its CONNECT
	callers       map[*caller]struct{}          // of HTTP, before they are WebSockets
	devices       map[string]map[*conn]struct{} // by their certificate's device
	group         sync.WaitGroup
}

// New builds the broker.
func New(env component.Env, c Config, a Admission) (*component.Part, error) {
	b, err := build(env, c, a)
	if err != nil {
		return nil, err
	}
	return b.part(), nil
}

func (b *Broker) part() *component.Part {
	lease := time.Duration(0) // as usual
	if b.clustered {
		lease = leaseTTL
	}
	return &component.Part{HandleBatch: b.store.Hear, Run: b.run, Lease: lease, Routes: []component.Route{
		{Pattern: "GET /api/v1/broker/sessions", Handler: answer.Func(b.serveSessions)},
		{Pattern: "GET /api/v1/broker/connections", Handler: answer.Func(b.serveConnections)},
		{Pattern: "GET /api/v1/broker/may", Handler: answer.Func(b.serveMay)},
		{Pattern: "GET /api/v1/broker/refusals", Handler: answer.Func(b.refusals.serve)},
	}}
}

func build(env component.Env, c Config, a Admission) (*Broker, error) {
	longest, kerr := keepAlive(c.KeepAliveMax)
	timeout, err := time.ParseDuration(c.ConnectTimeout)
	switch {
	case kerr != nil:
		return nil, kerr
	case err != nil || timeout <= 0:
		return nil, fmt.Errorf("connect_timeout %q: want a duration such as 10s", c.ConnectTimeout)
	case c.ReceiveMaximum < 1 || c.ReceiveMaximum > 65535:
		return nil, fmt.Errorf("receive_maximum is %d; want 1 to 65535", c.ReceiveMaximum)
	case c.MaxMessageBytes < 1:
		return nil, fmt.Errorf("max_message_bytes is %d; want at least 1", c.MaxMessageBytes)
	case c.Cluster != "auto" && c.Cluster != "on" && c.Cluster != "off":
		return nil, fmt.Errorf("cluster is %q; want auto, on or off", c.Cluster)
	case c.SessionMessagesMax < 1 || c.SessionBytesMax < 1 || c.SubscriptionsMax < 1 || c.SessionsMax < 0 || c.RetainedMax < 0:
		return nil, errors.New("session_messages_max, session_bytes_max and subscriptions_max want at least 1, sessions_max and retained_max at least 0")
	}
	wait, err := time.ParseDuration(c.ConnectWait)
	switch {
	case err != nil || wait <= 0:
		return nil, fmt.Errorf("connect_wait %q: want a duration such as 1m", c.ConnectWait)
	case c.ConnectsWaitingMax < 1:
		return nil, fmt.Errorf("connects_waiting_max is %d; want at least 1", c.ConnectsWaitingMax)
	case c.ConnectRate < 0:
		return nil, fmt.Errorf("connect_rate is %g; want connections a second, or 0 for as many as come", c.ConnectRate)
	}
	every, serr := sysInterval(c.SysInterval)
	patience, terr := tcpTimeout(c.TCPTimeout)
	if err := errors.Join(serr, terr); err != nil {
		return nil, err
	}
	publish, err := c.PublishRate.parse()
	if err != nil {
		return nil, err
	}
	expires, err := sessionExpiry(c.SessionExpiryMax)
	if err != nil {
		return nil, err
	}
	if c.Plain != "" && !loopback(c.Plain) {
		return nil, fmt.Errorf("plain %q is not a loopback address, and without TLS nobody's name can be trusted from elsewhere; use listen", c.Plain)
	}
	entrances, err := c.entrances()
	if err != nil {
		return nil, err
	}
	b := &Broker{env: env, conf: c, admission: a, timeout: timeout, keepAliveMax: longest, entrances: entrances, halting: make(chan struct{}),
		clients: map[string]*conn{}, all: map[*conn]struct{}{}, callers: map[*caller]struct{}{}, devices: map[string]map[*conn]struct{}{}, metrics: newMetrics(env.Metrics)}
	b.pacePublish, b.tcpTimeout = publish, patience
	b.sys = &sys{b: b, every: every, told: map[string]string{}}
	b.gate, b.connectRate, b.turns = newTurnstile(c.ConnectsWaitingMax, wait), newConnectRate(c.ConnectRate), newTurns()
	b.wills = newWills()
	b.metrics.watch(env.Metrics, b.gate)
	if err := b.setPolicies(); err != nil {
		return nil, err
	}
	b.refusals = newRefusals(b, c.RefusalsKept)
	b.online.b = b
	b.keeper, _ = a.(Doorkeeper)
	b.expiry = &expiry{b: b}
	b.store = session.New(env, session.Limits{Expiry: expires, Messages: c.SessionMessagesMax, Bytes: c.SessionBytesMax,
		Subscriptions: c.SubscriptionsMax, Sessions: c.SessionsMax, Retained: c.RetainedMax}, b.lost)
	b.store.WhenTaken(func(key string) { b.turns.note(key, time.Now()) })
	if c.Cluster == "on" {
		b.store.Join(b.keepQuiet, func(left session.Left) { b.tellLeft(context.Background(), left) })
		b.clustered = true
	}
	return b, nil
}

func (b *Broker) run(ctx context.Context, ready func()) error {
	// It may end by itself, too, and waits then for all that it has begun.
	ctx, cancel := context.WithCancel(ctx)
	var stops []func()
	defer func() {
		b.stop.Store(true)
		close(b.halting)
		cancel()
		for _, stop := range stops {
			stop()
		}
		b.goodbye()
		b.wills.close()
		b.group.Wait()
		b.store.Close()
	}()
	// The doors are open before anybody comes.
	for _, ns := range []string{message.Device, message.ThirdParty, message.Operator} {
		if _, err := b.door(ctx, ns); err != nil {
			return err
		}
	}
	if err := b.store.Load(ctx); err != nil {
		return err
	}
	if err := b.catchUp(ctx); err != nil {
		return err
	}
	if err := b.join(ctx); err != nil {
		return err
	}
	if err := b.leftBehind(ctx); err != nil {
		return err
	}
	if b.admission != nil {
		stops = append(stops, b.admission.OnChange(b.recheck)) // before anybody is admitted, so that none is missed
	}
	for _, e := range b.entrances {
		stop, err := b.listen(ctx, e)
		if err != nil {
			return err
		}
		stops = append(stops, stop)
	}
	b.group.Go(func() { b.refusals.run(ctx) })
	b.group.Go(func() {
		if err := b.store.Recover(ctx); err != nil && ctx.Err() == nil {
			b.env.Log.Warn("give to other members of shared subscriptions what some had in hand; tried again at the next start", "error", err)
		}
	})
	b.group.Go(func() { b.expire(ctx) })
	b.group.Go(func() { b.sys.run(ctx) })
	b.group.Go(func() { b.expiry.run(ctx) })
	b.group.Go(func() { b.store.Announce(ctx) })
	if err := b.tellPolicies(ctx); err != nil {
		return err
	}
	ready()
	select {
	case <-ctx.Done():
		return nil
	case err := <-b.store.Ended():
		return err
	}
}

// catchUp waits until all is heard that was in the logs when the broker started: before that a session does not know
// what it is owed, nor which QoS 2 messages it has sent.
func (b *Broker) catchUp(ctx context.Context) error {
	consumer := b.env.Spec.Name + "/" + b.env.Node
	type place struct {
		log       string
		gen, part uint32
	}
	ends := map[place]uint64{}
	for _, name := range b.env.Spec.Logs() {
		log, err := b.env.Bus.Log(ctx, name, bus.LogOptions{})
		if err != nil {
			return err
		}
		info, err := log.Info(ctx)
		if err != nil {
			return err
		}
		for _, g := range info.Generations {
			for _, p := range g.Partitions {
				if p.Last >= p.First {
					ends[place{name, g.Number, p.Number}] = p.Last
				}
			}
		}
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for told := began; ; {
		for _, r := range b.env.Peers.Reports() {
			at := place{r.Log, r.Position.Generation, r.Position.Partition}
			if r.Consumer == consumer && r.Position.Sequence >= ends[at] {
				delete(ends, at)
			}
		}
		if len(ends) == 0 {
			return nil
		}
		if time.Since(told) > 5*time.Second {
			told = time.Now()
			b.env.Log.Info("hearing what was said while the broker was away; clients are let in after that", "partitions", len(ends), "for", time.Since(began))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// expire ends sessions whose time has passed.
func (b *Broker) expire(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := b.store.Expire(ctx); err != nil && ctx.Err() == nil {
				b.env.Log.Warn("end sessions whose time has passed", "error", err)
			}
		}
	}
}

// lost tells of a message that died before its session's client had it.
func (b *Broker) lost(w session.Who, why message.Reason, err error) {
	b.refusals.add(refusal{reason: why, detail: err, device: w.Identity, client: w.ClientID})
}

// sessionExpiry reads for how long a session may outlive its connection.
func sessionExpiry(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d/time.Second >= session.Never {
		return 0, fmt.Errorf("session_expiry_max %q: want a duration such as 168h, of less than 136 years", s)
	}
	return d, nil
}

// keepAlive reads a longest keep alive.
func keepAlive(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d%time.Second != 0 || d > 65535*time.Second {
		return 0, fmt.Errorf("keep_alive_max %q: want whole seconds up to 65535s, such as 1h; 0s for no limit", s)
	}
	return d, nil
}

// loopback says whether an address is this machine's own.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
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

// enter makes a connection its session's.
func (b *Broker) enter(c *conn) {
	b.expiry.note(c)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clients[c.kept.Key()] = c
	b.connectedMost = max(b.connectedMost, len(b.clients))
	if c.peer == "" {
		if c.device == "" || c.clientID == c.device {
			return
		}
		c.peer = c.device // of a device with a client id of its own: it may have several connections
	}
	if b.devices[c.peer] == nil {
		b.devices[c.peer] = map[*conn]struct{}{}
	}
	b.devices[c.peer][c] = struct{}{}
}

// leave forgets a connection; last says that its session has no other.
func (b *Broker) leave(c *conn) (last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.all, c)
	b.metrics.connections.Set(float64(len(b.all)))
	if c.kept != nil && b.clients[c.kept.Key()] == c {
		delete(b.clients, c.kept.Key())
		last = true
	}
	if d := b.devices[c.peer]; d != nil {
		if delete(d, c); len(d) == 0 {
			delete(b.devices, c.peer)
		}
	}
	return last
}

// hasAnother says whether the device of a connection that has left has another, under another client id.
func (b *Broker) hasAnother(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for other := range b.devices[c.device] {
		if other.device == c.device {
			return true
		}
	}
	return c.clientID != c.device && b.clients[session.Who{Mount: c.in.Mount, Identity: c.device, ClientID: c.device}.Key()] != nil
}

// recheck closes connections of a device that are no longer admitted.
func (b *Broker) recheck(device string) {
	b.changes.Add(1) // before the look: a connection that is not entered yet sees it when it is
	b.mu.Lock()
	var list []*conn
	for c := range b.devices[device] {
		list = append(list, c)
	}
	b.mu.Unlock()
	for _, c := range list {
		c.recheck()
	}
}

// recheck ends the connection where its certificate is no longer admitted.
func (c *conn) recheck() {
	c.mu.Lock()
	ended := c.ended
	c.mu.Unlock()
	if c.leaf == nil || ended {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var err error
	if c.b.keeper != nil {
		err = c.b.keeper.RecheckPeer(ctx, c.addr, c.clientID, tls.ConnectionState{PeerCertificates: append([]*x509.Certificate{c.leaf}, c.chain...)})
	} else {
		_, err = c.b.admission.Admit(ctx, c.leaf, c.chain)
	}
	if err != nil {
		c.end(message.ReasonOf(err, message.CertUnregistered), err)
		return
	}
	c.rejudge()
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
	Listener      string    `json:"listener"`
	Subscriptions []string  `json:"subscriptions,omitempty"`
	Received      uint64    `json:"received"`
	Sent          uint64    `json:"sent"`
	HeldBack      uint64    `json:"held_back,omitempty"` // messages that waited for publish_rate
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

func (b *Broker) serveSessions(_ http.ResponseWriter, r *http.Request) (any, error) {
	list := b.store.List()
	if id := r.URL.Query().Get("client"); id != "" {
		list = slices.DeleteFunc(list, func(s session.Show) bool { return s.ClientID != id })
	}
	return list, nil
}

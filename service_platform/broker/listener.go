package broker

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/policy"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// Listener is an address that clients connect to, with what they may do there.
type Listener struct {
	// Name is told in lists and refusals; the address where empty.
	Name string `json:"name"`
	// Address is host and port.
	Address string `json:"address"`
	// Protocol is mqtt, mqtts, ws or wss; WebSocket is at /mqtt with the subprotocol mqtt.
	Protocol string `json:"protocol"`
	// Auth is certificate (mqtts and wss), password, or none. With none the client id is taken for who comes.
	Auth string `json:"auth"`
	// UsersFile has a line `name:hash` for each user, the hash by bcrypt, as `htpasswd -B` writes it.
	UsersFile string `json:"users_file"`
	// Insist lets a listener without TLS listen elsewhere than on loopback, where anybody on the way reads along.
	Insist bool `json:"insist"`
	// Mount is the subject under which the clients' topics live, such as 3rd_party.legacy. They see their own topics only.
	Mount string `json:"mount"`
	// Policy is device (each on its own subtree), open (everything below the mount point), or one of the component's
	// policies. Policies that are for this listener, a group or a user apply beside it.
	Policy string `json:"policy"`
	// Envelope adds CloudEvents attributes and the trace, as user properties, to what MQTT 5 clients here are sent.
	Envelope bool `json:"envelope"`
	// Refuse lists topic filters that nobody here may publish to or subscribe to.
	Refuse []string `json:"refuse"`
	// Refused is what becomes of a PUBLISH of QoS 1 or 2 that an MQTT 3.1.1 client may not say: ack, the default, acknowledges
	// it when it lies among the dead letters; close ends the connection, and the client will say it again.
	Refused string `json:"refused"`
	// KeepAliveMax is the longest keep alive here, in place of the component's; empty for that one. MQTT 5 clients are told
	// it. Where it is said here, MQTT 3.1.1 clients that ask for a longer one, or for none, are refused.
	KeepAliveMax string `json:"keep_alive_max"`
	// PublishRate is how fast one client may publish here, in place of the component's.
	PublishRate *Rate `json:"publish_rate"`
	// SessionExpiryMax, SessionMessagesMax, SessionBytesMax and SubscriptionsMax are the limits of sessions of clients that
	// come in here, in place of the component's; empty and zero for those. With an expiry of 0s none outlives its connection.
	SessionExpiryMax   string `json:"session_expiry_max"`
	SessionMessagesMax int    `json:"session_messages_max"`
	SessionBytesMax    int64  `json:"session_bytes_max"`
	SubscriptionsMax   int    `json:"subscriptions_max"`
}

const (
	byCertificate = "certificate"
	byPassword    = "password"
	byNobody      = "none"
	refusedAck    = "ack"
	refusedClose  = "close"
	policyDevice  = policy.DevicePolicy
	policyOpen    = policy.OpenPolicy
)

// entrance is a listener in use.
type entrance struct {
	Listener
	mount    message.Pattern // empty for none
	depth    int             // tokens of it
	most     time.Duration   // KeepAliveMax; zero where only the component's counts
	pace     *pace           // PublishRate, where there is one
	caps     session.Caps
	policies []string // that apply to all who come here
	users    map[string][]byte
	checked  *passwords
}

// entrances checks the listeners that the configuration names, the two short forms among them.
func (c *Config) entrances() (list []*entrance, err error) {
	all := c.Listeners
	if c.Listen != "" {
		all = append([]Listener{{Name: "devices", Address: c.Listen, Protocol: "mqtts", Auth: byCertificate, Policy: policyDevice, Envelope: c.Envelope}}, all...)
	}
	if c.Plain != "" {
		all = append([]Listener{{Name: "plain", Address: c.Plain, Protocol: "mqtt", Auth: byNobody, Policy: policyDevice}}, all...)
	}
	if len(all) == 0 {
		return nil, errors.New("no listener is set: nobody could connect; set listen, or listeners")
	}
	names := map[string]bool{}
	for i, l := range all {
		e, err := newEntrance(l)
		if err != nil {
			return nil, fmt.Errorf("listener %d (%s): %w", i+1, l.Address, err)
		}
		if names[e.Name] {
			return nil, fmt.Errorf("two listeners have the name %q", e.Name)
		}
		names[e.Name] = true
		list = append(list, e)
	}
	return list, nil
}

func newEntrance(l Listener) (*entrance, error) {
	e := &entrance{Listener: l}
	if e.Name == "" {
		e.Name = e.Address
	}
	if e.Protocol == "" {
		e.Protocol = "mqtts"
	}
	if e.Policy == "" {
		e.Policy = policyDevice
	}
	if e.Refused == "" {
		e.Refused = refusedAck
	}
	if e.Auth == "" && e.secure() {
		e.Auth = byCertificate
	}
	if _, _, err := net.SplitHostPort(e.Address); err != nil {
		return nil, fmt.Errorf("address %q: want host:port, such as 127.0.0.1:8883", e.Address)
	}
	switch e.Protocol {
	case "mqtt", "mqtts", "ws", "wss":
	default:
		return nil, fmt.Errorf("protocol %q; there are mqtt, mqtts, ws and wss", e.Protocol)
	}
	switch {
	case e.Auth != byCertificate && e.Auth != byPassword && e.Auth != byNobody:
		return nil, fmt.Errorf("auth %q; there are certificate, password and none", e.Auth)
	case e.Auth == byCertificate && !e.secure():
		return nil, fmt.Errorf("auth certificate wants TLS: protocol mqtts or wss, not %s", e.Protocol)
	case e.Refused != refusedAck && e.Refused != refusedClose:
		return nil, fmt.Errorf("refused %q; there are ack and close", e.Refused)
	case !e.secure() && !e.Insist && !loopback(e.Address):
		return nil, fmt.Errorf("%s is not a loopback address, and without TLS anybody on the way reads along and speaks; use mqtts, or set insist: true", e.Address)
	case e.Policy == policyOpen && e.Mount == "":
		return nil, errors.New("policy open wants a mount point, such as mount: 3rd_party.legacy, or its clients could speak for devices")
	case (e.Auth == byPassword) != (e.UsersFile != ""):
		return nil, errors.New("auth password and users_file go together")
	}
	if e.KeepAliveMax != "" {
		var err error
		if e.most, err = keepAlive(e.KeepAliveMax); err != nil {
			return nil, err
		}
	}
	if e.SessionMessagesMax < 0 || e.SessionBytesMax < 0 || e.SubscriptionsMax < 0 {
		return nil, errors.New("session_messages_max, session_bytes_max and subscriptions_max want at least 1, or 0 for the component's")
	}
	e.caps = session.Caps{Messages: e.SessionMessagesMax, Bytes: e.SessionBytesMax, Subscriptions: e.SubscriptionsMax}
	if e.SessionExpiryMax != "" {
		most, err := sessionExpiry(e.SessionExpiryMax)
		if err != nil {
			return nil, err
		}
		seconds := uint32(most / time.Second)
		e.caps.Expiry = &seconds
	}
	if e.PublishRate != nil {
		var err error
		if e.pace, err = e.PublishRate.parse(); err != nil {
			return nil, err
		}
	}
	if e.Mount != "" {
		if err := message.Subject(e.Mount).Valid(); err != nil {
			return nil, fmt.Errorf("mount: %w", err)
		}
		first, _, _ := strings.Cut(e.Mount, ".")
		if first != message.ThirdParty && first != message.Device {
			return nil, fmt.Errorf("mount %s: clients' topics live under 3rd_party or device", e.Mount)
		}
		e.mount, e.depth = message.Pattern(e.Mount), strings.Count(e.Mount, ".")+1
	}
	for _, f := range e.Refuse {
		if _, err := e.selects(f); err != nil {
			return nil, fmt.Errorf("refuse: %w", err)
		}
	}
	if e.Auth == byPassword {
		var err error
		if e.users, err = readUsers(e.UsersFile); err != nil {
			return nil, err
		}
		e.checked = &passwords{}
	}
	return e, nil
}

func (e *entrance) secure() bool { return e.Protocol == "mqtts" || e.Protocol == "wss" }
func (e *entrance) web() bool    { return e.Protocol == "ws" || e.Protocol == "wss" }

// readUsers reads names and hashes.
func readUsers(file string) (map[string][]byte, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("users_file: %w", err)
	}
	users := map[string][]byte{}
	for i, line := range strings.Split(string(raw), "\n") {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		if _, err := bcrypt.Cost([]byte(hash)); !ok || name == "" || err != nil {
			return nil, fmt.Errorf("users_file %s, line %d: want name:hash with a bcrypt hash, as `htpasswd -nB name` writes it", file, i+1)
		}
		users[name] = []byte(hash)
	}
	return users, nil
}

// passwords remembers what was found right, since the hash is slow on purpose and clients reconnect.
type passwords struct {
	mu    sync.Mutex
	right map[string]struct{}
}

const passwordsKept = 10_000

func (p *passwords) has(word string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.right[word]
	return ok
}

func (p *passwords) add(word string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.right == nil || len(p.right) >= passwordsKept {
		p.right = map[string]struct{}{}
	}
	p.right[word] = struct{}{}
}

// login checks a user's password. It takes as long for a user that does not exist. What has not been found right before
// waits for its turn as a handshake does, and is refused where that does not come.
func (c *conn) login(user string, password []byte) error {
	e := c.in
	hash, known := e.users[user]
	if !known {
		hash = nobody
	}
	sum := sha256.Sum256(append([]byte(user+"\x00"+string(hash)+"\x00"), password...))
	word := hex.EncodeToString(sum[:])
	if known && e.checked.has(word) {
		return nil
	}
	waited, err := c.b.gate.enter(c.since, e.secure(), c.cut)
	if err != nil {
		return err
	}
	defer c.b.gate.leave()
	c.by = c.by.Add(waited)
	if bcrypt.CompareHashAndPassword(hash, password) != nil || !known {
		return message.Rejectf(message.TokenInvalid, "user %q of listener %s, or the password, is wrong", readable(user), e.Name)
	}
	e.checked.add(word)
	return nil
}

// nobody is a hash that no password has.
var nobody = []byte("$2a$10$CwTycUXWue0Thq9StjUM0uJ8.F5yfq1rLbZ6oL1n0s5v8mOeCq0aW")

func readable(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return s
}

// listen opens an entrance.
func (b *Broker) listen(ctx context.Context, e *entrance) (stop func(), err error) {
	l, err := listenConfig(b.tcpTimeout).Listen(ctx, "tcp", e.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for clients: %w", err)
	}
	var tc *tls.Config
	if e.secure() {
		if b.admission == nil {
			_ = l.Close()
			return nil, fmt.Errorf("listener %s wants TLS, and nobody here decides who may come in", e.Name)
		}
		if tc, err = b.admission.ServerTLS(); err != nil {
			_ = l.Close()
			return nil, err
		}
		tc = tc.Clone()
		tc.NextProtos = []string{"mqtt", "x-amzn-mqtt-ca"}
		if e.Auth != byCertificate {
			tc.ClientAuth = tls.NoClientCert
		}
	}
	if host, _, err := net.SplitHostPort(e.Address); err == nil {
		if _, port, err := net.SplitHostPort(l.Addr().String()); err == nil {
			b.env.Listening(e.Name, net.JoinHostPort(host, port))
		}
	}
	b.env.Log.Info("listening for clients", "listener", e.Name, "address", l.Addr().String(), "protocol", e.Protocol)
	if e.web() {
		return b.listenWeb(l, e, tc), nil
	}
	b.group.Go(func() { b.accept(l, e, tc) })
	return func() { _ = l.Close() }, nil // ends accept
}

func (b *Broker) accept(l net.Listener, e *entrance, tc *tls.Config) {
	b.eachOf(l, func(nc *net.TCPConn) {
		s, err := newSock(nc)
		if err != nil {
			_ = nc.Close() // it is no connection any more
			return
		}
		c := b.take(s, e, nc.RemoteAddr().String(), nil)
		if c == nil {
			_ = nc.Close()
			b.full(nc.RemoteAddr().String())
			return
		}
		go func() { defer b.group.Done(); c.serve(tc) }()
	})
}

// eachOf gives the connections that come, until the listener is closed.
func (b *Broker) eachOf(l net.Listener, f func(*net.TCPConn)) {
	for {
		nc, err := l.Accept()
		if err != nil {
			if b.stop.Load() || errors.Is(err, net.ErrClosed) {
				return
			}
			b.env.Log.Warn("accept", "error", err) // out of descriptors, most likely
			<-time.After(100 * time.Millisecond)
			continue
		}
		f(nc.(*net.TCPConn)) // see listen
	}
}

// full tells that somebody was sent away, unless that is because the broker stops.
func (b *Broker) full(addr string) {
	if !b.stop.Load() {
		b.refusals.add(refusal{reason: message.ConnectionLimit, address: addr,
			detail: fmt.Errorf("%d clients are connected, which is max_connections", b.conf.MaxConnections)})
	}
}

// take makes a client's connection of what has come, unless there are too many. g is the caller that it was until now, for
// WebSocket; it is none any more in any case. The connection is in the broker's group, in the same moment in which it is known
// that the broker does not stop: whoever serves it says when it is done.
func (b *Broker) take(w wire, e *entrance, addr string, g *caller) *conn {
	c := &conn{b: b, in: e, sock: w, since: b.env.Now(), addr: addr, cut: make(chan struct{}), quit: make(chan struct{})}
	c.free = sync.NewCond(&c.mu)
	w.whenDrained(c.Wake)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.callers, g)
	if b.stop.Load() || len(b.all)+len(b.callers) >= b.conf.MaxConnections {
		return nil
	}
	b.all[c] = struct{}{}
	b.group.Add(1)
	b.metrics.connections.Set(float64(len(b.all)))
	return c
}

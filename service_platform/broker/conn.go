package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/policy"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

const (
	connectMax    = 64 << 10         // bytes of a CONNECT
	headroom      = 64 << 10         // of a PUBLISH beyond its payload: topic, properties
	aliasMax      = 64               // topic aliases of a client, each way
	stopPatience  = 10 * time.Second // for what is written down of a client that goes
	packetTimeout = 5 * time.Minute  // for a packet that has begun, of a client with a longer keep alive or none
)

// conn is one client's connection. Its goroutine reads and decides; what is sent goes out under out. Its parts are by who
// may touch them.
type conn struct {
	b     *Broker
	in    *entrance
	sock  wire
	src   source
	addr  string
	since time.Time
	by    time.Time     // when CONNECT must be here; it moves while the client is kept waiting
	cut   chan struct{} // closed when the connection was ended from outside, or the broker stops
	quit  chan struct{} // closed when no packet is handled any more

	party
	inbound
	mu   sync.Mutex // guards outbound
	free *sync.Cond
	outbound
	out sync.Mutex // one writer at a time

	pausing atomic.Pointer[pausing] // of the reader; see whileHere
}

// party is who the client is and what it asked for: set by CONNECT, and not changed after it.
type party struct {
	version   packet.Version
	clientID  string
	device    string                       // of the fleet; empty below a mount point
	peer      string                       // whom the certificate belongs to, wherever it comes in: a device, or claim/ and the name of a claim certificate
	uri       string                       // the source of its messages
	named     string                       // the device's name in the client's own world, ${device} of policies
	user      string                       // that has logged in
	rights    atomic.Pointer[policy.Judge] // what it may; made again when its registration changes
	keepAlive time.Duration
	sendMax   int // messages of QoS 1 and 2 that the client takes at once
	packetMax uint32
	terse     bool // the client wants no reasons in words (Request Problem Information, MQTT 5 §3.1.2.11.7)
	leaf      *x509.Certificate
	chain     []*x509.Certificate
	changes   uint64               // of what is admitted, before the certificate was
	claim     string               // the claim certificate's name; what such a client may is in claim.go
	web       *tls.ConnectionState // of WebSocket, until the client is admitted
	session   message.ID
	kept      *session.Session
	epoch     uint64
	will      *message.Message // nil once DISCONNECT has taken it back
	willID    message.ID
	willDelay time.Duration
	willLife  time.Duration
	willView  message.Subject // what policies are asked again when it is to be said
	expiry    uint32          // of the session, as CONNECT asked
	aliasMax  uint32          // topic aliases that the client takes
	joined    bool            // CONNACK was said; changed under mu
	allowed   *allowance      // of publish_rate; nil for any
	buried    *allowance      // of refused messages, once there was one; the reader's own
}

// inbound is the reading goroutine's own.
type inbound struct {
	scratch   *scratch // while there is something to read
	now       time.Time
	topic     topicInfo
	parked    time.Time // the deadline that is set while nothing comes; zero for another one
	bye       bool      // DISCONNECT came
	final     *uint32   // the session's expiry that came with it
	aliasesIn []string
	denials   []string // kinds of denials that were recorded
	noLocal   bool     // the session does not want to hear itself somewhere
}

// outbound is what is owed to the client, and what it owes, by any goroutine under conn.mu.
type outbound struct {
	acks         acks
	received     uint64
	sent         uint64
	heldBack     uint64
	ended        bool
	endWhy       message.Reason
	endErr       error
	parting      chan struct{} // made with ended by who is outside; closed when the client has been told why
	outID        uint16
	inflight     map[uint16]flight
	laden        atomic.Bool     // inflight is full
	counted      error           // what was refused, and ends the connection: it counts once
	asking       int             // requests for certificates under way
	answers      map[string]byte // QoS of their answers' topics that were subscribed to
	waiting      []waiting
	waitingBytes int
	aliasesOut   map[string]uint16
	more         bool // the queue may have more
	pumping      bool
	pumped       uint64 // up to which number of the queue all was looked at
	settling     bool
	done, recs   []uint64 // numbers that were acknowledged, and of which PUBREC came
	releases     []uint16
	receipts     []*message.Message // to be told of commands
	carried      []*carried         // the last ones; see follow
	proofs       []*message.Message // that commands of the session's queue were acknowledged, to be told with that
	command      uint64             // the mark of the last of them
	commanded    uint64             // of the one that was acknowledged last, of a session that keeps none
	halted       bool               // the broker stops: nothing more is read, and what was taken is acknowledged
	held         *[]func()          // keeps deliveries back, while SUBACK is on its way
	undelivered  []*session.Drawn   // of shared subscriptions, before CONNACK and since the connection was ended
	left         bool               // nobody takes them any more; see passOn
}

// serve is the connection's life until its client has been let in, and for WebSocket all of it. A goroutine that has gone
// through a handshake and a CONNECT has a stack that an idle connection does not need, so another one goes on.
func (c *conn) serve(tc *tls.Config) {
	err := c.live(tc)
	if errors.Is(err, errLetIn) {
		if _, tcp := c.sock.(*sock); tcp {
			c.b.group.Go(func() { c.finish(c.read(nil)) })
			return
		}
		err = c.read(nil)
	}
	c.finish(err)
}

// errLetIn ends the first part of a connection's life.
var errLetIn = errors.New("let in")

// finish is the end of it.
func (c *conn) finish(err error) {
	close(c.quit)
	if c.settleAtStop() {
		err = errHalted
	}
	_ = c.sock.SetReadDeadline(noDeadline)
	c.leave(err)
}

func (c *conn) live(tc *tls.Config) error {
	tcp, _ := c.sock.(*sock)
	if tcp != nil {
		if err := c.b.waitConnectRate(c.cut); err != nil {
			if message.ReasonOf(err, 0) == message.ConnectionLimit {
				c.recordRefusal("", "rate_limit", err)
			}
			return err
		}
	}
	// One deadline for all until CONNECT: slow bytes do not buy time.
	c.by = time.Now().Add(c.b.timeout)
	if err := c.sock.SetReadDeadline(c.by); err != nil {
		return err
	}
	if c.over() {
		return errHalted // the deadline just set may have replaced the one that was to wake us
	}
	var admitted error
	switch {
	case tcp == nil:
		c.src = newTLSSource(c.sock) // as with TLS, a frame has to be read before it is known
		if c.in.Auth == byCertificate {
			ctx, cancel := context.WithDeadline(context.Background(), c.by)
			defer cancel()
			if admitted = c.admit509(ctx, *c.web); c.leaf == nil {
				return admitted
			}
			c.web = nil
		}
	case tc == nil:
		c.src = plainSource{tcp}
	default:
		var err error
		if admitted, err = c.secure(tcp, tc); err != nil {
			return err
		}
	}
	return c.read(admitted)
}

// read takes packets off the connection until it ends. Between bursts it holds no buffer.
func (c *conn) read(admitted error) error {
	limit := uint32(connectMax)
	if c.joined {
		limit = c.packetLimit()
	}
	for before := c.joined; ; {
		if c.joined != before {
			return errLetIn
		}
		if c.joined {
			if err := c.parkDeadline(); err != nil {
				return c.readError(err) // closed meanwhile, and that has its reason
			}
			if c.over() { // the deadline just set may have replaced the one that was to wake us
				return io.EOF
			}
		}
		buf, n, err := c.src.await()
		if err != nil {
			return c.readError(err)
		}
		c.now = c.b.env.Now()
		c.scratch = scratches.Get().(*scratch)
		s := c.scratch
		s.data, s.begin, s.next, s.end = *buf, 0, 0, n
		packets, read := 0, n
		var due time.Time // for the packet that has begun
		for err == nil && s.begin < s.end {
			h, start, total, need, ferr := packet.Frame(s.data[s.begin:s.end], limit)
			if ferr != nil {
				err = ferr
				break
			}
			if !c.joined && h.Type != packet.CONNECT {
				err = &packet.Error{Code: packet.ProtocolError, Detail: "first packet is " + h.Type.String() + ", not CONNECT", Statement: "MQTT-3.1.0-1"}
				break
			}
			if total > 0 {
				s.next = s.begin + total
				err = c.packet(h, s.data[s.begin+start:s.next], admitted)
				s.begin = s.next
				packets++
				due = time.Time{}
				if c.joined {
					limit = c.packetLimit()
				}
				continue
			}
			// The rest is still to come.
			if s.begin > 0 {
				s.end = copy(s.data, s.data[s.begin:s.end])
				s.begin = 0
			}
			if need > len(s.data) {
				var bigger []byte
				if len(s.data) < bufferSize && need <= bufferSize {
					buf = pool.Get().(*[]byte)
					bigger = *buf
				} else {
					bigger = make([]byte, max(need, 2*len(s.data)))
				}
				copy(bigger, s.data[:s.end])
				s.data = bigger
			}
			if c.joined && due.IsZero() {
				c.parked, due = time.Time{}, time.Now().Add(c.packetTime())
				err = c.src.SetReadDeadline(due)
			}
			if err == nil && c.over() {
				err = io.EOF
			}
			if err == nil {
				n, err = c.src.Read(s.data[s.end:])
				s.end += n
				read += n
			}
			if err != nil {
				err = c.readError(err)
			}
		}
		if err == nil && c.bye {
			err = io.EOF
		}
		c.b.metrics.in(read, packets)
		give(buf)
		s.free()
		c.scratch = nil
		if err != nil {
			return err
		}
	}
}

// packetLimit is the largest packet a client that was let in may send.
func (c *conn) packetLimit() uint32 { return uint32(c.b.conf.MaxMessageBytes) + headroom }

// scratch is what a burst of packets is decoded into. Like the buffer, an idle connection has none.
type scratch struct {
	pub packet.Publish
	msg message.Message

	// What was read: the packet in hand is data[begin:next], and data[next:end] is behind it.
	data             []byte
	begin, next, end int
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func (s *scratch) free() {
	s.pub.Properties.Reset() // which gives the room of many properties back
	s.pub.Topic, s.pub.Payload, s.data = "", nil, nil
	s.msg = message.Message{Properties: s.msg.Properties[:0]}
	scratches.Put(s)
}

// over says whether the connection was ended from outside its goroutine.
func (c *conn) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended || c.halted
}

// parkDeadline is one and a half keep alives (MQTT 5 §3.1.2.10).
//
// A deadline that is far enough is left as it is, since a busy connection would set one for each burst; so it may be an
// eighth of the keep alive late.
func (c *conn) parkDeadline() error {
	if c.keepAlive == 0 {
		if c.parked.Equal(never) {
			return nil
		}
		c.parked = never
		return c.src.SetReadDeadline(noDeadline)
	}
	least := time.Now().Add(c.keepAlive + c.keepAlive/2)
	if c.parked.After(least) {
		return nil
	}
	c.parked = least.Add(c.keepAlive / 8)
	return c.src.SetReadDeadline(c.parked)
}

// packetTime is how long a packet may take: a part of one is none, so the keep alive goes on (MQTT-3.1.2-22).
func (c *conn) packetTime() time.Duration {
	if c.keepAlive == 0 {
		return packetTimeout
	}
	return min(c.keepAlive+c.keepAlive/2, packetTimeout)
}

// never stands for the deadline of a connection without keep alive.
var never = time.Unix(1<<40, 0)

func (c *conn) readError(err error) error {
	ended := c.over()
	switch {
	case ended, errors.Is(err, io.EOF):
		return io.EOF
	case errors.Is(c.sock.fault(), errSlow):
		return message.Reject(message.SlowConsumer, errSlow)
	case errors.Is(err, syscall.ETIMEDOUT): // TCP's own
		return message.Rejectf(message.ConnectionLost, "its machine has answered nothing for %s (tcp_timeout)", c.b.tcpTimeout)
	case timedOut(err) && !c.joined:
		return message.Rejectf(message.SlowHandshake, "no CONNECT within %s", c.b.timeout)
	case timedOut(err):
		return message.Rejectf(message.KeepAliveTimeout, "nothing came for 1.5 times the keep alive of %s, or a packet did not end", c.keepAlive)
	}
	return message.Reject(message.ConnectionLost, err)
}

// packet handles one packet.
func (c *conn) packet(h packet.Header, body []byte, admitted error) error {
	switch h.Type {
	case packet.PUBLISH:
		return c.publish(h, body)
	case packet.PINGREQ:
		if err := packet.DecodePing(h, body); err != nil {
			return err
		}
		return c.send(packet.AppendPingresp(nil))
	case packet.PUBACK, packet.PUBREC, packet.PUBCOMP, packet.PUBREL:
		var a packet.Ack
		if err := a.Decode(h, body, c.version); err != nil {
			return err
		}
		if h.Type == packet.PUBREL {
			return c.release(&a)
		}
		return c.acknowledged(&a)
	case packet.SUBSCRIBE:
		return c.subscribe(h, body)
	case packet.UNSUBSCRIBE:
		return c.unsubscribe(h, body)
	case packet.DISCONNECT:
		var d packet.Disconnect
		if err := d.Decode(h, body, c.version); err != nil {
			return err
		}
		if d.Properties.Has(packet.SessionExpiry) {
			e := d.Properties.Num(packet.SessionExpiry, 0)
			if e > 0 && c.expiry == 0 {
				return &packet.Error{Code: packet.ProtocolError, Detail: "DISCONNECT with a session expiry, and CONNECT had none", Statement: "MQTT-3.14.2-2"}
			}
			c.final = &e
		}
		if d.Code == packet.Success && c.will != nil { // any other code has it said (MQTT-3.14.4-3)
			c.will = nil
			id := c.willID
			c.b.group.Go(func() { c.b.dropWill(id) })
		}
		c.bye = true
		return nil
	case packet.CONNECT:
		if c.joined {
			return &packet.Error{Code: packet.ProtocolError, Detail: "a second CONNECT", Statement: "MQTT-3.1.0-2"}
		}
		return c.connect(h, body, admitted)
	}
	return &packet.Error{Code: packet.ProtocolError, Detail: h.Type.String() + " is not for a server, or was not asked for"}
}

// answer writes an answer out, or ends the connection where the client takes nothing so large (MQTT-3.1.2-24).
func (c *conn) answer(a *packet.SubAnswer) error {
	if n := a.Size(c.version); uint64(n) > uint64(c.packetMax) {
		return &packet.Error{Code: packet.PacketTooLarge, Statement: "MQTT-3.1.2-24",
			Detail: fmt.Sprintf("maximum packet size of %d: %s of %d bytes does not fit; ask for less at once", c.packetMax, a.Type, n)}
	}
	return c.send(a.Append(nil, c.version))
}

// send writes packets out. It does not block.
func (c *conn) send(b []byte) error {
	c.out.Lock()
	defer c.out.Unlock()
	c.b.metrics.out(b)
	_, err := c.src.Write(b)
	return err
}

// append says something for the broker itself; it is not waited for.
func (c *conn) append(m *message.Message) {
	a, err := c.b.door(context.Background(), m.Subject.Namespace())
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err = a.Append(ctx, m, nil, 0)
	}
	if err != nil {
		c.b.env.Log.Warn("tell of a client", "subject", m.Subject, "error", err)
	}
}

// show is the connection as operators see it.
func (c *conn) show() Connection {
	var subs []string
	for _, s := range c.kept.Subscriptions() { // before c.mu: the store's lock comes first
		subs = append(subs, fmt.Sprintf("%s (QoS %d)", s.Filter, s.QoS))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out := Connection{ClientID: c.clientID, Device: c.device, Address: c.addr, Since: c.since, Version: c.version.String(), TLS: c.in.secure(),
		Listener: c.in.Name, KeepAlive: int(c.keepAlive / time.Second), InFlight: c.acks.len(), Received: c.received, Sent: c.sent, HeldBack: c.heldBack, Subscriptions: subs}
	return out
}

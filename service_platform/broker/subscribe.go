package broker

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// subscription is what a client hears.
type subscription struct {
	filter   string
	patterns []message.Pattern
	qos      byte
	noLocal  bool
}

// delivery is a message that waits for the client to acknowledge others.
type delivery struct {
	m   *message.Message
	qos byte
}

const (
	subscriptionsMax = 256  // of a client
	waitingMax       = 1000 // messages for a client that does not acknowledge; live delivery only, so what is beyond is dropped
)

// subscribe answers a SUBSCRIBE.
func (c *conn) subscribe(h packet.Header, body []byte) error {
	var p packet.Subscribe
	if err := p.Decode(h, body, c.version); err != nil {
		return err
	}
	if len(p.Properties.SubscriptionIDs) > 0 {
		return &packet.Error{Code: packet.SubIDsNotSupported, Detail: "subscription identifiers are not supported; CONNACK says so"}
	}
	answer := packet.SubAnswer{Type: packet.SUBACK, ID: p.ID}
	granted := false
	for _, s := range p.Subscriptions {
		code, err := c.grant(s)
		if err != nil {
			c.b.refusals.add(refusal{reason: message.ReasonOf(err, message.TopicInvalid), detail: err, device: c.device,
				client: c.clientID, address: c.addr, topic: s.Filter})
		}
		granted = granted || !code.Failed()
		answer.Codes = append(answer.Codes, code)
	}
	if granted {
		// The tail is read from before the client is told, so it hears all that is said after that.
		if err := c.b.fan.enter(c); err != nil {
			return message.Reject(message.BusUnavailable, err)
		}
	}
	return c.send(answer.Append(nil, c.version))
}

func (c *conn) grant(s packet.Subscription) (packet.ReasonCode, error) {
	if err := packet.ValidTopicFilter(s.Filter); err != nil {
		return packet.TopicFilterInvalid, message.Reject(message.TopicInvalid, err)
	}
	if _, _, shared := packet.ParseShare(s.Filter); shared {
		return packet.SharedSubsNotSupported, message.Rejectf(message.Unsupported, "shared subscription %q", s.Filter)
	}
	patterns, err := message.FromFilter(strings.Clone(s.Filter))
	if err != nil {
		return packet.TopicFilterInvalid, message.Reject(message.TopicInvalid, err)
	}
	if err := c.maySubscribe(patterns); err != nil {
		return packet.NotAuthorized, err
	}
	sub := subscription{filter: strings.Clone(s.Filter), patterns: patterns, qos: min(s.QoS, 1), noLocal: s.NoLocal}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.subs {
		if c.subs[i].filter == sub.filter {
			c.subs[i] = sub
			return packet.ReasonCode(sub.qos), nil
		}
	}
	if len(c.subs) >= subscriptionsMax {
		return packet.QuotaExceeded, message.Rejectf(message.SessionLimit, "more than %d subscriptions", subscriptionsMax)
	}
	c.subs = append(c.subs, sub)
	return packet.ReasonCode(sub.qos), nil
}

// unsubscribe answers an UNSUBSCRIBE.
func (c *conn) unsubscribe(h packet.Header, body []byte) error {
	var p packet.Unsubscribe
	if err := p.Decode(h, body, c.version); err != nil {
		return err
	}
	answer := packet.SubAnswer{Type: packet.UNSUBACK, ID: p.ID}
	c.mu.Lock()
	for _, f := range p.Filters {
		code := packet.NoSubscriptionExisted
		for i := range c.subs {
			if c.subs[i].filter == f {
				c.subs = append(c.subs[:i:i], c.subs[i+1:]...)
				code = packet.Success
				break
			}
		}
		answer.Codes = append(answer.Codes, code)
	}
	none := len(c.subs) == 0
	c.mu.Unlock()
	if none {
		c.b.fan.leave(c)
	}
	return c.send(answer.Append(nil, c.version))
}

// puback frees a place for what waits.
func (c *conn) puback(h packet.Header, body []byte) error {
	var a packet.Ack
	if err := a.Decode(h, body, c.version); err != nil {
		return err
	}
	c.out.Lock()
	defer c.out.Unlock()
	c.mu.Lock()
	delete(c.inflight, a.ID)
	var b []byte
	for len(c.waiting) > 0 && len(c.inflight) < c.sendMax {
		d := c.waiting[0]
		c.waiting = c.waiting[1:]
		b = c.outgoing(b, d.m, d.qos)
	}
	c.mu.Unlock()
	if len(b) == 0 {
		return nil
	}
	_, err := c.src.Write(b)
	return err
}

// wants says whether, and how, the client hears a message. c.mu is held.
func (c *conn) wants(m *message.Message) (qos byte, ok bool) {
	for i := range c.subs {
		s := &c.subs[i]
		if s.noLocal && m.Source == c.uri {
			continue
		}
		for _, p := range s.patterns {
			if p.Matches(m.Subject) {
				qos, ok = max(qos, s.qos), true
				break
			}
		}
	}
	return min(qos, m.QoS), ok
}

// deliver sends a message to the client if it wants it. It does not block: what a client does not take is dropped, and
// counted, since a live subscription owes nothing.
func (c *conn) deliver(m *message.Message) {
	c.out.Lock()
	defer c.out.Unlock()
	c.mu.Lock()
	qos, ok := c.wants(m)
	if !ok || c.ended {
		c.mu.Unlock()
		return
	}
	if qos > 0 && len(c.inflight) >= c.sendMax {
		if len(c.waiting) >= waitingMax {
			c.mu.Unlock()
			c.b.refusals.add(refusal{reason: message.SlowConsumer, device: c.device, client: c.clientID, address: c.addr,
				detail: errors.New("a live message was dropped: the client acknowledges too slowly"), topic: m.Subject.Topic()})
			return
		}
		c.waiting = append(c.waiting, delivery{m.Clone(), qos})
		c.mu.Unlock()
		return
	}
	b := c.outgoing(nil, m, qos)
	c.mu.Unlock()
	if len(b) > 0 {
		_, _ = c.src.Write(b) // a connection that is gone ends its reader
	}
}

// outgoing writes the PUBLISH for a message. c.mu is held. Packet ids for what goes out are a space of their own.
func (c *conn) outgoing(b []byte, m *message.Message, qos byte) []byte {
	p := packet.Publish{QoS: qos, Topic: m.Subject.Topic(), Payload: m.Data}
	if qos > 0 {
		for {
			c.outID++
			if _, used := c.inflight[c.outID]; c.outID != 0 && !used {
				break
			}
		}
		p.ID = c.outID
	}
	if c.version == packet.V5 {
		q := &p.Properties
		if m.ContentType != "" {
			q.SetString(packet.ContentType, m.ContentType)
		}
		if m.ReplyTo != "" {
			q.SetString(packet.ResponseTopic, m.ReplyTo.Topic())
		}
		q.CorrelationData = m.Correlation
		if m.Text {
			q.Set(packet.PayloadFormat, 1)
		}
		if !m.Expires.IsZero() {
			left := m.Expires.Sub(c.b.env.Now())
			if left <= 0 {
				return b
			}
			q.Set(packet.MessageExpiry, uint32((left+time.Second-1)/time.Second))
		}
		for k, v := range m.Properties.All() {
			q.User = append(q.User, packet.UserProperty{Key: k, Value: v})
		}
	}
	if uint64(p.Size(c.version)) > uint64(c.packetMax) {
		return b // the client said that it takes nothing so large (MQTT-3.1.2-25)
	}
	if qos > 0 {
		if c.inflight == nil {
			c.inflight = map[uint16]struct{}{}
		}
		c.inflight[p.ID] = struct{}{}
	}
	c.sent++
	c.b.metrics.messages.WithLabelValues("out", string('0'+qos)).Inc()
	return p.Append(b, c.version)
}

// fan hands committed messages to live subscribers. The policy lets a device hear only its own subtree, so a message
// concerns the connections of one device, and a look into a map finds them.
type fan struct {
	b *Broker

	mu     sync.Mutex
	by     map[string]map[*conn]struct{} // device -> those of its connections that subscribed
	n      int
	cancel context.CancelFunc // of the tail's readers, while there are subscribers
	base   context.Context
	group  sync.WaitGroup
}

func newFan(b *Broker) *fan { return &fan{b: b, by: map[string]map[*conn]struct{}{}} }

func (f *fan) run(ctx context.Context) {
	f.mu.Lock()
	f.base = ctx
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	if f.cancel != nil {
		f.cancel()
	}
	f.mu.Unlock()
	f.group.Wait()
}

// enter has a connection's subscriptions served from now on.
func (f *fan) enter(c *conn) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	set := f.by[c.device]
	if set == nil {
		set = map[*conn]struct{}{}
		f.by[c.device] = set
	}
	if _, ok := set[c]; !ok {
		set[c] = struct{}{}
		f.n++
	}
	if f.cancel != nil {
		return nil
	}
	base := f.base
	if base == nil {
		base = context.Background()
	}
	ctx, cancel := context.WithCancel(base)
	ready := make(chan error, 1)
	f.group.Go(func() { f.follow(ctx, ready) })
	if err := <-ready; err != nil {
		cancel()
		return err
	}
	f.cancel = cancel
	return nil
}

func (f *fan) leave(c *conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if set := f.by[c.device]; set != nil {
		if _, ok := set[c]; ok {
			delete(set, c)
			f.n--
			if len(set) == 0 {
				delete(f.by, c.device)
			}
		}
	}
	if f.n == 0 && f.cancel != nil {
		f.cancel()
		f.cancel = nil
	}
}

// follow reads the tail of the devices' log, generation after generation.
func (f *fan) follow(ctx context.Context, ready chan<- error) {
	log, err := f.b.env.Bus.Log(ctx, message.Device, bus.LogOptions{})
	var info bus.LogInfo
	if err == nil {
		info, err = log.Info(ctx)
	}
	if err != nil {
		ready <- err
		return
	}
	done := uint32(0)
	for first := true; ctx.Err() == nil; first = false {
		if !first {
			if info, err = log.Info(ctx); err != nil || info.Generations[len(info.Generations)-1].Number <= done {
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
				continue
			}
		}
		g := info.Generations[len(info.Generations)-1]
		var group sync.WaitGroup
		for _, p := range g.Partitions {
			from := bus.Position{Generation: g.Number, Partition: p.Number}
			if first {
				from.Sequence = p.Last
			}
			r, err := log.Reader(ctx, from)
			if err != nil {
				f.b.env.Log.Warn("read the tail for subscribers", "error", err)
				continue
			}
			group.Go(func() { defer r.Close(); f.pump(ctx, r) })
		}
		if first {
			ready <- nil
		}
		group.Wait()
		done = g.Number
	}
}

func (f *fan) pump(ctx context.Context, r bus.Reader) {
	var m message.Message
	for {
		s, err := r.Next(ctx)
		if err != nil {
			return
		}
		if s.Err != nil {
			continue // counted by those who keep positions
		}
		for cursor := s.Batch.Cursor(); cursor.Next(&m); {
			f.mu.Lock()
			var to []*conn
			for c := range f.by[m.Device] {
				to = append(to, c)
			}
			f.mu.Unlock()
			for _, c := range to {
				c.deliver(&m)
			}
		}
	}
}

package broker

import (
	"errors"
	"strings"
	"time"

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
	c.b.metrics.out(len(b))
	_, err := c.src.Write(b)
	return err
}

// said tells whether a message that came through a broker's door is the client's own (No Local, MQTT-3.8.3-3). It looks
// at nothing that a client may set, such as the CloudEvents source: the device is written by the broker, and what the
// broker itself says of the device is on subjects that the device may not publish on.
func (c *conn) said(m *message.Message) bool {
	return m.Device == c.device && mayPublish(c.device, c.own, m.Subject) == nil
}

// wants says whether, and how, the client hears a message; door, whether it came through a broker's. c.mu is held.
func (c *conn) wants(m *message.Message, door bool) (qos byte, ok bool) {
	for i := range c.subs {
		s := &c.subs[i]
		if s.noLocal && door && c.said(m) {
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
func (c *conn) deliver(m *message.Message, door bool) {
	c.out.Lock()
	defer c.out.Unlock()
	c.mu.Lock()
	qos, ok := c.wants(m, door)
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
		c.b.metrics.out(len(b))
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

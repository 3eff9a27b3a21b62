package broker

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// topicInfo is what was found out about a topic; a device mostly repeats its last one.
type topicInfo struct {
	topic   string
	subject message.Subject
	typ     string
	door    bus.Appender
	denied  error // by policy
	invalid error
}

// look finds out about a topic.
func (c *conn) look(topic string) *topicInfo {
	if topic == c.topic.topic {
		return &c.topic
	}
	t := topicInfo{topic: strings.Clone(topic)}
	t.subject, t.invalid = message.FromTopic(t.topic)
	if t.invalid == nil {
		t.denied = mayPublish(c.device, c.own, t.subject)
		if k := c.b.env.Catalog.Find(t.subject); k != nil {
			t.typ = k.Type
		}
		if t.denied == nil {
			t.door, t.denied = c.b.door(context.Background(), t.subject.Namespace())
		}
	}
	c.topic = t
	return &c.topic
}

// mayPublish is the policy: a device speaks on its own subtree, and there not what only the platform says.
func mayPublish(device string, own message.Pattern, s message.Subject) error {
	if !own.Matches(s) {
		return message.Rejectf(message.ACLDenied, "%s may publish on %s only, not on %s", device, own, s)
	}
	rest := strings.Split(string(s), ".")[2:]
	last := rest[len(rest)-1]
	switch {
	case rest[0] == "presence":
		return message.Rejectf(message.ACLDenied, "presence is the broker's to tell, not %s's", device)
	case rest[0] == "command" && (len(rest) != 4 || last != "reply"):
		return message.Rejectf(message.ACLDenied, "%s answers commands (….reply) and gives none", device)
	case rest[0] == "twin" && (last == "accepted" || last == "rejected" || last == "delta" || last == "documents"):
		return message.Rejectf(message.ACLDenied, "%s is the twin's to say, not %s's", s, device)
	}
	return nil
}

// maySubscribe is the policy for filters: a device hears its own subtree.
func (c *conn) maySubscribe(patterns []message.Pattern) error {
	for _, p := range patterns {
		if !c.own.Covers(p) && p+".>" != c.own {
			return message.Rejectf(message.ACLDenied, "%s may subscribe to %s only, not to %s", c.device, c.own, p)
		}
	}
	return nil
}

// publish handles a PUBLISH. The message is copied into a batch that is being gathered; nothing here waits for the disk.
func (c *conn) publish(h packet.Header, body []byte) error {
	p := &c.pub
	if err := p.Decode(h, body, c.version); err != nil {
		return err
	}
	switch {
	case p.QoS == 2:
		return &packet.Error{Code: packet.QoSNotSupported, Detail: "QoS 2 is not supported; CONNACK says so", Statement: "MQTT-3.2.2-11"}
	case p.Retain && c.version == packet.V5:
		return &packet.Error{Code: packet.RetainNotSupported, Detail: "retained messages are not supported; CONNACK says so", Statement: "MQTT-3.2.2-14"}
	case p.Properties.Has(packet.TopicAlias):
		return &packet.Error{Code: packet.TopicAliasInvalid, Detail: "topic aliases are not supported; CONNACK says so", Statement: "MQTT-3.3.2-9"}
	case len(p.Properties.SubscriptionIDs) > 0:
		return &packet.Error{Code: packet.ProtocolError, Detail: "PUBLISH from a client with a subscription identifier", Statement: "MQTT-3.3.4-6"}
	}
	token, err := c.admit(p)
	if err == errRepeated {
		c.Settled() // if the first one was answered meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	if p.QoS == 0 {
		c.b.metrics.in0.Inc()
	} else {
		c.b.metrics.in1.Inc()
	}
	if len(p.Payload) > c.b.conf.MaxMessageBytes {
		return c.refuse(token, p, message.Rejectf(message.MessageTooLarge, "payload of %d bytes on %s; the limit is %d", len(p.Payload), p.Topic, c.b.conf.MaxMessageBytes))
	}
	t := c.look(p.Topic)
	if t.invalid != nil {
		return c.refuse(token, p, message.Reject(message.TopicInvalid, t.invalid))
	}
	if t.denied != nil {
		return c.refuse(token, p, t.denied)
	}
	if err := c.fill(&c.msg, p, t); err != nil {
		return c.refuse(token, p, err)
	}
	if err := t.door.Append(context.Background(), &c.msg, c, token); err != nil {
		return c.refuse(token, p, err)
	}
	return nil
}

// fill makes a message of a PUBLISH. It aliases the read buffer, since the appender copies.
func (c *conn) fill(m *message.Message, p *packet.Publish, t *topicInfo) error {
	*m = message.Message{
		ID: message.NewID(c.now), Subject: t.subject, Type: t.typ, Source: c.uri, Device: c.device, QoS: p.QoS, Retain: p.Retain,
		Data: p.Payload, Properties: m.Properties[:0],
	}
	if c.version == packet.V5 {
		if err := c.fillProperties(m, &p.Properties); err != nil {
			return err
		}
	}
	if m.Trace.ID.IsZero() {
		m.Trace = message.NewTrace(c.now)
	}
	return nil
}

// fillProperties takes over what MQTT 5 says beside the payload. The client's own properties are kept as they are; they
// are read as CloudEvents attributes only where `specversion` is among them (CloudEvents MQTT binding §3.1).
func (c *conn) fillProperties(m *message.Message, p *packet.Properties) error {
	m.ContentType, m.Correlation = p.ContentType, p.CorrelationData
	m.Text = p.Num(packet.PayloadFormat, 0) == 1
	if p.Has(packet.MessageExpiry) {
		m.Expires = c.now.Add(time.Duration(p.Num(packet.MessageExpiry, 0)) * time.Second)
	}
	if p.ResponseTopic != "" {
		s, err := message.FromTopic(p.ResponseTopic)
		if err != nil {
			return message.Reject(message.TopicInvalid, err)
		}
		m.ReplyTo = s
	}
	event := false
	for _, u := range p.User {
		m.Properties = m.Properties.Add(u.Key, u.Value)
		switch u.Key {
		case "specversion":
			event = true
		case "traceparent":
			t, err := message.ParseTraceparent(u.Value)
			if err != nil {
				c.b.metrics.badTrace.Inc()
				c.b.env.Log.Debug("a traceparent cannot be read; the message got a new one", "device", c.device, "error", err)
				continue
			}
			m.Trace = t
		}
	}
	if !event {
		return nil
	}
	for _, u := range p.User {
		switch u.Key {
		case "type":
			m.Type = u.Value
		case "source":
			m.Source = u.Value
		case "dataschema":
			m.Schema = u.Value
		case "time":
			if at, err := time.Parse(time.RFC3339Nano, u.Value); err == nil {
				m.Time = at
			}
		}
	}
	return nil
}

// keepWill takes a will, under the same policy as a PUBLISH.
func (c *conn) keepWill(w *packet.Will) error {
	switch {
	case w.QoS == 2:
		return &packet.Error{Code: packet.QoSNotSupported, Detail: "will with QoS 2, which is not supported"}
	case w.Retain:
		return &packet.Error{Code: packet.RetainNotSupported, Detail: "retained will, which is not supported"}
	case len(w.Payload) > c.b.conf.MaxMessageBytes:
		return message.Rejectf(message.MessageTooLarge, "will of %d bytes; the limit is %d", len(w.Payload), c.b.conf.MaxMessageBytes)
	}
	p := packet.Publish{QoS: w.QoS, Topic: w.Topic, Payload: w.Payload, Properties: w.Properties}
	t := c.look(w.Topic)
	if err := errors.Join(t.invalid, t.denied); err != nil {
		return err
	}
	var m message.Message
	if err := c.fill(&m, &p, t); err != nil {
		return err
	}
	if err := c.b.env.Check(&m); err != nil {
		return err
	}
	c.will = m.Clone()
	c.will.ID = message.ID{} // minted when it is said
	return nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of our own
	}
	return b
}

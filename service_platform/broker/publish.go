package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/device"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/policy"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// topicInfo is what was found out about a topic; a device mostly repeats its last one.
type topicInfo struct {
	topic   string
	judge   *policy.Judge // who was asked
	view    message.Subject
	subject message.Subject
	device  string // that a message there is from or about
	typ     string
	reply   bool // of the device to a command
	door    bus.Appender
	denied  error // by policy, or since there is no door
	invalid error
}

// look finds out about a topic.
func (c *conn) look(topic string) *topicInfo {
	j := c.rights.Load()
	if topic == c.topic.topic && j == c.topic.judge {
		return &c.topic
	}
	t := topicInfo{topic: strings.Clone(topic), judge: j, device: c.device}
	t.view, t.subject, t.invalid = c.in.names(t.topic)
	if t.invalid == nil {
		t.denied = c.mayPublish(j, t.view, t.subject)
		if (c.in.mount == "" || unmounted(topic)) && strings.HasPrefix(string(t.subject), message.Device+".") {
			t.device = t.subject.Token(1) // whoever says it: what concerns a device keeps its order with the rest
		}
		if of, _, _, reply, ok := device.Command(t.subject); ok && reply && of == c.device {
			t.reply = true
		}
		if k := c.b.env.Catalog.Find(t.subject); k != nil {
			t.typ = k.Type
		}
		if t.denied == nil {
			var err error
			if t.door, err = c.b.door(context.Background(), t.subject.Namespace()); err != nil {
				t.denied = err
				return &t // it may be there the next time
			}
		}
	}
	c.topic = t
	return &c.topic
}

// mayPublish asks the policies. Whatever these say, nobody speaks for the platform's own components, nor for the broker.
func (c *conn) mayPublish(j *policy.Judge, view, subject message.Subject) error {
	if err := c.denial(j, policy.Publish, message.Pattern(view)); err != nil {
		return err
	}
	return platformsOwn(subject)
}

// platformsOwn refuses what no client says.
func platformsOwn(subject message.Subject) error {
	switch first, _, _ := strings.Cut(string(subject), "."); first {
	case message.ServicePlatform, message.DataPlatform, message.Operator, sysRoot:
		return &denied{message.Rejectf(message.ACLDenied, "%s is the platform's own to speak under, whatever policies allow", first), "publish " + first}
	}
	return nil
}

// publish handles a PUBLISH. The message is copied into a batch that is being gathered; nothing here waits for the disk.
func (c *conn) publish(h packet.Header, body []byte) error {
	p := &c.scratch.pub
	if err := p.Decode(h, body, c.version); err != nil {
		return err
	}
	if len(p.Properties.SubscriptionIDs) > 0 {
		return &packet.Error{Code: packet.ProtocolError, Detail: "PUBLISH from a client with a subscription identifier", Statement: "MQTT-3.3.4-6"}
	}
	if p.Properties.Has(packet.TopicAlias) {
		if err := c.aliasIn(p); err != nil {
			return err
		}
	}
	if err := c.keepRate(len(body)); err != nil {
		return err
	}
	token, err := c.admit(p)
	if err == errRepeated {
		c.Settled() // if the first one was answered meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	c.b.metrics.from[p.QoS].Inc()
	if c.claim != "" {
		return c.publishClaim(token, p)
	}
	if p.QoS == 2 {
		if again, err := c.again(token, p); again || err != nil {
			return err
		}
	}
	if len(p.Payload) > c.b.conf.MaxMessageBytes {
		return c.refuse(token, p, message.Rejectf(message.MessageTooLarge, "payload of %d bytes on %s; the limit is %d", len(p.Payload), p.Topic, c.b.conf.MaxMessageBytes))
	}
	t := c.look(p.Topic)
	if t.invalid != nil {
		return c.refuse(token, p, message.Reject(message.TopicInvalid, t.invalid))
	}
	if t.denied != nil {
		c.recordDenial(t.denied)
		return c.refuse(token, p, t.denied)
	}
	if err := c.fill(&c.scratch.msg, p, t); err != nil {
		return c.refuse(token, p, err)
	}
	if p.QoS == 2 || c.noLocal {
		if !c.name(token, p) {
			return errEnded
		}
	}
	switch err := c.put(t.door, token); {
	case err == errEnded:
		return err
	case err != nil:
		return c.refuse(token, p, err)
	}
	return nil
}

// aliasIn resolves or sets a topic alias (MQTT 5 §3.3.2.3.4).
func (c *conn) aliasIn(p *packet.Publish) error {
	a := int(p.Properties.Num(packet.TopicAlias, 0))
	switch {
	case a == 0 || a > aliasMax:
		return &packet.Error{Code: packet.TopicAliasInvalid, Detail: fmt.Sprintf("topic alias %d; CONNACK allows 1 to %d", a, aliasMax), Statement: "MQTT-3.3.2-9"}
	case p.Topic != "":
		if c.aliasesIn == nil {
			c.aliasesIn = make([]string, aliasMax+1)
		}
		c.aliasesIn[a] = strings.Clone(p.Topic)
	case c.aliasesIn == nil || c.aliasesIn[a] == "":
		return &packet.Error{Code: packet.TopicAliasInvalid, Detail: fmt.Sprintf("topic alias %d has no topic yet", a), Statement: "MQTT-3.3.2-7"}
	default:
		p.Topic = c.aliasesIn[a]
	}
	return nil
}

// again answers a QoS 2 message that came before and whose PUBREL did not: it is acknowledged, and goes nowhere
// (MQTT-4.3.3-10).
func (c *conn) again(token uint64, p *packet.Publish) (bool, error) {
	state := c.kept.Received(p.ID)
	switch state {
	case session.Unknown:
		return false, nil
	case session.Pending:
		return true, message.Rejectf(message.BusUnavailable, "packet identifier %d of an earlier connection is not stored yet; send it again", p.ID)
	}
	c.mu.Lock()
	c.acks.at(token).done = true
	c.mu.Unlock()
	c.Settled()
	return true, nil
}

// name has the message name its session, where the session must know it again. It gives false where the session has
// another connection by now.
func (c *conn) name(token uint64, p *packet.Publish) bool {
	c.scratch.msg.Client = c.kept.Name()
	if p.QoS != 2 {
		return true
	}
	c.scratch.msg.Packet = p.ID
	if !c.kept.Receive(c.epoch, p.ID, c.scratch.msg.ID) {
		return false
	}
	c.mu.Lock()
	c.acks.at(token).mid = c.scratch.msg.ID
	c.mu.Unlock()
	return true
}

// fill makes a message of a PUBLISH. It aliases the read buffer, since the appender copies.
func (c *conn) fill(m *message.Message, p *packet.Publish, t *topicInfo) error {
	*m = message.Message{
		ID: message.NewID(c.now), Subject: t.subject, Type: t.typ, Source: c.uri, Device: t.device, QoS: p.QoS, Retain: p.Retain,
		Data: p.Payload, Properties: m.Properties[:0],
	}
	if c.version == packet.V5 {
		if err := c.fillProperties(m, &p.Properties); err != nil {
			return err
		}
	}
	if t.reply {
		c.follow(m)
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
		view, s, err := c.in.names(p.ResponseTopic)
		if err != nil {
			return message.Reject(message.TopicInvalid, err)
		}
		if _, _, _, reply, ok := device.Command(m.Subject); ok && !reply { // the platform answers there in the sender's place
			if err := c.mayPublish(c.rights.Load(), view, s); err != nil {
				c.recordDenial(err)
				return err
			}
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
			if !strings.HasPrefix(u.Value, message.OwnSource) { // nobody passes himself off as another client, or as a rule
				m.Source = u.Value
			}
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

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of our own
	}
	return b
}

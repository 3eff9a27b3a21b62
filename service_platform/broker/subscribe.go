package broker

import (
	"context"
	"errors"
	"strings"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/policy"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// levelsMax is how deep a filter may be: each level is remembered.
const levelsMax = 128

// subscribe answers a SUBSCRIBE.
func (c *conn) subscribe(h packet.Header, body []byte) error {
	var p packet.Subscribe
	if err := p.Decode(h, body, c.version); err != nil {
		return err
	}
	if c.claim != "" {
		return c.subscribeClaim(&p)
	}
	answer := packet.SubAnswer{Type: packet.SUBACK, ID: p.ID, Codes: make([]packet.ReasonCode, len(p.Subscriptions))}
	var why []error // of what is not granted
	var list []*session.Subscription
	var place []int // of each in the answer
	for i, s := range p.Subscriptions {
		sub, code, err := c.grant(s)
		answer.Codes[i] = code
		if err != nil {
			c.notGranted(s.Filter, err)
			c.recordDenial(err)
			why = append(why, err)
			continue
		}
		if len(p.Properties.SubscriptionIDs) > 0 {
			sub.ID = p.Properties.SubscriptionIDs[0]
		}
		list, place = append(list, sub), append(place, i)
	}
	// What is delivered without a queue comes behind SUBACK: some clients know their subscriptions only then.
	var after []func()
	c.holdBack(&after)
	defer c.letGo(&after)
	if len(list) > 0 {
		failed, err := c.kept.Subscribe(context.Background(), list)
		if err != nil {
			return message.Reject(message.ReasonOf(err, message.ServerStopping), err)
		}
		for i, err := range failed {
			if err != nil {
				answer.Codes[place[i]] = packet.QuotaExceeded
				c.notGranted(list[i].Filter, err)
				why = append(why, err)
			}
		}
		c.noLocal = c.kept.HasNoLocal()
	}
	if c.version != packet.V5 {
		for i, code := range answer.Codes {
			if code.Failed() {
				answer.Codes[i] = packet.UnspecifiedError // the only one 3.1.1 has (MQTT-3.9.3-2)
			}
		}
	} else if len(why) > 0 && !c.terse {
		answer.Properties.SetString(packet.ReasonString, reasonString(errors.Join(why...)))
		if uint64(answer.Size(c.version)) > uint64(c.packetMax) {
			answer.Properties.Reset() // MQTT-3.9.2-1
		}
	}
	c.listens()
	return c.answer(&answer)
}

// holdBack keeps what is delivered now until letGo; wake-ups go on.
func (c *conn) holdBack(after *[]func()) { c.mu.Lock(); c.held = after; c.mu.Unlock() }

func (c *conn) letGo(after *[]func()) {
	for { // what comes meanwhile is held back too, or it would overtake
		c.mu.Lock()
		list := *after
		*after = nil
		if len(list) == 0 {
			c.held = nil
		}
		c.mu.Unlock()
		if len(list) == 0 {
			return
		}
		for _, f := range list {
			f()
		}
	}
}

func (c *conn) notGranted(filter string, err error) {
	c.b.refusals.add(refusal{reason: message.ReasonOf(err, message.TopicInvalid), detail: err, device: c.device, client: c.clientID, address: c.addr, topic: filter})
}

func (c *conn) grant(s packet.Subscription) (*session.Subscription, packet.ReasonCode, error) {
	if err := packet.ValidTopicFilter(s.Filter); err != nil {
		return nil, packet.TopicFilterInvalid, message.Reject(message.TopicInvalid, err)
	}
	if n := strings.Count(s.Filter, "/"); n > levelsMax {
		return nil, packet.QuotaExceeded, message.Rejectf(message.TopicInvalid, "a filter of %d levels; this broker takes %d", n+1, levelsMax)
	}
	group, inner, _ := packet.ParseShare(s.Filter)
	of, err := c.in.selects(strings.Clone(inner))
	if err != nil {
		return nil, packet.TopicFilterInvalid, message.Reject(message.TopicInvalid, err)
	}
	if err := c.denial(c.rights.Load(), policy.Subscribe, of.view...); err != nil {
		return nil, packet.NotAuthorized, err
	}
	return &session.Subscription{Filter: strings.Clone(s.Filter), Share: strings.Clone(group), Select: of.of, QoS: s.QoS, NoLocal: s.NoLocal,
		AsPublished: s.RetainAsPublished, Retained: s.RetainHandling, Hidden: of.hidden, AWS: of.aws}, packet.ReasonCode(s.QoS), nil
}

// unsubscribe answers an UNSUBSCRIBE.
func (c *conn) unsubscribe(h packet.Header, body []byte) error {
	var p packet.Unsubscribe
	if err := p.Decode(h, body, c.version); err != nil {
		return err
	}
	if c.claim != "" {
		return c.unsubscribeClaim(&p)
	}
	existed, err := c.kept.Unsubscribe(context.Background(), p.Filters)
	if err != nil {
		return message.Reject(message.ReasonOf(err, message.ServerStopping), err)
	}
	c.noLocal = c.kept.HasNoLocal()
	answer := packet.SubAnswer{Type: packet.UNSUBACK, ID: p.ID}
	for _, there := range existed {
		code := packet.NoSubscriptionExisted
		if there {
			code = packet.Success
		}
		answer.Codes = append(answer.Codes, code)
	}
	return c.answer(&answer)
}

package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/message/operator"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// A PUBLISH that an MQTT 3.1.1 client may not say has no answer of its own: the version has no word for a refusal. Closed
// for it, a client says the same again, for ever; acknowledged, and gone, it would be a message without a fate. So it is
// acknowledged when it lies among the dead letters, with its reason and its payload.

// buryPace is how fast one client's refused messages are taken. Beyond it the client is read more slowly: one that says
// nothing but what is refused must not fill the list that others' letters are in. A hundred may come at once.
var buryPace = &pace{message: 100 * time.Millisecond, octet: time.Microsecond, burst: 10 * time.Second}

// mayBury says whether a refused message is acknowledged and kept as a dead letter.
func (c *conn) mayBury() bool {
	return c.claim == "" && c.version != packet.V5 && c.in.Refused == refusedAck // what a claim's holder says may be secret
}

// bury appends the dead letter; the acknowledgement follows when it is on disk, in the order of the others.
func (c *conn) bury(token uint64, p *packet.Publish, t *topicInfo, why error) error {
	if err := c.keepBuryPace(len(p.Payload)); err != nil {
		return err
	}
	original := new(message.Message)
	if err := c.fill(original, p, t); err != nil {
		return err
	}
	if c.device != "" {
		original.Device = c.device // who said it, whomever the topic names: the letter is a trouble of the sender's
	}
	if t.invalid != nil {
		original.Subject = message.NewSubject(message.ThirdParty, p.Topic) // it has none; this says which topic was meant
	}
	door, err := c.b.door(context.Background(), message.Operator)
	if err != nil {
		return message.Reject(message.BusUnavailable, err)
	}
	letter := func(detail string) error {
		now := c.b.env.Now()
		data, err := json.Marshal(operator.Dead{Reason: message.ReasonOf(why, message.ACLDenied), Detail: detail, Component: c.b.env.Spec.Name, Attempts: 1,
			First: now, Last: now, Original: message.AppendRecord(nil, original)})
		if err != nil {
			return err
		}
		m := &c.scratch.msg
		*m = message.Message{Subject: operator.DeadSubject(c.b.env.Spec.Name), ContentType: "application/json", Data: data, Properties: m.Properties[:0]}
		c.b.env.Mint(m)
		if err := m.Follow(original); err != nil {
			return err
		}
		// Sent again before its PUBREL, it is known as any other message of QoS 2 is, and makes no second letter.
		if p.QoS == 2 && !c.kept.Receive(c.epoch, p.ID, m.ID) {
			return errEnded
		}
		c.mu.Lock()
		s := c.acks.at(token)
		s.retain = false // the letter is not
		if p.QoS == 2 {
			s.mid = m.ID
		}
		c.mu.Unlock()
		err = c.put(door, token)
		if err != nil && err != errEnded { // of that put has taken it back
			c.notReceived(token)
		}
		return err
	}
	err = letter(why.Error())
	if message.ReasonOf(err, 0) == message.MessageTooLarge && len(original.Data) > 0 {
		detail := fmt.Sprintf("%v; its %d bytes of data are too large for a dead letter, and are not in it", why, len(original.Data))
		original.Data = nil
		err = letter(detail)
	}
	if errors.Is(err, bus.ErrClosed) {
		return message.Reject(message.ServerStopping, err)
	}
	return err
}

// keepBuryPace waits until the client's refused message may be taken.
func (c *conn) keepBuryPace(bytes int) error {
	if c.buried == nil {
		who := session.Who{Mount: c.in.Mount, Identity: c.kept.Who().Identity, ClientID: c.clientID}
		if who.Identity != "" {
			who.ClientID = ""
		}
		c.buried = c.b.allowances.take("refused\x00"+c.in.Name+"\x00"+who.Key(), buryPace)
	}
	return c.keepTo(c.buried, bytes)
}

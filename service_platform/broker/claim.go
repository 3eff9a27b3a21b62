package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// Doorkeeper is what an Admission may be beyond admitting: one that records every attempt, and that gives devices their
// certificates over MQTT, for which they come with a claim certificate (AWS IoT's fleet provisioning).
type Doorkeeper interface {
	// AdmitPeer is Admit with all that is known of the client; where claim is not empty, it is no device but the holder
	// of that claim certificate.
	AdmitPeer(ctx context.Context, address string, s tls.ConnectionState) (device, claim string, err error)
	// RecheckPeer says whether a connection that is there may stay, and records one that may not.
	RecheckPeer(ctx context.Context, address, clientID string, s tls.ConnectionState) error
	// RefusePeer records what the broker has refused itself.
	RefusePeer(address, clientID string, s tls.ConnectionState, step string, err error)
	// ClaimMayPublish and ClaimMaySubscribe are all that the holder of a claim certificate may.
	ClaimMayPublish(topic string) bool
	ClaimMaySubscribe(filter string) bool
	// DeviceOf says what is registered of a certificate's device, for policies: the name of its own policy, its groups and
	// attributes, which must not be changed. known is false where nothing is, or not any more.
	DeviceOf(leaf *x509.Certificate) (policy string, groups []string, attributes map[string]string, known bool)
	// ProvisionPeer answers such a request. The answer may hold a private key: it goes to that connection alone.
	ProvisionPeer(ctx context.Context, address, clientID string, leaf *x509.Certificate, topic string, payload []byte) (answerTopic string, answer []byte)
}

// claimPeer is in front of a claim certificate's name where it stands beside devices' ids, which hold no slash.
const claimPeer = "claim/"

const (
	provisionsMax = 4                // requests of one connection under way
	provisionTime = 15 * time.Second // for one, an approval hook among it
)

// admit509 asks who a certificate belongs to.
func (c *conn) admit509(ctx context.Context, s tls.ConnectionState) error {
	certs := s.PeerCertificates
	if len(certs) == 0 {
		return message.Rejectf(message.CertMissing, "no client certificate")
	}
	c.leaf, c.chain, c.changes = certs[0], certs[1:], c.b.changes.Load()
	var err error
	if k := c.b.keeper; k != nil {
		c.device, c.claim, err = k.AdmitPeer(ctx, c.addr, s)
	} else {
		c.device, err = c.b.admission.Admit(ctx, c.leaf, c.chain)
	}
	if c.peer = c.device; c.claim != "" {
		c.peer = claimPeer + c.claim
	}
	return err
}

// recordRefusal tells the recorder of admissions what the broker itself has refused.
func (c *conn) recordRefusal(clientID, step string, err error) {
	k := c.b.keeper
	if k == nil || c.in.Auth != byCertificate {
		return
	}
	var s tls.ConnectionState
	if c.leaf != nil {
		s.PeerCertificates = append([]*x509.Certificate{c.leaf}, c.chain...)
	}
	k.RefusePeer(c.addr, clientID, s, step, err)
}

// denialsMax is how many kinds of denials of one connection are recorded; all are counted as refused.
const denialsMax = 16

// recordDenial does so for what policy denies, once for each kind on a connection.
func (c *conn) recordDenial(err error) {
	if message.ReasonOf(err, 0) != message.ACLDenied {
		return
	}
	if kind := kindOf(err); len(c.denials) < denialsMax && !slices.Contains(c.denials, kind) {
		c.denials = append(c.denials, kind)
		c.recordRefusal(c.clientID, "policy", err)
	}
}

// identifyClaim is identify for the holder of a claim certificate: any client id, and no session beyond the connection.
func (c *conn) identifyClaim(p *packet.Connect) (session.Who, packet.ReasonCode, error) {
	who := session.Who{Identity: claimPeer + c.claim, ClientID: strings.Clone(p.ClientID)}
	if who.ClientID == "" {
		who.ClientID = "naru-" + message.NewID(c.now).String()
	}
	if p.Will != nil {
		return who, packet.NotAuthorized, message.Rejectf(message.ACLDenied, "a claim certificate has no will to leave")
	}
	c.device = ""
	return who, 0, nil
}

// answersMax is how many answers' topics a connection of a claim certificate may hear: there are four of each template, and two
// ways to a certificate.
const answersMax = 64

// subscribeClaim grants the answers' topics, which nobody else ever hears.
func (c *conn) subscribeClaim(p *packet.Subscribe) error {
	answer := packet.SubAnswer{Type: packet.SUBACK, ID: p.ID}
	c.mu.Lock()
	for _, s := range p.Subscriptions {
		if !c.b.keeper.ClaimMaySubscribe(s.Filter) {
			answer.Codes = append(answer.Codes, packet.NotAuthorized)
			continue
		}
		if _, again := c.answers[s.Filter]; !again && len(c.answers) >= answersMax {
			answer.Codes = append(answer.Codes, packet.QuotaExceeded)
			continue
		}
		if c.answers == nil {
			c.answers = map[string]byte{}
		}
		c.answers[strings.Clone(s.Filter)] = min(s.QoS, 1)
		answer.Codes = append(answer.Codes, packet.ReasonCode(min(s.QoS, 1)))
	}
	c.mu.Unlock()
	for i, code := range answer.Codes {
		if code.Failed() {
			err := message.Rejectf(message.ACLDenied, "claim certificate %s may hear its answers only, not %s", c.claim, readable(p.Subscriptions[i].Filter))
			if code == packet.QuotaExceeded {
				err = message.Rejectf(message.ACLDenied, "claim certificate %s hears %d topics already, and %s would be one more", c.claim, answersMax, readable(p.Subscriptions[i].Filter))
			}
			c.notGranted(p.Subscriptions[i].Filter, err)
			c.recordDenial(err)
			if c.version != packet.V5 {
				answer.Codes[i] = packet.UnspecifiedError
			}
		}
	}
	return c.answer(&answer)
}

// unsubscribeClaim takes answers' topics back.
func (c *conn) unsubscribeClaim(p *packet.Unsubscribe) error {
	answer := packet.SubAnswer{Type: packet.UNSUBACK, ID: p.ID}
	c.mu.Lock()
	for _, filter := range p.Filters {
		code := packet.NoSubscriptionExisted
		if _, there := c.answers[filter]; there {
			code = packet.Success
			delete(c.answers, filter)
		}
		answer.Codes = append(answer.Codes, code)
	}
	c.mu.Unlock()
	return c.answer(&answer)
}

// publishClaim takes a request for a certificate. It goes to no log, and neither does its answer.
func (c *conn) publishClaim(token uint64, p *packet.Publish) error {
	if !c.b.keeper.ClaimMayPublish(p.Topic) || p.QoS == 2 || p.Retain {
		err := message.Rejectf(message.ACLDenied, "claim certificate %s may ask for certificates only, with QoS 0 or 1, and not publish on %s", c.claim, readable(p.Topic))
		c.recordDenial(err)
		return c.refuse(token, p, err)
	}
	c.mu.Lock()
	full := c.asking >= provisionsMax
	if !full {
		c.asking++
	}
	c.mu.Unlock()
	if full {
		return c.refuse(token, p, message.Rejectf(message.ACLDenied, "claim certificate %s has %d requests under way already", c.claim, provisionsMax))
	}
	topic, payload := strings.Clone(p.Topic), bytes.Clone(p.Payload)
	c.b.group.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), provisionTime)
		defer cancel()
		to, answer := c.b.keeper.ProvisionPeer(ctx, c.addr, c.clientID, c.leaf, topic, payload)
		c.mu.Lock()
		c.asking--
		qos, wanted := c.answers[to]
		c.mu.Unlock()
		subject, err := message.FromTopic(to)
		if wanted && err == nil {
			c.Deliver(&message.Message{Subject: subject, ContentType: "application/json", Data: answer}, session.Options{QoS: qos})
		}
	})
	if token == noAck {
		return nil
	}
	c.mu.Lock()
	c.acks.at(token).done = true
	c.mu.Unlock()
	c.Settled()
	return nil
}

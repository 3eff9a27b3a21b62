package broker

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// connect answers a CONNECT.
func (c *conn) connect(h packet.Header, body []byte, admitted error) error {
	var p packet.Connect
	err := p.Decode(h, body)
	c.version = p.Version
	if err != nil {
		if p.Version != packet.V311 && p.Version != packet.V5 {
			c.version = packet.V311 // an older client understands only that
		}
		var pe *packet.Error
		// A CONNECT that is none has no answer in 3.1.1, which has no code for it (MQTT-3.1.4-1, MQTT-3.2.2-6 of 3.1.1).
		if errors.As(err, &pe) && (c.version == packet.V5 || pe.Code == packet.UnsupportedProtocolVersion) {
			c.refuseConnect(pe.Code, err)
		}
		return err
	}
	c.packetMax = packet.LengthMax
	if c.version == packet.V5 {
		c.packetMax = p.Properties.Num(packet.MaximumPacketSize, packet.LengthMax)
	}
	refuse := func(code packet.ReasonCode, err error) error {
		if admitted == nil { // else it has been recorded
			step := "connect"
			if message.ReasonOf(err, 0) == message.ClientIDMismatch {
				step = "client_id"
			}
			c.recordRefusal(p.ClientID, step, err)
		}
		c.refuseConnect(code, err)
		return err
	}
	c.clientID = ""
	if admitted != nil {
		return refuse(packet.NotAuthorized, admitted)
	}
	if p.Properties.Has(packet.AuthenticationMethod) {
		return refuse(packet.BadAuthenticationMethod, message.Rejectf(message.Unsupported, "authentication method %q; there is no enhanced authentication here", readable(p.Properties.AuthMethod)))
	}
	if c.version != packet.V5 && p.ClientID == "" && !p.CleanStart {
		return refuse(packet.ClientIDNotValid, message.Rejectf(message.ClientIDMismatch, "no client id, and a session that is to be kept")) // MQTT-3.1.3-8 of 3.1.1
	}
	identify := c.identify
	if c.claim != "" {
		identify = c.identifyClaim
	}
	who, code, err := identify(&p)
	if err != nil {
		return refuse(code, err)
	}
	c.uri = message.ClientSource(c.device, who.ClientID)
	keepAlive := int(p.KeepAlive)
	if most := int(c.in.most / time.Second); most > 0 && (keepAlive == 0 || keepAlive > most) && c.version != packet.V5 {
		return refuse(packet.ClientIDNotValid, message.Rejectf(message.Unsupported, "keep alive of %d s; listener %s allows 1 to %d", keepAlive, c.in.Name, most))
	}
	if most := c.keepAliveMax(); most > 0 && (keepAlive == 0 || keepAlive > most) && c.version == packet.V5 {
		keepAlive = most // and the client has to use it (MQTT-3.1.2-21)
	}
	c.keepAlive = time.Duration(keepAlive) * time.Second
	c.sendMax = 65535
	c.expiry = session.Never
	if p.CleanStart {
		c.expiry = 0
	}
	if c.version == packet.V5 {
		c.expiry = p.Properties.Num(packet.SessionExpiry, 0)
		c.sendMax = int(p.Properties.Num(packet.ReceiveMaximum, 65535))
		c.aliasMax = min(p.Properties.Num(packet.TopicAliasMaximum, 0), aliasMax)
		c.terse = p.Properties.Num(packet.RequestProblemInfo, 1) == 0
	}
	if c.claim != "" {
		p.CleanStart, c.expiry = true, 0
	}
	c.allow(who)
	name := who.ClientID
	c.clientID = name // for what is told of a refusal
	if p.Will != nil {
		if err := c.readWill(p.Will); err != nil {
			code := packet.NotAuthorized
			if c.version == packet.V5 {
				code = ackCode(message.ReasonOf(err, message.ACLDenied))
			}
			var pe *packet.Error
			if errors.As(err, &pe) {
				code = pe.Code
			}
			return refuse(code, err)
		}
	}
	if err := c.waitTurn(who); err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(context.Background(), c.by)
	defer cancel()
	kept, epoch, present, err := c.b.store.Connect(ctx, who, c.in.caps, p.CleanStart, c.expiry, c)
	if message.ReasonOf(err, 0) == message.TakenOver && c.HungUp() {
		return io.EOF // its client did not wait, and has come again elsewhere: nobody was refused
	}
	if err != nil {
		code := packet.ServerUnavailable
		if message.ReasonOf(err, 0) == message.SessionLimit {
			code = packet.QuotaExceeded
		}
		return refuse(code, err)
	}
	c.kept, c.epoch, c.session = kept, epoch, kept.ID()
	c.b.keepQuiet(c.session)
	if c.claim == "" {
		if err := c.review(ctx); err != nil {
			c.will = nil
			_, _ = kept.Disconnect(context.WithoutCancel(ctx), epoch, nil)
			return refuse(packet.ServerUnavailable, err)
		}
	}
	if c.will != nil {
		c.willID = message.NewID(c.now)
		w := session.Will{ID: c.willID, Session: c.session, Delay: c.willDelay, Life: c.willLife, Message: c.will}
		if err := c.b.store.KeepWill(ctx, w); err != nil {
			c.will = nil
			c.joined = false
			_, _ = kept.Disconnect(context.WithoutCancel(ctx), epoch, nil) // it was not said to be there
			return refuse(packet.ServerUnavailable, err)
		}
	}
	c.noLocal = kept.HasNoLocal()
	ack := packet.Connack{SessionPresent: present}
	if c.version == packet.V5 {
		q := &ack.Properties
		q.Set(packet.ReceiveMaximum, uint32(c.b.conf.ReceiveMaximum))
		q.Set(packet.MaximumPacketSize, uint32(c.b.conf.MaxMessageBytes)+headroom)
		q.Set(packet.TopicAliasMaximum, aliasMax)
		if e := kept.Expiry(); e != c.expiry && c.expiry > 0 {
			q.Set(packet.SessionExpiry, e) // the client is told what it has
		}
		if p.ClientID == "" {
			q.SetString(packet.AssignedClientID, name)
		}
		if keepAlive != int(p.KeepAlive) {
			q.Set(packet.ServerKeepAlive, uint32(keepAlive))
		}
	}
	if ack.Size(c.version) > int(c.packetMax) {
		return message.Rejectf(message.Unsupported, "maximum packet size of %d: not even CONNACK fits (MQTT-3.1.2-24)", c.packetMax)
	}
	c.b.enter(c)
	c.b.metrics.connects.WithLabelValues(c.version.String()).Inc()
	// Who writes from now on waits until CONNACK is out; who ends the connection knows that it can be told why.
	c.out.Lock()
	c.mu.Lock()
	c.joined = true
	early := c.undelivered // drawn for a session that goes on, before its client was let in
	c.undelivered = nil
	c.mu.Unlock()
	connack := ack.Append(nil, c.version)
	c.b.metrics.out(connack)
	_, err = c.src.Write(connack)
	c.out.Unlock()
	if err != nil {
		return err
	}
	if c.changes != c.b.changes.Load() { // withdrawn between handshake and CONNECT
		c.recheck()
	}
	c.presence(true, 0, c.b.store.Version())
	c.redraw(early)
	c.Wake()
	c.b.env.Log.Debug("connected", "client_id", name, "listener", c.in.Name, "address", c.addr, "version", c.version, "session_present", present)
	return nil
}

// identify says who comes, once CONNECT was read: the device or user, and the client id. It refuses those who may not.
func (c *conn) identify(p *packet.Connect) (session.Who, packet.ReasonCode, error) {
	e := c.in
	who := session.Who{Mount: e.Mount, ClientID: strings.Clone(p.ClientID)}
	switch e.Auth {
	case byPassword:
		switch err := c.login(p.UserName, p.Password); {
		case message.ReasonOf(err, 0) == message.TokenInvalid:
			return who, packet.BadUserNameOrPassword, err
		case err != nil:
			return who, packet.ServerBusy, err
		}
		who.Identity = strings.Clone(p.UserName)
		c.user = who.Identity
		if e.Policy == policyDevice {
			c.named = who.Identity
		}
	case byCertificate:
		who.Identity = c.peer
		c.named = who.Identity
	default:
		if e.Policy == policyDevice {
			who.Identity = who.ClientID // see Config.Plain
			c.named = who.Identity
			if c.named == "" {
				return who, packet.ClientIDNotValid, message.Rejectf(message.ClientIDMismatch, "client id %q is no device name", "")
			}
		}
	}
	if c.named != "" && message.NewSubject(message.Device, c.named).Valid() != nil {
		return who, packet.ClientIDNotValid, message.Rejectf(message.ClientIDMismatch, "client id %q is no device name", readable(c.named))
	}
	switch {
	case who.ClientID != "":
	case c.named != "":
		who.ClientID = c.named
	default:
		who.ClientID = "naru-" + message.NewID(c.now).String()
	}
	j, err := c.appoint(who.ClientID)
	if err != nil {
		code := packet.NotAuthorized
		if message.ReasonOf(err, 0) == message.ClientIDMismatch {
			code = packet.ClientIDNotValid
		}
		return who, code, err
	}
	c.rights.Store(j)
	if c.device = c.named; e.mount != "" { // a name of its own world: the fleet may have a device of the same name
		c.device = ""
	}
	return who, 0, nil
}

// keepAliveMax is the longest keep alive, the listener's or else the broker's; zero for any.
func (c *conn) keepAliveMax() int {
	if c.in.KeepAliveMax != "" {
		return int(c.in.most / time.Second)
	}
	return int(c.b.keepAliveMax / time.Second)
}

// refuseConnect says no, as far as the version lets it say why.
func (c *conn) refuseConnect(code packet.ReasonCode, why error) {
	ack := packet.Connack{Code: code}
	if c.version == packet.V5 {
		ack.Properties.SetString(packet.ReasonString, reasonString(why))
		if c.packetMax > 0 && ack.Size(c.version) > int(c.packetMax) {
			ack.Properties.Reset() // MQTT-3.2.2-19
		}
	}
	_ = c.send(ack.Append(nil, c.version)) // the connection ends anyway
}

package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

const (
	waitingMax = 1000      // messages for a client that does not acknowledge, of a session that keeps none; beyond, they are dropped;
	waitBytes  = 1 << 20   // and so many bytes of them
	sendAhead  = 256 << 10 // bytes that a client may leave unread before nothing more is taken from its queue
	pumpAtOnce = 64        // messages taken from a queue at once
)

// flight is a message that was sent and is not settled.
type flight struct {
	number   uint64 // in the session's queue; zero where it keeps none
	qos      byte
	released bool // PUBREL was sent, or is to be
	told     bool // it was sent
	command  *carried
	drawn    *session.Drawn
}

// waiting is a message that waits for the client to acknowledge others.
type waiting struct {
	m *message.Message
	o session.Options
}

// Deliver sends a message that is owed to nobody. It does not block: what a client does not take is dropped, and counted.
func (c *conn) Deliver(m *message.Message, o session.Options) { c.deliver(m, o, false) }

// deliver does so; late is of what was held back before.
func (c *conn) deliver(m *message.Message, o session.Options, late bool) {
	c.out.Lock()
	defer c.out.Unlock()
	c.mu.Lock()
	if c.ended || !c.joined {
		if o.Drawn != nil {
			c.undelivered = append(c.undelivered, o.Drawn)
		}
		left := c.left
		c.mu.Unlock()
		if left { // it was drawn before, and comes late
			c.passOn()
		}
		return
	}
	if c.held != nil && !late {
		kept := lasting(m, o)
		*c.held = append(*c.held, func() { c.deliver(kept, o, true) })
		c.mu.Unlock()
		return
	}
	if o.Command != 0 && o.QoS > 0 && c.carries(m, o.Command) {
		c.mu.Unlock()
		return
	}
	full := o.QoS > 0 && len(c.inflight) >= c.sendMax
	switch {
	case full && (len(c.waiting) >= waitingMax || c.waitingBytes+len(m.Data) > waitBytes && len(c.waiting) > 0), !full && c.sock.backlog() > sendAhead:
		c.mu.Unlock()
		if o.Drawn != nil {
			c.b.store.Took(o.Drawn)
		}
		c.b.refusals.add(refusal{reason: message.SlowConsumer, device: c.device, client: c.clientID, address: c.addr,
			detail: errors.New("a live message was dropped: the client reads or acknowledges too slowly"), topic: m.Subject.Topic()})
		return
	case full:
		c.waiting = append(c.waiting, waiting{lasting(m, o), o})
		c.waitingBytes += len(m.Data)
		c.mu.Unlock()
		return
	}
	b := c.outgoing(nil, m, o)
	c.mu.Unlock()
	c.write(b)
}

// lasting is a message that may be kept.
func lasting(m *message.Message, o session.Options) *message.Message {
	if o.Lasting {
		return m
	}
	return m.Clone()
}

// write sends what there is; c.out is held. A connection that is gone ends its reader.
func (c *conn) write(b []byte) {
	if len(b) > 0 {
		c.b.metrics.out(b)
		_, _ = c.src.Write(b)
	}
}

// outgoing writes the PUBLISH of a message that no queue holds. c.mu is held. Packet ids for what goes out are a space
// of their own.
func (c *conn) outgoing(b []byte, m *message.Message, o session.Options) []byte {
	p := packet.Publish{QoS: o.QoS}
	if o.QoS > 0 {
		for {
			c.outID++
			if _, used := c.inflight[c.outID]; c.outID != 0 && !used {
				break
			}
		}
		p.ID = c.outID
	}
	n := len(b)
	b = c.appendPublish(b, &p, m, o)
	k := c.carry(m, o, len(b) > n)
	if len(b) > n && o.QoS > 0 {
		c.fly(p.ID, flight{qos: o.QoS, command: k, drawn: o.Drawn})
	} else if o.Drawn != nil {
		c.b.store.Took(o.Drawn)
	}
	return b
}

func (c *conn) fly(id uint16, f flight) {
	if c.inflight == nil {
		c.inflight = map[uint16]flight{}
	}
	c.inflight[id] = f
	c.laden.Store(len(c.inflight) >= c.sendMax)
}

// Busy says that the client acknowledges or reads less than it gets.
func (c *conn) Busy() bool { return c.laden.Load() || c.sock.backlog() > sendAhead }

// appendPublish completes and writes a PUBLISH; nothing where the client cannot or need not have it. c.mu is held.
func (c *conn) appendPublish(b []byte, p *packet.Publish, m *message.Message, o session.Options) []byte {
	if !c.mayHear(m.Subject, o.AWS) {
		return b // whatever subscription brought it, and when that was granted
	}
	topic := c.in.topic(m.Subject, o.AWS)
	p.Topic, p.Payload, p.Retain = topic, m.Data, o.Retain
	alias := false // a new one
	var left time.Duration
	if !m.Expires.IsZero() {
		if left = m.Expires.Sub(c.b.env.Now()); left <= 0 && !p.Dup {
			return b
		}
	}
	if c.version == packet.V5 {
		q := &p.Properties
		q.SubscriptionIDs = o.IDs
		if m.ContentType != "" {
			q.SetString(packet.ContentType, m.ContentType)
		}
		if m.ReplyTo != "" {
			q.SetString(packet.ResponseTopic, c.in.topic(m.ReplyTo, o.AWS))
		}
		q.CorrelationData = m.Correlation
		if m.Text {
			q.Set(packet.PayloadFormat, 1)
		}
		if !m.Expires.IsZero() {
			q.Set(packet.MessageExpiry, uint32(max(0, (left+time.Second-1)/time.Second)))
		}
		for k, v := range m.Properties.All() {
			q.User = append(q.User, packet.UserProperty{Key: k, Value: v})
		}
		if c.in.Envelope {
			q.User = c.in.envelope(q.User, m, o.AWS)
		}
		alias = c.aliasOut(p, topic)
	}
	if uint64(p.Size(c.version)) > uint64(c.packetMax) {
		if alias {
			delete(c.aliasesOut, topic) // the client has not heard of it
		}
		return b // the client said that it takes nothing so large (MQTT-3.1.2-25)
	}
	c.sent++
	c.b.metrics.to[o.QoS].Inc()
	return p.Append(b, c.version)
}

// aliasOut replaces a topic by its alias, as far as the client takes any (MQTT 5 §3.3.2.3.4). The first topics get them.
// QoS 2 goes without: there are clients (mqtt.js 5.16) that keep such a message as it came, and at PUBREL have no topic.
// It says whether this message gives its topic one.
func (c *conn) aliasOut(p *packet.Publish, topic string) (fresh bool) {
	if c.aliasMax == 0 || p.QoS == 2 {
		return false
	}
	if a, ok := c.aliasesOut[topic]; ok {
		p.Topic = ""
		p.Properties.Set(packet.TopicAlias, uint32(a))
		return false
	}
	if len(c.aliasesOut) >= int(c.aliasMax) {
		return false
	}
	if c.aliasesOut == nil {
		c.aliasesOut = map[string]uint16{}
	}
	a := uint16(len(c.aliasesOut) + 1)
	c.aliasesOut[string([]byte(topic))] = a
	p.Properties.Set(packet.TopicAlias, uint32(a))
	return true
}

// passOn has what the client of a shared subscription had in hand, and keeps no session, go to another one. Its session has
// ended, so that it is not drawn itself.
func (c *conn) passOn() {
	c.mu.Lock()
	list := c.undelivered
	c.left, c.undelivered = true, nil
	for id, f := range c.inflight {
		if f.drawn != nil {
			list = append(list, f.drawn)
			delete(c.inflight, id)
		}
	}
	for _, w := range c.waiting {
		if w.o.Drawn != nil {
			list = append(list, w.o.Drawn)
		}
	}
	c.waiting = nil
	c.mu.Unlock()
	c.redraw(list)
}

// redraw has messages go to whom they are drawn for anew. When the broker stops, the next one does.
func (c *conn) redraw(list []*session.Drawn) {
	if len(list) == 0 || c.b.stop.Load() {
		return
	}
	slices.SortFunc(list, (*session.Drawn).Compare)
	c.b.group.Go(func() { // not here: who delivers may be what commits
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		defer cancel()
		if err := c.b.store.Redraw(ctx, list); err != nil && !c.b.stop.Load() {
			c.b.refusals.add(refusal{reason: message.ReasonOf(err, message.BusUnavailable), device: c.device, client: c.clientID, address: c.addr,
				detail: fmt.Errorf("%d messages of a shared subscription that it had not acknowledged could not be given to others: %w", len(list), err)})
		}
	})
}

// Wake says that the session's queue may have something for the client.
func (c *conn) Wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.more = true
	if c.pumping || c.ended || !c.joined || !c.kept.Kept() {
		return
	}
	c.pumping = true
	c.b.group.Go(c.pump)
}

// Deleted says that the device was deleted. The door says so too; the one that comes first tells the same.
func (c *conn) Deleted() {
	c.end(message.CertUnregistered, message.Rejectf(message.CertUnregistered, "device %s was deleted", c.device))
}

// TakenOver says that the session has another connection. It returns when this one handles no packet any more: what both
// would handle at once, such as a QoS 2 message that is sent again, would be taken for two.
func (c *conn) TakenOver() {
	c.end(message.TakenOver, nil)
	late := time.NewTimer(stopPatience)
	defer late.Stop()
	select {
	case <-c.quit:
	case <-late.C:
	}
}

// HungUp as session.Client has it.
func (c *conn) HungUp() bool {
	s, ok := c.sock.(interface{ hungUp() bool })
	return ok && s.hungUp()
}

// pump sends from the session's queue until it is empty, or the client has enough for now.
func (c *conn) pump() {
	wait := 100 * time.Millisecond
	for {
		c.mu.Lock()
		room := min(c.sendMax-len(c.inflight), pumpAtOnce)
		if !c.more || c.ended || room <= 0 || c.sock.backlog() > sendAhead {
			c.pumping = false
			c.mu.Unlock()
			return
		}
		c.more = false
		behind := c.pumped
		c.mu.Unlock()
		list, upto, err := c.kept.Behind(context.Background(), behind, room)
		c.out.Lock()
		c.mu.Lock()
		var b []byte
		for i := range list {
			b = c.owed(b, &list[i])
		}
		c.pumped = max(c.pumped, upto)
		pumped := c.pumped
		c.more = c.more || len(list) > 0 || err != nil
		ended := c.ended
		c.mu.Unlock()
		if !ended {
			c.kept.Sent(c.epoch, pumped)
			c.write(b)
		}
		c.out.Unlock()
		if err != nil && !ended {
			c.b.env.Log.Warn("read a session's queue", "client_id", c.clientID, "error", err)
			select {
			case <-time.After(wait):
			case <-c.quit:
				return
			}
			wait = min(2*wait, 5*time.Second)
		}
	}
}

// owed writes what a session owes. c.mu is held.
func (c *conn) owed(b []byte, o *session.Owed) []byte {
	if o.Released {
		c.fly(o.Packet, flight{number: o.Number, qos: 2, released: true, told: true})
		return (&packet.Ack{Type: packet.PUBREL, ID: o.Packet}).Append(b, c.version)
	}
	n := len(b)
	b = c.appendPublish(b, &packet.Publish{QoS: o.QoS, ID: o.Packet, Dup: o.Again}, o.Message, o.Options)
	k := c.carry(o.Message, o.Options, len(b) > n)
	if len(b) == n { // it cannot have it, now or later
		c.done = append(c.done, o.Number)
		c.settleSoon()
		return b
	}
	c.fly(o.Packet, flight{number: o.Number, qos: o.QoS, command: k})
	return b
}

// acknowledged handles PUBACK, PUBREC and PUBCOMP.
func (c *conn) acknowledged(a *packet.Ack) error {
	c.out.Lock()
	c.mu.Lock()
	f, ok := c.inflight[a.ID]
	var b []byte
	switch {
	case !ok && a.Type == packet.PUBREC:
		rel := packet.Ack{Type: packet.PUBREL, ID: a.ID}
		if c.version == packet.V5 {
			rel.Code = packet.PacketIDNotFound
		}
		b = rel.Append(nil, c.version)
	case !ok: // it was settled before
	case a.Type == packet.PUBACK && f.qos != 1, a.Type != packet.PUBACK && f.qos != 2, a.Type == packet.PUBCOMP && !f.released:
		c.mu.Unlock()
		c.out.Unlock()
		return &packet.Error{Code: packet.ProtocolError, Detail: a.Type.String() + " for a message of another QoS, or too early"}
	case a.Type == packet.PUBREC && !a.Code.Failed():
		began := f.released
		if !began {
			f.released = true
			c.took(&f, a.Code)
			c.inflight[a.ID] = f
		}
		if began && f.number > 0 && !f.told {
			break // PUBREL follows
		}
		if !began && f.number > 0 {
			c.recs = append(c.recs, f.number) // PUBREL goes out when that is on disk
			c.settleSoon()
		} else {
			b = (&packet.Ack{Type: packet.PUBREL, ID: a.ID}).Append(nil, c.version)
		}
	default:
		c.took(&f, a.Code)
		delete(c.inflight, a.ID)
		if f.drawn != nil {
			c.b.store.Took(f.drawn)
		}
		if f.number > 0 {
			c.done = append(c.done, f.number)
			c.settleSoon()
		}
		for len(c.waiting) > 0 && len(c.inflight) < c.sendMax {
			w := c.waiting[0]
			c.waiting = c.waiting[1:]
			c.waitingBytes -= len(w.m.Data)
			b = c.outgoing(b, w.m, w.o)
		}
		c.laden.Store(len(c.inflight) >= c.sendMax)
	}
	c.mu.Unlock()
	c.write(b)
	c.out.Unlock()
	c.Wake()
	return nil
}

// release handles PUBREL. There are no more identifiers than 65,535, so neither can there be more to be released.
func (c *conn) release(a *packet.Ack) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.releases) >= 65535 {
		return &packet.Error{Code: packet.ReceiveMaximumExceeded, Detail: "more PUBREL under way than there are packet identifiers"}
	}
	c.releases = append(c.releases, a.ID)
	c.settleSoon()
	return nil
}

// settleSoon has what was acknowledged written down, by one goroutine at a time, which takes all there is with each
// write. c.mu is held.
func (c *conn) settleSoon() {
	if !c.settling {
		c.settling = true
		c.b.group.Go(c.settle)
	}
}

// tell notes that PUBREL goes out for these.
func (c *conn) tell(recs []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range recs {
		if f, ok := c.inflight[session.PacketOf(n)]; ok && f.number == n {
			f.told = true
			c.inflight[session.PacketOf(n)] = f
		}
	}
}

func (c *conn) settle() {
	for {
		c.mu.Lock()
		now := session.Settled{Sent: c.pumped, Released: c.recs, Done: c.done, Command: c.command, Say: c.proofs}
		releases, receipts := c.releases, c.receipts
		c.done, c.recs, c.releases, c.receipts, c.command, c.proofs = nil, nil, nil, nil, 0, nil
		if len(now.Done)+len(now.Released)+len(releases)+len(receipts) == 0 {
			c.settling = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		for _, m := range receipts {
			c.append(m)
		}
		var b []byte
		var err error
		if len(now.Done)+len(now.Released) > 0 {
			if err = c.kept.Settle(context.Background(), now); err == nil {
				c.tell(now.Released)
				for _, n := range now.Released {
					b = (&packet.Ack{Type: packet.PUBREL, ID: session.PacketOf(n)}).Append(b, c.version)
				}
			}
		}
		if err == nil && len(releases) > 0 {
			var known []bool
			if known, err = c.kept.Release(context.Background(), c.epoch, releases); err == nil {
				for i, id := range releases {
					comp := packet.Ack{Type: packet.PUBCOMP, ID: id}
					if !known[i] && c.version == packet.V5 {
						comp.Code = packet.PacketIDNotFound
					}
					b = comp.Append(b, c.version)
				}
			}
		}
		if err != nil {
			// Nothing more is told: the client says it again when it comes back.
			c.end(message.ReasonOf(err, message.ServerStopping), err)
			continue
		}
		c.out.Lock()
		c.write(b)
		c.out.Unlock()
		c.Wake()
	}
}

package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// noAck is the token of a QoS 0 message.
const noAck = ^uint64(0)

// acks holds what is owed to a client, in the order in which its messages came (MQTT 5 §4.6). A token is a place in the
// row of all messages of the connection.
type acks struct {
	slots []slot            // a ring whose length is a power of two
	head  uint64            // the oldest that is owed
	tail  uint64            // the next
	why   map[uint64]string // what an MQTT 5 client is told with a refusal, by token
}

// owed is what is to be said of one message.
type owed struct {
	id     uint16
	rec    bool // QoS 2, answered by PUBREC
	retain bool
	mid    message.ID // of a QoS 2 message
	done   bool
	code   packet.ReasonCode
	at     time.Time
}

type slot struct {
	owed
	same uint16 // how many are owed whose id leads to this place; see holds
}

func (a *acks) len() int { return int(a.tail - a.head) }

func (a *acks) at(token uint64) *slot { return &a.slots[token&uint64(len(a.slots)-1)] }

func (a *acks) push(s owed) uint64 {
	if a.len() == len(a.slots) {
		bigger := make([]slot, max(2*len(a.slots), 8))
		for t := a.head; t != a.tail; t++ {
			old, to := a.at(t), &bigger[t&uint64(len(bigger)-1)]
			to.owed = old.owed
			bigger[int(old.id)&(len(bigger)-1)].same++
		}
		a.slots = bigger
	}
	to := a.at(a.tail)
	to.owed = s
	a.slots[int(s.id)&(len(a.slots)-1)].same++
	a.tail++
	return a.tail - 1
}

// pop forgets the oldest.
func (a *acks) pop() {
	a.slots[int(a.at(a.head).id)&(len(a.slots)-1)].same--
	a.head++
}

// unpush forgets the newest.
func (a *acks) unpush() {
	a.tail--
	a.slots[int(a.at(a.tail).id)&(len(a.slots)-1)].same--
}

// holds says whether something is owed for a packet identifier. Clients count their identifiers up, so mostly none of
// those owed leads to the same place, and nothing has to be searched.
func (a *acks) holds(id uint16) bool {
	if a.len() == 0 || a.slots[int(id)&(len(a.slots)-1)].same == 0 {
		return false
	}
	for t := a.head; t != a.tail; t++ {
		if a.at(t).id == id {
			return true
		}
	}
	return false
}

// explain keeps what the client is told with the refusal of a message.
func (a *acks) explain(token uint64, err error) {
	if a.why == nil {
		a.why = map[uint64]string{}
	}
	a.why[token] = reasonString(err)
}

// shrink gives the room of an idle connection back.
func (a *acks) shrink() {
	if a.len() == 0 && len(a.slots) > 64 {
		a.slots = nil
	}
}

// admit gives a message its place, waiting or refusing where the client has too many under way. It pushes back: an
// MQTT 5 client has been told its limit, an older one is simply not read for a while.
func (c *conn) admit(p *packet.Publish) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received++
	if c.ended || c.halted {
		return 0, errEnded // a client that was shut out says nothing more, acknowledged or not
	}
	if p.QoS == 0 {
		return noAck, nil
	}
	limit := c.b.conf.ReceiveMaximum
	if c.version == packet.V5 && c.acks.len() >= limit {
		return 0, &packet.Error{Code: packet.ReceiveMaximumExceeded, Detail: "more messages of QoS 1 and 2 under way than Receive Maximum", Statement: "MQTT-3.3.4-7"}
	}
	if c.acks.holds(p.ID) {
		return c.repeated(p)
	}
	for c.acks.len() >= limit && !c.ended && !c.halted {
		c.waitForAck()
	}
	if c.ended || c.halted {
		return 0, errEnded
	}
	return c.acks.push(owed{id: p.ID, rec: p.QoS == 2, retain: p.Retain, at: c.now}), nil
}

var (
	errEnded    = errors.New("the connection was ended")
	errHalted   = errors.New("the broker stops")
	errRepeated = errors.New("the packet identifier is in use")
)

// repeated answers a PUBLISH whose packet identifier is that of one not yet acknowledged. c.mu is held.
func (c *conn) repeated(p *packet.Publish) (uint64, error) {
	switch {
	case c.version == packet.V5: // after the first one's acknowledgement, so that the client can tell them apart (§4.6)
		s := owed{id: p.ID, rec: p.QoS == 2, at: c.now, done: true, code: packet.PacketIDInUse}
		c.acks.push(s)
		return 0, errRepeated
	case p.Dup: // 3.1.1 lets a client say it again on one connection; the acknowledgement that is owed answers both
		return 0, errRepeated
	}
	return 0, &packet.Error{Code: packet.PacketIDInUse, Detail: fmt.Sprintf("packet identifier %d is in use", p.ID), Statement: "MQTT-2.3.1-2"}
}

// Appended is told by the appender what became of a message.
func (c *conn) Appended(token uint64, at bus.Position, err error) {
	if token == noAck {
		if err != nil {
			c.b.refusals.add(refusal{reason: message.QoS0NotStored, detail: err, device: c.device, client: c.clientID, address: c.addr})
		}
		return
	}
	if err != nil {
		c.failed(token, err)
		return
	}
	c.mu.Lock()
	s := c.acks.at(token)
	s.done = true
	rec, retain, id, packet := s.rec, s.retain, s.mid, s.id
	c.mu.Unlock()
	if retain {
		c.b.store.Stored(at)
	}
	if rec {
		c.kept.Stored(packet, id)
	}
}

// Settled writes the acknowledgements that are due, in one piece.
func (c *conn) Settled() {
	var room [256]byte
	c.out.Lock()
	defer c.out.Unlock()
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return // what was stored and not acknowledged comes again
	}
	b := room[:0]
	began := c.acks.head
	var oldest time.Time
	for c.acks.head != c.acks.tail {
		s := c.acks.at(c.acks.head)
		if !s.done {
			break
		}
		switch {
		case s.code == 0 && !s.rec:
			b = packet.AppendPuback(b, s.id)
		case s.code == 0:
			b = (&packet.Ack{Type: packet.PUBREC, ID: s.id}).Append(b, c.version)
		default:
			b = c.no(s).Append(b, c.version)
		}
		if oldest.IsZero() {
			oldest = s.at
		}
		c.acks.pop()
	}
	if c.acks.head != began {
		c.acks.shrink()
		c.free.Broadcast()
	}
	c.mu.Unlock()
	if len(b) == 0 {
		return
	}
	c.b.metrics.puback.Observe(c.b.env.Now().Sub(oldest).Seconds())
	c.b.metrics.out(b)
	_, _ = c.src.Write(b) // a connection that is gone ends its reader
}

// no is the acknowledgement that refuses the oldest message, with the reason where the client takes one so long
// (MQTT-3.4.2-2). c.mu is held.
func (c *conn) no(s *slot) *packet.Ack {
	a := &packet.Ack{Type: packet.PUBACK, ID: s.id, Code: s.code}
	if s.rec {
		a.Type = packet.PUBREC
	}
	why, told := c.acks.why[c.acks.head]
	if !told {
		return a
	}
	delete(c.acks.why, c.acks.head)
	a.Properties.SetString(packet.ReasonString, why)
	if a.Size(c.version) > int(c.packetMax) {
		a.Properties.Reset()
	}
	return a
}

// failed answers a message that was not stored: never with a good acknowledgement. An older client has no word for it,
// so its connection ends, and it sends the message again.
func (c *conn) failed(token uint64, err error) {
	reason := message.ReasonOf(err, message.BusUnavailable)
	c.notReceived(token)
	c.b.refusals.add(refusal{reason: reason, detail: err, device: c.device, client: c.clientID, address: c.addr})
	code := ackCode(reason)
	if c.version != packet.V5 || code == packet.ServerBusy {
		c.counts(err)
		c.end(reason, err)
		return
	}
	c.mu.Lock()
	s := c.acks.at(token)
	s.done, s.code = true, code
	c.mu.Unlock()
}

// counts notes that what ends the connection was counted as refused.
func (c *conn) counts(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counted = err
}

// notReceived forgets a QoS 2 message that did not get in, so that its identifier means nothing.
func (c *conn) notReceived(token uint64) {
	c.mu.Lock()
	s := *c.acks.at(token)
	c.mu.Unlock()
	if s.rec && !s.mid.IsZero() {
		c.kept.Forget(s.id, s.mid)
	}
}

// refuse answers a message that is not taken. What will never be allowed is acknowledged even where the version has no word
// for a refusal, unless the listener says otherwise: see bury.
func (c *conn) refuse(token uint64, p *packet.Publish, err error) error {
	reason := message.ReasonOf(err, message.BusUnavailable)
	told := reason
	if token == noAck && passes(reason) {
		told = message.QoS0NotStored // nobody else hears of it
	}
	c.b.refusals.add(refusal{reason: told, detail: err, device: c.device, client: c.clientID, address: c.addr, topic: p.Topic})
	if errors.Is(err, bus.ErrClosed) {
		return message.Reject(message.ServerStopping, err)
	}
	if token == noAck {
		return nil
	}
	c.notReceived(token)
	policy := reason == message.ACLDenied || reason == message.MessageTooLarge || reason == message.TopicInvalid ||
		reason == message.SchemaMismatch || reason == message.Undeclared
	switch {
	case c.version == packet.V5 || policy && c.claim != "":
	case policy && c.mayBury():
		return c.bury(token, p, c.look(p.Topic), err)
	default:
		c.counts(err)
		return err
	}
	c.mu.Lock()
	s := c.acks.at(token)
	s.done = true
	if c.version == packet.V5 {
		s.code = ackCode(reason)
		if !c.terse {
			c.acks.explain(token, err)
		}
	}
	c.mu.Unlock()
	c.Settled()
	return nil
}

func ackCode(r message.Reason) packet.ReasonCode {
	switch r {
	case message.StorageLow:
		return packet.QuotaExceeded
	case message.ACLDenied, message.Undeclared:
		return packet.NotAuthorized
	case message.TopicInvalid:
		return packet.TopicNameInvalid
	case message.SchemaMismatch:
		return packet.PayloadFormatInvalid
	case message.BusUnavailable, message.Fenced:
		return packet.ServerBusy // not a code of PUBACK: the connection ends
	}
	return packet.ImplementationSpecific
}

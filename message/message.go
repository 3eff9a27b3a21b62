// Package message is the language of naru: what a message is, how it is named, identified, traced, refused and
// written down. Everything else in the house imports it; it imports nothing but the standard library, reads no clock
// and opens nothing.
package message

import (
	"errors"
	"fmt"
	"time"
)

// Message is one message on its way through the platform: the attributes of CloudEvents 1.0, the W3C trace context,
// and what naru adds to them (cause, device, depth).
//
// A Message decoded from a [Batch] aliases the batch's bytes: its strings and Data stay valid as long as anything
// refers to them, and keep the whole batch in memory for as long. Clone what you keep. A Message is a value without
// locks: whoever holds it alone may change it.
type Message struct {
	// ID names the message for ever. It is minted when the platform accepts the message, so it also says when that
	// was (see Recorded).
	ID ID
	// Trace is the trace this message belongs to and the span that sent it.
	Trace Trace
	// Cause is the message this one follows from; zero where it follows from none.
	Cause ID
	// Subject says where the message belongs: `device.d-17.telemetry`.
	Subject Subject
	// Source is the CloudEvents source, a URI reference: who said it.
	Source string
	// Type is the CloudEvents type, `device.telemetry.v1`; empty where no contract covers the subject.
	Type string
	// Device is the device the message is from or about, and the key that keeps its order; may be empty.
	Device string
	// Time is when it happened, by the clock of its source; zero where the source gave none.
	Time time.Time
	// ContentType is the media type of Data (CloudEvents datacontenttype); may be empty.
	ContentType string
	// Schema is the CloudEvents dataschema; may be empty.
	Schema string
	// Expires is when the message loses its worth; zero for never.
	Expires time.Time
	// Depth counts the causes behind this message; beyond [DepthMax] it dies as a loop.
	Depth uint8
	// QoS is the MQTT quality of service it was sent with: 0, 1 or 2.
	QoS uint8
	// Retain says that the publisher asked for the message to be kept for later subscribers.
	Retain bool
	// Text says that the publisher declared Data to be UTF-8 (MQTT 5 payload format indicator).
	Text bool
	// Will says that it is what an MQTT client had left to be said when it is gone.
	Will bool
	// ReplyTo is the subject an answer is wanted at; may be empty.
	ReplyTo Subject
	// Client names the MQTT session the message came by, where the broker has to know it again: of QoS 2, where the
	// session outlives its connection, and where the session does not want to hear itself. It goes to no client.
	Client string
	// Packet is the MQTT packet identifier it came with, where Client is set and QoS is 2.
	Packet uint16
	// Correlation is the publisher's correlation data, returned unaltered with an answer; may be nil.
	Correlation []byte
	// Properties are the publisher's own, in order and unaltered.
	Properties Properties
	// Data is the payload.
	Data []byte
}

// DepthMax is how many causes a message may have behind it. A chain of rules and workers longer than this has, in
// all likelihood, met itself.
const DepthMax = 16

// Recorded is when the platform accepted the message: the time its ID was minted, to 250 ns.
func (m *Message) Recorded() time.Time { return m.ID.Time() }

// Happened is the source's time where it gave one, else the time the message was recorded.
func (m *Message) Happened() time.Time {
	if m.Time.IsZero() {
		return m.Recorded()
	}
	return m.Time
}

// Key is what the order of messages is kept by: the device, or the subject where there is none.
func (m *Message) Key() string {
	if m.Device != "" {
		return m.Device
	}
	return string(m.Subject)
}

// Expired says whether the message has lost its worth at the given time.
func (m *Message) Expired(now time.Time) bool { return !m.Expires.IsZero() && !now.Before(m.Expires) }

// Clone returns a message that shares no memory with m.
func (m *Message) Clone() *Message {
	c := *m
	c.Subject = Subject(clone(string(m.Subject)))
	c.Source, c.Type, c.Device = clone(m.Source), clone(m.Type), clone(m.Device)
	c.ContentType, c.Schema = clone(m.ContentType), clone(m.Schema)
	c.ReplyTo = Subject(clone(string(m.ReplyTo)))
	c.Client = clone(m.Client)
	c.Correlation = cloneBytes(m.Correlation)
	c.Properties = Properties(cloneBytes(m.Properties))
	c.Data = cloneBytes(m.Data)
	return &c
}

func clone(s string) string { return string([]byte(s)) }

func cloneBytes(b []byte) []byte {
	if b == nil {
		return nil
	}
	return append(make([]byte, 0, len(b)), b...)
}

// Follow makes m a consequence of cause: same trace, one deeper, the cause named, the device inherited where m names
// none. It is a *Rejection with reason Loop when the chain has become too long. ID and Trace.Span must have been
// minted already.
func (m *Message) Follow(cause *Message) error {
	m.Cause = cause.ID
	m.Trace.ID, m.Trace.Flags = cause.Trace.ID, cause.Trace.Flags
	if m.Device == "" {
		m.Device = cause.Device
	}
	if cause.Depth >= DepthMax {
		return Reject(Loop, fmt.Errorf("%s follows from %d messages, the limit", m.Subject, DepthMax))
	}
	m.Depth = cause.Depth + 1
	return nil
}

// Valid says what is wrong with a message that is about to be appended; nil when nothing is.
func (m *Message) Valid() error {
	switch {
	case m.ID.IsZero():
		return errors.New("message has no id")
	case m.Trace.ID.IsZero():
		return fmt.Errorf("message %s has no trace id", m.ID)
	case m.QoS > 2:
		return fmt.Errorf("message %s has QoS %d; there are 0, 1 and 2", m.ID, m.QoS)
	}
	if err := m.Subject.Valid(); err != nil {
		return fmt.Errorf("message %s: %w", m.ID, err)
	}
	return nil
}

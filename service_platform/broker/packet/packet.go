// Package packet is naru's MQTT codec: all fifteen packets of MQTT 3.1.1 and MQTT 5, both ways, and strict, since a
// packet that is let in malformed is a fault that shows somewhere else, later, to somebody else.
//
// [Frame] finds a whole packet in a buffer without allocating; Decode methods read its body into a struct; Append
// methods write one. What is decoded aliases the buffer: strings and byte slices point into it. The caller clones what
// it keeps beyond the buffer's next use.
//
// Decoders are strict, encoders trust: an encoder writes what the struct says, so a struct with packet identifier 0 gives
// a packet that no decoder takes. Only what has no encoding at all, such as a string of more than 65535 bytes, is not
// written: Append then leaves dst as it was, and Size is [Unwritable].
//
// Two things are left to the caller, who alone can answer them well. Topic filters are judged one by one with
// [ValidTopicFilter], since SUBACK answers per filter. Who may send what (a server never sends will delays, a client
// never sends subscription identifiers in PUBLISH) depends on which end one is.
//
// Nothing here is safe for concurrent use of one struct; nothing here has global state.
//
// Section numbers and statement ids, such as MQTT-3.3.1-4, are those of MQTT 5.0 (OASIS Standard, 7 March 2019), unless
// a comment says 3.1.1. A fault the specification describes without a number has no statement.
package packet

import (
	"fmt"
	"math"
	"unsafe"
)

// Version is the protocol level in CONNECT.
type Version byte

const (
	V31  Version = 3 // MQTT 3.1, known only so that it can be refused by name
	V311 Version = 4
	V5   Version = 5
)

// String is the version as people write it.
func (v Version) String() string {
	switch v {
	case V31:
		return "3.1"
	case V311:
		return "3.1.1"
	case V5:
		return "5.0"
	}
	return fmt.Sprintf("level %d", byte(v))
}

// Type is the control packet type (§2.1.2).
type Type byte

const (
	CONNECT     Type = 1
	CONNACK     Type = 2
	PUBLISH     Type = 3
	PUBACK      Type = 4
	PUBREC      Type = 5
	PUBREL      Type = 6
	PUBCOMP     Type = 7
	SUBSCRIBE   Type = 8
	SUBACK      Type = 9
	UNSUBSCRIBE Type = 10
	UNSUBACK    Type = 11
	PINGREQ     Type = 12
	PINGRESP    Type = 13
	DISCONNECT  Type = 14
	AUTH        Type = 15
)

var typeNames = [16]string{"RESERVED", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
	"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"}

// String is the packet's name.
func (t Type) String() string { return typeNames[t&15] }

// Header is the fixed header (§2.1).
type Header struct {
	Type   Type
	Flags  byte
	Length uint32 // of the body
}

// Error is a packet that must not be accepted: the code to answer with, what is wrong, and the statement of the
// specification that says so, where one does.
type Error struct {
	Code      ReasonCode
	Detail    string
	Statement string
}

// Error gives all three.
func (e *Error) Error() string {
	if e.Statement == "" {
		return fmt.Sprintf("%s: %s", e.Code, e.Detail)
	}
	return fmt.Sprintf("%s: %s [%s]", e.Code, e.Detail, e.Statement)
}

func malformed(statement, format string, args ...any) error {
	return &Error{MalformedPacket, fmt.Sprintf(format, args...), statement}
}

func protocol(statement, format string, args ...any) error {
	return &Error{ProtocolError, fmt.Sprintf(format, args...), statement}
}

const (
	// LengthMax is the largest remaining length (§2.1.4).
	LengthMax = 268_435_455
	// Unwritable is the Size of a packet that has no encoding: larger than every limit.
	Unwritable = math.MaxInt

	stringMax = math.MaxUint16 // bytes of a string or of binary data (§1.5.4, §1.5.6)
	tooMuch   = LengthMax + 1  // stands in sums of sizes for a field that cannot be written; seven of them still fit 31 bits
)

// Frame looks for one packet at the start of buf. Where it is whole, total is its size and its body is
// buf[start:total]. Where more is needed, total is 0 and need says how many bytes at least it will have in all. limit is
// the largest size in all that is accepted, 0 for any. Type, reserved flags, length and limit are checked as soon as
// their bytes are there.
func Frame(buf []byte, limit uint32) (h Header, start, total, need int, err error) {
	if len(buf) == 0 {
		return h, 0, 0, 2, nil
	}
	h.Type, h.Flags = Type(buf[0]>>4), buf[0]&15
	if err = checkFlags(h); err != nil {
		return h, 0, 0, 0, err
	}
	var length uint32
	for i := 1; ; i++ {
		if i == 5 {
			return h, 0, 0, 0, malformed("MQTT-1.5.5-1", "remaining length has more than four bytes")
		}
		if i >= len(buf) {
			return h, 0, 0, i + 1, nil
		}
		b := buf[i]
		length |= uint32(b&0x7f) << (7 * (i - 1))
		if b&0x80 == 0 {
			if b == 0 && i > 1 {
				return h, 0, 0, 0, malformed("MQTT-1.5.5-1", "remaining length is not in its shortest form")
			}
			start = i + 1
			break
		}
	}
	h.Length = length
	size := start + int(length)
	if limit > 0 && uint64(size) > uint64(limit) {
		return h, 0, 0, 0, &Error{PacketTooLarge, fmt.Sprintf("%s of %d bytes; the limit is %d", h.Type, size, limit), ""} // MQTT-3.1.2-24 at a client, MQTT-3.2.2-15 at a server
	}
	if len(buf) < size {
		return h, start, 0, size, nil
	}
	return h, start, size, size, nil
}

// checkFlags holds the reserved flags of §2.1.3 and the QoS of PUBLISH.
func checkFlags(h Header) error {
	switch h.Type {
	case 0:
		return malformed("", "packet type 0 is reserved")
	case PUBLISH:
		switch qos := h.Flags >> 1 & 3; {
		case qos == 3:
			return malformed("MQTT-3.3.1-4", "PUBLISH with both QoS bits set")
		case qos == 0 && h.Flags&8 != 0:
			return malformed("MQTT-3.3.1-2", "PUBLISH of QoS 0 with DUP")
		}
	case PUBREL, SUBSCRIBE, UNSUBSCRIBE:
		if h.Flags != 2 {
			return malformed(flagStatement(h.Type), "%s with flags %04b; they must be 0010", h.Type, h.Flags)
		}
	default:
		if h.Flags != 0 {
			return malformed(flagStatement(h.Type), "%s with flags %04b; they must be 0000", h.Type, h.Flags)
		}
	}
	return nil
}

func flagStatement(t Type) string {
	switch t {
	case PUBREL:
		return "MQTT-3.6.1-1"
	case SUBSCRIBE:
		return "MQTT-3.8.1-1"
	case UNSUBSCRIBE:
		return "MQTT-3.10.1-1"
	case DISCONNECT:
		return "MQTT-3.14.1-1"
	case AUTH:
		return "MQTT-3.15.1-1"
	}
	return "MQTT-2.1.3-1"
}

// AppendLength appends a variable byte integer (§1.5.5). n must not exceed LengthMax.
func AppendLength(dst []byte, n int) []byte {
	for n > 0x7f {
		dst = append(dst, byte(n)|0x80)
		n >>= 7
	}
	return append(dst, byte(n))
}

func lengthSize(n int) int {
	switch {
	case n < 1<<7:
		return 1
	case n < 1<<14:
		return 2
	case n < 1<<21:
		return 3
	}
	return 4
}

// fieldSize is the size of a string or of binary data of n bytes with its length.
func fieldSize(n int) int {
	if n > stringMax {
		return tooMuch
	}
	return 2 + n
}

// packetSize is the size of a packet with a body of n bytes.
func packetSize(n int) int {
	if n > LengthMax {
		return Unwritable
	}
	return 1 + lengthSize(n) + n
}

// frame appends a fixed header for a body of n bytes.
func frame(dst []byte, t Type, flags byte, n int) []byte {
	return AppendLength(append(dst, byte(t)<<4|flags), n)
}

// AppendPingreq appends a PINGREQ, which has no body (§3.12).
func AppendPingreq(dst []byte) []byte { return append(dst, byte(PINGREQ)<<4, 0) }

// AppendPingresp appends a PINGRESP, which has no body (§3.13).
func AppendPingresp(dst []byte) []byte { return append(dst, byte(PINGRESP)<<4, 0) }

// DecodePing checks that a PINGREQ or PINGRESP has no body.
func DecodePing(h Header, body []byte) error {
	if len(body) != 0 {
		return malformed("", "%s with a body of %d bytes", h.Type, len(body))
	}
	return nil
}

func alias(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

package message

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"time"
	"unsafe"
)

// A record is a message in a batch. All integers are little-endian; a "field" is a uvarint length and that many bytes.
//
//	uvarint   length of what follows
//	16 bytes  id
//	16 bytes  trace id
//	 8 bytes  span id
//	 1 byte   trace flags
//	 1 byte   depth
//	 1 byte   bits 0-1 QoS, bit 2 retain, bit 3 text, bit 4 will
//	uvarint   presence: bit n says that field n follows
//	fields    those present, in the order of their bits
//	rest      data
//
// A reader skips fields whose bits it does not know, so new ones may be added without a new version.
const recordFixed = 16 + 16 + 8 + 3

// The bits of presence. They are for ever.
const (
	fieldSubject = iota
	fieldDevice
	fieldType
	fieldSource
	fieldTime    // 8 bytes, Unix nanoseconds
	fieldCause   // 16 bytes
	fieldExpires // 8 bytes, Unix nanoseconds
	fieldContentType
	fieldSchema
	fieldReplyTo
	fieldCorrelation
	fieldProperties
	fieldClient // 2 bytes packet identifier, then the session's name
)

const (
	bitRetain = 1 << 2
	bitText   = 1 << 3
	bitWill   = 1 << 4
)

// RecordRoom is how many bytes the record of m takes at most, and little more than it does; a buffer that has them need not grow.
func RecordRoom(m *Message) int {
	const lengths = 5 + 3 + 13*5 // of the record, of its fields, and the list of those
	const times, ids, packet = 2 * 8, 16, 2
	return recordFixed + lengths + times + ids + packet + len(m.Subject) + len(m.Device) + len(m.Type) + len(m.Source) + len(m.ContentType) +
		len(m.Schema) + len(m.ReplyTo) + len(m.Correlation) + len(m.Properties) + len(m.Client) + len(m.Data)
}

// AppendRecord appends the record of m to dst.
func AppendRecord(dst []byte, m *Message) []byte {
	// The length goes in front, and is known only behind: three bytes are kept for it, which hold 2 MiB; a longer
	// record is moved up.
	const room = 3
	start := len(dst)
	dst = append(dst, 0, 0, 0)
	dst = append(dst, m.ID[:]...)
	dst = append(dst, m.Trace.ID[:]...)
	dst = append(dst, m.Trace.Span[:]...)
	mqtt := m.QoS & 3
	if m.Retain {
		mqtt |= bitRetain
	}
	if m.Text {
		mqtt |= bitText
	}
	if m.Will {
		mqtt |= bitWill
	}
	dst = append(dst, m.Trace.Flags, m.Depth, mqtt)

	var presence uint64
	set := func(bit int, there bool) {
		if there {
			presence |= 1 << bit
		}
	}
	set(fieldSubject, m.Subject != "")
	set(fieldDevice, m.Device != "")
	set(fieldType, m.Type != "")
	set(fieldSource, m.Source != "")
	set(fieldTime, !m.Time.IsZero())
	set(fieldCause, !m.Cause.IsZero())
	set(fieldExpires, !m.Expires.IsZero())
	set(fieldContentType, m.ContentType != "")
	set(fieldSchema, m.Schema != "")
	set(fieldReplyTo, m.ReplyTo != "")
	set(fieldCorrelation, m.Correlation != nil)
	set(fieldProperties, len(m.Properties) > 0)
	set(fieldClient, m.Client != "")
	dst = binary.AppendUvarint(dst, presence)

	for rest := presence; rest != 0; rest &= rest - 1 {
		switch bits.TrailingZeros64(rest) {
		case fieldSubject:
			dst = appendField(dst, string(m.Subject))
		case fieldDevice:
			dst = appendField(dst, m.Device)
		case fieldType:
			dst = appendField(dst, m.Type)
		case fieldSource:
			dst = appendField(dst, m.Source)
		case fieldTime:
			dst = appendTime(dst, m.Time)
		case fieldCause:
			dst = append(append(dst, byte(len(m.Cause))), m.Cause[:]...)
		case fieldExpires:
			dst = appendTime(dst, m.Expires)
		case fieldContentType:
			dst = appendField(dst, m.ContentType)
		case fieldSchema:
			dst = appendField(dst, m.Schema)
		case fieldReplyTo:
			dst = appendField(dst, string(m.ReplyTo))
		case fieldCorrelation:
			dst = appendField(dst, alias(m.Correlation))
		case fieldProperties:
			dst = appendField(dst, alias(m.Properties))
		case fieldClient:
			dst = binary.AppendUvarint(dst, uint64(2+len(m.Client)))
			dst = append(binary.LittleEndian.AppendUint16(dst, m.Packet), m.Client...)
		}
	}
	dst = append(dst, m.Data...)

	n := len(dst) - start - room
	if n >= 1<<(7*room) {
		wide := binary.AppendUvarint(nil, uint64(n))
		dst = append(dst, wide[room:]...)
		copy(dst[start+len(wide):], dst[start+room:start+room+n])
		copy(dst[start:], wide)
		return dst
	}
	dst[start], dst[start+1], dst[start+2] = byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14)
	return dst
}

// DecodeRecord reads the record at the start of b into m and says how many bytes it took. m aliases b.
func DecodeRecord(b []byte, m *Message) (int, error) {
	n, w := binary.Uvarint(b)
	switch {
	case w <= 0:
		return 0, fmt.Errorf("record length is cut off or too long")
	case n > uint64(len(b)-w):
		return 0, fmt.Errorf("record of %d bytes is cut off after %d", n, len(b)-w)
	case n < recordFixed:
		return 0, fmt.Errorf("record of %d bytes is shorter than its fixed part", n)
	}
	total := w + int(n)
	b = b[w:total]
	*m = Message{}
	copy(m.ID[:], b[0:16])
	copy(m.Trace.ID[:], b[16:32])
	copy(m.Trace.Span[:], b[32:40])
	m.Trace.Flags, m.Depth = b[40], b[41]
	m.QoS, m.Retain, m.Text, m.Will = b[42]&3, b[42]&bitRetain != 0, b[42]&bitText != 0, b[42]&bitWill != 0
	b = b[recordFixed:]
	presence, w := binary.Uvarint(b)
	if w <= 0 {
		return 0, fmt.Errorf("record's list of fields is cut off")
	}
	b = b[w:]
	for rest := presence; rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros64(rest)
		f, r, ok := prefixed(b)
		if !ok {
			return 0, fmt.Errorf("record's field %d is cut off", bit)
		}
		b = r
		switch bit {
		case fieldSubject:
			m.Subject = Subject(alias(f))
		case fieldDevice:
			m.Device = alias(f)
		case fieldType:
			m.Type = alias(f)
		case fieldSource:
			m.Source = alias(f)
		case fieldTime, fieldExpires:
			if len(f) != 8 {
				return 0, fmt.Errorf("record's field %d is a time of %d bytes", bit, len(f))
			}
			at := time.Unix(0, int64(binary.LittleEndian.Uint64(f)))
			if bit == fieldTime {
				m.Time = at
			} else {
				m.Expires = at
			}
		case fieldCause:
			if len(f) != 16 {
				return 0, fmt.Errorf("record's cause has %d bytes", len(f))
			}
			copy(m.Cause[:], f)
		case fieldContentType:
			m.ContentType = alias(f)
		case fieldSchema:
			m.Schema = alias(f)
		case fieldReplyTo:
			m.ReplyTo = Subject(alias(f))
		case fieldCorrelation:
			m.Correlation = f
		case fieldProperties:
			if m.Properties = Properties(f); !m.Properties.wellFormed() {
				return 0, fmt.Errorf("record's properties are cut off")
			}
		case fieldClient:
			if len(f) < 3 {
				return 0, fmt.Errorf("record's client has %d bytes", len(f))
			}
			m.Packet, m.Client = binary.LittleEndian.Uint16(f), alias(f[2:])
		}
	}
	m.Data = b
	return total, nil
}

// decodeID reads only the id of the record at the start of b.
func decodeID(b []byte) (id ID, total int, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) || n < recordFixed {
		return id, 0, false
	}
	copy(id[:], b[w:])
	return id, w + int(n), true
}

func appendField(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// appendTime writes a time; one that nanoseconds do not reach, as somebody's clock or tongue may have it, becomes the last or first that they do.
func appendTime(dst []byte, t time.Time) []byte {
	n := t.UnixNano()
	if s := t.Unix(); s > math.MaxInt64/int64(time.Second)-1 {
		n = math.MaxInt64
	} else if s < math.MinInt64/int64(time.Second)+1 {
		n = math.MinInt64
	}
	return binary.LittleEndian.AppendUint64(append(dst, 8), uint64(n))
}

// alias gives the bytes as a string without copying; whoever holds the bytes no longer changes them.
func alias(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

package packet

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// reader takes fields off a packet's body. The first fault stays; what is read after it is zero.
type reader struct {
	b    []byte
	err  error
	what Type
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) byte(field string) byte {
	if r.err != nil || len(r.b) < 1 {
		r.short(field)
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uint16(field string) uint16 {
	if r.err != nil || len(r.b) < 2 {
		r.short(field)
		return 0
	}
	v := binary.BigEndian.Uint16(r.b)
	r.b = r.b[2:]
	return v
}

func (r *reader) uint32(field string) uint32 {
	if r.err != nil || len(r.b) < 4 {
		r.short(field)
		return 0
	}
	v := binary.BigEndian.Uint32(r.b)
	r.b = r.b[4:]
	return v
}

// length reads a variable byte integer (§1.5.5).
func (r *reader) length(field string) int {
	v := 0
	for i := range 4 {
		c := r.byte(field)
		if r.err != nil {
			return 0
		}
		v |= int(c&0x7f) << (7 * i)
		if c&0x80 == 0 {
			if c == 0 && i > 0 {
				r.fail(malformed("MQTT-1.5.5-1", "%s: %s is not in its shortest form", r.what, field))
			}
			return v
		}
	}
	r.fail(malformed("MQTT-1.5.5-1", "%s: %s has more than four bytes", r.what, field))
	return 0
}

// binary reads binary data (§1.5.6).
func (r *reader) binary(field string) []byte {
	n := int(r.uint16(field))
	if r.err != nil || len(r.b) < n {
		r.short(field)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// string reads a UTF-8 encoded string (§1.5.4).
func (r *reader) string(field string) string {
	s := alias(r.binary(field))
	if r.err == nil {
		if what, statement := badUTF8(s); what != "" {
			r.fail(malformed(statement, "%s: %s %s", r.what, field, what))
			return ""
		}
	}
	return s
}

func (r *reader) short(field string) {
	if r.err == nil {
		r.fail(malformed("", "%s is cut off in its %s", r.what, field))
	}
}

// end wants nothing left.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail(malformed("", "%s has %d bytes behind its end", r.what, len(r.b)))
	}
	return r.err
}

// badUTF8 names what is wrong with a string; nothing when nothing is. Go's decoder refuses surrogates.
func badUTF8(s string) (what, statement string) {
	if !utf8.ValidString(s) {
		return "is not well-formed UTF-8", "MQTT-1.5.4-1"
	}
	if strings.IndexByte(s, 0) >= 0 {
		return "has a NUL", "MQTT-1.5.4-2"
	}
	return "", ""
}

func appendString(dst []byte, s string) []byte {
	return append(append(dst, byte(len(s)>>8), byte(len(s))), s...)
}

func appendUint16(dst []byte, v uint16) []byte { return append(dst, byte(v>>8), byte(v)) }

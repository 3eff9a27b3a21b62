package message

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// TraceID is the trace id of W3C Trace Context §3.2.2.3. One minted here begins with 48 bits of Unix milliseconds, so
// that a lookup knows where to begin; the rest, and so the low 56 bits that the specification wants random, is random.
type TraceID [16]byte

// SpanID is the parent id of W3C Trace Context §3.2.2.4: the span that sent the message.
type SpanID [8]byte

// Trace is where a message stands in its trace.
type Trace struct {
	ID    TraceID
	Span  SpanID
	Flags byte // trace-flags of W3C Trace Context §3.2.2.5; 1 is sampled
}

// Sampled is the only trace flag the specification defines at level 1.
const Sampled byte = 1

// NewTrace begins a trace at the given time.
func NewTrace(now time.Time) Trace {
	t := Trace{Span: NewSpan(), Flags: Sampled}
	binary.BigEndian.PutUint64(t.ID[:8], uint64(now.UnixMilli())<<16|rand.Uint64()&0xffff)
	binary.BigEndian.PutUint64(t.ID[8:], rand.Uint64()|1) // never all zero, which would be invalid
	return t
}

// NewSpan mints a span id.
func NewSpan() SpanID {
	var s SpanID
	binary.BigEndian.PutUint64(s[:], rand.Uint64()|1)
	return s
}

// Hint is the time at which naru would have minted this trace id: a lower bound for the first message of the trace if
// it did, and meaningless for a foreign id. ok is false where the bits cannot be a time between 2020 and ahead.
func (t TraceID) Hint(ahead time.Time) (at time.Time, ok bool) {
	at = time.UnixMilli(int64(binary.BigEndian.Uint64(t[:8]) >> 16))
	return at, at.Year() >= 2020 && !at.After(ahead)
}

// Hash spreads the id over 64 bits, for filters.
func (t TraceID) Hash() uint64 { return ID(t).Hash() }

// IsZero says whether there is no trace; all zero is invalid by the specification.
func (t TraceID) IsZero() bool { return t == TraceID{} }

// String is 32 lower-case hexadecimal digits.
func (t TraceID) String() string { return hex.EncodeToString(t[:]) }

// MarshalText writes what String gives.
func (t TraceID) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what MarshalText wrote: 32 hexadecimal digits, and, unlike ParseTraceID, zeros where there is no
// trace. On an error t stays as it was.
func (t *TraceID) UnmarshalText(b []byte) error {
	if string(b) == (TraceID{}).String() {
		*t = TraceID{}
		return nil
	}
	v, err := ParseTraceID(string(b))
	if err != nil {
		return err
	}
	*t = v
	return nil
}

// String is 16 lower-case hexadecimal digits.
func (s SpanID) String() string { return hex.EncodeToString(s[:]) }

// MarshalText writes what String gives.
func (s SpanID) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads 16 hexadecimal digits. On an error s stays as it was.
func (s *SpanID) UnmarshalText(b []byte) error {
	if len(b) != 16 {
		return fmt.Errorf("%q is not a span id; one has 16 hexadecimal digits", short(string(b)))
	}
	var v SpanID
	if _, err := hex.Decode(v[:], b); err != nil {
		return fmt.Errorf("%q is not a span id: %w", b, err)
	}
	*s = v
	return nil
}

// ParseTraceID reads 32 hexadecimal digits that are not all zero.
func ParseTraceID(s string) (TraceID, error) {
	var t TraceID
	if len(s) != 32 {
		return t, fmt.Errorf("%q is not a trace id; one has 32 hexadecimal digits", short(s))
	}
	if _, err := hex.Decode(t[:], []byte(s)); err != nil {
		return TraceID{}, fmt.Errorf("%q is not a trace id: %w", s, err)
	}
	if t.IsZero() {
		return t, errors.New("a trace id of zeros is invalid")
	}
	return t, nil
}

// Traceparent is the header of W3C Trace Context §3.2, version 00.
func (t Trace) Traceparent() string {
	b := make([]byte, 0, 55)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, t.ID[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, t.Span[:])
	b = append(b, '-')
	return string(hex.AppendEncode(b, []byte{t.Flags}))
}

// ParseTraceparent reads a traceparent header by the rules of W3C Trace Context §3.2 and §4.3: lower case only,
// version ff and zero ids are invalid, a higher version may have more after its flags.
func ParseTraceparent(s string) (Trace, error) {
	bad := func(what string) (Trace, error) {
		if len(s) > 64 {
			s = s[:64] + "…"
		}
		return Trace{}, fmt.Errorf("traceparent %q: %s", s, what)
	}
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return bad("want version-traceid-spanid-flags, 55 characters")
	}
	var version, flags [1]byte
	var t Trace
	if !lowerHex(version[:], s[0:2]) || !lowerHex(t.ID[:], s[3:35]) || !lowerHex(t.Span[:], s[36:52]) || !lowerHex(flags[:], s[53:55]) {
		return bad("want lower-case hexadecimal digits")
	}
	switch {
	case version[0] == 0xff:
		return bad("version ff is forbidden")
	case version[0] == 0 && len(s) != 55:
		return bad("version 00 has nothing after its flags")
	case version[0] != 0 && len(s) > 55 && s[55] != '-':
		return bad("want a dash after the flags")
	case t.ID.IsZero():
		return bad("the trace id is zero")
	case t.Span == SpanID{}:
		return bad("the span id is zero")
	}
	t.Flags = flags[0] & Sampled
	return t, nil
}

func lowerHex(dst []byte, s string) bool {
	for i := range len(s) {
		if c := s[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	_, err := hex.Decode(dst, []byte(s))
	return err == nil
}

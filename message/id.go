package message

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"time"
)

// ID is a UUID of version 7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, 12 bits of the fraction of that
// millisecond (method 3 of §6.2), 62 random bits. Ids sort by the time they were minted.
type ID [16]byte

// NewID mints an id at the given time. The random bits come from the runtime's ChaCha8 generator, which is seeded by
// the operating system; any number of goroutines may mint at once.
func NewID(now time.Time) ID {
	var id ID
	ns := now.UnixNano()
	ms := uint64(ns / int64(time.Millisecond))
	frac := uint64(ns%int64(time.Millisecond)) << 12 / uint64(time.Millisecond)
	binary.BigEndian.PutUint64(id[:8], ms<<16|0x7000|frac)
	binary.BigEndian.PutUint64(id[8:], rand.Uint64()&^(3<<62)|2<<62)
	return id
}

// Time is when the id was minted, to 250 ns.
func (id ID) Time() time.Time {
	v := binary.BigEndian.Uint64(id[:8])
	ms, frac := v>>16, v&0x0fff
	return time.Unix(0, int64(ms)*int64(time.Millisecond)+int64(frac*uint64(time.Millisecond)>>12))
}

// Hash spreads the id over 64 bits. Sums of hashes, modulo 2^64, tell whether two sets of ids are the same without
// listing them: that is how the ledger sees a message that was skipped and another that was handled twice.
func (id ID) Hash() uint64 {
	hi, lo := bits.Mul64(binary.LittleEndian.Uint64(id[:8])^0x9e3779b97f4a7c15, binary.LittleEndian.Uint64(id[8:])^0xd1b54a32d192ed03)
	return hi ^ lo
}

// IsZero says whether there is no id.
func (id ID) IsZero() bool { return id == ID{} }

// String is the canonical form of RFC 9562 §4.
func (id ID) String() string {
	var b [36]byte
	hex.Encode(b[0:8], id[0:4])
	hex.Encode(b[9:13], id[4:6])
	hex.Encode(b[14:18], id[6:8])
	hex.Encode(b[19:23], id[8:10])
	hex.Encode(b[24:36], id[10:16])
	b[8], b[13], b[18], b[23] = '-', '-', '-', '-'
	return string(b[:])
}

// MarshalText writes the canonical form, and nothing for no id.
func (id ID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, nil
	}
	return []byte(id.String()), nil
}

// UnmarshalText reads what MarshalText wrote. On an error id stays as it was.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	v, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// ParseID reads the canonical form, in either case.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, fmt.Errorf("%q is not a message id; one looks like 0193d5a0-7b2c-7e41-9c3f-5d2f8a6b1c4e", short(s))
	}
	h := s[0:8] + s[9:13] + s[14:18] + s[19:23] + s[24:36]
	if _, err := hex.Decode(id[:], []byte(h)); err != nil {
		return ID{}, fmt.Errorf("%q is not a message id: %w", s, err)
	}
	return id, nil
}

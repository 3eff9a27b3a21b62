package message

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"
)

// A batch is what a log stores: a header and records, written once and never changed. All integers are little-endian.
//
//	  0   4 bytes  "naru"
//	  4   1 byte   version, 1
//	  5   1 byte   flags: bit 0, the batch is derived and Source is set
//	  6   2 bytes  zero
//	  8   4 bytes  CRC32C (Castagnoli) of everything else
//	 12   4 bytes  length of the whole batch
//	 16   4 bytes  offset of the first record
//	 20   4 bytes  count of records
//	 24   8 bytes  sum of the ids' hashes, modulo 2^64
//	 32   8 bytes  number of the batch among its appender's, from 1
//	 40   8 bytes  count of records in the appender's batches before this one
//	 48   8 bytes  sum of the ids' hashes in the appender's batches before this one
//	 56  16 bytes  owner: the incarnation of the process that wrote it
//	 72   8 bytes  earliest and
//	 80   8 bytes  latest time an id in it was minted, Unix milliseconds; zero in an empty batch
//	 88  16 bytes  source: log id,
//	104   4 bytes  generation,
//	108   4 bytes  partition,
//	112   8 bytes  sequence and
//	120   4 bytes  index up to which the source has been dealt with, inclusive
//	124   4 bytes  length of the mark
//	128   n bytes  the mark: what the consumer that derived the batch keeps with it
//	  …            records
//
// The running count and sum make every batch a statement about all before it: a reader that meets an unreadable batch
// knows from the next one what was in it, and the ledger has a count that does not come from positions.
const (
	batchMagic   = "naru"
	batchVersion = 1
	batchFixed   = 128
	flagDerived  = 1
)

// BatchOverhead is the size of an empty batch without a mark.
const BatchOverhead = batchFixed

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum leaves out only the four bytes that it goes to.
func checksum(raw []byte) uint32 {
	return crc32.Update(crc32.Checksum(raw[:8], castagnoli), castagnoli, raw[12:])
}

// Origin is a place in a log that a derived batch has dealt with, up to and including.
type Origin struct {
	Log        ID
	Generation uint32
	Partition  uint32
	Sequence   uint64
	Index      uint32
}

// Header is what a batch says about itself.
type Header struct {
	Count      uint32 // records
	IDSum      uint64 // sum of the ids' hashes
	Number     uint64 // of the batch among its appender's, from 1
	Running    uint64 // records in the appender's batches before this one
	RunningSum uint64 // and the sum of their ids' hashes
	Owner      ID     // incarnation of the process that wrote it
	First      time.Time
	Last       time.Time
	Derived    bool
	Source     Origin // where Derived
	Mark       []byte // may be nil
}

// Room is how many bytes a batch of messages takes at most, for Reset.
func Room(mark []byte, messages []*Message) int {
	n := batchFixed + len(mark)
	for _, m := range messages {
		n += RecordRoom(m)
	}
	return n
}

// Builder gathers messages into a batch. It is not safe for concurrent use.
type Builder struct {
	h           Header
	buf         []byte
	first, last int64
}

// Reset begins a new batch. Derived, Source and Mark are taken from h; the rest is computed, or given to Seal. The old
// batch's bytes are not used again.
func (b *Builder) Reset(h Header, sizeHint int) {
	*b = Builder{h: Header{Derived: h.Derived, Source: h.Source, Mark: h.Mark}, buf: make([]byte, batchFixed, max(sizeHint, batchFixed+len(h.Mark)))}
	b.buf = append(b.buf, h.Mark...)
}

// Add appends a message. It copies what it needs.
func (b *Builder) Add(m *Message) {
	b.buf = AppendRecord(b.buf, m)
	b.h.Count++
	b.h.IDSum += m.ID.Hash()
	ms := int64(binary.BigEndian.Uint64(m.ID[:8]) >> 16)
	if b.h.Count == 1 || ms < b.first {
		b.first = ms
	}
	if ms > b.last {
		b.last = ms
	}
}

// Bytes are the batch as it was sealed last.
func (b *Builder) Bytes() []byte { return b.buf }

// Sealed is the number the batch was last sealed with, 0 before.
func (b *Builder) Sealed() uint64 { return b.h.Number }

// IDSum is the sum of the hashes of the ids added.
func (b *Builder) IDSum() uint64 { return b.h.IDSum }

// Count is how many messages were added.
func (b *Builder) Count() int { return int(b.h.Count) }

// Len is the size of the batch so far.
func (b *Builder) Len() int { return len(b.buf) }

// Seal writes the header and gives the batch's bytes, which the builder no longer touches until Reset. It may be
// called again, with another place in the appender's row, as when the row turned out to be longer than was thought.
func (b *Builder) Seal(number, running, runningSum uint64, owner ID) []byte {
	h, p := &b.h, b.buf
	h.Number = number
	copy(p, batchMagic)
	p[4] = batchVersion
	p[5] = 0
	if h.Derived {
		p[5] = flagDerived
	}
	le := binary.LittleEndian
	le.PutUint32(p[12:], uint32(len(p)))
	le.PutUint32(p[16:], uint32(batchFixed+len(h.Mark)))
	le.PutUint32(p[20:], h.Count)
	le.PutUint64(p[24:], h.IDSum)
	le.PutUint64(p[32:], number)
	le.PutUint64(p[40:], running)
	le.PutUint64(p[48:], runningSum)
	copy(p[56:], owner[:])
	le.PutUint64(p[72:], uint64(b.first))
	le.PutUint64(p[80:], uint64(b.last))
	copy(p[88:], h.Source.Log[:])
	le.PutUint32(p[104:], h.Source.Generation)
	le.PutUint32(p[108:], h.Source.Partition)
	le.PutUint64(p[112:], h.Source.Sequence)
	le.PutUint32(p[120:], h.Source.Index)
	le.PutUint32(p[124:], uint32(len(h.Mark)))
	le.PutUint32(p[8:], checksum(p))
	return p
}

// CorruptError says where and how a batch is not what was written.
type CorruptError struct {
	Offset int // byte in the batch
	Record int // record in it, or -1 in the header
	What   string
}

// Error names the place and the fault.
func (e *CorruptError) Error() string {
	if e.Record < 0 {
		return fmt.Sprintf("corrupt batch: header, byte %d: %s", e.Offset, e.What)
	}
	return fmt.Sprintf("corrupt batch: record %d, byte %d: %s", e.Record, e.Offset, e.What)
}

// Batch is a stored batch, ready to be read. It aliases the bytes it was parsed from, which nobody may change. A Batch
// may be read by many goroutines at once, each with its own Cursor.
type Batch struct {
	Header
	raw     []byte
	records int // offset of the first
}

// ParseBatch checks length, version, CRC and header. Any fault is a *CorruptError.
func ParseBatch(raw []byte) (Batch, error) {
	bad := func(offset int, format string, args ...any) (Batch, error) {
		return Batch{}, &CorruptError{Offset: offset, Record: -1, What: fmt.Sprintf(format, args...)}
	}
	le := binary.LittleEndian
	switch {
	case len(raw) < batchFixed:
		return bad(len(raw), "cut off; a header has %d bytes", batchFixed)
	case string(raw[:4]) != batchMagic:
		return bad(0, "does not begin with %q", batchMagic)
	case raw[4] != batchVersion:
		return bad(4, "version %d; this naru reads %d", raw[4], batchVersion)
	case uint64(le.Uint32(raw[12:])) != uint64(len(raw)):
		return bad(12, "length is %d and should be %d", len(raw), le.Uint32(raw[12:]))
	case le.Uint32(raw[8:]) != checksum(raw):
		return bad(8, "CRC32C is %08x and should be %08x", checksum(raw), le.Uint32(raw[8:]))
	case raw[5]&^flagDerived != 0 || raw[6] != 0 || raw[7] != 0:
		return bad(5, "flags %02x%02x%02x are unknown", raw[5], raw[6], raw[7])
	}
	records, mark := uint64(le.Uint32(raw[16:])), uint64(le.Uint32(raw[124:]))
	if records != batchFixed+mark || records > uint64(len(raw)) {
		return bad(16, "first record at %d, with a mark of %d bytes in a batch of %d", records, mark, len(raw))
	}
	b := Batch{raw: raw, records: int(records), Header: Header{
		Count:      le.Uint32(raw[20:]),
		IDSum:      le.Uint64(raw[24:]),
		Number:     le.Uint64(raw[32:]),
		Running:    le.Uint64(raw[40:]),
		RunningSum: le.Uint64(raw[48:]),
		Owner:      ID(raw[56:72]),
		First:      time.UnixMilli(int64(le.Uint64(raw[72:]))),
		Last:       time.UnixMilli(int64(le.Uint64(raw[80:]))),
		Derived:    raw[5]&flagDerived != 0,
		Source: Origin{
			Log:        ID(raw[88:104]),
			Generation: le.Uint32(raw[104:]),
			Partition:  le.Uint32(raw[108:]),
			Sequence:   le.Uint64(raw[112:]),
			Index:      le.Uint32(raw[120:]),
		},
	}}
	if mark > 0 {
		b.Mark = raw[batchFixed:records:records]
	}
	if uint64(b.Count)*recordFixed > uint64(len(raw)) {
		return bad(20, "%d records cannot be in %d bytes", b.Count, len(raw))
	}
	return b, nil
}

// Bytes are the bytes the batch was parsed from.
func (b *Batch) Bytes() []byte { return b.raw }

// Cursor begins a walk over the records.
func (b *Batch) Cursor() Cursor { return Cursor{b: b, at: b.records} }

// Cursor walks over the records of one batch, once. When Next gives false, Err must be asked: a batch is never
// silently short.
type Cursor struct {
	b   *Batch
	at  int
	n   int
	sum uint64
	err error
}

// Next decodes the next record into m, which then aliases the batch; it gives false at the end and at a fault.
func (c *Cursor) Next(m *Message) bool {
	if c.err != nil || c.done() {
		return false
	}
	n, err := DecodeRecord(c.b.raw[c.at:], m)
	if err != nil {
		c.err = &CorruptError{Offset: c.at, Record: c.n, What: err.Error()}
		return false
	}
	c.at += n
	c.n++
	c.sum += m.ID.Hash()
	return true
}

// NextID is Next for those who want only the id; it is several times cheaper.
func (c *Cursor) NextID() (id ID, ok bool) {
	if c.err != nil || c.done() {
		return id, false
	}
	id, n, ok := decodeID(c.b.raw[c.at:])
	if !ok {
		c.err = &CorruptError{Offset: c.at, Record: c.n, What: "record is cut off"}
		return id, false
	}
	c.at += n
	c.n++
	c.sum += id.Hash()
	return id, true
}

// NextFlags is Next for those who want only the QoS and the retain flag; it is several times cheaper. It looks at no
// more of the record, and adds nothing to the sum: at the end only the length is checked.
func (c *Cursor) NextFlags() (qos uint8, retain, ok bool) {
	if c.err != nil || uint32(c.n) >= c.b.Count {
		return 0, false, false
	}
	b := c.b.raw[c.at:]
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) || n < recordFixed {
		c.err = &CorruptError{Offset: c.at, Record: c.n, What: "record is cut off"}
		return 0, false, false
	}
	flags := b[w+42]
	c.at += w + int(n)
	c.n++
	return flags & 3, flags&bitRetain != 0, true
}

// Index is how many records were read.
func (c *Cursor) Index() int { return c.n }

// Err is the fault that ended the walk, a *CorruptError; nil at a good end. Count and sum are checked at the end.
func (c *Cursor) Err() error { return c.err }

// done checks, at the end, that the records are as many, as long and as named as the header says.
func (c *Cursor) done() bool {
	if uint32(c.n) < c.b.Count {
		return false
	}
	switch {
	case c.at != len(c.b.raw):
		c.err = &CorruptError{Offset: c.at, Record: c.n, What: fmt.Sprintf("%d bytes behind the last record", len(c.b.raw)-c.at)}
	case c.sum != c.b.IDSum:
		c.err = &CorruptError{Offset: 24, Record: -1, What: "the ids do not add up to the header's sum"}
	}
	return true
}

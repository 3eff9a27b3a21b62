package kinesis

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/naru-platform/naru/message"
)

// What the Kinesis Producer Library aggregates is a record of many user records, each with a partition key and, it may be,
// an explicit hash key:
//
//	F3 89 9A C2, AggregatedRecord as protobuf, MD5 of the protobuf
//
//	message AggregatedRecord { repeated string partition_key_table = 1; repeated string explicit_hash_key_table = 2; repeated Record records = 3; }
//	message Record { required uint64 partition_key_index = 1; optional uint64 explicit_hash_key_index = 2; required bytes data = 3; repeated Tag tags = 4; }
//
// Where naru writes so, a record's first user record is the batch without its messages' payloads, and behind it each payload is a user
// record under its message's key: so another consumer reads payloads, and of naru nothing is lost. All have the token's hash key,
// since consumers drop user records that are not of their shard.
const (
	kplMagic = "\xf3\x89\x9a\xc2"

	// kplUserRoom is what a user record takes at most, beside its payload and its partition key in the table.
	kplUserRoom = 32
	kplKeyMax   = 256 // characters of a partition key, as Kinesis takes them

	// envelopePrefix stands before the place in the first user record's partition key. It makes it no place of its own: who takes user
	// records apart and puts them one by one has not put a batch.
	envelopePrefix = "batch-of-"
)

// userRecord is one of an aggregated record.
type userRecord struct {
	key  string // partition key
	hash string // explicit hash key, or empty
	data []byte
}

// isAggregated says whether data claims to be aggregated.
func isAggregated(data []byte) bool { return bytes.HasPrefix(data, []byte(kplMagic)) }

// aggregate makes one record of many.
func aggregate(users []userRecord) []byte {
	var keys, hashes kplTable
	var records, one []byte
	for _, u := range users {
		one = protowire.AppendVarint(protowire.AppendTag(one[:0], 1, protowire.VarintType), keys.index(1, u.key))
		if u.hash != "" {
			one = protowire.AppendVarint(protowire.AppendTag(one, 2, protowire.VarintType), hashes.index(2, u.hash))
		}
		one = protowire.AppendBytes(protowire.AppendTag(one, 3, protowire.BytesType), u.data)
		records = protowire.AppendBytes(protowire.AppendTag(records, 3, protowire.BytesType), one)
	}
	out := slices.Concat([]byte(kplMagic), keys.raw, hashes.raw, records)
	sum := md5.Sum(out[len(kplMagic):])
	return append(out, sum[:]...)
}

// kplTable is one of the two tables of an aggregated record, as it is written.
type kplTable struct {
	at  map[string]uint64
	raw []byte
}

func (t *kplTable) index(field protowire.Number, s string) uint64 {
	i, ok := t.at[s]
	if !ok {
		if t.at == nil {
			t.at = map[string]uint64{}
		}
		i = uint64(len(t.at))
		t.at[s] = i
		t.raw = protowire.AppendString(protowire.AppendTag(t.raw, field, protowire.BytesType), s)
	}
	return i
}

// deaggregate takes a record apart. The user records alias data.
func deaggregate(data []byte) ([]userRecord, error) {
	if !isAggregated(data) {
		return nil, errors.New("it does not begin with F3 89 9A C2")
	}
	if len(data) < len(kplMagic)+md5.Size {
		return nil, fmt.Errorf("%d bytes are less than magic and MD5 take", len(data))
	}
	inner, sum := data[len(kplMagic):len(data)-md5.Size], data[len(data)-md5.Size:]
	if is := md5.Sum(inner); !bytes.Equal(is[:], sum) {
		return nil, fmt.Errorf("its MD5 is %x, and %x is said", is, sum)
	}
	var keys, hashes []string
	var records [][]byte
	err := eachField(inner, func(field protowire.Number, _ uint64, b []byte) error {
		switch {
		case field == 1 && b != nil:
			keys = append(keys, string(b))
		case field == 2 && b != nil:
			hashes = append(hashes, string(b))
		case field == 3 && b != nil:
			records = append(records, b)
		case field <= 3:
			return fmt.Errorf("field %d is no bytes", field)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	users := make([]userRecord, 0, len(records))
	for i, raw := range records {
		u, keyed := userRecord{}, false
		err := eachField(raw, func(field protowire.Number, n uint64, b []byte) error {
			switch {
			case field == 1 && b == nil:
				if n >= uint64(len(keys)) {
					return fmt.Errorf("partition key %d of %d", n, len(keys))
				}
				u.key, keyed = keys[n], true
			case field == 2 && b == nil:
				if n >= uint64(len(hashes)) {
					return fmt.Errorf("explicit hash key %d of %d", n, len(hashes))
				}
				u.hash = hashes[n]
			case field == 3 && b != nil:
				u.data = b
			case field <= 3:
				return fmt.Errorf("field %d has the wrong type", field)
			}
			return nil
		})
		if err == nil && (!keyed || u.data == nil) {
			err = errors.New("it has no partition key, or no data")
		}
		if err != nil {
			return nil, fmt.Errorf("user record %d of %d: %w", i+1, len(records), err)
		}
		users = append(users, u)
	}
	return users, nil
}

// eachField walks over a protobuf message: of numbers b is nil, of bytes never.
func eachField(p []byte, f func(field protowire.Number, n uint64, b []byte) error) error {
	for at := 0; at < len(p); {
		field, kind, n := protowire.ConsumeTag(p[at:])
		if n < 0 {
			return fmt.Errorf("byte %d: %w", at, protowire.ParseError(n))
		}
		var number uint64
		var b []byte
		size := 0
		switch kind {
		case protowire.VarintType:
			number, size = protowire.ConsumeVarint(p[at+n:])
		case protowire.BytesType:
			if b, size = protowire.ConsumeBytes(p[at+n:]); size > 0 && b == nil {
				b = []byte{}
			}
		default:
			if size = protowire.ConsumeFieldValue(field, kind, p[at+n:]); size > 0 && field > 3 {
				at += n + size
				continue // of a later version
			}
			if size > 0 {
				return fmt.Errorf("byte %d: field %d is of type %d", at, field, kind)
			}
		}
		if size < 0 {
			return fmt.Errorf("byte %d: field %d: %w", at, field, protowire.ParseError(size))
		}
		if err := f(field, number, b); err != nil {
			return fmt.Errorf("byte %d: %w", at, err)
		}
		at += n + size
	}
	return nil
}

// export is the aggregated form of a batch for its place.
func export(at place, raw []byte, hash string) ([]byte, error) {
	batch, err := message.ParseBatch(raw)
	if err != nil {
		return nil, err
	}
	var envelope message.Builder
	envelope.Reset(batch.Header, 0)
	users := make([]userRecord, 1, batch.Count+1)
	var m message.Message
	cursor := batch.Cursor()
	for cursor.Next(&m) {
		users = append(users, userRecord{kplKey(m.Key()), hash, m.Data})
		m.Data = nil
		envelope.Add(&m)
	}
	if err := cursor.Err(); err != nil {
		return nil, err
	}
	users[0] = userRecord{envelopePrefix + at.String(), hash, envelope.Seal(batch.Number, batch.Running, batch.RunningSum, batch.Owner)}
	return aggregate(users), nil
}

// kplKey is a partition key as Kinesis takes it: 1 to 256 characters.
func kplKey(s string) string {
	s = strings.ToValidUTF8(s, "�")
	if s == "" {
		return "-"
	}
	for i := range s {
		if i >= kplKeyMax { // bytes are no fewer than characters
			return s[:i]
		}
	}
	return s
}

// isExport says whether user records are what export makes.
func isExport(users []userRecord) bool {
	return len(users) > 0 && strings.HasPrefix(users[0].key, envelopePrefix+keyPrefix+"/")
}

// reimport is the batch that export was given.
func reimport(data []byte) ([]byte, error) {
	users, err := deaggregate(data)
	if err != nil {
		return nil, err
	}
	if !isExport(users) {
		return nil, errors.New("its first user record is no batch of naru's")
	}
	envelope, err := message.ParseBatch(users[0].data)
	if err != nil {
		return nil, err
	}
	if users = users[1:]; len(users) != int(envelope.Count) {
		return nil, fmt.Errorf("it has %d payloads, and its batch %d messages", len(users), envelope.Count)
	}
	var b message.Builder
	b.Reset(envelope.Header, len(data))
	var m message.Message
	cursor := envelope.Cursor()
	for i := 0; cursor.Next(&m); i++ {
		if len(users[i].data) > 0 {
			m.Data = users[i].data
		}
		b.Add(&m)
	}
	if err := cursor.Err(); err != nil {
		return nil, err
	}
	return b.Seal(envelope.Number, envelope.Running, envelope.RunningSum, envelope.Owner), nil
}

// unit is one of our records, as it is in a record of the stream.
type unit struct {
	place
	data []byte
}

// unpack finds what is ours in a record of the stream: it itself, or user records where a producer that aggregates has passed them on.
func unpack(key string, data []byte, source message.ID) (units []unit, err error) {
	mine := func(key string) (p place, ok bool) {
		p, ok = parsePlace(key)
		return p, ok && p.source == source
	}
	p, ok := mine(key)
	if isAggregated(data) && (!ok || p.pieces == 1) { // a piece may begin with anything
		var users []userRecord
		if users, err = deaggregate(data); err == nil && !isExport(users) {
			for _, u := range users {
				if p, ok := mine(u.key); ok {
					units = append(units, unit{p, u.data})
				}
			}
			return units, nil
		}
		if ok {
			err = nil // who reads it is told in its place
		}
	}
	if ok {
		units = append(units, unit{p, data})
	}
	return units, err
}

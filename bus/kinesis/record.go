package kinesis

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// A record's data is a batch of our codec, whole or a piece of one that is larger than a record may be. Its header says
// as source the source's batch, with the chunk as the index; number, running count and sum go by row and partition of the
// Kinesis log; and its mark is the sequence of the record before it in the partition, eight bytes little-endian, and the
// row's name. Its partition key says where it belongs, so that one that cannot be read still has a place:
//
//	naru/<id of the source log>/<generation>/<partition>/<sequence>/<piece>/<pieces>
//
// Where it is configured, data is that batch in the aggregated form of kpl.go, unless it is in pieces. What a record holds does not depend on
// that, so that it may be changed between two copies of a batch.
//
// The partition of the Kinesis log is that of the source times the number of tokens, plus the token. The sequence is that
// of the source's batch, times 256, plus the chunk: what a batch has for one token may be more than a record holds.
const (
	keyPrefix = "naru"
	keyRoom   = 128 // bytes of the largest partition key
	chunkBits = 8
	chunksMax = 1 << chunkBits
)

// place is where a record belongs.
type place struct {
	source        message.ID
	gen, part     uint32
	seq           uint64
	piece, pieces int
}

func (p place) String() string {
	return fmt.Sprintf("%s/%s/%d/%d/%d/%d/%d", keyPrefix, p.source, p.gen, p.part, p.seq, p.piece, p.pieces)
}

// parsePlace reads a partition key; ok is false for a record that is not ours.
func parsePlace(key string) (p place, ok bool) {
	f := strings.Split(key, "/")
	if len(f) != 7 || f[0] != keyPrefix {
		return p, false
	}
	id, err := message.ParseID(f[1])
	if err != nil {
		return p, false
	}
	var n [5]uint64
	for i := range n {
		bits := 32
		if i == 2 {
			bits = 64
		}
		if n[i], err = strconv.ParseUint(f[i+2], 10, bits); err != nil {
			return p, false
		}
	}
	p = place{id, uint32(n[0]), uint32(n[1]), n[2], int(n[3]), int(n[4])}
	return p, p.seq > 0 && p.pieces > 0 && p.piece < p.pieces
}

// record is what is put into the stream.
type record struct {
	place
	data []byte
}

// size is what Kinesis counts.
func (r *record) size() int { return len(r.data) + len(r.place.String()) }

// row is what is known of a partition of the Kinesis log once a batch was copied: it is kept with the position in the source.
type row struct {
	Last uint64               `json:"last"` // sequence of its last record
	Rows map[string]rowCounts `json:"rows"`
}

// rowCounts are of one of the source's rows in it.
type rowCounts struct {
	Number  uint64 `json:"number"`
	Running uint64 `json:"running"` // messages up to and including the last record
	Sum     uint64 `json:"sum"`
}

func stateKey(gen, part uint32) []byte { return fmt.Appendf(nil, "copied/%d/%d", gen, part) }

// regroup makes the records of a source's batch, in order for each partition of the Kinesis log, and says what each of
// these has come to. It changes nothing.
func regroup(st bus.State, s *bus.Stored, tokens, recordMax int, aggregated bool) (map[uint32][]record, map[uint32]*row, error) {
	if s.Err != nil || s.Batch.Count == 0 {
		return nil, nil, nil
	}
	most := recordMax - keyRoom
	records, rows, open := map[uint32][]record{}, map[uint32]*row{}, map[uint32]*message.Builder{}
	chunks, room := map[uint32]uint64{}, map[uint32]int{}
	begin := func(part uint32) *message.Builder {
		mark := binary.LittleEndian.AppendUint64(nil, rows[part].Last)
		from := s.Position
		from.Index = uint32(chunks[part])
		b := new(message.Builder)
		b.Reset(message.Header{Derived: true, Source: from.Origin(), Mark: append(mark, s.Appender...)}, 0)
		open[part], room[part] = b, 2*keyRoom // what the aggregated form takes beside the batch
		return b
	}
	seal := func(part uint32) error {
		b, r := open[part], rows[part]
		if chunks[part] == chunksMax {
			return fmt.Errorf("batch %d of generation %d, partition %d has more than %d records for one token", s.Position.Sequence, s.Position.Generation, s.Position.Partition, chunksMax)
		}
		at := place{source: s.Position.Log, gen: s.Position.Generation, part: part, seq: s.Position.Sequence<<chunkBits | chunks[part]}
		c := r.Rows[s.Appender]
		raw := b.Seal(c.Number+1, c.Running, c.Sum, s.Batch.Owner)
		r.Rows[s.Appender] = rowCounts{c.Number + 1, c.Running + uint64(b.Count()), c.Sum + b.IDSum()}
		r.Last = at.seq
		chunks[part]++
		at.pieces = (len(raw) + most - 1) / most
		if aggregated && at.pieces == 1 {
			out, err := export(at, raw, hashKey(part%uint32(tokens), tokens).String())
			if err != nil {
				return err
			}
			if len(out) <= most { // not where one message alone fills the record
				raw = out
			}
		}
		for at.piece = range at.pieces {
			records[part] = append(records[part], record{at, raw[at.piece*most : min((at.piece+1)*most, len(raw))]})
		}
		return nil
	}
	var m message.Message
	var scratch []byte
	cursor := s.Batch.Cursor()
	for cursor.Next(&m) {
		part := s.Position.Partition*uint32(tokens) + bus.PartitionOf(m.Key(), tokens)
		if rows[part] == nil {
			r, err := readRow(st, s.Position.Generation, part)
			if err != nil {
				return nil, nil, err
			}
			rows[part] = r
		}
		b, more := open[part], kplUserRoom+len(m.Key())
		if b == nil {
			b = begin(part)
		}
		if b.Count() > 0 {
			if scratch = message.AppendRecord(scratch[:0], &m); b.Len()+room[part]+len(scratch)+more > most {
				if err := seal(part); err != nil {
					return nil, nil, err
				}
				b = begin(part)
			}
		}
		b.Add(&m)
		room[part] += more
	}
	if err := cursor.Err(); err != nil {
		return nil, nil, err
	}
	for part := range open {
		if err := seal(part); err != nil {
			return nil, nil, err
		}
	}
	return records, rows, nil
}

func readRow(st bus.State, gen, part uint32) (*row, error) {
	r := &row{}
	v, err := st.Get(stateKey(gen, part))
	if err != nil {
		return nil, err
	}
	if v != nil {
		if err := json.Unmarshal(v, r); err != nil {
			return nil, fmt.Errorf("what was copied into partition %d of generation %d is damaged: %w", part, gen, err)
		}
	}
	if r.Rows == nil {
		r.Rows = map[string]rowCounts{}
	}
	return r, nil
}

// origin is the source's sequence of a record.
func origin(seq uint64) uint64 { return seq >> chunkBits }

// space is how many hash keys there are.
var space = new(big.Int).Lsh(big.NewInt(1), 128)

// hashKey is where a token's records go: the middle of its share of the hash keys, so that shards that share them evenly
// share the tokens evenly.
func hashKey(token uint32, tokens int) *big.Int {
	h := new(big.Int).Mul(space, big.NewInt(2*int64(token)+1))
	return h.Quo(h, big.NewInt(2*int64(tokens)))
}

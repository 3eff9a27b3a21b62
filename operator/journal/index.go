package journal

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/bloom"
	"github.com/naru-platform/naru/message"
)

// The index has batches, and two levels of filters over them (rollup.go); integers are big-endian so that they sort.
//
//	b minute log gen part seq   one per batch: its time range, count, and a filter over ids, traces and devices
//	m minute                    the minute is rolled up: the pages of each piece of its filter
//	p minute page               one page of that filter: so that a look at a minute reads one page a piece
//	h hour, q hour page         the same of an hour
//
// A batch belongs to the minute of its newest message.
const (
	kindBatch = 'b'

	batchKeySize = 1 + 4 + 1 + 4 + 4 + 8
	batchFixed   = 8 + 8 + 4 // tmin ms, tmax ms, count; the filter follows
)

// entry is a batch in the index.
type entry struct {
	log      string
	position bus.Position // without the log's id
	min, max time.Time
	count    uint32
	filter   bloom.Filter
}

// index writes a batch's entry. An unreadable batch has none; the runner counts it.
func (j *Journal) index(_ context.Context, tx component.Tx, log string, s bus.Stored) error {
	if s.Err != nil || s.Batch.Count == 0 {
		return nil
	}
	hashes := make([]uint64, 0, 2*int(s.Batch.Count)+8)
	var device string
	var m message.Message
	cursor := s.Batch.Cursor()
	for cursor.Next(&m) {
		hashes = append(hashes, m.ID.Hash(), m.Trace.ID.Hash())
		if m.Device != "" && m.Device != device { // neighbours are often of one device
			device = m.Device
			hashes = append(hashes, deviceHash(device))
		}
	}
	if err := cursor.Err(); err != nil {
		return fmt.Errorf("index %s: %w", place(log, s.Position), err)
	}
	filter := bloom.New(len(hashes))
	for _, h := range hashes {
		filter.Add(h)
	}
	min := minuteOf(s.Batch.Last)
	value := make([]byte, batchFixed, batchFixed+len(filter))
	binary.BigEndian.PutUint64(value, uint64(s.Batch.First.UnixMilli()))
	binary.BigEndian.PutUint64(value[8:], uint64(s.Batch.Last.UnixMilli()))
	binary.BigEndian.PutUint32(value[16:], s.Batch.Count)
	if err := j.rollUp(tx, min, hashes); err != nil { // which looks for the minute's first batch
		return err
	}
	tx.Set(batchKey(min, log, s.Position), append(value, filter...))
	return nil
}

func batchKey(at uint32, log string, p bus.Position) []byte {
	k := make([]byte, 0, batchKeySize)
	k = binary.BigEndian.AppendUint32(append(k, kindBatch), at)
	k = append(k, logNumber(log))
	k = binary.BigEndian.AppendUint32(k, p.Generation)
	k = binary.BigEndian.AppendUint32(k, p.Partition)
	return binary.BigEndian.AppendUint64(k, p.Sequence)
}

// minutePrefix begins the keys of all batches of a minute; that of the next minute ends them.
func minutePrefix(at uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kindBatch}, at)
}

func parseEntry(k, v []byte) (e entry, at uint32, err error) {
	if len(k) != batchKeySize || len(v) < batchFixed+bloom.BlockSize {
		return e, 0, fmt.Errorf("journal: index entry of %d and %d bytes is damaged", len(k), len(v))
	}
	at = binary.BigEndian.Uint32(k[1:])
	e.log = logName(k[5])
	e.position = bus.Position{
		Generation: binary.BigEndian.Uint32(k[6:]),
		Partition:  binary.BigEndian.Uint32(k[10:]),
		Sequence:   binary.BigEndian.Uint64(k[14:]),
	}
	e.min = time.UnixMilli(int64(binary.BigEndian.Uint64(v)))
	e.max = time.UnixMilli(int64(binary.BigEndian.Uint64(v[8:])))
	e.count = binary.BigEndian.Uint32(v[16:])
	e.filter = bloom.Filter(v[batchFixed:])
	return e, at, nil
}

// logNumber is a log's number in keys: its place among the namespaces, which is for ever.
func logNumber(name string) byte { return byte(slices.Index(message.Namespaces(), name)) }

func logName(n byte) string {
	if all := message.Namespaces(); int(n) < len(all) {
		return all[n]
	}
	return ""
}

// deviceHash is FNV-1a of 64 bits: it is stored, so it must be the same in every process.
func deviceHash(id string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return h
}

func place(log string, p bus.Position) string {
	return fmt.Sprintf("%s/%d/%d/%d", log, p.Generation, p.Partition, p.Sequence)
}

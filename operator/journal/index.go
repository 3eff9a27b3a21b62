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

// The index has three kinds of keys, integers big-endian so that they sort.
//
//	b minute log gen part seq   one per batch: its time range, count, and a filter over ids, traces and devices
//	m minute                    the minute is rolled up: how many pages its filter has
//	p minute page               one page of that filter: so that a look at a minute reads one page, not all its batches
//
// A batch belongs to the minute of its newest message. A minute is rolled up when it has been over for two minutes; one
// that was still open when the process ended is not, and is searched batch by batch.
const (
	kindBatch  = 'b'
	kindMinute = 'm'
	kindPage   = 'p'

	batchKeySize = 1 + 4 + 1 + 4 + 4 + 8
	batchFixed   = 8 + 8 + 4 // tmin ms, tmax ms, count; the filter follows

	pageSize = 4096
	// openMax bounds what an open minute holds in memory, 32 MiB; a busier minute is searched batch by batch.
	openMax = 4 << 20
	// settle is for how many minutes a minute waits for stragglers.
	settle = 2
)

type minute struct {
	hashes   []uint64
	overflow bool
}

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
	tx.Set(batchKey(min, log, s.Position), append(value, filter...))
	return j.rollUp(tx, min, hashes)
}

// rollUp adds to the open minute and closes those that have been over for long enough.
func (j *Journal) rollUp(tx component.Tx, at uint32, hashes []uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.last == 0 {
		j.last = at // what is open now may have begun before this process did: it is left alone
	}
	if at > j.last {
		for m := j.last + 1; m <= at && at-m <= settle; m++ {
			if j.open[m] == nil {
				j.open[m] = &minute{}
			}
		}
		j.last = at
	}
	if o := j.open[at]; o != nil {
		if len(o.hashes)+len(hashes) > openMax {
			o.hashes, o.overflow = nil, true
		}
		if !o.overflow {
			o.hashes = append(o.hashes, hashes...)
		}
	} else if v, err := tx.Get(minuteKey(at)); err != nil {
		return err
	} else if v != nil {
		tx.Delete(minuteKey(at)) // a straggler: the minute's filter no longer tells all
	}
	for m, o := range j.open {
		if m+settle < j.last {
			if !o.overflow && len(o.hashes) > 0 {
				writeMinute(tx, m, o.hashes)
			}
			delete(j.open, m)
		}
	}
	return nil
}

func writeMinute(tx component.Tx, at uint32, hashes []uint64) {
	slices.Sort(hashes)
	hashes = slices.Compact(hashes)
	size := (bloom.Size(len(hashes)) + pageSize - 1) / pageSize * pageSize
	filter := bloom.Filter(make([]byte, size))
	for _, h := range hashes {
		filter.Add(h)
	}
	pages := uint32(size / pageSize)
	for p := range pages {
		tx.Set(pageKey(at, p), filter[p*pageSize:(p+1)*pageSize])
	}
	tx.Set(minuteKey(at), binary.BigEndian.AppendUint32(nil, pages))
}

// mayHold says whether a rolled-up minute may hold the key; of one that is not, it says yes.
func mayHold(v component.View, at uint32, hash uint64) (bool, error) {
	head, err := v.Get(minuteKey(at))
	if err != nil || len(head) != 4 {
		return true, err
	}
	pages := binary.BigEndian.Uint32(head)
	const blocks = pageSize / bloom.BlockSize
	block := bloom.Block(hash, int(pages)*blocks)
	page, err := v.Get(pageKey(at, uint32(block/blocks)))
	if err != nil || len(page) != pageSize {
		return true, err
	}
	one := page[block%blocks*bloom.BlockSize:][:bloom.BlockSize]
	return bloom.Filter(one).Has(hash), nil
}

func batchKey(at uint32, log string, p bus.Position) []byte {
	k := make([]byte, 0, batchKeySize)
	k = binary.BigEndian.AppendUint32(append(k, kindBatch), at)
	k = append(k, logNumber(log))
	k = binary.BigEndian.AppendUint32(k, p.Generation)
	k = binary.BigEndian.AppendUint32(k, p.Partition)
	return binary.BigEndian.AppendUint64(k, p.Sequence)
}

func minuteKey(at uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{kindMinute}, at)
}

func pageKey(at, page uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte{kindPage}, at), page)
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

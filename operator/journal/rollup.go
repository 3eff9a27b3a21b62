package journal

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/bloom"
)

// level is one level of filters over batches: by the minute, and by the hour. What a filter of a span rules out is in no
// batch of the span; so a lookup of an id that says no time asks each hour, and the minutes and batches of few.
//
// A span's filter is in pieces, each over as many keys as are held in memory. A span is open from its first batch on,
// and answers from memory; once it is over it is written and closed. A straggler opens it again. One that was open when
// the process ended lacks what was in memory: it is never written, and what is below it is searched one by one.
type level struct {
	unit       uint32 // minutes in a span
	head, page byte   // kinds of keys
	open       map[uint32]*span
}

// span is an open minute or hour.
type span struct {
	hashes  []uint64 // of the piece that grows
	pieces  []uint32 // how many pages each piece has that is written
	touched uint64   // the number of the batch that was its last
}

const (
	pageSize   = 4096
	pageBlocks = pageSize / bloom.BlockSize
	// pieceMax bounds what an open span holds in memory, 4 MiB.
	pieceMax = 512 << 10
	// openMax is how many spans of a level are open at most: the current one, those that wait for stragglers, and where
	// logs that are behind are read.
	openMax = 8
	// settle is for how many minutes a span waits before it is over.
	settle = 2
	// rest is after how many batches that were none of its own a span that is over is closed: logs that are read from far
	// behind, each at its own pace, do not open and close the same one with each batch.
	rest = 256
)

func newLevels() []*level {
	return []*level{
		{unit: 1, head: 'm', page: 'p', open: map[uint32]*span{}},
		{unit: 60, head: 'h', page: 'q', open: map[uint32]*span{}},
	}
}

// rollUp adds a batch of the minute to each level, and closes what is over.
func (j *Journal) rollUp(tx component.Tx, minute uint32, hashes []uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	spans := make([]*span, len(j.levels))
	for i, l := range j.levels { // what can fail comes first, so that a second try finds all as it was
		var err error
		if spans[i], err = l.find(tx, minute/l.unit); err != nil {
			return err
		}
	}
	j.batches++
	if minute > j.newest && minute <= minuteOf(j.env.Now())+settle { // one from a clock that is far ahead closes nothing
		j.newest = minute
	}
	for i, l := range j.levels {
		if o, at := spans[i], minute/l.unit; o != nil {
			if l.open[at] == nil {
				l.open[at] = o
				tx.Delete(l.headKey(at)) // until it is closed again
			}
			o.touched = j.batches
			o.hashes = append(o.hashes, hashes...)
			if len(o.hashes) >= pieceMax {
				l.cut(tx, at, o)
			}
		}
		l.closeOver(tx, j.newest, j.batches)
	}
	return nil
}

// find gives the span to add to, open already or not. It is nil where there are batches in it that no filter of ours has.
func (l *level) find(tx component.Tx, at uint32) (*span, error) {
	if o := l.open[at]; o != nil {
		return o, nil
	}
	head, err := tx.Get(l.headKey(at))
	if err != nil {
		return nil, err
	}
	if head != nil {
		return &span{pieces: parsePieces(head)}, nil
	}
	fresh := true
	for m := at * l.unit; fresh && m < (at+1)*l.unit; m++ {
		if err := tx.Scan(minutePrefix(m), func(_, _ []byte) bool { fresh = false; return false }); err != nil {
			return nil, err
		}
	}
	if !fresh {
		return nil, nil
	}
	return new(span), nil
}

// closeOver closes the spans that are over and at rest, and beyond openMax those that have been at rest the longest.
func (l *level) closeOver(tx component.Tx, newest uint32, batches uint64) {
	for at, o := range l.open {
		if newest >= (at+1)*l.unit+settle && batches >= o.touched+rest {
			l.close(tx, at)
		}
	}
	for len(l.open) > openMax {
		var oldest uint32
		for at, o := range l.open {
			if l.open[oldest] == nil || o.touched < l.open[oldest].touched {
				oldest = at
			}
		}
		l.close(tx, oldest)
	}
}

// close writes a span's last piece and its head.
func (l *level) close(tx component.Tx, at uint32) {
	o := l.open[at]
	l.cut(tx, at, o)
	var head []byte
	for _, n := range o.pieces {
		head = binary.BigEndian.AppendUint32(head, n)
	}
	tx.Set(l.headKey(at), head)
	delete(l.open, at)
}

// cut writes the piece that has grown.
func (l *level) cut(tx component.Tx, at uint32, o *span) {
	if len(o.hashes) == 0 {
		return
	}
	slices.Sort(o.hashes)
	keys := slices.Compact(o.hashes)
	size := (bloom.Size(len(keys)) + pageSize - 1) / pageSize * pageSize
	filter := bloom.Filter(make([]byte, size))
	for _, h := range keys {
		filter.Add(h)
	}
	first := total(o.pieces)
	pages := uint32(size / pageSize)
	for p := range pages {
		tx.Set(l.pageKey(at, first+p), filter[p*pageSize:(p+1)*pageSize])
	}
	o.pieces = append(o.pieces, pages)
	o.hashes = nil
}

// mayHold says whether a span may hold the key; of one that has no whole filter, it says yes.
func (j *Journal) mayHold(v component.View, l *level, at uint32, hash uint64) (bool, error) {
	pieces, known, has := j.inMemory(l, at, hash)
	if has {
		return true, nil
	}
	if !known {
		head, err := v.Get(l.headKey(at))
		if err != nil || head == nil {
			return true, err
		}
		if len(head)%4 != 0 {
			return true, fmt.Errorf("journal: the head of a filter has %d bytes and is damaged", len(head))
		}
		pieces = parsePieces(head)
	}
	first := uint32(0)
	for _, pages := range pieces {
		block := bloom.Block(hash, int(pages)*pageBlocks)
		page, err := v.Get(l.pageKey(at, first+uint32(block/pageBlocks)))
		if err != nil || len(page) != pageSize { // written, and not committed yet
			return true, err
		}
		if bloom.Filter(page[block%pageBlocks*bloom.BlockSize:][:bloom.BlockSize]).Has(hash) {
			return true, nil
		}
		first += pages
	}
	return false, nil
}

// inMemory asks what is open: whether it is, whether the piece that grows has the key, and which pieces to ask besides.
func (j *Journal) inMemory(l *level, at uint32, hash uint64) (pieces []uint32, known, has bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	o := l.open[at]
	if o == nil {
		return nil, false, false
	}
	return slices.Clone(o.pieces), true, slices.Contains(o.hashes, hash)
}

// forget deletes what is written of a span.
func (l *level) forget(tx component.Tx, at uint32) error {
	tx.Delete(l.headKey(at))
	return tx.Scan(l.pagesOf(at), func(k, _ []byte) bool { tx.Delete(k); return true })
}

func (l *level) headKey(at uint32) []byte { return binary.BigEndian.AppendUint32([]byte{l.head}, at) }

// pagesOf begins the keys of all pages of a span.
func (l *level) pagesOf(at uint32) []byte { return binary.BigEndian.AppendUint32([]byte{l.page}, at) }

func (l *level) pageKey(at, page uint32) []byte {
	return binary.BigEndian.AppendUint32(l.pagesOf(at), page)
}

func parsePieces(head []byte) (pieces []uint32) {
	for ; len(head) >= 4; head = head[4:] {
		pieces = append(pieces, binary.BigEndian.Uint32(head))
	}
	return pieces
}

func total(pieces []uint32) (n uint32) {
	for _, p := range pieces {
		n += p
	}
	return n
}

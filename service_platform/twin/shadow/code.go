package shadow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/naru-platform/naru/message"
)

// A document is kept as one value. Integers are uvarints, a text is its length and that many bytes.
//
//	1 byte   format, 1
//	uvarint  version
//	uvarint  changes
//	uvarint  when it was deleted, Unix milliseconds; 0 where it was not, and the end where it was
//	uvarint  since when it drifts, Unix seconds; 0 where it does not
//	uvarint  number of sources; their texts
//	uvarint  number of causes; each the message's id, 16 bytes, and the number of its source. The first is the last update
//	fields   desired
//	fields   reported
//
// Fields are their number, and for each its name and a uvarint: of an object twice the number of its fields plus one,
// which follow; of a value twice the length of its text, then the causes that wrote and changed it, then the text.
// Sources and causes that nothing refers to are left out, so a document's size follows from its state.
const format = 1

var errCorrupt = errors.New("corrupt shadow document")

// Append writes the document behind b. One of a shadow that never was is nothing.
func (d *Doc) Append(b []byte) []byte {
	if d.Version == 0 {
		return b
	}
	b = append(b, format)
	b = binary.AppendUvarint(b, d.Version)
	b = binary.AppendUvarint(b, d.Changes)
	if !d.Deleted.IsZero() {
		return binary.AppendUvarint(b, uint64(d.Deleted.UnixMilli()))
	}
	b = append(b, 0)
	drift := uint64(0)
	if !d.Drift.IsZero() {
		drift = uint64(d.Drift.Unix())
	}
	b = binary.AppendUvarint(b, drift)
	w := writer{d: d, places: make([]int32, len(d.causes))}
	w.use(d.last)
	w.gather(d.desired)
	w.gather(d.reported)
	b = w.appendCauses(b)
	b = w.appendFields(b, d.desired)
	return w.appendFields(b, d.reported)
}

// writer numbers the causes anew.
type writer struct {
	d      *Doc
	places []int32 // from 1; 0 is unused
	used   []int32
}

func (w *writer) use(cause int32) {
	if w.places[cause] == 0 {
		w.used = append(w.used, cause)
		w.places[cause] = int32(len(w.used))
	}
}

func (w *writer) gather(fields []node) {
	for i := range fields {
		f := &fields[i]
		if f.value() {
			w.use(f.wrote)
			w.use(f.change)
		} else {
			w.gather(f.fields)
		}
	}
}

func (w *writer) appendCauses(b []byte) []byte {
	var room [8]string
	sources := room[:0]
	place := func(source string) int {
		for i, s := range sources {
			if s == source {
				return i
			}
		}
		sources = append(sources, source)
		return len(sources) - 1
	}
	var places [16]int
	numbers := places[:0]
	for _, c := range w.used {
		numbers = append(numbers, place(w.d.causes[c].Source))
	}
	b = binary.AppendUvarint(b, uint64(len(sources)))
	for _, s := range sources {
		b = appendText(b, s)
	}
	b = binary.AppendUvarint(b, uint64(len(w.used)))
	for i, c := range w.used {
		b = append(b, w.d.causes[c].ID[:]...)
		b = binary.AppendUvarint(b, uint64(numbers[i]))
	}
	return b
}

func (w *writer) appendFields(b []byte, fields []node) []byte {
	return w.appendEach(binary.AppendUvarint(b, uint64(len(fields))), fields)
}

func (w *writer) appendEach(b []byte, fields []node) []byte {
	for i := range fields {
		f := &fields[i]
		b = appendText(b, f.key)
		if !f.value() {
			b = w.appendEach(binary.AppendUvarint(b, uint64(len(f.fields))<<1|1), f.fields)
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(f.text))<<1)
		b = binary.AppendUvarint(b, uint64(w.places[f.wrote]-1))
		b = binary.AppendUvarint(b, uint64(w.places[f.change]-1))
		b = append(b, f.text...)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// Decode reads a document; nothing at all is one of a shadow that never was. The error says what is wrong with bytes
// that Append did not write.
func Decode(b []byte) (*Doc, error) {
	if len(b) == 0 {
		return &Doc{}, nil
	}
	r := reader{s: string(b)}
	if f := r.byte(); f != format {
		return nil, fmt.Errorf("shadow document of format %d; this program knows %d", f, format)
	}
	d := &Doc{Version: r.uvarint(), Changes: r.uvarint()}
	if deleted := r.uvarint(); deleted != 0 {
		d.Deleted = time.UnixMilli(int64(deleted))
		return d, r.end()
	}
	if drift := r.uvarint(); drift != 0 {
		d.Drift = time.Unix(int64(drift), 0)
	}
	sources := make([]string, r.count(1))
	for i := range sources {
		sources[i] = r.text(r.uvarint())
	}
	causes := r.count(len(message.ID{}) + 1)
	d.causes = make([]Cause, causes, causes+1) // an update adds one
	for i := range d.causes {
		copy(d.causes[i].ID[:], r.text(uint64(len(message.ID{}))))
		n := r.uvarint()
		if n >= uint64(len(sources)) {
			return nil, errCorrupt
		}
		d.causes[i].Source = sources[n]
	}
	r.causes = uint64(len(d.causes))
	d.desired = r.fields(uint64(r.count(2)), 0)
	d.reported = r.fields(uint64(r.count(2)), 0)
	if d.Version == 0 || r.causes == 0 {
		return nil, errCorrupt
	}
	return d, r.end()
}

// reader reads until the first fault, and gives nothing from there on.
type reader struct {
	s      string
	bad    bool
	causes uint64 // how many there are
	room   []node
}

func (r *reader) end() error {
	if r.bad || r.s != "" {
		return errCorrupt
	}
	return nil
}

func (r *reader) byte() byte {
	if r.s == "" {
		r.bad = true
		return 0
	}
	c := r.s[0]
	r.s = r.s[1:]
	return c
}

func (r *reader) uvarint() (v uint64) {
	for shift := 0; shift < 64; shift += 7 {
		c := r.byte()
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
	r.bad = true
	return 0
}

// count reads the number of things that take so many bytes each at least, so that it cannot ask for more memory than
// there are bytes.
func (r *reader) count(each int) int {
	n := r.uvarint()
	if n > uint64(len(r.s)/each) {
		r.bad, n = true, 0
	}
	return int(n)
}

func (r *reader) text(n uint64) string {
	if n > uint64(len(r.s)) {
		r.bad, n = true, 0
	}
	s := r.s[:n]
	r.s = r.s[n:]
	return s
}

func (r *reader) fields(n uint64, level int) []node {
	if n > uint64(len(r.s)/2) || level > levelsMax {
		r.bad = true
	}
	if r.bad || n == 0 {
		return nil
	}
	fields := r.take(int(n))
	for i := range fields {
		f := &fields[i]
		f.key = r.text(r.uvarint())
		head := r.uvarint()
		if head&1 != 0 {
			if f.fields = r.fields(head>>1, level+1); f.fields == nil {
				r.bad = true
				return nil
			}
		} else {
			wrote, change := r.uvarint(), r.uvarint()
			f.text = r.text(head >> 1)
			if wrote >= r.causes || change >= r.causes || f.text == "" {
				r.bad = true
				return nil
			}
			f.wrote, f.change = int32(wrote), int32(change)
		}
		if i > 0 && fields[i-1].key >= f.key {
			r.bad = true
			return nil
		}
	}
	return fields
}

// take gives n nodes.
func (r *reader) take(n int) []node {
	if cap(r.room)-len(r.room) < n {
		r.room = make([]node, 0, max(16, n))
	}
	from := len(r.room)
	r.room = r.room[:from+n]
	return r.room[from : from+n : from+n]
}

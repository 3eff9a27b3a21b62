package message

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

var rewrite = flag.Bool("golden", false, "write golden files that are missing; one that was released is never written again")

// whole has every field set.
func whole() *Message {
	at := time.Unix(1_700_000_000, 123_456_789)
	return &Message{
		ID:    ID{1, 0x8b, 0xcf, 0xe5, 0x68, 0, 0x71, 0xf9, 0x80, 9, 10, 11, 12, 13, 14, 15},
		Trace: Trace{ID: TraceID{1, 0x8b, 0xcf, 0xe5, 0x68, 0, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, Span: SpanID{1, 2, 3, 4, 5, 6, 7, 8}, Flags: Sampled},
		Cause: ID{2, 0x8b, 0xcf, 0xe5, 0x68}, Subject: "device.d-17.telemetry", Source: "//naru/device/d-17", Type: "device.telemetry.v1", Device: "d-17",
		Time: at, ContentType: "application/json", Schema: "urn:x", Expires: at.Add(time.Hour), Depth: 3, QoS: 1, Retain: true, Text: true,
		ReplyTo: "device.d-17.reply", Correlation: []byte{0, 255}, Properties: Properties(nil).Add("k", "v").Add("k", "").Add("", "나루"), Data: []byte(`{"celsius":21.5}`),
	}
}

func small(n int) *Message {
	m := &Message{ID: NewID(time.Unix(1_700_000_000, int64(n)*1000)), Trace: Trace{ID: TraceID{1}}, Subject: "a.b", Data: bytes.Repeat([]byte{byte(n)}, n)}
	return m
}

func build(h Header, ms ...*Message) []byte {
	var b Builder
	b.Reset(h, 0)
	for _, m := range ms {
		b.Add(m)
	}
	return b.Seal(7, 100, 0xfeed, ID{9})
}

func TestBatchGivesBackWhatWasPutIn(t *testing.T) {
	big := whole()
	big.Data = bytes.Repeat([]byte("x"), 3<<20) // its length does not fit the three bytes kept for it
	want := []*Message{whole(), {ID: ID{1}, Subject: "a"}, big, small(5)}
	h := Header{Derived: true, Source: Origin{Log: ID{5}, Generation: 2, Partition: 3, Sequence: 4, Index: 5}, Mark: []byte("mark")}
	b, err := ParseBatch(build(h, want...))
	if err != nil {
		t.Fatal(err)
	}
	if b.Count != 4 || b.Number != 7 || b.Running != 100 || b.RunningSum != 0xfeed || b.Owner != (ID{9}) || !b.Derived || b.Source != h.Source || string(b.Mark) != "mark" {
		t.Errorf("header %+v", b.Header)
	}
	var m Message
	c := b.Cursor()
	for i, w := range want {
		if !c.Next(&m) {
			t.Fatal(c.Err())
		}
		got := m.Clone()
		if w.Data == nil {
			w.Data = []byte{}
		}
		if got.Data == nil {
			got.Data = []byte{}
		}
		if !got.Time.Equal(w.Time) || !got.Expires.Equal(w.Expires) {
			t.Errorf("message %d: times %v %v", i, got.Time, got.Expires)
		}
		got.Time, got.Expires = w.Time, w.Expires
		if !reflect.DeepEqual(got, w) {
			t.Errorf("message %d is\n%+v; want\n%+v", i, got, w)
		}
	}
	if c.Next(&m) || c.Err() != nil {
		t.Errorf("after the end: %v", c.Err())
	}
}

func TestEveryFlippedByteAndEveryCutIsNoticed(t *testing.T) {
	raw := build(Header{}, small(3), whole())
	walk := func(b []byte) error {
		p, err := ParseBatch(b)
		if err != nil {
			return err
		}
		var m Message
		c := p.Cursor()
		for c.Next(&m) {
		}
		return c.Err()
	}
	if err := walk(raw); err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for _, bit := range []byte{1, 0x80, 0xff} {
			b := bytes.Clone(raw)
			b[i] ^= bit
			var corrupt *CorruptError
			if err := walk(b); !errors.As(err, &corrupt) {
				t.Fatalf("byte %d flipped by %02x: %v", i, bit, err)
			}
		}
		var corrupt *CorruptError
		if err := walk(raw[:i]); !errors.As(err, &corrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func TestFieldsOfTheFutureAreSkipped(t *testing.T) {
	record := AppendRecord(nil, &Message{ID: ID{1}, Subject: "a", Data: []byte("data")})
	body := record[3:]
	fixed := bytes.Clone(body[:recordFixed])
	rest := body[recordFixed+1:] // behind a presence of one byte: subject, then data
	future := append(fixed, 0x81, 0x80, 0x01)
	future = append(future, rest[:2]...)
	future = append(future, 3, 'n', 'e', 'w')
	future = append(future, rest[2:]...)
	record = append([]byte{byte(len(future)) | 0x80, byte(len(future)>>7) | 0x80, 0}, future...)
	var m Message
	if n, err := DecodeRecord(record, &m); err != nil || n != len(record) || m.Subject != "a" || string(m.Data) != "data" {
		t.Errorf("%d, %v, %+v", n, err, m)
	}
}

// TestWireFormatIsForEver reads every format that was ever released.
func TestWireFormatIsForEver(t *testing.T) {
	cases := map[string][]byte{
		"v1-whole.bin":   build(Header{}, whole(), whole()),
		"v1-derived.bin": build(Header{Derived: true, Source: Origin{Log: ID{5}, Generation: 1, Sequence: 9}, Mark: []byte{1, 2, 3}}, whole()),
		"v1-empty.bin":   build(Header{}),
	}
	for name, now := range cases {
		file := filepath.Join("testdata", "wire", name)
		if _, err := os.Stat(file); *rewrite && err != nil {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, now, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		old, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(old, now) {
			t.Errorf("%s is no longer what is written; a new format needs a new version", name)
		}
		if _, err := ParseBatch(old); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadingABatchAllocatesNothingPerMessage(t *testing.T) {
	raw := thousand()
	var m Message
	if n := testing.AllocsPerRun(10, func() {
		b, err := ParseBatch(raw)
		if err != nil {
			t.Fatal(err)
		}
		for c := b.Cursor(); c.Next(&m); {
		}
	}); n > 3 {
		t.Errorf("%.0f allocations for a thousand messages", n)
	}
}

func TestFlagsAreReadWithoutTheRest(t *testing.T) {
	var b Builder
	b.Reset(Header{}, 0)
	for i := range 8 {
		m := small(i)
		m.QoS, m.Retain = uint8(i%3), i%2 == 0
		b.Add(m)
	}
	batch, err := ParseBatch(b.Seal(1, 0, 0, ID{}))
	if err != nil {
		t.Fatal(err)
	}
	c := batch.Cursor()
	for i := range 8 {
		if qos, retain, ok := c.NextFlags(); !ok || int(qos) != i%3 || retain != (i%2 == 0) {
			t.Errorf("record %d has QoS %d, retain %t, %t", i, qos, retain, ok)
		}
	}
	if _, _, ok := c.NextFlags(); ok || c.Err() != nil {
		t.Errorf("there is no end: %v", c.Err())
	}
}

func FuzzParseBatch(f *testing.F) {
	f.Add(build(Header{}, whole(), small(3)))
	f.Add(build(Header{Derived: true, Mark: []byte("m")}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := ParseBatch(raw)
		if err != nil {
			return
		}
		var m Message
		c := b.Cursor()
		for c.Next(&m) {
		}
		if c.Err() == nil && c.Index() != int(b.Count) {
			t.Fatalf("silently short: %d of %d", c.Index(), b.Count)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(AppendRecord(nil, whole()))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var m, again Message
		n, err := DecodeRecord(raw, &m)
		if err != nil {
			return
		}
		if n > len(raw) {
			t.Fatalf("took %d of %d bytes", n, len(raw))
		}
		first := AppendRecord(nil, &m)
		if _, err := DecodeRecord(first, &again); err != nil {
			t.Fatal(err)
		}
		if second := AppendRecord(nil, &again); !bytes.Equal(first, second) {
			t.Fatal("written differently the second time")
		}
	})
}

func thousand() []byte {
	var b Builder
	b.Reset(Header{}, 0)
	m := whole()
	m.Data = make([]byte, 200)
	for i := range 1000 {
		m.ID = NewID(time.Unix(1_700_000_000, int64(i)*1000))
		b.Add(m)
	}
	return b.Seal(1, 0, 0, ID{1})
}

func BenchmarkBatchRead(b *testing.B) {
	raw := thousand()
	var m Message
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		p, _ := ParseBatch(raw)
		for c := p.Cursor(); c.Next(&m); {
		}
	}
}

func BenchmarkBatchReadIDs(b *testing.B) {
	raw := thousand()
	for b.Loop() {
		p, _ := ParseBatch(raw)
		for c := p.Cursor(); ; {
			if _, ok := c.NextID(); !ok {
				break
			}
		}
	}
}

func BenchmarkAppendRecord(b *testing.B) {
	m := whole()
	m.Data = make([]byte, 200)
	var buf []byte
	for b.Loop() {
		buf = AppendRecord(buf[:0], m)
	}
}

func TestRecordTellsAWill(t *testing.T) {
	for _, will := range []bool{false, true} {
		var got Message
		if _, err := DecodeRecord(AppendRecord(nil, &Message{Subject: "a", Will: will, QoS: 1}), &got); err != nil || got.Will != will || got.QoS != 1 {
			t.Errorf("%v became %+v (%v)", will, got, err)
		}
	}
}

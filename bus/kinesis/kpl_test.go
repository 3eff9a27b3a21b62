package kinesis

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// golden is written by hand from the published format, its MD5 by another program: a has an explicit hash key, bb none and no bytes.
const golden = "f3899ac2" + "0a0161" + "0a026262" + "120131" + "1a07" + "0800" + "1000" + "1a0178" + "1a04" + "0801" + "1a00" + "ec0806b6771a1cc322414870669a583c"

func TestAggregatedFormIsThePublishedOne(t *testing.T) {
	raw, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	users := []userRecord{{"a", "1", []byte("x")}, {"bb", "", []byte{}}}
	if got := aggregate(users); !bytes.Equal(got, raw) {
		t.Errorf("wrote %x,\nwant  %x", got, raw)
	}
	if got, err := deaggregate(raw); err != nil || !reflect.DeepEqual(got, users) {
		t.Errorf("read %v, %v", got, err)
	}
}

// framed is an aggregated record with some protobuf in it.
func framed(inner ...byte) []byte {
	sum := md5.Sum(inner)
	return append(append([]byte(kplMagic), inner...), sum[:]...)
}

func TestAggregatedRecordThatIsBrokenIsRefused(t *testing.T) {
	raw, _ := hex.DecodeString(golden)
	changed := bytes.Clone(raw)
	changed[6]++
	user := func(fields ...byte) []byte { return append([]byte{0x0a, 1, 'a', 0x1a, byte(len(fields))}, fields...) }
	for want, data := range map[string][]byte{
		"it does not begin with":       raw[1:],
		"less than magic and MD5":      raw[:15],
		"its MD5 is":                   changed,
		"MD5 is":                       raw[:len(raw)-1],
		"no partition key, or no data": framed(user(0x08, 0)...),
		"user record 1 of 1":           framed(user(0x1a, 1, 'x')...),
		"partition key 1 of 1":         framed(user(0x08, 1, 0x1a, 0)...),
		"explicit hash key 0 of 0":     framed(user(0x08, 0, 0x10, 0, 0x1a, 0)...),
		"field 3 has the wrong type":   framed(user(0x08, 0, 0x18, 0)...),
		"field 1 is no bytes":          framed(0x08, 1),
		"field 2: unexpected EOF":      framed(0x12, 9, 'a'),
		"byte 0: field 1 is of type 5": framed(0x0d, 1, 2, 3, 4),
		"byte 0: unexpected EOF":       framed(0x80),
		"byte 0: proto:":               framed(0x00),
		"overflow":                     framed(bytes.Repeat([]byte{0xff}, 12)...),
	} {
		if _, err := deaggregate(data); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%x is answered with %v, want %s", data, err, want)
		}
	}
	later := framed(append(user(0x08, 0, 0x1a, 1, 'x', 0x22, 3, 0x0a, 1, 't', 0x29, 1, 2, 3, 4, 5, 6, 7, 8), 0x25, 1, 2, 3, 4, 0x28, 1)...)
	if users, err := deaggregate(later); err != nil || len(users) != 1 || string(users[0].data) != "x" {
		t.Errorf("with tags, and fields of a later version: %v, %v", users, err)
	}
}

func FuzzDeaggregate(f *testing.F) {
	raw, _ := hex.DecodeString(golden)
	f.Add(raw[4 : len(raw)-md5.Size])
	f.Add([]byte{0x0a, 1, 'a', 0x1a, 4, 0x08, 0, 0x1a, 0, 0x22, 0})
	f.Fuzz(func(t *testing.T, inner []byte) {
		_, _ = deaggregate(inner)
		data := framed(inner...)
		users, err := deaggregate(data)
		if err != nil {
			return
		}
		again, err := deaggregate(aggregate(users))
		if err != nil || !reflect.DeepEqual(again, users) {
			t.Errorf("%v is read as %v, %v", users, again, err)
		}
		_, _ = reimport(data)
		_, _ = unpack("k", data, message.ID{1})
	})
}

// batch is a sealed one of messages of many kinds, with what a record's has.
func batch(t testing.TB) []byte {
	t.Helper()
	var b message.Builder
	b.Reset(message.Header{Derived: true, Source: message.Origin{Log: message.NewID(time.Now()), Generation: 1, Sequence: 7}, Mark: []byte("\x00\x00\x00\x00\x00\x00\x00\x00door")}, 0)
	for i := range 50 {
		m := message.Message{ID: message.NewID(time.Now()), Subject: message.NewSubject("data_platform", "t", fmt.Sprint("d-", i)), Device: fmt.Sprint("d-", i%7), ContentType: "application/json"}
		switch i % 5 {
		case 0: // no payload
		case 1:
			m.Device = ""
			fallthrough
		default:
			m.Data = bytes.Repeat([]byte{byte(i)}, i)
		}
		b.Add(&m)
	}
	return b.Seal(9, 400, 12345, message.NewID(time.Now()))
}

func TestExportedBatchIsReadAsItWas(t *testing.T) {
	raw := batch(t)
	at := place{source: message.NewID(time.Now()), gen: 1, part: 3, seq: 7 << chunkBits, pieces: 1}
	out, err := export(at, raw, "42")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := reimport(out); err != nil || !bytes.Equal(again, raw) {
		t.Errorf("read other bytes than were written, %v", err)
	}
	users, err := deaggregate(out)
	if err != nil {
		t.Fatal(err)
	}
	was, err := message.ParseBatch(raw)
	if err != nil {
		t.Fatal(err)
	}
	cursor := was.Cursor()
	var m message.Message
	for i := 0; cursor.Next(&m); i++ {
		if u := users[i+1]; u.key != m.Key() || u.hash != "42" || !bytes.Equal(u.data, m.Data) {
			t.Errorf("user record %d is %+v, want the payload under %s", i+1, u, m.Key())
		}
	}
	// Who puts the user records one by one has not put a batch without payloads in its place.
	if units, err := unpack(users[0].key, users[0].data, at.source); len(units) != 0 || err != nil {
		t.Errorf("the first user record alone is taken for %v, %v", units, err)
	}
	if _, err := reimport(aggregate(users[:50])); err == nil || !strings.Contains(err.Error(), "49 payloads, and its batch 50 messages") {
		t.Errorf("without the last payload: %v", err)
	}
}

func TestPartitionKeyIsOneThatKinesisTakes(t *testing.T) {
	for in, want := range map[string]string{"": "-", "d-1": "d-1", "a\xff": "a�", strings.Repeat("é", 300): strings.Repeat("é", 128)} {
		if got := kplKey(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestAggregatedCopyIsReadWhateverIsConfigured(t *testing.T) {
	for _, first := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, 2, Options{Config: Config{Tokens: 4, Aggregate: first}, RecordMax: 1 << 14})
			want := map[string][]message.ID{}
			var list []*message.Message
			for i := range 1200 {
				m := s.message(fmt.Sprint("d-", i%9))
				m.Data = bytes.Repeat([]byte("x"), 200)
				switch {
				case i == 100:
					m.Data = bytes.Repeat([]byte("x"), 40<<10) // in pieces
				case i%100 == 7:
					m.Data = bytes.Repeat([]byte("x"), 1<<14-200-i) // it fills a record, some of them with no room for the form
				}
				list = append(list, m)
				want[m.Device] = append(want[m.Device], m.ID)
			}
			w, err := s.source.Writer(t.Context(), bus.WriterOptions{Name: "w", Owner: message.NewID(time.Now())})
			s.must(err)
			_, err = w.Write(t.Context(), bus.Position{}, nil, list)
			s.must(err)
			puts := 0
			s.f.change = func(data []byte, _ string) []byte {
				if puts++; puts == 16 { // in the middle of the batch
					s.f.down = true
				}
				return data
			}
			if err := s.copyWith(s.st, &s.copied, false); err == nil {
				t.Fatal("copied while Kinesis was away")
			}
			s.f.set(func() { s.f.down = false })
			clear(s.st.fresh)
			s.l.o.Aggregate = !first // after a restart
			s.copy()
			aggregated := 0
			for _, r := range s.f.all() {
				if len(r.data)+len(r.key) > 1<<14 {
					t.Errorf("a record of %d bytes", len(r.data))
				}
				if isAggregated(r.data) {
					aggregated++
				}
			}
			if n := len(s.f.all()); aggregated < 5 || aggregated > n-5 {
				t.Errorf("%d of %d records are aggregated: want both kinds", aggregated, n)
			}
			s.same(s.read(1200, nil), want)
		})
	}
}

// passOn has another producer put all there is into another stream's place: aggregated, so many to a record, under a key of its own.
func (s *scene) passOn(together int, key func(first fakeRecord) string) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	shard := s.f.shards[0]
	old := shard.records
	shard.records = nil
	for len(old) > 0 {
		n := min(together, len(old))
		users := []userRecord{{"somebody", "", []byte("else's")}}
		for _, r := range old[:n] {
			users = append(users, userRecord{r.key, "7", r.data})
		}
		shard.records = append(shard.records, fakeRecord{old[n-1].seq, key(old[0]), aggregate(users)})
		old = old[n:]
	}
}

func TestRecordsThatAnotherProducerPassedOnAreRead(t *testing.T) {
	for name, key := range map[string]func(fakeRecord) string{
		"KPL's key":       func(fakeRecord) string { return "a" },
		"the first's key": func(first fakeRecord) string { return first.key },
	} {
		for _, ours := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", ours), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newScene(t, 1, Options{Config: Config{Tokens: 1, Aggregate: ours}})
					want := s.say(100, 5)
					s.copy()
					s.passOn(40, key)
					s.same(s.read(100, nil), want)

					// A reader that goes on in the middle of a record has all that is behind it, also from an anchor that was left there.
					r, err := s.l.Reader(t.Context(), bus.Position{Generation: 1})
					s.must(err)
					defer r.Close()
					for seq := uint64(1); seq <= 60; seq++ {
						time.Sleep(anchorEvery)
						b, err := r.Next(t.Context())
						s.must(err)
						if s.must(b.Err); b.Position.Sequence != seq<<chunkBits {
							t.Fatalf("read %d, want %d", b.Position.Sequence>>chunkBits, seq)
						}
					}
					synctest.Wait()
					s.l.mu.Lock()
					left := s.l.anchors(1, 0)
					s.l.mu.Unlock()
					if len(left) == 0 {
						t.Fatal("no anchor was left")
					}
					for _, a := range left {
						from := map[uint32]bus.Position{0: {Log: s.l.ID(), Generation: 1, Sequence: a.Seq}}
						n := 100 - int(origin(a.Seq))
						got := s.read(n, from)
						total := 0
						for _, ids := range got {
							total += len(ids)
						}
						if total != n {
							t.Errorf("behind %d there are %d messages, want %d", origin(a.Seq), total, n)
						}
					}
				})
			})
		}
	}
}

func TestBrokenAggregatedRecordNamesShardAndSequence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		s := newScene(t, 1, Options{Config: Config{Tokens: 1, Aggregate: true}})
		s.l.o.Log = slog.New(slog.NewTextHandler(&said, nil))
		s.f.change = func(data []byte, key string) []byte {
			if p, _ := parsePlace(key); p.seq == 2<<chunkBits {
				data[len(data)-1] ^= 1
			}
			return data
		}
		s.say(3, 1)
		s.copy()
		s.f.set(func() { // and one of somebody else
			shard := s.f.shards[0]
			shard.records = append(shard.records, fakeRecord{"904", "theirs", append([]byte(kplMagic), make([]byte, 20)...)})
		})
		r, err := s.l.Reader(t.Context(), bus.Position{Generation: 1})
		s.must(err)
		defer r.Close()
		for seq := uint64(1); seq <= 3; seq++ {
			b, err := r.Next(t.Context())
			s.must(err)
			if b.Position.Sequence != seq<<chunkBits || (b.Err != nil) != (seq == 2) {
				t.Errorf("read %d with error %v", b.Position.Sequence>>chunkBits, b.Err)
			}
			var corrupt *message.CorruptError
			if seq == 2 && (!errors.As(b.Err, &corrupt) || !strings.Contains(b.Err.Error(), "shard shardId-000000000000, sequence 902: its MD5 is")) {
				t.Errorf("ours is told as %v", b.Err)
			}
		}
		s.b.Close() // so that nobody writes there any more
		if !strings.Contains(said.String(), "shard=shardId-000000000000 sequence=904") || !strings.Contains(said.String(), "MD5") {
			t.Errorf("that of another is told as\n%s", said.String())
		}
	})
}

func BenchmarkExport(b *testing.B) {
	var list message.Builder
	list.Reset(message.Header{}, 1<<20)
	for i := range 1000 {
		list.Add(&message.Message{ID: message.NewID(time.Now()), Subject: message.NewSubject("data_platform", "t", "d"), Device: fmt.Sprint("d-", i%200), Data: make([]byte, 200)})
	}
	raw := list.Seal(1, 0, 0, message.NewID(time.Now()))
	for b.Loop() {
		out, err := export(place{seq: 1, pieces: 1}, raw, "1")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := reimport(out); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

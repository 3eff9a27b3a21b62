package message

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestIDIsAUUIDOfVersion7(t *testing.T) {
	// RFC 9562 §A.6: Tuesday, February 22, 2022 2:22:22 PM GMT-05:00.
	example, err := ParseID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2022, 2, 22, 19, 22, 22, 0, time.UTC)
	if got := example.Time().Truncate(time.Millisecond); !got.Equal(at) {
		t.Errorf("the example of RFC 9562 is from %v; want %v", got, at)
	}
	if id := NewID(at); !bytes.Equal(id[:6], example[:6]) {
		t.Errorf("an id minted then is %s; want one that begins as %s", id, example)
	}
	var ones, zeros ID // over all ids: which bits were ever 1, and ever 0
	for range 1000 {
		id := NewID(at)
		if id[6]>>4 != 7 || id[8]>>6 != 2 {
			t.Fatalf("%s has version %d and variant %02b", id, id[6]>>4, id[8]>>6)
		}
		for i := range id {
			ones[i] |= id[i]
			zeros[i] |= ^id[i]
		}
	}
	random := ID{8: 0x3f, 9: 0xff, 10: 0xff, 11: 0xff, 12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff}
	for i := range random {
		if ones[i]&zeros[i] != random[i] {
			t.Errorf("byte %d: the bits %08b are random; want %08b", i, ones[i]&zeros[i], random[i])
		}
	}
}

func TestIDKeepsItsTimeAndOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	times := []time.Time{time.Unix(0, 0), time.Unix(1_700_000_000, 999_999), time.Unix(1_700_000_000, 999_999_999)}
	for range 5000 {
		times = append(times, time.Unix(1_700_000_000+r.Int64N(1<<32), r.Int64N(1e9)))
	}
	for _, at := range times {
		id := NewID(at)
		if d := at.Sub(id.Time()); d < 0 || d > 250*time.Nanosecond {
			t.Fatalf("%s, minted at %v, says %v", id, at, id.Time())
		}
		for _, later := range []time.Duration{250, time.Microsecond, time.Millisecond, time.Second} {
			if next := NewID(at.Add(later)); bytes.Compare(id[:], next[:]) >= 0 || id.String() >= next.String() {
				t.Fatalf("%s does not sort before %s, minted %v later", id, next, later)
			}
		}
	}
}

func TestIDsMintedAtOnceDiffer(t *testing.T) {
	at, each := time.Unix(1_700_000_000, 0), make(chan []ID)
	for range 4 {
		go func() {
			ids := make([]ID, 5000)
			for i := range ids {
				ids[i] = NewID(at)
			}
			each <- ids
		}()
	}
	seen, hashes := map[ID]bool{}, map[uint64]bool{}
	for range 4 {
		for _, id := range <-each {
			seen[id], hashes[id.Hash()] = true, true
		}
	}
	if len(seen) != 20_000 || len(hashes) != 20_000 {
		t.Errorf("20000 ids, of which %d differ, and %d in their hash", len(seen), len(hashes))
	}
}

// The ledger keeps sums of hashes in the log; they must be the same in every naru there will be.
func TestHashOfAnIDIsForEver(t *testing.T) {
	for text, want := range map[string]uint64{
		"00000000-0000-0000-0000-000000000000": 0xd6cb8892a926a943,
		"017f22e2-79b0-7cc3-98c4-dc0c0c07398f": 0xeda771abe942ea71,
	} {
		id, err := ParseID(text)
		if err != nil || id.Hash() != want || TraceID(id).Hash() != want {
			t.Errorf("hash of %s is %#016x, %v; want %#016x", text, id.Hash(), err, want)
		}
	}
}

func TestIDIsReadAsItIsWritten(t *testing.T) {
	const text = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"
	for _, s := range []string{text, strings.ToUpper(text)} {
		if id, err := ParseID(s); err != nil || id.String() != text || id.IsZero() {
			t.Errorf("ParseID(%s) is %s, %v", s, id, err)
		}
	}
	type holder struct{ ID, None ID }
	id, _ := ParseID(text)
	written, err := json.Marshal(holder{ID: id})
	if want := `{"ID":"` + text + `","None":""}`; err != nil || string(written) != want {
		t.Errorf("JSON is %s, %v; want %s", written, err, want)
	}
	back := holder{None: id}
	if err := json.Unmarshal(written, &back); err != nil || back != (holder{ID: id}) {
		t.Errorf("%s is read as %+v, %v", written, back, err)
	}
	for _, bad := range []string{
		text[:35], text + "0", strings.ReplaceAll(text, "-", ""), strings.Replace(text, "f", "g", 1), " " + text[1:],
		"{" + text + "}", "017f22e279b0--7cc3-98c4-dc0c0c07398f", "나루", strings.Repeat("0", 5000),
	} {
		kept := id
		err := kept.UnmarshalText([]byte(bad))
		if err == nil || kept != id || len(err.Error()) > 250 {
			t.Errorf("UnmarshalText(%.50q): %v, and the id is %s; want a short error and the id as it was", bad, err, kept)
		}
	}
	if _, err := ParseID(""); err == nil {
		t.Error("ParseID of nothing is an id")
	}
}

func TestIDsSortLikeTheirTexts(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	ids := make([]ID, 1000)
	for i := range ids {
		ids[i] = NewID(time.Unix(r.Int64N(1<<33), 0))
	}
	slices.SortFunc(ids, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
	if !slices.IsSortedFunc(ids, func(a, b ID) int { return strings.Compare(a.String(), b.String()) }) ||
		!slices.IsSortedFunc(ids, func(a, b ID) int { return a.Time().Compare(b.Time()) }) {
		t.Error("bytes, texts and times of ids do not sort alike")
	}
}

func BenchmarkNewID(b *testing.B) {
	at := time.Unix(1_700_000_000, 0)
	for b.Loop() {
		NewID(at)
	}
}

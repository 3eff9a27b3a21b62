package wire

import (
	"bytes"
	"reflect"
	"testing"
)

func question() *Question {
	return &Question{Do: DoResults, Worker: "w", ID: "i", Results: []Result{{Number: 1, End: Done, Reply: []byte{}, Say: []Message{{Subject: "a", Data: []byte("xy")}, {Subject: "b"}}}, {Number: 2, End: Failed}}}
}

func TestWhatIsPackedIsUnpacked(t *testing.T) {
	for _, q := range []*Question{question(), {Do: DoJoin, Join: &Join{Name: "n"}}, {Do: DoWork, Work: &Work{Data: []byte{0, 1, 2}}}} {
		before := reflect.ValueOf(*q).Interface()
		raw, err := Pack(q)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unpack[Question](raw)
		if err != nil || !reflect.DeepEqual(*got, *q) || !reflect.DeepEqual(before, *q) {
			t.Errorf("%+v became %+v, %v", *q, got, err)
		}
	}
	a := &Answer{Calls: []Call{{Number: 1, Message: Message{ID: "m", Data: []byte("d")}}}, Worked: &Worked{Data: []byte("r")}}
	raw, err := Pack(a)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Unpack[Answer](raw); err != nil || !reflect.DeepEqual(got, a) {
		t.Errorf("%+v became %+v, %v", a, got, err)
	}
}

// FuzzUnpack: whatever arrives is read or refused; what is read is written again as it was meant.
func FuzzUnpack(f *testing.F) {
	raw, err := Pack(question())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:len(raw)-1])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte(`\x00\x00\x00\x0e{"sizes":[-9]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := Unpack[Question](raw)
		if err != nil {
			return
		}
		once, err := Pack(q)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Unpack[Question](once)
		if err != nil {
			t.Fatalf("%v of %q", err, once)
		}
		if twice, err := Pack(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%q became %q, %v", once, twice, err)
		}
	})
}

package shadow

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/message"
)

var update = flag.Bool("update", false, "write the golden files anew")

// samples are documents and records whose bytes must be readable for ever.
func samples(t testing.TB) map[string][]byte {
	d := docWith(t, `{"desired":{"color":{"r":10},"engine":"ON"},"reported":{"color":{"g":255,"r":9},"list":[1,{"a":"b"}],"none":{}}}`, 300, begins)
	u, refused := d.Update([]byte(`{"state":{"desired":{"engine":null,"on":true},"reported":{"color":{"g":254,"r":9.0}}}}`), by(begins+70, 1, "//naru/app"), docTime, Defaults)
	if refused != nil {
		t.Fatal(refused)
	}
	trace := message.TraceID(idAt(begins+69, 9))
	return map[string][]byte{
		"v1-document":        u.After.Append(nil),
		"v1-deleted":         u.After.Gone(time.UnixMilli(begins*1000 + 5)).Append(nil),
		"v1-record":          u.Record(trace).Append(nil),
		"v1-record-deletion": u.After.Removal(by(begins+80, 2, "//naru/app"), trace).Append(nil),
	}
}

func TestWhatIsKeptCanBeReadForEver(t *testing.T) {
	for name, got := range samples(t) {
		file := "testdata/" + name + ".hex"
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(lines(hex.EncodeToString(got))), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		kept, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, kept) {
			t.Errorf("%s is written differently now; if that is meant, it needs a new format, and the old one must stay readable", name)
		}
		if strings.Contains(name, "record") {
			r, err := DecodeRecord(7, kept)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(r.Append(nil), kept) || r.Number != 7 || !RecordTime(kept).Equal(r.At()) {
				t.Errorf("%s is read as %+v", name, r)
			}
			continue
		}
		d, err := Decode(kept)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(d.Append(nil), kept) {
			t.Errorf("%s is written again as %x", name, d.Append(nil))
		}
	}
}

func lines(s string) string {
	var b strings.Builder
	for len(s) > 64 {
		b.WriteString(s[:64] + "\n")
		s = s[64:]
	}
	return b.String() + s + "\n"
}

func TestBrokenBytesAreAnErrorAndNoMore(t *testing.T) {
	for name, whole := range samples(t) {
		for cut := range whole[1:] {
			b := whole[:cut+1]
			var err error
			if strings.Contains(name, "record") {
				_, err = DecodeRecord(1, b)
			} else {
				_, err = Decode(b)
			}
			if err == nil {
				t.Errorf("%s is read although it ends after %d of %d bytes", name, cut+1, len(whole))
			}
		}
	}
	for _, b := range [][]byte{{0}, {2, 1, 1, 0}, {1}} {
		if _, err := Decode(b); err == nil {
			t.Errorf("%x is read", b)
		}
	}
	if d, err := Decode(nil); err != nil || d.Exists() || len(d.Append(nil)) != 0 {
		t.Errorf("nothing is read as %+v, %v", d, err)
	}
}

func TestADocumentForgetsCausesThatNothingIsLeftOf(t *testing.T) {
	d := docWith(t, `{"reported":{"a":1}}`, 1, begins)
	for i := range 200 {
		d = updated(t, d, `{"state":{"reported":{"a":`+strings.Repeat("1", i%7+1)+`}}}`, by(begins+int64(i), byte(i), "//naru/device-"+strings.Repeat("x", i%50)))
		var err error
		if d, err = Decode(d.Append(nil)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(d.Append(nil)); n > 120 {
		t.Errorf("after 200 updates of one field it has %d bytes", n)
	}
}

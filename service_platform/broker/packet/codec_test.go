package packet

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

func TestWireIsUnderstood(t *testing.T) {
	for _, c := range wireCases {
		t.Run(c.v.String()+" "+c.name, func(t *testing.T) {
			got, err := parse(unhex(t, c.wire), c.v)
			if c.packet != nil {
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(plain(got), plain(c.packet)) {
					t.Fatalf("got  %+v\nwant %+v", got, c.packet)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("accepted as %+v; want %s", got, c.code)
			}
			if e.Code != c.code || e.Statement != c.statement || e.Detail == "" {
				t.Errorf("refused with %q; want %s [%s]", e, c.code, c.statement)
			}
		})
	}
}

func TestWireIsWritten(t *testing.T) {
	for _, c := range acceptedCases {
		if c.loose {
			continue
		}
		want := unhex(t, c.wire)
		if got := write([]byte("before"), c.packet, c.v); string(got) != "before"+string(want) {
			t.Errorf("%s %s: written % x; want % x", c.v, c.name, got[6:], want)
		}
		if n := size(c.packet, c.v); n != len(want) {
			t.Errorf("%s %s: size %d; want %d", c.v, c.name, n, len(want))
		}
	}
}

// A packet cut short anywhere is asked for, and never with more than it has.
func TestCutPacketIsAskedFor(t *testing.T) {
	for _, c := range acceptedCases {
		wire := unhex(t, c.wire)
		for n := range wire {
			if _, _, total, need, err := Frame(wire[:n], 0); err != nil || total != 0 || need <= n || need > len(wire) {
				t.Errorf("%s: of %d bytes the first %d: total %d, need %d, %v", c.name, len(wire), n, total, need, err)
			}
		}
		if h, start, total, need, err := Frame(append(wire, 0xff), 0); err != nil || total != len(wire) || need != total || int(h.Length) != total-start {
			t.Errorf("%s: whole: start %d, total %d, need %d, %v", c.name, start, total, need, err)
		}
	}
}

func TestPacketBeyondTheLimitIsRefusedByItsHeader(t *testing.T) {
	header := []byte{0x30, 0x7f}
	if _, _, total, need, err := Frame(header, 129); err != nil || total != 0 || need != 129 {
		t.Errorf("at the limit: total %d, need %d, %v", total, need, err)
	}
	_, _, _, _, err := Frame(header, 128)
	var e *Error
	if !errors.As(err, &e) || e.Code != PacketTooLarge || !strings.Contains(e.Detail, "129 bytes; the limit is 128") {
		t.Errorf("beyond the limit: %v", err)
	}
}

func TestWhatHasNoEncodingIsNotWritten(t *testing.T) {
	long := strings.Repeat("x", 65536)
	user := Properties{User: []UserProperty{{"k", long}}}
	many := Properties{User: slicesRepeat(UserProperty{long[:65535], long[:65535]}, 2049)}
	for name, p := range map[string]any{
		"topic":           &Publish{Topic: long},
		"user property":   &Publish{Topic: "a", Properties: user},
		"too many":        &Publish{Topic: "a", Properties: many},
		"correlation":     &Publish{Topic: "a", Properties: Properties{CorrelationData: []byte(long)}},
		"subscription id": &Publish{Topic: "a", Properties: Properties{SubscriptionIDs: []uint32{LengthMax + 1}}},
		"client id":       &Connect{Version: V5, ClientID: long},
		"will":            &Connect{Version: V5, Will: &Will{Topic: "a", Payload: []byte(long)}},
		"user name":       &Connect{Version: V5, HasUserName: true, UserName: long},
		"password":        &Connect{Version: V5, HasPassword: true, Password: []byte(long)},
		"connack":         &Connack{Properties: user},
		"puback":          &Ack{Type: PUBACK, ID: 1, Properties: user},
		"filter":          &Subscribe{ID: 1, Subscriptions: []Subscription{{Filter: long}}},
		"unsubscribe":     &Unsubscribe{ID: 1, Filters: []string{long}},
		"suback":          &SubAnswer{Type: SUBACK, ID: 1, Properties: user},
		"disconnect":      &Disconnect{Properties: user},
		"auth":            &Auth{Properties: user},
	} {
		if got := write([]byte("x"), p, V5); string(got) != "x" {
			t.Errorf("%s: %d bytes were written", name, len(got)-1)
		}
		if n := size(p, V5); n != Unwritable {
			t.Errorf("%s: size %d", name, n)
		}
	}
}

func slicesRepeat(u UserProperty, n int) (all []UserProperty) {
	for range n {
		all = append(all, u)
	}
	return all
}

func TestReasonStringMayQuoteAnything(t *testing.T) {
	var d Disconnect
	d.Properties.SetString(ReasonString, "no: \xff\x00"+strings.Repeat("ä", 60000))
	got, err := parse(d.Append(nil, V5), V5)
	if err != nil {
		t.Fatal(err)
	}
	if s := got.(*Disconnect).Properties.ReasonString; len(s) > 1024 || !strings.HasPrefix(s, "no: \uFFFD\uFFFDää") {
		t.Errorf("%d bytes: %.20q", len(s), s)
	}
}

// What one packet brought is not seen in the next, and a large one's room is given back.
func TestDecodeForgets(t *testing.T) {
	var p Publish
	for _, wire := range [][]byte{
		(&Publish{Topic: "a", QoS: 1, ID: 9, Payload: []byte("x"), Properties: Properties{ContentType: "c", CorrelationData: []byte("d"), SubscriptionIDs: []uint32{4}, User: slicesRepeat(UserProperty{"k", "v"}, 1000)}}).Append(nil, V5),
		(&Publish{Topic: "b"}).Append(nil, V5),
	} {
		h, start, total, _, _ := Frame(wire, 0)
		if err := p.Decode(h, wire[start:total], V5); err != nil {
			t.Fatal(err)
		}
	}
	if cap(p.Properties.User) > roomMax {
		t.Errorf("room for %d user properties is kept", cap(p.Properties.User))
	}
	if !reflect.DeepEqual(plain(&p), plain(&Publish{Topic: "b"})) {
		t.Errorf("left over: %+v", p)
	}
}

func TestConnackCodesFor311(t *testing.T) {
	for code, want := range map[ReasonCode]byte{Success: 0, UnsupportedProtocolVersion: 1, ClientIDNotValid: 2, ServerUnavailable: 3,
		ServerBusy: 3, UnspecifiedError: 3, BadUserNameOrPassword: 4, BadAuthenticationMethod: 4, NotAuthorized: 5, Banned: 5} {
		if got := code.ConnackV311(); got != want {
			t.Errorf("%s becomes %d; want %d", code, got, want)
		}
	}
}

func TestEveryCodeOfAPacketHasAName(t *testing.T) {
	for typ, codes := range allowed {
		for i := range len(codes) {
			if c := ReasonCode(codes[i]); !c.Known() || c.Failed() != (c >= 0x80) {
				t.Errorf("%s: 0x%02X has no name", Type(typ), byte(c))
			}
		}
	}
	if got := ReasonCode(0x7f).String(); got != "reason 0x7F" {
		t.Error(got)
	}
}

func statementOf(err error) string {
	if err == nil {
		return ""
	}
	return err.(*Error).Statement
}

func TestTopics(t *testing.T) {
	long := strings.Repeat("a", 65536)
	for _, c := range []struct{ topic, name, filter string }{
		{"a", "", ""}, {"/", "", ""}, {"a/b c/ü", "", ""}, {"$SYS/x", "", ""}, {long[1:], "", ""}, {"$shared/a", "", ""},
		{"", "MQTT-4.7.3-1", "MQTT-4.7.3-1"}, {"a\x00", "MQTT-4.7.3-2", "MQTT-4.7.3-2"}, {long, "MQTT-4.7.3-3", "MQTT-4.7.3-3"},
		{"\xff", "MQTT-1.5.4-1", "MQTT-1.5.4-1"}, {"\xed\xa0\x80", "MQTT-1.5.4-1", "MQTT-1.5.4-1"},
		{"#", "MQTT-3.3.2-2", ""}, {"a/#", "MQTT-3.3.2-2", ""}, {"+", "MQTT-3.3.2-2", ""}, {"+/a/+", "MQTT-3.3.2-2", ""}, {"/+/#", "MQTT-3.3.2-2", ""},
		{"a#", "MQTT-3.3.2-2", "MQTT-4.7.1-1"}, {"#/a", "MQTT-3.3.2-2", "MQTT-4.7.1-1"}, {"a/#b", "MQTT-3.3.2-2", "MQTT-4.7.1-1"}, {"##", "MQTT-3.3.2-2", "MQTT-4.7.1-1"},
		{"a+", "MQTT-3.3.2-2", "MQTT-4.7.1-2"}, {"+a", "MQTT-3.3.2-2", "MQTT-4.7.1-2"}, {"a/+b/c", "MQTT-3.3.2-2", "MQTT-4.7.1-2"}, {"++", "MQTT-3.3.2-2", "MQTT-4.7.1-2"},
		{"$share/g/a/+", "MQTT-3.3.2-2", ""}, {"$share/g//", "", ""}, {"$share", "", "MQTT-4.8.2-1"}, {"$share/", "", "MQTT-4.8.2-1"}, {"$share//a", "", "MQTT-4.8.2-1"},
		{"$share/g", "", "MQTT-4.8.2-2"}, {"$share/g/", "", "MQTT-4.8.2-2"}, {"$share/g+/a", "MQTT-3.3.2-2", "MQTT-4.8.2-2"},
		{"$share/#/a", "MQTT-3.3.2-2", "MQTT-4.8.2-2"}, {"$share/g/a#", "MQTT-3.3.2-2", "MQTT-4.7.1-1"},
	} {
		if got := statementOf(ValidTopicName(c.topic)); got != c.name {
			t.Errorf("%.20q as a name: %q; want %q", c.topic, got, c.name)
		}
		if got := statementOf(ValidTopicFilter(c.topic)); got != c.filter {
			t.Errorf("%.20q as a filter: %q; want %q", c.topic, got, c.filter)
		}
	}
	if g, inner, shared := ParseShare("$share/g/a/b"); g != "g" || inner != "a/b" || !shared {
		t.Error(g, inner, shared)
	}
	if g, inner, shared := ParseShare("a/b"); g != "" || inner != "a/b" || shared {
		t.Error(g, inner, shared)
	}
}

// What is written is read as the same, whatever it is.
func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		for _, v := range []Version{V311, V5} {
			p := random(r, v)
			wire := write(nil, p, v)
			if size(p, v) != len(wire) {
				t.Fatalf("%s %+v: size %d, written %d", v, p, size(p, v), len(wire))
			}
			got, err := parse(wire, v)
			if err != nil {
				t.Fatalf("%s %+v: %v", v, p, err)
			}
			if !reflect.DeepEqual(plain(got), plain(p)) {
				t.Fatalf("%s\ngot  %+v\nwant %+v", v, got, p)
			}
		}
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	for _, v := range []Version{V311, V5} {
		wire := benchPublish().Append(nil, v)
		var p Publish
		if n := testing.AllocsPerRun(100, func() {
			h, start, total, _, _ := Frame(wire, 1<<20)
			if err := p.Decode(h, wire[start:total], v); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: PUBLISH decode allocates %g times", v, n)
		}
		dst := make([]byte, 0, 1024)
		if n := testing.AllocsPerRun(100, func() { dst = p.Append(AppendPuback(dst[:0], 7), v) }); n != 0 {
			t.Errorf("%s: append allocates %g times", v, n)
		}
	}
}

func FuzzFrame(f *testing.F) {
	for _, c := range wireCases {
		f.Add(unhex(f, c.wire), uint32(64))
	}
	f.Fuzz(func(t *testing.T, b []byte, limit uint32) {
		h, start, total, need, err := Frame(b, limit)
		switch {
		case err != nil:
			if total != 0 || need != 0 {
				t.Fatalf("error %v with total %d, need %d", err, total, need)
			}
		case total > 0:
			if total > len(b) || start < 2 || total-start != int(h.Length) || limit > 0 && total > int(limit) {
				t.Fatalf("start %d, total %d of %d, length %d, limit %d", start, total, len(b), h.Length, limit)
			}
			if head := frame(nil, h.Type, h.Flags, int(h.Length)); !bytes.Equal(head, b[:start]) {
				t.Fatalf("header % x is written % x", b[:start], head)
			}
		case need <= len(b):
			t.Fatalf("has %d and needs %d", len(b), need)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, c := range wireCases {
		f.Add(unhex(f, c.wire), c.v == V5)
	}
	f.Fuzz(func(t *testing.T, b []byte, five bool) {
		v := V311
		if five {
			v = V5
		}
		p, err := parse(b, v)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Detail == "" || !e.Code.Failed() {
				t.Fatalf("refused without a proper error: %v", err)
			}
			return
		}
		if c, ok := p.(*Connect); ok {
			v = c.Version
		}
		wire := write(nil, p, v)
		if size(p, v) != len(wire) {
			t.Fatalf("size %d, written %d", size(p, v), len(wire))
		}
		again, err := parse(wire, v)
		if err != nil {
			t.Fatalf("%+v is written as % x, which is refused: %v", p, wire, err)
		}
		if !reflect.DeepEqual(plain(again), plain(p)) {
			t.Fatalf("read  %+v\nagain %+v", p, again)
		}
	})
}

func benchPublish() *Publish {
	return &Publish{QoS: 1, ID: 7, Topic: "device/d-17/telemetry/temperature", Payload: make([]byte, 200),
		Properties: Properties{User: []UserProperty{{"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}}}
}

func benchmarkDecode(b *testing.B, v Version) {
	wire := benchPublish().Append(nil, v)
	var p Publish
	b.ReportAllocs()
	for b.Loop() {
		h, start, total, _, _ := Frame(wire, 1<<20)
		if err := p.Decode(h, wire[start:total], v); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPublishDecodeV311(b *testing.B)           { benchmarkDecode(b, V311) }
func BenchmarkPublishDecodeV5UserProperty(b *testing.B) { benchmarkDecode(b, V5) }

func BenchmarkPublishAppendV5UserProperty(b *testing.B) {
	p, dst := benchPublish(), make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		dst = p.Append(dst[:0], V5)
	}
}

func BenchmarkPubackAppend(b *testing.B) {
	dst := make([]byte, 0, 8)
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendPuback(dst[:0], 7)
	}
}

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return b
}

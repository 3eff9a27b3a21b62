package broker

import (
	"slices"
	"testing"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// TestAnEnvelopeIsAddedWhereTheListenerSaysSo, behind the publisher's own properties, and nowhere else.
func TestAnEnvelopeIsAddedWhereTheListenerSaysSo(t *testing.T) {
	for _, on := range []bool{false, true} {
		conf, addr := open(t, func(l *Listener) { l.Envelope = on })
		r := newRig(t, conf)
		p := r.dial(addr)
		p.connect(keeping("x", true, 0))
		p.subscribe(packet.Subscription{Filter: "#"})
		m := publish("a/b", "{}", 0, 0)
		own := []packet.UserProperty{{Key: "z", Value: "1"}, {Key: "source", Value: "mine"}, {Key: "z", Value: "2"}}
		m.Properties.User = own
		p.write(m.Append(nil, p.v))
		got := p.hear().Properties.User
		if len(got) < 3 || !slices.Equal(got[:3], own) {
			t.Fatalf("envelope %v: the publisher's own became %v", on, got)
		}
		var keys []string
		for _, u := range got[3:] {
			keys = append(keys, u.Key)
			if u.Key == "subject" && u.Value != "a.b" {
				t.Errorf("the subject is %s, and not as the client sees it", u.Value)
			}
		}
		var want []string
		if on {
			want = []string{"specversion", "id", "subject", "time", "traceparent"}
		}
		if keys = slices.DeleteFunc(keys, func(k string) bool { return k == "type" }); !slices.Equal(keys, want) {
			t.Errorf("envelope %v: %q was added; want %q", on, keys, want)
		}
	}
}

package broker

import (
	"bufio"
	"io"
	"net"
	"testing"

	"github.com/naru-platform/naru/component/componenttest"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// BenchmarkQoS1 takes messages from a publisher to a subscriber, a hundred under way: one with a subscription of its own, or a member of a
// group, of which is written down what it has in hand; without a session that is kept, or with one.
func BenchmarkQoS1(b *testing.B) {
	for _, c := range []struct {
		name, filter string
		life         uint32
	}{
		{"own", "a/#", 0}, {"shared", shareAll, 0}, {"own, kept", "a/#", 3600}, {"shared, kept", shareAll, 3600},
	} {
		b.Run(c.name, func(b *testing.B) {
			x := newTheatre(b)
			come := func(id string, life uint32) *link {
				nc, err := net.Dial("tcp", x.addr)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { nc.Close() })
				hello := keeping(id, life == 0, life)
				if _, err := nc.Write(hello.Append(nil)); err != nil {
					b.Fatal(err)
				}
				l := &link{nc, bufio.NewReader(nc)}
				if h, body, err := l.next(); err != nil || h.Type != packet.CONNACK || body[1] != 0 {
					b.Fatal(h.Type, body, err)
				}
				return l
			}
			pub, sub := come("pub", 0), come("sub", c.life)
			if _, err := sub.Write((&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: c.filter, QoS: 1}}}).Append(nil, packet.V5)); err != nil {
				b.Fatal(err)
			}
			if h, body, err := sub.next(); err != nil || h.Type != packet.SUBACK || body[3] != 1 {
				b.Fatal(h.Type, body, err)
			}
			go func() { _, _ = io.Copy(io.Discard, pub.Conn) }() // PUBACKs
			room := make(chan struct{}, 100)
			said := make(chan error, 1)
			payload, n := make([]byte, 200), b.N
			before := componenttest.CPU(b)
			b.ResetTimer()
			go func() {
				var buf []byte
				for i := range n {
					room <- struct{}{}
					m := packet.Publish{Topic: "a/b", Payload: payload, QoS: 1, ID: uint16(i%60_000 + 1)}
					buf = m.Append(buf[:0], packet.V5)
					if _, err := pub.Write(buf); err != nil {
						said <- err
						return
					}
				}
				said <- nil
			}()
			for range n {
				h, body, err := sub.next()
				var m packet.Publish
				if err != nil || h.Type != packet.PUBLISH || m.Decode(h, body, packet.V5) != nil {
					b.Fatal(h.Type, body, err)
				}
				if _, err := sub.Write((&packet.Ack{Type: packet.PUBACK, ID: m.ID}).Append(nil, packet.V5)); err != nil {
					b.Fatal(err)
				}
				<-room
			}
			b.StopTimer()
			if err := <-said; err != nil {
				b.Fatal(err)
			}
			x.wait(b, "something is in hand that was acknowledged", func() bool { return len(x.b.store.InHand()) == 0 })
			b.ReportMetric(float64((componenttest.CPU(b)-before).Microseconds())/float64(n), "cpu-µs/op")
		})
	}
}

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// asker is a device that keeps a window of updates of its twin unanswered.
type asker struct {
	id   string
	conn net.Conn
	in   *bufio.Reader
	sent int
}

const askerWindow = 50

// newAsker connects, and subscribes to the answers that it counts.
func newAsker(b *testing.B, addr, id string) *asker {
	b.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	a := &asker{id: id, conn: c, in: bufio.NewReaderSize(c, 64<<10)}
	hello := packet.Connect{Version: packet.V311, CleanStart: true, ClientID: id}
	hear := packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "device/" + id + "/twin/update/accepted"}}}
	for _, out := range [][]byte{hello.Append(nil), hear.Append(nil, packet.V311)} {
		if _, err := c.Write(out); err != nil {
			b.Fatal(err)
		}
		if _, err := a.next(); err != nil {
			b.Fatal(err)
		}
	}
	return a
}

// next reads a packet and gives its type.
func (a *asker) next() (packet.Type, error) {
	first, err := a.in.ReadByte()
	if err != nil {
		return 0, err
	}
	size, shift := 0, 0
	for {
		c, err := a.in.ReadByte()
		if err != nil {
			return 0, err
		}
		size |= int(c&127) << shift
		if shift += 7; c < 128 {
			break
		}
	}
	_, err = a.in.Discard(size)
	return packet.Type(first >> 4), err
}

// update says n updates, each when there is room in the window, and returns when all are answered.
func (a *asker) update(n int) error {
	for open, done := 0, 0; done < n; {
		for open < askerWindow && done+open < n {
			a.sent++
			p := packet.Publish{QoS: 1, ID: uint16(a.sent%65535) + 1, Topic: "device/" + a.id + "/twin/update",
				Payload: fmt.Appendf(nil, `{"state":{"reported":{"temperature":%d.5,"uptime":%d,"signal":-%d}}}`, 20+a.sent%7, a.sent, 60+a.sent%9)}
			if _, err := a.conn.Write(p.Append(nil, packet.V311)); err != nil {
				return err
			}
			open++
		}
		switch kind, err := a.next(); {
		case err != nil:
			return err
		case kind == packet.PUBLISH:
			open--
			done++
		}
	}
	return nil
}

// BenchmarkTwinUpdates is the whole way of an update, in the real binary, with all of its components: from 20 devices by MQTT
// to the log, to the twin, its answers into the log, and `accepted` back to the device.
func BenchmarkTwinUpdates(b *testing.B) {
	p := newPlatform(b)
	p.start()
	askers := make([]*asker, 20)
	for i := range askers {
		askers[i] = newAsker(b, p.plain, fmt.Sprintf("d-%d", i))
		if err := askers[i].update(1); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	var group sync.WaitGroup
	for i, a := range askers {
		group.Go(func() {
			n := b.N / len(askers)
			if i < b.N%len(askers) {
				n++
			}
			if err := a.update(n); err != nil {
				b.Error(err)
			}
		})
	}
	group.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "updates/s")
	p.stop()
}

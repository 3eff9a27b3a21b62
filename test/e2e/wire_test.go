//go:build long

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// wirePatience is how long a packet that has to come may take on a busy machine.
const wirePatience = 60 * time.Second

// wire is a bare MQTT 5 connection. Its errors are its user's to handle.
type wire struct {
	net.Conn
	r *bufio.Reader
}

// dialWire connects with a session that is kept, or a clean one, and says whether it was there.
func dialWire(addr, id string, clean bool, change ...func(*packet.Connect)) (*wire, bool, error) {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return nil, false, err
	}
	w := &wire{c, bufio.NewReader(c)}
	hello := packet.Connect{Version: packet.V5, CleanStart: clean, ClientID: id, KeepAlive: 600}
	if !clean {
		hello.Properties.Set(packet.SessionExpiry, 3600)
	}
	for _, f := range change {
		f(&hello)
	}
	if err := w.say(hello.Append(nil)); err != nil {
		c.Close()
		return nil, false, err
	}
	h, body, err := w.next()
	if err == nil && (h.Type != packet.CONNACK || body[1] != 0) {
		err = fmt.Errorf("CONNECT was answered with %s %x", h.Type, body)
	}
	if err != nil {
		c.Close()
		return nil, false, err
	}
	return w, body[0] == 1, nil
}

func mustDialWire(t *testing.T, addr, id string, clean bool, change ...func(*packet.Connect)) *wire {
	t.Helper()
	w, _, err := dialWire(addr, id, clean, change...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func (w *wire) say(b []byte) error {
	_, err := w.Write(b)
	return err
}

func (w *wire) next() (h packet.Header, body []byte, err error) {
	_ = w.SetReadDeadline(time.Now().Add(wirePatience))
	var buf []byte
	for {
		h, start, total, need, err := packet.Frame(buf, 0)
		if err != nil {
			return h, nil, err
		}
		if total > 0 {
			return h, buf[start:total], nil
		}
		have := len(buf)
		buf = append(buf, make([]byte, max(need-have, 1))...)
		if _, err := io.ReadFull(w.r, buf[have:]); err != nil {
			return h, nil, err
		}
	}
}

// subscribe wants to be granted what it asks for, before anything else comes.
func (w *wire) subscribe(t *testing.T, filter string, qos byte) {
	t.Helper()
	if err := w.say((&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: filter, QoS: qos}}}).Append(nil, packet.V5)); err != nil {
		t.Fatal(err)
	}
	if h, body, err := w.next(); err != nil || h.Type != packet.SUBACK || body[len(body)-1] != qos {
		t.Fatalf("SUBSCRIBE was answered with %s %x, %v", h.Type, body, err)
	}
}

// plainBroker starts naru as an ordinary broker.
func plainBroker(t *testing.T) *platform {
	t.Helper()
	p := newPlatform(t, "--config", "../../examples/plain-mqtt.yaml")
	p.start()
	return p
}

package broker

import (
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// unplug has the client's end hear nothing any more, and so answer nothing, as behind a cable that was pulled: the kernel
// throws away what arrives at the socket, the other's questions among it.
func unplug(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]})
	})
	if cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
}

// TestAHalfOpenClientWithoutKeepAliveIsCutOff holds it for a client that is owed nothing, and for one that is sent something:
// the kernel has a clock for each.
func TestAHalfOpenClientWithoutKeepAliveIsCutOff(t *testing.T) {
	conf, addr := open(t)
	r := newRig(t, func(c *Config) { conf(c); c.TCPTimeout = "2s" })
	for _, sent := range []bool{false, true} {
		s := &stage{T: t, r: r, addr: addr, v: packet.V311, word: "half"}
		if sent {
			s.word = "sent"
		}
		other := s.hears("other", 1, "gone")
		p := s.client("open", testament(packet.Will{Topic: s.topic("gone"), Payload: []byte("will"), QoS: 1}), func(c *packet.Connect) { c.KeepAlive = 0 })
		p.granted(packet.Subscription{Filter: s.topic("a")})
		unplug(t, p.Conn)
		if sent {
			other.send(packet.Publish{Topic: s.topic("a"), Payload: []byte("unheard"), QoS: 1, ID: 7})
		}
		if err := other.SetReadDeadline(time.Now().Add(60 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if h, _, err := other.try(60 * time.Second); err != nil || h.Type != packet.PUBLISH {
			t.Fatalf("%s: %s, %v: the will of a client that answers nothing was not said", s.word, h.Type, err)
		}
	}
	// A client that is there and says nothing stays.
	s := &stage{T: t, r: r, addr: addr, v: packet.V311, word: "quiet"}
	quiet := s.client("quiet", func(c *packet.Connect) { c.KeepAlive = 0 })
	quiet.granted(packet.Subscription{Filter: s.topic("a")})
	if _, _, err := quiet.try(3 * time.Second); err == nil {
		t.Error("a quiet client was sent something")
	}
	if code := s.client("pub").send(packet.Publish{Topic: s.topic("a"), QoS: 1, ID: 1}); code != 0 {
		t.Fatal(code)
	}
	if m := quiet.hear(); !strings.HasSuffix(m.Topic, "/a") {
		t.Error(m.Topic)
	}
}

func TestAnUnansweredQuestionOfTCPIsTold(t *testing.T) {
	c := &conn{b: &Broker{tcpTimeout: time.Minute}, sock: &sock{}}
	err := c.readError(unix.ETIMEDOUT)
	if message.ReasonOf(err, 0) != message.ConnectionLost || !strings.Contains(err.Error(), "tcp_timeout") {
		t.Error(err)
	}
}

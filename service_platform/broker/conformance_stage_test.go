package broker

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// scene is something that the specification wants, played by clients against a broker.
type scene struct {
	name string
	// holds are the statements it holds, as `3:3.1.0-1` for MQTT-3.1.0-1 of MQTT 3.1.1 and `5:…` for one of MQTT 5. It is
	// played in the versions it has statements of. testdata/mqtt311.txt and mqtt5.txt name the test that plays it.
	holds string
	play  func(*stage)
	// known says why the broker does not pass, for as long as it does not. The scene is played all the same, in a process of
	// its own, and has to fail: once the broker does what is wanted, this word and the table's have to go.
	known string
}

// stage is where one scene is played: a broker with an ordinary listener, and words that no other scene uses.
type stage struct {
	*testing.T
	r    *rig
	addr string
	v    packet.Version
	word string
}

var scenesPlayed atomic.Int64

const knownEnv = "NARU_KNOWN_SCENE"

// perform plays scenes, all against one broker.
func perform(t *testing.T, list []scene, change ...func(*Config)) {
	t.Helper()
	conf, addr := open(t)
	r := newRig(t, func(c *Config) {
		conf(c)
		for _, f := range change {
			f(c)
		}
	})
	for _, x := range list {
		for v, mark := range map[packet.Version]string{packet.V311: "3:", packet.V5: "5:"} {
			if !strings.Contains(" "+x.holds, " "+mark) {
				continue
			}
			t.Run(x.name+" "+v.String(), func(t *testing.T) {
				t.Parallel()
				if x.known != "" && os.Getenv(knownEnv) == "" {
					wantFailure(t, x)
					return
				}
				x.play(&stage{t, r, addr, v, fmt.Sprintf("s%d", scenesPlayed.Add(1))})
			})
		}
	}
}

// wantFailure plays a scene in another process.
func wantFailure(t *testing.T, x scene) {
	t.Helper()
	parts := strings.Split(t.Name(), "/")
	for i := range parts {
		parts[i] = "^" + regexpQuote(parts[i]) + "$"
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run", strings.Join(parts, "/"), "-test.timeout", "60s")
	c.Env = append(os.Environ(), knownEnv+"=1")
	out, err := c.CombinedOutput()
	if err == nil {
		t.Errorf("the broker does now what %s wants: take `known` off this scene, and write server or deliberate for it in testdata\n%s", x.holds, out)
	}
	if !strings.Contains(string(out), "--- FAIL") {
		t.Errorf("the scene was not played: %v\n%s", err, out)
	}
}

func regexpQuote(s string) string {
	return strings.NewReplacer(".", `\.`, "(", `\(`, ")", `\)`, "+", `\+`, "$", `\$`).Replace(s)
}

// dial gives a connection that has said nothing.
func (s *stage) dial(addr string) *peer {
	s.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { c.Close() })
	return &peer{t: s.T, Conn: c, r: bufio.NewReader(c), v: s.v}
}

// hello is a CONNECT of the scene's version with a clean session.
func (s *stage) hello(name string, change ...func(*packet.Connect)) packet.Connect {
	c := packet.Connect{Version: s.v, CleanStart: true, ClientID: s.word + name, KeepAlive: 60}
	for _, f := range change {
		f(&c)
	}
	return c
}

// connect says CONNECT, and gives the answer.
func (s *stage) connect(name string, change ...func(*packet.Connect)) (*peer, packet.Connack) {
	s.Helper()
	p := s.dial(s.addr)
	return p, p.connect(s.hello(name, change...))
}

// client is one that was let in.
func (s *stage) client(name string, change ...func(*packet.Connect)) *peer {
	s.Helper()
	p, a := s.connect(name, change...)
	if a.Code != 0 {
		s.Fatalf("CONNECT of %s was answered with %s", name, a.Code)
	}
	return p
}

// kept asks for a session that outlives the connection, the one there is or a new one.
func kept(c *packet.Connect) {
	c.CleanStart = false
	if c.Version == packet.V5 {
		c.Properties.Set(packet.SessionExpiry, 3600)
	}
}

// with sets a property of CONNECT.
func with(id packet.PropertyID, v uint32) func(*packet.Connect) {
	return func(c *packet.Connect) { c.Properties.Set(id, v) }
}

// testament leaves a will.
func testament(w packet.Will) func(*packet.Connect) {
	return func(c *packet.Connect) { c.Will = &w }
}

func (s *stage) topic(rest string) string { return s.word + "/" + rest }

// hears is a client that subscribes to filters below the scene's word, with a QoS.
func (s *stage) hears(name string, qos byte, filters ...string) *peer {
	s.Helper()
	p := s.client(name)
	for _, f := range filters {
		p.granted(packet.Subscription{Filter: s.topic(f), QoS: qos})
	}
	return p
}

// granted subscribes, and wants what it asks for. Messages may come before SUBACK (§3.8.4); they are read later.
func (p *peer) granted(subs ...packet.Subscription) {
	p.t.Helper()
	p.write((&packet.Subscribe{ID: 99, Subscriptions: subs}).Append(nil, p.v))
	var early []byte
	for {
		h, body := p.next()
		if h.Type == packet.PUBLISH {
			early = append(early, raw(byte(h.Type)<<4|h.Flags, string(body))...)
			continue
		}
		var a packet.SubAnswer
		if err := a.Decode(h, body, p.v); err != nil || h.Type != packet.SUBACK || a.ID != 99 || len(a.Codes) != len(subs) {
			p.t.Fatalf("SUBSCRIBE was answered with %s %x (%v)", h.Type, body, err)
		}
		for i, code := range a.Codes {
			if code != packet.ReasonCode(subs[i].QoS) {
				p.t.Fatalf("SUBSCRIBE to %s was answered with %s", subs[i].Filter, code)
			}
		}
		p.r = bufio.NewReader(io.MultiReader(bytes.NewReader(early), p.r))
		return
	}
}

// takes wants messages, as peer.take tells them.
func (p *peer) takes(want ...string) {
	p.t.Helper()
	for _, w := range want {
		if got := p.take(); got != w {
			p.t.Errorf("%q came; want %q", got, w)
		}
	}
}

// only wants that nothing comes before a message that is sent now: what was to come would have come.
func (s *stage) only(p, from *peer, topic string, qos byte) {
	s.Helper()
	from.send(publish(topic, "fence", qos, 60000))
	if m := p.hear(); string(m.Payload) != "fence" {
		s.Errorf("%s %q came; want nothing", m.Topic, m.Payload)
	} else if qos == 1 {
		p.write((&packet.Ack{Type: packet.PUBACK, ID: m.ID}).Append(nil, p.v))
	}
}

// rest is what comes before a message that is sent now. PUBREL may come again: a connection that ended at once may have
// kept its last acknowledgement to itself.
func (s *stage) rest(p, from *peer, topic string, qos byte) (list []string) {
	s.Helper()
	from.send(publish(topic, "fence", qos, 60000))
	for {
		h, body := p.next()
		var m packet.Publish
		if h.Type == packet.PUBREL {
			continue
		}
		if err := m.Decode(h, body, p.v); err != nil || h.Type != packet.PUBLISH {
			s.Fatalf("%s %x came (%v)", h.Type, body, err)
		}
		if string(m.Payload) == "fence" {
			return list
		}
		list = append(list, string(m.Payload))
	}
}

// closed wants that the connection was ended, with that reason in MQTT 5 and without a word in 3.1.1.
func (p *peer) closed(code packet.ReasonCode) {
	p.t.Helper()
	b := p.ended()
	switch {
	case p.v != packet.V5 && len(b) > 0:
		p.t.Errorf("before the end came %x; want nothing", b)
	case p.v == packet.V5 && (len(b) < 3 || b[0] != byte(packet.DISCONNECT)<<4 || packet.ReasonCode(b[2]) != code):
		p.t.Errorf("before the end came %x; want DISCONNECT with %s", b, code)
	}
}

// field is a string as it is written.
func field(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }

// raw is a packet of these bytes.
func raw(first byte, body string) []byte {
	return append(packet.AppendLength([]byte{first}, len(body)), body...)
}

// rawConnect is a CONNECT with these flags and payload; in MQTT 5 it has no properties.
func (s *stage) rawConnect(flags byte, payload string) []byte {
	head := field("MQTT") + string([]byte{byte(s.v), flags, 0, 60})
	return raw(0x10, head+s.none()+payload)
}

// none is how no properties are written.
func (s *stage) none() string {
	if s.v == packet.V5 {
		return "\x00"
	}
	return ""
}

func (p *peer) ack(t packet.Type, id uint16, code packet.ReasonCode) {
	p.t.Helper()
	p.write((&packet.Ack{Type: t, ID: id, Code: code}).Append(nil, p.v))
}

// leaves says good-bye. What is said to its session from now on is not sent on this connection any more.
func (p *peer) leaves() {
	p.t.Helper()
	p.write((&packet.Disconnect{}).Append(nil, p.v))
	p.ended()
}

// endsWithin says whether the connection ends, and with whatever last word, before that time has passed.
func (p *peer) endsWithin(d time.Duration) bool {
	_ = p.SetReadDeadline(time.Now().Add(d))
	_, err := io.Copy(io.Discard, p.r)
	return err == nil || !timedOut(err)
}

package broker

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

const pahoPatience = 60 * time.Second

// paho5 is Eclipse's client for MQTT 5 on one connection after another.
type paho5 struct {
	t     *testing.T
	addr  string
	id    string
	state *state.State
	in    chan string
	now   *paho.Client
}

func newPaho5(t *testing.T, addr, id string) *paho5 {
	return &paho5{t: t, addr: addr, id: id, state: state.NewInMemory(), in: make(chan string, 100)}
}

// come connects, and says whether the session was there.
func (p *paho5) come() (present bool) {
	p.t.Helper()
	nc, err := net.Dial("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { nc.Close() })
	p.now = paho.NewClient(paho.ClientConfig{ClientID: p.id, Conn: nc, PacketTimeout: pahoPatience, Session: p.state,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(m paho.PublishReceived) (bool, error) {
			p.in <- fmt.Sprintf("%s %s q%d", m.Packet.Topic, m.Packet.Payload, m.Packet.QoS)
			return true, nil
		}}})
	ctx, cancel := context.WithTimeout(p.t.Context(), pahoPatience)
	defer cancel()
	expiry := uint32(3600)
	a, err := p.now.Connect(ctx, &paho.Connect{ClientID: p.id, KeepAlive: 60, Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry}})
	if err != nil {
		p.t.Fatal(err)
	}
	return a.SessionPresent
}

func (p *paho5) goes() {
	p.t.Helper()
	if err := p.now.Disconnect(&paho.Disconnect{}); err != nil {
		p.t.Fatal(err)
	}
	<-p.now.Done()
}

func (p *paho5) subscribe(filter string, qos byte) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), pahoPatience)
	defer cancel()
	if a, err := p.now.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}}}); err != nil || a.Reasons[0] != qos {
		p.t.Fatal(a, err)
	}
}

func (p *paho5) publish(topic, data string, qos byte) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), pahoPatience)
	defer cancel()
	if _, err := p.now.Publish(ctx, &paho.Publish{Topic: topic, QoS: qos, Payload: []byte(data)}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *paho5) heard(want ...string) {
	p.t.Helper()
	for _, w := range want {
		if got := takeIn(p.t, w, p.in); got != w {
			p.t.Errorf("%s heard %q; want %q", p.id, got, w)
		}
	}
}

// takeIn is take with more patience.
func takeIn[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(pahoPatience):
		t.Fatalf("%s did not come", what)
	}
	return v
}

func TestPahoForMQTT5HearsExactlyOnceAcrossItsConnectionsAndShares(t *testing.T) {
	conf, addr := open(t)
	newRig(t, conf)
	sub, pub := newPaho5(t, addr, "sub"), newPaho5(t, addr, "pub")
	if sub.come() || pub.come() {
		t.Error("a new session is said to be present")
	}
	sub.subscribe("a/#", 2)
	for qos := range byte(3) {
		pub.publish("a/live", fmt.Sprint(qos), qos)
		sub.heard(fmt.Sprintf("a/live %d q%d", qos, qos))
	}
	sub.goes()
	var want []string
	for i := range 20 {
		pub.publish("a/away", fmt.Sprint(i), byte(1+i%2))
		want = append(want, fmt.Sprintf("a/away %d q%d", i, 1+i%2))
	}
	if !sub.come() {
		t.Error("the session is gone")
	}
	sub.heard(want...)
	pub.publish("a/last", "x", 2)
	sub.heard("a/last x q2")

	workers := []*paho5{newPaho5(t, addr, "worker-0"), newPaho5(t, addr, "worker-1")}
	for _, w := range workers {
		w.come()
		w.subscribe("$share/g/work/#", 2)
	}
	left := map[string]bool{}
	for i := range 20 {
		pub.publish("work/x", fmt.Sprint(i), 2)
		left[fmt.Sprintf("work/x %d q2", i)] = true
	}
	share := [2]int{}
	for range len(left) {
		var got string
		select {
		case got = <-workers[0].in:
			share[0]++
		case got = <-workers[1].in:
			share[1]++
		case <-time.After(pahoPatience):
			t.Fatalf("%d messages were given to nobody", len(left))
		}
		if !left[got] {
			t.Errorf("%q came twice, or is another's", got)
		}
		delete(left, got)
	}
	if share[0] == 0 || share[1] == 0 {
		t.Errorf("the members got %d and %d", share[0], share[1])
	}
	for _, p := range append(workers, sub, pub) {
		p.goes()
	}
}

func TestPahoForMQTT311HearsExactlyOnceAcrossItsConnectionsAlsoOverWebSocket(t *testing.T) {
	conf, addr := open(t)
	_, web := open(t)
	newRig(t, func(c *Config) {
		conf(c)
		c.Listeners = append(c.Listeners, Listener{Name: "web", Address: web, Protocol: "ws", Auth: "none", Policy: "open", Mount: "3rd_party.web"})
	})
	for _, url := range []string{"tcp://" + addr, "ws://" + web + "/mqtt"} {
		t.Run(url[:3], func(t *testing.T) {
			in := make(chan string, 100)
			come := func(id string) mqtt.Client {
				o := mqtt.NewClientOptions().AddBroker(url).SetClientID(id).SetProtocolVersion(4).SetCleanSession(false).SetAutoReconnect(false).SetOrderMatters(true).
					SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { in <- fmt.Sprintf("%s %s q%d", m.Topic(), m.Payload(), m.Qos()) })
				c := mqtt.NewClient(o)
				if k := c.Connect(); !k.WaitTimeout(pahoPatience) || k.Error() != nil {
					t.Fatalf("connect: %v", k.Error())
				}
				return c
			}
			done := func(k mqtt.Token) {
				t.Helper()
				if !k.WaitTimeout(pahoPatience) || k.Error() != nil {
					t.Fatal(k.Error())
				}
			}
			sub, pub := come("sub"), come("pub")
			done(sub.Subscribe("a/+", 2, nil))
			for qos := range byte(3) {
				done(pub.Publish("a/live", qos, false, fmt.Sprint(qos)))
				if got, want := takeIn(t, "a message", in), fmt.Sprintf("a/live %d q%d", qos, qos); got != want {
					t.Errorf("heard %q; want %q", got, want)
				}
			}
			sub.Disconnect(100)
			var want, got []string
			for i := range 20 {
				done(pub.Publish("a/away", byte(1+i%2), false, fmt.Sprint(i)))
				want = append(want, fmt.Sprintf("a/away %d q%d", i, 1+i%2))
			}
			sub = come("sub")
			for range want {
				got = append(got, takeIn(t, "what was owed", in))
			}
			if !slices.Equal(got, want) {
				t.Errorf("heard %q; want %q", got, want)
			}
			done(pub.Publish("a/last", 2, false, "x"))
			if got := takeIn(t, "the last", in); got != "a/last x q2" {
				t.Errorf("heard %q", got)
			}
			sub.Disconnect(100)
			pub.Disconnect(100)
		})
	}
}

// TestALPNNamesThatClientsOfMQTTAndAWSAskForAreTaken: `mqtt` is the registered name, and AWS IoT's devices say
// `x-amzn-mqtt-ca` where port 8883 is shut to them.
func TestALPNNamesThatClientsOfMQTTAndAWSAskForAreTaken(t *testing.T) {
	r := newRig(t, nil)
	for _, asked := range [][]string{nil, {"mqtt"}, {"x-amzn-mqtt-ca"}, {"h2", "x-amzn-mqtt-ca"}, {"http/1.1"}} {
		conf := r.tlsOf("d-1")
		conf.NextProtos = asked
		nc, err := tls.Dial("tcp", r.tls, conf)
		if len(asked) == 1 && asked[0] == "http/1.1" {
			if err == nil {
				nc.Close()
				t.Error("a client that speaks only HTTP is let in")
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", asked, err)
			continue
		}
		want := ""
		if len(asked) > 0 {
			want = asked[len(asked)-1]
		}
		if got := nc.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("of %q %q was chosen", asked, got)
		}
		p := &peer{t: t, Conn: nc}
		p.hello(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "d-1"})
		nc.Close()
	}
}

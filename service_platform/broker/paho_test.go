package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// tlsOf is how a device with a certificate of that name connects.
func (r *rig) tlsOf(name string) *tls.Config {
	r.t.Helper()
	roots := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(r.gate.pair.Certificate[0])
	if err != nil {
		r.t.Fatal(err)
	}
	roots.AddCert(leaf)
	return &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{certificate(r.t, name)}}
}

// take waits for one of a channel.
func take[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(45 * time.Second):
		t.Fatalf("%s did not come", what)
	}
	return v
}

func TestPahoForMQTT311PublishesHearsAndComesAgain(t *testing.T) {
	r := newRig(t, nil)
	for scheme, conf := range map[string]*tls.Config{"tcp://" + r.plain: nil, "ssl://" + r.tls: r.tlsOf("d-1")} {
		t.Run(scheme[:3], func(t *testing.T) {
			in, up := make(chan string, 10), make(chan struct{}, 10)
			o := mqtt.NewClientOptions().AddBroker(scheme).SetClientID("d-1").SetProtocolVersion(4).SetCleanSession(true).
				SetMaxReconnectInterval(100*time.Millisecond).SetBinaryWill("device/d-1/telemetry", []byte("will"), 1, false)
			if conf != nil {
				o.SetTLSConfig(conf)
			}
			o.SetOnConnectHandler(func(c mqtt.Client) {
				go func() {
					if k := c.Subscribe("device/d-1/telemetry", 1, func(_ mqtt.Client, m mqtt.Message) { in <- string(m.Payload()) }); k.WaitTimeout(45*time.Second) && k.Error() == nil {
						up <- struct{}{}
					}
				}()
			})
			c := mqtt.NewClient(o)
			if k := c.Connect(); !k.WaitTimeout(45*time.Second) || k.Error() != nil {
				t.Fatalf("connect: %v", k.Error())
			}
			take(t, "the subscription", up)
			for qos, text := range []string{"at most once", "at least once"} {
				if k := c.Publish("device/d-1/telemetry", byte(qos), false, text); !k.WaitTimeout(45*time.Second) || k.Error() != nil {
					t.Fatalf("publish QoS %d: %v", qos, k.Error())
				}
				if got := take(t, text, in); got != text {
					t.Errorf("heard %q; want %q", got, text)
				}
			}
			// Another takes the client id over: the library comes again by itself, and takes it back. Whoever was thrown
			// out left a will, which the one there now hears.
			other := &peer{t: t, Conn: must(t, r, conf)}
			other.hello(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "d-1"})
			take(t, "the subscription after reconnecting", up)
			if k := c.Publish("device/d-1/telemetry", 1, false, "again"); !k.WaitTimeout(45*time.Second) || k.Error() != nil {
				t.Fatalf("publish after reconnecting: %v", k.Error())
			}
			for take(t, "the message after reconnecting", in) != "again" {
			}
			c.Disconnect(100)
		})
	}
}

// must opens a bare connection.
func must(t *testing.T, r *rig, conf *tls.Config) net.Conn {
	t.Helper()
	dial := func() (net.Conn, error) { return net.Dial("tcp", r.plain) }
	if conf != nil {
		dial = func() (net.Conn, error) { return tls.Dial("tcp", r.tls, conf) }
	}
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestAutopahoForMQTT5PublishesHearsAndComesAgain(t *testing.T) {
	r := newRig(t, nil)
	for scheme, conf := range map[string]*tls.Config{"mqtt://" + r.plain: nil, "ssl://" + r.tls: r.tlsOf("d-1")} {
		t.Run(scheme[:3], func(t *testing.T) {
			u, err := url.Parse(scheme)
			if err != nil {
				t.Fatal(err)
			}
			in, up := make(chan string, 10), make(chan error, 10)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			c, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
				ServerUrls: []*url.URL{u}, TlsCfg: conf, KeepAlive: 20, CleanStartOnInitialConnection: true,
				ReconnectBackoff: func(int) time.Duration { return 10 * time.Millisecond },
				WillMessage:      &paho.WillMessage{QoS: 1, Topic: "device/d-1/telemetry", Payload: []byte("will")},
				OnConnectionUp: func(c *autopaho.ConnectionManager, _ *paho.Connack) {
					go func() {
						_, err := c.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "device/d-1/telemetry", QoS: 1}}})
						up <- err
					}()
				},
				ClientConfig: paho.ClientConfig{ClientID: "d-1", OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
					in <- string(p.Packet.Payload)
					return true, nil
				}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := take(t, "the subscription", up); err != nil {
				t.Fatal(err)
			}
			for qos, text := range []string{"at most once", "at least once"} {
				if _, err := c.Publish(ctx, &paho.Publish{QoS: byte(qos), Topic: "device/d-1/telemetry", Payload: []byte(text)}); err != nil {
					t.Fatalf("publish QoS %d: %v", qos, err)
				}
				if got := take(t, text, in); got != text {
					t.Errorf("heard %q; want %q", got, text)
				}
			}
			other := &peer{t: t, Conn: must(t, r, conf)}
			other.hello(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "d-1"})
			for err := take(t, "the subscription after reconnecting", up); err != nil; err = take(t, "the subscription after reconnecting", up) {
			}
			if _, err := c.Publish(ctx, &paho.Publish{QoS: 1, Topic: "device/d-1/telemetry", Payload: []byte("again")}); err != nil {
				t.Fatal(err)
			}
			for take(t, "the message after reconnecting", in) != "again" {
			}
			if err := c.Disconnect(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

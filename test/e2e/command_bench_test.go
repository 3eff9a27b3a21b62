package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/naru-platform/naru/internal/porttest"
)

// mqttClient connects to a listener without TLS, and gives what it hears to hear.
func mqttClient(b *testing.B, addr, id string, hear func(c *paho.Client, topic string, data []byte), filters ...string) *paho.Client {
	b.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	c := paho.NewClient(paho.ClientConfig{Conn: conn, ClientID: id, OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(r paho.PublishReceived) (bool, error) {
		hear(r.Client, r.Packet.Topic, r.Packet.Payload)
		return true, nil
	}}})
	if _, err := c.Connect(b.Context(), &paho.Connect{ClientID: id, CleanStart: true, KeepAlive: 60}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Disconnect(&paho.Disconnect{}) })
	for _, f := range filters {
		if _, err := c.Subscribe(b.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: f, QoS: 1}}}); err != nil {
			b.Fatal(err)
		}
	}
	return c
}

// BenchmarkCommandRoundTrip is the way of a command from an app over the platform to a device and its answer back to the app, one
// after the other, each message on disk before it goes on: through the real binary, alone, and with 100,000 devices that are
// away and have a command waiting each.
//
//	go test -run '^$' -bench CommandRoundTrip -benchtime 1000x ./test/e2e
func BenchmarkCommandRoundTrip(b *testing.B) {
	apps, config := porttest.Addr(b), filepath.Join(b.TempDir(), "naru.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `service_platform.broker:
  policies:
    apps: {publish: {allow: ["device/+/command/#"]}, subscribe: {allow: ["device/+/command/#"]}, client_ids: [app]}
  listeners:
    - {name: apps, address: %q, protocol: mqtt, auth: none, policy: apps}
`, apps), 0o600); err != nil {
		b.Fatal(err)
	}
	p := newPlatform(b, "--config", config)
	p.start()
	b.Cleanup(p.stop)
	mqttClient(b, p.plain, "d-1", func(c *paho.Client, topic string, _ []byte) {
		go func() { // the client reads on
			_, _ = c.Publish(context.Background(), &paho.Publish{Topic: topic + "/reply", QoS: 1, Payload: []byte(`{"ok":true}`)}) // what is lost is seen by who waits
		}()
	}, "device/d-1/command/+/+")
	replies := make(chan string, 16)
	app := mqttClient(b, apps, "app", func(_ *paho.Client, topic string, _ []byte) { replies <- topic }, "device/d-1/command/+/+/reply")
	round := 0
	trip := func() time.Duration {
		round++
		topic := fmt.Sprintf("device/d-1/command/open/c%d", round)
		began := time.Now()
		if _, err := app.Publish(b.Context(), &paho.Publish{Topic: topic, QoS: 1, Payload: []byte("{}")}); err != nil {
			b.Fatal(err)
		}
		late := time.NewTimer(time.Minute)
		defer late.Stop()
		for {
			select {
			case got := <-replies:
				if strings.HasPrefix(got, topic+"/") {
					return time.Since(began)
				}
			case <-late.C:
				b.Fatalf("%s is not answered", topic)
			}
		}
	}
	trips := func(b *testing.B) {
		for range 50 {
			trip() // the first ones warm what is cold
		}
		took := make([]time.Duration, b.N)
		b.ResetTimer()
		for i := range took {
			took[i] = trip()
		}
		b.StopTimer()
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	}
	b.Run("alone", trips)
	const away = 100_000
	var next sync.Mutex
	n := 0
	var group sync.WaitGroup
	for range 64 {
		group.Go(func() {
			for {
				next.Lock()
				i := n
				n++
				next.Unlock()
				if i >= away {
					return
				}
				if _, err := app.Publish(b.Context(), &paho.Publish{Topic: fmt.Sprintf("device/away-%d/command/open/c", i), QoS: 1, Payload: []byte("{}")}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.Run("beside-100000-that-wait", trips)
}

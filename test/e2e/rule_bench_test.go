package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/naru-platform/naru/internal/porttest"
)

const (
	// ruleRounds are as many comparisons: the kinds of rules take turns, and each is held against the one that is well in the same round.
	ruleRounds = 7
	// ruleDevices say a message every ruleEvery each.
	ruleDevices = 8
	ruleEvery   = 40 * time.Millisecond
)

// BenchmarkNeighbourOfAFaultyRule measures how long a reading takes from a device by MQTT to the log, to a rule that is well and
// says it on another topic, and to who has subscribed to that, in the real binary with all of its components, at 200 readings a second; while another
// rule that hears the same is well too, fails on each message, sends each to an HTTP server that hangs, or feeds itself until
// each message dies as a loop. b.N readings are said in each turn. Of each kind it tells the medians, over the rounds, of p50 and p99,
// and of p99 as a multiple of that beside one that is well.
//
//	go test -run '^$' -bench NeighbourOfAFaultyRule -benchtime 800x -timeout 30m ./test/e2e
func BenchmarkNeighbourOfAFaultyRule(b *testing.B) {
	dir, apps := b.TempDir(), porttest.Addr(b)
	config := filepath.Join(dir, "naru.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `service_platform.broker:
  policies:
    apps: {subscribe: {allow: ["near/#"]}, client_ids: [app]}
  listeners:
    - {name: apps, address: %q, protocol: mqtt, auth: none, policy: apps}
service_platform.webhook: {allow: [127.0.0.1]}
`, apps), 0o600); err != nil {
		b.Fatal(err)
	}
	p := newPlatform(b, "--config", config)
	p.start()
	b.Cleanup(p.stop)
	ok := func(args ...string) {
		if out, code := p.naru(args...); code != 0 {
			b.Fatalf("naru %q: %s", args, out)
		}
	}
	add := func(name, from, actions string) {
		file := filepath.Join(dir, name+".yaml")
		if err := os.WriteFile(file, fmt.Appendf(nil, "name: %s\nsql: SELECT at FROM '%s'\nactions: [%s]\n", name, from, actions), 0o600); err != nil {
			b.Fatal(err)
		}
		ok("rule", "add", file)
	}
	over := make(chan struct{})
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		select {
		case <-over:
		case <-q.Context().Done():
		}
	}))
	b.Cleanup(func() { close(over); hangs.Close() })
	ok("destination", "add", "hangs", "--url", hangs.URL, "--timeout", "30s")
	add("near", "device/+/telemetry", `{republish: {topic: "near/${topic(2)}"}}`)

	var mu sync.Mutex
	var took []time.Duration
	began, want := time.Now(), 0
	all := make(chan struct{}, 1)
	mqttClient(b, apps, "app", func(_ *paho.Client, _ string, data []byte) {
		sent, err := strconv.ParseInt(string(data[len(`{"at":`):len(data)-1]), 10, 64)
		if err != nil {
			b.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if took = append(took, time.Since(began)-time.Duration(sent)); len(took) == want {
			all <- struct{}{}
		}
	}, "near/#")
	var devices []*paho.Client
	for i := range ruleDevices {
		devices = append(devices, mqttClient(b, p.plain, fmt.Sprintf("d-%d", i), func(*paho.Client, string, []byte) {}))
	}
	says := func(n int) {
		mu.Lock()
		took, want = took[:0], n
		mu.Unlock()
		var group sync.WaitGroup
		for i, c := range devices {
			group.Go(func() {
				pace := time.NewTicker(ruleEvery)
				defer pace.Stop()
				for j := i; j < n; j += len(devices) {
					<-pace.C
					if _, err := c.Publish(b.Context(), &paho.Publish{Topic: "device/" + c.ClientID() + "/telemetry", QoS: 1, Payload: fmt.Appendf(nil, `{"at":%d}`, time.Since(began))}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		late := time.NewTimer(2 * time.Minute)
		defer late.Stop()
		select {
		case <-all:
		case <-late.C:
			b.Fatalf("only %d of %d came", len(took), n)
		}
	}
	says(100) // the first ones warm what is cold
	kinds := []struct{ name, actions string }{
		{"well", `{republish: {topic: "other/${topic(2)}"}}`},
		{"fails", `{republish: {topic: "other/${missing}"}}`},
		{"hangs", `{http: {destination: hangs}}`},
		{"feeds-itself", `{republish: {topic: "device/${topic(2)}/telemetry/again"}}`},
	}
	turn := func(name, actions string) (p50, p99 float64) {
		add(name, "device/+/telemetry/#", actions)
		says(b.N)
		ok("rule", "delete", name)
		mu.Lock()
		defer mu.Unlock()
		slices.Sort(took)
		return took[len(took)/2].Seconds() * 1000, took[len(took)*99/100].Seconds() * 1000
	}
	median := func(list []float64) float64 { return slices.Sorted(slices.Values(list))[len(list)/2] }
	p50, p99, ratio := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for round := range ruleRounds {
		for i := range kinds {
			k := kinds[(i+round)%len(kinds)] // each comes behind each other one
			half, most := turn(fmt.Sprintf("%s-%d", k.name, round), k.actions)
			p50[k.name], p99[k.name] = append(p50[k.name], half), append(p99[k.name], most)
		}
		for _, k := range kinds {
			ratio[k.name] = append(ratio[k.name], p99[k.name][round]/p99["well"][round])
		}
		b.Logf("round %d: p99 in ms is %.1f well, %.1f fails, %.1f hangs, %.1f feeds itself", round, p99["well"][round], p99["fails"][round], p99["hangs"][round], p99["feeds-itself"][round])
	}
	b.ReportMetric(0, "ns/op")
	for i, k := range kinds {
		b.ReportMetric(median(p50[k.name]), k.name+"-p50-ms")
		b.ReportMetric(median(p99[k.name]), k.name+"-p99-ms")
		if i > 0 {
			b.ReportMetric(median(ratio[k.name]), k.name+"-p99-times")
		}
	}
}

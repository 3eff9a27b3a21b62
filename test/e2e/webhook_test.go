//go:build long

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/internal/porttest"
)

// pager is an HTTP server elsewhere, which can be ill in all ways.
type pager struct {
	mu     sync.Mutex
	mood   string // well, 500, 429, hang
	since  time.Time
	taken  map[string]int // by id, of what was answered with 200
	order  map[string][]int
	asked  int
	unhang chan struct{}
	server *http.Server
}

// serve has it listen at an address again.
func (g *pager) serve(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	g.server = &http.Server{Handler: http.HandlerFunc(g.answer)}
	go func(s *http.Server) { _ = s.Serve(l) }(g.server)
}

func (g *pager) be(mood string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mood == "hang" {
		close(g.unhang)
	}
	g.mood, g.since, g.unhang = mood, time.Now(), make(chan struct{})
}

func (g *pager) answer(w http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	g.mu.Lock()
	mood, unhang := g.mood, g.unhang
	g.asked++
	if mood == "well" {
		var d struct{ N int }
		_ = json.Unmarshal(raw, &d)
		id := r.Header.Get("Ce-Id")
		g.taken[id]++
		if device := r.Header.Get("Ce-Narudevice"); g.taken[id] == 1 {
			g.order[device] = append(g.order[device], d.N)
		}
	}
	g.mu.Unlock()
	switch mood {
	case "500":
		w.WriteHeader(500)
	case "429":
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(429)
	case "hang":
		select {
		case <-unhang:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}
}

func (g *pager) count() (taken, asked int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.taken), g.asked
}

// TestHTTPActionOutlivesAllIllsOfItsServer drives a rule that sends to a server elsewhere, while that answers 500 and 429, hangs
// and dies, and the platform is killed too. In the end each reading has come, those of a device in their order.
func TestHTTPActionOutlivesAllIllsOfItsServer(t *testing.T) {
	config := filepath.Join(t.TempDir(), "naru.yaml")
	if err := os.WriteFile(config, []byte("service_platform.webhook:\n  allow: [127.0.0.1]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rule := filepath.Join(t.TempDir(), "page.yaml")
	if err := os.WriteFile(rule, []byte("name: page\nsql: SELECT n FROM 'device/+/telemetry'\nactions: [{http: {destination: pager, path: 'in/${topic(2)}'}}]\nerror_action: {republish: {topic: errors}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := porttest.Addr(t)
	g := &pager{mood: "well", taken: map[string]int{}, order: map[string][]int{}, unhang: make(chan struct{})}
	g.serve(t, addr)
	p := newPlatform(t, "--config", config)
	p.start()
	if out, code := p.naru("destination", "add", "pager", "--url", "http://"+addr, "--timeout", "1s", "--attempts", "100"); code != 0 {
		t.Fatal(out)
	}
	if out, code := p.naru("rule", "add", rule); code != 0 {
		t.Fatal(out)
	}
	devices, n := 4, 0
	say := func(times int) {
		for range times {
			for d := range devices {
				if out, code := p.naru("topic", "pub", fmt.Sprintf("device.d-%d.telemetry", d), fmt.Sprintf(`{"n":%d}`, n)); code != 0 {
					t.Fatal(out)
				}
			}
			n++
		}
	}
	wait := func(what string, f func() bool) {
		t.Helper()
		until := time.Now().Add(2 * time.Minute)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for !f() {
			if time.Now().After(until) {
				out, _ := p.naru("destination", "show", "pager")
				t.Fatalf("%s: %s", what, out)
			}
			<-tick.C
		}
	}
	came := func(of int) func() bool { return func() bool { taken, _ := g.count(); return taken == of*devices } }
	say(2)
	wait("nothing comes", came(n))
	for _, mood := range []string{"500", "429", "hang"} {
		_, before := g.count()
		g.be(mood)
		say(2)
		wait("it is not asked when it is "+mood, func() bool { _, asked := g.count(); return asked > before })
		if mood == "hang" {
			p.kill() // while calls are under way
			p.start()
		}
		g.be("well")
		wait("after "+mood, came(n))
	}
	_ = g.server.Close()
	say(2)
	var shown struct{ Fault string }
	wait("its death is not seen", func() bool {
		p.json(&shown, "destination", "show", "pager")
		return strings.Contains(shown.Fault, "cannot be reached")
	})
	g.serve(t, addr)
	wait("after its death", came(n))
	for device, list := range g.order {
		for i, k := range list {
			if k != i {
				t.Errorf("%s: they come as %v", device, list)
				break
			}
		}
	}
	for _, l := range p.settled(0) {
		if l.Dead != 0 || l.Accepted != l.Handled+l.Waiting+l.Dead {
			t.Errorf("ledger: %+v", l)
		}
	}
	p.stop()
	_ = g.server.Close()
}

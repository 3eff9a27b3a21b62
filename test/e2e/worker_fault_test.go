//go:build long

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/naru-platform/naru/message"
)

// TestAFaultyWorkerHoldsUpNobodyElse has five workers hear the same readings: one hangs, one answers 500, one garbage, one dies of
// one message, and one is well. While the faults last, that one handles all there is, and who says it is let in. When
// they are over, each message has its fate with each worker.
func TestAFaultyWorkerHoldsUpNobodyElse(t *testing.T) {
	p, _ := newWorkshop(t)
	p.start()
	defer p.stop()
	var over atomic.Bool
	lifted := make(chan struct{})
	lift := sync.OnceFunc(func() { over.Store(true); close(lifted) })
	asked := map[string]*atomic.Int64{}
	add := func(name string, h func(w http.ResponseWriter, q *http.Request, n int64), args ...string) {
		asked[name] = &atomic.Int64{}
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { h(w, q, asked[name].Add(1)) }))
		t.Cleanup(s.Close)
		p.must(append([]string{"worker", "add", name, "--url", s.URL, "--hears", "device/+/telemetry"}, args...)...)
	}
	t.Cleanup(lift)
	fine := func(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) }
	add("well", func(w http.ResponseWriter, _ *http.Request, _ int64) { fine(w) })
	add("hangs", func(w http.ResponseWriter, q *http.Request, _ int64) {
		select {
		case <-lifted:
			fine(w)
		case <-q.Context().Done():
		}
	}, "--timeout", "1s", "--attempts", "1000")
	add("fails", func(w http.ResponseWriter, _ *http.Request, _ int64) {
		if !over.Load() {
			http.Error(w, "the database is away", http.StatusInternalServerError)
			return
		}
		fine(w)
	}, "--attempts", "1000")
	add("babbles", func(w http.ResponseWriter, _ *http.Request, _ int64) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<html>\x00\xff")
	})
	add("dies", func(w http.ResponseWriter, q *http.Request, _ int64) {
		if data, _ := io.ReadAll(q.Body); q.Header.Get("Ce-Subject") == "device.d-7.telemetry" && string(data) == "3" {
			panic(http.ErrAbortHandler)
		}
		fine(w)
	}, "--attempts", "2")

	const devices, each = 10, 12
	senders := make([]*sender, devices)
	stop := make(chan struct{})
	var group sync.WaitGroup
	for i := range senders {
		senders[i] = newSender(fmt.Sprintf("d-%d", i), p.plain)
		senders[i].window = 1
		group.Go(func() { senders[i].run(stop) })
	}
	until(t, "the worker that is well has had a hundred and more", func() bool { return asked["well"].Load() > devices*each })
	close(stop)
	group.Wait() // each is acknowledged, whatever the workers do
	well := p.finished("well")
	if now := p.workers(); now["hangs"].Handled != 0 || now["fails"].Handled != 0 || now["hangs"].Parked == 0 || now["fails"].Parked == 0 {
		t.Errorf("the faults last, and they have handled messages: %+v", now)
	}
	if asked["hangs"].Load() == 0 || asked["fails"].Load() == 0 {
		t.Error("they were not even asked")
	}
	lift()
	total := map[string]uint64{}
	for _, name := range []string{"well", "hangs", "fails", "babbles", "dies"} {
		for _, l := range p.finished(name) {
			if l.Log != message.Device {
				continue
			}
			total[name] = l.Handled + l.Dead
			if dies := name == "babbles" || name == "dies"; dies != (l.Dead > 0) || l.Accepted != l.Handled+l.Dead {
				t.Errorf("ledger of %s: %+v", name, l)
			}
			if name == "dies" && l.Dead != 1 {
				t.Errorf("one message kills it, and others are dead with it: %+v", l)
			}
		}
	}
	for name, n := range total {
		if n != total["well"] || n == 0 {
			t.Errorf("%s has given %d messages a fate; the one that is well %d (%+v)", name, n, total["well"], well)
		}
	}
	for _, want := range []string{"service_platform.worker/babbles", "service_platform.worker/dies"} {
		until(t, want+" is among the dead letters", func() bool { out, _ := p.naru("dead", "groups"); return strings.Contains(out, want) })
	}
}

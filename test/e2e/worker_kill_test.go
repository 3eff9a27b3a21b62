//go:build long

package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"

	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/message"
)

// TestWorkersLoseNothingToSIGKILL kills a worker's process, and the platform with the bus and the component that holds the
// workers, by turns, twenty times under load. Each message is given at least once with the same key, and what follows
// from it is said once.
func TestWorkersLoseNothingToSIGKILL(t *testing.T) {
	p, url := newWorkshop(t)
	p.start()
	var mu sync.Mutex
	given := map[string]int{}
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		id := q.Header.Get("Idempotency-Key")
		mu.Lock()
		given[id]++
		mu.Unlock()
		w.Header().Set("Content-Type", "application/cloudevents+json")
		fmt.Fprintf(w, `{"specversion":"1.0","id":"1","source":"x","type":"done","subject":"data_platform.done.%s","data":1}`, id)
	}))
	defer service.Close()
	p.must("worker", "add", "web", "--url", service.URL, "--hears", "device/+/telemetry", "--attempts", "1000")
	p.must("worker", "add", "hot-go", "--hears", "device/+/telemetry", "--attempts", "1000", "--concurrency", "8")
	bin, env := goWorker(t), p.environment(url)
	own := beside(t, env, bin)
	until(t, "the instance connects", func() bool { w := p.workers()["hot-go"]; return w.Run != nil && len(w.Run.Instances) == 1 })

	senders := make([]*sender, 6)
	stop := make(chan struct{})
	var group sync.WaitGroup
	for i := range senders {
		s := newSender(fmt.Sprintf("d-%d", i), p.plain)
		s.window, s.payload = 1, func(n int) []byte { return fmt.Appendf(nil, `{"celsius":35,"n":%d}`, n) }
		senders[i] = s
		group.Go(func() { s.run(stop) })
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(given)
	}
	for n := range 20 {
		before := count()
		until(t, fmt.Sprintf("round %d: more is given", n), func() bool { return count() > before+10+n })
		if n%2 == 0 {
			own.kill()
			own = beside(t, env, bin)
		} else {
			p.kill()
			p.start()
		}
	}
	close(stop)
	group.Wait()
	for _, name := range []string{"web", "hot-go"} {
		for _, l := range p.finished(name) {
			if l.Accepted != l.Handled || l.Dead != 0 {
				t.Errorf("ledger: %+v", l)
			}
		}
	}
	own.kill()
	p.stop()

	b, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(p.data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	readings, blinks, done := map[message.ID]bool{}, map[message.ID]int{}, map[message.ID]int{}
	eachStored(t, b, message.Device, func(m *message.Message) {
		switch {
		case message.Pattern("device.*.telemetry").Matches(m.Subject):
			readings[m.ID] = true
		case message.Pattern("device.*.command.blink.*").Matches(m.Subject):
			blinks[m.Cause]++
		}
	})
	eachStored(t, b, message.DataPlatform, func(m *message.Message) {
		if message.Pattern("data_platform.done.>").Matches(m.Subject) { // and not the readings themselves, on their way to their dataset
			done[m.Cause]++
		}
	})
	if len(readings) < 200 {
		t.Errorf("there are %d readings: too few to tell", len(readings))
	}
	faults := 0
	for id := range readings {
		if given[id.String()] < 1 || done[id] != 1 || blinks[id] != 1 {
			if faults++; faults <= 10 {
				t.Errorf("%s was given %d times; of it %d and %d messages were said; want at least one, one and one", id, given[id.String()], done[id], blinks[id])
			}
		}
	}
	if len(done) != len(readings) || len(blinks) != len(readings) {
		t.Errorf("of %d readings, effects follow from %d and %d", len(readings), len(done), len(blinks))
	}
	t.Logf("%d readings through twenty kills", len(readings))
}

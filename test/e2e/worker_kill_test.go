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
	bin, env := goWorker(t), p.environment(url)
	p.must("worker", "add", "hot-go", "--hears", "device/+/telemetry", "--attempts", "1000", "--concurrency", "8")
	own := beside(t, env, bin)
	workersLoseNothing(t, p, filepath.Join(p.data, "bus"), func(n int) {
		if n%2 == 0 {
			own.kill()
			own = beside(t, env, bin)
		} else {
			p.kill()
			p.start()
		}
	})
	own.kill()
}

// TestWorkersLoseNothingToABusThatIsKilled has the bus in a process of its own, which is killed twenty times. The worker has two
// instances, one over the bus and one by HTTP; now and then the first, or the platform's process, is killed with it.
func TestWorkersLoseNothingToABusThatIsKilled(t *testing.T) {
	outside := &node{Name: "bus", Dir: t.TempDir(), Port: port(t)}
	outside.start(t)
	t.Cleanup(outside.kill)
	p, url := newWorkshop(t)
	p.args = append(p.args, "--bus", outside.url())
	p.start()
	bin, env := goWorker(t), []string{"NARU_BUS=" + outside.url()}
	p.must("worker", "add", "hot-go", "--hears", "device/+/telemetry", "--attempts", "1000", "--concurrency", "8")
	over := beside(t, env, bin)
	beside(t, p.environment(url), bin)
	workersLoseNothing(t, p, "", func(n int) {
		switch n % 5 {
		case 1:
			over.kill()
			over = beside(t, env, bin)
		case 3:
			p.kill()
			defer p.start()
		}
		outside.kill()
		outside.start(t)
	}, outside.url())
}

// workersLoseNothing has two workers hear what is said through twenty rounds of faults, and holds against each other what was
// given, what follows from it, and the ledger. The log is read from the folder of a bus, or from where one is.
func workersLoseNothing(t *testing.T, p *platform, dir string, fault func(round int), url ...string) {
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
	until(t, "an instance connects", func() bool { w := p.workers()["hot-go"]; return w.Run != nil && len(w.Run.Instances) > 0 })

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
		fault(n)
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
	p.stop()

	o := nats.Options{Dir: dir}
	if dir == "" {
		o = nats.Options{URL: url[0]}
	}
	b, err := nats.Open(t.Context(), o)
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
	t.Logf("%d readings through twenty rounds", len(readings))
}

//go:build long

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus/bustest"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/operator/deadletter"
	"github.com/naru-platform/naru/service_platform/command"
)

// cramped is a platform on a small file system.
type cramped struct {
	*platform
	filler string
}

type space struct {
	Healthy bool
	Faults  []string
	Bus     struct {
		Up    bool
		Space struct {
			Free uint64 `json:"free_bytes"`
			Low  uint64 `json:"low_water_bytes"`
			Shut bool   `json:"doors_shut"`
		}
	}
}

// newCramped starts a platform, and gives ok false where the test was run elsewhere.
func newCramped(t *testing.T, p *platform) (c *cramped, ok bool) {
	t.Helper()
	// Each of some ten stores takes 18 MB for its log beforehand, and as much again when it is opened anew.
	dir, ok := bustest.SmallDisk(t, "1g")
	if !ok {
		return nil, false
	}
	c = &cramped{p, filepath.Join(dir, "filler")}
	c.data = filepath.Join(dir, "data")
	t.Cleanup(c.kill) // before its disk goes
	c.start()
	return c, true
}

// await waits for the doors to be shut, or open and all well, and gives the status.
func (c *cramped) await(what string, shut bool) (st space) {
	c.t.Helper()
	for until := time.Now().Add(60 * time.Second); ; {
		st = space{}
		code := c.json(&st, "status")
		if st.Bus.Space.Shut == shut && st.Healthy == !shut {
			if shut && code != 2 {
				c.t.Errorf("status found a fault and exits with %d", code)
			}
			return st
		}
		if time.Now().After(until) {
			c.t.Fatalf("%s: %+v", what, st)
		}
	}
}

// fill takes all space but room bytes.
func (c *cramped) fill(free, room uint64) {
	c.t.Helper()
	f, err := os.Create(c.filler)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(free-room)); err != nil {
		c.t.Fatal(err)
	}
}

// brim takes all there is, to the last page, and again what comes free meanwhile, until stop is closed.
func (c *cramped) brim(stop <-chan struct{}) error {
	f, err := os.Create(c.filler)
	if err != nil {
		return err
	}
	defer f.Close()
	zeros := make([]byte, 1<<20)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		for size := len(zeros); size >= 4096; {
			if _, err := f.Write(zeros[:size]); errors.Is(err, syscall.ENOSPC) {
				size /= 2
			} else if err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-stop:
			return nil
		}
	}
}

// load sends from some devices until the function it gives is called, which gives how many messages were acknowledged.
func (c *cramped) load() (senders []*sender, end func() int) {
	stop := make(chan struct{})
	var group sync.WaitGroup
	senders = make([]*sender, 5)
	for i := range senders {
		s := &sender{id: fmt.Sprintf("d-%d", i), addr: c.plain, sent: map[int]int{}, acked: map[int]bool{}}
		senders[i] = s
		group.Go(func() { s.run(stop) })
	}
	return senders, func() (acked int) {
		close(stop)
		group.Wait()
		for _, s := range senders {
			acked += len(s.acked)
		}
		return acked
	}
}

// TestPlatformOutlivesAFullDisk runs everything on a small file system, fills it under load until the doors shut, and
// gives the space back.
func TestPlatformOutlivesAFullDisk(t *testing.T) {
	c, ok := newCramped(t, newPlatform(t))
	if !ok {
		return
	}
	st := c.await("at the start", false)
	// The load fills what this leaves, down to the low-water mark.
	c.fill(st.Bus.Space.Free, st.Bus.Space.Low+16<<20)
	senders, end := c.load()
	c.await("full", true)
	if err := os.Remove(c.filler); err != nil {
		t.Fatal(err)
	}
	c.await("with space again", false)
	acked := end()
	t.Logf("%d messages acknowledged around a full disk", acked)
	c.settled(uint64(acked))
	c.stop()
	checkStored(t, c.data, senders)
}

// TestPlatformOutlivesADiskThatIsFullToTheLastByte takes the reserve away as well, as another program on the machine may:
// neither the bus nor any component's store can write any more. One process lives through it.
func TestPlatformOutlivesADiskThatIsFullToTheLastByte(t *testing.T) {
	c, ok := newCramped(t, newPlatform(t))
	if !ok {
		return
	}
	st := c.await("at the start", false)
	senders, end := c.load()
	stop, filled := make(chan struct{}), make(chan error, 1)
	go func() { filled <- c.brim(stop) }()
	// Everything stands still: the bus is down, and at least one component waits for space.
	for until := time.Now().Add(60 * time.Second); ; {
		st = space{}
		c.json(&st, "status")
		if !st.Bus.Up && strings.Contains(c.out.String(), "its store waits for space") {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("nothing stands still on a full disk: %+v", st)
		}
	}
	pid := c.cmd.Process.Pid
	close(stop)
	if err := <-filled; err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(c.filler); err != nil {
		t.Fatal(err)
	}
	c.await("with space again", false)
	acked := end()
	t.Logf("%d messages acknowledged around a disk without a byte left", acked)
	for _, l := range c.settled(uint64(acked)) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead {
			t.Errorf("ledger: %+v", l)
		}
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the process is another one: %v", err)
	}
	if n := strings.Count(c.out.String(), "a component failed"); n > 0 {
		t.Logf("%d components were started again", n)
	}
	c.stop()
	checkStored(t, c.data, senders)
}

// TestWorkersCommandsAndLettersOutliveAFullDisk has a worker that answers some messages with a command to a device that is away, and
// refuses others, while there is not a byte left. With space again all goes on by itself: each message has been given, is
// handled or dead, and what follows from it was said once; each command is kept, and each letter can be tried again.
func TestWorkersCommandsAndLettersOutliveAFullDisk(t *testing.T) {
	p, _ := newWorkshop(t)
	c, ok := newCramped(t, p)
	if !ok {
		return
	}
	c.await("at the start", false)
	var mu sync.Mutex
	given, mended := map[string]int{}, false
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		id := q.Header.Get("Idempotency-Key")
		mu.Lock()
		defer mu.Unlock()
		given[id]++
		to := "data_platform.done." + id
		switch n := len(given); {
		case !mended && strings.HasSuffix(id, "0"): // one id in sixteen, as below
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		case strings.HasSuffix(id, "1"):
			to = fmt.Sprintf("device.away-%d.command.blink.%s", n%50, id)
		}
		w.Header().Set("Content-Type", "application/cloudevents+json")
		fmt.Fprintf(w, `{"specversion":"1.0","id":"1","source":"x","type":"done","subject":"%s","data":1}`, to)
	}))
	defer service.Close()
	c.must("worker", "add", "web", "--url", service.URL, "--hears", "device/+/telemetry", "--attempts", "1000")
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(given)
	}
	_, end := c.load()
	until(t, "messages are given", func() bool { return count() > 300 })
	stop, filled := make(chan struct{}), make(chan error, 1)
	go func() { filled <- c.brim(stop) }()
	until(t, "everything stands still", func() bool {
		var st space
		c.json(&st, "status")
		return !st.Bus.Up && strings.Contains(c.out.String(), "its store waits for space")
	})
	close(stop)
	if err := <-filled; err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(c.filler); err != nil {
		t.Fatal(err)
	}
	c.await("with space again", false)
	before := count()
	until(t, "messages are given again", func() bool { return count() > before+300 })
	acked := end()
	c.settled(uint64(acked))
	var dead uint64
	for _, l := range c.finished("web") {
		if dead += l.Dead; l.Accepted != l.Handled+l.Dead {
			t.Errorf("ledger: %+v", l)
		}
	}
	mu.Lock()
	mended = true
	mu.Unlock()
	id := c.job("retry", "--component", "service_platform.worker/web", "--rate", "1000", "--note", "it is mended")
	var j deadletter.JobShown
	until(t, "the job ends", func() bool {
		c.json(&j, "dead", "job", id)
		return j.State != deadletter.Running && j.Waiting == 0
	})
	if j.State != deadletter.Done || uint64(j.Handled) != dead || dead == 0 {
		t.Errorf("the job ended as %+v; there were %d letters", j.Job, dead)
	}
	var l command.List
	c.json(&l, "command", "list", "--limit", "1000")
	c.settled(uint64(acked))
	c.stop()
	b, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(c.data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	readings, follows, commands := map[message.ID]bool{}, map[message.ID]int{}, 0
	eachStored(t, b, message.Device, func(m *message.Message) {
		switch {
		case message.Pattern("device.*.telemetry").Matches(m.Subject):
			readings[m.ID] = true
		case message.Pattern("device.*.command.blink.*").Matches(m.Subject):
			follows[m.Cause]++
			commands++
		}
	})
	eachStored(t, b, message.DataPlatform, func(m *message.Message) {
		if message.Pattern("data_platform.done.>").Matches(m.Subject) {
			follows[m.Cause]++
		}
	})
	for id := range readings {
		if given[id.String()] < 1 || follows[id] != 1 {
			t.Errorf("%s was given %d times, and of it follow %d messages; want at least one, and one", id, given[id.String()], follows[id])
		}
	}
	kept := int64(0)
	for _, n := range l.Counts {
		kept += n
	}
	if len(follows) != len(readings) || kept != int64(commands) || commands == 0 {
		t.Errorf("of %d readings, effects follow from %d; %d commands were said, and %d are kept", len(readings), len(follows), commands, kept)
	}
	t.Logf("%d acknowledged, %d readings, %d letters retried, %d commands kept", acked, len(readings), dead, kept)
}

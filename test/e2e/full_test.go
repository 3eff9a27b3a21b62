//go:build long

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus/bustest"
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

// newCramped gives ok false where the test was run elsewhere.
func newCramped(t *testing.T) (c *cramped, ok bool) {
	t.Helper()
	// Each of some ten stores takes 18 MB for its log beforehand, and as much again when it is opened anew.
	dir, ok := bustest.SmallDisk(t, "1g")
	if !ok {
		return nil, false
	}
	c = &cramped{newPlatform(t), filepath.Join(dir, "filler")}
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
	c, ok := newCramped(t)
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
	c, ok := newCramped(t)
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

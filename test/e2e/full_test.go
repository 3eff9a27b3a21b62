//go:build long

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestPlatformOutlivesAFullDisk runs everything on a small file system, fills it under load until the doors shut, and
// gives the space back.
func TestPlatformOutlivesAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256m,mode=0700"); err != nil {
		t.Fatalf("mount a small file system (this test wants root): %v", err)
	}
	p := newPlatform(t)
	p.data = filepath.Join(dir, "data")
	t.Cleanup(func() {
		p.kill()
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	p.start()
	type status struct {
		Healthy bool
		Faults  []string
		Bus     struct {
			Space struct {
				Free uint64 `json:"free_bytes"`
				Low  uint64 `json:"low_water_bytes"`
				Shut bool   `json:"doors_shut"`
			}
		}
	}
	var st status
	await := func(what string, shut bool) {
		t.Helper()
		for until := time.Now().Add(30 * time.Second); ; {
			code := p.json(&st, "status")
			if st.Bus.Space.Shut == shut && st.Healthy == !shut {
				if shut && code != 2 {
					t.Errorf("status found a fault and exits with %d", code)
				}
				return
			}
			if time.Now().After(until) {
				t.Fatalf("%s: %+v", what, st)
			}
		}
	}
	await("at the start", false)
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	// The load fills what this leaves, down to the low-water mark.
	const room = 16 << 20
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(st.Bus.Space.Free-st.Bus.Space.Low-room)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	stop := make(chan struct{})
	var group sync.WaitGroup
	senders := make([]*sender, 5)
	for i := range senders {
		s := &sender{id: fmt.Sprintf("d-%d", i), addr: p.plain, sent: map[int]int{}, acked: map[int]bool{}}
		senders[i] = s
		group.Go(func() { s.run(stop) })
	}
	await("full", true)
	<-time.After(time.Second)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	await("with space again", false)
	close(stop)
	group.Wait()
	acked := 0
	for _, s := range senders {
		acked += len(s.acked)
	}
	t.Logf("%d messages acknowledged around a full disk", acked)
	p.settled(uint64(acked))
	p.stop()
	checkStored(t, p.data, senders)
}

//go:build long

package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus/nats"
)

// acknowledged waits until each sender has had so many more messages acknowledged.
func acknowledged(t *testing.T, senders []*sender, more int64) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(4 * time.Minute)
	for _, s := range senders {
		for want := s.count.Load() + more; s.count.Load() < want; {
			select {
			case <-tick.C:
			case <-late:
				t.Fatalf("nothing more of %s is acknowledged", s.id)
			}
		}
	}
}

// TestNothingAcknowledgedIsTrimmedWhenTheLeaderOfTheBusDies kills the leader of the log's stream under load. Leases are lost,
// and whoever takes them fences the rows of who had them; what looks for old messages meanwhile meets what the fences have
// left, and must take nothing young for old.
func TestNothingAcknowledgedIsTrimmedWhenTheLeaderOfTheBusDies(t *testing.T) {
	nodes, url := startCluster(t)
	door := partWith(t, url, "service_platform.broker:\n  cluster: auto\n", "service_platform")
	proof := partWith(t, url, "operator.retention:\n  every: 1s\n", "operator.journal", "operator.retention")
	door.start()
	proof.start()
	defer func() {
		if t.Failed() {
			t.Logf("door:\n%s\nproof:\n%s", door.out, proof.out)
		}
	}()
	stop := make(chan struct{})
	var group sync.WaitGroup
	senders := make([]*sender, 10)
	for i := range senders {
		senders[i] = newSender(fmt.Sprintf("d-%d", i), door.plain)
		group.Go(func() { senders[i].run(stop) })
	}
	acknowledged(t, senders, 20)
	l := leader(t, url, nodes) // one only: a second one that goes before the first has caught up takes the bus with it
	t.Logf("killing %s, the leader", l.Name)
	l.kill()
	acknowledged(t, senders, 200)
	l.start(t)
	close(stop)
	group.Wait()
	b, err := nats.Open(t.Context(), nats.Options{URL: url, Replicas: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, fault := range logFaults(t, b, senders) {
		t.Error(fault)
	}
}

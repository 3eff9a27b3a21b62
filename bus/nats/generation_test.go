package nats

import (
	"context"
	"sync"
	"testing"

	"github.com/naru-platform/naru/bus"
)

// TestAnyNumberOfProcessesSealAtOnce since each that finds a repartition half done finishes it.
func TestAnyNumberOfProcessesSealAtOnce(t *testing.T) {
	b := open(t, t.TempDir())
	l, err := b.Log(t.Context(), "device", bus.LogOptions{Partitions: 4})
	if err != nil {
		t.Fatal(err)
	}
	for part := range uint32(4) {
		var group sync.WaitGroup
		begin := make(chan struct{})
		for range 8 {
			group.Go(func() {
				<-begin
				if err := l.(*Log).seal(context.Background(), 1, part); err != nil {
					t.Error(err)
				}
			})
		}
		close(begin)
		group.Wait()
	}
}

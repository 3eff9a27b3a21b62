package component

import (
	"strings"
	"testing"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// A log that lost its end, by a broken disk, and grew again has other messages where some were read.
func TestALogThatWasCutAndGrewAgainIsNotReadOn(t *testing.T) {
	c := &Checkpoint{Log: "device", Rows: map[string]Row{"door": {Upto: Sum{Count: 100}}}}
	stored := func(appender string, running uint64) *bus.Stored {
		var s bus.Stored
		s.Appender, s.Position.Sequence, s.Batch.Header = appender, 42, message.Header{Running: running, Count: 1}
		return &s
	}
	for running, bad := range map[uint64]bool{99: true, 0: true, 100: false, 130: false} {
		if got := regrown(c, stored("door", running)); (got != "") != bad || bad && !strings.Contains(got, "batch 42 of log device") {
			t.Errorf("with %d messages before it, a batch is told to be %q", running, got)
		}
	}
	if got := regrown(c, stored("another", 0)); got != "" {
		t.Errorf("an appender that was not met is told to be %q", got)
	}
	unreadable := stored("door", 0)
	unreadable.Err = bus.ErrNotFound
	if got := regrown(c, unreadable); got != "" {
		t.Errorf("a batch without a header is told to be %q", got)
	}
}

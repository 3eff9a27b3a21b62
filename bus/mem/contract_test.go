package mem_test

import (
	"testing"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/bustest"
	"github.com/naru-platform/naru/bus/mem"
)

func open(t *testing.T) bustest.Engine {
	b := mem.New(mem.Options{})
	t.Cleanup(func() { b.Close() })
	return bustest.Engine{
		Bus: b,
		Reopen: func() bus.Bus {
			b.Close()
			b = b.Reopen()
			return b
		},
		SetDown:  func(down bool) { b.SetDown(down) },
		LoseAcks: func(n int) { b.LoseAcks(n) },
		Corrupt: func(log string, sequence uint64) {
			if err := b.CorruptBatch(log, 0, sequence, 130); err != nil {
				t.Fatal(err)
			}
		},
		SetSpace: func(s bus.Space) { b.SetSpace(s) },
	}
}

var all = bustest.Features{Reopen: true, SetDown: true, LoseAcks: true, Corrupt: true, SetSpace: true}

func TestKeepsThePromises(t *testing.T) {
	f := all
	f.Bubble = true
	bustest.Run(t, f, open)
}

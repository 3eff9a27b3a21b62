package rule

import (
	"context"
	_ "embed" // of the rules
	"errors"
	"sync"
	"time"

	"github.com/naru-platform/naru/internal/answer"
)

// The rules for simulated devices. One leads from a reading over the twin back to its device, the other over a worker and
// a command.
var (
	//go:embed demo.yaml
	demoTwin []byte
	//go:embed demo_worker.yaml
	demoWorker []byte
)

// demoFile is the file that the rules are said to be from, so that nobody takes them for some of his own.
const demoFile = "demo.yaml inside naru"

const demoEvery = time.Second // it is tried, while the table cannot be written

// demo has the rules for simulated devices run with them, and takes away what a start with them has left. A rule of such a
// name that is somebody's own stays as it is.
func (e *Engine) demo(ctx context.Context) {
	var all sync.WaitGroup
	for _, raw := range [][]byte{demoTwin, demoWorker} {
		d, err := Parse(raw)
		if err != nil {
			e.env.Log.Error("read a rule for simulated devices", "error", err)
			continue
		}
		yes := true
		d.Enabled = &yes
		all.Go(func() { e.bringDemo(ctx, d) })
	}
	all.Wait()
}

// bringDemo goes on until it is done.
func (e *Engine) bringDemo(ctx context.Context, d *Document) {
	tick := time.NewTicker(demoEvery)
	defer tick.Stop()
	for {
		err := e.tryDemo(ctx, d)
		var no *answer.Problem
		switch {
		case err == nil:
			return
		case errors.As(err, &no) && no.Status == 409:
			e.env.Log.Info("a rule for simulated devices does not run: there is another one of its name", "rule", d.Name)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (e *Engine) tryDemo(ctx context.Context, d *Document) error {
	if e.conf.Demo {
		_, _, err := e.book.put(ctx, d, act{by: "naru", file: demoFile, why: "devices are simulated"})
		return err
	}
	e.book.mu.Lock()
	k := e.book.heads[d.Name]
	left := k != nil && !k.Deleted && k.File == demoFile
	e.book.mu.Unlock()
	if !left {
		return nil
	}
	_, err := e.book.change(ctx, d.Name, act{by: "naru", file: demoFile, why: "no devices are simulated", do: remove})
	return err
}

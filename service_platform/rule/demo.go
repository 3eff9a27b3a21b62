package rule

import (
	"context"
	_ "embed" // of the rule
	"errors"
	"time"

	"github.com/naru-platform/naru/internal/answer"
)

// demoYAML is a rule for simulated devices: from a reading over the rule and the twin back to its device.
//
//go:embed demo.yaml
var demoYAML []byte

// demoFile is the file that the rule is said to be from, so that nobody takes it for one of his own.
const demoFile = "demo.yaml inside naru"

const demoEvery = time.Second // it is tried, while the table cannot be written

// demo has the rule for simulated devices run with them, and takes away what a start with them has left. A rule of that
// name that is somebody's own stays as it is.
func (e *Engine) demo(ctx context.Context) {
	d, err := Parse(demoYAML)
	if err != nil {
		e.env.Log.Error("read the rule for simulated devices", "error", err)
		return
	}
	yes := true
	d.Enabled = &yes
	tick := time.NewTicker(demoEvery)
	defer tick.Stop()
	for {
		err := e.bringDemo(ctx, d)
		var no *answer.Problem
		switch {
		case err == nil:
			return
		case errors.As(err, &no) && no.Status == 409:
			e.env.Log.Info("the rule for simulated devices does not run: there is another one of its name", "rule", d.Name)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (e *Engine) bringDemo(ctx context.Context, d *Document) error {
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

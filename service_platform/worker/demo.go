package worker

import (
	"context"
	"errors"
	"time"

	"github.com/naru-platform/naru/internal/answer"
)

// DemoName is the worker for simulated devices. Its only instance runs in the process that simulates them; it connects as
// anybody's does.
const DemoName = "sim-mechanic"

const demoEvery = time.Second // it is tried, while the table cannot be written

// demo has the worker for simulated devices be there with them, and takes away what a start with them has left. A worker of
// that name that is somebody's own stays as it is.
func (w *Workers) demo(ctx context.Context, wanted bool) {
	tick := time.NewTicker(demoEvery)
	defer tick.Stop()
	for {
		err := w.bringDemo(ctx, wanted)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C: // what is being forgotten is gone in a moment
		}
	}
}

// errOwn says that there is a worker of somebody's own.
var errOwn = errors.New("it is somebody's own")

func (w *Workers) bringDemo(ctx context.Context, wanted bool) error {
	rec := Record{Name: DemoName, Timeout: "10s"}
	if err := rec.complete(); err != nil {
		return err
	}
	why := "devices are simulated"
	if !wanted {
		why = "no devices are simulated"
	}
	_, err := w.book.change(ctx, DemoName, "naru", why, func(h *Head) (string, error) {
		switch {
		case !h.Removed && !h.Demo && wanted:
			return "", errOwn
		case !wanted && (h.Removed || !h.Demo):
			return "", errSame
		case !wanted:
			return remove(h)
		}
		what, err := put(rec)(h)
		h.Demo = true
		return what, err
	})
	if errors.Is(err, errOwn) {
		w.env.Log.Info("the worker for simulated devices is not there: there is another one of its name", "worker", DemoName)
		return nil
	}
	return err
}

// own says that a worker is not naru's, so that people may change it.
func own(do func(h *Head) (string, error)) func(h *Head) (string, error) {
	return func(h *Head) (string, error) {
		if h.Demo && !h.Removed {
			return "", answer.Conflict("worker %s is naru's own, and there while devices are simulated; give yours another name", h.Name)
		}
		what, err := do(h)
		if err == nil {
			h.Demo = false
		}
		return what, err
	}
}

package command

import (
	"sync"

	"github.com/naru-platform/naru/component"
)

// hub tells those who wait in this process that a command has changed. The handlers' goroutine never waits for them.
type hub struct {
	mu      sync.Mutex
	waiting map[string]*waiters // by device
}

type waiters struct {
	n       int
	changed chan struct{} // closed with the next change
}

func newHub() *hub { return &hub{waiting: map[string]*waiters{}} }

// watch gives what is closed when a command of the device changes from now on. leave must be called.
func (h *hub) watch(device string) (changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.waiting[device]
	if w == nil {
		w = &waiters{changed: make(chan struct{})}
		h.waiting[device] = w
	}
	w.n++
	return w.changed
}

func (h *hub) leave(device string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.waiting[device]; w != nil {
		if w.n--; w.n == 0 {
			delete(h.waiting, device)
		}
	}
}

func (h *hub) tell(device string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.waiting[device]; w != nil {
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

// changed tells of a command when what the handler does is committed.
func (c *Commands) changed(tx component.Tx, x *Command) {
	of := x.Device
	tx.After(func() { c.hub.tell(of) })
}

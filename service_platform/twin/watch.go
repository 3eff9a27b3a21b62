package twin

import (
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/twin/shadow"
)

const (
	// watchersMax is how many may watch at once; watchRoom how many changes may wait for one of them.
	watchersMax = 256
	watchRoom   = 256
)

// hub hands what was committed to those who wait for it in this process. The handlers' goroutine never waits for them.
type hub struct {
	mu       sync.Mutex
	closed   bool
	watchers map[*watcher]struct{}
	waiting  map[message.ID]chan reply
}

// reply is the answer to a request.
type reply struct {
	payload []byte
	refused *shadow.Error // nil where it was accepted
}

// watcher is somebody who looks at the twins of a device, or at one of them.
type watcher struct {
	device string
	shadow *string // nil for all
	lines  chan []byte
	missed atomic.Uint64
}

func newHub() *hub {
	return &hub{watchers: map[*watcher]struct{}{}, waiting: map[message.ID]chan reply{}}
}

// watch gives nil where too many watch already, or the component has stopped.
func (h *hub) watch(device string, shadow *string) *watcher {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || len(h.watchers) == watchersMax {
		return nil
	}
	w := &watcher{device: device, shadow: shadow, lines: make(chan []byte, watchRoom)}
	h.watchers[w] = struct{}{}
	return w
}

func (h *hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

// close ends all watches.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for w := range h.watchers {
		close(w.lines)
	}
	clear(h.watchers)
}

// tell gives a change to whom it concerns. One who is too slow misses it, and is told how many.
func (h *hub) tell(r ref, rec *shadow.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var line []byte
	for w := range h.watchers {
		if w.device != r.device || w.shadow != nil && *w.shadow != r.shadow {
			continue
		}
		if line == nil {
			var err error
			if line, err = json.Marshal(showRecord(r, rec)); err != nil {
				return
			}
		}
		select {
		case w.lines <- line:
		default:
			w.missed.Add(1)
		}
	}
}

// await has the answer to a message put into the channel; forget must be called.
func (h *hub) await(id message.ID) chan reply {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := make(chan reply, 1)
	h.waiting[id] = c
	return c
}

func (h *hub) forget(id message.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.waiting, id)
}

// awaited says whether somebody waits for the answer to a message. Who asks waits before the message is in the log.
func (h *hub) awaited(id message.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting[id] != nil
}

// watched says whether anybody watches. One who begins in this moment may miss what is being handled.
func (h *hub) watched() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.watchers) > 0
}

func (h *hub) answer(id message.ID, r reply) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.waiting[id]; c != nil {
		select {
		case c <- r:
		default: // it has one
		}
	}
}

// Change is a value that became another one.
type Change struct {
	Path   string          `json:"path"` // JSON pointer in the state
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

// Record is what a message changed of a twin.
type Record struct {
	Device  string          `json:"device"`
	Shadow  string          `json:"shadow,omitempty"`
	Number  uint64          `json:"number"` // of the twin's changes
	Version uint64          `json:"version"`
	Change  string          `json:"change"` // created, updated or deleted
	At      time.Time       `json:"at"`
	Message message.ID      `json:"message"`
	Trace   message.TraceID `json:"trace"`
	Source  string          `json:"source"`
	Changes []Change        `json:"changes"`
}

func showRecord(r ref, rec *shadow.Record) Record {
	s := Record{Device: r.device, Shadow: r.shadow, Number: rec.Number, Version: rec.Version, Change: rec.Kind, At: rec.At().UTC(),
		Message: rec.By.ID, Trace: rec.Trace, Source: rec.By.Source, Changes: []Change{}}
	for _, c := range rec.Changes {
		s.Changes = append(s.Changes, Change{c.Path, json.RawMessage(c.Before), json.RawMessage(c.After)})
	}
	return s
}

package x509

import (
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
)

const (
	// waitingMax is how many certificates of one claim certificate may wait to be provisioned: a device does that within
	// seconds, so this many are minutes of a production line at its fastest. Beyond it nothing is made until some have
	// been taken or have ended, so that a claim certificate in wrong hands fills no disk.
	waitingMax = 4096
	// waitingGrace is how long a token that has ended is still there, for a request that is under way.
	waitingGrace = time.Minute
)

// waiting is which ownership tokens there are, so that they can be counted and swept without reading the table. It follows
// the table, and hears of this process's own writes at once.
type waiting struct {
	mu     sync.Mutex
	tokens map[string]waits // by key
	open   map[string]int   // by claim certificate: those that nobody provisioned himself with yet
}

type waits struct {
	claim    string
	done     bool
	expires  time.Time
	revision uint64
}

func (w *waiting) apply(e bus.Entry) {
	if !strings.HasPrefix(e.Key, ownershipPrefix) {
		return
	}
	var own ownership
	there := !e.Deleted && json.Unmarshal(e.Value, &own) == nil
	w.mu.Lock()
	defer w.mu.Unlock()
	was, known := w.tokens[e.Key]
	if known && was.revision > e.Revision && !vanished(e) {
		return
	}
	if known && !was.done {
		if w.open[was.claim]--; w.open[was.claim] == 0 {
			delete(w.open, was.claim)
		}
	}
	if !there {
		delete(w.tokens, e.Key)
		return
	}
	if w.tokens == nil {
		w.tokens, w.open = map[string]waits{}, map[string]int{}
	}
	w.tokens[e.Key] = waits{own.Claim, own.Done, own.Expires, e.Revision}
	if !own.Done {
		w.open[own.Claim]++
	}
}

// of is how many certificates of a claim certificate wait.
func (w *waiting) of(claim string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open[claim]
}

// ended gives the keys of tokens that have ended by themselves.
func (w *waiting) ended(now time.Time) (keys []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key, t := range w.tokens {
		if now.After(t.expires.Add(waitingGrace)) {
			keys = append(keys, key)
		}
	}
	return keys
}

package x509

import (
	"log/slog"
	"sync"

	"github.com/naru-platform/naru/bus"
)

// unreadables logs entries of the trust table that cannot be read, each once for as long as it stands as it is: one of them is
// no reason to withhold all others.
type unreadables struct {
	log *slog.Logger

	mu   sync.Mutex
	told map[string]uint64 // revision by key
}

const unreadablesMax = 1024 // beyond it all are told once more

func (u *unreadables) tell(what string, e bus.Entry, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if revision, ok := u.told[e.Key]; ok && revision == e.Revision {
		return
	}
	if u.told == nil || len(u.told) >= unreadablesMax {
		u.told = map[string]uint64{}
	}
	u.told[e.Key] = e.Revision
	u.log.Error(what, "table", trustTable, "key", e.Key, "error", err)
}

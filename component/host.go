package component

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	leaseTTL    = 5 * time.Second
	stopWait    = 20 * time.Second // for what is under way when the process stops
	stopGrace   = 2 * time.Second  // for handlers to see that this time is over
	reportEvery = 500 * time.Millisecond
	againEvery  = 10 * time.Second // reports are said again, since their table forgets
	brokenMost  = 10               // stores of a component that were left as they lay, before only a new process helps
	restartMin  = time.Second
	restartMax  = 30 * time.Second
)

// Host runs components in one process. They know nothing of each other, and have no order: one that fails is started
// anew after a while, and the others go on.
type Host struct {
	Bus     bus.Bus
	Catalog *message.Catalog
	Log     *slog.Logger
	Now     func() time.Time
	Dir     string // a component's own directory is below it, under its name
	Node    string
	Metrics *prometheus.Registry
	// Config is each component's configuration, by its name.
	Config map[string]json.RawMessage
	Specs  []Spec
	// HTTP is where this process answers; it is told to operators.
	HTTP string
	// Mutant says how often the message at an index of a batch is handled, where a test must see what a skipped or
	// repeated message does to the ledger. Index -1 is the batch with its header: where it gives 0 for that, the batch is
	// passed over as if it had never been there. Nil is once, and nothing else belongs in production.
	Mutant func(component string, index int) int

	fs        vfs.FS     // nil but in tests
	crash     crash      // nil but in tests
	telling   sync.Mutex // held while something is told of a component
	owner     message.ID
	contracts string // the catalog's fingerprint
	peers     *Peers
	metrics   *Metrics
	mux       *router
	checker   *Checker
	broken    error // the catalog's fault
	runs      []*run
	once      sync.Once
}

// init fills in what was left out, once.
func (h *Host) init() {
	h.once.Do(func() {
		if h.Now == nil {
			h.Now = time.Now
		}
		if h.Log == nil {
			h.Log = slog.New(slog.DiscardHandler)
		}
		if h.Metrics == nil {
			h.Metrics = prometheus.NewRegistry()
		}
		h.owner = message.NewID(h.Now())
		h.peers = NewPeers()
		h.metrics = newMetrics(h.Metrics)
		h.mux = newRouter()
		h.checker, h.broken = NewChecker(h.Catalog)
		h.contracts = h.Catalog.Fingerprint()
		for _, s := range h.Specs {
			h.runs = append(h.runs, newRun(h, s))
		}
	})
}

// all are the components of this process, each with its children.
func (h *Host) all() (list []*run) {
	for _, r := range h.runs {
		list = append(list, r)
		if n := r.nurses(); n != nil {
			list = append(list, n.runs()...)
		}
	}
	return list
}

// Peers is the view of all components on the bus.
func (h *Host) Peers() *Peers { h.init(); return h.peers }

// Handler joins the routes of the components that run. allowed says whether a request may use a route that is not
// public.
func (h *Host) Handler(allowed func(*http.Request) bool) http.Handler {
	h.init()
	h.mux.allowed = allowed
	return h.mux
}

// Health is how the components of this process are, and their children.
func (h *Host) Health() []Health {
	h.init()
	all := h.all()
	list := make([]Health, len(all))
	for i, r := range all {
		r.mu.Lock()
		list[i] = r.health
		r.mu.Unlock()
	}
	return list
}

// Run runs the components until ctx is done, then lets them finish and commit what is under way. It ends with an error where another process has the node's name.
func (h *Host) Run(ctx context.Context) error {
	h.init()
	if h.broken != nil {
		return h.broken
	}
	for name := range h.Config {
		if !h.known(name) {
			return fmt.Errorf("configuration of %s: no such component runs here", name)
		}
	}
	// Every component is built once before any starts, so that a mistake in the configuration is told at once.
	for _, r := range h.runs {
		var failed *panicked
		if _, err := r.build(prometheus.NewRegistry()); errors.As(err, &failed) {
			continue // a bug of its own, which must not keep the others away; supervise meets and tells it
		} else if err != nil {
			return err
		}
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	var group sync.WaitGroup
	var twice error
	group.Go(func() {
		if twice = h.alone(ctx); twice != nil {
			end()
		}
	})
	telling, told := context.WithCancel(context.WithoutCancel(ctx))
	var tellers sync.WaitGroup
	tellers.Go(func() { h.tell(telling) })
	tellers.Go(func() {
		for telling.Err() == nil {
			if err := h.peers.run(telling, h.Bus); err != nil && telling.Err() == nil {
				h.Log.Warn("watch the other components", "error", err)
				_ = pause(telling, restartMin) // ends with telling
			}
		}
	})
	for _, r := range h.runs {
		group.Go(func() { r.supervise(ctx) })
	}
	group.Wait()
	told()
	tellers.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	for _, r := range h.runs {
		if err := h.tellOf(last, r, map[string]time.Time{}); err != nil {
			h.Log.Debug("tell that a component stopped", "component", r.spec.Name, "error", err)
			break
		}
	}
	return twice
}

func (h *Host) known(name string) bool {
	for _, r := range h.runs {
		if r.spec.Name == name {
			return true
		}
	}
	return false
}

package component

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
)

// Child is a consumer of a component's own making, `<component>/<child>`: a rule's destination, a worker. It has all that
// a component with State Local has, and of its own: store, lease, position, retries, dead letters, account. What goes
// wrong in one concerns no other, nor the component that declares it.
type Child struct {
	// Name is made of small letters, digits, `-` and `_`, 64 at most.
	Name string
	// Doc is one sentence; the component's where it is empty.
	Doc string
	// Hears lists its patterns, within Spec.ChildrenHear.
	Hears []message.Pattern
	// Calls, Retry and From are as in Spec.
	Calls int
	Retry Retry
	From  Start
	// Gather and GatherMax are as in Spec.
	Gather    time.Duration
	GatherMax int
	// Version tells this declaration from others of the name: where it has changed, the child is stopped and started
	// with what is said now, going on behind what it has finished.
	Version string
	// Build makes its handlers, each time that it starts. It may say how many calls are made at first, with Env.Calls.
	Build func(Env) (*Part, error)
}

const (
	childrenDir = "children"
	childMax    = 64 // bytes of a child's name, which is a folder's, and a part of a row's
)

// spec is the child as what it is to the runner: a component. It says what its parent may say.
func (c *Child) spec(parent *Spec) Spec {
	s := Spec{Name: parent.Name + "/" + c.Name, Doc: cmp.Or(c.Doc, parent.Doc), Hears: c.Hears, Instead: parent.Instead, Says: parent.Says, State: Local,
		Calls: c.Calls, Gather: c.Gather, GatherMax: c.GatherMax, Required: parent.Required, From: c.From, Retry: c.Retry, of: parent.Name, defaults: struct{}{}}
	s.build = func(e Env, _ json.RawMessage) (*Part, error) { return c.Build(e) }
	return s
}

// child is the last part of a child's name.
func (s *Spec) child() string { return strings.TrimPrefix(s.Name, s.of+"/") }

// rows is what the names of the component's rows begin with. No component's name begins with `child`.
func (s *Spec) rows() []string {
	if s.of != "" {
		return []string{"child", s.of, s.child()}
	}
	return []string{s.Name}
}

// folder is where the component's directory is, below the host's.
func (s *Spec) folder() string {
	if s.of != "" {
		return filepath.Join(s.of, childrenDir, s.child())
	}
	return s.Name
}

func childName(s string) error {
	if s == "" || len(s) > childMax || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return fmt.Errorf("child %q: want a name of small letters, digits, - and _, %d at most", s, childMax)
	}
	return nil
}

// valid says what is wrong with a set of children.
func (s *Spec) valid(set []Child) error {
	names := map[string]bool{}
	for i := range set {
		c := &set[i]
		if err := childName(c.Name); err != nil {
			return err
		}
		switch {
		case names[c.Name]:
			return fmt.Errorf("child %s is declared twice", c.Name)
		case c.Build == nil, len(c.Hears) == 0:
			return fmt.Errorf("child %s: want what it hears, and Build", c.Name)
		}
		names[c.Name] = true
		for _, p := range c.Hears {
			if err := p.Valid(); err != nil {
				return fmt.Errorf("child %s: %w", c.Name, err)
			}
			if !slices.ContainsFunc(s.ChildrenHear, func(q message.Pattern) bool { return q.Covers(p) }) {
				return fmt.Errorf("child %s hears %s, which %s does not declare that its children hear", c.Name, p, s.Name)
			}
		}
	}
	return nil
}

// nursery runs the children of one life of a component, and ends with it.
type nursery struct {
	r    *run // the component's
	wake chan struct{}

	mu     sync.Mutex
	wanted map[string]*Child
	lives  map[string]*childLife
	busy   map[string]bool // are being forgotten, and not started meanwhile
	over   bool
	news   chan struct{} // closed and made anew when a life has ended
}

// childLife is a child that runs, or is coming to its end.
type childLife struct {
	version string
	run     *run
	end     context.CancelFunc
	ending  bool
}

func newNursery(r *run) *nursery {
	return &nursery{r: r, wake: make(chan struct{}, 1), wanted: map[string]*Child{}, lives: map[string]*childLife{}, busy: map[string]bool{}, news: make(chan struct{})}
}

// want makes a set of children the one that is to run.
func (n *nursery) want(set []Child) {
	n.mu.Lock()
	n.wanted = map[string]*Child{}
	for _, c := range set {
		n.wanted[c.Name] = &c
	}
	n.mu.Unlock()
	n.ring()
}

func (n *nursery) ring() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// nurse starts and stops children as they are wanted until ctx is done; it returns when all have ended.
func (n *nursery) nurse(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	defer func() {
		n.mu.Lock()
		n.over = true
		n.mu.Unlock()
	}()
	for {
		n.tend(ctx, &group)
		select {
		case <-n.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *nursery) tend(ctx context.Context, group *sync.WaitGroup) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, l := range n.lives {
		if c := n.wanted[name]; (c == nil || c.Version != l.version) && !l.ending {
			l.ending = true
			l.end()
		}
	}
	for name, c := range n.wanted {
		if n.lives[name] != nil || n.busy[name] || ctx.Err() != nil {
			continue
		}
		l := &childLife{version: c.Version, run: n.r.bear(c)}
		var living context.Context
		living, l.end = context.WithCancel(ctx)
		n.lives[name] = l
		group.Go(func() {
			defer n.ended(name)
			defer l.end()
			l.run.supervise(living)
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
			defer cancel()
			if err := n.r.h.tellOf(last, l.run, map[string]time.Time{}); err != nil {
				n.r.h.Log.Debug("tell that a child stopped", "component", l.run.spec.Name, "error", err)
			}
		})
	}
}

func (n *nursery) ended(name string) {
	n.mu.Lock()
	delete(n.lives, name)
	close(n.news)
	n.news = make(chan struct{})
	n.mu.Unlock()
	n.ring()
}

// runs are those of the children that run.
func (n *nursery) runs() (list []*run) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.lives {
		list = append(list, l.run)
	}
	return list
}

// reserve waits until nothing of a child runs, and keeps it from being started until it is let go of.
func (n *nursery) reserve(ctx context.Context, name string) (func(), error) {
	for {
		n.mu.Lock()
		news := n.news
		switch {
		case n.over:
			n.mu.Unlock()
			return nil, answer.Unavailable("%s is stopping", n.r.spec.Name)
		case n.wanted[name] != nil || n.busy[name]:
			n.mu.Unlock()
			return nil, answer.Conflict("%s has a child %s: it is forgotten only when it is not declared any more", n.r.spec.Name, name)
		case n.lives[name] == nil:
			n.busy[name] = true
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				delete(n.busy, name)
				n.mu.Unlock()
				n.ring()
			}, nil
		}
		n.mu.Unlock()
		n.ring() // it may not have been told to end yet
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// bear makes the run of a child. What is known of former ones in this process is kept: how often its store broke, and
// that one of them did not stop.
func (r *run) bear(c *Child) *run {
	spec := c.spec(&r.spec)
	k := newRun(r.h, spec)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.born == nil {
		r.born = map[string]*run{}
	}
	if before := r.born[c.Name]; before != nil {
		before.mu.Lock()
		k.broken, k.stuck, k.health.Restarts = before.broken, before.stuck, before.health.Restarts
		before.mu.Unlock()
	}
	r.born[c.Name] = k
	return k
}

// nurses is the nursery of the component's present life; nil where there is none.
func (r *run) nurses() *nursery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nursery
}

// children as in [Env.Children].
func (r *run) children(set []Child) error {
	n := r.nurses()
	if n == nil {
		return answer.Unavailable("%s is not running here, or declares nothing that its children hear", r.spec.Name)
	}
	if err := r.spec.valid(set); err != nil {
		return fmt.Errorf("children of %s: %w", r.spec.Name, err)
	}
	n.want(set)
	return nil
}

// forget as in [Env.Forget].
func (r *run) forget(ctx context.Context, name string) error {
	if err := childName(name); err != nil {
		return err
	}
	n := r.nurses()
	if n == nil {
		return answer.Unavailable("%s is not running here", r.spec.Name)
	}
	free, err := n.reserve(ctx, name)
	if err != nil {
		return err
	}
	defer free()
	c := Child{Name: name}
	spec := c.spec(&r.spec)
	lease, err := r.h.Bus.Lease(ctx, "consumer/"+spec.Name, r.h.Node, leaseTTL)
	if errors.Is(err, bus.ErrHeld) {
		return answer.Conflict("%s runs in another process: %v; it is forgotten when it has stopped there", spec.Name, err)
	}
	if err != nil {
		return err
	}
	defer func() {
		ctx, done := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer done()
		_ = lease.Release(ctx) // it goes by itself
	}()
	// What the logs keep for it goes first: retention may be away for longer than it is told of. Who comes by the name, where this is broken
	// off, begins with what is left in the folder, or anew; never where the logs say that the one before was.
	if err := r.release(ctx, spec.Name); err != nil {
		return fmt.Errorf("tell that %s is forgotten: %w", spec.Name, err)
	}
	if err := r.h.discard(filepath.Join(r.h.Dir, spec.folder())); err != nil {
		return fmt.Errorf("forget %s: %w", spec.Name, err)
	}
	if err := unhouse(ctx, r.h.Bus, spec.Name); err != nil {
		return fmt.Errorf("forget where %s lies: %w", spec.Name, err)
	}
	r.mu.Lock()
	delete(r.born, name)
	r.mu.Unlock()
	return nil
}

// release tells that a child is no more, and releases what the logs keep for it.
func (r *run) release(ctx context.Context, consumer string) error {
	r.h.telling.Lock() // a report that is under way is told before, and none after
	defer r.h.telling.Unlock()
	r.h.metrics.forget(consumer)
	return r.h.peers.Forget(ctx, r.h.Bus, consumer, r.h.Now())
}

// discard removes a folder as one: where that is broken off, what is left of it lies under another name.
func (h *Host) discard(dir string) error {
	fs := h.fs
	if fs == nil {
		fs = vfs.Default
	}
	gone := filepath.Join(filepath.Dir(dir), ".gone-"+filepath.Base(dir))
	if err := fs.RemoveAll(gone); err != nil {
		return err
	}
	if _, err := fs.Stat(dir); err != nil {
		return nil // it never ran here
	}
	if err := fs.Rename(dir, gone); err != nil {
		return err
	}
	return fs.RemoveAll(gone)
}

// One component in a host, from its start to its end, again and again.

package component

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
)

// run is one component in the host.
type run struct {
	h      *Host
	spec   Spec
	env    Env
	source string // CloudEvents source
	gate   *gate  // of its calls

	mu      sync.Mutex
	health  Health
	workers []*worker // one, or with State Derived one for each partition it holds
	store   *store
	broken  int                     // stores that were left as they lay
	views   *sync.WaitGroup         // that read the store
	doors   map[string]bus.Appender // by log and kind
	held    func() bool             // whether this process still owns the component; nil where it is nobody's own
	stuck   bool                    // it did not stop, and would run twice
	nursery *nursery                // of its children, in this life of it
	born    map[string]*run         // the last run of each child
}

func newRun(h *Host, s Spec) *run {
	return &run{h: h, spec: s, source: "//naru/" + h.Node + "/" + s.Name, gate: newGate(s.calls()), doors: map[string]bus.Appender{},
		health: Health{Name: s.Name, Of: s.of, Node: h.Node, Doc: s.Doc, Hears: s.Hears, Takes: s.taken(), Says: s.Says, HTTP: h.HTTP, Contracts: h.contracts}}
}

// supervise starts the component, and again after each failure.
func (r *run) supervise(ctx context.Context) {
	wait := restartMin
	for ctx.Err() == nil {
		if r.isStuck() {
			r.set("failed", "it did not stop before, and would run twice: "+errStuck.Error())
			<-ctx.Done()
			return
		}
		began := r.h.Now()
		r.set("starting", "")
		err := caught(func() error { return r.start(ctx) })
		if errors.Is(err, errStuck) {
			r.mu.Lock()
			r.stuck = true
			r.mu.Unlock()
			r.set("failed", firstLine(err))
			r.h.Log.Error("a component cannot be started again", "component", r.spec.Name, "error", err)
			<-ctx.Done()
			return
		}
		if ctx.Err() != nil {
			break
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		r.set("failed", firstLine(err))
		r.h.Log.Error("a component failed; it is started again", "component", r.spec.Name, "in", wait, "error", err)
		r.h.metrics.restarts.WithLabelValues(r.spec.Name).Inc()
		r.mu.Lock()
		r.health.Restarts++
		r.mu.Unlock()
		if errors.Is(err, errLeaseLost) {
			wait = restartMin // it is not to blame; who waits is the next owner, and perhaps that is this process
		}
		if pause(ctx, wait) != nil {
			break
		}
		if wait = min(2*wait, restartMax); r.h.Now().Sub(began) > time.Minute {
			wait = restartMin
		}
	}
	r.set("stopped", "")
}

// isStuck says whether the component did not stop when it was to, or cannot be started again for another reason.
func (r *run) isStuck() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stuck
}

var errLeaseLost = errors.New("its lease was lost; another process may own it now")

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

// panicked is a panic in a component's code, caught.
type panicked struct {
	what  any
	stack []byte
}

// Error has the stack behind its first line.
func (p *panicked) Error() string { return fmt.Sprintf("panic: %v\n%s", p.what, p.stack) }

// catch makes a panic an error; it is to be deferred.
func catch(err *error) {
	if p := recover(); p != nil {
		*err = &panicked{p, debug.Stack()}
	}
}

// caught calls f, and gives a panic of it as an error: whatever goroutine meets a bug, the process goes on.
func caught(f func() error) (err error) {
	defer catch(&err)
	return f()
}

// errStuck says that only a new process helps.
var errStuck = errors.New("restart the process")

// build makes the component's Env and Part.
func (r *run) build(reg prometheus.Registerer) (_ *Part, err error) {
	defer catch(&err)
	h := r.h
	r.env = Env{
		Spec: r.spec, Log: h.Log.With("component", r.spec.Name), Now: h.Now, Bus: h.Bus, Catalog: h.Catalog, Metrics: reg,
		Node: h.Node, Owner: h.owner, Mint: r.mint, Say: r.say, Door: r.door, View: r.view, Change: r.change, Check: h.checker.Check, Succeed: r.succeed, Peers: h.peers, Listening: r.listening, Fault: r.fault,
		Calls: r.gate.set, gate: r.gate, Children: r.children, Forget: r.forget, Move: r.move,
		Dir: func() (string, error) {
			dir := filepath.Join(h.Dir, r.spec.folder())
			return dir, os.MkdirAll(dir, 0o700)
		},
	}
	part, err := r.spec.Build(r.env, h.Config[r.spec.Name])
	if err != nil {
		return nil, err
	}
	if err := r.spec.fits(part); err != nil {
		return nil, err
	}
	return part, nil
}

// fits says what is wrong with a part for what its component declares.
func (s *Spec) fits(part *Part) error {
	ways := 0
	for _, has := range []bool{part.Handle != nil, part.HandleBatch != nil, part.HandleAll != nil, part.Call != nil} {
		if has {
			ways++
		}
	}
	handles := ways > 0
	switch {
	case ways > 1:
		return fmt.Errorf("component %s has more than one of Handle, HandleBatch, HandleAll and Call", s.Name)
	case part.Call != nil && s.State != Local, part.Call == nil && (s.Calls != 0 || part.Key != nil), s.Calls < 0:
		return fmt.Errorf("component %s: Call wants a local state; Calls (%d) and Key want Call", s.Name, s.Calls)
	case part.HandleAll != nil && s.State != Local, part.HandleAll == nil && (s.Gather != 0 || s.GatherMax != 0), s.Gather < 0, s.GatherMax < 0:
		return fmt.Errorf("component %s: HandleAll wants a local state; Gather (%v) and GatherMax (%d) want HandleAll", s.Name, s.Gather, s.GatherMax)
	case part.Passes != nil && part.Handle == nil:
		return fmt.Errorf("component %s: Passes wants Handle", s.Name)
	case handles != (len(s.Hears) > 0):
		return fmt.Errorf("component %s: its handlers do not fit what it declares to hear", s.Name)
	case (part.Take != nil) != (len(s.Takes) > 0):
		return fmt.Errorf("component %s: its handlers do not fit what it declares to take", s.Name)
	case (handles || part.Take != nil) != (s.State != None):
		return fmt.Errorf("component %s: handlers want a state, and a state handlers", s.Name)
	case part.Take != nil && s.PerNode, s.PerNode && s.State != Local:
		return fmt.Errorf("component %s: each process is a consumer of its own only with a local state, and not of the queue", s.Name)
	case part.Take != nil && s.State != Local:
		return fmt.Errorf("component %s: what it takes from the queue is recorded in a local state", s.Name)
	case len(s.ChildrenHear) > 0 && (s.State == Derived || s.PerNode):
		return fmt.Errorf("component %s: only one with a local state that is not each node's own, or with none, has children", s.Name)
	case (s.State == Derived) != (s.Into != ""), s.Into != "" && !slices.Contains(message.Namespaces(), s.Into):
		return fmt.Errorf("component %s: it writes into %q; a derived state wants one of %s, and no other state one", s.Name, s.Into,
			strings.Join(message.Namespaces(), ", "))
	}
	return nil
}

// start runs the component once.
func (r *run) start(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer func() {
		r.mu.Lock()
		r.health.Listens = nil
		r.mu.Unlock()
	}()
	reg := &scope{to: r.h.Metrics}
	defer reg.close()
	part, err := r.build(reg)
	if err != nil {
		return err
	}
	defer func() {
		if part.Close != nil {
			err = errors.Join(err, part.Close())
		}
	}()
	defer r.closeDoors()
	if len(r.spec.ChildrenHear) > 0 {
		r.mu.Lock()
		r.nursery = newNursery(r)
		r.mu.Unlock()
		defer func() {
			r.mu.Lock()
			r.nursery = nil
			r.mu.Unlock()
		}()
	}
	if r.spec.State == Local {
		lease, err := r.own(ctx, cmp.Or(part.Lease, leaseTTL))
		if err != nil {
			return err
		}
		defer func() {
			free, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer done()
			_ = lease.Release(free) // it goes by itself
		}()
		go func() {
			select {
			case <-lease.Lost():
				cancel(errLeaseLost)
			case <-ctx.Done():
			}
		}()
		r.mu.Lock()
		r.held = lease.Held
		r.mu.Unlock()
		if err := r.startWorker(ctx, part, lease); err != nil {
			return err
		}
		return r.serve(ctx, cancel, part, r.workers[0])
	}
	return r.serve(ctx, cancel, part, nil)
}

// own waits until the component is this process's.
func (r *run) own(ctx context.Context, ttl time.Duration) (bus.Lease, error) {
	for {
		node, err := "", error(nil)
		if r.housed() {
			if node, err = r.abroad(ctx, r.spec.Name); err != nil {
				return nil, err
			}
		}
		why := ""
		if node != "" {
			why = fmt.Sprintf("its place in the logs and what waits for it lie at node %s, where it goes on", node)
		} else {
			lease, err := r.lease(ctx, r.h.Node, ttl)
			if err != nil && !errors.Is(err, bus.ErrHeld) {
				return nil, err
			}
			if err == nil {
				here := true
				if r.housed() {
					here, err = r.settle(ctx)
				}
				if here && err == nil {
					return lease, nil
				}
				free, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
				_ = lease.Release(free) // it goes by itself
				done()
				if err != nil {
					return nil, err
				}
			}
		}
		r.set("standby", why)
		if err := pause(ctx, ttl/5); err != nil {
			return nil, err
		}
	}
}

// lease takes the component's place in the process of that name.
func (r *run) lease(ctx context.Context, node string, ttl time.Duration) (bus.Lease, error) {
	return r.h.Bus.Lease(ctx, "consumer/"+r.spec.consumer(node), r.h.Node, ttl)
}

func (r *run) startWorker(ctx context.Context, part *Part, lease bus.Lease) error {
	dir, err := r.env.Dir()
	if err != nil {
		return err
	}
	if r.broken >= brokenMost {
		return fmt.Errorf("its store broke %d times: %w", r.broken, errStuck)
	}
	s, err := openStore(ctx, r.h.fs, dir, r.env.Log, r.storage)
	if left := new(abandoned); errors.As(err, &left) {
		r.broken++
	}
	if err != nil {
		return err
	}
	s.crash = r.h.crash
	w, err := r.newWorker(ctx, part, newLocal(r.env, s, lease.Held))
	if err == nil {
		err = w.sweep()
	}
	if err != nil {
		return errors.Join(err, s.close(func() {}))
	}
	r.mu.Lock()
	r.workers, r.store, r.views = []*worker{w}, s, new(sync.WaitGroup)
	r.mu.Unlock()
	return nil
}

// storage says what is to be seen of a store that waits for space, and with nothing that it goes on.
func (r *run) storage(why string) {
	r.mu.Lock()
	workers, starting := slices.Clone(r.workers), r.health.State == "starting"
	r.mu.Unlock()
	if why != "" {
		r.h.Log.Warn("a component stands still", "component", r.spec.Name, "fault", why)
	} else {
		r.h.Log.Info("a component goes on; there is space again", "component", r.spec.Name)
	}
	if len(workers) == 0 && starting {
		r.set("starting", why)
	}
	for _, w := range workers {
		w.standAll(why)
	}
}

func (r *run) newWorker(ctx context.Context, part *Part, keep keeper) (*worker, error) {
	w, err := newWorker(ctx, r.env, part, keep, r.h.metrics.of(r.spec.Name))
	if f := r.h.Mutant; f != nil && err == nil {
		w.skew = func(i int) int { return f(r.spec.Name, i) }
	}
	return w, err
}

// serve runs worker, outbox, readers and Run until ctx is done, then stops them in the order in which they feed each
// other.
func (r *run) serve(ctx context.Context, cancel context.CancelCauseFunc, part *Part, w *worker) error {
	drained, undrained := context.WithCancel(context.WithoutCancel(ctx))
	defer undrained()
	defer context.AfterFunc(ctx, func() {
		late := time.AfterFunc(stopWait, undrained)
		context.AfterFunc(drained, func() { late.Stop() })
	})()
	var group, saying, nursing sync.WaitGroup
	outStop, stopOut := context.WithCancel(drained)
	defer stopOut()
	goes := func(g *sync.WaitGroup, f func() error) {
		g.Go(func() {
			if err := caught(f); err != nil && (ctx.Err() == nil || !errors.Is(err, context.Canceled)) {
				if ctx.Err() != nil {
					r.env.Log.Error("stop", "error", err)
				}
				cancel(err)
			}
		})
	}
	if err := r.h.mux.mount(r.spec.Name, part.Routes, r.env.Log); err != nil {
		if w != nil {
			return errors.Join(err, r.closeStore(w))
		}
		return err
	}
	defer r.h.mux.unmount(r.spec.Name)
	if w != nil {
		goes(&group, func() error { return w.run(ctx, drained) })
		goes(&group, func() error { return w.store.intact(ctx) })
		goes(&saying, func() error { return w.keep.(*local).out.run(outStop, drained) })
		goes(&group, func() error { return consume(ctx, r.env, w) })
	}
	if r.spec.State == Derived {
		goes(&group, func() error { return r.spread(ctx, drained, part) })
	}
	if n := r.nurses(); n != nil {
		goes(&nursing, func() error { return n.nurse(ctx) })
	}
	if part.Run != nil {
		goes(&group, func() error {
			err := part.Run(ctx, func() { r.set("running", "") })
			if err == nil && ctx.Err() == nil {
				err = errors.New("it ended by itself")
			}
			return err
		})
	} else if r.spec.State != Derived { // which runs when it holds a partition
		r.set("running", "")
	}
	<-ctx.Done()
	late := time.NewTimer(stopWait + stopGrace)
	defer late.Stop()
	stuck := fmt.Errorf("it did not stop within %s, and would run twice: %w", stopWait+stopGrace, errStuck)
	if !ended(&group, late) {
		return stuck
	}
	childrenLate := time.NewTimer(stopGrace + stopGrace) // their own time to stop has ended by now as well
	defer childrenLate.Stop()
	if !ended(&nursing, late) && !ended(&nursing, childrenLate) {
		return stuck
	}
	stopOut()
	if !ended(&saying, late) {
		return stuck
	}
	if w != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		if err := r.tellReports(last, w, map[string]time.Time{}); err != nil {
			r.env.Log.Debug("tell the last reports", "error", err)
		}
		cancel()
		if err := r.closeStore(w); err != nil {
			r.env.Log.Error("close the store", "error", err)
		}
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// ended waits for a group, until the timer fires.
func ended(group *sync.WaitGroup, late *time.Timer) bool {
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-late.C:
		return false
	}
}

// closeStore closes the store when nobody reads it any more. From here on this process has nothing to report of the
// component: another one may own it.
func (r *run) closeStore(w *worker) error {
	r.mu.Lock()
	r.store, r.workers = nil, nil
	r.mu.Unlock()
	if w.store.disk.err() != nil {
		r.broken++
	}
	return w.store.close(r.views.Wait)
}

// change makes a change beside the handlers.
func (r *run) change(ctx context.Context, f func(Tx) error) error {
	r.mu.Lock()
	running := r.store != nil && len(r.workers) == 1
	var w *worker
	if running {
		w = r.workers[0]
	}
	r.mu.Unlock()
	if w == nil {
		return answer.Unavailable("%s is not running here", r.spec.Name)
	}
	return w.change(ctx, f)
}

// view reads the component's store.
func (r *run) view(f func(View) error) error {
	r.mu.Lock()
	s := r.store
	if s == nil {
		r.mu.Unlock()
		return answer.Unavailable("%s is not running here", r.spec.Name)
	}
	views := r.views
	views.Add(1)
	r.mu.Unlock()
	defer views.Done()
	if err := s.disk.err(); err != nil {
		return answer.Unavailable("the store of %s is broken: %v", r.spec.Name, err)
	}
	snap := s.db.NewSnapshot()
	defer snap.Close() // reports what an iterator left open, which walk never does
	return f(view{snap})
}

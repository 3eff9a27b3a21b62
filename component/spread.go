package component

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// startsTable keeps where a component with State Derived that begins with the newest has begun in each log: the first
// of its processes says it, for all.
const startsTable = "naru_starts"

// lane is one partition in this process's hands.
type lane struct {
	at   place
	stop context.CancelCauseFunc
	over chan struct{}

	letters chan bus.Delivery // dead letters that are to be taken back
	first   chan struct{}     // closed when the first of them was handed over, where the lane is opened for it; else nil
	handed  sync.Once
}

// errGivenBack ends a lane so that another process may have its partition.
var errGivenBack = errors.New("given back")

// errFinished ends a lane whose partition is sealed and was read to its end.
var errFinished = errors.New("finished")

// spread keeps hold of this process's share of the component's partitions until ctx is done. A partition has one owner,
// by lease. Each process takes as many as its share of the processes that run the component, and gives back what it has
// beyond that while another has less; what nobody takes it takes all the same.
func (r *run) spread(ctx, drained context.Context, part *Part) error {
	s := &spread{r: r, part: part, held: map[place]*lane{}, finished: map[place]bool{}, begins: map[string]*begin{}, rested: map[place]time.Time{}, done: make(chan struct{}, 1)}
	defer s.drain()
	if part.Handle != nil {
		var group sync.WaitGroup
		defer group.Wait()
		group.Go(func() { s.letters(ctx, drained) })
	}
	for ctx.Err() == nil {
		wait := leaseTTL / 5
		if err := s.look(ctx, drained); err != nil && ctx.Err() == nil {
			r.env.Log.Warn("look for partitions to handle", "error", err)
			r.set("starting", firstLine(err))
			wait = restartMin
		} else if err == nil {
			s.tell()
		}
		t := time.NewTimer(wait)
		select {
		case <-s.done: // perhaps the last of its generation
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	return nil
}

// spread is what a process knows of its component's partitions.
type spread struct {
	r        *run
	part     *Part
	finished map[place]bool    // read to their end, by whomever
	begins   map[string]*begin // by log
	over     time.Time         // when what others leave was looked at last
	rested   map[place]time.Time
	done     chan struct{} // a lane has read its partition to the end

	taking sync.Mutex // of a partition, from the look whether it is held to its lane

	mu    sync.Mutex
	held  map[place]*lane
	fault string
}

// begin is where a component that begins with the newest has begun.
type begin struct {
	Log        message.ID `json:"log"`
	Generation uint32     `json:"generation"`
	Behind     []uint64   `json:"behind"` // for each partition
}

// want is a partition to be read now.
type want struct {
	log  bus.Log
	gen  bus.Generation
	part bus.Partition
	from *bus.Position // where there is no mark; the oldest where nil
}

func (w *want) at() place { return place{w.log.Name(), w.gen.Number, w.part.Number} }

// look takes and gives back partitions.
func (s *spread) look(ctx, drained context.Context) error {
	wants, err := s.wanted(ctx)
	if err != nil {
		return err
	}
	n, least := s.others()
	share := (len(wants) + n) / (n + 1)
	s.mu.Lock()
	held := len(s.held)
	if held > share && least+1 < held {
		s.giveBack()
	}
	s.mu.Unlock()
	// What others leave, because they are dead, is looked at now and then.
	beyond := s.r.h.Now().Sub(s.over) >= leaseTTL
	if beyond {
		s.over = s.r.h.Now()
	}
	for i := range wants {
		if err := s.tryTake(ctx, drained, &wants[i], share, beyond); err != nil {
			return err
		}
	}
	return nil
}

// tryTake takes a partition that nobody has, if there is room in this process's share.
func (s *spread) tryTake(ctx, drained context.Context, w *want, share int, beyond bool) error {
	s.taking.Lock()
	defer s.taking.Unlock()
	at := w.at()
	s.mu.Lock()
	_, mine := s.held[at]
	held := len(s.held)
	s.mu.Unlock()
	if mine || held >= share && !beyond || s.r.h.Now().Before(s.rested[at]) {
		return nil
	}
	lease, err := s.lease(ctx, at)
	if errors.Is(err, bus.ErrHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	s.start(ctx, drained, w, lease, nil)
	return nil
}

func (s *spread) lease(ctx context.Context, at place) (bus.Lease, error) {
	return s.r.h.Bus.Lease(ctx, fmt.Sprintf("consumer/%s/%s/%d/%d", s.r.spec.Name, at.log, at.gen, at.part), s.r.h.Node, leaseTTL)
}

// others are how many processes beside this one run the component, and the fewest partitions that one of them holds.
func (s *spread) others() (n, least int) {
	least = 1 << 30
	now := s.r.h.Now()
	for _, h := range s.r.h.peers.Components() {
		if h.Name != s.r.spec.Name || h.Node == s.r.h.Node || now.Sub(h.At) > againEvery+leaseTTL || h.State != "running" && h.State != "standby" {
			continue
		}
		n++
		least = min(least, h.Holds)
	}
	return n, least
}

// giveBack ends the lane of one partition; mu is held.
func (s *spread) giveBack() {
	var last *lane
	for _, l := range s.held {
		if last == nil || l.at.log > last.at.log || l.at.log == last.at.log && l.at.part > last.at.part {
			last = l
		}
	}
	s.rested[last.at] = s.r.h.Now().Add(2 * leaseTTL)
	last.stop(errGivenBack)
}

// wanted lists the partitions of each log's first generation that is not finished.
func (s *spread) wanted(ctx context.Context) (list []want, err error) {
	for _, name := range s.r.spec.Logs() {
		log, err := s.r.h.Bus.Log(ctx, name, bus.LogOptions{})
		if err != nil {
			return nil, err
		}
		info, err := log.Info(ctx)
		if err != nil {
			return nil, err
		}
		b, err := s.begin(ctx, info)
		if err != nil {
			return nil, err
		}
		for _, g := range info.Generations {
			if b != nil && g.Number < b.Generation {
				continue
			}
			open := list
			for _, p := range g.Partitions {
				w := want{log: log, gen: g, part: p}
				if b != nil && g.Number == b.Generation && int(p.Number) < len(b.Behind) {
					w.from = &bus.Position{Log: info.ID, Generation: g.Number, Partition: p.Number, Sequence: b.Behind[p.Number]}
				}
				done, err := s.isFinished(ctx, &w)
				if err != nil {
					return nil, err
				}
				if !done {
					list = append(list, w)
				}
			}
			if len(list) > len(open) {
				break // of the next one keys may be in other partitions: it waits until all of this one is finished
			}
		}
	}
	return list, nil
}

// isFinished asks whether a partition was read to its end, and nothing of it is parked.
func (s *spread) isFinished(ctx context.Context, w *want) (bool, error) {
	at := w.at()
	s.mu.Lock()
	_, mine := s.held[at]
	s.mu.Unlock()
	if s.finished[at] || mine || !w.gen.Sealed {
		return s.finished[at], nil
	}
	row, err := laneWriter(ctx, s.r.env, at)
	if err != nil {
		return false, err
	}
	defer func() { _ = row.Close() }() // nothing was written
	h, ok, err := row.Last(ctx)
	if err != nil || !ok {
		return false, err
	}
	m, err := parseMark(h.Mark)
	if err != nil {
		return false, fmt.Errorf("the mark of row %s in log %s: %w", laneRow(s.r.spec.Name, at), s.r.spec.Into, err)
	}
	s.finished[at] = m.point.Finished && len(m.parked) == 0
	return s.finished[at], nil
}

// begin says where the component begins in a log; nil is the oldest.
func (s *spread) begin(ctx context.Context, info bus.LogInfo) (*begin, error) {
	if s.r.spec.From != Newest || len(info.Generations) == 0 {
		return nil, nil
	}
	if b := s.begins[info.Name]; b != nil {
		return b, nil
	}
	table, err := s.r.h.Bus.Table(ctx, startsTable, bus.TableOptions{})
	if err != nil {
		return nil, err
	}
	g := info.Generations[len(info.Generations)-1]
	b := &begin{Log: info.ID, Generation: g.Number}
	for _, p := range g.Partitions {
		b.Behind = append(b.Behind, p.Last)
	}
	raw, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	key := s.r.spec.Name + "/" + info.ID.String()
	_, err = table.Update(ctx, key, raw, 0)
	if errors.Is(err, bus.ErrConflict) {
		e, err := table.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		b = new(begin)
		if err := json.Unmarshal(e.Value, b); err != nil {
			return nil, fmt.Errorf("where %s began in log %s: %w", s.r.spec.Name, info.Name, err)
		}
	} else if err != nil {
		return nil, err
	}
	s.begins[info.Name] = b
	return b, nil
}

// start runs a lane. Where first is not nil it is opened for a letter, and waits for it before it may be finished.
func (s *spread) start(ctx, drained context.Context, w *want, lease bus.Lease, first chan struct{}) *lane {
	ctx, stop := context.WithCancelCause(ctx)
	l := &lane{at: w.at(), stop: stop, over: make(chan struct{}), letters: make(chan bus.Delivery), first: first}
	if first == nil {
		l.handed.Do(func() {}) // nobody waits
	}
	s.mu.Lock()
	s.held[l.at] = l
	s.mu.Unlock()
	go func() {
		defer close(l.over)
		err := caught(func() error { return s.lane(ctx, drained, l, w, lease) })
		free, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer done()
		_ = lease.Release(free) // it goes by itself
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.held, l.at)
		cause := context.Cause(ctx)
		if errors.Is(cause, errFinished) {
			select {
			case s.done <- struct{}{}:
			default:
			}
		}
		if errors.Is(cause, errGivenBack) || errors.Is(cause, errFinished) || errors.Is(cause, context.Canceled) {
			return
		}
		if err != nil {
			s.fault = fmt.Sprintf("%s, generation %d, partition %d: %s", l.at.log, l.at.gen, l.at.part, firstLine(err))
			s.r.env.Log.Error("a partition failed; it is tried again", "log", l.at.log, "generation", l.at.gen, "partition", l.at.part, "error", err)
			s.r.h.metrics.restarts.WithLabelValues(s.r.spec.Name).Inc()
		}
	}()
	return l
}

// lane handles one partition until ctx is done, it has another owner, or it is finished.
func (s *spread) lane(ctx, drained context.Context, l *lane, w *want, lease bus.Lease) error {
	at, stop := w.at(), l.stop
	held := make(chan struct{})
	defer close(held)
	go func() {
		select {
		case <-lease.Lost():
			stop(fmt.Errorf("the lease on %s, generation %d, partition %d was lost; another process may own it now", at.log, at.gen, at.part))
		case <-held:
		}
	}()
	keep, err := openDerived(ctx, s.r.env, w.log, at)
	if err != nil {
		return err
	}
	keep.crashes = s.r.h.crash
	worker, err := s.r.newWorker(ctx, s.part, keep)
	if err != nil {
		return err
	}
	worker.deliveries = l.letters
	s.r.join(worker)
	defer s.r.leave(worker)
	var group sync.WaitGroup
	goes := func(f func() error) {
		group.Go(func() {
			if err := caught(f); err != nil && (ctx.Err() == nil || !errors.Is(err, context.Canceled)) {
				stop(err)
			}
		})
	}
	goes(func() error { return worker.run(ctx, drained) })
	goes(func() error {
		if l.first != nil {
			select {
			case <-l.first:
			case <-ctx.Done():
				return nil
			}
		}
		if _, known := worker.position(at); !known && w.from != nil {
			e := event{at: place{log: at.log}, began: []bus.Position{*w.from}, noted: make(chan struct{})}
			if !worker.tell(ctx, e) {
				return nil
			}
			select {
			case <-e.noted:
			case <-ctx.Done():
				return nil
			}
		}
		if err := worker.read(ctx, w.log, w.gen, w.part); err != nil || ctx.Err() != nil {
			return err
		}
		worker.tell(ctx, event{at: at, finished: true}) // where the generation is gone it is not told yet
		return nil
	})
	goes(func() error {
		select {
		case <-worker.done:
			stop(errFinished)
		case <-ctx.Done():
		}
		return nil
	})
	group.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errGivenBack) && !errors.Is(err, errFinished) {
		return err
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	return s.r.tellReports(last, worker, map[string]time.Time{})
}

// tell says how many partitions are held.
func (s *spread) tell() {
	s.mu.Lock()
	held, fault := len(s.held), s.fault
	s.fault = ""
	s.mu.Unlock()
	s.r.mu.Lock()
	s.r.health.Holds = held
	s.r.mu.Unlock()
	switch {
	case fault != "":
		s.r.set("running", fault)
	case held > 0:
		s.r.set("running", "")
	default:
		s.r.set("standby", "")
	}
}

// drain waits until all lanes have ended.
func (s *spread) drain() {
	s.mu.Lock()
	var lanes []*lane
	for _, l := range s.held {
		lanes = append(lanes, l)
	}
	s.mu.Unlock()
	for _, l := range lanes {
		<-l.over
	}
}

// join and leave say whose fates are reported.
func (r *run) join(w *worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.workers = append(r.workers, w)
}

func (r *run) leave(w *worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.workers = slices.DeleteFunc(slices.Clone(r.workers), func(x *worker) bool { return x == w })
}

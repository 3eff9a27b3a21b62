package worker

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/worker/sdk/wire"
)

const (
	leaseTime    = 10 * time.Second // for which an instance is taken to be there after it was heard
	pollMost     = 3 * time.Second  // for which an instance waits for work at once
	handOutMost  = 64               // calls in one answer
	busRoom      = 32 << 10         // that the bus has for an answer beyond its largest record
	instancesMax = 256              // of one worker

	instanceNameMax = 200 // bytes of an instance's name: all of them are told in one message, each second
)

// hub shares a worker's calls among its instances. A key goes to one instance as long as the set stays the same: to the
// one for which the hash of both is highest, so where one comes or goes only the keys go that must. An instance is
// there for leaseTime after it was last heard; beyond that nothing of it is accepted, and what was in its hands is tried
// again elsewhere.
type hub struct {
	now     func() time.Time
	changed func() // told, under mu, that instances came or went

	mu        sync.Mutex
	instances map[string]*instance
	waiting   []*handed // for an instance; there is none
	next      uint64
}

// instance is one process that does the worker's work.
type instance struct {
	id, name string
	room     int // calls at once
	until    time.Time
	since    time.Time
	queue    []*handed          // to be given to it
	hands    map[uint64]*handed // given to it
	bell     chan struct{}      // rings when there is something in queue
	again    chan struct{}      // closed when it asks for work once more: who asked before does not listen any more
	gone     chan struct{}      // closed when it is no more
}

// handed is a call on its way through an instance.
type handed struct {
	number uint64
	key    string
	call   wire.Call
	at     *instance
	given  bool       // to it; the time limit runs since
	end    chan ended // has room for one
}

// ended is a call's end.
type ended struct {
	result *wire.Result
	err    error
}

func newHub(now func() time.Time, changed func()) *hub {
	return &hub{now: now, changed: changed, instances: map[string]*instance{}}
}

// errLost is counted as an attempt: the instance may have been lost by this very message.
var errLost = errors.New("the instance that had it is gone: it was not heard for " + leaseTime.String())

// join takes an instance in.
func (h *hub) join(name string, room int) (*instance, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire()
	if len(h.instances) >= instancesMax {
		return nil, answer.Conflict("the worker has %d instances, as many as it may have", instancesMax)
	}
	now := h.now()
	if len(name) > instanceNameMax {
		name = strings.ToValidUTF8(name[:instanceNameMax], "") + "…"
	}
	i := &instance{id: message.NewID(now).String(), name: name, room: min(max(room, 1), concurrencyMost), until: now.Add(leaseTime), since: now,
		hands: map[uint64]*handed{}, bell: make(chan struct{}, 1), again: make(chan struct{}), gone: make(chan struct{})}
	h.instances[i.id] = i
	h.share()
	return i, nil
}

// share gives what no instance has in its hands yet to the instance that it belongs to now. mu is held.
func (h *hub) share() {
	loose := h.waiting
	h.waiting = nil
	for _, i := range h.instances {
		loose = append(loose, i.queue...)
		i.queue = nil
	}
	for _, x := range loose {
		h.place(x)
	}
	h.changed()
}

// place puts a call into the queue of its key's instance. mu is held.
func (h *hub) place(x *handed) {
	var best *instance
	var most uint64
	for _, i := range h.instances {
		f := fnv.New64a()
		_, _ = f.Write([]byte(i.id)) // never fails
		_, _ = f.Write([]byte(x.key))
		score := f.Sum64()
		score ^= score >> 33
		score *= 0xff51afd7ed558ccd
		score ^= score >> 33
		if best == nil || score > most || score == most && i.id < best.id {
			best, most = i, score
		}
	}
	if best != x.at {
		x.at, x.given = best, false
	}
	if best == nil {
		h.waiting = append(h.waiting, x)
		return
	}
	best.queue = append(best.queue, x)
	best.ring()
}

// expire lets go of instances that were not heard. mu is held.
func (h *hub) expire() {
	now := h.now()
	lost := false
	for _, i := range h.instances {
		if !now.Before(i.until) {
			h.drop(i, errLost)
			lost = true
		}
	}
	if lost {
		h.share()
	}
}

// drop ends an instance. What it had in its hands fails with why; what it had not goes to others. mu is held.
func (h *hub) drop(i *instance, why error) {
	delete(h.instances, i.id)
	close(i.gone)
	for _, x := range i.hands {
		x.end <- ended{err: why}
	}
	i.hands = map[uint64]*handed{}
	h.waiting = append(h.waiting, i.queue...)
	i.queue = nil
}

// ring tells whoever asks for work of the instance that there may be some. The hub's mu is held.
func (i *instance) ring() {
	if len(i.queue) == 0 {
		return
	}
	select {
	case i.bell <- struct{}{}:
	default:
	}
}

// leave takes an instance out that says so itself: what it had not finished was not tried.
func (h *hub) leave(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := h.instances[id]; i != nil {
		h.drop(i, &component.RetryAfter{Err: errors.New("its instance stopped before it had finished it"), Uncounted: true})
		h.share()
	}
}

// close ends all instances and what waits for one.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range h.instances {
		h.drop(i, context.Canceled)
	}
	for _, x := range h.waiting {
		x.end <- ended{err: context.Canceled}
	}
	h.waiting = nil
	h.changed()
}

// sweep lets go of lost instances until ctx is done.
func (h *hub) sweep(ctx context.Context) {
	tick := time.NewTicker(leaseTime / 20)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			h.mu.Lock()
			h.expire()
			h.mu.Unlock()
		case <-ctx.Done():
			h.close()
			return
		}
	}
}

// heard renews an instance's lease; an unknown one is fenced.
func (h *hub) heard(id string) (*instance, error) {
	h.expire()
	i := h.instances[id]
	if i == nil {
		return nil, &answer.Problem{Status: 410, Title: "Gone", Detail: "this instance is not known any more: it was not heard for " + leaseTime.String() + ", or the worker was started anew; what it had goes to others. Join again",
			Reason: message.Fenced.String(), Code: message.Fenced.Code()}
	}
	i.until = h.now().Add(leaseTime)
	return i, nil
}

// results takes the ends of calls.
func (h *hub) results(id string, list []wire.Result) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, err := h.heard(id)
	if err != nil {
		return err
	}
	for n := range list {
		r := &list[n]
		if x := i.hands[r.Number]; x != nil { // else it is late, and somebody else's now
			delete(i.hands, r.Number)
			x.end <- ended{result: r}
		}
	}
	i.ring() // there is room again
	return nil
}

// poll waits for work of an instance. has are the calls that it knows to be in its hands: others that were given to it did
// not arrive, and are given again. It gives calls whose data have most bytes together, or one.
func (h *hub) poll(ctx context.Context, id string, has []uint64, most int) ([]wire.Call, error) {
	late := time.NewTimer(pollMost)
	defer late.Stop()
	known := make(map[uint64]bool, len(has))
	for _, number := range has {
		known[number] = true
	}
	h.mu.Lock()
	var again chan struct{}
	if i := h.instances[id]; i != nil {
		close(i.again)
		again = make(chan struct{})
		i.again = again
		for number, x := range i.hands {
			if !known[number] {
				delete(i.hands, number)
				i.queue = append([]*handed{x}, i.queue...)
			}
		}
	}
	h.mu.Unlock()
	for {
		h.mu.Lock()
		i, err := h.heard(id)
		if err != nil {
			h.mu.Unlock()
			return nil, err
		}
		var calls []wire.Call
		if i.again == again {
			calls = i.take(h.now(), most)
		} else {
			i.ring() // the bell was for who asks now
		}
		h.mu.Unlock()
		if len(calls) > 0 {
			return calls, nil
		}
		select {
		case <-i.bell:
		case <-i.gone:
		case <-again:
			return []wire.Call{}, nil
		case <-late.C:
			return []wire.Call{}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take hands out what the instance has room for. The hub's mu is held.
func (i *instance) take(now time.Time, most int) (list []wire.Call) {
	for len(i.queue) > 0 && len(i.hands) < i.room && len(list) < handOutMost {
		x := i.queue[0]
		n := bulk(&x.call.Message)
		if n > most && len(list) > 0 {
			break
		}
		i.queue = i.queue[1:]
		if n > most+busRoom { // it would be lost on the way each time, and what is behind it would wait for ever
			x.end <- ended{err: message.Rejectf(message.MessageTooLarge, "it takes %d bytes with all that is told of it, and an instance is given up to %d at once", n, most+busRoom)}
			continue
		}
		most -= n
		if !x.given {
			x.given, x.call.Deadline = true, now.Add(x.call.Timeout)
		}
		c := x.call
		c.Timeout = c.Deadline.Sub(now) // less, where it is given once more
		i.hands[x.number] = x
		list = append(list, c)
	}
	return list
}

// bulk is how many bytes a call takes with a message, at most: JSON may need six for one.
func bulk(m *wire.Message) int {
	return len(m.Data) + 512 + 6*(len(m.ID)+len(m.Trace)+len(m.Cause)+len(m.Subject)+len(m.Source)+len(m.Type)+len(m.Device)+len(m.ContentType))
}

// do has an instance make a call, and waits for its end.
func (h *hub) do(ctx context.Context, key string, c wire.Call) (*wire.Result, error) {
	h.mu.Lock()
	h.next++
	x := &handed{number: h.next, key: key, call: c, end: make(chan ended, 1)}
	x.call.Number = x.number
	h.place(x)
	h.mu.Unlock()
	tick := time.NewTicker(max(min(c.Timeout/20, time.Second), 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case e := <-x.end:
			return e.result, e.err
		case <-tick.C:
			if h.overdue(x) {
				return nil, &failure{kind: "timeout", err: fmt.Errorf("instance %s did not answer within %s", x.at.name, c.Timeout)}
			}
		case <-ctx.Done():
			h.revoke(x)
			return nil, ctx.Err()
		}
	}
}

// overdue says that a call was in an instance's hands for too long, and takes it away: a late answer is nobody's.
func (h *hub) overdue(x *handed) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !x.given || h.now().Before(x.call.Deadline) {
		return false
	}
	if x.at.hands[x.number] == nil && !slices.Contains(x.at.queue, x) {
		return false // it has ended
	}
	at := x.at
	h.remove(x)
	at.ring() // there is room again
	return true
}

// remove takes a call out of wherever it is. mu is held.
func (h *hub) remove(x *handed) {
	other := func(y *handed) bool { return y == x }
	h.waiting = slices.DeleteFunc(h.waiting, other)
	if x.at != nil {
		x.at.queue = slices.DeleteFunc(x.at.queue, other)
		delete(x.at.hands, x.number)
	}
}

// revoke takes a call back that nobody waits for.
func (h *hub) revoke(x *handed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.remove(x)
}

// shown are the instances for those who look.
func (h *hub) shown() (list []Instance) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range h.instances {
		list = append(list, Instance{ID: i.id, Name: i.name, Concurrency: i.room, InHand: len(i.hands), Waiting: len(i.queue), Since: i.since, Heard: i.until.Add(-leaseTime)})
	}
	return list
}

// Instance is one of a worker's, as it is shown.
type Instance struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Concurrency int       `json:"concurrency"`
	InHand      int       `json:"in_hand"`
	Waiting     int       `json:"waiting"`
	Since       time.Time `json:"since"`
	Heard       time.Time `json:"heard"`
}

// failure is one that is counted under a word.
type failure struct {
	kind string
	err  error
}

// Error is the failure's own.
func (f *failure) Error() string { return f.err.Error() }

// Unwrap gives the failure.
func (f *failure) Unwrap() error { return f.err }

// size is how many instances there are, and how many calls they take together.
func (h *hub) size() (instances, room int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, i := range h.instances {
		room += i.room
	}
	return len(h.instances), room
}

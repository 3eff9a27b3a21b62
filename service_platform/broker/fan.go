package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	tailPatience  = 10 * time.Second // how long a SUBSCRIBE waits for the log's end to be found
	tailBackOff   = 50 * time.Millisecond
	tailBackOffTo = 5 * time.Second
)

// fan hands committed messages to live subscribers. The policy lets a device hear only its own subtree, so a message
// concerns the connections of one device, and a look into a map finds them.
//
// The bus is never waited for under mu: a subscriber who waits for the tail holds up neither those who leave nor those
// who are served.
type fan struct {
	b     *Broker
	base  context.Context // ends with the broker
	stop  context.CancelFunc
	group sync.WaitGroup

	mu   sync.Mutex
	by   map[string]map[*conn]struct{} // device -> those of its connections that subscribed
	n    int
	tail *tail // while there are subscribers
}

// tail is one following of the log, from when it had a first subscriber until it had none.
type tail struct {
	cancel context.CancelFunc
	ready  chan struct{} // closed when every partition's end is known, or err is set
	err    error
}

func newFan(b *Broker) *fan {
	f := &fan{b: b, by: map[string]map[*conn]struct{}{}}
	f.base, f.stop = context.WithCancel(context.Background())
	return f
}

func (f *fan) run(ctx context.Context) {
	<-ctx.Done()
	f.stop()
	f.group.Wait()
}

// enter has a connection's subscriptions served from now on. It returns when what is committed after that will be seen.
func (f *fan) enter(c *conn) error {
	f.mu.Lock()
	set := f.by[c.device]
	if set == nil {
		set = map[*conn]struct{}{}
		f.by[c.device] = set
	}
	if _, ok := set[c]; !ok {
		set[c] = struct{}{}
		f.n++
	}
	t := f.tail
	if t == nil {
		if f.base.Err() != nil {
			f.mu.Unlock()
			return f.base.Err()
		}
		ctx, cancel := context.WithCancel(f.base)
		t = &tail{cancel: cancel, ready: make(chan struct{})}
		f.tail = t
		f.group.Go(func() { f.follow(ctx, t) })
	}
	f.mu.Unlock()
	patience := time.NewTimer(tailPatience)
	defer patience.Stop()
	select {
	case <-t.ready:
		return t.err
	case <-f.base.Done():
		return f.base.Err()
	case <-patience.C:
		return fmt.Errorf("the end of the log of devices was not found within %s; is the bus up?", tailPatience)
	}
}

func (f *fan) leave(c *conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if set := f.by[c.device]; set != nil {
		if _, ok := set[c]; ok {
			delete(set, c)
			f.n--
			if len(set) == 0 {
				delete(f.by, c.device)
			}
		}
	}
	if f.n == 0 && f.tail != nil {
		f.tail.cancel()
		f.tail = nil
	}
}

// follow reads the end of the devices' log, and every generation that comes after it, until nobody listens.
func (f *fan) follow(ctx context.Context, t *tail) {
	log, info, err := f.find(ctx)
	if err != nil {
		f.mu.Lock()
		if f.tail == t {
			f.tail = nil // the next subscriber tries again
		}
		f.mu.Unlock()
		t.cancel()
		t.err = err
		close(t.ready)
		return
	}
	close(t.ready)
	g := info.Generations[len(info.Generations)-1]
	from := func(p bus.Partition) uint64 { return p.Last }
	for wait := tailBackOff; ctx.Err() == nil; {
		var group sync.WaitGroup
		for _, p := range g.Partitions {
			group.Go(func() { f.pump(ctx, log, bus.Position{Generation: g.Number, Partition: p.Number, Sequence: from(p)}) })
		}
		group.Wait()
		// The generation is sealed and read to its end. The next is the oldest after it: none is left out.
		from = func(bus.Partition) uint64 { return 0 }
		for ctx.Err() == nil {
			next, err := after(ctx, log, g.Number)
			if err == nil {
				g, wait = next, tailBackOff
				break
			}
			f.trouble(ctx, "find the next generation for subscribers", err, &wait)
		}
	}
}

func (f *fan) find(ctx context.Context) (bus.Log, bus.LogInfo, error) {
	log, err := f.b.env.Bus.Log(ctx, message.Device, bus.LogOptions{})
	if err != nil {
		return nil, bus.LogInfo{}, err
	}
	info, err := log.Info(ctx)
	if err == nil && len(info.Generations) == 0 {
		err = errors.New("the log of devices has no generation")
	}
	return log, info, err
}

// after is the oldest generation younger than number.
func after(ctx context.Context, log bus.Log, number uint32) (bus.Generation, error) {
	info, err := log.Info(ctx)
	if err != nil {
		return bus.Generation{}, err
	}
	for _, g := range info.Generations {
		if g.Number > number {
			return g, nil
		}
	}
	return bus.Generation{}, fmt.Errorf("generation %d ended and there is none after it yet", number)
}

// trouble notes that reading failed, and waits a while, longer each time.
func (f *fan) trouble(ctx context.Context, what string, err error, wait *time.Duration) {
	if ctx.Err() != nil {
		return
	}
	f.b.metrics.tailErrors.Inc()
	f.b.env.Log.Warn(what, "error", err, "again_in", *wait)
	pause := time.NewTimer(*wait)
	defer pause.Stop()
	select {
	case <-ctx.Done():
	case <-pause.C:
	}
	*wait = min(2**wait, tailBackOffTo)
}

// pump reads a partition to the end of its generation. What fails is tried again from where it stood.
func (f *fan) pump(ctx context.Context, log bus.Log, at bus.Position) {
	for wait := tailBackOff; ctx.Err() == nil; {
		before := at.Sequence
		err := f.read(ctx, log, &at)
		if errors.Is(err, bus.ErrSealed) {
			return
		}
		if at.Sequence != before {
			wait = tailBackOff
		}
		switch {
		case errors.Is(err, bus.ErrPurged):
			at.Sequence = 0 // from the oldest that is left; what was trimmed nobody can hear
		case errors.Is(err, bus.ErrTruncated):
			if last, ok := end(ctx, log, at); ok {
				at.Sequence = last // the log was put back to an older state: only what is new from now on is live
			}
		}
		f.trouble(ctx, "read the tail for subscribers", err, &wait)
	}
}

// end is the newest sequence of a position's partition.
func end(ctx context.Context, log bus.Log, at bus.Position) (uint64, bool) {
	info, err := log.Info(ctx)
	if err != nil {
		return 0, false
	}
	for _, g := range info.Generations {
		for _, p := range g.Partitions {
			if g.Number == at.Generation && p.Number == at.Partition {
				return p.Last, true
			}
		}
	}
	return 0, false
}

// read hands on what a partition has behind at, and moves at.
func (f *fan) read(ctx context.Context, log bus.Log, at *bus.Position) error {
	r, err := log.Reader(ctx, *at)
	if err != nil {
		return err
	}
	defer r.Close()
	var m message.Message
	var to []*conn
	row := strings.ReplaceAll(f.b.env.Spec.Name, ".", "-") + "-" // the rows of brokers' doors, on any node
	for {
		s, err := r.Next(ctx)
		if err != nil {
			return err
		}
		at.Sequence = s.Position.Sequence
		if s.Err != nil {
			continue // counted by those who keep positions
		}
		door := strings.HasPrefix(s.Appender, row)
		for cursor := s.Batch.Cursor(); cursor.Next(&m); {
			to = to[:0]
			f.mu.Lock()
			for c := range f.by[m.Device] {
				to = append(to, c)
			}
			f.mu.Unlock()
			for _, c := range to {
				c.deliver(&m, door)
			}
		}
	}
}

package nats

import (
	"strconv"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/naru-platform/naru/bus"
)

// What is handed over in memory, per partition: some tenths of a second at full speed, and of a small fleet no more than who reads it
// in time needs. Who is further behind asks the engine.
const (
	ringBytes = 32 << 20
	ringAge   = 10 * time.Second
)

// feed hands the batches of one partition that this process has written over to the readers in it, without a way
// through the store. Who does not find its next sequence in it reads the log.
type feed struct {
	mu    sync.Mutex
	ring  map[uint64]bus.Stored
	order []handed // the ring's sequences as they came, oldest first
	bytes int
	last  uint64 // known to be stored, by whomever
	woken chan struct{}
	ends  bool // the partition is sealed: nobody will tell of more
	sub   *natsgo.Subscription
	tail  string // what sub listens to
}

// handed is a batch in the ring, and when it came.
type handed struct {
	seq uint64
	at  time.Time
}

func (l *Log) feed(gen, part uint32) *feed {
	name := streamName(l.name, gen, part)
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	f := l.b.feeds[name]
	if f == nil {
		f = &feed{ring: map[uint64]bus.Stored{}, woken: make(chan struct{})}
		l.b.feeds[name] = f
	}
	return f
}

// put hands a stored batch over.
func (f *feed) put(s bus.Stored) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seq, now := s.Position.Sequence, time.Now()
	if _, ok := f.ring[seq]; !ok && s.Err == nil {
		f.ring[seq] = s
		f.order = append(f.order, handed{seq, now})
		f.bytes += cap(s.Batch.Bytes())
	}
	for len(f.order) > 1 && (f.bytes > ringBytes || now.Sub(f.order[0].at) > ringAge) {
		f.drop()
	}
	f.reach(seq)
}

// drop forgets the batch that came first. f.mu is held.
func (f *feed) drop() {
	old := f.order[0]
	f.order = f.order[1:]
	f.remove(old.seq)
}

func (f *feed) remove(seq uint64) {
	s := f.ring[seq]
	f.bytes -= cap(s.Batch.Bytes())
	delete(f.ring, seq)
}

// forget drops what was trimmed.
func (f *feed) forget(upTo uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keep(func(seq uint64) bool { return seq > upTo })
	f.wake()
}

// retreat notes that the log ends before what was known: the engine has lost what is behind, and puts others in its
// place.
func (f *feed) retreat(last uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keep(func(seq uint64) bool { return seq <= last })
	f.last = last
}

// keep drops from the ring all but some. f.mu is held.
func (f *feed) keep(which func(seq uint64) bool) {
	kept := f.order[:0]
	for _, h := range f.order {
		if which(h.seq) {
			kept = append(kept, h)
		} else {
			f.remove(h.seq)
		}
	}
	f.order = kept
}

// reach notes that the log has come to a sequence, and wakes who waits. f.mu is held.
func (f *feed) reach(seq uint64) {
	if seq > f.last {
		f.last = seq
		f.wake()
	}
}

func (f *feed) wake() {
	close(f.woken)
	f.woken = make(chan struct{})
}

// seal notes that there will be no more, and has those who wait look again.
func (f *feed) seal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends = true
	f.wake()
}

// sealed says whether it is known that there will be no more. Who has come to the end then asks the engine at once, and
// does not wait for what nobody tells of.
func (f *feed) sealed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ends
}

// heard notes that the log has come to a sequence.
func (f *feed) heard(seq uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reach(seq)
}

func (f *feed) get(seq uint64) (bus.Stored, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.ring[seq]
	return s, ok
}

// state says how far the log is known to have come, and what is closed when there is news.
func (f *feed) state() (last uint64, woken <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last, f.woken
}

// listen hears of batches that other processes write, as the server tells of each.
func (f *feed) listen(nc *natsgo.Conn, subject string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sub != nil {
		return nil
	}
	f.tail = subject
	return f.subscribe(nc)
}

// listenAgain does so over another connection, where it listened.
func (f *feed) listenAgain(nc *natsgo.Conn) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tail == "" {
		return nil
	}
	return f.subscribe(nc)
}

// subscribe is done with f.mu held.
func (f *feed) subscribe(nc *natsgo.Conn) error {
	sub, err := nc.Subscribe(f.tail, func(m *natsgo.Msg) {
		if seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64); err == nil {
			f.heard(seq)
		}
	})
	f.sub = sub
	return err
}

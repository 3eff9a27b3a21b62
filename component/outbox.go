package component

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const (
	outboxBatch = 512       // messages written at once
	outboxBytes = 512 << 10 // or their bytes, or what the engine takes
	markSize    = 16 + 8
	// gatherLetters is how long dead letters wait for more: a worker of which every message dies would write each by itself, and all that
	// share its disk would wait for that.
	gatherLetters = 50 * time.Millisecond
)

// largest is the largest record that fits into a batch beside the outbox's mark.
func largest(b bus.Bus) int { return b.MaxMessage() - markSize }

// CommandQueue is the queue where messages go whose contract says that they are for one receiver.
const CommandQueue = "commands"

// toQueue is the destination of what goes there; no log has that name.
const toQueue = "queue:" + CommandQueue

// outbox appends what was committed to be said, in order, each message once. Every batch it writes carries, as its mark,
// the store's id and the number of the last entry in it; so after a crash each destination tells what it already has. A
// store that was lost and begun anew has another id, and what the former one wrote says nothing about its numbers.
type outbox struct {
	env    Env
	row    string                              // its row in the destinations
	birth  message.ID                          // tells the numbers of its entries from those of a store that was lost
	held   func() bool                         // whether this process still owns what speaks here
	forget func(context.Context, []said) error // strikes off what has arrived
	// letters, where it is not empty, is the subject of what waits for more of its kind: dead letters of one whose calls end one by one.
	letters message.Subject
	crash   crash

	former  []said // what a former process left; run puts it before the entries
	mu      sync.Mutex
	entries []said
	ended   error // why nothing more is appended
	wake    chan struct{}
	taken   []said             // being appended; of the goroutine that does
	out     []*message.Message // of them
	writers map[string]bus.Writer
	queue   bus.Queue
}

func newOutbox(env Env, row string, birth message.ID, held func() bool) *outbox {
	return &outbox{env: env, row: row, birth: birth, held: held, forget: func(context.Context, []said) error { return nil },
		wake: make(chan struct{}, 1), writers: map[string]bus.Writer{}}
}

// resume takes what a former process left.
func (o *outbox) resume(left []said) { o.former = left }

// add takes committed entries.
func (o *outbox) add(list []said) {
	if len(list) == 0 {
		return
	}
	o.mu.Lock()
	o.entries = append(o.entries, list...)
	ended := o.ended
	o.mu.Unlock()
	if ended != nil {
		tell(list, ended)
		return
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run appends until ctx is done and nothing is left, or drained is.
func (o *outbox) run(ctx, drained context.Context) (err error) {
	defer func() { o.end(err) }()
	if err := o.skipWritten(drained); err != nil {
		return err
	}
	for {
		for {
			o.gather(ctx)
			if n, err := o.flush(drained); err != nil {
				return err
			} else if n == 0 {
				break
			}
		}
		select {
		case <-o.wake:
		case <-ctx.Done():
			_, err := o.flush(drained)
			if n := o.left(); err == nil && n > 0 {
				continue
			}
			return err
		}
	}
}

// gather waits a little where there is nothing but dead letters, for more of them.
func (o *outbox) gather(ctx context.Context) {
	late := time.NewTimer(gatherLetters)
	defer late.Stop()
	for o.onlyLetters() {
		select {
		case <-o.wake:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// onlyLetters says whether all there is are dead letters, and not as many as are written at once.
func (o *outbox) onlyLetters() bool {
	if o.letters == "" {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.entries) > 0 && len(o.entries) < outboxBatch && !slices.ContainsFunc(o.entries, func(s said) bool { return s.m.Subject != o.letters || len(s.told) > 0 })
}

// errLeft says that a process ended before what was committed to be said was appended; the next one does.
var errLeft = message.Rejectf(message.ServerStopping, "the component has ended; what it had to say is said when it starts again")

// end says of what is left that it is not appended by this process.
func (o *outbox) end(err error) {
	if err == nil {
		err = errLeft
	}
	o.mu.Lock()
	o.ended = err
	left := o.entries
	o.mu.Unlock()
	tell(left, err)
}

func tell(list []said, err error) {
	for i := range list {
		list[i].tell(err)
	}
}

// empty appends until nothing is left.
func (o *outbox) empty(ctx context.Context) error {
	for {
		if n, err := o.flush(ctx); n == 0 || err != nil {
			return err
		}
	}
}

func (o *outbox) left() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.entries)
}

// destination is the log, or the queue, that a message goes to.
func (o *outbox) destination(m *message.Message) string { return destination(o.env.Catalog, m) }

func destination(c *message.Catalog, m *message.Message) string {
	if k := c.Find(m.Subject); k != nil && k.Route == message.ByQueue {
		return toQueue
	}
	return m.Subject.Namespace()
}

// skipWritten drops what is already at its destination.
func (o *outbox) skipWritten(ctx context.Context) error {
	marks := map[string]uint64{}
	var keep []said
	for _, s := range o.former {
		s.to = o.destination(s.m)
		mark, known := marks[s.to]
		if !known && s.to != toQueue {
			w, err := o.writer(ctx, s.to)
			if err != nil {
				return err
			}
			if mark, err = o.written(ctx, w); err != nil {
				return err
			}
			marks[s.to] = mark
		}
		if s.number > mark {
			keep = append(keep, s)
		} else if err := o.forget(ctx, []said{s}); err != nil {
			return err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.entries = append(keep, o.entries...) // the worker has added since
	o.former = nil
	return nil
}

// mark says which entry is the last in a batch.
func (o *outbox) mark(number uint64) []byte {
	return append(o.birth[:len(o.birth):len(o.birth)], beAppend(number)...)
}

// written is the number of the last entry that a destination has of this store.
func (o *outbox) written(ctx context.Context, w bus.Writer) (uint64, error) {
	h, ok, err := w.Last(ctx)
	if err != nil || !ok || len(h.Mark) != markSize || message.ID(h.Mark[:16]) != o.birth {
		return 0, err
	}
	return beUint64(h.Mark[16:]), nil
}

func (o *outbox) writer(ctx context.Context, name string) (bus.Writer, error) {
	if w := o.writers[name]; w != nil {
		return w, nil
	}
	log, err := o.env.Bus.Log(ctx, name, bus.LogOptions{})
	if err != nil {
		return nil, err
	}
	w, err := log.Writer(ctx, bus.WriterOptions{Name: o.row, Owner: o.env.Owner, Standing: o.held})
	if err != nil {
		return nil, err
	}
	if _, _, err := w.Last(ctx); err != nil { // a row that a former process wrote is resumed, not overwritten
		return nil, err
	}
	o.writers[name] = w
	return w, nil
}

// next is the first entries that share a destination and fit into one batch, until it is called again; what goes to the queue goes one by one, and is struck off so.
func (o *outbox) next() (to string, list []said) {
	most := min(outboxBytes, largest(o.env.Bus))
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.taken)
	o.taken = o.taken[:0]
	bytes := 0
	for i := range o.entries {
		s := &o.entries[i]
		bytes += len(s.record)
		if len(o.taken) > 0 && (s.to != to || to == toQueue || len(o.taken) == outboxBatch || bytes > most) {
			break
		}
		to, o.taken = s.to, append(o.taken, *s)
	}
	return to, o.taken
}

// flush writes the first entries that share a destination, and says how many.
func (o *outbox) flush(ctx context.Context) (int, error) {
	to, list := o.next()
	if len(list) == 0 {
		return 0, nil
	}
	for attempt := 1; ; attempt++ {
		err := o.deliver(ctx, to, list)
		if err == nil {
			break
		}
		reason := message.ReasonOf(err, 0)
		if ctx.Err() != nil || errors.Is(err, bus.ErrClosed) || reason == message.Fenced {
			return 0, fmt.Errorf("say to %s: %w", to, err)
		}
		o.env.Log.Warn("say; tried again", "to", to, "messages", len(list), "error", err)
		if err := pause(ctx, min(time.Duration(attempt)*time.Second, 10*time.Second)); err != nil {
			return 0, err
		}
		// A batch that was not confirmed may be there all the same.
		if w := o.writers[to]; w != nil {
			if n, err := o.written(ctx, w); err == nil && n >= list[len(list)-1].number {
				break
			}
		}
	}
	if err := o.crash.at("after the append"); err != nil {
		return 0, err
	}
	if err := o.forget(ctx, list); err != nil {
		return 0, err
	}
	if err := o.crash.at("after striking off"); err != nil {
		return 0, err
	}
	o.mu.Lock()
	o.entries = o.entries[len(list):]
	o.mu.Unlock()
	tell(list, nil)
	return len(list), nil
}

func (o *outbox) deliver(ctx context.Context, to string, list []said) error {
	if to == toQueue {
		if o.queue == nil {
			q, err := o.env.Bus.Queue(ctx, CommandQueue)
			if err != nil {
				return err
			}
			o.queue = q
		}
		for _, s := range list {
			err := o.queue.Put(ctx, s.m, false)
			if message.ReasonOf(err, 0) == message.Expired {
				o.env.Log.Warn("a command expired before it could be sent", "id", s.m.ID, "subject", s.m.Subject)
				continue
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	w, err := o.writer(ctx, to)
	if err != nil {
		return err
	}
	o.out = o.out[:0]
	for i := range list {
		o.out = append(o.out, list[i].m)
	}
	_, err = w.Write(ctx, bus.Position{}, o.mark(list[len(list)-1].number), o.out)
	clear(o.out)
	return err
}

// rowName makes a component's name one token of a row.
func rowName(parts ...string) string {
	out := []byte{}
	for i, p := range parts {
		if i > 0 {
			out = append(out, '-')
		}
		for j := range len(p) {
			c := p[j]
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_') {
				c = '-'
			}
			out = append(out, c)
		}
	}
	return string(out)
}

package nats

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
)

// table is a KV bucket.
type table struct {
	b    *Bus
	name string
	kv   jetstream.KeyValue
}

// Table opens a table.
func (b *Bus) Table(ctx context.Context, name string, o bus.TableOptions) (bus.Table, error) {
	b.mu.Lock()
	t := b.tables[name]
	b.mu.Unlock()
	if t != nil {
		return t, nil
	}
	// Volatile tables are files as well: a server that keeps a bucket in memory forgets that there is one.
	c := jetstream.KeyValueConfig{Bucket: name, Replicas: b.o.Replicas, TTL: o.TTL, Storage: jetstream.FileStorage}
	t = &table{b: b, name: name}
	err := b.patiently(ctx, 30*time.Second, func(ctx context.Context) (err error) {
		t.kv, err = b.js.CreateKeyValue(ctx, c)
		if errors.Is(err, jetstream.ErrBucketExists) {
			t.kv, err = b.js.KeyValue(ctx, name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open table %s: %w", name, b.closed(err))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tables[name] = t
	return t, nil
}

func (t *table) wrap(key string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrKeyDeleted):
		err = bus.ErrNotFound
	case errors.Is(err, jetstream.ErrKeyExists), isCode(err, codeWrongSequence, codeWrongSequenceConst):
		err = bus.ErrConflict
	}
	return fmt.Errorf("table %s, key %s: %w", t.name, key, t.b.closed(err))
}

// Get reads a key.
func (t *table) Get(ctx context.Context, key string) (bus.Entry, error) {
	e, err := t.kv.Get(ctx, key)
	if err != nil {
		return bus.Entry{}, t.wrap(key, err)
	}
	return bus.Entry{Key: key, Value: e.Value(), Revision: e.Revision()}, nil
}

// Put writes a key.
func (t *table) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	rev, err := t.kv.Put(ctx, key, value)
	return rev, t.wrap(key, err)
}

// Update writes a key at a revision.
func (t *table) Update(ctx context.Context, key string, value []byte, revision uint64) (rev uint64, err error) {
	if revision == 0 {
		rev, err = t.kv.Create(ctx, key, value)
	} else {
		rev, err = t.kv.Update(ctx, key, value, revision)
	}
	return rev, t.wrap(key, err)
}

// Delete removes a key.
func (t *table) Delete(ctx context.Context, key string, revision uint64) error {
	if revision == 0 {
		return t.wrap(key, t.kv.Delete(ctx, key))
	}
	return t.wrap(key, t.kv.Delete(ctx, key, jetstream.LastRevision(revision)))
}

// watchAgain is how long a watch waits before it begins anew after a fault.
const watchAgain = time.Second

// Watch tells of the entries and their changes.
func (t *table) Watch(ctx context.Context, prefix string, f func(bus.Entry), synced func()) error {
	told := false
	for {
		err := t.watch(ctx, prefix, f, func() {
			if !told && synced != nil {
				synced()
			}
			told = true
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if t.b.ctx.Err() != nil {
			return bus.ErrClosed
		}
		t.b.log.Debug("watch again", "table", t.name, "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.b.ctx.Done():
			return bus.ErrClosed
		case <-time.After(watchAgain):
		}
	}
}

func (t *table) watch(ctx context.Context, prefix string, f func(bus.Entry), synced func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A bucket's wildcards go by token; what is after the prefix's last dot is compared here.
	filter := ">"
	if i := strings.LastIndexByte(prefix, '.'); i >= 0 {
		filter = prefix[:i+1] + ">"
	}
	w, err := t.kv.Watch(ctx, filter)
	if err != nil {
		return err
	}
	defer w.Stop() //nolint:errcheck // the watch is over anyway
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.b.ctx.Done():
			return bus.ErrClosed
		case e, ok := <-w.Updates():
			switch {
			case !ok:
				return errors.New("the watch ended")
			case e == nil:
				synced()
			case strings.HasPrefix(e.Key(), prefix):
				f(bus.Entry{Key: e.Key(), Value: e.Value(), Revision: e.Revision(), Deleted: e.Operation() != jetstream.KeyValuePut})
			}
		}
	}
}

// lease is a key with a time to live that its owner writes again.
type lease struct {
	b    *Bus
	kv   jetstream.KeyValue
	key  string
	own  string
	ttl  time.Duration
	lost chan struct{}
	once sync.Once
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex
	rev  uint64
	till time.Time
}

// leaseTTL bounds how long a lease that nobody renews keeps others out; each lease's own is in its value.
const leaseTTLMax = 5 * time.Minute

// Lease tries to become or stay the owner of a name.
func (b *Bus) Lease(ctx context.Context, name, owner string, ttl time.Duration) (bus.Lease, error) {
	kv, err := b.leaseTable(ctx)
	if err != nil {
		return nil, err
	}
	l := &lease{b: b, kv: kv, key: strings.NewReplacer(":", "_", " ", "_").Replace(name), own: owner, ttl: ttl, lost: make(chan struct{}), done: make(chan struct{})}
	asked := b.now()
	e, err := kv.Get(ctx, l.key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		l.rev, err = kv.Create(ctx, l.key, []byte(owner))
	case err != nil:
	case string(e.Value()) == owner || b.now().Sub(e.Created()) > ttl:
		l.rev, err = kv.Update(ctx, l.key, []byte(owner), e.Revision())
	default:
		return nil, fmt.Errorf("lease %s: %w: %s", name, bus.ErrHeld, e.Value())
	}
	if err != nil {
		if errors.Is(err, jetstream.ErrKeyExists) || isCode(err, codeWrongSequence, codeWrongSequenceConst) {
			err = bus.ErrHeld
		}
		return nil, fmt.Errorf("lease %s: %w", name, b.closed(err))
	}
	l.till = asked.Add(ttl)
	ctx, l.stop = context.WithCancel(b.ctx)
	b.group.Go(func() { l.renew(ctx) })
	return l, nil
}

func (b *Bus) leaseTable(ctx context.Context) (jetstream.KeyValue, error) {
	b.mu.Lock()
	kv := b.leases
	b.mu.Unlock()
	if kv != nil {
		return kv, nil
	}
	t, err := b.Table(ctx, "naru_leases", bus.TableOptions{Volatile: true, TTL: leaseTTLMax})
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases = t.(*table).kv
	return b.leases, nil
}

// renew writes the key again, three times in its time to live.
func (l *lease) renew(ctx context.Context) {
	defer close(l.done)
	defer l.once.Do(func() { close(l.lost) })
	tick := time.NewTicker(l.ttl / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asked := l.b.now()
		try, cancel := context.WithTimeout(ctx, l.ttl/3)
		rev, err := l.kv.Update(try, l.key, []byte(l.own), l.rev)
		cancel()
		if err != nil { // an entry that an engine forgot is made again
			try, cancel = context.WithTimeout(ctx, l.ttl/3)
			if e, gerr := l.kv.Get(try, l.key); errors.Is(gerr, jetstream.ErrKeyNotFound) {
				rev, err = l.kv.Create(try, l.key, []byte(l.own))
			} else if gerr == nil && string(e.Value()) == l.own {
				rev, err = l.kv.Update(try, l.key, []byte(l.own), e.Revision())
			} else if gerr == nil {
				cancel()
				return // another's
			}
			cancel()
		}
		l.mu.Lock()
		if err == nil {
			l.rev, l.till = rev, asked.Add(l.ttl)
		}
		over := !l.b.now().Before(l.till)
		l.mu.Unlock()
		if over {
			return
		}
	}
}

// Held says whether it is.
func (l *lease) Held() bool {
	select {
	case <-l.lost:
		return false
	default:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.now().Before(l.till)
}

// Lost is closed when it is lost.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Release gives it up.
func (l *lease) Release(ctx context.Context) error {
	l.stop()
	<-l.done
	l.mu.Lock()
	rev := l.rev
	l.mu.Unlock()
	err := l.kv.Delete(ctx, l.key, jetstream.LastRevision(rev))
	if err != nil && !isCode(err, codeWrongSequence, codeWrongSequenceConst) {
		return fmt.Errorf("release lease %s: %w", l.key, l.b.closed(err))
	}
	return nil
}

package nats

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
)

// A lease is one message in a stream in memory: its subject is the name, its data the owner, and its time to live the
// lease's, so that it is the server's clock alone that lets another owner in. Every write states the expected last
// sequence of the subject.
const leaseStream = "NARU_leases"

// leaseSubject is one token for any name.
func leaseSubject(name string) string { return "naru.lease." + hex.EncodeToString([]byte(name)) }

type lease struct {
	b    *Bus
	name string
	own  string
	ttl  time.Duration
	lost chan struct{}
	stop context.CancelFunc

	mu    sync.Mutex
	rev   uint64
	asked time.Time // when what holds now was asked for
}

// over says whether the time to live has passed. The mutex is held.
func (l *lease) over(now time.Time) bool { return passed(l.asked, now) >= l.ttl }

// passed is how much time lies between, by the clock that says more: the monotonic one, which nobody sets, stands still while
// the machine sleeps, and the wall clock goes on. One that is set ahead costs a lease once, one that is set back nothing, and
// one that is wrong nothing either, since no two machines' times are compared.
func passed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}

// Lease tries to become or stay the owner of a name.
func (b *Bus) Lease(ctx context.Context, name, owner string, ttl time.Duration) (bus.Lease, error) {
	l := &lease{b: b, name: name, own: owner, ttl: ttl, lost: make(chan struct{})}
	if ttl < time.Second {
		return nil, fmt.Errorf("lease %s: a time to live of %s; want at least 1 s", name, ttl)
	}
	l.asked = b.now()
	if err := l.take(ctx); err != nil {
		return nil, fmt.Errorf("lease %s: %w", name, b.closed(err))
	}
	var run context.Context
	run, l.stop = context.WithCancel(b.ctx)
	b.group.Go(func() { l.renew(run) })
	return l, nil
}

// leasesReady makes the stream where there is none; a server in memory forgets it when it stops.
func (b *Bus) leasesReady(ctx context.Context) error {
	_, err := b.js().CreateStream(ctx, jetstream.StreamConfig{
		Name: leaseStream, Subjects: []string{"naru.lease.*"}, Storage: jetstream.MemoryStorage, Replicas: b.o.Replicas,
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, MaxMsgsPerSubject: 1, DiscardNewPerSubject: false,
		AllowMsgTTL: true, Duplicates: 100 * time.Millisecond, MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1,
	})
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil
	}
	return err
}

// take writes the lease behind what is there, if that is nobody's or our own.
func (l *lease) take(ctx context.Context) error {
	made := false
	for {
		holder, rev, err := l.holder(ctx)
		if err == nil && rev > 0 && holder != l.own {
			return fmt.Errorf("%w: %s", bus.ErrHeld, holder)
		}
		if err == nil {
			rev, err = l.write(ctx, l.own, l.ttl, rev)
		}
		switch {
		case err == nil:
			l.mu.Lock()
			l.rev = rev
			l.mu.Unlock()
			return nil
		case isCode(err, codeWrongSequence, codeWrongSequenceConst):
			// Somebody was faster; perhaps another goroutine of ours.
			select {
			case <-time.After(jitter(offerAgainMin)):
			case <-ctx.Done():
				return ctx.Err()
			}
		case !made && (isCode(err, codeStreamNotFound) || errors.Is(err, natsgo.ErrNoResponders)):
			if err := l.b.leasesReady(ctx); err != nil {
				return err
			}
			made = true
		default:
			return err
		}
	}
}

// holder asks the leader who holds the lease; rev is 0 where nobody does.
func (l *lease) holder(ctx context.Context) (owner string, rev uint64, err error) {
	m, err := l.b.leader(ctx, leaseStream, map[string]any{"last_by_subj": leaseSubject(l.name)})
	if errors.Is(err, bus.ErrNotFound) {
		return "", 0, nil
	}
	return string(m.data), m.seq, err
}

// write writes the lease at a revision; an empty owner frees it for the next.
func (l *lease) write(ctx context.Context, owner string, ttl time.Duration, rev uint64) (uint64, error) {
	m := natsgo.NewMsg(leaseSubject(l.name))
	m.Header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(rev, 10)}
	m.Header["Nats-TTL"] = []string{strconv.Itoa(int((ttl+time.Second-1)/time.Second)) + "s"} // whole seconds, none less
	m.Data = []byte(owner)
	ack, err := l.b.ask(ctx, m)
	if err != nil {
		return 0, err
	}
	return parseAck(ack.Data)
}

// renew writes the lease again, three times in its time to live.
func (l *lease) renew(ctx context.Context) {
	defer close(l.lost)
	tick := time.NewTicker(l.ttl / 3)
	defer tick.Stop()
	for {
		l.mu.Lock()
		left := l.ttl - passed(l.asked, l.b.now())
		l.mu.Unlock()
		over := time.NewTimer(left)
		select {
		case <-ctx.Done():
			over.Stop()
			return
		case <-over.C:
			return
		case <-tick.C:
			over.Stop()
		}
		asked := l.b.now()
		l.mu.Lock()
		slept := l.over(asked)
		l.mu.Unlock()
		if slept { // another one may have had it in between, though it is to be had again
			return
		}
		try, cancel := context.WithTimeout(ctx, min(l.ttl/3, max(left, 0)))
		err := l.take(try)
		cancel()
		if errors.Is(err, bus.ErrHeld) {
			return
		}
		if err == nil {
			l.mu.Lock()
			l.asked = asked
			l.mu.Unlock()
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
	return !l.over(l.b.now())
}

// Lost is closed when it is lost.
func (l *lease) Lost() <-chan struct{} { return l.lost }

// Release gives it up. Where that cannot be told to the engine, the lease ends with its time to live.
func (l *lease) Release(ctx context.Context) error {
	l.stop()
	<-l.lost
	l.mu.Lock()
	rev := l.rev
	l.mu.Unlock()
	err := l.b.deleteMessage(ctx, leaseStream, rev)
	if err != nil && !errors.Is(err, bus.ErrNotFound) && !isCode(err, codeStreamNotFound) {
		return fmt.Errorf("release lease %s: %w", l.name, l.b.closed(err))
	}
	return nil
}

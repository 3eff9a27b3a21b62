package nats

import (
	"context"
	"fmt"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// link is a connection to the engine, and what is bound to it. The client brings a connection that broke back by itself, but not
// one that the server has ended with an error of the protocol: that is over, and another takes its place (reopen).
type link struct {
	nc   *natsgo.Conn
	js   jetstream.JetStream
	meta jetstream.KeyValue // of logs
	over chan struct{}      // closed when the connection has ended for good
}

func (b *Bus) nc() *natsgo.Conn         { return b.link.Load().nc }
func (b *Bus) js() jetstream.JetStream  { return b.link.Load().js }
func (b *Bus) meta() jetstream.KeyValue { return b.link.Load().meta }

func (b *Bus) connect() (*link, error) {
	l := &link{over: make(chan struct{})}
	var err error
	if l.nc, err = natsgo.Connect(b.o.URL, b.connectOptions(l.over)...); err != nil {
		return nil, err
	}
	if l.js, err = jetstream.New(l.nc, jetstream.WithDefaultTimeout(requestWait)); err != nil {
		l.nc.Close()
		return nil, err
	}
	return l, nil
}

func (b *Bus) openMeta(ctx context.Context, l *link) (err error) {
	l.meta, err = l.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: "naru_logs", Replicas: b.o.Replicas, Storage: jetstream.FileStorage,
	})
	return err
}

// hangUp ends the connection in use.
func (b *Bus) hangUp() {
	if l := b.link.Load(); l != nil {
		l.nc.Close()
	}
}

const (
	reopenAfter  = 250 * time.Millisecond
	reopenRarely = 30 * time.Second // whatever ends it may do so again at once
)

// reopener opens a connection anew that has ended for good, and ever more rarely where that does not last.
type reopener struct {
	wait time.Duration
	next time.Time
	last time.Time // it was opened
}

// look is called now and then, by one goroutine.
func (r *reopener) look(b *Bus) {
	old, now := b.link.Load(), b.now()
	select {
	case <-old.over:
	default:
		if r.wait > 0 && now.Sub(r.last) > reopenRarely {
			r.wait = 0 // it lasts
		}
		return
	}
	if r.next.IsZero() {
		r.wait = min(max(2*r.wait, reopenAfter), reopenRarely)
		r.next = now.Add(jitter(r.wait))
		b.down(fmt.Sprintf("the server has ended the connection: %v", old.nc.LastError()))
		b.log.Error("the server has ended the bus's connection for good; it is opened again", "error", old.nc.LastError(), "in", r.wait)
	}
	if now.Before(r.next) {
		return
	}
	r.next = time.Time{}
	if err := b.reopen(); err != nil {
		b.down(fmt.Sprintf("the connection cannot be opened again: %v", err))
		return
	}
	r.last = b.now()
}

// reopen puts another connection in the place of one that has ended. Everybody asks for it anew with what he does next: tables
// find their buckets, readers their streams, and who watches, listens or answers begins again.
func (b *Bus) reopen() error {
	b.breakConnection() // before there is a new one, whose callbacks own what that sets
	l, err := b.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.ctx, requestWait)
	defer cancel()
	if err := b.openMeta(ctx, l); err != nil {
		l.nc.Close()
		<-l.over
		return err
	}
	b.link.Store(l)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.feeds {
		if err := f.listenAgain(l.nc); err != nil {
			b.log.Warn("batches of other processes are found by asking only", "error", err)
		}
	}
	return nil
}

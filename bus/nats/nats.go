// Package nats is the bus on NATS JetStream: embedded in the process, which is the default, or an external server or
// cluster. Nothing outside this folder knows the SDK.
//
// A log is one stream per generation and partition. A message of the stream is a batch, and its subject names the row
// it belongs to. Every append states the row's last sequence, so the store itself refuses a writer that was overtaken.
// Consumers of JetStream are not used for logs, since their acknowledgements do not survive a crash.
package nats

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
)

// Options say which JetStream to use.
type Options struct {
	// Dir is the store of an embedded server. Where URL is empty, Dir is wanted.
	Dir string
	// Listen has an embedded server listen for others on host:port; TLS, User and Password are wanted then.
	Listen string
	// URL names an external server or cluster, `nats://a:4222,nats://b:4222`.
	URL string
	// User, Password and TLS are for URL, or for those who join at Listen. CredsFile is for URL.
	User, Password string
	CredsFile      string
	TLS            *tls.Config
	// Replicas is how many copies a stream has; 1 where zero. A cluster wants 3.
	Replicas int
	// LowWater is how many bytes of disk are kept for internal appends; see bus.Space. Where zero it is 5 % of the file
	// system, at least 256 MiB, at most a quarter of it.
	LowWater uint64
	// MaxMessage is the largest record in bytes; 4 MiB where zero.
	MaxMessage int
	Log        *slog.Logger
	Now        func() time.Time
}

const (
	payloadMax   = 8 << 20 // of an embedded server
	batchRoom    = 64 << 10
	batchBytes   = 512 << 10 // a batch is closed beyond this; measured: larger ones gain nothing
	batchRecords = 2048
	requestWait  = 5 * time.Second
)

// Bus is JetStream as a bus.
type Bus struct {
	o    Options
	log  *slog.Logger
	now  func() time.Time
	nc   *natsgo.Conn
	js   jetstream.JetStream
	meta jetstream.KeyValue // of logs

	embedded atomic.Pointer[server.Server]
	space    atomic.Pointer[bus.Space]
	latency  atomic.Int64
	restarts atomic.Int64

	mu      sync.Mutex
	logs    map[string]*Log
	feeds   map[string]*feed
	queues  map[string]*queue
	tables  map[string]*table
	leases  jetstream.KeyValue
	upSince time.Time
	up      bool
	fault   string

	ctx    context.Context
	cancel context.CancelCauseFunc
	group  sync.WaitGroup
}

var _ bus.Bus = (*Bus)(nil)

// Open starts or joins the engine. ctx limits the start alone.
func Open(ctx context.Context, o Options) (*Bus, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.MaxMessage == 0 {
		o.MaxMessage = 4 << 20
	}
	b := &Bus{o: o, log: o.Log, now: o.Now, logs: map[string]*Log{}, feeds: map[string]*feed{}, queues: map[string]*queue{},
		tables: map[string]*table{}, upSince: o.Now(), up: true}
	b.ctx, b.cancel = context.WithCancelCause(context.Background())
	b.space.Store(&bus.Space{})
	if err := b.open(ctx); err != nil {
		_ = b.Close() // what was started; the error that counts is err
		return nil, err
	}
	return b, nil
}

func (b *Bus) open(ctx context.Context) error {
	opts := []natsgo.Option{
		natsgo.Name("naru"), natsgo.MaxReconnects(-1), natsgo.RetryOnFailedConnect(b.o.URL != ""),
		natsgo.ReconnectWait(100 * time.Millisecond), natsgo.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		natsgo.ReconnectBufSize(-1), // what cannot be sent now is sent again by us, in order
		natsgo.PingInterval(10 * time.Second), natsgo.MaxPingsOutstanding(2),
		natsgo.DisconnectErrHandler(func(_ *natsgo.Conn, err error) {
			if b.ctx.Err() == nil {
				b.down(fmt.Sprintf("not connected: %v", err))
			}
		}),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, s *natsgo.Subscription, err error) {
			b.log.Warn("bus", "error", err)
		}),
	}
	url := b.o.URL
	if url == "" {
		if b.o.Dir == "" {
			return errors.New("bus: neither a directory for an embedded server nor the URL of an external one")
		}
		if err := b.startEmbedded(); err != nil {
			return err
		}
		opts = append(opts, natsgo.InProcessServer(inProcess{b}))
		if b.o.User != "" {
			opts = append(opts, natsgo.UserInfo(b.o.User, b.o.Password))
		}
	} else {
		if b.o.User != "" {
			opts = append(opts, natsgo.UserInfo(b.o.User, b.o.Password))
		}
		if b.o.CredsFile != "" {
			opts = append(opts, natsgo.UserCredentials(b.o.CredsFile))
		}
		if b.o.TLS != nil {
			opts = append(opts, natsgo.Secure(b.o.TLS))
		}
	}
	nc, err := natsgo.Connect(url, opts...)
	if err != nil {
		return fmt.Errorf("bus: connect to %s: %w", b.name(), err)
	}
	b.nc = nc
	if b.js, err = jetstream.New(nc, jetstream.WithDefaultTimeout(requestWait)); err != nil {
		return fmt.Errorf("bus: %w", err)
	}
	b.group.Go(b.watchSpace)
	// A cluster that is starting elects its leaders for some seconds.
	err = b.patiently(ctx, 30*time.Second, func(ctx context.Context) error {
		b.meta, err = b.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: "naru_logs", Replicas: b.o.Replicas, Storage: jetstream.FileStorage,
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("bus: open the list of logs on %s: %w", b.name(), err)
	}
	return nil
}

// patiently calls f until it succeeds or the time is over.
func (b *Bus) patiently(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		try, done := context.WithTimeout(ctx, requestWait)
		err := f(try)
		done()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-b.ctx.Done():
			return bus.ErrClosed
		case <-time.After(jitter(wait)):
		}
	}
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

func (b *Bus) name() string {
	if b.o.URL == "" {
		return "nats embedded"
	}
	return "nats " + b.o.URL
}

// MaxMessage is the largest record the engine takes.
func (b *Bus) MaxMessage() int {
	return min(b.o.MaxMessage, b.maxBatch()-batchRoom)
}

// maxBatch is the largest payload of the server.
func (b *Bus) maxBatch() int {
	if n := int(b.nc.MaxPayload()); n > 0 {
		return n
	}
	return payloadMax
}

// Status is how the engine is.
func (b *Bus) Status(context.Context) bus.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bus.Status{Engine: b.name(), Up: b.up, Since: b.upSince, Fault: b.fault, Space: *b.space.Load(),
		Restarts: int(b.restarts.Load()), Latency: time.Duration(b.latency.Load())}
}

func (b *Bus) down(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.up {
		b.up, b.upSince = false, b.now()
		b.log.Warn("the bus is down; appends wait", "fault", why)
	}
	b.fault = why
}

func (b *Bus) confirmed(took time.Duration) {
	b.latency.Store(int64(took))
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.up {
		b.up, b.upSince, b.fault = true, b.now(), ""
		b.log.Info("the bus is up again")
	}
}

// Close lets go of the engine and stops an embedded server.
func (b *Bus) Close() error {
	b.cancel(bus.ErrClosed)
	if b.nc != nil {
		b.nc.Close()
	}
	b.group.Wait()
	if s := b.embedded.Swap(nil); s != nil {
		s.Shutdown()
		s.WaitForShutdown()
	}
	return nil
}

// closed gives ErrClosed for what failed because the bus was closed.
func (b *Bus) closed(err error) error {
	if b.ctx.Err() != nil {
		return bus.ErrClosed
	}
	return err
}

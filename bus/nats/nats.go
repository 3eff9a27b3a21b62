// Package nats is the bus on NATS JetStream: embedded in the process, which is the default, or an external server or
// cluster. Nothing outside this folder knows the SDK.
//
// A log is one stream per generation and partition. A message of the stream is a batch, and its subject names the row
// it belongs to. Every append states the row's last sequence, so the store itself refuses a writer that was overtaken.
// Consumers of JetStream are not used for logs, since their acknowledgements do not survive a crash.
package nats

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
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
	// Partitions is how many a log has when it is created, by its name, where who creates it says nothing.
	Partitions map[string]int
	// LowWater is how many bytes of disk are kept for internal appends; see bus.Space. Where zero it is 5 % of the file
	// system, at least 256 MiB, at most 2 GiB or a quarter of it.
	LowWater uint64
	// MaxMessage is the largest record in bytes; 4 MiB where zero.
	MaxMessage int
	Log        *slog.Logger
	Now        func() time.Time
}

const (
	payloadMax   = 8 << 20 // of an embedded server
	maxPending   = 256 << 20
	messageMax   = 4 << 20
	batchRoom    = 64 << 10        // between the largest record and the largest payload: header, subject, what may be added
	requestWait  = 5 * time.Second // for an answer of an engine that is there
	openPatience = 30 * time.Second
)

// Bus is JetStream as a bus.
type Bus struct {
	o    Options
	log  *slog.Logger
	now  func() time.Time
	link atomic.Pointer[link] // the connection in use

	request    func(context.Context, *natsgo.Msg) (*natsgo.Msg, error) // the connection's; tests lose answers
	connected  atomic.Pointer[context.Context]                         // done when the connection is lost
	cut        context.CancelFunc                                      // of connected; the connection's callbacks own it
	broken     atomic.Pointer[chan struct{}]                           // closed when the connection is back: watches begin anew
	unanswered atomic.Pointer[error]                                   // why the last attempt to connect failed
	embedded   atomic.Pointer[server.Server]
	measure    func() (bus.Space, error)
	askAgain   time.Time // when an external server is asked for its limits; watch's
	space      atomic.Pointer[bus.Space]
	latency    atomic.Int64
	restarts   atomic.Int64
	sick       atomic.Bool  // an embedded server has given up its store
	failing    atomic.Int64 // rows whose batch the engine does not confirm

	mu      sync.Mutex
	logs    map[string]*Log
	feeds   map[string]*feed
	queues  map[string]*queue
	tables  map[string]*table
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
	o.Replicas, o.MaxMessage = max(o.Replicas, 1), cmp.Or(o.MaxMessage, messageMax)
	b := &Bus{o: o, log: o.Log, now: o.Now, logs: map[string]*Log{}, feeds: map[string]*feed{}, queues: map[string]*queue{},
		tables: map[string]*table{}, upSince: o.Now(), up: true}
	b.ctx, b.cancel = context.WithCancelCause(context.Background())
	b.space.Store(&bus.Space{})
	b.measure = b.measureDisk
	b.breakConnection()
	if err := b.open(ctx); err != nil {
		_ = b.Close() // what was started; the error that counts is err
		return nil, err
	}
	return b, nil
}

func (b *Bus) open(ctx context.Context) error {
	if b.o.URL == "" {
		if b.o.Dir == "" {
			return errors.New("bus: want a directory for an embedded server, or the URL of an external one")
		}
		if err := b.startEmbedded(); err != nil {
			return err
		}
	}
	l, err := b.connect()
	if err != nil {
		return fmt.Errorf("bus: connect to %s: %w", b.name(), err)
	}
	b.link.Store(l)
	b.request = func(ctx context.Context, m *natsgo.Msg) (*natsgo.Msg, error) {
		return b.nc().RequestMsgWithContext(ctx, m)
	}
	b.watchSpace()
	if !l.nc.IsConnected() {
		b.log.Warn("nobody answers at " + redacted(b.o.URL) + " yet; it is tried again for " + openPatience.String())
	}
	// A cluster that is starting elects its leaders for some seconds.
	err = b.patiently(ctx, openPatience, func(ctx context.Context) error { return b.openMeta(ctx, l) })
	if err != nil && !l.nc.IsConnected() && !errors.Is(ctx.Err(), context.Canceled) {
		if last := b.unanswered.Load(); last != nil {
			err = *last
		}
		return fmt.Errorf("bus: nobody answers at %s: %w; is NATS there, and is this its address?", redacted(b.o.URL), err)
	}
	if err != nil {
		return fmt.Errorf("bus: open the list of logs on %s: %w", b.name(), err)
	}
	b.group.Go(b.watch)
	return nil
}

// connectOptions have over closed when the connection has ended for good, and all that it calls is done.
func (b *Bus) connectOptions(over chan struct{}) []natsgo.Option {
	opts := []natsgo.Option{
		natsgo.Name("naru"), natsgo.MaxReconnects(-1), natsgo.RetryOnFailedConnect(b.o.URL != ""),
		natsgo.ReconnectWait(100 * time.Millisecond), natsgo.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		natsgo.ReconnectBufSize(-1), // what cannot be sent now is offered again by us, in order
		natsgo.PingInterval(10 * time.Second), natsgo.MaxPingsOutstanding(2), natsgo.IgnoreAuthErrorAbort(),
		natsgo.DisconnectErrHandler(func(_ *natsgo.Conn, err error) {
			b.cut()
			if b.ctx.Err() == nil {
				b.down(fmt.Sprintf("not connected: %v", err))
			}
		}),
		natsgo.ReconnectErrHandler(func(_ *natsgo.Conn, err error) { b.unanswered.Store(&err) }),
		natsgo.ReconnectHandler(func(*natsgo.Conn) { b.breakConnection() }),
		natsgo.ClosedHandler(func(*natsgo.Conn) { close(over) }),
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { b.log.Warn("bus", "error", err) }),
	}
	if b.o.URL == "" {
		opts = append(opts, natsgo.InProcessServer(inProcess{b}))
	}
	if b.o.User != "" {
		opts = append(opts, natsgo.UserInfo(b.o.User, b.o.Password))
	}
	if b.o.URL != "" && b.o.CredsFile != "" {
		opts = append(opts, natsgo.UserCredentials(b.o.CredsFile))
	}
	if b.o.URL != "" && b.o.TLS != nil {
		opts = append(opts, natsgo.Secure(b.o.TLS))
	}
	return opts
}

// breakConnection begins a new connection's time, and has those who watch begin anew.
func (b *Bus) breakConnection() {
	connected, cut := context.WithCancel(b.ctx)
	b.cut = cut
	b.connected.Store(&connected)
	broken := make(chan struct{})
	if old := b.broken.Swap(&broken); old != nil {
		close(*old)
	}
}

// lasting is an error that trying again does not change.
type lasting struct{ error }

// Unwrap gives the error itself.
func (l lasting) Unwrap() error { return l.error }

// patiently calls f until it succeeds, fails for good, or the time is over.
func (b *Bus) patiently(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	within, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		if b.ctx.Err() != nil {
			return bus.ErrClosed
		}
		try, done := context.WithTimeout(within, requestWait)
		err := f(try)
		done()
		var last lasting
		if err == nil || errors.As(err, &last) || final(err) {
			return err
		}
		select {
		case <-within.Done():
			if ctx.Err() != nil {
				err = fmt.Errorf("%w; the last fault was: %w", ctx.Err(), err)
			}
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
	return "nats " + redacted(b.o.URL)
}

// shared says whether other processes may write to the same store.
func (b *Bus) shared() bool { return b.o.URL != "" || b.o.Listen != "" }

// MaxMessage is the largest record the engine takes.
func (b *Bus) MaxMessage() int { return min(b.o.MaxMessage, b.maxBatch()-batchRoom) }

// maxBatch is the largest payload of the server.
func (b *Bus) maxBatch() int {
	if n := int(b.nc().MaxPayload()); n > 0 {
		return n
	}
	return payloadMax
}

// recordMost is what a record has around its variable fields, at most.
const recordMost = 160

// sizeOf is the size of a message's record, or a little more; it refuses one that is too large.
func (b *Bus) sizeOf(m *message.Message) (int, error) {
	n := recordMost + len(m.Data) + len(m.Properties) + len(m.Subject) + len(m.Source) + len(m.Type) + len(m.Device) +
		len(m.ContentType) + len(m.Schema) + len(m.ReplyTo) + len(m.Client) + len(m.Correlation)
	if most := b.MaxMessage(); n > most {
		if n = len(message.AppendRecord(nil, m)); n > most {
			return 0, message.Rejectf(message.MessageTooLarge, "message %s on %s takes %d bytes; the bus takes up to %d", m.ID, m.Subject, n, most)
		}
	}
	return n, nil
}

// doorShut is why a door refuses, nil while it doesn't.
func (b *Bus) doorShut() error {
	if s := b.space.Load(); s.Shut {
		return message.Rejectf(message.StorageLow, "%d MiB of disk are free; the doors are shut below %d MiB", s.Free>>20, s.Low>>20)
	}
	return nil
}

// Close lets go of the engine and stops an embedded server.
func (b *Bus) Close() error {
	b.cancel(bus.ErrClosed)
	b.hangUp()
	b.group.Wait()
	b.hangUp() // one that was being opened at that moment
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

// redacted is a list of URLs without passwords.
func redacted(urls string) string {
	list := strings.Split(urls, ",")
	for i, one := range list {
		if u, err := url.Parse(one); err == nil {
			list[i] = u.Redacted()
		}
	}
	return strings.Join(list, ",")
}

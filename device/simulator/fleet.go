// Package simulator is a fleet of lifelike devices, each a client of its own built on the SDK: what it takes to see a
// platform at work before there are devices. Each follows its unnamed twin: its interval, and a thermometer its setpoint; and answers
// commands.
package simulator

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

	"github.com/naru-platform/naru/device/sdk"
)

// Provision gives a device its certificate and key.
type Provision func(ctx context.Context, device string) (tls.Certificate, error)

// Options are a fleet.
type Options struct {
	Devices int           // how many
	Rate    time.Duration // of each device, between two readings; a second where zero
	Server  string        // host:port
	CA      []byte        // PEM of the roots that the server is trusted by
	Seed    uint64        // the same seed and times give the same readings
	Prefix  string        // of the devices' ids; "sim-" where empty
	// Provision is asked once per device and start.
	Provision Provision
	Log       *slog.Logger
	// Connect opens a device's client; sdk.Connect where nil.
	Connect func(ctx context.Context, o sdk.Options) (*sdk.Client, error)
}

// Stats are counts of a whole fleet.
type Stats struct {
	Connected, Sent, Acked, Reconnects, Failed uint64
}

// Fleet is a running fleet's counts; the zero value is ready. It may be read at any time.
type Fleet struct {
	failed  atomic.Uint64
	mu      sync.Mutex
	clients map[*sdk.Client]bool
	gone    Stats // of the clients that were closed
}

// enrolling is how many devices get a certificate or connect at once: a handshake costs the platform a signature.
const enrolling = 16

// Run runs the fleet until ctx is done, then says goodbye for every device. A device that cannot be provisioned or
// connected tries again after a while, beside the others.
func (f *Fleet) Run(ctx context.Context, o Options) error {
	if o.Provision == nil {
		return errors.New("simulator: Options.Provision is wanted")
	}
	if o.Rate <= 0 {
		o.Rate = time.Second
	}
	if o.Prefix == "" {
		o.Prefix = "sim-"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Connect == nil {
		o.Connect = sdk.Connect
	}
	gate := make(chan struct{}, enrolling)
	var all sync.WaitGroup
	for n := range o.Devices {
		all.Go(func() { f.device(ctx, o, n, gate) })
	}
	all.Wait()
	return nil
}

// Run runs a fleet whose counts nobody wants.
func Run(ctx context.Context, o Options) error { return new(Fleet).Run(ctx, o) }

// Stats adds the devices up.
func (f *Fleet) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.gone
	s.Connected, s.Failed = uint64(len(f.clients)), f.failed.Load()
	for c := range f.clients {
		s.add(c.Stats())
	}
	return s
}

func (s *Stats) add(c sdk.Stats) {
	s.Sent += c.Sent
	s.Acked += c.Acked
	s.Reconnects += c.Reconnects
}

func (f *Fleet) device(ctx context.Context, o Options, n int, gate chan struct{}) {
	id := fmt.Sprintf("%s%d", o.Prefix, n)
	r := rand.New(rand.NewPCG(o.Seed, ^uint64(n)))
	if !pause(ctx, time.Duration(r.Int64N(int64(o.Rate)))) { // a fleet does not speak in chorus
		return
	}
	var c *sdk.Client
	for wait := time.Second; c == nil; wait = min(2*wait, time.Minute) {
		var err error
		if c, err = connect(ctx, o, id, gate); err != nil {
			if ctx.Err() != nil {
				return
			}
			f.failed.Add(1)
			o.Log.Warn("simulated device cannot connect; trying again", "device", id, "error", err)
			if !pause(ctx, wait/2+time.Duration(r.Int64N(int64(wait/2)))) {
				return
			}
		}
	}
	f.join(c)
	defer f.leave(c)
	s := newSettings(newModel(n, o.Seed), o.Rate)
	var twin sync.WaitGroup
	defer twin.Wait()
	twin.Go(func() { // so are commands
		if err := c.Commands(ctx, s.obey); err != nil && ctx.Err() == nil {
			f.failed.Add(1)
			o.Log.Warn("simulated device takes no commands", "device", id, "error", err)
		}
	})
	twin.Go(func() { // beside the readings, which wait for nobody
		if err := s.follow(ctx, c.Twin("")); err != nil && ctx.Err() == nil {
			f.failed.Add(1)
			o.Log.Warn("simulated device has no twin", "device", id, "error", err)
		}
	})
	t := time.NewTicker(o.Rate)
	defer t.Stop()
	for seq := uint64(1); ; seq++ {
		if err := say(ctx, c, s.tick, seq); err != nil && ctx.Err() == nil {
			f.failed.Add(1)
			o.Log.Warn("simulated device was not heard", "device", id, "seq", seq, "error", err)
		}
		select {
		case <-t.C:
		case <-s.changed:
			t.Reset(s.interval()) // the next reading comes at once
		case <-ctx.Done():
			return
		}
	}
}

// connectWithin is after how long a device that is not let in yet is told of, with the reason.
const connectWithin = 10 * time.Second

func connect(ctx context.Context, o Options, id string, gate chan struct{}) (*sdk.Client, error) {
	select {
	case gate <- struct{}{}:
		defer func() { <-gate }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	cert, err := o.Provision(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("provision %s: %w", id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	return o.Connect(ctx, sdk.Options{Server: o.Server, Device: id, Certificate: cert, CA: o.CA, Window: 16})
}

// say publishes a reading, and what happened with it.
func say(ctx context.Context, c *sdk.Client, tick func(time.Time) reading, seq uint64) error {
	now := time.Now()
	r := tick(now)
	r.Seq, r.TS = seq, now.UTC()
	_, err := c.Telemetry(ctx, "", r)
	if r.event != "" {
		_, eventErr := c.Event(ctx, r.event, r)
		err = errors.Join(err, eventErr)
	}
	return err
}

func (f *Fleet) join(c *sdk.Client) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clients == nil {
		f.clients = map[*sdk.Client]bool{}
	}
	f.clients[c] = true
}

func (f *Fleet) leave(c *sdk.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = c.Close(ctx) // what the platform did not take in this time is lost, as it is when a device is switched off
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone.add(c.Stats())
	delete(f.clients, c)
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

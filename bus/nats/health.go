package nats

import (
	"context"
	"net/http"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/naru-platform/naru/bus"
)

const (
	watchEvery    = 250 * time.Millisecond
	healthEvery   = 4               // looks at the space, one at the server's health
	restartAfter  = 2 * time.Second // of a server that gave up its store, once there is space
	restartRarely = 5 * time.Minute
	probeWait     = 2 * time.Second
	probeKey      = "probe"
)

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

// confirmed notes that an append was.
func (b *Bus) confirmed(took time.Duration) {
	b.latency.Store(int64(took))
	if b.failing.Load() == 0 {
		b.isUp()
	}
}

func (b *Bus) isUp() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.up && !b.sick.Load() {
		b.log.Info("the bus is up again", "after", b.now().Sub(b.upSince))
		b.up, b.upSince, b.fault = true, b.now(), ""
	}
}

// watch measures what is left on the disk, starts an embedded server again that has given up its store, as it does when
// the disk is full, opens a connection anew that has ended for good, and finds out when an engine that was away is back.
func (b *Bus) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var broken doctor
	var doubt second
	var again reopener
	for n := 0; ; n++ {
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
		}
		again.look(b)
		b.watchSpace()
		if s := b.embedded.Load(); s != nil && n%healthEvery == 0 {
			fault := doubt.opinion(storeFault(s))
			b.sick.Store(fault != "")
			if fault != "" {
				b.down(fault)
			}
			if broken.restart(b.now(), fault != "", b.space.Load().Shut) {
				b.restart(s)
			}
		}
		if !b.isUpNow() && !b.sick.Load() && b.failing.Load() == 0 && b.nc().IsConnected() {
			b.probe()
		}
	}
}

// storeFault is why an embedded server cannot store any more; empty while it can. A server that met a write error gives
// up the stream, or its whole store, and stays so when there is space again.
func storeFault(s *server.Server) string {
	if !s.JetStreamEnabled() {
		return "the embedded server has switched its store off, most likely because the disk was full"
	}
	if h := s.Healthz(&server.HealthzOptions{}); h != nil && h.StatusCode != http.StatusOK {
		return "the embedded server has given up: " + h.Error
	}
	return ""
}

// second is a second opinion: a fault is one when it is found twice. A stream that is just being made has its directory
// before the server knows it, and is taken for one that was lost.
type second struct{ before string }

func (o *second) opinion(fault string) string {
	was := o.before
	if o.before = fault; fault != was {
		return ""
	}
	return fault
}

// doctor decides when a server that is broken is started again: after a while, once there is space, and ever more rarely
// where that doesn't help.
type doctor struct {
	since time.Time // it is broken
	wait  time.Duration
}

func (d *doctor) restart(now time.Time, broken, full bool) bool {
	switch {
	case !broken:
		if d.since.IsZero() && d.wait > 0 {
			d.wait -= d.wait / 100 // well for some minutes: forgotten
		}
		d.since = time.Time{}
		return false
	case d.since.IsZero():
		d.since, d.wait = now, max(d.wait, restartAfter)
	case !full && now.Sub(d.since) >= d.wait:
		d.since, d.wait = time.Time{}, min(2*d.wait, restartRarely)
		return true
	}
	return false
}

func (b *Bus) isUpNow() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.up
}

// probe writes something, since only that says that appends can be confirmed.
func (b *Bus) probe() {
	ctx, cancel := context.WithTimeout(b.ctx, probeWait)
	defer cancel()
	if _, err := b.meta().Put(ctx, probeKey, nil); err == nil && b.failing.Load() == 0 {
		b.isUp()
	}
}

// watchSpace opens and shuts the doors.
func (b *Bus) watchSpace() {
	s, err := b.measure()
	if err != nil {
		b.log.Warn("measure what is left to write on", "error", err)
		return
	}
	was := b.space.Load().Shut
	b.space.Store(&s)
	if s.Shut != was {
		b.log.Warn("doors", "shut", s.Shut, "free_bytes", s.Free, "low_water_bytes", s.Low)
	}
}

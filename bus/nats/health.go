package nats

import (
	"context"
	"time"

	"github.com/naru-platform/naru/bus"
)

const (
	watchEvery   = 250 * time.Millisecond
	restartAfter = 2 * time.Second // of a server that switched its store off, once there is space
	probeWait    = 2 * time.Second
	probeKey     = "probe"
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
	if !b.up {
		b.log.Info("the bus is up again", "after", b.now().Sub(b.upSince))
		b.up, b.upSince, b.fault = true, b.now(), ""
	}
}

// watch measures what is left on the disk, starts an embedded server again that has switched its store off, as it does
// when the disk is full, and finds out when an engine that was away is back.
func (b *Bus) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var off time.Time
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
		}
		b.watchSpace()
		s := b.embedded.Load()
		switch {
		case s == nil || s.JetStreamEnabled():
			off = time.Time{}
		case off.IsZero():
			off = b.now()
			b.down("the embedded server has switched its store off, most likely because the disk was full")
		case !b.space.Load().Shut && b.now().Sub(off) >= restartAfter:
			b.restart(s)
			off = time.Time{}
		}
		if !b.isUpNow() && b.failing.Load() == 0 && b.nc.IsConnected() {
			b.probe()
		}
	}
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
	if _, err := b.meta.Put(ctx, probeKey, nil); err == nil && b.failing.Load() == 0 {
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

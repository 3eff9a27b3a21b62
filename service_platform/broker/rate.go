package broker

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/session"
)

// Rate is how fast one client may publish. Beyond it nothing is refused: its connection is read more slowly.
type Rate struct {
	// Messages and Bytes are for each second, bytes of PUBLISH packets; zero for any number.
	Messages float64 `json:"messages"`
	Bytes    float64 `json:"bytes"`
	// Burst is how much may come at once: what is worth so much time, one second where empty.
	Burst string `json:"burst"`
}

// pace is a rate in use; nil for none.
type pace struct{ message, octet, burst time.Duration }

// parse gives the pace, nil where any is allowed.
func (r Rate) parse() (*pace, error) {
	if r.Messages < 0 || r.Bytes < 0 {
		return nil, fmt.Errorf("publish_rate of %g messages and %g bytes a second: want numbers above zero, or 0 for any", r.Messages, r.Bytes)
	}
	burst := time.Second
	if r.Burst != "" {
		var err error
		if burst, err = time.ParseDuration(r.Burst); err != nil || burst < 0 {
			return nil, fmt.Errorf("publish_rate: burst %q: want a duration such as 1s", r.Burst)
		}
	}
	if r.Messages == 0 && r.Bytes == 0 {
		return nil, nil
	}
	each := func(perSecond float64) time.Duration {
		if perSecond == 0 {
			return 0
		}
		return time.Duration(float64(time.Second) / perSecond)
	}
	p := &pace{each(r.Messages), each(r.Bytes), burst}
	if r.Messages > 0 && p.message <= 0 || r.Bytes > 0 && p.octet <= 0 {
		return nil, errors.New("publish_rate: more than one a nanosecond is any number; say 0")
	}
	return p, nil
}

// allowances are what is left of each client's rate. They are its identity's, not its connection's: coming again, or twice,
// gains nothing.
type allowances struct {
	mu  sync.Mutex
	all map[string]*allowance
}

// allowance is one client's. A meter says up to which moment the client's time is spent.
type allowance struct {
	of   *allowances
	key  string
	pace *pace

	// Guarded by of.mu.
	users           int
	messages, bytes time.Time
}

// take gives a client's allowance, until it is given back.
func (a *allowances) take(key string, p *pace) *allowance {
	a.mu.Lock()
	defer a.mu.Unlock()
	x := a.all[key]
	if x == nil {
		x = &allowance{of: a, key: key, pace: p}
		if a.all == nil {
			a.all = map[string]*allowance{}
		}
		a.all[key] = x
	}
	x.users++
	return x
}

// giveBack ends the use. It is remembered until all of it would be there again.
func (x *allowance) giveBack(now time.Time) {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	x.users--
	x.forget(now)
}

// forget forgets what nobody uses and is whole. of.mu is held.
func (x *allowance) forget(now time.Time) {
	if x.users > 0 || x.of.all[x.key] != x {
		return
	}
	spent := x.messages
	if x.bytes.After(spent) {
		spent = x.bytes
	}
	left := spent.Add(x.pace.burst).Sub(now)
	if left <= 0 {
		delete(x.of.all, x.key)
		return
	}
	time.AfterFunc(left, func() {
		x.of.mu.Lock()
		defer x.of.mu.Unlock()
		x.forget(time.Now())
	})
}

// spend takes a message of so many bytes, and says when it may go on. One that is larger than a burst is let through, and
// what follows waits for it.
func (x *allowance) spend(now time.Time, bytes int) time.Time {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	m := spend(&x.messages, now, x.pace.burst, x.pace.message)
	b := spend(&x.bytes, now, x.pace.burst, time.Duration(bytes)*x.pace.octet)
	if m.After(b) {
		return m
	}
	return b
}

func spend(spent *time.Time, now time.Time, burst, cost time.Duration) (at time.Time) {
	if whole := now.Add(-burst); spent.Before(whole) {
		*spent = whole
	}
	at = *spent
	*spent = at.Add(cost)
	return at
}

// allow gives the connection its client's allowance. Where nobody was asked who he is, the client id is all there is.
func (c *conn) allow(who session.Who) {
	p := c.b.pacePublish
	if c.in.PublishRate != nil {
		p = c.in.pace
	}
	if p == nil {
		return
	}
	if who.Identity != "" {
		who.ClientID = ""
	}
	c.allowed = c.b.allowances.take(c.in.Name+"\x00"+who.Key(), p)
}

// keepRate waits until the client may have said the PUBLISH in hand.
func (c *conn) keepRate(bytes int) error {
	if c.allowed == nil {
		return nil
	}
	return c.keepTo(c.allowed, bytes)
}

// keepTo waits until an allowance has so much.
func (c *conn) keepTo(x *allowance, bytes int) error {
	now := time.Now()
	at := x.spend(now, bytes)
	if !at.After(now) {
		return nil
	}
	c.mu.Lock()
	c.heldBack++
	first := c.heldBack == 1
	c.mu.Unlock()
	if first {
		c.b.env.Log.Warn("a client publishes faster than its rate; it is read more slowly", "reason", message.RateLimited, "device", c.device,
			"client_id", c.clientID, "listener", c.in.Name, "address", c.addr)
		c.recordRefusal(c.clientID, "rate_limit", message.Rejectf(message.RateLimited, "it publishes faster than its publish_rate"))
	}
	err := c.pause(at)
	c.b.metrics.heldBack.WithLabelValues(message.RateLimited.String()).Inc()
	c.b.metrics.heldBackFor.WithLabelValues(message.RateLimited.String()).Add(time.Since(now).Seconds())
	return err
}

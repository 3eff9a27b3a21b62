package broker

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/message"
)

// expiryEvery is how late a connection may end after its certificate.
const expiryEvery = time.Second

// expiry ends connections whose certificate has passed its end. One ticker serves all: it looks at the connections only
// when the soonest end has come.
type expiry struct {
	b       *Broker
	soonest atomic.Int64 // Unix nanoseconds; zero where no connection has a certificate
}

// note takes a connection's certificate into account.
func (e *expiry) note(c *conn) {
	if c.leaf == nil {
		return
	}
	at := c.leaf.NotAfter.UnixNano()
	for {
		was := e.soonest.Load()
		if was != 0 && was <= at || e.soonest.CompareAndSwap(was, at) {
			return
		}
	}
}

func (e *expiry) run(ctx context.Context) {
	tick := time.NewTicker(expiryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			e.sweep(e.b.env.Now())
		}
	}
}

// sweep ends what has expired by now.
func (e *expiry) sweep(now time.Time) {
	if at := e.soonest.Load(); at == 0 || now.UnixNano() <= at {
		return
	}
	e.soonest.Store(0) // before the look: who comes during it is noted again by itself
	var late []*conn
	e.b.mu.Lock()
	for _, set := range e.b.devices {
		for c := range set {
			switch {
			case c.leaf == nil:
			case now.After(c.leaf.NotAfter):
				late = append(late, c)
			default:
				e.note(c)
			}
		}
	}
	e.b.mu.Unlock()
	for _, c := range late {
		c.end(message.CertExpired, message.Rejectf(message.CertExpired, "the certificate of %s ended at %s; renew it", c.peer, c.leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
}

package x509

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
)

const (
	// estAtOnce is how many connections EST has at once, so that it never takes the descriptors away from the devices'
	// listeners. Enrolling is done once in a while, and takes some milliseconds.
	estAtOnce = 512
	// estOfOne is how many of them one address has: a whole production line may be behind one. IPv6 counts by /64, which is
	// what one customer has.
	estOfOne = 64
)

// crowd is a listener with a limit for all and one for each address. It never makes anybody wait: where there is no room, the
// connection goes that has been idle for longest, of the address itself or else of the one that has most. Whoever asks for
// something at that moment is let finish; where all do, the new one is closed. So who only holds connections open keeps
// nobody out, not even those behind the same address.
type crowd struct {
	net.Listener
	most, ofOne int

	mu   sync.Mutex
	all  int
	from map[netip.Prefix][]*member // oldest first
}

// member is a connection of a crowd.
type member struct {
	net.Conn
	of   *crowd
	from netip.Prefix
	once sync.Once

	busy bool // it has begun a request and has no answer yet; guarded by of.mu
}

func newCrowd(l net.Listener, most, ofOne int) *crowd {
	return &crowd{Listener: l, most: most, ofOne: ofOne, from: map[netip.Prefix][]*member{}}
}

// Accept gives the next connection that there is room for.
func (c *crowd) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		m := &member{Conn: conn, of: c, from: prefixOf(conn.RemoteAddr())}
		gone, ok := c.enter(m)
		if gone != nil {
			_ = gone.Close() // it was to end
		}
		if ok {
			return m, nil
		}
		_ = conn.Close() // it was never taken
	}
}

// enter finds room for a connection: it gives the one that must go for it, and whether there is room.
func (c *crowd) enter(m *member) (gone *member, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.from[m.from]) >= c.ofOne {
		gone = idlest(c.from[m.from])
		ok = gone != nil
	} else if ok = c.all < c.most; !ok {
		gone = c.ofMost()
		ok = gone != nil
	}
	if gone != nil {
		c.leave(gone)
	}
	if ok {
		c.all++
		c.from[m.from] = append(c.from[m.from], m)
	}
	return gone, ok
}

// ofMost is the idlest connection of the address that has most of those that have an idle one.
func (c *crowd) ofMost() (gone *member) {
	most := 0
	for _, list := range c.from {
		if len(list) <= most {
			continue
		}
		if m := idlest(list); m != nil {
			gone, most = m, len(list)
		}
	}
	return gone
}

// idlest is the oldest connection that asks for nothing; nil where all do.
func idlest(list []*member) *member {
	for _, m := range list {
		if !m.busy {
			return m
		}
	}
	return nil
}

// leave forgets a connection, once. The caller holds the lock.
func (c *crowd) leave(m *member) {
	m.once.Do(func() {
		list := c.from[m.from]
		for i := range list {
			if list[i] == m {
				list = append(list[:i:i], list[i+1:]...)
				break
			}
		}
		if c.all--; len(list) == 0 {
			delete(c.from, m.from)
			return
		}
		c.from[m.from] = list
	})
}

// state is told by the server what a connection is doing.
func (c *crowd) state(conn net.Conn, s http.ConnState) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok { // of TLS
		conn = t.NetConn()
	}
	if m, ok := conn.(*member); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		m.busy = s == http.StateActive
	}
}

// Close gives the place back.
func (m *member) Close() error {
	m.of.mu.Lock()
	m.of.leave(m)
	m.of.mu.Unlock()
	return m.Conn.Close()
}

// prefixOf is whom a connection counts for.
func prefixOf(a net.Addr) netip.Prefix {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{} // all that have none share one
	}
	ip, bits := p.Addr().Unmap().WithZone(""), 32
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits) // of a number of bits that it has
	return prefix
}

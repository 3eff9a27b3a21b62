package broker

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spillMax is how much a client that does not read may leave unsent before its connection is closed.
const spillMax = 1 << 20

// wire is what a connection's bytes go over. Write never blocks.
type wire interface {
	net.Conn
	// CloseWrite says that nothing more comes, once what was written has gone out.
	CloseWrite() error
	// fault is why writing has failed.
	fault() error
	// backlog is how many bytes the client has not taken.
	backlog() int
	// whenDrained has f called each time that a backlog is gone; it is set before anything is written.
	whenDrained(f func())
}

var errSlow = errors.New("the client does not read what is sent to it")

// sock is a TCP connection whose Write never blocks, so that one slow client holds up nobody: what the kernel does not
// take at once goes to a bounded buffer, which a goroutine drains for as long as there is something in it. TLS stands on
// top of it, and so cannot be torn in the middle of a record.
type sock struct {
	*net.TCPConn
	raw syscall.RawConn

	mu       sync.Mutex
	spill    []byte
	draining bool // a goroutine writes what was spilled; until it ends, all goes behind that
	unsent   int  // bytes that it has in hand
	err      error
	drained  func()
}

func newSock(c *net.TCPConn) (*sock, error) {
	raw, err := c.SyscallConn()
	return &sock{TCPConn: c, raw: raw, drained: func() {}}, err
}

// Write takes all of b, or fails for good.
func (s *sock) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	sent := 0
	if !s.draining {
		err := s.raw.Write(func(fd uintptr) bool {
			for sent < len(b) {
				n, err := syscall.Write(int(fd), b[sent:])
				if n > 0 {
					sent += n
				}
				switch {
				case err == syscall.EINTR:
				case err == syscall.EAGAIN:
					return true
				case err != nil:
					s.err = os.NewSyscallError("write", err)
					return true
				}
			}
			return true
		})
		if s.err == nil && err != nil {
			s.err = err
		}
		if s.err != nil {
			return sent, s.err
		}
	}
	if sent == len(b) {
		return sent, nil
	}
	if s.unsent+len(s.spill)+len(b)-sent > spillMax {
		s.err = errSlow
		_ = s.TCPConn.Close() // wakes the reader, who says why
		return sent, s.err
	}
	s.spill = append(s.spill, b[sent:]...)
	if !s.draining {
		s.draining = true
		go s.drain()
	}
	return len(b), nil
}

// drain waits for the client to read, and goes when nothing is left.
func (s *sock) drain() {
	for {
		s.mu.Lock()
		b := s.spill
		s.spill, s.unsent = nil, len(b)
		if len(b) == 0 || s.err != nil {
			s.draining = false
			s.mu.Unlock()
			s.drained()
			return
		}
		s.mu.Unlock()
		_, err := s.TCPConn.Write(b)
		s.mu.Lock()
		if err != nil && s.err == nil {
			s.err = err
		}
		s.mu.Unlock()
	}
}

// fault is why writing has failed.
func (s *sock) fault() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *sock) backlog() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unsent + len(s.spill)
}

// extend moves the deadline of reading; writing does not block.
func (s *sock) extend(until time.Time) error { return s.SetReadDeadline(until) }

// hungUp as visiting has it.
func (s *sock) hungUp() (gone bool) {
	_ = s.raw.Control(func(fd uintptr) { // a socket that is closed already is found by reading
		list := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(list, 0)
		gone = err == nil && n > 0 && list[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone
}

func (s *sock) whenDrained(f func()) { s.drained = f }

// source is where a connection's bytes come from. A connection that waits holds no buffer.
type source interface {
	net.Conn
	// await waits for the first bytes of a burst, and gives them in a buffer, which give takes back.
	await() (buf *[]byte, n int, err error)
}

const bufferSize = 16 << 10

var pool = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// plainSource takes a buffer only when the socket has something.
type plainSource struct{ *sock }

func (p plainSource) await() (*[]byte, int, error) {
	var buf *[]byte
	var n int
	var rerr error
	err := p.raw.Read(func(fd uintptr) bool {
		if buf == nil {
			buf = pool.Get().(*[]byte)
		}
		for {
			n, rerr = syscall.Read(int(fd), *buf)
			if rerr != syscall.EINTR {
				break
			}
		}
		if rerr == syscall.EAGAIN {
			pool.Put(buf)
			buf, rerr = nil, nil
			return false
		}
		return true
	})
	if err == nil && rerr != nil {
		err = os.NewSyscallError("read", rerr)
	}
	if err == nil && n <= 0 {
		err = io.EOF
	}
	if err != nil {
		if buf != nil {
			pool.Put(buf)
		}
		return nil, 0, err
	}
	return buf, n, nil
}

// tlsSource waits with a small buffer of its own, since TLS has to decrypt before it knows that there is something; most
// packets fit into it.
type tlsSource struct {
	net.Conn
	first []byte
}

func newTLSSource(c net.Conn) tlsSource { return tlsSource{c, make([]byte, 512)} }

func (t tlsSource) await() (*[]byte, int, error) {
	n, err := t.Conn.Read(t.first)
	if n == 0 {
		return nil, 0, err
	}
	if n < len(t.first) {
		return &t.first, n, nil
	}
	buf := pool.Get().(*[]byte)
	return buf, copy(*buf, t.first), nil
}

// give takes a buffer back that await gave.
func give(buf *[]byte) {
	if len(*buf) == bufferSize {
		pool.Put(buf)
	}
}

// timedOut says whether an error is a deadline that passed.
func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// noDeadline takes a deadline back.
var noDeadline time.Time

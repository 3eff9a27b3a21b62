package broker

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// serving counts the goroutines that serve connections, by what stands on their stacks.
func serving() int {
	all := stacks()
	return strings.Count(all, "broker.(*conn).read(") + strings.Count(all, "broker.(*sock).drain(")
}

// stacks are those of all goroutines.
func stacks() string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			return string(buf[:n])
		}
		buf = make([]byte, 2*len(buf))
	}
}

func TestIdleConnectionsCostOneGoroutineEachAndLeaveNothing(t *testing.T) {
	const n = 2000
	r := newRig(t, nil)
	before := runtime.NumGoroutine()
	conns := make([]net.Conn, n)
	for i := range conns {
		p := r.join(fmt.Sprintf("idle-%d", i), packet.V311)
		conns[i] = p.Conn
	}
	for late := time.After(45 * time.Second); serving() != n; { // the goroutine that let a client in hands over to another one
		select {
		case <-late:
			t.Fatalf("%d connections are served by %d goroutines", n, serving())
		default:
			runtime.Gosched()
		}
	}
	if got := serving(); got != n {
		t.Errorf("%d connections are served by %d goroutines", n, got)
	}
	if more := runtime.NumGoroutine() - before; more > n+20 { // a few of the host's own come and go
		t.Errorf("%d connections brought %d goroutines", n, more)
	}
	for _, c := range conns {
		c.Close()
	}
	late := time.After(45 * time.Second)
	for serving() > 0 {
		select {
		case <-late:
			t.Fatalf("%d goroutines serve connections that their clients have closed", serving())
		default:
			runtime.Gosched()
		}
	}
	r.stop() // returns when every connection's goroutine has gone
	if got := serving(); got != 0 {
		t.Errorf("%d goroutines are left", got)
	}
	if more := runtime.NumGoroutine() - before; more > 20 {
		t.Errorf("%d goroutines are left over", more)
	}
}

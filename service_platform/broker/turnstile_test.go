package broker

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/crypto/bcrypt"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

func TestTurnstileLetsTheOldestInFirstAndBoundsItsLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTurnstile(3, time.Minute)
		now := time.Now()
		for range g.free {
			if waited, err := g.enter(now, false, nil); waited != 0 || err != nil {
				t.Fatal(waited, err)
			}
		}
		in := make(chan int, 3)
		for _, age := range []int{1, 3, 2} {
			go func() {
				if waited, err := g.enter(now.Add(-time.Duration(age)*time.Hour), false, nil); err != nil || waited != time.Second {
					t.Errorf("it waited %s: %v", waited, err)
				}
				in <- age
			}()
			synctest.Wait()
		}
		if _, err := g.enter(now, false, nil); message.ReasonOf(err, 0) != message.ConnectionLimit || !strings.Contains(err.Error(), "connects_waiting_max") {
			t.Errorf("beyond the line's limit: %v", err)
		}
		cut := make(chan struct{})
		close(cut)
		if _, err := g.enter(now, true, cut); !errors.Is(err, errEnded) {
			t.Errorf("one that was ended: %v", err)
		}
		<-time.After(time.Second) // of the bubble
		for _, want := range []int{3, 2, 1} {
			g.leave()
			if got := <-in; got != want {
				t.Errorf("the one of %d hours was let in; want %d", got, want)
			}
		}
		began := time.Now()
		if _, err := g.enter(now, false, nil); message.ReasonOf(err, 0) != message.ConnectionLimit || time.Since(began) != time.Minute {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		if g.waiting() != 0 {
			t.Errorf("%d stand in line", g.waiting())
		}
		g.leave()
		if waited, err := g.enter(now, false, nil); waited != 0 || err != nil {
			t.Errorf("a place that was given back: %s, %v", waited, err)
		}
	})
}

// fill takes all places, until the test gives them back.
func (r *rig) fill() (leave func()) {
	r.t.Helper()
	n := 0
	for ; r.b.gate.free > 0; n++ {
		if _, err := r.b.gate.enter(time.Now(), true, nil); err != nil {
			r.t.Fatal(err)
		}
	}
	return func() {
		for range n {
			r.b.gate.leave()
		}
	}
}

// secure dials as a device with a certificate of that name.
func (r *rig) secure(conf *tls.Config) (*peer, error) {
	c, err := tls.Dial("tcp", r.tls, conf)
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { c.Close() })
	return &peer{t: r.t, Conn: c, r: bufio.NewReader(c)}, nil
}

// inLine waits until so many stand in line.
func (r *rig) inLine(n int) {
	r.t.Helper()
	for late := time.After(45 * time.Second); r.b.gate.waiting() != n; runtime.Gosched() {
		select {
		case <-late:
			r.t.Fatalf("%d stand in line; want %d", r.b.gate.waiting(), n)
		default:
		}
	}
}

func TestTimeInLineIsNotTheClients(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ConnectTimeout = "1s" })
	leave := r.fill()
	const clients = 6
	var group errorGroup
	for i := range clients {
		conf := r.tlsOf(fmt.Sprint("d-", i))
		group.run(func() error {
			p, err := r.secure(conf)
			if err != nil {
				return err
			}
			hello := packet.Connect{Version: packet.V5, CleanStart: true, ClientID: fmt.Sprint("d-", i)}
			if _, err := p.Write(hello.Append(nil)); err != nil {
				return err
			}
			if h, body, err := p.try(45 * time.Second); err != nil || h.Type != packet.CONNACK || body[1] != 0 {
				return fmt.Errorf("answered with %s %x (%v)", h.Type, body, err)
			}
			return nil
		})
	}
	r.inLine(clients)
	<-time.After(1500 * time.Millisecond) // as long as the turn takes: more than a client has for itself
	leave()
	group.wait(t)
}

func TestSlowBytesKeepNobodyOut(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ConnectTimeout = "1m" })
	hello := make([]byte, 5, 70)
	copy(hello, []byte{22, 3, 1, 0, 200}) // a record that does not end
	for range 4*runtime.GOMAXPROCS(0) + 4 {
		c, err := net.Dial("tcp", r.tls)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(hello[:60]); err != nil {
			t.Fatal(err)
		}
		half, err := net.Dial("tcp", r.tls) // says its hello, and then nothing
		if err != nil {
			t.Fatal(err)
		}
		defer half.Close()
		conf := r.tlsOf("d-half")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = tls.Client(mute{half}, conf).HandshakeContext(ctx) }()
	}
	p, err := r.secure(r.tlsOf("d-1"))
	if err != nil {
		t.Fatal(err)
	}
	if a := p.connect(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1"}); a.Code != 0 {
		t.Errorf("answered with %s", a.Code)
	}
}

// mute never hears its peer.
type mute struct{ net.Conn }

func (m mute) Read([]byte) (int, error) {
	_, _ = io.Copy(io.Discard, m.Conn)
	return 0, io.EOF
}

func TestWhoWentWhileHeWaitedCostsNoHandshake(t *testing.T) {
	r := newRig(t, nil)
	leave := r.fill()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	conf := r.tlsOf("d-1")
	go func() {
		_, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", r.tls)
		done <- err
	}()
	r.inLine(1)
	cancel()
	if err := <-done; err == nil {
		t.Fatal("it was let in without a place")
	}
	leave()
	if got := r.refused(message.HandshakeFailed); got.Detail != errHungUp.Error() {
		t.Errorf("refused for %q", got.Detail)
	}
}

func TestBrokerStopsWithClientsInLine(t *testing.T) {
	r := newRig(t, nil)
	r.fill()
	c, err := net.Dial("tcp", r.tls)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conf := r.tlsOf("d-1")
	go func() { _ = tls.Client(c, conf).HandshakeContext(t.Context()) }()
	r.inLine(1)
	began := time.Now()
	r.stop()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
}

func TestPasswordsWaitTheirTurnAndKnownOnesDoNot(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users")
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(users, []byte("ann:"+string(hash)), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, addr := open(t, func(l *Listener) { l.Auth, l.UsersFile = "password", users })
	r := newRig(t, conf)
	login := func(id, password string) packet.Connect {
		c := keeping(id, true, 0)
		c.HasUserName, c.UserName, c.HasPassword, c.Password = true, "ann", true, []byte(password)
		return c
	}
	if a := r.dial(addr).connect(login("a", "secret")); a.Code != 0 {
		t.Fatalf("answered with %s", a.Code)
	}
	leave := r.fill()
	if a := r.dial(addr).connect(login("b", "secret")); a.Code != 0 {
		t.Errorf("a known password is answered with %s", a.Code)
	}
	wrong := r.dial(addr)
	wrong.hello(login("c", "wrong"))
	r.inLine(1)
	leave()
	if h, body := wrong.next(); h.Type != packet.CONNACK || packet.ReasonCode(body[1]) != packet.BadUserNameOrPassword {
		t.Errorf("%s %x", h.Type, body)
	}
}

func TestConnectRateGivesEachItsMoment(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ConnectRate, c.ConnectWait = 4, "2s" })
	began := time.Now()
	for i := range 8 {
		r.join(fmt.Sprint("d-", i), packet.V5)
	}
	if d := time.Since(began); d < 900*time.Millisecond {
		t.Errorf("eight came in within %s, at four a second and four at once", d)
	}
	for range 16 { // more than there are moments in two seconds
		r.raw()
	}
	if got := r.refused(message.ConnectionLimit); !strings.Contains(got.Detail, "connect_rate") {
		t.Errorf("refused for %q", got.Detail)
	}
}

func TestReconnectingResumesTheTLSSessionAndIsAdmittedAnew(t *testing.T) {
	r := newRig(t, nil)
	conf := r.tlsOf("d-1")
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i, want := range []bool{false, true, true} {
		p, err := r.secure(conf)
		if err != nil {
			t.Fatal(err)
		}
		if a := p.connect(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1"}); a.Code != 0 {
			t.Fatalf("connection %d is answered with %s", i, a.Code)
		}
		if got := p.Conn.(*tls.Conn).ConnectionState().DidResume; got != want {
			t.Errorf("connection %d is resumed: %t", i, got)
		}
		p.Close()
	}
	r.gate.refuse = message.Rejectf(message.CertRevoked, "revoked")
	p, err := r.secure(conf)
	if err != nil {
		t.Fatal(err)
	}
	if a := p.connect(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "d-1"}); a.Code != packet.NotAuthorized {
		t.Errorf("a ticket of a certificate that was revoked since is answered with %s", a.Code)
	}
}

func TestWebSocketsResumeTheirTLSSession(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Protocol, l.Auth = "wss", "none" })
	r := newRig(t, conf)
	with := r.tlsOf("w")
	with.Certificates, with.ClientSessionCache = nil, tls.NewLRUClientSessionCache(1)
	resumed := false
	with.VerifyConnection = func(s tls.ConnectionState) error { resumed = s.DidResume; return nil }
	for i, want := range []bool{false, true} {
		ws, _, err := websocket.Dial(t.Context(), "wss://"+addr+"/mqtt", &websocket.DialOptions{Subprotocols: []string{"mqtt"},
			HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: with}}})
		if err != nil {
			t.Fatal(err)
		}
		c := websocket.NetConn(t.Context(), ws, websocket.MessageBinary)
		p := &peer{t: t, Conn: c, r: bufio.NewReader(c)}
		if a := p.connect(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: "w"}); a.Code != 0 {
			t.Fatalf("connection %d is answered with %s", i, a.Code)
		}
		if shown := r.connections(""); len(shown) != 1 || !shown[0].TLS {
			t.Errorf("shown as %+v, and it is inside TLS without a certificate of its own", shown)
		}
		if resumed != want {
			t.Errorf("connection %d is resumed: %t", i, resumed)
		}
		p.Close()
		for late := time.After(45 * time.Second); len(r.connections("")) > 0; runtime.Gosched() {
			select {
			case <-late:
				t.Fatal("it is not seen to have gone")
			default:
			}
		}
	}
}

func TestCallersOfHTTPAreBoundedAndCounted(t *testing.T) {
	conf, addr := open(t, func(l *Listener) { l.Protocol = "ws" })
	r := newRig(t, func(c *Config) { conf(c); c.MaxConnections, c.ConnectTimeout = 2, "2s" })
	ask := func(request string) *peer {
		p := r.dial(addr)
		p.write([]byte(request))
		return p
	}
	// Who asks for anything else has his answer, and is closed.
	if got := string(ask("GET /else HTTP/1.1\r\nHost: x\r\n\r\n").ended()); !strings.HasPrefix(got, "HTTP/1.1 404") || !strings.Contains(got, "Connection: close") {
		t.Errorf("answered with %q", got)
	}
	// Who says nothing, or the half of it, is too.
	for _, half := range []string{"", "GET /mqtt HTT", "POST /else HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf"} {
		ask(half).ended()
	}
	free := func(n int) { // it takes a moment until those before are seen to be gone
		for late := time.After(45 * time.Second); ; runtime.Gosched() {
			r.b.mu.Lock()
			have := len(r.b.all) + len(r.b.callers)
			r.b.mu.Unlock()
			if have == n {
				return
			}
			select {
			case <-late:
				t.Fatalf("%d connections are counted; want %d", have, n)
			default:
			}
		}
	}
	free(0)
	ask("GET")
	ask("GET")
	free(2)
	if b := ask("").ended(); len(b) > 0 {
		t.Errorf("beyond two that have not said what they want, a third was answered with %q", b)
	}
	r.refused(message.ConnectionLimit)
	free(0)
	r.join("d-1", packet.V5)
	ws, _, err := websocket.Dial(t.Context(), "ws://"+addr+"/mqtt", &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	free(2) // the WebSocket once
	if b := ask("GET /mqtt HTTP/1.1\r\nHost: x\r\n\r\n").ended(); len(b) > 0 {
		t.Errorf("one too many was answered with %q", b)
	}
	if got := r.refused(message.ConnectionLimit); !strings.Contains(got.Detail, "max_connections") {
		t.Errorf("refused for %q", got.Detail)
	}
}

// errorGroup runs functions, and tells their errors.
type errorGroup struct{ all []chan error }

func (g *errorGroup) run(f func() error) {
	c := make(chan error, 1)
	g.all = append(g.all, c)
	go func() { c <- f() }()
}

func (g *errorGroup) wait(t *testing.T) {
	t.Helper()
	for i, c := range g.all {
		if err := <-c; err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
}

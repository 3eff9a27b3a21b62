package x509

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/message"
)

// ESTConfig is the listener of EST.
type ESTConfig struct {
	// Listen is its address, such as 0.0.0.0:8443; none where empty.
	Listen string `json:"listen"`
}

// estAtOnce is how many connections EST has at once: those that come then wait in the kernel's queue, so that nobody takes the
// descriptors away from the devices' listeners. Enrolling is done once in a while, and each connection lasts for estPatience.
const estAtOnce = 512

// estPatience bounds every phase of a request: a handshake, a header, a body, an answer.
const estPatience = 15 * time.Second

// serveEST listens until stop is called. TLS is the server's own certificate, and asks for a client's without wanting
// one: a device that enrols has none yet.
func (s *service) serveEST(ctx context.Context, o *opened) (stop func(), err error) {
	dir, err := s.env.Dir()
	if err != nil {
		return nil, err
	}
	door := NewAdmission(s.env.Bus, AdmissionOptions{Now: s.env.Now, Log: s.env.Log, Node: s.env.Node + "-est",
		ServerCert: filepath.Join(dir, serverName+".crt"), ServerKey: filepath.Join(dir, serverName+".key")})
	conf, err := door.ServerTLS()
	if err != nil {
		return nil, err
	}
	conf.ClientAuth, conf.NextProtos = tls.RequestClientCert, []string{"http/1.1"}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.config.EST.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for EST: %w; another address: components.%s.est.listen", err, Name)
	}
	ctx, cancel := context.WithCancel(ctx)
	server := &http.Server{
		Handler: (&est{s, o, door}).handler(), ReadHeaderTimeout: estPatience, ReadTimeout: estPatience, WriteTimeout: estPatience,
		IdleTimeout: estPatience, MaxHeaderBytes: 16 << 10, ErrorLog: log.New(handshakes{door}, "", 0),
	}
	var all sync.WaitGroup
	ready := make(chan struct{})
	all.Go(func() { _ = door.Run(ctx, func() { close(ready) }) }) // ends with ctx, without an error
	select {
	case <-ready:
	case <-ctx.Done():
	}
	o.estAddr, o.estDoor = l.Addr().String(), door
	all.Go(func() {
		if err := server.Serve(tls.NewListener(few(l, estAtOnce), conf)); !errors.Is(err, http.ErrServerClosed) {
			s.env.Log.Error("EST is not served any more", "address", l.Addr().String(), "error", err)
		}
	})
	s.env.Log.Info("EST is served", "address", l.Addr().String())
	return func() {
		last, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer done()
		if server.Shutdown(last) != nil {
			_ = server.Close() // what is under way after a second
		}
		cancel()
		all.Wait()
	}, nil
}

// handshakes records what net/http has only a log line for.
type handshakes struct{ door *Admission }

func (h handshakes) Write(line []byte) (int, error) {
	if rest, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "http: TLS handshake error from "); ok {
		address, why, _ := strings.Cut(rest, ": ")
		h.door.Refused(Client{Address: address, Door: DoorEST}, "handshake", message.Rejectf(message.HandshakeFailed, "%s", why))
	}
	return len(line), nil
}

// few has a listener take so many connections at once, and the next when one of them is closed.
func few(l net.Listener, most int) net.Listener {
	return &fewAtOnce{Listener: l, places: make(chan struct{}, most), closed: make(chan struct{})}
}

type fewAtOnce struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	once   sync.Once
}

// Accept waits for a place, then for a connection.
func (f *fewAtOnce) Accept() (net.Conn, error) {
	select {
	case f.places <- struct{}{}:
	case <-f.closed:
		return nil, net.ErrClosed
	}
	c, err := f.Listener.Accept()
	if err != nil {
		<-f.places
		return nil, err
	}
	return &placed{Conn: c, leave: sync.OnceFunc(func() { <-f.places })}, nil
}

// Close ends those that wait, too.
func (f *fewAtOnce) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.Listener.Close()
}

type placed struct {
	net.Conn
	leave func()
}

// Close gives the place back.
func (p *placed) Close() error {
	defer p.leave()
	return p.Conn.Close()
}

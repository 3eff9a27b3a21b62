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

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/message"
)

// ESTConfig is the listener of EST.
type ESTConfig struct {
	// Listen is its address, such as 0.0.0.0:8443; none where empty.
	Listen string `json:"listen"`
}

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
		ServerCert: filepath.Join(dir, authority.ServerName+".crt"), ServerKey: filepath.Join(dir, authority.ServerName+".key")})
	conf, err := door.ServerTLS()
	if err != nil {
		return nil, err
	}
	conf.ClientAuth, conf.NextProtos = tls.RequestClientCert, []string{"http/1.1"}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.config.EST.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for EST: %w; another address: `est.listen` of %s in the configuration", err, Name)
	}
	ctx, cancel := context.WithCancel(ctx)
	crowd := newCrowd(l, estAtOnce, estOfOne)
	server := &http.Server{
		ConnState: crowd.state,
		Handler:   (&est{s, o, door}).handler(), ReadHeaderTimeout: estPatience, ReadTimeout: estPatience,
		WriteTimeout: 2 * estPatience, // from the end of the header: whoever is too slow with his body is told so
		IdleTimeout:  estPatience, MaxHeaderBytes: 16 << 10, ErrorLog: log.New(handshakes{door}, "", 0),
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
		if err := server.Serve(tls.NewListener(crowd, conf)); !errors.Is(err, http.ErrServerClosed) {
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
		if strings.HasSuffix(why, net.ErrClosed.Error()) {
			why = "it asked for nothing while others from its address waited for a place, and was closed"
		}
		h.door.Refused(Client{Address: address, Door: DoorEST}, "handshake", message.Rejectf(message.HandshakeFailed, "%s", why))
	}
	return len(line), nil
}

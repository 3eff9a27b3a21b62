package x509

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

const (
	// reloadEvery is how often a handshake looks whether the server certificate's files have changed.
	reloadEvery = 10 * time.Second
	// serverPatience is how long ServerTLS waits for the files: the CA of the same process may be making them.
	serverPatience = 10 * time.Second
)

// ServerTLS is the configuration of a listener for devices: TLS 1.2 or newer, a certificate that is read anew when its
// files change, and a client certificate wanted of everyone. That certificate is not checked by the handshake but by
// Admit, which the listener must call with it (also for a resumed session): so a refusal has its reason instead of a
// TLS alert. For the same reason no list of acceptable CAs is sent (ClientCAs is nil): a client that finds its CA not
// among them sends no certificate at all, and nobody learns whose it was.
//
// It waits for the certificate while the CA of this process makes it, and is an error where that is not there ten
// seconds later.
func (a *Admission) ServerTLS() (*tls.Config, error) {
	if a.o.ServerCert == "" || a.o.ServerKey == "" {
		return nil, fmt.Errorf("no server certificate: run service_platform.x509 in this process, or set server_cert and server_key")
	}
	if err := a.awaitServerCert(); err != nil {
		return nil, fmt.Errorf("%w; run service_platform.x509 in this process, or set server_cert and server_key", err)
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		ClientAuth:     tls.RequireAnyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.server.get() },
	}, nil
}

// awaitServerCert waits until the files are there: a CA publishes what it trusts once it has written them, and that is
// heard.
func (a *Admission) awaitServerCert() error {
	patience := time.NewTimer(serverPatience)
	defer patience.Stop()
	for {
		a.mu.RLock()
		published := a.published
		a.mu.RUnlock()
		_, err := a.server.get()
		if err == nil {
			return nil
		}
		select {
		case <-published:
		case <-patience.C:
			return err
		}
	}
}

// serverCert is a key pair in two files that another may replace at any time. A pair that cannot be read, or is half
// replaced, leaves the one before in use.
type serverCert struct {
	cert, key string
	now       func() time.Time
	log       *slog.Logger

	mu     sync.Mutex
	pair   *tls.Certificate
	seen   [2]stampOf // the files as they were when pair was read
	looked time.Time
}

type stampOf struct {
	mod  time.Time
	size int64
}

func (s *serverCert) get() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.pair != nil && now.Sub(s.looked) < reloadEvery && !now.Before(s.looked) {
		return s.pair, nil
	}
	s.looked = now
	seen, err := s.stat()
	if err == nil && (s.pair == nil || seen != s.seen) {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(s.cert, s.key); err == nil {
			s.pair, s.seen = &pair, seen
		}
	}
	switch {
	case err == nil:
	case s.pair == nil:
		return nil, fmt.Errorf("server certificate: %w", err)
	default:
		s.log.Warn("server certificate cannot be read again; the one before stays in use",
			"file", s.cert, "not_after", s.pair.Leaf.NotAfter, "error", err)
	}
	return s.pair, nil
}

func (s *serverCert) stat() (seen [2]stampOf, err error) {
	for i, path := range []string{s.cert, s.key} {
		f, err := os.Stat(path)
		if err != nil {
			return seen, err
		}
		seen[i] = stampOf{f.ModTime(), f.Size()}
	}
	return seen, nil
}

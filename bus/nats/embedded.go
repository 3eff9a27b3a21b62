package nats

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/sys/unix"

	"github.com/naru-platform/naru/bus"
)

const (
	spaceEvery   = 250 * time.Millisecond
	lowWaterMin  = 256 << 20
	restartAfter = 2 * time.Second // of a server that switched its store off, once there is space
)

// startEmbedded starts a server on the store, with every write synced before it is confirmed.
func (b *Bus) startEmbedded() error {
	o := &server.Options{
		ServerName: "naru", DontListen: true, NoSigs: true, NoLog: true, JetStream: true, StoreDir: b.o.Dir,
		SyncAlways: true, MaxPayload: payloadMax, MaxPending: 256 << 20, DisableJetStreamBanner: true,
		JetStreamMaxMemory: 1 << 30, JetStreamMaxStore: 1 << 62, // the disk is the limit, and watchSpace watches it
	}
	if b.o.User != "" {
		o.Username, o.Password = b.o.User, b.o.Password
	}
	if b.o.Listen != "" {
		if b.o.TLS == nil || b.o.User == "" || b.o.Password == "" {
			return fmt.Errorf("bus: listening on %s wants TLS, a user and a password", b.o.Listen)
		}
		host, port, err := net.SplitHostPort(b.o.Listen)
		if err != nil {
			return fmt.Errorf("bus: listen address %q: %w", b.o.Listen, err)
		}
		o.DontListen, o.Host, o.TLSConfig, o.TLSTimeout = false, host, b.o.TLS, 5
		if o.Port, err = strconv.Atoi(port); err != nil {
			return fmt.Errorf("bus: listen address %q: %w", b.o.Listen, err)
		}
		if o.Port == 0 {
			o.Port = server.RANDOM_PORT
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return fmt.Errorf("bus: start the embedded server: %w", err)
	}
	s.SetLoggerV2(serverLog{b.log}, false, false, false)
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		s.Shutdown()
		return errors.New("bus: the embedded server did not start within 30 s")
	}
	if !s.JetStreamEnabled() {
		s.Shutdown()
		return fmt.Errorf("bus: the embedded server cannot use its store %s; see the log", b.o.Dir)
	}
	b.embedded.Store(s)
	return nil
}

// inProcess gives the client a connection to whichever server is embedded at the time.
type inProcess struct{ b *Bus }

// InProcessConn is what the client calls to connect, and to connect again.
func (p inProcess) InProcessConn() (net.Conn, error) {
	s := p.b.embedded.Load()
	if s == nil {
		return nil, errors.New("the embedded server is being started again")
	}
	return s.InProcessConn()
}

// watchSpace measures what is left on the disk, and starts an embedded server again that has switched its store off,
// as it does when the disk is full.
func (b *Bus) watchSpace() {
	if b.o.URL != "" {
		return // an external server watches its own disk, and refuses
	}
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	var off time.Time
	for {
		b.measureSpace()
		s := b.embedded.Load()
		switch {
		case s == nil || s.JetStreamEnabled() && !b.storeBroken(s):
			off = time.Time{}
		case off.IsZero():
			off = b.now()
			b.down("the embedded server has switched its store off, most likely because the disk was full")
		case !b.space.Load().Shut && b.now().Sub(off) > restartAfter:
			b.restart(s)
			off = time.Time{}
		}
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (b *Bus) storeBroken(s *server.Server) bool {
	h := s.Healthz(&server.HealthzOptions{JSEnabledOnly: true})
	return h != nil && h.StatusCode != 200
}

func (b *Bus) restart(old *server.Server) {
	b.log.Warn("starting the embedded server again")
	b.embedded.Store(nil)
	old.Shutdown()
	old.WaitForShutdown()
	if b.ctx.Err() != nil {
		return
	}
	if err := b.startEmbedded(); err != nil {
		b.down(err.Error())
		b.embedded.Store(old) // is tried again at the next look
		return
	}
	b.restarts.Add(1)
}

// measureSpace opens and shuts the doors.
func (b *Bus) measureSpace() {
	var fs unix.Statfs_t
	if err := unix.Statfs(b.o.Dir, &fs); err != nil {
		b.log.Warn("measure the disk", "error", err)
		return
	}
	unit := uint64(fs.Bsize)
	s := bus.Space{Free: fs.Bavail * unit, Total: fs.Blocks * unit, Low: b.o.LowWater}
	if s.Low == 0 {
		s.Low = min(max(s.Total/20, lowWaterMin), s.Total/4)
	}
	was := b.space.Load().Shut
	s.Shut = s.Free < s.Low || was && s.Free < s.Low+s.Low/10 // a tenth more to open again, so that doors don't flap
	b.space.Store(&s)
	if s.Shut != was {
		b.log.Warn("doors", "shut", s.Shut, "free_bytes", s.Free, "low_water_bytes", s.Low)
	}
}

// serverLog passes the server's warnings and errors on.
type serverLog struct{ log *slog.Logger }

// The methods of the server's Logger interface.
func (l serverLog) Noticef(string, ...any) {}
func (l serverLog) Debugf(string, ...any)  {}
func (l serverLog) Tracef(string, ...any)  {}
func (l serverLog) Warnf(f string, v ...any) {
	if strings.Contains(f, "sync_interval") || strings.Contains(f, "Filestore") && strings.Contains(f, "Stream state") {
		return // said at every start
	}
	l.log.Warn("nats: " + fmt.Sprintf(f, v...))
}
func (l serverLog) Errorf(f string, v ...any) { l.log.Error("nats: " + fmt.Sprintf(f, v...)) }
func (l serverLog) Fatalf(f string, v ...any) { l.log.Error("nats: " + fmt.Sprintf(f, v...)) }

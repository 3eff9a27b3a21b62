package nats

import (
	"context"
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
	lowWaterMin = 256 << 20
	lowWaterMax = 2 << 30
	memoryMax   = 1 << 30 // of volatile tables and leases
	startWait   = 30 * time.Second

	accountEvery = 5 * time.Second // an external server's limits are asked for
)

// startEmbedded starts a server on the store, with every write synced before it is confirmed.
func (b *Bus) startEmbedded() error {
	o := &server.Options{
		ServerName: "naru", DontListen: true, NoSigs: true, NoLog: true, JetStream: true, StoreDir: b.o.Dir,
		SyncAlways: true, MaxPayload: payloadMax, MaxPending: maxPending, DisableJetStreamBanner: true,
		JetStreamMaxMemory: memoryMax, JetStreamMaxStore: 1 << 62, // the disk is the limit, and watchSpace watches it
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
	damages, err := mend(b.o.Dir)
	for _, d := range damages {
		b.log.Error("a file of the store is broken in its middle; what cannot be read was taken out, all behind it is kept", "file", d.file, "offset", d.offset,
			"bytes_lost", d.cut, "records_behind", d.behind, "as_it_was", d.keptAs)
	}
	if err != nil {
		return fmt.Errorf("bus: %w", err)
	}
	s, err := server.NewServer(o)
	if err != nil {
		return fmt.Errorf("bus: start the embedded server: %w", err)
	}
	s.SetLoggerV2(serverLog{b.log}, false, false, false)
	s.Start()
	if !s.ReadyForConnections(startWait) {
		s.Shutdown()
		return errors.New("bus: the embedded server did not start within 30 s; see the log")
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

// restart starts a server again whose store is off, on the same store. Appends that wait go on by themselves.
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

// measureDisk is what is left on the store's file system; an external server is asked.
func (b *Bus) measureDisk() (bus.Space, error) {
	if b.o.URL != "" {
		return b.measureAccount()
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(b.o.Dir, &fs); err != nil {
		return bus.Space{}, fmt.Errorf("%s: %w", b.o.Dir, err)
	}
	unit := uint64(fs.Bsize) //nolint:unconvert // its type is the platform's
	return b.judge(fs.Bavail*unit, fs.Blocks*unit), nil
}

// measureAccount is what the account's limit leaves, where there is one. Asked only now and then: it is a request.
func (b *Bus) measureAccount() (bus.Space, error) {
	was := *b.space.Load()
	if b.link.Load() == nil || b.now().Before(b.askAgain) {
		return was, nil
	}
	b.askAgain = b.now().Add(accountEvery)
	ctx, cancel := context.WithTimeout(b.ctx, probeWait)
	defer cancel()
	info, err := b.js().AccountInfo(ctx)
	if err != nil {
		return was, nil // away; Status says so
	}
	limit, used := info.Limits.MaxStore, info.Store
	if limit <= 0 {
		return bus.Space{}, nil // without a limit there is nothing to tell
	}
	return b.judge(uint64(limit)-min(used, uint64(limit)), uint64(limit)), nil
}

// judge says whether so much is enough.
func (b *Bus) judge(free, total uint64) bus.Space {
	s := bus.Space{Free: free, Total: total, Low: b.o.LowWater}
	if s.Low == 0 {
		s.Low = min(max(s.Total/20, lowWaterMin), lowWaterMax, s.Total/4)
	}
	// A tenth more to open again, so that doors don't flap.
	s.Shut = s.Free < s.Low || b.space.Load().Shut && s.Free < s.Low+s.Low/10
	return s
}

// serverLog passes the server's warnings and errors on.
type serverLog struct{ log *slog.Logger }

// The methods of the server's Logger interface.
func (l serverLog) Noticef(string, ...any) {}
func (l serverLog) Debugf(string, ...any)  {}
func (l serverLog) Tracef(string, ...any)  {}
func (l serverLog) Warnf(f string, v ...any) {
	if strings.Contains(f, "sync_interval") || strings.Contains(f, "Filestore") && (strings.Contains(f, "Stream state") || strings.Contains(f, "TTL state is outdated")) {
		return // said at every start, or at every one after a kill: it reads what it did not write down
	}
	text := fmt.Sprintf(f, v...)
	if strings.Contains(text, "stream state from index errored: prior state") {
		return // so, too: its index is from before the kill
	}
	l.log.Warn("nats: " + text)
}
func (l serverLog) Errorf(f string, v ...any) { l.log.Error("nats: " + fmt.Sprintf(f, v...)) }
func (l serverLog) Fatalf(f string, v ...any) { l.log.Error("nats: " + fmt.Sprintf(f, v...)) }

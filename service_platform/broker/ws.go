package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// listenWeb serves MQTT over WebSocket (MQTT 5 §6): at /mqtt, subprotocol mqtt, binary frames. A connection is for one
// request: whoever asks for anything else has his answer and goes.
func (b *Broker) listenWeb(l net.Listener, e *entrance, tc *tls.Config) (stop func()) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /mqtt", func(w http.ResponseWriter, r *http.Request) { b.serveWeb(w, r, e) })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: b.timeout, ReadTimeout: b.timeout, WriteTimeout: b.timeout, IdleTimeout: b.timeout,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(b.env.Log.Handler(), slog.LevelDebug), ConnContext: withCaller}
	server.SetKeepAlivesEnabled(false)
	if tc != nil {
		tc = tc.Clone()
		tc.NextProtos = []string{"http/1.1"}
	}
	door := &webDoor{Listener: l, b: b, tc: tc, in: make(chan net.Conn), shut: make(chan struct{})}
	b.group.Go(door.take)
	b.group.Go(func() {
		if err := server.Serve(door); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			b.env.Log.Error("serve WebSocket", "listener", e.Name, "error", err)
		}
	})
	return func() { _ = door.Close(); _ = server.Close() } // upgraded connections are ended by goodbye
}

func (b *Broker) serveWeb(w http.ResponseWriter, r *http.Request, e *entrance) {
	from := r.Context().Value(callerKey{}).(*caller)
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}, CompressionMode: websocket.CompressionDisabled,
		InsecureSkipVerify: true}) // browsers' origins are not what admits a client: its certificate or password is
	if err != nil {
		return // it has been answered
	}
	if ws.Subprotocol() != "mqtt" {
		_ = ws.Close(websocket.StatusPolicyViolation, "the subprotocol mqtt is wanted")
		return
	}
	ws.SetReadLimit(int64(b.conf.MaxMessageBytes) + headroom)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	link := newWebWire(websocket.NetConn(ctx, ws, websocket.MessageBinary))
	c := b.take(link, e, r.RemoteAddr, from)
	if c == nil {
		_ = ws.Close(websocket.StatusTryAgainLater, "too many connections")
		b.full(r.RemoteAddr)
		return
	}
	defer b.group.Done()
	if c.web = r.TLS; c.web == nil {
		c.web = new(tls.ConnectionState)
	}
	c.serve(nil)
}

// webWire is a WebSocket whose Write never blocks.
type webWire struct {
	net.Conn

	mu      sync.Mutex
	spill   []byte
	unsent  int
	writing bool
	closing bool
	err     error
	drained func()
}

func newWebWire(c net.Conn) *webWire { return &webWire{Conn: c, drained: func() {}} }

// Write takes all of b, or fails for good.
func (w *webWire) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.err != nil:
		return 0, w.err
	case w.closing:
		return 0, net.ErrClosed
	case w.unsent+len(w.spill)+len(b) > spillMax:
		w.err = errSlow
		_ = w.Conn.Close() // wakes the reader, who says why
		return 0, w.err
	}
	w.spill = append(w.spill, b...)
	if !w.writing {
		w.writing = true
		go w.flush()
	}
	return len(b), nil
}

func (w *webWire) flush() {
	for {
		w.mu.Lock()
		b := w.spill
		w.spill, w.unsent = nil, len(b)
		if len(b) == 0 || w.err != nil {
			w.writing = false
			closing := w.closing
			w.mu.Unlock()
			if closing {
				_ = w.Conn.Close()
			}
			w.drained()
			return
		}
		w.mu.Unlock()
		_ = w.Conn.SetWriteDeadline(time.Now().Add(packetTimeout))
		if _, err := w.Conn.Write(b); err != nil {
			w.mu.Lock()
			w.err = err
			w.mu.Unlock()
		}
	}
}

// CloseWrite closes when what was written has gone out.
func (w *webWire) CloseWrite() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closing = true
	if !w.writing {
		w.writing = true
		go w.flush()
	}
	return nil
}

func (w *webWire) fault() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *webWire) backlog() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unsent + len(w.spill)
}

func (w *webWire) whenDrained(f func()) { w.drained = f }

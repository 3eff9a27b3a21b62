package sdk

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// platform is the other end of a client's connections: each one it accepts is a script's to play.
type platform struct {
	*testing.T
	dialled   chan net.Conn
	keepAlive time.Duration
}

func newPlatform(t *testing.T) *platform { return &platform{T: t, dialled: make(chan net.Conn)} }

func (p *platform) dial(ctx context.Context) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.dialled <- there:
		return here, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *platform) options() Options {
	return Options{Server: "naru:8883", Device: "d-17", Dial: p.dial, KeepAlive: p.keepAlive}
}

// line is one connection, seen from the platform.
type line struct {
	*testing.T
	conn net.Conn
	came chan []byte // closed when the connection ended; read at once, as a kernel would, so that no write waits
	buf  []byte
	said []packet.Publish // they came before an acknowledgement that was waited for
}

// accept takes the next connection and lets it in.
func (p *platform) accept() *line {
	p.Helper()
	l := &line{T: p.T, conn: <-p.dialled, came: make(chan []byte, 1024)}
	go func() {
		defer close(l.came)
		for {
			chunk := make([]byte, 4096)
			n, err := l.conn.Read(chunk)
			if err != nil {
				return
			}
			l.came <- chunk[:n]
		}
	}()
	h, body := l.next()
	var c packet.Connect
	if err := c.Decode(h, body); err != nil || c.ClientID != "d-17" || c.CleanStart {
		p.Errorf("CONNECT of %q, clean start %v: %v", c.ClientID, c.CleanStart, err)
	}
	return l
}

func (p *platform) admit() *line {
	l := p.accept()
	l.write((&packet.Connack{}).Append(nil, packet.V5))
	return l
}

func (l *line) write(b []byte) {
	l.Helper()
	if _, err := l.conn.Write(b); err != nil {
		l.Fatal(err)
	}
}

func (l *line) next() (packet.Header, []byte) {
	l.Helper()
	for {
		h, start, total, _, err := packet.Frame(l.buf, 0)
		if err != nil {
			l.Fatal(err)
		}
		if total > 0 {
			body := l.buf[start:total:total]
			l.buf = l.buf[total:]
			return h, body
		}
		chunk, ok := <-l.came
		if !ok {
			l.Fatal("the connection ended")
		}
		l.buf = append(l.buf, chunk...)
	}
}

// acked takes the acknowledgement of what was told. A handler that was given it may have spoken before the reader acknowledged it.
func (l *line) acked(id uint16) {
	l.Helper()
	h, body := l.next()
	for ; h.Type == packet.PUBLISH; h, body = l.next() {
		l.said = append(l.said, l.published(h, body))
	}
	var a packet.Ack
	if err := a.Decode(h, body, packet.V5); err != nil || h.Type != packet.PUBACK || a.ID != id {
		l.Fatalf("%s %d, %v; want PUBACK %d", h.Type, a.ID, err, id)
	}
}

func (l *line) publish() packet.Publish {
	l.Helper()
	if len(l.said) > 0 {
		p := l.said[0]
		l.said = l.said[1:]
		return p
	}
	return l.published(l.next())
}

func (l *line) published(h packet.Header, body []byte) packet.Publish {
	l.Helper()
	var p packet.Publish
	if h.Type != packet.PUBLISH {
		l.Fatalf("got %s, want PUBLISH", h.Type)
	}
	if err := p.Decode(h, body, packet.V5); err != nil {
		l.Fatal(err)
	}
	return p
}

func (l *line) subscribe() {
	l.Helper()
	h, body := l.next()
	var s packet.Subscribe
	if err := s.Decode(h, body, packet.V5); err != nil {
		l.Fatal(err)
	}
	l.write((&packet.SubAnswer{Type: packet.SUBACK, ID: s.ID, Codes: []packet.ReasonCode{packet.GrantedQoS1}}).Append(nil, packet.V5))
}

func (l *line) refuse(id uint16, code packet.ReasonCode) {
	l.Helper()
	l.write((&packet.Ack{Type: packet.PUBACK, ID: id, Code: code}).Append(nil, packet.V5))
}

func (l *line) ack(id uint16) { l.Helper(); l.write(packet.AppendPuback(nil, id)) }

// connect gives a client and its first connection.
func (p *platform) connect() (*Client, *line) {
	p.Helper()
	first := make(chan *line, 1)
	go func() { first <- p.admit() }()
	c, err := Connect(p.Context(), p.options())
	if err != nil {
		p.Fatal(err)
	}
	return c, <-first
}

type published struct {
	trace message.Trace
	err   error
}

func send(ctx context.Context, c *Client, data string) chan published {
	done := make(chan published, 1)
	go func() {
		t, err := c.Publish(ctx, "telemetry", []byte(data), PublishOptions{})
		done <- published{t, err}
	}()
	synctest.Wait()
	return done
}

func (l *line) end(c *Client) {
	l.Helper()
	if err := c.Close(l.Context()); err != nil {
		l.Error(err)
	}
}

func TestPublishReturnsWhenAcknowledgedAndNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newPlatform(t).connect()
		done := send(t.Context(), c, "21.5")
		p := l.publish()
		synctest.Wait()
		select {
		case r := <-done:
			t.Fatal("returned before the acknowledgement: ", r.err)
		default:
		}
		l.ack(p.ID)
		r := <-done
		if r.err != nil || p.Topic != "device/d-17/telemetry" || p.Dup || p.QoS != 1 || string(p.Payload) != "21.5" {
			t.Errorf("%+v, %v", p, r.err)
		}
		if got := p.Properties.User; len(got) != 1 || got[0].Key != "traceparent" || got[0].Value != r.trace.Traceparent() {
			t.Errorf("on the wire %v, to the caller %s", got, r.trace.Traceparent())
		}
		l.end(c)
	})
}

// What was not acknowledged is sent again after a reconnect: in order, marked as a repetition.
func TestUnacknowledgedIsSentAgainAfterAReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform(t)
		c, l := p.connect()
		first, second := send(t.Context(), c, "1"), send(t.Context(), c, "2")
		l.publish()
		l.publish()
		_ = l.conn.Close()
		synctest.Wait()
		third := send(t.Context(), c, "3") // while away
		l = p.admit()
		for _, want := range []struct {
			data string
			dup  bool
		}{{"1", true}, {"2", true}, {"3", false}} {
			got := l.publish()
			if string(got.Payload) != want.data || got.Dup != want.dup {
				t.Errorf("got %s, repetition %v; want %v", got.Payload, got.Dup, want)
			}
			l.ack(got.ID)
		}
		for _, done := range []chan published{first, second, third} {
			if r := <-done; r.err != nil {
				t.Error(r.err)
			}
		}
		if s := c.Stats(); s != (Stats{Sent: 5, Acked: 3, Reconnects: 1}) {
			t.Errorf("%+v", s)
		}
		l.end(c)
	})
}

func TestFinalRefusalIsTheCallersAndATransientOneIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newPlatform(t).connect()
		done := send(t.Context(), c, "x")
		l.refuse(l.publish().ID, packet.NotAuthorized)
		var no *RefusedError
		if r := <-done; !errors.As(r.err, &no) || no.Code != packet.NotAuthorized {
			t.Errorf("got %v", r.err)
		}
		done = send(t.Context(), c, "y")
		l.refuse(l.publish().ID, packet.QuotaExceeded)
		again := l.publish() // the clock of the test goes on when everybody waits
		if string(again.Payload) != "y" || again.Dup {
			t.Errorf("%+v", again)
		}
		l.ack(again.ID)
		if r := <-done; r.err != nil {
			t.Error(r.err)
		}
		l.end(c)
	})
}

func TestServersReceiveMaximumIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform(t)
		first := make(chan *line, 1)
		go func() {
			l := p.accept()
			a := packet.Connack{}
			a.Properties.Set(packet.ReceiveMaximum, 1)
			l.write(a.Append(nil, packet.V5))
			first <- l
		}()
		c, err := Connect(t.Context(), p.options())
		if err != nil {
			t.Fatal(err)
		}
		l := <-first
		one, two := send(t.Context(), c, "1"), send(t.Context(), c, "2")
		got := l.publish()
		synctest.Wait()
		if len(l.came) > 0 || c.Stats().Sent != 1 {
			t.Errorf("%d sent; the server lets one be under way", c.Stats().Sent)
		}
		l.ack(got.ID)
		l.ack(l.publish().ID)
		<-one
		<-two
		l.end(c)
	})
}

func TestCallerWhoGivesUpBeforeTheMessageWasWrittenTakesItBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform(t)
		c, l := p.connect()
		_ = l.conn.Close()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		done := send(ctx, c, "never")
		cancel()
		if r := <-done; r.err == nil || !strings.Contains(r.err.Error(), "not sent") {
			t.Errorf("got %v", r.err)
		}
		l = p.admit()
		kept := send(t.Context(), c, "kept")
		got := l.publish()
		if string(got.Payload) != "kept" {
			t.Errorf("got %s", got.Payload)
		}
		l.ack(got.ID)
		<-kept
		l.end(c)
	})
}

func TestFinalRefusalEndsConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform(t)
		go func() { p.accept().write((&packet.Connack{Code: packet.NotAuthorized}).Append(nil, packet.V5)) }()
		_, err := Connect(t.Context(), p.options())
		if no := (*RefusedError)(nil); !errors.As(err, &no) || no.Code != packet.NotAuthorized {
			t.Errorf("got %v", err)
		}
	})
}

// A platform that is silent is asked once; silent still, the connection is given up for another.
func TestSilentConnectionIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform(t)
		c, l := p.connect()
		start := time.Now()
		if h, _ := l.next(); h.Type != packet.PINGREQ || time.Since(start) != keepAlive {
			t.Errorf("got %s after %s", h.Type, time.Since(start))
		}
		l = p.admit()
		if d := time.Since(start); d < 2*keepAlive || d > 2*keepAlive+backoffFirst {
			t.Errorf("connected again after %s", d)
		}
		l.end(c)
	})
}

func TestCommandIsAnsweredThenAcknowledgedAndCarriedOutOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, l := newPlatform(t).connect()
		runs, agreed := 0, make(chan error, 1)
		go func() {
			agreed <- c.OnCommand(t.Context(), "open", func(_ context.Context, cmd Command) (any, error) {
				runs++
				return map[string]string{"for": cmd.ID, "said": string(cmd.Data)}, nil
			})
		}()
		l.subscribe()
		if err := <-agreed; err != nil {
			t.Fatal(err)
		}
		trace := message.NewTrace(time.Now())
		for id := range uint16(2) {
			cmd := packet.Publish{QoS: 1, ID: id + 1, Dup: id > 0, Topic: "device/d-17/command/open/c1", Payload: []byte("now")}
			cmd.Properties.Set(packet.UserPropertyID, 1)
			cmd.Properties.User = []packet.UserProperty{{Key: "traceparent", Value: trace.Traceparent()}}
			l.write(cmd.Append(nil, packet.V5))
			r := l.publish()
			if r.Topic != "device/d-17/command/open/c1/reply" || string(r.Payload) != `{"ok":true,"result":{"for":"c1","said":"now"}}` {
				t.Errorf("%s: %s", r.Topic, r.Payload)
			}
			if !strings.Contains(r.Properties.User[0].Value, trace.ID.String()) {
				t.Error("the answer is not in the command's trace")
			}
			l.ack(r.ID)
			l.acked(id + 1)
		}
		if runs != 1 {
			t.Errorf("carried out %d times", runs)
		}
		l.end(c)
	})
}

package ask

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
)

// A connection that the server has ended for good is replaced, as long as the client is not closed.
func TestClientAsksAgainAfterItsConnectionWasEndedForGood(t *testing.T) {
	s, err := server.NewServer(&server.Options{Port: server.RANDOM_PORT, Host: "127.0.0.1", NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server did not start")
	}
	other, err := natsgo.Connect(s.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	if _, err := other.Subscribe(Subject("echo"), func(m *natsgo.Msg) { _ = m.Respond(m.Data) }); err != nil { // who asked is gone
		t.Fatal(err)
	}
	if err := other.Flush(); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(Options{URL: s.ClientURL()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ask := func() error {
		got, err := c.Ask(ctx, "echo", []byte("x"))
		if err == nil && string(got) != "x" {
			t.Errorf("it hears %q", got)
		}
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		old := c.line.Load()
		if err := old.nc.Publish(strings.Repeat("x", 2*server.MAX_CONTROL_LINE_SIZE), nil); err != nil {
			t.Fatal(err)
		}
		for !old.nc.IsClosed() {
			if ctx.Err() != nil {
				t.Fatal("the connection is not ended; this tests nothing")
			}
		}
		for err := ask(); err != nil; err = ask() { // the questions that go wrong meanwhile are asked again
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	c.Close()
	c.opened = time.Time{} // long ago
	if err := ask(); err == nil {
		t.Error("it asks after it was closed")
	}
}

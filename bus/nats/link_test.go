package nats

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/naru-platform/naru/bus"
)

// hangUpForGood has the server end the bus's connection with an error after which the client does not connect again.
func hangUpForGood(t *testing.T, b *Bus) {
	t.Helper()
	l := b.link.Load()
	if err := l.nc.Publish(strings.Repeat("x", 2*server.MAX_CONTROL_LINE_SIZE), nil); err != nil { // nothing that naru says is so long
		t.Fatal(err)
	}
	select {
	case <-l.over:
	case <-time.After(30 * time.Second):
		t.Fatal("the server has not ended the connection; this tests nothing")
	}
	if !l.nc.IsClosed() {
		t.Fatal("the client connects again by itself; this tests nothing")
	}
}

// A connection that the server ends for good is opened anew, and whoever appends, reads, watches, asks, answers, takes from a queue
// or holds a table goes on with it.
func TestConnectionThatIsEndedForGoodIsOpenedAnew(t *testing.T) {
	b := open(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l := openLog(t, b)
	a := openAppender(t, l, "door")
	appendOne(t, a, 0)
	r, err := l.Reader(ctx, bus.Position{Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	table, err := b.Table(ctx, "things", bus.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	told, listening := make(chan bus.Entry, 64), make(chan struct{})
	go func() { _ = table.Watch(ctx, "", func(e bus.Entry) { told <- e }, func() { close(listening) }) }() // ends with ctx
	q, err := b.Queue(ctx, "work")
	if err != nil {
		t.Fatal(err)
	}
	c, err := q.Consumer(ctx, bus.ConsumerOptions{Name: "c", Pattern: "device.>"})
	if err != nil {
		t.Fatal(err)
	}
	answering, done := make(chan struct{}), make(chan error, 1)
	within, stop := context.WithCancel(ctx)
	go func() {
		done <- b.Answer(within, "echo", func(_ context.Context, q []byte) []byte { return q }, func() { close(answering) })
	}()
	<-listening
	<-answering
	for round := range 2 {
		key := fmt.Sprintf("k.%d", round)
		hangUpForGood(t, b)
		if p := appendOne(t, a, round); p.Sequence != uint64(round+2) {
			t.Errorf("round %d: appended at %d", round, p.Sequence)
		}
		for eventually := true; eventually; { // what fails meanwhile is done again by who asks
			_, err := table.Put(ctx, key, []byte("v"))
			if eventually = err != nil; eventually && ctx.Err() != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		for e := (bus.Entry{}); e.Key != key; {
			select {
			case e = <-told:
			case <-ctx.Done():
				t.Fatalf("round %d: who watches is not told", round)
			}
		}
		if err := q.Put(ctx, say("device.d-1.telemetry", round), false); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		d, err := c.Next(ctx)
		if err != nil || string(d.Message().Data) != fmt.Sprint(round) {
			t.Fatalf("round %d: from the queue came %v, %v", round, d, err)
		}
		if err := d.Ack(ctx); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		for eventually := true; eventually; {
			got, err := b.Ask(ctx, "echo", []byte(key))
			if eventually = errors.Is(err, bus.ErrNobody); !eventually && (err != nil || string(got) != key) || ctx.Err() != nil {
				t.Fatalf("round %d: asked, and heard %q, %v", round, got, err)
			}
		}
	}
	for want := uint64(1); want <= 3; want++ {
		if got, err := r.Next(ctx); err != nil || got.Position.Sequence != want {
			t.Fatalf("read %v, %v, want %d", got.Position, err, want)
		}
	}
	for !b.Status(ctx).Up { // found out at one of the next looks
		if _, err := table.Get(ctx, "k.0"); err != nil {
			t.Fatalf("the bus is %+v, %v", b.Status(ctx), err)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	hangUpForGood(t, b)
	if err := b.Close(); err != nil { // while it is being opened
		t.Error(err)
	}
}

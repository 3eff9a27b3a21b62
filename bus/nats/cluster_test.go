//go:build long

package nats

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/bustest"
)

// quiet is a log for engines that say a lot.
func quiet(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
}

// cluster is three servers in this process, and what its clients connect to.
type cluster struct {
	options []*server.Options
	servers []*server.Server
	url     string
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	const n = 3
	ports, routes := make([]int, n), make([]*url.URL, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = l.Addr().(*net.TCPAddr).Port
		l.Close()
		routes[i] = &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", ports[i])}
	}
	c := &cluster{}
	var urls []string
	for i := range n {
		c.options = append(c.options, &server.Options{
			ServerName: fmt.Sprint("n", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true,
			StoreDir: t.TempDir(), SyncAlways: true, MaxPayload: payloadMax, MaxPending: maxPending,
			JetStreamMaxMemory: memoryMax, JetStreamMaxStore: 1 << 40,
			Cluster: server.ClusterOpts{Name: "naru", Host: "127.0.0.1", Port: ports[i]}, Routes: routes,
		})
		c.servers = append(c.servers, nil)
		c.start(t, i)
	}
	t.Cleanup(func() {
		for i := range c.servers {
			c.stop(i)
		}
	})
	for _, s := range c.servers {
		if !s.ReadyForConnections(20 * time.Second) {
			t.Fatal("a server of the cluster did not start")
		}
		urls = append(urls, s.ClientURL())
	}
	c.url = strings.Join(urls, ",")
	return c
}

// start starts a server, again on what it has on its disk and at its address.
func (c *cluster) start(t *testing.T, i int) {
	t.Helper()
	s, err := server.NewServer(c.options[i].Clone())
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	c.servers[i] = s
}

func (c *cluster) stop(i int) {
	c.servers[i].Shutdown()
	c.servers[i].WaitForShutdown()
}

func (c *cluster) open(t *testing.T) *Bus {
	t.Helper()
	b, err := Open(t.Context(), Options{URL: c.url, Replicas: 3, Log: quiet(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// clean deletes every stream, so that the next promise finds an empty engine.
func (c *cluster) clean(t *testing.T) {
	t.Helper()
	nc, err := natsgo.Connect(c.url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		if err := js.DeleteStream(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	if names.Err() != nil {
		t.Fatal(names.Err())
	}
}

func TestKeepsThePromisesInACluster(t *testing.T) {
	c := startCluster(t)
	bustest.Run(t, bustest.Features{LoseAcks: true, SetSpace: true}, func(t *testing.T) bustest.Engine {
		b := c.open(t)
		t.Cleanup(func() { b.Close(); c.clean(t) })
		return bustest.Engine{Bus: b, LoseAcks: func(n int) { loseAcks(b, n) }, SetSpace: func(sp bus.Space) { setSpace(b, sp) }}
	})
}

// Leases lie in memory, so each server that starts again comes without them. Where the next one goes before that one has caught
// up, nobody may know them any more; they are to be had again all the same.
func TestLeasesAreToBeHadAgainThoughServersGoOneAfterTheOther(t *testing.T) {
	c := startCluster(t)
	for i, s := range c.servers {
		c.options[i].Port = s.Addr().(*net.TCPAddr).Port
	}
	b := c.open(t)
	for round := range 8 {
		held, err := b.Lease(t.Context(), fmt.Sprint("held-", round), "me", 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2 + round%2 {
			n := (round + i) % len(c.servers)
			c.stop(n)
			c.start(t, n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		for {
			try, end := context.WithTimeout(ctx, 3*time.Second)
			l, err := b.Lease(try, fmt.Sprint("new-", round), "me", 5*time.Second)
			end()
			if err == nil {
				err = l.Release(ctx)
			}
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		cancel()
		_ = held.Release(t.Context()) // it may be lost
	}
}

// Package mqttpeer runs nats-server's own MQTT listener, as a peer to measure naru's broker against. Nothing of naru is
// in it.
package mqttpeer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
)

// Options say where it listens, and how it stores.
type Options struct {
	MQTT string // address for clients, MQTT 3.1.1
	Dir  string // where it stores
	Sync bool   // each message synced before it is acknowledged
}

// Run runs it until ctx is done. A stream keeps what is published on device/#: without a subscriber it would keep nothing.
func Run(ctx context.Context, o Options) error {
	host, port, err := net.SplitHostPort(o.MQTT)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return fmt.Errorf("address %s: %w", o.MQTT, err)
	}
	s, err := server.NewServer(&server.Options{ServerName: "peer", DontListen: true, JetStream: true, StoreDir: o.Dir, SyncAlways: o.Sync, NoSigs: true,
		MQTT: server.MQTTOpts{Host: host, Port: n}})
	if err != nil {
		return err
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		return errors.New("nats-server does not start within 10 s")
	}
	nc, err := natsgo.Connect("", natsgo.InProcessServer(s))
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := nc.JetStream()
	if err != nil {
		return err
	}
	if _, err := js.AddStream(&natsgo.StreamConfig{Name: "kept", Subjects: []string{"device.>"}}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

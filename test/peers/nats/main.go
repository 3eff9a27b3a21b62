// Command nats runs nats-server's own MQTT listener, as a peer to measure against (docs/benchmarks.md):
//
//	go run ./test/peers/nats --mqtt 127.0.0.1:1885
//	naru bench ingest --target 127.0.0.1:1885
//
// It speaks MQTT 3.1.1, and stores on disk in a temporary directory; --sync has each message synced before it is
// acknowledged, as naru does. A stream keeps what is published, for without a subscriber it would keep nothing.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
)

func main() {
	addr := flag.String("mqtt", "127.0.0.1:1885", "address for MQTT clients")
	sync := flag.Bool("sync", false, "sync each message to disk before it is acknowledged")
	flag.Parse()
	if err := run(*addr, *sync); err != nil {
		log.Fatal(err)
	}
}

func run(addr string, sync bool) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "peer-nats-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := server.NewServer(&server.Options{ServerName: "peer", DontListen: true, JetStream: true, StoreDir: dir, SyncAlways: sync,
		MQTT: server.MQTTOpts{Host: host, Port: n}})
	if err != nil {
		return err
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(10 * time.Second) {
		return fmt.Errorf("the server does not start")
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
	fmt.Println("listening on", addr)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	<-stop
	return nil
}

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// A loopback address has some 28,000 ports to connect from, and the kernel looks ever longer for one that is free: so connections come
// from several in turn.
const (
	loopbacks = 254 // 127.0.1.1 to 127.0.1.254
	fromEach  = 5_000
)

// loopback connects the i-th device.
func loopback(i int) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i/fromEach%loopbacks))}}
}

// crowd is a process that has the clients' ends of a node's connections, so that a machine holds more than a process may. It does
// what it is told by words on its standard input, and ends with that.
type crowd struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// crowdDone is what a crowd answers to a word.
type crowdDone struct {
	Devices int    `json:"devices"` // it has done it with so many
	Fault   string `json:"fault,omitempty"`
}

// startCrowd starts the devices from to to-1, which connect to node and are registered with first.
func startCrowd(ctx context.Context, first, node *child, secure bool, from, to int) (*crowd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"bench", "crowd", "--data", first.dir, "--from", strconv.Itoa(from), "--connections", strconv.Itoa(to - from), "--broker", node.addr.tls}
	if !secure {
		args = append(args, "--plain", "--broker", node.addr.plain)
	}
	c := &crowd{cmd: exec.CommandContext(ctx, self, args...)} // nothing of it lasts
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = json.NewDecoder(out)
	return c, c.cmd.Start()
}

// do has it do one thing, and tells with how many devices it has.
func (c *crowd) do(word string) (int, error) {
	var done crowdDone
	if _, err := fmt.Fprintln(c.in, word); err != nil {
		return 0, fmt.Errorf("a process with devices has ended: %w", err)
	}
	if err := c.out.Decode(&done); err != nil {
		return 0, fmt.Errorf("a process with devices has ended: %w", err)
	}
	if done.Fault != "" {
		return done.Devices, errors.New(done.Fault)
	}
	return done.Devices, nil
}

type crowds []*crowd

// do has all of them do one thing at the same time.
func (all crowds) do(word string) (int, error) {
	var devices atomic.Int64
	var group errgroup.Group
	for _, c := range all {
		group.Go(func() error {
			n, err := c.do(word)
			devices.Add(int64(n))
			return err
		})
	}
	err := group.Wait()
	return int(devices.Load()), err
}

// leave breaks all connections.
func (all crowds) leave() {
	for _, c := range all {
		_ = c.in.Close()
		_ = c.cmd.Wait()
	}
}

// benchCrowd is the process of a crowd.
func benchCrowd(o *options) *cobra.Command {
	var d devices
	c := &cobra.Command{
		Use: "crowd", Short: "Hold connections that say nothing, for bench idle", Args: cobra.NoArgs, Hidden: true,
		Long: `Does what the words on its standard input say, a line each: enroll registers devices with the platform, connect connects them,
check asks for a sign of life on each connection. Each is answered with a line of JSON. Ends when the input does.`,
		Example: "  naru bench crowd --plain --broker 127.0.0.1:1883 --connections 1000",
		RunE: func(c *cobra.Command, _ []string) error {
			return d.obey(c.Context(), o, c.InOrStdin(), json.NewEncoder(c.OutOrStdout()))
		},
	}
	f := c.Flags()
	f.StringVar(&d.broker, "broker", "", "address of the broker")
	f.IntVar(&d.from, "from", 0, "number of the first device")
	f.IntVar(&d.n, "connections", 0, "how many")
	f.BoolVar(&d.plain, "plain", false, "without TLS")
	return c
}

// devices are those of a crowd.
type devices struct {
	broker  string
	from, n int
	plain   bool

	pool  *x509.CertPool
	pairs []tls.Certificate
	conns []*publisher
}

// devicesAtOnce enroll or connect in a process at the same time: their messages are then synced together.
const devicesAtOnce = 8

func (d *devices) obey(ctx context.Context, o *options, in io.Reader, out *json.Encoder) error {
	d.pairs, d.conns = make([]tls.Certificate, d.n), make([]*publisher, d.n)
	for words := bufio.NewScanner(in); words.Scan(); {
		var done crowdDone
		var err error
		switch words.Text() {
		case "enroll":
			done.Devices, err = d.enroll(ctx, o)
		case "connect":
			done.Devices, err = d.each(func(i int) (err error) {
				d.conns[i], err = newPublisher(ctx, d.id(i), &ingest{}, func(context.Context, string) (net.Conn, error) { return d.dial(ctx, i) })
				return err
			})
		case "check":
			late := time.Now().Add(time.Minute)
			done.Devices, err = d.each(func(i int) error { return d.conns[i].ping(late) })
		default:
			return fmt.Errorf("%q is no word for a crowd: there are enroll, connect, check", words.Text())
		}
		if err != nil {
			done.Fault = err.Error()
		}
		if err := out.Encode(done); err != nil {
			return err
		}
	}
	return nil
}

func (d *devices) id(i int) string { return fmt.Sprintf("bench-%d", d.from+i) }

// each does f for every device, and tells for how many it was well, and the first fault.
func (d *devices) each(f func(i int) error) (int, error) {
	var done atomic.Int64
	var group errgroup.Group
	group.SetLimit(devicesAtOnce)
	for i := range d.n {
		group.Go(func() error {
			err := f(i)
			if err == nil {
				done.Add(1)
			}
			return err
		})
	}
	err := group.Wait()
	return int(done.Load()), err
}

func (d *devices) enroll(ctx context.Context, o *options) (int, error) {
	cl, err := o.client()
	if err != nil {
		return 0, err
	}
	ca, err := fetchCA(ctx, cl)
	if err != nil {
		return 0, err
	}
	d.pool = x509.NewCertPool()
	d.pool.AppendCertsFromPEM(ca)
	return d.each(func(i int) (err error) {
		d.pairs[i], err = cl.enroll(ctx, d.id(i))
		return err
	})
}

func (d *devices) dial(ctx context.Context, i int) (net.Conn, error) {
	from := loopback(d.from + i)
	if d.plain {
		return from.DialContext(ctx, "tcp", d.broker)
	}
	secure := tls.Dialer{NetDialer: from, Config: &tls.Config{RootCAs: d.pool, Certificates: d.pairs[i : i+1], ServerName: "localhost", MinVersion: tls.VersionTLS12}}
	return secure.DialContext(ctx, "tcp", d.broker)
}

// ping wants an answer from the broker before late.
func (p *publisher) ping(late time.Time) error {
	if err := p.conn.SetDeadline(late); err != nil {
		return err
	}
	if _, err := p.conn.Write([]byte{byte(packet.PINGREQ) << 4, 0}); err != nil {
		return err
	}
	var ack [2]byte
	if _, err := io.ReadFull(p.conn, ack[:]); err != nil {
		return err
	}
	if ack[0] != byte(packet.PINGRESP)<<4 {
		return fmt.Errorf("PINGREQ is answered with %x", ack)
	}
	return nil
}

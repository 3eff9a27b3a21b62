package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// stormed is a measurement of a fleet that comes back all at once.
type stormed struct {
	Connections int           `json:"connections"`
	Settled     time.Duration `json:"settled_ns"` // until the last was let in
	P50         time.Duration `json:"p50_ns"`
	P99         time.Duration `json:"p99_ns"`
	Tries       int           `json:"tries"` // of all devices together
	Resumed     int           `json:"resumed"`
}

func benchStorm(o *options) *cobra.Command {
	b := stormed{Connections: 1000}
	most := time.Minute
	c := &cobra.Command{
		Use: "storm", Short: "How long a fleet of devices with certificates takes to be back, all at once", Args: cobra.NoArgs,
		Long: `Starts a naru of its own in a temporary directory, enrols devices, has all of them connect, breaks every connection in the same
moment, and measures until the last device has its CONNACK. A device that is not let in tries again, later each time, as
devices do; it has kept its TLS session ticket. Exits with 2 where that takes longer than --within. The load runs on the same
machine and competes for its cores. The number of open files (ulimit -Hn) bounds the connections.`,
		Example: "  naru bench storm\n  naru bench storm --connections 10000",
		RunE: func(c *cobra.Command, _ []string) error {
			if b.Connections < 1 {
				return errors.New("want at least 1 connection")
			}
			if err := mayHold(b.Connections); err != nil {
				return err
			}
			if err := b.measure(c.Context(), c.ErrOrStderr()); err != nil {
				return err
			}
			if err := o.show(c.OutOrStdout(), b, func(p *printer) {
				p.line("%d devices with certificates, all at once", b.Connections)
				p.row("settled after", b.Settled.Round(time.Millisecond).String())
				p.row("let in after", fmt.Sprintf("p50 %s  p99 %s", b.P50.Round(time.Millisecond), b.P99.Round(time.Millisecond)))
				p.row("tries", fmt.Sprintf("%d, %d handshakes resumed", b.Tries, b.Resumed))
			}); err != nil {
				return err
			}
			if b.Settled > most {
				return errFault
			}
			return nil
		},
	}
	c.Flags().IntVar(&b.Connections, "connections", b.Connections, "how many")
	c.Flags().DurationVar(&most, "within", most, "what is too long")
	return c
}

// stormDevice is one device of the storm.
type stormDevice struct {
	id     string
	config *tls.Config
	conn   net.Conn
	took   time.Duration
	tries  int
	resume bool
}

func (b *stormed) measure(ctx context.Context, say io.Writer) error {
	fmt.Fprintln(say, "starting a platform in a temporary directory …")
	server, err := startChild(ctx, &ingest{TLS: true, Tracing: true})
	if err != nil {
		return err
	}
	defer server.stop()
	fmt.Fprintf(say, "enrolling %d devices …\n", b.Connections)
	all := make([]*stormDevice, b.Connections)
	for i := range all {
		d := &stormDevice{id: fmt.Sprintf("bench-%d", i)}
		pair, err := server.cl.enroll(ctx, d.id)
		if err != nil {
			return err
		}
		d.config = &tls.Config{RootCAs: server.pool, Certificates: []tls.Certificate{pair}, ServerName: "localhost", MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
		all[i] = d
	}
	defer func() {
		for _, d := range all {
			if d.conn != nil {
				d.conn.Close()
			}
		}
	}()
	together := func() error {
		errs := make([]error, len(all))
		var group sync.WaitGroup
		began := time.Now()
		for i, d := range all {
			group.Go(func() { errs[i] = d.comeBack(ctx, server.addr.tls, i, began) })
		}
		group.Wait()
		return errors.Join(errs...)
	}
	fmt.Fprintf(say, "connecting %d devices …\n", b.Connections)
	if err := together(); err != nil {
		return err
	}
	for _, d := range all {
		_ = d.conn.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
		d.conn.Close()
		d.tries, d.resume = 0, false
	}
	fmt.Fprintln(say, "and all of them once more …")
	if err := together(); err != nil {
		return err
	}
	var took []time.Duration
	for _, d := range all {
		took = append(took, d.took)
		b.Tries += d.tries
		if d.resume {
			b.Resumed++
		}
	}
	slices.Sort(took)
	b.Settled, b.P50, b.P99 = took[len(took)-1], took[len(took)/2], took[len(took)*99/100]
	return nil
}

// comeBack connects until it is let in, with a pause that grows and is nobody else's.
func (d *stormDevice) comeBack(ctx context.Context, addr string, i int, began time.Time) error {
	pause := 500 * time.Millisecond
	for {
		d.tries++
		err := d.try(ctx, addr, i)
		if err == nil {
			d.took = time.Since(began)
			return nil
		}
		if time.Since(began) > 5*time.Minute {
			return fmt.Errorf("%s is not let in after %d tries: %w", d.id, d.tries, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, 8*time.Second)
	}
}

func (d *stormDevice) try(ctx context.Context, addr string, i int) error {
	raw, err := loopback(i).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	c := tls.Client(raw, d.config)
	ok := false
	defer func() {
		if !ok {
			c.Close()
		}
	}()
	if err := c.SetDeadline(time.Now().Add(90 * time.Second)); err != nil { // longer than the broker lets anybody wait
		return err
	}
	hello := packet.Connect{Version: packet.V311, CleanStart: true, ClientID: d.id}
	if _, err := c.Write(hello.Append(nil)); err != nil {
		return err
	}
	var ack [4]byte
	if _, err := io.ReadFull(c, ack[:]); err != nil {
		return err
	}
	if ack[3] != 0 {
		return fmt.Errorf("refused with %x", ack)
	}
	d.conn, d.resume, ok = c, c.ConnectionState().DidResume, true
	return c.SetDeadline(time.Time{})
}

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// idle is a measurement of what connections cost that say nothing.
type idle struct {
	Connections  int           `json:"connections"`
	TLS          bool          `json:"tls"`
	PerSecond    float64       `json:"connects_per_second"`
	KB           float64       `json:"rss_kb_per_connection"`
	Goroutines   float64       `json:"goroutines_per_connection"`
	Before       int           `json:"rss_before_kb"`
	After        int           `json:"rss_after_kb"`
	SettledAfter time.Duration `json:"settled_after_ns"`
}

func benchIdle(o *options) *cobra.Command {
	b := idle{Connections: 5000}
	var plain bool
	c := &cobra.Command{
		Use: "idle", Short: "Memory and goroutines of connections that say nothing", Args: cobra.NoArgs,
		Long: `Starts a naru of its own in a temporary directory, connects devices that then say nothing, and reports how much the
process has grown for each of them: all components, not only the broker, after a garbage collection and without the
kernel's socket buffers. The number of open files (ulimit -Hn) bounds the connections.`,
		Example: "  naru bench idle\n  naru bench idle --plain --connections 15000",
		RunE: func(c *cobra.Command, _ []string) error {
			if b.Connections < 1 {
				return errors.New("want at least 1 connection")
			}
			b.TLS = !plain
			if err := mayHold(b.Connections); err != nil {
				return err
			}
			if err := b.measure(c.Context(), c.ErrOrStderr()); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), b, func(p *printer) {
				p.line("%d idle connections, TLS %v", b.Connections, b.TLS)
				p.row("memory", fmt.Sprintf("%.1f KB each (RSS %d → %d KB, settled after %s)", b.KB, b.Before, b.After, b.SettledAfter.Round(time.Second)))
				p.row("goroutines", fmt.Sprintf("%.3f each", b.Goroutines))
				p.row("connecting", fmt.Sprintf("%.0f per second", b.PerSecond))
			})
		},
	}
	c.Flags().IntVar(&b.Connections, "connections", b.Connections, "how many")
	c.Flags().BoolVar(&plain, "plain", false, "without TLS")
	return c
}

func (b *idle) measure(ctx context.Context, say io.Writer) error {
	fmt.Fprintln(say, "starting a platform in a temporary directory …")
	load := &ingest{TLS: b.TLS, Tracing: true}
	server, err := startChild(ctx, load)
	if err != nil {
		return err
	}
	defer server.stop()
	// Devices are enrolled before the first look at memory: they are not what a connection costs.
	pairs := make([]tls.Certificate, b.Connections)
	if b.TLS {
		fmt.Fprintf(say, "enrolling %d devices …\n", b.Connections)
		for i := range pairs {
			if pairs[i], err = server.enroll(ctx, fmt.Sprintf("bench-%d", i)); err != nil {
				return err
			}
		}
	}
	var goroutines int
	if b.Before, goroutines, _, err = server.settle(ctx); err != nil {
		return err
	}
	fmt.Fprintf(say, "connecting %d devices …\n", b.Connections)
	began := time.Now()
	for i := range pairs {
		dial := func(context.Context, string) (net.Conn, error) { return server.from(i, b.TLS, pairs[i]) }
		p, err := newPublisher(ctx, fmt.Sprintf("bench-%d", i), load, dial)
		if err != nil {
			return err
		}
		defer p.conn.Close()
	}
	b.PerSecond = float64(b.Connections) / time.Since(began).Seconds()
	fmt.Fprintln(say, "waiting for the memory to settle …")
	after, more, settled, err := server.settle(ctx)
	if err != nil {
		return err
	}
	b.After, b.SettledAfter = after, settled
	b.KB = float64(after-b.Before) / float64(b.Connections)
	b.Goroutines = float64(more-goroutines) / float64(b.Connections)
	return nil
}

func (k *child) enroll(ctx context.Context, id string) (tls.Certificate, error) {
	var e struct{ Certificate, Key string }
	if err := k.cl.post(ctx, "/api/v1/devices", map[string]string{"id": id, "by": "bench"}, &e); err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
}

// from connects the i-th device. A loopback address has some 28,000 ports to connect from, so they take turns.
func (k *child) from(i int, secure bool, pair tls.Certificate) (net.Conn, error) {
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i/20_000))}}
	if !secure {
		return d.Dial("tcp", k.addr.plain)
	}
	return tls.DialWithDialer(d, "tcp", k.addr.tls, &tls.Config{RootCAs: k.pool, Certificates: []tls.Certificate{pair}, ServerName: "localhost", MinVersion: tls.VersionTLS12})
}

// settle has the child collect its garbage until its resident memory stays as it is, and gives that in KB.
func (k *child) settle(ctx context.Context) (rss, goroutines int, took time.Duration, err error) {
	began := time.Now()
	var seen []int
	for {
		if _, err = k.debug(ctx, "heap", "gc", "1"); err != nil {
			return 0, 0, 0, err
		}
		if rss, err = k.resident(); err != nil {
			return 0, 0, 0, err
		}
		seen = append(seen, rss)
		last := seen[max(0, len(seen)-5):]
		if took = time.Since(began); len(last) == 5 && slices.Max(last)-slices.Min(last) <= rss/200 || took > 20*time.Second {
			break
		}
		select {
		case <-ctx.Done():
			return 0, 0, 0, ctx.Err()
		case <-time.After(time.Second):
		}
	}
	line, err := k.debug(ctx, "goroutine", "debug", "1")
	if err == nil {
		goroutines, err = strconv.Atoi(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:])) // goroutine profile: total 123
	}
	return rss, goroutines, took, err
}

// debug fetches a profile, and gives its first line.
func (k *child) debug(ctx context.Context, name, key, value string) (string, error) {
	r, err := k.cl.open(ctx, http.MethodGet, "/debug/pprof/"+name, url.Values{key: {value}}, nil)
	if err != nil {
		return "", err
	}
	defer r.Close()
	in := bufio.NewReader(r)
	line, err := in.ReadString('\n')
	if err == nil {
		_, err = io.Copy(io.Discard, in)
	} else if errors.Is(err, io.EOF) {
		err = nil // a binary profile has no lines
	}
	return strings.TrimSpace(line), err
}

// resident is the child's resident memory in KB.
func (k *child) resident() (int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", k.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(raw), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest + " none")[0])
	if err != nil {
		return 0, fmt.Errorf("the kernel does not say the resident memory: %w", err)
	}
	return n, nil
}

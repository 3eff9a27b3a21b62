package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/naru-platform/naru/service_platform/x509"
)

// idle is a measurement of what connections cost that say nothing.
type idle struct {
	Connections  int           `json:"connections"`
	Nodes        int           `json:"nodes"`
	TLS          bool          `json:"tls"`
	PerSecond    float64       `json:"connects_per_second"`
	KB           float64       `json:"rss_kb_per_connection"`
	Goroutines   float64       `json:"goroutines_per_connection"`
	Before       int           `json:"rss_before_kb"` // of all nodes together, as the rest
	After        int           `json:"rss_after_kb"`
	SettledAfter time.Duration `json:"settled_after_ns"`
	Held         int           `json:"held"` // that still answered at the end
}

func benchIdle(o *options) *cobra.Command {
	b := idle{Connections: 5000}
	var plain bool
	c := &cobra.Command{
		Use: "idle", Short: "Memory and goroutines of connections that say nothing", Args: cobra.NoArgs,
		Long: `Starts a naru of its own in a temporary directory, connects devices that then say nothing, and reports how much the
process has grown for each of them: all components, not only the broker, after a garbage collection and without the
kernel's socket buffers. At the end each connection is asked whether it is still held; exits with 2 where one is not.

Where a process may not have so many files open (ulimit -Hn), more brokers are started on the bus of the first, and the
figures are of all of them together: each has its own copy of what brokers tell each other. The devices are in processes of
their own, one for each node.`,
		Example: "  naru bench idle\n  naru bench idle --plain --connections 100000\n  naru bench idle --connections 6000 --nodes 3",
		RunE: func(c *cobra.Command, _ []string) error {
			if b.Connections < 1 {
				return errors.New("want at least 1 connection")
			}
			b.TLS = !plain
			each, err := holdable()
			if err == nil {
				err = b.spread(each)
			}
			if err != nil {
				return err
			}
			if err := b.measure(c.Context(), c.ErrOrStderr()); err != nil {
				return cmp.Or(c.Context().Err(), err) // what an interruption ends has faults of its own
			}
			if err := o.show(c.OutOrStdout(), b, func(p *printer) {
				p.line("%d idle connections, TLS %v, nodes: %d", b.Connections, b.TLS, b.Nodes)
				p.row("memory", fmt.Sprintf("%.1f KB each (RSS %d → %d KB, settled after %s)", b.KB, b.Before, b.After, b.SettledAfter.Round(time.Second)))
				p.row("goroutines", fmt.Sprintf("%.3f each", b.Goroutines))
				p.row("connecting", fmt.Sprintf("%.0f per second", b.PerSecond))
				p.row("still held", fmt.Sprint(b.Held))
			}); err != nil {
				return err
			}
			if b.Held < b.Connections {
				return errFault
			}
			return nil
		},
	}
	c.Flags().IntVar(&b.Connections, "connections", b.Connections, "how many")
	c.Flags().IntVar(&b.Nodes, "nodes", 0, "on so many nodes; as many as are needed where nothing is said")
	c.Flags().BoolVar(&plain, "plain", false, "without TLS")
	return c
}

// spread finds how many nodes the connections need where each may hold so many, or says that those asked for are too few.
func (b *idle) spread(each int) error {
	if most := loopbacks * fromEach; b.Connections > most {
		return fmt.Errorf("%d connections want more ports than there are to connect from: take --connections %d", b.Connections, most)
	}
	if b.Nodes < 0 || b.Nodes > b.Connections {
		return fmt.Errorf("--nodes %d: want 1 to %d, or 0 for as many as are needed", b.Nodes, b.Connections)
	}
	each = max(each, 1)
	need := (b.Connections + each - 1) / each
	if b.Nodes == 0 {
		b.Nodes = need
	}
	if b.Nodes < need {
		return fmt.Errorf("%d connections want %d nodes, since this machine gives a process %d open files (ulimit -Hn): take --nodes %d, or --connections %d",
			b.Connections, need, each+otherFiles, need, b.Nodes*each)
	}
	return nil
}

func (b *idle) measure(ctx context.Context, say io.Writer) error {
	fmt.Fprintf(say, "starting a platform in a temporary directory, and %d more brokers on its bus …\n", b.Nodes-1)
	nodes, err := startNodes(ctx, b.Nodes, b.TLS)
	if err != nil {
		return err
	}
	defer stopNodes(nodes)
	var all crowds
	defer func() { all.leave() }()
	for i, n := range nodes {
		c, err := startCrowd(ctx, nodes[0], n, b.TLS, i*b.Connections/b.Nodes, (i+1)*b.Connections/b.Nodes)
		if err != nil {
			return err
		}
		all = append(all, c)
	}
	if b.TLS { // before the first look at memory: devices are not what a connection costs
		fmt.Fprintf(say, "enrolling %d devices …\n", b.Connections)
		if _, err := all.do("enroll"); err != nil {
			return err
		}
	}
	var before, after int // goroutines
	if b.Before, before, _, err = settle(ctx, nodes); err != nil {
		return err
	}
	fmt.Fprintf(say, "connecting %d devices …\n", b.Connections)
	began := time.Now()
	if _, err := all.do("connect"); err != nil {
		return err
	}
	b.PerSecond = float64(b.Connections) / time.Since(began).Seconds()
	fmt.Fprintln(say, "waiting for the memory to settle …")
	if b.After, after, b.SettledAfter, err = settle(ctx, nodes); err != nil {
		return err
	}
	b.KB = float64(b.After-b.Before) / float64(b.Connections)
	b.Goroutines = float64(after-before) / float64(b.Connections)
	fmt.Fprintln(say, "asking each whether it is still held …")
	b.Held, err = all.do("check")
	if err == nil || b.Held == 0 {
		return err
	}
	fmt.Fprintln(say, oneLine(err)) // some are not, which is a result
	return nil
}

// startNodes starts a platform and, on its bus, brokers beside it.
func startNodes(ctx context.Context, n int, secure bool) ([]*child, error) {
	load := &ingest{TLS: secure, Tracing: true}
	if n == 1 {
		first, err := startChild(ctx, load)
		return []*child{first}, err
	}
	dir, err := os.MkdirTemp("", "naru-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // they have read it when they run
	if _, err := throwaway(dir); err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(file("password"), []byte(random(16)), 0o600); err != nil {
		return nil, err
	}
	bus, err := freeAddress()
	if err != nil {
		return nil, err
	}
	login := fmt.Sprintf("  user: bench\n  password_file: %q\n", file("password"))
	load.config = fmt.Sprintf("bus:\n  listen: %q\n  cert_file: %q\n  key_file: %q\n", bus, file("server.crt"), file("server.key")) + login
	first, err := startChild(ctx, load)
	if err != nil {
		return nil, err
	}
	nodes := []*child{first}
	_, port, _ := net.SplitHostPort(bus)
	door := filepath.Join(first.dir, x509.Name, "server")
	config := fmt.Sprintf("bus:\n  url: %q\n%sserver_cert: %q\nserver_key: %q\n", "tls://localhost:"+port, login, door+".crt", door+".key")
	for len(nodes) < n {
		k, err := launch(ctx, config, []string{"SSL_CERT_FILE=" + file("ca.crt")}, "run", brokerName)
		if err != nil {
			stopNodes(nodes)
			return nil, err
		}
		nodes = append(nodes, k)
	}
	return nodes, nil
}

// stopNodes stops the first one last, since the bus is there.
func stopNodes(nodes []*child) {
	var group sync.WaitGroup
	for _, n := range nodes[1:] {
		group.Go(n.stop)
	}
	group.Wait()
	nodes[0].stop()
}

// settle settles all at once, and gives their sums.
func settle(ctx context.Context, nodes []*child) (rss, goroutines int, took time.Duration, err error) {
	var mu sync.Mutex
	var group errgroup.Group
	for _, n := range nodes {
		group.Go(func() error {
			r, g, t, err := n.settle(ctx)
			mu.Lock()
			defer mu.Unlock()
			rss, goroutines, took = rss+r, goroutines+g, max(took, t)
			return err
		})
	}
	return rss, goroutines, took, group.Wait()
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

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/internal/built"
	"github.com/naru-platform/naru/operator/status"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

func benchCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "bench", Short: "Measure: ingest, the whole path, what brokers do, idle connections, a storm of devices"}
	c.AddCommand(benchIngest(o), benchPath(o), benchMQTT(o), benchIdle(o), benchStorm(o), benchPeer(), benchCrowd(o))
	return c
}

// ingest is a measurement of QoS 1 publishing: closed loop, every publisher keeps a window of unacknowledged messages
// and writes each PUBLISH by itself.
type ingest struct {
	Publishers int           `json:"publishers"`
	Window     int           `json:"window"`
	Payload    int           `json:"payload_bytes"`
	TLS        bool          `json:"tls"`
	Tracing    bool          `json:"tracing"`
	Target     string        `json:"target"`
	Seconds    float64       `json:"seconds"`
	Messages   uint64        `json:"messages"`
	PerSecond  float64       `json:"messages_per_second"`
	P50        time.Duration `json:"p50_ns"`
	P99        time.Duration `json:"p99_ns"`
	P999       time.Duration `json:"p999_ns"`
	CPU        float64       `json:"server_cpu_us_per_message,omitempty"`
	Batches    float64       `json:"fsyncs_per_second,omitempty"`
	BatchMean  float64       `json:"messages_per_batch,omitempty"`
	FirstAck   time.Duration `json:"start_to_first_puback_ns,omitempty"` // from the start of the process

	config string // of the platform that is started
}

func benchIngest(o *options) *cobra.Command {
	b := ingest{Publishers: 50, Window: 100, Payload: 200, TLS: true, Tracing: true}
	var seconds time.Duration
	var plain, noTrace bool
	var beside string
	var rounds int
	c := &cobra.Command{
		Use: "ingest", Short: "Messages a second from publisher to acknowledgement on disk", Args: cobra.NoArgs,
		Long: `Starts a naru of its own in a temporary directory, publishes with QoS 1 in a closed loop, and reports throughput,
latency, the server's CPU time per message and its writes to disk. The load runs on the same machine and competes for its
cores. With --target it measures another broker by the same load, without TLS, and starts nothing.
With --peers naru runs with mutual TLS, without, and without tracing, and other brokers beside it: each in a process of its
own that starts anew for each run, one after the other, so many rounds; what is told are medians.`,
		Example: "  naru bench ingest\n  naru bench ingest --plain --publishers 1000 --window 1\n  naru bench ingest --target 127.0.0.1:1883\n  naru bench ingest --peers --rounds 5 -o json\n  naru bench ingest --peers=mosquitto",
		RunE: func(c *cobra.Command, _ []string) error {
			b.TLS, b.Tracing = !plain && b.Target == "", !noTrace
			if b.Publishers < 1 || b.Window < 1 || b.Window > 65535 || b.Payload < 8 || seconds <= 0 {
				return errors.New("want at least 1 publisher, a window of 1 to 65535, a payload of 8 bytes and some time")
			}
			if beside != "" {
				if b.Target != "" || plain || noTrace {
					return errors.New("--peers runs naru in all its ways: leave --target, --plain and --no-trace out")
				}
				return b.compare(c, o, strings.Split(beside, ","), rounds, seconds)
			}
			if err := b.alone(c.Context(), c.ErrOrStderr(), seconds); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), b, func(p *printer) {
				p.line("%d publishers × window %d, %d bytes, TLS %v, tracing %v, %s", b.Publishers, b.Window, b.Payload, b.TLS, b.Tracing, b.Target)
				p.row("throughput", fmt.Sprintf("%.0f msg/s", b.PerSecond))
				p.row("latency", fmt.Sprintf("p50 %s  p99 %s  p99.9 %s", fine(b.P50), fine(b.P99), fine(b.P999)))
				if b.FirstAck > 0 {
					p.row("start to first PUBACK", fine(b.FirstAck))
				}
				if b.CPU > 0 {
					p.row("server CPU", fmt.Sprintf("%.2f µs/msg", b.CPU))
					p.row("writes", fmt.Sprintf("%.0f fsync/s, %.0f messages each", b.Batches, b.BatchMean))
				}
			})
		},
	}
	f := c.Flags()
	f.IntVar(&b.Publishers, "publishers", b.Publishers, "connections")
	f.IntVar(&b.Window, "window", b.Window, "unacknowledged messages of each")
	f.IntVar(&b.Payload, "payload", b.Payload, "bytes of a message")
	f.DurationVar(&seconds, "duration", 5*time.Second, "how long, after a second of warming up")
	f.BoolVar(&plain, "plain", false, "without TLS")
	f.BoolVar(&noTrace, "no-trace", false, "without journal, ledger and topic statistics")
	f.StringVar(&b.Target, "target", "", "address of another MQTT broker")
	f.StringVar(&beside, "peers", "", "run other brokers beside it: "+strings.Join(peerNames, ", "))
	f.Lookup("peers").NoOptDefVal = strings.Join(peerNames, ",")
	f.IntVar(&rounds, "rounds", 3, "how often each runs, with --peers")
	return c
}

func fine(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }

// alone measures one broker: a naru that is started for it, or another one that runs.
func (b *ingest) alone(ctx context.Context, say io.Writer, d time.Duration) error {
	if b.Target != "" {
		return b.measure(ctx, say, d, func(context.Context, string) (net.Conn, error) { return net.Dial("tcp", b.Target) }, nil)
	}
	b.Target = "naru " + built.Version()
	return b.measureChild(ctx, say, d)
}

// measureChild measures a naru of its own.
func (b *ingest) measureChild(ctx context.Context, say io.Writer, d time.Duration) error {
	fmt.Fprintln(say, "starting a platform in a temporary directory …")
	server, err := startChild(ctx, b)
	if err != nil {
		return err
	}
	defer server.stop()
	b.FirstAck = server.firstAck
	return b.measure(ctx, say, d, server.dial(b.TLS), server.usage)
}

// measure runs the load against what dial connects to; use tells what the server has used, where that can be known.
func (b *ingest) measure(ctx context.Context, say io.Writer, d time.Duration, dial func(context.Context, string) (net.Conn, error), use func() usage) error {
	fmt.Fprintf(say, "connecting %d publishers …\n", b.Publishers)
	all := make([]*publisher, b.Publishers)
	for i := range all {
		p, err := newPublisher(ctx, fmt.Sprintf("bench-%d", i), b, dial)
		if err != nil {
			return err
		}
		defer p.conn.Close()
		all[i] = p
	}
	fmt.Fprintf(say, "measuring for %s …\n", d)
	var group sync.WaitGroup
	start := time.Now().Add(time.Second)
	end := start.Add(d)
	errs := make([]error, len(all))
	var before, after usage
	if use != nil {
		group.Go(func() {
			time.Sleep(time.Until(start))
			before = use()
			time.Sleep(time.Until(end))
			after = use()
		})
	}
	for i, p := range all {
		group.Go(func() { errs[i] = p.run(b, start, end) })
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var lat []time.Duration
	for _, p := range all {
		b.Messages += p.counted
		lat = append(lat, p.latencies...)
	}
	if b.Messages == 0 {
		return errors.New("nothing was acknowledged")
	}
	slices.Sort(lat)
	at := func(q float64) time.Duration { return lat[min(int(q*float64(len(lat))), len(lat)-1)] }
	b.Seconds = d.Seconds()
	b.PerSecond = float64(b.Messages) / b.Seconds
	b.P50, b.P99, b.P999 = at(.5), at(.99), at(.999)
	if use != nil {
		b.CPU = float64((after.cpu - before.cpu).Microseconds()) / float64(b.Messages)
		b.Batches = float64(after.batches-before.batches) / b.Seconds
		if b.Batches > 0 {
			b.BatchMean = b.PerSecond / b.Batches
		}
	}
	return nil
}

// mayHold says no where this process, and the platform it starts, may not have so many files open as n connections want.
func mayHold(n int) error {
	most, err := holdable()
	if err == nil && n > most {
		err = fmt.Errorf("%d connections want %d open files, and this machine gives a process %d (ulimit -Hn): raise that, or take --connections %d",
			n, n+otherFiles, most+otherFiles, max(most, 1))
	}
	return err
}

// holdable is how many connections a process may hold here.
func holdable() (int, error) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 0, fmt.Errorf("ask how many files may be open: %w", err)
	}
	return int(min(files.Max, 1<<30)) - otherFiles, nil // Go has raised the soft limit to the hard one
}

// otherFiles is what a process has open beside the connections: stores, logs and their streams.
const otherFiles = 500

// publisher is one connection of the load.
type publisher struct {
	conn      net.Conn
	topic     string
	counted   uint64
	latencies []time.Duration
}

func newPublisher(ctx context.Context, id string, b *ingest, dial func(context.Context, string) (net.Conn, error)) (_ *publisher, err error) {
	conn, err := dial(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", id, err)
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	hello := packet.Connect{Version: packet.V311, CleanStart: true, ClientID: id}
	if _, err := conn.Write(hello.Append(nil)); err != nil {
		return nil, err
	}
	var ack [4]byte
	if _, err := io.ReadFull(conn, ack[:]); err != nil || ack[0] != byte(packet.CONNACK)<<4 || ack[3] != 0 {
		return nil, fmt.Errorf("connect %s: refused (%x, %v)", id, ack, err)
	}
	return &publisher{conn: conn, topic: "device/" + id + "/telemetry"}, nil
}

// run keeps the window full until the end, and counts what is acknowledged after start.
func (p *publisher) run(b *ingest, start, end time.Time) error {
	pub := packet.Publish{QoS: 1, Topic: p.topic, Payload: make([]byte, b.Payload)}
	for i := range pub.Payload {
		pub.Payload[i] = byte('a' + i%26)
	}
	sent := make([]time.Time, b.Window+1)
	buf := make([]byte, 0, b.Payload+64)
	say := func(id uint16) error {
		pub.ID = id
		sent[id] = time.Now()
		buf = pub.Append(buf[:0], packet.V311)
		_, err := p.conn.Write(buf) // one write for one message, as a device does it
		return err
	}
	for id := 1; id <= b.Window; id++ {
		if err := say(uint16(id)); err != nil {
			return err
		}
	}
	in := make([]byte, 4096)
	have, open := 0, b.Window
	for open > 0 {
		if err := p.conn.SetReadDeadline(end.Add(30 * time.Second)); err != nil {
			return err
		}
		n, err := p.conn.Read(in[have:])
		if err != nil {
			return fmt.Errorf("%s: %d messages unacknowledged: %w", p.topic, open, err)
		}
		have += n
		used := 0
		now := time.Now()
		for ; have-used >= 4; used += 4 {
			if in[used] != byte(packet.PUBACK)<<4 || in[used+1] != 2 {
				return fmt.Errorf("%s: answered with %x", p.topic, in[used:used+4])
			}
			id := uint16(in[used+2])<<8 | uint16(in[used+3])
			if now.After(start) && now.Before(end) {
				p.counted++
				if p.counted%8 == 1 || b.Window == 1 { // a share is enough for percentiles
					p.latencies = append(p.latencies, now.Sub(sent[id]))
				}
			}
			if now.After(end) {
				open--
			} else if err := say(id); err != nil {
				return err
			}
		}
		have = copy(in, in[used:have])
	}
	return nil
}

// child is a naru of its own process, so that its CPU time is its own.
type child struct {
	cmd  *exec.Cmd
	dir  string
	o    *options
	cl   *client
	addr struct{ tls, plain string }
	pool *x509.CertPool

	firstAck time.Duration // from its start
	gone     chan struct{} // closed when it has ended
}

// startChild starts a whole platform.
func startChild(ctx context.Context, b *ingest) (*child, error) {
	args := []string{"up"}
	if !b.Tracing {
		args = append(args, "--without", "operator.journal,operator.ledger,operator.topic")
	}
	k, err := launch(ctx, b.config, nil, args...)
	if err != nil || !b.TLS {
		return k, err
	}
	ca, err := fetchCA(ctx, k.cl)
	if err != nil {
		k.stop()
		return nil, err
	}
	k.pool = x509.NewCertPool()
	k.pool.AppendCertsFromPEM(ca)
	return k, nil
}

// launch starts a naru with a broker on a directory of its own, with more in its environment, and returns when it is ready.
func launch(ctx context.Context, config string, env []string, args ...string) (*child, error) {
	dir, err := os.MkdirTemp("", "naru-bench-")
	if err != nil {
		return nil, err
	}
	k := &child{dir: dir, o: &options{data: dir}}
	if err := k.start(ctx, config, env, args); err != nil {
		raw, _ := os.ReadFile(filepath.Join(dir, "log"))
		k.stop()
		return nil, fmt.Errorf("the platform did not start: %w\n%s", err, raw)
	}
	return k, nil
}

func (k *child) start(ctx context.Context, config string, env, args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, addr := range []*string{&k.addr.tls, &k.addr.plain} {
		if *addr, err = freeAddress(); err != nil {
			return err
		}
	}
	args = append(args, "--data", k.dir, "--http", "127.0.0.1:0", "--mqtt", k.addr.tls, "--mqtt-plain", k.addr.plain)
	if config != "" {
		file := filepath.Join(k.dir, "bench.yaml")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			return err
		}
		args = append(args, "--config", file)
	}
	log, err := os.Create(filepath.Join(k.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	k.cmd = exec.Command(self, args...)
	k.cmd.Env = append(os.Environ(), env...)
	k.cmd.Stdout, k.cmd.Stderr = log, log
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us, and we stop it
	began := time.Now()
	if err := k.cmd.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	k.gone = make(chan struct{})
	go func() {
		cancel(fmt.Errorf("it has ended: %w", cmp.Or(k.cmd.Wait(), errors.New("without a fault"))))
		close(k.gone)
	}()
	if k.firstAck, err = firstAck(ctx, began, k.dial(false)); err != nil {
		return err
	}
	until := time.Now().Add(30 * time.Second)
	for {
		if k.cl, err = k.o.client(); err == nil {
			var r io.ReadCloser
			if r, err = k.cl.open(ctx, http.MethodGet, "/readyz", nil, nil); err == nil {
				return r.Close()
			}
		}
		if time.Now().After(until) || ctx.Err() != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// freeAddress is a loopback address that nobody listens at.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func (k *child) stop() {
	if k.gone != nil {
		_ = k.cmd.Process.Signal(os.Interrupt)
		<-k.gone
	}
	_ = os.RemoveAll(k.dir)
}

// dial gives connections, each of a device of its own.
func (k *child) dial(secure bool) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, id string) (net.Conn, error) {
		if !secure {
			return net.Dial("tcp", k.addr.plain)
		}
		pair, err := k.cl.enroll(ctx, id)
		if err != nil {
			return nil, err
		}
		return tls.Dial("tcp", k.addr.tls, &tls.Config{RootCAs: k.pool, Certificates: []tls.Certificate{pair}, ServerName: "localhost", MinVersion: tls.VersionTLS12})
	}
}

// enroll registers a device for a measurement, and gives what it connects with.
func (c *client) enroll(ctx context.Context, id string) (tls.Certificate, error) {
	var e struct{ Certificate, Key string }
	if err := c.post(ctx, "/api/v1/devices", map[string]string{"id": id, "by": "bench"}, &e); err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
}

type usage struct {
	cpu     time.Duration
	batches uint64
}

// usage reads the child's CPU time, and how many batches it has written.
func (k *child) usage() usage {
	u := usage{cpu: cpuOf(k.cmd.Process.Pid)}
	var s status.Status
	if k.cl.get(context.Background(), "/api/v1/status", nil, &s) == nil {
		for _, l := range s.Logs {
			u.batches += l.Batches
		}
	}
	return u
}

// cpuOf reads a process's CPU time from the kernel.
func cpuOf(pid int) time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	if len(f) <= 13 {
		return 0
	}
	user, _ := strconv.ParseUint(f[11], 10, 64)
	system, _ := strconv.ParseUint(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 wherever Go runs
}

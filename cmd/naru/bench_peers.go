package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/bus/nats/mqttpeer"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// peerNames are the brokers that naru is held against.
var peerNames = []string{"mosquitto", "mosquitto-tls", "nats", "nats-sync"}

// comparison is several brokers under one load, in alternating runs.
type comparison struct {
	PerSecond float64  `json:"messages_per_second"` // of naru with mutual TLS and all it does, the median
	Rounds    int      `json:"rounds"`
	Medians   []ingest `json:"medians"`
	Runs      []ingest `json:"runs"` // in the order in which they ran
}

// contender is one that runs.
type contender struct {
	name         string
	tls, tracing bool
	peer         string // empty where it is naru
}

// compare runs naru in its ways and the peers, one after the other, so many rounds, and shows the medians.
func (b *ingest) compare(c *cobra.Command, o *options, beside []string, rounds int, d time.Duration) error {
	if rounds < 1 {
		return fmt.Errorf("--rounds %d: want at least 1", rounds)
	}
	all := []contender{{"naru, mutual TLS", true, true, ""}, {"naru, plain", false, true, ""}, {"naru, plain, no tracing", false, false, ""}}
	for _, name := range beside {
		if !slices.Contains(peerNames, name) {
			return fmt.Errorf("--peers=%s: there are %s", name, strings.Join(peerNames, ", "))
		}
		all = append(all, contender{name, strings.HasSuffix(name, "-tls"), false, name})
	}
	if _, err := mosquitto(); err != nil && slices.ContainsFunc(beside, func(s string) bool { return strings.HasPrefix(s, "mosquitto") }) {
		return err
	}
	out := comparison{Rounds: rounds}
	say := c.ErrOrStderr()
	for round := range rounds {
		for _, k := range all {
			fmt.Fprintf(say, "round %d of %d: %s\n", round+1, rounds, k.name)
			run := ingest{Publishers: b.Publishers, Window: b.Window, Payload: b.Payload, TLS: k.tls, Tracing: k.tracing, Target: k.name}
			err := run.contend(c.Context(), k, d)
			if err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			out.Runs = append(out.Runs, run)
		}
	}
	for _, k := range all {
		out.Medians = append(out.Medians, median(out.Runs, k.name))
	}
	out.PerSecond = out.Medians[0].PerSecond
	return o.show(c.OutOrStdout(), out, func(p *printer) {
		p.line("%d publishers × window %d, %d bytes, %s each, medians of %d alternating runs", b.Publishers, b.Window, b.Payload, d, rounds)
		p.columns("", "BROKER", "MSG/S", "NARU PLAIN IS", "P50", "P99", "P99.9", "CPU µS/MSG", "FSYNC/S", "START TO PUBACK")
		for _, m := range out.Medians {
			times, fsyncs := "", ""
			if m.PerSecond > 0 {
				times = fmt.Sprintf("%.2f ×", out.Medians[1].PerSecond/m.PerSecond)
			}
			if m.Batches > 0 {
				fsyncs = fmt.Sprintf("%.0f", m.Batches)
			}
			p.row(m.Target, fmt.Sprintf("%.0f", m.PerSecond), times, fine(m.P50), fine(m.P99), fine(m.P999), fmt.Sprintf("%.2f", m.CPU), fsyncs, fine(m.FirstAck))
		}
		p.line("What stores and syncs before it acknowledges: naru and nats-sync. nats stores, mosquitto stores nothing.")
	})
}

// contend is one run.
func (b *ingest) contend(ctx context.Context, k contender, d time.Duration) error {
	if k.peer == "" {
		return b.measureChild(ctx, io.Discard, d)
	}
	p, err := startPeer(ctx, k.peer)
	if err != nil {
		return err
	}
	defer p.stop()
	b.FirstAck = p.firstAck
	return b.measure(ctx, io.Discard, d, p.dial, func() usage { return usage{cpu: cpuOf(p.cmd.Process.Pid)} })
}

// median takes each figure's median by itself.
func median(runs []ingest, name string) ingest {
	var of []ingest
	for _, r := range runs {
		if r.Target == name {
			of = append(of, r)
		}
	}
	m := of[0]
	mid := func(get func(*ingest) float64) float64 {
		var v []float64
		for i := range of {
			v = append(v, get(&of[i]))
		}
		slices.Sort(v)
		return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
	}
	for _, f := range []func(*ingest) *float64{
		func(b *ingest) *float64 { return &b.PerSecond }, func(b *ingest) *float64 { return &b.CPU },
		func(b *ingest) *float64 { return &b.Batches }, func(b *ingest) *float64 { return &b.BatchMean },
	} {
		*f(&m) = mid(func(b *ingest) float64 { return *f(b) })
	}
	for _, f := range []func(*ingest) *time.Duration{
		func(b *ingest) *time.Duration { return &b.P50 }, func(b *ingest) *time.Duration { return &b.P99 },
		func(b *ingest) *time.Duration { return &b.P999 }, func(b *ingest) *time.Duration { return &b.FirstAck },
	} {
		*f(&m) = time.Duration(mid(func(b *ingest) float64 { return float64(*f(b)) }))
	}
	m.Messages = uint64(mid(func(b *ingest) float64 { return float64(b.Messages) }))
	return m
}

// firstAck connects to a server that has just been started, until it is let in, publishes one message, and tells when that
// was acknowledged.
func firstAck(ctx context.Context, began time.Time, dial func(context.Context, string) (net.Conn, error)) (time.Duration, error) {
	var last error
	for time.Since(began) < 30*time.Second && ctx.Err() == nil {
		if last = oneAck(ctx, dial); last == nil {
			return time.Since(began), nil
		}
		time.Sleep(2 * time.Millisecond)
	}
	return 0, cmp.Or(context.Cause(ctx), last)
}

func oneAck(ctx context.Context, dial func(context.Context, string) (net.Conn, error)) error {
	p, err := newPublisher(ctx, "bench-first", &ingest{}, dial)
	if err != nil {
		return err
	}
	defer p.conn.Close()
	pub := packet.Publish{QoS: 1, ID: 1, Topic: p.topic, Payload: []byte("first")}
	if _, err := p.conn.Write(pub.Append(nil, packet.V311)); err != nil {
		return err
	}
	var ack [4]byte
	if err := p.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.ReadFull(p.conn, ack[:]); err != nil || ack[0] != byte(packet.PUBACK)<<4 {
		return fmt.Errorf("the first message is answered with %x (%v)", ack, err)
	}
	return nil
}

// peer is another broker in a process of its own.
type peer struct {
	cmd      *exec.Cmd
	dir      string
	dial     func(context.Context, string) (net.Conn, error)
	firstAck time.Duration
}

func startPeer(ctx context.Context, name string) (*peer, error) {
	dir, err := os.MkdirTemp("", "naru-peer-")
	if err != nil {
		return nil, err
	}
	p := &peer{dir: dir}
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p.dial = func(context.Context, string) (net.Conn, error) { return net.Dial("tcp", addr) }
	if p.cmd, err = p.command(name, addr); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	if p.firstAck, err = firstAck(ctx, began, p.dial); err != nil {
		raw, _ := os.ReadFile(log.Name())
		p.stop()
		return nil, fmt.Errorf("it did not start: %w\n%s", err, raw)
	}
	return p, nil
}

func (p *peer) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	_ = p.cmd.Wait()
	_ = os.RemoveAll(p.dir)
}

// mosquitto is where it is installed.
func mosquitto() (string, error) {
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("there is no mosquitto on this machine: install it (Debian: apt-get install mosquitto), or leave it out with --peers=nats,nats-sync")
}

func (p *peer) command(name, addr string) (*exec.Cmd, error) {
	if strings.HasPrefix(name, "nats") {
		self, err := os.Executable()
		args := []string{"bench", "peer", "--mqtt", addr, "--dir", p.dir}
		if name == "nats-sync" {
			args = append(args, "--sync")
		}
		return exec.Command(self, args...), err
	}
	binary, err := mosquitto()
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\n", port)
	if os.Getuid() == 0 {
		conf += "user root\n"
	}
	if name == "mosquitto-tls" {
		client, err := throwaway(p.dir)
		if err != nil {
			return nil, err
		}
		conf += fmt.Sprintf("cafile %[1]s/ca.crt\ncertfile %[1]s/server.crt\nkeyfile %[1]s/server.key\nrequire_certificate true\n", p.dir)
		p.dial = func(context.Context, string) (net.Conn, error) { return tls.Dial("tcp", addr, client) }
	}
	file := filepath.Join(p.dir, "mosquitto.conf")
	return exec.Command(binary, "-c", file), os.WriteFile(file, []byte(conf), 0o600)
}

// throwaway makes a CA, a server's certificate into dir, and gives what clients connect with.
func throwaway(dir string) (*tls.Config, error) {
	template := func(name string, ca bool) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
			NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour), IsCA: ca, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	}
	block := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	caTemplate := template("bench CA", true)
	caDER, err := x509.CreateCertificate(rand.Reader, caTemplate, caTemplate, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template("localhost", false), caTemplate, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	for name, text := range map[string][]byte{"ca.crt": block("CERTIFICATE", caDER), "server.crt": block("CERTIFICATE", der), "server.key": block("PRIVATE KEY", keyDER)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return nil, err
		}
	}
	ca, err := x509.ParseCertificate(caDER)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
}

// benchPeer runs NATS's own MQTT listener, for --peers.
func benchPeer() *cobra.Command {
	var o mqttpeer.Options
	c := &cobra.Command{
		Use: "peer", Short: "Run NATS's own MQTT listener, to measure it", Args: cobra.NoArgs, Hidden: true,
		Long:    "Runs nats-server's own MQTT listener until it is interrupted, so that `naru bench ingest --target` can measure it.",
		Example: "  naru bench peer --mqtt 127.0.0.1:1885 --sync",
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Dir == "" {
				dir, err := os.MkdirTemp("", "naru-peer-")
				if err != nil {
					return err
				}
				defer os.RemoveAll(dir)
				o.Dir = dir
			}
			return mqttpeer.Run(c.Context(), o)
		},
	}
	c.Flags().StringVar(&o.MQTT, "mqtt", "127.0.0.1:1885", "address for MQTT clients")
	c.Flags().StringVar(&o.Dir, "dir", "", "where it stores; a temporary directory where empty")
	c.Flags().BoolVar(&o.Sync, "sync", false, "sync each message to disk before it is acknowledged, as naru does")
	return c
}

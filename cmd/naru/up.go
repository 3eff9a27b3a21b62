package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/kinesis"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/data_platform/api"
	"github.com/naru-platform/naru/data_platform/bridge"
	"github.com/naru-platform/naru/data_platform/etl"
	"github.com/naru-platform/naru/data_platform/pump"
	"github.com/naru-platform/naru/data_platform/storage"
	"github.com/naru-platform/naru/device/simulator"
	"github.com/naru-platform/naru/internal/answer"
	"github.com/naru-platform/naru/internal/whole"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/operator/deadletter"
	"github.com/naru-platform/naru/operator/journal"
	"github.com/naru-platform/naru/operator/ledger"
	"github.com/naru-platform/naru/operator/partition"
	"github.com/naru-platform/naru/operator/retention"
	"github.com/naru-platform/naru/operator/status"
	"github.com/naru-platform/naru/operator/topic"
	"github.com/naru-platform/naru/service_platform/broker"
	"github.com/naru-platform/naru/service_platform/command"
	"github.com/naru-platform/naru/service_platform/rule"
	"github.com/naru-platform/naru/service_platform/twin"
	"github.com/naru-platform/naru/service_platform/webhook"
	"github.com/naru-platform/naru/service_platform/worker"
	"github.com/naru-platform/naru/service_platform/x509"
)

// specs lists what is inside, in the order of the picture.
func specs(admission *x509.Admission, platform simulator.Platform) []component.Spec {
	hub := storage.NewHub()
	return []component.Spec{
		simulator.With(platform),
		x509.With(admission),
		broker.With(admission),
		rule.Spec,
		worker.Spec,
		webhook.Spec,
		twin.Spec,
		command.Spec,
		bridge.Spec,
		api.With(hub, etl.Tried),
		pump.Spec,
		storage.With(hub),
		etl.With(hub),
		journal.Spec,
		ledger.Spec,
		deadletter.Spec,
		topic.Spec,
		retention.Spec,
		partition.Spec,
		status.Spec,
	}
}

// start are the flags of up and run.
type start struct {
	o                       *options
	config                  string
	mqtt, plain, http       string
	bus, busListen, without string
	sim                     int
	verbose                 bool
	prefixes                []string // of components; none for all
}

func upCommand(o *options) *cobra.Command {
	s := &start{o: o}
	c := &cobra.Command{
		Use: "up", Short: "Run everything in one process", Args: cobra.NoArgs,
		Long: `Runs every component in one process, with the bus embedded, until Ctrl-C. Nothing is reachable from other machines
unless an address says so.`,
		Example: "  naru up --sim 20\n  naru up --data /var/lib/naru --mqtt 0.0.0.0:8883",
		RunE:    func(c *cobra.Command, _ []string) error { return s.run(c.Context(), c) },
	}
	s.flags(c)
	c.Flags().IntVar(&s.sim, "sim", 0, "run so many simulated devices as well")
	c.Flags().StringVar(&s.without, "without", "", "leave out the components whose names begin so (comma-separated)")
	return c
}

func runCommand(o *options) *cobra.Command {
	s := &start{o: o}
	c := &cobra.Command{
		Use: "run COMPONENT-PREFIX...", Short: "Run some components, the rest elsewhere on the same bus", Args: cobra.MinimumNArgs(1),
		Long: `Runs the components whose names begin with one of the prefixes, joined to the others by an external bus (--bus). Without
--bus it embeds one, as up does.`,
		Example: "  naru run service_platform --bus nats://10.0.0.5:4222\n  naru run operator.journal operator.ledger --bus nats://10.0.0.5:4222",
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, s := range specs(nil, nil) {
				names = append(names, s.Name)
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			s.prefixes = args
			return s.run(c.Context(), c)
		},
	}
	s.flags(c)
	return c
}

func (s *start) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.config, "config", "", "configuration `FILE`, YAML; naru config show prints one")
	f.StringVar(&s.mqtt, "mqtt", "", "address for devices, mutual TLS (default 127.0.0.1:8883); where the configuration has no such listener, the address of its first")
	f.StringVar(&s.plain, "mqtt-plain", "", "loopback address for MQTT without TLS; for benchmarks")
	f.StringVar(&s.http, "http", "", "address for operators and apps (default 127.0.0.1:8780); TLS unless it is loopback")
	f.StringVar(&s.bus, "bus", "", "URL of an external NATS JetStream, instead of the embedded one")
	f.StringVar(&s.busListen, "bus-listen", "", "address at which others may join the embedded bus; wants bus.user and bus.password_file")
	f.BoolVarP(&s.verbose, "verbose", "v", false, "log more")
}

// process is a naru that runs.
type process struct {
	conf  *config
	data  string
	node  string
	token string
	log   *slog.Logger
	bus   bus.Bus
	host  *component.Host
	url   string
	ca    string
}

func (s *start) run(ctx context.Context, c *cobra.Command) error {
	began := time.Now()
	conf, err := loadConfig(s)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if s.verbose {
		level = slog.LevelDebug
	}
	p := &process{conf: conf, data: s.o.data, log: slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: level}))}
	if err := os.MkdirAll(p.data, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	unlock, err := lock(p.data)
	if err != nil {
		return err
	}
	defer unlock()
	if err := component.CheckFormat(p.data); err != nil {
		return err
	}
	if err := p.identity(); err != nil {
		return err
	}
	if p.bus, err = p.openBus(ctx); err != nil {
		return err
	}
	defer p.bus.Close()

	all := []string(nil)
	admission := x509.NewAdmission(p.bus, x509.AdmissionOptions{Log: p.log, Node: p.node, ServerCert: p.file(conf.ServerCert, "server.crt"), ServerKey: p.file(conf.ServerKey, "server.key")})
	platform := &self{}
	var chosen []component.Spec
	for _, spec := range specs(admission, platform) {
		spec, here := conf.overKinesis(spec)
		if !here {
			continue
		}
		all = append(all, spec.Name)
		if s.chosen(spec.Name) {
			chosen = append(chosen, spec)
		}
	}
	if len(chosen) == 0 && slices.Contains(s.prefixes, pump.Name) {
		return fmt.Errorf("%s copies into a Kinesis stream, and none is configured: name it in bus.kinesis.stream (docs/kinesis.md)", pump.Name)
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no component's name begins with %s; there are %s", strings.Join(s.prefixes, ", "), strings.Join(all, ", "))
	}
	if err := conf.cluster(); err != nil {
		return err
	}
	for name := range conf.Components {
		if !contains(chosen, name) {
			delete(conf.Components, name) // is another process's; its keys were checked
		}
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.host = &component.Host{Bus: p.bus, Catalog: conf.Catalog, Log: p.log, Dir: p.data, Node: p.node, Metrics: registry,
		Config: conf.Components, Specs: chosen}

	listener, err := p.listen(ctx, admission, contains(chosen, x509.Name))
	if err != nil {
		return err
	}
	p.host.HTTP = p.url
	platform.mqtt = func() string { return conf.mqtt(p.bound()) }
	platform.client = &client{where: where{URL: p.url, Token: p.token, CA: p.ca}, http: http.DefaultClient}
	server := &http.Server{Handler: p.handler(registry), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	group.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve %s: %w", p.url, err))
		}
	})
	admitting, admitted := context.WithCancel(context.WithoutCancel(ctx))
	defer admitted()
	if contains(chosen, "service_platform.broker") {
		group.Go(func() {
			if err := admission.Run(admitting, func() {}); err != nil && admitting.Err() == nil {
				cancel(fmt.Errorf("admission: %w", err))
			}
		})
	}
	if err := p.writeWhere(); err != nil {
		return err
	}
	defer os.Remove(filepath.Join(p.data, whereFile))
	group.Go(func() { p.announce(ctx, c, began, chosen) })
	if s.sim > 0 && contains(chosen, worker.Name) {
		group.Go(func() { mechanic(ctx, platform.client, p.log) })
	}

	err = p.host.Run(ctx)
	admitted()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	if serr := server.Shutdown(stop); serr != nil {
		_ = server.Close() // a stream that was followed
	}
	cancel(nil)
	group.Wait()
	if err == nil {
		err = context.Cause(ctx)
		if errors.Is(err, context.Canceled) {
			err = nil
		}
	}
	p.log.Info("stopped")
	return err
}

// chosen says whether a component is to run here.
func (s *start) chosen(name string) bool {
	for _, w := range strings.Split(s.without, ",") {
		if w != "" && hasPrefix(name, w) {
			return false
		}
	}
	if len(s.prefixes) == 0 {
		return true
	}
	for _, p := range s.prefixes {
		if hasPrefix(name, p) {
			return true
		}
	}
	return false
}

// hasPrefix goes by whole words: `operator` is before `operator.journal`, and `op` is not.
func hasPrefix(name, prefix string) bool {
	prefix = strings.TrimSuffix(prefix, ".")
	return name == prefix || strings.HasPrefix(name, prefix+".")
}

func contains(specs []component.Spec, name string) bool {
	for _, s := range specs {
		if s.Name == name {
			return true
		}
	}
	return false
}

// file is a path from the configuration, or one in the CA's directory.
func (p *process) file(configured, name string) string {
	if configured != "" {
		return configured
	}
	return filepath.Join(p.data, x509.Name, name)
}

// identity reads, or makes at the first start, the node's name and the token.
func (p *process) identity() error {
	read := func(name string, n int, make func() string) (string, error) {
		file := filepath.Join(p.data, name)
		raw, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			v := make()
			return v, whole.Write(file, []byte(v+"\n"), 0o600)
		}
		v := strings.TrimSpace(string(raw))
		if err == nil && len(v) < n {
			err = fmt.Errorf("%s is damaged: remove it, and it is made anew", file)
		}
		return v, err
	}
	var err error
	if p.token, err = read("token", 16, func() string { return random(24) }); err != nil {
		return err
	}
	p.node, err = read("node", 1, func() string { return cmp.Or(p.conf.Node, "n-"+random(3)) })
	if is := p.conf.Node; err == nil && is != "" && is != p.node {
		return fmt.Errorf("%s is the directory of node %s, and the configuration says that this is %s, for whom what lies there is nobody's: say `node: %s`, use another --data, or rename the node in %s",
			p.data, p.node, is, p.node, filepath.Join(p.data, "node"))
	}
	return err
}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// openBus opens the bus, with the Kinesis log where one is configured.
func (p *process) openBus(ctx context.Context) (bus.Bus, error) {
	inner, err := p.openNats(ctx)
	if err != nil || p.conf.Bus.Kinesis.Stream == "" {
		return inner, err
	}
	b, err := kinesis.Over(ctx, inner, kinesis.Options{Config: p.conf.Bus.Kinesis, Source: message.DataPlatform, Log: p.log.With("component", "bus")})
	if err != nil {
		inner.Close()
		return nil, err
	}
	return b, nil
}

// overKinesis says what reads the Kinesis log, where there is one: the etl instead of the log that is copied, and the ledger
// as well as that. Without one nobody copies.
func (c *config) overKinesis(spec component.Spec) (_ component.Spec, here bool) {
	copied := bus.CopyName(message.DataPlatform)
	switch {
	case c.Bus.Kinesis.Stream == "":
		return spec, spec.Name != pump.Name
	case spec.Name == etl.Name:
		spec.Instead = map[string]string{message.DataPlatform: copied}
	case spec.Name == ledger.Spec.Name:
		spec.Also = []string{copied}
	}
	return spec, true
}

func (p *process) openNats(ctx context.Context) (*nats.Bus, error) {
	b := p.conf.Bus
	o := nats.Options{URL: b.URL, Listen: b.Listen, User: b.User, CredsFile: b.CredsFile, Replicas: b.Replicas, Partitions: b.Partitions, LowWater: b.LowWaterBytes, Log: p.log.With("component", "bus")}
	if b.URL == "" {
		o.Dir = filepath.Join(p.data, "bus")
	}
	if b.PasswordFile != "" {
		raw, err := os.ReadFile(b.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("bus.password_file: %w", err)
		}
		o.Password = strings.TrimSpace(string(raw))
	}
	if b.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(b.CertFile, b.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("bus.cert_file: %w", err)
		}
		o.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	return nats.Open(ctx, o)
}

// listen opens the address for operators. Beyond loopback it speaks TLS.
func (p *process) listen(ctx context.Context, a *x509.Admission, ca bool) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.conf.HTTP)
	if err != nil {
		return nil, fmt.Errorf("listen for operators: %w; another address: --http", err)
	}
	addr := l.Addr().(*net.TCPAddr)
	if addr.IP.IsLoopback() {
		p.url = "http://" + addr.String()
		return l, nil
	}
	host := "localhost"
	if h, _, err := net.SplitHostPort(p.conf.HTTP); err == nil && h != "" && h != "0.0.0.0" && h != "::" {
		host = h
	}
	p.url = "https://" + net.JoinHostPort(host, fmt.Sprint(addr.Port))
	tc := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		c, err := a.ServerTLS()
		if err != nil {
			return nil, err
		}
		return c.GetCertificate(h)
	}}
	if ca {
		root, err := os.ReadFile(filepath.Join(p.data, x509.Name, "root.crt"))
		if err == nil {
			p.ca = string(root)
		}
	}
	return tls.NewListener(l, tc), nil
}

// handler answers for all components, and for the process itself.
func (p *process) handler(r *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", p.host.Handler(p.allowed))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		var not []string
		for _, h := range p.host.Health() {
			if h.State != "running" && h.State != "standby" && h.Of == "" { // a child's fault is no other's
				not = append(not, h.Name+" is "+h.State)
			}
		}
		if st := p.bus.Status(r.Context()); !st.Up {
			not = append(not, "the bus is down: "+st.Fault)
		}
		if len(not) > 0 {
			answer.Error(w, answer.Unavailable("not ready: %s", strings.Join(not, "; ")))
			return
		}
		fmt.Fprintln(w, "ready")
	})
	for pattern, h := range map[string]http.HandlerFunc{"GET /debug/pprof/": pprof.Index, "GET /debug/pprof/profile": pprof.Profile, "GET /debug/pprof/trace": pprof.Trace} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if !p.allowed(r) {
				answer.Error(w, &answer.Problem{Status: http.StatusUnauthorized, Title: "Unauthorized", Detail: "profiles want the platform's token"})
				return
			}
			h(w, r)
		})
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	return mux
}

func (p *process) allowed(r *http.Request) bool {
	got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return ok && subtle.ConstantTimeCompare([]byte(got), []byte(p.token)) == 1
}

// bound is where the broker of this process listens by now, by the listeners' names.
func (p *process) bound() map[string]string {
	for _, h := range p.host.Health() {
		if h.Name == brokerName {
			return h.Listens
		}
	}
	return nil
}

// writeWhere tells the other commands where this process answers.
func (p *process) writeWhere() error {
	raw, err := json.MarshalIndent(where{URL: p.url, Token: p.token, CA: p.ca, PID: os.Getpid(), MQTT: p.conf.mqtt(p.bound())}, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(p.data, whereFile)
	if err := os.WriteFile(file+".new", raw, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// announce says where the platform listens and what to try, once every component runs.
func (p *process) announce(ctx context.Context, c *cobra.Command, began time.Time, chosen []component.Spec) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		up := true
		for _, h := range p.host.Health() {
			up = up && (h.State == "running" || h.State == "standby" || h.Of != "")
		}
		if up {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	if err := p.writeWhere(); err != nil { // again, since the addresses are real now
		p.log.Warn("tell other commands where this process answers", "error", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nnaru is up after %s: node %s, data in %s\n\n", short(time.Since(began)), p.node, p.data)
	if contains(chosen, "service_platform.broker") {
		for _, line := range p.conf.listening(p.bound()) {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	fmt.Fprintf(&b, "  operators    %s\n\n", p.url)
	if contains(chosen, "operator.journal") {
		at := ""
		if p.data != "./naru-data" {
			at = " --data " + p.data
		}
		fmt.Fprintf(&b, "try, in another terminal:\n")
		if p.conf.forDevices() {
			fmt.Fprintf(&b, "  %s%s topic echo 'device.*.telemetry'    what devices say, live\n", calledAs(), at)
		} else {
			fmt.Fprintf(&b, "  %s%s topic echo                         what is said, live\n", calledAs(), at)
		}
		fmt.Fprintf(&b, "  %s%s messages --follow                  the message list\n", calledAs(), at)
		fmt.Fprintf(&b, "  %s%s trace <trace id>                   one message's way\n", calledAs(), at)
		if p.conf.forDevices() {
			fmt.Fprintf(&b, "  %s%s device add d-1 --out d-1           a certificate for a device of yours\n", calledAs(), at)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "Ctrl-C stops it; what was acknowledged stays.\n")
	fmt.Fprint(c.OutOrStdout(), b.String())
}

// calledAs is how this program was called, so that what people copy runs.
func calledAs() string {
	if name := os.Args[0]; strings.ContainsRune(name, filepath.Separator) && !filepath.IsAbs(name) {
		return name
	}
	return "naru"
}

// lockPatience is for how long the process before is waited for: one that was killed takes a moment to be gone.
const lockPatience = 3 * time.Second

// lock makes sure that a data directory has one process.
func lock(dir string) (func(), error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	for until := time.Now().Add(lockPatience); unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil; time.Sleep(lockPatience / 30) {
		if !time.Now().Before(until) {
			f.Close()
			return nil, fmt.Errorf("another naru runs on %s; stop it, or use another --data", dir)
		}
	}
	return func() { f.Close() }, nil
}

// self enrols simulated devices with the platform that runs them. Components have no order, so the CA may still be
// starting; it is waited for.
type self struct {
	client *client
	mqtt   func() string // where devices connect; nil in a process that is not the platform
}

// selfPatience is for how long.
const selfPatience = 30 * time.Second

func (s *self) Enrol(ctx context.Context, id string) (certificate, key []byte, err error) {
	var out struct{ Certificate, Key string }
	err = s.patiently(ctx, func() error {
		return s.client.post(ctx, "/api/v1/devices", map[string]any{"id": id, "by": "device.simulator", "groups": []string{"simulated"}}, &out)
	})
	return []byte(out.Certificate), []byte(out.Key), err
}

func (s *self) CA(ctx context.Context) (ca []byte, err error) {
	err = s.patiently(ctx, func() error {
		ca, err = fetchCA(ctx, s.client)
		return err
	})
	return ca, err
}

// Server gives the address of this process's listener for devices.
func (s *self) Server(ctx context.Context) (address string, err error) {
	err = s.patiently(ctx, func() error {
		if s.mqtt == nil {
			return errors.New("no broker runs in this process: set device.simulator.server")
		}
		if address = s.mqtt(); strings.HasSuffix(address, ":0") {
			return errors.New("nobody listens for devices in this process yet")
		}
		return nil
	})
	return address, err
}

func (s *self) patiently(ctx context.Context, f func() error) error {
	until := time.Now().Add(selfPatience)
	for {
		err := f()
		if err == nil || ctx.Err() != nil || time.Now().After(until) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

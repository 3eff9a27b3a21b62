//go:build long

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/internal/porttest"
)

// nodeEnv, where it is set, makes the test binary a NATS server: its options as JSON.
const nodeEnv = "NARU_E2E_NODE"

func init() {
	raw := os.Getenv(nodeEnv)
	if raw == "" {
		return
	}
	var n node
	if err := json.Unmarshal([]byte(raw), &n); err != nil {
		panic(err)
	}
	o := &server.Options{ServerName: n.Name, Host: "127.0.0.1", Port: n.Port, JetStream: true, StoreDir: n.Dir, SyncAlways: true, MaxPayload: 8 << 20, NoSigs: true}
	if n.Cluster != 0 {
		o.Cluster = server.ClusterOpts{Name: "e2e", Host: "127.0.0.1", Port: n.Cluster}
	}
	for _, r := range n.Routes {
		o.Routes = append(o.Routes, server.RoutesFromStr(r)...)
	}
	s, err := server.NewServer(o)
	if err != nil {
		panic(err)
	}
	s.Start()
	s.WaitForShutdown()
	os.Exit(0)
}

// node is a NATS server in a process of its own.
type node struct {
	Name, Dir     string
	Port, Cluster int // Cluster is 0 where it is alone
	Routes        []string
	cmd           *exec.Cmd
}

func (n *node) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", n.Port) }

func (n *node) start(t *testing.T) {
	t.Helper()
	raw, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), nodeEnv+"="+string(raw))
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
		n.cmd = nil
	}
}

func port(t *testing.T) int {
	_, p, _ := net.SplitHostPort(porttest.Addr(t))
	var n int
	fmt.Sscan(p, &n)
	return n
}

// startCluster starts three nodes and waits until they hold elections.
func startCluster(t *testing.T) (nodes []*node, url string) {
	t.Helper()
	var routes, urls []string
	for i := range 3 {
		n := &node{Name: fmt.Sprintf("bus-%d", i), Dir: t.TempDir(), Port: port(t), Cluster: port(t)}
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", n.Cluster))
		urls = append(urls, n.url())
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.Routes = routes
		n.start(t)
		t.Cleanup(n.kill)
	}
	return nodes, strings.Join(urls, ",")
}

// leader is the node that leads the log's stream.
func leader(t *testing.T, url string, nodes []*node) *node {
	t.Helper()
	nc, err := natsgo.Connect(url, natsgo.RetryOnFailedConnect(true), natsgo.MaxReconnects(-1), natsgo.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(60 * time.Second); time.Now().Before(until); {
		if s, err := js.Stream(t.Context(), "NARU_device_g1_p0"); err == nil && s.CachedInfo().Cluster != nil {
			for _, n := range nodes {
				if n.Name == s.CachedInfo().Cluster.Leader {
					return n
				}
			}
		}
	}
	t.Fatal("the stream has no leader")
	return nil
}

// part runs some components of a platform that is split over processes.
func part(t *testing.T, url string, components ...string) *platform {
	t.Helper()
	return partWith(t, url, "", components...)
}

// partWith is part with more of a configuration.
func partWith(t *testing.T, url, more string, components ...string) *platform {
	t.Helper()
	return configured(t, url, "bus:\n  replicas: 3\n"+more, components...)
}

// configured is part with the whole of a configuration.
func configured(t *testing.T, url, text string, components ...string) *platform {
	t.Helper()
	p := &platform{t: t, data: t.TempDir(), mqtt: porttest.Addr(t), plain: porttest.Addr(t)}
	conf := filepath.Join(p.data, "naru.yaml")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.run = append([]string{"run"}, components...)
	p.run = append(p.run, "--bus", url, "--config", conf)
	t.Cleanup(p.kill)
	return p
}

// TestSplitPlatformSurvivesTheDeathOfEachOfItsParts runs the components in three processes against a three-node cluster,
// kills one of each kind in turn, then the leader of the stream, then all three nodes at once; and has a process wake up
// that slept past its lease.
func TestSplitPlatformSurvivesTheDeathOfEachOfItsParts(t *testing.T) {
	nodes, url := startCluster(t)
	door := partWith(t, url, "service_platform.broker:\n  cluster: auto\n", "service_platform")
	index := part(t, url, "operator.journal", "operator.topic", "operator.status")
	proof := part(t, url, "operator.ledger", "operator.retention")
	door.start()
	index.start()
	proof.start()
	door.echo() // there before the first message

	stop := make(chan struct{})
	var group sync.WaitGroup
	senders := make([]*sender, 10)
	for i := range senders {
		s := newSender(fmt.Sprintf("d-%d", i), door.plain)
		senders[i] = s
		group.Go(func() { s.run(stop) })
	}
	breathe := func() { <-time.After(700 * time.Millisecond) }
	for _, p := range []*platform{door, index, proof} {
		breathe()
		p.kill()
		breathe()
		p.start()
	}
	breathe()
	l := leader(t, url, nodes)
	t.Logf("killing %s, the leader", l.Name)
	l.kill()
	for leader(t, url, nodes) == l { // the others have chosen
	}
	l.start(t)
	leader(t, url, nodes)
	breathe()
	for _, n := range nodes {
		n.kill()
	}
	breathe()
	for _, n := range nodes {
		n.start(t)
	}
	leader(t, url, nodes)
	breathe()

	// A second owner of the ledger stands by, takes over while the first sleeps, and the first wakes up.
	second := part(t, url, "operator.ledger")
	second.start()
	if err := proof.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(time.Minute); ; {
		out, code := second.naru("ledger")
		if code != 1 {
			break // its lease is over, and the other is the owner
		}
		if time.Now().After(until) {
			t.Fatalf("nobody takes over from an owner that sleeps: %s", out)
		}
	}
	if err := proof.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	breathe()
	close(stop)
	group.Wait()
	acked := 0
	for _, s := range senders {
		acked += len(s.acked)
	}
	t.Logf("%d messages acknowledged", acked)
	owner := second
	if out, code := second.naru("ledger"); code == 1 {
		t.Logf("the first owner is back: %s", out)
		owner = proof
	}
	for _, l := range owner.settled(uint64(acked)) {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	b, err := nats.Open(t.Context(), nats.Options{URL: url, Replicas: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, fault := range append(logFaults(t, b, senders), effectFaults(t, b)...) {
		t.Error(fault)
	}
}

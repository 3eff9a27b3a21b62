package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/internal/porttest"
)

var (
	buildOnce sync.Once
	binary    string
	buildErr  error
)

// buildFlags are those of the binary: with the race detector where the tests have it.
var buildFlags []string

// naruBinary builds the real binary once.
func naruBinary(t testing.TB) string {
	t.Helper()
	buildOnce.Do(func() {
		var dir string
		if dir, buildErr = os.MkdirTemp("", "naru-e2e-"); buildErr != nil {
			return
		}
		binary = filepath.Join(dir, "naru")
		out, err := exec.Command("go", append(append([]string{"build"}, buildFlags...), "-o", binary, "../../cmd/naru")...).CombinedOutput()
		if err != nil {
			buildErr = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return binary
}

func TestMain(m *testing.M) {
	code := m.Run()
	if binary != "" {
		os.RemoveAll(filepath.Dir(binary))
	}
	os.Exit(code)
}

// platform is a naru process on a data directory.
type platform struct {
	t      testing.TB
	data   string
	mqtt   string
	plain  string
	args   []string
	run    []string // instead of up
	binary string   // instead of the one that is tested
	cmd    *exec.Cmd
	out    *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
	up chan struct{}
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := strings.Contains(s.b.String(), "naru is up")
	n, err := s.b.Write(p)
	if !before && strings.Contains(s.b.String(), "naru is up") {
		close(s.up)
	}
	return n, err
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newPlatform(t testing.TB, args ...string) *platform {
	p := &platform{t: t, data: t.TempDir(), mqtt: porttest.Addr(t), plain: porttest.Addr(t), args: args}
	t.Cleanup(func() { p.kill() })
	return p
}

// start runs `naru up` and returns when it says that it is up.
func (p *platform) start() {
	p.t.Helper()
	p.out = &syncBuffer{up: make(chan struct{})}
	verb := p.run
	if verb == nil {
		verb = []string{"up"}
	}
	args := append(append([]string{}, verb...), []string{"--data", p.data, "--mqtt", p.mqtt, "--mqtt-plain", p.plain, "--http", "127.0.0.1:0"}...)
	args = append(args, p.args...)
	bin := p.binary
	if bin == "" {
		bin = naruBinary(p.t)
	}
	p.cmd = exec.Command(bin, args...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.out.up:
	case <-time.After(3 * time.Minute): // with the race detector, on a busy machine
		p.t.Fatalf("naru did not come up:\n%s", p.out)
	}
}

// kill ends the process as a power cut to it would.
func (p *platform) kill() {
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.cmd = nil
		p.raced()
	}
}

// raced tells of what the race detector has found in the process.
func (p *platform) raced() {
	if said := p.out.String(); strings.Contains(said, "DATA RACE") {
		p.t.Errorf("naru has a data race:\n%s", said)
	}
}

// stop ends it as Ctrl-C does, and wants exit code 0.
func (p *platform) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			p.t.Errorf("naru up ended with %v:\n%s", err, p.out)
		}
	case <-time.After(40 * time.Second):
		p.t.Errorf("naru up did not stop:\n%s", p.out)
		p.kill()
	}
	p.cmd = nil
	p.raced()
}

// naru runs a command against the platform and gives its standard output and exit code.
func (p *platform) naru(args ...string) (string, int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, naruBinary(p.t), append([]string{"--data", p.data}, args...)...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	if err != nil && c.ProcessState == nil {
		p.t.Fatal(err)
	}
	if c.ProcessState.ExitCode() == 1 {
		return out.String() + errs.String(), 1
	}
	return out.String(), c.ProcessState.ExitCode()
}

// json runs a command with -o json and decodes what it prints.
func (p *platform) json(v any, args ...string) int {
	p.t.Helper()
	out, code := p.naru(append(args, "-o", "json")...)
	if code == 1 {
		p.t.Fatalf("naru %s: %s", strings.Join(args, " "), out)
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		p.t.Fatalf("naru %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return code
}

type ledgerLine struct {
	Log, Consumer                    string
	Accepted, Handled, Waiting, Dead uint64
	Balanced                         bool
	Fault                            string
}

// settled waits until nothing waits anywhere, and gives the ledger.
func (p *platform) settled(accepted uint64) []ledgerLine {
	p.t.Helper()
	until := time.Now().Add(3 * time.Minute)
	for {
		var lines []ledgerLine
		p.json(&lines, "ledger")
		ok, device := len(lines) > 0, accepted == 0
		for _, l := range lines {
			ok = ok && l.Waiting == 0 && l.Balanced
			device = device || l.Log == "device" && l.Consumer == "operator.journal" && l.Accepted >= accepted
		}
		if ok && device {
			return lines
		}
		if time.Now().After(until) {
			p.t.Fatalf("the ledger does not come to rest: %+v", lines)
		}
	}
}

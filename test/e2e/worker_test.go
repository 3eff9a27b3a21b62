//go:build long

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/internal/porttest"
	"github.com/naru-platform/naru/message"
)

// newWorkshop is a platform that may call workers on this machine, at an address that stays.
func newWorkshop(t *testing.T) (p *platform, url string) {
	file := filepath.Join(t.TempDir(), "naru.yaml")
	if err := os.WriteFile(file, []byte("service_platform.worker:\n  allow: [127.0.0.0/8]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := porttest.Addr(t)
	return newPlatform(t, "--config", file, "--http", addr), "http://" + addr
}

// must runs a command that has to succeed.
func (p *platform) must(args ...string) {
	p.t.Helper()
	if out, code := p.naru(args...); code != 0 {
		p.t.Fatalf("naru %s: %d %s", strings.Join(args, " "), code, out)
	}
}

// until waits for something that happens.
func until(t *testing.T, what string, happened func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(3 * time.Minute)
	defer late.Stop()
	for !happened() {
		select {
		case <-tick.C:
		case <-late.C:
			t.Fatalf("it does not happen: %s", what)
		}
	}
}

// aside is a process beside the platform.
type aside struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

func beside(t *testing.T, env []string, name string, args ...string) *aside {
	t.Helper()
	a := &aside{cmd: exec.Command(name, args...)}
	a.cmd.Env = append(os.Environ(), env...)
	a.cmd.Stdout, a.cmd.Stderr = &a.out, &a.out
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.kill)
	return a
}

func (a *aside) kill() {
	if a.cmd.ProcessState == nil {
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
	}
}

// environment tells an SDK worker where the platform is.
func (p *platform) environment(url string) []string {
	token, err := os.ReadFile(filepath.Join(p.data, "token"))
	if err != nil {
		p.t.Fatal(err)
	}
	return []string{"NARU_URL=" + url, "NARU_TOKEN=" + strings.TrimSpace(string(token))}
}

func goWorker(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "worker-go")
	if out, err := exec.Command("go", append(append([]string{"build"}, buildFlags...), "-o", file, "../../examples/worker-go")...).CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return file
}

type workerLine struct {
	Name    string `json:"name"`
	State   string `json:"state"`
	Detail  string `json:"detail"`
	Parked  uint64 `json:"parked"`
	Dead    uint64 `json:"dead"`
	Handled uint64 `json:"handled"`
	Lag     uint64 `json:"lag_messages"`
	Run     *struct {
		Instances []struct{ Name string }
	} `json:"run"`
}

// workers asks for all workers, by name.
func (p *platform) workers() map[string]workerLine {
	p.t.Helper()
	var list []workerLine
	p.json(&list, "worker", "list")
	all := map[string]workerLine{}
	for _, w := range list {
		all[w.Name] = w
	}
	return all
}

// calmFor is for how long nothing waits in the ledger before that is believed: it compares each second, what was told half a second before, and
// one that is behind the consumer takes its word.
const calmFor = 3 * time.Second

// finished waits until nothing waits for a worker in the ledger, and gives its lines.
func (p *platform) finished(worker string) (lines []ledgerLine) {
	p.t.Helper()
	t, ok := p.t.(*testing.T)
	if !ok {
		panic("only tests ask")
	}
	var since time.Time
	until(t, "nothing waits for worker "+worker, func() bool {
		var all []ledgerLine
		p.json(&all, "ledger")
		lines = lines[:0]
		calm := true
		for _, l := range all {
			if l.Consumer == "service_platform.worker/"+worker {
				lines = append(lines, l)
				calm = calm && l.Waiting == 0 && l.Balanced
			}
		}
		if !calm || len(lines) == 0 {
			since = time.Time{}
			return false
		}
		if since.IsZero() {
			since = time.Now()
		}
		return time.Since(since) > calmFor
	})
	return lines
}

// TestAPoisonousMessageIsQuarantinedAndItsDeviceGoesOn has a worker die of one message, each time.
func TestAPoisonousMessageIsQuarantinedAndItsDeviceGoesOn(t *testing.T) {
	p, _ := newWorkshop(t)
	p.start()
	defer p.stop()
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		var reading struct{ N int }
		if err := json.NewDecoder(q.Body).Decode(&reading); err == nil && reading.N == 3 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer service.Close()
	p.must("worker", "add", "fragile", "--url", service.URL, "--hears", "device/+/telemetry", "--attempts", "3")
	for n := range 10 {
		p.must("topic", "pub", "device.d-1.telemetry", fmt.Sprintf(`{"n":%d}`, n))
	}
	until(t, "all have a fate", func() bool { w := p.workers()["fragile"]; return w.Handled == 9 && w.Dead == 1 })
	for _, l := range p.finished("fragile") {
		if l.Log == message.Device && (l.Accepted < 10 || l.Dead != 1) {
			t.Errorf("ledger: %+v", l)
		}
	}
	if l := p.deadLetters(1); l.Letters[0].Component != "service_platform.worker/fragile" || l.Letters[0].Reason != message.RetriesExhausted {
		t.Errorf("the dead letters are %+v", l.Letters)
	}
}

// TestTheExampleWorkersDoTheirWork runs those of examples/ in their languages, as .ci/run and `make long` see to.
func TestTheExampleWorkersDoTheirWork(t *testing.T) {
	p, url := newWorkshop(t)
	p.start()
	python, node := porttest.Addr(t), porttest.Addr(t)
	beside(t, []string{"LISTEN=" + python}, "python3", "../../examples/worker-python/worker.py")
	beside(t, []string{"LISTEN=" + node}, "node", "../../examples/worker-node/worker.js")
	p.must("worker", "add", "hot-go", "--hears", "device/+/telemetry")
	p.must("worker", "add", "hot-python", "--hears", "device/+/telemetry", "--url", "http://"+python+"/")
	p.must("worker", "add", "hot-node", "--hears", "device/+/telemetry", "--url", "http://"+node+"/", "--mode", "binary")
	beside(t, p.environment(url), goWorker(t))
	for _, data := range []string{`{"celsius":20}`, `{"celsius":35}`, `{"kind":"pump","bar":4.9}`, `no reading`} {
		p.must("topic", "pub", "device.d-1.telemetry", data)
	}
	for _, name := range []string{"hot-go", "hot-python", "hot-node"} {
		until(t, name+" gives each reading its fate", func() bool {
			var lines []ledgerLine
			p.json(&lines, "ledger")
			for _, l := range lines {
				if l.Consumer == "service_platform.worker/"+name && l.Log == message.Device {
					return l.Balanced && l.Waiting == 0 && l.Dead == 1 && l.Accepted >= 4
				}
			}
			return false
		})
	}
	p.stop()
	b, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(p.data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	blinks := map[string]int{}
	eachStored(t, b, message.Device, func(m *message.Message) {
		if message.Pattern("device.d-1.command.blink.*").Matches(m.Subject) && strings.TrimSpace(strings.ReplaceAll(string(m.Data), " ", "")) == `{"times":3}` {
			blinks[m.Source[strings.LastIndex(m.Source, "/")+1:]]++
		}
	})
	for _, name := range []string{"hot-go", "hot-python", "hot-node"} {
		if blinks[name] != 1 {
			t.Errorf("%s had the device blink %d times", name, blinks[name])
		}
	}
}

// Package local starts Kinesis servers of others on this machine, for tests, and programs of others that know its formats. The servers listen at all addresses: start them in a
// network of the test's own ([bustest.Alone]).
package local

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// Kinesalite starts kinesalite, and gives its endpoint. It keeps the limits of a request, and knows SplitShard and MergeShards.
// It does not outlive a client that is killed in the middle of a request, so it is started again on what it has stored.
func Kinesalite(t testing.TB) (endpoint string) {
	t.Helper()
	dir := modules(t)
	return start(t, dir, "4567", "node", filepath.Join(dir, "kinesalite", "cli.js"), "--createStreamMs", "20", "--updateStreamMs", "20", "--shardLimit", "100", "--path", t.TempDir())
}

// KinesisLocal starts kinesis-local, and gives its endpoint. It knows UpdateShardCount.
func KinesisLocal(t testing.TB) (endpoint string) {
	t.Helper()
	dir := filepath.Join(modules(t), "kinesis-local") // it reads files of its own by relative names
	return start(t, dir, "4568", "node", "main.js")
}

// Node runs a script of test/foreign with standard input, and gives its standard output.
func Node(t testing.TB, script string, input []byte) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join(modules(t), "..", script))
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node %s: %v", script, err)
	}
	return out
}

// modules is where tools/needs.sh puts programs for Node.
func modules(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		at := filepath.Join(dir, "test", "foreign", "node_modules")
		if _, err := os.Stat(filepath.Join(at, "kinesalite")); err == nil {
			return at
		}
	}
	t.Fatal("there is no test/foreign/node_modules with kinesalite: run tools/needs.sh")
	return ""
}

const startsMax = 100

func start(t testing.TB, dir, port, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan struct{})
	t.Cleanup(func() { cancel(); <-over })
	go func() {
		defer close(over)
		runtime.LockOSThread() // a process ends with the thread that started it
		for starts := 0; ctx.Err() == nil && starts < startsMax; starts++ {
			cmd := exec.CommandContext(ctx, program, args...)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "LOG_LEVEL=ERROR")
			cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := cmd.Run(); ctx.Err() == nil {
				t.Logf("%s ended: %v", program, err)
			}
		}
	}()
	address := net.JoinHostPort("127.0.0.1", port)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(2 * time.Minute); ; {
		if r, err := http.Get("http://" + address + "/"); err == nil {
			r.Body.Close()
			return "http://" + address
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s %v does not come up", program, args)
		}
	}
}

//go:build long

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// bench runs a benchmark's command, and gives what it has measured.
func bench(t *testing.T, v any, args ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), naruBinary(t), append(append([]string{"bench"}, args...), "-o", "json")...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("naru bench %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	if err := json.Unmarshal(out.Bytes(), v); err != nil {
		t.Fatalf("naru bench %s: %v\n%s", strings.Join(args, " "), err, out.String())
	}
}

// files is how many connections a process may hold here.
func files(t *testing.T, want int) int {
	t.Helper()
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	return min(want, int(min(l.Max, 1<<30))-500)
}

// TestDevicesThatComeBackAllAtOnceAreBackWithinAMinute is the small form of `naru bench storm --connections 10000`.
func TestDevicesThatComeBackAllAtOnceAreBackWithinAMinute(t *testing.T) {
	var got struct {
		Connections int           `json:"connections"`
		Settled     time.Duration `json:"settled_ns"`
		Tries       int           `json:"tries"`
	}
	bench(t, &got, "storm", "--connections", fmt.Sprint(files(t, 1000)))
	if got.Settled <= 0 || got.Settled > time.Minute || got.Tries < got.Connections {
		t.Errorf("%+v", got)
	}
	t.Logf("%d devices are back after %s, with %d tries", got.Connections, got.Settled, got.Tries)
}

// TestTenThousandIdleConnectionsAreHeld is the small form of `naru bench idle --connections 100000`.
func TestTenThousandIdleConnectionsAreHeld(t *testing.T) {
	var got struct {
		Connections int     `json:"connections"`
		KB          float64 `json:"rss_kb_per_connection"`
		Goroutines  float64 `json:"goroutines_per_connection"`
	}
	bench(t, &got, "idle", "--plain", "--connections", fmt.Sprint(files(t, 10_000)))
	if got.KB <= 0 || got.KB > 25 || got.Goroutines > 1.1 { // the budget is 10 KB, on a machine that does nothing else
		t.Errorf("%+v", got)
	}
	t.Logf("%d idle connections: %.1f KB and %.3f goroutines each", got.Connections, got.KB, got.Goroutines)
}

// TestIdleConnectionsAreHeldByNodesTogether is the small form of a machine where a process may not hold them all.
func TestIdleConnectionsAreHeldByNodesTogether(t *testing.T) {
	for _, kind := range []string{"--plain", "--plain=false"} {
		var got struct {
			Nodes      int     `json:"nodes"`
			Held       int     `json:"held"`
			Goroutines float64 `json:"goroutines_per_connection"`
		}
		bench(t, &got, "idle", kind, "--nodes", "3", "--connections", "61")
		if got.Nodes != 3 || got.Held != 61 || got.Goroutines < 0.8 || got.Goroutines > 1.2 {
			t.Errorf("%s: %+v", kind, got)
		}
	}
}

// TestABenchmarkThatIsInterruptedLeavesNothing has one end with Ctrl-C when three nodes and three processes of devices are at work.
func TestABenchmarkThatIsInterruptedLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	c := exec.CommandContext(t.Context(), naruBinary(t), "bench", "idle", "--plain", "--nodes", "3", "--connections", "30000")
	c.Env = append(os.Environ(), "TMPDIR="+dir)
	out, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(out); s.Scan() && !strings.HasPrefix(s.Text(), "connecting"); {
	}
	// working are the processes whose arguments name the directory.
	working := func() (list []string) {
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range all {
			if raw, err := os.ReadFile(file); err == nil && strings.Contains(string(raw), dir) { // others come and go
				list = append(list, strings.ReplaceAll(string(raw), "\x00", " "))
			}
		}
		return list
	}
	if got := working(); len(got) != 6 {
		t.Errorf("while it works there are %d processes: %q", len(got), got)
	}
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); c.ProcessState.ExitCode() != 130 {
		t.Errorf("it ends with %v", err)
	}
	if got := working(); len(got) != 0 {
		t.Errorf("it leaves %q", got)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}

// resident is the platform's resident memory in MB.
func (p *platform) resident() int {
	p.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		p.t.Fatal(err)
	}
	return n / 1024
}

// TestASubscriberThatStopsReadingHoldsNobodyUpAndLosesNothing has 16 MB said beside a client that never reads and one that stops
// reading, with a session that is kept. The others have everything as it comes, the broker does not hold it in memory, and
// who stopped has all of it when it reads on.
func TestASubscriberThatStopsReadingHoldsNobodyUpAndLosesNothing(t *testing.T) {
	const each, size, readers = 8000, 1000, 3
	p := plainBroker(t)
	type reader struct {
		w   *wire
		got chan error
		lat []time.Duration
	}
	sent := make([]time.Time, 2*each)
	read := func(w *wire, from, n int, lat *[]time.Duration) error {
		for i := from; i < from+n; {
			h, body, err := w.next()
			if err != nil {
				return fmt.Errorf("%d has not come: %w", i, err)
			}
			if h.Type != packet.PUBLISH {
				continue
			}
			var m packet.Publish
			if err := m.Decode(h, body, packet.V5); err != nil {
				return err
			}
			if got, _, _ := strings.Cut(string(m.Payload), " "); got != fmt.Sprint(i) {
				return fmt.Errorf("%s came where %d was due", got, i)
			}
			if lat != nil {
				*lat = append(*lat, time.Since(sent[i]))
			}
			if m.QoS > 0 {
				if err := w.say((&packet.Ack{Type: packet.PUBACK, ID: m.ID}).Append(nil, packet.V5)); err != nil {
					return err
				}
			}
			i++
		}
		return nil
	}
	all := make([]*reader, readers)
	for i := range all {
		all[i] = &reader{w: mustDialWire(t, p.mqtt, fmt.Sprint("reader-", i), true), got: make(chan error, 1)}
		all[i].w.subscribe(t, "stream", 1)
	}
	pub := mustDialWire(t, p.mqtt, "pub", true)
	pad := strings.Repeat("x", size)
	// say has a part of the stream said, 50 at a time, and wants all readers to have it.
	say := func(from int) (p99 time.Duration) {
		t.Helper()
		for _, r := range all {
			r.lat = nil
			go func() { r.got <- read(r.w, from, each, &r.lat) }()
		}
		open := 0
		acked := func() {
			t.Helper()
			if h, body, err := pub.next(); err != nil || h.Type != packet.PUBACK {
				t.Fatalf("PUBLISH was answered with %s %x, %v", h.Type, body, err)
			}
			open--
		}
		for i := from; i < from+each; i++ {
			m := packet.Publish{Topic: "stream", Payload: []byte(fmt.Sprint(i, " ", pad)), QoS: 1, ID: uint16(i%60_000) + 1}
			sent[i] = time.Now()
			if err := pub.say(m.Append(nil, packet.V5)); err != nil {
				t.Fatal(err)
			}
			if open++; open == 50 {
				acked()
			}
		}
		for open > 0 {
			acked()
		}
		var lat []time.Duration
		for i, r := range all {
			if err := <-r.got; err != nil {
				t.Fatalf("reader %d: %v", i, err)
			}
			lat = append(lat, r.lat...)
		}
		slices.Sort(lat)
		return lat[len(lat)*99/100]
	}
	without := say(0)
	stopped := mustDialWire(t, p.mqtt, "stopped", false, func(c *packet.Connect) { c.KeepAlive = 0 })
	stopped.subscribe(t, "stream", 1)
	never := mustDialWire(t, p.mqtt, "never", true, func(c *packet.Connect) { c.KeepAlive = 0 })
	never.subscribe(t, "stream", 0)
	for _, w := range []*wire{stopped, never} {
		if err := w.Conn.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
			t.Fatal(err)
		}
	}
	before := p.resident()
	with := say(each)
	if grown := p.resident() - before; grown > 300 { // the garbage of 8,000 messages for each of five; held, it would be beside that
		t.Errorf("the process has grown by %d MB", grown)
	} else {
		t.Logf("the process has grown from %d MB by %d MB", before, grown)
	}
	t.Logf("p99 from publisher to reader: %s without a subscriber that has stopped, %s with two: %.2f times", without, with, float64(with)/float64(without))
	if with > 20*without+5*time.Second { // the ratio is for `naru bench mqtt --only stopped`, on a machine that does nothing else
		t.Error("the others wait for the one that does not read")
	}
	if err := read(stopped, each, each, nil); err != nil {
		t.Errorf("who stopped reading, and reads on: %v", err)
	}
	p.settled(0)
	p.stop()
}

//go:build long

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/internal/porttest"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/worker/sdk"
)

// instanceEnv, where it is set, makes the test binary an instance of the worker "shared", which notes in that file what it is
// given: the message's id and the attempt.
const instanceEnv = "NARU_E2E_INSTANCE"

func init() {
	file := os.Getenv(instanceEnv)
	if file == "" {
		return
	}
	notes, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	err = sdk.Run(context.Background(), "shared", func(ctx context.Context, c *sdk.Call) error {
		if _, err := fmt.Fprintln(notes, c.Message.ID, c.Attempt); err != nil {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond): // what it does takes a while, so that there is always something in its hands
		case <-ctx.Done():
			return ctx.Err()
		}
		return c.Say("data_platform.done."+c.Message.Device, c.Message.Data)
	}, sdk.Options{Name: filepath.Base(file), Concurrency: 4})
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// given is what an instance has noted: the attempts, by the message's id.
func given(t *testing.T, file string) map[string][]int {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	all := map[string][]int{}
	for line := range bytes.Lines(raw) {
		id, attempt, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		n, err := strconv.Atoi(attempt)
		if err != nil {
			t.Fatalf("%s has the line %q", file, line)
		}
		all[id] = append(all[id], n)
	}
	return all
}

// sleep stops a process where it is; the function that it gives has it go on.
func sleep(t *testing.T, p *os.Process) (wake func()) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := p.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAWorkerThatSleepsPastItsLeaseDoublesNothing stops processes where they are, each for longer than its lease, under load: one
// instance of a worker and then the other, the platform's process that runs the worker, and the one over which an instance is
// connected. What the instance had in its hands goes to the other under the same key, and what it still tells when it wakes up is not taken.
func TestAWorkerThatSleepsPastItsLeaseDoublesNothing(t *testing.T) {
	outside := &node{Name: "bus", Dir: t.TempDir(), Port: port(t)}
	outside.start(t)
	t.Cleanup(outside.kill)
	const conf = "bus:\n  replicas: 1\n"
	door := configured(t, outside.url(), conf, "service_platform.broker", "service_platform.x509", "operator")
	door.start()
	runs := configured(t, outside.url(), conf, "service_platform.worker")
	runs.start()
	runs.must("worker", "add", "shared", "--hears", "device/+/telemetry", "--attempts", "100", "--concurrency", "8")
	until(t, "the worker runs", func() bool { return runs.workers()["shared"].State == "no_instances" })
	leads := configured(t, outside.url(), conf, "service_platform.worker")
	addr := porttest.Addr(t)
	leads.args = []string{"--http", addr}
	leads.start()
	defer func() {
		if t.Failed() {
			t.Logf("runs the worker:\n%s\nleads to it:\n%s", runs.out, leads.out)
		}
	}()

	notes := []string{filepath.Join(t.TempDir(), "over-the-bus"), filepath.Join(t.TempDir(), "by-http")}
	instances := []*aside{
		beside(t, []string{instanceEnv + "=" + notes[0], "NARU_BUS=" + outside.url()}, os.Args[0]),
		beside(t, append(leads.environment("http://"+addr), instanceEnv+"="+notes[1]), os.Args[0]),
	}
	defer func() {
		if t.Failed() {
			t.Logf("%s\n%s", &instances[0].out, &instances[1].out)
		}
	}()
	there := func(n int) func() bool {
		return func() bool { w := runs.workers()["shared"]; return w.Run != nil && len(w.Run.Instances) == n }
	}
	until(t, "two instances are there", there(2))

	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	stop := make(chan struct{})
	var group sync.WaitGroup
	for i := range 8 {
		s := newSender(fmt.Sprintf("d-%d", i), door.plain)
		s.window, s.payload = 1, func(n int) []byte {
			select {
			case <-pace.C:
			case <-stop:
			}
			return fmt.Appendf(nil, `{"n":%d}`, n)
		}
		group.Go(func() { s.run(stop) })
	}
	goesOn := func(at ...int) {
		t.Helper()
		for _, i := range at {
			before := len(given(t, notes[i]))
			until(t, filepath.Base(notes[i])+" is given more", func() bool { return len(given(t, notes[i])) > before+20 })
		}
	}
	goesOn(0, 1)
	for i := range instances {
		wake := sleep(t, instances[i].cmd.Process)
		until(t, "one instance is left", there(1))
		goesOn(1 - i)
		wake()
		until(t, "both instances are there", there(2))
		goesOn(0, 1)
	}
	wake := sleep(t, runs.cmd.Process)
	until(t, "the worker is away", func() bool { return leads.workers()["shared"].State == "away" })
	wake()
	goesOn(0, 1)
	wake = sleep(t, leads.cmd.Process)
	until(t, "the instance behind it is gone", there(1))
	goesOn(0)
	wake()
	until(t, "both instances are there again", there(2))
	goesOn(0, 1)
	close(stop)
	group.Wait()
	for _, l := range door.finished("shared") {
		if l.Accepted != l.Handled || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}

	b, err := nats.Open(t.Context(), nats.Options{URL: outside.url()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	readings, done, last := map[message.ID]bool{}, map[message.ID]int{}, map[string]int{}
	eachStored(t, b, message.Device, func(m *message.Message) {
		if message.Pattern("device.*.telemetry").Matches(m.Subject) {
			readings[m.ID] = true
		}
	})
	eachStored(t, b, message.DataPlatform, func(m *message.Message) {
		if !message.Pattern("data_platform.done.*").Matches(m.Subject) {
			return
		}
		done[m.Cause]++
		var of struct{ N int }
		if err := json.Unmarshal(m.Data, &of); err != nil {
			t.Fatal(err)
		}
		device := m.Subject.Token(2)
		if before, ok := last[device]; ok && of.N <= before {
			t.Errorf("%s: what follows from %d is said behind what follows from %d", device, of.N, before)
		}
		last[device] = of.N
	})
	first, second := given(t, notes[0]), given(t, notes[1])
	both, counted := 0, 0
	for id, attempts := range first {
		if more := second[id]; more != nil {
			both++
			if slices.Max(append(slices.Clone(attempts), more...)) > 1 { // where the process was lost that counts, none was counted
				counted++
			}
		}
	}
	if counted < 2 {
		t.Errorf("%d messages were in the hands of both, of which %d say so: nothing was taken over from one of the instances", both, counted)
	}
	faults := 0
	for id := range readings {
		if n := len(first[id.String()]) + len(second[id.String()]); n < 1 || done[id] != 1 {
			if faults++; faults <= 10 {
				t.Errorf("%s was given %d times, and %d messages follow from it; want at least one, and one", id, n, done[id])
			}
		}
	}
	if len(done) != len(readings) {
		t.Errorf("of %d readings, effects follow from %d", len(readings), len(done))
	}
	t.Logf("of %d readings, %d were in the hands of both instances, %d of them counted", len(readings), both, counted)
}

// TestAWorkerMovesFromAProcessThatIsGone kills the process that runs a worker for good, and has another one go on with it: with what was said
// meanwhile, once each.
func TestAWorkerMovesFromAProcessThatIsGone(t *testing.T) {
	outside := &node{Name: "bus", Dir: t.TempDir(), Port: port(t)}
	outside.start(t)
	t.Cleanup(outside.kill)
	const conf = "bus:\n  replicas: 1\n"
	keeps := configured(t, outside.url(), conf, "operator")
	keeps.start()
	first := configured(t, outside.url(), conf, "service_platform.worker")
	first.start()
	first.must("worker", "add", "shared", "--hears", "device/+/telemetry")
	until(t, "the worker runs", func() bool { return first.workers()["shared"].State == "no_instances" })
	second := configured(t, outside.url(), conf, "service_platform.worker")
	second.start()
	beside(t, []string{instanceEnv + "=" + filepath.Join(t.TempDir(), "notes"), "NARU_BUS=" + outside.url()}, os.Args[0])
	n := 0
	say := func() {
		for range 10 {
			keeps.must("topic", "pub", fmt.Sprintf("device.d-%d.telemetry", n%4), fmt.Sprintf(`{"n":%d}`, n))
			n++
		}
	}
	say()
	until(t, "ten are handled", func() bool { w := second.workers()["shared"]; return w.Handled == 10 && w.Parked == 0 })
	first.kill()
	say()
	if out, code := second.naru("worker", "move", "shared", "--why", "a fire"); code != 0 { // while its lease lasts it is taken to run
		until(t, "it is moved: "+out, func() bool { _, code := second.naru("worker", "move", "shared", "--why", "a fire"); return code == 0 })
	}
	until(t, "the other ten are handled", func() bool {
		w := second.workers()["shared"]
		return w.Handled == 10 && w.Lag == 0 && w.State == "running"
	})
	say()
	for _, l := range keeps.finished("shared") {
		if l.Log == message.Device && (l.Accepted != l.Handled || l.Dead != 0) {
			t.Errorf("ledger: %+v", l)
		}
	}
	b, err := nats.Open(t.Context(), nats.Options{URL: outside.url()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	done, all := map[message.ID]int{}, 0
	eachStored(t, b, message.DataPlatform, func(m *message.Message) {
		if message.Pattern("data_platform.done.*").Matches(m.Subject) {
			done[m.Cause]++
			all++
		}
	})
	if len(done) != n || all != n {
		t.Errorf("of %d readings, %d messages follow, from %d", n, all, len(done))
	}
}

//go:build long

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// sender is a device that numbers its messages, keeps a window of them unacknowledged, and sends those again after a
// break, until it is told to stop. It remembers every acknowledgement.
type sender struct {
	id    string
	addr  string
	dial  func() (net.Conn, error) // instead of to addr, where it is not nil
	next  int
	open  []int // sent and not acknowledged, in order
	sent  map[int]int
	acked map[int]bool
}

const senderWindow = 20

func (s *sender) run(stop <-chan struct{}) {
	for {
		s.session(stop)
		select {
		case <-stop:
			if len(s.open) == 0 {
				return
			}
		default:
		}
		t := time.NewTimer(5 * time.Millisecond) // the platform is down
		<-t.C
	}
}

func (s *sender) session(stop <-chan struct{}) {
	dial := s.dial
	if dial == nil {
		dial = func() (net.Conn, error) { return net.DialTimeout("tcp", s.addr, time.Second) }
	}
	c, err := dial()
	if err != nil {
		return
	}
	defer c.Close()
	hello := packet.Connect{Version: packet.V311, CleanStart: true, ClientID: s.id}
	if _, err := c.Write(hello.Append(nil)); err != nil {
		return
	}
	r := bufio.NewReader(c)
	var head [4]byte
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.ReadFull(r, head[:]); err != nil || head[3] != 0 {
		return
	}
	say := func(n int, dup bool) error {
		s.sent[n]++
		p := packet.Publish{QoS: 1, Dup: dup, ID: uint16(n%65535) + 1, Topic: "device/" + s.id + "/telemetry", Payload: []byte(strconv.Itoa(n))}
		_, err := c.Write(p.Append(nil, packet.V311))
		return err
	}
	for _, n := range s.open {
		if say(n, true) != nil {
			return
		}
	}
	for {
		done := false
		select {
		case <-stop:
			done = true
		default:
		}
		for !done && len(s.open) < senderWindow {
			s.open = append(s.open, s.next)
			s.next++
			if say(s.next-1, false) != nil {
				return
			}
		}
		if len(s.open) == 0 {
			return
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		n := s.open[0]
		if id := uint16(head[2])<<8 | uint16(head[3]); head[0] != byte(packet.PUBACK)<<4 || id != uint16(n%65535)+1 {
			panic(fmt.Sprintf("%s: acknowledged %d, and %d was due", s.id, id, uint16(n%65535)+1))
		}
		s.acked[n] = true
		s.open = s.open[1:]
	}
}

// TestNothingAcknowledgedIsLostToSIGKILL kills the platform ten times under load.
func TestNothingAcknowledgedIsLostToSIGKILL(t *testing.T) {
	p := newPlatform(t)
	senders := killed(p, 10)
	acked := 0
	for _, s := range senders {
		acked += len(s.acked)
	}
	lines := p.settled(uint64(acked))
	for _, l := range lines {
		if l.Accepted != l.Handled+l.Waiting+l.Dead || l.Dead != 0 {
			t.Errorf("ledger: %+v", l)
		}
	}
	p.stop()
	t.Logf("%d messages acknowledged through ten kills", acked)
	checkStored(t, p.data, senders)
}

// TestAMutantThatAcknowledgesBeforeTheAppendIsCaught builds naru with one fault, and wants the same check to see it.
func TestAMutantThatAcknowledgesBeforeTheAppendIsCaught(t *testing.T) {
	file, err := filepath.Abs("../../service_platform/broker/publish.go")
	if err != nil {
		t.Fatal(err)
	}
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const sound = "if err := t.door.Append(context.Background(), &c.scratch.msg, c, token); err != nil {"
	const mutant = "c.Appended(token, bus.Position{}, nil); c.Settled(); if err := t.door.Append(context.Background(), &c.scratch.msg, nil, 0); err != nil {"
	if strings.Count(string(src), sound) != 1 {
		t.Fatalf("%s has no line %q any more: let the mutant follow it", file, sound)
	}
	dir := t.TempDir()
	faulty := filepath.Join(dir, "publish.go")
	if err := os.WriteFile(faulty, []byte(strings.Replace(string(src), sound, mutant, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {file: faulty}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t)
	p.binary = filepath.Join(dir, "naru")
	if out, err := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", p.binary, "../../cmd/naru").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	senders := killed(p, 3)
	p.stop()
	b, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(p.data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, fault := range logFaults(t, b, senders) {
		if strings.HasSuffix(fault, "was acknowledged and is lost") {
			return
		}
	}
	t.Error("nothing was found to be lost, though it was acknowledged before it was stored")
}

// killed drives a platform from many devices, and kills it so many times.
func killed(p *platform, kills int) []*sender {
	p.start()
	stop := make(chan struct{})
	var group sync.WaitGroup
	senders := make([]*sender, 20)
	for i := range senders {
		s := &sender{id: fmt.Sprintf("d-%d", i), addr: p.plain, sent: map[int]int{}, acked: map[int]bool{}}
		senders[i] = s
		group.Go(func() { s.run(stop) })
	}
	r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for range kills {
		<-time.After(300*time.Millisecond + time.Duration(r.Int64N(int64(900*time.Millisecond))))
		p.kill()
		p.start()
	}
	<-time.After(500 * time.Millisecond)
	close(stop)
	group.Wait()

	return senders
}

// checkStored opens the store that is left and holds it against what the senders know.
func checkStored(t *testing.T, data string, senders []*sender) {
	b, err := nats.Open(t.Context(), nats.Options{Dir: filepath.Join(data, "bus")})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	checkLog(t, b, senders)
}

func checkLog(t *testing.T, b bus.Bus, senders []*sender) {
	t.Helper()
	for _, fault := range logFaults(t, b, senders) {
		t.Error(fault)
	}
}

// logFaults lists what is lost or doubled.
func logFaults(t *testing.T, b bus.Bus, senders []*sender) (faults []string) {
	t.Helper()
	found := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	l, err := b.Log(t.Context(), message.Device, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := l.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]map[int]int{}
	ids := map[message.ID]bool{}
	last := info.Generations[0].Partitions[0].Last
	reader, err := l.Reader(t.Context(), bus.Position{Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for seq := uint64(0); seq < last; {
		s, err := reader.Next(t.Context())
		if err != nil || s.Err != nil {
			t.Fatal(err, s.Err)
		}
		seq = s.Position.Sequence
		var m message.Message
		c := s.Batch.Cursor()
		for c.Next(&m) {
			if ids[m.ID] {
				found("id %s is in the log twice", m.ID)
			}
			ids[m.ID] = true
			if !strings.HasSuffix(string(m.Subject), ".telemetry") {
				continue
			}
			device := strings.Clone(m.Device)
			n, err := strconv.Atoi(string(m.Data))
			if err != nil {
				t.Fatal(err)
			}
			if stored[device] == nil {
				stored[device] = map[int]int{}
			}
			stored[device][n]++
		}
		if c.Err() != nil {
			t.Fatal(c.Err())
		}
	}
	for _, s := range senders {
		for n := range s.acked {
			switch times := stored[s.id][n]; {
			case times == 0:
				found("%s: %d was acknowledged and is lost", s.id, n)
			case times > s.sent[n]:
				found("%s: %d was sent %d times and is stored %d times", s.id, n, s.sent[n], times)
			}
		}
	}
	return faults
}

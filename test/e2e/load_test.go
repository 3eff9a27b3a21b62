//go:build long

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
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
	count atomic.Int64 // of acked

	topic   string             // below device/<id>/; telemetry where empty
	payload func(n int) []byte // the number itself where nil
	window  int                // senderWindow where zero
}

func newSender(id, addr string) *sender {
	return &sender{id: id, addr: addr, sent: map[int]int{}, acked: map[int]bool{}}
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
	topic, window := "device/"+s.id+"/telemetry", senderWindow
	if s.topic != "" {
		topic = "device/" + s.id + "/" + s.topic
	}
	if s.window > 0 {
		window = s.window
	}
	say := func(n int, dup bool) error {
		s.sent[n]++
		data := []byte(strconv.Itoa(n))
		if s.payload != nil {
			data = s.payload(n)
		}
		p := packet.Publish{QoS: 1, Dup: dup, ID: uint16(n%65535) + 1, Topic: topic, Payload: data}
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
		for !done && len(s.open) < window {
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
		s.count.Add(1)
		s.open = s.open[1:]
	}
}

// killUnderLoad starts a platform, drives it from the senders, kills it so many times, and starts it again after each; then
// the senders end when all of theirs is acknowledged. The platform is left running.
func killUnderLoad(p *platform, kills int, senders []*sender) {
	hurtUnderLoad(p, kills, senders, func(int) {
		p.kill()
		p.start()
	})
}

// hurtUnderLoad is that with something else done to it so many times.
func hurtUnderLoad(p *platform, times int, senders []*sender, hurt func(i int)) {
	p.start()
	stop := make(chan struct{})
	var group sync.WaitGroup
	for _, s := range senders {
		group.Go(func() { s.run(stop) })
	}
	r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	for i := range times {
		<-time.After(300*time.Millisecond + time.Duration(r.Int64N(int64(900*time.Millisecond))))
		hurt(i)
	}
	<-time.After(500 * time.Millisecond)
	close(stop)
	group.Wait()
}

// eachStored gives all messages of a log, those of each partition in order. They must not be kept.
func eachStored(t *testing.T, b bus.Bus, log string, f func(m *message.Message)) {
	t.Helper()
	l, err := b.Log(t.Context(), log, bus.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := l.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range info.Generations {
		for _, part := range g.Partitions {
			reader, err := l.Reader(t.Context(), bus.Position{Generation: g.Number, Partition: part.Number})
			if err != nil {
				t.Fatal(err)
			}
			defer reader.Close()
			for seq := uint64(0); seq < part.Last; {
				s, err := reader.Next(t.Context())
				if err != nil || s.Err != nil {
					t.Fatal(err, s.Err)
				}
				seq = s.Position.Sequence
				var m message.Message
				c := s.Batch.Cursor()
				for c.Next(&m) {
					f(&m)
				}
				if c.Err() != nil {
					t.Fatal(c.Err())
				}
			}
		}
	}
}

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// closedLoop is a load of publishers and subscribers, all by plain MQTT 3.1.1, at whatever broker. A message is under way
// until each subscriber has it, and no more than a window are: so nobody is measured by how much it can pile up.
type closedLoop struct {
	publishers, subscribers int
	stalled                 int // subscribers beside them that never read
	qos                     byte
	window, messages        int
	payload                 int
}

// measured is what a load came to.
type measured struct {
	PerSecond float64       `json:"deliveries_per_second"`
	P50       time.Duration `json:"p50_ns"`
	P99       time.Duration `json:"p99_ns"`
}

// loadPatience is how long a broker may be silent.
const loadPatience = 60 * time.Second

// member is one connection of a load.
type member struct {
	net.Conn
	buf        []byte
	used, have int
	mu         sync.Mutex // of writing
}

// dialMember connects, and wants to be let in.
func dialMember(addr, id string, clean bool) (*member, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	m := &member{Conn: c, buf: make([]byte, 16<<10)}
	hello := packet.Connect{Version: packet.V311, CleanStart: clean, ClientID: id}
	if err := m.say(hello.Append(nil)); err != nil {
		return nil, err
	}
	h, body, err := m.next()
	if err == nil && (h.Type != packet.CONNACK || len(body) != 2 || body[1] != 0) {
		err = fmt.Errorf("CONNECT of %s was answered with %s %x", id, h.Type, body)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return m, nil
}

func (m *member) say(b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := m.Write(b)
	return err
}

// next reads a packet; body is good until the next call.
func (m *member) next() (packet.Header, []byte, error) {
	for {
		h, start, total, _, err := packet.Frame(m.buf[m.used:m.have], 0)
		if err != nil {
			return h, nil, err
		}
		if total > 0 {
			body := m.buf[m.used+start : m.used+total]
			m.used += total
			return h, body, nil
		}
		if m.used > 0 {
			m.have = copy(m.buf, m.buf[m.used:m.have])
			m.used = 0
		}
		if m.have == len(m.buf) {
			m.buf = append(m.buf, make([]byte, len(m.buf))...)
		}
		if err := m.SetReadDeadline(time.Now().Add(loadPatience)); err != nil {
			return h, nil, err
		}
		n, err := m.Read(m.buf[m.have:])
		m.have += n
		if n == 0 && err != nil {
			return h, nil, err
		}
	}
}

// publish says n messages with QoS 1, one write for one message, as a device does it, and no more than a window of them
// unacknowledged. It returns when all are acknowledged, of each of which acked is called. What body gives is written before its next call.
func (m *member) publish(ctx context.Context, topic string, n, window int, body func(i int) []byte, acked func()) error {
	slots, done := make(chan struct{}, window), make(chan error, 1)
	go func() {
		for range n {
			h, _, err := m.next()
			if err == nil && h.Type != packet.PUBACK {
				err = fmt.Errorf("a PUBLISH was answered with %s", h.Type)
			}
			if err != nil {
				done <- err
				return
			}
			acked()
			<-slots
		}
		done <- nil
	}()
	p := packet.Publish{Topic: topic, QoS: 1}
	var buf []byte
	for i := range n {
		select {
		case slots <- struct{}{}:
		case err := <-done:
			return fmt.Errorf("%d messages said: %w", i, err)
		case <-ctx.Done():
			return ctx.Err()
		}
		p.ID, p.Payload = uint16(i%65535)+1, body(i)
		if buf = p.Append(buf[:0], packet.V311); m.say(buf) != nil {
			break // what ends the reading says why
		}
	}
	return <-done
}

func (m *member) subscribe(filter string, qos byte) error {
	if err := m.say((&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: filter, QoS: qos}}}).Append(nil, packet.V311)); err != nil {
		return err
	}
	h, body, err := m.next()
	if err == nil && (h.Type != packet.SUBACK || body[len(body)-1] != qos) {
		err = fmt.Errorf("SUBSCRIBE was answered with %s %x", h.Type, body)
	}
	return err
}

// answers reads, and goes through the handshakes of what comes and of what it has said itself, until the connection ends or
// heard says that it is enough.
func (m *member) answers(heard func(payload []byte) (enough bool)) error {
	var out []byte
	for {
		h, body, err := m.next()
		if err != nil {
			return err
		}
		enough := false
		ack := packet.Ack{}
		switch h.Type {
		case packet.PUBLISH:
			var p packet.Publish
			if err := p.Decode(h, body, packet.V311); err != nil {
				return err
			}
			enough = heard(p.Payload)
			switch p.QoS {
			case 1:
				ack = packet.Ack{Type: packet.PUBACK, ID: p.ID}
			case 2:
				ack = packet.Ack{Type: packet.PUBREC, ID: p.ID}
			}
		case packet.PUBREC, packet.PUBREL:
			ack.ID = binary.BigEndian.Uint16(body)
			if ack.Type = packet.PUBREL; h.Type == packet.PUBREL {
				ack.Type = packet.PUBCOMP
			}
		}
		if ack.Type != 0 {
			out = ack.Append(out, packet.V311)
		}
		// What has come with one read is answered with one write.
		if len(out) > 0 && (m.used == m.have || enough) {
			if err := m.say(out); err != nil {
				return err
			}
			out = out[:0]
		}
		if enough {
			return nil
		}
	}
}

// run drives a broker, and gives an error where a message has not come to every subscriber.
func (l closedLoop) run(ctx context.Context, addr, word string) (r measured, err error) {
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	enter := func(kind string, i int) (*member, error) {
		m, err := dialMember(addr, fmt.Sprintf("%s-%s-%d", word, kind, i), true)
		if err == nil {
			open = append(open, m)
		}
		return m, err
	}
	topic := "bench/" + word
	sent, left := make([]atomic.Int64, l.messages), make([]atomic.Int32, l.messages)
	for i := range left {
		left[i].Store(int32(l.subscribers))
	}
	latencies := make([]time.Duration, l.messages)
	slots := make(chan struct{}, l.window)
	var done atomic.Int64
	finished, failed := make(chan struct{}), make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	heard := func(payload []byte) bool {
		i := binary.BigEndian.Uint64(payload)
		if left[i].Add(-1) == 0 {
			latencies[i] = time.Duration(time.Now().UnixNano() - sent[i].Load())
			<-slots
			if done.Add(1) == int64(l.messages) {
				close(finished)
			}
		}
		return false
	}
	for i := range l.subscribers + l.stalled {
		m, err := enter("sub", i)
		if err != nil {
			return r, err
		}
		if i >= l.subscribers {
			_ = m.Conn.(*net.TCPConn).SetReadBuffer(4096)
		}
		if err := m.subscribe(topic, l.qos); err != nil {
			return r, err
		}
		if i < l.subscribers {
			go func() { fail(m.answers(heard)) }()
		}
	}
	var next atomic.Int64
	var began time.Time
	publishers := make([]*member, l.publishers)
	for i := range publishers {
		if publishers[i], err = enter("pub", i); err != nil {
			return r, err
		}
		go func() { fail(publishers[i].answers(func([]byte) bool { return false })) }()
	}
	began = time.Now()
	for _, m := range publishers {
		go func() {
			p := packet.Publish{Topic: topic, QoS: l.qos, Payload: make([]byte, l.payload)}
			var buf []byte
			for n := 0; ; n++ {
				select {
				case slots <- struct{}{}:
				case <-finished:
					return
				case <-ctx.Done():
					return
				}
				i := next.Add(1) - 1
				if i >= int64(l.messages) {
					<-slots
					return
				}
				binary.BigEndian.PutUint64(p.Payload, uint64(i))
				if l.qos > 0 {
					p.ID = uint16(n%65535) + 1
				}
				sent[i].Store(time.Now().UnixNano())
				if buf = p.Append(buf[:0], packet.V311); m.say(buf) != nil {
					return
				}
			}
		}()
	}
	select {
	case <-finished:
	case err := <-failed:
		if errors.Is(err, io.EOF) || err != nil {
			return r, fmt.Errorf("%d of %d messages have come to all: %w", done.Load(), l.messages, err)
		}
	case <-ctx.Done():
		return r, ctx.Err()
	}
	took := time.Since(began)
	slices.Sort(latencies)
	at := func(q float64) time.Duration { return latencies[min(int(q*float64(len(latencies))), len(latencies)-1)] }
	return measured{PerSecond: float64(l.messages*l.subscribers) / took.Seconds(), P50: at(.5), P99: at(.99)}, nil
}

// backlog has so many messages wait for a session whose client is away, and measures how fast it is given them.
func backlog(ctx context.Context, addr, word string, messages, payload int) (r measured, err error) {
	sub, err := dialMember(addr, word+"-sub", false)
	if err == nil {
		err = sub.subscribe("bench/"+word, 1)
	}
	if err != nil {
		return r, err
	}
	if err := sub.say((&packet.Disconnect{}).Append(nil, packet.V311)); err != nil {
		return r, err
	}
	sub.Close()
	pub, err := dialMember(addr, word+"-pub", true)
	if err != nil {
		return r, err
	}
	defer pub.Close()
	filled := make([]byte, payload)
	body := func(i int) []byte {
		binary.BigEndian.PutUint64(filled, uint64(i))
		return filled
	}
	if err := pub.publish(ctx, "bench/"+word, messages, 500, body, func() {}); err != nil {
		return r, err
	}
	began, got := time.Now(), 0
	if sub, err = dialMember(addr, word+"-sub", false); err != nil {
		return r, err
	}
	defer sub.Close()
	var wrong error
	err = sub.answers(func(b []byte) bool {
		if i := binary.BigEndian.Uint64(b); wrong == nil && i != uint64(got) {
			wrong = fmt.Errorf("message %d came where %d was due", i, got)
		}
		got++
		return got == messages || ctx.Err() != nil
	})
	if err = errors.Join(err, wrong, ctx.Err()); err != nil {
		return r, fmt.Errorf("%d of %d messages came: %w", got, messages, err)
	}
	took := time.Since(began)
	if err := sub.say((&packet.Disconnect{}).Append(nil, packet.V311)); err != nil {
		return r, err
	}
	return measured{PerSecond: float64(messages) / took.Seconds()}, nil
}

// storm has clients connect, as many at once as a machine's ports and cores let it, and measures how fast they are let in.
func storm(ctx context.Context, addr, word string, connections int) (r measured, err error) {
	all, errs := make([]net.Conn, connections), make([]error, connections)
	took := make([]time.Duration, connections)
	defer func() {
		for _, c := range all {
			if c != nil {
				c.Close()
			}
		}
	}()
	var group sync.WaitGroup
	began := time.Now()
	for i := range all {
		group.Go(func() {
			m, err := dialMember(addr, fmt.Sprintf("%s-%d", word, i), true)
			if err != nil {
				errs[i] = err
				return
			}
			all[i], took[i] = m, time.Since(began)
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return r, err
	}
	slices.Sort(took)
	return measured{PerSecond: float64(connections) / took[len(took)-1].Seconds(), P50: took[len(took)/2], P99: took[len(took)*99/100]}, ctx.Err()
}

package broker

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/message/catalog"
	"github.com/naru-platform/naru/service_platform/broker/packet"
)

// newPatientRig is newRig with a broker that the engine may leave alone for long.
func newPatientRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, nil)
	r.stop()
	r.lease = time.Minute
	r.start(catalog.Default())
	return r
}

// paused waits until a client's reader makes a pause.
func (r *rig) paused(id string) {
	r.t.Helper()
	for late := time.After(time.Minute); ; runtime.Gosched() {
		r.b.mu.Lock()
		for _, c := range r.b.clients {
			if c.clientID == id && c.pausing.Load() != nil {
				r.b.mu.Unlock()
				return
			}
		}
		r.b.mu.Unlock()
		select {
		case <-late:
			r.t.Fatalf("%s is read all the time", id)
		default:
		}
	}
}

// overfill takes the engine away, and has one client say more than the broker keeps pending.
func (r *rig) overfill() {
	r.t.Helper()
	flood := r.join("d-flood", packet.V311)
	r.bus.SetDown(true)
	big := strings.Repeat("x", 250_000)
	go func() {
		for id := uint16(1); id <= 400; id++ {
			m := publish("device/d-flood/telemetry", big, 1, id)
			if _, err := flood.Write(m.Append(nil, packet.V311)); err != nil {
				return
			}
		}
	}()
	r.paused("d-flood")
}

func TestAClientThatWaitsForTheEngineIsAnsweredAndNotTimedOut(t *testing.T) {
	for _, by := range []string{"TCP", "TLS"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			r := newPatientRig(t)
			r.overfill()
			p := r.raw()
			if by == "TLS" {
				var err error
				if p, err = r.secure(r.tlsOf("d-1")); err != nil {
					t.Fatal(err)
				}
			}
			p.connect(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "d-1", KeepAlive: 1})
			m := publish("device/d-1/telemetry", "one", 1, 1)
			p.write(m.Append(nil, packet.V311))
			r.paused("d-1")
			for range 2 { // more than its keep alive
				p.write(packet.AppendPingreq(nil))
				if h, _ := p.next(); h.Type != packet.PINGRESP {
					t.Fatalf("%s came; want PINGRESP", h.Type)
				}
			}
			m.ID++
			p.write(append(m.Append(nil, packet.V311), packet.AppendPingreq(nil)...))
			if h, _ := p.next(); h.Type != packet.PINGRESP {
				t.Fatalf("%s came; want PINGRESP", h.Type)
			}
			r.bus.SetDown(false)
			stop, pings := make(chan struct{}), make(chan int)
			go func() { // a client's keep alive goes on
				tick := time.NewTicker(300 * time.Millisecond)
				defer tick.Stop()
				for n := 0; ; n++ {
					select {
					case <-tick.C:
						_, _ = p.Write(packet.AppendPingreq(nil))
					case <-stop:
						pings <- n
						return
					}
				}
			}()
			answered := 0
			for due := uint16(1); due <= 2; {
				h, body := p.next()
				var a packet.Ack
				switch {
				case h.Type == packet.PINGRESP:
					answered++
				case a.Decode(h, body, packet.V311) == nil && h.Type == packet.PUBACK && a.ID == due:
					due++
				default:
					t.Fatalf("%s %x came; want PUBACK of %d", h.Type, body, due)
				}
			}
			close(stop)
			for n := <-pings; answered < n; answered++ {
				if h, _ := p.next(); h.Type != packet.PINGRESP {
					t.Fatalf("%s came; want PINGRESP", h.Type)
				}
			}
			p.nothing() // no ping is answered twice
		})
	}
}

func TestTakeOverEndsTheWaitForTheEngine(t *testing.T) {
	r := newPatientRig(t)
	hello := keeping("d-1", false, 3600)
	p := r.raw()
	p.connect(hello)
	r.overfill()
	m := publish("device/d-1/telemetry", "once", 2, 7)
	p.write(m.Append(nil, packet.V5))
	r.paused("d-1")
	q := r.raw()
	began := time.Now()
	if a := q.connect(hello); !a.SessionPresent {
		t.Error("the session is another one")
	}
	if d := time.Since(began); d > stopPatience/2 {
		t.Errorf("it took %s to take the session over", d)
	}
	p.closed(packet.SessionTakenOver)
	// What the first had not got in is not known, and taken when it is sent again.
	m.Dup = true
	q.write(m.Append(nil, packet.V5))
	r.bus.SetDown(false)
	if code := q.answer(packet.PUBREC, 7); code != 0 {
		t.Errorf("PUBREC has %s", code)
	}
	q.write((&packet.Ack{Type: packet.PUBREL, ID: 7}).Append(nil, packet.V5))
	if code := q.answer(packet.PUBCOMP, 7); code != 0 {
		t.Errorf("PUBCOMP has %s", code)
	}
	n := 0
	for _, s := range r.stored(401) {
		if s.Device == "d-1" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("it is stored %d times", n)
	}
}

func TestTheBrokerStopsWhileClientsWaitForTheEngine(t *testing.T) {
	r := newPatientRig(t)
	p := r.join("d-1", packet.V5)
	r.overfill()
	m := publish("device/d-1/telemetry", "one", 1, 1)
	p.write(m.Append(nil, packet.V5))
	m.QoS, m.ID = 0, 0
	q := r.join("d-2", packet.V5)
	m.Topic = "device/d-2/telemetry"
	q.write(m.Append(nil, packet.V5))
	r.paused("d-1")
	r.paused("d-2")
	done := make(chan struct{})
	began := time.Now()
	go func() { r.stop(); close(done) }()
	p.closed(packet.ServerShuttingDown)
	q.closed(packet.ServerShuttingDown)
	if d := time.Since(began); d > drainPatience {
		t.Errorf("who had nothing in hand was told after %s", d)
	}
	r.bus.SetDown(false)
	<-done
}

func TestAcksForgetTheNewest(t *testing.T) {
	var a acks
	for id := uint16(1); id <= 5; id++ {
		a.push(owed{id: id})
	}
	a.unpush()
	if a.len() != 4 || a.holds(5) || !a.holds(4) {
		t.Errorf("%d are owed, 5 among them: %t, 4: %t", a.len(), a.holds(5), a.holds(4))
	}
	if token := a.push(owed{id: 5}); token != 4 || !a.holds(5) {
		t.Errorf("the next token is %d", token)
	}
}

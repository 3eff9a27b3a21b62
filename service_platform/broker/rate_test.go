package broker

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/broker/packet"
)

func TestAllowanceIsSpentAndComesBack(t *testing.T) {
	p, err := Rate{Messages: 10, Bytes: 1000, Burst: "500ms"}.parse()
	if err != nil {
		t.Fatal(err)
	}
	var all allowances
	x := all.take("a", p)
	now := time.Now()
	after := func(bytes int) time.Duration { return x.spend(now, bytes).Sub(now) }
	for i := range 5 { // what is worth half a second
		if d := after(10); d > 0 {
			t.Errorf("message %d waits %s", i, d)
		}
	}
	if d := after(10); d != 0 { // it begins the debt
		t.Errorf("the sixth waits %s", d)
	}
	if d := after(10); d != 100*time.Millisecond {
		t.Errorf("the seventh waits %s", d)
	}
	now = now.Add(time.Hour)
	if d := after(5000); d > 0 {
		t.Errorf("a message larger than the burst waits %s", d)
	}
	if d := after(1); d != 4500*time.Millisecond {
		t.Errorf("what follows it waits %s", d)
	}
	if y := all.take("a", p); y != x {
		t.Error("a second connection has an allowance of its own")
	}
	x.giveBack(now)
	x.giveBack(now)
	if all.take("a", p) != x {
		t.Error("a debt is forgotten with the connection")
	}
	now = now.Add(time.Minute)
	x.giveBack(now)
	if len(all.all) != 0 {
		t.Error("what is whole again is remembered")
	}
	for _, r := range []Rate{{Messages: -1}, {Bytes: -1}, {Burst: "soon"}, {Messages: 1e12}} {
		if _, err := r.parse(); err == nil || !strings.Contains(err.Error(), "publish_rate") {
			t.Errorf("%+v gives %v", r, err)
		}
	}
}

func TestAClientBeyondItsRateIsReadMoreSlowlyAndNotTimedOut(t *testing.T) {
	r := newRig(t, func(c *Config) { c.PublishRate = Rate{Bytes: 20_000, Burst: "100ms"} })
	p := r.raw()
	p.connect(packet.Connect{Version: packet.V311, CleanStart: true, ClientID: "d-1", KeepAlive: 1})
	began := time.Now()
	big := publish("device/d-1/telemetry", strings.Repeat("x", 100_000), 0, 0) // worth five seconds
	p.write(big.Append(nil, packet.V311))
	p.publish(1, "device/d-1/telemetry", "behind it")
	p.write(packet.AppendPingreq(nil))
	if h, _ := p.next(); h.Type != packet.PINGRESP {
		t.Errorf("%s came; want PINGRESP while the message is held back", h.Type)
	}
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("the ping was answered after %s", d)
	}
	neighbour := r.join("d-2", packet.V311)
	neighbour.publish(1, "device/d-2/telemetry", "not held back")
	neighbour.acked(1)
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("the neighbour waited %s", d)
	}
	p.acked(1)
	if d := time.Since(began); d < 4*time.Second {
		t.Errorf("what was behind it was taken after %s", d)
	}
	p.nothing() // and it is still there
	// Coming again gains nothing.
	p.write(big.Append(nil, packet.V311))
	p.write((&packet.Disconnect{}).Append(nil, packet.V311))
	p.ended()
	p = r.join("d-1", packet.V311)
	began = time.Now()
	p.publish(1, "device/d-1/telemetry", "again")
	p.acked(1)
	if d := time.Since(began); d < time.Second {
		t.Errorf("on a new connection it was taken after %s", d)
	}
	r.stored(5)
	if shown := r.connections("?device=d-1"); len(shown) != 1 || shown[0].HeldBack != 1 {
		t.Errorf("the operator is shown %+v", shown)
	}
}

// connections are what an operator is shown.
func (r *rig) connections(query string) (shown []Connection) {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.host.Handler(func(*http.Request) bool { return true }).ServeHTTP(w, httptest.NewRequest("GET", "/api/v1/broker/connections"+query, nil))
	if err := json.Unmarshal(w.Body.Bytes(), &shown); err != nil {
		r.t.Fatalf("%v: %s", err, w.Body)
	}
	return shown
}

func TestAListenerHasItsOwnRateAndEndsItsWaits(t *testing.T) {
	slow := Rate{Messages: 0.001, Burst: "1ms"}
	conf, addr := open(t, func(l *Listener) { l.PublishRate = &slow })
	r := newRig(t, conf)
	free := r.join("d-1", packet.V5) // of another listener
	for id := uint16(1); id <= 50; id++ {
		free.publish(id, "device/d-1/telemetry", "x")
		free.acked(id)
	}
	hello := keeping("c", false, 60)
	p := r.dial(addr)
	p.connect(hello)
	p.send(publish("a", "first", 1, 1))
	m := publish("a", "second", 1, 2)
	p.write(m.Append(nil, packet.V5))
	q := r.dial(addr)
	if a := q.connect(hello); !a.SessionPresent {
		t.Error("the session is another one")
	}
	p.closed(packet.SessionTakenOver)
	q.write(m.Append(nil, packet.V5))
	began := time.Now()
	r.stop()
	if d := time.Since(began); d > drainPatience {
		t.Errorf("the stop took %s", d)
	}
	q.closed(packet.ServerShuttingDown)
}

package simulator

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/naru-platform/naru/device/sdk"
)

func TestSameSeedSameReadings(t *testing.T) {
	start := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	kinds, events := map[string]bool{}, map[string]bool{}
	for n := range 10 {
		a, b, other := newModel(n, 7), newModel(n, 7), newModel(n, 8)
		differs := false
		for i := range 5000 {
			now := start.Add(time.Duration(i) * time.Second)
			ra, rb := a.tick(now), b.tick(now)
			x, _ := json.Marshal(ra)
			y, _ := json.Marshal(rb)
			z, _ := json.Marshal(other.tick(now))
			if string(x) != string(y) || ra.event != rb.event {
				t.Fatalf("device %d, tick %d: %s and %s", n, i, x, y)
			}
			differs = differs || string(x) != string(z)
			kinds[ra.Kind], events[ra.event] = true, true
			if c := ra.Celsius; c != nil && (*c < 0 || *c > 40) {
				t.Fatalf("%g °C", *c)
			}
		}
		if !differs {
			t.Errorf("device %d does not depend on the seed", n)
		}
	}
	if len(kinds) != 3 || !events["running"] || !events["stalled"] || !events["opened"] || !events["closed"] {
		t.Errorf("kinds %v, events %v", kinds, events)
	}
}

// pairUntil is a self-signed pair: what counts here are its dates.
func pairUntil(t *testing.T, from, until time.Time) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd})
}

func TestCertificateIsRememberedUntilItsLastThird(t *testing.T) {
	dir, asked := t.TempDir(), 0
	start := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	now := start
	provision := func() {
		t.Helper()
		_, err := remember(dir, func() time.Time { return now }, func(context.Context, string) (cert, key []byte, err error) {
			asked++
			cert, key = pairUntil(t, now, now.AddDate(0, 0, 90))
			return cert, key, nil
		})(t.Context(), "sim-1")
		if err != nil {
			t.Error(err)
		}
	}
	provision()
	now = start.AddDate(0, 0, 59)
	provision()
	if asked != 1 {
		t.Errorf("enrolled %d times in the first two thirds", asked)
	}
	now = start.AddDate(0, 0, 61)
	provision()
	if asked != 2 {
		t.Errorf("enrolled %d times by the last third", asked)
	}
	if info, err := os.Stat(filepath.Join(dir, "sim-1.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// broker acknowledges everything and tells what it heard; what heard gives is sent. Its codec is not the one that the SDK
// writes with. It reads on while it writes, as a kernel's buffers let it.
func broker(conn net.Conn, heard func(*packets.Publish) []*packets.ControlPacket) {
	out := make(chan *packets.ControlPacket, 1024)
	defer close(out)
	go func() {
		for p := range out {
			if _, err := p.WriteTo(conn); err != nil {
				return
			}
		}
	}()
	for {
		cp, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		switch p := cp.Content.(type) {
		case *packets.Connect:
			out <- packets.NewControlPacket(packets.CONNACK)
		case *packets.Subscribe:
			ack := packets.NewControlPacket(packets.SUBACK)
			ack.Content.(*packets.Suback).PacketID, ack.Content.(*packets.Suback).Reasons = p.PacketID, []byte{packets.SubackGrantedQoS1}
			out <- ack
		case *packets.Publish:
			ack := packets.NewControlPacket(packets.PUBACK)
			ack.Content.(*packets.Puback).PacketID = p.PacketID
			out <- ack
			for _, p := range heard(p) {
				out <- p
			}
		}
	}
}

// A fleet that nobody lets in says so, and why.
func TestFleetWarnsWhenItCannotConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var log bytes.Buffer
		done := make(chan error, 1)
		go func() {
			done <- Run(ctx, Options{Devices: 1, Server: "127.0.0.1:1", Log: slog.New(slog.NewTextHandler(&log, nil)),
				Provision: func(context.Context, string) (tls.Certificate, error) { return tls.Certificate{}, nil },
				Connect: func(ctx context.Context, o sdk.Options) (*sdk.Client, error) {
					o.Dial = func(context.Context) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
					return sdk.Connect(ctx, o)
				}})
		}()
		<-time.After(15 * time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if said := log.String(); !strings.Contains(said, "level=WARN") || !strings.Contains(said, "sim-0 to 127.0.0.1:1") || !strings.Contains(said, "connection refused") {
			t.Errorf("it said %q", said)
		}
	})
}

func TestEveryDeviceSpeaksWithoutGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // so that a busy machine is not a slow one
		const devices, each = 20, 3
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		last, enough, denied := map[string]uint64{}, 0, false
		fleet := &Fleet{}
		err := fleet.Run(ctx, Options{Devices: devices, Rate: 5 * time.Millisecond, Seed: 1,
			Provision: func(context.Context, string) (tls.Certificate, error) {
				mu.Lock()
				defer mu.Unlock()
				if !denied { // the first that asks is told no, and asks again
					denied = true
					return tls.Certificate{}, errors.New("the CA is starting")
				}
				return tls.Certificate{}, nil
			},
			Connect: func(ctx context.Context, o sdk.Options) (*sdk.Client, error) {
				o.Dial = func(context.Context) (net.Conn, error) {
					here, there := net.Pipe()
					go broker(there, func(p *packets.Publish) []*packets.ControlPacket {
						if p.Topic != "device/"+o.Device+"/telemetry" {
							return nil
						}
						var r reading
						mu.Lock()
						defer mu.Unlock()
						if err := json.Unmarshal(p.Payload, &r); err != nil || r.Seq != last[o.Device]+1 || r.TS.IsZero() {
							t.Errorf("%s: %s behind %d", p.Topic, p.Payload, last[o.Device])
						}
						if last[o.Device] = r.Seq; r.Seq == each {
							if enough++; enough == devices {
								cancel()
							}
						}
						return nil
					})
					return here, nil
				}
				return sdk.Connect(ctx, o)
			}})
		s := fleet.Stats()
		if err != nil || s.Connected != 0 || s.Acked < devices*each || s.Failed != 1 {
			t.Errorf("%v, %+v", err, s)
		}
	})
}

// twinOf answers a device's requests to its twin, desires something at once, and tells what is reported.
func twinOf(desired string, reported func(string)) func(*packets.Publish) []*packets.ControlPacket {
	id := uint16(0)
	say := func(topic, data string, correlation []byte) *packets.ControlPacket {
		id++
		p := packets.NewControlPacket(packets.PUBLISH)
		c := p.Content.(*packets.Publish)
		c.Topic, c.Payload, c.QoS, c.PacketID, c.Properties.CorrelationData = topic, []byte(data), 1, id, correlation
		return p
	}
	return func(p *packets.Publish) []*packets.ControlPacket {
		switch correlation := p.Properties.CorrelationData; {
		case strings.HasSuffix(p.Topic, "/twin/get"):
			return []*packets.ControlPacket{say(p.Topic+"/accepted", `{"state":{"delta":`+desired+`},"version":2,"timestamp":100}`, correlation)}
		case strings.HasSuffix(p.Topic, "/twin/update"):
			reported(string(p.Payload))
			return []*packets.ControlPacket{say(p.Topic+"/accepted", `{"version":1,"timestamp":100}`, correlation)}
		}
		return nil
	}
}

func TestDevicesBecomeWhatTheirTwinsDesire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // so that a busy machine is not a slow one
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		reports := map[string][]string{}
		var warm, count int
		err := new(Fleet).Run(ctx, Options{Devices: 7, Rate: time.Second, Seed: 1, Provision: func(context.Context, string) (tls.Certificate, error) { return tls.Certificate{}, nil },
			Connect: func(ctx context.Context, o sdk.Options) (*sdk.Client, error) {
				o.Dial = func(context.Context) (net.Conn, error) {
					here, there := net.Pipe()
					twin := twinOf(`{"interval":0.001,"setpoint":80,"color":"red"}`, func(s string) { reports[o.Device] = append(reports[o.Device], s) })
					if o.Device == "sim-1" {
						twin = twinOf(`{"interval":"often","setpoint":1e9}`, func(s string) { reports[o.Device] = append(reports[o.Device], s) })
					}
					go broker(there, func(p *packets.Publish) []*packets.ControlPacket {
						mu.Lock()
						defer mu.Unlock()
						var r reading
						if p.Topic == "device/sim-0/telemetry" && json.Unmarshal(p.Payload, &r) == nil && *r.Celsius > 70 {
							warm++
						}
						if p.Topic == "device/sim-6/telemetry" {
							count++
						}
						if warm > 0 && count > 100 && len(reports["sim-0"]) == 2 && len(reports["sim-6"]) == 2 && len(reports["sim-1"]) == 1 {
							cancel()
						}
						return twin(p)
					})
					return here, nil
				}
				return sdk.Connect(ctx, o)
			}})
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			t.Error(err)
		}
		for device, want := range map[string][]string{
			"sim-0": {`{"state":{"reported":{"interval":1}}}`, `{"state":{"reported":{"interval":0.001,"setpoint":80}}}`}, // a thermometer
			"sim-1": {`{"state":{"reported":{"interval":1}}}`},                                                            // of which nonsense is desired
			"sim-6": {`{"state":{"reported":{"interval":1}}}`, `{"state":{"reported":{"interval":0.001}}}`},               // a pump
		} {
			if got := reports[device]; !slices.Equal(got, want) {
				t.Errorf("%s reports %q; want %q", device, got, want)
			}
		}
	})
}

func TestAStalledPumpStartsWhenItIsTold(t *testing.T) {
	s := newSettings(newModel(6, 7), time.Second)
	restart := func() string {
		got, err := s.obey(t.Context(), sdk.Command{Name: "restart"})
		return fmt.Sprint(got, err)
	}
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	var r reading
	for range 5000 {
		if r = s.tick(now); r.State == "stalled" {
			break
		}
	}
	if first, second := restart(), restart(); r.State != "stalled" || first != "map[state:starting] <nil>" || second != first {
		t.Errorf("it is %s, told to start it answers %s, told again %s", r.State, first, second)
	}
	for r.event == "stalled" { // the next reading says that it starts, or runs already
		r = s.tick(now)
	}
	if r.event != "starting" && r.event != "running" {
		t.Errorf("after it, it says %+v", r)
	}
	if _, err := newSettings(newModel(0, 7), time.Second).obey(t.Context(), sdk.Command{Name: "restart"}); err == nil {
		t.Error("a thermometer starts as well")
	}
}

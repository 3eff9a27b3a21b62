package simulator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
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

// broker acknowledges everything and tells what it heard. Its codec is not the one that the SDK writes with.
func broker(conn net.Conn, heard func(*packets.Publish)) {
	for {
		cp, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		switch p := cp.Content.(type) {
		case *packets.Connect:
			_, err = packets.NewControlPacket(packets.CONNACK).WriteTo(conn)
		case *packets.Publish:
			heard(p)
			ack := packets.NewControlPacket(packets.PUBACK)
			ack.Content.(*packets.Puback).PacketID = p.PacketID
			_, err = ack.WriteTo(conn)
		}
		if err != nil {
			return
		}
	}
}

func TestEveryDeviceSpeaksWithoutGaps(t *testing.T) {
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
				go broker(there, func(p *packets.Publish) {
					if p.Topic != "device/"+o.Device+"/telemetry" {
						return
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
				})
				return here, nil
			}
			return sdk.Connect(ctx, o)
		}})
	s := fleet.Stats()
	if err != nil || s.Connected != 0 || s.Acked < devices*each || s.Failed != 1 {
		t.Errorf("%v, %+v", err, s)
	}
}

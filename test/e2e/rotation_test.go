//go:build long

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/naru-platform/naru/internal/porttest"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/x509"
)

// TestRotationUnderTrafficLosesAndRefusesNothing has a device send without a pause while it gets certificate after
// certificate, by command and by EST, and changes over to each at the other one of two nodes.
func TestRotationUnderTrafficLosesAndRefusesNothing(t *testing.T) {
	est := porttest.Addr(t)
	first, second := twoNodes(t, fmt.Sprintf("service_platform.x509:\n  est: {listen: %q}\n", est))
	dir := first.add("d-r")
	c := &cutter{platform: first, dir: dir, est: est}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	var conf atomic.Pointer[tls.Config]
	var live atomic.Pointer[net.Conn]
	var visits atomic.Int64
	arrived := make(chan struct{}, 1000)
	conf.Store(credentials(t, dir))
	s := &sender{id: "d-r", sent: map[int]int{}, acked: map[int]bool{}}
	s.dial = func() (net.Conn, error) {
		addr := []string{first.mqtt, second.mqtt}[visits.Add(1)%2]
		nc, err := tls.Dial("tcp", addr, conf.Load())
		if err != nil {
			t.Errorf("it does not come in: %v", err)
			return nil, err
		}
		one := net.Conn(nc)
		live.Store(&one)
		arrived <- struct{}{}
		return one, nil
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		s.run(stop)
	}()
	sends := func() { // it is there, and in the middle of its messages
		t.Helper()
		<-arrived
		before := s.count.Load()
		until(t, "a message of it is acknowledged", func() bool { return s.count.Load() > before })
	}
	sends()
	pair := conf.Load().Certificates[0]
	const rotations = 8
	for i := range rotations {
		if i%2 == 0 {
			out := filepath.Join(t.TempDir(), "next")
			first.ok("device", "rotate", "d-r", "--out", out, "--overlap", "1h")
			if pair, err = tls.LoadX509KeyPair(filepath.Join(out, "device.crt"), filepath.Join(out, "device.key")); err != nil {
				t.Fatal(err)
			}
		} else if pair, err = c.enrol(context.Background(), "d-r", "", &pair, newKey(t)); err != nil {
			t.Fatal(err)
		}
		conf.Store(clientTLS(t, pair, ca))
		_ = (*live.Load()).Close() // in the middle of its messages
		sends()
	}
	close(stop)
	<-done
	var why struct {
		Attempts []x509.Attempt `json:"attempts"`
	}
	first.json(&why, "why", "device", "d-r")
	for _, a := range why.Attempts {
		if !a.Admitted {
			t.Errorf("it was refused: %s %s", a.Reason, a.Detail)
		}
	}
	var d x509.Device
	if first.json(&d, "device", "show", "d-r"); len(d.Certs) != rotations+1 {
		t.Errorf("%d certificates", len(d.Certs))
	}
	first.settled(uint64(len(s.acked)))
	second.stop()
	first.stop()
	if len(s.acked) < 10*rotations {
		t.Errorf("%d messages were acknowledged, which is no traffic", len(s.acked))
	}
	t.Logf("%d messages acknowledged over %d connections", len(s.acked), visits.Load())
	checkStored(t, first.data, []*sender{s})
}

// TestCurlAndOpenSSLEnrolThenMosquittoPublishes goes by EST with nothing of naru's on the device's side.
func TestCurlAndOpenSSLEnrolThenMosquittoPublishes(t *testing.T) {
	est, dir := porttest.Addr(t), t.TempDir()
	config := filepath.Join(dir, "naru.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "service_platform.x509:\n  est: {listen: %q}\n", est), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t, "--config", config)
	p.start()
	var token struct{ Token string }
	p.json(&token, "device", "token", "est-7")
	cmd := exec.CommandContext(t.Context(), "bash", "-euxo", "pipefail", "-c", `
		EST=https://localhost:$EST_PORT/.well-known/est
		curl -sSf --cacert $ROOT $EST/cacerts | openssl base64 -d | openssl pkcs7 -inform DER -print_certs -out ca.pem
		request() { # a new key and a request for it
			openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -subj /CN=est-7 -outform DER | openssl base64 -out $1.p10
		}
		post() { # to $1 the request $2
			local to=$1 of=$2; shift 2
			curl -sSf --cacert ca.pem "$@" -H 'Content-Type: application/pkcs10' -H 'Content-Transfer-Encoding: base64' --data-binary @$of.p10 $EST/$to |
				openssl base64 -d | openssl pkcs7 -inform DER -print_certs -out $of.crt
			openssl verify -CAfile ca.pem -purpose sslclient $of.crt
		}
		publish() {
			mosquitto_pub -V 5 -p $MQTT_PORT --cafile ca.pem --cert $1.crt --key $1.key -i est-7 -q 1 -t device/est-7/telemetry -m '{"celsius":1}'
		}
		request first
		set +x; post simpleenroll first -u est-7:$TOKEN; set -x
		publish first
		request second
		post simplereenroll second --cert first.crt --key first.key
		publish second
		publish first # in the overlap
	`)
	cmd.Dir = dir
	port := func(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
	cmd.Env = append(os.Environ(), "EST_PORT="+port(est), "MQTT_PORT="+port(p.mqtt), "TOKEN="+token.Token, "ROOT="+filepath.Join(p.data, "service_platform.x509", "root.crt"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, p.out)
	}
	var d x509.Device
	if p.json(&d, "device", "show", "est-7"); len(d.Certs) != 2 || d.Certs[0].EndsAt.IsZero() {
		t.Errorf("registered: %+v", d.Certs)
	}
	p.settled(3)
}

// TestClaimAnswersGoOnlyToTheConnectionThatAsked has two connections with one claim certificate, both subscribed to the
// same answers, and a device that subscribes to everything it may. Nothing of it is in what operators can ask for.
func TestClaimAnswersGoOnlyToTheConnectionThatAsked(t *testing.T) {
	first, second := twoNodes(t, "service_platform.x509:\n  templates:\n    pumps: {name: \"pump-${SerialNumber}\", parameters: [SerialNumber]}\n")
	lot := first.claimCertificate("lot", "pumps")
	nosy := credentials(t, first.add("nosy"))
	for i, addr := range []string{first.mqtt, second.mqtt} {
		connect := func(id string, conf *tls.Config, topics ...string) *claimant {
			k, err := claim(t.Context(), addr, conf, id, topics...)
			if err != nil {
				t.Fatalf("%s at node %d: %v", id, i+1, err)
			}
			t.Cleanup(func() { _ = k.Close() })
			return k
		}
		asks := connect("line-1", lot, topicCreate, topicProvision("pumps"))
		other := connect("line-2", lot, topicCreate, topicProvision("pumps"))
		device := connect("nosy", nosy)
		everything := packet.Subscribe{ID: device.next16(), Subscriptions: []packet.Subscription{{Filter: "#", QoS: 1}, {Filter: "$aws/#", QoS: 1}, {Filter: topicCreate + "/accepted", QoS: 1}}}
		if _, err := device.Write(everything.Append(nil, packet.V5)); err != nil {
			t.Fatal(err)
		}
		if h, _, err := device.next(); err != nil || h.Type != packet.SUBACK {
			t.Fatal(h.Type, err)
		}
		var made provisionedWith
		if err := asks.ask(topicCreate, struct{}{}, &made); err != nil {
			t.Fatalf("node %d: %v", i+1, err)
		}
		var thing struct{ ThingName string }
		if err := asks.ask(topicProvision("pumps"), provisionRequest(made.Token, fmt.Sprint(i)), &thing); err != nil || thing.ThingName != fmt.Sprint("pump-", i) {
			t.Errorf("node %d: %q, %v", i+1, thing.ThingName, err)
		}
		other.quiet(t, "the other connection")
		device.quiet(t, "a device")
		asks.quiet(t, "the one that asked, once more,")

		for what, p := range map[string]packet.Publish{
			"QoS 2":            {QoS: 2, ID: 9, Topic: topicCreate, Payload: []byte("{}")},
			"retained":         {QoS: 1, ID: 9, Retain: true, Topic: topicCreate, Payload: []byte("{}")},
			"anything else":    {QoS: 1, ID: 9, Topic: "device/nosy/telemetry", Payload: []byte("{}")},
			"another's shadow": {QoS: 1, ID: 9, Topic: "$aws/things/nosy/shadow/update", Payload: []byte("{}")},
		} {
			if _, err := other.Write(p.Append(nil, packet.V5)); err != nil {
				t.Fatal(err)
			}
			h, body, err := other.next()
			if err != nil || len(body) < 3 || !packet.ReasonCode(body[2]).Failed() {
				t.Errorf("%s is answered with %s %x, %v", what, h.Type, body, err)
			}
		}
		will := packet.Connect{Version: packet.V5, ClientID: "line-3", CleanStart: true, Will: &packet.Will{Topic: topicCreate, Payload: []byte("{}")}}
		nc, err := tls.Dial("tcp", addr, lot)
		if err != nil {
			t.Fatal(err)
		}
		v := &visitor{Conn: nc}
		defer v.Close()
		if _, err := v.Write(will.Append(nil)); err != nil {
			t.Fatal(err)
		}
		if h, body, err := v.next(); err != nil || h.Type != packet.CONNACK || !packet.ReasonCode(body[1]).Failed() {
			t.Errorf("a will is answered with %s %x, %v", h.Type, body, err)
		}

		first.settled(0)
		secrets := []string{made.Token, strings.Split(made.Key, "\n")[1]}
		for what, text := range map[string]string{
			"message list": first.ok("messages", "--limit", "1000", "-o", "json"), "log of the first": first.out.String(), "log of the second": second.out.String(),
			"device list": first.ok("device", "list", "-o", "json"), "export": first.ok("device", "export"),
			"list of claims": first.ok("ca", "claim", "list", "-o", "json"),
		} {
			for _, s := range secrets {
				if strings.Contains(text, s) {
					t.Errorf("node %d: a secret is in the %s", i+1, what)
				}
			}
		}
		for _, p := range []*platform{first, second} {
			nowhere(t, p.data, secrets)
		}
	}
}

// nowhere reads every file of a platform, its bus among them.
func nowhere(t *testing.T, data string, secrets []string) {
	t.Helper()
	err := filepath.WalkDir(data, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // what is gone meanwhile holds nothing
		}
		raw, err := os.ReadFile(name)
		for _, s := range secrets {
			if err == nil && strings.Contains(string(raw), s) {
				t.Errorf("%s holds a secret that was given out", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

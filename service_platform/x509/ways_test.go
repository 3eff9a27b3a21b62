package x509

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/tls"
	stdx509 "crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

func TestClaimCertificateBecomesADevice(t *testing.T) {
	a := newArena(t)
	who, err := a.gate.AdmitClient(t.Context(), a.claimClient())
	if err != nil || who.Claim != "lot-7" || who.Device != "" {
		t.Fatalf("admitted as %+v, %v", who, err)
	}
	if _, err := a.gate.Admit(t.Context(), a.claimClient().Leaf, nil); message.ReasonOf(err, 0) != message.CertUnregistered {
		t.Errorf("where claims are not known: %v", err)
	}
	var made created
	if got := a.ask(a.claimClient(), topicCreate, map[string]any{}, &made); got.Topic != topicCreate+"/accepted" {
		t.Fatal(string(got.Payload))
	}
	pair, err := tls.X509KeyPair([]byte(made.PEM), []byte(made.Key))
	if err != nil {
		t.Fatal(err)
	}
	fresh := Client{Leaf: pair.Leaf}
	if _, err := a.gate.AdmitClient(t.Context(), fresh); message.ReasonOf(err, 0) != message.CertUnregistered {
		t.Errorf("before it is provisioned: %v", err)
	}
	var done provisioned
	topic := topicProvision + "lot" + provisionEnd
	a.ask(a.claimClient(), topic, map[string]any{"certificateOwnershipToken": made.Token, "parameters": map[string]string{"Serial": "17"}}, &done)
	if done.Thing != "pump-17" || done.Configuration["region"] != "tokyo" || a.asked.Load() != 1 {
		t.Errorf("provisioned as %+v, hook asked %d times", done, a.asked.Load())
	}
	who, err = a.gate.AdmitClient(t.Context(), fresh)
	if err != nil || who.Device != "pump-17" || who.Policy != "pump" || !slices.Equal(who.Groups, []string{"pumps"}) {
		t.Errorf("admitted as %+v, %v", who, err)
	}
	a.attempts(attemptFilter{}) // it has come in, and that is written
	if got := a.ask(a.claimClient(), topic, map[string]any{"certificateOwnershipToken": made.Token, "parameters": map[string]string{"Serial": "17"}}, nil); got.Accepted {
		t.Error("the ownership token is good twice")
	}
	// its certificate was made before it had a name, and is renewed by that
	status, text := a.est(estCall{path: estReenroll, cert: &pair, body: csrText(t, ecKey(t, elliptic.P256()), name(pair.Leaf))})
	if status != http.StatusOK || name(a.enrolled(text)) != "pump-17" {
		t.Errorf("renewed by EST: %d %s", status, text)
	}
	// another door that has not heard of it finds it by its certificate
	other := a.door()
	if got, err := other.door.Admit(t.Context(), pair.Leaf, nil); got != "pump-17" {
		t.Error(got, err)
	}
	all, err := bus.Entries(t.Context(), a.s.open.Load().trust, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if strings.Contains(e.Key+string(e.Value), made.Token) || bytes.Contains(e.Value, []byte("PRIVATE KEY")) {
			t.Errorf("a secret is in the table at %s", e.Key)
		}
	}
	recorded, _ := json.Marshal(a.attempts(attemptFilter{}))
	for what, text := range map[string]string{"log": a.logs.String(), "flight recorder": string(recorded), "answer as printed": fmt.Sprintf("%+v", Answer{Payload: authority.Secret(made.Key)})} {
		if strings.Contains(text, made.Token) || strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("a secret is in the %s", what)
		}
	}
}

// Whoever holds a connection of a claim certificate hears that it is withdrawn, and that what it stood on is trusted no
// more.
func TestWithdrawnClaimIsTold(t *testing.T) {
	a := newArena(t)
	told := make(chan string, 16)
	a.gate.OnChange(func(who string) {
		if strings.HasPrefix(who, claimPeer) {
			told <- who
		}
	})
	old := authority.Fingerprint(a.s.open.Load().authority.Bundle().Roots[0].Raw)
	a.must(a.do("POST", "/api/v1/ca/rollover", struct{}{}, nil), 200)
	a.must(a.do("POST", "/api/v1/ca/retire", map[string]string{"fingerprint": old}, nil), 200)
	if who := <-told; who != "claim/lot-7" {
		t.Errorf("its root retired: told of %q", who)
	}
	a.must(a.do("POST", "/api/v1/claims/"+a.claim.Fingerprint+"/revoke", struct{}{}, nil), 200)
	if who := <-told; who != "claim/lot-7" {
		t.Errorf("it is revoked: told of %q", who)
	}
}

// Cut off between binding the token and using it up, the same device may ask again; nobody else may.
func TestProvisioningCutOffInTheMiddleIsRepeated(t *testing.T) {
	a := newArena(t)
	var made created
	a.ask(a.claimClient(), topicCSR, map[string]string{"certificateSigningRequest": string(csr(t, ecKey(t, elliptic.P256()), "any"))}, &made)
	if made.Key != "" || made.Token == "" {
		t.Fatalf("made %s", made.ID)
	}
	o := a.s.open.Load()
	key := tokenKey(ownershipPrefix, made.Token)
	p := &provisioning{s: a.s, o: o, door: a.gate}
	own, revision, err := p.read(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	own.Template, own.Device = "lot", "pump-18"
	if err := p.keep(t.Context(), key, own, revision); err != nil { // and here the process was killed
		t.Fatal(err)
	}
	with := func(serial string) Answer {
		return a.ask(a.claimClient(), topicProvision+"lot"+provisionEnd, map[string]any{"certificateOwnershipToken": made.Token, "parameters": map[string]string{"Serial": serial}}, nil)
	}
	if got := with("19"); got.Accepted {
		t.Error("another device took the token over")
	}
	if got := with("18"); !got.Accepted {
		t.Errorf("the same device: %s", string(got.Payload))
	}
}

func TestDeviceOfARegisteredCAIsRegisteredJustInTime(t *testing.T) {
	a := newArena(t)
	c := leafBy(t, a.clock, a.factory, "meter-7", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} })
	who, err := a.gate.AdmitClient(t.Context(), Client{Leaf: c})
	if err != nil || who.Device != "meter-7" || who.Policy != "meter" || !slices.Equal(who.Groups, []string{"made-by-acme"}) {
		t.Fatalf("admitted as %+v, %v", who, err)
	}
	var d Device
	a.do("GET", "/api/v1/devices/meter-7", nil, &d)
	if d.CA != a.factoryID || len(d.Certs) != 1 || d.Certs[0].Fingerprint != authority.Fingerprint(c.Raw) {
		t.Errorf("registered %+v", d)
	}
	for got := ""; got != "meter-7 registered"; { // said by the CA's process, whichever process the door was in
		got = <-a.heard
	}
	again := leafBy(t, a.clock, a.factory, "meter-7", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} })
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: again}); message.ReasonOf(err, 0) != message.CertUnregistered {
		t.Errorf("a second certificate of the same name: %v", err)
	}
	a.do("DELETE", "/api/v1/devices/meter-7", nil, nil)
	a.gate.refused = refusals{}
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: c}); err == nil || !strings.Contains(err.Error(), "withdrawn") {
		t.Errorf("a deleted device comes back by itself: %v", err)
	}
}

// Though a template lets devices come again with a new certificate, they are those of the same CA only.
func TestRegisteredCATakesOverNoDeviceOfAnother(t *testing.T) {
	a := newArena(t)
	o := a.s.open.Load()
	_, _, err := o.registry.Add(t.Context(), Registration{ID: "d-1", Certificate: &Certificate{Fingerprint: strings.Repeat("ab", 32)}, CA: a.factoryID})
	if !errors.Is(err, ErrRefused) {
		t.Errorf("got %v; want it refused", err)
	}
}

func TestTheRecorderTellsEachStep(t *testing.T) {
	a := newArena(t)
	device, err := authority.ParseCerts([]byte(a.device.Certificate))
	if err != nil {
		t.Fatal(err)
	}
	c := Client{Leaf: device[0], Chain: device[1:], Address: "192.0.2.1:1234", Version: tls.VersionTLS13}
	for range 3 {
		if _, err := a.gate.AdmitClient(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	a.do("POST", "/api/v1/devices/d-1/revoke", Change{Reason: "stolen"}, nil)
	if _, err := a.gate.AdmitClient(t.Context(), c); err == nil {
		t.Fatal("admitted though revoked")
	}
	a.gate.Refused(c, "rate_limit", message.Rejectf(message.ReceiveMaximum, "too many"))
	list := a.attempts(attemptFilter{device: "d-1", address: "192.0.2.1"})
	if len(list) != 3 {
		t.Fatalf("%d attempts: %+v", len(list), list)
	}
	slices.SortStableFunc(list, func(a, b Attempt) int { return b.Count - a.Count })
	ok := list[0]
	if !ok.Admitted || ok.Count != 3 || ok.TLS != "TLS 1.3" || ok.Serial == "" || len(ok.Steps) != 5 {
		t.Errorf("admitted: %+v", ok)
	}
	i := slices.IndexFunc(list, func(a Attempt) bool { return a.Reason == "cert_revoked" })
	if i < 0 || !strings.Contains(list[i].Detail, "stolen") || list[i].Steps[len(list[i].Steps)-1].OK || list[i].Steps[0].Name != "certificate" {
		t.Errorf("revoked: %+v", list)
	}
	if got := a.attempts(attemptFilter{ca: func(a *Attempt) bool { return a.CA == ok.CA }, refused: true}); len(got) != 2 {
		t.Errorf("%d refused attempts by the CA", len(got))
	}
	var answer struct{ Attempts []Attempt }
	if got := a.do("GET", "/api/v1/admissions?device=d-1&refused=true", nil, &answer); got != http.StatusOK || len(answer.Attempts) != 2 {
		t.Errorf("%d: %+v", got, answer)
	}
}

func TestESTWithCurlAndOpenSSL(t *testing.T) {
	for _, tool := range []string{"curl", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("no %s on this machine: tools/needs.sh installs it", tool)
		}
	}
	a := newArena(t)
	dir := t.TempDir()
	token := a.token("est-7")
	run := func(script string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "URL=https://localhost:"+a.s.open.Load().estAddr[strings.LastIndexByte(a.s.open.Load().estAddr, ':')+1:]+"/.well-known/est",
			"ROOT="+filepath.Join(a.dir, "root.crt"), "TOKEN="+token)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s\n%v\n%s", script, err, out)
		}
		return string(out)
	}
	run(`curl -sSf --cacert $ROOT $URL/cacerts -D h -o ca.b64
		grep -qi '^content-type: application/pkcs7-mime' h; grep -qi '^content-transfer-encoding: base64' h
		openssl base64 -d -in ca.b64 | openssl pkcs7 -inform DER -print_certs -out ca.pem
		test $(grep -c BEGIN ca.pem) = 2
		curl -sSf --cacert $ROOT $URL/csrattrs | openssl base64 -d | openssl asn1parse -inform DER | grep -q prime256v1`)
	run(`openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout d.key -subj /CN=est-7 -outform DER | openssl base64 -out d.p10
		curl -sSf --cacert $ROOT --tlsv1.2 -u est-7:$TOKEN -H 'Content-Type: application/pkcs10' --data-binary @d.p10 $URL/simpleenroll -D h -o d.b64
		grep -qi 'smime-type=certs-only' h
		openssl base64 -d -in d.b64 | openssl pkcs7 -inform DER -print_certs -out d.crt
		openssl verify -CAfile ca.pem -purpose sslclient d.crt`)
	run(`openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout e.key -subj /CN=est-7 -outform DER | openssl base64 -out e.p10
		curl -sSf --cacert $ROOT --cert d.crt --key d.key -H 'Content-Type: application/pkcs10' --data-binary @e.p10 $URL/simplereenroll -o e.b64
		openssl base64 -d -in e.b64 | openssl pkcs7 -inform DER -print_certs -out e.crt
		openssl verify -CAfile ca.pem -purpose sslclient e.crt`)
	var d Device
	a.do("GET", "/api/v1/devices/est-7", nil, &d)
	if len(d.Certs) != 2 || d.Certs[0].EndsAt.Before(a.clock.Now().Add(6*day)) || !d.Certs[1].EndsAt.IsZero() {
		t.Errorf("after enrolling and renewing: %+v", d.Certs)
	}
	if got := run(`curl -sS --cacert $ROOT -u est-7:$TOKEN -H 'Content-Type: application/pkcs10' --data-binary @e.p10 -o /dev/null -w '%{http_code}' $URL/simpleenroll`); got != "401" {
		t.Errorf("the token once more, with another key: %s", got)
	}
	if list := a.attempts(attemptFilter{device: "est-7"}); len(list) != 3 {
		t.Errorf("%d attempts recorded: %+v", len(list), list)
	}
}

// A device whose answer was lost comes again with the same key, and gets its certificate.
func TestESTTokenIsGoodAgainForTheSameKey(t *testing.T) {
	a := newArena(t)
	token, key := a.token("d-9"), ecKey(t, elliptic.P256())
	var given []*stdx509.Certificate
	for range 2 {
		status, text := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: csrText(t, key, "d-9")})
		if status != 200 {
			t.Fatal(status, text)
		}
		given = append(given, a.enrolled(text))
	}
	for _, c := range given {
		if who, err := a.gate.AdmitClient(t.Context(), Client{Leaf: c}); who.Device != "d-9" {
			t.Error(who, err)
		}
	}
}

// A token is no way back in for who was put out, nor for who is deleted.
func TestESTTokenOfAWithdrawnDeviceIsRefused(t *testing.T) {
	a := newArena(t)
	for device, withdraw := range map[string]func(){
		"d-21": func() { a.must(a.do("POST", "/api/v1/devices/d-21/revoke", nil, nil), 200) },
		"d-22": func() { a.must(a.do("DELETE", "/api/v1/devices/d-22", nil, nil), 204) },
	} {
		token, key := a.token(device), ecKey(t, elliptic.P256())
		again := estCall{path: estEnroll, user: device, token: token, body: csrText(t, key, device)}
		for range 2 {
			if status, text := a.est(again); status != 200 {
				t.Fatal(status, text)
			}
		}
		withdraw()
		before := a.fleet()
		if status, text := a.est(again); status != 401 || a.fleet() != before {
			t.Errorf("%s: answered %d %s", device, status, text)
		}
	}
}

// doorway is what a listener in another component asks of an Admission, without a type of this package.
type doorway interface {
	ServerTLS() (*tls.Config, error)
	AdmitPeer(ctx context.Context, address string, s tls.ConnectionState) (device, claim string, err error)
	RefusePeer(address, clientID string, s tls.ConnectionState, step string, err error)
	ClaimMayPublish(topic string) bool
	ClaimMaySubscribe(filter string) bool
	ProvisionPeer(ctx context.Context, address, clientID string, leaf *stdx509.Certificate, topic string, payload []byte) (answerTopic string, answer []byte)
	DeviceOf(leaf *stdx509.Certificate) (policy string, groups []string, attributes map[string]string, known bool)
	OnChange(f func(device string)) (stop func())
}

func TestListenerOfAnotherComponentNeedsNoTypeOfThisOne(t *testing.T) {
	a := newArena(t)
	var door doorway = a.gate
	claim := tls.ConnectionState{PeerCertificates: []*stdx509.Certificate{certOf(t, a.claim)}, Version: tls.VersionTLS13}
	if device, lot, err := door.AdmitPeer(t.Context(), "192.0.2.7:4711", claim); device != "" || lot != "lot-7" || err != nil {
		t.Errorf("a claim is admitted as %q, %q, %v", device, lot, err)
	}
	topic, answer := door.ProvisionPeer(t.Context(), "192.0.2.7:4711", "any", claim.PeerCertificates[0], topicCreate, []byte("{}"))
	if topic != topicCreate+"/accepted" || !bytes.Contains(answer, []byte("certificateOwnershipToken")) {
		t.Errorf("answered at %q", topic)
	}
	device := tls.ConnectionState{PeerCertificates: []*stdx509.Certificate{certOf(t, a.device)}}
	door.RefusePeer("192.0.2.8:4711", "d-2", device, "client_id", message.Rejectf(message.ClientIDMismatch, "it calls itself d-2"))
	if got := a.attempts(attemptFilter{address: "192.0.2.8"}); len(got) != 1 || got[0].Reason != "client_id_mismatch" || got[0].Device != "d-1" || !got[0].Known {
		t.Errorf("recorded %+v", got)
	}
	a.do("POST", "/api/v1/devices", Enrolment{ID: "d-1", Policy: "pump", Groups: []string{"a"}}, nil)
	if policy, groups, _, known := door.DeviceOf(device.PeerCertificates[0]); policy != "pump" || len(groups) != 1 || !known {
		t.Errorf("the registry has %q, %v, %v", policy, groups, known)
	}
	a.do("POST", "/api/v1/devices/d-1/revoke", nil, nil)
	if _, _, _, known := door.DeviceOf(device.PeerCertificates[0]); known {
		t.Error("a revoked certificate has a policy")
	}
}

// A session that was resumed shows the certificate of before: revoked meanwhile, it is refused.
func TestResumedSessionAfterRevocationIsRefused(t *testing.T) {
	a := newArena(t)
	conf, err := a.gate.ServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	verdicts := make(chan error, 2)
	resumed := make(chan bool, 2)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			c := nc.(*tls.Conn)
			if err := c.Handshake(); err == nil {
				s := c.ConnectionState()
				_, err := a.gate.AdmitClient(t.Context(), ClientOf(c.RemoteAddr().String(), s))
				resumed <- s.DidResume
				verdicts <- err
			}
			_, _ = c.Write([]byte("x"))
			_ = c.Close()
		}
	}()
	roots, _ := pools(a.s.open.Load().authority.Bundle())
	client := &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{*pairOf(t, a.device)}, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	connect := func() (bool, error) {
		c, err := tls.Dial("tcp", l.Addr().String(), client)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Read(make([]byte, 1)) // takes the ticket
		_ = c.Close()
		return <-resumed, <-verdicts
	}
	if did, err := connect(); did || err != nil {
		t.Fatal(did, err)
	}
	a.do("POST", "/api/v1/devices/d-1/revoke", Change{Reason: "stolen"}, nil)
	if did, err := connect(); !did || message.ReasonOf(err, 0) != message.CertRevoked {
		t.Errorf("resumed %v, %v", did, err)
	}
	list := a.attempts(attemptFilter{device: "d-1", refused: true})
	if len(list) != 1 || !strings.Contains(list[0].TLS, "resumed") {
		t.Errorf("recorded %+v", list)
	}
}

func TestClaimsMayUseTheirTopicsOnly(t *testing.T) {
	for _, topic := range []string{topicCreate, topicCSR, lotTopic} {
		if !ClaimMayPublish(topic) || !ClaimMaySubscribe(topic+"/accepted") || !ClaimMaySubscribe(topic+"/rejected") {
			t.Errorf("%s is not allowed", topic)
		}
	}
	for _, topic := range []string{"", "#", "device/d-1/telemetry", "$aws/certificates/create/cbor", "$aws/certificates/create/json/accepted",
		topicProvision + "a/b" + provisionEnd, topicProvision + "+" + provisionEnd, topicProvision + provisionEnd, lotTopic + "/x"} {
		if ClaimMayPublish(topic) {
			t.Errorf("publishing on %q is allowed", topic)
		}
	}
	for _, filter := range []string{"#", "$aws/#", "$aws/certificates/create/json/+", "$aws/certificates/+/json/accepted", topicCreate, "$share/g/" + topicCreate + "/accepted"} {
		if ClaimMaySubscribe(filter) {
			t.Errorf("subscribing to %q is allowed", filter)
		}
	}
}

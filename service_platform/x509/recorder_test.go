package x509

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	stdx509 "crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

func admissionsIn(t *testing.T, b bus.Bus) bus.Table {
	t.Helper()
	table, err := b.Table(t.Context(), admissionsTable, admissionsOptions)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func recorded(t *testing.T, b bus.Bus, f attemptFilter) []Attempt {
	t.Helper()
	list, err := attempts(t.Context(), b, f, 10000)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Strangers cannot push a device's attempts out, nor can who holds a claim certificate; and none of them fills the bus.
func TestFloodOfStrangersIsBounded(t *testing.T) {
	b := newTables()
	table := admissionsIn(t, b)
	r := &recorder{node: "n-1"}
	now := newClock().Now()
	r.record(Attempt{Device: "d-1", Known: true, At: now})
	for i := range chunks*attemptsPerChunk + 2*attemptsPerChunk {
		r.record(Attempt{Device: fmt.Sprint("x-", i), Address: "203.0.113.9", At: now})
		r.record(Attempt{Device: fmt.Sprint("lot-", i), Known: true, Claim: true, At: now})
		if i%attemptsPerChunk == 0 {
			if err := r.flush(t.Context(), table); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := recorded(t, b, attemptFilter{device: "d-1"}); len(got) != 1 {
		t.Error("the device's attempt is gone")
	}
	entries, err := bus.Entries(t.Context(), table, attemptPrefix)
	if err != nil || len(entries) != 2*chunks+1 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if r.dropped > 0 {
		t.Errorf("%d attempts were dropped", r.dropped)
	}
	for i := range 2 * unwrittenMax * attemptsPerChunk { // faster than anything is written
		r.record(Attempt{Device: fmt.Sprint("y-", i), Address: "203.0.113.9", At: now})
		if i == unwrittenMax*attemptsPerChunk*3/2 {
			r.record(Attempt{Device: "d-2", Known: true, At: now})
		}
	}
	if err := r.flush(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	if got := recorded(t, b, attemptFilter{device: "d-2"}); len(got) != 1 {
		t.Error("the attempt of a device that came in mid-flood is gone")
	}
}

// However many names one certificate gives itself, a revoked one or a stranger's too, it pushes nobody else out; and its own
// newest attempts are there, with how many more there were.
func TestFloodOfOneCertificateIsItsOwnAffair(t *testing.T) {
	const flood = chunks*attemptsPerChunk + 100
	for class, of := range []Attempt{{Device: "x"}, {Known: true}, {Known: true, Claim: true}} {
		b := newTables()
		table := admissionsIn(t, b)
		r := &recorder{node: "n-1"}
		at := newClock().Now()
		victim, loud := of, of
		victim.Device, victim.Fingerprint, victim.At = "d-1", "aa", at
		loud.Device, loud.Fingerprint = "d-2", "bb"
		r.record(victim)
		for i := range flood {
			loud.At = at.Add(time.Duration(i) * time.Millisecond)
			loud.ClientID = fmt.Sprint("x-", i)
			r.record(loud)
			if i%attemptsPerChunk == 0 {
				if err := r.flush(t.Context(), table); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := r.flush(t.Context(), table); err != nil {
			t.Fatal(err)
		}
		if got := recorded(t, b, attemptFilter{device: "d-1"}); len(got) != 1 {
			t.Errorf("ring %d: the other's attempt is gone", class)
		}
		got := recorded(t, b, attemptFilter{device: "d-2"})
		all := 0
		for _, a := range got {
			all += a.Count + a.Others
		}
		if len(got) != shareMax+ridesMax || all != flood || got[0].ClientID != fmt.Sprint("x-", flood-1) || r.dropped > 0 {
			t.Errorf("ring %d: %d entries for %d attempts of %d, %d dropped", class, len(got), all, flood, r.dropped)
		}
		loud.At, loud.ClientID = at.Add(shareTime), "later"
		r.record(loud)
		if r.rings[class].riders != ridesMax {
			t.Errorf("ring %d: an hour later it has no share again", class)
		}
		for i := range 3 * ridersMax { // many that are beyond their shares have a limit together
			for j := range shareMax + 1 {
				r.record(Attempt{Known: of.Known, Claim: of.Claim, Device: fmt.Sprint("y-", i), Fingerprint: fmt.Sprint("c", i), ClientID: fmt.Sprint(j), At: loud.At})
			}
		}
		if g := r.rings[class]; g.riders > ridersMax || len(g.open) > attemptsPerChunk+ridersMax {
			t.Errorf("ring %d: %d ride in a chunk of %d", class, g.riders, len(g.open))
		}
	}
}

// What an earlier process recorded is there after a restart, and what is recorded then takes the place of the oldest only.
func TestRecorderGoesOnBehindWhatWasBefore(t *testing.T) {
	b := newTables()
	table := admissionsIn(t, b)
	c := newClock()
	run := func(from, n int) {
		t.Helper()
		r := &recorder{node: "n-1"}
		for i := range n {
			r.record(Attempt{Device: fmt.Sprint("d-", from+i), Known: true, At: c.Now()})
			c.move(time.Millisecond)
			if i%attemptsPerChunk == 0 { // and so each chunk is written more than once
				if err := r.flush(t.Context(), table); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := r.flush(t.Context(), table); err != nil {
			t.Fatal(err)
		}
	}
	run(0, 20)
	run(20, 1)
	run(21, 20)
	if got := len(recorded(t, b, attemptFilter{})); got != 41 {
		t.Errorf("%d attempts of 41 are there", got)
	}
	whole := chunks * attemptsPerChunk
	run(41, whole) // once around
	run(41+whole, 5)
	got := recorded(t, b, attemptFilter{})
	// The ring's oldest chunk went for the last one, and no more.
	if len(got) != whole-attemptsPerChunk+5 || got[0].Device != fmt.Sprint("d-", 41+whole+4) || got[len(got)-1].Device != fmt.Sprint("d-", 41+attemptsPerChunk) {
		t.Errorf("%d attempts, from %s to %s", len(got), got[len(got)-1].Device, got[0].Device)
	}
}

// away is a table that takes nothing for a while.
type away struct {
	bus.Table
	gone atomic.Bool
}

func (a *away) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	if a.gone.Load() {
		return 0, errors.New("no responders")
	}
	return a.Table.Put(ctx, key, value)
}

func TestAttemptsWaitForABusThatIsAway(t *testing.T) {
	b := newTables()
	table := &away{Table: admissionsIn(t, b)}
	r := &recorder{node: "n-1"}
	flush := func() error { return r.flush(t.Context(), table) }
	note := func(from, n int) {
		for i := range n {
			r.record(Attempt{Device: fmt.Sprint("d-", from+i), Known: true, At: time.Unix(int64(from+i), 0)})
		}
	}
	note(0, 1)
	if err := flush(); err != nil {
		t.Fatal(err)
	}
	table.gone.Store(true)
	note(1, 3*attemptsPerChunk)
	for range 2 {
		if flush() == nil {
			t.Fatal("it says that it has written what it has not")
		}
	}
	note(1+3*attemptsPerChunk, 1)
	table.gone.Store(false)
	if err := flush(); err != nil {
		t.Fatal(err)
	}
	if got := len(recorded(t, b, attemptFilter{})); got != 3*attemptsPerChunk+2 || r.dropped > 0 {
		t.Errorf("%d attempts are there, %d were dropped", got, r.dropped)
	}
	table.gone.Store(true)
	for i := range 2 * unwrittenMax { // and what is too much for the heap is counted
		note(1000*(i+1), attemptsPerChunk)
		_ = flush()
	}
	if len(r.order) > unwrittenMax || r.dropped < unwrittenMax*attemptsPerChunk/2 {
		t.Errorf("%d chunks wait, %d attempts were dropped", len(r.order), r.dropped)
	}
}

// hooked registers another CA, whose devices a hook approves.
func (a *arena) hooked() (ca pair, id string) {
	a.Helper()
	ca = foreignCA(a.TB, a.clock, func(c *stdx509.Certificate) { c.Subject.CommonName = "Hooked CA" })
	return ca, a.register(ca, "hooked").Fingerprint
}

func (a *arena) register(ca pair, template string) (r RegisteredCA) {
	a.Helper()
	var code struct{ Code string }
	a.must(a.do("POST", "/api/v1/ca/registration-code", struct{}{}, &code), 201)
	a.must(a.do("POST", "/api/v1/ca/registered", CARegistration{Certificate: string(authority.CertPEM(ca.cert)),
		Proof: string(authority.CertPEM(leafBy(a.TB, a.clock, ca, code.Code, nil))), Template: template}, &r), 201)
	a.settle()
	return r
}

// Whoever was to be registered when he came is recorded at a door of its own, with the step that failed and the device that
// he would have become; so an operator finds him by that name.
func TestJustInTimeIsRecordedAsADoorOfItsOwn(t *testing.T) {
	a := newArena(t)
	ca, id := a.hooked()
	good, bad := leafBy(t, a.clock, ca, "7", nil), leafBy(t, a.clock, ca, "8", nil)
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: good}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: good}); err != nil { // now it is a device like any other
		t.Fatal(err)
	}
	a.hookAllows.Store(false)
	for range 3 { // the second and third are refused by what is remembered
		if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: bad}); err == nil {
			t.Fatal("it got in")
		}
	}
	doors := map[string]int{}
	for _, at := range a.attempts(attemptFilter{device: "hooked-7"}) {
		doors[at.Door]++
		if at.Door == doorJIT && (!at.Admitted || !slices.ContainsFunc(at.Steps, func(s Step) bool { return s.Name == "hook" && s.OK })) {
			t.Errorf("let in as %+v", at)
		}
	}
	if doors[doorJIT] != 1 || doors[DoorMQTT] != 1 {
		t.Errorf("it is recorded at %v", doors)
	}
	list := a.attempts(attemptFilter{device: "hooked-8", refused: true})
	times := 0
	for _, at := range list {
		times += at.Count
		if at.Door != doorJIT || at.Becomes != "hooked-8" || at.Device != "8" || at.Steps[len(at.Steps)-1].Name != "hook" || !strings.Contains(at.Detail, "does not allow") {
			t.Errorf("recorded as %+v", at)
		}
	}
	if times != 3 || a.asked.Load() != 2 {
		t.Errorf("%d attempts recorded, the hook asked %d times", times, a.asked.Load())
	}
	// What a device is refused is recorded as the device's, though its certificate names another.
	a.gate.Refused(Client{Leaf: good}, "client_id", message.Rejectf(message.ClientIDMismatch, "it says x"))
	a.must(a.do("POST", "/api/v1/ca/registered/"+id+"/disable", struct{}{}, nil), 200)
	a.settle()
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: good}); err == nil {
		t.Fatal("it got in by a CA that is switched off")
	}
	reasons := map[string]string{}
	for _, at := range a.attempts(attemptFilter{device: "hooked-7", refused: true}) {
		reasons[at.Reason] = at.Device
	}
	if reasons["client_id_mismatch"] != "hooked-7" || reasons["cert_unknown_ca"] != "hooked-7" {
		t.Errorf("what the device was refused is recorded as %v", reasons)
	}
}

// An operator sees which CA's devices do not get in.
func TestAttemptsAreSummedUpByCA(t *testing.T) {
	a := newArena(t)
	device := certOf(t, a.device)
	for range 2 {
		if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: device}); err != nil {
			t.Fatal(err)
		}
	}
	stranger := foreignCA(t, a.clock, func(c *stdx509.Certificate) { c.Subject.CommonName = "Another CA" })
	for _, c := range []*stdx509.Certificate{leafBy(t, a.clock, stranger, "x-1", nil), leafBy(t, a.clock, stranger, "x-2", nil), leafBy(t, a.clock, a.factory, "meter-1", nil)} {
		if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: c}); err == nil {
			t.Fatal("it got in")
		}
	}
	a.gate.Refused(Client{Address: "192.0.2.9:1"}, "handshake", message.Rejectf(message.HandshakeFailed, "EOF"))
	a.attempts(attemptFilter{}) // written
	var got struct{ CAs []CAAttempts }
	a.must(a.do("GET", "/api/v1/admissions/by-ca", nil, &got), 200)
	of := map[string]CAAttempts{}
	for _, c := range got.CAs {
		of[c.Name] = c
	}
	own := of[device.Issuer.CommonName]
	if !own.Known || own.Admitted != 2 || own.Refused != 0 || own.Devices != 1 {
		t.Errorf("the platform's own: %+v", own)
	}
	if f := of["Factory CA"]; !f.Known || f.Refused != 1 || f.Reasons["cert_unregistered"] != 1 || f.LastDevice != "meter-1" || f.LastReason != "cert_unregistered" {
		t.Errorf("the factory's: %+v", f)
	}
	if s := of["Another CA"]; s.Known || s.Refused != 2 || s.Devices != 2 || s.Reasons["cert_unknown_ca"] != 2 {
		t.Errorf("a stranger's: %+v", s)
	}
	if n := of[""]; n.Refused != 1 || n.CA != "" || len(got.CAs) != 4 {
		t.Errorf("without a certificate: %+v of %d", n, len(got.CAs))
	}
	for i := range 3 * casShown {
		a.gate.recorder.record(Attempt{Issuer: fmt.Sprint("CA ", i), CA: fmt.Sprint(i), Fingerprint: fmt.Sprint(i), Reason: "cert_unknown_ca", At: a.clock.Now()})
		if i%attemptsPerChunk == 0 {
			a.attempts(attemptFilter{device: "nobody"})
		}
	}
	a.attempts(attemptFilter{})
	got.CAs = nil
	a.must(a.do("GET", "/api/v1/admissions/by-ca", nil, &got), 200)
	if n := len(got.CAs); n != casShown || got.CAs[n-1].Others != 3*casShown+4-casShown+1 || !got.CAs[0].Known {
		t.Errorf("%d lines, the last of %d CAs", n, got.CAs[n-1].Others)
	}
}

// What is told apart by `naru why device`: at which step of an enrolment a device failed.
func TestRecorderNamesTheStepThatFailed(t *testing.T) {
	want := map[string]string{
		"EST with a guessed token": stepToken, "EST, weak curve": "csr", "EST, a label in the path": "path", "EST, renewal with a claim certificate": "certificate",
		"claim, a token of nobody": stepToken, "claim, another's template": "claim", "claim, a missing parameter": "template", "claim, a weak key by csr": "csr",
		"claim, the hook says no": "hook", "claim, a flood of certificates": stepThrottle, "claim, not JSON": "payload", "claim, a topic that there is not": "topic",
		"just in time, a path as name": "template", "expired": "time", "self-signed": "signature",
	}
	for _, h := range hostiles(t) {
		step, asked := want[h.name]
		if !asked {
			continue
		}
		delete(want, h.name)
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			a := newArena(t)
			if err := h.try(a); err == nil {
				t.Fatal("it got in")
			}
			list := a.attempts(attemptFilter{refused: true})
			if len(list) != 1 || list[0].Steps[len(list[0].Steps)-1].Name != step {
				t.Errorf("recorded as %+v; want step %s", list, step)
			}
		})
	}
	if len(want) > 0 {
		t.Errorf("not in the table: %v", want)
	}
}

// A template says how long its devices' certificates are valid: the first, and those that renew it in whichever way.
func TestTemplateDecidesHowLongCertificatesAreValid(t *testing.T) {
	a := newArena(t)
	lasts := func(c *stdx509.Certificate) time.Duration {
		return c.NotAfter.Sub(a.clock.Now()).Round(time.Hour)
	}
	claims := map[string]Enrolled{}
	for name, templates := range map[string][]string{"brief": {"brief"}, "both": {"lot", "brief"}, "lot": {"lot"}} {
		var e Enrolled
		a.must(a.do("POST", "/api/v1/claims", ClaimRequest{Name: name, Templates: templates}, &e), 201)
		claims[name] = e
	}
	a.settle()
	var made created
	for name, want := range map[string]time.Duration{"brief": 30 * day, "both": 30 * day, "lot": 365 * day} {
		c := Client{Leaf: certOf(t, claims[name])}
		for topic, in := range map[string]any{topicCreate: map[string]any{}, topicCSR: map[string]string{"certificateSigningRequest": string(csr(t, ecKey(t, elliptic.P256()), "x"))}} {
			var m created
			if got := a.ask(c, topic, in, &m); !got.Accepted {
				t.Fatal(string(got.Payload))
			}
			certs, err := authority.ParseCerts([]byte(m.PEM))
			if err != nil {
				t.Fatal(err)
			}
			if got := lasts(certs[0]); got != want {
				t.Errorf("by %s at %s: valid for %s, want %s", name, topic, got, want)
			}
			if name == "brief" && topic == topicCreate {
				made = m
			}
		}
	}
	brief := Client{Leaf: certOf(t, claims["brief"])}
	if got := a.ask(brief, topicProvision+"brief"+provisionEnd, provisionOf(made.Token, map[string]string{"Serial": "1"}), nil); !got.Accepted {
		t.Fatal(string(got.Payload))
	}
	pair := pairOf(t, Enrolled{Certificate: made.PEM, Key: made.Key})
	status, text := a.est(estCall{path: estReenroll, cert: pair, body: csrText(t, ecKey(t, elliptic.P256()), name(pair.Leaf))})
	if status != http.StatusOK || lasts(a.enrolled(text)) != 30*day {
		t.Errorf("renewed by EST: %d, valid for %s", status, lasts(a.enrolled(text)))
	}
	var e Enrolled
	a.must(a.do("POST", "/api/v1/devices/brief-1/rotate", Rotation{}, &e), 201)
	if got := lasts(certOf(t, e)); got != 30*day {
		t.Errorf("rotated: valid for %s", got)
	}
	a.must(a.do("POST", "/api/v1/devices/brief-1/rotate", Rotation{Validity: Duration(7 * day)}, &e), 201)
	if got := lasts(certOf(t, e)); got != 7*day {
		t.Errorf("the operator says 7 days: valid for %s", got)
	}
	ca := foreignCA(t, a.clock, func(c *stdx509.Certificate) { c.Subject.CommonName = "Brief CA" })
	a.register(ca, "made-brief")
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: leafBy(t, a.clock, ca, "meter-9", nil)}); err != nil {
		t.Fatal(err)
	}
	a.must(a.do("POST", "/api/v1/devices/meter-9/rotate", Rotation{}, &e), 201)
	if got := lasts(certOf(t, e)); got != 60*day {
		t.Errorf("a device that came just in time: valid for %s", got)
	}
	if err := (Template{Name: "x", Validity: Duration(time.Second)}).check("t"); err == nil {
		t.Error("a validity of a second is taken")
	}
}

// A device whose ca.crt is too old ends the handshake itself; that is told from other faults of a handshake, with what to do.
func TestClientThatDoesNotTrustTheServerIsToldApart(t *testing.T) {
	a := newArena(t)
	conf, err := a.gate.ServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	other := foreignCA(t, a.clock, nil)
	roots := stdx509.NewCertPool()
	roots.AddCert(other.cert)
	for address, client := range map[string]*tls.Config{
		"192.0.2.1": {RootCAs: roots, ServerName: "localhost"},
		"192.0.2.2": {RootCAs: roots, ServerName: "localhost", MaxVersion: tls.VersionTLS12},
		"192.0.2.3": {InsecureSkipVerify: true, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}, MaxVersion: tls.VersionTLS12},
	} {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = tls.Client(near, client).HandshakeContext(t.Context()) // it is to fail
			_ = near.Close()
		}()
		err := tls.Server(far, conf).HandshakeContext(t.Context())
		_ = far.Close()
		<-done
		if err == nil {
			t.Fatalf("%s is in", address)
		}
		a.gate.RefusePeer(address, "", tls.ConnectionState{}, "handshake", err)
		got := a.attempts(attemptFilter{address: address})[0]
		want := StepServer
		if address == "192.0.2.3" {
			want = "handshake"
		}
		if got.Steps[0].Name != want || got.Reason != "handshake_failed" || (want == StepServer) != strings.Contains(got.Detail, "ca.crt") {
			t.Errorf("%s: recorded %+v (%v)", address, got, err)
		}
	}
	if got := a.attempts(attemptFilter{step: StepServer}); len(got) != 2 {
		t.Errorf("%d by the step", len(got))
	}
}

// OpenSSL, by which most devices speak TLS, says that it refuses the certificate in the clear where TLS 1.3 is encrypted.
func TestOpenSSLThatDoesNotTrustTheServerIsToldApart(t *testing.T) {
	a := newArena(t)
	conf, err := a.gate.ServerTLS()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/old.crt", authority.CertPEM(foreignCA(t, a.clock, nil).cert), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		failed := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				err = c.(*tls.Conn).HandshakeContext(t.Context())
				_ = c.Close()
			}
			failed <- err
		}()
		out, err := exec.CommandContext(t.Context(), "openssl", "s_client", "-connect", l.Addr().String(), "-CAfile", dir+"/old.crt", "-verify_return_error", version).CombinedOutput()
		if err == nil {
			t.Fatalf("openssl trusts the server: %s", out)
		}
		why := <-failed
		if why == nil {
			t.Fatal("it is in")
		}
		a.gate.RefusePeer("192.0.2.9", "", tls.ConnectionState{}, "handshake", why)
		a.clock.move(time.Second)
		if got := a.attempts(attemptFilter{address: "192.0.2.9"})[0]; got.Steps[0].Name != StepServer || !strings.Contains(got.Detail, "ca.crt") {
			t.Errorf("%s: recorded %+v (%v)", version, got, why)
		}
	}
}

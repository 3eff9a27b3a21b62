package x509

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/smallstep/pkcs7"

	"github.com/naru-platform/naru/bus"
)

// arena is a whole CA with every way in open: a device d-1, a factory's CA that registers just in time, a claim
// certificate of a production lot, EST, and a hook that approves until it is told otherwise.
type arena struct {
	*api
	factory     pair
	factoryID   string
	claim       Enrolled
	device      Enrolled
	hookAllows  atomic.Bool
	hookAnswers atomic.Pointer[http.HandlerFunc]
	asked       atomic.Int64
	before      string // the fleet, before what must not change it
}

func newArena(t *testing.T) *arena {
	t.Helper()
	return newArenaOn(t, newTables())
}

func newArenaOn(t *testing.T, b bus.Bus) *arena {
	t.Helper()
	a := &arena{api: newAPI(t)}
	a.bus = b
	a.clock.ns.Store(time.Now().UnixNano()) // TLS and foreign tools have no other clock
	a.hookAllows.Store(true)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked.Add(1)
		if f := a.hookAnswers.Load(); f != nil {
			(*f)(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]bool{"allowProvisioning": a.hookAllows.Load()})
	}))
	t.Cleanup(hook.Close)
	a.conf.EST.Listen = "127.0.0.1:0"
	a.conf.Templates = map[string]Template{
		"lot":        {Name: "pump-${Serial}", Parameters: []string{"Serial"}, Groups: []string{"pumps"}, Policy: "pump", Hook: hook.URL, Configuration: map[string]string{"region": "tokyo"}},
		"other":      {Name: "other-${Serial}", Parameters: []string{"Serial"}},
		"brief":      {Name: "brief-${Serial}", Parameters: []string{"Serial"}, Validity: Duration(30 * day)},
		"hooked":     {Name: "hooked-${Certificate.CommonName}", Hook: hook.URL},
		"made-brief": {Name: "${Certificate.CommonName}", Validity: Duration(60 * day)},
		"factory":    {Name: "${Certificate.CommonName}", Groups: []string{"made-by-${Certificate.Organization}"}, Policy: "meter"},
	}
	a.gate = NewAdmission(a.bus, AdmissionOptions{Now: a.clock.Now, Node: "n-1", ServerCert: filepath.Join(a.dir, "server.crt"), ServerKey: filepath.Join(a.dir, "server.key")})
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- a.gate.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-ready
	a.start()
	a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: "d-1"}, &a.device), 201)
	a.must(a.do("POST", "/api/v1/claims", ClaimRequest{Name: "lot-7", Templates: []string{"lot"}}, &a.claim), 201)
	a.factory = foreignCA(t, a.clock, func(c *stdx509.Certificate) { c.NotBefore = a.clock.Now().Add(-400 * day) })
	var code struct{ Code string }
	a.must(a.do("POST", "/api/v1/ca/registration-code", struct{}{}, &code), 201)
	var ca RegisteredCA
	a.must(a.do("POST", "/api/v1/ca/registered", CARegistration{Certificate: string(authority.CertPEM(a.factory.cert)),
		Proof: string(authority.CertPEM(leafBy(t, a.clock, a.factory, code.Code, nil))), Template: "factory"}, &ca), 201)
	a.factoryID = ca.Fingerprint
	a.settle()
	return a
}

func (a *arena) must(got, want int) {
	a.Helper()
	if got != want {
		a.Fatalf("answered %d, want %d", got, want)
	}
}

// settle waits until the gate knows what is in the tables.
func (a *arena) settle() {
	a.Helper()
	if t, ok := a.bus.(*tables); ok {
		t.settled()
		return
	}
	a.listed(func() bool { // another engine does not tell: what the arena itself has made
		a.gate.mu.RLock()
		defer a.gate.mu.RUnlock()
		return a.gate.cas[casPrefix+a.factoryID] != nil && len(a.gate.claims) > 0 && len(a.gate.certs) > 0
	}, "the gate does not hear of what is in the tables")
}

func (a *arena) claimClient() Client {
	c, err := authority.ParseCerts([]byte(a.claim.Certificate))
	if err != nil {
		a.Fatal(err)
	}
	return Client{Leaf: c[0], Chain: c[1:], Address: "192.0.2.7:4711"}
}

// ask publishes as a claim client does, and reads the answer.
func (a *arena) ask(c Client, topic string, in, into any) Answer {
	a.Helper()
	var raw []byte
	if s, ok := in.(string); ok {
		raw = []byte(s)
	} else if in != nil {
		var err error
		if raw, err = json.Marshal(in); err != nil {
			a.Fatal(err)
		}
	}
	got := a.gate.Provision(a.Context(), c, topic, raw)
	if into != nil {
		if err := json.Unmarshal([]byte(got.Payload), into); err != nil {
			a.Fatalf("%s: %v", topic, err)
		}
	}
	return got
}

// attempts gives what is recorded, newest first.
func (a *arena) attempts(f attemptFilter) []Attempt {
	a.Helper()
	t, err := a.bus.Table(a.Context(), admissionsTable, admissionsOptions)
	if err != nil {
		a.Fatal(err)
	}
	if err := a.gate.recorder.flush(a.Context(), t); err != nil {
		a.Fatal(err)
	}
	if d := a.s.open.Load().estDoor; d != nil {
		if err := d.recorder.flush(a.Context(), t); err != nil {
			a.Fatal(err)
		}
	}
	list, err := attempts(a.Context(), a.bus, f, 1000)
	if err != nil {
		a.Fatal(err)
	}
	return list
}

// fleet is everything that an enrolment may change, in one text.
func (a *arena) fleet() string {
	var b bytes.Buffer
	devices, _ := a.s.open.Load().index.page("", 1000, nil)
	for _, d := range devices {
		d.Unsaid = nil
		d.Certs = slices.Clone(d.Certs)
		for i := range d.Certs {
			d.Certs[i].Awaited = false // a device that comes in changes nothing else
		}
		_ = json.NewEncoder(&b).Encode(d)
	}
	return b.String()
}

func (a *arena) token(device string) string {
	a.Helper()
	var g TokenGiven
	a.must(a.do("POST", "/api/v1/devices/"+device+"/token", TokenRequest{}, &g), 201)
	return g.Token
}

// estCall is one request to EST.
type estCall struct {
	method, path, user, token string
	cert                      *tls.Certificate
	body                      string
	header                    map[string]string
}

func (a *arena) est(c estCall) (int, string) {
	a.Helper()
	roots, _ := pools(a.s.open.Load().authority.Bundle())
	conf := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}
	if c.cert != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.cert, nil }
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	if c.method == "" {
		c.method = "POST"
	}
	r, err := http.NewRequestWithContext(a.Context(), c.method, "https://"+a.s.open.Load().estAddr+c.path, strings.NewReader(c.body))
	if err != nil {
		a.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/pkcs10")
	for k, v := range c.header {
		r.Header.Set(k, v)
	}
	if c.user != "" {
		r.SetBasicAuth(c.user, c.token)
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		a.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// enrolled reads the certificate of an EST answer.
func (a *arena) enrolled(text string) *stdx509.Certificate {
	a.Helper()
	der, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(text, "\r\n", ""))
	if err != nil {
		a.Fatal(err)
	}
	p, err := pkcs7.Parse(der)
	if err != nil || len(p.Certificates) != 1 {
		a.Fatal(err, text)
	}
	return p.Certificates[0]
}

func csrText(t *testing.T, key crypto.Signer, cn string) string {
	t.Helper()
	der, err := stdx509.CreateCertificateRequest(rand.Reader, &stdx509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(der)
}

func pairOf(t *testing.T, e Enrolled) *tls.Certificate {
	t.Helper()
	p, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
	if err != nil {
		t.Fatal(err)
	}
	return &p
}

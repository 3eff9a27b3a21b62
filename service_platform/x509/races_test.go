package x509

import (
	"context"
	"crypto/elliptic"
	stdx509 "crypto/x509"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
)

const atOnce = 8

// together has f called by many at the same moment, and gives how many of them it let in.
func together(f func(i int) bool) int {
	var in atomic.Int64
	var all sync.WaitGroup
	now := make(chan struct{})
	for i := range atOnce {
		all.Go(func() {
			<-now
			if f(i) {
				in.Add(1)
			}
		})
	}
	close(now)
	all.Wait()
	return int(in.Load())
}

// However many ask at once, a token is good for one of them.
func TestOneTokenIsGoodForOneWhenManyComeAtOnce(t *testing.T) {
	a := newArena(t)
	token := a.token("d-9")
	var bodies [atOnce]string
	for i := range bodies {
		bodies[i] = csrText(t, ecKey(t, elliptic.P256()), "d-9")
	}
	if n := together(func(i int) bool {
		status, _ := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: bodies[i]})
		return status == 200
	}); n != 1 {
		t.Errorf("an enrolment token: %d keys", n)
	}
	var d Device
	if a.do("GET", "/api/v1/devices/d-9", nil, &d); len(d.Certs) != 1 {
		t.Errorf("%d certificates are registered", len(d.Certs))
	}

	made := a.ownership()
	client := a.claimClient()
	if n := together(func(i int) bool {
		return a.ask(client, lotTopic, provisionOf(made.Token, map[string]string{"Serial": fmt.Sprint(i)}), nil).Accepted
	}); n != 1 {
		t.Errorf("an ownership token: %d devices", n)
	}

	var code struct{ Code string }
	a.must(a.do("POST", "/api/v1/ca/registration-code", struct{}{}, &code), 201)
	var cas, proofs [atOnce]string
	for i := range cas {
		ca := foreignCA(t, a.clock, nil)
		cas[i], proofs[i] = string(authority.CertPEM(ca.cert)), string(authority.CertPEM(leafBy(t, a.clock, ca, code.Code, nil)))
	}
	if n := together(func(i int) bool {
		return a.do("POST", "/api/v1/ca/registered", CARegistration{Certificate: cas[i], Proof: proofs[i]}, nil) == 201
	}); n != 1 {
		t.Errorf("a registration code: %d CAs", n)
	}
}

// Many certificates of one name come at once: one of them becomes the device, and stays it.
func TestOneOfManyIsRegisteredJustInTime(t *testing.T) {
	a := newArena(t)
	var leaves [atOnce]*stdx509.Certificate
	for i := range leaves {
		leaves[i] = leafBy(t, a.clock, a.factory, "meter-7", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} })
	}
	if n := together(func(i int) bool {
		who, err := a.gate.AdmitClient(t.Context(), Client{Leaf: leaves[i]})
		return err == nil && who.Device == "meter-7"
	}); n != 1 {
		t.Errorf("%d got in", n)
	}
	var d Device
	if a.do("GET", "/api/v1/devices/meter-7", nil, &d); len(d.Certs) != 1 {
		t.Errorf("%d certificates are registered", len(d.Certs))
	}
}

// Changes of one device at once are all there afterwards, and its facts are all said.
func TestChangesOfOneDeviceAtOnceAreAllKept(t *testing.T) {
	a := startAPI(t)
	if n := together(func(int) bool { return a.do("POST", "/api/v1/devices", Enrolment{ID: "d-1"}, nil) == 201 }); n != atOnce {
		t.Errorf("%d of %d certificates were issued", n, atOnce)
	}
	var d Device
	if a.do("GET", "/api/v1/devices/d-1", nil, &d); len(d.Certs) != atOnce {
		t.Errorf("%d certificates are registered", len(d.Certs))
	}
	together(func(i int) bool {
		return a.do("POST", "/api/v1/devices/d-1/"+[]string{"disable", "enable"}[i%2], nil, nil) == 200
	})
	a.do("POST", "/api/v1/devices/d-1/revoke", nil, nil)
	if a.do("GET", "/api/v1/devices/d-1", nil, &d); d.State(a.clock.Now()) != "revoked" && d.State(a.clock.Now()) != "disabled" {
		t.Errorf("it is %s", d.State(a.clock.Now()))
	}
	issued, revoked := 0, 0
	for issued+revoked < 2*atOnce {
		switch <-a.heard {
		case "d-1 registered", "d-1 issued":
			issued++
		case "d-1 revoked":
			revoked++
		}
	}
	if issued != atOnce || revoked != atOnce {
		t.Errorf("%d said to be issued, %d revoked", issued, revoked)
	}
}

// A device that is imported as disabled is let in by no door at any moment: no entry of it was ever another.
func TestImportedAsDisabledIsNeverLetIn(t *testing.T) {
	a, b := startAPI(t), startAPI(t)
	for _, id := range []string{"d-17", "d-18"} {
		a.must201(Enrolment{ID: id})
	}
	a.do("POST", "/api/v1/devices/d-17/disable", nil, nil)
	var was, other Device
	a.do("GET", "/api/v1/devices/d-17", nil, &was)
	a.do("GET", "/api/v1/devices/d-18", nil, &other)

	table, err := b.bus.Table(t.Context(), devicesTable, bus.TableOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	listening, entries := make(chan struct{}), make(chan Device)
	go func() {
		_ = table.Watch(ctx, devicePrefix, func(e bus.Entry) { // ends with ctx
			var d Device
			_ = json.Unmarshal(e.Value, &d) // or it is the zero one
			select {
			case entries <- d:
			case <-ctx.Done():
			}
		}, sync.OnceFunc(func() { close(listening) }))
	}()
	<-listening
	put := func(id string, in Import) int { return b.do("PUT", "/api/v1/devices/"+id, in, nil) }
	if got := put("d-17", Import{Disabled: true, Certs: was.Certs}); got != 201 {
		t.Fatal(got)
	}
	for said := false; !said; { // the last write is that its facts have been said
		d := <-entries
		if said = len(d.Unsaid) == 0; len(d.Certs) > 0 && !d.Disabled {
			t.Errorf("for a moment it was %+v", d)
		}
	}
	if got := put("d-17", Import{Certs: other.Certs}); got != 409 {
		t.Errorf("another certificate for a device that is disabled: %d", got)
	}
	if got := put("d-17", Import{Disabled: true, Certs: other.Certs}); got != 200 {
		t.Errorf("another certificate for a device that stays disabled: %d", got)
	}
	if got := put("d-19", Import{Certs: []Certificate{{Fingerprint: other.Certs[0].Fingerprint[:63] + "0"}}}); got != 400 {
		t.Errorf("a certificate without an end: %d", got)
	}
	var d Device
	if b.do("GET", "/api/v1/devices/d-17", nil, &d); !d.Disabled || len(d.Certs) != 2 {
		t.Errorf("it is %+v", d)
	}
}

func (a *api) must201(e Enrolment) {
	a.Helper()
	if got := a.do("POST", "/api/v1/devices", e, nil); got != 201 {
		a.Fatal(got)
	}
}

// What a request says beside the names of things is looked at too, before anything is made by it.
func TestCarelessRequestsAreRefusedWithoutEffect(t *testing.T) {
	a := newArena(t)
	before := a.fleet()
	sum := strings.Repeat("ab", 32)
	cert := func(more string) string {
		return `{"certs":[{"fingerprint":"` + sum + `","not_after":"2030-01-01T00:00:00Z"` + more + `}]}`
	}
	for _, c := range []struct{ method, path, body string }{
		{"POST", "/api/v1/devices", `{"id":"x"}{"id":"y"}`},
		{"POST", "/api/v1/devices", `{"id":"x","groups":["a;b"]}`},
		{"POST", "/api/v1/devices", `{"id":"x","groups":[""]}`},
		{"POST", "/api/v1/devices", `{"id":"x","groups":["\u0000"]}`},
		{"POST", "/api/v1/devices", `{"id":"x","groups":["` + strings.Repeat("a", textMax+1) + `"]}`},
		{"POST", "/api/v1/devices", `{"id":"x","attributes":{"":"1"}}`},
		{"POST", "/api/v1/devices", `{"id":"x","attributes":{"a":"\u001b[31m"}}`},
		{"POST", "/api/v1/devices", `{"id":"x","by":"mina\n"}`},
		{"PUT", "/api/v1/devices/x", `{"groups":["a;b"]}`},
		{"PUT", "/api/v1/devices/x", cert(`,"serial":"zz"`)},
		{"PUT", "/api/v1/devices/x", cert(`,"issuer":"no"`)},
		{"PUT", "/api/v1/devices/x", cert(`,"name":"` + strings.Repeat("n", textMax+1) + `"`)},
		{"PUT", "/api/v1/devices/x", cert(`,"reason":"\u0007"`)},
		{"POST", "/api/v1/devices/x/token", `{"validity":"1s"}`},
		{"POST", "/api/v1/devices/d-1/disable", `{"reason":"\u001b[2J"}`},
		{"POST", "/api/v1/claims", `{"name":"x","templates":["nope"]}`},
		{"POST", "/api/v1/claims", `{"name":"x","templates":[""]}`},
	} {
		w := httptest.NewRecorder()
		a.mux.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		var said struct{ Detail string }
		if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || w.Code != 400 || said.Detail == "" || strings.Contains(said.Detail, "\n") {
			t.Errorf("%s %s %.60s: %d %s", c.method, c.path, c.body, w.Code, w.Body)
		}
	}
	if after := a.fleet(); after != before {
		t.Errorf("the fleet was changed:\n%s%s", before, after)
	}
	if p, err := (Template{Name: "x", Groups: []string{"${G}"}, Parameters: []string{"G"}}).plan(map[string]string{"G": "a;b"}, nil); err == nil {
		t.Errorf("a device chose two groups: %+v", p)
	}
}

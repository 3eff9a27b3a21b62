package x509

import (
	"context"
	"crypto/elliptic"
	stdx509 "crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus/nats"
	"github.com/naru-platform/naru/component"
)

// On the engine that ships, with the doors of two nodes.
func TestRevocationReachesEveryNodeWithinASecond(t *testing.T) {
	b, err := nats.Open(t.Context(), nats.Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	a := newAPI(t)
	a.s = newService(component.Env{Log: slog.New(slog.DiscardHandler), Now: time.Now, Bus: b, Metrics: prometheus.NewRegistry(),
		Dir: func() (string, error) { return a.dir, nil }, Node: "n-1", Say: a.say}, a.conf, nil)
	a.mux = http.NewServeMux()
	for _, r := range a.s.routes() {
		a.mux.Handle(r.Pattern, r.Handler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 3)
	go func() { done <- a.s.run(ctx, func() { close(ready) }) }()
	<-ready
	nodes := make([]*Admission, 2)
	type change struct {
		device string
		at     time.Time
	}
	told := make(chan change, 16)
	for i := range nodes {
		n := NewAdmission(b, AdmissionOptions{})
		read := make(chan struct{})
		go func() { done <- n.Run(ctx, func() { close(read) }) }()
		<-read
		n.OnChange(func(d string) { told <- change{d, time.Now()} })
		nodes[i] = n
	}
	t.Cleanup(func() {
		cancel()
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	for name, end := range map[string]string{"revoked": "/revoke", "disabled": "/disable", "deleted": ""} {
		var e Enrolled
		if got := a.do("POST", "/api/v1/devices", Enrolment{ID: "d-" + name}, &e); got != 201 {
			t.Fatal(name, got)
		}
		for _, n := range nodes {
			if got, err := n.Admit(t.Context(), certOf(t, e), nil); got != "d-"+name {
				t.Fatal(name, err)
			}
		}
		began := time.Now()
		method := "POST"
		if end == "" {
			method = "DELETE"
		}
		a.do(method, "/api/v1/devices/d-"+name+end, nil, nil)
		for range nodes {
			c := <-told
			took := c.at.Sub(began)
			if took > time.Second || c.device != "d-"+name {
				t.Errorf("%s: a node was told of %s after %s", name, c.device, took)
			}
			t.Logf("%s: told after %s", name, took)
		}
		for _, n := range nodes {
			if _, err := n.Admit(t.Context(), certOf(t, e), nil); err == nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// The ways in on the engine that ships: its tables keep the promises that tokens stand on.
func TestWaysInOnTheEngineThatShips(t *testing.T) {
	b, err := nats.Open(t.Context(), nats.Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	a := newArenaOn(t, b)
	made := a.ownership()
	for i, want := range []bool{true, false} {
		if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": fmt.Sprint(i)}), nil); got.Accepted != want {
			t.Errorf("ownership token, use %d: %s", i+1, string(got.Payload))
		}
	}
	token := a.token("d-9")
	for i, want := range []int{200, 401} {
		if got, text := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: csrText(t, ecKey(t, elliptic.P256()), "d-9")}); got != want {
			t.Errorf("enrolment token, use %d: %d %s", i+1, got, text)
		}
	}
	c := leafBy(t, a.clock, a.factory, "meter-7", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"acme"} })
	if who, err := a.gate.AdmitClient(t.Context(), Client{Leaf: c}); who.Device != "meter-7" {
		t.Errorf("just in time: %v", err)
	}
	a.must(a.do("DELETE", "/api/v1/devices/meter-7", nil, nil), 204)
	a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: "meter-7"}, nil), 201) // and made anew where it was deleted
	refused := a.attempts(attemptFilter{refused: true})
	if len(refused) != 2 {
		t.Errorf("%d attempts are recorded as refused: %+v", len(refused), refused)
	}
}

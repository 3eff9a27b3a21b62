package x509

import (
	"context"
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

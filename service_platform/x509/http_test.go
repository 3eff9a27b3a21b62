package x509

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/component"
	"github.com/naru-platform/naru/message"
	serviceplatform "github.com/naru-platform/naru/message/service_platform"
)

// logs is what a component that may still be running logged.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// api is the running component behind its routes.
type api struct {
	testing.TB
	mux   *http.ServeMux
	logs  *logs
	clock *clock
	bus   bus.Bus
	dir   string
	conf  Config
	s     *service
	stop  func()
	gate  *Admission  // of the same process, if any
	heard chan string // each fact, as changes gives it

	mu   sync.Mutex
	deaf bool // the bus takes no facts
	said []*message.Message
}

func newAPI(t testing.TB) *api {
	t.Helper()
	return &api{TB: t, logs: &logs{}, clock: newClock(), bus: newTables(), dir: t.TempDir(), conf: Spec.Defaults().(Config), heard: make(chan string, 1024)}
}

func startAPI(t *testing.T) *api {
	t.Helper()
	a := newAPI(t)
	a.start()
	return a
}

// start starts the component, or starts it again.
func (a *api) start() {
	a.Helper()
	if a.stop != nil {
		a.stop()
	}
	a.mux = http.NewServeMux()
	a.s = newService(component.Env{
		Log: slog.New(slog.NewJSONHandler(a.logs, &slog.HandlerOptions{Level: slog.LevelDebug})), Now: a.clock.Now, Bus: a.bus,
		Metrics: prometheus.NewRegistry(), Dir: func() (string, error) { return a.dir, nil }, Node: "n-1",
		Say: a.say,
	}, a.conf, a.gate)
	for _, r := range a.s.routes() {
		a.mux.Handle(r.Pattern, r.Handler)
	}
	if got := a.do("GET", "/api/v1/ca", nil, nil); got != http.StatusServiceUnavailable {
		a.Errorf("before the start: %d", got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- a.s.run(ctx, func() { close(ready) }) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			a.Error(err)
		}
	})
	a.Cleanup(a.stop)
	select {
	case <-ready:
	case err := <-done:
		a.Fatal(err)
	}
}

func (a *api) say(_ context.Context, m *message.Message) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.deaf {
		return errors.New("the bus is down")
	}
	a.said = append(a.said, m)
	var f serviceplatform.DeviceChanged
	_ = json.Unmarshal(m.Data, &f)
	a.heard <- f.Device + " " + f.Change
	return nil
}

// do sends a request and reads the answer into a pointer, or as text into a *string.
func (a *api) do(method, path string, body, into any) int {
	a.Helper()
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			a.Fatal(err)
		}
	}
	w := httptest.NewRecorder()
	a.mux.ServeHTTP(w, httptest.NewRequest(method, path, &b))
	if text, ok := into.(*string); ok {
		*text = w.Body.String()
	} else if into != nil {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			a.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
	}
	return w.Code
}

func (a *api) changes() (list []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.said {
		var f serviceplatform.DeviceChanged
		if err := json.Unmarshal(m.Data, &f); err != nil || m.Subject != serviceplatform.DeviceChangedSubject(f.Device) || m.Device != f.Device {
			a.Errorf("said %s: %s", m.Subject, m.Data)
		}
		if !slices.ContainsFunc(Spec.Says, func(p message.Pattern) bool { return p.Matches(m.Subject) }) {
			a.Errorf("%s is not declared", m.Subject)
		}
		list = append(list, f.Device+" "+f.Change+" by "+f.By)
	}
	return list
}

func TestADevicesLife(t *testing.T) {
	a := startAPI(t)
	var first, second Enrolled
	if got := a.do("POST", "/api/v1/devices", Enrolment{ID: "d.17", Attributes: map[string]string{"hall": "2"}, By: "mina"}, &first); got != http.StatusCreated {
		t.Fatal(got)
	}
	if _, err := tls.X509KeyPair([]byte(first.Certificate), []byte(first.Key)); err != nil || !first.Created {
		t.Errorf("key and certificate: %v, created %v", err, first.Created)
	}
	if got := a.do("POST", "/api/v1/devices", map[string]any{"id": "d.17", "validity": "90d", "csr": string(csr(t, ecKey(t, elliptic.P256()), "d.17"))}, &second); got != http.StatusCreated {
		t.Fatal(got)
	}
	if second.Key != "" || second.Created || second.NotAfter.After(first.NotAfter.AddDate(0, 0, -200)) {
		t.Errorf("with a csr: key %q, created %v, until %s", second.Key, second.Created, second.NotAfter)
	}
	var d Device
	a.do("POST", "/api/v1/devices/d.17/revoke", Change{Fingerprint: first.Fingerprint, Reason: "stolen"}, &d)
	if !d.Certs[0].Revoked() || d.Certs[1].Revoked() || d.Certs[0].Reason != "stolen" {
		t.Errorf("after revoke: %+v", d.Certs)
	}
	a.do("POST", "/api/v1/devices/d.17/disable", Change{By: "jun", Reason: "floods"}, &d)
	if got := a.do("POST", "/api/v1/devices", Enrolment{ID: "d.17"}, nil); got != http.StatusConflict {
		t.Errorf("enrolment of a disabled device: %d", got)
	}
	a.do("POST", "/api/v1/devices/d.17/disable", nil, &d) // once more changes nothing
	if !d.Disabled || d.DisabledBy != "jun" || d.Attributes["hall"] != "2" {
		t.Errorf("after disable: %+v", d)
	}
	d = Device{}
	a.do("POST", "/api/v1/devices/d.17/enable", nil, &d)
	if d.Disabled || d.DisabledBy != "" {
		t.Errorf("after enable: %+v", d)
	}
	if got := a.do("DELETE", "/api/v1/devices/d.17?by=jun", nil, nil); got != http.StatusNoContent {
		t.Errorf("delete: %d", got)
	}
	if got := a.do("GET", "/api/v1/devices/d.17", nil, nil); got != http.StatusNotFound {
		t.Errorf("after delete: %d", got)
	}
	want := []string{"d.17 registered by mina", "d.17 issued by operator", "d.17 revoked by operator", "d.17 disabled by jun",
		"d.17 enabled by operator", "d.17 deleted by jun"}
	if got := a.changes(); !slices.Equal(got, want) {
		t.Errorf("said %q", got)
	}
	if strings.Contains(a.logs.String(), "PRIVATE") || strings.Contains(a.logs.String(), first.Key[40:80]) {
		t.Error("a private key is in the log")
	}
}

func TestRequestsThatAreWrong(t *testing.T) {
	a := startAPI(t)
	for name, c := range map[string]struct {
		method, path string
		body         any
		status       int
		says         string
	}{
		"bad id":         {"POST", "/api/v1/devices", Enrolment{ID: "a/b"}, 400, "letters, digits"},
		"bad csr":        {"POST", "/api/v1/devices", Enrolment{ID: "d", CSR: "x"}, 400, "PEM"},
		"csr of other":   {"POST", "/api/v1/devices", Enrolment{ID: "d", CSR: string(csr(t, ecKey(t, elliptic.P256()), "e"))}, 400, "the csr is for"},
		"validity":       {"POST", "/api/v1/devices", map[string]string{"id": "d", "validity": "soon"}, 400, "365d"},
		"past validity":  {"POST", "/api/v1/devices", map[string]string{"id": "d", "validity": "-1h"}, 400, "too short"},
		"unknown field":  {"POST", "/api/v1/devices", map[string]string{"id": "d", "cn": "x"}, 400, "cn"},
		"too large":      {"POST", "/api/v1/devices", Enrolment{ID: "d", CSR: strings.Repeat("x", bodyMax)}, 400, "too large"},
		"many words":     {"POST", "/api/v1/devices", Enrolment{ID: "d", Attributes: map[string]string{"a": strings.Repeat("x", recordMax)}}, 409, "fewer attributes"},
		"unknown device": {"POST", "/api/v1/devices/nobody/revoke", nil, 404, "nobody"},
		"unlike an id":   {"GET", "/api/v1/devices/a%2Fb", nil, 404, "no device id"},
		"limit":          {"GET", "/api/v1/devices?limit=0", nil, 400, "limit"},
	} {
		var said string
		if got := a.do(c.method, c.path, c.body, &said); got != c.status || !strings.Contains(said, c.says) {
			t.Errorf("%s: %d %s; want %d and %q", name, got, said, c.status, c.says)
		}
	}
	if got := a.changes(); len(got) > 0 {
		t.Errorf("said %q though nothing was done", got)
	}
}

func TestDevicesAreListedInPages(t *testing.T) {
	a := startAPI(t)
	for _, i := range []int{2, 0, 1} {
		a.do("POST", "/api/v1/devices", Enrolment{ID: fmt.Sprint("d-", i)}, nil)
	}
	var page struct {
		Devices []Device
		Next    string
	}
	a.do("GET", "/api/v1/devices?limit=2", nil, &page)
	if len(page.Devices) != 2 || page.Devices[0].ID != "d-0" || page.Next != "d-1" {
		t.Errorf("first page: %+v", page)
	}
	page.Devices, page.Next = nil, ""
	a.do("GET", "/api/v1/devices?limit=2&after=d-1", nil, &page)
	if len(page.Devices) != 1 || page.Devices[0].ID != "d-2" || page.Next != "" {
		t.Errorf("second page: %+v", page)
	}
}

func TestCAIsPublicAndHoldsNoKey(t *testing.T) {
	a := startAPI(t)
	var text string
	if got := a.do("GET", "/api/v1/ca", nil, &text); got != http.StatusOK {
		t.Fatal(got)
	}
	if certs, err := authority.ParseCerts([]byte(text)); err != nil || len(certs) != 2 || strings.Contains(text, "PRIVATE") {
		t.Errorf("%d certificates, %v", len(certs), err)
	}
}

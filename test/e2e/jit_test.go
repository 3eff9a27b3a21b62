//go:build long

package e2e

import (
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509"
)

// factory is a maker's CA with the files that foreign tools want.
type factory struct {
	*foreignCA
	p          *platform
	dir, file  string // where it works, and its certificate there
	trust      string // what its devices know the platform's server by
	host, port string
	registered x509.RegisteredCA
}

func newFactory(p *platform, name string) *factory {
	p.t.Helper()
	f := &factory{foreignCA: newCA(p.t, name), p: p, dir: p.t.TempDir()}
	f.file = keepPEM(p.t, filepath.Join(f.dir, "ca.crt"), nil, f.cert.Raw)
	keepPEM(p.t, filepath.Join(f.dir, "ca.key"), f.key)
	var err error
	if f.host, f.port, err = net.SplitHostPort(p.mqtt); err != nil {
		p.t.Fatal(err)
	}
	f.trust = filepath.Join(p.add("the-one-that-brings-the-root"), "ca.crt")
	return f
}

// openssl runs it in the factory's directory.
func (f *factory) openssl(args ...string) {
	f.t.Helper()
	c := exec.CommandContext(f.t.Context(), "openssl", args...)
	c.Dir = f.dir
	if out, err := c.CombinedOutput(); err != nil {
		f.t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// register proves with openssl that the factory holds its key, as `naru ca registration-code` tells to.
func (f *factory) register(template string) {
	f.t.Helper()
	var code struct {
		Code string `json:"code"`
	}
	f.p.json(&code, "ca", "registration-code")
	f.openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "proof.key", "-subj", "/CN="+code.Code, "-out", "proof.csr")
	f.openssl("x509", "-req", "-in", "proof.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-days", "1", "-out", "proof.crt")
	f.p.json(&f.registered, "ca", "register", "--certificate", f.file, "--proof", filepath.Join(f.dir, "proof.crt"), "--template", template)
}

// because is what `naru why device` says.
type because struct {
	Well          bool
	Reason, Cause string
}

// made is a device that left the factory: what its publish answers.
func (f *factory) made(id string) (publish func() (string, error)) {
	f.t.Helper()
	pair := f.device(id, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
	cert := keepPEM(f.t, filepath.Join(f.dir, id+".crt"), nil, pair.Certificate...)
	key := keepPEM(f.t, filepath.Join(f.dir, id+".key"), pair.PrivateKey.(*ecdsa.PrivateKey))
	return func() (string, error) {
		out, err := exec.CommandContext(f.t.Context(), "mosquitto_pub", "-V", "5", "-h", f.host, "-p", f.port, "--cafile", f.trust,
			"--cert", cert, "--key", key, "-i", id, "-q", "1", "-t", "device/"+id+"/telemetry", "-m", `{"celsius":1}`).CombinedOutput()
		return string(out), err
	}
}

// TestMosquittoComesInJustInTime has a maker's CA registered as an operator would, and its devices come with mosquitto's
// client: unknown before, registered as the template says, and out again by each of the ways that there are.
func TestMosquittoComesInJustInTime(t *testing.T) {
	asked := make(chan string, 16)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Device string `json:"device"`
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Errorf("the hook was asked with no JSON: %v", err)
		}
		asked <- q.Device
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"allowProvisioning": %t}`, q.Device != "meter-unwanted")
	}))
	defer hook.Close()
	config := filepath.Join(t.TempDir(), "naru.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `service_platform.x509:
  templates:
    meters:
      name: ${Certificate.CommonName}
      groups: [meters]
      attributes: {made_as: "${Certificate.CommonName}"}
      policy: device
      hook: %s
`, hook.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlatform(t, "--config", config)
	p.start()
	f := newFactory(p, "meter works")
	first := f.made("meter-1")
	refused := func(what, id, reason string, publish func() (string, error)) {
		t.Helper()
		if out, err := publish(); err == nil {
			t.Errorf("%s: %s publishes: %s", what, id, out)
		}
		var why because // attempts are written a moment later
		for late := time.Now().Add(patience); why.Reason != reason; {
			if p.json(&why, "why", "device", id); time.Now().After(late) {
				t.Fatalf("%s: naru why device %s says %+v; want %s", what, id, why, reason)
			}
		}
	}
	admitted := func(what string, publish func() (string, error)) {
		t.Helper()
		if out, err := publish(); err != nil {
			t.Fatalf("%s: %v\n%s\n%s", what, err, out, p.out)
		}
	}

	refused("before its CA is registered", "meter-1", "cert_unknown_ca", first)
	f.register("meters")
	admitted("it comes for the first time", first)
	if id := <-asked; id != "meter-1" {
		t.Errorf("the hook was asked for %q", id)
	}
	var d x509.Device
	p.json(&d, "device", "show", "meter-1")
	if len(d.Groups) != 1 || d.Groups[0] != "meters" || d.Attributes["made_as"] != "meter-1" || d.Policy != "device" || d.CA != f.registered.Fingerprint || len(d.Certs) != 1 {
		t.Errorf("it is registered as %+v", d)
	}
	admitted("it comes again", first)
	select {
	case id := <-asked:
		t.Errorf("the hook was asked once more, for %q", id)
	default:
	}

	unwanted := f.made("meter-unwanted")
	refused("the hook says no", "meter-unwanted", "cert_unregistered", unwanted)
	if id := <-asked; id != "meter-unwanted" {
		t.Errorf("the hook was asked for %q", id)
	}
	if out, code := p.naru("device", "show", "meter-unwanted"); code != 1 || !strings.Contains(out, "not registered") {
		t.Errorf("who was refused left something: %s", out)
	}

	p.ok("device", "revoke", "meter-1")
	refused("it is revoked", "meter-1", "cert_revoked", first)
	second := f.made("meter-2")
	admitted("another", second)
	p.ok("ca", "disable", f.registered.Fingerprint)
	refused("its CA is switched off", "meter-2", "cert_unknown_ca", second)
	p.ok("ca", "enable", f.registered.Fingerprint)
	admitted("its CA is switched on again", second)
	refused("on again, what is revoked stays so", "meter-1", "cert_revoked", first)
	p.ok("ca", "remove", f.registered.Fingerprint, "--yes")
	refused("its CA is removed", "meter-2", "cert_unknown_ca", second)
}

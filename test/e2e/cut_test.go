//go:build long

package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"github.com/naru-platform/naru/internal/porttest"
)

// cutter cuts things off at random moments.
type cutter struct {
	*platform
	dir  string
	est  string
	r    *mathrand.Rand
	held []heldCert // what clients were given, and must come in with
}

type heldCert struct {
	id   string
	what string
	pair tls.Certificate
}

// within waits a random time below most, unless done comes first.
func (c *cutter) within(most time.Duration, done <-chan struct{}) (cut bool) {
	timer := time.NewTimer(time.Duration(c.r.Int64N(int64(most))))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-done:
		return false
	}
}

// cutOff gives a command and kills it, or the platform under it, before it may have ended; then gives it again, and it
// must work, or say that the first one did.
func (c *cutter) cutOff(args ...string) (killed string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), naruBinary(c.t), append([]string{"--data", c.data}, args...)...)
	done := make(chan struct{})
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // killed or not
		close(done)
	}()
	killed = "command"
	if cut := c.within(120*time.Millisecond, done); !cut {
		killed = "nobody"
	} else if c.r.IntN(3) == 0 { // to start again takes two seconds
		killed = "platform"
		c.kill()
		<-done
		c.start()
	} else {
		_ = cmd.Process.Kill() // or it has ended
		<-done
	}
	if out, code := c.naru(args...); code != 0 && !strings.Contains(out, "has a certificate already") {
		c.t.Errorf("%s killed, naru %s again: exit %d: %s", killed, strings.Join(args, " "), code, out)
	}
	return killed
}

func (c *cutter) hold(id, what, dir string) {
	c.t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "device.crt"), filepath.Join(dir, "device.key"))
	if err != nil {
		c.t.Errorf("%s of %s: %v", what, id, err)
		return
	}
	for name, mode := range map[string]os.FileMode{"device.key": 0o600, "device.crt": 0o644, "ca.crt": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			c.t.Errorf("%s of %s: %s: %v, %v", what, id, name, info, err)
		}
	}
	c.held = append(c.held, heldCert{id, what, pair})
}

// attempt tries something, kills the platform while it may be under way, and has it started again.
func (c *cutter) attempt(f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	if c.within(60*time.Millisecond, done) {
		c.kill()
		cancel()
		<-done
		c.start()
	}
	cancel()
	<-done
}

// enrol asks for a certificate by EST, with a token or a certificate.
func (c *cutter) enrol(ctx context.Context, id, token string, with *tls.Certificate, key *ecdsa.PrivateKey) (tls.Certificate, error) {
	none := tls.Certificate{}
	csr, err := stdx509.CreateCertificateRequest(rand.Reader, &stdx509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
	if err != nil {
		return none, err
	}
	conf := credentials(c.t, c.dir)
	conf.Certificates = nil
	path := "simpleenroll"
	if with != nil {
		conf.Certificates, path = []tls.Certificate{*with}, "simplereenroll"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.est+"/.well-known/est/"+path, strings.NewReader(base64.StdEncoding.EncodeToString(csr)))
	if err != nil {
		return none, err
	}
	r.Header.Set("Content-Type", "application/pkcs10")
	if with == nil {
		r.SetBasicAuth(id, token)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Do(r)
	if err != nil {
		return none, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return none, err
	}
	if resp.StatusCode != http.StatusOK {
		return none, fmt.Errorf("%s: %s", resp.Status, text)
	}
	der, err := base64.StdEncoding.DecodeString(string(bytes.ReplaceAll(text, []byte("\r\n"), nil)))
	if err != nil {
		return none, err
	}
	p, err := pkcs7.Parse(der)
	if err != nil || len(p.Certificates) != 1 {
		return none, fmt.Errorf("%d certificates, %w", len(p.Certificates), err)
	}
	return tls.Certificate{Certificate: [][]byte{p.Certificates[0].Raw}, PrivateKey: key, Leaf: p.Certificates[0]}, nil
}

// TestNoCertificateIsStrandedBySIGKILL kills commands and the platform in the middle of each way to a certificate. Asked
// again with the same key and token, each device has one; and with every certificate that anybody holds he comes in.
func TestNoCertificateIsStrandedBySIGKILL(t *testing.T) {
	const rounds = 3 // of each way
	est := porttest.Addr(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "naru.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "service_platform.x509:\n  est: {listen: %q}\n  templates:\n    pumps: {name: \"pump-${SerialNumber}\", parameters: [SerialNumber]}\n", est), 0o600); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := &cutter{platform: newPlatform(t, "--config", config), est: est, r: mathrand.New(mathrand.NewPCG(seed, 0))}
	c.start()
	c.dir = c.add("first")
	c.hold("first", "add", c.dir)
	lot := c.claimCertificate("lot", "pumps")

	cuts := map[string]int{}
	for i := range 2 * rounds { // commands
		id := fmt.Sprintf("added-%d", i)
		out := filepath.Join(dir, id)
		cuts[c.cutOff("device", "add", id, "--out", out)]++
		c.hold(id, "add", out)
		out = filepath.Join(dir, fmt.Sprintf("rotated-%d", i))
		cuts[c.cutOff("device", "rotate", "first", "--out", out)]++
		c.hold("first", "rotate", out)
	}
	fleet := filepath.Join(dir, "fleet.csv")
	text := "id,groups\n"
	for i := range 40 {
		text += fmt.Sprintf("imported-%d,a;b\n", i)
	}
	if err := os.WriteFile(fleet, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(dir, "keys")
	for range rounds {
		cuts[c.cutOff("device", "import", fleet, "--issue", keys)]++
	}
	for i := range 40 {
		id := fmt.Sprintf("imported-%d", i)
		c.hold(id, "import", filepath.Join(keys, id))
	}
	t.Logf("commands cut off by the death of: %v", cuts)

	for i := range rounds { // EST
		id := fmt.Sprintf("enrolled-%d", i)
		var token struct{ Token string }
		c.json(&token, "device", "token", id)
		key, next := newKey(t), newKey(t)
		var pair tls.Certificate
		for _, again := range []bool{false, true} {
			try := func(ctx context.Context) {
				got, err := c.enrol(ctx, id, token.Token, nil, key)
				if err == nil {
					pair = got
					c.held = append(c.held, heldCert{id, "EST", got})
				} else if again {
					t.Errorf("%s again with its token and key: %v", id, err)
				}
			}
			if again {
				try(t.Context())
			} else {
				c.attempt(try)
			}
		}
		c.attempt(func(ctx context.Context) {
			if got, err := c.enrol(ctx, id, "", &pair, next); err == nil {
				c.held = append(c.held, heldCert{id, "EST renewal", got})
			}
		})
		if got, err := c.enrol(t.Context(), id, "", &pair, next); err != nil {
			t.Errorf("%s renews again: %v", id, err)
		} else {
			c.held = append(c.held, heldCert{id, "EST renewal", got})
		}
	}

	for i := range rounds { // claims
		id := fmt.Sprintf("pump-%d", i)
		var made []provisionedWith
		create := func(ctx context.Context) error {
			k, err := claim(ctx, c.mqtt, lot, "line", topicCreate)
			if err != nil {
				return err
			}
			defer k.Close()
			var m provisionedWith
			if err := k.ask(topicCreate, struct{}{}, &m); err != nil {
				return err
			}
			made = append(made, m)
			return nil
		}
		c.attempt(func(ctx context.Context) { _ = create(ctx) })
		if len(made) == 0 {
			if err := create(t.Context()); err != nil {
				t.Fatalf("create again: %v", err)
			}
		}
		provision := func(ctx context.Context) error {
			k, err := claim(ctx, c.mqtt, lot, "line", topicProvision("pumps"))
			if err != nil {
				return err
			}
			defer k.Close()
			var thing struct{ ThingName string }
			if err := k.ask(topicProvision("pumps"), provisionRequest(made[0].Token, fmt.Sprint(i)), &thing); err != nil {
				return err
			}
			if thing.ThingName != id {
				t.Errorf("the device is %q; want %q", thing.ThingName, id)
			}
			return nil
		}
		c.attempt(func(ctx context.Context) { _ = provision(ctx) })
		if err := provision(t.Context()); err != nil {
			t.Errorf("%s again with its token: %v", id, err)
		}
		c.held = append(c.held, heldCert{id, "claim", made[0].pair(t)})
	}

	ca, err := os.ReadFile(filepath.Join(c.dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range c.held {
		v, answer := visit(t, c.mqtt, clientTLS(t, h.pair, ca), h.id)
		if answer.Code.Failed() {
			t.Errorf("%s by %s: %s %s", h.id, h.what, answer.Code, answer.Properties.ReasonString)
		}
		_ = v.Close()
	}
	t.Logf("%d certificates are held, and good", len(c.held))
}

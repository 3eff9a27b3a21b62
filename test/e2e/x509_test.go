package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/internal/porttest"
	"github.com/naru-platform/naru/service_platform/broker/packet"
	"github.com/naru-platform/naru/service_platform/x509"
)

// patience is how long a test waits for what must come; a run that is well waits for milliseconds.
const patience = 20 * time.Second

// visitor is a connection of a device, as MQTT 5 sees it.
type visitor struct {
	*tls.Conn
	resumed bool // the TLS session was
}

// visit connects and says CONNECT. The answer holds the platform's reason where it lets nobody in.
func visit(t *testing.T, addr string, conf *tls.Config, id string) (*visitor, packet.Connack) {
	t.Helper()
	v, answer, err := tryVisit(t.Context(), addr, conf, id)
	if err != nil {
		t.Fatalf("connect %s to %s: %v", id, addr, err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v, answer
}

// tryVisit is visit for a platform that may be down.
func tryVisit(ctx context.Context, addr string, conf *tls.Config, id string) (*visitor, packet.Connack, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	nc, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, packet.Connack{}, err
	}
	v := &visitor{Conn: nc.(*tls.Conn)}
	v.resumed = v.ConnectionState().DidResume
	answer, err := v.connect(id)
	if err != nil {
		_ = v.Close()
	}
	return v, answer, err
}

// connect says CONNECT and reads the answer.
func (v *visitor) connect(id string) (a packet.Connack, err error) {
	connect := packet.Connect{Version: packet.V5, ClientID: id, CleanStart: true, KeepAlive: 60}
	if _, err := v.Write(connect.Append(nil)); err != nil {
		return a, err
	}
	h, body, err := v.next()
	if err != nil {
		return a, err
	}
	err = a.Decode(h, body, packet.V5)
	a.Properties.ReasonString = strings.Clone(a.Properties.ReasonString)
	return a, err
}

// next reads a packet.
func (v *visitor) next() (packet.Header, []byte, error) {
	_ = v.SetReadDeadline(time.Now().Add(patience))
	var buf []byte
	for {
		if h, start, total, _, err := packet.Frame(buf, 1<<20); err != nil || total > 0 {
			if err != nil {
				return h, nil, err
			}
			return h, buf[start:total], nil
		}
		one := make([]byte, 1) // never a byte of the packet behind
		if _, err := v.Read(one); err != nil {
			return packet.Header{}, nil, err
		}
		buf = append(buf, one...)
	}
}

// ended is the end of a connection that the platform ended.
type ended struct {
	code packet.ReasonCode // as DISCONNECT said it; zero where it said nothing
	at   time.Time
	err  error
}

// end reads until the platform has closed the connection.
func (v *visitor) end() (e ended) {
	for {
		h, body, err := v.next()
		switch {
		case errors.Is(err, io.EOF):
			e.at = time.Now()
			return e
		case err != nil:
			e.err = err
			return e
		case h.Type == packet.DISCONNECT:
			var d packet.Disconnect
			e.err = d.Decode(h, body, packet.V5)
			e.code = d.Code
		}
	}
}

// credentials are a directory that `naru device add` wrote, for TLS.
func credentials(t testing.TB, dir string) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "device.crt"), filepath.Join(dir, "device.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	return clientTLS(t, pair, ca)
}

func clientTLS(t testing.TB, pair tls.Certificate, ca []byte) *tls.Config {
	t.Helper()
	roots := stdx509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("no CA")
	}
	return &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
}

// add registers a device and gives the directory with its certificate.
func (p *platform) add(id string, more ...string) string {
	p.t.Helper()
	dir := filepath.Join(p.t.TempDir(), id)
	p.ok(append([]string{"device", "add", id, "--out", dir}, more...)...)
	return dir
}

// ok runs a command that must succeed.
func (p *platform) ok(args ...string) string {
	p.t.Helper()
	out, code := p.naru(args...)
	if code != 0 {
		p.t.Fatalf("naru %s: exit %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// foreignCA is a certificate authority that naru did not make.
type foreignCA struct {
	t    testing.TB
	cert *stdx509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t testing.TB, name string) *foreignCA {
	t.Helper()
	ca := &foreignCA{t: t}
	ca.key = newKey(t)
	now := time.Now()
	ca.cert = ca.sign(&stdx509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, SerialNumber: big.NewInt(1),
		KeyUsage: stdx509.KeyUsageCertSign, NotBefore: now.AddDate(-2, 0, 0), NotAfter: now.AddDate(2, 0, 0)}, ca.key, nil)
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (ca *foreignCA) sign(c *stdx509.Certificate, key *ecdsa.PrivateKey, by *stdx509.Certificate) *stdx509.Certificate {
	ca.t.Helper()
	if by == nil {
		by = c
	}
	der, err := stdx509.CreateCertificate(rand.Reader, c, by, key.Public(), ca.key)
	if err == nil {
		c, err = stdx509.ParseCertificate(der)
	}
	if err != nil {
		ca.t.Fatal(err)
	}
	return c
}

// device is a client's certificate, valid between from and to.
func (ca *foreignCA) device(name string, from, to time.Time) tls.Certificate {
	ca.t.Helper()
	key := newKey(ca.t)
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		ca.t.Fatal(err)
	}
	c := ca.sign(&stdx509.Certificate{Subject: pkix.Name{CommonName: name}, SerialNumber: n, NotBefore: from, NotAfter: to,
		KeyUsage: stdx509.KeyUsageDigitalSignature, ExtKeyUsage: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth}}, key, ca.cert)
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}
}

// keepPEM writes certificates, and a key where there is one, and gives the file's name.
func keepPEM(t testing.TB, file string, key *ecdsa.PrivateKey, certs ...[]byte) string {
	t.Helper()
	var b bytes.Buffer
	for _, c := range certs {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c}) // a buffer takes everything
	}
	if key != nil {
		der, err := stdx509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		_ = pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// twoNodes is a platform, and a second door of it in a process of its own that joins its bus. more is configuration of
// the first.
func twoNodes(t *testing.T, more string) (first, second *platform) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	ca, key := newCA(t, "bus"), newKey(t)
	server := ca.sign(&stdx509.Certificate{Subject: pkix.Name{CommonName: "bus"}, SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth}}, key, ca.cert)
	t.Setenv("SSL_CERT_FILE", keepPEM(t, filepath.Join(dir, "bus-ca.crt"), nil, ca.cert.Raw)) // who joins trusts the bus by it
	busAddr, password := porttest.Addr(t), write("password", "only for this test")
	first = newPlatform(t, "--bus-listen", busAddr, "--config", write("first.yaml", more+fmt.Sprintf("service_platform.broker:\n  cluster: \"on\"\nbus:\n  user: naru\n  password_file: %s\n  cert_file: %s\n  key_file: %s\n",
		password, keepPEM(t, filepath.Join(dir, "bus.crt"), nil, server.Raw), keepPEM(t, filepath.Join(dir, "bus.key"), key))))
	first.start()
	second = newPlatform(t)
	home := filepath.Join(first.data, "service_platform.x509")
	second.run = []string{"run", "service_platform.broker", "--bus", "tls://" + busAddr, "--config", write("second.yaml",
		fmt.Sprintf("service_platform.broker:\n  cluster: \"on\"\nserver_cert: %s/server.crt\nserver_key: %s/server.key\nbus:\n  user: naru\n  password_file: %s\n", home, home, password))}
	second.start()
	return first, second
}

// TestWithdrawnDeviceIsGoneFromEveryNodeWithinASecond has a device let in at two nodes, one after the other, and withdraws
// it in each of the ways that there are; and so the holder of a claim certificate. Its connection ends within a second of
// the command's return, and no TLS session of before gets it in again, neither of TLS 1.2 nor of 1.3.
func TestWithdrawnDeviceIsGoneFromEveryNodeWithinASecond(t *testing.T) {
	first, second := twoNodes(t, "service_platform.x509:\n  templates:\n    pumps: {name: \"pump-${Serial}\", parameters: [Serial]}\n")
	device := func(verb string) func(id string) []string {
		return func(id string) []string { return []string{"device", verb, id} }
	}
	claim := func(id string) []string {
		var list []x509.Claim
		first.json(&list, "ca", "claim", "list")
		i := slices.IndexFunc(list, func(c x509.Claim) bool { return c.Name == id })
		return []string{"ca", "claim", "revoke", list[i].Fingerprint}
	}
	for _, c := range []struct {
		name, reason string
		version      uint16
		withdraw     func(id string) []string
	}{
		{"revoke", "cert_revoked", tls.VersionTLS13, device("revoke")},
		{"disable", "device_disabled", tls.VersionTLS13, device("disable")},
		{"delete", "cert_unregistered", tls.VersionTLS13, device("delete")},
		{"claim", "cert_revoked", tls.VersionTLS13, claim},
		{"revoke-1.2", "cert_revoked", tls.VersionTLS12, device("revoke")},
		{"disable-1.2", "device_disabled", tls.VersionTLS12, device("disable")},
		{"delete-1.2", "cert_unregistered", tls.VersionTLS12, device("delete")},
	} {
		one := func(t *testing.T, id string) (slowest time.Duration) {
			var dir string
			if c.name == "claim" {
				dir = filepath.Join(t.TempDir(), id)
				first.ok("ca", "claim", "add", id, "--template", "pumps", "--out", dir)
			} else {
				dir = first.add(id)
			}
			nodes := []string{first.mqtt, second.mqtt}
			confs := make([]*tls.Config, len(nodes))
			live := make([]*visitor, len(nodes))
			for i, addr := range nodes {
				confs[i] = credentials(t, dir)
				confs[i].MaxVersion, confs[i].ClientSessionCache = c.version, tls.NewLRUClientSessionCache(1)
				for _, resumed := range []bool{false, true} {
					v, answer := visit(t, addr, confs[i], id)
					if answer.Code.Failed() || v.resumed != resumed {
						t.Fatalf("node %d: %s %s, resumed %v", i+1, answer.Code, answer.Properties.ReasonString, v.resumed)
					}
					live[i] = v
				}
			}
			slow := make([]*visitor, len(nodes)) // let in by its certificate, and has not said CONNECT
			for i, addr := range nodes {
				nc, err := (&tls.Dialer{Config: confs[i]}).DialContext(t.Context(), "tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				slow[i] = &visitor{Conn: nc.(*tls.Conn)}
				defer nc.Close()
			}
			ends := make([]chan ended, len(nodes))
			for i, v := range live {
				ends[i] = make(chan ended, 1)
				go func() { ends[i] <- v.end() }()
			}
			command := c.withdraw(id)
			began := time.Now()
			first.ok(command...)
			done := time.Now()
			for i := range nodes {
				e := <-ends[i]
				want := packet.NotAuthorized
				if i < len(nodes)-1 {
					want = packet.SessionTakenOver // a client is connected once: it went on to the next node
				}
				if e.err != nil || e.code != want {
					t.Errorf("node %d ended the connection with %s, %v", i+1, e.code, e.err)
				}
				slowest = max(slowest, e.at.Sub(done))
				t.Logf("node %d: ended %s after the command began, which took %s", i+1, e.at.Sub(began).Round(time.Millisecond), done.Sub(began).Round(time.Millisecond))
			}
			for i, v := range slow {
				if answer, err := v.connect(id); err == nil && !answer.Code.Failed() && v.end().code != packet.NotAuthorized {
					t.Errorf("node %d let in who had shown the certificate before and said CONNECT after", i+1)
				}
			}
			for i, addr := range nodes {
				v, answer := visit(t, addr, confs[i], id)
				if !v.resumed {
					t.Errorf("node %d did not resume the session, so this says nothing of tickets", i+1)
				}
				if answer.Code != packet.NotAuthorized || !strings.Contains(answer.Properties.ReasonString, c.reason) {
					t.Errorf("node %d answers a session that was resumed with %s %q", i+1, answer.Code, answer.Properties.ReasonString)
				}
				if _, answer = visit(t, nodes[1-i], confs[i], id); answer.Code != packet.NotAuthorized {
					t.Errorf("node %d's ticket opens the other node: %s", i+1, answer.Code)
				}
			}
			return slowest
		}
		t.Run(c.name, func(t *testing.T) {
			var took []time.Duration // on a machine that does something else for a second, one try says nothing
			for try := 1; try <= 4; try++ {
				if took = append(took, one(t, fmt.Sprintf("d-%s-%d", c.name, try))); took[try-1] <= time.Second {
					return
				}
			}
			t.Errorf("the connections ended %s after the command had returned", took)
		})
	}
}

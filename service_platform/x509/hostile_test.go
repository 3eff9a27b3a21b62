package x509

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/message"
)

// hostile is one attempt to get in that must fail: refused, recorded with its reason, and without any change to the
// fleet.
type hostile struct {
	name   string
	reason message.Reason
	try    func(a *arena) error // nil is success, and a fault
}

// at the door, with a certificate.
func knocks(leaf func(a *arena) Client) func(*arena) error {
	return func(a *arena) error {
		_, err := a.gate.AdmitClient(a.Context(), leaf(a))
		return err
	}
}

// by EST.
func calls(c func(a *arena) estCall) func(*arena) error {
	return func(a *arena) error {
		status, text := a.est(c(a))
		if status == 0 || status >= 300 {
			return fmt.Errorf("%d %s", status, text)
		}
		return nil
	}
}

// by MQTT, as the holder of the lot's claim certificate.
func asks(f func(a *arena) (c Client, topic string, payload any)) func(*arena) error {
	return func(a *arena) error {
		c, topic, payload := f(a)
		if got := a.ask(c, topic, payload, nil); !got.Accepted {
			return fmt.Errorf("%s", string(got.Payload))
		}
		return nil
	}
}

func (a *arena) ownership() created {
	var made created
	if got := a.ask(a.claimClient(), topicCreate, "", &made); !got.Accepted {
		a.Fatal(string(got.Payload))
	}
	return made
}

func provisionOf(token string, parameters map[string]string) map[string]any {
	return map[string]any{"certificateOwnershipToken": token, "parameters": parameters}
}

const lotTopic = topicProvision + "lot" + provisionEnd

func hostiles(t *testing.T) []hostile {
	weakRSA, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p256 := ecKey(t, elliptic.P256())
	p224 := ecKey(t, elliptic.P224())
	byFactory := func(cn string, change func(*stdx509.Certificate)) func(*arena) Client {
		return func(a *arena) Client { return Client{Leaf: leafBy(t, a.clock, a.factory, cn, change)} }
	}
	byOwn := func(r authority.Request, change func(*stdx509.Certificate)) func(*arena) Client {
		return func(a *arena) Client {
			return Client{Leaf: leafBy(t, a.clock, stolen(a, a.dir), r.Device, change)}
		}
	}
	stranger := func(a *arena) pair { return foreignCA(t, a.clock, nil) }
	deviceCert := func(a *arena) *stdx509.Certificate { return certOf(t, a.device) }
	tampered := func(a *arena) *stdx509.Certificate {
		raw := append([]byte{}, deviceCert(a).Raw...)
		raw[len(raw)-3] ^= 1
		c, err := stdx509.ParseCertificate(raw)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	below := func(a *arena, change func(*stdx509.Certificate)) pair { // a CA below the factory's
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		cert := leafFor(t, a.clock, a.factory, "Line 3", key.Public(), func(c *stdx509.Certificate) {
			c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, stdx509.KeyUsageCertSign, nil
			if change != nil {
				change(c)
			}
		})
		return pair{cert, key}
	}
	enrolWith := func(user string, body func(a *arena) string) func(*arena) error {
		return calls(func(a *arena) estCall {
			return estCall{path: estEnroll, user: user, token: a.token(user), body: body(a)}
		})
	}
	good := func(cn string) func(*arena) string { return func(*arena) string { return csrText(t, p256, cn) } }

	return []hostile{
		// handshakes: certificates at the door
		{"no certificate", message.CertMissing, knocks(func(*arena) Client { return Client{} })},
		{"foreign CA, same common name", message.CertUnknownCA, knocks(func(a *arena) Client { return Client{Leaf: leafBy(t, a.clock, stranger(a), "d-1", nil)} })},
		{"foreign CA with its whole chain", message.CertUnknownCA, knocks(func(a *arena) Client {
			ca := stranger(a)
			return Client{Leaf: leafBy(t, a.clock, ca, "d-1", nil), Chain: []*stdx509.Certificate{ca.cert}}
		})},
		{"foreign CA with the issuing CA's name", message.CertUnknownCA, knocks(func(a *arena) Client {
			ca := foreignCA(t, a.clock, func(c *stdx509.Certificate) { c.Subject = stolen(a, a.dir).cert.Subject })
			return Client{Leaf: leafBy(t, a.clock, ca, "d-1", nil), Chain: []*stdx509.Certificate{ca.cert}}
		})},
		{"foreign CA with the factory's name", message.CertUnknownCA, knocks(func(a *arena) Client { return Client{Leaf: leafBy(t, a.clock, stranger(a), "meter-1", nil)} })},
		{"self-signed", message.CertUnknownCA, knocks(func(a *arena) Client {
			tmpl := &stdx509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "d-1"}, NotBefore: a.clock.Now().Add(-day), NotAfter: a.clock.Now().Add(day)}
			c, err := sign(tmpl, pair{tmpl, p256.(*ecdsa.PrivateKey)}, p256.Public())
			if err != nil {
				t.Fatal(err)
			}
			return Client{Leaf: c}
		})},
		{"a signature that was changed", message.CertUnknownCA, knocks(func(a *arena) Client { return Client{Leaf: tampered(a)} })},
		{"own CA, unregistered, a device's name", message.CertUnregistered, knocks(byOwn(authority.Request{Device: "d-1"}, nil))},
		{"a device as CA", message.CertUnknownCA, knocks(func(a *arena) Client {
			k := pairOf(t, a.device).PrivateKey.(*ecdsa.PrivateKey)
			return Client{Leaf: leafBy(t, a.clock, pair{deviceCert(a), k}, "d-2", nil), Chain: []*stdx509.Certificate{deviceCert(a)}}
		})},
		{"the server's certificate", message.CertWrongUsage, knocks(func(a *arena) Client {
			return Client{Leaf: certsIn(a, a.dir+"/server.crt")[0]}
		})},
		{"the issuing CA's certificate", message.CertWrongUsage, knocks(func(a *arena) Client { return Client{Leaf: stolen(a, a.dir).cert} })},
		{"extended usage for servers only", message.CertWrongUsage, knocks(byFactory("meter-1", func(c *stdx509.Certificate) {
			c.ExtKeyUsage = []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth}
		}))},
		{"a CA below the factory's that is for servers only", message.CertWrongUsage, knocks(func(a *arena) Client {
			ca := below(a, func(c *stdx509.Certificate) { c.ExtKeyUsage = []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth} })
			return Client{Leaf: leafBy(t, a.clock, ca, "meter-1", nil), Chain: []*stdx509.Certificate{ca.cert}}
		})},
		{"a CA below the factory's for a usage that nobody knows", message.CertWrongUsage, knocks(func(a *arena) Client {
			ca := below(a, func(c *stdx509.Certificate) {
				c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 99999, 1}}
			})
			return Client{Leaf: leafBy(t, a.clock, ca, "meter-1", nil), Chain: []*stdx509.Certificate{ca.cert}}
		})},
		{"no extended usage", message.CertWrongUsage, knocks(byFactory("meter-1", func(c *stdx509.Certificate) { c.ExtKeyUsage = nil }))},
		{"a key that may only encrypt", message.CertWrongUsage, knocks(byFactory("meter-1", func(c *stdx509.Certificate) { c.KeyUsage = stdx509.KeyUsageKeyEncipherment }))},
		{"a CA's certificate as a client's", message.CertWrongUsage, knocks(byFactory("meter-1", func(c *stdx509.Certificate) { c.IsCA = true }))},
		{"RSA key of 1024 bits", message.CertWrongUsage, knocks(func(a *arena) Client {
			return Client{Leaf: leafFor(t, a.clock, a.factory, "meter-1", weakRSA.Public(), nil)}
		})},
		{"key on P-224", message.CertWrongUsage, knocks(func(a *arena) Client {
			return Client{Leaf: leafFor(t, a.clock, a.factory, "meter-1", p224.Public(), nil)}
		})},
		{"expired", message.CertExpired, knocks(byFactory("meter-1", func(c *stdx509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(-9*day), time.Now().Add(-day) }))},
		{"begins tomorrow", message.CertNotYetValid, knocks(byFactory("meter-1", func(c *stdx509.Certificate) { c.NotBefore = time.Now().Add(day) }))},
		{"expired intermediate", message.CertUnknownCA, knocks(func(a *arena) Client {
			ca := below(a, func(c *stdx509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(-9*day), time.Now().Add(-day) })
			return Client{Leaf: leafBy(t, a.clock, ca, "meter-1", nil), Chain: []*stdx509.Certificate{ca.cert}}
		})},
		{"intermediate that is no CA", message.CertUnknownCA, knocks(func(a *arena) Client {
			ca := below(a, func(c *stdx509.Certificate) { c.IsCA = false })
			return Client{Leaf: leafBy(t, a.clock, ca, "meter-1", nil), Chain: []*stdx509.Certificate{ca.cert}}
		})},
		{"chain of a hundred certificates", message.CertUnknownCA, knocks(func(a *arena) Client {
			ca := stranger(a)
			c := Client{Leaf: leafBy(t, a.clock, ca, "d-1", nil)}
			for range 100 {
				c.Chain = append(c.Chain, ca.cert)
			}
			return c
		})},
		{"critical extension that nobody knows", message.CertUnknownCA, knocks(byFactory("meter-1", func(c *stdx509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}))},
		// just in time
		{"just in time, a device of the platform's own", message.CertUnregistered, knocks(byFactory("d-1", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"x"} }))},
		{"just in time, a wildcard as name", message.CertUnregistered, knocks(byFactory("#", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"x"} }))},
		{"just in time, MQTT's own topics as name", message.CertUnregistered, knocks(byFactory("$SYS", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"x"} }))},
		{"just in time, a path as name", message.CertUnregistered, knocks(byFactory("../d-1", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"x"} }))},
		{"just in time, no organization", message.CertUnregistered, knocks(byFactory("meter-1", nil))},
		{"just in time, a template in the name", message.CertUnregistered, knocks(byFactory("${Certificate.Id}", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"x"} }))},
		{"just in time, the CA switched off", message.CertUnknownCA, func(a *arena) error {
			a.do("POST", "/api/v1/ca/registered/"+a.factoryID+"/disable", struct{}{}, nil)
			a.settle()
			defer func() {
				a.do("POST", "/api/v1/ca/registered/"+a.factoryID+"/enable", struct{}{}, nil)
				a.settle()
			}()
			return knocks(byFactory("meter-1", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"x"} }))(a)
		}},
		// EST
		{"EST without anything", message.TokenInvalid, calls(func(*arena) estCall { return estCall{path: estEnroll, body: csrText(t, p256, "d-2")} })},
		{"EST with a guessed token", message.TokenInvalid, calls(func(*arena) estCall {
			return estCall{path: estEnroll, user: "d-2", token: strings.Repeat("A", 52), body: csrText(t, p256, "d-2")}
		})},
		{"EST with another device's token", message.TokenInvalid, calls(func(a *arena) estCall {
			return estCall{path: estEnroll, user: "d-1", token: a.token("d-2"), body: csrText(t, p256, "d-1")}
		})},
		{"EST with a token that expired", message.TokenInvalid, calls(func(a *arena) estCall {
			token := a.token("d-2")
			a.clock.move(2 * day)
			return estCall{path: estEnroll, user: "d-2", token: token, body: csrText(t, p256, "d-2")}
		})},
		{"EST with a path as user", message.TokenInvalid, calls(func(*arena) estCall {
			return estCall{path: estEnroll, user: "../d-1", token: "x", body: csrText(t, p256, "d-1")}
		})},
		{"EST, csr for another device", message.CSRInvalid, enrolWith("d-2", good("d-1"))},
		{"EST, weak RSA key", message.CSRInvalid, enrolWith("d-2", func(*arena) string { return csrText(t, weakRSA, "d-2") })},
		{"EST, weak curve", message.CSRInvalid, enrolWith("d-2", func(*arena) string { return csrText(t, p224, "d-2") })},
		{"EST, csr whose signature was changed", message.CSRInvalid, enrolWith("d-2", func(*arena) string {
			raw, err := base64.StdEncoding.DecodeString(csrText(t, p256, "d-2"))
			if err != nil {
				t.Fatal(err)
			}
			raw[len(raw)-3] ^= 1
			return base64.StdEncoding.EncodeToString(raw)
		})},
		{"EST, not base64", message.CSRInvalid, enrolWith("d-2", func(*arena) string { return "-----BEGIN CERTIFICATE REQUEST-----" })},
		{"EST, oversized csr", message.MessageTooLarge, enrolWith("d-2", func(*arena) string { return strings.Repeat("QUFB", estBodyMax) })},
		{"EST, wrong media type", message.Unsupported, calls(func(a *arena) estCall {
			return estCall{path: estEnroll, user: "d-2", token: a.token("d-2"), body: csrText(t, p256, "d-2"), header: map[string]string{"Content-Type": "application/json"}}
		})},
		{"EST, transfer encoding trick", message.CSRInvalid, calls(func(a *arena) estCall {
			return estCall{path: estEnroll, user: "d-2", token: a.token("d-2"), body: csrText(t, p256, "d-2"), header: map[string]string{"Content-Transfer-Encoding": "binary"}}
		})},
		{"EST, a certificate by header", message.TokenInvalid, calls(func(a *arena) estCall {
			return estCall{path: estEnroll, body: csrText(t, p256, "d-1"), header: map[string]string{"X-Forwarded-Client-Cert": url.QueryEscape(a.device.Certificate), "X-Forwarded-For": "127.0.0.1"}}
		})},
		{"EST, renewal with a token", message.CertMissing, calls(func(a *arena) estCall {
			return estCall{path: estReenroll, user: "d-2", token: a.token("d-2"), body: csrText(t, p256, "d-2")}
		})},
		{"EST, renewal for another device", message.CSRInvalid, calls(func(a *arena) estCall {
			return estCall{path: estReenroll, cert: pairOf(t, a.device), body: csrText(t, p256, "d-2")}
		})},
		{"EST, renewal without a subject", message.CSRInvalid, calls(func(a *arena) estCall {
			return estCall{path: estReenroll, cert: pairOf(t, a.device), body: csrText(t, p256, "")}
		})},
		{"EST, renewal with a claim certificate", message.CertUnregistered, calls(func(a *arena) estCall {
			return estCall{path: estReenroll, cert: pairOf(t, a.claim), body: csrText(t, p256, "lot-7")}
		})},
		{"EST, renewal with a stranger's certificate", message.CertUnknownCA, calls(func(a *arena) estCall {
			ca := stranger(a)
			k, err := newKey()
			if err != nil {
				t.Fatal(err)
			}
			c := leafFor(t, a.clock, ca, "d-1", k.Public(), nil)
			return estCall{path: estReenroll, cert: &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: k}, body: csrText(t, p256, "d-1")}
		})},
		{"EST, a handshake without the certificate's key", message.HandshakeFailed, calls(func(a *arena) estCall {
			return estCall{path: estReenroll, cert: &tls.Certificate{Certificate: [][]byte{deviceCert(a).Raw}, PrivateKey: ecKey(t, elliptic.P256())}, body: csrText(t, p256, "d-1")}
		})},
		{"EST, a label in the path", message.Unsupported, calls(func(a *arena) estCall {
			return estCall{path: "/.well-known/est/line-3/simpleenroll", user: "d-2", token: a.token("d-2"), body: csrText(t, p256, "d-2")}
		})},
		{"EST, dots in the path", message.Unsupported, calls(func(a *arena) estCall {
			return estCall{path: "/.well-known/est/../est/simpleenroll", user: "d-2", token: a.token("d-2"), body: csrText(t, p256, "d-2")}
		})},
		{"EST, an empty segment in the path", message.Unsupported, calls(func(a *arena) estCall {
			return estCall{path: "//.well-known/est/simpleenroll", user: "d-2", token: a.token("d-2"), body: csrText(t, p256, "d-2")}
		})},
		{"EST, an escaped letter in the path", message.Unsupported, calls(func(a *arena) estCall {
			return estCall{path: "/.well-known/est/simple%65nroll", user: "d-2", token: a.token("d-2"), body: csrText(t, p256, "d-2")}
		})},
		{"EST, the operators' API", message.Unsupported, calls(func(a *arena) estCall {
			return estCall{path: "/api/v1/devices", cert: pairOf(t, a.device), body: `{"id":"d-2"}`}
		})},
		{"EST, another method", message.Unsupported, calls(func(a *arena) estCall {
			return estCall{method: "PUT", path: estEnroll, user: "d-2", token: a.token("d-2"), body: csrText(t, p256, "d-2")}
		})},
		{"EST, a method by header", message.Unsupported, calls(func(a *arena) estCall {
			return estCall{method: "GET", path: estEnroll, user: "d-2", token: a.token("d-2"), header: map[string]string{"X-HTTP-Method-Override": "POST"}}
		})},
		{"EST, a bearer token", message.TokenInvalid, calls(func(a *arena) estCall {
			return estCall{path: estEnroll, body: csrText(t, p256, "d-2"), header: map[string]string{"Authorization": "Bearer " + a.token("d-2")}}
		})},
		{"EST, a token once more with another key", message.TokenInvalid, func(a *arena) error {
			call := estCall{path: estEnroll, user: "d-2", token: a.token("d-2"), body: csrText(t, p256, "d-2")}
			if status, text := a.est(call); status != 200 {
				t.Fatal(status, text)
			}
			a.before = a.fleet()
			call.body = csrText(t, ecKey(t, elliptic.P256()), "d-2")
			return calls(func(*arena) estCall { return call })(a)
		}},
		{"EST, a token of a device that is disabled since", message.ACLDenied, func(a *arena) error {
			token := a.token("d-1")
			a.must(a.do("POST", "/api/v1/devices/d-1/disable", nil, nil), 200)
			a.before = a.fleet()
			return calls(func(*arena) estCall {
				return estCall{path: estEnroll, user: "d-1", token: token, body: csrText(t, p256, "d-1")}
			})(a)
		}},
		{"EST, renewal with a revoked certificate", message.CertRevoked, func(a *arena) error {
			a.must(a.do("POST", "/api/v1/devices/d-1/revoke", nil, nil), 200)
			a.before = a.fleet()
			for who := ""; !strings.Contains(who, "revoked"); { // EST's own door has heard of it
				_, err, _ := a.s.open.Load().estDoor.lookup(sha256.Sum256(deviceCert(a).Raw))
				who = fmt.Sprint(err)
			}
			return calls(func(a *arena) estCall {
				return estCall{path: estReenroll, cert: pairOf(t, a.device), body: csrText(t, p256, "d-1")}
			})(a)
		}},
		// what was good before
		{"revoked", message.CertRevoked, func(a *arena) error {
			a.must(a.do("POST", "/api/v1/devices/d-1/revoke", nil, nil), 200)
			a.before = a.fleet()
			return knocks(func(a *arena) Client { return Client{Leaf: deviceCert(a)} })(a)
		}},
		{"disabled", message.DeviceDisabled, func(a *arena) error {
			a.must(a.do("POST", "/api/v1/devices/d-1/disable", nil, nil), 200)
			a.before = a.fleet()
			return knocks(func(a *arena) Client { return Client{Leaf: deviceCert(a)} })(a)
		}},
		{"replaced, and the overlap over", message.CertRevoked, func(a *arena) error {
			overlap := Duration(0)
			a.must(a.do("POST", "/api/v1/devices/d-1/rotate", Rotation{Overlap: &overlap}, nil), 201)
			a.before = a.fleet()
			return knocks(func(a *arena) Client { return Client{Leaf: deviceCert(a)} })(a)
		}},
		{"just in time, deleted and back by itself", message.CertUnregistered, func(a *arena) error {
			c := leafBy(t, a.clock, a.factory, "meter-1", func(c *stdx509.Certificate) { c.Subject.Organization = []string{"x"} })
			if _, err := a.gate.AdmitClient(a.Context(), Client{Leaf: c}); err != nil {
				t.Fatal(err)
			}
			a.must(a.do("DELETE", "/api/v1/devices/meter-1", nil, nil), 204)
			a.before = a.fleet()
			return knocks(func(*arena) Client { return Client{Leaf: c} })(a)
		}},
		// claim certificates
		{"claim, an ownership token once more, its device having come in", message.TokenInvalid, func(a *arena) error {
			made := a.ownership()
			again := provisionOf(made.Token, map[string]string{"Serial": "1"})
			if got := a.ask(a.claimClient(), lotTopic, again, nil); !got.Accepted {
				t.Fatal(string(got.Payload))
			}
			if _, err := a.gate.AdmitClient(a.Context(), Client{Leaf: pairOf(t, Enrolled{Certificate: made.PEM, Key: made.Key}).Leaf}); err != nil {
				t.Fatal(err)
			}
			a.attempts(attemptFilter{}) // written
			a.before = a.fleet()
			return asks(func(a *arena) (Client, string, any) { return a.claimClient(), lotTopic, again })(a)
		}},
		{"claim, an ownership token once more for another device", message.TokenInvalid, func(a *arena) error {
			made := a.ownership()
			if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": "1"}), nil); !got.Accepted {
				t.Fatal(string(got.Payload))
			}
			a.before = a.fleet()
			return asks(func(a *arena) (Client, string, any) {
				return a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": "2"})
			})(a)
		}},
		{"claim, a device that there is already", message.ACLDenied, func(a *arena) error {
			a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: "pump-1"}, nil), 201)
			a.before = a.fleet()
			return asks(func(a *arena) (Client, string, any) {
				return a.claimClient(), lotTopic, provisionOf(a.ownership().Token, map[string]string{"Serial": "1"})
			})(a)
		}},
		{"claim, a topic that there is not", message.ACLDenied, asks(func(a *arena) (Client, string, any) { return a.claimClient(), "$aws/things/d-1/shadow/update", "" })},
		{"claim, another's template", message.ACLDenied, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), topicProvision + "other" + provisionEnd, provisionOf(a.ownership().Token, map[string]string{"Serial": "1"})
		})},
		{"claim, a path in the template's name", message.ACLDenied, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), topicProvision + "../lot" + provisionEnd, provisionOf(a.ownership().Token, map[string]string{"Serial": "1"})
		})},
		{"claim, a device's certificate", message.ACLDenied, asks(func(a *arena) (Client, string, any) { return Client{Leaf: deviceCert(a)}, topicCreate, "" })},
		{"claim, no certificate", message.ACLDenied, asks(func(*arena) (Client, string, any) { return Client{}, topicCreate, "" })},
		{"claim, a token of nobody", message.TokenInvalid, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), lotTopic, provisionOf(strings.Repeat("A", 52), map[string]string{"Serial": "1"})
		})},
		{"claim, an ownership token that expired", message.TokenInvalid, asks(func(a *arena) (Client, string, any) {
			token := a.ownership().Token
			a.clock.move(2 * ownershipValidity)
			return a.claimClient(), lotTopic, provisionOf(token, map[string]string{"Serial": "1"})
		})},
		{"claim, a token of another claim", message.TokenInvalid, asks(func(a *arena) (Client, string, any) {
			token := a.ownership().Token
			var second Enrolled
			a.must(a.do("POST", "/api/v1/claims", ClaimRequest{Name: "lot-8", Templates: []string{"lot"}}, &second), 201)
			return Client{Leaf: certOf(t, second)}, lotTopic, provisionOf(token, map[string]string{"Serial": "1"})
		})},
		{"claim, a missing parameter", message.ACLDenied, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), lotTopic, provisionOf(a.ownership().Token, nil)
		})},
		{"claim, a parameter of the certificate's", message.ACLDenied, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), lotTopic, provisionOf(a.ownership().Token, map[string]string{"Serial": "1", "Certificate.CommonName": "d-1"})
		})},
		{"claim, a topic in the parameter", message.ACLDenied, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), lotTopic, provisionOf(a.ownership().Token, map[string]string{"Serial": "1/#"})
		})},
		{"claim, a field that decides the name", message.ACLDenied, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), lotTopic, map[string]any{"certificateOwnershipToken": a.ownership().Token, "parameters": map[string]string{"Serial": "1"}, "thingName": "d-1"}
		})},
		{"claim, two JSON documents", message.ACLDenied, asks(func(a *arena) (Client, string, any) { return a.claimClient(), topicCreate, `{}{}` })},
		{"claim, not JSON", message.ACLDenied, asks(func(a *arena) (Client, string, any) { return a.claimClient(), lotTopic, "\xa1\x61\x61\x01" })},
		{"claim, an oversized payload", message.MessageTooLarge, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), topicCSR, strings.Repeat(" ", payloadMax+1)
		})},
		{"claim, a weak key by csr", message.CSRInvalid, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), topicCSR, map[string]string{"certificateSigningRequest": string(csr(t, weakRSA, "x"))}
		})},
		{"claim, a private key as csr", message.CSRInvalid, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), topicCSR, map[string]string{"certificateSigningRequest": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}))}
		})},
		{"claim, an oversized csr", message.CSRInvalid, asks(func(a *arena) (Client, string, any) {
			return a.claimClient(), topicCSR, map[string]string{"certificateSigningRequest": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: make([]byte, 9<<10)}))}
		})},
		{"claim, the hook says no", message.ACLDenied, asks(func(a *arena) (Client, string, any) {
			a.hookAllows.Store(false)
			return a.claimClient(), lotTopic, provisionOf(a.ownership().Token, map[string]string{"Serial": "1"})
		})},
		{"claim, the hook sends elsewhere", message.ACLDenied, asks(func(a *arena) (Client, string, any) {
			f := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/yes" {
					http.Redirect(w, r, "/yes", http.StatusTemporaryRedirect)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write([]byte(`{"allowProvisioning":true}`))
			})
			a.hookAnswers.Store(&f)
			return a.claimClient(), lotTopic, provisionOf(a.ownership().Token, map[string]string{"Serial": "1"})
		})},
		{"claim, the hook answers something else", message.ACLDenied, asks(func(a *arena) (Client, string, any) {
			f := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<p>ok</p>")) })
			a.hookAnswers.Store(&f)
			return a.claimClient(), lotTopic, provisionOf(a.ownership().Token, map[string]string{"Serial": "1"})
		})},
		{"claim, revoked, at the door", message.CertRevoked, func(a *arena) error {
			a.do("POST", "/api/v1/claims/"+a.claim.Fingerprint+"/revoke", struct{}{}, nil)
			a.settle()
			return knocks(func(a *arena) Client { return a.claimClient() })(a)
		}},
		{"claim, revoked while connected", message.ACLDenied, asks(func(a *arena) (Client, string, any) {
			a.do("POST", "/api/v1/claims/"+a.claim.Fingerprint+"/revoke", struct{}{}, nil)
			return a.claimClient(), topicCreate, ""
		})},
		{"claim, a flood of certificates", message.RateLimited, func(a *arena) error {
			for range claimBurst {
				a.ownership()
			}
			return asks(func(a *arena) (Client, string, any) { return a.claimClient(), topicCreate, "" })(a)
		}},
	}
}

func TestHostileHandshakesAndEnrolments(t *testing.T) {
	table := hostiles(t)
	if len(table) < 40 {
		t.Fatalf("%d cases", len(table))
	}
	for _, h := range table {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			a := newArena(t)
			a.before = a.fleet()
			if err := h.try(a); err == nil {
				t.Fatal("it got in")
			} else if strings.Contains(err.Error(), "PRIVATE KEY-----") {
				t.Errorf("the refusal shows a secret: %v", err)
			}
			if after := a.fleet(); after != a.before {
				t.Errorf("the fleet was changed:\n%s%s", a.before, after)
			}
			list := a.attempts(attemptFilter{refused: true})
			for end := time.Now().Add(patience); len(list) == 0 && time.Now().Before(end); {
				list = a.attempts(attemptFilter{refused: true}) // a client hears of a broken handshake before the server's log does
			}
			if len(list) != 1 {
				t.Fatalf("%d attempts are recorded as refused: %+v", len(list), list)
			}
			if r := list[0]; r.Reason != h.reason.String() || r.Detail == "" || len(r.Steps) == 0 || r.Steps[len(r.Steps)-1].OK {
				t.Errorf("recorded as %s, %q; want %s; steps %+v", r.Reason, r.Detail, h.reason, r.Steps)
			}
		})
	}
}

// A token that was used is refused from then on, whatever it is used for; but who may have lost the answer gets it again,
// and nothing is changed by that.
func TestReplayedTokensAreRefused(t *testing.T) {
	a := newArena(t)
	token, key := a.token("d-9"), ecKey(t, elliptic.P256())
	if status, text := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: csrText(t, key, "d-9")}); status != 200 {
		t.Fatal(status, text)
	}
	made := a.ownership()
	if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": "1"}), nil); !got.Accepted {
		t.Fatal(string(got.Payload))
	}
	before := a.fleet()
	if status, _ := a.est(estCall{path: estEnroll, user: "d-9", token: token, body: csrText(t, ecKey(t, elliptic.P256()), "d-9")}); status != 401 {
		t.Errorf("an enrolment token with another key: %d", status)
	}
	if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": "1"}), nil); !got.Accepted {
		t.Errorf("a device whose answer was lost: %s", string(got.Payload))
	}
	if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": "2"}), nil); got.Accepted {
		t.Error("an ownership token once more, for another device")
	}
	if asked := a.asked.Load(); asked != 1 {
		t.Errorf("the hook was asked %d times", asked)
	}
	came, err := authority.ParseCerts([]byte(made.PEM))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: came[0]}); err != nil {
		t.Fatal(err)
	}
	a.attempts(attemptFilter{})
	for _, serial := range []string{"1", "2"} {
		if got := a.ask(a.claimClient(), lotTopic, provisionOf(made.Token, map[string]string{"Serial": serial}), nil); got.Accepted || !strings.Contains(string(got.Payload), "InvalidCertificateOwnershipToken") {
			t.Errorf("an ownership token once more, the device having come in, for %s: %s", serial, string(got.Payload))
		}
	}
	again := a.ownership()
	if got := a.ask(a.claimClient(), lotTopic, provisionOf(again.Token, map[string]string{"Serial": "1"}), nil); got.Accepted {
		t.Error("a device that is registered already was taken over")
	}
	if a.fleet() != before {
		t.Error("the fleet was changed")
	}
}

// Nor does a token answer for a device that is not in force any more.
func TestTokenOfAWithdrawnDeviceIsRefused(t *testing.T) {
	a := newArena(t)
	for serial, withdraw := range map[string]func(device string){
		"1": func(d string) { a.must(a.do("POST", "/api/v1/devices/"+d+"/revoke", nil, nil), 200) },
		"2": func(d string) { a.must(a.do("POST", "/api/v1/devices/"+d+"/disable", nil, nil), 200) },
		"3": func(d string) { a.must(a.do("DELETE", "/api/v1/devices/"+d, nil, nil), 204) },
	} {
		again := provisionOf(a.ownership().Token, map[string]string{"Serial": serial})
		for range 2 {
			if got := a.ask(a.claimClient(), lotTopic, again, nil); !got.Accepted {
				t.Fatal(string(got.Payload))
			}
		}
		withdraw("pump-" + serial)
		before := a.fleet()
		if got := a.ask(a.claimClient(), lotTopic, again, nil); got.Accepted || a.fleet() != before {
			t.Errorf("device %s: answered %s", serial, string(got.Payload))
		}
	}
}

// However long a stranger makes the names in his certificate, what is said of him is short, and whole characters.
func TestLongNamesMakeShortErrors(t *testing.T) {
	a := newArena(t)
	long := strings.Repeat("é", 15000)
	ca := foreignCA(t, a.clock, func(c *stdx509.Certificate) { c.Subject.CommonName = long })
	below := leafFor(t, a.clock, ca, long, ca.key.Public(), func(c *stdx509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, stdx509.KeyUsageCertSign
	})
	servers := func(c *stdx509.Certificate) { c.ExtKeyUsage = []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth} }
	for what, c := range map[string]Client{
		"a stranger":                         {Leaf: leafBy(t, a.clock, ca, long, nil)},
		"a stranger with his CAs":            {Leaf: leafBy(t, a.clock, pair{below, ca.key}, long, nil), Chain: []*stdx509.Certificate{below, ca.cert}},
		"a registered CA's":                  {Leaf: leafBy(t, a.clock, a.factory, long, nil)},
		"a registered CA's for servers":      {Leaf: leafBy(t, a.clock, a.factory, long, servers)},
		"a registered CA's that is too late": {Leaf: leafBy(t, a.clock, a.factory, long, func(c *stdx509.Certificate) { c.NotAfter = a.clock.Now().Add(-time.Minute) })},
	} {
		_, err := a.gate.AdmitClient(t.Context(), c)
		if err == nil || len(err.Error()) > 2<<10 || !utf8.ValidString(err.Error()) {
			t.Errorf("%s: an error of %d bytes", what, len(fmt.Sprint(err)))
		}
	}
	for _, at := range a.attempts(attemptFilter{}) {
		if strings.Contains(at.Device+at.Issuer+at.Detail, "\ufffd") {
			t.Errorf("recorded with half a character: %+v", at)
		}
	}
}

package x509

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	stdx509 "crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
)

// Whatever somebody sends in the wrong place at EST, no secret of his lies in the recorder or the log afterwards.
func TestESTRecordsNoSecret(t *testing.T) {
	a := newArena(t)
	body := csrText(t, ecKey(t, elliptic.P256()), "d-2")
	token := a.token("d-2")
	for name, c := range map[string]struct {
		call estCall
		find string // a device by which the attempt is found
		says string
	}{
		"user and token swapped":       {estCall{path: estEnroll, user: token, token: "d-2", body: body}, "d-2", "the device's id is the user"},
		"a token for another":          {estCall{path: estEnroll, user: token, token: "d-3", body: body}, "", "no such token"},
		"a token twice":                {estCall{path: estEnroll, user: token, token: token, body: body}, "", "no such token"},
		"a token in the path":          {estCall{path: estEnroll + "/" + token, body: body}, "", "there are GET"},
		"an unknown name, a bad token": {estCall{path: estEnroll, user: "d-44", token: "nonsense", body: body}, "d-44", "no such token"},
		"a known name, a bad token":    {estCall{path: estEnroll, user: "d-1", token: token + "x", body: body}, "d-1", "no such token"},
	} {
		t.Run(name, func(t *testing.T) {
			if status, text := a.est(c.call); status == 200 || strings.Contains(text, token) {
				t.Errorf("%d %s", status, text)
			}
			list := a.attempts(attemptFilter{device: c.find, refused: true})
			if !slices.ContainsFunc(list, func(a Attempt) bool { return strings.Contains(a.Detail, c.says) }) {
				t.Errorf("recorded: %+v", list)
			}
		})
	}
	if text := fmt.Sprintf("%+v", a.attempts(attemptFilter{})) + a.logs.String(); strings.Contains(text, token) || strings.Contains(text, "d-44") || strings.Contains(text, "nonsense") {
		t.Errorf("something that may be a secret was recorded: %s", text)
	}
}

// keyed is a bus that knows the longest key that a table of it was asked for.
type keyed struct {
	*tables
	longest atomic.Int64
}

type keyedTable struct {
	bus.Table
	of *keyed
}

func (k *keyed) Table(ctx context.Context, name string, o bus.TableOptions) (bus.Table, error) {
	t, err := k.tables.Table(ctx, name, o)
	return keyedTable{t, k}, err
}

func (t keyedTable) Get(ctx context.Context, key string) (bus.Entry, error) {
	if n := int64(len(key)); n > t.of.longest.Load() {
		t.of.longest.Store(n)
	}
	return t.Table.Get(ctx, key)
}

// A password is looked for as a device too, in case the two were mixed up; one that can be none is not a table's key: keys
// of some thousand bytes break the connection to a bus.
func TestPasswordOfAnyLengthIsNoKey(t *testing.T) {
	b := &keyed{tables: newTables()}
	a := newArenaOn(t, b)
	call := estCall{path: estEnroll, user: "d-44", token: "nonsense", body: csrText(t, ecKey(t, elliptic.P256()), "d-44")}
	status, text := a.est(call)
	for _, password := range []string{strings.Repeat("x", 5000), "a b", "a/../b\x00", strings.Repeat("\xff", 5000)} {
		call.token = password
		if s, said := a.est(call); s != 401 || s != status || said != text {
			t.Errorf("%.20q: %d %s; any wrong token: %d %s", password, s, said, status, text)
		}
	}
	if n := b.longest.Load(); n == 0 || n > 1000 {
		t.Errorf("a table was asked for a key of %d bytes", n)
	}
}

// What is no request is refused with what to send instead, and nothing of the decoder's.
func TestESTSaysWhatItWants(t *testing.T) {
	a := newArena(t)
	der, err := base64.StdEncoding.DecodeString(csrText(t, ecKey(t, elliptic.P256()), "d-2"))
	if err != nil {
		t.Fatal(err)
	}
	key := keyDER(t)
	for body, want := range map[string]string{
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})): "base64 of DER, without the lines BEGIN and END",
		string(der): "the request is DER itself",
		base64.StdEncoding.EncodeToString(der[:len(der)-9]):        "was it cut off?",
		base64.StdEncoding.EncodeToString(certOf(t, a.device).Raw): "is a certificate; a certificate signing request is wanted",
		base64.StdEncoding.EncodeToString(key):                     "is a private key",
		base64.StdEncoding.EncodeToString([]byte("0\x03\x02\x01")): "no certificate signing request",
	} {
		status, text := a.est(estCall{path: estEnroll, user: "d-2", token: a.token("d-2"), body: body})
		if status != 400 || !strings.Contains(text, want) || strings.Contains(text, "asn1") || strings.Contains(text, "{") {
			t.Errorf("%d %s; want %q", status, text, want)
		}
	}
	for _, text := range []string{string(authority.CertPEM(certOf(t, a.device))), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})), "x"} {
		if _, err := authority.ParseRequest("d-2", []byte(text)); err == nil || strings.Contains(err.Error(), "asn1") {
			t.Errorf("%.40s: %v", text, err)
		}
	}
	if _, err := authority.ParseCerts(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
}

func TestReadableSecretIsWarnedOf(t *testing.T) {
	a := newAPI(t)
	a.start()
	if strings.Contains(a.logs.String(), "chmod 600") {
		t.Fatal(a.logs.String())
	}
	for _, name := range []string{"issuing.key", machineSecret} {
		if err := os.Chmod(filepath.Join(a.dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a.start()
	if text := a.logs.String(); strings.Count(text, "chmod 600") != 2 || !strings.Contains(text, `"mode":"0644"`) {
		t.Error(text)
	}
}

func keyDER(t *testing.T) []byte {
	t.Helper()
	der, err := stdx509.MarshalPKCS8PrivateKey(ecKey(t, elliptic.P256()))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// A device that still shows what it has of before is not kept from its token by that; what was wrong with either is recorded.
func TestESTTokenIsTakenBesideACertificateThatDoesNotAdmit(t *testing.T) {
	a := newArena(t)
	var old, revoked Enrolled
	a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: "d-8", Validity: Duration(time.Minute)}, &old), 201)
	a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: "d-9"}, &revoked), 201)
	a.must(a.do("POST", "/api/v1/devices/d-9/revoke", nil, nil), 200)
	a.clock.move(time.Hour)
	a.settle()
	body := func(cn string) string { return csrText(t, ecKey(t, elliptic.P256()), cn) }
	for id, c := range map[string]struct {
		cert *tls.Certificate
		step string
	}{"d-8": {pairOf(t, old), "time"}, "d-9": {pairOf(t, revoked), "registration"}, "d-10": {pairOf(t, a.claim), "certificate"}} {
		token := a.token(id)
		if status, text := a.est(estCall{path: estReenroll, cert: c.cert, user: id, token: token, body: body(id)}); status != http.StatusForbidden {
			t.Errorf("%s: renews by a token: %d %s", id, status, text)
		}
		a.clock.move(time.Second)
		if status, text := a.est(estCall{path: estEnroll, cert: c.cert, user: id, token: token, body: body(id)}); status != http.StatusOK || name(a.enrolled(text)) != id {
			t.Errorf("%s: %d %s", id, status, text)
		}
		got := a.attempts(attemptFilter{device: id})[0]
		var failed, passed []string
		for _, s := range got.Steps {
			if s.OK {
				passed = append(passed, s.Name)
			} else {
				failed = append(failed, s.Name)
			}
		}
		if !got.Admitted || got.Reason != "" || got.Claim || !slices.Equal(failed, []string{c.step}) || !slices.Contains(passed, "token") {
			t.Errorf("%s: recorded %+v", id, got)
		}
	}
	a.clock.move(time.Second)
	if status, text := a.est(estCall{path: estEnroll, cert: pairOf(t, old), user: "d-8", token: "wrong-token", body: body("d-8")}); status != http.StatusUnauthorized {
		t.Errorf("neither is good: %d %s", status, text)
	}
	got := a.attempts(attemptFilter{device: "d-8"})[0]
	if got.Reason != "token_invalid" || !strings.Contains(got.Detail, "no such token") || !strings.Contains(got.Detail, "ended") || strings.HasPrefix(got.Detail, "token_invalid") {
		t.Errorf("recorded %+v", got)
	}
}

// late is a body that does not come in time.
type late struct{}

func (late) Read([]byte) (int, error) { return 0, fmt.Errorf("read: %w", os.ErrDeadlineExceeded) }

// Who is too slow with his request is told that, and not to mend it.
func TestESTTellsWhoIsSlow(t *testing.T) {
	a := newArena(t)
	o := a.s.open.Load()
	r := httptest.NewRequest("POST", estEnroll, late{})
	r.Header.Set("Content-Type", "application/pkcs10")
	r.SetBasicAuth("d-9", a.token("d-9"))
	w := httptest.NewRecorder()
	(&est{a.s, o, o.estDoor}).handler().ServeHTTP(w, r)
	if w.Code != http.StatusRequestTimeout || !strings.Contains(w.Body.String(), "did not come within") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if got := a.attempts(attemptFilter{device: "d-9", step: "body"}); len(got) != 1 || got[0].Reason != "slow_handshake" {
		t.Errorf("recorded: %+v", got)
	}
}

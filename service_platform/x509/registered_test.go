package x509

import (
	"crypto/rand"
	stdx509 "crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

const time5 = authority.Backdate

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n.Add(n, big.NewInt(1))
}

func (h *house) cas() *CAs {
	t, _ := h.bus.Table(h.Context(), trustTable, bus.TableOptions{})
	return &CAs{t, h.clock.Now, &unreadables{log: slog.New(slog.DiscardHandler)}}
}

// register has a CA of somebody else registered, with its proof.
func (h *house) register(ca pair, template string) RegisteredCA {
	h.Helper()
	code, _, err := h.cas().Code(h.Context())
	if err != nil {
		h.Fatal(err)
	}
	r, err := h.cas().Register(h.Context(), authority.CertPEM(ca.cert), authority.CertPEM(leafBy(h.TB, h.clock, ca, code, nil)), template, "mina")
	if err != nil {
		h.Fatal(err)
	}
	return r
}

func TestRegisteredCAAdmitsRegisteredDevices(t *testing.T) {
	h := newHouse(t)
	factory := foreignCA(t, h.clock, nil)
	c := leafBy(t, h.clock, factory, "d-17", nil)
	if _, _, err := h.reg.Add(t.Context(), Registration{ID: "d-17", Certificate: recordOf(c, h.clock.Now())}); err != nil {
		t.Fatal(err)
	}
	h.refused(c, message.CertUnknownCA)
	r := h.register(factory, "")
	h.door = h.openDoor()
	h.admitted(c, "d-17")
	h.refused(leafBy(t, h.clock, factory, "d-18", nil), message.CertUnregistered)
	told := make(chan string, 1)
	h.door.OnChange(func(d string) { told <- d })
	if _, err := h.cas().Disable(t.Context(), r.Fingerprint, true); err != nil {
		t.Fatal(err)
	}
	if d := <-told; d != "d-17" {
		t.Errorf("told of %q", d)
	}
	h.refused(c, message.CertUnknownCA)
	if _, err := h.cas().Remove(t.Context(), r.Fingerprint); err != nil {
		t.Fatal(err)
	}
	h.door = h.openDoor()
	h.refused(c, message.CertUnknownCA)
}

// A CA is registered only by somebody who holds its key, with a code that was asked for here and is used once.
func TestCAWithoutProofOfPossession(t *testing.T) {
	h := newHouse(t)
	factory, other := foreignCA(t, h.clock, nil), foreignCA(t, h.clock, nil)
	code := func() string {
		c, _, err := h.cas().Code(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	late := code()
	h.clock.move(2 * codeValidity)
	spent := code()
	if _, err := h.cas().Register(t.Context(), authority.CertPEM(other.cert), authority.CertPEM(leafBy(t, h.clock, other, spent, nil)), "", ""); err != nil {
		t.Fatal(err)
	}
	with := func(ca pair, change func(*stdx509.Certificate)) []byte {
		return authority.CertPEM(leafBy(t, h.clock, ca, code(), change))
	}
	child := foreignCA(t, h.clock, func(c *stdx509.Certificate) { c.IsCA, c.KeyUsage = false, stdx509.KeyUsageDigitalSignature })
	noSign := foreignCA(t, h.clock, func(c *stdx509.Certificate) { c.KeyUsage = stdx509.KeyUsageCRLSign })
	ended := foreignCA(t, h.clock, func(c *stdx509.Certificate) { c.NotAfter = h.clock.Now().Add(-1) })
	for name, c := range map[string]struct{ ca, proof []byte }{
		"no certificate":         {[]byte("x"), with(factory, nil)},
		"no proof":               {authority.CertPEM(factory.cert), nil},
		"two certificates":       {authority.CertPEM(factory.cert, other.cert), with(factory, nil)},
		"proof by another CA":    {authority.CertPEM(factory.cert), with(other, nil)},
		"the CA itself as proof": {authority.CertPEM(factory.cert), authority.CertPEM(factory.cert)},
		"a code of nobody":       {authority.CertPEM(factory.cert), authority.CertPEM(leafBy(t, h.clock, factory, strings.Repeat("a", 32), nil))},
		"a code with a path":     {authority.CertPEM(factory.cert), authority.CertPEM(leafBy(t, h.clock, factory, "../trust", nil))},
		"a code that was used":   {authority.CertPEM(factory.cert), authority.CertPEM(leafBy(t, h.clock, factory, spent, nil))},
		"a code that is too old": {authority.CertPEM(factory.cert), authority.CertPEM(leafBy(t, h.clock, factory, late, nil))},
		"an expired proof":       {authority.CertPEM(factory.cert), with(factory, func(c *stdx509.Certificate) { c.NotAfter = h.clock.Now().Add(-1) })},
		"not a CA":               {authority.CertPEM(child.cert), with(child, nil)},
		"a CA that may not sign": {authority.CertPEM(noSign.cert), with(noSign, nil)},
		"a CA that ended":        {authority.CertPEM(ended.cert), with(ended, nil)},
	} {
		if _, err := h.cas().Register(t.Context(), c.ca, c.proof, "", ""); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: got %v; want it refused", name, err)
		}
	}
	list, err := h.cas().List(t.Context())
	if err != nil || len(list) != 1 || list[0].Fingerprint != authority.Fingerprint(other.cert.Raw) {
		t.Errorf("registered: %v, %v", slices.Collect(func(yield func(string) bool) {
			for _, c := range list {
				yield(c.Name)
			}
		}), err)
	}
}

func TestTemplateTricks(t *testing.T) {
	tmpl := Template{Name: "pump-${Serial}", Parameters: []string{"Serial", "Hall"}, Groups: []string{"hall-${Hall}"}, Policy: "device",
		Attributes: map[string]string{"by": "${Certificate.CommonName}"}}
	if err := tmpl.check("factory"); err != nil {
		t.Fatal(err)
	}
	cert := map[string]string{"Certificate.CommonName": "claim"}
	good := map[string]string{"Serial": "7", "Hall": "${Certificate.CommonName}"}
	p, err := tmpl.plan(good, cert)
	if err != nil || p.device != "pump-7" || p.groups[0] != "hall-${Certificate.CommonName}" || p.attributes["by"] != "claim" {
		t.Errorf("got %+v, %v; what is put in must not be read again", p, err)
	}
	for name, sent := range map[string]map[string]string{
		"missing":                  {"Serial": "7"},
		"empty":                    {"Serial": "", "Hall": "2"},
		"unknown":                  {"Serial": "7", "Hall": "2", "Policy": "admin"},
		"speaks for a certificate": {"Serial": "7", "Hall": "2", "Certificate.CommonName": "d-1"},
		"path in the name":         {"Serial": "../7", "Hall": "2"},
		"wildcard in the name":     {"Serial": "+", "Hall": "2"},
		"control character":        {"Serial": "7\n", "Hall": "2"},
		"not UTF-8":                {"Serial": "7", "Hall": "\xff"},
		"too long":                 {"Serial": "7", "Hall": strings.Repeat("x", valueMax+1)},
		"name too long":            {"Serial": strings.Repeat("7", 128), "Hall": "2"},
	} {
		if p, err := tmpl.plan(sent, cert); err == nil {
			t.Errorf("%s: planned %+v", name, p)
		}
	}
	for name, bad := range map[string]Template{
		"no name":         {},
		"unknown in name": {Name: "${Serial}"},
		"open brace":      {Name: "${Serial", Parameters: []string{"Serial"}},
		"chosen policy":   {Name: "${S}", Parameters: []string{"S"}, Policy: "${S}"},
		"hook in clear":   {Name: "x", Hook: "http://approve.example/"},
		"hook with user":  {Name: "x", Hook: "https://a:b@approve.example/"},
		"parameter name":  {Name: "x", Parameters: []string{"Certificate.Id"}},
	} {
		if bad.check("t") == nil {
			t.Errorf("%s: the template is taken", name)
		}
	}
}

// A CA that was switched off is not switched on by registering it again, though its template changes.
func TestDisabledCAStaysSoWhenItIsRegisteredAgain(t *testing.T) {
	a := newArena(t)
	a.must(a.do("POST", "/api/v1/ca/registered/"+a.factoryID+"/disable", struct{}{}, nil), 200)
	if r := a.register(a.factory, "hooked"); !r.Disabled || r.Template != "hooked" || r.Fingerprint != a.factoryID {
		t.Errorf("registered again: %+v", r)
	}
	if _, err := a.gate.AdmitClient(t.Context(), Client{Leaf: leafBy(t, a.clock, a.factory, "7", nil)}); message.ReasonOf(err, 0) != message.CertUnknownCA {
		t.Errorf("its device: %v", err)
	}
	a.must(a.do("POST", "/api/v1/ca/registered/"+a.factoryID+"/enable", struct{}{}, nil), 200)
	a.settle()
	if who, err := a.gate.AdmitClient(t.Context(), Client{Leaf: leafBy(t, a.clock, a.factory, "7", nil)}); who.Device != "hooked-7" {
		t.Errorf("switched on: %v", err)
	}
}

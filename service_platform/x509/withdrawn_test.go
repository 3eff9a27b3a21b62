package x509

import (
	"context"
	stdx509 "crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
)

// lists says whether a revocation list holds a certificate.
func lists(l *stdx509.RevocationList, c *stdx509.Certificate) bool {
	return slices.ContainsFunc(l.RevokedCertificateEntries, func(e stdx509.RevocationListEntry) bool { return e.SerialNumber.Cmp(c.SerialNumber) == 0 })
}

// However often a device rotates, what was revoked of it stays revoked: in the list until it ends, and at the door even
// where a template lets devices come again.
func TestRevokedCertificateDoesNotComeBackWhenItsDeviceForgetsIt(t *testing.T) {
	a := newArena(t)
	raw, err := json.Marshal(Template{Name: "${Certificate.CommonName}", Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	a.gate.applyTemplate(bus.Entry{Key: templatePrefix + "factory", Value: raw, Revision: 1 << 40})
	stolen := leafBy(t, a.clock, a.factory, "meter-7", nil)
	if who, err := a.gate.AdmitClient(t.Context(), Client{Leaf: stolen}); who.Device != "meter-7" {
		t.Fatal(err)
	}
	own := a.device // d-1's first, by the platform's own CA
	for _, device := range []string{"meter-7", "d-1"} {
		a.must(a.do("POST", "/api/v1/devices/"+device+"/revoke", Change{Reason: "stolen"}, nil), 200)
		for range certsMax {
			a.must(a.do("POST", "/api/v1/devices", Enrolment{ID: device}, nil), 201)
		}
		var d Device
		if a.do("GET", "/api/v1/devices/"+device, nil, &d); slices.ContainsFunc(d.Certs, Certificate.Revoked) {
			t.Fatalf("%s has not forgotten what was revoked; this says nothing", device)
		}
	}
	if who, err := a.gate.AdmitClient(t.Context(), Client{Leaf: stolen}); err == nil || !strings.Contains(err.Error(), "withdrawn") {
		t.Errorf("a revoked certificate is admitted as %+v, %v", who, err)
	}
	if _, err := a.gate.Admit(t.Context(), certOf(t, own), nil); message.ReasonOf(err, 0) != message.CertUnregistered {
		t.Errorf("a revoked certificate of the platform's own: %v", err)
	}
	a.listed(func() bool { return lists(a.crl(""), certOf(t, own)) }, "the list has forgotten a certificate that was revoked")
	if got := a.do("PUT", "/api/v1/devices/d-1", Import{Certs: []Certificate{*recordOf(certOf(t, own), a.clock.Now())}}, nil); got != 409 {
		t.Errorf("an import brings it back: %d", got)
	}
}

// patience is how long a test waits for what comes in milliseconds where the machine has nothing else to do.
const patience = time.Minute

// listed waits until the component has heard of what it wrote.
func (a *api) listed(is func() bool, fault string) {
	a.Helper()
	for late := time.Now().Add(patience); !is(); {
		if time.Now().After(late) {
			a.Fatal(fault)
		}
	}
}

// between is a table where somebody comes between a read and the first write of a key.
type between struct {
	bus.Table
	key  string
	then func()
}

func (b *between) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if then := b.then; then != nil && key == b.key {
		b.then = nil
		then()
	}
	return b.Table.Update(ctx, key, value, revision)
}

func TestDeletionWithdrawsACertificateThatCameInBetween(t *testing.T) {
	h := newHouse(t)
	h.enrol("d-17")
	var late *stdx509.Certificate
	table := &between{Table: h.reg.table, key: deviceKey("d-17")}
	table.then = func() { late = h.enrol("d-17") }
	r := &Registry{table: store{table}, trust: h.reg.trust, now: h.clock.Now}
	if _, err := r.Remove(t.Context(), "d-17", ""); err != nil {
		t.Fatal(err)
	}
	if err := checkWithdrawn(t.Context(), h.reg.trust, authority.Fingerprint(late.Raw)); !errors.Is(err, ErrRefused) {
		t.Errorf("the certificate that was issued meanwhile is not withdrawn: %v", err)
	}
}

// A deletion that comes between an import's look and its write withdraws for that import too.
func TestImportBringsNothingBackThatWasDeletedInBetween(t *testing.T) {
	h := newHouse(t)
	leaf := h.enrol("d-17")
	was, err := h.reg.Get(t.Context(), "d-17")
	if err != nil {
		t.Fatal(err)
	}
	table := &between{Table: h.reg.table, key: deviceKey("d-17")}
	table.then = func() {
		if _, err := h.reg.Remove(t.Context(), "d-17", ""); err != nil {
			t.Error(err)
		}
	}
	r := &Registry{table: store{table}, trust: h.reg.trust, now: h.clock.Now}
	if _, _, err := r.Import(t.Context(), Registration{ID: "d-17", Groups: []string{"a"}}, was.Certs, false); !errors.Is(err, ErrRefused) {
		t.Errorf("the import: %v", err)
	}
	if table.then != nil {
		t.Fatal("nothing came between")
	}
	if has, err := h.reg.has(t.Context(), "d-17", authority.Fingerprint(leaf.Raw)); err != nil || has {
		t.Errorf("the certificate of the device that was deleted is registered: %v, %v", has, err)
	}
}

func TestRevocationListHoldsClaimsAndWhatNobodyProvisioned(t *testing.T) {
	a := newArena(t)
	certs, err := authority.ParseCerts([]byte(a.ownership().PEM))
	if err != nil {
		t.Fatal(err)
	}
	left := certs[0]
	used := a.ownership()
	a.ask(a.claimClient(), lotTopic, provisionOf(used.Token, map[string]string{"Serial": "1"}), nil)
	if certs, err = authority.ParseCerts([]byte(used.PEM)); err != nil {
		t.Fatal(err)
	}
	o := a.s.open.Load()
	if err := a.s.sweep(t.Context(), o); err != nil || len(a.crl("").RevokedCertificateEntries) > 0 {
		t.Errorf("before anything was withdrawn: %v", err)
	}
	a.must(a.do("POST", "/api/v1/claims/"+a.claim.Fingerprint+"/revoke", struct{}{}, nil), 200)
	a.listed(func() bool { return lists(a.crl(""), a.claimClient().Leaf) }, "a revoked claim certificate is not listed")
	a.clock.move(3 * ownershipValidity)
	if err := a.s.sweep(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	a.listed(func() bool { return lists(a.crl(""), left) }, "what nobody provisioned himself with is not listed")
	if lists(a.crl(""), certs[0]) {
		t.Error("what a device uses is listed")
	}
	if rest, err := bus.Entries(t.Context(), o.trust, ownershipPrefix); err != nil || len(rest) > 0 {
		t.Errorf("tokens are left: %v, %v", rest, err)
	}
	a.clock.move(3 * 365 * day)
	a.sweepProven()
	if rest, err := bus.Entries(t.Context(), o.trust, revokedPrefix); err != nil || len(rest) > 0 {
		t.Errorf("what has ended by itself is kept: %v, %v", rest, err)
	}
}

// A registration, however many there are, makes no list anew; a revocation does. One that took long is served a while.
func TestRevocationListIsMadeAnewForRevocationsOnly(t *testing.T) {
	a := startAPI(t)
	a.do("POST", "/api/v1/devices", Enrolment{ID: "d-1"}, nil)
	o := a.s.open.Load()
	list := func() *byte {
		der, err := a.s.revocationList(o, "")
		if err != nil {
			t.Fatal(err)
		}
		return &der[0]
	}
	first := list()
	a.do("POST", "/api/v1/devices", Enrolment{ID: "d-2"}, nil)
	a.do("POST", "/api/v1/devices/d-2/disable", nil, nil)
	if list() != first {
		t.Error("it was made anew though nothing was revoked")
	}
	a.do("POST", "/api/v1/devices/d-2/revoke", nil, nil)
	second := list()
	if second == first {
		t.Error("it was not made anew though something was revoked")
	}
	p, err := o.authority.Issuer("")
	if err != nil {
		t.Fatal(err)
	}
	l := o.crls.of(fmt.Sprintf("%x", p.SubjectKeyId))
	dear := *l.made.Load()
	dear.serve = time.Now().Add(time.Hour)
	l.made.Store(&dear)
	a.do("POST", "/api/v1/devices/d-1/revoke", nil, nil)
	if list() != second {
		t.Error("a list that took long is made anew at once")
	}
	dear.serve = time.Now()
	l.making.Lock() // as somebody else's request does for as long as that takes
	if list() != second {
		t.Error("who asks meanwhile does not get the list before")
	}
	l.making.Unlock()
	third := list()
	if third == second {
		t.Error("and not later either")
	}
	a.clock.move(crlFresh)
	if list() == third {
		t.Error("it is served beyond its time")
	}
}

func TestCertificateNamesItsRevocationList(t *testing.T) {
	a := newAPI(t)
	a.conf.CRLURL = "http://naru.example/crl?issuer=${issuer}"
	a.start()
	var e Enrolled
	a.do("POST", "/api/v1/devices", Enrolment{ID: "d-1"}, &e)
	c := certOf(t, e)
	if want := fmt.Sprintf("http://naru.example/crl?issuer=%x", c.AuthorityKeyId); !slices.Equal(c.CRLDistributionPoints, []string{want}) {
		t.Errorf("named %q; want %q", c.CRLDistributionPoints, want)
	}
	for _, wrong := range []string{"naru.example/crl", "ftp://naru.example/crl", "http://a:b@naru.example/", "http://naru.example/${ca}"} {
		if authority.CheckCRLURL(wrong) == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}

func TestWithdrawnCertificatesAreCountedAndForgotten(t *testing.T) {
	var x withdrawals
	now := time.Unix(1_800_000_000, 0)
	put := func(i int, c revokedCert) {
		raw, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		x.apply(bus.Entry{Key: fmt.Sprintf("%s%064x", revokedPrefix, i), Value: raw})
	}
	put(1, revokedCert{Serial: "0a", Issuer: "i", NotAfter: now.Add(day), At: now, Unclaimed: true})
	put(2, revokedCert{Serial: strings.Repeat("f", 42), Issuer: "i", NotAfter: now.Add(day), At: now})
	put(3, revokedCert{Serial: "0b", Issuer: "j", NotAfter: now.Add(-day), At: now, Reason: superseded})
	var got []string
	x.each(now.Add(-2*day), func(by string, e stdx509.RevocationListEntry) {
		got = append(got, fmt.Sprintf("%s %d %d", by, e.SerialNumber, e.ReasonCode))
	})
	if slices.Sort(got); !slices.Equal(got, []string{"i 10 0", "j 11 4"}) {
		t.Errorf("%q", got)
	}
	if ended := x.ended(now); len(ended) != 1 || ended[0] != fmt.Sprintf("%s%064x", revokedPrefix, 3) {
		t.Errorf("ended: %q", ended)
	}
	state := x.state()
	put(1, revokedCert{Serial: "0a", Issuer: "i", NotAfter: now.Add(day), At: now, Unclaimed: true})
	if x.state() != state || x.unclaimed != 1 {
		t.Errorf("the same once more: state %d, was %d; %d unclaimed", x.state(), state, x.unclaimed)
	}
	x.apply(bus.Entry{Key: fmt.Sprintf("%s%064x", revokedPrefix, 1), Deleted: true})
	if x.state() == state || x.unclaimed != 0 {
		t.Error("what is gone is still there")
	}
}

package x509

import (
	stdx509 "crypto/x509"
	"fmt"
	"strings"
	"testing"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/naru-platform/naru/message"
)

// caBy is a CA below another.
func caBy(t *testing.T, c *clock, by pair, cn string) pair {
	t.Helper()
	ca := foreignCA(t, c, func(tmpl *stdx509.Certificate) { tmpl.Subject.CommonName = cn })
	tmpl := *ca.cert
	tmpl.AuthorityKeyId = nil
	cert, err := sign(&tmpl, by, ca.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pair{cert, ca.key}
}

// trusts has a house's door trust registered CAs, without a proof.
func (h *house) trusts(cas ...pair) {
	h.Helper()
	for i, ca := range cas {
		h.door.mu.Lock()
		h.door.cas[fmt.Sprint(casPrefix, i)] = &registeredCA{RegisteredCA: RegisteredCA{Name: name(ca.cert), Fingerprint: authority.Fingerprint(ca.cert.Raw)}, cert: ca.cert}
		h.door.mu.Unlock()
	}
}

// A stranger costs as much as one budget of signature checks, however many CAs are registered: what he presents is not looked
// at for each of them anew.
func TestStrangersCostOneBudgetHoweverManyCAsThereAre(t *testing.T) {
	h := newHouse(t)
	var cas []pair
	for range 12 {
		cas = append(cas, foreignCA(t, h.clock, nil)) // all of one name, as a stranger would choose
	}
	h.trusts(cas...)
	// A ladder of CAs of that name, each signed by the next: every rung is tried with every root and every other rung.
	top := foreignCA(t, h.clock, nil)
	var presented []*stdx509.Certificate
	for range intermediatesMax {
		next := caBy(t, h.clock, top, "Factory CA")
		presented = append(presented, next.cert)
		top = next
	}
	leaf := leafBy(t, h.clock, top, "d-1", nil)
	_, err := h.door.verify(leaf, presented, h.clock.Now())
	if err == nil || !strings.Contains(err.Error(), "attempts limit reached") {
		t.Errorf("it is refused, and not for what it costs: %v", err)
	}
	h.refused(leaf, message.CertUnknownCA)
	// A device of the last of them still gets as far as being unregistered.
	got, err := h.door.verify(leafBy(t, h.clock, cas[11], "d-2", nil), nil, h.clock.Now())
	if err != nil || !got.ca.cert.Equal(cas[11].cert) {
		t.Errorf("a device of a registered CA: %+v, %v", got, err)
	}
}

// Of several CAs that vouch for a certificate, one that is switched off does not count.
func TestOneOfTwoCAsThatVouchIsSwitchedOff(t *testing.T) {
	h := newHouse(t)
	top := foreignCA(t, h.clock, nil)
	below := caBy(t, h.clock, top, "Line 3")
	leaf := leafBy(t, h.clock, below, "d-1", nil)
	for _, off := range []int{-1, 0, 1, 2} {
		h.trusts(top, below)
		h.door.mu.Lock()
		for i := range 2 {
			h.door.cas[fmt.Sprint(casPrefix, i)].Disabled = off == i || off == 2
		}
		h.door.mu.Unlock()
		got, err := h.door.verify(leaf, []*stdx509.Certificate{below.cert}, h.clock.Now())
		want := map[int]pair{-1: below, 0: below, 1: top}[off]
		if off == 2 && (err == nil || !strings.Contains(err.Error(), "switched off")) || off != 2 && (err != nil || !got.ca.cert.Equal(want.cert)) {
			t.Errorf("%d is switched off: %+v, %v", off, got.ca, err)
		}
	}
}

// A CA that may vouch for no clients keeps nobody out who has another way to a trusted one.
func TestOneOfTwoWaysAllowsClients(t *testing.T) {
	h := newHouse(t)
	top := foreignCA(t, h.clock, nil)
	below := caBy(t, h.clock, top, "Line 3")
	servers := pair{leafFor(t, h.clock, top, "Line 3", below.key.Public(), func(c *stdx509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, stdx509.KeyUsageCertSign, []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth}
	}), below.key}
	h.trusts(top)
	leaf := leafBy(t, h.clock, below, "d-1", nil)
	for _, c := range []struct {
		presented []*stdx509.Certificate
		barred    string
	}{{[]*stdx509.Certificate{servers.cert}, "Line 3"}, {[]*stdx509.Certificate{servers.cert, below.cert}, ""}, {[]*stdx509.Certificate{below.cert, servers.cert}, ""}} {
		got, err := h.door.verify(leaf, c.presented, h.clock.Now())
		if err != nil || !got.ca.cert.Equal(top.cert) || got.barred != c.barred {
			t.Errorf("by %d CAs: %+v, %v", len(c.presented), got, err)
		}
	}
}

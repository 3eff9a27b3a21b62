package x509

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/naru-platform/naru/service_platform/x509/authority"
)

func TestFingerprintIsCompletedOrRefused(t *testing.T) {
	long := func(begin string) string { return begin + strings.Repeat("0", 64-len(begin)) }
	all := []string{long("abcdef0123"), long("abcdef0124"), long("0123456789"), long("0123456789")}
	for given, want := range map[string]string{
		"01234567": all[2], "0123456789…": all[2], "01:23:45:67:89": all[2], "ABCDEF0124": all[1], all[0]: all[0], long("ff"): long("ff"),
		"0123456": "", "": "", "abcdef01": "", "deadbeef": "", "no fingerprint": "", long("ff") + "0": "",
	} {
		got, err := complete(given, all, ErrUnknownCA)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q is completed to %q, %v", given, got, err)
		}
		if err != nil && errors.Is(err, ErrUnknownCA) == (given == "abcdef01") {
			t.Errorf("%q: %v", given, err)
		}
	}
	if _, err := complete("abcdef01", all, ErrUnknownCA); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), all[0]) || !strings.Contains(err.Error(), all[1]) {
		t.Errorf("several begin so, and it is %v", err)
	}
}

// Wherever a fingerprint is taken, its beginning is.
func TestBeginningOfAFingerprintIsTakenEverywhere(t *testing.T) {
	a := newArena(t)
	begin := func(f string) string { return f[:prefixMin] }
	for _, verb := range []string{"disable", "enable"} {
		var ca RegisteredCA
		a.must(a.do("POST", "/api/v1/ca/registered/"+begin(a.factoryID)+"/"+verb, struct{}{}, &ca), 200)
		if ca.Fingerprint != a.factoryID || ca.Disabled != (verb == "disable") {
			t.Errorf("%s: %+v", verb, ca)
		}
	}
	var d Dependents
	if a.must(a.do("GET", "/api/v1/ca/dependents?fingerprint="+begin(a.factoryID), nil, &d), 200); d.Fingerprint != a.factoryID {
		t.Errorf("dependents of %+v", d)
	}
	var shown Shown
	a.must(a.do("POST", "/api/v1/devices/d-1/revoke", Change{Fingerprint: begin(a.device.Fingerprint)}, &shown), 200)
	if !shown.Certs[0].Revoked() {
		t.Errorf("revoked %+v", shown.Certs)
	}
	if status, why := a.problemOf("POST", "/api/v1/devices/d-1/revoke", Change{Fingerprint: "00000000"}); status != 404 || !strings.Contains(why, "no such certificate of device d-1") {
		t.Errorf("one that it does not have: %d %s", status, why)
	}
	root := authority.Fingerprint(a.s.open.Load().authority.Bundle().Roots[0].Raw)
	a.must(a.do("POST", "/api/v1/ca/rollover", struct{}{}, nil), 200)
	var st CAStatus
	a.must(a.do("POST", "/api/v1/ca/retire", RootKey{Fingerprint: begin(root)}, &st), 200)
	if slices.ContainsFunc(st.Trusted, func(c CACert) bool { return c.Fingerprint == root }) {
		t.Error("it is trusted still")
	}
	a.must(a.do("POST", "/api/v1/ca/root/remove", RootKey{Fingerprint: begin(st.Root.Fingerprint), ForGood: true}, &st), 200)
	if st.RootKey {
		t.Error("the root's key is there still")
	}
	a.must(a.do("DELETE", "/api/v1/ca/registered/"+begin(a.factoryID), nil, nil), 204)
	if got := a.do("DELETE", "/api/v1/ca/registered/"+begin(a.factoryID), nil, nil); got != 404 {
		t.Errorf("removed twice: %d", got)
	}
}

// Attempts are found by whatever names their CA; a name that is nobody's is told, and not taken for a CA that nobody came with.
func TestAttemptsAreFoundByWhateverNamesTheirCA(t *testing.T) {
	a := newArena(t)
	stranger := foreignCA(t, a.clock, nil)
	for _, c := range []Client{{Leaf: certOf(t, a.device)}, {Leaf: leafBy(t, a.clock, a.factory, "meter-1", nil)}, {Leaf: leafBy(t, a.clock, stranger, "x", nil), Chain: nil}} {
		_, _ = a.gate.AdmitClient(t.Context(), c) // what becomes of it is recorded
	}
	a.attempts(attemptFilter{})
	issuing := a.s.open.Load().authority.Bundle().Issuing[0]
	root := a.s.open.Load().authority.Bundle().Roots[0]
	for given, want := range map[string]int{
		name(issuing): 1, keyIDOf(issuing)[:prefixMin]: 1, authority.Fingerprint(issuing.Raw): 1, authority.Fingerprint(root.Raw)[:prefixMin] + "…": 1, name(root): 1,
		a.factoryID[:prefixMin]: 1, keyIDOf(a.factory.cert): 1, keyIDOf(stranger.cert)[:16] + "…": 1, "Factory CA": 2,
	} {
		var got struct{ Attempts []Attempt }
		if status := a.do("GET", "/api/v1/admissions?ca="+url.QueryEscape(given), nil, &got); status != 200 || len(got.Attempts) != want {
			t.Errorf("%q: %d, %d attempts, want %d", given, status, len(got.Attempts), want)
		}
	}
	if status, why := a.problemOf("GET", "/api/v1/admissions?ca=Nobody", nil); status != 404 || !strings.Contains(why, "--by-ca") {
		t.Errorf("a name of nobody's: %d %s", status, why)
	}
}

package x509

import (
	stdx509 "crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/x509/authority"
)

// sweepProven sweeps until the clock is believed, however it was moved.
func (a *api) sweepProven() {
	a.Helper()
	up := time.Duration(0)
	a.s.uptime = func() time.Duration { return up }
	for range 3 {
		if err := a.s.sweep(a.Context(), a.s.open.Load()); err != nil {
			a.Fatal(err)
		}
		up += clockProof
	}
}

// kept is how many entries there are of what keeps somebody out.
func (a *arena) kept() (n int) {
	a.Helper()
	for _, prefix := range []string{revokedPrefix, keyPrefix} {
		e, err := bus.Entries(a.Context(), a.s.open.Load().trust, prefix)
		if err != nil {
			a.Fatal(err)
		}
		n += len(e)
	}
	return n
}

// Neither a device that was deleted nor a key that was revoked comes back since the clock was ahead for a while, whether the
// deletion was before or meanwhile.
func TestClockThatWasAheadBringsNothingBack(t *testing.T) {
	maker := func(c *stdx509.Certificate) { c.Subject.Organization = []string{"F"} }
	for _, meanwhile := range []bool{false, true} {
		a := newArena(t)
		o := a.s.open.Load()
		up := time.Duration(0)
		a.s.uptime = func() time.Duration { return up }
		sweep := func() {
			t.Helper()
			for range 30 { // hours, of which the clock is ahead for less than it must
				if err := a.s.sweep(t.Context(), o); err != nil {
					t.Fatal(err)
				}
				up += 30 * time.Minute
			}
		}
		comes := Client{Leaf: leafBy(t, a.clock, a.factory, "meter-9", maker), Address: "192.0.2.1:1"}
		if _, err := a.gate.AdmitClient(t.Context(), comes); err != nil {
			t.Fatal(err)
		}
		sweep()
		up += clockProof
		sweep() // the clock is believed now
		revokes := !meanwhile
		remove := func() {
			t.Helper()
			if revokes {
				a.must(a.do("POST", "/api/v1/devices/meter-9/revoke", Change{Reason: "stolen"}, nil), 200)
			}
			a.must(a.do("DELETE", "/api/v1/devices/meter-9", nil, nil), 204)
			a.settle()
		}
		if !meanwhile {
			remove()
		}
		for range 2 { // twice: what it did the first time is no proof for the second
			a.clock.move(30 * 365 * day)
			if meanwhile {
				remove()
				meanwhile = false
			}
			sweep()
			a.clock.move(-30 * 365 * day)
			sweep()
		}
		a.settle()
		if who, err := a.gate.AdmitClient(t.Context(), comes); err == nil || who.Device != "" {
			t.Errorf("the device that was deleted is back: %+v %v", who, err)
		}
		comes.Leaf = leafFor(t, a.clock, a.factory, "meter-10", comes.Leaf.PublicKey, maker)
		if who, err := a.gate.AdmitClient(t.Context(), comes); revokes && message.ReasonOf(err, 0) != message.KeyRevoked {
			t.Errorf("the key that was revoked is certified as %+v, %v", who, err)
		}
		a.stop()
	}
}

// What has ended is forgotten, a grace later; a clock that leaps is believed after a day, and not by a restart.
func TestClockIsBelievedOnceItHasProvenItself(t *testing.T) {
	a := newArena(t)
	a.sweepProven()
	a.must(a.do("POST", "/api/v1/devices/d-1/revoke", Change{Reason: "stolen"}, nil), 200)
	a.must(a.do("DELETE", "/api/v1/devices/d-1", nil, nil), 204)
	a.settle()
	if a.kept() != 2 {
		t.Fatalf("%d entries, want the certificate and its key", a.kept())
	}
	up := time.Duration(0)
	a.s.uptime = func() time.Duration { return up }
	sweep := func(want int, when string) {
		t.Helper()
		if err := a.s.sweep(t.Context(), a.s.open.Load()); err != nil {
			t.Fatal(err)
		}
		a.settle()
		if n := a.kept(); n != want {
			t.Errorf("%s: %d entries, want %d", when, n, want)
		}
	}
	end := certOf(t, a.device).NotAfter
	a.clock.move(end.Sub(a.clock.Now()) + sweepGrace - time.Hour)
	sweep(2, "within the grace")
	up += clockProof
	sweep(2, "within the grace, and believed")
	a.clock.move(2 * time.Hour)
	sweep(1, "beyond the grace, and the clock went on")
	a.clock.move(revokedKeyKept)
	sweep(1, "the clock leapt")
	up += clockProof - time.Second
	sweep(1, "not yet believed")
	if !strings.Contains(a.logs.String(), "far ahead") {
		t.Error("nobody is told")
	}
	up += time.Second
	sweep(0, "a day later")
}

// A list that was made while the clock was ahead is not served once it is right, and its number does not go back.
func TestRevocationListOfTheFutureIsNotServed(t *testing.T) {
	a := startAPI(t)
	a.clock.move(3 * 365 * day)
	ahead := a.crl("")
	a.clock.move(-3 * 365 * day)
	now := a.crl("")
	if now.ThisUpdate.After(a.clock.Now()) || !now.NextUpdate.Before(a.clock.Now().Add(2*day)) {
		t.Errorf("it is %s, and the list is of %s until %s", a.clock.Now(), now.ThisUpdate, now.NextUpdate)
	}
	if now.Number.Cmp(ahead.Number) <= 0 {
		t.Errorf("number %s after %s", now.Number, ahead.Number)
	}
}

// Where the CA's directory cannot be written the last list is served, until it ends.
func TestLastRevocationListIsServedWhereNoneCanBeMade(t *testing.T) {
	a := startAPI(t)
	a.do("POST", "/api/v1/devices", Enrolment{ID: "d-1"}, nil)
	first := a.crl("")
	away := a.dir + "-away"
	if err := os.Rename(a.dir, away); err != nil {
		t.Fatal(err)
	}
	a.do("POST", "/api/v1/devices/d-1/revoke", nil, nil)
	for range 2 {
		if a.crl("").Number.Cmp(first.Number) != 0 {
			t.Error("another list, of which the number is on no disk")
		}
	}
	if n := strings.Count(a.logs.String(), "no revocation list can be made"); n != 1 {
		t.Errorf("told %d times", n)
	}
	a.clock.move(authority.CRLValidity)
	if got := a.do("GET", "/api/v1/ca/crl", nil, nil); got < 500 {
		t.Errorf("a list that has ended is served: %d", got)
	}
	a.clock.move(2*crlRetry - authority.CRLValidity)
	if err := os.Rename(away, a.dir); err != nil {
		t.Fatal(err)
	}
	if l := a.crl(""); l.Number.Cmp(first.Number) <= 0 || len(l.RevokedCertificateEntries) != 1 {
		t.Errorf("once it can be written again: number %s, %d entries", l.Number, len(l.RevokedCertificateEntries))
	}
}

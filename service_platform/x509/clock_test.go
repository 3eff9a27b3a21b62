package x509

import (
	stdx509 "crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
	"github.com/naru-platform/naru/message"
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

package x509

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/bus"
)

// What requests that were cut off have left of whose a certificate is goes some time after; nothing goes that a device has, or
// that a request is about to register.
func TestWhoseACertificateIsIsForgottenWithoutTheCertificate(t *testing.T) {
	a := newArena(t)
	o := a.s.open.Load()
	leave := func(digit, device string, at time.Time) (fingerprint string) {
		t.Helper()
		fingerprint = strings.Repeat(digit, 64)
		raw, err := json.Marshal(certOwner{Device: device, At: at})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.registry.table.Put(t.Context(), certKey(fingerprint), raw); err != nil {
			t.Fatal(err)
		}
		return fingerprint
	}
	there := func(fingerprint string) bool {
		t.Helper()
		_, err := o.registry.table.Get(t.Context(), certKey(fingerprint))
		if err != nil && !errors.Is(err, bus.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	start := a.clock.Now()
	ofNobody, ofAnother, again := leave("a", "d-8", start), leave("b", "d-1", start), leave("c", "d-1", start)
	a.clock.move(orphanPatience)
	young := leave("d", "d-8", a.clock.Now())
	// One is asked for again, and is about to be registered.
	taken, err := o.registry.own(t.Context(), "d-1", Certificate{Fingerprint: again, NotAfter: start.Add(day)})
	if err != nil || len(taken.fresh) != 1 {
		t.Fatalf("taken %v, %v", taken, err)
	}
	for range 2 {
		if err := a.s.sweep(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for what, c := range map[string]struct {
		fingerprint string
		stays       bool
	}{"of nobody": {ofNobody, false}, "of a device that has others": {ofAnother, false}, "asked for again": {again, true}, "young": {young, true}, "a device's": {a.device.Fingerprint, true}} {
		if there(c.fingerprint) != c.stays {
			t.Errorf("%s: there %v, want %v", what, !c.stays, c.stays)
		}
	}
	a.clock.move(ownersSweptEvery)
	if err := a.s.sweep(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if there(young) || there(again) || !there(a.device.Fingerprint) {
		t.Error("a day later: it is not swept again, or what is good was")
	}
}

// A device's own certificate that is registered again is not written anew, and its answer stays for who asks again.
func TestTakingACertificateAgainKeepsItsAnswer(t *testing.T) {
	h := newHouse(t)
	c := Certificate{Fingerprint: strings.Repeat("a", 64), NotAfter: h.clock.Now().Add(day), der: []byte("der")}
	first, err := h.reg.own(t.Context(), "d-1", c)
	if err != nil {
		t.Fatal(err)
	}
	c.der = nil
	second, err := h.reg.own(t.Context(), "d-1", c)
	if err != nil || second.fresh[c.Fingerprint] == first.fresh[c.Fingerprint] {
		t.Errorf("taken again: %v, %v", second, err)
	}
	if der, err := h.reg.issued(t.Context(), "d-1", c.Fingerprint); err != nil || string(der) != "der" {
		t.Errorf("its answer is %q, %v", der, err)
	}
	if _, _, err := h.reg.Add(t.Context(), Registration{ID: "d-1", Certificate: &c}); err != nil {
		t.Fatal(err)
	}
	if third, err := h.reg.own(t.Context(), "d-1", c); err != nil || len(third.fresh) > 0 {
		t.Errorf("once it is registered: %v, %v", third, err)
	}
}

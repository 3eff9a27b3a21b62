package x509

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func word(s string) *string { return &s }

// full is a house where device d-1 is as large as people may make it.
func full(t *testing.T) *house {
	t.Helper()
	h := newHouse(t)
	var certs []Certificate
	for i := range certsMax {
		sum := fmt.Sprintf("%064x", i+1)
		certs = append(certs, Certificate{Fingerprint: sum, Serial: sum[:40], Key: sum, NotBefore: h.clock.Now(), NotAfter: h.clock.Now().Add(365 * day)})
	}
	if _, _, err := h.reg.Import(t.Context(), Registration{ID: "d-1"}, certs, false); err != nil {
		t.Fatal(err)
	}
	for n, step := 0, recordMax; step > 0; step /= 2 { // to the last byte
		if _, err := h.reg.Describe(t.Context(), "d-1", Patch{Attributes: map[string]*string{"a": word(strings.Repeat("x", n+step))}}); err == nil {
			n += step
		} else if !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
		facts, err := h.reg.unsaid(t.Context(), "d-1")
		if err != nil {
			t.Fatal(err)
		}
		if err := h.reg.settle(t.Context(), "d-1", facts); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// However large a device is, it is kept out when somebody says so, with reasons of the longest.
func TestFullDeviceIsWithdrawnAndDisabled(t *testing.T) {
	h := full(t)
	if _, err := h.reg.Describe(t.Context(), "d-1", Patch{Groups: &[]string{strings.Repeat("g", textMax)}}); !errors.Is(err, ErrRefused) {
		t.Fatalf("it is not full: %v", err)
	}
	longest := strings.Repeat("<", textMax) // in JSON it is six times as long
	if _, revoked, err := h.reg.Revoke(t.Context(), "d-1", "", longest, longest); err != nil || len(revoked) != certsMax {
		t.Fatalf("%d certificates are revoked: %v", len(revoked), err)
	}
	if _, changed, err := h.reg.Disable(t.Context(), "d-1", true, longest, longest); err != nil || !changed {
		t.Fatal(err)
	}
	facts, err := h.reg.unsaid(t.Context(), "d-1")
	if err != nil || len(facts) < certsMax+1 {
		t.Fatalf("%d facts are to be said: %v", len(facts), err)
	}
	if err := h.reg.settle(t.Context(), "d-1", facts); err != nil {
		t.Error(err)
	}
	if _, err := h.reg.Describe(t.Context(), "d-1", Patch{Attributes: map[string]*string{"a": nil}}); err != nil {
		t.Errorf("it cannot be made smaller: %v", err)
	}
	if _, err := h.reg.Remove(t.Context(), "d-1", "mina"); err != nil {
		t.Error(err)
	}
}

// While the bus takes no facts, changes end at some number, but not those that keep a device out.
func TestDeviceIsKeptOutWhileNothingCanBeSaid(t *testing.T) {
	h := newHouse(t)
	h.enrol("d-1")
	var err error
	for i := 0; err == nil; i++ {
		if i > 2*unsaidMax {
			t.Fatal("facts gather without end")
		}
		_, err = h.reg.Describe(t.Context(), "d-1", Patch{Attributes: map[string]*string{"a": word(fmt.Sprint(i))}})
	}
	if !errors.Is(err, ErrRefused) {
		t.Fatal(err)
	}
	if _, revoked, err := h.reg.Revoke(t.Context(), "d-1", "", "mina", "stolen"); err != nil || len(revoked) != 1 {
		t.Errorf("revoke: %v", err)
	}
	if _, _, err := h.reg.Disable(t.Context(), "d-1", true, "mina", "stolen"); err != nil {
		t.Errorf("disable: %v", err)
	}
	if _, _, err := h.reg.Disable(t.Context(), "d-1", false, "mina", ""); !errors.Is(err, ErrRefused) {
		t.Errorf("enable: %v", err)
	}
	if _, err := h.reg.Remove(t.Context(), "d-1", "mina"); err != nil {
		t.Errorf("delete: %v", err)
	}
}

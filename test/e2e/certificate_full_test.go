//go:build long

package e2e

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509"
)

// TestCertificatesOutliveAFullDisk fills the platform's disk to the last byte. A device that is registered is not refused
// for that; a command for a new one does what it says, or fails, and given again when there is space it has its device, with the
// key that it made; and a rollover was done whole or not at all. A kill then takes nothing of it back.
func TestCertificatesOutliveAFullDisk(t *testing.T) {
	c, ok := newCramped(t, newPlatform(t))
	if !ok {
		return
	}
	c.await("at the start", false)
	before := credentials(t, c.add("before"))
	type status struct {
		Root    x509.CACert
		Trusted []x509.CACert
	}
	var was, is status
	c.json(&was, "ca", "status")
	stop, filled := make(chan struct{}), make(chan error, 1)
	go func() { filled <- c.brim(stop) }()
	var st space
	for until := time.Now().Add(time.Minute); ; {
		st = space{}
		if c.json(&st, "status"); !st.Bus.Up {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("the disk does not get full: %+v", st)
		}
	}
	// It gets in, or no answer while the broker's own store waits for space; its certificate is good in any case.
	if v, answer, err := tryVisit(t.Context(), c.mqtt, before, "before"); err == nil {
		_ = v.Close()
		if strings.Contains(answer.Properties.ReasonString, "cert_") {
			t.Errorf("a device that is registered is refused while the disk is full: %s %s", answer.Code, answer.Properties.ReasonString)
		}
	}
	began := time.Now()
	out := filepath.Join(t.TempDir(), "d-1")
	text, code := c.naru("device", "add", "d-1", "--out", out)
	t.Logf("device add, after %s: exit %d: %s", time.Since(began), code, text)
	added := code == 0 // there may be room for it in a file that was longer than it had to be
	text, code = c.naru("ca", "rollover")
	t.Logf("ca rollover: exit %d: %s", code, text)
	key, err := os.ReadFile(filepath.Join(out, "device.key"))
	if err != nil {
		t.Error(err)
	}
	close(stop)
	if err := <-filled; err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(c.filler); err != nil {
		t.Fatal(err)
	}
	c.await("with space again", false)
	if !added {
		c.ok("device", "add", "d-1", "--out", out)
	}
	if again, err := os.ReadFile(filepath.Join(out, "device.key")); err != nil || string(again) != string(key) {
		t.Errorf("its key is another one: %v", err)
	}
	if why := c.comes("d-1", credentials(t, out)); why != "" {
		t.Errorf("it is refused: %s", why)
	}
	if why := c.comes("before", before); why != "" {
		t.Errorf("a device of before is refused: %s", why)
	}
	c.json(&is, "ca", "status")
	if rolled := is.Root.Fingerprint != was.Root.Fingerprint; len(is.Trusted) != map[bool]int{true: 2, false: 1}[rolled] {
		t.Errorf("the root was changed: %v, and %d are trusted", rolled, len(is.Trusted))
	}
	c.kill()
	c.start()
	var after status
	if c.json(&after, "ca", "status"); after.Root != is.Root || len(after.Trusted) != len(is.Trusted) {
		t.Errorf("after a restart the CA is another: %+v, it was %+v", after, is)
	}
	for _, when := range []string{"kill", "rollover"} {
		for id, conf := range map[string]*tls.Config{"d-1": credentials(t, out), "before": before} {
			if why := c.comes(id, conf); why != "" {
				t.Errorf("%s is refused after a %s: %s", id, when, why)
			}
		}
		c.ok("ca", "rollover")
	}
}

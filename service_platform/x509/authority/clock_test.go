package authority

import (
	"bytes"
	stdx509 "crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A clock that was ahead for a while leaves nothing behind that shuts anybody out once it is right again.
func TestClockThatWasAheadShutsNobodyOut(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, 61 * day, 4 * 365 * day, 10 * 365 * day} {
		for _, restart := range []bool{false, true} {
			for _, rootKey := range []bool{true, false} {
				dir, c := t.TempDir(), newClock()
				a := openCA(t, dir, c)
				first := a.Bundle().Issuing[0]
				c.move(jump)
				if err := a.Renew(unpublished); err != nil {
					t.Fatal(err)
				}
				if !rootKey {
					if err := a.RemoveRoot(Fingerprint(a.Bundle().Roots[0].Raw), true); err != nil {
						t.Fatal(err)
					}
				}
				c.move(-jump)
				var published Bundle
				if restart {
					a = openCA(t, dir, c)
				} else if err := a.Renew(func(b Bundle) error { published = b; return nil }); err != nil {
					t.Fatal(err)
				}
				if !a.Bundle().Issuing[0].Equal(first) {
					t.Errorf("ahead %s, restart %v: another issuing CA than the one of before, which is valid", jump, restart)
				}
				if jump > 3*365*day && !restart && !published.Issuing[0].Equal(first) {
					t.Errorf("ahead %s: it signs, and was not published", jump)
				}
				if err := serverTrustedBy(t, dir, c, a.Bundle().Roots[0]); err != nil {
					t.Errorf("ahead %s, restart %v, root's key %v: server: %v", jump, restart, rootKey, err)
				}
				roots, issuing := pools(a.Bundle())
				if _, err := issue(t, a, Request{Device: "d"}).Certificate.Verify(stdx509.VerifyOptions{Roots: roots, Intermediates: issuing, CurrentTime: c.Now(),
					KeyUsages: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth}}); err != nil {
					t.Errorf("ahead %s, restart %v, root's key %v: device: %v", jump, restart, rootKey, err)
				}
				if !a.serves() {
					t.Error("it says that it does not serve")
				}
				after := a.Bundle().PEM()
				if err := a.Renew(unpublished); err != nil || !bytes.Equal(a.Bundle().PEM(), after) {
					t.Errorf("changed once more: %v", err)
				}
			}
		}
	}
}

// Where none of before is left, a new issuing CA is made; where that cannot be, the error names the clock.
func TestIssuingCAOfTheFutureIsMadeAnew(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	root := Fingerprint(a.Bundle().Roots[0].Raw)
	c.move(4 * 365 * day)
	if err := a.Renew(unpublished); err != nil {
		t.Fatal(err)
	}
	retired, err := filepath.Glob(filepath.Join(dir, retiredDir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range retired {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	key, err := os.ReadFile(filepath.Join(dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.RemoveRoot(root, true); err != nil {
		t.Fatal(err)
	}
	c.move(-4 * 365 * day)
	if _, err := Open(dir, Options{Now: c.Now}); err == nil || !strings.Contains(err.Error(), "clock") || !strings.Contains(err.Error(), "restore-root-key") {
		t.Fatalf("without the root's key: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	a = openCA(t, dir, c)
	if !a.valid(a.Bundle().Issuing[0]) {
		t.Errorf("the issuing CA begins %s", a.Bundle().Issuing[0].NotBefore)
	}
	if err := serverTrustedBy(t, dir, c, a.Bundle().Roots[0]); err != nil {
		t.Error(err)
	}
}

// One that was made while the clock was ahead, and could not be published, is not changed over to.
func TestIssuingCAOfTheFutureThatWaitsIsDropped(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	c.move(4 * 365 * day)
	if err := a.Renew(unpublished); err != nil {
		t.Fatal(err)
	}
	c.move(1250 * day)
	if err := a.Renew(func(Bundle) error { return errors.New("the bus is away") }); err == nil {
		t.Fatal("published")
	}
	c.move(-(1250 + 4*365) * day)
	if err := a.Renew(unpublished); err != nil || !a.valid(a.Bundle().Issuing[0]) {
		t.Errorf("issuing CA begins %s, %v", a.Bundle().Issuing[0].NotBefore, err)
	}
}

// A clock before the root's beginning is told of with the remedy, and changes nothing: it is right again in a while.
func TestClockBeforeTheRootChangesNothing(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	before := openCA(t, dir, c).Bundle().PEM()
	server, err := os.ReadFile(filepath.Join(dir, "server.crt"))
	if err != nil {
		t.Fatal(err)
	}
	c.move(-50 * 365 * day)
	var log bytes.Buffer
	a, err := Open(dir, Options{Now: c.Now, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if is, err := os.ReadFile(filepath.Join(dir, "server.crt")); err != nil || !bytes.Equal(is, server) || !bytes.Equal(a.Bundle().PEM(), before) {
		t.Errorf("something was made by a clock that is wrong; %v", err)
	}
	for _, want := range []string{"level=ERROR", "clock=1976", "certificate=root", "naru ca rollover"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q: %s", want, log.String())
		}
	}
	if a.serves() {
		t.Error("it says that it serves")
	}
	log.Reset()
	c.move(50 * 365 * day)
	if err := a.Renew(unpublished); err != nil || log.Len() > 0 {
		t.Errorf("when the clock is right: %v %s", err, log.String())
	}
}

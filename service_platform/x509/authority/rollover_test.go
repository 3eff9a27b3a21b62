package authority

import (
	"bytes"
	stdx509 "crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// serverTrustedBy verifies the server's certificate with what it shows, by one root.
func serverTrustedBy(t *testing.T, dir string, c *clock, root *stdx509.Certificate) error {
	t.Helper()
	shown, err := readCerts(filepath.Join(dir, "server.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots, others := stdx509.NewCertPool(), stdx509.NewCertPool()
	roots.AddCert(root)
	for _, i := range shown[1:] {
		others.AddCert(i)
	}
	_, err = shown[0].Verify(stdx509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: c.Now(), DNSName: "localhost"})
	return err
}

// unpublished is for a rollover that no door has to hear of.
func unpublished(Bundle) error { return nil }

// However often the root changes, a device that knows only one of those before trusts the server, as long as that is
// trusted; a root between that was retired does not cut an older one off.
func TestServerIsTrustedByEveryTrustedRoot(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	roots := []*stdx509.Certificate{a.Bundle().Roots[0]}
	for range 3 {
		if err := a.Rollover(unpublished); err != nil {
			t.Fatal(err)
		}
		roots = append(roots, a.Bundle().Roots[0])
	}
	trusted := func(when string, want ...bool) {
		t.Helper()
		for i, root := range roots {
			if err := serverTrustedBy(t, dir, c, root); (err == nil) != want[i] {
				t.Errorf("%s: by root %d: %v", when, i, err)
			}
		}
	}
	retire := func(i int) {
		t.Helper()
		if err := a.Retire(Fingerprint(roots[i].Raw)); err != nil {
			t.Fatal(err)
		}
	}
	trusted("after three rollovers", true, true, true, true)
	a = openCA(t, dir, c)
	c.move(serverValidity) // the certificate is another one
	if err := a.Renew(unpublished); err != nil {
		t.Fatal(err)
	}
	trusted("after a restart and a renewal", true, true, true, true)
	retire(1)
	if err := serverTrustedBy(t, dir, c, roots[0]); err != nil {
		t.Errorf("a root between was retired: %v", err)
	}
	retire(0)
	trusted("after the oldest were retired", false, false, true, true)
	if shown, err := readCerts(filepath.Join(dir, "server.crt")); err != nil || len(shown) != 3 {
		t.Errorf("the server shows %d certificates, %v", len(shown), err)
	}
	retire(2)
	trusted("after all before were retired", false, false, false, true)
	if again := openCA(t, dir, c); len(again.crosses) != 0 || len(again.Bundle().Roots) != 1 {
		t.Errorf("a restart knows %d cross-certificates, %d roots", len(again.crosses), len(again.Bundle().Roots))
	}
}

// Nothing is issued by a new CA before every door may know it. Where it cannot be published the one before stays in use,
// and the next try goes on with the CA that was made.
func TestNewCAIsPublishedBeforeItIssues(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	before, away := a.Bundle(), errors.New("the bus is away")
	var made Bundle
	err := a.Rollover(func(b Bundle) error {
		made = b
		if got := issue(t, a, Request{Device: "d"}).Certificate; got.CheckSignatureFrom(before.Issuing[0]) != nil {
			t.Error("the new CA issues before it is published")
		}
		return away
	})
	if !errors.Is(err, away) || !bytes.Equal(a.Bundle().PEM(), before.PEM()) {
		t.Fatalf("%v, and the bundle is another", err)
	}
	if len(made.Roots) != 2 || len(made.Issuing) != 2 || !made.Roots[1].Equal(before.Roots[0]) {
		t.Fatalf("published were %d roots, %d issuing CAs", len(made.Roots), len(made.Issuing))
	}
	if next := Fingerprint(made.Roots[0].Raw); !errors.Is(a.MayRetire(next), ErrRefused) || !errors.Is(a.Retire(next), ErrRefused) {
		t.Error("the root that is the next in use may be retired")
	}
	if err := a.Rollover(func(b Bundle) error {
		if !bytes.Equal(b.PEM(), made.PEM()) {
			t.Error("another CA was made by the second try")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bundle().PEM(), made.PEM()) || !bytes.Equal(openCA(t, dir, c).Bundle().PEM(), made.PEM()) {
		t.Error("what was published is not what is in use")
	}
}

// So it is with an issuing CA that is renewed by itself.
func TestRenewedIssuingCAIsPublishedBeforeItSigns(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	before, away := a.Bundle(), errors.New("the bus is away")
	c.move(4 * 365 * day)
	var made Bundle
	if err := a.Renew(func(b Bundle) error {
		made = b
		if got := issue(t, a, Request{Device: "d"}).Certificate; got.CheckSignatureFrom(before.Issuing[0]) != nil {
			t.Error("the new issuing CA signs before it is published")
		}
		if shown, err := readCerts(filepath.Join(dir, ServerName+".crt")); err != nil || !shown[1].Equal(before.Issuing[0]) {
			t.Error("the server shows what nobody knows yet", err)
		}
		return away
	}); !errors.Is(err, away) || !bytes.Equal(a.Bundle().PEM(), before.PEM()) {
		t.Fatalf("%v, and the bundle is another", err)
	}
	if ends, err := a.ServerEnd(); err != nil || !ends.After(c.Now()) {
		t.Errorf("the server's certificate ends %s, %v: it does not wait for the bus", ends, err)
	}
	if len(made.Roots) != 1 || len(made.Issuing) != 2 || !made.Issuing[1].Equal(before.Issuing[0]) {
		t.Fatalf("published were %d roots, %d issuing CAs", len(made.Roots), len(made.Issuing))
	}
	if err := a.Renew(unpublished); err != nil || !bytes.Equal(a.Bundle().PEM(), made.PEM()) {
		t.Errorf("the next try makes another: %v", err)
	}
	if got := openCA(t, dir, c).Bundle(); !bytes.Equal(got.PEM(), made.PEM()) {
		t.Error("what was published is not what is in use")
	}
}

// An issuing CA that waits does not stand in a rollover's way, which is for the root.
func TestRolloverGoesBeforeARenewalThatWaits(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	c.move(4 * 365 * day)
	if err := a.Renew(func(Bundle) error { return errors.New("the bus is away") }); err == nil {
		t.Fatal("it was changed over to")
	}
	if err := a.Rollover(unpublished); err != nil {
		t.Fatal(err)
	}
	if b := a.Bundle(); len(b.Roots) != 2 || len(b.Issuing) != 2 || b.Issuing[0].CheckSignatureFrom(b.Roots[0]) != nil {
		t.Errorf("%d roots, %d issuing CAs", len(b.Roots), len(b.Issuing))
	}
}

// What cannot be read after the files were changed over leaves the CA of before in use, and is read once it can be.
func TestChangeOverThatCannotBeReadLeavesTheCAInUse(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	before := a.Bundle()
	broken := filepath.Join(dir, retiredDir, "0.crt")
	if err := os.WriteFile(broken, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.Rollover(unpublished); err == nil {
		t.Fatal("a broken file was read")
	}
	if !bytes.Equal(a.Bundle().PEM(), before.PEM()) {
		t.Error("the CA in memory is another")
	}
	issue(t, a, Request{Device: "d"})
	if err := a.Renew(unpublished); err == nil {
		t.Error("renewed on top of files that cannot be read")
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if err := a.Renew(unpublished); err != nil || len(a.Bundle().Roots) != 2 {
		t.Errorf("%d roots, %v", len(a.Bundle().Roots), err)
	}
	for _, root := range a.Bundle().Roots {
		if err := serverTrustedBy(t, dir, c, root); err != nil {
			t.Error(err)
		}
	}
}

// A rollover that was cut off is finished, or was not begun; the devices of before get in either way.
func TestRolloverCutOffAnywhere(t *testing.T) {
	for moved := range 7 {
		t.Run(fmt.Sprint("after ", moved, " moves"), func(t *testing.T) {
			dir, c := t.TempDir(), newClock()
			a := openCA(t, dir, c)
			old, before := issue(t, a, Request{Device: "d"}).Certificate, a.Bundle()
			if err := a.prepareRollover(); err != nil {
				t.Fatal(err)
			}
			files, err := filepath.Glob(filepath.Join(dir, rolloverDir, "*.*"))
			if err != nil || len(files) != 6 {
				t.Fatal(files, err)
			}
			for _, f := range files[:min(moved, len(files))] {
				to := filepath.Join(dir, filepath.Base(f))
				if bytes.HasPrefix([]byte(filepath.Base(f)), []byte("root-")) {
					to = filepath.Join(dir, retiredDir, filepath.Base(f))
				}
				if err := os.Rename(f, to); err != nil {
					t.Fatal(err)
				}
			}
			b := openCA(t, dir, c).Bundle()
			if len(b.Roots) != 2 || len(b.Issuing) != 2 || !b.Roots[1].Equal(before.Roots[0]) {
				t.Fatalf("%d roots, %d issuing CAs", len(b.Roots), len(b.Issuing))
			}
			roots, issuing := pools(b)
			if _, err := old.Verify(stdx509.VerifyOptions{Roots: roots, Intermediates: issuing, CurrentTime: c.Now(),
				KeyUsages: []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth}}); err != nil {
				t.Error(err)
			}
		})
	}
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	if err := a.prepareRollover(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, rolloverDir, rolloverDone)); err != nil {
		t.Fatal(err)
	}
	if b := openCA(t, dir, c).Bundle(); !bytes.Equal(b.PEM(), a.Bundle().PEM()) {
		t.Error("a rollover that was not whole took place")
	}
	if _, err := os.Stat(filepath.Join(dir, rolloverDir)); !errors.Is(err, os.ErrNotExist) {
		t.Error("keys of a rollover that was not whole lie around:", err)
	}
}

// Each revocation list has a higher number than all before it, whatever the clock and restarts do.
func TestRevocationListsAreNumberedUpwards(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	last := new(big.Int)
	next := func(when string) {
		t.Helper()
		der, err := a.RevocationList("", nil)
		if err != nil {
			t.Fatal(err)
		}
		l, err := stdx509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		if l.Number.Cmp(last) <= 0 {
			t.Errorf("%s: number %v after %v", when, l.Number, last)
		}
		last = l.Number
	}
	next("the first")
	next("in the same moment")
	c.move(-30 * day)
	next("after the clock went back")
	a = openCA(t, dir, c)
	next("after a restart")
	if err := a.Rollover(unpublished); err != nil {
		t.Fatal(err)
	}
	next("after a rollover")
	c.move(60 * day)
	next("when the clock is right again")
	if err := os.WriteFile(filepath.Join(dir, listName), []byte("?"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openCA(t, dir, c).RevocationList("", nil); err == nil || !strings.Contains(err.Error(), listName) {
		t.Errorf("a damaged number: %v", err)
	}
}

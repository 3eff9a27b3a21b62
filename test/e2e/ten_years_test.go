//go:build long

package e2e

import (
	"bytes"
	"crypto/rand"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/naru-platform/naru/service_platform/x509"
)

// decade is a fleet and what its devices hold.
type decade struct {
	*platform
	work string // directories of credentials below it
}

func (d *decade) in(what, id string, dirs ...string) {
	d.t.Helper()
	for _, dir := range dirs {
		if why := d.comes(id, credentials(d.t, dir)); why != "" {
			d.t.Fatalf("%s: %s is refused with %s: %s", what, id, filepath.Base(dir), why)
		}
	}
}

func (d *decade) out(what, id, dir, reason string) {
	d.t.Helper()
	if why := d.comes(id, credentials(d.t, dir)); !strings.Contains(why, reason) {
		d.t.Fatalf("%s: %s comes with %s: %q; want %s", what, id, filepath.Base(dir), why, reason)
	}
}

func (d *decade) dir(name string) string { return filepath.Join(d.work, name) }

func (d *decade) show(id string) (dev x509.Device) {
	d.t.Helper()
	d.json(&dev, "device", "show", id)
	return dev
}

// names are the devices that a command lists.
func (d *decade) names(args ...string) (ids []string) {
	d.t.Helper()
	var list []x509.Device
	d.json(&list, args...)
	for _, x := range list {
		ids = append(ids, x.ID)
	}
	return ids
}

// fails wants a command refused with a text.
func (d *decade) fails(text string, args ...string) {
	d.t.Helper()
	if out, code := d.naru(args...); code != 1 || !strings.Contains(out, text) {
		d.t.Fatalf("naru %s: exit %d: %s; want it refused with %q", strings.Join(args, " "), code, out, text)
	}
}

// keep writes a file.
func (d *decade) keep(name, text string) string {
	d.t.Helper()
	file := d.dir(name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return file
}

// TestTenYearsOfADevice goes through all that becomes of a device in ten years by command, with umask 0: whatever these
// commands write that holds a key, its owner alone can read.
func TestTenYearsOfADevice(t *testing.T) {
	was := syscall.Umask(0)
	defer syscall.Umask(was)
	d := &decade{newPlatform(t), t.TempDir()}
	d.start()

	// The first year: made here, or with its key made elsewhere; a command given again destroys nothing.
	first := d.dir("pump-1")
	d.ok("device", "add", "pump-1", "--out", first, "--group", "hall-2", "--attribute", "maker=acme", "--policy", "device")
	d.fails("has a certificate already", "device", "add", "pump-1", "--out", first)
	key := newKey(t)
	der, err := stdx509.CreateCertificateRequest(rand.Reader, &stdx509.CertificateRequest{Subject: pkix.Name{CommonName: "pump-2"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := d.keep("pump-2.csr", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})))
	second := d.dir("pump-2")
	d.ok("device", "add", "pump-2", "--csr", csr, "--out", second)
	if _, err := os.Stat(filepath.Join(second, "device.key")); !os.IsNotExist(err) {
		t.Errorf("a key was made for a device that has its own: %v", err)
	}
	keepPEM(t, filepath.Join(second, "device.key"), key)
	d.in("new", "pump-1", first)
	d.in("new, by its own key", "pump-2", second)
	if x := d.show("pump-1"); !slices.Equal(x.Groups, []string{"hall-2"}) || x.Attributes["maker"] != "acme" || x.Policy != "device" || len(x.Certs) != 1 {
		t.Errorf("registered as %+v", x)
	}
	if got := d.names("device", "list"); !slices.Equal(got, []string{"pump-1", "pump-2"}) {
		t.Errorf("listed: %q", got)
	}
	if got := d.names("device", "list", "--group", "hall-2", "--state", "active"); !slices.Equal(got, []string{"pump-1"}) {
		t.Errorf("of hall 2: %q", got)
	}
	d.fails("not registered", "device", "show", "pump-9")

	// The years after: each has its certificate, and the one before is good for a while.
	before := first
	for year := 2; year <= 9; year++ {
		next := d.dir(fmt.Sprint("pump-1-", year))
		d.ok("device", "rotate", "pump-1", "--out", next, "--overlap", "1h")
		d.in(fmt.Sprint("year ", year), "pump-1", before, next)
		before = next
	}
	if x := d.show("pump-1"); len(x.Certs) != 9 || x.Certs[7].EndsAt.IsZero() || !x.Certs[8].EndsAt.IsZero() {
		t.Errorf("in the ninth year it has %+v", x.Certs)
	}
	last := d.dir("pump-1-10")
	d.ok("device", "rotate", "pump-1", "--out", last, "--overlap", "0s")
	d.in("no overlap", "pump-1", last)
	d.out("no overlap", "pump-1", before, "cert_revoked")

	// What ends soon is seen.
	third := d.dir("pump-3")
	d.ok("device", "add", "pump-3", "--out", third, "--validity", "20d")
	if got := d.names("device", "expiring", "--within", "30d"); !slices.Equal(got, []string{"pump-3"}) {
		t.Errorf("ending within 30 days: %q", got)
	}
	if out, code := d.naru("device", "expiring", "--within", "30d"); code != 2 {
		t.Errorf("something ends soon, and the exit code is %d: %s", code, out)
	}
	d.ok("device", "expiring", "--within", "10d")

	// Switched off, and on again; and why it was out.
	d.ok("device", "disable", "pump-1", "--reason", "it floods hall 2")
	d.out("switched off", "pump-1", last, "device_disabled")
	var why because
	if code := d.json(&why, "why", "device", "pump-1"); code != 2 || why.Reason != "device_disabled" || !strings.Contains(why.Cause, "it floods hall 2") {
		t.Errorf("why, exit %d: %+v", code, why)
	}
	d.ok("device", "enable", "pump-1")
	d.in("switched on", "pump-1", last)

	// Stolen, and back with another certificate.
	d.ok("device", "revoke", "pump-2", "--reason", "stolen")
	d.out("stolen", "pump-2", second, "cert_revoked")
	found := d.dir("pump-2-found")
	d.ok("device", "rotate", "pump-2", "--out", found)
	d.in("found", "pump-2", found)
	d.out("found", "pump-2", second, "cert_revoked")

	d.rootTravels(last, third)
	d.fleetMoves()
	d.recorderOutlives()

	// The end.
	d.ok("device", "delete", "pump-1")
	d.out("deleted", "pump-1", d.dir("pump-1-new-root"), "cert_unregistered")
	d.fails("not registered", "device", "show", "pump-1")
	if got := d.names("device", "list"); !slices.Equal(got, []string{"pump-2", "pump-3"}) {
		t.Errorf("listed at the end: %q", got)
	}
	d.keysAreTheirOwners(14)
}

// rootTravels has the root's key taken away and brought back, and the CA rolled over with both roots trusted.
func (d *decade) rootTravels(last, third string) {
	d.t.Helper()
	type status struct {
		Root, Issuing x509.CACert
		RootKey       bool `json:"root_key"`
		Trusted       []x509.CACert
	}
	const secret, wrong = "kept in a safe for ten years", "kept in another safe"
	good, bad := d.keep("passphrase", secret+"\n"), d.keep("wrong", wrong)
	safe := d.dir("safe")
	var st status
	d.json(&st, "ca", "status")
	old := st.Root.Fingerprint
	d.ok("ca", "export-root", "--out", safe, "--passphrase-file", good)
	d.fails("already", "ca", "export-root", "--out", safe, "--passphrase-file", good)
	d.ok("ca", "remove-root-key", old)
	if d.json(&st, "ca", "status"); st.RootKey {
		d.t.Error("the root's key is still here")
	}
	if list, err := filepath.Glob(filepath.Join(d.data, "service_platform.x509", "root.key")); err != nil || len(list) > 0 {
		d.t.Errorf("the root's key is still here: %v, %v", list, err)
	}
	d.fails("root", "ca", "rollover")
	d.ok("device", "rotate", "pump-3", "--out", d.dir("pump-3-2")) // it goes on issuing
	d.in("without the root's key", "pump-3", third, d.dir("pump-3-2"))
	d.fails("passphrase", "ca", "restore-root-key", filepath.Join(safe, "root.key"), "--passphrase-file", bad)
	d.ok("ca", "restore-root-key", filepath.Join(safe, "root.key"), "--passphrase-file", good)

	d.ok("ca", "rollover")
	if d.json(&st, "ca", "status"); st.Root.Fingerprint == old || len(st.Trusted) != 2 {
		d.t.Errorf("after the rollover: %+v", st)
	}
	fresh := d.dir("pump-1-new-root")
	d.ok("device", "rotate", "pump-1", "--out", fresh)
	d.in("both roots are trusted", "pump-1", last, fresh) // each with the ca.crt of its time
	d.in("both roots are trusted", "pump-3", third)
	d.ok("device", "rotate", "pump-3", "--out", d.dir("pump-3-new-root"))
	d.ok("device", "rotate", "pump-2", "--out", d.dir("pump-2-new-root"))
	d.fails("devices would be shut out", "ca", "retire", old)
	d.ok("ca", "retire", old, "--yes")
	d.out("its root is retired", "pump-1", last, "cert_unknown_ca")
	d.in("its root is retired", "pump-1", fresh)
	d.in("its root is retired", "pump-3", d.dir("pump-3-new-root"))
	for _, s := range []string{secret, wrong} {
		if strings.Contains(d.platform.out.String(), s) {
			d.t.Error("a passphrase was logged")
		}
	}
}

// fleetMoves writes the fleet to files of both kinds and registers it on another platform, with certificates of that one.
func (d *decade) fleetMoves() {
	d.t.Helper()
	d.ok("device", "disable", "pump-3")
	for _, format := range []string{"jsonl", "csv"} {
		file := d.dir("fleet." + format)
		d.ok("device", "export", "--format", format, "--out", file)
		other := &decade{newPlatform(d.t), d.work}
		other.start()
		keys := d.dir("keys-" + format)
		if out, code := other.naru("device", "import", file); code != 0 {
			d.t.Fatalf("import: %d %s", code, out)
		}
		for _, id := range []string{"pump-1", "pump-2", "pump-3"} {
			a, b := d.show(id), other.show(id)
			if len(a.Certs) != len(b.Certs) || !slices.Equal(a.Groups, b.Groups) || a.Policy != b.Policy || a.Disabled != b.Disabled || a.Attributes["maker"] != b.Attributes["maker"] {
				d.t.Errorf("%s by %s: %+v became %+v", id, format, a, b)
			}
		}
		d.fails("1 lines were refused", "device", "import", d.keep("bad-"+format+".csv", "id\nbad id\n"))
		other.ok("device", "enable", "pump-3")
		list := d.keep("new-"+format+".csv", "id,groups\npump-3,\npump-4,hall-3\n")
		if out := other.ok("device", "import", list, "--issue", keys, "-o", "json"); !strings.Contains(out, `"left_alone":1`) { // pump-3 has one, of a CA that is not trusted here
			d.t.Errorf("by %s: %s", format, out)
		}
		for range 2 { // a command that was cut off is given again
			other.ok("device", "import", list, "--issue", keys, "--another")
		}
		if x, was := other.show("pump-3"), d.show("pump-3"); len(x.Certs) != len(was.Certs)+1 { // and once
			d.t.Errorf("by %s it has %+v", format, x.Certs)
		}
		for _, id := range []string{"pump-3", "pump-4"} {
			other.in("imported", id, filepath.Join(keys, id))
		}
		other.stop()
	}
	d.ok("device", "enable", "pump-3")
}

// recorderOutlives kills the process: what happened at the doors before is told after.
func (d *decade) recorderOutlives() {
	d.t.Helper()
	attempts := func() (list []x509.Attempt) {
		var why struct{ Attempts []x509.Attempt }
		d.json(&why, "why", "device", "pump-2")
		return why.Attempts
	}
	before := attempts()
	if len(before) < 3 {
		d.t.Errorf("%d attempts are recorded", len(before))
	}
	d.kill()
	d.start()
	d.in("after a kill", "pump-2", d.dir("pump-2-new-root"))
	after := attempts()
	for _, a := range before {
		if !slices.ContainsFunc(after, func(b x509.Attempt) bool {
			return a.At.Equal(b.At) && a.Fingerprint == b.Fingerprint && a.Reason == b.Reason
		}) {
			d.t.Errorf("forgotten by the kill: %+v", a)
		}
	}
	d.ok("device", "disable", "pump-3")
	d.out("switched off", "pump-3", d.dir("pump-3-new-root"), "device_disabled")
	d.ok("device", "enable", "pump-3")
	var cas []x509.CAAttempts
	var trusted, retired x509.CAAttempts
	for late := time.Now().Add(time.Minute); ; { // attempts are written a moment later
		code := d.json(&cas, "why", "device", "--by-ca")
		for _, ca := range cas {
			switch ca.Standing {
			case "trusted":
				trusted = ca
			case "retired":
				retired = ca
			}
		}
		if len(cas) == 2 && trusted.Known && trusted.Admitted > 0 && trusted.Reasons["device_disabled"] == 1 && retired.Known && retired.Reasons["cert_unknown_ca"] > 0 && code == 2 {
			break
		}
		if time.Now().After(late) {
			d.t.Fatalf("by CA, exit %d: %+v", code, cas)
		}
	}
	var list []x509.Attempt
	if d.json(&list, "why", "device", "--ca", trusted.CA); len(list) == 0 || list[0].CA != trusted.CA {
		d.t.Errorf("with that CA's certificates came %+v", list)
	}
	if d.json(&list, "why", "device", "--address", "127.0.0.1"); len(list) < len(after) {
		d.t.Errorf("from here came %d", len(list))
	}
}

// keysAreTheirOwners looks through all that was written, the platform's own among it.
func (d *decade) keysAreTheirOwners(least int) {
	d.t.Helper()
	keys := 0
	for _, root := range []string{d.work, d.data} {
		err := filepath.WalkDir(root, func(name string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			raw, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			secret := bytes.Contains(raw, []byte("PRIVATE KEY-----")) || slices.Contains([]string{"machine.secret", "naru.json", "token", "passphrase"}, e.Name()) ||
				strings.HasPrefix(e.Name(), "fleet.")
			if info, err := e.Info(); secret && (err != nil || info.Mode().Perm() != 0o600) {
				d.t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
			}
			if secret {
				keys++
			}
			return nil
		})
		if err != nil {
			d.t.Fatal(err)
		}
	}
	if keys < least {
		d.t.Errorf("only %d secrets were found", keys)
	}
}

package authority

import (
	"crypto/rand"
	stdx509 "crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/internal/whole"
)

const (
	rolloverDir  = "rollover"
	rolloverDone = "ready" // in rolloverDir: everything is in it, and only has to be moved
	crossName    = "cross.crt"
	exportedName = "root.exported" // the fingerprint of the root whose key was exported
)

// ErrRefused says that the CA's state does not allow what was asked.
var ErrRefused = errors.New("refused")

// ErrRootKey says that the root's key is wanted and is not here.
var ErrRootKey = errors.New("the root's key is not in this directory; put it back with `naru ca restore-root-key`")

// Rollover makes a new root and a new issuing CA, which issue from now on; every root of before stays trusted. The root in
// use signs the new one once more (a cross-certificate, which the server shows beside its own and those of rollovers
// before), so that devices that know only an older root go on trusting the server until they have fetched the new one.
//
// publish is given the bundle with the new CA in it before anything is issued by that, so that no door refuses what it
// does not know yet. Where it fails nothing was changed over; the CA that was made is kept, and the next Rollover goes on
// with it.
//
// Cut off at any moment, the next Open finishes it or finds nothing of it. The bundle must be published then too.
func (a *Authority) Rollover(publish func(Bundle) error) error {
	a.rolling.Lock()
	defer a.rolling.Unlock()
	return a.changeOver(a.prepareRollover, publish)
}

// changeOver publishes what prepare makes, and then has it issue. The caller holds rolling.
func (a *Authority) changeOver(prepare func() error, publish func(Bundle) error) error {
	next, err := a.prepared(prepare)
	if err != nil {
		return err
	}
	if err := publish(next); err != nil {
		return fmt.Errorf("the new CA is made and not in use yet, since it could not be published; it goes on with the next try: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.behind = true
	return a.catchUp()
}

// prepared makes the new CA, or finds what a try before has made, and gives the bundle with it.
func (a *Authority) prepared(prepare func() error) (b Bundle, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.catchUp(); err != nil {
		return b, err
	}
	if err := prepare(); err != nil {
		return b, fmt.Errorf("make the new CA: %w", err)
	}
	b = a.bundle()
	for _, n := range []struct {
		name string
		into *[]*stdx509.Certificate
	}{{RootName, &b.Roots}, {IssuingName, &b.Issuing}} {
		certs, err := readCerts(filepath.Join(a.path(rolloverDir), n.name+".crt"))
		if err != nil {
			return b, fmt.Errorf("read the new CA: %s.crt: %w", n.name, err)
		}
		if len(certs) > 0 { // below the root of before there is no new one
			*n.into = append(certs[:1:1], *n.into...)
		}
	}
	return b, nil
}

// waits says whether a whole new CA waits to be changed over to; with a new root, where that is wanted.
func (a *Authority) waits(root bool) (bool, error) {
	wanted := []string{rolloverDone}
	if root {
		wanted = append(wanted, RootName+".crt")
	}
	for _, name := range wanted {
		switch _, err := os.Stat(filepath.Join(a.path(rolloverDir), name)); {
		case errors.Is(err, os.ErrNotExist):
			return false, nil
		case err != nil:
			return false, err
		}
	}
	return true, nil
}

// catchUp has memory hold what the files hold, once a change-over has begun. What cannot be read leaves the CA of before
// in use, and is tried again before anything else is changed.
func (a *Authority) catchUp() error {
	if !a.behind {
		return nil
	}
	if err := a.finishRollover(); err != nil {
		return fmt.Errorf("change over to the new CA: %w", err)
	}
	next, err := a.load()
	if err != nil {
		return fmt.Errorf("change over to the new CA: %w", err)
	}
	a.held, a.behind = next, false
	return a.renewServer()
}

// prepareRollover makes a new root, and an issuing CA below it, unless those wait already.
func (a *Authority) prepareRollover() error {
	if waits, err := a.waits(true); waits || err != nil {
		return err
	}
	if a.root.key == nil {
		return ErrRootKey
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	root, err := a.certify(RootName, key, rootValidity, -1, pair{})
	if err != nil {
		return err
	}
	// A root of before this was possible lets one CA stand below it only: those who know it alone must fetch the new one.
	var crosses []*stdx509.Certificate
	if a.root.cert.MaxPathLen < 0 {
		cross, err := a.crossSign(root)
		if err != nil {
			return fmt.Errorf("sign the cross-certificate: %w", err)
		}
		crosses = append([]*stdx509.Certificate{cross}, a.crosses...) // the older ones lead on from there
	}
	return a.lay(pair{root, key}, func(dir string) error {
		err := errors.Join(
			a.keys.write(filepath.Join(dir, RootName+".key"), key),
			whole.Write(filepath.Join(dir, RootName+".crt"), CertPEM(root), 0o644),
			whole.Write(filepath.Join(dir, fmt.Sprintf("root-%x.crt", a.root.cert.SerialNumber)), CertPEM(a.root.cert), 0o644),
		)
		if err == nil && len(crosses) > 0 {
			err = whole.Write(filepath.Join(dir, crossName), CertPEM(crosses...), 0o644)
		}
		return err
	})
}

// prepareIssuing makes a new issuing CA below the root in use, unless one waits already, below that or a new one. One that
// begins in the future is followed by one that it took over from, if that is good for a while, or where no other can be made.
func (a *Authority) prepareIssuing() error {
	if waits, err := a.issuingWaits(); waits || err != nil {
		return err
	}
	none := func(string) error { return nil }
	if a.early(a.use.cert) {
		for _, p := range a.old {
			if p.key != nil && p.key.PublicKey.Equal(p.cert.PublicKey) && a.valid(p.cert) && (a.root.key == nil || !a.due(p.cert)) && p.cert.CheckSignatureFrom(a.root.cert) == nil {
				return a.layPair(p, none)
			}
		}
	}
	if a.root.key == nil {
		why := "ends " + a.use.cert.NotAfter.Format(time.DateOnly)
		if a.early(a.use.cert) {
			why = fmt.Sprintf("begins %s, and it is %s by this machine's clock: if that is right, the CA", a.use.cert.NotBefore.Format(time.RFC3339), a.o.Now().UTC().Format(time.RFC3339))
		} else {
			why += " and"
		}
		return fmt.Errorf("the issuing CA %s must be renewed; put root.key back into %s for one start, or with `naru ca restore-root-key`", why, a.dir)
	}
	return a.lay(a.root, none)
}

// issuingWaits says whether an issuing CA waits to be changed over to. One that was made while the clock was ahead does
// not, unless a new root waits with it, which somebody asked for.
func (a *Authority) issuingWaits() (bool, error) {
	waits, err := a.waits(false)
	if !waits || err != nil {
		return false, err
	}
	if root, err := a.waits(true); root || err != nil {
		return root, err
	}
	certs, err := readCerts(filepath.Join(a.path(rolloverDir), IssuingName+".crt"))
	return err == nil && (len(certs) == 0 || !a.early(certs[0])), err
}

// lay makes a new issuing CA and lays it as layPair does.
func (a *Authority) lay(root pair, more func(dir string) error) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	cert, err := a.certify(IssuingName, key, issuingValidity, 0, root)
	if err != nil {
		return err
	}
	return a.layPair(pair{cert, key}, more)
}

// layPair writes an issuing CA, and what more there is, into a directory of its own, and says at last that all is whole. The
// one in use is kept before that: what is whole may be changed over to by the next start.
func (a *Authority) layPair(p pair, more func(dir string) error) error {
	dir := a.path(rolloverDir)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := errors.Join(
		a.keys.write(filepath.Join(dir, IssuingName+".key"), p.key),
		whole.Write(filepath.Join(dir, IssuingName+".crt"), CertPEM(p.cert), 0o644),
		more(dir),
		a.retire(a.use),
	); err != nil {
		return err
	}
	return whole.Write(filepath.Join(dir, rolloverDone), nil, 0o600)
}

// crossSign signs the new root's certificate with the old root's key: same name, same key, another issuer.
func (a *Authority) crossSign(root *stdx509.Certificate) (*stdx509.Certificate, error) {
	cross := *root
	cross.AuthorityKeyId = nil // the old root's is put there
	if cross.NotAfter.After(a.root.cert.NotAfter) {
		cross.NotAfter = a.root.cert.NotAfter
	}
	der, err := stdx509.CreateCertificate(rand.Reader, &cross, a.root.cert, root.PublicKey, a.root.key)
	if err != nil {
		return nil, err
	}
	return stdx509.ParseCertificate(der)
}

// finishRollover moves a whole new CA to its place, and removes a half one.
func (a *Authority) finishRollover() error {
	dir := a.path(rolloverDir)
	if _, err := os.Stat(filepath.Join(dir, rolloverDone)); errors.Is(err, os.ErrNotExist) {
		return os.RemoveAll(dir)
	} else if err != nil {
		return err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		to := a.path(f.Name())
		switch {
		case f.Name() == rolloverDone, strings.HasPrefix(f.Name(), "."):
			continue
		case strings.HasPrefix(f.Name(), RootName+"-"):
			to = a.path(filepath.Join(retiredDir, f.Name()))
		}
		if err := os.Rename(filepath.Join(dir, f.Name()), to); err != nil {
			return err
		}
	}
	if err := errors.Join(whole.Sync(a.dir), whole.Sync(a.path(retiredDir)), whole.Sync(dir)); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// ExportRoot gives the root's certificate and its key, encrypted under the passphrase as key files are here.
func (a *Authority) ExportRoot(passphrase string) (cert, key []byte, err error) {
	if len(passphrase) < passphraseMin {
		return nil, nil, fmt.Errorf("%w: a passphrase of %d characters or more is wanted for the exported key", ErrRefused, passphraseMin)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.root.key == nil {
		return nil, nil, fmt.Errorf("%w: it was removed", ErrRootKey)
	}
	if key, err = sealKey(a.root.key, []byte(passphrase), passphraseCost); err != nil {
		return nil, nil, err
	}
	if err := a.markExported(); err != nil {
		return nil, nil, err
	}
	return CertPEM(a.root.cert), key, nil
}

// markExported remembers, over restarts, that somebody has the key of the root in use.
func (a *Authority) markExported() error {
	return whole.Write(a.path(exportedName), []byte(Fingerprint(a.root.cert.Raw)+"\n"), 0o644)
}

// RootExported says whether the key of the root in use was ever exported. A mark that cannot be read counts as none.
func (a *Authority) RootExported() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.rootExported()
}

func (a *Authority) rootExported() bool {
	raw, err := os.ReadFile(a.path(exportedName))
	return err == nil && strings.TrimSpace(string(raw)) == Fingerprint(a.root.cert.Raw)
}

// RemoveRoot forgets the root's key, in memory and on disk. The fingerprint is the root certificate's, so that nobody
// removes another than he means. The CA goes on issuing; a new issuing CA, and a rollover, want the key back. A key that was
// never exported could not come back, and is removed only where forGood says so.
func (a *Authority) RemoveRoot(fingerprint string, forGood bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.catchUp(); err != nil {
		return err
	}
	if is := Fingerprint(a.root.cert.Raw); fingerprint != is {
		return fmt.Errorf("%w: the root's fingerprint is %s", ErrRefused, is)
	}
	if a.root.key != nil && !forGood && !a.rootExported() {
		return fmt.Errorf("%w: the root's key was never exported, and without it no rollover is possible any more; naru ca export-root first", ErrRefused)
	}
	if err := os.Remove(a.path(RootName + ".key")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the root's key: %w", err)
	}
	a.root.key = nil
	return whole.Sync(a.dir)
}

// RestoreRoot puts the root's key back: what ExportRoot gave, and its passphrase.
func (a *Authority) RestoreRoot(key []byte, passphrase string) error {
	k, err := UnsealKey(key, []byte(passphrase))
	if errors.Is(err, errSecret) {
		return fmt.Errorf("%w: the root's key does not open with this passphrase; it is the one that it was exported with", ErrRefused)
	}
	if err != nil {
		return fmt.Errorf("%w: the root's key: %w", ErrRefused, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.catchUp(); err != nil {
		return err
	}
	if !k.PublicKey.Equal(a.root.cert.PublicKey) {
		return fmt.Errorf("%w: it is not the key of the root %s", ErrRefused, Fingerprint(a.root.cert.Raw))
	}
	if err := a.keys.write(a.path(RootName+".key"), k); err != nil {
		return err
	}
	a.root.key = k
	return a.markExported() // by a version that did not remember it, perhaps
}

// RootKey says whether the root's key is here.
func (a *Authority) RootKey() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.root.key != nil
}

// MayRetire says whether Retire would refuse a root, before it is unpublished.
func (a *Authority) MayRetire(fingerprint string) error {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.mayRetire(fingerprint)
}

func (a *Authority) mayRetire(fingerprint string) error {
	if fingerprint == Fingerprint(a.root.cert.Raw) {
		return fmt.Errorf("%w: %s is the root in use; roll over first", ErrRefused, fingerprint)
	}
	if waits, err := a.waits(true); !waits || err != nil {
		return err
	}
	next, err := readCerts(filepath.Join(a.path(rolloverDir), RootName+".crt"))
	if err != nil {
		return fmt.Errorf("read the new CA of a rollover that has not ended: %w", err)
	}
	if slices.ContainsFunc(next, func(c *stdx509.Certificate) bool { return Fingerprint(c.Raw) == fingerprint }) {
		return fmt.Errorf("%w: %s is the new root of a rollover that has not ended, and is the next in use; end that first, with `naru ca rollover`", ErrRefused, fingerprint)
	}
	return nil
}

// Retire ends the trust in a root that was taken over from, by its fingerprint; the root in use cannot be retired. It
// forgets it here, the caller in the published bundle, and there first: what is published comes back from there.
func (a *Authority) Retire(fingerprint string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := errors.Join(a.catchUp(), a.mayRetire(fingerprint)); err != nil {
		return err
	}
	i := slices.IndexFunc(a.roots, func(c *stdx509.Certificate) bool { return Fingerprint(c.Raw) == fingerprint })
	if i < 0 {
		return nil // another directory's, or retired here already
	}
	root := a.roots[i]
	for j := len(a.old) - 1; j >= 0; j-- {
		if a.old[j].cert.CheckSignatureFrom(root) != nil {
			continue
		}
		base := filepath.Join(a.dir, retiredDir, fmt.Sprintf("%x", a.old[j].cert.SerialNumber))
		if err := errors.Join(gone(os.Remove(base+".crt")), gone(os.Remove(base+".key"))); err != nil {
			return err
		}
		a.old = append(a.old[:j:j], a.old[j+1:]...)
	}
	left := append(a.roots[:i:i], a.roots[i+1:]...)
	crosses := leading(a.crosses, left)
	var err error
	if len(crosses) == 0 {
		err = gone(os.Remove(a.path(crossName)))
	} else if len(crosses) < len(a.crosses) {
		err = whole.Write(a.path(crossName), CertPEM(crosses...), 0o644)
	}
	if err != nil {
		return err
	}
	if err := gone(os.Remove(filepath.Join(a.dir, retiredDir, fmt.Sprintf("root-%x.crt", root.SerialNumber)))); err != nil {
		return err
	}
	a.roots, a.crosses = left, crosses
	return errors.Join(whole.Sync(filepath.Join(a.dir, retiredDir)), whole.Sync(a.dir), a.renewServer()) // it must not come back
}

// leading leaves out the last of the cross-certificates that lead to none of these roots. One between leads on to the older.
func leading(crosses, roots []*stdx509.Certificate) []*stdx509.Certificate {
	for len(crosses) > 0 && !slices.ContainsFunc(roots, func(r *stdx509.Certificate) bool { return crosses[len(crosses)-1].CheckSignatureFrom(r) == nil }) {
		crosses = crosses[:len(crosses)-1]
	}
	return crosses
}

func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// CrossCerts lead from the root in use to those before it, while devices may need them.
func (a *Authority) CrossCerts() []*stdx509.Certificate {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return slices.Clone(a.shown())
}

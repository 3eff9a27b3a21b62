package x509

import (
	"crypto/rand"
	stdx509 "crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/naru-platform/naru/internal/whole"
)

const (
	rolloverDir  = "rollover"
	rolloverDone = "ready" // in rolloverDir: everything is in it, and only has to be moved
	crossName    = "cross.crt"
)

// ErrRootKey says that the root's key is wanted and is not here.
var ErrRootKey = errors.New("the root's key is not in this directory; put it back with `naru ca restore-root-key`")

// Rollover makes a new root and a new issuing CA, which issue from now on; both roots stay trusted. The old root signs
// the new one once more (a cross-certificate, which the server shows beside its own), so that devices that know only
// the old root go on trusting the server until they have fetched the new one. The bundle must be published.
//
// Cut off at any moment, the next OpenAuthority finishes it or finds nothing of it.
func (a *Authority) Rollover() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.root.key == nil {
		return ErrRootKey
	}
	if err := a.retire(a.use); err != nil { // trusted already: doing it and no more changes nothing
		return err
	}
	name := fmt.Sprintf("root-%x.crt", a.root.cert.SerialNumber)
	if err := a.prepareRollover(name); err != nil {
		return fmt.Errorf("make the new CA: %w", err)
	}
	if err := a.finishRollover(); err != nil {
		return fmt.Errorf("change over to the new CA: %w", err)
	}
	a.root, a.use, a.old, a.roots, a.cross = pair{}, pair{}, nil, nil, nil
	if err := a.load(); err != nil {
		return fmt.Errorf("change over to the new CA: %w", err)
	}
	return a.renewServer()
}

// prepareRollover writes the new CA into a directory of its own, and says at last that it is whole.
func (a *Authority) prepareRollover(oldRoot string) error {
	dir := a.path(rolloverDir)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	rootKey, err := newKey()
	if err != nil {
		return err
	}
	issuingKey, err := newKey()
	if err != nil {
		return err
	}
	root, err := a.certify(rootName, rootKey, rootValidity, -1, pair{})
	if err != nil {
		return err
	}
	issuing, err := a.certify(issuingName, issuingKey, issuingValidity, 0, pair{root, rootKey})
	if err != nil {
		return err
	}
	// A root of before this was possible lets one CA stand below it only: those who know it alone must fetch the new one.
	var crossPEM []byte
	if a.root.cert.MaxPathLen < 0 {
		if crossPEM, err = a.crossSign(root); err != nil {
			return fmt.Errorf("sign the cross-certificate: %w", err)
		}
	}
	if err := errors.Join(
		a.keys.write(filepath.Join(dir, rootName+".key"), rootKey),
		a.keys.write(filepath.Join(dir, issuingName+".key"), issuingKey),
		whole.Write(filepath.Join(dir, rootName+".crt"), certPEM(root), 0o644),
		whole.Write(filepath.Join(dir, issuingName+".crt"), certPEM(issuing), 0o644),
		whole.Write(filepath.Join(dir, oldRoot), certPEM(a.root.cert), 0o644),
	); err != nil {
		return err
	}
	if crossPEM != nil {
		if err := whole.Write(filepath.Join(dir, crossName), crossPEM, 0o644); err != nil {
			return err
		}
	}
	return whole.Write(filepath.Join(dir, rolloverDone), nil, 0o600)
}

// crossSign signs the new root's certificate with the old root's key: same name, same key, another issuer.
func (a *Authority) crossSign(root *stdx509.Certificate) ([]byte, error) {
	cross := *root
	cross.AuthorityKeyId = nil // the old root's is put there
	if cross.NotAfter.After(a.root.cert.NotAfter) {
		cross.NotAfter = a.root.cert.NotAfter
	}
	der, err := stdx509.CreateCertificate(rand.Reader, &cross, a.root.cert, root.PublicKey, a.root.key)
	if err != nil {
		return nil, err
	}
	c, err := stdx509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return certPEM(c), nil
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
		case strings.HasPrefix(f.Name(), rootName+"-"):
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
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.root.key == nil {
		return nil, nil, fmt.Errorf("%w: it was removed", ErrRootKey)
	}
	key, err = sealKey(a.root.key, []byte(passphrase), passphraseCost)
	return certPEM(a.root.cert), key, err
}

// RemoveRoot forgets the root's key, in memory and on disk. The fingerprint is the root certificate's, so that nobody
// removes one that he did not export. The CA goes on issuing; a new issuing CA, and a rollover, want the key back.
func (a *Authority) RemoveRoot(fingerprint string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if is := Fingerprint(a.root.cert.Raw); fingerprint != is {
		return fmt.Errorf("%w: the root's fingerprint is %s", ErrRefused, is)
	}
	if err := os.Remove(a.path(rootName + ".key")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the root's key: %w", err)
	}
	a.root.key = nil
	return whole.Sync(a.dir)
}

// RestoreRoot puts the root's key back: what ExportRoot gave, and its passphrase.
func (a *Authority) RestoreRoot(key []byte, passphrase string) error {
	k, err := unsealKey(key, []byte(passphrase))
	if errors.Is(err, errSecret) {
		return fmt.Errorf("%w: the root's key does not open with this passphrase; it is the one that it was exported with", ErrRefused)
	}
	if err != nil {
		return fmt.Errorf("%w: the root's key: %w", ErrRefused, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !k.PublicKey.Equal(a.root.cert.PublicKey) {
		return fmt.Errorf("%w: it is not the key of the root %s", ErrRefused, Fingerprint(a.root.cert.Raw))
	}
	if err := a.keys.write(a.path(rootName+".key"), k); err != nil {
		return err
	}
	a.root.key = k
	return nil
}

// RootKey says whether the root's key is here.
func (a *Authority) RootKey() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.root.key != nil
}

// Retire ends the trust in a root that was taken over from, by its fingerprint; the root in use cannot be retired. It
// forgets it here, the caller in the published bundle.
func (a *Authority) Retire(fingerprint string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if fingerprint == Fingerprint(a.root.cert.Raw) {
		return fmt.Errorf("%w: %s is the root in use; roll over first", ErrRefused, fingerprint)
	}
	for i, root := range a.roots {
		if Fingerprint(root.Raw) != fingerprint {
			continue
		}
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
		if a.cross != nil && a.cross.CheckSignatureFrom(root) == nil {
			if err := gone(os.Remove(a.path(crossName))); err != nil {
				return err
			}
			a.cross = nil
		}
		if err := gone(os.Remove(filepath.Join(a.dir, retiredDir, fmt.Sprintf("root-%x.crt", root.SerialNumber)))); err != nil {
			return err
		}
		a.roots = append(a.roots[:i:i], a.roots[i+1:]...)
		return errors.Join(whole.Sync(filepath.Join(a.dir, retiredDir)), whole.Sync(a.dir)) // it must not come back
	}
	return nil // another directory's, or retired here already
}

func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

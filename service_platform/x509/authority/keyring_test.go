package authority

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const passphrase = "correct horse battery"

// realCost is what a passphrase costs outside of tests, where the race detector makes it some seconds.
var realCost = passphraseCost

func TestMain(m *testing.M) {
	passphraseCost = machineCost
	os.Exit(m.Run())
}

// OWASP's least for scrypt with 16 MiB is N 2^14, r 8, p 5; a key under it is opened again, here and by openssl (see
// TestOpenSSLReadsAndWritesKeyFiles).
func TestPassphraseCostsWhatOWASPWants(t *testing.T) {
	if realCost != (scryptCost{1 << 14, 8, 5}) {
		t.Errorf("a passphrase costs %+v", realCost)
	}
}

func openWith(t *testing.T, dir, secret string) (*Authority, error) {
	t.Helper()
	return Open(dir, Options{Now: newClock().Now, Passphrase: secret})
}

func TestCAKeysAreEncryptedAtRest(t *testing.T) {
	dir := t.TempDir()
	openCA(t, dir, newClock())
	for _, name := range []string{"root.key", "issuing.key"} {
		if raw, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.HasPrefix(raw, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----")) {
			t.Errorf("%s begins %.30q, %v", name, raw, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, machineKeyName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("machine key: %v, %v", info, err)
	}
	if err := os.Remove(filepath.Join(dir, machineKeyName)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // no other is made in its place
		if _, err := openWith(t, dir, ""); err == nil || !strings.Contains(err.Error(), machineKeyName+" is missing") || !strings.Contains(err.Error(), "backup") {
			t.Errorf("without its machine key: %v; want it refused with the remedy", err)
		}
	}
}

func TestPassphraseTakesOverFromTheMachineKey(t *testing.T) {
	dir := t.TempDir()
	before := openCA(t, dir, newClock()).Bundle().PEM()
	a, err := openWith(t, dir, passphrase)
	if err != nil || !bytes.Equal(a.Bundle().PEM(), before) {
		t.Fatal("the same CA is wanted:", err)
	}
	if _, err := os.Stat(filepath.Join(dir, machineKeyName)); !errors.Is(err, os.ErrNotExist) {
		t.Error("the machine key is still there:", err)
	}
	for _, wrong := range []string{"", "another passphrase"} {
		if _, err := openWith(t, dir, wrong); err == nil || !strings.Contains(err.Error(), "passphrase") || strings.Contains(err.Error(), passphrase) {
			t.Errorf("with %q: %v", wrong, err)
		}
	}
	if _, err := openWith(t, t.TempDir(), "short"); err == nil {
		t.Error("a short passphrase is taken")
	}
}

// What an earlier version left in the clear is encrypted at the next start.
func TestKeyInTheClearIsEncrypted(t *testing.T) {
	dir := t.TempDir()
	a := openCA(t, dir, newClock())
	text, err := keyPEM(a.use.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "issuing.key"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	openCA(t, dir, newClock())
	if raw, _ := os.ReadFile(filepath.Join(dir, "issuing.key")); bytes.Contains(raw, []byte("BEGIN PRIVATE")) {
		t.Error("the key still lies there in the clear")
	}
}

func TestOpenSSLReadsAndWritesKeyFiles(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("no openssl on this machine: tools/needs.sh installs it")
	}
	k, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := sealKey(k, []byte(passphrase), realCost)
	if err != nil {
		t.Fatal(err)
	}
	read := exec.Command(openssl, "pkcs8", "-passin", "pass:"+passphrase)
	read.Stdin = bytes.NewReader(sealed)
	plain, err := read.Output()
	if err != nil {
		t.Fatal(err)
	}
	write := exec.Command(openssl, "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-scrypt", "-passout", "pass:"+passphrase)
	write.Stdin = bytes.NewReader(plain)
	again, err := write.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := UnsealKey(again, []byte(passphrase)); err != nil || !got.Equal(k) {
		t.Errorf("openssl's file: %v", err)
	}
	if _, err := UnsealKey(again, []byte("another passphrase")); !errors.Is(err, errSecret) {
		t.Errorf("with another passphrase: %v", err)
	}
}

func TestRootKeyIsExportedRemovedAndPutBack(t *testing.T) {
	dir, c := t.TempDir(), newClock()
	a := openCA(t, dir, c)
	if _, _, err := a.ExportRoot("short"); !errors.Is(err, ErrRefused) {
		t.Errorf("under a short passphrase: %v", err)
	}
	cert, key, err := a.ExportRoot(passphrase)
	if err != nil || bytes.Contains(key, []byte("BEGIN PRIVATE")) || !bytes.Equal(cert, CertPEM(a.root.cert)) {
		t.Fatalf("exported %.40s, %v", key, err)
	}
	if err := a.RemoveRoot("ab", false); !errors.Is(err, ErrRefused) {
		t.Errorf("removed for a wrong fingerprint: %v", err)
	}
	if err := a.RemoveRoot(Fingerprint(a.root.cert.Raw), false); err != nil || a.RootKey() {
		t.Fatal(err)
	}
	if err := a.Rollover(unpublished); !errors.Is(err, ErrRootKey) {
		t.Errorf("rollover without the key: %v", err)
	}
	a = openCA(t, dir, c)
	issue(t, a, Request{Device: "d"})
	other, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := sealKey(other, []byte(passphrase), machineCost)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.RestoreRoot(foreign, passphrase); !errors.Is(err, ErrRefused) {
		t.Errorf("another's key: %v", err)
	}
	if err := a.RestoreRoot(key, "another passphrase"); !errors.Is(err, ErrRefused) {
		t.Errorf("a wrong passphrase: %v", err)
	}
	if err := a.RestoreRoot(key, passphrase); err != nil {
		t.Fatal(err)
	}
	if err := openCA(t, dir, c).Rollover(unpublished); err != nil {
		t.Error(err)
	}
}

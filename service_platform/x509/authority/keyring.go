package authority

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/crypto/scrypt"

	"github.com/naru-platform/naru/internal/whole"
)

// PassphraseEnv names the environment variable that may hold the passphrase of the CA's keys.
const PassphraseEnv = "NARU_CA_PASSPHRASE"

const (
	machineKeyName = "machine.secret"
	passphraseMin  = 12 // characters; scrypt slows a guesser down, it does not make a word a key
)

// keyring encrypts the CA's keys at rest. A key file is PKCS #8 `ENCRYPTED PRIVATE KEY` (RFC 5958) under PBES2 (RFC
// 8018) with scrypt (RFC 7914) and AES-256-CBC, which `openssl pkcs8` reads and writes. CBC authenticates nothing by
// itself: whoever reads a key compares it with its certificate, so a changed file is refused.
//
// The secret is a passphrase, or the machine key: 32 random bytes in a file of its own, mode 0600, made where there is
// no passphrase. The machine key keeps a stolen backup shut as long as the backup leaves that one file out; a passphrase
// that the platform gets from elsewhere keeps the whole disk shut.
type keyring struct {
	secret  []byte
	machine bool   // secret is the machine key, whose randomness wants no stretching
	before  []byte // a machine key that a passphrase takes over from
}

// openKeyring takes the passphrase where there is one, else the directory's machine key, made where there is none.
func openKeyring(dir, passphrase string) (*keyring, error) {
	path := filepath.Join(dir, machineKeyName)
	machine, err := readMachineKey(path)
	if err != nil {
		return nil, err
	}
	if passphrase != "" {
		if len(passphrase) < passphraseMin {
			return nil, fmt.Errorf("the CA's passphrase has fewer than %d characters; choose a longer one", passphraseMin)
		}
		return &keyring{secret: []byte(passphrase), before: machine}, nil
	}
	if machine == nil {
		if sealed := firstSealed(dir); sealed != "" {
			return nil, fmt.Errorf("%s is missing: it is the secret that opens the CA's keys, such as %s, where no passphrase is configured; restore it from the backup that the keys are in, or give the passphrase that they were written with (passphrase_file or %s)",
				path, sealed, PassphraseEnv)
		}
		machine = make([]byte, 32)
		if _, err := rand.Read(machine); err != nil {
			return nil, fmt.Errorf("make the machine key: %w", err)
		}
		if err := whole.Write(path, fmt.Appendf(nil, "%x\n", machine), 0o600); err != nil {
			return nil, err
		}
	}
	return &keyring{secret: machine, machine: true}, nil
}

// firstSealed is a key in the directory that is encrypted already; empty where none is.
func firstSealed(dir string) string {
	for _, name := range []string{IssuingName, RootName} {
		raw, err := os.ReadFile(filepath.Join(dir, name+".key"))
		if err != nil {
			continue // whoever wants the key says so
		}
		if block, _ := pem.Decode(raw); block != nil && block.Type == "ENCRYPTED PRIVATE KEY" {
			return name + ".key"
		}
	}
	return ""
}

// readMachineKey gives nil where there is none.
func readMachineKey(path string) ([]byte, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	key := make([]byte, 32)
	if n, err := hex.Decode(key, bytes.TrimSpace(raw)); err != nil || n != len(key) {
		return nil, fmt.Errorf("%s is damaged; restore it from a backup, for it opens the CA's keys", path)
	}
	return key, nil
}

// write puts the key at path, encrypted, mode 0600.
func (r *keyring) write(path string, k *ecdsa.PrivateKey) error {
	cost := passphraseCost
	if r.machine {
		cost = machineCost
	}
	text, err := sealKey(k, r.secret, cost)
	if err != nil {
		return err
	}
	return whole.Write(path, text, 0o600)
}

// read gives nil where there is no such file. A key that lies there in the clear, or under the machine key although
// there is a passphrase now, is written anew. Errors never carry what is in the file.
func (r *keyring) read(path string) (*ecdsa.PrivateKey, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	switch {
	case block == nil:
		return nil, fmt.Errorf("%s holds no PEM private key; restore it from a backup", path)
	case block.Type == "PRIVATE KEY":
		k, err := parseKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w; restore it from a backup", path, err)
		}
		return k, r.write(path, k)
	}
	k, err := UnsealKey(raw, r.secret)
	if errors.Is(err, errSecret) && r.before != nil {
		if k, err = UnsealKey(raw, r.before); err == nil {
			err = r.write(path, k)
		}
	}
	if errors.Is(err, errSecret) {
		return nil, fmt.Errorf("%s: %w; give the passphrase that it was written with (passphrase_file or %s), or %s of the same backup",
			path, err, PassphraseEnv, machineKeyName)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it from a backup", path, err)
	}
	return k, nil
}

// settle removes the machine key once a passphrase has taken over every key.
func (r *keyring) settle(dir string) error {
	if r.before == nil {
		return nil
	}
	r.before = nil
	if err := os.Remove(filepath.Join(dir, machineKeyName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the machine key that the passphrase replaces: %w", err)
	}
	return whole.Sync(dir)
}

// scryptCost is N, r and p of RFC 7914.
type scryptCost struct{ n, r, p int }

var (
	// passphraseCost is OWASP's for 16 MiB, which also stays within the 32 MiB that openssl grants a key file.
	passphraseCost = scryptCost{1 << 14, 8, 5}
	machineCost    = scryptCost{1 << 10, 8, 1}
)

// costMax bounds what a key file that somebody else wrote may make this process spend.
const costMax = 128 << 20

var errSecret = errors.New("the secret does not open it")

var (
	oidPBES2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidScrypt = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
	oidAES256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

type encryptedKey struct {
	Algorithm struct {
		ID     asn1.ObjectIdentifier
		Params struct{ KDF, Cipher pkix.AlgorithmIdentifier }
	}
	Data []byte
}

type scryptParams struct {
	Salt    []byte
	N, R, P int
	KeyLen  int `asn1:"optional"`
}

// sealKey writes a key as PEM `ENCRYPTED PRIVATE KEY`.
func sealKey(k *ecdsa.PrivateKey, secret []byte, cost scryptCost) ([]byte, error) {
	plain, err := stdx509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	salt, iv := make([]byte, 16), make([]byte, aes.BlockSize)
	if _, err := rand.Read(salt); err != nil {
		return nil, fmt.Errorf("encrypt a private key: %w", err)
	}
	if _, err := rand.Read(iv); err != nil {
		return nil, fmt.Errorf("encrypt a private key: %w", err)
	}
	key, err := scrypt.Key(secret, salt, cost.n, cost.r, cost.p, 32)
	if err != nil {
		return nil, fmt.Errorf("encrypt a private key: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("encrypt a private key: %w", err)
	}
	pad := aes.BlockSize - len(plain)%aes.BlockSize
	plain = append(plain, bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(plain, plain)

	var e encryptedKey
	e.Data = plain
	e.Algorithm.ID = oidPBES2
	kdf, err := asn1.Marshal(scryptParams{Salt: salt, N: cost.n, R: cost.r, P: cost.p, KeyLen: 32})
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	vector, err := asn1.Marshal(iv)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	e.Algorithm.Params.KDF = pkix.AlgorithmIdentifier{Algorithm: oidScrypt, Parameters: asn1.RawValue{FullBytes: kdf}}
	e.Algorithm.Params.Cipher = pkix.AlgorithmIdentifier{Algorithm: oidAES256, Parameters: asn1.RawValue{FullBytes: vector}}
	der, err := asn1.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}), nil
}

// UnsealKey reads what sealKey, or openssl with the same algorithms, wrote; errSecret says that the secret is another.
func UnsealKey(text, secret []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "ENCRYPTED PRIVATE KEY" {
		return nil, errors.New("no PEM block ENCRYPTED PRIVATE KEY")
	}
	var e encryptedKey
	if rest, err := asn1.Unmarshal(block.Bytes, &e); err != nil || len(rest) > 0 {
		return nil, errors.New("not an encrypted PKCS #8 key")
	}
	p := e.Algorithm.Params
	if !e.Algorithm.ID.Equal(oidPBES2) || !p.KDF.Algorithm.Equal(oidScrypt) || !p.Cipher.Algorithm.Equal(oidAES256) {
		return nil, errors.New("not encrypted with PBES2, scrypt and AES-256-CBC (openssl pkcs8 -topk8 -v2 aes-256-cbc -scrypt)")
	}
	var kdf scryptParams
	var iv []byte
	if _, err := asn1.Unmarshal(p.KDF.Parameters.FullBytes, &kdf); err != nil {
		return nil, errors.New("scrypt's parameters cannot be read")
	}
	if _, err := asn1.Unmarshal(p.Cipher.Parameters.FullBytes, &iv); err != nil || len(iv) != aes.BlockSize {
		return nil, errors.New("the cipher's parameters cannot be read")
	}
	if kdf.N < 2 || kdf.R < 1 || kdf.P < 1 || kdf.N > costMax || kdf.R > 64 || kdf.P > 64 || 128*kdf.N*kdf.R > costMax {
		return nil, errors.New("scrypt's parameters are out of bounds")
	}
	if len(e.Data) == 0 || len(e.Data)%aes.BlockSize != 0 {
		return nil, errors.New("its length is none that the cipher gives")
	}
	key, err := scrypt.Key(secret, kdf.Salt, kdf.N, kdf.R, kdf.P, 32)
	if err != nil {
		return nil, fmt.Errorf("scrypt: %w", err)
	}
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	plain := make([]byte, len(e.Data))
	cipher.NewCBCDecrypter(c, iv).CryptBlocks(plain, e.Data)
	pad := int(plain[len(plain)-1])
	if pad < 1 || pad > aes.BlockSize || !bytes.Equal(plain[len(plain)-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
		return nil, errSecret
	}
	k, err := parseKey(plain[:len(plain)-pad])
	if err != nil {
		return nil, errSecret
	}
	return k, nil
}

func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	k, err := stdx509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("not a PKCS #8 private key")
	}
	ec, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T; this CA uses ECDSA P-256", k)
	}
	return ec, nil
}

// Secrets are the files of the CA that only its own user may read.
func (a *Authority) Secrets() []string {
	keys, _ := filepath.Glob(a.path("*.key")) // the patterns are good
	retired, _ := filepath.Glob(a.path(filepath.Join(retiredDir, "*.key")))
	return append(append(keys, retired...), a.path(machineKeyName))
}

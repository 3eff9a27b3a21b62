// Package authority is the platform's certificate authority: a root and an issuing CA of ECDSA P-256, their keys, what they sign,
// and how they are renewed, rolled over and retired. It exists in one directory of one process, and knows nothing of who is
// registered, nor of the bus: what it changes over to is published by whoever has it ([Authority.Renew], [Authority.Rollover]).
package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	stdx509 "crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/naru-platform/naru/internal/whole"
)

// How long things are valid. A CA outlives its devices' patience with new firmware; a server certificate costs nothing
// to renew.
const (
	rootValidity    = 20 * 365 * 24 * time.Hour
	issuingValidity = 5 * 365 * 24 * time.Hour
	serverValidity  = 90 * 24 * time.Hour
	// Backdate lets a certificate be used at once by those whose clock is a little behind.
	Backdate = 5 * time.Minute
)

// The files of a CA's directory.
const (
	RootName    = "root"
	IssuingName = "issuing"
	ServerName  = "server"
	retiredDir  = "retired" // issuing certificates that were taken over from
)

// Options are how a CA issues.
type Options struct {
	// Now is the clock; time.Now where nil.
	Now func() time.Time
	// Hosts are names and addresses that the server certificate is for, beside localhost, 127.0.0.1, ::1 and the
	// machine's host name.
	Hosts []string
	// DeviceValidity is how long a device's certificate is valid where a request does not say; 365 days where zero.
	DeviceValidity time.Duration
	// Passphrase encrypts the CA's keys at rest; where empty, a machine key in the directory does (see keyring).
	Passphrase string
	// CRLURL is written into the certificates that are issued to devices; see Config.
	CRLURL string
	// Log is told of a clock that cannot be right; nobody is where nil.
	Log *slog.Logger
}

// Authority is the CA: a root that signs issuing CAs, and an issuing CA that signs devices and servers. It exists only
// where the keys are, in one directory of one process. All methods may be called by any number of goroutines.
type Authority struct {
	dir     string
	o       Options
	keys    *keyring
	rolling sync.Mutex   // held over a whole rollover
	mu      sync.RWMutex // guards what follows, and the files
	held
	behind bool   // the files are further than memory: a change-over could not be read back yet
	list   uint64 // the number of the last revocation list; zero where the file has not been read
}

// held is a CA as it was read from its files.
type held struct {
	root  pair
	use   pair                   // the issuing CA in use
	old   []pair                 // issuing CAs that it took over from; their keys sign revocation lists only
	roots []*stdx509.Certificate // roots that this one took over from
	// crosses lead from this root to every one before that is still trusted: this root signed by the one before, that
	// one by the one before it, and so on. Who trusts any of them trusts the server by what stands here up to it.
	crosses []*stdx509.Certificate
}

// pair is a certificate and its key; the key of a root may be kept elsewhere, and is nil then.
type pair struct {
	cert *stdx509.Certificate
	key  *ecdsa.PrivateKey
}

// Open reads the CA in the directory, or makes it where there is none, and brings it up to date as Renew does.
// root.key may be taken out of the directory once it is made; it is wanted again when the issuing CA is to be renewed.
// What it made or changed over to must be published before anything is issued.
// A directory with only a part of a CA is an error: a new CA in the place of a lost one would lock every device out.
func Open(dir string, o Options) (*Authority, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.DeviceValidity == 0 {
		o.DeviceValidity = 365 * 24 * time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	a := &Authority{dir: dir, o: o}
	if err := os.MkdirAll(filepath.Join(dir, retiredDir), 0o700); err != nil {
		return nil, fmt.Errorf("make the CA's directory: %w", err)
	}
	if err := errors.Join(whole.Sweep(dir), whole.Sweep(filepath.Join(dir, retiredDir))); err != nil {
		return nil, err
	}
	err := a.finishRollover()
	if err == nil {
		a.keys, err = openKeyring(dir, o.Passphrase)
	}
	if err == nil {
		a.held, err = a.load()
	}
	if err == nil {
		err = a.keys.settle(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("CA in %s: %w", dir, err)
	}
	// One that cannot be renewed now, since the root's key is kept elsewhere, is good until it ends; it is renewed again
	// soon, and that says what is wrong.
	if err := a.Renew(func(Bundle) error { return nil }); err != nil && !a.serves() {
		return nil, err
	}
	return a, nil
}

// DeviceValidity is how long a device's certificate is valid where a request does not say.
func (a *Authority) DeviceValidity() time.Duration { return a.o.DeviceValidity }

// Bundle is what verifiers need: every certificate that this CA signs with or signed with.
func (a *Authority) Bundle() Bundle {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.bundle()
}

func (h *held) bundle() Bundle {
	b := Bundle{
		Roots:   append([]*stdx509.Certificate{h.root.cert}, h.roots...),
		Issuing: []*stdx509.Certificate{h.use.cert},
	}
	for _, p := range h.old {
		b.Issuing = append(b.Issuing, p.cert)
	}
	return b
}

// Renew makes a new issuing CA when two thirds of the present one's time have passed, and a new server certificate
// when two thirds of its time have passed, its names have changed or it does not belong to this CA. What begins in the
// future, since the clock was ahead when it was made, is replaced too: an issuing CA by one before it that is valid, if
// there is one. An issuing CA is published as Rollover says, before it signs anything.
func (a *Authority) Renew(publish func(Bundle) error) error {
	a.rolling.Lock()
	defer a.rolling.Unlock()
	a.mu.Lock()
	err := a.catchUp()
	due := err == nil && a.due(a.use.cert)
	name, begins := a.newest()
	a.mu.Unlock()
	if now := a.o.Now(); now.Before(begins) {
		remedy := "set the clock right; the certificate is made anew by the clock as it is"
		if name == RootName {
			remedy = "set the clock right; if it is, the root was made while it was ahead: `naru ca rollover` makes another"
		}
		a.o.Log.Error("the clock is before the beginning of the CA's own certificate: it is behind now, or was ahead when that was made, and nobody who checks it accepts it",
			"clock", now.UTC().Format(time.RFC3339), "certificate", name, "begins", begins.UTC().Format(time.RFC3339), "dir", a.dir, "remedy", remedy)
	}
	if err != nil {
		return err
	}
	var rotated error // the doors' certificate is renewed whatever comes of it
	if due {
		rotated = a.changeOver(a.prepareIssuing, publish)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(rotated, a.renewServer())
}

// serves says whether the issuing CA and the server certificate are good now, even if they cannot be renewed.
func (a *Authority) serves() bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	certs, err := readCerts(a.path(ServerName + ".crt"))
	return err == nil && len(certs) > 0 && a.valid(certs[0]) && a.valid(a.use.cert)
}

func (a *Authority) valid(c *stdx509.Certificate) bool {
	now := a.o.Now()
	return !now.Before(c.NotBefore) && now.Before(c.NotAfter)
}

// Newest is when the newest of the certificates in use begins: in the future where the clock was ahead when it was made.
func (a *Authority) Newest() time.Time {
	a.mu.RLock()
	defer a.mu.RUnlock()
	_, begins := a.newest()
	return begins
}

// newest names the certificate in use that begins last; of what begins in the future, the root first.
func (a *Authority) newest() (name string, begins time.Time) {
	now := a.o.Now()
	if root := a.root.cert; now.Before(root.NotBefore) {
		return RootName, root.NotBefore
	}
	name, begins = IssuingName, a.use.cert.NotBefore
	// One that cannot be read is made anew anyway.
	if certs, err := readCerts(a.path(ServerName + ".crt")); err == nil && len(certs) > 0 && certs[0].NotBefore.After(begins) {
		name, begins = ServerName, certs[0].NotBefore
	}
	return name, begins
}

// Request is what a device's certificate is asked for with.
type Request struct {
	Device string
	// Key is the device's public key, from a request that ParseRequest accepted; nil to have a key pair made here.
	Key crypto.PublicKey
	// Validity is how long; Options.DeviceValidity where zero. No certificate outlives its issuer.
	Validity time.Duration
	// Kind is whose it is, in the URI; a device's where empty.
	Kind string
}

// The kinds of certificates beside devices': those of production lots, and those whose device is not known yet.
const (
	KindClaim       = "claim"
	KindProvisioned = "provisioned"
)

// Issued is a new certificate. It admits nobody until it is registered.
type Issued struct {
	Certificate *stdx509.Certificate
	Chain       []byte // PEM: the certificate and its issuer, as a client presents them
	Key         Secret // PEM, PKCS #8; nil where the device has its own
}

// Issue signs a certificate for a device: common name and URI are its name, for client authentication only.
func (a *Authority) Issue(r Request) (*Issued, error) {
	if err := CheckDevice(r.Device); err != nil {
		return nil, err
	}
	validity := r.Validity
	if validity == 0 {
		validity = a.o.DeviceValidity
	}
	if validity < time.Minute {
		return nil, fmt.Errorf("certificate for %s: a validity of %s is too short; a minute is the least", r.Device, validity)
	}
	issued := &Issued{}
	if r.Key == nil {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		r.Key = key.Public()
		if issued.Key, err = keyPEM(key); err != nil {
			return nil, err
		}
	}
	a.mu.RLock()
	issuer := a.use
	a.mu.RUnlock()
	t, err := a.template(pkix.Name{CommonName: r.Device}, validity, issuer.cert)
	if err != nil {
		return nil, err
	}
	t.KeyUsage = stdx509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth}
	t.URIs = []*url.URL{uri(r.Kind, r.Device)}
	if a.o.CRLURL != "" {
		t.CRLDistributionPoints = []string{strings.ReplaceAll(a.o.CRLURL, crlIssuer, hex.EncodeToString(issuer.cert.SubjectKeyId))}
	}
	if issued.Certificate, err = sign(t, issuer, r.Key); err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", r.Device, err)
	}
	issued.Chain = CertPEM(issued.Certificate, issuer.cert)
	return issued, nil
}

// load reads the CA, makes what is not there yet, and leaves memory as it is.
func (a *Authority) load() (h held, err error) {
	if h.root, err = a.read(RootName); err != nil {
		return h, err
	}
	if h.use, err = a.read(IssuingName); err != nil {
		return h, err
	}
	if h.root.cert == nil && h.use.cert != nil {
		return h, fmt.Errorf("issuing.crt is there, root.crt is not; restore it from a backup")
	}
	if h.root.cert == nil {
		if h.root, err = a.make(RootName, h.root.key, rootValidity, -1, pair{}); err != nil {
			return h, err
		}
	}
	if h.root.key != nil && !h.root.key.PublicKey.Equal(h.root.cert.PublicKey) {
		return h, errors.New("root.key does not belong to root.crt; restore both from one backup")
	}
	if h.use.cert == nil {
		if h.use, err = a.make(IssuingName, h.use.key, issuingValidity, 0, h.root); err != nil {
			return h, err
		}
	}
	if err := a.readRetired(&h); err != nil {
		return h, err
	}
	h.crosses = leading(h.crosses, h.roots)
	switch {
	case h.use.key == nil:
		return h, errors.New("issuing.key is missing; restore it from a backup")
	case !h.use.key.PublicKey.Equal(h.use.cert.PublicKey):
		return h, errors.New("issuing.key does not belong to issuing.crt; restore both from one backup")
	}
	h.old = slices.DeleteFunc(h.old, func(p pair) bool { return p.cert.Equal(h.use.cert) })
	if err := h.use.cert.CheckSignatureFrom(h.root.cert); err != nil {
		return h, fmt.Errorf("issuing.crt is not signed by root.crt (%w); restore both from one backup", err)
	}
	return h, nil
}

// read gives an empty pair where there is nothing.
func (a *Authority) read(name string) (p pair, err error) {
	certs, err := readCerts(a.path(name + ".crt"))
	if err != nil {
		return p, err
	}
	if len(certs) > 0 {
		p.cert = certs[0]
	}
	if name == ServerName {
		p.key, err = readKey(a.path(name + ".key"))
	} else {
		p.key, err = a.keys.read(a.path(name + ".key"))
	}
	return p, err
}

// readRetired reads the roots and issuing certificates that were taken over from, and the keys of the latter.
func (a *Authority) readRetired(h *held) (err error) {
	if h.crosses, err = readCerts(a.path(crossName)); err != nil {
		return err
	}
	names, err := filepath.Glob(filepath.Join(a.dir, retiredDir, "*.crt"))
	if err != nil {
		return err
	}
	for _, n := range names {
		certs, err := readCerts(n)
		if err != nil {
			return err
		}
		if bytes.Equal(certs[0].RawSubject, certs[0].RawIssuer) {
			h.roots = append(h.roots, certs[0])
			continue
		}
		key, err := a.keys.read(strings.TrimSuffix(n, ".crt") + ".key")
		if err != nil {
			return err
		}
		h.old = append(h.old, pair{certs[0], key})
	}
	return nil
}

// make makes a CA certificate, and a key where there is none: the key first, so that a certificate never stands there
// without one. A zero parent is the new CA itself.
func (a *Authority) make(name string, key *ecdsa.PrivateKey, validity time.Duration, pathLen int, parent pair) (pair, error) {
	if parent.cert != nil && parent.key == nil {
		return pair{}, fmt.Errorf("a new issuing CA is wanted; put root.key back into %s for one start", a.dir)
	}
	if key == nil {
		var err error
		if key, err = newKey(); err != nil {
			return pair{}, err
		}
		if err := a.keys.write(a.path(name+".key"), key); err != nil {
			return pair{}, err
		}
	}
	cert, err := a.certify(name, key, validity, pathLen, parent)
	if err != nil {
		return pair{}, err
	}
	return pair{cert, key}, whole.Write(a.path(name+".crt"), CertPEM(cert), 0o644)
}

// certify signs a CA's certificate for a key; a zero parent is the new CA itself. pathLen is how many CAs may stand below,
// -1 for any number.
func (a *Authority) certify(name string, key *ecdsa.PrivateKey, validity time.Duration, pathLen int, parent pair) (*stdx509.Certificate, error) {
	t, err := a.template(pkix.Name{Organization: []string{"naru"}}, validity, parent.cert)
	if err != nil {
		return nil, err
	}
	// The serial makes the names of two CAs differ, so that a verifier never takes one for the other.
	t.Subject.CommonName = fmt.Sprintf("naru %s %x", name, t.SerialNumber.Bytes()[:4])
	t.IsCA, t.MaxPathLen, t.MaxPathLenZero = true, pathLen, pathLen == 0
	t.KeyUsage = stdx509.KeyUsageCertSign | stdx509.KeyUsageCRLSign
	if parent.cert == nil {
		parent = pair{t, key}
	}
	return sign(t, parent, key.Public())
}

// retire keeps an issuing CA beside the one in use: the key, which signs its revocation list from now on, before the
// certificate, which makes it count.
func (a *Authority) retire(p pair) error {
	base := filepath.Join(a.dir, retiredDir, fmt.Sprintf("%x", p.cert.SerialNumber))
	if p.key != nil {
		if err := a.keys.write(base+".key", p.key); err != nil {
			return err
		}
	}
	return whole.Write(base+".crt", CertPEM(p.cert), 0o644)
}

// ServerEnd is when the server certificate ends.
func (a *Authority) ServerEnd() (time.Time, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	certs, err := readCerts(a.path(ServerName + ".crt"))
	if err != nil || len(certs) == 0 {
		return time.Time{}, fmt.Errorf("read the server certificate: %w", err)
	}
	return certs[0].NotAfter, nil
}

func (a *Authority) renewServer() error {
	p, err := a.read(ServerName)
	names, addrs := a.hosts()
	if err == nil && p.cert != nil && p.key != nil && p.key.PublicKey.Equal(p.cert.PublicKey) && !a.due(p.cert) &&
		p.cert.CheckSignatureFrom(a.use.cert) == nil && slices.Equal(p.cert.DNSNames, names) &&
		slices.EqualFunc(p.cert.IPAddresses, addrs, net.IP.Equal) {
		return a.writeServer(p.cert)
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	t, err := a.template(pkix.Name{CommonName: names[0]}, serverValidity, a.use.cert)
	if err != nil {
		return err
	}
	t.KeyUsage = stdx509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth}
	t.DNSNames, t.IPAddresses = names, addrs
	cert, err := sign(t, a.use, key.Public())
	if err != nil {
		return fmt.Errorf("server certificate: %w", err)
	}
	text, err := keyPEM(key)
	if err != nil {
		return err
	}
	if err := whole.Write(a.path(ServerName+".key"), text, 0o600); err != nil {
		return err
	}
	return a.writeServer(cert)
}

// writeServer has the doors show this certificate, and what leads from it to every trusted root.
func (a *Authority) writeServer(cert *stdx509.Certificate) error {
	chain := CertPEM(append([]*stdx509.Certificate{cert, a.use.cert}, a.shown()...)...)
	if is, err := os.ReadFile(a.path(ServerName + ".crt")); err == nil && bytes.Equal(is, chain) {
		return nil
	}
	return whole.Write(a.path(ServerName+".crt"), chain, 0o644)
}

// shownAt gives the cross-certificates up to the first that has ended: what is behind it leads nowhere.
func (h *held) shownAt(now time.Time) []*stdx509.Certificate {
	for i, c := range h.crosses {
		if now.After(c.NotAfter) {
			return h.crosses[:i]
		}
	}
	return h.crosses
}

func (a *Authority) shown() []*stdx509.Certificate { return a.shownAt(a.o.Now()) }

// hosts gives the server's names and addresses, each once, in a stable order.
func (a *Authority) hosts() (names []string, addrs []net.IP) {
	all := []string{"localhost", "127.0.0.1", "::1"}
	if h, err := os.Hostname(); err == nil && h != "" {
		all = append(all, h)
	}
	for _, h := range append(all, a.o.Hosts...) {
		if ip := net.ParseIP(h); ip != nil {
			if !slices.ContainsFunc(addrs, ip.Equal) {
				addrs = append(addrs, ip)
			}
		} else if h != "" && !slices.Contains(names, h) {
			names = append(names, h)
		}
	}
	return names, addrs
}

// early says that a certificate begins in the future. Before the root's own beginning nothing is: a clock that is behind
// that is wrong, or the root is of no use, and whatever was made below it by that clock would be in vain.
func (a *Authority) early(c *stdx509.Certificate) bool {
	now := a.o.Now()
	return now.Before(c.NotBefore) && !now.Before(a.root.cert.NotBefore)
}

// due says that two thirds of the certificate's time have passed, or that it begins in the future.
func (a *Authority) due(c *stdx509.Certificate) bool {
	if a.early(c) {
		return true
	}
	life := c.NotAfter.Sub(c.NotBefore)
	return !a.o.Now().Before(c.NotBefore.Add(life / 3 * 2))
}

// template has what every certificate has: a random serial of 128 bits, and a time that ends with its issuer's.
func (a *Authority) template(name pkix.Name, validity time.Duration, issuer *stdx509.Certificate) (*stdx509.Certificate, error) {
	serial := make([]byte, 16)
	if _, err := rand.Read(serial); err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	now := a.o.Now()
	t := &stdx509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               name,
		NotBefore:             now.Add(-Backdate).UTC().Truncate(time.Second),
		NotAfter:              now.Add(validity).UTC().Truncate(time.Second),
		BasicConstraintsValid: true,
	}
	if issuer != nil && t.NotAfter.After(issuer.NotAfter) {
		t.NotAfter = issuer.NotAfter
	}
	return t, nil
}

func sign(t *stdx509.Certificate, by pair, key crypto.PublicKey) (*stdx509.Certificate, error) {
	der, err := stdx509.CreateCertificate(rand.Reader, t, by.cert, key, by.key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return stdx509.ParseCertificate(der)
}

func (a *Authority) path(name string) string { return filepath.Join(a.dir, name) }

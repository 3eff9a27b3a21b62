package authority

import (
	"crypto/rand"
	stdx509 "crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/naru-platform/naru/internal/whole"
)

// CRLValidity is how long after it was made a revocation list is to be followed by the next one.
const CRLValidity = 24 * time.Hour

// crlIssuer stands for the issuing CA's key identifier in the address of a list.
const crlIssuer = "${issuer}"

// CheckCRLURL says why a text is no address of a revocation list, as Options.CRLURL wants one; the empty one is none, and good.
func CheckCRLURL(text string) error {
	if text == "" {
		return nil
	}
	plain := strings.ReplaceAll(text, crlIssuer, "00")
	u, err := url.Parse(plain)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "http" && u.Scheme != "https" || strings.Contains(plain, "${") {
		return fmt.Errorf("crl_url %q is not a URL such as http://naru.example/api/v1/ca/crl?issuer=%s", text, crlIssuer)
	}
	return nil
}

// ErrUnknownIssuer says that no issuing CA here has a key identifier, or its key is not here.
var ErrUnknownIssuer = errors.New("no issuing CA here has this key identifier and a key")

// RevocationList signs the list (RFC 5280) of an issuing CA, by its key identifier in hexadecimal digits; the one in use
// where that is empty. ErrUnknownIssuer says that no such issuing CA, or not its key, is here.
func (a *Authority) RevocationList(issuer string, entries []stdx509.RevocationListEntry) ([]byte, error) {
	p, err := a.issuer(issuer)
	if err != nil {
		return nil, err
	}
	number, err := a.nextList()
	if err != nil {
		return nil, fmt.Errorf("number the revocation list: %w", err)
	}
	now := a.o.Now().UTC()
	t := &stdx509.RevocationList{
		RevokedCertificateEntries: entries, Number: new(big.Int).SetUint64(number),
		ThisUpdate: now.Add(-Backdate).Truncate(time.Second), NextUpdate: now.Add(CRLValidity).Truncate(time.Second),
	}
	der, err := stdx509.CreateRevocationList(rand.Reader, t, p.cert, p.key)
	if err != nil {
		return nil, fmt.Errorf("sign the revocation list: %w", err)
	}
	return der, nil
}

// listName holds the number of the last revocation list of any issuing CA here.
const listName = "crl.number"

// nextList gives a number above all before it (RFC 5280, section 5.2.3), on disk before anybody sees it: whoever holds a list
// takes none with a lower number, whatever this machine's clock says. It begins with the clock, which also brings it above
// what a directory restored from a backup has forgotten.
func (a *Authority) nextList() (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	path := a.path(listName)
	if a.list == 0 {
		raw, err := os.ReadFile(path)
		if err == nil {
			a.list, err = strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 63)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, fmt.Errorf("read %s: %w; remove it if the clock is right: the lists go on with the time", path, err)
		}
	}
	next := max(a.list+1, uint64(max(0, a.o.Now().UnixMilli())))
	if err := whole.Write(path, fmt.Appendf(nil, "%d\n", next), 0o600); err != nil {
		return 0, err
	}
	a.list = next
	return next, nil
}

func (a *Authority) issuer(id string) (pair, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, p := range append([]pair{a.use}, a.old...) {
		if (id == "" || hex.EncodeToString(p.cert.SubjectKeyId) == id) && p.key != nil {
			return p, nil
		}
	}
	return pair{}, fmt.Errorf("%w: %.64q", ErrUnknownIssuer, id)
}

// Issuer is the certificate of an issuing CA, by its key identifier, of which there is a key here; as RevocationList.
func (a *Authority) Issuer(id string) (*stdx509.Certificate, error) {
	p, err := a.issuer(id)
	return p.cert, err
}

package x509

import (
	"crypto/sha256"
	stdx509 "crypto/x509"
	"fmt"
	"slices"
	"strings"

	"github.com/naru-platform/naru/service_platform/x509/authority"
)

// prefixMin is how many digits of a fingerprint are enough, where no other begins so.
const prefixMin = 8

// complete gives the fingerprint that somebody means who writes it, or the beginning of it, as it is shown or as openssl
// prints it. A whole one is given as it is, whether it is among all or not. unknown is what the error is of where none
// begins so; ErrRefused says that several do.
func complete(given string, all []string, unknown error) (string, error) {
	text, ok := fingerprintText(given)
	switch {
	case !ok:
		return "", fmt.Errorf("%w: %q is no fingerprint, nor the first %d digits of one or more", unknown, short(given), prefixMin)
	case len(text) == 2*sha256.Size:
		return text, nil
	}
	var found []string
	for _, f := range all {
		if Means(text, f) && !slices.Contains(found, f) {
			found = append(found, f)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("%w: no fingerprint begins with %s", unknown, text)
	case 1:
		return found[0], nil
	}
	slices.Sort(found)
	return "", fmt.Errorf("%w: %d fingerprints begin with %s: %s; write more of it", ErrRefused, len(found), text, strings.Join(found, ", "))
}

// Means says whether somebody who writes given means this fingerprint: all of it, or its first digits.
func Means(given, fingerprint string) bool {
	text, ok := fingerprintText(given)
	return ok && strings.HasPrefix(fingerprint, text)
}

// fingerprintText is a fingerprint, or its beginning, without what stands between and behind its digits; false where it is
// none.
func fingerprintText(given string) (text string, ok bool) {
	text = strings.ToLower(strings.ReplaceAll(strings.TrimSuffix(given, "…"), ":", ""))
	return text, len(text) >= prefixMin && len(text) <= 2*sha256.Size && strings.Trim(text, "0123456789abcdef") == ""
}

func fingerprints(certs []*stdx509.Certificate) (all []string) {
	for _, c := range certs {
		all = append(all, authority.Fingerprint(c.Raw))
	}
	return all
}

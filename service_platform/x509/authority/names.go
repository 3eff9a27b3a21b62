package authority

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
)

// idMax is the longest device id. X.520 would end a common name at 64 characters; the name that counts is the URI
// beside it, and no library that devices use refuses a longer one.
const idMax = 128

// CheckDevice says what is wrong with a device id; nil when nothing is. An id has 1 to 128 characters: ASCII letters
// and digits and `- _ . : @ = , ~ ! & ( ) ' ; $`, the dollar not in front, for that is where MQTT's own topics begin.
// It is neither `.` nor `..`, which no path of a URL can hold.
func CheckDevice(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("a device id is wanted")
	case len(id) > idMax:
		return fmt.Errorf("device id %q… has %d bytes; %d is the most", id[:32], len(id), idMax)
	case id[0] == '$':
		return fmt.Errorf("device id %q begins with $, which is kept for MQTT's own topics", id)
	case id == "." || id == "..":
		return fmt.Errorf("device id %q is a path, not a name", id)
	}
	for i, r := range id {
		if !Plain(r) && !strings.ContainsRune(".:@=,~!&()';$", r) {
			return fmt.Errorf("device id %q: %q at byte %d; letters, digits and - _ . : @ = , ~ ! & ( ) ' ; $ are allowed", id, r, i)
		}
	}
	return nil
}

// Plain says which characters stand for themselves in a table's key.
func Plain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

// uri is the name in a certificate: `naru:device:<id>`, percent-encoded as RFC 3986 wants.
func uri(kind, id string) *url.URL {
	if kind == "" {
		kind = "device"
	}
	return &url.URL{Scheme: "naru", Opaque: kind + ":" + url.PathEscape(id)}
}

// Fingerprint names a certificate: SHA-256 over its DER, in lower-case hexadecimal digits.
func Fingerprint(der []byte) string {
	h := sha256.Sum256(der)
	return hex.EncodeToString(h[:])
}

package x509

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"
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
		if !plain(r) && !strings.ContainsRune(".:@=,~!&()';$", r) {
			return fmt.Errorf("device id %q: %q at byte %d; letters, digits and - _ . : @ = , ~ ! & ( ) ' ; $ are allowed", id, r, i)
		}
	}
	return nil
}

// plain says which characters stand for themselves in a table's key.
func plain(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

const devicePrefix = "d."

// deviceKey is the registry's key of a device: what a table's key cannot hold, and the dot that some engines give a
// meaning, is written as an equals sign and two hexadecimal digits.
func deviceKey(id string) string {
	var b strings.Builder
	b.WriteString(devicePrefix)
	for i := range len(id) {
		if c := id[i]; plain(rune(c)) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}

// uri is the name in a certificate: `naru:device:<id>`, percent-encoded as RFC 3986 wants.
func uri(kind, id string) *url.URL {
	if kind == "" {
		kind = "device"
	}
	return &url.URL{Scheme: "naru", Opaque: kind + ":" + url.PathEscape(id)}
}

const certPrefix = "c."

// certKey is where it stands whose a certificate is.
func certKey(fingerprint string) string { return certPrefix + fingerprint }

// Fingerprint names a certificate: SHA-256 over its DER, in lower-case hexadecimal digits.
func Fingerprint(der []byte) string {
	h := sha256.Sum256(der)
	return hex.EncodeToString(h[:])
}

// Duration is a time.Duration that configuration and requests write as text: what time.ParseDuration reads, or a
// number of days such as `365d`.
type Duration time.Duration

// durationMax is beyond what anything here lasts, and far from what a time.Duration can hold.
const durationMax = 200 * 365 * 24 * time.Hour

// UnmarshalText reads it.
func (d *Duration) UnmarshalText(b []byte) error {
	s := string(b)
	number, days := strings.CutSuffix(s, "d")
	if days {
		number += "h"
	}
	v, err := time.ParseDuration(number)
	switch most := durationMax; {
	case err != nil && digits.MatchString(s):
		return fmt.Errorf("%q is too long; 73000d (200 years) is the most", short(s))
	case err != nil:
		return fmt.Errorf("%q is not a duration; write 365d or 12h30m", short(s))
	case days && v.Abs() > most/24, v.Abs() > most:
		return fmt.Errorf("%q is too long; 73000d (200 years) is the most", short(s))
	case days:
		v *= 24
	}
	*d = Duration(v)
	return nil
}

// digits is a number with a unit: where it is no duration all the same, it is one that is too long.
var digits = regexp.MustCompile(`^[-+]?[0-9]+(ns|us|µs|ms|s|m|h|d)$`)

// MarshalText writes whole days as days.
func (d Duration) MarshalText() ([]byte, error) {
	if v := time.Duration(d); v != 0 && v%(24*time.Hour) == 0 {
		return fmt.Appendf(nil, "%dd", v/(24*time.Hour)), nil
	}
	return []byte(time.Duration(d).String()), nil
}

func short(s string) string {
	if len(s) > idMax {
		return s[:idMax] + "…"
	}
	return s
}

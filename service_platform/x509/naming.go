package x509

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/naru-platform/naru/service_platform/x509/authority"
)

const devicePrefix = "d."

// deviceKey is the registry's key of a device: what a table's key cannot hold, and the dot that some engines give a
// meaning, is written as an equals sign and two hexadecimal digits.
func deviceKey(id string) string {
	var b strings.Builder
	b.WriteString(devicePrefix)
	for i := range len(id) {
		if c := id[i]; authority.Plain(rune(c)) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "=%02X", c)
		}
	}
	return b.String()
}

const certPrefix = "c."

// certKey is where it stands whose a certificate is.
func certKey(fingerprint string) string { return certPrefix + fingerprint }

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

// shortMax is as long as the longest device id.
const shortMax = 128

func short(s string) string { return cut(s, shortMax) }

// cut shortens a text between two characters.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "…"
}

// Package when reads the times that people and their tools ask by.
package when

import (
	"errors"
	"strconv"
	"strings"
	"time"
)

var errForm = errors.New("want a time such as 2026-11-23T03:00:00Z, milliseconds since 1970, or how long ago such as 10m, 24h or 7d")

// Parse reads a moment: RFC 3339, a day such as 2026-11-23 in UTC, milliseconds since 1970, `now`, or how long before now
// in ns, us, ms, s, m, h, d and w, with a minus before it or not. Empty is the zero time.
func Parse(s string, now time.Time) (time.Time, error) {
	switch s {
	case "":
		return time.Time{}, nil
	case "now":
		return now, nil
	}
	if strings.Trim(s, "0123456789") == "" {
		ms, err := strconv.ParseInt(s, 10, 64)
		if err != nil || ms > maxMilli {
			return time.Time{}, errForm
		}
		return time.UnixMilli(ms).UTC(), nil
	}
	if ago, ok := Duration(strings.TrimPrefix(s, "-")); ok {
		return now.Add(-ago), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errForm
}

// maxMilli is the end of the year 9999, beyond which RFC 3339 has no word.
const maxMilli = 253402300799999

// Duration reads a duration as Go writes it, or in days (7d) or weeks (2w), and says whether it is one; none is below zero.
func Duration(s string) (time.Duration, bool) {
	for unit, is := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			f, err := strconv.ParseFloat(n, 64)
			return time.Duration(f * float64(is)), err == nil && f >= 0 && f*float64(is) < 1<<63
		}
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0
}

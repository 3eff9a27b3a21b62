package when

import (
	"testing"
	"time"
)

func TestTimesAreReadAsPeopleAndToolsWriteThem(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"":                          {},
		"now":                       now,
		"2026-11-28T13:00:00+02:00": time.Date(2026, 11, 28, 11, 0, 0, 0, time.UTC),
		"2026-11-28T11:00:00.5Z":    time.Date(2026, 11, 28, 11, 0, 0, 5e8, time.UTC),
		"2026-11-27":                time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC),
		"1795867200000":             now,
		"24h":                       now.Add(-24 * time.Hour),
		"-24h":                      now.Add(-24 * time.Hour),
		"-7d":                       now.Add(-7 * 24 * time.Hour),
		"1.5d":                      now.Add(-36 * time.Hour),
		"2w":                        now.Add(-14 * 24 * time.Hour),
		"1h30m":                     now.Add(-90 * time.Minute),
	} {
		if got, err := Parse(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"yesterday", "--1h", "-", "d", "-1795867200000", "99999999999999999999", "300000000000000", "NaNd", "Infd", "1e300d", "12:00", "2026-13-01"} {
		if got, err := Parse(s, now); err == nil {
			t.Errorf("%q is read as %v", s, got)
		}
	}
}

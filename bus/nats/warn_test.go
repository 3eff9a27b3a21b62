package nats

import (
	"log/slog"
	"strings"
	"testing"
)

// What the server says after each kill, and mends by itself, is no warning for a person.
func TestServersWarningsAreThoseThatMeanSomething(t *testing.T) {
	for format, want := range map[string]bool{
		"Filestore [KV_x] Stream state outdated, last block has additional entries, will rebuild": false,
		"Filestore [KV_x] TTL state is outdated; attempting to recover using linear scan":         false,
		"Filestore [x] Recovering stream state from index errored: prior state file":              false,
		"Filestore [x] Recovering stream state from index errored: permission denied":             true,
		"Filestore [x] could not write, disk full":                                                true,
		"JetStream resource limits exceeded for account":                                          true,
	} {
		var out strings.Builder
		serverLog{slog.New(slog.NewTextHandler(&out, nil))}.Warnf(format+"%s", "")
		if (out.Len() > 0) != want {
			t.Errorf("%q is logged: %q", format, out.String())
		}
	}
}

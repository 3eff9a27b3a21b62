//go:build foreign

package foreign

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// The alerts are what Prometheus itself takes for rules.
func TestAlertsAreReadByPrometheus(t *testing.T) {
	files, err := filepath.Glob("../../deploy/prometheus/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if out, err := exec.CommandContext(t.Context(), "promtool", "check", "rules", f).CombinedOutput(); err != nil {
			t.Errorf("%s: %v; tools/needs.sh installs promtool\n%s", f, err, out)
		}
	}
}

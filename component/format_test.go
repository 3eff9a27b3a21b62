package component

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnOlderBinaryLeavesTheDirectoryOfANewerOneAlone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, formatFile)
	for range 2 { // new, and there already
		if err := CheckFormat(dir); err != nil {
			t.Fatal(err)
		}
	}
	for says, want := range map[string]string{"1\n": "", "2\n": "newer naru", "": "damaged", "one": "damaged"} {
		if err := os.WriteFile(file, []byte(says), 0o600); err != nil {
			t.Fatal(err)
		}
		err := CheckFormat(dir)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", says, err, want)
		}
		if raw, err := os.ReadFile(file); err != nil || string(raw) != says {
			t.Errorf("%q became %q, %v", says, raw, err)
		}
	}
}

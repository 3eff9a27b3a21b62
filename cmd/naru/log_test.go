package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPartitionsOfALogThatThereIsNotAreNamed(t *testing.T) {
	for env, want := range map[string]string{
		"bus:\n  partitions:\n    devise: 4\n":   `bus.partitions: there is no setting "devise"; did you mean "device"?`,
		"bus:\n  partitions:\n    device: 0\n":   "bus.partitions: device is 0; want 1 to 64",
		"bus:\n  partitions:\n    device: 650\n": "bus.partitions: device is 650; want 1 to 64",
		"bus:\n  partitoins:\n    device: 4\n":   `did you mean "partitions"?`,
	} {
		_, err := loadConfig(&start{config: fileOf(t, env)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", env, err, want)
		}
	}
	c, err := loadConfig(&start{config: fileOf(t, "bus:\n  partitions:\n    device: 4\n")})
	if err != nil || c.Bus.Partitions["device"] != 4 {
		t.Errorf("four partitions are %v, %v", c, err)
	}
}

func fileOf(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "naru.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

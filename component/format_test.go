package component

import (
	"log/slog"
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

// Who finds a store damaged is told what to do about it.
func TestADamagedStoreIsToldWithItsRemedy(t *testing.T) {
	for file, damage := range map[string]func([]byte) []byte{
		"MANIFEST-*": func(b []byte) []byte { return b[:len(b)/2] },
	} {
		dir := t.TempDir()
		s, err := openStore(t.Context(), nil, dir, slog.New(slog.DiscardHandler), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			if err := s.set([]byte{kindUser, byte(i)}, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if err := s.commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		copied := t.TempDir() // as a kill leaves it
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		if err := s.close(func() {}); err != nil {
			t.Fatal(err)
		}
		found, err := filepath.Glob(filepath.Join(copied, "state", file))
		if err != nil || len(found) == 0 {
			t.Fatal(found, err)
		}
		for _, name := range found {
			raw, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, damage(raw), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := openStore(t.Context(), nil, copied, slog.New(slog.DiscardHandler), nil); err == nil || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("%s is damaged: %v", file, err)
		}
	}
}

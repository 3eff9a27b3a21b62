package whole

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFileIsReplacedWholeOrNotAtAll(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	if err := Directory(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "key")
	for _, text := range []string{"one", "two"} {
		if err := Write(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		info, _ := os.Stat(file)
		if err != nil || string(got) != text || info.Mode().Perm() != 0o600 {
			t.Errorf("%q, %v, mode %s", got, err, info.Mode())
		}
	}
	if err := Write(filepath.Join(dir, "no", "such"), nil, 0o600); err == nil {
		t.Error("written to a directory that there is not")
	}
	taken := filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(taken, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(taken, nil, 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("what could not be written left something: %v, %v", left, err)
	}
}

func TestFileThatIsDroppedLeavesWhatWasThere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fleet")
	for _, text := range []string{"one", "two"} {
		f, err := Create(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if text == "one" {
			if err := f.Keep(0o600); err != nil {
				t.Fatal(err)
			}
		}
		f.Drop() // after Keep it is nothing
	}
	got, err := os.ReadFile(file)
	left, _ := os.ReadDir(filepath.Dir(file))
	if err != nil || string(got) != "one" || len(left) != 1 {
		t.Errorf("%q, %d files, %v", got, len(left), err)
	}
}

func TestSweepTakesWhatACrashLeftAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".key" + mark + "123", ".profile", "key"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 || left[0].Name() != ".profile" {
		t.Errorf("left: %v, %v", left, err)
	}
}

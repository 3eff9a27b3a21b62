package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

func TestProgressTellsHowManyOfHowMany(t *testing.T) {
	for total, want := range map[int]string{
		40: "6 of 40 imported, 1 a second, 34s to go\n11 of 40 imported, 1 a second, 29s to go\n16 of 40 imported, 1 a second, 24s to go\n",
		-1: "6 imported, 1 a second\n11 imported, 1 a second\n16 imported, 1 a second\n",
	} {
		var out bytes.Buffer
		c := &cobra.Command{}
		c.SetErr(&out)
		now := time.Unix(0, 0)
		p := newProgress(c, "imported", total)
		p.now = func() time.Time { return now }
		p.began, p.told = now, now.Add(time.Second)
		for range 20 {
			now = now.Add(time.Second)
			p.add()
		}
		p.end()
		if out.String() != want {
			t.Errorf("of %d it says %q, want %q", total, out.String(), want)
		}
	}
}

// The total is of all devices in a file, also of those with a mistake, and reading begins at the beginning again.
func TestLinesOfAFleetAreCounted(t *testing.T) {
	for format, text := range map[string]string{
		"csv":   "id,attributes\nd-1,\"{\"\"a\"\":\"\"1\n2\"\"}\"\n\nd-2,\n,\n",
		"jsonl": `{"id":"d-1"}` + "\n\n{}\nx\n",
	} {
		name := filepath.Join(t.TempDir(), "fleet")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if n, err := countLines(f, format); n != 3 || err != nil {
			t.Errorf("%s: %d lines, %v", format, n, err)
		}
		if n, err := countLines(f, format); n != 3 || err != nil {
			t.Errorf("%s, once more: %d lines, %v", format, n, err)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if n, err := countLines(r, "csv"); n != -1 || err != nil {
		t.Errorf("of a pipe: %d, %v", n, err)
	}
	if _, err := countLines(w, "xml"); err != nil && !strings.Contains(err.Error(), "xml") {
		t.Error(err)
	}
}

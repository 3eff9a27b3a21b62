package main

import (
	"strings"
	"testing"
)

// What a device says must not command the terminal of whoever reads it.
func TestNothingThatIsPrintedCommandsATerminal(t *testing.T) {
	var out strings.Builder
	p := &printer{w: &out}
	evil := "a\x1b]0;gone\x07\u009b2J\u202eb\u2066\rc\x7f"
	p.line("client %s", evil)
	p.row("ID", evil+"\nforged  line")
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	out.WriteString(cut(evil, 100))
	for _, r := range out.String() {
		if commands(r) {
			t.Errorf("%q is printed: %q", r, out.String())
		}
	}
	if !strings.Contains(out.String(), `\x1b]0;gone\a\u009b2J\u202eb`) || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("printed: %q", out.String())
	}
}

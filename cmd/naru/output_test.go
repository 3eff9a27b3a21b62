package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
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

func TestJSONForPeopleHasNoEscapesOfHTML(t *testing.T) {
	var b strings.Builder
	sql := `SELECT "\u003e" \\u003e & < >` // a backslash stays one
	if err := (&options{output: "json"}).show(&b, map[string]string{"sql": sql}, nil); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.ReplaceAll(b.String(), `\\u003e`, ""), `\u00`) {
		t.Errorf("it is written as %s", b.String())
	}
	var back map[string]string
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil || back["sql"] != sql {
		t.Errorf("%q is read back as %q, %v", sql, back["sql"], err)
	}
}

func TestDurationInFullHasNoUnitsWithNothingInThem(t *testing.T) {
	for d, want := range map[time.Duration]string{720 * time.Hour: "30d", 24 * time.Hour: "24h", 90 * time.Minute: "1h30m", time.Minute: "1m", 10 * time.Second: "10s",
		49 * time.Hour: "49h", time.Hour + time.Second: "1h0m1s"} {
		if got := exactly(d); got != want {
			t.Errorf("%s is written %s; want %s", d, got, want)
		}
	}
}

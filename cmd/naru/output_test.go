package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
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

func TestTableKeepsItsColumnsWhereTheLastIsEmpty(t *testing.T) {
	var out strings.Builder
	p := &printer{w: &out}
	p.columns("none", "DEVICE", "SINCE", "GROUPS")
	p.row("d-1", "2026-11-28", "")
	p.row("d-2", "2026-11-28", "lab")
	p.columns("There is none.", "OTHER", "TABLE")
	p.line("end")
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	want := "DEVICE  SINCE       GROUPS\nd-1     2026-11-28\nd-2     2026-11-28  lab\nThere is none.\nend\n"
	if out.String() != want {
		t.Errorf("printed:\n%s\nwant:\n%s", out.String(), want)
	}
}

// A heading with nothing below it tells a tired person nothing.
func TestListOfNothingSaysSo(t *testing.T) {
	empty := func(v any) map[string]http.HandlerFunc {
		return map[string]http.HandlerFunc{"GET /": says(http.StatusOK, v)}
	}
	list, object := empty([]any{}), empty(map[string]any{})
	for args, c := range map[string]struct {
		ways map[string]http.HandlerFunc
		want string
	}{
		"ledger":                      {list, "No consumer has told of itself yet; "},
		"messages":                    {object, "No message matches."},
		"ca claim list":               {list, "No claim certificates; `naru ca claim add "},
		"command list":                {object, "No commands; `naru command send DEVICE NAME` says one."},
		"command list --device d-1":   {object, "No commands match."},
		"data models":                 {list, "No datasets; `naru data apply FILE` "},
		"data stats":                  {list, "No dataset has rows yet."},
		"dead groups":                 {object, "No dead letters."},
		"dead list":                   {object, "No dead letters; `naru dead groups` "},
		"dead list --device d-1":      {object, "No dead letters match."},
		"dead jobs":                   {list, "No retries or discards yet; "},
		"dead audit":                  {list, "Nobody has retried, "},
		"destination list":            {object, "No destinations; `naru destination add "},
		"device list":                 {object, "No devices; `naru device add ID` registers one."},
		"device list --state revoked": {object, "No devices match."},
		"device expiring":             {object, "No device's last certificate ends within 30d."},
		"mqtt sessions":               {list, "No client has a session."},
		"mqtt connections":            {list, "No client is connected."},
		"rule list":                   {object, "No rules; `naru rule add "},
		"twin list":                   {object, "None of 0 twins; 0 drift."},
		"why device --by-ca":          {object, "Nobody came within a day."},
		"worker list":                 {object, "No workers; `naru worker add NAME` "},
	} {
		out, _, err := asked(t, c.ways, strings.Fields(args)...)
		if err != nil || !strings.HasPrefix(out, c.want) || strings.Count(out, "\n") != 1 {
			t.Errorf("naru %s: %v, %q; want the line %q", args, err, out, c.want)
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if f != "output_test.go" && regexp.MustCompile(`\.row\("[A-Z]{2}`).Match(raw) {
			t.Errorf("%s prints a heading as a row; columns knows what to say where none follows", f)
		}
	}
}

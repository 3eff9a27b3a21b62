package message_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/naru-platform/naru/message"
)

var update = flag.Bool("update", false, "write generated files anew")

func TestReasonsAreClosedAndDocumented(t *testing.T) {
	names, codes := map[string]bool{}, map[string]bool{}
	var b strings.Builder
	b.WriteString("# Reasons\n\nWhy a message, a connection or a request was refused, is being tried again, or died. The list is closed, the codes are for\never. `naru reasons NAME` prints one of them.\n")
	for _, r := range message.Reasons() {
		if names[r.Name] || codes[r.Code] {
			t.Errorf("%s %s is there twice", r.Code, r.Name)
		}
		names[r.Name], codes[r.Code] = true, true
		if !regexp.MustCompile(`^[a-z0-9]+(_[a-z0-9]+)*$`).MatchString(r.Name) || r.Means == "" || r.Look == "" {
			t.Errorf("%s: a reason has a snake_case name, says what it means and what to look at", r.Code)
		}
		for _, s := range []string{r.Name, r.Code} {
			if got, err := message.ParseReason(s); err != nil || got != r.Reason {
				t.Errorf("ParseReason(%s) is %v, %v", s, got, err)
			}
		}
		fmt.Fprintf(&b, "\n## %s\n\n`%s` %s\n\nLook at: %s\n", r.Name, r.Code, r.Means, r.Look)
	}
	const file = "../docs/reasons.md"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != b.String() {
		t.Errorf("docs/reasons.md is not current (%v); run `go test ./message -run Reasons -update`", err)
	}
}

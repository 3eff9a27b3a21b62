package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var (
	inQuotes = regexp.MustCompile("`naru ([^`\n]+)`")
	inLines  = regexp.MustCompile(`(?m)^(?:\s*|\./|bin/|\$ )naru ([^#\n]+)`)
	fences   = regexp.MustCompile("(?s)```.*?```")
)

// What people are told to type must be there: in the documents, and in what reasons and errors say.
func TestCommandsThatPeopleAreToldOfExist(t *testing.T) {
	var files []string
	for _, pattern := range []string{"../../*.md", "../../docs/*.md", "../../examples/*", "../../service_platform/*/README.md", "../../deploy/*/*",
		"../../message/*.go", "../../component/*.go", "../../bus/*/*.go", "../../service_platform/*/*.go", "../../operator/*/*.go", "*.go"} {
		list, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, list...)
	}
	seen := 0
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || strings.HasSuffix(f, "_test.go") {
			continue // a folder, or nobody's words
		}
		text := strings.ReplaceAll(string(b), "\\|", "|")
		found := inQuotes.FindAllStringSubmatch(text, -1)
		if strings.HasSuffix(f, ".md") {
			for _, block := range fences.FindAllString(text, -1) {
				found = append(found, inLines.FindAllStringSubmatch(block, -1)...)
			}
		}
		for _, m := range found {
			for _, line := range alternatives(m[1]) {
				seen++
				if err := known(line); err != "" {
					t.Errorf("%s says `naru %s`: %s", f, line, err)
				}
			}
		}
	}
	if seen < 60 {
		t.Errorf("only %d commands were found", seen)
	}
}

// alternatives spells `device add|list` out.
func alternatives(line string) []string {
	words := strings.Fields(line)
	for i, w := range words {
		if w == "|" || w == ">" || w == "&&" { // another program's
			return alternatives(strings.Join(words[:i], " "))
		}
		if strings.Contains(w, "|") && !strings.ContainsAny(w, "<['\"-") {
			var all []string
			for _, a := range strings.Split(w, "|") {
				all = append(all, alternatives(strings.Join(append(append(append([]string{}, words[:i]...), a), words[i+1:]...), " "))...)
			}
			return all
		}
	}
	return []string{strings.Join(words, " ")}
}

var plainWord = regexp.MustCompile(`^[a-z][a-z-]+$`)

func known(line string) string {
	c := newRoot()
	c.InitDefaultHelpCmd()
	c.InitDefaultCompletionCmd("completion")
	words := strings.Fields(line)
	for i, w := range words {
		if strings.HasPrefix(w, "-") {
			name, _, _ := strings.Cut(strings.Trim(w, ",.;:)"), "=")
			if strings.HasPrefix(name, "--") && c.Flags().Lookup(name[2:]) == nil && c.InheritedFlags().Lookup(name[2:]) == nil && name != "--help" && name != "--version" {
				return "there is no " + name
			}
			continue
		}
		var next *cobra.Command
		for _, sub := range c.Commands() {
			if sub.Name() == strings.Trim(w, ",.;:)") || sub.HasAlias(w) {
				next = sub
			}
		}
		switch {
		case next != nil:
			c = next
		case i == 0, c.HasSubCommands() && plainWord.MatchString(w):
			return "there is no such command"
		}
	}
	return ""
}

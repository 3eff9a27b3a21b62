package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A backquoted word in a flag's usage is the name of its value: one word, and not a command.
func TestHelpNamesAFlagsValueInAWord(t *testing.T) {
	var look func(c *cobra.Command)
	look = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if name, _ := pflag.UnquoteUsage(f); strings.Contains(name, " ") {
				t.Errorf("%s --%s: its value is called %q", c.CommandPath(), f.Name, name)
			}
		})
		for _, sub := range c.Commands() {
			look(sub)
		}
	}
	look(newRoot())
}

func TestArgumentThatIsMissingIsNamed(t *testing.T) {
	for args, want := range map[string]string{
		"device show":            "naru device show: ID is missing (`naru device show --help` shows how)",
		"device set":             "naru device set: ID is missing",
		"command send":           "naru command send: DEVICE NAME is missing",
		"command send d-1":       "naru command send: NAME is missing",
		"command send d-1 a b c": `naru command send: "c" is one argument too many`,
		"device show a b":        `naru device show: "b" is one argument too many`,
		"status now":             `naru status takes no arguments; "now" is one too many`,
		"device nonsense":        `naru device has no command "nonsense"`,
	} {
		_, _, err := asked(t, nil, strings.Fields(args)...)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
	// No command is left that counts where it could name.
	var look func(c *cobra.Command)
	look = func(c *cobra.Command) {
		for n := range 6 {
			if c.Args == nil {
				break
			}
			if err := c.Args(c, make([]string, n)); err != nil && strings.Contains(err.Error(), "arg(s)") {
				t.Errorf("%s, %d arguments: %v", c.CommandPath(), n, err)
			}
		}
		for _, sub := range c.Commands() {
			look(sub)
		}
	}
	look(newRoot())
}

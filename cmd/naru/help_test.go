package main

import (
	"net/http"
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
		"device show":                         "naru device show: ID is missing (`naru device show --help` shows how)",
		"device set":                          "naru device set: ID is missing",
		"command send":                        "naru command send: DEVICE NAME is missing",
		"command send d-1":                    "naru command send: NAME is missing",
		"command send d-1 a b c":              `naru command send: "c" is one argument too many`,
		"device show a b":                     `naru device show: "b" is one argument too many`,
		"status now":                          `naru status takes no arguments; "now" is one too many`,
		"device nonsense":                     `naru device has no command "nonsense"; there are add, `,
		"device lits":                         "naru device has no command \"lits\"; is \"list\" meant? (`naru device --help` shows what there is)",
		"statuss":                             `naru has no command "statuss"; is "status" meant?`,
		"bench nonsense":                      `naru bench has no command "nonsense"; there are idle, ingest, mqtt, path, storm`,
		"help nonsense":                       `naru has no command "nonsense"`,
		"help device nonsense":                `naru device has no command "nonsense"`,
		"completion nonsense":                 `naru completion has no command "nonsense"; there are bash, `,
		"rule explain hot":                    "naru rule explain: --message is missing (`naru rule explain --help` shows how)",
		"topic hz x -w 0s":                    "--window 0s",
		"topic echo x -n -1":                  "--count -1",
		"topic hz x -w soon":                  `--window "soon": want a duration such as 10s, 5m or 1h30m`,
		"messages -n many":                    `--limit "many": want a number`,
		"sim -n 0":                            "--devices 0",
		"bench ingest --duration 0s":          "want at least 1 publisher",
		"bench idle --connections 2000000000": "2000000000 connections want more ports than there are to connect from: take --connections 1270000",
		"dead retry":                          "naru dead retry: which letters?",
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

func TestHelpNamesEachCommandOnce(t *testing.T) {
	root := newRoot()
	var out strings.Builder
	root.SetOut(&out)
	root.SetArgs([]string{"--help"})
	if err := root.Execute(); err != nil || strings.Count(out.String(), "Help about any command") != 1 {
		t.Errorf("%v:\n%s", err, out.String())
	}
}

// A tired person does not type a device's name.
func TestShellCompletesTheNamesThereAre(t *testing.T) {
	named := func(key string, names ...string) (all []map[string]any) {
		for _, n := range names {
			all = append(all, map[string]any{key: n})
		}
		return all
	}
	ways := map[string]http.HandlerFunc{
		"GET /api/v1/devices":       says(http.StatusOK, map[string]any{"devices": named("id", "d-1", "d-2", "e-1")}),
		"GET /api/v1/devices/d-":    says(http.StatusNotFound, map[string]any{}),
		"GET /api/v1/rules":         says(http.StatusOK, map[string]any{"rules": named("name", "hot", "cold")}),
		"GET /api/v1/workers":       says(http.StatusOK, map[string]any{"workers": named("name", "hot-go")}),
		"GET /api/v1/destinations":  says(http.StatusOK, map[string]any{"destinations": named("name", "pager")}),
		"GET /api/v1/data/datasets": says(http.StatusOK, named("name", "oven", "telemetry")),
		"GET /api/v1/dead":          says(http.StatusOK, map[string]any{"letters": named("id", "l1", "l2")}),
		"GET /api/v1/dead/jobs":     says(http.StatusOK, named("id", "j1")),
		"GET /api/v1/logs":          says(http.StatusOK, map[string]any{"logs": named("log", "device")}),
		"GET /api/v1/status":        says(http.StatusOK, map[string]any{"components": named("name", "x.y", "x.y")}),
		"GET /api/v1/ledger":        says(http.StatusOK, named("consumer", "x.y")),
	}
	for args, want := range map[string]string{
		"device show |":             "d-1 d-2 e-1",
		"device show |d-":           "d-1 d-2",
		"device show d-1 |":         "",
		"why device |":              "d-1 d-2 e-1",
		"twin get |e":               "e-1",
		"command send |":            "d-1 d-2 e-1",
		"messages --device |":       "d-1 d-2 e-1",
		"rule show |":               "cold hot",
		"worker pause |":            "hot-go",
		"destination show |":        "pager",
		"data show |":               "oven telemetry",
		"data latest telemetry |":   "d-1 d-2 e-1",
		"data etl test --dataset |": "oven telemetry",
		"data remove |":             "dataset pipeline",
		"dead retry l1 |":           "l2",
		"dead job |":                "j1",
		"log show |":                "device",
		"node info |":               "x.y",
		"ledger forget |":           "x.y",
		"trace |":                   "",
	} {
		line, begins, _ := strings.Cut(args, "|")
		out, _, err := asked(t, ways, append(append([]string{"__complete"}, strings.Fields(line)...), begins)...)
		lines := strings.Fields(out[:strings.LastIndex(out, ":")])
		if err != nil || strings.Join(lines, " ") != want {
			t.Errorf("naru %s completes to %q, %v; want %q", args, lines, err, want)
		}
	}
}

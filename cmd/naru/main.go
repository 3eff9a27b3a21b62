// Command naru is the whole platform in one binary: it runs the components, and it is what an operator asks.
//
// A command is in the file of its first word, and what is much of its own in one behind that: `naru device add` in device.go,
// `naru device import` in device_fleet.go. What only looks at the platform (ledger, status, node, graph, reasons) is in ask.go,
// what follows messages (trace, topic) in messages.go, and what starts it (run) in up.go. All reach a running platform by
// client.go, and print by output.go.
//
// Exit codes: 0 done, 1 a mistake or a failure, 2 a fault of the platform was found.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/naru-platform/naru/internal/built"
	"github.com/naru-platform/naru/internal/near"
)

// errFault says that the command worked and what it looked at is not well: exit code 2. What there is to say has been
// said.
var errFault = errors.New("a fault was found")

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errFault):
		return 2
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return 130 // as a shell says it of a program that was interrupted
	}
	fmt.Fprintf(os.Stderr, "naru: %s\n", oneLine(err))
	return 1
}

// alsoFormats is an annotation of commands that know more formats of output than text and json.
const alsoFormats = "formats"

// oneLine is an error as a tired person wants it.
func oneLine(err error) string {
	return printable(strings.TrimSpace(strings.ReplaceAll(err.Error(), "\n", "; ")))
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "naru",
		Short: "A message platform for fleets of devices, where no message is without a fate",
		Long: `naru runs a message platform for fleets of connected devices, and shows what crosses it.

  naru up --sim 20                    start everything, with twenty simulated devices
  naru messages --follow              watch the messages cross
  naru trace <id>                     one message's way through the platform
  naru ledger                         what was accepted = handled + waiting + dead

Commands that ask a running platform find it by --data (or NARU_DATA), or by --server with --token (NARU_TOKEN).
They exit with 2 when they found a fault.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       built.Version(),
	}
	root.SetVersionTemplate("naru {{.Version}}\n")
	f := root.PersistentFlags()
	f.StringVar(&o.data, "data", envOr("NARU_DATA", "./naru-data"), "directory of the platform's data")
	f.StringVar(&o.server, "server", os.Getenv("NARU_SERVER"), "URL of a running platform, instead of --data")
	f.StringVar(&o.token, "token", "", "token for --server (default: NARU_TOKEN)")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		var err error
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if must := f.Annotations[cobra.BashCompOneRequiredFlag]; err == nil && len(must) > 0 && must[0] == "true" && !f.Changed {
				err = fmt.Errorf("%s: --%s is missing (`%s --help` shows how)", c.CommandPath(), f.Name, c.CommandPath())
			}
		})
		if err != nil {
			return err
		}
		if there := append([]string{"text", "json"}, strings.Fields(c.Annotations[alsoFormats])...); !slices.Contains(there, o.output) {
			return fmt.Errorf("--output %s: there are %s", o.output, strings.Join(there, ", "))
		}
		return nil
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w (`%s --help` shows what there is)", plainFlag(err), c.CommandPath())
	})
	root.AddGroup(&cobra.Group{ID: "run", Title: "Run the platform:"}, &cobra.Group{ID: "ask", Title: "Ask a running platform:"})
	for _, c := range []*cobra.Command{upCommand(o), runCommand(o), simCommand(o), configCommand(o), benchCommand(o)} {
		c.GroupID = "run"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{statusCommand(o), messagesCommand(o), traceCommand(o), ledgerCommand(o), deadCommand(o), topicCommand(o), logCommand(o),
		deviceCommand(o), caCommand(o), twinCommand(o), commandCommand(o), ruleCommand(o), destinationCommand(o), workerCommand(o), dataCommand(o), whyCommand(o), mqttCommand(o), graphCommand(o), nodeCommand(o), reasonsCommand(o)} {
		c.GroupID = "ask"
		root.AddCommand(c)
	}
	help := helpCommand()
	root.SetHelpCommand(help)
	root.AddCommand(versionCommand(o), help)
	root.InitDefaultCompletionCmd("completion")
	strictArgs(o, root)
	completes(o, root)
	return root
}

// helpCommand is cobra's, but for a topic that is not there.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]...", Short: "Help about any command",
		Example: "  naru help device add",
		RunE: func(c *cobra.Command, args []string) error {
			about, rest, err := c.Root().Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 && about.HasSubCommands() {
				return noCommand(about, rest[0])
			}
			return about.Help()
		},
	}
}

// plainFlag says of a flag's value that is none what would be one, in no words of a programming language.
func plainFlag(err error) error {
	var wrong *pflag.InvalidValueError
	if !errors.As(err, &wrong) {
		return err
	}
	var why string
	switch kind := wrong.GetFlag().Value.Type(); {
	case kind == "duration" && strings.Contains(err.Error(), "time: "):
		why = "want a duration such as 10s, 5m or 1h30m"
	case strings.HasPrefix(kind, "uint"):
		why = "want a number from 0"
	case strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "float"):
		why = "want a number"
	case kind == "bool":
		why = "want true or false"
	default:
		return fmt.Errorf("--%s: %w", wrong.GetFlag().Name, errors.Unwrap(wrong))
	}
	return fmt.Errorf("--%s %q: %s", wrong.GetFlag().Name, wrong.GetValue(), why)
}

// wrongArgs says which arguments are missing or too many, by the command's Use line; another error stays as it is.
func wrongArgs(c *cobra.Command, args []string, err error) error {
	var want []string // what has to be given
	most, depth := 0, 0
	for _, word := range strings.Fields(c.Use)[1:] {
		if depth == 0 && (word[0] == '-' || word == "|") { // a flag, or another way to say it
			break
		}
		if depth == 0 {
			most++
		}
		if depth == 0 && word[0] != '[' {
			want = append(want, strings.TrimRight(word, ".…"))
		}
		depth += strings.Count(word, "[") - strings.Count(word, "]")
	}
	switch {
	case len(args) < len(want):
		return fmt.Errorf("%s: %s is missing (`%s --help` shows how)", c.CommandPath(), strings.Join(want[len(args):], " "), c.CommandPath())
	case most == 0 && len(args) > 0:
		return fmt.Errorf("%s takes no arguments; %q is one too many (`%s --help` shows what there is)", c.CommandPath(), args[0], c.CommandPath())
	case len(args) > most:
		return fmt.Errorf("%s: %q is one argument too many (`%s --help` shows how)", c.CommandPath(), args[most], c.CommandPath())
	}
	return err
}

// strictArgs makes a command that takes no arguments, or has subcommands, say so clearly.
func strictArgs(o *options, c *cobra.Command) {
	for _, sub := range c.Commands() {
		strictArgs(o, sub)
	}
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return wrongArgs(c, args, err)
			}
			return nil
		}
	}
	if c.HasSubCommands() && c.Run == nil && c.RunE == nil {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(c *cobra.Command, args []string) error {
			if len(args) == 0 && o.output == "text" {
				return c.Help()
			}
			if len(args) == 0 {
				return fmt.Errorf("%s: which? There are %s", c.CommandPath(), strings.Join(subcommands(c), ", "))
			}
			return noCommand(c, args[0])
		}
	}
}

// noCommand says that a command has none of that name, and which one may be meant.
func noCommand(c *cobra.Command, name string) error {
	there := subcommands(c)
	if meant := near.Word(name, there); meant != "" {
		return fmt.Errorf("%s has no command %q; is %q meant? (`%s --help` shows what there is)", c.CommandPath(), name, meant, c.CommandPath())
	}
	return fmt.Errorf("%s has no command %q; there are %s", c.CommandPath(), name, strings.Join(there, ", "))
}

// subcommands are the names of a command's commands, but for those that are for naru itself.
func subcommands(c *cobra.Command) (names []string) {
	for _, s := range c.Commands() {
		if !s.Hidden {
			names = append(names, s.Name())
		}
	}
	return names
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func versionCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Which naru this is", Args: cobra.NoArgs,
		Example: "  naru version -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			v := map[string]string{"version": built.Version()}
			if info, ok := debug.ReadBuildInfo(); ok {
				v["go"] = info.GoVersion
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" || s.Key == "vcs.time" {
						v[s.Key] = s.Value
					}
				}
			}
			return o.show(c.OutOrStdout(), v, func(p *printer) { p.line("naru %s (%s)", v["version"], v["go"]) })
		},
	}
}

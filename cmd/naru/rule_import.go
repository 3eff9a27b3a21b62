package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	engine "github.com/naru-platform/naru/service_platform/rule"
)

func ruleImport(o *options) *cobra.Command {
	var name, why string
	var print bool
	c := &cobra.Command{
		Use: "import FILE", Short: "Add a rule of AWS IoT", Args: cobra.ExactArgs(1),
		Long: `Reads what AWS IoT's CreateTopicRule takes or GetTopicRule answers, as JSON, and has it run as a rule of naru. Actions that naru
has not are refused with their place; what is read otherwise than AWS does is told on standard error. With --print nothing is
changed: the rule is shown as 'naru rule add' takes it.`,
		Example: "  aws iot get-topic-rule --rule-name hot | naru rule import -\n  naru rule import hot.json --name hot --print",
		RunE: func(c *cobra.Command, args []string) error {
			raw, err := readFile(c.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			d, warnings, err := engine.ImportAWS(raw, name)
			if err != nil {
				return err
			}
			for _, w := range warnings {
				fmt.Fprintln(c.ErrOrStderr(), "warning:", w)
			}
			if raw, err = json.Marshal(d); err != nil {
				return err
			}
			if print {
				if _, err := engine.Compile(d, 0, ""); err != nil {
					return err
				}
				return o.show(c.OutOrStdout(), d, func(p *printer) { p.line("%s", indented(raw)) })
			}
			return putRule(o, c, "PUT", rulePath(d.Name, ""), why, raw)
		},
	}
	c.Flags().StringVar(&name, "name", "", "its name, in place of the one in the file")
	c.Flags().StringVar(&why, "why", "", "why, for the record")
	c.Flags().BoolVar(&print, "print", false, "only show what it becomes")
	return c
}

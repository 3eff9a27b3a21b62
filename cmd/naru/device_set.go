package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/service_platform/x509"
)

func deviceSet(o *options) *cobra.Command {
	var groups, into, from []string
	var policy, template, reason string
	c := &cobra.Command{
		Use: "set ID [NAME=VALUE | NAME-]...", Short: "Change what describes a device: attributes, groups, policy, template", Args: cobra.MinimumNArgs(1),
		Long: `Changes what is named, and leaves the rest. NAME=VALUE sets an attribute, NAME- takes it away. --group puts the device in
these groups alone (--group '' in none); --add-group and --remove-group change the groups it is in. Its connections feel
it at once. naru device show tells what was changed, when and by whom.

--template has the device be one that came by a claim certificate and this template: its next certificates are valid for
as long as that says, and where it has replace the device may come by it again. The groups, attributes and policy of
the template are for devices that come, and are not taken over.`,
		Example: "  naru device set d-17 site=busan line-  --add-group pumps --policy pump --reason 'moved to line 3'",
		RunE: func(c *cobra.Command, args []string) error {
			p := x509.Patch{AddGroups: into, RemoveGroups: from, Reason: reason}
			var err error
			if p.Attributes, err = setAttributes(args[1:]); err != nil {
				return err
			}
			if c.Flags().Changed("group") {
				p.Groups = &[]string{}
				for _, g := range groups {
					if g != "" {
						*p.Groups = append(*p.Groups, g)
					}
				}
			}
			if c.Flags().Changed("policy") {
				p.Policy = &policy
			}
			if c.Flags().Changed("template") {
				p.Template = &template
			}
			if p.Attributes == nil && p.Groups == nil && p.Policy == nil && p.Template == nil && len(into)+len(from) == 0 {
				return errors.New("say what is to change: NAME=VALUE, NAME-, --group, --add-group, --remove-group, --policy or --template")
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			var d x509.Shown
			if err := cl.do(c.Context(), "PATCH", "/api/v1/devices/"+url.PathEscape(args[0]), nil, p, &d); err != nil {
				return err
			}
			if d.Warning != "" {
				o.hint(c, "warning: %s", d.Warning)
			}
			return o.show(c.OutOrStdout(), d, func(p *printer) { showDevice(p, shownDevice{Shown: d}) })
		},
	}
	f := c.Flags()
	f.StringSliceVar(&groups, "group", nil, "group that it is in, and in no others; may be given more than once")
	f.StringSliceVar(&into, "add-group", nil, "group that it is in as well; may be given more than once")
	f.StringSliceVar(&from, "remove-group", nil, "group that it is in no more; may be given more than once")
	f.StringVar(&policy, "policy", "", "name of its policy, '' for none of its own")
	f.StringVar(&template, "template", "", "name of the template that it is taken to have come by, '' for none")
	f.StringVar(&reason, "reason", "", "why, for the record")
	return c
}

// setAttributes reads what is to become of attributes: NAME=VALUE, or NAME- for one that goes.
func setAttributes(args []string) (map[string]*string, error) {
	var all map[string]*string
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		is := &value
		if !ok {
			if name, ok = strings.CutSuffix(a, "-"); ok {
				is = nil
			}
		}
		if !ok || name == "" {
			return nil, fmt.Errorf("%q: want NAME=VALUE, or NAME- to take an attribute away", a)
		}
		if _, twice := all[name]; twice {
			return nil, fmt.Errorf("attribute %s is given twice", name)
		}
		if all == nil {
			all = map[string]*string{}
		}
		all[name] = is
	}
	return all, nil
}

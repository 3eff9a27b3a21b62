package main

import (
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/service_platform/broker"
)

// mqttMay asks a broker what a client may, and why.
func mqttMay(o *options) *cobra.Command {
	var listener, client string
	c := &cobra.Command{
		Use: "may WHO publish|subscribe|deliver TOPIC", Short: "Whether a client may, and which policy decides", Args: cobra.ExactArgs(3),
		Long: `Asks the policies in force, as the broker does when the client itself comes, and shows each policy and rule that was looked at.
WHO is a device's name; at a listener with passwords it is a user, and at one that asks for nothing a client id. TOPIC is
as the client sees it; for subscribe it is a topic filter, which may begin with $share/group/. deliver asks about one
message of a subscription that was granted. Exits with 2 where the client may not.`,
		Example: "  naru mqtt may d-17 publish device/d-17/telemetry\n  naru mqtt may d-17 subscribe '$aws/things/d-17/shadow/#' -o json\n  naru mqtt may ann subscribe 'reports/#' --listener office",
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []string{"publish", "subscribe", "deliver"}, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			q := url.Values{"who": {args[0]}, "action": {args[1]}, "topic": {args[2]}}
			if listener != "" {
				q.Set("listener", listener)
			}
			if client != "" {
				q.Set("client_id", client)
			}
			var m broker.May
			if err := cl.get(c.Context(), "/api/v1/broker/may", q, &m); err != nil {
				return err
			}
			if err := o.show(c.OutOrStdout(), m, func(p *printer) {
				verdict := "may not"
				if m.Allowed {
					verdict = "may"
				}
				p.line("%s %s %s %s: %s", m.Who, verdict, m.Action, m.Topic, m.Reason)
				p.row("listener", m.Listener)
				p.row("client id", m.ClientID)
				if len(m.Named) > 0 {
					p.row("on the platform", strings.Join(m.Named, ", "))
				}
				if len(m.Policies) > 0 {
					p.line("")
					p.columns("", "POLICY", "APPLIES", "WHY")
				}
				for _, x := range m.Policies {
					p.row(x.Name, yes(x.Applies), x.Why)
				}
				if len(m.Rules) > 0 {
					p.line("")
					p.columns("", "RULE", "HOLDS", "WHY")
				}
				for _, x := range m.Rules {
					why := x.Why
					if x.Decided {
						why = "decides"
					}
					p.row(x.String(), yes(x.Holds), why)
				}
			}); err != nil {
				return err
			}
			if !m.Allowed {
				return errFault
			}
			return nil
		},
	}
	c.Flags().StringVar(&listener, "listener", "", "name of the listener (default: the first for devices with certificates)")
	c.Flags().StringVar(&client, "client", "", "client id, where it is not the default one")
	return c
}

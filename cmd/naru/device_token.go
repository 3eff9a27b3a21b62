package main

import (
	"net/url"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/service_platform/x509"
)

func deviceToken(o *options) *cobra.Command {
	var expires, validity string
	c := &cobra.Command{
		Use: "token ID", Short: "Give out a one-time token that a device enrols with by EST", Args: cobra.ExactArgs(1),
		Long: `Prints a token, once: the device shows it by HTTP Basic, its id being the user, at /.well-known/est/simpleenroll.
Nothing else is on standard output; how long it is good stands on standard error.`,
		Example: "  naru device token d-17 --expires 7d\n  TOKEN=$(naru device token d-17)",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			in := map[string]string{"by": "operator"}
			for k, v := range map[string]string{"expires": expires, "validity": validity} {
				if v != "" {
					in[k] = v
				}
			}
			if there, err := cl.registered(c.Context(), args[0]); err == nil && !there {
				o.hint(c, "no device %s is registered: who comes with the token becomes it; if that is a slip, the token ends by itself", args[0])
			}
			var t x509.TokenGiven
			if err := cl.post(c.Context(), "/api/v1/devices/"+url.PathEscape(args[0])+"/token", in, &t); err != nil {
				return err
			}
			o.hint(c, "good for one key of %s until %s; it is shown only here", t.Device, t.Expires.Format("2006-01-02 15:04 MST"))
			return o.show(c.OutOrStdout(), t, func(p *printer) { p.line("%s", t.Token) })
		},
	}
	c.Flags().Var((*lasting)(&expires), "expires", "from now (default 24h)")
	c.Flags().Var((*lasting)(&validity), "validity", "how long the certificate will be valid")
	return c
}

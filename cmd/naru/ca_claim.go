package main

import (
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/service_platform/x509"
)

func caClaim(o *options) *cobra.Command {
	c := &cobra.Command{Use: "claim", Short: "Claim certificates: what a production lot gets its devices' own certificates with"}
	c.AddCommand(claimAdd(o), claimList(o), claimRevoke(o))
	return c
}

func claimAdd(o *options) *cobra.Command {
	var out, csr, validity string
	var templates []string
	c := &cobra.Command{
		Use: "add NAME", Short: "Issue a claim certificate", Args: cobra.ExactArgs(1),
		Long: `Issues a certificate that admits nobody as a device, and is good for nothing but AWS IoT's provisioning topics
($aws/certificates/create…, $aws/provisioning-templates/<template>/provision), by the templates that it is for.`,
		Example: "  naru ca claim add lot-2026-11 --template pumps --out lot-2026-11",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if err := x509.CheckClaim(args[0]); err != nil { // before a directory is called so
				return err
			}
			in := map[string]any{"name": args[0], "templates": templates, "by": "operator"}
			if validity != "" {
				in["validity"] = validity
			}
			dir := out
			if dir == "" {
				dir = args[0]
			}
			own, err := openCredentials(dir, args[0], csr)
			if err != nil {
				return err
			}
			defer own.close()
			in["csr"] = own.csr
			var e enrolled
			if err := cl.post(c.Context(), "/api/v1/claims", in, &e); err != nil {
				own.settle(err)
				return err
			}
			if err := own.keep(e); err != nil {
				return err
			}
			shown := map[string]any{"name": e.ID, "fingerprint": e.Fingerprint, "not_after": e.NotAfter, "directory": dir}
			return o.show(c.OutOrStdout(), shown, func(p *printer) {
				p.line("claim certificate %s is in %s, valid until %s", e.ID, dir, e.NotAfter.Format("2006-01-02"))
			})
		},
	}
	c.Flags().StringSliceVar(&templates, "template", nil, "template that it is for; may be given more than once")
	c.Flags().StringVar(&out, "out", "", "directory to write to (default: the name)")
	c.Flags().StringVar(&csr, "csr", "", "certificate signing request, PEM; the key stays where it was made")
	c.Flags().Var((*lasting)(&validity), "validity", "how long it is valid (default 730d)")
	_ = c.MarkFlagRequired("template")
	return c
}

func claimList(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Every claim certificate", Args: cobra.NoArgs, Example: "  naru ca claim list",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var list []x509.Claim
			if err := cl.get(c.Context(), "/api/v1/claims", nil, &list); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), list, func(p *printer) {
				p.row("CLAIM", "VALID UNTIL", "TEMPLATES", "REVOKED", "FINGERPRINT")
				for _, l := range list {
					revoked := "-"
					if !l.RevokedAt.IsZero() {
						revoked = l.RevokedAt.Format("2006-01-02")
					}
					p.row(l.Name, l.NotAfter.Format("2006-01-02"), strings.Join(l.Templates, ","), revoked, l.Fingerprint)
				}
			})
		},
	}
}

func claimRevoke(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "revoke FINGERPRINT", Short: "Withdraw a claim certificate; what was provisioned with it stays", Args: cobra.ExactArgs(1),
		Example: "  naru ca claim revoke 3c1f…",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var claim x509.Claim
			if err := cl.post(c.Context(), "/api/v1/claims/"+url.PathEscape(args[0])+"/revoke", struct{}{}, &claim); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), claim, func(p *printer) { p.line("%s: done", claim.Name) })
		},
	}
}

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
	var another bool
	c := &cobra.Command{
		Use: "add NAME", Short: "Issue a claim certificate", Args: cobra.ExactArgs(1),
		Long: `Issues a certificate that admits nobody as a device, and is good for nothing but AWS IoT's provisioning topics
($aws/certificates/create…, $aws/provisioning-templates/<template>/provision), by the templates that it is for. A name
that a claim certificate in force has already is refused; a command that was cut off is given again, and goes on with the
key that is there.`,
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
			in["csr"], in["another"] = own.csr, another
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
				p.line("fingerprint %s", e.Fingerprint)
			})
		},
	}
	c.Flags().StringSliceVar(&templates, "template", nil, "template that it is for; may be given more than once")
	c.Flags().StringVar(&out, "out", "", "directory to write to (default: the name)")
	c.Flags().StringVar(&csr, "csr", "", "certificate signing request, PEM; the key stays where it was made")
	c.Flags().Var((*lasting)(&validity), "validity", "how long it is valid (default 730d)")
	c.Flags().BoolVar(&another, "another", false, "make one more of a name that is there already")
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
				p.columns("No claim certificates; `naru ca claim add NAME --template TEMPLATE` makes one.", "CLAIM", "VALID UNTIL", "TEMPLATES", "REVOKED", "FINGERPRINT")
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
		Use: "revoke NAME|FINGERPRINT", Short: "Withdraw a claim certificate; what was provisioned with it stays", Args: cobra.ExactArgs(1),
		Long: `Withdraws a claim certificate, by its name, its fingerprint, or the first 8 digits of that or more. Where several in force
have the name, nothing is withdrawn until a fingerprint says which.`,
		Example: "  naru ca claim revoke lot-2026-11\n  naru ca claim revoke 3c1f09ab",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var done x509.RevokedClaim
			if err := cl.post(c.Context(), "/api/v1/claims/"+url.PathEscape(args[0])+"/revoke", struct{}{}, &done); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), done, func(p *printer) {
				p.line("claim certificate %s, %s, is revoked", done.Name, done.Fingerprint)
				for _, other := range done.Others {
					p.line("another of that name is in force: %s, valid until %s", other.Fingerprint, other.NotAfter.Format("2006-01-02"))
				}
			})
		},
	}
}

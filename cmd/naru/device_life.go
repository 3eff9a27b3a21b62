package main

import (
	"fmt"
	"net/url"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/service_platform/x509"
)

func deviceRotate(o *options) *cobra.Command {
	var out, csr, validity, overlap string
	c := &cobra.Command{
		Use: "rotate ID", Short: "Issue a new certificate; the old one is accepted a while longer", Args: cobra.ExactArgs(1),
		Long: `Issues a new certificate beside the old one. Both admit the device until the overlap has passed; then the old one is
revoked, and connections that still use it end. A command that was cut off is given again, with the same directory: it
goes on with the key that is there.`,
		Example: "  naru device rotate d-17 --out d-17-new --overlap 7d",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if err := authority.CheckDevice(args[0]); err != nil { // before a directory is called so
				return err
			}
			in := map[string]any{"by": "operator"}
			for k, v := range map[string]string{"validity": validity, "overlap": overlap} {
				if v != "" {
					in[k] = v
				}
			}
			dir := out
			if dir == "" {
				dir = args[0] + "-" + time.Now().Format("2006-01-02")
			}
			own, err := openCredentials(dir, args[0], csr)
			if err != nil {
				return err
			}
			defer own.close()
			in["csr"] = own.csr
			var e enrolled
			if err := cl.post(c.Context(), "/api/v1/devices/"+url.PathEscape(args[0])+"/rotate", in, &e); err != nil {
				own.settle(err)
				return err
			}
			if err := own.keep(e); err != nil {
				return err
			}
			shown := map[string]any{"id": e.ID, "fingerprint": e.Fingerprint, "not_after": e.NotAfter, "directory": dir}
			return o.show(c.OutOrStdout(), shown, func(p *printer) {
				p.line("%s has a new certificate, valid until %s; it is in %s", e.ID, e.NotAfter.Format("2006-01-02"), dir)
			})
		},
	}
	c.Flags().StringVar(&out, "out", "", "directory to write to (default: the device's id and the day)")
	c.Flags().StringVar(&csr, "csr", "", "certificate signing request, PEM; the key stays where it was made")
	c.Flags().Var((*lasting)(&validity), "validity", "how long the certificate is valid, such as 90d")
	c.Flags().Var((*lasting)(&overlap), "overlap", "how much longer the old one is accepted (default 7d)")
	return c
}

func deviceDelete(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Short: "Forget a device: its registration, session, retained messages and twins", Args: cobra.ExactArgs(1),
		Example: "  naru device delete d-17",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if err := cl.do(c.Context(), "DELETE", "/api/v1/devices/"+url.PathEscape(args[0]), url.Values{"by": {"operator"}}, nil, nil); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), map[string]string{"deleted": args[0]}, func(p *printer) { p.line("%s is deleted, and its certificates admit nobody", args[0]) })
		},
	}
}

func deviceExpiring(o *options) *cobra.Command {
	var within string
	c := &cobra.Command{
		Use: "expiring", Short: "Devices whose last certificate ends soon, or has ended", Args: cobra.NoArgs,
		Long:    "Lists devices whose last certificate in force ends within a time. It exits with 2 when there is one.",
		Example: "  naru device expiring --within 30d",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			all := []x509.Shown{}
			err = eachDevice(c.Context(), cl, url.Values{"expiring": {within}}, func(d x509.Shown) error { all = append(all, d); return nil })
			if err != nil {
				return err
			}
			err = o.show(c.OutOrStdout(), all, func(p *printer) {
				p.columns("No device's last certificate ends within "+within+".", "DEVICE", "STATE", "VALID UNTIL", "")
				for _, d := range all {
					left := time.Until(d.Until())
					when := "in " + short(left)
					if left < 0 {
						when = short(left) + " ago"
					}
					p.row(d.ID, stateOf(d), until(d), when)
				}
			})
			if err == nil && len(all) > 0 {
				err = errFault
			}
			return err
		},
	}
	within = "30d"
	c.Flags().Var((*lasting)(&within), "within", "how far to look ahead")
	return c
}

// lasting is a flag's time that may be written in days, such as 90d. It is looked at here, so that what is wrong is named by
// its flag.
type lasting string

func (l *lasting) String() string { return string(*l) }
func (l *lasting) Type() string   { return "duration" }
func (l *lasting) Set(text string) error {
	var d x509.Duration
	*l = lasting(text)
	if err := d.UnmarshalText([]byte(text)); err != nil {
		return err
	}
	if d < 0 {
		return fmt.Errorf("%s is over before it begins; want such as 30d", text)
	}
	return nil
}

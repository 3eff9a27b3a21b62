package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/naru-platform/naru/service_platform/x509"
)

func caRetire(o *options) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "retire FINGERPRINT", Short: "Trust a root of before no more; its devices are shut out", Args: cobra.ExactArgs(1),
		Long: `Says how many devices have certificates below the root, how many have no other and will not get in any more, and how
many came with one within a day; and retires it once that is confirmed: by the word yes in a terminal, elsewhere by --yes.
There is no way back but new certificates for those devices. Without --yes nothing is changed, and the command ends with 1.`,
		Example: "  naru ca retire 3c1f…\n  naru ca retire 3c1f… --yes -o json",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			d, err := o.confirmEnd(c, cl, args[0], "retire", yes)
			if err != nil {
				return err
			}
			var done struct {
				x509.CAStatus
				Ended x509.Dependents `json:"ended"`
			}
			done.Ended = d
			if err := cl.post(c.Context(), "/api/v1/ca/retire", map[string]string{"fingerprint": d.Fingerprint}, &done.CAStatus); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), done, func(p *printer) { showCA(p, done.CAStatus) })
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do it without asking")
	return c
}

func caRemove(o *options) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "remove FINGERPRINT", Short: "Trust a registered CA no more; its devices are shut out", Args: cobra.ExactArgs(1),
		Long: `Says how many devices have certificates of the CA, and removes it once that is confirmed, as retire does. disable does
the same and can be taken back.`,
		Example: "  naru ca remove 3c1f…\n  naru ca remove 3c1f… --yes",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			d, err := o.confirmEnd(c, cl, args[0], "remove", yes)
			if err != nil {
				return err
			}
			if err := cl.do(c.Context(), "DELETE", "/api/v1/ca/registered/"+url.PathEscape(d.Fingerprint), nil, nil, nil); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), map[string]any{"removed": d.Fingerprint, "ended": d}, func(p *printer) { p.line("%s, %s, is trusted no more", d.Name, d.Fingerprint) })
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do it without asking")
	return c
}

// confirmEnd says who depends on a CA, and gives an error where nobody confirms that it is to end.
func (o *options) confirmEnd(c *cobra.Command, cl *client, fingerprint, verb string, yes bool) (d x509.Dependents, err error) {
	if err := cl.get(c.Context(), "/api/v1/ca/dependents", url.Values{"fingerprint": {fingerprint}}, &d); err != nil {
		return d, err
	}
	o.hint(c, "%s", dependence(d, time.Now()))
	if yes {
		return d, nil
	}
	err = o.confirm(c, verb, fmt.Sprintf("%d devices would be shut out; %s it with --yes", d.ShutOut, verb))
	if err != nil && o.json() {
		err = errors.Join(o.show(c.OutOrStdout(), map[string]any{"done": false, "would_end": d}, nil), err)
	}
	return d, err
}

// confirm has somebody at a terminal type yes. It gives an error where nobody does, with the remedy where nobody can be
// asked.
func (o *options) confirm(c *cobra.Command, verb, remedy string) error {
	if in, terminal := c.InOrStdin().(interface{ Fd() uintptr }); !terminal || o.json() || !term.IsTerminal(int(in.Fd())) {
		return fmt.Errorf("nothing was changed: %s", remedy)
	}
	fmt.Fprintf(c.ErrOrStderr(), "type yes to %s it: ", verb)
	if word, _ := bufio.NewReader(c.InOrStdin()).ReadString('\n'); strings.TrimSpace(word) != "yes" { // an end is no
		return errors.New("nothing was changed")
	}
	return nil
}

// dependence says in words who depends on a CA.
func dependence(d x509.Dependents, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CA %q, %s:\n", cut(d.Name, 60), cut(d.Fingerprint, 17))
	fmt.Fprintf(&b, "  %d devices hold certificates of it; %d of them hold no other, and will not get in any more", d.Devices, d.ShutOut)
	if len(d.Examples) > 0 {
		fmt.Fprintf(&b, ": %s", cut(strings.Join(d.Examples, ", "), 100))
		if more := d.ShutOut - len(d.Examples); more > 0 {
			fmt.Fprintf(&b, ", and %d more", more)
		}
	}
	fmt.Fprintf(&b, "\n  %d devices came with a certificate of it within a day", d.Seen)
	if d.Seen > 0 {
		fmt.Fprintf(&b, ", the last one %s", ago(d.LastSeen, now))
	}
	if d.Claims > 0 {
		fmt.Fprintf(&b, "\n  %d claim certificates are of it, and will provision nobody any more", d.Claims)
	}
	if d.ShutOut > 0 {
		b.WriteString("\n  before: give each a new certificate (naru device rotate, or EST), and the ca.crt that comes with it")
	}
	return b.String()
}

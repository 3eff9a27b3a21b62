package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/naru-platform/naru/internal/whole"
	"github.com/naru-platform/naru/service_platform/x509"
)

func caCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "ca", Short: "The certificate authority: its root, and the CAs of others that it trusts",
		Long: `The certificate authority: its root, and the CAs of others that it trusts. Where a FINGERPRINT is wanted, its first 8 digits
or more are enough, where no other begins so.`}
	c.AddCommand(caStatus(o), caExportRoot(o), caRemoveRoot(o), caRestoreRoot(o), caRollover(o), caRetire(o), caCode(o), caRegister(o),
		caSwitch(o, "disable", "Have a registered CA's certificates admit nobody"), caSwitch(o, "enable", "Have a registered CA's certificates count again"),
		caRemove(o), caClaim(o))
	return c
}

func caStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "The CAs that are in use, and those that are trusted", Args: cobra.NoArgs, Example: "  naru ca status",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var st x509.CAStatus
			if err := cl.get(c.Context(), "/api/v1/ca/status", nil, &st); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), st, func(p *printer) { showCA(p, st) })
		},
	}
}

func showCA(p *printer, st x509.CAStatus) {
	key := "its key was removed"
	if st.RootKey {
		key = "its key is in the CA's directory; `naru ca export-root`, then `naru ca remove-root-key`, keep it elsewhere"
	}
	p.columns("", "CA", "VALID UNTIL", "FINGERPRINT", "")
	p.row("root", st.Root.NotAfter.Format("2006-01-02"), st.Root.Fingerprint, key)
	p.row("issuing", st.Issuing.NotAfter.Format("2006-01-02"), st.Issuing.Fingerprint, cut(st.Issuing.Name, 40))
	for _, t := range st.Trusted {
		if t.Fingerprint != st.Root.Fingerprint {
			p.row("trusted", t.NotAfter.Format("2006-01-02"), t.Fingerprint, cut(t.Name, 40))
		}
	}
	for _, r := range st.Registered {
		note := cut(r.Name, 40)
		if r.Template != "" {
			note += ", new devices by template " + r.Template
		}
		if r.Disabled {
			note += ", disabled"
		}
		p.row("registered", r.NotAfter.Format("2006-01-02"), r.Fingerprint, note)
	}
}

func caExportRoot(o *options) *cobra.Command {
	var out, file string
	c := &cobra.Command{
		Use: "export-root", Short: "Write the root's certificate and its encrypted key to a directory", Args: cobra.NoArgs,
		Long: `Writes root.crt and root.key (encrypted PKCS #8, mode 0600; openssl pkcs8 reads it) under a passphrase of its own. Keep
them on a medium that is not on the network; then remove the key here with remove-root-key.`,
		Example: "  naru ca export-root --out /media/usb/naru-root",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if _, err := os.Stat(filepath.Join(out, "root.key")); err == nil {
				return fmt.Errorf("%s has a root.key already; choose another directory with --out", out)
			}
			pass, err := passphrase(c, file, true)
			if err != nil {
				return err
			}
			var k x509.RootKey
			if err := cl.post(c.Context(), "/api/v1/ca/root/export", map[string]string{"passphrase": pass}, &k); err != nil {
				return err
			}
			if err := whole.Directory(out, 0o700); err != nil {
				return err
			}
			if err := whole.Write(filepath.Join(out, "root.crt"), []byte(k.Certificate), 0o644); err != nil {
				return err
			}
			if err := whole.Write(filepath.Join(out, "root.key"), []byte(k.Key), 0o600); err != nil { // last: it is what counts
				return err
			}
			return o.show(c.OutOrStdout(), map[string]string{"directory": out, "fingerprint": k.Fingerprint}, func(p *printer) {
				p.line("written to %s: root.crt, root.key", out)
				p.line("once it is safe: naru ca remove-root-key %s", k.Fingerprint)
			})
		},
	}
	c.Flags().StringVar(&out, "out", "naru-root", "directory to write to")
	c.Flags().StringVar(&file, "passphrase-file", "", "file with the passphrase (asked for where missing)")
	return c
}

func caRemoveRoot(o *options) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "remove-root-key FINGERPRINT", Short: "Forget the root's key; the CA goes on issuing without it", Args: cobra.ExactArgs(1),
		Long: `Forgets the key of the root in use here; restore-root-key puts it back for a rollover. Where it was never exported there is
nothing to put back: then it is removed only once that is confirmed, by the word yes in a terminal, elsewhere by --yes.`,
		Example: "  naru ca export-root --out /media/usb/naru-root\n  naru ca remove-root-key 3c1f…",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var st x509.CAStatus
			if err := cl.get(c.Context(), "/api/v1/ca/status", nil, &st); err != nil {
				return err
			}
			in := x509.RootKey{Fingerprint: args[0]}
			if st.RootKey && !st.Exported && x509.Means(args[0], st.Root.Fingerprint) { // another is refused anyhow
				if !yes {
					o.hint(c, "the key of root %s was never exported: once removed it cannot be put back, and no rollover is possible\n  before: naru ca export-root", cut(st.Root.Fingerprint, 17))
					if err := o.confirm(c, "remove", "the root's key is nowhere else; naru ca export-root keeps it, --yes removes it all the same"); err != nil {
						return err
					}
				}
				in.ForGood = true
			}
			return o.changeCA(c, "/api/v1/ca/root/remove", in)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do it without asking, also where the key was never exported")
	return c
}

func caRestoreRoot(o *options) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "restore-root-key FILE", Short: "Put the root's exported key back, for a rollover or a new issuing CA", Args: cobra.ExactArgs(1),
		Example: "  naru ca restore-root-key /media/usb/naru-root/root.key",
		RunE: func(c *cobra.Command, args []string) error {
			key, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			pass, err := passphrase(c, file, false)
			if err != nil {
				return err
			}
			return o.changeCA(c, "/api/v1/ca/root/restore", map[string]string{"key": string(key), "passphrase": pass})
		},
	}
	c.Flags().StringVar(&file, "passphrase-file", "", "file with the passphrase (asked for where missing)")
	return c
}

func caRollover(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "rollover", Short: "Make a new root and issuing CA; both roots are trusted", Args: cobra.NoArgs,
		Long: `Makes a new root and a new issuing CA, which issue from now on. Certificates of before stay valid, and devices that know
only the old root go on trusting the server by a cross-certificate. When the last of them has the new root, end the old
one with retire.`,
		Example: "  naru ca rollover",
		RunE:    func(c *cobra.Command, _ []string) error { return o.changeCA(c, "/api/v1/ca/rollover", struct{}{}) },
	}
}

// changeCA asks for a change and shows how things are then.
func (o *options) changeCA(c *cobra.Command, path string, in any) error {
	cl, err := o.client()
	if err != nil {
		return err
	}
	var st x509.CAStatus
	if err := cl.post(c.Context(), path, in, &st); err != nil {
		return err
	}
	return o.show(c.OutOrStdout(), st, func(p *printer) { showCA(p, st) })
}

func caCode(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "registration-code", Short: "Get the code that a CA's owner proves its key with", Args: cobra.NoArgs,
		Long:    "Prints the code, and on standard error how a CA's owner signs a certificate with it.",
		Example: "  naru ca registration-code\n  CODE=$(naru ca registration-code)",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var r struct {
				Code    string `json:"code"`
				Expires string `json:"expires"`
			}
			if err := cl.post(c.Context(), "/api/v1/ca/registration-code", struct{}{}, &r); err != nil {
				return err
			}
			o.hint(c, `good for one registration until %s; sign a certificate with it:
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout proof.key -subj /CN=%s |
    openssl x509 -req -CA ca.crt -CAkey ca.key -days 1 -out proof.crt
  naru ca register --certificate ca.crt --proof proof.crt`, r.Expires, r.Code)
			return o.show(c.OutOrStdout(), r, func(p *printer) { p.line("%s", r.Code) })
		},
	}
}

func caRegister(o *options) *cobra.Command {
	var cert, proof, template string
	c := &cobra.Command{
		Use: "register", Short: "Trust a CA of your own, having proved that you hold its key", Args: cobra.NoArgs,
		Long: `Registers a CA: certificates that it signed admit devices that are registered with them, and with --template also new
ones, which are registered as the template says when they first connect.`,
		Example: "  naru ca register --certificate ca.crt --proof proof.crt --template factory",
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			in := map[string]string{"template": template, "by": "operator"}
			for name, file := range map[string]string{"certificate": cert, "proof": proof} {
				raw, err := os.ReadFile(file)
				if err != nil {
					return fmt.Errorf("--%s: %w", name, err)
				}
				in[name] = string(raw)
			}
			var r x509.RegisteredCA
			if err := cl.post(c.Context(), "/api/v1/ca/registered", in, &r); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), r, func(p *printer) { p.line("%s is registered: %s", r.Name, r.Fingerprint) })
		},
	}
	c.Flags().StringVar(&cert, "certificate", "", "the CA's certificate, PEM")
	c.Flags().StringVar(&proof, "proof", "", "a certificate signed by it whose common name is a registration code, PEM")
	c.Flags().StringVar(&template, "template", "", "template by which its unknown devices are registered")
	_ = c.MarkFlagRequired("certificate")
	_ = c.MarkFlagRequired("proof")
	return c
}

func caSwitch(o *options, verb, what string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " FINGERPRINT", Short: what, Args: cobra.ExactArgs(1), Example: "  naru ca " + verb + " 3c1f…",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var r x509.RegisteredCA
			if err := cl.post(c.Context(), "/api/v1/ca/registered/"+url.PathEscape(args[0])+"/"+verb, struct{}{}, &r); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), r, func(p *printer) {
				if r.Disabled {
					p.line("%s is disabled: its certificates admit nobody until naru ca enable %s", r.Name, r.Fingerprint)
					return
				}
				p.line("%s is enabled: its certificates count again", r.Name)
			})
		},
	}
}

// passphrase reads one from a file, or from the terminal without showing it, twice where it is a new one.
func passphrase(c *cobra.Command, file string, fresh bool) (string, error) {
	if file != "" {
		raw, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("--passphrase-file: %w", err)
		}
		return strings.TrimRight(string(raw), "\r\n"), nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return "", errors.New("there is no terminal to ask for the passphrase; use --passphrase-file")
	}
	ask := func(what string) ([]byte, error) {
		fmt.Fprint(c.ErrOrStderr(), what)
		defer fmt.Fprintln(c.ErrOrStderr())
		return term.ReadPassword(int(os.Stdin.Fd()))
	}
	first, err := ask("passphrase: ")
	if err != nil || !fresh {
		return string(first), err
	}
	again, err := ask("once more: ")
	if err == nil && !bytes.Equal(first, again) {
		err = errors.New("the two passphrases differ")
	}
	return string(first), err
}

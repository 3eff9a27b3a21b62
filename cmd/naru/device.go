package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/service_platform/x509"
)

func deviceCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "device", Short: "The fleet: its devices, their certificates and what becomes of them"}
	c.AddCommand(deviceAdd(o), deviceList(o), deviceShow(o), deviceSet(o), deviceToken(o), deviceRotate(o), deviceDelete(o), deviceExpiring(o), deviceImport(o), deviceExport(o), deviceAct(o, "revoke", "Withdraw a device's certificates; its connections end"),
		deviceAct(o, "disable", "Switch a device off; its connections end"), deviceAct(o, "enable", "Switch a device on again"))
	return c
}

func deviceAdd(o *options) *cobra.Command {
	var out, csr, validity, policy string
	var groups, attributes []string
	var another bool
	c := &cobra.Command{
		Use: "add ID", Short: "Register a device and issue its certificate", Args: cobra.ExactArgs(1),
		Long: `Registers a device and writes its certificate, key and the CA to a directory: device.crt, device.key (mode 0600) and
ca.crt. The key is made here and goes nowhere. With --csr it stays where it was made, and only the certificate comes back.
A command that was cut off is given again: it goes on with the key that is there, and for a key that has a certificate in
force it gets that one; --csr too.

A device that has a certificate already is refused: rotate gives it a new one, and token lets it fetch one itself.`,
		Example: `  naru device add d-17 --out d-17
  mosquitto_pub -p 8883 --cafile d-17/ca.crt --cert d-17/device.crt --key d-17/device.key -i d-17 -q 1 \
    -t device/d-17/telemetry -m '{"celsius":21.5}'`,
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			if err := authority.CheckDevice(args[0]); err != nil { // before a directory is called so
				return err
			}
			in := map[string]any{"id": args[0], "by": "operator"}
			if len(groups) > 0 {
				in["groups"] = groups
			}
			if policy != "" {
				in["policy"] = policy
			}
			if len(attributes) > 0 {
				all := map[string]string{}
				for _, a := range attributes {
					k, v, ok := strings.Cut(a, "=")
					if !ok || k == "" {
						return fmt.Errorf("--attribute %q: want name=value", a)
					}
					all[k] = v
				}
				in["attributes"] = all
			}
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
			in["csr"], in["new"] = own.csr, !another // what was cut off, and registered, is given again
			var e enrolled
			err = cl.post(c.Context(), "/api/v1/devices", in, &e)
			own.settle(err) // so that the same command is refused again, and does not go on
			if refusedWith(err, http.StatusConflict) {
				if has, known, e := findDevice(c, cl, args[0]); e == nil && known && len(has.Certs) > 0 && !another {
					return alreadyRegistered(has)
				}
			}
			if err != nil {
				return err
			}
			if err := own.keep(e); err != nil {
				return err
			}
			shown := map[string]any{"id": e.ID, "fingerprint": e.Fingerprint, "not_after": e.NotAfter, "directory": dir}
			if e.Warning != "" {
				shown["warning"] = e.Warning
				o.hint(c, "warning: %s", e.Warning)
			}
			return o.show(c.OutOrStdout(), shown, func(p *printer) {
				p.line("%s is registered; its certificate is valid until %s", e.ID, e.NotAfter.Format("2006-01-02"))
				p.line("written to %s: ca.crt, device.crt%s", dir, map[bool]string{true: ", device.key", false: ""}[own.owns])
				if own.owns {
					host, port := splitAddr(cl.MQTT)
					p.line("try:\n  mosquitto_pub -h %s -p %s --cafile %s/ca.crt --cert %s/device.crt --key %s/device.key -i %s -q 1 -t device/%s/telemetry -m '{\"celsius\":21.5}'",
						host, port, dir, dir, dir, e.ID, e.ID)
				}
			})
		},
	}
	c.Flags().StringVar(&out, "out", "", "directory to write to (default: the device's id)")
	c.Flags().StringVar(&csr, "csr", "", "certificate signing request, PEM")
	c.Flags().Var((*lasting)(&validity), "validity", "how long the certificate is valid, such as 90d")
	c.Flags().StringSliceVar(&groups, "group", nil, "group that it belongs to; may be given more than once")
	c.Flags().StringArrayVar(&attributes, "attribute", nil, "name=value; may be given more than once")
	c.Flags().StringVar(&policy, "policy", "", "name of its policy")
	c.Flags().BoolVar(&another, "another", false, "add one more certificate to a device that is registered already")
	return c
}

// alreadyRegistered says what somebody may have meant who adds a device that is there.
func alreadyRegistered(d x509.Shown) error {
	return fmt.Errorf("%s is registered already (%s, certificates: %d); for a new one in their place: naru device rotate %s; to have it fetch one by EST: naru device token %s; for one more beside them: --another",
		d.ID, d.State, len(d.Certs), d.ID, d.ID)
}

func splitAddr(addr string) (host, port string) {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 {
		return "127.0.0.1", "8883"
	}
	host = strings.Trim(addr[:i], "[]")
	if host == "" || host == "0.0.0.0" || host == "::" {
		host = "127.0.0.1"
	}
	return host, addr[i+1:]
}

func deviceList(o *options) *cobra.Command {
	var group, state string
	c := &cobra.Command{
		Use: "list", Short: "The registered devices", Args: cobra.NoArgs, Example: "  naru device list --state expired -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			q := url.Values{}
			for k, v := range map[string]string{"group": group, "state": state} {
				if v != "" {
					q.Set(k, v)
				}
			}
			return o.listDevices(c, q)
		},
	}
	c.Flags().StringVar(&group, "group", "", "only devices of this group")
	c.Flags().StringVar(&state, "state", "", "only devices in this state: active, disabled, expired, revoked, pending, untrusted")
	return c
}

func (o *options) listDevices(c *cobra.Command, q url.Values) error {
	cl, err := o.client()
	if err != nil {
		return err
	}
	all := []x509.Shown{}
	if err := eachDevice(c.Context(), cl, q, func(d x509.Shown) error { all = append(all, d); return nil }); err != nil {
		return err
	}
	return o.show(c.OutOrStdout(), all, func(p *printer) {
		p.columns(noneOf("devices", len(q) > 0, "`naru device add ID` registers one"), "DEVICE", "STATE", "CERTIFICATES", "VALID UNTIL", "SINCE", "GROUPS")
		for _, d := range all {
			p.row(d.ID, stateOf(d), fmt.Sprint(len(d.Certs)), until(d), d.CreatedAt.Format("2006-01-02"), cut(strings.Join(d.Groups, ","), 40))
		}
	})
}

// eachDevice asks for one page after the other.
func eachDevice(ctx context.Context, cl *client, q url.Values, f func(x509.Shown) error) error {
	for after := ""; ; {
		var page struct {
			Devices []x509.Shown `json:"devices"`
			Next    string       `json:"next"`
		}
		if after != "" {
			q.Set("after", after)
		}
		if err := cl.get(ctx, "/api/v1/devices", q, &page); err != nil {
			return err
		}
		for _, d := range page.Devices {
			if err := f(d); err != nil {
				return err
			}
		}
		if after = page.Next; after == "" {
			return nil
		}
	}
}

// stateOf is a device's state, and of one whose CA is not trusted what became of that.
func stateOf(d x509.Shown) string {
	if d.Untrusted != "" {
		return fmt.Sprintf("%s (CA %s)", d.State, d.Untrusted)
	}
	return d.State
}

// until is when a device's last certificate ends.
func until(d x509.Shown) string {
	if t := d.Until(); !t.IsZero() {
		return t.Format("2006-01-02")
	}
	return "-"
}

func deviceAct(o *options, verb, what string) *cobra.Command {
	var reason, fingerprint string
	c := &cobra.Command{
		Use: verb + " ID", Short: what, Args: cobra.ExactArgs(1), Example: "  naru device " + verb + " d-17",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			var done x509.RevokedDevice // of disable and enable it is but what is shown
			in := map[string]string{"by": "operator", "reason": reason}
			if fingerprint != "" {
				in["fingerprint"] = fingerprint
			}
			if err := cl.post(c.Context(), "/api/v1/devices/"+url.PathEscape(args[0])+"/"+verb, in, &done); err != nil {
				return err
			}
			return o.show(c.OutOrStdout(), done, func(p *printer) {
				p.line("%s", reached(verb, fingerprint, done.Shown))
				for _, id := range done.SameKey {
					p.line("%s has a certificate for the same key, which is in force: naru device revoke %s", id, id)
				}
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for the record")
	if verb == "revoke" {
		c.Flags().StringVar(&fingerprint, "fingerprint", "", "only the certificate with this `fingerprint`, or its first 8 digits or more, and others with the same key (default: all of the device's)")
	}
	return c
}

// reached says what has become of a device that was revoked, disabled or enabled, and what is left to do.
func reached(verb, fingerprint string, d x509.Shown) string {
	revoked := 0
	for _, c := range d.Certs {
		if c.Revoked() {
			revoked++
		}
	}
	certs := func(n int) string {
		if n == 1 {
			return "1 certificate"
		}
		return fmt.Sprintf("%d certificates", n)
	}
	again := "; a new one: naru device rotate " + d.ID
	switch verb {
	case "revoke":
		text := fmt.Sprintf("%s, revoked: %s", d.ID, certs(revoked))
		if left := len(d.Certs) - revoked; left > 0 {
			return fmt.Sprintf("%s of %d", text, len(d.Certs))
		}
		if fingerprint != "" && revoked > 1 {
			text += ", all that it has"
		}
		return text + "; it gets in no more" + again
	case "disable":
		return d.ID + " is disabled: it gets in no more until naru device enable " + d.ID
	}
	switch {
	case len(d.Certs) == 0:
		return d.ID + " is enabled, but has no certificate: naru device rotate " + d.ID
	case revoked == len(d.Certs):
		return d.ID + " is enabled, but all its certificates are revoked: naru device rotate " + d.ID
	case d.State != "active":
		return fmt.Sprintf("%s is enabled, but its state is %s: naru device show %s", d.ID, d.State, d.ID)
	}
	return d.ID + " is enabled"
}

func fetchCA(ctx context.Context, cl *client) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := cl.open(ctx, "GET", "/api/v1/ca", nil, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, 1<<20))
}

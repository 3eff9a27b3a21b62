package main

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/service_platform/x509/authority"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/service_platform/x509"
)

func whyCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "why", Short: "Why something is as it is"}
	c.AddCommand(whyCommandOf(o), whyDevice(o))
	return c
}

// because is what there is to say of a device that may not get in.
type because struct {
	Device   string         `json:"device"`
	State    string         `json:"state"`  // as x509.Device has it, or unregistered
	Well     bool           `json:"well"`   // nothing keeps it out
	Cause    string         `json:"cause"`  // in a sentence
	Remedy   string         `json:"remedy"` // what to do
	Reason   string         `json:"reason,omitempty"`
	Attempts []x509.Attempt `json:"attempts"` // newest first
	// Others came under the device's name with a certificate that is not registered for it: they say nothing of the device.
	Others []x509.Attempt `json:"claimed_by_others,omitempty"`

	of  x509.Shown          // as it is registered
	cas []x509.RegisteredCA // for what their certificates are refused for
}

func whyDevice(o *options) *cobra.Command {
	var address, ca string
	var byCA bool
	c := &cobra.Command{
		Use: "device [ID]", Short: "Why a device does not get in", Args: cobra.MaximumNArgs(1),
		Long: `Reads the device's registration and its last attempts to get in, of a day at most, and says what keeps it out: expired,
unknown CA, revoked, disabled, unregistered, a client id that is not its name, policy, rate limit, a wrong clock, a
handshake that did not end, or at its enrolment a token, a template, an approval hook. With --address, attempts from there
count too, for a device that never got to say its name. It exits with 2 when something keeps the device out. Who came under
the name of a registered device with a certificate that is not registered for it is shown apart, as someone else. The name
of a claim certificate is explained too.

Without an ID, --address and --ca list who came from there, or with that CA's certificate (its name, key identifier or fingerprint);
--by-ca sums all attempts up by the CA, and exits with 2 when one that is known here has refused devices.`,
		Example: "  naru why device d-17\n  naru why device d-17 --address 192.0.2.7\n  naru why device --by-ca\n  naru why device --ca 'Factory CA'",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			switch {
			case byCA && len(args) == 0 && address == "" && ca == "":
				return o.whyByCA(c, cl)
			case byCA:
				return errors.New("--by-ca is of all devices; leave the rest out, or use --ca")
			case len(args) == 0 && address == "" && ca == "":
				return errors.New("whose attempts? give a device's ID, or --address, --ca or --by-ca")
			case len(args) == 0:
				return o.listAttempts(c, cl, url.Values{"address": {address}, "ca": {ca}, "limit": {"100"}})
			}
			return o.whyOne(c, cl, args[0], address, ca)
		},
	}
	c.Flags().StringVar(&address, "address", "", "where the device connects from")
	c.Flags().StringVar(&ca, "ca", "", "only attempts with a certificate of this CA: its name, key identifier or fingerprint; of these the first 8 digits or more")
	c.Flags().BoolVar(&byCA, "by-ca", false, "sum all attempts up by the CA of the certificate that was shown")
	return c
}

func (o *options) whyOne(c *cobra.Command, cl *client, id, address, ca string) error {
	device, known, err := findDevice(c, cl, id)
	if err != nil {
		return err
	}
	var found struct {
		Attempts []x509.Attempt `json:"attempts"`
	}
	if err := cl.get(c.Context(), "/api/v1/admissions", url.Values{"device": {id}, "ca": {ca}, "limit": {"20"}}, &found); err != nil {
		return err
	}
	if len(found.Attempts) == 0 && address != "" {
		if err := cl.get(c.Context(), "/api/v1/admissions", url.Values{"address": {address}, "ca": {ca}, "limit": {"20"}}, &found); err != nil {
			return err
		}
	}
	var cas x509.CAStatus
	if err := cl.get(c.Context(), "/api/v1/ca/status", nil, &cas); err != nil {
		return err
	}
	b := explain(id, device, known, found.Attempts, cas.Registered, time.Now())
	if !known {
		var claims []x509.Claim
		if err := cl.get(c.Context(), "/api/v1/claims", nil, &claims); err != nil {
			return err
		}
		if k := claimNamed(id, claims, found.Attempts, time.Now()); k != nil {
			b = explainClaim(*k, found.Attempts, cas.Registered, time.Now())
		}
	} else if len(found.Attempts) == 0 || found.Attempts[0].Admitted {
		var shy struct {
			Attempts []x509.Attempt `json:"attempts"`
		}
		if err := cl.get(c.Context(), "/api/v1/admissions", url.Values{"step": {x509.StepServer}, "limit": {"100"}}, &shy); err != nil {
			return err
		}
		b.distrusted(shy.Attempts, time.Now())
	}
	if err := o.show(c.OutOrStdout(), b, func(p *printer) { showBecause(p, b) }); err != nil {
		return err
	}
	if !b.Well {
		return errFault
	}
	return nil
}

// claimNamed is the claim certificate of a name, of several the one that came last, else one in force; nil where there is none.
func claimNamed(name string, claims []x509.Claim, attempts []x509.Attempt, now time.Time) (found *x509.Claim) {
	for i := range claims {
		k := &claims[i]
		switch {
		case k.Name != name:
		case len(attempts) > 0 && attempts[0].Fingerprint == k.Fingerprint:
			return k
		case found == nil || !found.InForce(now) && k.InForce(now):
			found = k
		}
	}
	return found
}

// findDevice says whether a device is registered.
func findDevice(c *cobra.Command, cl *client, id string) (d x509.Shown, known bool, err error) {
	if err := authority.CheckDevice(id); err != nil {
		return d, false, err
	}
	err = cl.get(c.Context(), "/api/v1/devices/"+url.PathEscape(id), nil, &d)
	if refusedWith(err, http.StatusNotFound) {
		return d, false, nil
	}
	return d, err == nil, err
}

func showBecause(p *printer, b because) {
	p.line("%q is %s. %s", b.Device, b.State, cut(b.Cause, 600))
	if b.Remedy != "" {
		p.line("  -> %s", b.Remedy)
	}
	if len(b.Attempts) > 0 {
		p.line("")
		showAttempts(p, b.Attempts, false)
	}
	if len(b.Others) > 0 {
		p.line("")
		p.line("someone else claimed this name:")
		showAttempts(p, b.Others, false)
	}
}

// showAttempts shows each with its steps; named says whose they are.
func showAttempts(p *printer, list []x509.Attempt, named bool) {
	who := func(cells ...string) []string {
		if !named {
			return cells[1:]
		}
		return cells
	}
	p.row(who("DEVICE", "LAST", "TIMES", "FROM", "DOOR", "TLS", "OUTCOME", "STEPS")...)
	now := time.Now()
	for _, a := range list {
		outcome := "admitted"
		if !a.Admitted {
			outcome = a.Reason
		}
		if a.Ended {
			outcome = "ended: " + a.Reason
		}
		var steps []string
		for _, s := range a.Steps {
			mark := "+"
			if !s.OK {
				mark = "!"
			}
			steps = append(steps, mark+s.Name)
		}
		name := cut(a.Device, 40)
		if a.Becomes != "" && a.Becomes != a.Device {
			name += " as " + cut(a.Becomes, 40)
		}
		p.row(who(name, ago(a.Last, now), fmt.Sprint(a.Count), cut(a.Address, 40), a.Door, a.TLS, outcome, strings.Join(steps, " "))...)
	}
}

func (o *options) listAttempts(c *cobra.Command, cl *client, q url.Values) error {
	var found struct {
		Attempts []x509.Attempt `json:"attempts"`
	}
	if err := cl.get(c.Context(), "/api/v1/admissions", q, &found); err != nil {
		return err
	}
	return o.show(c.OutOrStdout(), found.Attempts, func(p *printer) {
		if len(found.Attempts) == 0 {
			p.line("nobody came so within a day")
			return
		}
		showAttempts(p, found.Attempts, true)
	})
}

// whyByCA shows what came of each CA's certificates.
func (o *options) whyByCA(c *cobra.Command, cl *client) error {
	var found struct {
		CAs []x509.CAAttempts `json:"cas"`
	}
	if err := cl.get(c.Context(), "/api/v1/admissions/by-ca", nil, &found); err != nil {
		return err
	}
	err := o.show(c.OutOrStdout(), found.CAs, func(p *printer) {
		now := time.Now()
		p.columns("Nobody came within a day.", "CA", "KEY IDENTIFIER", "KNOWN", "DEVICES", "ADMITTED", "REFUSED", "LAST", "MOSTLY", "LAST REFUSED")
		for _, a := range found.CAs {
			name := cut(a.Name, 40)
			switch {
			case a.Others > 0:
				name = fmt.Sprintf("%d others", a.Others)
			case name == "" && a.CA == "":
				name = "no certificate"
			}
			p.row(name, orDash(cut(a.CA, 17)), standing(a), fmt.Sprint(a.Devices), fmt.Sprint(a.Admitted), fmt.Sprint(a.Refused),
				ago(a.Last, now), orDash(mostly(a.Reasons)), orDash(cut(a.LastDevice, 40)))
		}
	})
	if err == nil && slices.ContainsFunc(found.CAs, func(a x509.CAAttempts) bool { return a.Known && a.Refused > 0 }) {
		err = errFault
	}
	return err
}

// standing says whether a CA is known here, and of one that is trusted no more what became of it.
func standing(a x509.CAAttempts) string {
	switch {
	case !a.Known:
		return "no"
	case a.Standing != "" && a.Standing != x509.Trusted:
		return string(a.Standing)
	}
	return "yes"
}

// orDash keeps a column's place where there is nothing to say.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// mostly is the reason that there is most of.
func mostly(reasons map[string]int) (most string) {
	for _, r := range slices.Sorted(maps.Keys(reasons)) {
		if most == "" || reasons[r] > reasons[most] {
			most = r
		}
	}
	return most
}

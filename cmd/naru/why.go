package main

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/x509"
)

func whyCommand(o *options) *cobra.Command {
	c := &cobra.Command{Use: "why", Short: "Why something is as it is"}
	c.AddCommand(whyDevice(o))
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
}

func whyDevice(o *options) *cobra.Command {
	var address string
	c := &cobra.Command{
		Use: "device ID", Short: "Why a device does not get in", Args: cobra.ExactArgs(1),
		Long: `Reads the device's registration and its last attempts to get in, of a day at most, and says what keeps it out: expired,
unknown CA, revoked, disabled, unregistered, a client id that is not its name, policy, rate limit, a wrong clock, or a
handshake that did not end. With --address, attempts from there count too, for a device that never got to say its name.
It exits with 2 when something keeps the device out.`,
		Example: "  naru why device d-17\n  naru why device d-17 --address 192.0.2.7",
		RunE: func(c *cobra.Command, args []string) error {
			cl, err := o.client()
			if err != nil {
				return err
			}
			device, known, err := findDevice(c, cl, args[0])
			if err != nil {
				return err
			}
			var found struct {
				Attempts []x509.Attempt `json:"attempts"`
			}
			if err := cl.get(c.Context(), "/api/v1/admissions", url.Values{"device": {args[0]}, "limit": {"20"}}, &found); err != nil {
				return err
			}
			if len(found.Attempts) == 0 && address != "" {
				if err := cl.get(c.Context(), "/api/v1/admissions", url.Values{"address": {address}, "limit": {"20"}}, &found); err != nil {
					return err
				}
			}
			b := explain(args[0], device, known, found.Attempts, time.Now())
			if err := o.show(c.OutOrStdout(), b, func(p *printer) { showBecause(p, b) }); err != nil {
				return err
			}
			if !b.Well {
				return errFault
			}
			return nil
		},
	}
	c.Flags().StringVar(&address, "address", "", "where the device connects from")
	return c
}

// findDevice says whether a device is registered.
func findDevice(c *cobra.Command, cl *client, id string) (d x509.Device, known bool, err error) {
	if err := x509.CheckDevice(id); err != nil {
		return d, false, err
	}
	err = cl.get(c.Context(), "/api/v1/devices/"+url.PathEscape(id), nil, &d)
	if err != nil && strings.HasSuffix(err.Error(), "is not registered") {
		return d, false, nil
	}
	return d, err == nil, err
}

// explain says what keeps a device out, by its registration first, then by its last attempt.
func explain(id string, d x509.Device, known bool, attempts []x509.Attempt, now time.Time) because {
	b := because{Device: id, State: "unregistered", Attempts: attempts}
	var last *x509.Attempt
	if len(attempts) > 0 {
		last = &attempts[0]
	}
	if known {
		b.State = d.State(now)
	}
	// What policy refused it to say or hear does not keep it out.
	denied := false
	if last != nil && last.Reason == "acl_denied" && step(last) == "policy" {
		denied = slices.ContainsFunc(attempts, func(a x509.Attempt) bool { return a.Admitted }) || b.State == "active"
	}
	refused := last != nil && !last.Admitted && !denied
	switch {
	case b.State == "disabled":
		b.say("device_disabled", fmt.Sprintf("It is disabled since %s, by %s: %s.", d.DisabledAt.Format(time.RFC3339), d.DisabledBy, d.DisabledReason), "naru device enable "+id)
	case refused:
		b.explainRefusal(last)
	case !known:
		b.say("cert_unregistered", "No device of that id is registered, and none tried to get in within a day.", "naru device add "+id)
	case b.State == "expired":
		b.say("cert_expired", "Its last certificate ended "+d.Until().Format(time.RFC3339)+".", "naru device rotate "+id)
	case b.State == "revoked":
		b.say("cert_revoked", "All its certificates are revoked.", "naru device rotate "+id+", if it is to come back")
	case b.State == "pending":
		b.say("cert_unregistered", "It is registered, but has no certificate yet.", "naru device add "+id+", or let it enrol")
	case last == nil:
		b.Well = true
		b.Cause = "Nothing keeps it out, and it did not try to get in within a day: not one of its connections reached a listener."
		b.Remedy = "Look at its power and network, at the address and port it connects to, and at what lies between: a firewall, a load balancer, DNS."
	case denied:
		b.Well = true
		b.Cause = "It gets in. What it asked for was refused by policy, " + ago(last.Last, now) + ": " + last.Detail + "."
		b.Remedy = "A device speaks on device/" + id + "/… and hears its own commands; `naru messages --outcome refused` lists what was refused."
	default:
		b.Well = true
		b.Cause = "Nothing keeps it out; it last got in " + ago(last.Last, now) + " from " + orNowhere(last.Address) + "."
		b.Remedy = "If it is away now, its connection ended; `naru messages --follow` shows what crosses."
	}
	return b
}

func (b *because) say(reason, cause, remedy string) {
	b.Reason, b.Cause, b.Remedy = reason, cause, remedy
}

// explainRefusal puts a refusal in words for a person. What it has no words for, the list of reasons has.
func (b *because) explainRefusal(a *x509.Attempt) {
	switch {
	case step(a) == "rate_limit":
		b.say(a.Reason, "It was refused by a rate limit: "+a.Detail+".", "Does it connect in a loop? Its attempts are counted below.")
	case a.Reason == "cert_expired" && a.Last.Sub(a.NotAfter) < time.Hour:
		b.say(a.Reason, "It came with a certificate that ended less than an hour before. "+a.Detail+".", "naru device rotate "+b.Device+"; and compare this machine's clock with a time server")
	case a.Reason == "cert_expired":
		b.say(a.Reason, "It comes with an expired certificate. "+a.Detail+".", "naru device rotate "+b.Device+"; if it was renewed already, the device does not use the new one")
	case a.Reason == "cert_not_yet_valid":
		b.say(a.Reason, "A clock is wrong: it comes with a certificate that begins in the future. "+a.Detail+".", "Compare this machine's clock, and that of whoever issued the certificate, with a time server")
	case a.Reason == "cert_unknown_ca":
		b.say(a.Reason, fmt.Sprintf("Its certificate is by %q, a CA that is not trusted here. %s.", a.Issuer, a.Detail), "naru ca status shows who is trusted; naru ca register trusts another. Was the device made for another platform?")
	case a.Reason == "client_id_mismatch":
		b.say(a.Reason, "Its MQTT client id is not the name in its certificate. "+a.Detail+".", "Set the client id to "+a.Device)
	case a.Reason == "acl_denied":
		b.say(a.Reason, "Policy refused it. "+a.Detail+".", "Its will, or what else it says at CONNECT, must be on device/"+b.Device+"/…")
	case a.Reason == "cert_unregistered" && b.State != "unregistered":
		b.say(a.Reason, "It is registered, but not with the certificate it comes with. "+a.Detail+".", "naru device show "+b.Device+" lists those that are; does the device use an old one?")
	default:
		b.say(a.Reason, a.Detail+".", "")
		if r, err := message.ParseReason(a.Reason); err == nil {
			b.Remedy = r.Info().Look
		}
	}
}

// step is where an attempt ended.
func step(a *x509.Attempt) string {
	if n := len(a.Steps); n > 0 {
		return a.Steps[n-1].Name
	}
	return ""
}

func orNowhere(address string) string {
	if address == "" {
		return "an address that was not recorded"
	}
	return address
}

func showBecause(p *printer, b because) {
	p.line("%q is %s. %s", b.Device, b.State, cut(b.Cause, 600))
	if b.Remedy != "" {
		p.line("  -> %s", b.Remedy)
	}
	if len(b.Attempts) == 0 {
		return
	}
	p.line("")
	p.row("LAST", "TIMES", "FROM", "DOOR", "TLS", "OUTCOME", "STEPS")
	now := time.Now()
	for _, a := range b.Attempts {
		outcome := "admitted"
		if !a.Admitted {
			outcome = a.Reason
		}
		var steps []string
		for _, s := range a.Steps {
			mark := "+"
			if !s.OK {
				mark = "!"
			}
			steps = append(steps, mark+s.Name)
		}
		p.row(ago(a.Last, now), fmt.Sprint(a.Count), cut(a.Address, 40), a.Door, a.TLS, outcome, strings.Join(steps, " "))
	}
}

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/naru-platform/naru/message"
	"github.com/naru-platform/naru/service_platform/x509"
)

// explain says what keeps a device out, by its registration first, then by its last attempt.
func explain(id string, d x509.Shown, known bool, attempts []x509.Attempt, cas []x509.RegisteredCA, now time.Time) because {
	b := because{Device: id, State: "unregistered", Attempts: attempts, of: d, cas: cas}
	if known {
		if b.State = d.Device.State(now); d.Untrusted != "" && b.State == "active" {
			b.State = "untrusted"
		}
		b.Attempts, b.Others = apart(d.Device, attempts)
		attempts = b.Attempts
	}
	b.decide(d, known, attempts, now)
	// That it was refused another certificate does not keep a device out that has a good one.
	if len(attempts) > 0 && enrols(&attempts[0]) && !attempts[0].Admitted && b.State == "active" && b.Well {
		why := because{Device: id, State: b.State, of: d, cas: cas}
		why.explainRefusal(&attempts[0])
		b.Cause += " But it was refused another certificate, " + ago(attempts[0].Last, now) + ": " + why.Cause
		b.Remedy = why.Remedy
	}
	if i := slices.IndexFunc(b.Others, func(a x509.Attempt) bool { return !a.Admitted }); i >= 0 {
		other := &b.Others[i]
		why := because{Device: id, State: "unregistered", cas: cas}
		why.explainRefusal(other)
		b.Cause += fmt.Sprintf(" Someone else claimed this name with a certificate that is not registered for it, and was refused, %s from %s, %s: %s",
			ago(other.Last, now), orNowhere(other.Address), times(other.Count), why.Cause)
		if len(attempts) == 0 && b.Well {
			b.Remedy = "If that is the device itself: " + why.Remedy + ". If not, nothing is to be done: he does not get in"
		}
	}
	return b
}

// apart parts what a registered device did from what others did under its name. A name is anybody's to claim; a certificate
// that is registered for the device is not. Who asks for a certificate with a token needs none, whatever he shows beside it, and a claim certificate
// that the device was made with is of many.
func apart(d x509.Device, attempts []x509.Attempt) (own, others []x509.Attempt) {
	own = []x509.Attempt{}
	for _, a := range attempts {
		made := a.Door == "claim" && a.Admitted && strings.EqualFold(a.Becomes, d.ID)
		asked := enrols(&a) && (a.Fingerprint == "" || a.Door == "est" && slices.ContainsFunc(a.Steps, func(s x509.Step) bool { return s.Name == "token" }))
		if made || asked || slices.ContainsFunc(d.Certs, func(c x509.Certificate) bool { return c.Fingerprint == a.Fingerprint }) {
			own = append(own, a)
		} else {
			others = append(others, a)
		}
	}
	return own, others
}

// explainClaim says of a claim certificate whether it is good, and what became of who used it last.
func explainClaim(k x509.Claim, attempts []x509.Attempt, cas []x509.RegisteredCA, now time.Time) because {
	b := because{Device: k.Name, State: "a claim certificate", Attempts: attempts, cas: cas}
	whom := "It is for the templates " + strings.Join(k.Templates, ", ") + ", and no device."
	switch {
	case !k.RevokedAt.IsZero():
		b.say("cert_revoked", "It was revoked "+k.RevokedAt.Format(time.RFC3339)+".", "naru ca claim add NAME, for another; what was provisioned with this one stays")
	case !now.Before(k.NotAfter):
		b.say("cert_expired", "It ended "+k.NotAfter.Format(time.RFC3339)+".", "naru ca claim add NAME, for another; what was provisioned with this one stays")
	case len(attempts) == 0:
		b.Well = true
		b.Cause = whom + " Nobody came with it within a day."
	case attempts[0].Reason == "acl_denied" && step(&attempts[0]) == "policy":
		b.Well = true
		b.Cause = whom + " It gets in, and what it said or wanted to hear was refused, " + ago(attempts[0].Last, now) + ": " + attempts[0].Detail + "."
		b.Remedy = "A claim certificate asks on $aws/certificates/create… and $aws/provisioning-templates/…, and may do nothing else: docs/certificates.md"
	case !attempts[0].Admitted:
		b.explainRefusal(&attempts[0])
		b.Cause = whom + " Who came with it last, " + ago(attempts[0].Last, now) + ", was refused: " + b.Cause
	default:
		b.Well = true
		b.Cause = whom + " It was last used " + ago(attempts[0].Last, now) + " from " + orNowhere(attempts[0].Address) + "."
		if became := attempts[0].Becomes; became != "" {
			b.Remedy = "naru why device " + became + " goes on with what became of it"
		}
	}
	return b
}

// distrusted adds what clients did that ended their handshake over the server's certificate, and so never said who they are: it
// may have been the device. attempts are newest first.
func (b *because) distrusted(attempts []x509.Attempt, now time.Time) {
	if len(b.Attempts) > 0 {
		own := &b.Attempts[0]
		for i := range attempts {
			if a := &attempts[i]; own.Admitted && a.Address == own.Address && a.Address != "" && a.Last.After(own.Last) {
				b.Well, b.Reason = false, a.Reason
				b.Cause = fmt.Sprintf("It last got in %s from %s. Since then a client there ended its handshake %s, the last time %s: %s.",
					ago(own.Last, now), a.Address, times(a.Count), ago(a.Last, now), a.Detail)
				b.Remedy = freshCA
				return
			}
		}
		return
	}
	if len(attempts) == 0 || !b.Well {
		return
	}
	a := &attempts[0]
	b.Cause += fmt.Sprintf(" But somebody who did not say who he is ended a handshake %s, from %s: %s.", ago(a.Last, now), orNowhere(a.Address), a.Detail)
	b.Remedy = "Is that the device (naru why device --address ADDR lists an address's attempts)? " + freshCA + ". If not: " + b.Remedy
}

// freshCA is the remedy for a device that does not trust the platform.
const freshCA = "Put this platform's roots on the device as its ca.crt: GET /api/v1/ca, or what naru device rotate writes"

// trustedNoMore explains a registered certificate whose CA is trusted no more, and any certificate of a CA that is switched
// off; false where neither is so.
func (b *because) trustedNoMore(a *x509.Attempt) bool {
	for _, ca := range b.cas {
		if ca.Disabled && (a.CA != "" && a.CA == ca.KeyID() || a.CA == "" && a.Issuer == ca.Name) {
			b.say(a.Reason, fmt.Sprintf("Its certificate is by the registered CA %q, which is switched off.", ca.Name), "naru ca enable "+ca.Fingerprint)
			return true
		}
	}
	if !slices.ContainsFunc(b.of.Certs, func(c x509.Certificate) bool { return c.Fingerprint == a.Fingerprint }) {
		return false
	}
	if b.of.CA != "" && !strings.HasPrefix(b.of.CA, "claim:") {
		b.say(a.Reason, fmt.Sprintf("Its certificate is by %q, a CA that was registered here and removed.", a.Issuer), "naru ca registration-code, then naru ca register, to trust it again; or naru device rotate "+b.Device)
		return true
	}
	b.say(a.Reason, fmt.Sprintf("Its certificate is by %q, below a root that was retired.", a.Issuer), rotateAll(b.Device))
	return true
}

// usesOld explains a device that comes with a certificate that is not taken any more, while a newer one is in force; false
// where it is not so.
func (b *because) usesOld(a *x509.Attempt, now time.Time) bool {
	if a.Reason != "cert_revoked" && a.Reason != "cert_expired" && a.Reason != "cert_unknown_ca" {
		return false
	}
	certs := b.of.Certs
	i := slices.IndexFunc(certs, func(c x509.Certificate) bool { return c.Fingerprint == a.Fingerprint })
	if i < 0 {
		return false
	}
	old, newer := certs[i], x509.Certificate{}
	for _, c := range certs {
		if c.Fingerprint == old.Fingerprint || !c.InForce(now) || c.IssuedAt.Before(old.IssuedAt) || c.IssuedAt.Before(newer.IssuedAt) {
			continue
		}
		if a.Reason == "cert_unknown_ca" && c.Issuer == old.Issuer { // it would be refused too
			continue
		}
		newer = c
	}
	if newer.Fingerprint == "" {
		return false
	}
	b.say(a.Reason, fmt.Sprintf("It uses the old certificate %.16s; %.16s is in force: put it on the device. %s.", old.Fingerprint, newer.Fingerprint, a.Detail),
		fmt.Sprintf("Put certificate %.16s on the device; where its key is lost, naru device rotate %s", newer.Fingerprint, b.Device))
	return true
}

// rotateAll is the remedy for a device of a root that was retired.
func rotateAll(id string) string {
	return "naru device rotate " + id + ", and put the new certificate on the device, with the new ca.crt"
}

// enableCA is the remedy for a device of a registered CA that is switched off.
func (b *because) enableCA() string {
	for _, ca := range b.cas {
		id := ca.KeyID()
		if ca.Disabled && (b.of.CA == ca.Fingerprint || id != "" && slices.ContainsFunc(b.of.Certs, func(c x509.Certificate) bool { return c.Issuer == id })) {
			return "naru ca enable " + ca.Fingerprint + "; or naru device rotate " + b.Device
		}
	}
	return "naru ca status lists those that are disabled, naru ca enable switches one on; or naru device rotate " + b.Device
}

// enrols says whether somebody asked for a certificate, and not to be let in.
func enrols(a *x509.Attempt) bool { return a.Door == "est" || a.Door == "claim" }

func (b *because) decide(d x509.Shown, known bool, attempts []x509.Attempt, now time.Time) {
	id := b.Device
	var last *x509.Attempt
	for i := range attempts {
		if b.State != "active" || !enrols(&attempts[i]) {
			last = &attempts[i]
			break
		}
	}
	// What policy refused it to say or hear does not keep it out, nor that it is read more slowly.
	denied, slowed := false, last != nil && last.Reason == "rate_limited" && !enrols(last)
	if last != nil && last.Reason == "acl_denied" && step(last) == "policy" {
		denied = slices.ContainsFunc(attempts, func(a x509.Attempt) bool { return a.Admitted }) || b.State == "active"
	}
	past := last != nil && last.Reason == "device_disabled" && b.State != "disabled" // it was, when it came
	refused := last != nil && !last.Admitted && !denied && !slowed && !past
	switch {
	case b.State == "disabled":
		why := ""
		if d.DisabledReason != "" {
			why = ": " + d.DisabledReason
		}
		b.say("device_disabled", fmt.Sprintf("It is disabled since %s, by %s%s.", d.DisabledAt.Format(time.RFC3339), d.DisabledBy, why), "naru device enable "+id)
	case d.Untrusted == x509.Disabled:
		b.say("cert_unknown_ca", "Its CA is not trusted (disabled): it has no certificate in force by another.", b.enableCA())
	case d.Untrusted == x509.Retired:
		b.say("cert_unknown_ca", "Its CA is not trusted (retired): it has no certificate in force that is not below a root that was retired.", rotateAll(id))
	case d.Untrusted == x509.Removed:
		b.say("cert_unknown_ca", "Its CA is not trusted (removed): it has no certificate in force by another.",
			"naru ca registration-code, then naru ca register, to trust it again; or naru device rotate "+id)
	case fought(attempts, now) != nil:
		b.say("taken_over", "It is connected, and thrown out again: two clients have its certificate and client id. "+capital(fought(attempts, now).Detail)+".",
			"Is one device's key on two devices, or do two programs on it connect? `naru device rotate "+id+"` gives it a new one")
	case refused && b.usesOld(last, now):
	case refused:
		b.explainRefusal(last)
		if last.Ended {
			b.Cause = "Its connection was ended " + ago(last.Last, now) + ". " + b.Cause
		}
	case !known && last != nil:
		b.say("cert_unregistered", "No device of that id is registered: it was deleted since it last came, "+ago(last.Last, now)+".", "naru device add "+id+", if it is to come back")
	case !known:
		b.say("cert_unregistered", "No device of that id is registered, and none tried to get in within a day.", "naru device add "+id)
	case b.State == "expired":
		b.say("cert_expired", "Its last certificate ended "+d.Until().Format(time.RFC3339)+".", "naru device rotate "+id)
	case b.State == "revoked":
		b.say("cert_revoked", "All its certificates are revoked.", "naru device rotate "+id+", if it is to come back")
	case b.State == "pending":
		b.say("cert_unregistered", "It is registered, but has no certificate yet.", "naru device add "+id+", or let it enrol")
	case last == nil && slices.ContainsFunc(attempts, func(a x509.Attempt) bool { return a.Admitted }):
		b.Well = true
		b.Cause = "Nothing keeps it out. It got a certificate, and has not come with it since, nor with another within a day."
		b.Remedy = "Does it use the new certificate, and the address and port for devices? They are what `naru up` says at its start."
	case last == nil:
		b.Well = true
		b.Cause = "Nothing keeps it out, and it did not try to get in within a day: not one of its connections reached a listener."
		b.Remedy = "Look at its power and network, at the address and port it connects to, and at what lies between: a firewall, a load balancer, DNS."
	case past:
		b.Well = true
		b.Cause = "Nothing keeps it out now. It was last refused " + ago(last.Last, now) + ", while it was disabled, and has not come since it was enabled."
		b.Remedy = "Does it try again? If it stays away, look at its power and network, and at its address and port."
	case denied:
		b.Well = true
		b.Cause = "It gets in. What it asked for was refused by policy, " + ago(last.Last, now) + ": " + last.Detail + "."
		b.Remedy = "A device speaks on device/" + id + "/… and hears its own commands; `naru messages --outcome refused` lists what was refused."
	case slowed:
		b.Well = true
		b.Cause = "It gets in, and a rate limit holds it back, " + ago(last.Last, now) + ": " + last.Detail + "."
		b.Remedy = "Nothing is refused or lost by that. What makes it talk so much? Else raise its publish_rate."
	default:
		b.Well = true
		b.Cause = "Nothing keeps it out; it last got in " + ago(last.Last, now) + " from " + orNowhere(last.Address) + "."
		b.Remedy = "If it is away now, its connection ended; `naru messages --follow` shows what crosses."
	}
}

func (b *because) say(reason, cause, remedy string) {
	b.Reason, b.Cause, b.Remedy = reason, cause, remedy
}

// explainRefusal puts a refusal in words for a person. What it has no words for, the list of reasons has.
func (b *because) explainRefusal(a *x509.Attempt) {
	switch {
	case step(a) == "rate_limit":
		b.say(a.Reason, "It was refused by a rate limit: "+a.Detail+".", "Does it connect in a loop? Its attempts are counted below.")
	case step(a) == x509.StepServer:
		b.say(a.Reason, capital(a.Detail)+".", freshCA)
	case step(a) == "throttle":
		b.say(a.Reason, "It was refused by a rate limit on certificates: "+a.Detail+".", "Does a production line ask in a loop, or is its claim certificate in wrong hands? `naru ca claim list`")
	case step(a) == "hook":
		b.say(a.Reason, "It was not approved. "+a.Detail+".", "Ask whoever runs the approval hook of its template; `naru config show` has its address")
	case step(a) == "template" && strings.Contains(a.Detail, "there is no policy"):
		b.say(a.Reason, "Its template names a policy that no broker has. "+a.Detail+".", "Mend the template, or give the brokers the policy; `naru config show` has both")
	case step(a) == "template":
		b.say(a.Reason, "Its template does not fit it. "+a.Detail+".", "Compare what it sends, or its certificate's subject, with the template in `naru config show`")
	case step(a) == "token" && a.Door == "claim":
		b.say(a.Reason, "Its ownership token is not good. "+a.Detail+".", "A token is good for one device, within an hour, until that has come in: have it ask for a certificate anew")
	case step(a) == "token":
		b.say(a.Reason, "Its enrolment token is not good. "+a.Detail+".", "naru device token "+b.Device)
	case step(a) == "csr":
		b.say(a.Reason, "Its certificate signing request is not one that is signed here. "+a.Detail+".", "Mend the request: its own name, a P-256, Ed25519 or RSA key of 2048 bits or more, PKCS #10")
	case step(a) == "claim":
		b.say(a.Reason, "Its claim certificate is not good for that. "+a.Detail+".", "naru ca claim list")
	case a.Reason == "cert_expired" && a.Last.Sub(a.NotAfter) < time.Hour:
		b.say(a.Reason, "It came with a certificate that ended less than an hour before. "+a.Detail+".", "naru device rotate "+b.Device+"; and compare this machine's clock with a time server")
	case a.Reason == "cert_expired":
		b.say(a.Reason, "It comes with an expired certificate. "+a.Detail+".", "naru device rotate "+b.Device+"; if it was renewed already, the device does not use the new one")
	case a.Reason == "cert_not_yet_valid":
		b.say(a.Reason, "A clock is wrong: it comes with a certificate that begins in the future. "+a.Detail+".", "Compare this machine's clock, and that of whoever issued the certificate, with a time server")
	case a.Reason == "cert_unknown_ca" && b.trustedNoMore(a):
	case a.Reason == "cert_unknown_ca":
		b.say(a.Reason, fmt.Sprintf("Its certificate is by %q, a CA that is not trusted here. %s.", a.Issuer, a.Detail), "naru ca status shows who is trusted; naru ca register trusts another. Was the device made for another platform?")
	case a.Reason == "cert_wrong_usage":
		b.say(a.Reason, "Its certificate is not one that a device may show. "+a.Detail+".",
			"Have its CA issue it for client authentication: extendedKeyUsage clientAuth, keyUsage digitalSignature, and a P-256, Ed25519 or RSA key of 2048 bits or more")
	case a.Reason == "client_id_mismatch":
		b.say(a.Reason, "Its MQTT client id is not the name in its certificate. "+a.Detail+".", "Set the client id to "+a.Device)
	case a.Reason == "acl_denied" && strings.Contains(a.Detail, "and there is none"):
		b.say(a.Reason, "It is registered with a policy that is not configured. "+a.Detail+".",
			fmt.Sprintf("Configure it (naru config show has those that are there), or give the device another: naru device set %s --policy NAME", b.Device))
	case a.Reason == "acl_denied" && b.of.Policy != "":
		b.say(a.Reason, "Policy refused it as it connected. "+a.Detail+".", fmt.Sprintf("Its policy %q must allow its will; `naru mqtt may` asks what a device may, `naru config show` has the policy", b.of.Policy))
	case a.Reason == "acl_denied":
		b.say(a.Reason, "Policy refused it as it connected. "+a.Detail+".", "Its will must be on device/"+b.Device+"/…; another topic wants a policy that allows it, see docs/mqtt.md")
	case a.Reason == "cert_unregistered" && b.State != "unregistered":
		b.say(a.Reason, "It is registered, but not with the certificate it comes with. "+a.Detail+".", "naru device show "+b.Device+" lists those that are; does the device use an old one?")
	default:
		b.say(a.Reason, a.Detail+".", "")
		if r, err := message.ParseReason(a.Reason); err == nil {
			b.Remedy = strings.ReplaceAll(r.Info().Look, "<id>", b.Device)
		}
	}
}

// foughtLately is for how long a fight for a client id is what there is to say of a device.
const foughtLately = 5 * time.Minute

// fought is an attempt that had to wait, since two clients take the device's client id from each other; nil where none did.
func fought(attempts []x509.Attempt, now time.Time) *x509.Attempt {
	for i := range attempts {
		if step(&attempts[i]) == "turns" && now.Sub(attempts[i].Last) < foughtLately {
			return &attempts[i]
		}
	}
	return nil
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func capital(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
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
